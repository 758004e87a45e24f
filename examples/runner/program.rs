//! What the program is asked for, and what becomes of it: the exit code, and why it failed.

use std::fmt::Display;
use std::path::Path;
use std::process::ExitCode;

use clap::Parser;
use stepwell::{Client, ErrorKind};

use crate::args::{Args, Verb};
use crate::output::{self, Output};
use crate::{ask, group, show, work};

/// The exit code of a command that failed, or that found what it was asked about to be wrong.
pub const FAILED: u8 = 1;
/// The exit code for bad usage and bad input.
const USAGE: u8 = 2;
/// The exit code after Ctrl-C.
pub const INTERRUPTED: u8 = 130;

/// Why a command ends early: what to say, and the exit code.
#[derive(Debug)]
pub struct Failure {
    pub code: u8,
    pub message: String,
}

pub type Result<T> = std::result::Result<T, Failure>;

impl Failure {
    /// The user's mistake.
    pub fn usage(message: impl Into<String>) -> Failure {
        Failure {
            code: USAGE,
            message: message.into(),
        }
    }

    /// There is no such job or delivery.
    pub fn unknown(problem: impl Display) -> Failure {
        Failure::new(format!(
            "{problem}: list shows the jobs that there are, deliveries their webhooks"
        ))
    }

    /// Anything else.
    pub fn new(message: impl Into<String>) -> Failure {
        Failure {
            code: FAILED,
            message: message.into(),
        }
    }
}

impl<E: std::error::Error + 'static> From<E> for Failure {
    fn from(error: E) -> Failure {
        let any: &dyn std::error::Error = &error;
        let kind = any.downcast_ref().map(stepwell::Error::kind);
        match kind {
            Some(ErrorKind::InvalidConfig | ErrorKind::InvalidJob) => {
                Failure::usage(error.to_string())
            }
            Some(ErrorKind::NotFound) => Failure::unknown(error),
            _ => Failure::new(error.to_string()),
        }
    }
}

/// The program.
pub fn main() -> ExitCode {
    if group::is_guard() {
        return group::guard();
    }
    let args = Args::parse();
    let mut out = Output::new(args.json);
    let done = run(&args, &mut out);
    let told = out.finish();
    match done.and_then(|code| told.map(|()| code)) {
        Ok(code) => ExitCode::from(code),
        Err(failure) => {
            output::complain(&failure.message);
            ExitCode::from(failure.code)
        }
    }
}

/// Answers the exit code.
fn run(args: &Args, out: &mut Output) -> Result<u8> {
    let Some(db) = &args.db else {
        return Err(Failure::usage("which queue? name its file: --db FILE"));
    };
    match &args.verb {
        Verb::Submit { file } => ask::submit(db, file, out),
        Verb::Work(options) => work::work(db, options, out),
        Verb::Run { file, options } => work::run(db, file, options, out),
        Verb::List {
            status,
            job_type,
            limit,
        } => show::list(&open(db)?, *status, job_type.as_deref(), *limit, out),
        Verb::Show { id } => show::job(&open(db)?, *id, out),
        Verb::Events { after, follow } => show::events(&open(db)?, *after, *follow, out),
        Verb::Deliveries { status, limit } => show::deliveries(&open(db)?, *status, *limit, out),
        Verb::Redeliver { ids } => ask::redeliver(&open(db)?, ids, out),
        Verb::Stats => show::stats(&open(db)?, out),
        Verb::Explain { id } => show::explain(&open(db)?, *id, out),
        Verb::Check => show::check(&open(db)?, out),
        Verb::Cancel(which) => ask::cancel(&open(db)?, which, out),
        Verb::Retry(retry) => ask::retry(&open(db)?, retry, out),
        Verb::Delete(which) => ask::delete(&open(db)?, which, out),
        Verb::Pause => ask::set_paused(&open(db)?, true, out),
        Verb::Resume => ask::set_paused(&open(db)?, false, out),
    }
}

/// Opens a file that is there: a mistyped name must not become an empty queue.
fn open(db: &Path) -> Result<Client> {
    if !db.exists() {
        let problem = format!(
            "{}: there is no such file: submit, work and run make one",
            db.display()
        );
        return Err(Failure::usage(problem));
    }
    Ok(Client::open(db)?)
}

//! The command line.

use std::path::PathBuf;

use clap::{Args as ClapArgs, Parser, Subcommand, ValueEnum};
use stepwell::{DeliveryId, DeliveryStatus, Durability, JobId, JobStatus, Seq};

/// Durable pipelines of shell commands, in one file.
#[derive(Parser)]
#[command(
    name = "runner",
    after_help = "Exit codes: 0 done, 1 something failed, 2 bad usage or input, 130 interrupted."
)]
pub struct Args {
    /// The queue's file
    #[arg(long, value_name = "FILE", global = true)]
    pub db: Option<PathBuf>,
    /// Print JSON lines
    #[arg(long, global = true)]
    pub json: bool,
    #[command(subcommand)]
    pub verb: Verb,
}

#[derive(Subcommand)]
pub enum Verb {
    /// Enqueue jobs, one JSON object a line; all of them or, if a line is bad, none
    #[command(after_long_help = LINE_HELP)]
    Submit {
        /// The file, or - for standard input
        file: String,
    },
    /// Run jobs until Ctrl-C or SIGTERM
    Work(WorkOptions),
    /// Submit jobs and work until they are over; exit code 1 if one failed or was cancelled
    #[command(after_long_help = LINE_HELP)]
    Run {
        /// The file, or - for standard input
        file: String,
        #[command(flatten)]
        options: RunOptions,
    },
    /// List jobs, newest first
    List {
        /// Only those that are pending, running, completed, failed or cancelled
        #[arg(long)]
        status: Option<JobStatus>,
        /// Only those of this type
        #[arg(long = "type", value_name = "TYPE")]
        job_type: Option<String>,
        /// At most so many
        #[arg(long, default_value_t = 50)]
        limit: usize,
    },
    /// Everything about a job
    Show { id: JobId },
    /// Cancel jobs, running ones too
    Cancel(Which),
    /// Try failed or cancelled jobs again, from the phase that failed
    Retry(RetryOptions),
    /// Delete jobs that are over
    Delete(Which),
    /// What happened, from the first event that is kept on
    Events {
        /// Only events after this number
        #[arg(long, value_name = "SEQ", default_value_t = 0)]
        after: Seq,
        /// Wait for more until Ctrl-C
        #[arg(long)]
        follow: bool,
    },
    /// Webhook deliveries, newest first
    Deliveries {
        /// Only those that are pending, delivered or failed
        #[arg(long)]
        status: Option<DeliveryStatus>,
        /// At most so many
        #[arg(long, default_value_t = 50)]
        limit: usize,
    },
    /// Send deliveries again, whatever became of them
    Redeliver {
        #[arg(required = true)]
        ids: Vec<DeliveryId>,
    },
    /// How many jobs there are, by status
    Stats,
    /// Why a job is not running
    Explain { id: JobId },
    /// Start no more jobs
    Pause,
    /// Start jobs again
    Resume,
    /// Check the file's invariants; exit code 1 and the broken ones if there are any
    Check,
}

#[derive(ClapArgs)]
pub struct RunOptions {
    /// Jobs that run at the same time [default: the number of processors]
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub workers: Option<u16>,
    /// What survives a power cut: everything, or everything but the newest moments
    #[arg(long, value_enum, default_value = "full")]
    pub durability: Sync,
    /// How long commands may go on after Ctrl-C; then they get SIGTERM, and SIGKILL 5 s later
    #[arg(long, value_name = "SECONDS", default_value = "10", value_parser = seconds)]
    pub shutdown_timeout: std::time::Duration,
    /// Let webhooks go to this host although its address is not public
    #[arg(long, value_name = "HOST")]
    pub allow_private: Vec<String>,
    /// Serve the dashboard and the API here, for example 127.0.0.1:8080
    #[arg(long, value_name = "ADDR")]
    pub http: Option<String>,
}

#[derive(ClapArgs)]
#[command(
    after_help = "Exit codes: 0 stopped by a signal, or idle; 130 interrupted before it was idle."
)]
pub struct WorkOptions {
    /// End when no job runs or waits, delayed jobs and retries included; a paused queue is idle when nothing runs
    #[arg(long)]
    pub until_idle: bool,
    #[command(flatten)]
    pub options: RunOptions,
}

#[derive(ClapArgs)]
pub struct RetryOptions {
    /// Begin with the first phase, and forget the results
    #[arg(long)]
    pub from_start: bool,
    #[command(flatten)]
    pub which: Which,
}

/// Some jobs by their ids, or all with a status.
#[derive(ClapArgs)]
pub struct Which {
    #[arg(required_unless_present = "status", conflicts_with = "status")]
    pub ids: Vec<JobId>,
    /// Instead of ids: all jobs with this status, in one go
    #[arg(long, requires = "expect")]
    pub status: Option<JobStatus>,
    /// With --status: only those of this type
    #[arg(long = "type", value_name = "TYPE", requires = "status")]
    pub job_type: Option<String>,
    /// With --status: how many these are; refused, and nothing done, when they are not
    #[arg(long, value_name = "N", requires = "status")]
    pub expect: Option<usize>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Sync {
    Full,
    Normal,
}

impl From<Sync> for Durability {
    fn from(sync: Sync) -> Durability {
        match sync {
            Sync::Full => Durability::Full,
            Sync::Normal => Durability::Normal,
        }
    }
}

fn seconds(text: &str) -> std::result::Result<std::time::Duration, String> {
    text.parse()
        .ok()
        .and_then(|seconds: f64| std::time::Duration::try_from_secs_f64(seconds).ok())
        .filter(|timeout| timeout.as_secs() <= 86_400)
        .ok_or_else(|| "expected seconds, 0 to 86400".to_owned())
}

const LINE_HELP: &str = "\
A line:
  {\"phases\": [{\"name\": \"fetch\", \"run\": \"shell command\", \"timeout_ms\": N?, \"max_attempts\": N?}, ...],
   \"input\": any?, \"priority\": N?, \"delay_ms\": N?, \"unique_key\": \"S\"?, \"max_attempts\": N?, \"backoff_ms\": N?,
   \"webhooks\": [{\"url\": \"S\", \"events\": [\"job:completed\", ...]?, \"secret\": \"whsec_...\"?}]?}

A command runs by sh -c in a process group of its own. It finds in its environment:
  STEPWELL_JOB_ID, STEPWELL_PHASE, STEPWELL_ATTEMPT
  STEPWELL_KEY             the same for every try of this phase of this job
  STEPWELL_INPUT           the line's input, as JSON
  STEPWELL_RESULT_<PHASE>  what an earlier phase printed; its name in upper case, other characters as _
Its standard output is the result of its phase: JSON if it is JSON, else text without the line ends at its end.
Text is also a number that JSON would write otherwise, as 3.10 or 1e3, and JSON with a number in it of which JSON would lose digits:
later phases find what was printed. Other numbers inside of JSON keep their value, but not how it was written.
Its exit code says what is next: 0 done, 75 try again, 100 failed for good, others as the retry policy says.
Cancelled, timed out or shut down, its whole group gets SIGTERM, and SIGKILL 5 s later.

Webhooks are told of the job's events by POST requests, signed as Standard Webhooks has it; by all of its events, unless some are named.

Defaults: 5 attempts, backoff_ms 1000 and doubling, no timeout.";

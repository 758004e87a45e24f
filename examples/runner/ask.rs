//! Commands that change something: submit, cancel, retry, delete, pause, resume.

use std::fmt::Display;
use std::io::Read;
use std::path::Path;

use serde::Serialize;
use serde_json::json;
use stepwell::{
    BulkAction, CancelOutcome, Client, DeliveryId, Enqueued, ErrorKind, JobId, NewJob, RetryFrom,
};

use crate::args::{RetryOptions, Which};
use crate::output::{Output, complain, count, remark};
use crate::{FAILED, Failure, Result, job_line};

/// Reads `file` (`-` is standard input) to its end.
///
/// # Errors
/// When it cannot be read, or a line is bad; with its number.
pub fn read(file: &str) -> Result<Vec<NewJob>> {
    let mut text = Vec::new();
    let from = if file == "-" { "standard input" } else { file };
    let read = if file == "-" {
        std::io::stdin().lock().read_to_end(&mut text)
    } else {
        std::fs::File::open(file).and_then(|mut file| file.read_to_end(&mut text))
    };
    read.map_err(|error| {
        Failure::usage(format!(
            "{from}: cannot be read, nothing is enqueued: {error}"
        ))
    })?;
    job_line::parse(&text)
        .map_err(|problem| Failure::usage(format!("{from}: {problem}; nothing is enqueued")))
}

pub fn submit(db: &Path, file: &str, out: &mut Output) -> Result<u8> {
    // Read first: bad input makes no queue.
    let jobs = read(file)?;
    let enqueued = Client::open(db)?.enqueue_all(jobs)?;
    for Enqueued { id, is_new, .. } in &enqueued {
        if out.is_json() {
            out.json(&json!({"id": id, "is_new": is_new}))?;
        } else {
            out.line(&id.to_string());
        }
    }
    tell_enqueued(&enqueued, out);
    Ok(0)
}

pub fn tell_enqueued(enqueued: &[Enqueued], out: &Output) {
    let new = enqueued.iter().filter(|enqueued| enqueued.is_new).count();
    let old = enqueued.len() - new;
    if old > 0 {
        remark(&format!(
            "{} enqueued, {old} there already by their unique keys",
            count(new, "job")
        ));
    } else if !out.is_json() {
        remark(&format!("{} enqueued", count(new, "job")));
    }
}

pub fn cancel(client: &Client, which: &Which, out: &mut Output) -> Result<u8> {
    if let Some(code) = all(
        client,
        BulkAction::Cancel,
        which,
        ("cancelled", "cancelled"),
        out,
    )? {
        return Ok(code);
    }
    let mut code = 0;
    for id in &which.ids {
        let (name, status) = match client.cancel(*id)? {
            CancelOutcome::Cancelled => ("cancelled", None),
            CancelOutcome::AlreadyFinished(status) => ("already_finished", Some(status)),
            CancelOutcome::NotFound => ("not_found", None),
        };
        if out.is_json() {
            out.json(&json!({"id": id, "outcome": name, "status": status}))?;
        }
        match (name, status) {
            ("cancelled", _) if out.is_json() => {}
            ("cancelled", _) => out.line(&format!("job {id} is cancelled")),
            (_, Some(status)) => {
                complain(&format!("job {id} is over already: it is {status}"));
                code = FAILED;
            }
            (_, None) => {
                complain(&not_found(*id).message);
                code = FAILED;
            }
        }
    }
    Ok(code)
}

pub fn not_found(id: JobId) -> Failure {
    Failure::unknown(format!("job {id}: there is no such job"))
}

pub fn retry(client: &Client, options: &RetryOptions, out: &mut Output) -> Result<u8> {
    let from = if options.from_start {
        RetryFrom::Start
    } else {
        RetryFrom::Failed
    };
    if let Some(code) = all(
        client,
        BulkAction::Retry(from),
        &options.which,
        ("retried", "tried again"),
        out,
    )? {
        return Ok(code);
    }
    each(&options.which.ids, out, "job", "is tried again", |id| {
        client.retry(id, from)
    })
}

pub fn delete(client: &Client, which: &Which, out: &mut Output) -> Result<u8> {
    if let Some(code) = all(
        client,
        BulkAction::Delete,
        which,
        ("deleted", "deleted"),
        out,
    )? {
        return Ok(code);
    }
    each(&which.ids, out, "job", "is deleted", |id| client.delete(id))
}

/// Does it to all jobs with a status, or to none; nothing when they are named by their ids.
fn all(
    client: &Client,
    action: BulkAction,
    which: &Which,
    (name, what): (&str, &str),
    out: &mut Output,
) -> Result<Option<u8>> {
    let Some(status) = which.status else {
        return Ok(None);
    };
    let changed = client.bulk(action, status, which.job_type.as_deref(), which.expect)?;
    if out.is_json() {
        out.json(&json!({ name: changed }))?;
    } else {
        out.line(&format!("{} {what}", count(changed, "job")));
    }
    Ok(Some(0))
}

pub fn redeliver(client: &Client, ids: &[DeliveryId], out: &mut Output) -> Result<u8> {
    each(ids, out, "delivery", "is sent again", |id| {
        client.redeliver(id)
    })
}

/// Does it to each; one that refuses does not keep the others from it.
fn each<I: Copy + Display + Serialize>(
    ids: &[I],
    out: &mut Output,
    kind: &str,
    what: &str,
    action: impl Fn(I) -> stepwell::Result<()>,
) -> Result<u8> {
    let mut code = 0;
    for id in ids {
        let done = action(*id);
        if let Err(error) = &done
            && !matches!(error.kind(), ErrorKind::NotFound | ErrorKind::Conflict)
        {
            return Err(Failure::new(format!("{kind} {id}: {error}")));
        }
        if out.is_json() {
            let problem = done.as_ref().err().map(ToString::to_string);
            out.json(&json!({"id": id, "done": done.is_ok(), "error": problem}))?;
        } else if done.is_ok() {
            out.line(&format!("{kind} {id} {what}"));
        }
        if let Err(error) = done {
            complain(&Failure::from(error).message);
            code = FAILED;
        }
    }
    Ok(code)
}

pub fn set_paused(client: &Client, is_paused: bool, out: &mut Output) -> Result<u8> {
    if is_paused {
        client.pause()?;
    } else {
        client.resume()?;
    }
    if out.is_json() {
        out.json(&json!({"paused": is_paused}))?;
    } else if is_paused {
        out.line("paused: jobs that run go on to the end of their phase, and nothing starts until resume");
    } else {
        out.line("resumed");
    }
    Ok(0)
}

//! One job: what the log of its file says of it, change by change, and whether that is what was written down and what its row says.

use std::collections::BTreeSet;

use serde_json::Value;
use stepwell::{Event, EventKind, Job, JobStatus};

use super::Traces;
use crate::counters::Counters;
use crate::journal::hash;

/// What the log of the file says of one job.
#[derive(Debug, Default)]
pub(super) struct Logged {
    pub(super) status: Option<JobStatus>,
    pub(super) cancels: usize,
    /// It was pending each time it was cancelled.
    pub(super) was_never_started: bool,
    pub(super) retries: usize,
    /// Why it was deleted, and where it stood then.
    pub(super) deleted: Option<(String, Option<JobStatus>)>,
}

impl Logged {
    /// Takes the next event of its job.
    pub(super) fn follow(&mut self, event: &Event, counters: &mut Counters) -> Result<(), String> {
        use JobStatus::{Cancelled, Completed, Failed, Pending, Running};
        if self.deleted.is_some() {
            return Err(format!("S9: {} after it was deleted", event.kind));
        }
        let reason = event.data.get("reason").and_then(Value::as_str);
        let (allowed, next): (&[Option<JobStatus>], _) = match event.kind {
            EventKind::Created => (&[None], Pending),
            EventKind::Started => (&[Some(Pending)], Running),
            EventKind::PhaseStarted | EventKind::PhaseCompleted | EventKind::PhaseFailed => {
                (&[Some(Running)], Running)
            }
            EventKind::Retrying if reason == Some("requested") => {
                self.retries += 1;
                (&[Some(Failed), Some(Cancelled)], Pending)
            }
            EventKind::Retrying | EventKind::Interrupted => (&[Some(Running)], Pending),
            EventKind::Completed => (&[Some(Running)], Completed),
            // The crash limit: after its interruption.
            EventKind::Failed => (&[Some(Running), Some(Pending)], Failed),
            EventKind::Cancelled => {
                self.cancels += 1;
                self.was_never_started = self.status == Some(Pending) && self.cancels == 1;
                (&[Some(Pending), Some(Running)], Cancelled)
            }
            EventKind::Deleted => {
                self.deleted = Some((reason.unwrap_or_default().to_owned(), self.status));
                (&[Some(Completed), Some(Failed), Some(Cancelled)], Completed)
            }
            // What becomes of a delivery changes nothing in its job.
            EventKind::WebhookDelivered | EventKind::WebhookFailed if self.status.is_some() => {
                return Ok(());
            }
            _ => return Err(format!("{} must not be stored", event.kind)),
        };
        if event.kind == EventKind::Cancelled && self.status == Some(Pending) {
            counters.add("cancelled while pending");
        }
        let before = self.status.replace(next);
        if allowed.contains(&before) {
            Ok(())
        } else {
            Err(format!("S9: {} while {before:?}", event.kind))
        }
    }
}

/// Compares what the journal, the log and the row say of one job that is over. `retained`: statuses that retention deletes.
pub(super) fn compare_one(
    job: Option<&Job>,
    traces: &Traces,
    logged: &Logged,
    retained: &BTreeSet<String>,
    found: &mut Vec<String>,
) {
    deletion(job.is_some(), traces, logged, retained, found);
    if let Some(phase) = traces.inside {
        found.push(format!("the handler of phase {phase} never returned"));
    }
    let is_handlers = job.is_some_and(|job| &*job.job_type == "failer");
    if logged.cancels < traces.cancels_done
        || (logged.cancels > traces.cancels_asked && !is_handlers && job.is_some())
    {
        found.push(format!(
            "H6: cancelled {} times by the log, {} acknowledged, {} asked",
            logged.cancels, traces.cancels_done, traces.cancels_asked
        ));
    }
    if logged.retries < traces.retries_done || logged.retries > traces.retries_asked {
        found.push(format!(
            "retried {} times by the log, {} acknowledged, {} asked",
            logged.retries, traces.retries_done, traces.retries_asked
        ));
    }
    if traces.starts_after_cancel > 0
        && logged.was_never_started
        && logged.cancels == 1
        && logged.retries == 0
    {
        found.push("H6: it was cancelled before its start, and ran".to_owned());
    }
    let Some(job) = job else {
        if logged.deleted.is_none() {
            found.push("H1: it is gone without having been deleted".to_owned());
        }
        return;
    };
    if logged.deleted.is_some() || traces.was_unreadable {
        found.push("it is there, but was deleted or could not be read".to_owned());
    }
    if logged.status != Some(job.status) {
        found.push(format!(
            "S9: {:?} by the log, {} by its row",
            logged.status, job.status
        ));
    }
    if !job.status.is_terminal() {
        found.push(format!("H1: it was acknowledged and is {}", job.status));
    }
    if traces.is_cancelled && job.status != JobStatus::Cancelled {
        found.push(format!(
            "H6: its cancel was acknowledged and it is {}",
            job.status
        ));
    }
    for (index, phase) in (0..).zip(&job.phases) {
        let Some(result) = &phase.result else {
            continue;
        };
        let returned = traces.results.get(&index).map_or("none", String::as_str);
        let stored = hash(result.to_string().as_bytes()).to_string();
        if job.status == JobStatus::Completed && stored != returned {
            found.push(format!(
                "H5: phase {index} has {stored}, its handler returned {returned}"
            ));
        }
    }
}

/// A job that is gone was deleted, because somebody asked for it or by retention; one whose deletion was acknowledged is gone.
fn deletion(
    is_there: bool,
    traces: &Traces,
    logged: &Logged,
    retained: &BTreeSet<String>,
    found: &mut Vec<String>,
) {
    match &logged.deleted {
        Some((reason, _)) if reason == "requested" && !traces.is_delete_asked => {
            found.push("nobody asked for its deletion".to_owned());
        }
        Some((reason, Some(status)))
            if reason == "retention" && !retained.contains(status.as_str()) =>
        {
            found.push(format!("retention deleted it, {status}"));
        }
        None if traces.is_delete_done => {
            found.push("its deletion was acknowledged and is not in the log".to_owned());
        }
        Some(_) | None => {}
    }
    if traces.is_delete_done && is_there {
        found.push("its deletion was acknowledged and it is there".to_owned());
    }
}

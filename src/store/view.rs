//! Stored rows as their readers see them. L2, pure, the same for every backend.

use std::sync::Arc;

use serde_json::Value;

use crate::event::Plan;
use crate::job::{
    ErrorCause, Interruption, InterruptionReason, Job, JobError, JobStatus, JobSummary,
    PhaseRecord, PhaseStatus,
};
use crate::store::{ErrorRow, PhaseDone, Reader};
use crate::time::Timestamp;
use crate::transition::{Flags, JobRow};

/// When the newest event happened; nothing of an empty log, or of one that cannot be read, which others will tell.
pub(crate) fn newest_at(reader: &dyn Reader) -> Option<Timestamp> {
    let head = reader.head().ok()?;
    let newest = reader.changes_after(head.seq - 1, 1).ok()?;
    newest.last().map(|change| change.at)
}

/// What lists show of a job.
pub(crate) fn summary(row: &JobRow, job_type: Arc<str>) -> JobSummary {
    JobSummary {
        id: row.id,
        job_type,
        status: row.status,
        attempt: row.attempt,
        crash_count: row.crash_count,
        priority: row.priority,
        run_at: row.run_at,
        created_at: row.created_at,
        started_at: row.started_at,
        finished_at: row.finished_at,
        deadline: row.deadline,
        webhook_sent: row.flags.has(Flags::WEBHOOK_SENT),
        phases_done: row.phase_index,
        phase_count: row.phase_count,
    }
}

/// A stored error, and for an interruption since when the phase had run.
pub(crate) type StoredError = (JobError, Option<Timestamp>);

/// An entry of the error history as it is read back.
pub(crate) fn error(row: &ErrorRow) -> StoredError {
    let error = JobError {
        phase: row.phase.clone(),
        attempt: row.attempt,
        at: row.at,
        kind: row.cause,
        message: row.message.clone(),
        backtrace: row.backtrace.clone(),
    };
    (error, row.since)
}

/// The interruption that a stored error tells of, if it is one.
pub(crate) fn interruption((error, since): &StoredError) -> Option<Interruption> {
    if error.kind != ErrorCause::Interrupted {
        return None;
    }
    Some(Interruption {
        phase: error.phase.clone()?,
        attempt: error.attempt,
        since: since.unwrap_or(error.at),
        at: error.at,
        reason: InterruptionReason::from_name(&error.message)?,
    })
}

/// Everything that is known about a job. `errors` are the newest first.
pub(crate) fn job(
    row: &JobRow,
    job_type: Arc<str>,
    plan: &Plan,
    (input, unique_key): (Value, Option<String>),
    results: Vec<(u32, PhaseDone)>,
    errors: Vec<StoredError>,
) -> Job {
    let interruption = if row.flags.has(Flags::INTERRUPTED) {
        errors.iter().find_map(interruption)
    } else {
        None
    };
    let phases = phases(row, plan, results, &errors);
    let errors = errors.into_iter().rev().map(|(error, _)| error).collect();
    Job {
        summary: summary(row, job_type),
        input,
        unique_key,
        phases,
        errors,
        interruption,
    }
}

/// The phases of a job. Only completed ones are stored: what the others are follows from the job.
fn phases(
    row: &JobRow,
    plan: &Plan,
    results: Vec<(u32, PhaseDone)>,
    errors: &[StoredError],
) -> Vec<PhaseRecord> {
    let mut results: std::collections::HashMap<u32, PhaseDone> = results.into_iter().collect();
    let mut records = Vec::with_capacity(plan.len());
    for (index, phase) in (0_u32..).zip(plan.iter()) {
        let mut record = PhaseRecord {
            name: phase.name.clone(),
            version: phase.version,
            status: status(row, index),
            attempt: 0,
            started_at: None,
            finished_at: None,
            result: None,
            error: None,
        };
        if let Some(done) = results.remove(&index).filter(|_| index < row.phase_index) {
            record.attempt = done.attempt;
            record.started_at = Some(done.started_at);
            record.finished_at = Some(done.finished_at);
            record.result = serde_json::from_str(&done.result).ok();
        } else {
            if index == row.phase_index && row.phase_attempt > 0 {
                record.attempt = row.attempt;
            }
            // An error of an earlier attempt series is not this one's.
            let last_error = errors
                .iter()
                .find(|(error, _)| error.phase.as_ref() == Some(&phase.name))
                .filter(|_| record.attempt > 0);
            record.started_at = if record.status == PhaseStatus::Running {
                row.phase_started_at
            } else {
                last_error.and_then(|(_, since)| *since)
            };
            record.finished_at = row.finished_at;
            record.error = last_error.map(|(error, _)| error.message.clone());
        }
        records.push(record);
    }
    records
}

fn status(row: &JobRow, index: u32) -> PhaseStatus {
    let is_next = index == row.phase_index;
    if index < row.phase_index {
        return PhaseStatus::Completed;
    }
    match row.status {
        JobStatus::Completed => PhaseStatus::Completed,
        JobStatus::Pending => PhaseStatus::Pending,
        JobStatus::Running if is_next => PhaseStatus::Running,
        JobStatus::Running => PhaseStatus::Pending,
        JobStatus::Failed if is_next && row.phase_attempt > 0 => PhaseStatus::Failed,
        JobStatus::Failed => PhaseStatus::Skipped,
        JobStatus::Cancelled => PhaseStatus::Cancelled,
    }
}

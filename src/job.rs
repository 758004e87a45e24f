//! What a job is, seen from outside: ids, statuses, a stored job with its phases and errors. L0.
//!
//! The strings of the statuses live here alone. Every record serialises to the JSON that the tools print; times in it are
//! integer milliseconds UTC.

mod debug;

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::ser::{Serialize, SerializeMap, Serializer};
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use crate::error::{Error, ErrorKind, Result};
use crate::json;
use crate::time::Timestamp;

/// The number of a job: positive, rising in the order of enqueueing, never used twice in one file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct JobId(i64);

json::number!(JobId);

impl JobId {
    /// The largest id: a phase is stored under `id * 256 + phase index` in 63 bits.
    pub(crate) const MAX: i64 = i64::MAX >> 8;

    /// From a number, as the tools print it. Any number is allowed here; an id that was never given out is not found.
    #[must_use]
    pub const fn from_i64(id: i64) -> JobId {
        JobId(id)
    }

    /// As a number.
    #[must_use]
    pub const fn as_i64(self) -> i64 {
        self.0
    }
}

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for JobId {
    type Err = Error;

    fn from_str(text: &str) -> Result<JobId> {
        match text.parse() {
            Ok(id) if (1..=JobId::MAX).contains(&id) => Ok(JobId(id)),
            _ => Err(Error::new(
                ErrorKind::InvalidJob,
                format!("job id {text:?}: expected a positive whole number"),
            )),
        }
    }
}

/// Where a job stands. The last three are terminal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum JobStatus {
    /// Waits: for its time, for a worker, or for its type to be registered.
    Pending,
    /// Under way.
    Running,
    /// All phases are done.
    Completed,
    /// No try is left, or the handler said so.
    Failed,
    /// Cancelled.
    Cancelled,
}

json::name!(JobStatus);

impl JobStatus {
    /// Every status, in the order of their codes.
    pub const ALL: [JobStatus; 5] = [
        JobStatus::Pending,
        JobStatus::Running,
        JobStatus::Completed,
        JobStatus::Failed,
        JobStatus::Cancelled,
    ];

    /// The name on the wire, for example `pending`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            JobStatus::Pending => "pending",
            JobStatus::Running => "running",
            JobStatus::Completed => "completed",
            JobStatus::Failed => "failed",
            JobStatus::Cancelled => "cancelled",
        }
    }

    /// Whether the job is over: completed, failed or cancelled.
    #[must_use]
    pub const fn is_terminal(self) -> bool {
        match self {
            JobStatus::Pending | JobStatus::Running => false,
            JobStatus::Completed | JobStatus::Failed | JobStatus::Cancelled => true,
        }
    }

    pub(crate) const fn code(self) -> i64 {
        self as i64
    }

    pub(crate) fn from_code(code: i64) -> Option<JobStatus> {
        JobStatus::ALL.get(usize::try_from(code).ok()?).copied()
    }
}

impl fmt::Display for JobStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for JobStatus {
    type Err = Error;

    fn from_str(text: &str) -> Result<JobStatus> {
        JobStatus::ALL
            .into_iter()
            .find(|status| status.as_str() == text)
            .ok_or_else(|| {
                let names = JobStatus::ALL.map(JobStatus::as_str).join(", ");
                Error::new(
                    ErrorKind::InvalidJob,
                    format!("status {text:?}: expected one of {names}"),
                )
            })
    }
}

/// Where a phase of a job stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PhaseStatus {
    /// To be run.
    Pending,
    /// Under way.
    Running,
    /// Done; its result is stored.
    Completed,
    /// The phase in which the job failed.
    Failed,
    /// Unfinished when the job was cancelled.
    Cancelled,
    /// Never ran, because the job failed before it.
    Skipped,
}

json::name!(PhaseStatus);

impl PhaseStatus {
    /// The name on the wire, for example `skipped`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            PhaseStatus::Pending => "pending",
            PhaseStatus::Running => "running",
            PhaseStatus::Completed => "completed",
            PhaseStatus::Failed => "failed",
            PhaseStatus::Cancelled => "cancelled",
            PhaseStatus::Skipped => "skipped",
        }
    }
}

impl fmt::Display for PhaseStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// A phase by its name and version: by these it is matched, never by its position.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PhaseName {
    /// Its name, 1 to 128 of `[A-Za-z0-9_.:-]`.
    pub name: Arc<str>,
    /// Its version; results of another version count as missing.
    pub version: u32,
}

/// `[name, version]`
impl Serialize for PhaseName {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        (&*self.name, self.version).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for PhaseName {
    fn deserialize<D: Deserializer<'de>>(
        deserializer: D,
    ) -> std::result::Result<PhaseName, D::Error> {
        let (name, version) = <(String, u32)>::deserialize(deserializer)?;
        Ok(PhaseName {
            name: name.into(),
            version,
        })
    }
}

impl PhaseName {
    /// Version 1 of the phase `name`.
    #[must_use]
    pub fn new(name: impl Into<Arc<str>>) -> PhaseName {
        PhaseName {
            name: name.into(),
            version: 1,
        }
    }
}

/// What cancelling answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum CancelOutcome {
    /// It is cancelled now, in the file, and its handler has been told.
    Cancelled,
    /// It was over before.
    AlreadyFinished(JobStatus),
    /// There is no such job.
    NotFound,
}

/// From where a failed or cancelled job is tried again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RetryFrom {
    /// From the first phase without a result; the results before it are kept byte for byte.
    Failed,
    /// From the first phase; results and checkpoints are cleared.
    Start,
}

/// What is done to a whole set of jobs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum BulkAction {
    /// Cancel each.
    Cancel,
    /// Try each again.
    Retry(RetryFrom),
    /// Delete each.
    Delete,
}

/// What a stored error is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorCause {
    /// The handler returned an error.
    Error,
    /// The handler panicked.
    Panic,
    /// The phase took longer than its timeout.
    Timeout,
    /// The job was not over by its deadline.
    Deadline,
    /// The phase's result was refused: too large, too deep, or not JSON.
    Result,
    /// An earlier result or the input could not be decoded.
    Decode,
    /// The phase was interrupted: the process died, the machine went down, or the queue shut down.
    Interrupted,
    /// The process died in this job more often than allowed.
    CrashLimit,
}

json::name!(ErrorCause);

impl ErrorCause {
    pub(crate) const ALL: [ErrorCause; 8] = [
        ErrorCause::Error,
        ErrorCause::Panic,
        ErrorCause::Timeout,
        ErrorCause::Deadline,
        ErrorCause::Result,
        ErrorCause::Decode,
        ErrorCause::Interrupted,
        ErrorCause::CrashLimit,
    ];

    /// The name on the wire, for example `crash_limit`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            ErrorCause::Error => "error",
            ErrorCause::Panic => "panic",
            ErrorCause::Timeout => "timeout",
            ErrorCause::Deadline => "deadline",
            ErrorCause::Result => "result",
            ErrorCause::Decode => "decode",
            ErrorCause::Interrupted => "interrupted",
            ErrorCause::CrashLimit => "crash_limit",
        }
    }

    pub(crate) fn from_name(name: &str) -> Option<ErrorCause> {
        ErrorCause::ALL
            .into_iter()
            .find(|cause| cause.as_str() == name)
    }
}

impl fmt::Display for ErrorCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// One entry of a job's error history.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct JobError {
    /// The phase it happened in; none for a job that failed between phases.
    pub phase: Option<Arc<str>>,
    /// The attempt it happened in, counted from 1 in each attempt series.
    pub attempt: u32,
    /// When it was recorded.
    pub at: Timestamp,
    /// What it is.
    pub kind: ErrorCause,
    /// The message, at most 8 KiB.
    pub message: String,
    /// Where it came from: always for a panic, for a returned error if `RUST_BACKTRACE` asks for it. At most 16 KiB.
    pub backtrace: Option<String>,
}

json::object!(JobError { phase, attempt, at, kind, message, ?backtrace, });

/// How a phase came to be interrupted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum InterruptionReason {
    /// The process that ran it died, with the machine still up.
    ProcessDied,
    /// The machine went down, or was restarted.
    MachineWentDown,
    /// Our own shutdown cut it off.
    Shutdown,
    /// The queue or the job type was paused.
    Paused,
    /// Its planned type has other phases now than the job was stored with: it was given back before the handler was entered,
    /// to go on by them.
    Replanned,
}

json::name!(InterruptionReason);

impl InterruptionReason {
    pub(crate) const ALL: [InterruptionReason; 5] = [
        InterruptionReason::ProcessDied,
        InterruptionReason::MachineWentDown,
        InterruptionReason::Shutdown,
        InterruptionReason::Paused,
        InterruptionReason::Replanned,
    ];

    /// The name on the wire, for example `process_died`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            InterruptionReason::ProcessDied => "process_died",
            InterruptionReason::MachineWentDown => "machine_went_down",
            InterruptionReason::Shutdown => "shutdown",
            InterruptionReason::Paused => "paused",
            InterruptionReason::Replanned => "replanned",
        }
    }

    pub(crate) fn from_name(name: &str) -> Option<InterruptionReason> {
        InterruptionReason::ALL
            .into_iter()
            .find(|reason| reason.as_str() == name)
    }
}

/// What was cut off in a job: the context that its next try gets to see.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Interruption {
    /// The phase that was inside its handler.
    pub phase: Arc<str>,
    /// In which attempt.
    pub attempt: u32,
    /// Since when the handler had been running.
    pub since: Timestamp,
    /// When the interruption was recorded.
    pub at: Timestamp,
    /// How it ended.
    pub reason: InterruptionReason,
}

json::object!(Interruption {
    phase,
    attempt,
    since,
    at,
    reason,
});

/// A phase of a stored job. For debugging it prints the size of its result, and not the result.
#[derive(Clone, PartialEq)]
#[non_exhaustive]
pub struct PhaseRecord {
    /// Its name.
    pub name: Arc<str>,
    /// Its version.
    pub version: u32,
    /// Where it stands.
    pub status: PhaseStatus,
    /// The attempt that ran it last; 0 if it never ran.
    pub attempt: u32,
    /// When that attempt entered it.
    pub started_at: Option<Timestamp>,
    /// When it was completed, failed, cancelled or skipped.
    pub finished_at: Option<Timestamp>,
    /// Its result, if it is completed. Of a number that has no place in 64 bits only what a double holds of it is left here, as for
    /// [`Job::input`].
    pub result: Option<Value>,
    /// Why it failed, if it did.
    pub error: Option<String>,
}

json::object!(PhaseRecord {
    name,
    version,
    status,
    attempt,
    started_at,
    finished_at,
    result,
    error,
});

/// The facts of a stored job that lists show.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct JobSummary {
    /// Its id.
    pub id: JobId,
    /// Its type.
    pub job_type: Arc<str>,
    /// Where it stands.
    pub status: JobStatus,
    /// Tries charged in this attempt series.
    pub attempt: u32,
    /// How often a process died inside it in this attempt series.
    pub crash_count: u32,
    /// Higher starts first.
    pub priority: i32,
    /// When it may start, or may be tried again.
    pub run_at: Timestamp,
    /// When it was enqueued.
    pub created_at: Timestamp,
    /// When it was claimed first in this attempt series.
    pub started_at: Option<Timestamp>,
    /// When it was over.
    pub finished_at: Option<Timestamp>,
    /// When it will be failed if it is not over.
    pub deadline: Option<Timestamp>,
    /// Whether a webhook about its end was delivered.
    pub webhook_sent: bool,
    /// Phases that are completed.
    pub phases_done: u32,
    /// Phases in all; 0 while nobody could plan it.
    pub phase_count: u32,
}

json::object!(JobSummary {
    id, "type" = job_type, status, attempt, crash_count, priority, run_at, created_at, started_at, finished_at, deadline,
    webhook_sent, phases_done, phase_count,
});

/// A stored job with everything that is known about it. For debugging it prints the sizes of its payloads, and not the payloads.
#[derive(Clone, PartialEq)]
#[non_exhaustive]
pub struct Job {
    /// What lists show.
    pub summary: JobSummary,
    /// What it was enqueued with. A [`Value`] holds whole numbers of 64 bits, and doubles: of `1e400`, or of a `u128` above [`u64::MAX`],
    /// it shows the nearest double, or cannot hold it at all. What is stored is the exact text, and whoever reads it by its
    /// type gets it whole: a handler, [`PhaseContext::get`](crate::PhaseContext::get), [`JobHandle::wait`](crate::JobHandle::wait).
    pub input: Value,
    /// The unique key it was enqueued with.
    pub unique_key: Option<String>,
    /// Its phases, in order.
    pub phases: Vec<PhaseRecord>,
    /// Its errors, oldest first: the newest 50.
    pub errors: Vec<JobError>,
    /// The last interruption of this attempt series.
    pub interruption: Option<Interruption>,
}

/// The summary's fields first, then its own, in one object.
impl Serialize for Job {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        let summary = &self.summary;
        json::fields!(
            summary,
            map,
            id,
            "type" = job_type,
            status,
            attempt,
            crash_count,
            priority,
            run_at,
            created_at,
            started_at,
            finished_at,
            deadline,
            webhook_sent,
            phases_done,
            phase_count,
        );
        json::fields!(self, map, input, unique_key, phases, errors, interruption,);
        map.end()
    }
}

impl std::ops::Deref for Job {
    type Target = JobSummary;

    fn deref(&self) -> &JobSummary {
        &self.summary
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_codes_lead_back_to_what_they_name() {
        for status in JobStatus::ALL {
            assert_eq!(
                status
                    .as_str()
                    .parse::<JobStatus>()
                    .map_err(|e| e.to_string()),
                Ok(status)
            );
            assert_eq!(JobStatus::from_code(status.code()), Some(status));
        }
        for cause in ErrorCause::ALL {
            assert_eq!(ErrorCause::from_name(cause.as_str()), Some(cause));
        }
        for reason in InterruptionReason::ALL {
            assert_eq!(InterruptionReason::from_name(reason.as_str()), Some(reason));
        }
        assert_eq!(JobStatus::from_code(5), None);
    }

    #[test]
    fn a_bad_id_or_status_is_named_in_its_error() {
        assert_eq!(
            "0".parse::<JobId>().unwrap_err().to_string(),
            "job id \"0\": expected a positive whole number"
        );
        let error = "done".parse::<JobStatus>().unwrap_err();
        assert_eq!(
            error.to_string(),
            "status \"done\": expected one of pending, running, completed, failed, cancelled"
        );
    }
}

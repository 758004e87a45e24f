//! The state machine of a job: a pure function from a job's row and an input to the next row and the change to be logged.
//! L1: knows no store, no thread, no clock. Nothing else decides what becomes of a job.
//!
//! ```text
//!                          claim
//!   (new) ──> pending ─────────────> running ──────> completed
//!                │  ^                 │ │ │            last phase done
//!                │  └─────────────────┘ │ └──────> failed
//!                │    try again,        │            no try left, Fail, crash limit, deadline
//!                │    snooze, release,  │
//!                │    interrupted       v
//!                └────────────────> cancelled        cancel, or the handler said so
//! ```
//!
//! Every edge, as the tests read it:
//!
//! ```text
//!   pending                      ──> running     claim
//!   pending                      ──> failed      claimed after its deadline
//!   running                      ──> running     a phase done, another one follows
//!   running                      ──> completed   the last phase done
//!   running                      ──> pending     try again, snooze, release at an edge, interrupted
//!   running                      ──> failed      no try left, Fail, crash limit, deadline
//!   pending, running             ──> cancelled   cancel, or the handler said so
//!   failed, cancelled            ──> pending     retry by hand: a new attempt series
//!   completed, failed, cancelled ──> (gone)      delete
//! ```
//!
//! Every other pair of status and input is refused: [`Refusal`]. Two kinds of input come from a handler or its supervisor and
//! carry the `epoch` of the claim they belong to; another epoch, or a job that is not running, makes them [`Refusal::Stale`]:
//! the job was cancelled, timed out or interrupted in the meantime, and what the old handler says counts no more.

use std::time::Duration;

use crate::event::{Change, Seq};
use crate::job::{ErrorCause, InterruptionReason, JobId, JobStatus, RetryFrom};
use crate::time::Timestamp;

/// The hot row of a job, as it is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct JobRow {
    pub(crate) id: JobId,
    /// The number of its job type in this file.
    pub(crate) type_id: i64,
    /// The number of its plan in this file; 0 while nobody could plan it.
    pub(crate) plan_id: i64,
    pub(crate) status: JobStatus,
    pub(crate) priority: i32,
    pub(crate) run_at: Timestamp,
    /// The number of its newest claim. Every outcome names the claim that it belongs to.
    pub(crate) epoch: i64,
    /// Tries charged in this attempt series, the present one included.
    pub(crate) attempt: u32,
    /// Completed phases, and so the 0-based index of the phase to run next.
    pub(crate) phase_index: u32,
    pub(crate) phase_count: u32,
    /// Tries charged to the present phase in this attempt series.
    pub(crate) phase_attempt: u32,
    pub(crate) crash_count: u32,
    pub(crate) created_at: Timestamp,
    pub(crate) started_at: Option<Timestamp>,
    /// When the present phase was offered to a worker.
    pub(crate) phase_started_at: Option<Timestamp>,
    pub(crate) finished_at: Option<Timestamp>,
    pub(crate) deadline: Option<Timestamp>,
    /// The number of the first event of its newest change.
    pub(crate) last_seq: Seq,
    pub(crate) flags: Flags,
}

/// What else is known of a job: bits of one stored number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Flags(pub(crate) i64);

impl Flags {
    /// It has an error history.
    pub(crate) const ERRORS: i64 = 1;
    /// `run_at` is the end of a backoff or snooze, not a time of the calendar.
    pub(crate) const WAITING: i64 = 2;
    /// A webhook about its end was delivered.
    pub(crate) const WEBHOOK_SENT: i64 = 4;
    /// A handler saved a checkpoint in it.
    pub(crate) const SAVED: i64 = 8;
    /// Cut off in this attempt series.
    pub(crate) const INTERRUPTED: i64 = 16;
    /// It has endpoints of its own.
    pub(crate) const ENDPOINTS: i64 = 32;
    /// `run_at` was put forward since its last change: that was told by a clock that was ahead.
    pub(crate) const MOVED: i64 = 64;
    /// The bits from here on: how long its deadline was when it was enqueued, in ms and one more, once a retry has put that off. 0: it
    /// was not.
    const TIME_BIT: u32 = 20;
    const TIME_MAX: i64 = (1 << 42) - 1;
    pub(crate) const TIME: i64 = Flags::TIME_MAX << Flags::TIME_BIT;

    pub(crate) const fn has(self, bit: i64) -> bool {
        self.0 & bit != 0
    }

    pub(crate) const fn with(self, bit: i64) -> Flags {
        Flags(self.0 | bit)
    }

    pub(crate) const fn without(self, bit: i64) -> Flags {
        Flags(self.0 & !bit)
    }

    fn time(self) -> Option<Duration> {
        let ms = u64::try_from((self.0 & Flags::TIME) >> Flags::TIME_BIT).unwrap_or(0);
        Some(Duration::from_millis(ms.checked_sub(1)?))
    }

    fn with_time(self, time: Duration) -> Flags {
        let ms = i64::try_from(time.as_millis()).unwrap_or(i64::MAX);
        self.without(Flags::TIME)
            .with(ms.saturating_add(1).min(Flags::TIME_MAX) << Flags::TIME_BIT)
    }
}

/// Which tries count against which limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tries {
    /// Those of the job in this series.
    OfJob { max: u32 },
    /// Those of the phase in this series: the phase has a policy of its own.
    OfPhase { max: u32 },
}

/// What the handler's failure means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Try again after `delay` if a try is left.
    Retry { tries: Tries, delay: Duration },
    /// No more tries.
    Fail,
    /// Try again from an earlier phase, whose result cannot be used.
    Rewind {
        tries: Tries,
        delay: Duration,
        phase_index: u32,
    },
}

/// What a job does at the edge after a completed phase.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Edge {
    GoOn,
    /// Give the job back, uncharged: the queue shuts down or is paused.
    Release(InterruptionReason),
}

/// What happens to a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Input {
    Claim,
    PhaseCompleted {
        epoch: i64,
        edge: Edge,
    },
    PhaseFailed {
        epoch: i64,
        verdict: Verdict,
    },
    Snooze {
        epoch: i64,
        until: Timestamp,
    },
    /// The handler itself says that the job is cancelled.
    HandlerCancelled {
        epoch: i64,
    },
    /// Cut off, or given back before its handler was entered.
    Interrupted {
        epoch: i64,
        reason: InterruptionReason,
        entered: Entered,
        max_crashes: u32,
    },
    Cancel,
    Retry(RetryFrom),
    Delete,
}

/// Where the handler of a phase was when that was cut off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Entered {
    No,
    Inside,
    /// It had returned, and its outcome is lost.
    Returned,
}

impl Input {
    /// The claim it belongs to, if it belongs to one.
    pub(crate) fn epoch(&self) -> Option<i64> {
        match self {
            Input::PhaseCompleted { epoch, .. }
            | Input::PhaseFailed { epoch, .. }
            | Input::Snooze { epoch, .. }
            | Input::HandlerCancelled { epoch }
            | Input::Interrupted { epoch, .. } => Some(*epoch),
            Input::Claim | Input::Cancel | Input::Retry(_) | Input::Delete => None,
        }
    }
}

/// What is to become of a job: written in one commit, or not at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub(crate) struct Transition {
    pub(crate) after: JobRow,
    pub(crate) change: Change,
    pub(crate) phases: Phases,
    /// Why the job fails without a handler's error, if it does.
    pub(crate) cause: Option<ErrorCause>,
}

/// What becomes of the stored results.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phases {
    Keep,
    /// The present phase has one now.
    Complete,
    /// Those from this phase on are gone, and so are their checkpoints.
    ClearFrom(u32),
    /// The job is gone, and all of them.
    Delete,
}

/// Why nothing happens. Expected, and no error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// The outcome belongs to a claim that is over.
    Stale,
    /// There is no such edge from this status.
    Illegal(JobStatus),
}

/// What becomes of `job` when `input` happens at `now`.
pub(crate) fn decide(job: &JobRow, input: &Input, now: Timestamp) -> Result<Transition, Refusal> {
    match *input {
        Input::Claim => claim(job, now),
        Input::PhaseCompleted { epoch, edge } => {
            fenced(job, epoch).map(|job| phase_completed(job, edge, now))
        }
        Input::PhaseFailed { epoch, verdict } => {
            fenced(job, epoch).map(|job| phase_failed(job, verdict, now))
        }
        Input::Snooze { epoch, until } => fenced(job, epoch).map(|job| {
            let after = JobRow {
                flags: job.flags.with(Flags::WAITING),
                ..uncharged(job, until)
            };
            keep(after, Change::Snoozed)
        }),
        Input::HandlerCancelled { epoch } => fenced(job, epoch).map(|job| cancelled(job, now)),
        Input::Interrupted {
            epoch,
            reason,
            entered,
            max_crashes,
        } => fenced(job, epoch).map(|job| interrupted(job, reason, entered, max_crashes, now)),
        Input::Cancel => match job.status {
            JobStatus::Pending | JobStatus::Running => Ok(cancelled(job, now)),
            JobStatus::Completed | JobStatus::Failed | JobStatus::Cancelled => {
                Err(Refusal::Illegal(job.status))
            }
        },
        Input::Retry(from) => match job.status {
            JobStatus::Failed | JobStatus::Cancelled => Ok(retried(job, from, now)),
            JobStatus::Pending | JobStatus::Running | JobStatus::Completed => {
                Err(Refusal::Illegal(job.status))
            }
        },
        Input::Delete => match job.status {
            JobStatus::Completed | JobStatus::Failed | JobStatus::Cancelled => Ok(Transition {
                after: *job,
                change: Change::Deleted,
                phases: Phases::Delete,
                cause: None,
            }),
            JobStatus::Pending | JobStatus::Running => Err(Refusal::Illegal(job.status)),
        },
    }
}

/// Only the claim that is under way may say what became of the job.
fn fenced(job: &JobRow, epoch: i64) -> Result<&JobRow, Refusal> {
    match job.status {
        JobStatus::Running if job.epoch == epoch => Ok(job),
        JobStatus::Running
        | JobStatus::Pending
        | JobStatus::Completed
        | JobStatus::Failed
        | JobStatus::Cancelled => Err(Refusal::Stale),
    }
}

fn claim(job: &JobRow, now: Timestamp) -> Result<Transition, Refusal> {
    match job.status {
        JobStatus::Pending => {}
        JobStatus::Running | JobStatus::Completed | JobStatus::Failed | JobStatus::Cancelled => {
            return Err(Refusal::Illegal(job.status));
        }
    }
    if job.deadline.is_some_and(|deadline| deadline <= now) {
        return Ok(failed(
            *job,
            Change::Expired,
            Some(ErrorCause::Deadline),
            now,
        ));
    }
    let after = JobRow {
        status: JobStatus::Running,
        epoch: job.epoch + 1,
        attempt: job.attempt + 1,
        phase_attempt: job.phase_attempt + 1,
        started_at: job.started_at.or(Some(now)),
        phase_started_at: Some(now),
        flags: job.flags.without(Flags::WAITING | Flags::MOVED),
        ..*job
    };
    Ok(keep(after, Change::Claimed))
}

fn phase_completed(job: &JobRow, edge: Edge, now: Timestamp) -> Transition {
    let next = job.phase_index + 1;
    let done = JobRow {
        phase_index: next,
        phase_attempt: 0,
        flags: job.flags.without(Flags::SAVED),
        ..*job
    };
    let (after, change) = if next >= job.phase_count {
        let after = JobRow {
            status: JobStatus::Completed,
            finished_at: Some(now),
            phase_started_at: None,
            ..done
        };
        (after, Change::Completed)
    } else {
        match edge {
            Edge::GoOn => (
                JobRow {
                    phase_attempt: 1,
                    phase_started_at: Some(now),
                    ..done
                },
                Change::Advanced,
            ),
            Edge::Release(_) => (
                JobRow {
                    phase_attempt: 0,
                    ..uncharged(&done, now)
                },
                Change::AdvancedAndReleased,
            ),
        }
    };
    Transition {
        after,
        change,
        phases: Phases::Complete,
        cause: None,
    }
}

fn phase_failed(job: &JobRow, verdict: Verdict, now: Timestamp) -> Transition {
    let (tries, delay, rewind) = match verdict {
        Verdict::Fail => return failed(*job, Change::Failed, None, now),
        Verdict::Retry { tries, delay } => (tries, delay, None),
        Verdict::Rewind {
            tries,
            delay,
            phase_index,
        } => (tries, delay, Some(phase_index.min(job.phase_index))),
    };
    let is_last = match tries {
        Tries::OfJob { max } => job.attempt >= max,
        Tries::OfPhase { max } => job.phase_attempt >= max,
    };
    let run_at = now.after(delay);
    if is_last {
        return failed(*job, Change::Failed, None, now);
    }
    if job.deadline.is_some_and(|deadline| run_at >= deadline) {
        return failed(*job, Change::Failed, Some(ErrorCause::Deadline), now);
    }
    let waits = JobRow {
        status: JobStatus::Pending,
        run_at,
        phase_started_at: None,
        flags: job.flags.with(Flags::WAITING),
        ..*job
    };
    let (after, phases) = match rewind {
        None => (waits, Phases::Keep),
        Some(phase_index) => {
            let after = JobRow {
                phase_index,
                phase_attempt: 0,
                flags: waits.flags.without(Flags::SAVED),
                ..waits
            };
            (after, Phases::ClearFrom(phase_index))
        }
    };
    Transition {
        after,
        change: Change::FailedAndRetrying,
        phases,
        cause: None,
    }
}

fn interrupted(
    job: &JobRow,
    reason: InterruptionReason,
    entered: Entered,
    max_crashes: u32,
    now: Timestamp,
) -> Transition {
    let crashed = match reason {
        // One that had returned was not what killed the process.
        InterruptionReason::ProcessDied => entered == Entered::Inside,
        InterruptionReason::MachineWentDown
        | InterruptionReason::Shutdown
        | InterruptionReason::Paused
        | InterruptionReason::Replanned => false,
    };
    let mut after = uncharged(job, now);
    if entered != Entered::No {
        after.flags = after.flags.with(Flags::INTERRUPTED);
    }
    if crashed {
        // A crash is a try: the handler may be what kills the process.
        (after.attempt, after.phase_attempt) = (job.attempt, job.phase_attempt);
        after.crash_count += 1;
        if after.crash_count > max_crashes {
            return failed(
                after,
                Change::InterruptedAndFailed,
                Some(ErrorCause::CrashLimit),
                now,
            );
        }
    }
    keep(after, Change::Interrupted)
}

fn cancelled(job: &JobRow, now: Timestamp) -> Transition {
    let after = JobRow {
        status: JobStatus::Cancelled,
        finished_at: Some(now),
        phase_started_at: None,
        flags: job.flags.without(Flags::WAITING),
        ..*job
    };
    keep(after, Change::Cancelled)
}

fn retried(job: &JobRow, from: RetryFrom, now: Timestamp) -> Transition {
    let flags = job
        .flags
        .without(Flags::INTERRUPTED | Flags::WAITING | Flags::WEBHOOK_SENT);
    // A deadline that has passed would end the new series at once: give it the time that the first one had.
    let (deadline, flags) = match job.deadline {
        Some(deadline) if deadline <= now => {
            let time = flags.time();
            let time = time.unwrap_or_else(|| deadline.since(job.created_at));
            (Some(now.after(time)), flags.with_time(time))
        }
        deadline => (deadline, flags),
    };
    let after = JobRow {
        status: JobStatus::Pending,
        run_at: now,
        attempt: 0,
        phase_attempt: 0,
        crash_count: 0,
        started_at: None,
        finished_at: None,
        deadline,
        flags,
        ..*job
    };
    match from {
        RetryFrom::Failed => keep(after, Change::Retried),
        RetryFrom::Start => {
            let after = JobRow {
                phase_index: 0,
                flags: after.flags.without(Flags::SAVED),
                ..after
            };
            Transition {
                after,
                change: Change::Retried,
                phases: Phases::ClearFrom(0),
                cause: None,
            }
        }
    }
}

/// Pending again at `run_at`, the try not charged.
fn uncharged(job: &JobRow, run_at: Timestamp) -> JobRow {
    JobRow {
        status: JobStatus::Pending,
        run_at,
        attempt: job.attempt.saturating_sub(1),
        phase_attempt: job.phase_attempt.saturating_sub(1),
        phase_started_at: None,
        ..*job
    }
}

fn failed(job: JobRow, change: Change, cause: Option<ErrorCause>, now: Timestamp) -> Transition {
    let after = JobRow {
        status: JobStatus::Failed,
        finished_at: Some(now),
        phase_started_at: None,
        ..job
    };
    Transition {
        after,
        change,
        phases: Phases::Keep,
        cause,
    }
}

fn keep(after: JobRow, change: Change) -> Transition {
    Transition {
        after,
        change,
        phases: Phases::Keep,
        cause: None,
    }
}

#[cfg(test)]
mod tests;

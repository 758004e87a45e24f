//! The state machine run backwards: from the log to what the rows must be. Test code.

use std::collections::BTreeMap;

use crate::event::{Change, LoggedChange};
use crate::job::{Job, JobId, JobStatus};
use crate::time::Timestamp;

/// What the log says of each job that is there.
#[derive(Default)]
pub(super) struct Replay(BTreeMap<JobId, State>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct State {
    status: JobStatus,
    attempt: u32,
    crash_count: u32,
    /// Completed phases; not known between a rewind or a new plan and the next claim.
    done: Option<u32>,
    run_at: Option<Timestamp>,
    ended: Option<Timestamp>,
}

impl Replay {
    pub(super) fn follow(&mut self, changes: &[LoggedChange]) {
        for change in changes {
            let first = change.job_id.as_i64();
            let last = first + change.span / change.change.span();
            for id in first..last {
                self.step(JobId::from_i64(id), change);
            }
        }
    }

    fn step(&mut self, id: JobId, change: &LoggedChange) {
        let new = State {
            status: JobStatus::Pending,
            attempt: 0,
            crash_count: 0,
            done: Some(0),
            run_at: None,
            ended: None,
        };
        let before = if matches!(change.change, Change::Created | Change::CreatedAndClaimed) {
            assert_eq!(self.0.get(&id), None, "job {id} is created once");
            new
        } else {
            self.0.remove(&id).expect("a job is created first")
        };
        let sources: &[JobStatus] = match change.change {
            Change::Created | Change::CreatedAndClaimed | Change::Claimed | Change::Expired => {
                &[JobStatus::Pending]
            }
            Change::Advanced
            | Change::Completed
            | Change::AdvancedAndReleased
            | Change::FailedAndRetrying
            | Change::Failed
            | Change::Snoozed
            | Change::Interrupted
            | Change::InterruptedAndFailed => &[JobStatus::Running],
            Change::Cancelled => &[JobStatus::Pending, JobStatus::Running],
            Change::Retried => &[JobStatus::Failed, JobStatus::Cancelled],
            Change::Deleted => &JobStatus::ALL[2..],
            Change::WebhookDelivered | Change::WebhookFailed => &JobStatus::ALL,
        };
        assert!(
            sources.contains(&before.status),
            "job {id}: {change:?} of a job that is {}",
            before.status
        );
        if let Some(after) = after(before, change) {
            self.0.insert(id, after);
        }
    }

    /// `is_moved`: the start of a job was put forward since.
    pub(super) fn compare(&mut self, jobs: &[Job], is_moved: impl Fn(JobId) -> bool) {
        let known: Vec<JobId> = self.0.keys().copied().collect();
        let stored: Vec<JobId> = jobs.iter().map(|job| job.id).collect();
        assert_eq!(known, stored, "the log and the rows know the same jobs");
        for job in jobs {
            let told = self.0.get_mut(&job.id).expect("they are the same");
            if told.run_at.is_some_and(|at| at != job.run_at) && is_moved(job.id) {
                told.run_at = None;
            }
            let mut told = *told;
            let is_known = told.done.is_some() && job.status != JobStatus::Pending;
            told.done = told.done.filter(|_| is_known);
            let row = State {
                status: job.status,
                attempt: job.attempt,
                crash_count: job.crash_count,
                done: is_known.then_some(job.phases_done),
                run_at: told.run_at.map(|_| job.run_at),
                ended: job.finished_at,
            };
            assert_eq!(told, row, "job {}: the log and the row differ", job.id);
        }
    }
}

fn after(before: State, change: &LoggedChange) -> Option<State> {
    let running = State {
        status: JobStatus::Running,
        attempt: change.attempt,
        done: Some(change.phase_index),
        ..before
    };
    let run_at = change
        .data
        .get("run_at")
        .and_then(serde_json::Value::as_i64);
    let pending = State {
        status: JobStatus::Pending,
        done: None,
        run_at: run_at.map(Timestamp::from_millis).or(Some(change.at)),
        ..before
    };
    let uncharged = State {
        attempt: before.attempt - u32::from(before.attempt > 0),
        ..pending
    };
    let over = |status| State {
        status,
        ended: Some(change.at),
        ..before
    };
    let crashes = before.crash_count + 1;
    Some(match change.change {
        Change::Created => State {
            run_at: pending.run_at,
            ..before
        },
        Change::CreatedAndClaimed | Change::Claimed => running,
        Change::Advanced => State {
            done: Some(change.phase_index + 1),
            ..before
        },
        Change::Completed => State {
            done: Some(change.phase_index + 1),
            ..over(JobStatus::Completed)
        },
        Change::AdvancedAndReleased | Change::Snoozed => uncharged,
        Change::FailedAndRetrying => pending,
        Change::Interrupted if change.data.get("charged") == Some(&true.into()) => State {
            crash_count: crashes,
            ..pending
        },
        Change::Interrupted => uncharged,
        Change::InterruptedAndFailed => State {
            crash_count: crashes,
            run_at: Some(change.at),
            ..over(JobStatus::Failed)
        },
        Change::Failed | Change::Expired => over(JobStatus::Failed),
        Change::Cancelled => over(JobStatus::Cancelled),
        Change::Retried => State {
            attempt: 0,
            crash_count: 0,
            ended: None,
            ..pending
        },
        Change::WebhookDelivered | Change::WebhookFailed => before,
        Change::Deleted => return None,
    })
}

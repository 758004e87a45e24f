//! The operations that a commit is made of, as data. L2, pure.

use std::collections::HashSet;
use std::sync::Arc;

use crate::config::Retention;
use crate::event::Plan;
use crate::job::{BulkAction, ErrorCause, InterruptionReason, JobId, JobStatus, RetryFrom};
use crate::new_job::NewJob;
use crate::phase::stop::StopReason;
use crate::store::outbox::{Attempted, Mail};
use crate::store::{Details, Filter};
use crate::time::Timestamp;
use crate::transition::{Input, JobRow};

/// One thing to be done. Several of them share a transaction; one that fails does not fail its neighbours.
#[derive(Debug)]
pub(crate) enum Op {
    Enqueue(Vec<PlannedJob>),
    Settle(Settle),
    Cancel(JobId),
    Retry(JobId, RetryFrom),
    Delete(JobId),
    Bulk(Bulk),
    /// A checkpoint inside a phase of the claim `epoch`.
    Save {
        id: JobId,
        epoch: i64,
        phase_index: u32,
        json: String,
    },
    /// Pauses or resumes the queue, or one type.
    SetPaused {
        job_type: Option<Arc<str>>,
        paused: bool,
    },
    /// Makes the registered types known to the file.
    Register(Vec<(Arc<str>, Option<Plan>)>),
    /// Gives a job its plan, or the reason why it has none.
    SetPlan {
        id: JobId,
        plan: std::result::Result<Plan, String>,
    },
    Recover(Recover),
    Prune(Prune),
    /// What came of a try of a delivery.
    Attempted(Attempted),
    /// Endpoints and deliveries by hand.
    Mail(Mail),
    /// Writes something that changes nothing, to see whether the store works again.
    Probe,
}

impl Op {
    /// Whether it asks for work that nobody had to do before: on a full disk it must not have the room that is kept for what is
    /// under way. Cancelling, deleting, pausing and the checkpoints of handlers add none.
    pub(crate) fn adds_work(&self) -> bool {
        match self {
            Op::Enqueue(_) | Op::Retry(..) | Op::Mail(Mail::Redeliver(_)) => true,
            Op::Bulk(Bulk { action, .. }) => matches!(action, BulkAction::Retry(_)),
            Op::Settle(_)
            | Op::Cancel(_)
            | Op::Delete(_)
            | Op::Save { .. }
            | Op::SetPaused { .. }
            | Op::Register(_)
            | Op::SetPlan { .. }
            | Op::Recover(_)
            | Op::Prune(_)
            | Op::Attempted(_)
            | Op::Mail(_)
            | Op::Probe => false,
        }
    }
}

/// A job that was checked, with its phases if they are known.
#[derive(Debug)]
pub(crate) struct PlannedJob {
    pub(crate) job: NewJob,
    pub(crate) plan: Option<Plan>,
}

/// What became of a phase.
#[derive(Debug)]
pub(crate) struct Settle {
    pub(crate) id: JobId,
    /// The phase it is about: an outcome of another one is stale.
    pub(crate) phase_index: u32,
    pub(crate) input: Input,
    /// When its handler was entered.
    pub(crate) started_at: Timestamp,
    pub(crate) result: Option<String>,
    pub(crate) error: Option<Fault>,
    pub(crate) is_from: Source,
    /// The phases to go on by, of a job that is given back because its type has others now.
    pub(crate) plan: Option<Plan>,
}

/// Who says what became of a phase.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// Its handler has returned.
    Handler,
    /// Nobody has entered it, and it is not under way any more: it was taken back.
    Nobody,
    /// Somebody who did not wait for the handler: it may still be inside.
    Supervisor(StopReason),
}

impl Settle {
    /// An outcome without result and error.
    pub(crate) fn void(row: &JobRow, input: Input) -> Settle {
        Settle {
            id: row.id,
            phase_index: row.phase_index,
            input,
            started_at: row.phase_started_at.unwrap_or(row.run_at),
            result: None,
            error: None,
            is_from: Source::Handler,
            plan: None,
        }
    }
}

/// What a try left in the error history.
#[derive(Debug)]
pub(crate) struct Fault {
    pub(crate) cause: ErrorCause,
    pub(crate) message: String,
    pub(crate) backtrace: Option<String>,
}

/// One action on many jobs.
#[derive(Debug)]
pub(crate) struct Bulk {
    pub(crate) action: BulkAction,
    pub(crate) jobs: Chosen,
}

/// Which jobs are meant.
#[derive(Debug)]
pub(crate) enum Chosen {
    /// Every one that a filter names, or none. `expect`: refused when the set has another size.
    Found {
        filter: Filter,
        expect: Option<usize>,
    },
    /// Those of these that are there and still allow it.
    #[cfg_attr(
        not(feature = "http"),
        allow(dead_code, reason = "only the API has lists")
    )]
    Listed(Vec<JobId>),
}

/// A phase that the flight recorder names: (job, epoch, phase), and since when.
pub(crate) type Noted = (JobId, i64, u32, Timestamp);

/// What a new owner knows about the process before it.
#[derive(Debug)]
pub(crate) struct Recover {
    pub(crate) reason: InterruptionReason,
    /// What the flight recorder names, the handler being inside. Empty after a power cut.
    pub(crate) inside: Vec<Noted>,
    /// And the handler having returned. Of most of these the outcome is on disk.
    pub(crate) returned: Vec<Noted>,
    /// After a power cut the recorder is not trusted, and every running job counts as interrupted.
    pub(crate) all_entered: bool,
    /// Crashes allowed, by job type; types that are not named have the default.
    pub(crate) max_crashes: Vec<(Arc<str>, u32)>,
    pub(crate) max_crashes_default: u32,
}

/// One small step of retention.
#[derive(Debug)]
pub(crate) struct Prune {
    pub(crate) retention: Retention,
    pub(crate) jobs_max: usize,
    pub(crate) events_max: usize,
}

/// What a step of retention did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Pruned {
    pub(crate) jobs: usize,
    pub(crate) events: usize,
    pub(crate) deliveries: usize,
    /// There is more to be deleted now.
    pub(crate) more: bool,
    /// When the next thing will be too old.
    pub(crate) next: Option<Timestamp>,
}

/// A type whose jobs this process can run now.
#[derive(Clone, Debug)]
pub(crate) struct Claimable {
    pub(crate) type_id: i64,
    pub(crate) job_type: Arc<str>,
    /// The plan of a type with fixed phases; jobs with another one are planned anew.
    pub(crate) plan: Option<(i64, Plan)>,
    pub(crate) concurrency: Option<u32>,
}

/// How many jobs to claim, and which.
#[derive(Debug, Default)]
pub(crate) struct ClaimRequest {
    pub(crate) room: usize,
    /// Jobs under way that are too many: as many claims may end in this commit without making room.
    pub(crate) excess: usize,
    /// Claims stop when the inputs of this commit's claims are larger in sum.
    pub(crate) bytes_max: usize,
    pub(crate) types: Arc<[Claimable]>,
    /// Jobs whose earlier handler has not returned, or whose plan is being made.
    pub(crate) exclude: HashSet<JobId>,
    /// For how many more jobs a plan may be asked.
    pub(crate) plans_max: usize,
    /// A worker is idle and nothing is due: new jobs may be stored as claimed.
    pub(crate) direct: bool,
    /// Look at what is due.
    pub(crate) from_backlog: bool,
    /// Give jobs back at the edge after a phase.
    pub(crate) release: Release,
}

/// Whose jobs are given back at their next phase edge.
#[derive(Clone, Debug, Default)]
pub(crate) enum Release {
    #[default]
    Nobody,
    Everybody(InterruptionReason),
    /// Those of paused types.
    Types(HashSet<i64>),
}

/// A job that was claimed in a commit.
#[derive(Debug)]
pub(crate) struct Claimed {
    pub(crate) row: JobRow,
    pub(crate) job_type: Arc<str>,
    pub(crate) plan: Plan,
    pub(crate) details: Details,
}

/// What the claiming part of a commit found.
#[derive(Debug, Default)]
pub(crate) struct Claims {
    /// What is due was looked at; else `more` and `next_due` say nothing.
    pub(crate) looked: bool,
    pub(crate) claimed: Vec<Claimed>,
    /// Due jobs whose plan must be made before they can be claimed: id, type and input.
    pub(crate) unplanned: Vec<(JobId, Arc<str>, String)>,
    /// Due jobs may be left.
    pub(crate) more: bool,
    /// Some of them because of the room or the bytes that were asked for, not because of their type's limit.
    pub(crate) is_full: bool,
    /// When the next one will be due. Not looked for when room or bytes ran out; known also while due jobs are left that wait
    /// for another one of their type to end.
    pub(crate) next_due: Option<Timestamp>,
    /// Jobs that ended without having been run: past their deadline.
    pub(crate) ended: Vec<(JobId, JobStatus)>,
}

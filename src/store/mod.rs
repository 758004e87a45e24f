//! What the engine asks of a store, in terms of jobs and no SQL. L2.
//!
//! Writing is split in two. [`Rows`] is what a backend must offer inside one open transaction: single rows, by key. The
//! [`seam`] is written once for all backends: it loads a row, lets [`transition::decide`](crate::transition::decide) say what
//! becomes of it, and writes row, results and log together. So the rules of the contract stand in one place, and a backend
//! cannot get them wrong.
//!
//! Reading goes through [`Reader`], beside the writer and never inside its transaction.

#[cfg(test)]
mod conformance;
pub(crate) mod memory;
pub(crate) mod ops;
pub(crate) mod outbox;
mod prune;
mod replay;
pub(crate) mod seam;
pub(crate) mod sqlite;
pub(crate) mod view;

pub(crate) use view::summary;

use std::sync::Arc;

use crate::error::{Error, Result};
use crate::event::{Change, LoggedChange, Plan, Seq};
use crate::job::{ErrorCause, Interruption, Job, JobError, JobId, JobStatus, JobSummary};
use crate::new_job::Enqueued;
use crate::store::prune::{Ended, Seen};
use crate::time::Timestamp;
use crate::transition::JobRow;

/// The writing side. One exists in a process for each file; its user keeps it behind a mutex.
pub(crate) trait Store: Send {
    /// Runs `work` in one transaction and commits it.
    fn transact(
        &mut self,
        work: &mut dyn FnMut(&mut dyn Rows) -> Result<()>,
    ) -> std::result::Result<(), Failure>;

    /// Drops every connection and opens the file anew, so that what is read next is what the file has.
    fn reopen(&mut self) -> Result<()>;

    /// Writes everything that is committed to the medium, and shrinks the files beside the main one.
    fn checkpoint(&mut self) -> Result<()>;

    /// Lets the file go. Whoever writes or reads afterwards gets an error.
    fn close(&mut self);

    /// A reader of the same data. Readers are independent of the writer and of each other.
    fn reader(&self) -> Arc<dyn Reader>;

    /// Gives away the room that is kept on the disk; false when there is none to give. A store without a disk keeps none.
    fn spend_reserve(&mut self) -> bool {
        false
    }

    /// Whether that room was given away, and has not come back.
    fn is_reserve_spent(&self) -> bool {
        false
    }

    /// Takes it back if the disk has enough of it by now; whether it did.
    fn refill_reserve(&mut self) -> std::io::Result<bool> {
        Ok(true)
    }
}

/// Why nobody may add work while the room that was kept on the disk is given away.
pub(crate) fn disk_is_full() -> Error {
    let problem =
        "the disk is full: make room on the disk. What is left is kept for jobs that are under way";
    Error::new(crate::error::ErrorKind::StorageFull, problem)
}

/// Why a transaction did not end well.
#[derive(Debug)]
pub(crate) enum Failure {
    /// It was rolled back: nothing is changed.
    NothingDone(Error),
    /// The commit itself failed: the changes are there, or they are not. [`Store::reopen`], then look.
    Unknown(Error),
}

/// Where the log and the counters stand. It is stored with the last event row of every commit, so that counting jobs costs one
/// lookup and no counter row has to be written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Head {
    /// The number of the newest event.
    pub(crate) seq: Seq,
    /// The newest job id that was given out.
    pub(crate) job_id: i64,
    /// Jobs by the code of their status.
    pub(crate) counts: [i64; 5],
    /// Names the commit, to recognise it after a commit of unknown outcome.
    pub(crate) tag: i64,
}

/// A row of the log, as it is written.
#[derive(Clone, Debug)]
pub(crate) struct EventRow {
    pub(crate) seq: Seq,
    /// How many events: those of one job, times the jobs of the run.
    pub(crate) span: i64,
    /// The change of the same job before this one; 0 for none.
    pub(crate) prev_seq: Seq,
    /// How much larger that is for each next job of the run.
    pub(crate) prev_step: i64,
    /// The first job of the run.
    pub(crate) job_id: JobId,
    pub(crate) type_id: i64,
    pub(crate) plan_id: i64,
    pub(crate) change: Change,
    pub(crate) at: Timestamp,
    pub(crate) phase_index: u32,
    pub(crate) attempt: u32,
    /// A JSON object, or nothing.
    pub(crate) data: Option<String>,
}

/// What a row of the log says of one of its jobs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Part {
    pub(crate) job_id: JobId,
    /// The first event of this job.
    pub(crate) seq: Seq,
    pub(crate) prev_seq: Seq,
}

impl Part {
    /// The part of the job at `index` (0-based) of a run that begins with `first`.
    pub(crate) fn of(first: Part, change: Change, prev_step: i64, index: i64) -> Part {
        let job_id = first.job_id.as_i64().saturating_add(index);
        let seq = first
            .seq
            .saturating_add(index.saturating_mul(change.span()));
        let prev_seq = first
            .prev_seq
            .saturating_add(index.saturating_mul(prev_step));
        Part {
            job_id: JobId::from_i64(job_id),
            seq,
            prev_seq,
        }
    }
}

/// What is stored of a completed phase.
#[derive(Clone, Debug)]
pub(crate) struct PhaseDone {
    pub(crate) attempt: u32,
    pub(crate) started_at: Timestamp,
    pub(crate) finished_at: Timestamp,
    pub(crate) result: String,
}

/// An entry of a job's error history, as it is written.
#[derive(Clone, Debug)]
pub(crate) struct ErrorRow {
    pub(crate) phase: Option<Arc<str>>,
    pub(crate) attempt: u32,
    pub(crate) at: Timestamp,
    /// Since when the phase ran, where that is known.
    pub(crate) since: Option<Timestamp>,
    pub(crate) cause: ErrorCause,
    /// For an interruption its reason, else what was wrong.
    pub(crate) message: String,
    pub(crate) backtrace: Option<String>,
}

/// Which job a unique key stands for, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Holder {
    pub(crate) job_id: JobId,
    /// The code of a [`While`](crate::While): 0 queued, 1 live, 2 until `expires`.
    pub(crate) hold: i64,
    pub(crate) expires: Timestamp,
}

/// A registered job type as the file knows it.
#[derive(Clone, Debug)]
pub(crate) struct TypeRow {
    pub(crate) id: i64,
    /// 0 for none: a planned type, or one that no process has registered.
    pub(crate) plan_id: i64,
    pub(crate) paused: bool,
}

/// What a claimed job needs beside its row.
#[derive(Clone, Debug, Default)]
pub(crate) struct Details {
    pub(crate) input: String,
    pub(crate) last_error: Option<JobError>,
    pub(crate) interruption: Option<Interruption>,
}

/// Single rows within one open transaction.
pub(crate) trait Rows: outbox::OutboxRows {
    /// A place to come back to: what is written from here on is taken back by [`Rows::undo`], or stays with [`Rows::keep`]. There is
    /// one at a time, for deletions: what gives out a number would be believed all the same.
    fn mark(&mut self) -> Result<()>;
    fn keep(&mut self) -> Result<()>;
    fn undo(&mut self) -> Result<()>;

    fn head(&mut self) -> Result<Head>;
    /// Whether another process may have committed something since this was asked last, in a transaction that was committed.
    fn has_news(&mut self) -> bool;
    /// Jobs by the code of their status, counted and not read from the head.
    fn recount(&mut self) -> Result<[i64; 5]>;
    /// The tag stored with the event row `seq`, if it is there and was the last of its commit.
    fn tag_at(&mut self, seq: Seq) -> Result<Option<i64>>;
    /// Appends to the log. The last row of a commit carries the head.
    fn append(&mut self, row: &EventRow, head: Option<&Head>) -> Result<()>;

    /// The job type of this name, stored if it is new.
    fn job_type(&mut self, name: &Arc<str>) -> Result<TypeRow>;
    fn type_name(&mut self, type_id: i64) -> Result<Arc<str>>;
    fn set_job_type(&mut self, row: &TypeRow) -> Result<()>;
    fn plan_id(&mut self, plan: &Plan) -> Result<i64>;
    fn plan(&mut self, plan_id: i64) -> Result<Plan>;
    fn set_paused(&mut self, paused: bool) -> Result<()>;
    /// Writes what is there already: fails when nothing can be written.
    fn touch(&mut self) -> Result<()>;

    fn job(&mut self, id: JobId) -> Result<Option<JobRow>>;
    fn insert_job(&mut self, row: &JobRow, input: &str, unique_key: Option<&str>) -> Result<()>;
    /// Writes `after` over `before`; false, and nothing written, when the stored row has another status or epoch.
    fn update_job(&mut self, before: &JobRow, after: &JobRow) -> Result<bool>;
    /// Deletes the job and everything that hangs on it, the log aside.
    fn delete_job(&mut self, row: &JobRow) -> Result<()>;
    fn details(&mut self, row: &JobRow) -> Result<Details>;

    fn put_result(&mut self, id: JobId, phase_index: u32, done: &PhaseDone) -> Result<()>;
    fn results(&mut self, id: JobId) -> Result<Vec<(u32, PhaseDone)>>;
    /// Drops results and checkpoints of this phase and all after it.
    fn clear_results(&mut self, id: JobId, from_index: u32) -> Result<()>;
    /// Sets or drops the checkpoint of a phase.
    fn put_checkpoint(&mut self, id: JobId, phase_index: u32, json: Option<&str>) -> Result<()>;
    fn add_error(&mut self, id: JobId, error: &ErrorRow) -> Result<()>;

    /// The first `limit` pending jobs of a type that are due, in the order of claims.
    fn due(
        &mut self,
        type_id: i64,
        now: Timestamp,
        limit: usize,
        out: &mut Vec<JobRow>,
    ) -> Result<()>;
    /// The earliest `run_at` of a pending job of a type that is not due.
    fn next_due(&mut self, type_id: i64, now: Timestamp) -> Result<Option<Timestamp>>;
    /// Running jobs of a type, at most `limit`.
    fn running(&mut self, type_id: i64) -> Result<u32>;
    /// Ids of the jobs with this status (and type), ascending. When there are more than `limit`, any of them.
    fn ids(&mut self, status: JobStatus, type_id: Option<i64>, limit: usize) -> Result<Vec<JobId>>;
    /// Terminal jobs of a status in the order in which they ended: those behind `after` that ended before `cutoff`.
    fn oldest_ended(
        &mut self,
        status: JobStatus,
        after: Ended,
        cutoff: Timestamp,
        limit: usize,
    ) -> Result<Vec<Ended>>;
    /// How large the results, checkpoints and the input of a job are that are not in its row.
    fn stored_bytes(&mut self, id: JobId) -> Result<u64>;
    /// What retention has in mind between its steps. It is kept also when the transaction fails.
    fn seen(&mut self) -> &mut Seen;

    /// The unique key that a job was enqueued with.
    fn unique_key(&mut self, id: JobId) -> Result<Option<String>>;
    fn holder(&mut self, type_id: i64, key: &str) -> Result<Option<Holder>>;
    fn set_holder(&mut self, type_id: i64, key: &str, holder: &Holder) -> Result<()>;
    /// Drops unique keys that stand for nothing any more, looking at `limit` of them; a later call goes on from there.
    fn prune_holders(&mut self, now: Timestamp, limit: usize) -> Result<()>;
    /// The oldest rows of the log, at most `limit`: the first event of each, and when it was written.
    fn oldest_events(&mut self, limit: usize) -> Result<Vec<(Seq, Timestamp)>>;
    /// When the row of the log was written that begins with event `seq`, or the last one before it.
    fn event_time(&mut self, seq: Seq) -> Result<Option<Timestamp>>;
    /// Deletes the rows of the log that begin before `seq`. The newest row is not to be among them: it has the head.
    fn delete_events(&mut self, before: Seq) -> Result<()>;
}

/// Rows that one call of [`Reader::list`] looks at, so that no filter makes it slow.
pub(crate) const SCAN_MAX: usize = 10_000;
/// Due jobs that [`Reader::situation`] counts before a job.
pub(crate) const AHEAD_MAX: usize = 10_000;

/// Which jobs a list shows.
#[derive(Clone, Debug, Default)]
pub(crate) struct Filter {
    pub(crate) status: Option<JobStatus>,
    pub(crate) job_type: Option<String>,
}

/// A position in a list: the sort key and id of the last row that was seen.
pub(crate) type Position = (i64, i64);

/// A piece of a list.
#[derive(Debug, Default)]
pub(crate) struct Slice {
    pub(crate) jobs: Vec<JobSummary>,
    /// Where the next piece begins; none at the end.
    pub(crate) next: Option<Position>,
}

/// What [`explain`](crate::JobQueue::explain) needs from the file.
#[derive(Debug)]
pub(crate) struct Situation {
    pub(crate) row: JobRow,
    pub(crate) job_type: Arc<str>,
    pub(crate) queue_paused: bool,
    pub(crate) type_paused: bool,
    pub(crate) running_of_type: u32,
    /// Due jobs of its type before it in the order of claims; counted up to 10,000.
    pub(crate) ahead: u32,
}

/// Reads committed data, from any thread.
pub(crate) trait Reader: outbox::OutboxReader {
    fn head(&self) -> Result<Head>;
    fn job(&self, id: JobId) -> Result<Option<Job>>;
    /// As [`Reader::job`], but its input and results, which may be large, are not read: null and none stand for them.
    fn outline(&self, id: JobId) -> Result<Option<Job>>;
    fn status(&self, id: JobId) -> Result<Option<JobStatus>>;
    /// Where a job stands, and the number of its newest claim.
    fn claim(&self, id: JobId) -> Result<Option<(JobStatus, i64)>>;
    /// A page of jobs, newest first: by the time they ended for a terminal status, else by id. Each call looks at a bounded
    /// number of rows, so that a piece can be short, or empty, and yet have a next one.
    fn list(&self, filter: &Filter, from: Option<Position>, limit: usize) -> Result<Slice>;
    fn result(&self, id: JobId, phase_index: u32) -> Result<Option<String>>;
    fn checkpoint(&self, id: JobId, phase_index: u32) -> Result<Option<String>>;
    /// Changes that hold events after `seq`, oldest first.
    fn changes_after(&self, seq: Seq, limit: usize) -> Result<Vec<LoggedChange>>;
    /// The number of the oldest event that is kept; 0 when there is none.
    fn oldest_seq(&self) -> Result<Seq>;
    /// The newest changes of one job, at most `limit`, oldest first; none when the job is gone.
    fn changes_of(&self, id: JobId, limit: usize) -> Result<Vec<LoggedChange>>;
    fn situation(&self, id: JobId, now: Timestamp) -> Result<Option<Situation>>;
    /// The invariants of the file; each line is one that is broken.
    fn check(&self) -> Result<Vec<String>>;
    /// A name for this very file, made when it was created: event numbers are only comparable within it.
    fn file_id(&self) -> Result<String>;
    /// Every job type of the file: name, number, and the number of its fixed plan or 0.
    fn types(&self) -> Result<Vec<(Arc<str>, i64, i64)>>;
    /// Whether the queue is paused, and the paused job types.
    fn pauses(&self) -> Result<(bool, Vec<Arc<str>>)>;
}

/// What one commit made of one operation.
#[derive(Debug)]
pub(crate) enum Done {
    Enqueued(Vec<Enqueued>),
    /// The job after its outcome was recorded, or nothing when the outcome was stale.
    Settled(Option<JobRow>),
    Cancelled(crate::job::CancelOutcome),
    /// Jobs that were changed, with their rows after the change.
    Changed(Vec<JobRow>),
    Nothing,
    Recovered {
        interrupted: usize,
        failed: usize,
    },
    Pruned(ops::Pruned),
    /// So many were changed.
    Counted(usize),
}

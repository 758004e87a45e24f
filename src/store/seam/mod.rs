//! The seam: the one place where a job changes. L2, written once for every backend.
//!
//! Each operation loads a row, asks [`transition::decide`] what becomes of it, and writes the row (guarded by status and
//! epoch), results, errors and the log together. Nothing else writes those tables, so a change without its event, or an event
//! without its change, cannot be expressed.
//!
//! An operation that is refused (no such job, wrong status, a damaged row) has written nothing and leaves its neighbours in the
//! same transaction alone. An operation that fails *after* it has written makes the whole transaction fail; the caller rolls
//! back and runs the operations one by one.
//!
//! Here: the order of a commit, and how one transition is written. Each kind of operation has a file of its own.

mod claim;
mod enqueue;
mod history;
mod outbox;
mod recover;
mod request;
mod settle;

pub(crate) use enqueue::may_hold;

use std::collections::BTreeSet;

use serde_json::json;

use crate::error::{Error, ErrorKind, Result};
use crate::event::Change;
use crate::job::{JobId, JobStatus};
use crate::store::ops::{ClaimRequest, Claims, Op};
use crate::store::outbox::EndpointRow;
use crate::store::{Done, ErrorRow, EventRow, Head, PhaseDone, Rows};
use crate::time::Timestamp;
use crate::transition::{self, Flags, Input, JobRow, Phases, Transition};

/// Jobs that one bulk operation may touch, or deliveries: they share one transaction. It is to be over well before those who wait
/// for the file give up, which is after 10 s.
pub(crate) const BULK_MAX: usize = 100_000;

/// Jobs that share a row of the log at most: a reader has the events of a row in memory at once.
pub(crate) const RUN_MAX: i64 = 1024;

/// What one commit did.
#[derive(Debug, Default)]
pub(crate) struct Committed {
    /// One for each operation, in order.
    pub(crate) answers: Vec<Result<Done>>,
    pub(crate) claims: Claims,
    pub(crate) head: Head,
    /// The last row that was appended to the log, to recognise the commit by; 0 if there was none.
    pub(crate) last_row_seq: i64,
    /// Endpoints with something to send that was not there before, or may be sent now.
    pub(crate) mail: Vec<i64>,
    /// It changed something, and so has proved that the store can be written.
    pub(crate) has_written: bool,
    /// Another process may have committed something before it, and since the commit before.
    pub(crate) has_news: bool,
}

/// Does `ops`, then claims, all in the open transaction of `rows`.
pub(crate) fn run(
    rows: &mut dyn Rows,
    ops: &[Op],
    request: &ClaimRequest,
    now: Timestamp,
    tag: i64,
) -> Result<Committed> {
    let (head, has_news) = (rows.head()?, rows.has_news());
    let room = request.room;
    let mut commit = Commit {
        rows,
        now,
        head,
        request,
        room,
        ended: 0,
        pending: None,
        writes: 0,
        claims: Claims::default(),
        named: None,
        mail: BTreeSet::new(),
        marked: None,
    };
    let mut answers = Vec::with_capacity(ops.len());
    for op in ops {
        let writes = commit.writes;
        let answer = commit.apply(op);
        if let Err(error) = &answer
            && (commit.writes != writes || is_fatal(error))
        {
            return Err(error.duplicate());
        }
        answers.push(answer);
    }
    commit.room += commit.ended.saturating_sub(request.excess);
    if request.from_backlog && commit.room > 0 {
        commit.claim()?;
    }
    let last_row_seq = commit.flush_last(tag)?;
    let has_written = commit.writes > 0;
    let Commit {
        head, claims, mail, ..
    } = commit;
    Ok(Committed {
        answers,
        claims,
        head,
        mail: mail.into_iter().collect(),
        last_row_seq,
        has_written,
        has_news,
    })
}

/// Whether an error is about the store and not about the operation.
fn is_fatal(error: &Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::Storage | ErrorKind::StorageFull | ErrorKind::OutcomeUnknown
    )
}

struct Commit<'a> {
    rows: &'a mut dyn Rows,
    now: Timestamp,
    head: Head,
    request: &'a ClaimRequest,
    /// Claims that are still allowed.
    room: usize,
    /// Claims that were ended, and their handlers have returned: others may take their place.
    ended: usize,
    /// The newest row of the log, not written yet: the last one carries the head, and a run of created jobs grows in it.
    pending: Option<EventRow>,
    /// Grows with everything that is written.
    writes: u64,
    claims: Claims,
    /// The endpoints of the configuration, once somebody has looked.
    named: Option<Vec<EndpointRow>>,
    mail: BTreeSet<i64>,
    /// Head, pending row and writes as they were at the mark.
    marked: Option<(Head, Option<EventRow>, u64)>,
}

/// What a transition brings along.
#[derive(Default)]
struct Extra<'a> {
    data: Option<String>,
    started_at: Option<Timestamp>,
    result: Option<&'a str>,
    error: Option<ErrorRow>,
}

impl Commit<'_> {
    fn apply(&mut self, op: &Op) -> Result<Done> {
        match op {
            Op::Enqueue(jobs) => {
                let direct = self.request.direct && enqueue::may_be_claimed_one_by_one(jobs);
                jobs.iter()
                    .map(|job| self.enqueue(job, direct))
                    .collect::<Result<_>>()
                    .map(Done::Enqueued)
            }
            Op::Settle(settle) => self.settle(settle).map(Done::Settled),
            Op::Cancel(id) => self.cancel(*id).map(Done::Cancelled),
            Op::Retry(id, from) => {
                let row = self.change(
                    *id,
                    &Input::Retry(*from),
                    "only failed and cancelled jobs can be retried",
                )?;
                Ok(Done::Changed(vec![row]))
            }
            Op::Delete(id) => {
                let row = self.change(
                    *id,
                    &Input::Delete,
                    "only jobs that are over can be deleted: cancel it first",
                )?;
                Ok(Done::Changed(vec![row]))
            }
            Op::Bulk(bulk) => self.bulk(bulk).map(Done::Changed),
            Op::Save {
                id,
                epoch,
                phase_index,
                json,
            } => self.save(*id, *epoch, *phase_index, json),
            Op::SetPaused { job_type, paused } => self.set_paused(job_type.as_ref(), *paused),
            Op::Register(types) => self.register(types),
            Op::SetPlan { id, plan } => self.set_plan(*id, plan),
            Op::Recover(recover) => self.recover(recover),
            Op::Attempted(attempted) => self.attempted(attempted),
            Op::Mail(mail) => self.by_hand(mail),
            Op::Probe => {
                self.writes += 1;
                self.rows.touch().map(|()| Done::Nothing)
            }
            Op::Prune(prune) => {
                let pruned = super::prune::run(self, prune)?;
                Ok(Done::Pruned(pruned))
            }
        }
    }

    // ---- the log ----

    /// Appends the change of a job. `about`: the phase's index and the attempt.
    fn log(
        &mut self,
        row: &JobRow,
        change: Change,
        about: (u32, u32),
        data: Option<String>,
    ) -> Result<()> {
        let (seq, span) = (self.head.seq + 1, change.span());
        self.head.seq += span;
        self.writes += 1;
        let notified = outbox::Notified {
            seq,
            change,
            about,
            data: data.as_deref(),
        };
        self.notify(row, &notified)?;
        let (phase_index, attempt) = about;
        let next = EventRow {
            seq,
            span,
            prev_seq: row.last_seq,
            prev_step: 0,
            job_id: row.id,
            type_id: row.type_id,
            plan_id: row.plan_id,
            change,
            at: self.now,
            phase_index,
            attempt,
            data,
        };
        if let Some(run) = &mut self.pending
            && run.grow(&next)
        {
            return Ok(());
        }
        if let Some(written) = self.pending.replace(next) {
            self.rows.append(&written, None)?;
        }
        Ok(())
    }

    fn flush_last(&mut self, tag: i64) -> Result<i64> {
        let Some(last) = self.pending.take() else {
            return Ok(0);
        };
        self.head.tag = tag;
        self.rows.append(&last, Some(&self.head))?;
        Ok(last.seq)
    }

    /// Writes a transition of a stored job; nothing when the stored row is another by now.
    fn write(
        &mut self,
        before: &JobRow,
        transition: &Transition,
        extra: Extra<'_>,
    ) -> Result<Option<JobRow>> {
        let Transition {
            mut after,
            change,
            phases,
            ..
        } = *transition;
        if extra.error.is_some() {
            after.flags = after.flags.with(Flags::ERRORS);
        }
        after.last_seq = self.head.seq + 1;
        if self.head.counts[before.status as usize] < 1 {
            self.recount(before)?;
        }
        if change == Change::Retried {
            self.hold_again(before)?;
        }
        if phases == Phases::Delete {
            // It is several statements: when one of them fails, others may have written.
            self.writes += 1;
            self.rows.delete_job(before)?;
        } else if !self.rows.update_job(before, &after)? {
            return Ok(None);
        }
        self.writes += 1;
        if before.status == JobStatus::Running {
            // Claimed by the operation that stored it, and taken away by one after it in the same commit.
            self.claims
                .claimed
                .retain(|claimed| claimed.row.id != before.id);
        }
        match phases {
            Phases::Keep | Phases::Delete => {}
            Phases::Complete => {
                let done = PhaseDone {
                    attempt: before.attempt,
                    started_at: extra.started_at.unwrap_or(self.now),
                    finished_at: self.now,
                    result: extra.result.unwrap_or("null").to_owned(),
                };
                self.rows.put_result(before.id, before.phase_index, &done)?;
                if before.flags.has(Flags::SAVED) {
                    self.rows
                        .put_checkpoint(before.id, before.phase_index, None)?;
                }
            }
            Phases::ClearFrom(index) => self.rows.clear_results(before.id, index)?,
        }
        if let Some(error) = &extra.error {
            self.rows.add_error(before.id, error)?;
        }
        self.head.counts[before.status as usize] -= 1;
        if phases != Phases::Delete {
            self.head.counts[after.status as usize] += 1;
        }
        // A change is told with the attempt it happened in, also when that attempt is not charged.
        let attempt = before.attempt.max(after.attempt);
        let attempt = if change == Change::Retried {
            0
        } else {
            attempt
        };
        let row = JobRow {
            last_seq: before.last_seq,
            ..after
        };
        self.log(&row, change, (before.phase_index, attempt), extra.data)?;
        Ok(Some(after))
    }

    /// The head of a damaged file counts fewer jobs than there are. One less than nothing would make it a file that nobody can
    /// open, and to refuse the change could keep a job running for ever: so the jobs are counted, once for such a file.
    fn recount(&mut self, job: &JobRow) -> Result<()> {
        self.head.counts = self.rows.recount()?;
        log::error!(
            "the log counts too few {} jobs: they were counted anew",
            job.status
        );
        if self.head.counts[job.status as usize] < 1 {
            let problem = format!("job {} is {}, and no such job is found", job.id, job.status);
            return Err(Error::new(ErrorKind::Corrupt, problem));
        }
        Ok(())
    }

    fn load(&mut self, id: JobId) -> Result<JobRow> {
        self.rows.job(id)?.ok_or_else(|| {
            Error::new(
                ErrorKind::NotFound,
                format!("job {id}: there is no such job"),
            )
        })
    }
}

impl EventRow {
    /// Takes the change of one more job into the run, if it is the same change of the next job.
    fn grow(&mut self, next: &EventRow) -> bool {
        let jobs = self.span / self.change.span();
        let step = next.prev_seq - self.prev_seq;
        let is_linked = if jobs == 1 {
            // The changes before were neighbours in a run too. Anything else is chance, and would end the run at the next job.
            (0..=Change::SPAN_MAX).contains(&step)
        } else {
            step == jobs * self.prev_step
        };
        let told = |row: &EventRow| {
            let about = (row.phase_index, row.attempt);
            (row.type_id, row.plan_id, row.change, row.at, about)
        };
        let fits = is_linked
            && jobs < RUN_MAX
            && self.job_id.as_i64() + jobs == next.job_id.as_i64()
            && told(self) == told(next)
            && self.data == next.data;
        if fits {
            self.span += next.span;
            self.prev_step = if jobs == 1 { step } else { self.prev_step };
        }
        fits
    }
}

/// Deletes a job that is over, for retention. The other half of it is in `prune.rs`.
impl super::prune::Delete for Commit<'_> {
    fn delete(&mut self, id: JobId) -> Result<bool> {
        let Some(before) = self.rows.job(id)? else {
            return Ok(false);
        };
        let Ok(transition) = transition::decide(&before, &Input::Delete, self.now) else {
            return Ok(false);
        };
        let data = Some(json!({"reason": "retention"}).to_string());
        self.write(
            &before,
            &transition,
            Extra {
                data,
                ..Extra::default()
            },
        )
        .map(|row| row.is_some())
    }

    fn rows(&mut self) -> (&mut dyn Rows, Head, Timestamp) {
        (self.rows, self.head, self.now)
    }

    fn mark(&mut self) -> Result<()> {
        self.marked = Some((self.head, self.pending.clone(), self.writes));
        self.rows.mark()
    }

    fn keep(&mut self) -> Result<()> {
        self.rows.keep()
    }

    /// What was noted of mail stays: whoever looks for more than there is finds nothing.
    fn undo(&mut self) -> Result<()> {
        if let Some((head, pending, writes)) = self.marked.take() {
            (self.head, self.pending, self.writes) = (head, pending, writes);
        }
        self.rows.undo()
    }

    fn written(&mut self) {
        self.writes += 1;
    }
}

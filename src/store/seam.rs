//! The seam: the one place where a job changes. L2, written once for every backend.
//!
//! Each operation loads a row, asks [`transition::decide`] what becomes of it, and writes the row (guarded by status and
//! epoch), results, errors and the log together. Nothing else writes those tables, so a change without its event, or an event
//! without its change, cannot be expressed.
//!
//! An operation that is refused (no such job, wrong status, a damaged row) has written nothing and leaves its neighbours in the
//! same transaction alone. An operation that fails *after* it has written makes the whole transaction fail; the caller rolls
//! back and runs the operations one by one.

use std::sync::Arc;

use serde_json::json;

use crate::error::{Error, ErrorKind, Result};
use crate::event::{Change, Plan};
use crate::job::{CancelOutcome, ErrorCause, InterruptionReason, JobId, JobStatus};
use crate::new_job::{Enqueued, RunAt, UniqueKey, While};
use crate::store::ops::{
    Bulk, BulkAction, ClaimRequest, Claimable, Claimed, Claims, Fault, Op, PlannedJob, Recover,
    Release, Settle,
};
use crate::store::{Done, ErrorRow, EventRow, Head, Holder, PhaseDone, Rows, TypeRow};
use crate::time::Timestamp;
use crate::transition::{self, Edge, Flags, Input, JobRow, Phases, Refusal, Transition};

/// Jobs that one bulk operation may touch: they share one transaction, and so the memory that its log takes.
pub(crate) const BULK_MAX: usize = 1_000_000;

/// What one commit did.
#[derive(Debug)]
pub(crate) struct Committed {
    /// One for each operation, in order.
    pub(crate) answers: Vec<Result<Done>>,
    pub(crate) claims: Claims,
    pub(crate) head: Head,
    /// The last row that was appended to the log, to recognise the commit by; 0 if there was none.
    pub(crate) last_row_seq: i64,
}

/// Does `ops`, then claims, all in the open transaction of `rows`.
pub(crate) fn run(
    rows: &mut dyn Rows,
    ops: &[Op],
    request: &ClaimRequest,
    now: Timestamp,
    tag: i64,
) -> Result<Committed> {
    let head = rows.head()?;
    let room = request.room;
    let mut commit = Commit {
        rows,
        now,
        head,
        request,
        room,
        pending: None,
        writes: 0,
        claims: Claims::default(),
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
    if request.from_backlog && commit.room > 0 {
        commit.claim()?;
    }
    let last_row_seq = commit.flush_last(tag)?;
    let Commit { head, claims, .. } = commit;
    Ok(Committed {
        answers,
        claims,
        head,
        last_row_seq,
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
    /// The newest row of the log, not written yet: the last one carries the head, and a run of created jobs grows in it.
    pending: Option<EventRow>,
    /// Grows with everything that is written.
    writes: u64,
    claims: Claims,
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
            Op::Enqueue(jobs) => jobs
                .iter()
                .map(|job| self.enqueue(job))
                .collect::<Result<_>>()
                .map(Done::Enqueued),
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
            Op::Prune(prune) => {
                let pruned = super::prune::run(self, prune)?;
                Ok(Done::Pruned(pruned))
            }
        }
    }

    // ---- the log ----

    /// Appends the change of a job, and answers its number.
    fn log(
        &mut self,
        row: &JobRow,
        change: Change,
        span: i64,
        about: (u32, u32),
        data: Option<String>,
    ) -> Result<i64> {
        let seq = self.head.seq + 1;
        self.head.seq += span;
        self.writes += 1;
        if let Some(run) = &mut self.pending {
            let follows = run.change == Change::Created
                && change == Change::Created
                && run.job_id.as_i64() + run.span == row.id.as_i64()
                && (run.type_id, run.plan_id) == (row.type_id, row.plan_id)
                && run.data == data;
            if follows {
                run.span += 1;
                return Ok(seq);
            }
        }
        let (phase_index, attempt) = about;
        let next = EventRow {
            seq,
            span,
            prev_seq: row.last_seq,
            job_id: row.id,
            type_id: row.type_id,
            plan_id: row.plan_id,
            change,
            at: self.now,
            phase_index,
            attempt,
            data,
        };
        if let Some(written) = self.pending.replace(next) {
            self.rows.append(&written, None)?;
        }
        Ok(seq)
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
        if phases == Phases::Delete {
            self.rows.delete_job(before)?;
        } else if !self.rows.update_job(before, &after)? {
            return Ok(None);
        }
        self.writes += 1;
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
        self.log(
            &row,
            change,
            change.span(),
            (before.phase_index, attempt),
            extra.data,
        )?;
        Ok(Some(after))
    }

    fn load(&mut self, id: JobId) -> Result<JobRow> {
        self.rows.job(id)?.ok_or_else(|| {
            Error::new(
                ErrorKind::NotFound,
                format!("job {id}: there is no such job"),
            )
        })
    }

    // ---- enqueueing ----

    fn enqueue(&mut self, planned: &PlannedJob) -> Result<Enqueued> {
        let job = &planned.job;
        let job_type = self.rows.job_type(&job.job_type)?;
        if let Some(unique) = &job.unique
            && let Some(id) = self.holder_of(&job_type, unique)?
        {
            return Ok(Enqueued { id, is_new: false });
        }
        let (plan_id, phase_count) = match &planned.plan {
            Some(plan) => (self.rows.plan_id(plan)?, plan.len()),
            None if job_type.plan_id != 0 => {
                (job_type.plan_id, self.rows.plan(job_type.plan_id)?.len())
            }
            None => (0, 0),
        };
        let now = self.now;
        let run_at = match job.run_at {
            RunAt::Now => now,
            RunAt::After(delay) => now.after(delay),
            RunAt::At(at) => at.max(now),
        };
        if self.head.job_id >= JobId::MAX {
            return Err(Error::new(
                ErrorKind::Storage,
                "every job id has been used: start a new file",
            ));
        }
        self.head.job_id += 1;
        let row = JobRow {
            id: JobId::from_i64(self.head.job_id),
            type_id: job_type.id,
            plan_id,
            status: JobStatus::Pending,
            priority: job.priority,
            run_at,
            epoch: 0,
            attempt: 0,
            phase_index: 0,
            phase_count: u32::try_from(phase_count).expect("a plan has 256 phases at most"),
            phase_attempt: 0,
            crash_count: 0,
            created_at: now,
            started_at: None,
            phase_started_at: None,
            finished_at: None,
            deadline: job.deadline.map(|deadline| run_at.after(deadline)),
            last_seq: self.head.seq + 1,
            flags: Flags::default(),
        };
        let data = created_data(job.priority, run_at, now);
        let unique_key = job.unique.as_ref().map(|unique| unique.key.as_str());
        self.insert(row, &job.input, unique_key, data, planned.plan.as_ref())?;
        if let Some(unique) = &job.unique {
            let (hold, expires) = match unique.hold {
                While::Queued => (0, Timestamp::default()),
                While::Live => (1, Timestamp::default()),
                While::For(duration) => (2, now.after(duration)),
            };
            let holder = Holder {
                job_id: row.id,
                hold,
                expires,
            };
            self.rows.set_holder(job_type.id, &unique.key, &holder)?;
        }
        Ok(Enqueued {
            id: row.id,
            is_new: true,
        })
    }

    /// Stores a new job: as pending, or, when a worker is idle and nothing waits, as claimed already.
    fn insert(
        &mut self,
        row: JobRow,
        input: &str,
        unique_key: Option<&str>,
        data: Option<String>,
        plan: Option<&Plan>,
    ) -> Result<()> {
        let fits =
            self.request.direct && self.room > 0 && row.run_at <= self.now && row.phase_count > 0;
        let types = &self.request.types;
        let claimable = types
            .iter()
            .find(|claimable| fits && claimable.type_id == row.type_id);
        let claimable = claimable.filter(|claimable| claimable.concurrency.is_none());
        let claimed = claimable.and_then(|claimable| {
            let transition = transition::decide(&row, &Input::Claim, self.now).ok()?;
            let plan = match (&claimable.plan, plan) {
                (Some((plan_id, plan)), _) if *plan_id == row.plan_id => plan.clone(),
                (None, Some(plan)) => plan.clone(),
                _ => return None,
            };
            (transition.change == Change::Claimed)
                .then(|| (transition.after, plan, claimable.job_type.clone()))
        });
        self.writes += 1;
        let unlinked = JobRow { last_seq: 0, ..row };
        let Some((after, plan, job_type)) = claimed else {
            self.rows.insert_job(&row, input, unique_key)?;
            self.head.counts[JobStatus::Pending as usize] += 1;
            self.log(&unlinked, Change::Created, 1, (0, 0), data)?;
            return Ok(());
        };
        self.rows.insert_job(&after, input, unique_key)?;
        self.head.counts[JobStatus::Running as usize] += 1;
        self.log(
            &unlinked,
            Change::CreatedAndClaimed,
            Change::CreatedAndClaimed.span(),
            (0, 1),
            data,
        )?;
        self.room -= 1;
        let details = super::Details {
            input: input.to_owned(),
            ..super::Details::default()
        };
        self.claims.claimed.push(Claimed {
            row: after,
            job_type,
            plan,
            details,
        });
        Ok(())
    }

    /// The job that a unique key stands for now.
    fn holder_of(&mut self, job_type: &TypeRow, unique: &UniqueKey) -> Result<Option<JobId>> {
        let Some(holder) = self.rows.holder(job_type.id, &unique.key)? else {
            return Ok(None);
        };
        let holds = holds(self.rows, &holder, self.now)?;
        Ok(holds.then_some(holder.job_id))
    }

    // ---- what becomes of a claimed job ----

    fn settle(&mut self, settle: &Settle) -> Result<Option<JobRow>> {
        let Some(before) = self.rows.job(settle.id)? else {
            return Ok(None);
        };
        let input = self.at_the_edge(&before, settle.input);
        let transition = match transition::decide(&before, &input, self.now) {
            Ok(transition) => transition,
            Err(Refusal::Stale | Refusal::Illegal(_)) => return Ok(None),
        };
        let phase = self.phase_name(&before)?;
        let mut error = settle
            .error
            .as_ref()
            .map(|fault| fault_row(fault, phase.clone(), before.attempt, self.now));
        let data = match input {
            Input::PhaseFailed { .. } => {
                if let (Some(error), Some(cause)) = (&mut error, transition.cause) {
                    error.message = format!("{} (no time for another try: {cause})", error.message);
                }
                failed_data(&transition, error.as_ref())
            }
            Input::Snooze { .. } => {
                let run_at = transition.after.run_at;
                Some(json!({"reason": "snoozed", "run_at": run_at}).to_string())
            }
            Input::Interrupted {
                reason, entered, ..
            } => {
                if entered {
                    error = Some(interrupted_row(
                        reason,
                        phase,
                        &before,
                        Some(settle.started_at),
                        self.now,
                    ));
                }
                interrupted_data(reason, entered, false, entered.then_some(settle.started_at))
            }
            Input::PhaseCompleted {
                edge: Edge::Release(reason),
                ..
            } => interrupted_data(reason, false, false, None),
            Input::PhaseCompleted {
                edge: Edge::GoOn, ..
            }
            | Input::HandlerCancelled { .. } => None,
            Input::Claim | Input::Cancel | Input::Retry(_) | Input::Delete => return Ok(None),
        };
        let extra = Extra {
            data,
            started_at: Some(settle.started_at),
            result: settle.result.as_deref(),
            error,
        };
        self.write(&before, &transition, extra)
    }

    /// Turns "go on" into "give back" while the queue or the type rests.
    fn at_the_edge(&self, job: &JobRow, input: Input) -> Input {
        let Input::PhaseCompleted {
            epoch,
            edge: Edge::GoOn,
        } = input
        else {
            return input;
        };
        let edge = match &self.request.release {
            Release::Nobody => Edge::GoOn,
            Release::Everybody(reason) => Edge::Release(*reason),
            Release::Types(types) if types.contains(&job.type_id) => {
                Edge::Release(InterruptionReason::Paused)
            }
            Release::Types(_) => Edge::GoOn,
        };
        Input::PhaseCompleted { epoch, edge }
    }

    fn phase_name(&mut self, row: &JobRow) -> Result<Option<Arc<str>>> {
        if row.plan_id == 0 {
            return Ok(None);
        }
        let plan = self.rows.plan(row.plan_id)?;
        Ok(plan
            .get(row.phase_index as usize)
            .map(|phase| phase.name.clone()))
    }

    fn save(&mut self, id: JobId, epoch: i64, phase_index: u32, json: &str) -> Result<Done> {
        let before = self.load(id)?;
        if before.status != JobStatus::Running
            || before.epoch != epoch
            || before.phase_index != phase_index
        {
            let problem = format!("job {id}: this try is over, so its checkpoint was not saved");
            return Err(Error::new(ErrorKind::Conflict, problem));
        }
        if !before.flags.has(Flags::SAVED) {
            let after = JobRow {
                flags: before.flags.with(Flags::SAVED),
                ..before
            };
            self.rows.update_job(&before, &after)?;
        }
        self.writes += 1;
        self.rows.put_checkpoint(id, phase_index, Some(json))?;
        Ok(Done::Nothing)
    }

    // ---- what a caller asks for ----

    fn cancel(&mut self, id: JobId) -> Result<CancelOutcome> {
        let Some(before) = self.rows.job(id)? else {
            return Ok(CancelOutcome::NotFound);
        };
        match transition::decide(&before, &Input::Cancel, self.now) {
            Ok(transition) => match self.write(&before, &transition, Extra::default())? {
                Some(_) => Ok(CancelOutcome::Cancelled),
                None => Err(Error::new(
                    ErrorKind::Corrupt,
                    format!("job {id}: its row changed while it was being read"),
                )),
            },
            Err(Refusal::Illegal(status)) => Ok(CancelOutcome::AlreadyFinished(status)),
            Err(Refusal::Stale) => Ok(CancelOutcome::AlreadyFinished(before.status)),
        }
    }

    /// Retry or delete one job.
    fn change(&mut self, id: JobId, input: &Input, rule: &str) -> Result<JobRow> {
        let before = self.load(id)?;
        let transition = transition::decide(&before, input, self.now).map_err(|_| {
            Error::new(
                ErrorKind::Conflict,
                format!("job {id} is {}: {rule}", before.status),
            )
        })?;
        let data = requested_data(id, input);
        let written = self.write(
            &before,
            &transition,
            Extra {
                data,
                ..Extra::default()
            },
        )?;
        written.ok_or_else(|| {
            Error::new(
                ErrorKind::Corrupt,
                format!("job {id}: its row changed while it was being read"),
            )
        })
    }

    fn bulk(&mut self, bulk: &Bulk) -> Result<Vec<JobRow>> {
        let Some(status) = bulk.filter.status else {
            return Err(Error::new(
                ErrorKind::InvalidJob,
                "a bulk operation needs a status to select by",
            ));
        };
        let type_id = match &bulk.filter.job_type {
            Some(name) => Some(self.rows.job_type(&name.as_str().into())?.id),
            None => None,
        };
        let ids = self.rows.ids(status, type_id, BULK_MAX + 1)?;
        if ids.len() > BULK_MAX {
            let problem = format!("more than {BULK_MAX} jobs are {status}: select fewer");
            return Err(Error::new(ErrorKind::Conflict, problem));
        }
        if let Some(expected) = bulk.expect
            && expected != ids.len()
        {
            let problem = format!(
                "{} jobs are {status}, not {expected}: look again, nothing was changed",
                ids.len()
            );
            return Err(Error::new(ErrorKind::Conflict, problem));
        }
        let (input, rule) = match bulk.action {
            BulkAction::Cancel => (
                Input::Cancel,
                "only jobs that are not over can be cancelled",
            ),
            BulkAction::Retry(from) => (
                Input::Retry(from),
                "only failed and cancelled jobs can be retried",
            ),
            BulkAction::Delete => (Input::Delete, "only jobs that are over can be deleted"),
        };
        ids.into_iter()
            .map(|id| self.change(id, &input, rule))
            .collect()
    }

    fn set_paused(&mut self, job_type: Option<&Arc<str>>, paused: bool) -> Result<Done> {
        self.writes += 1;
        match job_type {
            None => self.rows.set_paused(paused)?,
            Some(name) => {
                let row = self.rows.job_type(name)?;
                self.rows.set_job_type(&TypeRow { paused, ..row })?;
            }
        }
        Ok(Done::Nothing)
    }

    fn register(&mut self, types: &[(Arc<str>, Option<Plan>)]) -> Result<Done> {
        for (name, plan) in types {
            let row = self.rows.job_type(name)?;
            let plan_id = plan
                .as_ref()
                .map_or(Ok(0), |plan| self.rows.plan_id(plan))?;
            if row.plan_id != plan_id {
                self.writes += 1;
                self.rows.set_job_type(&TypeRow { plan_id, ..row })?;
            }
        }
        Ok(Done::Nothing)
    }

    fn set_plan(&mut self, id: JobId, plan: &std::result::Result<Plan, String>) -> Result<Done> {
        let Some(before) = self.rows.job(id)? else {
            return Ok(Done::Nothing);
        };
        if before.status != JobStatus::Pending {
            return Ok(Done::Nothing);
        }
        match plan {
            Ok(plan) => {
                self.replan(&before, plan)?;
                Ok(Done::Nothing)
            }
            Err(problem) => {
                let failed = JobRow {
                    status: JobStatus::Failed,
                    finished_at: Some(self.now),
                    ..before
                };
                let transition = Transition {
                    after: failed,
                    change: Change::Expired,
                    phases: Phases::Keep,
                    cause: None,
                };
                let fault = Fault {
                    cause: ErrorCause::Decode,
                    message: problem.clone(),
                    backtrace: None,
                };
                let error = fault_row(&fault, None, before.attempt, self.now);
                let data = Some(json!({"kind": error.cause, "message": error.message}).to_string());
                self.write(
                    &before,
                    &transition,
                    Extra {
                        data,
                        error: Some(error),
                        ..Extra::default()
                    },
                )?;
                Ok(Done::Changed(vec![failed]))
            }
        }
    }

    // ---- claims ----

    fn claim(&mut self) -> Result<()> {
        let request = self.request;
        let mut due: Vec<(JobRow, &Claimable)> = Vec::new();
        let mut rows = Vec::new();
        for claimable in &request.types {
            let mut limit = self.room;
            if let Some(max) = claimable.concurrency {
                let running = self.rows.running(claimable.type_id)?;
                limit = limit.min(max.saturating_sub(running) as usize);
            }
            // A few more than there is room for: those that must not be claimed now, and one to know whether there are more.
            rows.clear();
            self.rows.due(
                claimable.type_id,
                self.now,
                limit + 1 + request.exclude.len(),
                &mut rows,
            )?;
            rows.retain(|row| !request.exclude.contains(&row.id));
            if rows.len() > limit {
                self.claims.more = true;
                rows.truncate(limit);
            }
            due.extend(rows.iter().map(|row| (*row, claimable)));
        }
        if request.types.len() > 1 {
            due.sort_by_key(|(row, _)| (std::cmp::Reverse(row.priority), row.run_at, row.id));
        }
        let mut bytes = 0;
        for (row, claimable) in due {
            if self.room == 0 || bytes > request.bytes_max {
                self.claims.more = true;
                break;
            }
            bytes += self.claim_one(&row, claimable)?;
        }
        if !self.claims.more {
            for claimable in &request.types {
                let next = self.rows.next_due(claimable.type_id, self.now)?;
                self.claims.next_due = [self.claims.next_due, next].into_iter().flatten().min();
            }
        }
        Ok(())
    }

    /// Claims a due job, and answers how many bytes of input that loaded.
    fn claim_one(&mut self, row: &JobRow, claimable: &Claimable) -> Result<usize> {
        let mut before = *row;
        let plan = match &claimable.plan {
            Some((plan_id, plan)) => {
                if before.plan_id != *plan_id {
                    before = self.replan(&before, plan)?;
                }
                plan.clone()
            }
            None if before.plan_id == 0 => {
                let input = self.rows.details(&before)?.input;
                let bytes = input.len();
                self.claims
                    .unplanned
                    .push((before.id, claimable.job_type.clone(), input));
                return Ok(bytes);
            }
            None => self.rows.plan(before.plan_id)?,
        };
        if before.phase_index >= before.phase_count {
            // Only a new plan can leave a job without a phase to run. Its last phase runs again.
            before = self.forget_results(&before, before.phase_count.saturating_sub(1))?;
        }
        let Ok(transition) = transition::decide(&before, &Input::Claim, self.now) else {
            return Ok(0);
        };
        let mut extra = Extra::default();
        if let Some(cause) = transition.cause {
            let message = "the deadline passed before the job was over".to_owned();
            let phase = plan
                .get(before.phase_index as usize)
                .map(|phase| phase.name.clone());
            let error = fault_row(
                &Fault {
                    cause,
                    message,
                    backtrace: None,
                },
                phase,
                before.attempt,
                self.now,
            );
            extra.data = failed_data(&transition, Some(&error));
            extra.error = Some(error);
        }
        let Some(after) = self.write(&before, &transition, extra)? else {
            return Ok(0);
        };
        if after.status != JobStatus::Running {
            self.claims.ended.push((after.id, after.status));
            return Ok(0);
        }
        let details = self.rows.details(&after)?;
        let bytes = details.input.len();
        self.claims.claimed.push(Claimed {
            row: after,
            job_type: claimable.job_type.clone(),
            plan,
            details,
        });
        self.room -= 1;
        Ok(bytes)
    }

    /// Gives a pending job the phases of `plan`. Results are kept for the longest beginning of the new plan whose every phase,
    /// by name and version, has one; that phase and all after it run again.
    fn replan(&mut self, before: &JobRow, plan: &Plan) -> Result<JobRow> {
        let plan_id = self.rows.plan_id(plan)?;
        let mut kept = Vec::new();
        if before.plan_id != 0 && before.phase_index > 0 {
            let old = self.rows.plan(before.plan_id)?;
            let results = self.rows.results(before.id)?;
            for phase in plan.iter() {
                let found = results
                    .iter()
                    .find(|(index, _)| old.get(*index as usize) == Some(phase));
                match found {
                    Some((_, done)) => kept.push(done.clone()),
                    None => break,
                }
            }
            self.rows.clear_results(before.id, 0)?;
            for (index, done) in (0..).zip(&kept) {
                self.rows.put_result(before.id, index, done)?;
            }
        }
        let after = JobRow {
            plan_id,
            phase_count: u32::try_from(plan.len()).expect("a plan has 256 phases at most"),
            phase_index: u32::try_from(kept.len()).expect("no more than phases"),
            phase_attempt: 0,
            ..*before
        };
        self.writes += 1;
        self.rows.update_job(before, &after)?;
        Ok(after)
    }

    fn forget_results(&mut self, before: &JobRow, from_index: u32) -> Result<JobRow> {
        let after = JobRow {
            phase_index: from_index,
            phase_attempt: 0,
            ..*before
        };
        self.writes += 1;
        self.rows.clear_results(before.id, from_index)?;
        self.rows.update_job(before, &after)?;
        Ok(after)
    }

    // ---- after a crash ----

    fn recover(&mut self, recover: &Recover) -> Result<Done> {
        let (mut interrupted, mut failed) = (0, 0);
        for id in self.rows.ids(JobStatus::Running, None, usize::MAX)? {
            let before = self.load(id)?;
            let inside = recover.inside.iter().find(|(job, epoch, phase_index, _)| {
                (*job, *epoch, *phase_index) == (id, before.epoch, before.phase_index)
            });
            let entered = recover.all_entered || inside.is_some();
            let since = inside.map(|(.., since)| *since).or(before.phase_started_at);
            let max_crashes = self.max_crashes_of(&before, recover)?;
            let input = Input::Interrupted {
                epoch: before.epoch,
                reason: recover.reason,
                entered,
                max_crashes,
            };
            let Ok(transition) = transition::decide(&before, &input, self.now) else {
                continue;
            };
            let phase = self.phase_name(&before)?;
            let charged = transition.after.crash_count > before.crash_count;
            let error = entered
                .then(|| interrupted_row(recover.reason, phase.clone(), &before, since, self.now));
            let mut data =
                interrupted_data(recover.reason, entered, charged, since.filter(|_| entered));
            if transition.cause.is_some() {
                failed += 1;
                let message = format!(
                    "the process died inside this job {} times",
                    transition.after.crash_count
                );
                let fault = Fault {
                    cause: ErrorCause::CrashLimit,
                    message,
                    backtrace: None,
                };
                let limit = fault_row(&fault, phase, before.attempt, self.now);
                data = Some(
                    json!({"reason": recover.reason, "entered": entered, "charged": charged, "since": since,
                        "kind": limit.cause, "message": limit.message})
                    .to_string(),
                );
                self.rows.add_error(id, &limit)?;
            } else {
                interrupted += 1;
            }
            self.write(
                &before,
                &transition,
                Extra {
                    data,
                    error,
                    ..Extra::default()
                },
            )?;
        }
        Ok(Done::Recovered {
            interrupted,
            failed,
        })
    }

    fn max_crashes_of(&mut self, row: &JobRow, recover: &Recover) -> Result<u32> {
        for (name, max) in &recover.max_crashes {
            if self.rows.job_type(name)?.id == row.type_id {
                return Ok(*max);
            }
        }
        Ok(recover.max_crashes_default)
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
        let data = Some(json!({"deletedJobId": id, "reason": "retention"}).to_string());
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

    fn written(&mut self) {
        self.writes += 1;
    }
}

/// Whether a unique key still stands for its job.
pub(crate) fn holds(rows: &mut dyn Rows, holder: &Holder, now: Timestamp) -> Result<bool> {
    if holder.hold == 2 {
        return Ok(holder.expires > now);
    }
    let status = rows.job(holder.job_id)?.map(|row| row.status);
    Ok(match status {
        None => false,
        Some(status) if holder.hold == 0 => status == JobStatus::Pending,
        Some(status) => !status.is_terminal(),
    })
}

fn fault_row(fault: &Fault, phase: Option<Arc<str>>, attempt: u32, at: Timestamp) -> ErrorRow {
    let Fault {
        cause,
        message,
        backtrace,
    } = fault;
    ErrorRow {
        phase,
        attempt,
        at,
        since: None,
        cause: *cause,
        message: message.clone(),
        backtrace: backtrace.clone(),
    }
}

fn interrupted_row(
    reason: InterruptionReason,
    phase: Option<Arc<str>>,
    before: &JobRow,
    since: Option<Timestamp>,
    at: Timestamp,
) -> ErrorRow {
    let message = reason.as_str().to_owned();
    let cause = ErrorCause::Interrupted;
    ErrorRow {
        phase,
        attempt: before.attempt,
        at,
        since,
        cause,
        message,
        backtrace: None,
    }
}

fn created_data(priority: i32, run_at: Timestamp, now: Timestamp) -> Option<String> {
    match (priority, run_at > now) {
        (0, false) => None,
        (priority, false) => Some(json!({"priority": priority}).to_string()),
        (priority, true) => Some(json!({"priority": priority, "run_at": run_at}).to_string()),
    }
}

fn failed_data(transition: &Transition, error: Option<&ErrorRow>) -> Option<String> {
    let (kind, message) = error.map_or((ErrorCause::Error, ""), |error| {
        (error.cause, error.message.as_str())
    });
    let data = match transition.change {
        Change::FailedAndRetrying => {
            json!({"kind": kind, "message": message, "reason": "failed", "run_at": transition.after.run_at})
        }
        _ => json!({"kind": kind, "message": message}),
    };
    Some(data.to_string())
}

fn interrupted_data(
    reason: InterruptionReason,
    entered: bool,
    charged: bool,
    since: Option<Timestamp>,
) -> Option<String> {
    let mut data = json!({"reason": reason, "entered": entered, "charged": charged});
    if let Some(since) = since {
        data["since"] = json!(since);
    }
    Some(data.to_string())
}

fn requested_data(id: JobId, input: &Input) -> Option<String> {
    match input {
        Input::Retry(crate::job::RetryFrom::Failed) => {
            Some(json!({"reason": "requested", "from": "failed"}).to_string())
        }
        Input::Retry(crate::job::RetryFrom::Start) => {
            Some(json!({"reason": "requested", "from": "start"}).to_string())
        }
        Input::Delete => Some(json!({"deletedJobId": id, "reason": "requested"}).to_string()),
        Input::Claim
        | Input::PhaseCompleted { .. }
        | Input::PhaseFailed { .. }
        | Input::Snooze { .. }
        | Input::HandlerCancelled { .. }
        | Input::Interrupted { .. }
        | Input::Cancel => None,
    }
}

//! The committer's side of the engine: what a commit is to do, and what follows from it. L3.
//!
//! Every function here is called by whoever leads, one commit at a time; so what is published is published in the order of
//! commits.

use std::time::Duration;

use crate::committer::{Deadline, Host};
use crate::engine::health::News;
use crate::engine::{Engine, State};
use crate::error::Error;
use crate::job::{CancelOutcome, ErrorCause, InterruptionReason, JobId, JobStatus};
use crate::live::{Alarm, Due, Left, Offer, Returned, Run};
use crate::phase::stop::StopReason;
use crate::store::Done;
use crate::store::ops::{ClaimRequest, Claimed, Fault, Op, Release, Settle, Source};
use crate::store::seam::Committed;
use crate::sync::Ordering;
use crate::time::{Timestamp, monotonic};
use crate::transition::{Input, JobRow, Verdict};

/// Inputs that are loaded in one commit: they stay in memory while their jobs are under way.
const CLAIM_BYTES_MAX: usize = 4 << 20;

impl Host for Engine {
    fn request(&self, ops: &[Op], now: Timestamp) -> ClaimRequest {
        // First: a zombie that leaves after it was looked at must not be overlooked.
        self.state.lock().backlog.look();
        let (under_way, zombies) = (self.live.len(), self.live.zombies());
        let window = self.window.size();
        let state = self.state.lock();
        let release = state.release();
        if state.rests() {
            return ClaimRequest {
                release,
                ..ClaimRequest::default()
            };
        }
        // Most outcomes end a claim. The next one rides in the same commit: it need not wait for another.
        let (outcomes, cut_off) = outcomes(ops);
        let left = under_way.saturating_sub(outcomes);
        let is_due = state.backlog.is_due(now);
        let mut exclude = zombies;
        exclude.extend(state.planning.iter().copied());
        exclude.extend(cut_off);
        ClaimRequest {
            room: window.saturating_sub(under_way),
            excess: under_way.saturating_sub(window),
            bytes_max: CLAIM_BYTES_MAX,
            types: state.claimable.clone(),
            exclude,
            direct: !is_due && under_way < self.config.workers,
            from_backlog: is_due && self.is_worth_a_claim(left, window),
            release,
        }
    }

    fn due(&self, now: Timestamp, is_idle: bool, ops: &mut Vec<Op>) {
        let (due, overstayed) = self.live.due(now);
        for due in due {
            ops.push(Op::Settle(self.timed_out(&due)));
        }
        for (id, epoch) in overstayed {
            self.replace_worker(id, epoch);
        }
        let is_idle = is_idle && ops.is_empty() && !self.wants_claims(now);
        let mut state = self.state.lock();
        let State {
            pruner,
            head_seq,
            counts,
            is_stopping,
            store_health,
            ..
        } = &mut *state;
        if !*is_stopping && store_health.failure().is_none() {
            ops.extend(
                pruner
                    .step((*head_seq, counts), is_idle, now, monotonic())
                    .map(Op::Prune),
            );
        }
    }

    fn wants_claims(&self, now: Timestamp) -> bool {
        let (under_way, window) = (self.live.len(), self.window.size());
        let state = self.state.lock();
        !state.rests()
            && !state.claimable.is_empty()
            && state.backlog.is_due(now)
            && self.is_worth_a_claim(under_way, window)
    }

    fn committed(&self, ops: Vec<Op>, committed: &mut Committed, took: Duration, now: Timestamp) {
        self.window.commit_took(took);
        let (_, cut_off) = outcomes(&ops);
        let claims = std::mem::take(&mut committed.claims);
        let (mut offers, mut recorded) = (Vec::new(), Vec::new());
        // In the order of their ids, when nothing else was claimed.
        let direct = &claims.claimed[..if claims.looked {
            0
        } else {
            claims.claimed.len()
        }];
        for (op, answer) in ops.into_iter().zip(&committed.answers) {
            if let Op::Attempted(attempted) = op {
                if let Err(error) = answer {
                    self.with_outlet(|outlet| outlet.not_recorded(&attempted));
                    self.refused(&Op::Attempted(attempted), error);
                } else {
                    recorded.push(attempted);
                }
                continue;
            }
            self.follow_up(op, answer, (took, now), direct, &mut offers);
        }
        // Only now: a later operation may have cancelled the job.
        offers.into_iter().for_each(|offer| self.offer(offer));
        let looked = claims.looked;
        let unplanned = claims.unplanned;
        for claimed in claims.claimed {
            self.begin(claimed);
        }
        for (id, _) in claims.ended {
            self.is_over(id, now);
        }
        {
            let mut state = self.state.lock();
            if committed.head.seq > state.head_seq {
                state.pruner.logged(now);
            }
            state.head_seq = committed.head.seq;
            state.counts = committed.head.counts;
            if looked {
                let is_limited = claims.more && !claims.is_full;
                state
                    .backlog
                    .looked(claims.is_full, is_limited, claims.next_due);
                if !cut_off.is_empty() {
                    // They were left out, and may have no zombie after all whose leaving would have us look again.
                    state.backlog.unknown();
                }
            }
            state.planning.extend(unplanned.iter().map(|(id, ..)| *id));
        }
        self.bus.ring(committed.head.seq);
        if !committed.mail.is_empty() {
            self.with_outlet(|outlet| outlet.arrived(&committed.mail));
        }
        // Only now, so that nobody finds nothing to be done between the end of one and the beginning of the next.
        for attempted in &recorded {
            self.with_outlet(|outlet| outlet.recorded(attempted));
        }
        for (id, job_type, input) in unplanned {
            // The user's code, with no lock held.
            let plan = match self.registry.get(&job_type).map(|def| def.resolve(&input)) {
                Some(Ok(resolved)) => Ok(resolved.plan),
                Some(Err(error)) => Err(error.to_string()),
                None => Err(format!("job type {job_type:?} is not registered")),
            };
            self.committer.post(Op::SetPlan { id, plan });
        }
    }

    fn deadline(&self) -> Deadline {
        let (now, alarm) = (self.clock.now(), self.live.next_alarm());
        let mut state = self.state.lock();
        if state.is_stopping {
            return Deadline {
                exact: alarm,
                lazy: None,
            };
        }
        // Told once, then it waits for room like everything that is due, and not for time.
        let next_due = state.backlog.next_due.filter(|_| !state.is_paused);
        state.backlog.pass(now);
        let exact = [alarm, next_due].into_iter().flatten().min();
        Deadline {
            exact,
            lazy: state.pruner.deadline(),
        }
    }

    fn refused(&self, op: &Op, error: &Error) {
        let mut let_go = None;
        let problem = match op {
            Op::Settle(settle) => {
                // Let it go, or it would be under way for ever.
                let_go = settle.input.epoch().map(|epoch| (settle.id, epoch));
                format!("job {}: its outcome cannot be recorded: {error}", settle.id)
            }
            Op::SetPlan { id, .. } => {
                self.state.lock().planning.remove(id);
                format!("job {id}: its plan cannot be recorded: {error}")
            }
            Op::Prune(_) => {
                log::error!("what is over cannot be deleted, this is tried again later: {error}");
                self.state.lock().pruner.failed(self.clock.now());
                return;
            }
            // Callers wait for all the others, and are told.
            Op::Enqueue(_)
            | Op::Cancel(_)
            | Op::Retry(..)
            | Op::Delete(_)
            | Op::Bulk(_)
            | Op::Save { .. }
            | Op::SetPaused { .. }
            | Op::Register(_)
            | Op::Recover(_)
            | Op::Mail(_)
            | Op::Probe => return,
            // It is sent again after the next start, under the same id.
            Op::Attempted(attempted) => {
                log::error!(
                    "delivery {}: what came of it cannot be recorded: {error}",
                    attempted.id
                );
                return;
            }
        };
        // A handler whose result is lost runs again: none is to run until somebody has looked at the file.
        log::error!("{problem}; nothing is claimed until the queue is resumed or opened again");
        self.state.lock().claim_failure = Some(problem);
        if let Some((id, epoch)) = let_go {
            self.claim_left(id, epoch);
        }
    }

    fn claims_failed(&self, error: &Error) {
        log::error!(
            "a due job cannot be read, nothing is claimed until the queue is resumed or opened again: {error}"
        );
        self.state.lock().claim_failure = Some(error.to_string());
    }

    fn died(&self) {
        self.poison("that commits", "see its panic message");
    }

    fn store_health(&self, failure: Option<&Error>) {
        let mut state = self.state.lock();
        let news = state.store_health.set(failure, monotonic());
        if matches!(news, News::WorksAgain | News::Quietly) {
            state.backlog.unknown();
        }
        match (news, failure) {
            (News::Failed, Some(error)) => {
                log::error!("the store failed, nothing is claimed until it works again: {error}");
            }
            (News::WorksAgain, _) => log::info!("the store works again"),
            (_, Some(error)) => log::debug!("the store failed again: {error}"),
            (_, None) => {}
        }
    }
}

/// How many handlers have returned, and the jobs whose handlers have not: they are zombies once this is committed, and their
/// jobs must not be claimed before they have left.
fn outcomes(ops: &[Op]) -> (usize, Vec<JobId>) {
    let (mut returned, mut cut_off) = (0, Vec::new());
    for op in ops {
        match op {
            Op::Settle(settle) => match settle.is_from {
                Source::Handler => returned += 1,
                Source::Supervisor(_) => cut_off.push(settle.id),
                Source::Nobody => {}
            },
            Op::Cancel(id) => cut_off.push(*id),
            Op::Enqueue(_)
            | Op::Retry(..)
            | Op::Delete(_)
            | Op::Bulk(_)
            | Op::Save { .. }
            | Op::SetPaused { .. }
            | Op::Register(_)
            | Op::SetPlan { .. }
            | Op::Recover(_)
            | Op::Prune(_)
            | Op::Attempted(_)
            | Op::Mail(_)
            | Op::Probe => {}
        }
    }
    (returned, cut_off)
}

impl State {
    /// Nothing is claimed.
    fn rests(&self) -> bool {
        self.is_stopping || self.is_paused || self.failure().is_some() || self.poison.is_some()
    }

    /// Why nothing is claimed, if it is because of the store.
    pub(super) fn failure(&self) -> Option<&String> {
        let failure = self.store_health.failure();
        failure.or(self.claim_failure.as_ref())
    }

    fn release(&self) -> Release {
        if self.is_stopping {
            Release::Everybody(InterruptionReason::Shutdown)
        } else if self.is_paused {
            Release::Everybody(InterruptionReason::Paused)
        } else if self.paused_types.is_empty() {
            Release::Nobody
        } else {
            let paused = self
                .types
                .iter()
                .filter(|claimable| self.paused_types.contains(&claimable.job_type));
            Release::Types(paused.map(|claimable| claimable.type_id).collect())
        }
    }
}

impl Engine {
    /// Claiming in quarters of the window keeps the cost of a claim off most commits.
    fn is_worth_a_claim(&self, under_way: usize, window: usize) -> bool {
        let room = window.saturating_sub(under_way);
        room > 0 && (room * 4 >= window || under_way < self.config.workers)
    }

    /// What follows from one operation that is on disk. `direct`: new jobs that were claimed with it.
    fn follow_up(
        &self,
        op: Op,
        answer: &crate::error::Result<Done>,
        (took, now): (Duration, Timestamp),
        direct: &[Claimed],
        offers: &mut Vec<Offer>,
    ) {
        match (op, answer) {
            (Op::Settle(settle), Ok(Done::Settled(row))) => {
                offers.extend(self.settled(settle, row.as_ref(), now));
            }
            (Op::Enqueue(jobs), Ok(Done::Enqueued(enqueued))) => {
                let mut state = self.state.lock();
                state.enqueued(&jobs, enqueued, direct, now);
            }
            (Op::Cancel(id), Ok(Done::Cancelled(CancelOutcome::Cancelled))) => {
                self.end_claim(id, StopReason::Cancelled);
                self.is_over(id, now);
            }
            (op, Ok(Done::Changed(rows))) => {
                for row in rows {
                    self.changed(row, now);
                }
                if let Op::SetPlan { id, .. } = op {
                    self.state.lock().planning.remove(&id);
                }
            }
            (op @ (Op::Settle(_) | Op::SetPlan { .. } | Op::Prune(_)), Err(error)) => {
                self.refused(&op, error);
            }
            (Op::SetPlan { id, .. }, Ok(_)) => {
                let mut state = self.state.lock();
                state.planning.remove(&id);
                state.backlog.unknown();
            }
            (Op::Prune(_), Ok(Done::Pruned(pruned))) => {
                self.state
                    .lock()
                    .pruner
                    .done(pruned, took, now, monotonic());
            }
            (Op::SetPaused { job_type, paused }, Ok(_)) => {
                if let Err(error) = self.load_pauses() {
                    log::warn!(
                        "what is paused cannot be read, what was asked for is done: {error}"
                    );
                    self.state.lock().set_paused(job_type, paused);
                }
                self.give_back_paused();
            }
            (_, Ok(_) | Err(_)) => {}
        }
    }

    /// The outcome of a phase is on disk; without a row it was stale. Answers the next phase, if there is one to offer.
    fn settled(&self, settle: Settle, row: Option<&JobRow>, now: Timestamp) -> Option<Offer> {
        let epoch = settle.input.epoch()?;
        let Some(row) = row else {
            log::debug!(
                "job {}: an outcome of claim {epoch} came too late and was dropped",
                settle.id
            );
            // The claim ended before this commit, and we may not have been told yet; the handler has returned.
            if settle.is_from == Source::Handler {
                self.claim_left(settle.id, epoch);
            }
            return None;
        };
        if row.status == JobStatus::Running {
            if let (Some(result), Some(run)) = (&settle.result, self.live.get(row.id, epoch)) {
                run.remember(settle.phase_index as usize, result);
            }
            return self.live.advance(row).then(|| Offer::of(row));
        }
        match settle.is_from {
            Source::Handler | Source::Nobody => self.claim_left(row.id, epoch),
            Source::Supervisor(reason) => self.end_claim(row.id, reason),
        }
        self.bus.forget(row.id);
        self.changed(row, now);
        None
    }

    /// A job is pending or over now.
    fn changed(&self, row: &JobRow, now: Timestamp) {
        match row.status {
            JobStatus::Pending => self.state.lock().backlog.added(row.run_at, now),
            JobStatus::Running => {}
            JobStatus::Cancelled => {
                self.end_claim(row.id, StopReason::Cancelled);
                self.is_over(row.id, now);
            }
            JobStatus::Completed | JobStatus::Failed => self.is_over(row.id, now),
        }
    }

    fn is_over(&self, id: JobId, now: Timestamp) {
        self.bus.is_over(id);
        self.state.lock().pruner.job_ended(now);
    }

    /// A job was claimed: offer its first phase.
    fn begin(&self, claimed: Claimed) {
        let Some(def) = self.registry.get(&claimed.job_type).cloned() else {
            return;
        };
        let (row, run) = Run::new(claimed, def);
        let now = self.clock.now();
        if self.live.insert(row, run, now) == Left::Zombie {
            self.committer.ring_before(now.after(crate::live::GRACE));
        }
        if self.is_stopping() {
            // Who ends the queue may have looked already, and not wait any more.
            self.give_back_paused();
        } else {
            self.offer(Offer::of(&row));
        }
    }

    /// Gives back what was offered of paused types, and of everything while the queue rests.
    pub(crate) fn give_back_paused(&self) {
        let (all, types) = {
            let state = self.state.lock();
            (
                state.is_stopping || state.is_paused,
                state.paused_types.clone(),
            )
        };
        if !all && types.is_empty() {
            return;
        }
        let reason = if self.is_stopping() {
            InterruptionReason::Shutdown
        } else {
            InterruptionReason::Paused
        };
        for row in self
            .live
            .take_back(|run| all || types.contains(&run.def.name))
        {
            let input = Input::Interrupted {
                epoch: row.epoch,
                reason,
                entered: false,
                max_crashes: u32::MAX,
            };
            self.committer.post(Op::Settle(Settle {
                is_from: Source::Nobody,
                ..Settle::void(&row, input)
            }));
        }
    }

    /// A phase's time is over, its handler knows: its outcome is recorded at once.
    fn timed_out(&self, due: &Due) -> Settle {
        let (cause, message) = match due.alarm {
            Alarm::Deadline => (
                ErrorCause::Deadline,
                "the deadline passed before the job was over".to_owned(),
            ),
            Alarm::PhaseTimeout | Alarm::Overstayed => {
                let took = self.clock.now().since(due.entered_at);
                (
                    ErrorCause::Timeout,
                    format!(
                        "the phase took longer than its timeout ({} ms)",
                        took.as_millis()
                    ),
                )
            }
        };
        let verdict = match due.alarm {
            Alarm::Deadline => Verdict::Fail,
            Alarm::PhaseTimeout | Alarm::Overstayed => self.verdict(&due.run, &due.row, None),
        };
        let input = Input::PhaseFailed {
            epoch: due.row.epoch,
            verdict,
        };
        Settle {
            started_at: due.entered_at,
            error: Some(Fault {
                cause,
                message,
                backtrace: None,
            }),
            is_from: Source::Supervisor(StopReason::Timeout),
            ..Settle::void(&due.row, input)
        }
    }

    /// A handler goes on although it was told to stop: another worker takes its place.
    fn replace_worker(&self, id: JobId, epoch: i64) {
        let abandoned = self.abandoned_count.load(Ordering::Relaxed);
        if abandoned >= self.config.abandoned_max() {
            log::error!(
                "job {id}: its handler does not stop, and its worker is not replaced: {abandoned} are already"
            );
            return;
        }
        if !self.live.abandon(id, epoch) {
            return;
        }
        self.abandoned_count.fetch_add(1, Ordering::Relaxed);
        log::warn!("job {id}: its handler does not stop, its worker is replaced");
        if let Err(error) = self.start_worker() {
            log::error!("a worker cannot be replaced: {error}");
            if self.live.keep(id, epoch) {
                self.abandoned_count.fetch_sub(1, Ordering::Relaxed);
            }
        }
    }

    /// The handler of a claim has returned, and nothing of the claim is left.
    fn claim_left(&self, id: JobId, epoch: i64) {
        match self.live.finish(id, epoch) {
            Some(returned) => self.zombie_left(returned),
            None => self.state.lock().backlog.left(),
        }
    }

    /// A handler has returned whose claim was over: the job may have waited for that.
    pub(crate) fn zombie_left(&self, returned: Returned) {
        if returned.is_abandoned {
            self.abandoned_count.fetch_sub(1, Ordering::Relaxed);
        }
        self.state.lock().backlog.unknown();
        if let Some(offer) = returned.awaited_by {
            self.offer(offer);
        }
    }

    pub(crate) fn poison(&self, thread: &str, message: &str) {
        let poison = format!(
            "thread {thread} died by a bug of stepwell ({message}): close the queue and open it again"
        );
        log::error!("{poison}");
        self.state.lock().poison.get_or_insert(poison);
    }

    /// Records what the shutdown cuts off: handlers that did not stop in time.
    pub(crate) fn fence(&self) -> Vec<JobId> {
        // First, or a worker might enter what was offered between our looks.
        self.live.close();
        self.give_back_paused();
        let mut cut = Vec::new();
        for (row, entered_at) in self.live.inside() {
            let reason = InterruptionReason::Shutdown;
            let input = Input::Interrupted {
                epoch: row.epoch,
                reason,
                entered: true,
                max_crashes: u32::MAX,
            };
            self.committer.post(Op::Settle(Settle {
                started_at: entered_at,
                is_from: Source::Supervisor(StopReason::Shutdown),
                ..Settle::void(&row, input)
            }));
            cut.push(row.id);
        }
        cut
    }

    /// Sets the flag of every handler that is inside, and answers the jobs that this cuts short.
    pub(crate) fn tell_to_stop(&self) -> Vec<JobId> {
        let (flags, ids) = self.live.flags();
        for flag in flags {
            flag.set(StopReason::Shutdown);
        }
        ids
    }
}

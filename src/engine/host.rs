//! The committer's side of the engine: what a commit is to do, and what follows from it. L3.
//!
//! Every function here is called by whoever leads, one commit at a time; so what is published is published in the order of
//! commits.

use std::time::Duration;

use crate::committer::{Deadline, Host};
use crate::engine::health::News;
use crate::engine::{Engine, State};
use crate::error::Error;
use crate::job::{CancelOutcome, InterruptionReason, JobId};
use crate::live::Offer;
use crate::phase::stop::StopReason;
use crate::store::ops::{ClaimRequest, Claimed, Op, Release, Source};
use crate::store::seam::Committed;
use crate::store::{Done, Head};
use crate::time::{Timestamp, monotonic};

/// Inputs that are loaded in one commit: they stay in memory while their jobs are under way.
const CLAIM_BYTES_MAX: usize = 4 << 20;
/// Jobs whose plans are being made: their inputs are in memory too.
const PLANS_MAX: usize = 32;

impl Host for Engine {
    fn request(&self, ops: &[Op], now: Timestamp) -> ClaimRequest {
        // First: a zombie that leaves after it was looked at must not be overlooked.
        self.state.lock().backlog.look();
        let (under_way, zombies) = (self.live.len(), self.live.zombies());
        let window = self.window.size();
        let mut state = self.state.lock();
        state.looks_before = state.looks;
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
            plans_max: PLANS_MAX.saturating_sub(state.planning.len()),
            types: state.claimable.clone(),
            exclude,
            direct: !is_due && under_way < self.config.workers,
            from_backlog: is_due && self.is_worth_a_claim(left, window),
            release,
        }
    }

    fn due(&self, now: Timestamp, is_idle: bool, ops: &mut Vec<Op>) {
        let moment = self.clock.moment();
        let again = self.with_outlet(|outlet| outlet.again()).flatten();
        if again.is_some_and(|again| again.passed <= moment.passed) {
            self.tell_outlet(|outlet| outlet.look());
        }
        let (due, overstayed) = self.live.due(moment);
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
        if committed.has_news {
            // Its bell may not have been heard: the process may have died before it rang.
            self.ring_own_bell();
        }
        if !committed.mail.is_empty() {
            // First: who ends the queue must not find its jobs over, and the deliveries of their end untold.
            self.tell_outlet(|outlet| outlet.arrived(&committed.mail));
        }
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
                    self.refused(&Op::Attempted(attempted), error);
                } else {
                    recorded.push(attempted);
                }
                continue;
            }
            self.follow_up(op, answer, (took, now), direct, &mut offers);
        }
        // Only now: a later operation may have cancelled the job.
        // A pause, or the end of the queue, may have come since this commit was asked for: what goes on rests instead.
        self.give_back_paused();
        offers.into_iter().for_each(|offer| self.offer(offer));
        let looked = claims.looked;
        let unplanned = claims.unplanned;
        let begun: Vec<_> = claims.claimed.iter().map(|claimed| claimed.row).collect();
        for claimed in claims.claimed {
            self.begin(claimed);
        }
        self.look_again(&begun);
        for (id, _) in claims.ended {
            self.is_over(id, now);
        }
        {
            let mut state = self.state.lock();
            if committed.head.seq > state.head_seq {
                state.pruner.logged(now);
            }
            // Another process may have committed since, and somebody have looked.
            if committed.head.seq >= state.head_seq {
                state.head_seq = committed.head.seq;
                state.counts = committed.head.counts;
            }
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
        // Only now, so that nobody finds nothing to be done between the end of one and the beginning of the next.
        if !recorded.is_empty() {
            self.state.lock().pruner.delivery_ended(now);
        }
        for attempted in &recorded {
            self.with_outlet(|outlet| outlet.recorded(attempted));
        }
        if !unplanned.is_empty() {
            self.plan(unplanned);
        }
    }

    fn deadline(&self) -> Deadline {
        let moment = self.clock.moment();
        let again = self.with_outlet(|outlet| outlet.again()).flatten();
        let again = again.map(|again| moment.at_passed(again.passed));
        let now = moment.now;
        let alarm = [self.live.next_alarm(moment), again]
            .into_iter()
            .flatten()
            .min();
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
            lazy: state.pruner.deadline((state.head_seq, &state.counts)),
        }
    }

    fn refused(&self, op: &Op, error: &Error) {
        let mut let_go = None;
        let problem = match op {
            Op::Settle(settle) => {
                // Let it go, or it would be under way for ever.
                let_go = settle
                    .input
                    .epoch()
                    .map(|epoch| (settle.id, epoch, settle.is_from));
                format!("job {}: its outcome cannot be recorded: {error}", settle.id)
            }
            Op::SetPlan { id, .. } => {
                let mut state = self.state.lock();
                state.planning.remove(id);
                state.backlog.unknown();
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
                self.with_outlet(|outlet| outlet.not_recorded(attempted));
                return;
            }
        };
        // A handler whose result is lost runs again: none is to run until somebody has looked at the file.
        log::error!("{problem}; nothing is claimed until the queue is resumed or opened again");
        self.state.lock().claim_failure = Some(problem);
        match let_go {
            // Its handler is inside still, and nobody else may enter the job before it has left.
            Some((id, epoch, Source::Supervisor(reason))) => self.end_one(id, epoch, reason),
            Some((id, epoch, Source::Handler | Source::Nobody)) => self.claim_left(id, epoch),
            None => {}
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
        drop(state);
        if matches!(news, News::WorksAgain | News::Quietly) {
            // Of a commit that could not be recognised nobody knows whether it paused something.
            match self.load_pauses() {
                Ok(()) => self.give_back_paused(),
                Err(error) => log::warn!("what is paused cannot be read: {error}"),
            }
            self.tell_outlet(|outlet| outlet.look());
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

    /// Another process has written: what it ended grows old and is counted like what we end.
    pub(super) fn saw(&mut self, head: &Head, now: Timestamp) {
        if head.seq > self.head_seq {
            (self.head_seq, self.counts) = (head.seq, head.counts);
            self.pruner.job_ended(now);
            self.pruner.logged(now);
        }
    }

    /// No phase of this type is entered.
    pub(super) fn rests_for(&self, job_type: &str) -> bool {
        self.is_stopping || self.is_paused || self.paused_types.contains(job_type)
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
                    let mut state = self.state.lock();
                    state.planning.remove(&id);
                    state.backlog.unknown();
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
                if !paused {
                    // Also when nothing was paused: somebody has looked.
                    self.state.lock().claim_failure = None;
                }
                self.give_back_paused();
            }
            (_, Ok(_) | Err(_)) => {}
        }
    }
}

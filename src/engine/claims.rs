//! What becomes of claims: begun, gone on with, ended, given back. L3.

use crate::engine::Engine;
use crate::job::{ErrorCause, InterruptionReason, JobId, JobStatus};
use crate::live::{Alarm, Due, Left, Offer, Replace, Returned, Run};
use crate::outlet::START_AGAIN;
use crate::phase::stop::StopReason;
use crate::store::ops::{Claimed, Fault, Op, Settle, Source};
use crate::time::Timestamp;
use crate::transition::{Entered, Input, JobRow, Verdict};

impl Engine {
    /// The outcome of a phase is on disk; without a row it was stale. Answers the next phase, if there is one to offer.
    pub(super) fn settled(
        &self,
        settle: Settle,
        row: Option<&JobRow>,
        now: Timestamp,
    ) -> Option<Offer> {
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
            if !self.live.is_under_way(settle.id) {
                self.bus.forget(settle.id);
            }
            return None;
        };
        if settle.plan.is_some() {
            self.state.lock().replanned.note(row.id);
        }
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
    pub(super) fn changed(&self, row: &JobRow, now: Timestamp) {
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

    pub(super) fn is_over(&self, id: JobId, now: Timestamp) {
        self.bus.is_over(id);
        self.state.lock().pruner.job_ended(now);
    }

    /// A job was claimed: offer its first phase.
    pub(super) fn begin(&self, claimed: Claimed) {
        let Some(def) = self.registry.get(&claimed.job_type).cloned() else {
            return;
        };
        let (row, run) = Run::new(claimed, def);
        let job_type = run.def.name.clone();
        let now = self.clock.moment();
        if self.live.insert(row, run, now) == Left::Zombie {
            self.committer
                .ring_before(now.after(crate::live::GRACE).now);
        }
        // Only now: who ends the queue or pauses it may have looked before this claim was there, and does not look again.
        let rests = self.state.lock().rests_for(&job_type);
        if rests {
            self.give_back_paused();
        }
        // Also then: another process may have lifted its pause between those two looks, and what was given back is not there to be taken.
        self.offer(Offer::of(&row));
    }

    /// Another process may have cancelled what was just claimed, after the commit and before we knew of the claim: who answered its bell
    /// saw nothing to be told.
    pub(super) fn look_again(&self, begun: &[JobRow]) {
        let has_looked = {
            let state = self.state.lock();
            state.looks != state.looks_before
        };
        for row in begun.iter().filter(|_| has_looked) {
            if let Err(error) = self.stop_if_over(row.id, row.epoch) {
                log::warn!(
                    "job {}: whether it is cancelled cannot be read: {error}",
                    row.id
                );
            }
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
                entered: Entered::No,
                max_crashes: u32::MAX,
            };
            self.committer.post(Op::Settle(Settle {
                is_from: Source::Nobody,
                ..Settle::void(&row, input)
            }));
        }
    }

    /// A phase's time is over, its handler knows: its outcome is recorded at once.
    pub(super) fn timed_out(&self, due: &Due) -> Settle {
        let (cause, message) = match due.alarm {
            Alarm::Deadline => (
                ErrorCause::Deadline,
                "the deadline passed before the job was over".to_owned(),
            ),
            Alarm::PhaseTimeout | Alarm::Overstayed => {
                let took = self
                    .clock
                    .moment()
                    .passed
                    .saturating_sub(due.entered.passed);
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
            Alarm::PhaseTimeout | Alarm::Overstayed => due.on_timeout,
        };
        let input = Input::PhaseFailed {
            epoch: due.row.epoch,
            verdict,
        };
        Settle {
            started_at: due.entered.now,
            error: Some(Fault {
                cause,
                message,
                backtrace: None,
            }),
            is_from: Source::Supervisor(StopReason::Timeout),
            ..Settle::void(&due.row, input)
        }
    }

    /// A handler goes on although it was told to stop: another worker takes its place, as soon as there may be one more.
    pub(super) fn replace_worker(&self, id: JobId, epoch: i64) {
        let max = self.config.abandoned_max();
        match self.live.replace(id, epoch, max) {
            Replace::Begin => {}
            Replace::No => return,
            Replace::TooMany => {
                return log::error!(
                    "job {id}: its handler does not stop, and its worker is not replaced before one of {max} others has returned"
                );
            }
        }
        log::warn!("job {id}: its handler does not stop, its worker is replaced");
        if let Err(error) = self.start_worker() {
            log::error!("a worker cannot be replaced, this is tried again: {error}");
            let again = self.clock.moment().after(START_AGAIN);
            self.live.keep(id, epoch, again);
        } else if !self.live.replaced(id, epoch) {
            // It has returned meanwhile, and goes on: whoever is next to have no handler ends in its stead.
            self.pool.one_too_many();
        }
    }

    /// The handler of a claim has returned, and nothing of the claim is left.
    pub(super) fn claim_left(&self, id: JobId, epoch: i64) {
        match self.live.finish(id, epoch) {
            Some(returned) => {
                if returned.is_abandoned {
                    // Its worker is on its way out of the handler, and hears nothing of this.
                    self.pool.one_too_many();
                }
                self.zombie_left(returned);
            }
            None => self.state.lock().backlog.left(),
        }
    }

    /// A handler has returned whose claim was over: the job may have waited for that.
    pub(crate) fn zombie_left(&self, returned: Returned) {
        // There may be one whose worker could not be replaced.
        if let Some((id, epoch)) = self.live.overstayed()
            && self.live.left_count() < self.config.abandoned_max()
        {
            self.replace_worker(id, epoch);
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
                entered: Entered::Inside,
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

//! Group commit: everything that changes the file goes through here. L3.
//!
//! # Protocol
//!
//! Operations are put on one list. Whoever holds the *lead* takes the whole list, does it in one transaction, publishes what
//! became of it, and answers those who wait. There is one lead, and it is a role, not a lock: nothing is locked while user code
//! or the disk is waited for, but for the store itself.
//!
//! | who | when | what |
//! |---|---|---|
//! | a caller (`call`) | the lead is free | takes it and commits in its own thread: no wake-up of another thread is paid |
//! | a caller | the lead is taken | leaves its operation on the list and waits to be answered |
//! | a worker (`post`) | always | leaves its operation, rings the committer thread if it sleeps, and never waits |
//! | the committer thread | the lead is free and there is work, or a due time has come | takes it |
//!
//! A caller gives the lead back after one commit. If the list has grown meanwhile, the committer thread gets it; so no caller
//! works for the others for longer than one commit, and while the disk syncs one batch the next one gathers. Whoever takes the lead
//! right after a commit of many lets them come back first: else every second commit would be of one operation alone.
//!
//! The committer thread is also the one sleeper of the queue: it sleeps until the next due time of anything. A caller whose
//! commit made that earlier rings it.
//!
//! # When the disk fails
//!
//! | what happened | callers get | posted operations | claims |
//! |---|---|---|---|
//! | rolled back | the error, nothing was changed | stay on the list, tried again with a growing pause | stop until a commit works |
//! | the commit failed, reopened: it is there | their answers | done | go on |
//! | the commit failed, reopened: it is not there | the error, nothing was changed | as above | as above |
//! | the commit failed, cannot be reopened | `OutcomeUnknown` | in doubt, see below | as above |
//!
//! Before anything else is committed, a commit in doubt is looked for: what was claimed in it would else be under way in
//! the file and nowhere else, and outcomes in it would be taken for stale. If it is there, its results are acted on as if it
//! had just been done; if not, what was posted in it goes back to the list.
//!
//! While the store does not work, the committer thread tries once after each pause: what is on the list or, when there is
//! nothing, a small write. So the queue finds out by itself when there is space again. Callers try at once, each for himself.
//! On a full disk there is a little room for what is under way: see `reserve`.
//!
//! Source of the idea: flat combining (Hendler, Incze, Shavit, Tzafrir, SPAA 2010), with a thread for those who do not wait.
//! Turned down: a committer thread alone. With one caller it costs two wake-ups for each commit, which at
//! `Durability::Normal` is six times the commit itself.

mod batch;
#[cfg(test)]
mod doubt;
mod failure;
mod reserve;
mod sleep;
#[cfg(test)]
mod tests;
mod ticket;

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::error::{Error, ErrorKind, Result};
use crate::store::ops::{ClaimRequest, Op};
use crate::store::seam::{self, Committed};
use crate::store::{Done, Failure, Store};
use crate::sync::{AtomicU64, Condvar, Mutex, Ordering, is_panicking};
use crate::time::{Clock, RECHECK, RECHECK_LAZY, Timestamp, monotonic};
use batch::{Entry, apart, gather, take_batch, take_callers, together};
use failure::{Doubt, Outcome, Trial};
use reserve::{Looks, Low};
use sleep::Sleep;
use ticket::{Promise, Ticket};

/// The first pause after a failed commit; it doubles up to [`PAUSE_MAX`].
const PAUSE_MIN: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// A store that has worked for this long starts with a short pause again.
const PAUSE_KEPT: Duration = Duration::from_secs(60);

/// What the committer asks its engine, and tells it. Called by whoever leads, one at a time.
pub(crate) trait Host: Send + Sync {
    /// What this commit is to claim, beside doing `ops`.
    fn request(&self, ops: &[Op], now: Timestamp) -> ClaimRequest;
    /// Adds what is due by now. `is_idle`: there is nothing else to do.
    fn due(&self, now: Timestamp, is_idle: bool, ops: &mut Vec<Op>);
    /// Whether a commit without operations is worth it: something may be claimed.
    fn wants_claims(&self, now: Timestamp) -> bool;
    /// The commit is on disk. `ops` and `committed.answers` stand side by side.
    fn committed(&self, ops: Vec<Op>, committed: &mut Committed, took: Duration, now: Timestamp);
    /// When `due` or `wants_claims` will have something next.
    fn deadline(&self) -> Deadline;
    /// Nothing can be claimed, because a due job cannot be read.
    fn claims_failed(&self, error: &Error);
    /// An operation that nobody waits for cannot be done, ever.
    fn refused(&self, op: &Op, error: &Error);
    /// The lead has ended by a panic: a bug of ours.
    fn died(&self);
    /// The store has failed (with the error), or works again.
    fn store_health(&self, failure: Option<&Error>);
}

/// When something comes due.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Deadline {
    /// A job, a timeout: on time, also when the wall clock is set meanwhile.
    pub(crate) exact: Option<Timestamp>,
    /// Retention: an hour late is no harm.
    pub(crate) lazy: Option<Timestamp>,
}

impl Deadline {
    fn earliest(self) -> Option<Timestamp> {
        [self.exact, self.lazy].into_iter().flatten().min()
    }
}

pub(crate) struct Committer {
    state: Mutex<State>,
    /// Rings the committer thread.
    bell: Condvar,
    store: Mutex<Box<dyn Store>>,
    clock: Clock,
    tag: AtomicU64,
}

#[derive(Default)]
struct State {
    list: Vec<Entry>,
    /// How long it was when it was taken last.
    last_length: usize,
    is_led: bool,
    is_rung: bool,
    /// The committer thread sleeps.
    asleep: Option<Sleep>,
    /// Nothing new is taken.
    is_closed: bool,
    /// The committer thread ends when the list is empty.
    is_stopping: bool,
    /// After a failure: when posted operations are tried again, and how long that pause is.
    retry_at: Option<Instant>,
    pause: Duration,
    failed_at: Option<Instant>,
    /// To be cleared up by the next lead.
    doubt: Option<Box<Doubt>>,
    /// The disk is full, and the room that was kept on it is given away.
    low: Option<Low>,
    looks: Looks,
}

impl Committer {
    pub(crate) fn new(store: Box<dyn Store>, clock: Clock) -> Committer {
        // Tags tell commits apart across processes that write to one file: a random-looking start, then counting.
        let start =
            u64::from(std::process::id()) << 40 ^ clock.now().as_millis().unsigned_abs() << 8;
        let committer = Committer {
            state: Mutex::default(),
            bell: Condvar::new(),
            store: Mutex::new(store),
            clock,
            tag: AtomicU64::new(start),
        };
        committer.begin_low_if_spent();
        committer
    }

    /// Does `op` and answers when it is on disk.
    pub(crate) fn call(&self, host: &dyn Host, op: Op) -> Result<Done> {
        let ticket = Arc::new(Ticket::default());
        let mut state = self.state.lock();
        if state.is_closed {
            return Err(Error::closed());
        }
        state.list.push(Entry {
            op,
            promise: Some(Promise::new(&ticket)),
        });
        if state.is_led {
            drop(state);
            return ticket.wait();
        }
        state.is_led = true;
        gather(&mut state);
        let batch = take_batch(&mut state);
        drop(state);
        let lead = Lead::new(self, host);
        self.lead(host, batch);
        self.give_up_lead(host);
        drop(lead);
        ticket.wait()
    }

    /// Leaves `op` to be done; nobody waits for it.
    pub(crate) fn post(&self, op: Op) {
        let mut state = self.state.lock();
        state.list.push(Entry { op, promise: None });
        self.ring_if_asleep(&mut state);
    }

    /// Makes the committer thread look at what is due.
    pub(crate) fn ring(&self) {
        let mut state = self.state.lock();
        state.is_rung = true;
        self.ring_if_asleep(&mut state);
    }

    /// As [`Committer::ring`], unless it sleeps and will be awake at `at`.
    pub(crate) fn ring_before(&self, at: Timestamp) {
        let mut state = self.state.lock();
        let (now, passed) = (self.clock.now(), monotonic());
        let is_late = |sleep: Sleep| sleep.is_late(at, now, passed);
        // Awake: it may have asked for its deadline before there was this one.
        if state.asleep.is_none_or(is_late) {
            state.is_rung = true;
            self.ring_if_asleep(&mut state);
        }
    }

    /// Whether a commit is under way, or what follows from it.
    pub(crate) fn is_led(&self) -> bool {
        self.state.lock().is_led
    }

    /// Ends the committer thread when the list is empty.
    pub(crate) fn stop(&self) {
        let mut state = self.state.lock();
        state.is_closed = true;
        state.is_stopping = true;
        // One last try, whatever the pause.
        state.retry_at = None;
        self.bell.notify_one();
    }

    /// Closes the store, the committer thread having ended.
    pub(crate) fn close_store(&self) {
        let mut store = self.store.lock();
        if let Err(error) = store.checkpoint() {
            log::debug!("the log was not folded back: {error}");
        }
        store.close();
    }

    fn ring_if_asleep(&self, state: &mut State) {
        // While somebody leads, the list is looked at when the lead is given up.
        if state.asleep.is_some() && !state.is_led {
            state.asleep = None;
            self.bell.notify_one();
        }
    }

    /// The committer thread.
    pub(crate) fn run(&self, host: &dyn Host) {
        let mut state = self.state.lock();
        loop {
            if state.is_led {
                state.asleep = Some(Sleep::default());
                self.bell.wait(&mut state);
                state.asleep = None;
                continue;
            }
            let may_work = state.may_work(monotonic());
            if state.is_stopping && (state.is_done() || !may_work) {
                break;
            }
            let has_failed = state.retry_at.is_some() || state.doubt.is_some();
            state.is_led = true;
            state.is_rung = false;
            let batch = if may_work {
                gather(&mut state);
                take_batch(&mut state)
            } else {
                // A pause is for what nobody waits for.
                take_callers(&mut state)
            };
            drop(state);
            let lead = Lead::new(self, host);
            let did_something = if may_work {
                self.lead_with_due(host, batch, has_failed)
            } else {
                let has_callers = !batch.is_empty();
                if has_callers {
                    self.lead(host, batch);
                }
                has_callers
            };
            let deadline = host.deadline();
            drop(lead);
            state = self.state.lock();
            state.is_led = false;
            let may_work = state.may_work(monotonic());
            let is_quiet = state.list.is_empty() || !(may_work || state.has_callers());
            if !did_something && !state.is_rung && is_quiet && !state.is_stopping {
                self.sleep(&mut state, deadline);
            }
        }
        let left = std::mem::take(&mut state.list);
        drop(state);
        let posted = left.iter().filter(|entry| entry.promise.is_none()).count();
        if posted > 0 {
            log::error!(
                "the store does not work: {posted} outcomes are lost, their phases run again"
            );
        }
    }

    /// Sleeps until the deadline or a ring, after a failure no longer than the pause.
    fn sleep(&self, state: &mut crate::sync::MutexGuard<'_, State>, deadline: Deadline) {
        let (now, passed) = (self.clock.now(), monotonic());
        let wait = |at: Option<Timestamp>, recheck| self.clock.sleep_for(at?.since(now), recheck);
        let exact = wait(deadline.exact, RECHECK);
        let lazy = wait(deadline.lazy, RECHECK_LAZY);
        let pause = state
            .retry_at
            .map(|at| at.saturating_duration_since(passed));
        // Until a pause is over nothing is done, whatever is due.
        let wait = pause.or([exact, lazy].into_iter().flatten().min());
        let look = state.low.as_ref();
        let look = look.map(|low| low.look_at.saturating_duration_since(monotonic()));
        let wait = [wait, look].into_iter().flatten().min();
        state.asleep = Some(Sleep {
            until: deadline.earliest(),
            ends: wait.and_then(|wait| passed.checked_add(wait)),
        });
        match wait {
            Some(wait) => drop(self.bell.wait_for(state, wait)),
            None => self.bell.wait(state),
        }
        state.asleep = None;
    }

    fn give_up_lead(&self, host: &dyn Host) {
        let (now, passed) = (self.clock.now(), monotonic());
        let (deadline, wants_claims) = (host.deadline().earliest(), host.wants_claims(now));
        let mut state = self.state.lock();
        state.is_led = false;
        let is_late = |sleep: Sleep| deadline.is_some_and(|at| sleep.is_late(at, now, passed));
        let has_work = !state.list.is_empty()
            || state.is_rung
            || state.is_stopping
            || state.retry_at.is_some()
            || state.low.is_some()
            || wants_claims;
        if state.asleep.is_some_and(|sleep| has_work || is_late(sleep)) {
            state.is_rung = true;
            self.ring_if_asleep(&mut state);
        }
    }

    /// Leads with what is due added; false when there was nothing to do.
    fn lead_with_due(&self, host: &dyn Host, mut batch: Vec<Entry>, has_failed: bool) -> bool {
        let now = self.clock.now();
        let mut due = Vec::new();
        host.due(now, batch.is_empty(), &mut due);
        let is_to_be_seen = has_failed || self.refill(host);
        if is_to_be_seen && batch.is_empty() && due.is_empty() {
            due.push(Op::Probe);
        }
        batch.extend(due.into_iter().map(|op| Entry { op, promise: None }));
        if batch.is_empty() && !host.wants_claims(now) {
            return false;
        }
        self.lead(host, batch);
        true
    }

    /// Clears up a doubt, then does a batch.
    fn lead(&self, host: &dyn Host, batch: Vec<Entry>) {
        let had_work = !batch.is_empty();
        let batch = self.admit(host, batch);
        if had_work && batch.is_empty() {
            return;
        }
        match self.clear_up(host) {
            Ok(()) => self.lead_batch(host, batch),
            Err(error) if self.gives_room(&error) => self.lead_with_room(host, &error, batch),
            Err(error) => {
                let (ops, promises) = apart(batch);
                self.failed(host, &error, ops, promises);
            }
        }
    }

    /// Does a batch, in one transaction if it can be.
    fn lead_batch(&self, host: &dyn Host, batch: Vec<Entry>) {
        let (ops, promises) = apart(batch);
        match self.commit(host, &ops) {
            Ok(trial) => self.publish(host, ops, promises, trial),
            Err(Outcome::Failed(error)) if is_of_one(&error) && ops.len() > 1 => {
                // One of them cannot be done, and had written before it found out: it must not take the others with it.
                for entry in together(ops, promises) {
                    self.lead(host, vec![entry]);
                }
            }
            Err(Outcome::Failed(error)) if self.gives_room(&error) => {
                self.lead_with_room(host, &error, together(ops, promises));
            }
            Err(Outcome::Failed(error)) => self.failed(host, &error, ops, promises),
            Err(Outcome::Unknown(error, trial)) => {
                self.unknown(host, &error, *trial, ops, promises);
            }
        }
    }

    fn commit(&self, host: &dyn Host, ops: &[Op]) -> std::result::Result<Trial, Outcome> {
        let (now, started) = (self.clock.now(), monotonic());
        let mut request = host.request(ops, now);
        let tag = i64::from_ne_bytes(self.tag.fetch_add(1, Ordering::Relaxed).to_ne_bytes());
        let mut committed = None;
        let mut transact = |request: &ClaimRequest| {
            self.store.lock().transact(&mut |rows| {
                committed = Some(seam::run(rows, ops, request, now, tag)?);
                Ok(())
            })
        };
        let mut done = transact(&request);
        if let Err(Failure::NothingDone(error)) = &done
            && error.kind() == ErrorKind::Corrupt
        {
            self.read_anew(error).map_err(Outcome::Failed)?;
            done = transact(&request);
        }
        if let Err(Failure::NothingDone(error)) = &done
            && is_of_one(error)
            && request.from_backlog
        {
            // Perhaps a job that was to be claimed is damaged: that must not stop what callers and workers want.
            let problem = error.duplicate();
            request.from_backlog = false;
            done = transact(&request);
            if done.is_ok() {
                host.claims_failed(&problem);
            }
        }
        let trial = committed.map(|committed| Trial {
            committed,
            tag,
            now,
            took: started.elapsed(),
        });
        match (done, trial) {
            (Ok(()), Some(trial)) => Ok(trial),
            (Ok(()), None) => Err(Outcome::Failed(Error::new(
                ErrorKind::Storage,
                "the store did not run the transaction",
            ))),
            (Err(Failure::NothingDone(error)), _) | (Err(Failure::Unknown(error)), None) => {
                Err(Outcome::Failed(error))
            }
            (Err(Failure::Unknown(error)), Some(trial)) => self.look(error, trial),
        }
    }

    fn publish(&self, host: &dyn Host, ops: Vec<Op>, promises: Vec<Option<Promise>>, trial: Trial) {
        let mut committed = trial.committed;
        // A look alone says nothing of a full disk.
        if committed.has_written {
            let mut state = self.state.lock();
            let (is_low, is_well) = (state.low.is_some(), state.is_well());
            drop(state);
            if is_low {
                self.fold_back();
            } else if is_well {
                host.store_health(None);
            }
        }
        host.committed(ops, &mut committed, trial.took, trial.now);
        for (promise, answer) in promises.into_iter().zip(committed.answers) {
            if let Some(promise) = promise {
                promise.keep(answer);
            } else if let Err(error) = answer {
                log::error!("an operation that nobody waits for was refused: {error}");
            }
        }
    }
}

/// Held by whoever leads: when the lead ends by a panic, nobody waits for it.
struct Lead<'a> {
    committer: &'a Committer,
    host: &'a dyn Host,
    /// By a panic of somebody else, in whose wake we are called.
    was_panicking: bool,
}

impl<'a> Lead<'a> {
    fn new(committer: &'a Committer, host: &'a dyn Host) -> Lead<'a> {
        Lead {
            committer,
            host,
            was_panicking: is_panicking(),
        }
    }
}

impl Drop for Lead<'_> {
    fn drop(&mut self) {
        if self.was_panicking || !is_panicking() {
            return;
        }
        self.host.died();
        let mut state = self.committer.state.lock();
        (state.is_led, state.is_closed, state.is_stopping) = (false, true, true);
        let left = std::mem::take(&mut state.list);
        self.committer.bell.notify_one();
        drop(state);
        // Answers those who wait.
        drop(left);
    }
}

impl State {
    /// Whether the pause after a failure is over.
    fn may_work(&self, now: Instant) -> bool {
        self.retry_at.is_none_or(|at| at <= now)
    }

    fn has_callers(&self) -> bool {
        self.list.iter().any(|entry| entry.promise.is_some())
    }

    /// Nothing is left to be written.
    fn is_done(&self) -> bool {
        self.list.is_empty() && self.doubt.is_none()
    }

    /// The last commit worked, and the one before it had not. The pause is kept: a disk with room for a small commit only
    /// works and fails in turn.
    fn is_well(&mut self) -> bool {
        self.retry_at.take().is_some()
    }

    fn pause_longer(&mut self, now: Instant) {
        let is_recent = |at: Instant| now.saturating_duration_since(at) < PAUSE_KEPT;
        let before = if self.failed_at.is_some_and(is_recent) {
            self.pause
        } else {
            Duration::ZERO
        };
        // Callers fail in between: a pause that is not over is not made longer.
        if self.may_work(now) {
            self.pause = (before * 2).clamp(PAUSE_MIN, PAUSE_MAX);
            self.retry_at = Some(now + self.pause);
        }
        self.failed_at = Some(now);
    }
}

/// Whether an error is about one operation and not about the store.
fn is_of_one(error: &Error) -> bool {
    !matches!(
        error.kind(),
        ErrorKind::Storage | ErrorKind::StorageFull | ErrorKind::OutcomeUnknown
    )
}

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
//! works for the others for longer than one commit, and while the disk syncs one batch the next one gathers.
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
//! | the commit failed, cannot be reopened | `OutcomeUnknown` | kept, until the file can be read again | as above |
//!
//! Source of the idea: flat combining (Hendler, Incze, Shavit, Tzafrir, SPAA 2010), with a thread for those who do not wait.
//! Turned down: a committer thread alone. With one caller it costs two wake-ups for each commit, which at
//! `Durability::Normal` is six times the commit itself.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::error::{Error, ErrorKind, Result};
use crate::event::Seq;
use crate::store::ops::{ClaimRequest, Op};
use crate::store::seam::{self, Committed};
use crate::store::{Done, Failure, Store};
use crate::sync::{AtomicU64, Condvar, Mutex, Ordering};
use crate::time::{Clock, RECHECK, RECHECK_LAZY, Timestamp, monotonic};

/// Operations in one transaction: enough to make its fixed costs small, few enough to keep it short.
const BATCH_MAX: usize = 512;
/// The first pause after a failed commit; it doubles up to [`PAUSE_MAX`].
const PAUSE_MIN: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// What the committer asks its engine, and tells it. Called by whoever leads, one at a time.
pub(crate) trait Host: Send + Sync {
    /// What this commit is to claim.
    fn request(&self, now: Timestamp) -> ClaimRequest;
    /// Adds what is due by now. `is_idle`: there is nothing else to do.
    fn due(&self, now: Timestamp, is_idle: bool, ops: &mut Vec<Op>);
    /// Whether a commit without operations is worth it: something may be claimed.
    fn wants_claims(&self, now: Timestamp) -> bool;
    /// The commit is on disk. `ops` and `committed.answers` stand side by side.
    fn committed(&self, ops: Vec<Op>, committed: &mut Committed, took: Duration, now: Timestamp);
    /// When `due` or `wants_claims` will have something next.
    fn deadline(&self) -> Deadline;
    /// An operation that nobody waits for cannot be done, now or later.
    fn refused(&self, op: Op, error: &Error);
    /// Nothing can be claimed, because a due job cannot be read.
    fn claims_failed(&self, error: &Error);
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
    is_led: bool,
    is_rung: bool,
    /// The committer thread sleeps, at most until then.
    asleep: Option<Option<Timestamp>>,
    /// Nothing new is taken.
    is_closed: bool,
    /// The committer thread ends when the list is empty.
    is_stopping: bool,
    /// After a failure: when posted operations are tried again, and how long that pause is.
    retry_at: Option<Instant>,
    pause: Duration,
}

struct Entry {
    op: Op,
    ticket: Option<Arc<Ticket>>,
}

/// Where a caller waits for its answer.
#[derive(Default)]
struct Ticket {
    answer: Mutex<Option<Result<Done>>>,
    bell: Condvar,
}

impl Ticket {
    fn answer(&self, answer: Result<Done>) {
        *self.answer.lock() = Some(answer);
        self.bell.notify_one();
    }

    fn wait(&self) -> Result<Done> {
        let mut answer = self.answer.lock();
        loop {
            match answer.take() {
                Some(answer) => return answer,
                None => self.bell.wait(&mut answer),
            }
        }
    }
}

/// Why a batch was not committed.
enum Outcome {
    /// Nothing was changed.
    Failed(Error),
    /// It may have been changed, and the file cannot be read.
    Unknown(Error),
}

impl Committer {
    pub(crate) fn new(store: Box<dyn Store>, clock: Clock) -> Committer {
        // Tags tell commits apart across processes that write to one file: a random-looking start, then counting.
        let start =
            u64::from(std::process::id()) << 40 ^ clock.now().as_millis().unsigned_abs() << 8;
        Committer {
            state: Mutex::default(),
            bell: Condvar::new(),
            store: Mutex::new(store),
            clock,
            tag: AtomicU64::new(start),
        }
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
            ticket: Some(ticket.clone()),
        });
        if state.is_led {
            drop(state);
            return ticket.wait();
        }
        state.is_led = true;
        let batch = take_batch(&mut state);
        drop(state);
        self.lead(host, batch);
        self.give_up_lead(host);
        ticket.wait()
    }

    /// Leaves `op` to be done; nobody waits for it.
    pub(crate) fn post(&self, op: Op) {
        let mut state = self.state.lock();
        state.list.push(Entry { op, ticket: None });
        self.ring_if_asleep(&mut state);
    }

    /// Makes the committer thread look at what is due.
    pub(crate) fn ring(&self) {
        let mut state = self.state.lock();
        state.is_rung = true;
        self.ring_if_asleep(&mut state);
    }

    /// As [`Committer::ring`], when it sleeps for longer than until `at`.
    pub(crate) fn ring_before(&self, at: Timestamp) {
        let mut state = self.state.lock();
        if state
            .asleep
            .is_some_and(|until| until.is_none_or(|until| at < until))
        {
            state.is_rung = true;
            self.ring_if_asleep(&mut state);
        }
    }

    /// Ends the committer thread when the list is empty.
    pub(crate) fn stop(&self) {
        let mut state = self.state.lock();
        state.is_closed = true;
        state.is_stopping = true;
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
                state.asleep = Some(None);
                self.bell.wait(&mut state);
                state.asleep = None;
                continue;
            }
            let may_work = state.may_work();
            if state.is_stopping && (state.list.is_empty() || !may_work) {
                return;
            }
            state.is_led = true;
            state.is_rung = false;
            let batch = if may_work {
                take_batch(&mut state)
            } else {
                Vec::new()
            };
            drop(state);
            let did_something = may_work && self.lead_with_due(host, batch);
            let deadline = host.deadline();
            state = self.state.lock();
            state.is_led = false;
            let is_quiet = state.list.is_empty() || !state.may_work();
            if !did_something && !state.is_rung && is_quiet && !state.is_stopping {
                self.sleep(&mut state, deadline);
            }
        }
    }

    /// Sleeps until the deadline or a ring, after a failure no longer than the pause.
    fn sleep(&self, state: &mut crate::sync::MutexGuard<'_, State>, deadline: Deadline) {
        let now = self.clock.now();
        let wait = |at: Option<Timestamp>, recheck| self.clock.sleep_for(at?.since(now), recheck);
        let exact = wait(deadline.exact, RECHECK);
        let lazy = wait(deadline.lazy, RECHECK_LAZY);
        let pause = state
            .retry_at
            .map(|at| at.saturating_duration_since(monotonic()));
        state.asleep = Some(deadline.earliest());
        match [exact, lazy, pause].into_iter().flatten().min() {
            Some(wait) => drop(self.bell.wait_for(state, wait)),
            None => self.bell.wait(state),
        }
        state.asleep = None;
    }

    fn give_up_lead(&self, host: &dyn Host) {
        let (deadline, wants_claims) = (
            host.deadline().earliest(),
            host.wants_claims(self.clock.now()),
        );
        let mut state = self.state.lock();
        state.is_led = false;
        let is_earlier = |until: Option<Timestamp>| {
            deadline.is_some_and(|at| until.is_none_or(|until| at < until))
        };
        let has_work = !state.list.is_empty() || state.is_rung || state.is_stopping || wants_claims;
        if state
            .asleep
            .is_some_and(|until| has_work || is_earlier(until))
        {
            state.is_rung = true;
            self.ring_if_asleep(&mut state);
        }
    }

    /// Leads with what is due added; false when there was nothing to do.
    fn lead_with_due(&self, host: &dyn Host, mut batch: Vec<Entry>) -> bool {
        let now = self.clock.now();
        let mut due = Vec::new();
        host.due(now, batch.is_empty(), &mut due);
        batch.extend(due.into_iter().map(|op| Entry { op, ticket: None }));
        if batch.is_empty() && !host.wants_claims(now) {
            return false;
        }
        self.lead(host, batch);
        true
    }

    /// Does a batch, in one transaction if it can be.
    fn lead(&self, host: &dyn Host, batch: Vec<Entry>) {
        let (mut ops, mut tickets) = (
            Vec::with_capacity(batch.len()),
            Vec::with_capacity(batch.len()),
        );
        for Entry { op, ticket } in batch {
            ops.push(op);
            tickets.push(ticket);
        }
        match self.commit(host, &ops) {
            Ok(timed) => self.publish(host, ops, tickets, timed),
            Err(Outcome::Failed(error)) if is_of_one(&error) && ops.len() > 1 => {
                // One of them cannot be done, and had written before it found out: it must not take the others with it.
                for (op, ticket) in ops.into_iter().zip(tickets) {
                    self.lead(host, vec![Entry { op, ticket }]);
                }
            }
            Err(Outcome::Failed(error)) => self.failed(host, &error, ops, tickets),
            Err(Outcome::Unknown(error)) => self.unknown(host, &error, ops, tickets),
        }
    }

    fn commit(&self, host: &dyn Host, ops: &[Op]) -> std::result::Result<Timed, Outcome> {
        let (now, started) = (self.clock.now(), monotonic());
        let mut request = host.request(now);
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
        match (done, committed) {
            (Ok(()), Some(committed)) => Ok(Timed {
                committed,
                now,
                took: started.elapsed(),
            }),
            (Ok(()), None) => Err(Outcome::Failed(Error::new(
                ErrorKind::Storage,
                "the store did not run the transaction",
            ))),
            (Err(Failure::NothingDone(error)), _) => Err(Outcome::Failed(error)),
            (Err(Failure::Unknown(error)), committed) => {
                self.look(error, committed, tag, now, started.elapsed())
            }
        }
    }

    /// After a failed commit: forgets everything that is in memory, and looks whether the commit is in the file.
    fn look(
        &self,
        error: Error,
        committed: Option<Committed>,
        tag: i64,
        now: Timestamp,
        took: Duration,
    ) -> std::result::Result<Timed, Outcome> {
        log::error!("a commit failed, the file is opened anew to see whether it happened: {error}");
        let seq = committed
            .as_ref()
            .map_or(0, |committed| committed.last_row_seq);
        match self.is_there(seq, tag) {
            Ok(true) => match committed {
                Some(committed) => Ok(Timed {
                    committed,
                    now,
                    took,
                }),
                None => Err(Outcome::Failed(error)),
            },
            // A commit without a row in the log cannot be recognised. It changed nothing that cannot be done again.
            Ok(false) => Err(Outcome::Failed(error)),
            Err(reopen_error) => {
                log::error!("the file cannot be opened anew: {reopen_error}");
                Err(Outcome::Unknown(error))
            }
        }
    }

    /// Whether the commit that ended with row `seq` and carries `tag` is in the file. If it is, it is on the medium too when
    /// this returns.
    fn is_there(&self, seq: Seq, tag: i64) -> Result<bool> {
        let mut store = self.store.lock();
        store.reopen()?;
        let mut found = None;
        let looked = store.transact(&mut |rows| {
            found = rows.tag_at(seq)?;
            Ok(())
        });
        if let Err(Failure::NothingDone(error) | Failure::Unknown(error)) = looked {
            return Err(error);
        }
        if found != Some(tag) {
            return Ok(false);
        }
        store.checkpoint()?;
        Ok(true)
    }

    fn publish(
        &self,
        host: &dyn Host,
        ops: Vec<Op>,
        tickets: Vec<Option<Arc<Ticket>>>,
        timed: Timed,
    ) {
        let Timed {
            mut committed,
            now,
            took,
        } = timed;
        if self.state.lock().is_well() {
            host.store_health(None);
        }
        host.committed(ops, &mut committed, took, now);
        for (ticket, answer) in tickets.into_iter().zip(committed.answers) {
            if let Some(ticket) = ticket {
                ticket.answer(answer);
            } else if let Err(error) = answer {
                log::error!("an operation that nobody waits for was refused: {error}");
            }
        }
    }

    /// Nothing was changed: callers are told, the rest is kept for another try.
    fn failed(
        &self,
        host: &dyn Host,
        error: &Error,
        ops: Vec<Op>,
        tickets: Vec<Option<Arc<Ticket>>>,
    ) {
        let mut kept = Vec::new();
        for (op, ticket) in ops.into_iter().zip(tickets) {
            match ticket {
                Some(ticket) => ticket.answer(Err(error.duplicate())),
                None if is_of_one(error) => host.refused(op, error),
                None if is_made_anew(&op) => {}
                None => kept.push(Entry { op, ticket: None }),
            }
        }
        if !is_of_one(error) {
            host.store_health(Some(error));
            let mut state = self.state.lock();
            state.pause_longer();
            kept.append(&mut state.list);
            state.list = kept;
        }
    }

    /// The file cannot be read: callers are told that nobody knows; the rest waits until it can be.
    fn unknown(
        &self,
        host: &dyn Host,
        error: &Error,
        ops: Vec<Op>,
        tickets: Vec<Option<Arc<Ticket>>>,
    ) {
        let unknown = Error::new(
            ErrorKind::OutcomeUnknown,
            format!("it may or may not have happened: {error}"),
        );
        // What workers posted may be done twice now. The fence makes the second time void: its epoch and phase are over.
        let mut kept = Vec::new();
        for (op, ticket) in ops.into_iter().zip(tickets) {
            match ticket {
                Some(ticket) => ticket.answer(Err(unknown.duplicate())),
                None if is_made_anew(&op) => {}
                None => kept.push(Entry { op, ticket: None }),
            }
        }
        host.store_health(Some(&unknown));
        let mut state = self.state.lock();
        state.pause_longer();
        kept.append(&mut state.list);
        state.list = kept;
    }
}

/// A commit and its circumstances.
struct Timed {
    committed: Committed,
    now: Timestamp,
    took: Duration,
}

impl State {
    /// Whether the pause after a failure is over.
    fn may_work(&self) -> bool {
        self.retry_at.is_none_or(|at| at <= monotonic())
    }

    /// The last commit worked, and the one before it had not.
    fn is_well(&mut self) -> bool {
        self.pause = Duration::ZERO;
        self.retry_at.take().is_some()
    }

    fn pause_longer(&mut self) {
        self.pause = (self.pause * 2).clamp(PAUSE_MIN, PAUSE_MAX);
        self.retry_at = Some(monotonic() + self.pause);
    }
}

fn take_batch(state: &mut State) -> Vec<Entry> {
    if state.list.len() <= BATCH_MAX {
        std::mem::take(&mut state.list)
    } else {
        let rest = state.list.split_off(BATCH_MAX);
        std::mem::replace(&mut state.list, rest)
    }
}

/// Whether an error is about one operation and not about the store.
fn is_of_one(error: &Error) -> bool {
    !matches!(
        error.kind(),
        ErrorKind::Storage | ErrorKind::StorageFull | ErrorKind::OutcomeUnknown
    )
}

/// Whether an operation that nobody waits for need not be kept after a failure: its maker makes it again.
fn is_made_anew(op: &Op) -> bool {
    matches!(op, Op::Prune(_))
}

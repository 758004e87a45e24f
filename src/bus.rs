//! Doorbells: "the log has grown", "a handler tells its progress", "a job is over". L3.
//!
//! No event passes through here. Whoever hears the bell reads the log from where it stopped; so a reader that is slow, or not
//! there, costs nothing and misses nothing.
//!
//! Who waits for the end of a job is looked for without a lock, since mostly nobody does:
//!
//! | who waits | who has ended the job |
//! |---|---|
//! | is in the list | has committed |
//! | sets the flag | |
//! | fence | fence |
//! | looks whether the job is over | looks at the flag |
//!
//! Of two fences one comes first: either who waits sees the end, or who has ended it sees the flag. Without them each could look
//! before what it wrote itself can be seen by the other (a store buffer does that), and the waiter sleeps for ever; that
//! the store's own locks prevent it is not for us to know. `tests/loom` takes this file as it is.

use std::collections::HashMap;
use std::time::Duration;

use crate::event::{Event, Seq};
use crate::job::JobId;
use crate::sync::{AtomicBool, Condvar, Mutex, Ordering, Sender, fence, unbounded};
use crate::time::monotonic;

#[derive(Default)]
pub(crate) struct Bus {
    state: Mutex<State>,
    bell: Condvar,
    waiters: Mutex<HashMap<JobId, Vec<Sender<()>>>>,
    has_waiters: AtomicBool,
}

#[derive(Default)]
struct State {
    head: Seq,
    is_closed: bool,
    /// The newest progress of each job under way, with its number: bounded by the jobs under way.
    progress: HashMap<JobId, (u64, Event)>,
    progress_count: u64,
}

/// What a listener hears.
#[derive(Debug, PartialEq)]
pub(crate) enum Heard {
    /// There is something after its position.
    More,
    /// The time is over.
    Nothing,
    /// Nothing will come any more.
    Closed,
}

impl Bus {
    /// The log has grown to `head`, durably.
    pub(crate) fn ring(&self, head: Seq) {
        let mut state = self.state.lock();
        if head > state.head {
            state.head = head;
            self.bell.notify_all();
        }
    }

    pub(crate) fn progress(&self, event: Event) {
        let mut state = self.state.lock();
        state.progress_count += 1;
        let count = state.progress_count;
        state.progress.insert(event.job_id, (count, event));
        self.bell.notify_all();
    }

    /// The job tells nothing any more.
    pub(crate) fn forget(&self, id: JobId) {
        let mut state = self.state.lock();
        if !state.progress.is_empty() {
            state.progress.remove(&id);
        }
    }

    /// The newest progress of a job under way.
    #[cfg(feature = "http")]
    pub(crate) fn progress_of(&self, id: JobId) -> Option<Event> {
        let state = self.state.lock();
        state.progress.get(&id).map(|(_, event)| event.clone())
    }

    /// The newest progress of every job that has told one after number `seen`, and the newest number.
    pub(crate) fn progress_after(&self, seen: u64) -> (Vec<Event>, u64) {
        let state = self.state.lock();
        if state.progress_count == seen {
            return (Vec::new(), seen);
        }
        let mut new: Vec<_> = state
            .progress
            .values()
            .filter(|(count, _)| *count > seen)
            .cloned()
            .collect();
        new.sort_by_key(|(count, _)| *count);
        (
            new.into_iter().map(|(_, event)| event).collect(),
            state.progress_count,
        )
    }

    /// Waits until there are events after `seq`, or progress after number `seen`.
    pub(crate) fn wait(&self, seq: Seq, seen: u64, timeout: Option<Duration>) -> Heard {
        let until =
            timeout.map(|timeout| monotonic() + timeout.min(Duration::from_secs(86_400 * 365)));
        let mut state = self.state.lock();
        loop {
            if state.head > seq || state.progress_count > seen {
                return Heard::More;
            }
            if state.is_closed {
                return Heard::Closed;
            }
            match until.map(|until| until.saturating_duration_since(monotonic())) {
                None => self.bell.wait(&mut state),
                Some(left) if left.is_zero() => return Heard::Nothing,
                Some(left) => drop(self.bell.wait_for(&mut state, left)),
            }
        }
    }

    /// Ends every wait. What is in the log can still be read.
    pub(crate) fn is_closed(&self) -> bool {
        self.state.lock().is_closed
    }

    pub(crate) fn close(&self) {
        self.state.lock().is_closed = true;
        self.bell.notify_all();
        let waiters = std::mem::take(&mut *self.waiters.lock());
        for waiter in waiters.into_values().flatten() {
            waiter.send(()).ok();
        }
    }

    /// Waits until the job is over, the bus closes or `timeout` has passed. `is_over` is asked once, after this waiter can no
    /// longer miss the bell.
    pub(crate) fn wait_over<E>(
        &self,
        id: JobId,
        timeout: Duration,
        is_over: impl FnOnce() -> Result<bool, E>,
    ) -> Result<(), E> {
        let (tx, rx) = unbounded();
        self.waiters.lock().entry(id).or_default().push(tx.clone());
        self.has_waiters.store(true, Ordering::Release);
        fence(Ordering::SeqCst);
        let is_over = is_over();
        // A bus that closes rings for everybody who is there; who comes later has to look.
        if matches!(is_over, Ok(false)) && !self.state.lock().is_closed {
            rx.recv_timeout(timeout).ok();
        }
        let mut waiters = self.waiters.lock();
        if let Some(waiting) = waiters.get_mut(&id) {
            waiting.retain(|sender| !sender.same_channel(&tx));
            if waiting.is_empty() {
                waiters.remove(&id);
            }
        }
        is_over.map(|_| ())
    }

    /// The job is over, durably. Costs one look when nobody waits.
    pub(crate) fn is_over(&self, id: JobId) {
        if !self.has_waiters() {
            return;
        }
        let mut waiters = self.waiters.lock();
        let told = waiters.remove(&id);
        self.has_waiters
            .store(!waiters.is_empty(), Ordering::Release);
        drop(waiters);
        for waiter in told.into_iter().flatten() {
            // A waiter that has given up is gone, and needs no answer.
            waiter.send(()).ok();
        }
    }

    /// Jobs that somebody waits for.
    pub(crate) fn waited_for(&self) -> Vec<JobId> {
        if !self.has_waiters() {
            return Vec::new();
        }
        self.waiters.lock().keys().copied().collect()
    }

    /// For who has just ended a job, or has heard that one may be over.
    fn has_waiters(&self) -> bool {
        fence(Ordering::SeqCst);
        self.has_waiters.load(Ordering::Acquire)
    }
}

#[cfg(all(test, not(stepwell_shuttle)))]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use crate::bus::Bus;
    use crate::job::JobId;
    use crate::sync::{spawn, unbounded};

    /// It came when everybody who waited had been told, and waited for as long as it was asked to.
    #[test]
    fn who_waits_for_a_job_after_the_bus_was_closed_is_sent_back() {
        let bus = Arc::new(Bus::default());
        bus.close();
        let (tx, rx) = unbounded();
        spawn("late", move || {
            let hour = Duration::from_secs(3600);
            let waited = bus.wait_over(JobId::from_i64(1), hour, || Ok::<_, ()>(false));
            tx.send(waited).expect("somebody listens");
        })
        .expect("a thread");
        assert_eq!(rx.recv_timeout(Duration::from_secs(20)), Ok(Ok(())));
    }
}

//! In-process listeners: cursors on the log. L3.
//!
//! A [`Subscription`] holds a position and no queue: what it has not read is in the file. So its memory is bounded, it never
//! slows a job down, and one that was away goes on where it stopped, also after a restart, if the log still has that part.

use std::collections::VecDeque;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use crate::bus::Heard;
use crate::engine::Engine;
use crate::error::{Error, ErrorKind, Result, panic_text};
use crate::event::{self, Event, Seq};
use crate::sync::{JoinHandle, Mutex, ThreadId, current_thread, pause, spawn};
use crate::time::monotonic;

/// Changes that are read at a time: a page or two of the file.
const CHANGES_MAX: usize = 256;
/// Events that a subscription holds in memory: some hundred kilobytes.
const EVENTS_MAX: usize = 1024;

/// What a subscription receives.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Notice {
    /// The next event.
    Event(Event),
    /// The events after `after` and before `next` are not in the log any more: retention has deleted them before this
    /// subscription came to read them. It goes on at `next`.
    Lagged {
        /// The last event that was received.
        after: Seq,
        /// The oldest event that is still there.
        next: Seq,
    },
}

/// A reader of the event log that waits for what comes next. Made by [`JobQueue::subscribe`](crate::JobQueue::subscribe).
pub struct Subscription {
    engine: Arc<Engine>,
    after: Seq,
    progress_seen: u64,
    wants_progress: bool,
    buffer: VecDeque<Event>,
}

impl Subscription {
    pub(crate) fn new(engine: Arc<Engine>, after: Seq) -> Subscription {
        let (_, progress_seen) = engine.bus.progress_after(u64::MAX);
        Subscription {
            engine,
            // Nothing has a number below 1.
            after: after.max(0),
            progress_seen,
            wants_progress: false,
            buffer: VecDeque::new(),
        }
    }

    /// Receives `job:progress` too. Defaults to not.
    #[must_use]
    pub fn with_progress(mut self) -> Subscription {
        self.wants_progress = true;
        self
    }

    /// The number of the last event that was received: where another subscription would go on.
    #[must_use]
    pub fn position(&self) -> Seq {
        self.buffer
            .iter()
            .find(|event| event.seq > 0)
            .map_or(self.after, |event| event.seq - 1)
    }

    /// The next event; waits for it without end.
    ///
    /// # Errors
    /// `Closed` when the queue is closed: what was not received yet stays in the log, and a subscription to the queue when it is
    /// open again goes on from [`position`](Subscription::position). `Storage` or `Corrupt` when the log cannot be read.
    pub fn recv(&mut self) -> Result<Notice> {
        self.next_within(None)
    }

    /// The next event, if it comes within `timeout`; `Duration::ZERO` looks and does not wait.
    ///
    /// # Errors
    /// `Timeout` when none came, and as for [`recv`](Subscription::recv).
    pub fn recv_timeout(&mut self, timeout: Duration) -> Result<Notice> {
        self.next_within(Some(timeout))
    }

    fn next_within(&mut self, timeout: Option<Duration>) -> Result<Notice> {
        let started = monotonic();
        loop {
            if let Some(event) = self.buffer.pop_front() {
                return Ok(Notice::Event(event));
            }
            if let Some(lagged) = self.fill()? {
                return Ok(lagged);
            }
            if !self.buffer.is_empty() {
                continue;
            }
            let left = timeout.map(|timeout| timeout.saturating_sub(started.elapsed()));
            let seen = if self.wants_progress {
                self.progress_seen
            } else {
                u64::MAX
            };
            match self.engine.bus.wait(self.after, seen, left) {
                Heard::More => {}
                Heard::Nothing => {
                    return Err(Error::new(ErrorKind::Timeout, "no event came in time"));
                }
                Heard::Closed => return Err(Error::closed()),
            }
        }
    }

    /// Reads what comes next into the buffer.
    fn fill(&mut self) -> Result<Option<Notice>> {
        if self.wants_progress {
            let (progress, seen) = self.engine.bus.progress_after(self.progress_seen);
            self.progress_seen = seen;
            self.buffer.extend(progress);
        }
        let changes = self.engine.reader.changes_after(self.after, CHANGES_MAX)?;
        let events = event::expand_all(changes, self.after, EVENTS_MAX);
        let Some(first) = events.first().map(|event| event.seq) else {
            return Ok(None);
        };
        let lagged = (first > self.after + 1).then_some(Notice::Lagged {
            after: self.after,
            next: first,
        });
        self.after = events.last().map_or(self.after, |event| event.seq);
        self.buffer.extend(events);
        Ok(lagged)
    }
}

impl fmt::Debug for Subscription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Subscription(after {})", self.position())
    }
}

/// While the log cannot be read: longer each time.
const READ_PAUSE: Duration = Duration::from_millis(50);
const READ_PAUSE_MAX: Duration = Duration::from_secs(1);
/// Failures in a row before the end of the queue is not waited for.
const READS_AT_THE_END: u32 = 3;

type Callback = Arc<dyn Fn(&Event) + Send + Sync>;

/// Callbacks and their one thread, which starts with the first of them.
#[derive(Default)]
pub(crate) struct Listeners {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// With the newest event when each was added: it hears what came after that.
    callbacks: Vec<(Seq, Callback)>,
    thread: Option<JoinHandle<()>>,
    /// It is the callbacks' own, also while somebody waits for its end.
    own: Option<ThreadId>,
    /// The end could not be read.
    has_missed: bool,
}

impl Listeners {
    /// Calls `callback` for every event from now on.
    pub(crate) fn add(
        self: &Arc<Listeners>,
        engine: &Arc<Engine>,
        callback: Callback,
    ) -> Result<()> {
        let head = engine.reader.head()?.seq;
        let mut subscription = Subscription::new(engine.clone(), head);
        let mut state = self.state.lock();
        state.callbacks.push((head, callback));
        if state.thread.is_none() {
            let listeners = self.clone();
            let thread = spawn("stepwell-listen", move || {
                let has_heard_all = listeners.listen(&mut subscription);
                let mut state = listeners.state.lock();
                state.has_missed |= !has_heard_all;
                // One may own the queue, and with it itself.
                let callbacks = std::mem::take(&mut state.callbacks);
                drop(state);
                drop(callbacks);
            });
            let thread = thread.inspect_err(|_| drop(state.callbacks.pop()))?;
            state.own = Some(thread.thread().id());
            state.thread = Some(thread);
        }
        Ok(())
    }

    /// Until the queue is closed; whether all that happened was told.
    fn listen(&self, subscription: &mut Subscription) -> bool {
        let mut failures = 0;
        loop {
            match subscription.recv() {
                Ok(Notice::Event(event)) => self.tell(&event),
                Ok(Notice::Lagged { after, next }) => {
                    log::warn!(
                        "callbacks are so slow that events {after} to {next} were deleted before them"
                    );
                }
                Err(error) if error.kind() == ErrorKind::Closed => return true,
                Err(error)
                    if failures >= READS_AT_THE_END && subscription.engine.bus.is_closed() =>
                {
                    log::error!("callbacks do not hear the end, the log cannot be read: {error}");
                    return false;
                }
                Err(error) => {
                    if failures == 0 {
                        log::error!(
                            "the log cannot be read for callbacks, this is tried again: {error}"
                        );
                    }
                    failures += 1;
                    pause(READ_PAUSE.saturating_mul(failures).min(READ_PAUSE_MAX));
                    continue;
                }
            }
            failures = 0;
        }
    }

    /// Calls each with no lock held; one that panics is not called again.
    fn tell(&self, event: &Event) {
        let callbacks = self.state.lock().callbacks.clone();
        // What is not in the log has no number, and was not there before either.
        let is_news = |since: Seq| event.seq == 0 || event.seq > since;
        for (_, callback) in callbacks.into_iter().filter(|(since, _)| is_news(*since)) {
            if let Err(panic) = catch_unwind(AssertUnwindSafe(|| callback(event))) {
                log::error!(
                    "a callback panicked and is not called again: {}",
                    panic_text(panic)
                );
                self.state
                    .lock()
                    .callbacks
                    .retain(|(_, other)| !Arc::ptr_eq(other, &callback));
            }
        }
    }

    /// Whether the calling thread is that of the callbacks.
    pub(crate) fn is_own_thread(&self) -> bool {
        self.state.lock().own == Some(current_thread())
    }

    /// Waits until every callback has heard everything, the bus being closed. False when `is_over` came first.
    pub(crate) fn join(&self, is_over: impl Fn() -> bool) -> bool {
        let Some(thread) = self.state.lock().thread.take() else {
            return true;
        };
        while !thread.is_finished() {
            if is_over() {
                return false;
            }
            pause(Duration::from_millis(1));
        }
        thread.join().is_ok() && !self.state.lock().has_missed
    }
}

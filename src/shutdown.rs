//! The end of a queue: one deadline, one order. L3.
//!
//! | step | until | what |
//! |---|---|---|
//! | 1 intake | | callers get `Closed`, handlers aside, and nothing is claimed |
//! | 2 edges | the deadline | jobs stop at their next phase edge and are pending again, uncharged; a plan that is being made is the last; webhook deliveries that were never tried are sent |
//! | 3 flags | + 100 ms | handlers that are still inside are told to stop |
//! | 4 fence | | those that did not are cut off: their jobs are pending, the interruption is recorded |
//! | 5 write | | the committer writes what is left and ends |
//! | 6 outlets | + 50 ms, 1 s at most | event streams end after a whole event |
//! | 7 listeners | + 50 ms | they hear the rest |
//! | 8 close | | the log is folded back, the store closed, the file let go |
//!
//! A timeout shortens the waits and skips no step. All of it runs on a thread of its own, so that a handler or a callback may
//! ask for it and nobody joins himself; who asked waits for the report, and no longer than the deadline and 250 ms: a disk
//! that hangs cannot hang the caller.

mod latch;

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::engine::Engine;
use crate::error::{Error, ErrorKind, Result};
use crate::job::JobId;
use crate::listener::Listeners;
use crate::outlet::CLOSE_GRACE;
use crate::sync::{Mutex, ThreadId, current_thread, pause, spawn};
use crate::time::monotonic;
use latch::Latch;

/// For handlers to notice their flag.
const FLAG_GRACE: Duration = Duration::from_millis(100);
/// For callbacks to hear the last events, when the deadline is over.
const LISTEN_GRACE: Duration = Duration::from_millis(50);
/// By how much a shutdown may overrun its timeout, whatever happens.
const OVERRUN_MAX: Duration = Duration::from_millis(250);
/// How often a wait of the shutdown looks whether it is over.
const LOOK: Duration = Duration::from_millis(1);

/// What a shutdown did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ShutdownReport {
    /// Jobs whose handler was still inside at the deadline, or whose outcome could not be recorded. Their phases are recorded as
    /// interrupted, if the disk works, and run again.
    pub interrupted: Vec<JobId>,
    /// Of these, how many handlers had not returned when the queue was closed. Their threads go on until they do.
    pub handlers_left: usize,
    /// The plan of a job was being made when the queue was closed. Its thread goes on until it is, and the job is asked for a plan again at
    /// the next start.
    pub planner_left: bool,
    /// Callbacks had not heard every event when the queue was closed. The log has them.
    pub listeners_cut: bool,
    /// How long it took.
    pub took: Duration,
}

/// Who asks for the end: one who waits for it cannot be waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asker {
    /// A handler of this queue, or a planner for jobs of clients.
    Handler,
    /// A callback of this queue.
    Callback,
    Other,
}

impl Asker {
    fn of_this_thread(engine: &Engine, listeners: &Listeners) -> Asker {
        if listeners.is_own_thread() {
            Asker::Callback
        } else if engine.pool.is_own_thread() || engine.is_planner() {
            Asker::Handler
        } else {
            Asker::Other
        }
    }
}

/// Brings the log to readers outside of the process.
pub(crate) trait Outlet: Send + Sync {
    /// Ends what it serves. Everything is in the log, and the bus is closed. By `deadline`, or as soon as it can.
    fn close(&self, deadline: Instant);
}

/// The one shutdown of a queue, for everyone who asks for it.
#[derive(Default)]
pub(crate) struct Shutdown {
    latch: Latch<ShutdownReport>,
    waiting: Mutex<Waiting>,
    outlets: Mutex<Vec<Arc<dyn Outlet>>>,
}

/// The threads of handlers and callbacks that wait for the end, and cannot be waited for.
#[derive(Default)]
struct Waiting {
    handlers: Vec<ThreadId>,
    callbacks: Vec<ThreadId>,
}

impl Waiting {
    fn like(&mut self, asker: Asker) -> Option<&mut Vec<ThreadId>> {
        match asker {
            Asker::Handler => Some(&mut self.handlers),
            Asker::Callback => Some(&mut self.callbacks),
            Asker::Other => None,
        }
    }
}

/// One who waits for the end, as long as it does.
struct Asking<'a>(&'a Shutdown, Asker);

impl Asking<'_> {
    fn new(shutdown: &Shutdown, asker: Asker) -> Asking<'_> {
        if let Some(threads) = shutdown.waiting.lock().like(asker) {
            threads.push(current_thread());
        }
        Asking(shutdown, asker)
    }
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        if let Some(threads) = self.0.waiting.lock().like(self.1) {
            threads.retain(|thread| *thread != current_thread());
        }
    }
}

impl Shutdown {
    /// Ends the queue, or waits for the end that another has asked for. A later call with an earlier deadline moves it.
    pub(crate) fn run(
        self: &Arc<Shutdown>,
        engine: &Arc<Engine>,
        listeners: &Arc<Listeners>,
        timeout: Duration,
    ) -> Result<ShutdownReport> {
        let started = monotonic();
        let deadline = started + timeout.min(Duration::from_secs(86_400 * 365));
        let asks = Asking::new(self, Asker::of_this_thread(engine, listeners));
        if self.latch.ask(deadline) {
            let (own, engine, listeners) = (self.clone(), engine.clone(), listeners.clone());
            let end = Arc::new(move || {
                let report = own.end(&engine, &listeners, started);
                own.latch.close(report);
            });
            let other = end.clone();
            if let Err(error) = spawn("stepwell-shutdown", move || other()) {
                log::warn!("the thread that asked for the end brings it about: {error}");
                end();
            }
        }
        let report = self.latch.wait_until(deadline, OVERRUN_MAX);
        drop(asks);
        let report = report.ok_or_else(|| {
            let problem = "the queue is still closing: the disk does not answer";
            Error::new(ErrorKind::Timeout, problem)
        })?;
        answer(report, timeout)
    }

    /// An outlet to close before the store is.
    #[cfg_attr(
        not(feature = "http"),
        allow(dead_code, reason = "HTTP is the only outlet")
    )]
    pub(crate) fn add(&self, outlet: Arc<dyn Outlet>) {
        self.outlets.lock().push(outlet);
    }

    /// What a shutdown did, once it is done.
    pub(crate) fn report(&self) -> Option<ShutdownReport> {
        self.latch.report()
    }

    pub(crate) fn is_asked(&self) -> bool {
        self.latch.is_asked()
    }

    /// Waits until the queue has been closed by somebody.
    pub(crate) fn wait(&self) -> ShutdownReport {
        self.latch.wait()
    }

    fn is_over(&self, grace: Duration) -> bool {
        let deadline = self.latch.deadline();
        deadline.is_some_and(|deadline| monotonic() >= deadline + grace)
    }

    /// The steps.
    fn end(&self, engine: &Arc<Engine>, listeners: &Listeners, started: Instant) -> ShutdownReport {
        let mut report = ShutdownReport::default();
        let own = || self.waiting.lock().handlers.clone();
        engine.stop_intake();
        engine.with_outlet(|outlet| outlet.drain());
        // A commit that began before the intake was closed may claim jobs until it ends.
        let mut is_quiet = false;
        let mut is_done = |but: &[ThreadId]| {
            is_quiet = is_quiet || !engine.committer.is_led();
            engine.give_back_paused();
            is_quiet && !engine.live.has_others(but) && !engine.is_planning(but)
        };
        let is_drained = || {
            engine
                .with_outlet(|outlet| outlet.is_drained())
                .unwrap_or(true)
        };
        while !self.is_over(Duration::ZERO) && (!is_done(&own()) || !is_drained()) {
            pause(LOOK);
        }
        if !is_done(&[]) {
            let told = engine.tell_to_stop();
            let flagged = monotonic();
            while !is_done(&own()) && since(flagged) < FLAG_GRACE {
                pause(LOOK);
            }
            report.interrupted = told;
            engine.fence();
        }
        engine.stop_workers();
        // What it finds out is written before the store is closed.
        engine.with_outlet(|outlet| outlet.close(CLOSE_GRACE));
        engine.stop_threads();
        // The store did not work: what they have done is lost.
        let mut unrecorded = engine.live.unrecorded();
        unrecorded.retain(|id| !report.interrupted.contains(id));
        report.interrupted.extend(unrecorded);
        report.handlers_left = engine.pool.join(|| engine.live.inside_count());
        report.planner_left = engine.is_planning(&[]);
        engine.bus.close();
        for outlet in std::mem::take(&mut *self.outlets.lock()) {
            outlet.close(self.latch.deadline().unwrap_or(started));
        }
        // A callback that has asked for the end chose to hear no more.
        let is_asking = || !self.waiting.lock().callbacks.is_empty();
        let have_heard = listeners.join(|| is_asking() || self.is_over(LISTEN_GRACE));
        report.listeners_cut = !have_heard && !is_asking();
        engine.close_store();
        report.took = since(started);
        report
    }
}

fn since(earlier: Instant) -> Duration {
    monotonic().saturating_duration_since(earlier)
}

/// A timeout is told after everything was done that had to be.
fn answer(report: ShutdownReport, timeout: Duration) -> Result<ShutdownReport> {
    let problem = if !report.interrupted.is_empty() {
        let ids: Vec<String> = report
            .interrupted
            .iter()
            .take(10)
            .map(ToString::to_string)
            .collect();
        format!(
            "the queue is closed, but {} handlers did not end within {timeout:?} (jobs {}): they are recorded as interrupted \
             and run again",
            report.interrupted.len(),
            ids.join(", ")
        )
    } else if report.planner_left {
        format!(
            "the queue is closed, but a plan was not made within {timeout:?}: its job is asked for it again at the next start"
        )
    } else if report.listeners_cut {
        format!(
            "the queue is closed, but callbacks did not hear every event within {timeout:?}: the log has them"
        )
    } else {
        return Ok(report);
    };
    Err(Error::new(ErrorKind::Timeout, problem))
}

impl fmt::Display for ShutdownReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "closed in {:?}, {} phases interrupted",
            self.took,
            self.interrupted.len()
        )
    }
}

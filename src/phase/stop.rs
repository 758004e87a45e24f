//! The flag by which a handler learns that it should stop, and why. L0.
//!
//! It is read without a lock. `tests/loom` takes this file as it is and goes through every interleaving and every order of memory
//! that the language allows. So it names nothing but `crate::sync` and `crate::time`.

use std::sync::Arc;
use std::time::Duration;

use crate::sync::{AtomicBool, AtomicU8, Condvar, Mutex, Ordering};
use crate::time::{Clock, monotonic};

/// Why a running handler is asked to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum StopReason {
    /// The job was cancelled.
    Cancelled,
    /// The phase took longer than its timeout, or the job longer than its deadline.
    Timeout,
    /// The queue shuts down and the time for that is over.
    Shutdown,
}

impl StopReason {
    const fn code(self) -> u8 {
        match self {
            StopReason::Cancelled => 1,
            StopReason::Timeout => 2,
            StopReason::Shutdown => 3,
        }
    }
}

/// The flag of one claim: set once, read by the handler whenever it likes.
#[derive(Debug, Default)]
pub(crate) struct StopFlag {
    is_set: AtomicBool,
    reason: AtomicU8,
    lock: Mutex<()>,
    wake: Condvar,
}

impl StopFlag {
    /// Sets it; the first reason stays.
    pub(crate) fn set(&self, reason: StopReason) {
        // A lost race keeps the first reason, which is what we want.
        self.reason
            .compare_exchange(0, reason.code(), Ordering::AcqRel, Ordering::Acquire)
            .ok();
        self.is_set.store(true, Ordering::Release);
        self.notify();
    }

    pub(crate) fn is_set(&self) -> bool {
        self.is_set.load(Ordering::Acquire)
    }

    pub(crate) fn reason(&self) -> Option<StopReason> {
        match self.reason.load(Ordering::Acquire) {
            1 => Some(StopReason::Cancelled),
            2 => Some(StopReason::Timeout),
            3 => Some(StopReason::Shutdown),
            _ => None,
        }
    }

    fn notify(&self) {
        // The empty critical section orders us after a sleeper that has just looked at the flag.
        drop(self.lock.lock());
        self.wake.notify_all();
    }

    /// Sleeps for `duration`; true when it slept that long, false when the flag was set.
    pub(crate) fn sleep(self: &Arc<StopFlag>, clock: &Clock, duration: Duration) -> bool {
        let flag = Arc::downgrade(self);
        clock.on_step(move || flag.upgrade().map(|flag| flag.notify()).is_some());
        // By the time that has passed: a clock that is set ends no sleep.
        let (until, started) = (clock.moment().after(duration), monotonic());
        let is_over = || clock.moment().passed.as_millis() >= until.passed.as_millis();
        let mut guard = self.lock.lock();
        loop {
            if self.is_set() {
                return false;
            }
            match clock.sleep_for(duration, duration) {
                // Real time: the monotonic clock alone decides.
                Some(_) => match duration.checked_sub(started.elapsed()) {
                    Some(left) if !left.is_zero() => drop(self.wake.wait_for(&mut guard, left)),
                    _ => return true,
                },
                None if is_over() => return true,
                None => self.wake.wait(&mut guard),
            }
        }
    }
}

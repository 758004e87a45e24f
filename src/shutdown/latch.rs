//! The latch of a shutdown: many may ask for the end, one brings it about, and all who wait hear of it. L3.
//!
//! `tests/loom` takes this file as it is.

use std::time::{Duration, Instant};

use crate::sync::{Condvar, Mutex};
use crate::time::monotonic;

pub(super) struct Latch<R> {
    state: Mutex<State<R>>,
    bell: Condvar,
}

struct State<R> {
    is_asked: bool,
    deadline: Option<Instant>,
    report: Option<R>,
}

impl<R> Default for Latch<R> {
    fn default() -> Latch<R> {
        Latch {
            state: Mutex::new(State {
                is_asked: false,
                deadline: None,
                report: None,
            }),
            bell: Condvar::default(),
        }
    }
}

impl<R: Clone> Latch<R> {
    /// Asks for the end; true for the first who does, who is to bring it about. A later one with an earlier deadline moves it.
    pub(super) fn ask(&self, deadline: Instant) -> bool {
        let mut state = self.state.lock();
        state.deadline = Some(state.deadline.map_or(deadline, |other| other.min(deadline)));
        !std::mem::replace(&mut state.is_asked, true)
    }

    pub(super) fn is_asked(&self) -> bool {
        self.state.lock().is_asked
    }

    /// The earliest that was asked for.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.state.lock().deadline
    }

    /// It is done.
    pub(super) fn close(&self, report: R) {
        self.state.lock().report = Some(report);
        self.bell.notify_all();
    }

    /// What was done, once it is done.
    pub(super) fn report(&self) -> Option<R> {
        self.state.lock().report.clone()
    }

    pub(super) fn wait(&self) -> R {
        let mut state = self.state.lock();
        loop {
            if let Some(report) = &state.report {
                return report.clone();
            }
            self.bell.wait(&mut state);
        }
    }

    /// As [`Latch::wait`], but no longer than until `overrun` after the deadline, the own one or an earlier one of another.
    pub(super) fn wait_until(&self, deadline: Instant, overrun: Duration) -> Option<R> {
        let mut state = self.state.lock();
        loop {
            if let Some(report) = &state.report {
                return Some(report.clone());
            }
            let until = state.deadline.unwrap_or(deadline).min(deadline) + overrun;
            let left = until.saturating_duration_since(monotonic());
            if left.is_zero() {
                return None;
            }
            self.bell.wait_for(&mut state, left);
        }
    }
}

//! How many jobs to claim, and when. L3, pure: numbers in, numbers out.
//!
//! # How far ahead
//!
//! A worker that has to wait for a commit to get its next phase stands idle for a commit's latency. A job that is claimed long
//! before a worker is free cannot be overtaken by one of a higher priority. So as many jobs are under way as the workers can
//! start while one commit lasts, and no more:
//!
//! ```text
//! window = workers + workers * (time of a commit) / (time of a phase), at most in_flight
//! ```
//!
//! (Little's law.) For phases that take longer than a commit this is the number of workers: a job is claimed when a worker is
//! free for it. For phases of microseconds it grows to `in_flight` within a few commits.

use std::time::Duration;

use crate::sync::{AtomicU64, Ordering};
use crate::time::Timestamp;

/// A worker whose processor was given to another thread is back after so long at most, as a rule. What takes no longer may be
/// such a pause in a phase of microseconds: it counts for little until others confirm it.
const SLICE: Duration = Duration::from_millis(10);

/// A mean that follows: each new value counts for an eighth.
#[derive(Debug, Default)]
struct Mean(AtomicU64);

impl Mean {
    fn add(&self, value: Duration) {
        let value = u64::try_from(value.as_nanos()).unwrap_or(u64::MAX).max(1);
        // Two threads may lose one of their values: it is an estimate.
        let old = self.0.load(Ordering::Relaxed);
        let new = if old == 0 {
            value
        } else {
            old - old / 8 + value / 8
        };
        self.0.store(new.max(1), Ordering::Relaxed);
    }

    fn nanos(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// The claim window.
#[derive(Debug)]
pub(crate) struct Window {
    workers: usize,
    in_flight: usize,
    phase: Mean,
    commit: Mean,
}

impl Window {
    pub(crate) fn new(workers: usize, in_flight: usize) -> Window {
        Window {
            workers,
            in_flight: in_flight.max(workers),
            phase: Mean::default(),
            commit: Mean::default(),
        }
    }

    pub(crate) fn phase_took(&self, took: Duration) {
        let mean = self.phase.nanos();
        let took = if mean > 0 && took < SLICE {
            took.min(Duration::from_nanos(mean.saturating_mul(4)))
        } else {
            took
        };
        self.phase.add(took);
    }

    pub(crate) fn commit_took(&self, took: Duration) {
        self.commit.add(took);
    }

    /// Jobs that may be under way.
    pub(crate) fn size(&self) -> usize {
        let (phase, commit) = (self.phase.nanos(), self.commit.nanos());
        if phase == 0 {
            return self.workers;
        }
        let ahead = u64::try_from(self.workers)
            .unwrap_or(u64::MAX)
            .saturating_mul(commit)
            / phase;
        let ahead = usize::try_from(ahead).unwrap_or(usize::MAX);
        self.workers.saturating_add(ahead).min(self.in_flight)
    }
}

/// What is known about jobs that wait.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Backlog {
    /// Due jobs may be there that could be claimed if there were room.
    pub(crate) is_waiting: bool,
    /// Due jobs are there whose type is at its limit: they can be claimed when another of their type ends.
    pub(crate) is_limited: bool,
    /// When the next job comes due.
    pub(crate) next_due: Option<Timestamp>,
    /// Something changed since the last look began: it may have been too early to see it.
    is_changed: bool,
}

impl Backlog {
    /// A claim begins to look. Whoever says now that something changed may be overlooked by it.
    pub(crate) fn look(&mut self) {
        self.is_changed = false;
    }

    /// A job was added that may start at `run_at`.
    pub(crate) fn added(&mut self, run_at: Timestamp, now: Timestamp) {
        if run_at <= now {
            self.is_waiting = true;
        } else {
            self.next_due = [self.next_due, Some(run_at)].into_iter().flatten().min();
        }
    }

    /// Something changed outside of what we are told: look again.
    pub(crate) fn unknown(&mut self) {
        self.is_waiting = true;
        self.is_changed = true;
    }

    /// A claim has looked at what was due, and left some: because it was full, or because of limits of types.
    pub(crate) fn looked(&mut self, is_full: bool, is_limited: bool, next_due: Option<Timestamp>) {
        self.is_waiting = is_full || self.is_changed;
        self.is_limited = is_limited;
        if !is_full {
            self.next_due = next_due;
        }
    }

    /// Time has come to `now`: what was to come due by then waits like the others.
    pub(crate) fn pass(&mut self, now: Timestamp) {
        if self.next_due.is_some_and(|at| at <= now) {
            self.next_due = None;
            self.is_waiting = true;
        }
    }

    /// A job is not under way any more.
    pub(crate) fn left(&mut self) {
        self.is_waiting |= self.is_limited;
    }

    /// Whether a claim would find something, as far as we know.
    pub(crate) fn is_due(&self, now: Timestamp) -> bool {
        self.is_waiting || self.next_due.is_some_and(|at| at <= now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn slow_phases_are_claimed_when_a_worker_is_free() {
        let window = Window::new(4, 256);
        assert_eq!(window.size(), 4, "before anything was measured");
        window.commit_took(MS);
        window.phase_took(100 * MS);
        assert_eq!(window.size(), 4);
    }

    #[test]
    fn fast_phases_are_claimed_a_commit_ahead_up_to_the_limit() {
        let window = Window::new(4, 256);
        window.commit_took(MS);
        window.phase_took(MS / 10);
        assert_eq!(window.size(), 44);
        for _ in 0..100 {
            window.phase_took(Duration::from_nanos(500));
        }
        assert_eq!(window.size(), 256);
        for _ in 0..100 {
            window.phase_took(Duration::from_secs(3));
        }
        assert_eq!(window.size(), 4, "slow again");
    }

    #[test]
    fn a_phase_that_had_to_wait_for_a_processor_does_not_count_for_much() {
        let window = Window::new(4, 256);
        window.commit_took(MS);
        for _ in 0..100 {
            window.phase_took(Duration::from_micros(2));
        }
        window.phase_took(8 * MS);
        assert_eq!(window.size(), 256);
        for _ in 0..30 {
            window.phase_took(8 * MS);
        }
        assert_eq!(window.size(), 4, "so long they are");
        for _ in 0..100 {
            window.phase_took(Duration::from_micros(2));
        }
        window.phase_took(100 * MS);
        assert_eq!(window.size(), 4, "no pause takes so long");
    }

    #[test]
    fn the_backlog_knows_what_is_due() {
        let at = Timestamp::from_millis;
        let mut backlog = Backlog::default();
        assert!(!backlog.is_due(at(0)));
        backlog.added(at(50), at(10));
        backlog.added(at(30), at(10));
        assert_eq!(
            (backlog.is_due(at(29)), backlog.is_due(at(30))),
            (false, true)
        );
        backlog.looked(false, true, Some(at(50)));
        assert!(
            !backlog.is_due(at(49)),
            "looking again would find nothing new"
        );
        assert!(backlog.is_due(at(50)));
        backlog.left();
        assert!(backlog.is_due(at(10)));
        backlog.look();
        backlog.looked(false, false, Some(at(50)));
        backlog.pass(at(49));
        assert_eq!(
            (backlog.is_waiting, backlog.next_due),
            (false, Some(at(50)))
        );
        backlog.pass(at(50));
        assert_eq!((backlog.is_waiting, backlog.next_due), (true, None));
        backlog.looked(false, false, Some(at(50)));
        backlog.left();
        assert!(!backlog.is_due(at(10)));
        backlog.added(at(10), at(10));
        assert!(backlog.is_due(at(10)));
    }

    /// A worker said that its zombie had left while a claim was under way that had left out the zombie's job. The claim found
    /// nothing, and nobody looked again.
    #[test]
    fn what_changes_during_a_look_is_looked_at_again() {
        let mut backlog = Backlog::default();
        backlog.look();
        backlog.unknown();
        backlog.looked(false, false, None);
        assert!(backlog.is_due(Timestamp::from_millis(0)));
        backlog.look();
        backlog.looked(false, false, None);
        assert!(!backlog.is_due(Timestamp::from_millis(0)));
    }
}

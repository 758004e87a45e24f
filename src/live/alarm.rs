//! What comes due while jobs are under way. L3.
//!
//! Deadlines are stored, so they go by the time of day. How long a phase may take, or a handler go on that was told to stop, goes by
//! what has passed: the wall clock may be set meanwhile, on a board without a battery by decades.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use crate::live::Offer;
use crate::time::{Moment, Timestamp};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Alarm {
    /// The phase has taken too long.
    PhaseTimeout,
    /// The job has taken too long, whether a worker is in its phase or not.
    Deadline,
    /// A handler did not stop when it was told to.
    Overstayed,
}

/// A heap gives the greatest first.
type Heap<T> = BinaryHeap<(Reverse<T>, Alarm, Offer)>;

#[derive(Default)]
pub(super) struct Alarms {
    by_clock: Heap<Timestamp>,
    by_passed: Heap<Duration>,
}

impl Alarms {
    pub(super) fn len(&self) -> usize {
        self.by_clock.len() + self.by_passed.len()
    }

    /// A deadline, at a time of day.
    pub(super) fn at(&mut self, at: Timestamp, of: Offer) {
        self.by_clock.push((Reverse(at), Alarm::Deadline, of));
    }

    /// When so much will have passed. Whether nothing else of this kind comes earlier.
    pub(super) fn when_passed(&mut self, passed: Duration, alarm: Alarm, of: Offer) -> bool {
        let first = self.by_passed.peek().map(|(Reverse(first), ..)| *first);
        self.by_passed.push((Reverse(passed), alarm, of));
        first.is_none_or(|first| passed < first)
    }

    /// Takes out what is due by now. Of the two of a job the one that was due first comes first; a deadline of the same moment before
    /// a timeout.
    pub(super) fn due(&mut self, now: Moment) -> Vec<(Alarm, Offer)> {
        let mut due = take_due(&mut self.by_clock, now.now, |at| now.now.since(at));
        due.extend(take_due(&mut self.by_passed, now.passed, |at| {
            now.passed.saturating_sub(at)
        }));
        due.sort_unstable_by_key(|due| Reverse(*due));
        due.into_iter().map(|(_, alarm, of)| (alarm, of)).collect()
    }

    /// When the next one is due, as it looks now.
    pub(super) fn next(&self, now: Moment) -> Option<Timestamp> {
        let by_clock = self.by_clock.peek().map(|(Reverse(at), ..)| *at);
        let by_passed = self.by_passed.peek();
        let by_passed = by_passed.map(|(Reverse(at), ..)| now.at_passed(*at));
        [by_clock, by_passed].into_iter().flatten().min()
    }

    pub(super) fn retain(&mut self, is_wanted: impl Fn(Alarm, Offer) -> bool) {
        self.by_clock
            .retain(|(_, alarm, of)| is_wanted(*alarm, *of));
        self.by_passed
            .retain(|(_, alarm, of)| is_wanted(*alarm, *of));
    }
}

/// With how long each is overdue.
fn take_due<T: Ord + Copy>(
    heap: &mut Heap<T>,
    now: T,
    overdue: impl Fn(T) -> Duration,
) -> Vec<(Duration, Alarm, Offer)> {
    let mut due = Vec::new();
    while let Some((Reverse(at), alarm, of)) = heap.peek().copied().filter(|it| it.0.0 <= now) {
        heap.pop();
        due.push((overdue(at), alarm, of));
    }
    due
}

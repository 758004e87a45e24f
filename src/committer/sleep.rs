//! A sleep of the committer thread, and who is woken from it too late. L3, pure.

use std::time::{Duration, Instant};

use crate::time::Timestamp;

/// By how much two clocks may differ over one sleep without one of them having been set.
const DRIFT: Duration = Duration::from_millis(500);

/// A sleep of the committer thread.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Sleep {
    /// What it waits for; none: until it is rung.
    pub(super) until: Option<Timestamp>,
    /// When it ends by the clock that it goes by; none: when it is rung, also by a fake clock.
    pub(super) ends: Option<Instant>,
}

impl Sleep {
    /// Whether who sleeps like that would be awake too late for `at`. One whose time has passed sleeps by a clock that was set forward
    /// since: he does not know of it before he looks again. The clock that he goes by may have stood still, too, with the machine.
    pub(super) fn is_late(self, at: Timestamp, now: Timestamp, passed: Instant) -> bool {
        let needed = passed.checked_add(at.since(now) + DRIFT);
        self.until.is_none_or(|until| at < until || until <= now)
            || self
                .ends
                .zip(needed)
                .is_some_and(|(ends, needed)| needed < ends)
    }
}

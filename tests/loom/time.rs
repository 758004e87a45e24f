//! What those files use of `crate::time`: a clock that is set by nobody.

use std::time::{Duration, Instant};

pub(crate) struct Clock;

#[derive(PartialEq, PartialOrd)]
pub(crate) struct Timestamp(Duration);

impl Timestamp {
    pub(crate) fn after(self, duration: Duration) -> Timestamp {
        Timestamp(self.0 + duration)
    }
}

impl Clock {
    pub(crate) fn now(&self) -> Timestamp {
        Timestamp(Duration::ZERO)
    }

    pub(crate) fn on_step(&self, _wake: impl Fn() -> bool + Send + 'static) {}

    pub(crate) fn sleep_for(&self, _wait: Duration, _recheck: Duration) -> Option<Duration> {
        None
    }
}

#[allow(
    clippy::disallowed_methods,
    reason = "it is what the flag asks instead"
)]
pub(crate) fn monotonic() -> Instant {
    Instant::now()
}

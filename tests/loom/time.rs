//! What those files use of `crate::time`: a clock that is set by nobody.

use std::time::{Duration, Instant};

pub(crate) struct Clock;

#[derive(Clone, Copy)]
pub(crate) struct Timestamp(Duration);

impl Timestamp {
    pub(crate) fn as_millis(self) -> u128 {
        self.0.as_millis()
    }
}

pub(crate) struct Moment {
    pub(crate) passed: Timestamp,
}

impl Moment {
    pub(crate) fn after(self, duration: Duration) -> Moment {
        let passed = Timestamp(self.passed.0 + duration);
        Moment { passed }
    }
}

impl Clock {
    pub(crate) fn moment(&self) -> Moment {
        let passed = Timestamp(Duration::ZERO);
        Moment { passed }
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

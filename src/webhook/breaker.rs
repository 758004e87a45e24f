//! A circuit breaker for each endpoint, so that a dead one takes no more than its share of threads. L3, pure.
//!
//! | state | leads to | when |
//! |---|---|---|
//! | closed | open | [`FAILURES_MAX`] tries in a row have failed |
//! | open | half open | the pause is over: one try is let through |
//! | half open | closed | that try worked |
//! | half open | open, with twice the pause | it failed |

use std::time::Duration;

use crate::time::Timestamp;

const FAILURES_MAX: u32 = 5;
const PAUSE_MIN: Duration = Duration::from_secs(30);
const PAUSE_MAX: Duration = Duration::from_secs(600);

/// How an endpoint has been lately. Forgotten with the process: a new one finds out by itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Breaker {
    failures: u32,
    /// Open, until then.
    until: Option<Timestamp>,
    pause: Duration,
    is_probing: bool,
}

impl Breaker {
    /// Whether a try may begin now; else when, if that is a matter of time.
    pub(super) fn admits(&self, now: Timestamp) -> Result<(), Option<Timestamp>> {
        match self.until {
            None => Ok(()),
            Some(_) if self.is_probing => Err(None),
            Some(until) if now < until => Err(Some(until)),
            Some(_) => Ok(()),
        }
    }

    /// A try begins.
    pub(super) fn begin(&mut self) {
        self.is_probing = self.until.is_some();
    }

    /// A try was cut off by us: it says nothing.
    pub(super) fn cut(&mut self) {
        self.is_probing = false;
    }

    pub(super) fn worked(&mut self) {
        *self = Breaker::default();
    }

    pub(super) fn failed(&mut self, now: Timestamp) {
        self.failures += 1;
        if self.failures < FAILURES_MAX {
            return;
        }
        // Tries that were on their way when it opened do not make the pause longer.
        if self.until.is_none() || self.is_probing {
            self.pause = (self.pause * 2).clamp(PAUSE_MIN, PAUSE_MAX);
            self.until = Some(now.after(self.pause));
        }
        self.is_probing = false;
    }

    /// Nothing is remembered of it.
    pub(super) fn is_new(&self) -> bool {
        *self == Breaker::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_millis(seconds * 1000)
    }

    #[test]
    fn it_opens_after_five_failures_in_a_row() {
        let mut breaker = Breaker::default();
        for _ in 0..4 {
            breaker.failed(at(0));
        }
        breaker.worked();
        for _ in 0..4 {
            breaker.failed(at(0));
            assert_eq!(breaker.admits(at(0)), Ok(()));
        }
        breaker.failed(at(0));
        assert_eq!(breaker.admits(at(29)), Err(Some(at(30))));
        breaker.failed(at(3));
        assert_eq!(
            breaker.admits(at(30)),
            Ok(()),
            "what was on its way changes nothing"
        );
    }

    #[test]
    fn one_try_at_a_time_finds_out_whether_it_works_again() {
        let mut breaker = Breaker::default();
        let (mut now, mut pauses) = (0, Vec::new());
        for _ in 0..5 {
            breaker.failed(at(now));
        }
        for _ in 0..7 {
            let Err(Some(until)) = breaker.admits(at(now)) else {
                panic!("open: {breaker:?}");
            };
            pauses.push(until.since(at(now)).as_secs());
            now = until.as_millis() / 1000;
            assert_eq!(breaker.admits(until), Ok(()));
            breaker.begin();
            assert_eq!(breaker.admits(until), Err(None), "one is under way");
            breaker.failed(at(now));
        }
        assert_eq!(pauses, [30, 60, 120, 240, 480, 600, 600]);
        now += 600;
        breaker.begin();
        breaker.cut();
        assert_eq!(
            breaker.admits(at(now)),
            Ok(()),
            "a try that we cut says nothing"
        );
        breaker.begin();
        breaker.worked();
        assert!(breaker.is_new());
    }
}

//! Whether the store works, and what is said of it. L3, pure.
//!
//! A change of state is one line of the log. On a damaged file some changes work and some never do, so that the state changes with
//! each of them: the same failure is told once a minute.

use std::time::{Duration, Instant};

use crate::error::Error;

/// How long the same failure is no news.
const TOLD_FOR: Duration = Duration::from_secs(60);

/// What the last commit said of the store.
#[derive(Debug, Default)]
pub(super) struct StoreHealth {
    failure: Option<String>,
    /// The failure that was told last, and when.
    told: Option<(String, Instant)>,
    /// Whether the present one was told.
    is_told: bool,
}

/// What is worth a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum News {
    Failed,
    WorksAgain,
    /// It works again, and nobody was told that it had not.
    Quietly,
    Nothing,
}

impl StoreHealth {
    pub(super) fn failure(&self) -> Option<&String> {
        self.failure.as_ref()
    }

    /// The store has failed (with the error), or works.
    pub(super) fn set(&mut self, failure: Option<&Error>, now: Instant) -> News {
        let failure = failure.map(ToString::to_string);
        let before = std::mem::replace(&mut self.failure, failure);
        match (before, &self.failure) {
            (None, Some(failure)) => {
                let is_recent = |(told, at): &(String, Instant)| {
                    told == failure && now.saturating_duration_since(*at) < TOLD_FOR
                };
                self.is_told = !self.told.as_ref().is_some_and(is_recent);
                if !self.is_told {
                    return News::Nothing;
                }
                self.told = Some((failure.clone(), now));
                News::Failed
            }
            (Some(_), None) if self.is_told => News::WorksAgain,
            (Some(_), None) => News::Quietly,
            (Some(_), Some(_)) | (None, None) => News::Nothing,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;
    use crate::time::monotonic;

    /// The bug: a file was damaged where cancels write, and each of twenty refused cancels was two lines of the log.
    #[test]
    fn the_same_failure_is_told_once_a_minute_and_another_one_at_once() {
        let error = |text: &str| Error::new(ErrorKind::Storage, text);
        let mut health = StoreHealth::default();
        let start = monotonic();
        assert_eq!(health.set(Some(&error("damaged")), start), News::Failed);
        assert_eq!(health.set(Some(&error("damaged")), start), News::Nothing);
        assert_eq!(health.set(None, start), News::WorksAgain);
        assert_eq!(health.set(None, start), News::Nothing);
        for _ in 0..20 {
            assert_eq!(health.set(Some(&error("damaged")), start), News::Nothing);
            assert!(health.failure().is_some(), "it is not well all the same");
            assert_eq!(health.set(None, start), News::Quietly);
        }
        assert_eq!(health.set(Some(&error("full")), start), News::Failed);
        assert_eq!(health.set(None, start), News::WorksAgain);
        assert_eq!(health.set(Some(&error("full")), start), News::Nothing);
        assert_eq!(health.set(None, start), News::Quietly);
        let later = start + TOLD_FOR;
        assert_eq!(health.set(Some(&error("full")), later), News::Failed);
    }
}

//! When and how often a failed phase is tried again. L0, pure.
//!
//! Jitter spreads retries out. It comes from a mix of the job's id and its attempt (splitmix64, Steele, Lea and Flood,
//! "Fast Splittable Pseudorandom Number Generators", OOPSLA 2014), so that the delay is a function of its inputs and a test
//! can say what it will be.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use crate::error::{Error, ErrorKind, Result, panic_text};

/// How many tries a job gets and how long it waits between them.
///
/// Defaults to 5 tries, waiting 1 s, 2 s, 4 s, 8 s with a jitter of 20 % and at most 1 hour.
#[derive(Clone)]
pub struct RetryPolicy {
    max_attempts: u32,
    backoff: Backoff,
    cap: Duration,
    jitter: f64,
}

#[derive(Clone)]
enum Backoff {
    Exponential { base: Duration, factor: f64 },
    Fixed(Duration),
    Custom(Arc<dyn Fn(u32) -> Duration + Send + Sync>),
}

impl RetryPolicy {
    /// `base`, then each delay `factor` times the one before.
    #[must_use]
    pub fn exponential(base: Duration, factor: f64) -> RetryPolicy {
        RetryPolicy {
            backoff: Backoff::Exponential { base, factor },
            ..RetryPolicy::default()
        }
    }

    /// The same delay each time, without jitter unless asked for.
    #[must_use]
    pub fn fixed(delay: Duration) -> RetryPolicy {
        RetryPolicy {
            backoff: Backoff::Fixed(delay),
            jitter: 0.0,
            ..RetryPolicy::default()
        }
    }

    /// A delay of your own, from the number of tries that have failed (1, 2, ...). It is called on a worker thread, with no lock held,
    /// for the tries that leave another one; with a timeout of the phase before the handler is. If it panics, the longest delay counts
    /// (see [`cap`](RetryPolicy::cap)).
    #[must_use]
    pub fn custom(delay: impl Fn(u32) -> Duration + Send + Sync + 'static) -> RetryPolicy {
        RetryPolicy {
            backoff: Backoff::Custom(Arc::new(delay)),
            jitter: 0.0,
            ..RetryPolicy::default()
        }
    }

    /// No second try.
    #[must_use]
    pub fn never() -> RetryPolicy {
        RetryPolicy {
            max_attempts: 1,
            ..RetryPolicy::default()
        }
    }

    /// Tries in all, the first one included. Defaults to `5`; 1 or more.
    #[must_use]
    pub fn max_attempts(mut self, max: u32) -> RetryPolicy {
        self.max_attempts = max;
        self
    }

    /// No delay is longer than this. Defaults to `3600 s`.
    #[must_use]
    pub fn cap(mut self, cap: Duration) -> RetryPolicy {
        self.cap = cap;
        self
    }

    /// Each delay is drawn evenly from (1 - share) to (1 + share) times its length. Defaults to `0.2` for exponential
    /// delays and `0.0` for the others; 0 to 1.
    #[must_use]
    pub fn jitter(mut self, share: f64) -> RetryPolicy {
        self.jitter = share;
        self
    }

    pub(crate) fn attempts_max(&self) -> u32 {
        self.max_attempts
    }

    /// The wait after `failed` tries (1, 2, ...). `seed` decides the jitter.
    pub(crate) fn next_delay(&self, failed: u32, seed: u64) -> Duration {
        let failed = failed.max(1);
        let delay = match &self.backoff {
            Backoff::Exponential { base, .. } if base.is_zero() => Duration::ZERO,
            Backoff::Exponential { base, factor } => {
                let exponent = i32::try_from(failed - 1).unwrap_or(i32::MAX);
                let seconds = base.as_secs_f64() * factor.powi(exponent);
                Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)
            }
            Backoff::Fixed(delay) => *delay,
            Backoff::Custom(delay) => {
                let asked = catch_unwind(AssertUnwindSafe(|| delay(failed)));
                asked.unwrap_or_else(|panic| {
                    log::error!(
                        "the delay after try {failed} panicked: {}",
                        panic_text(panic)
                    );
                    self.cap
                })
            }
        };
        let delay = delay.min(self.cap);
        if self.jitter == 0.0 {
            return delay;
        }
        let share = 1.0 + self.jitter * (2.0 * unit(seed ^ u64::from(failed)) - 1.0);
        Duration::try_from_secs_f64(delay.as_secs_f64() * share)
            .unwrap_or(self.cap)
            .min(self.cap)
    }

    pub(crate) fn validate(&self, owner: &str) -> Result<()> {
        let problem = match &self.backoff {
            _ if self.max_attempts == 0 => "max_attempts is 0: one try is the least".to_owned(),
            _ if !(0.0..=1.0).contains(&self.jitter) => {
                format!("jitter is {}: expected 0 to 1", self.jitter)
            }
            Backoff::Exponential { factor, .. } if !(1.0..=1000.0).contains(factor) => {
                format!("factor is {factor}: expected 1 to 1000")
            }
            Backoff::Exponential { .. } | Backoff::Fixed(_) | Backoff::Custom(_) => return Ok(()),
        };
        Err(Error::new(
            ErrorKind::InvalidConfig,
            format!("{owner}: retry policy: {problem}"),
        ))
    }
}

impl Default for RetryPolicy {
    fn default() -> RetryPolicy {
        RetryPolicy {
            max_attempts: 5,
            backoff: Backoff::Exponential {
                base: Duration::from_secs(1),
                factor: 2.0,
            },
            cap: Duration::from_secs(3600),
            jitter: 0.2,
        }
    }
}

impl fmt::Debug for RetryPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let backoff: &dyn fmt::Debug = match &self.backoff {
            Backoff::Exponential { base, factor } => &format!("exponential({base:?}, {factor})"),
            Backoff::Fixed(delay) => &format!("fixed({delay:?})"),
            Backoff::Custom(_) => &"custom",
        };
        f.debug_struct("RetryPolicy")
            .field("max_attempts", &self.max_attempts)
            .field("backoff", backoff)
            .field("cap", &self.cap)
            .field("jitter", &self.jitter)
            .finish()
    }
}

/// An even number in [0, 1) from `seed`: one step of splitmix64.
#[allow(clippy::cast_precision_loss, reason = "53 bits fit a double exactly")]
pub(crate) fn unit(seed: u64) -> f64 {
    let mut z = seed
        .wrapping_mul(0x9E37_79B9_7F4A_7C15)
        .wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    ((z ^ (z >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);

    #[test]
    fn delays_grow_by_the_factor_up_to_the_cap() {
        let policy = RetryPolicy::exponential(S, 3.0).jitter(0.0).cap(20 * S);
        assert_eq!(
            [1, 2, 3, 4, 5000].map(|n| policy.next_delay(n, 0)),
            [S, 3 * S, 9 * S, 20 * S, 20 * S]
        );
        assert_eq!(RetryPolicy::fixed(2 * S).next_delay(9, 7), 2 * S);
        assert_eq!(RetryPolicy::custom(|n| n * S).next_delay(4, 7), 4 * S);
    }

    #[test]
    fn jitter_spreads_evenly_within_its_share_and_repeats_for_a_seed() {
        let policy = RetryPolicy::exponential(S, 2.0);
        let delays: Vec<_> = (0..10_000)
            .map(|seed| policy.next_delay(1, seed).as_secs_f64())
            .collect();
        assert!(delays.iter().all(|delay| (0.8..=1.2).contains(delay)));
        let mean = delays.iter().sum::<f64>() / 10_000.0;
        assert!((0.99..1.01).contains(&mean), "mean {mean}");
        assert!(
            delays.iter().any(|delay| *delay < 0.82) && delays.iter().any(|delay| *delay > 1.18)
        );
        assert_eq!(policy.next_delay(3, 42), policy.next_delay(3, 42));
    }

    #[test]
    fn a_bad_policy_is_refused_by_name() {
        let error = RetryPolicy::default()
            .max_attempts(0)
            .validate("job type \"a\"")
            .unwrap_err();
        assert_eq!(
            error.to_string(),
            "job type \"a\": retry policy: max_attempts is 0: one try is the least"
        );
        assert!(RetryPolicy::default().jitter(1.5).validate("x").is_err());
        assert!(RetryPolicy::exponential(S, 0.5).validate("x").is_err());
        assert!(RetryPolicy::never().validate("x").is_ok());
    }
}

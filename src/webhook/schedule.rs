//! When a delivery is tried again. L3, pure.

use std::time::Duration;

use crate::retry::unit;

const RETRY_AFTER_MIN: Duration = Duration::from_secs(1);
const RETRY_AFTER_MAX: Duration = Duration::from_secs(86_400);

/// The waits before each try, and how far each is spread.
///
/// Defaults to those of Standard Webhooks (<https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md>):
/// at once, 5 s, 5 min, 30 min, 2 h, 5 h, 10 h, 14 h, 20 h, 24 h.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Schedule {
    pub(super) delays: Vec<Duration>,
    /// Each is drawn evenly from (1 - share) to (1 + share) times its length.
    pub(super) jitter: f64,
}

impl Default for Schedule {
    fn default() -> Schedule {
        const HOUR: u64 = 3600;
        let seconds = [
            0,
            5,
            300,
            1800,
            2 * HOUR,
            5 * HOUR,
            10 * HOUR,
            14 * HOUR,
            20 * HOUR,
            24 * HOUR,
        ];
        Schedule {
            delays: seconds.map(Duration::from_secs).to_vec(),
            jitter: 0.2,
        }
    }
}

impl Schedule {
    /// The wait after `failed` tries (1, 2, ...); none when they were all.
    pub(super) fn next_delay(
        &self,
        failed: u32,
        asked: Option<Duration>,
        seed: u64,
    ) -> Option<Duration> {
        let delay = *self.delays.get(usize::try_from(failed).ok()?)?;
        if let Some(asked) = asked {
            return Some(asked.clamp(RETRY_AFTER_MIN, RETRY_AFTER_MAX));
        }
        let share = 1.0 + self.jitter * (2.0 * unit(seed ^ u64::from(failed)) - 1.0);
        // The longest is so long that it could not be spread.
        let spread = Duration::try_from_secs_f64(delay.as_secs_f64() * share);
        Some(spread.unwrap_or(delay))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_delivery_is_given_up_after_its_last_try() {
        let schedule = Schedule::default();
        for failed in 1..10 {
            let delay = schedule.next_delay(failed, None, 7).expect("one more try");
            let plain = schedule.delays[failed as usize];
            assert!(
                delay >= plain.mul_f64(0.8) && delay <= plain.mul_f64(1.2),
                "{failed}: {delay:?}"
            );
        }
        assert_eq!(schedule.next_delay(10, None, 7), None);
        assert_eq!(
            schedule.next_delay(10, Some(Duration::from_secs(2)), 7),
            None
        );
    }

    #[test]
    fn what_the_receiver_asks_for_is_honoured_within_limits() {
        let schedule = Schedule::default();
        let asked = |seconds| schedule.next_delay(1, Some(Duration::from_secs(seconds)), 7);
        assert_eq!(asked(2), Some(Duration::from_secs(2)));
        assert_eq!(asked(0), Some(Duration::from_secs(1)));
        assert_eq!(asked(1 << 40), Some(Duration::from_secs(86_400)));
    }

    #[test]
    fn a_wait_without_end_is_no_panic() {
        let schedule = Schedule {
            delays: vec![Duration::MAX; 2],
            jitter: 1.0,
        };
        assert!((0..50).all(|seed| schedule.next_delay(1, None, seed).is_some()));
    }

    #[test]
    fn deliveries_are_spread_out() {
        let schedule = Schedule::default();
        let delays: std::collections::HashSet<_> = (0..50)
            .map(|seed| schedule.next_delay(2, None, seed))
            .collect();
        assert!(delays.len() > 40);
    }
}

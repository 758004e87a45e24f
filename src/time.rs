//! Time as a value. L0. The only file that reads a clock.
//!
//! Everything that is stored is a [`Timestamp`]: whole milliseconds since 1970-01-01 UTC. Everything that is waited for is a
//! [`Duration`] on the monotonic clock. [`Clock::now`] joins the two so that a clock step neither stalls nor storms:
//!
//! - the wall clock steps *forward* (a board without a battery learns the time): followed at once;
//! - it steps *back*: our time goes on from where it was at the pace of the monotonic clock, until the wall clock has caught
//!   up. A retry that was to wait 5 s waits 5 s, not until the year comes round again. Whoever opens a file that is ahead of the
//!   wall clock goes on from there in the same way.
//!
//! So within one process `now` never goes back, nor from one opening of a file to the next.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::sync::Mutex;

/// A point in time: whole milliseconds since 1970-01-01T00:00:00 UTC.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(i64);

crate::json::number!(Timestamp);

impl Timestamp {
    /// The latest time that can be stored: the end of the year 9999. Sums stop here.
    pub const MAX: Timestamp = Timestamp(253_402_300_799_999);

    /// What the system clock says.
    #[must_use]
    pub fn now() -> Timestamp {
        Timestamp(wall_ms())
    }

    /// From milliseconds since 1970; times after [`Timestamp::MAX`] become that.
    #[must_use]
    pub const fn from_millis(ms: i64) -> Timestamp {
        if ms > Timestamp::MAX.0 {
            Timestamp::MAX
        } else {
            Timestamp(ms)
        }
    }

    /// Milliseconds since 1970.
    #[must_use]
    pub const fn as_millis(self) -> i64 {
        self.0
    }

    /// This time, `duration` later. Stops at [`Timestamp::MAX`].
    #[must_use]
    pub fn after(self, duration: Duration) -> Timestamp {
        let ms = i64::try_from(duration.as_millis()).unwrap_or(i64::MAX);
        Timestamp::from_millis(self.0.saturating_add(ms))
    }

    /// This time, `duration` earlier.
    #[must_use]
    pub fn before(self, duration: Duration) -> Timestamp {
        let ms = i64::try_from(duration.as_millis()).unwrap_or(i64::MAX);
        Timestamp(self.0.saturating_sub(ms))
    }

    /// How long from `earlier` to this time; zero when `earlier` is later.
    #[must_use]
    pub fn since(self, earlier: Timestamp) -> Duration {
        Duration::from_millis(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }
}

impl From<SystemTime> for Timestamp {
    fn from(time: SystemTime) -> Timestamp {
        let ms = match time.duration_since(UNIX_EPOCH) {
            Ok(since) => i64::try_from(since.as_millis()).unwrap_or(i64::MAX),
            Err(before) => i64::try_from(before.duration().as_millis()).map_or(i64::MIN, |ms| -ms),
        };
        Timestamp::from_millis(ms)
    }
}

impl fmt::Display for Timestamp {
    /// RFC 3339 in UTC with milliseconds: `2026-11-23T12:00:00.000Z`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (days, ms) = (self.0.div_euclid(86_400_000), self.0.rem_euclid(86_400_000));
        let (year, month, day) = civil_from_days(days);
        let (hour, minute, second) = (ms / 3_600_000, ms / 60_000 % 60, ms / 1000 % 60);
        write!(
            f,
            "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{:03}Z",
            ms % 1000
        )
    }
}

/// Days since 1970-01-01 to (year, month, day).
/// Source: Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms", `civil_from_days`.
fn civil_from_days(days: i64) -> (i64, i64, i64) {
    let z = days + 719_468;
    let (era, day_of_era) = (z.div_euclid(146_097), z.rem_euclid(146_097));
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 {
        shifted_month + 3
    } else {
        shifted_month - 9
    };
    (year_of_era + era * 400 + i64::from(month <= 2), month, day)
}

fn wall_ms() -> i64 {
    #[allow(
        clippy::disallowed_methods,
        reason = "the one place that reads the wall clock"
    )]
    let now = SystemTime::now();
    Timestamp::from(now).0
}

/// The monotonic clock, for measuring and for deadlines of threads.
#[must_use]
#[cfg(not(all(test, stepwell_shuttle)))]
pub(crate) fn monotonic() -> Instant {
    #[allow(
        clippy::disallowed_methods,
        reason = "the one place that reads the monotonic clock"
    )]
    Instant::now()
}

/// One that stands still while no thread pauses.
#[cfg(all(test, stepwell_shuttle))]
#[allow(
    clippy::disallowed_methods,
    reason = "the one place that reads the monotonic clock"
)]
pub(crate) fn monotonic() -> Instant {
    static START: std::sync::LazyLock<Instant> = std::sync::LazyLock::new(Instant::now);
    *START + crate::sync::passed()
}

/// Where an engine gets its time from. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Clock(Arc<Source>);

enum Source {
    System(Mutex<Anchor>),
    Fake(FakeClock),
}

/// The last time that was handed out, and when on the monotonic clock.
struct Anchor {
    now: Timestamp,
    at: Instant,
    /// When the clock was made.
    since: Instant,
}

/// The present, by both of a queue's clocks. What is stored, or promised for a time of day, goes by `now`; how long something in
/// this process may take goes by `passed`, since the wall clock may be set forward at any time, on a board without a battery by
/// decades.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Moment {
    pub(crate) now: Timestamp,
    /// Since the clock was made; whole milliseconds.
    pub(crate) passed: Duration,
}

impl Moment {
    /// When so much will have passed, as it looks now.
    pub(crate) fn at_passed(self, passed: Duration) -> Timestamp {
        self.now.after(passed.saturating_sub(self.passed))
    }

    /// Later by as much, on both.
    pub(crate) fn after(self, duration: Duration) -> Moment {
        Moment {
            now: self.now.after(duration),
            passed: self.passed.saturating_add(duration),
        }
    }
}

impl Clock {
    pub(crate) fn system() -> Clock {
        let at = monotonic();
        Clock(Arc::new(Source::System(Mutex::new(Anchor {
            now: Timestamp::now(),
            at,
            since: at,
        }))))
    }

    pub(crate) fn fake(fake: FakeClock) -> Clock {
        Clock(Arc::new(Source::Fake(fake)))
    }

    /// The present time; never earlier than an answer before it.
    pub(crate) fn now(&self) -> Timestamp {
        match &*self.0 {
            Source::System(anchor) => steady(&mut anchor.lock(), wall_ms(), monotonic()),
            Source::Fake(fake) => fake.now(),
        }
    }

    /// What this clock is used for has got to `at` already: it goes on from there if it shows less. A board without a battery begins in
    /// 1970 each time, or on the day on which its system was built, and what waits in its file for a time of last week must not
    /// wait for a network that tells the date. When `at` is ten years ahead of a clock that was set, that was wrong.
    pub(crate) fn go_on_from(&self, at: Timestamp) {
        match &*self.0 {
            Source::System(anchor) => {
                let mut anchor = anchor.lock();
                if at > anchor.now && is_credible(at, anchor.now) {
                    (anchor.now, anchor.at) = (at, monotonic());
                }
            }
            Source::Fake(fake) => {
                let mut guard = fake.0.lock();
                if at > guard.now && is_credible(at, guard.now) {
                    guard.now = at;
                    wake(guard, &fake.0);
                }
            }
        }
    }

    /// The present time on both clocks.
    pub(crate) fn moment(&self) -> Moment {
        match &*self.0 {
            Source::System(anchor) => {
                let mut anchor = anchor.lock();
                let at = monotonic();
                Moment {
                    now: steady(&mut anchor, wall_ms(), at),
                    passed: whole_ms(at.saturating_duration_since(anchor.since)),
                }
            }
            Source::Fake(fake) => {
                let fake = fake.0.lock();
                Moment {
                    now: fake.now,
                    passed: fake.passed,
                }
            }
        }
    }

    /// What the wall clock shows, also when it was set back: what others compare with their own.
    #[cfg(feature = "webhook")]
    pub(crate) fn wall(&self) -> Timestamp {
        match &*self.0 {
            Source::System(_) => Timestamp::now(),
            Source::Fake(fake) => Timestamp::from_millis(fake.0.lock().wall_ms),
        }
    }

    /// How long a thread may sleep when the next due time is `wait` away. The wall clock may step while it sleeps, so a sleep
    /// is cut into pieces of at most `recheck`. `None`: until somebody wakes it up (a fake clock does when it is set; for what is
    /// due already it need not be).
    pub(crate) fn sleep_for(&self, wait: Duration, recheck: Duration) -> Option<Duration> {
        match &*self.0 {
            Source::System(_) => Some(wait.min(recheck)),
            Source::Fake(_) => wait.is_zero().then_some(wait),
        }
    }

    /// Registers what wakes a sleeper up after the fake clock was set. The system clock needs none.
    pub(crate) fn on_step(&self, wake: impl Fn() -> bool + Send + Sync + 'static) {
        if let Source::Fake(fake) = &*self.0 {
            fake.0.lock().wakers.push(Arc::new(wake));
        }
    }
}

/// A thread that waits for a job's due time looks at the wall clock this often: it bounds how late a job can start after the
/// clock was set forward. A queue without due times sleeps without end.
pub(crate) const RECHECK: Duration = Duration::from_secs(60);
/// For what need not be on time: an idle queue that keeps old jobs wakes up once an hour.
pub(crate) const RECHECK_LAZY: Duration = Duration::from_secs(3600);

/// Without the fraction: what is due in less than a millisecond would be waited for in vain, by clocks that count them.
fn whole_ms(duration: Duration) -> Duration {
    Duration::from_millis(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX))
}

/// A clock that shows less was never set (2020-01-01): what happened "then" says nothing about its age.
pub(crate) const CLOCK_WAS_SET: Timestamp = Timestamp::from_millis(1_577_836_800_000);
const AHEAD_MAX: Duration = Duration::from_secs(3653 * 86_400);

fn is_credible(at: Timestamp, now: Timestamp) -> bool {
    now < CLOCK_WAS_SET || at <= now.after(AHEAD_MAX)
}

fn steady(anchor: &mut Anchor, wall_ms: i64, at: Instant) -> Timestamp {
    // A backward step, or two threads that read the clocks in a different order than they got the lock.
    let elapsed = at.saturating_duration_since(anchor.at);
    let now = Timestamp::from_millis(wall_ms).max(anchor.now);
    let steady = anchor.now.after(elapsed);
    // Half a second of difference is drift or rounding, not a step: follow the wall.
    let is_behind = now == anchor.now
        && steady.since(Timestamp::from_millis(wall_ms)) > Duration::from_millis(500);
    if is_behind {
        // By what was counted, and not to `at`: the rest of a millisecond that each look would lose made the clock half as fast.
        anchor.at += steady.since(anchor.now);
        anchor.now = steady;
    } else if now > anchor.now {
        anchor.now = now;
        anchor.at = at.max(anchor.at);
    }
    anchor.now
}

/// A clock that stands still until a test moves it.
///
/// Like the real one as the queue sees it, it never shows an earlier time than before: [`FakeClock::step_back`] moves the
/// wall behind it, and the queue goes on steadily. A file that is opened with it and is ahead moves it forward.
#[derive(Clone)]
pub struct FakeClock(Arc<Mutex<Fake>>);

/// Wakes one sleeper; false when its queue is gone.
type Waker = Arc<dyn Fn() -> bool + Send + Sync>;

struct Fake {
    wall_ms: i64,
    now: Timestamp,
    passed: Duration,
    wakers: Vec<Waker>,
}

impl FakeClock {
    /// A clock that shows `start`.
    #[must_use]
    pub fn new(start: Timestamp) -> FakeClock {
        FakeClock(Arc::new(Mutex::new(Fake {
            wall_ms: start.0,
            now: start,
            passed: Duration::ZERO,
            wakers: Vec::new(),
        })))
    }

    /// What the queue sees.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        self.0.lock().now
    }

    /// Time passes.
    pub fn advance(&self, by: Duration) {
        let mut fake = self.0.lock();
        let ms = i64::try_from(by.as_millis()).unwrap_or(i64::MAX);
        fake.wall_ms = fake.wall_ms.saturating_add(ms);
        fake.now = Timestamp::from_millis(fake.wall_ms).max(fake.now.after(by));
        fake.passed = whole_ms(fake.passed.saturating_add(by));
        wake(fake, &self.0);
    }

    /// Somebody sets the wall clock forward; no time passes. What is due at a time of day comes due, and no phase times out.
    pub fn step_forward(&self, by: Duration) {
        let mut fake = self.0.lock();
        let ms = i64::try_from(by.as_millis()).unwrap_or(i64::MAX);
        fake.wall_ms = fake.wall_ms.saturating_add(ms);
        fake.now = Timestamp::from_millis(fake.wall_ms).max(fake.now);
        wake(fake, &self.0);
    }

    /// Somebody sets the wall clock back; no time passes.
    pub fn step_back(&self, by: Duration) {
        let mut fake = self.0.lock();
        fake.wall_ms = fake
            .wall_ms
            .saturating_sub(i64::try_from(by.as_millis()).unwrap_or(i64::MAX));
        wake(fake, &self.0);
    }
}

/// Wakes every sleeper, and forgets those whose queue is gone. The lock is let go before: a sleeper asks for the time.
fn wake(fake: crate::sync::MutexGuard<'_, Fake>, clock: &Mutex<Fake>) {
    // They stay in the list, for whoever moves the clock in the meantime.
    let wakers = fake.wakers.clone();
    drop(fake);
    let gone: Vec<_> = wakers.into_iter().filter(|wake| !wake()).collect();
    let mut fake = clock.lock();
    fake.wakers
        .retain(|wake| !gone.iter().any(|it| Arc::ptr_eq(it, wake)));
}

impl fmt::Debug for FakeClock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FakeClock({})", self.now())
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Clock({})", self.now())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timestamp_prints_as_rfc_3339() {
        let cases = [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_400_123, "2000-02-29T00:00:00.123Z"),
            (1_795_435_522_007, "2026-11-23T12:05:22.007Z"),
            (-1, "1969-12-31T23:59:59.999Z"),
            (i64::MAX, "9999-12-31T23:59:59.999Z"),
        ];
        for (ms, text) in cases {
            assert_eq!(Timestamp::from_millis(ms).to_string(), text);
        }
    }

    #[test]
    fn nobody_sleeps_for_what_is_due() {
        let fake = FakeClock::new(Timestamp(1_000_000));
        for clock in [Clock::system(), Clock::fake(fake)] {
            let slept = clock.sleep_for(Duration::ZERO, RECHECK);
            assert_eq!(slept, Some(Duration::ZERO), "{clock:?}");
        }
    }

    #[test]
    fn two_who_move_a_clock_at_once_both_wake_the_sleepers() {
        let fake = FakeClock::new(Timestamp(0));
        let (clock, other) = (Clock::fake(fake.clone()), fake.clone());
        let woken = Arc::new(Mutex::new(0));
        let count = woken.clone();
        clock.on_step(move || {
            let mut woken = count.lock();
            *woken += 1;
            let is_first = *woken == 1;
            drop(woken);
            if is_first {
                other.advance(Duration::from_millis(1));
            }
            true
        });
        fake.advance(Duration::from_millis(1));
        assert_eq!(*woken.lock(), 2);
    }

    #[test]
    fn the_wall_clock_is_followed_forward_and_never_back() {
        let start = monotonic();
        let mut anchor = Anchor {
            now: Timestamp(1_000_000),
            at: start,
            since: start,
        };
        let s = Duration::from_secs(1);
        assert_eq!(
            steady(&mut anchor, 1_001_000, start + s),
            Timestamp(1_001_000)
        );
        // A step forward by a year is taken at once.
        assert_eq!(
            steady(&mut anchor, 32_000_000_000, start + 2 * s),
            Timestamp(32_000_000_000)
        );
        // A step back to 1970: time goes on at its pace.
        assert_eq!(
            steady(&mut anchor, 5, start + 3 * s),
            Timestamp(32_000_001_000)
        );
        assert_eq!(
            steady(&mut anchor, 1005, start + 4 * s),
            Timestamp(32_000_002_000)
        );
        // The wall has caught up.
        assert_eq!(
            steady(&mut anchor, 32_000_003_500, start + 5 * s),
            Timestamp(32_000_003_500)
        );
    }

    /// The bug: each look lost the rest of its last millisecond.
    #[test]
    fn behind_a_wall_that_was_set_back_time_goes_on_at_its_pace() {
        let start = monotonic();
        let mut anchor = Anchor {
            now: Timestamp(1_000_000),
            at: start,
            since: start,
        };
        for look in 1..=1000 {
            steady(&mut anchor, 5, start + look * Duration::from_micros(1900));
        }
        assert_eq!(anchor.now, Timestamp(1_001_900));
    }

    #[test]
    fn a_clock_goes_on_from_where_the_file_is() {
        let year = Duration::from_secs(365 * 86_400);
        let set = CLOCK_WAS_SET.after(year);
        for (now, at, expected) in [
            (Timestamp(5), set, set),
            (set, set.after(year), set.after(year)),
            (set, Timestamp(5), set),
            // Somebody had set the clock to 2090.
            (set, set.after(70 * year), set),
        ] {
            let fake = FakeClock::new(now);
            Clock::fake(fake.clone()).go_on_from(at);
            assert_eq!(fake.now(), expected, "{now} {at}");
        }
        let clock = Clock::system();
        let ahead = Timestamp::now().after(year);
        clock.go_on_from(ahead);
        assert!(clock.now() >= ahead && clock.now() < ahead.after(year));
    }

    #[test]
    fn a_fake_clock_wakes_its_sleepers() {
        let fake = FakeClock::new(Timestamp(0));
        let (tx, rx) = crate::sync::unbounded();
        Clock::fake(fake.clone()).on_step(move || tx.send(()).is_ok());
        fake.advance(Duration::from_millis(7));
        assert_eq!((rx.try_recv().is_ok(), fake.now()), (true, Timestamp(7)));
        fake.step_back(Duration::from_millis(5));
        assert_eq!(fake.now(), Timestamp(7));
        fake.advance(Duration::from_millis(1));
        assert_eq!(fake.now(), Timestamp(8));
    }
}

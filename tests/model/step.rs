//! Histories: lists of steps, made from a seed. A step names jobs by a number that is reduced to what is there when it comes, so that
//! every part of a history is a history: that is what makes them shorter when one has failed.

use std::time::Duration;

use serde_json::{Value, json};

use super::kinds::{self, NAMES, PLANS, ms_of};
use super::model::{Hold, Keep, New};
use super::stage::Answer;

#[derive(Clone, Debug)]
pub(crate) enum Step {
    /// In one commit. With where deliveries about each job go.
    Enqueue(Vec<(New, Option<Hook>)>),
    /// Something that is refused, with a job beside it that is not to be stored either.
    Refused(bool),
    Answer(u64, Answer),
    Save(u64, u64),
    Cancel(u64),
    Retry(u64, bool),
    Delete(u64),
    Bulk(Bulk),
    Pause(Option<usize>, bool),
    Tick(i64),
    /// The wall clock is set back.
    Back(i64),
    /// And forward.
    Forward(i64),
    Subscribe,
    /// The seed says what handlers do; the clock moves by so much while nothing runs.
    Restart(u64, i64),
    Crash(u64, i64),
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Bulk {
    /// 0 cancels, 1 retries, 2 retries from the start, 3 deletes.
    pub(crate) action: u64,
    pub(crate) status: usize,
    pub(crate) kind: Option<usize>,
    pub(crate) expect: Option<usize>,
}

/// How a receiver of deliveries behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hook {
    Good,
    /// The first try of each delivery fails.
    Once,
    /// The first delivery fails for ever.
    First,
    /// Wants none, and says so.
    Gone,
}

impl Hook {
    pub(crate) fn path(self) -> &'static str {
        match self {
            Hook::Good => "/good",
            Hook::Once => "/once",
            Hook::First => "/first",
            Hook::Gone => "/gone",
        }
    }
}

/// What a history is about.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Config {
    pub(crate) seed: u64,
    pub(crate) workers: usize,
    /// Times are multiples of so many milliseconds.
    pub(crate) unit: i64,
    pub(crate) keep: Keep,
    pub(crate) has_hooks: bool,
    pub(crate) in_memory: bool,
    /// The clock can be behind after a restart. What has expired by then may be gone or count again: both are right, so such a
    /// history has no keys that expire.
    pub(crate) is_set_back: bool,
    /// A step that takes longer never ends.
    pub(crate) patience: Duration,
}

const PATIENCE: Duration = Duration::from_secs(30);

impl Config {
    pub(crate) fn new(seed: u64) -> Config {
        let rng = &mut Rng(seed);
        let has_hooks = rng.one_in(5);
        let keeps = rng.one_in(3);
        Config {
            seed,
            workers: rng.pick(&[1, 2, 2, 3]),
            // Retention looks at ages once a second.
            unit: if keeps { 1000 } else { 1 },
            keep: Keep {
                age: keeps.then_some(20_000),
                count: (keeps && !has_hooks).then_some(4),
            },
            has_hooks,
            in_memory: rng.one_in(6),
            is_set_back: rng.one_in(3),
            patience: PATIENCE,
        }
    }

    pub(crate) fn steps(&self, count: usize) -> Vec<Step> {
        let mut rng = Rng(self.seed ^ 0x5354_4550);
        (0..count).map(|_| self.step(&mut rng)).collect()
    }

    fn step(&self, rng: &mut Rng) -> Step {
        let pick = rng.next();
        match rng.below(100) {
            0..=19 => {
                let count = if rng.one_in(5) { 1 + rng.below(4) } else { 1 };
                Step::Enqueue((0..count).map(|_| self.new_job(rng)).collect())
            }
            20 => Step::Refused(rng.one_in(2)),
            21..=49 => Step::Answer(pick, self.answer(rng)),
            50..=53 => Step::Save(pick, rng.below(100)),
            54..=59 => Step::Cancel(pick),
            60..=66 => Step::Retry(pick, rng.one_in(3)),
            67 | 68 => Step::Delete(pick),
            69 | 70 => Step::Bulk(Bulk {
                action: rng.below(4),
                status: rng.index(5),
                kind: rng.one_in(2).then(|| rng.index(NAMES.len())),
                expect: rng.one_in(4).then(|| rng.index(3)),
            }),
            71..=76 => {
                let kind = (!rng.one_in(3)).then(|| rng.index(NAMES.len()));
                Step::Pause(kind, rng.one_in(3))
            }
            77 => Step::Subscribe,
            78 => Step::Back(self.time(rng, 100_000)),
            79 => Step::Forward(self.time(rng, 100_000)),
            80 if rng.one_in(2) => Step::Restart(pick, self.leap(rng)),
            81 => Step::Crash(pick, self.leap(rng)),
            _ => Step::Tick(match rng.below(8) {
                0 => self.time(rng, 30_000),
                1 => self.time(rng, 12_000),
                _ => self.time(rng, 2500),
            }),
        }
    }

    fn time(&self, rng: &mut Rng, most: u64) -> i64 {
        let ms = i64::try_from(rng.below(most)).expect("it fits");
        ms - ms % self.unit
    }

    /// How far a clock moves while nothing runs.
    fn leap(&self, rng: &mut Rng) -> i64 {
        match rng.below(4) {
            _ if self.has_hooks => 0,
            0 if self.is_set_back => -self.time(rng, 50_000),
            1 => self.time(rng, 20_000),
            _ => 0,
        }
    }

    fn new_job(&self, rng: &mut Rng) -> (New, Option<Hook>) {
        let kind = rng.pick(&[0, 0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 6]);
        let input = match kind {
            kinds::PLANNED => json!({"plan": rng.index(PLANS.len())}),
            _ => json!(rng.below(1000)),
        };
        let hold = match rng.below(3) {
            0 => Hold::Queued,
            1 => Hold::Live,
            _ if self.is_set_back => Hold::Live,
            _ => Hold::Until(self.time(rng, 9000)),
        };
        let key = rng
            .one_in(4)
            .then(|| (rng.pick(&["k", "l"]).to_owned(), hold));
        let new = New {
            kind,
            input,
            priority: rng.pick(&[0, 0, 0, 1, -1, 7]),
            delay: if rng.one_in(4) {
                self.time(rng, 6000)
            } else {
                0
            },
            deadline: rng.one_in(8).then(|| self.time(rng, 12_000)),
            key,
            phases: (kind == kinds::LATER && rng.one_in(2)).then(|| PLANS[0]),
        };
        let hooks = [Hook::Good, Hook::Good, Hook::Once, Hook::First, Hook::Gone];
        let hook = (self.has_hooks && rng.one_in(2)).then(|| rng.pick(&hooks));
        (new, hook)
    }

    fn answer(&self, rng: &mut Rng) -> Answer {
        let message = format!("boom {}", rng.below(100));
        match rng.below(40) {
            0..=4 => Answer::Retry(message),
            5 | 6 => Answer::RetryAfter(ms_of(self.time(rng, 5000)), message),
            7..=9 => Answer::Snooze(ms_of(self.time(rng, 5000))),
            10 | 11 => Answer::Fail(message),
            12 => Answer::Cancel,
            // The names of its places take a tenth of a second.
            13 if rng.one_in(8) => Answer::Panic(message),
            _ => Answer::Done(result(rng)),
        }
    }
}

pub(crate) fn result(rng: &mut Rng) -> Value {
    let size = if rng.one_in(30) { 20_000 } else { rng.index(9) };
    json!({"n": rng.below(1000), "x": "y".repeat(size)})
}

/// splitmix64 (Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators", OOPSLA 2014).
pub(crate) struct Rng(pub(crate) u64);

impl Rng {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    pub(crate) fn index(&mut self, n: usize) -> usize {
        usize::try_from(self.below(n as u64)).expect("less than n")
    }

    /// True once in `n` times.
    pub(crate) fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    pub(crate) fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.index(from.len())]
    }
}

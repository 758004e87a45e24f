//! Settings and limits, and the one place that checks them. L0, pure.
//!
//! Everything has a limit. Each is a setting with a default, or a constant with its reason.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::delivery::EndpointSpec;
use crate::error::{Error, ErrorKind, Result};
use crate::job::{JobStatus, PhaseName};

/// Phases that one job can have: the store keeps a phase under `job id * 256 + index`, so that it is found without an index.
pub(crate) const PHASES_MAX: usize = 256;
/// What `serde_json` reads back without being told otherwise (its limit of 128 is the first that it refuses), and deep enough for any
/// data made by hand.
pub(crate) const JSON_DEPTH_MAX: usize = 127;
/// A name is a key of indexes, a field of HTTP streams and a word in a shell: short, and free of special characters.
pub(crate) const NAME_BYTES_MAX: usize = 128;
/// A unique key is stored in an index of its own; a URL or a path fits, a document does not.
pub(crate) const UNIQUE_KEY_BYTES_MAX: usize = 512;
/// Longer messages say no more; the log of a failing job must not grow past its payload.
pub(crate) const MESSAGE_BYTES_MAX: usize = 8 * 1024;
/// About 150 frames.
pub(crate) const BACKTRACE_BYTES_MAX: usize = 16 * 1024;
/// Longer ones are refused by many servers and proxies.
pub(crate) const URL_BYTES_MAX: usize = 2048;
/// What is kept of the answer to a webhook: enough for a message that says what was wrong.
pub(crate) const ANSWER_BYTES_MAX: usize = 2048;
/// Errors that are kept of one job: enough for every try of several series.
pub(crate) const ERRORS_KEPT: usize = 50;
/// More threads than this are a mistake on any machine that runs SQLite.
const WORKERS_MAX: usize = 1024;
/// What is kept on the disk for what is under way: many outcomes, and little for any disk.
pub(crate) const RESERVE_BYTES: u64 = 1 << 20;
/// More than this is no reserve.
const RESERVE_BYTES_MAX: u64 = 1 << 30;
/// Claimed jobs are held in memory with their payloads.
const IN_FLIGHT_MAX: usize = 65_536;

/// What survives a power cut.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Durability {
    /// What was acknowledged survives a power cut: each commit is synced to the disk.
    #[default]
    Full,
    /// What was acknowledged survives a crash of the process. A power cut may roll back the newest commits, all or none of
    /// each and in their order, and never harms the file.
    Normal,
}

/// How long things that are over are kept.
///
/// A job goes when it is too old *or* there are too many; [`Keep::FOREVER`] has neither rule. Jobs that finished while the clock was
/// not set (before 2020) go by count alone, deliveries that ended then are not too old for that, and events of that time go with
/// the first later one that is too old.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Retention {
    pub(crate) completed: Keep,
    pub(crate) failed: Keep,
    pub(crate) cancelled: Keep,
    pub(crate) events: Keep,
    pub(crate) deliveries: Keep,
}

/// One rule of [`Retention`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keep {
    pub(crate) age: Option<Duration>,
    pub(crate) count: Option<u64>,
}

impl Keep {
    /// No limit.
    pub const FOREVER: Keep = Keep {
        age: None,
        count: None,
    };

    /// At most this long.
    #[must_use]
    pub const fn for_age(age: Duration) -> Keep {
        Keep {
            age: Some(age),
            count: None,
        }
    }

    /// This many: a tenth more may be there before the oldest are deleted.
    #[must_use]
    pub const fn newest(count: u64) -> Keep {
        Keep {
            age: None,
            count: Some(count),
        }
    }

    /// And this many: a tenth more may be there before the oldest are deleted.
    #[must_use]
    pub const fn and_newest(mut self, count: u64) -> Keep {
        self.count = Some(count);
        self
    }
}

const DAY: Duration = Duration::from_secs(86_400);

impl Default for Retention {
    fn default() -> Retention {
        Retention {
            completed: Keep::for_age(DAY.saturating_mul(7)).and_newest(10_000),
            failed: Keep::for_age(DAY.saturating_mul(30)).and_newest(10_000),
            cancelled: Keep::for_age(DAY.saturating_mul(7)).and_newest(10_000),
            events: Keep::for_age(DAY.saturating_mul(30)).and_newest(1_000_000),
            deliveries: Keep::for_age(DAY.saturating_mul(7)),
        }
    }
}

impl Retention {
    /// Nothing is ever deleted by itself.
    #[must_use]
    pub fn forever() -> Retention {
        Retention {
            completed: Keep::FOREVER,
            failed: Keep::FOREVER,
            cancelled: Keep::FOREVER,
            events: Keep::FOREVER,
            deliveries: Keep::FOREVER,
        }
    }

    /// Completed jobs. Defaults to 7 days and 10,000 jobs.
    #[must_use]
    pub fn completed(mut self, keep: Keep) -> Retention {
        self.completed = keep;
        self
    }

    /// Failed jobs. Defaults to 30 days and 10,000 jobs.
    #[must_use]
    pub fn failed(mut self, keep: Keep) -> Retention {
        self.failed = keep;
        self
    }

    /// Cancelled jobs. Defaults to 7 days and 10,000 jobs.
    #[must_use]
    pub fn cancelled(mut self, keep: Keep) -> Retention {
        self.cancelled = keep;
        self
    }

    /// Events, whatever became of their jobs. The count is in event numbers. Defaults to 30 days and 1,000,000 events.
    #[must_use]
    pub fn events(mut self, keep: Keep) -> Retention {
        self.events = keep;
        self
    }

    /// Webhook deliveries that are over, delivered or given up, for this long; and what was delivered no longer than its event by the
    /// count of [`events`](Retention::events). What is pending stays. Defaults to 7 days.
    #[must_use]
    pub fn deliveries(mut self, age: Duration) -> Retention {
        self.deliveries = Keep::for_age(age);
        self
    }

    pub(crate) fn of(&self, status: JobStatus) -> Keep {
        match status {
            JobStatus::Completed => self.completed,
            JobStatus::Failed => self.failed,
            JobStatus::Cancelled => self.cancelled,
            JobStatus::Pending | JobStatus::Running => Keep::FOREVER,
        }
    }
}

/// The most that a limit of a payload, a result or a checkpoint can be: SQLite takes no value over 1 GB.
pub(crate) const PAYLOAD_BYTES_MAX: usize = 512 << 20;

/// Sizes that are checked before anything is written.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) payload_bytes_max: usize,
    pub(crate) result_bytes_max: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            payload_bytes_max: 256 * 1024,
            result_bytes_max: 1024 * 1024,
        }
    }
}

/// Where the jobs are kept.
#[derive(Clone, Debug)]
pub(crate) enum Location {
    File(PathBuf),
    Memory,
}

/// The settings of a queue, as the builder gathers them.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    pub(crate) location: Location,
    pub(crate) durability: Durability,
    pub(crate) workers: usize,
    pub(crate) in_flight: Option<usize>,
    pub(crate) abandoned_max: Option<usize>,
    pub(crate) trusts_clock: bool,
    /// Room on the disk that is kept for jobs under way.
    pub(crate) reserve_bytes: u64,
    pub(crate) max_crashes: u32,
    pub(crate) retention: Retention,
    pub(crate) limits: Limits,
    pub(crate) shutdown_timeout: Duration,
    /// The webhook endpoints that belong to the configuration; none when the file's own stay as they are.
    pub(crate) endpoints: Option<Vec<(Arc<str>, EndpointSpec)>>,
    /// New endpoints that are not https are refused.
    pub(crate) is_https_only: bool,
}

impl Config {
    pub(crate) fn new(location: Location) -> Config {
        Config {
            location,
            durability: Durability::Full,
            workers: crate::sync::processors(),
            in_flight: None,
            abandoned_max: None,
            trusts_clock: false,
            reserve_bytes: RESERVE_BYTES,
            max_crashes: 3,
            retention: Retention::default(),
            limits: Limits::default(),
            shutdown_timeout: Duration::from_secs(10),
            endpoints: None,
            is_https_only: false,
        }
    }

    /// Jobs that are claimed at most, those inside a handler included.
    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight
            .unwrap_or_else(|| (self.workers * 64).clamp(64, 1024))
    }

    pub(crate) fn abandoned_max(&self) -> usize {
        self.abandoned_max.unwrap_or(self.workers * 4)
    }

    pub(crate) fn validate(&self) -> Result<()> {
        let problem = if self.workers > WORKERS_MAX {
            format!("workers is {}: at most {WORKERS_MAX}", self.workers)
        } else if self.in_flight().max(1) < self.workers || self.in_flight() > IN_FLIGHT_MAX {
            format!(
                "in_flight is {}: expected the number of workers ({}) to {IN_FLIGHT_MAX}",
                self.in_flight(),
                self.workers
            )
        } else if !(1..=PAYLOAD_BYTES_MAX).contains(&self.limits.payload_bytes_max) {
            format!(
                "payload limit is {} bytes: expected 1 to 512 MiB",
                self.limits.payload_bytes_max
            )
        } else if !(1..=PAYLOAD_BYTES_MAX).contains(&self.limits.result_bytes_max) {
            format!(
                "result limit is {} bytes: expected 1 to 512 MiB",
                self.limits.result_bytes_max
            )
        } else if self.reserve_bytes > RESERVE_BYTES_MAX {
            format!(
                "disk_reserve is {} bytes: at most 1 GiB",
                self.reserve_bytes
            )
        } else {
            return Ok(());
        };
        Err(Error::new(ErrorKind::InvalidConfig, problem))
    }
}

/// Whether `name` is a name: 1 to 128 of `[A-Za-z0-9_.:-]`.
pub(crate) fn check_name(what: &str, name: &str) -> Result<()> {
    let problem = match name
        .bytes()
        .find(|b| !(b.is_ascii_alphanumeric() || b"_.:-".contains(b)))
    {
        _ if name.is_empty() => "it is empty".to_owned(),
        _ if name.len() > NAME_BYTES_MAX => format!(
            "it has {} bytes, at most {NAME_BYTES_MAX} are allowed",
            name.len()
        ),
        Some(_) => "allowed are the characters A-Z a-z 0-9 _ . : -".to_owned(),
        None => return Ok(()),
    };
    let mut shown: String = name.chars().take(40).collect();
    if shown.len() < name.len() {
        shown.push_str("...");
    }
    Err(Error::new(
        ErrorKind::InvalidJob,
        format!("{what} {shown:?} is not a name: {problem}"),
    ))
}

/// Whether a list of phases can be a plan.
pub(crate) fn check_plan(job_type: &str, phases: &[PhaseName]) -> Result<()> {
    let problem = match phases.len() {
        0 => "it has no phase".to_owned(),
        n if n > PHASES_MAX => format!("it has {n} phases, at most {PHASES_MAX} are allowed"),
        _ => {
            let mut names = std::collections::HashSet::new();
            for phase in phases {
                check_name(&format!("job type {job_type:?}: phase"), &phase.name)?;
                if !names.insert(&phase.name) {
                    let problem = format!(
                        "job type {job_type:?}: phase {:?} is there twice: names must differ",
                        phase.name
                    );
                    return Err(Error::new(ErrorKind::InvalidJob, problem));
                }
            }
            return Ok(());
        }
    };
    Err(Error::new(
        ErrorKind::InvalidJob,
        format!("job type {job_type:?}: {problem}"),
    ))
}

/// Whether JSON text (of an input, a result, a checkpoint) is within its limits.
pub(crate) fn check_json(what: &str, json: &str, bytes_max: usize) -> Result<()> {
    let problem = if json.len() > bytes_max {
        format!(
            "it has {} bytes, at most {bytes_max} are allowed: keep the data elsewhere and pass a reference",
            json.len()
        )
    } else {
        match json_depth(json) {
            depth if depth > JSON_DEPTH_MAX => {
                format!("its JSON is {depth} levels deep, at most {JSON_DEPTH_MAX} are allowed")
            }
            _ => return Ok(()),
        }
    };
    Err(Error::new(
        ErrorKind::InvalidJob,
        format!("{what}: {problem}"),
    ))
}

/// How deep arrays and objects nest in valid JSON text.
fn json_depth(json: &str) -> usize {
    let (mut depth, mut deepest, mut in_string, mut escaped) = (0_usize, 0, false, false);
    for byte in json.bytes() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            b'[' | b'{' if !in_string => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            b']' | b'}' if !in_string => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    deepest
}

/// The longest beginning of `text` that has at most `bytes_max` bytes.
pub(crate) fn truncate(text: &mut String, bytes_max: usize) {
    if text.len() > bytes_max {
        text.truncate(text.floor_char_boundary(bytes_max));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_short_and_plain() {
        for good in ["a", "import", "a.B_c:9-d", &"x".repeat(128)] {
            assert!(check_name("job type", good).is_ok(), "{good}");
        }
        for (bad, says) in [
            ("", "job type \"\" is not a name: it is empty"),
            (
                "a b",
                "job type \"a b\" is not a name: allowed are the characters A-Z a-z 0-9 _ . : -",
            ),
            (
                "a\r\nevent: x",
                "job type \"a\\r\\nevent: x\" is not a name: allowed are the characters A-Z a-z 0-9 _ . : -",
            ),
        ] {
            assert_eq!(check_name("job type", bad).unwrap_err().to_string(), says);
        }
        let long = check_name("phase", &"x".repeat(129))
            .unwrap_err()
            .to_string();
        assert!(
            long.ends_with("it has 129 bytes, at most 128 are allowed"),
            "{long}"
        );
    }

    #[test]
    fn depth_is_counted_outside_of_strings_only() {
        assert_eq!(json_depth("1"), 0);
        assert_eq!(json_depth(r#"{"a":[1,{"b":2}]}"#), 3);
        assert_eq!(json_depth(r#"["[[[[\"[[[", "\\"]"#), 1);
        let deep = format!("{}1{}", "[".repeat(129), "]".repeat(129));
        let error = check_json("job 3: result", &deep, 1000)
            .unwrap_err()
            .to_string();
        assert_eq!(
            error,
            "job 3: result: its JSON is 129 levels deep, at most 127 are allowed"
        );
        assert!(check_json("x", &deep[2..257], 1000).is_ok());
    }

    #[test]
    fn plans_have_1_to_256_phases_with_different_names() {
        let named = |n: usize| {
            (0..n)
                .map(|i| PhaseName::new(format!("p{i}")))
                .collect::<Vec<_>>()
        };
        assert!(check_plan("t", &named(256)).is_ok());
        assert!(
            check_plan("t", &named(257))
                .unwrap_err()
                .to_string()
                .contains("257 phases")
        );
        assert!(
            check_plan("t", &[])
                .unwrap_err()
                .to_string()
                .contains("no phase")
        );
        let twice = check_plan("t", &[PhaseName::new("a"), PhaseName::new("a")]).unwrap_err();
        assert_eq!(
            twice.to_string(),
            "job type \"t\": phase \"a\" is there twice: names must differ"
        );
    }

    #[test]
    fn truncation_keeps_characters_whole() {
        let mut text = "aé".to_owned();
        truncate(&mut text, 2);
        assert_eq!(text, "a");
    }
}

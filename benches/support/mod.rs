//! What the benchmarks share: settings, a directory on the disk that is measured, and one line for each figure.

#![allow(
    dead_code,
    reason = "each benchmark is a program of its own and uses a part of this"
)]
#![allow(
    clippy::print_stdout,
    clippy::disallowed_methods,
    reason = "programs that measure and tell"
)]

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use stepwell::{Durability, JobHandle, JobQueue, PhaseError};

/// A file in a fresh directory below the build directory: on the disk, not in memory.
pub(crate) struct Place {
    directory: tempfile::TempDir,
}

fn below() -> PathBuf {
    std::env::var_os("STEPWELL_BENCH_DIR")
        .map_or_else(|| PathBuf::from(env!("CARGO_TARGET_TMPDIR")), PathBuf::from)
}

impl Place {
    pub(crate) fn new() -> Place {
        Place {
            directory: tempfile::tempdir_in(below()).expect("a writable directory"),
        }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn db(&self) -> PathBuf {
        self.directory.path().join("jobs.db")
    }
}

/// Whether the long form was asked for: `STEPWELL_BENCH=long cargo bench`.
pub(crate) fn is_long() -> bool {
    std::env::var("STEPWELL_BENCH").is_ok_and(|form| form == "long")
}

pub(crate) const MODES: [(Durability, &str); 2] =
    [(Durability::Full, "full"), (Durability::Normal, "normal")];

/// The payload of the rivals' programs: 95 bytes or so.
pub(crate) fn payload(n: usize) -> Value {
    json!({"to": "someone@example.com", "subject": "Your order has shipped", "order": n, "lines": [1, 2, 3]})
}

pub(crate) fn noop() -> Result<Value, PhaseError> {
    Ok(json!({"ok": true, "rows": 17}))
}

pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "an index of a small list"
)]
pub(crate) fn quantile(values: &mut [f64], q: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    values[((values.len() - 1) as f64 * q) as usize]
}

pub(crate) fn timed(act: impl FnOnce()) -> Duration {
    let started = Instant::now();
    act();
    started.elapsed()
}

/// One machine-readable line: `name value unit`.
pub(crate) fn figure(name: &str, value: f64, unit: &str) {
    if value >= 100.0 {
        println!("{name} {value:.0} {unit}");
    } else {
        println!("{name} {value:.3} {unit}");
    }
}

pub(crate) fn settings(what: &str) {
    let workers = 4;
    println!(
        "# {what}: payload 95 bytes, {workers} workers, SQLite WAL, {}, {} processors, {} form",
        filesystem(&below()).unwrap_or_else(|| "unknown filesystem".to_owned()),
        processors(),
        if is_long() { "long" } else { "short" }
    );
}

/// The kind of filesystem that a directory is on.
fn filesystem(directory: &Path) -> Option<String> {
    let directory = directory.canonicalize().ok()?;
    let mounts = std::fs::read_to_string("/proc/self/mounts").ok()?;
    let mounts = mounts.lines().filter_map(|line| {
        let mut words = line.split(' ').skip(1);
        Some((words.next()?, words.next()?))
    });
    let holding = mounts.filter(|(at, _)| directory.starts_with(at));
    let (_, kind) = holding.max_by_key(|(at, _)| at.len())?;
    Some(kind.to_owned())
}

fn processors() -> usize {
    std::thread::available_parallelism().map_or(0, std::num::NonZeroUsize::get)
}

/// How many in a second.
#[allow(clippy::cast_precision_loss, reason = "no more than some millions")]
pub(crate) fn rate(count: usize, took: Duration) -> f64 {
    count as f64 / took.as_secs_f64()
}

/// Enqueues jobs, 1000 a call.
pub(crate) fn bulk(jobs: &JobHandle<Value, Value>, count: usize) {
    for start in (0..count).step_by(1000) {
        let inputs: Vec<Value> = (start..count.min(start + 1000)).map(payload).collect();
        jobs.enqueue_many(&inputs).expect("enqueues");
    }
}

/// Waits until nothing is left to be done.
pub(crate) fn drain(queue: &JobQueue) {
    let mut stats = queue.stats().expect("counts");
    while stats.pending + stats.running > 0 {
        std::thread::sleep(Duration::from_millis(2));
        stats = queue.stats().expect("counts");
    }
    assert_eq!(stats.failed, 0, "no job fails");
}

/// A number of this process from `/proc/self/FILE`, for example `VmRSS` of `status`; none where there is no such file.
pub(crate) fn proc_number(file: &str, key: &str) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/self/{file}")).ok()?;
    let line = text.lines().find(|line| line.starts_with(key))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

/// A line that is no figure.
pub(crate) fn note(text: &str) {
    println!("# {text}");
}

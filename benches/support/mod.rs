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

use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use stepwell::{Durability, PhaseError};

/// A file in a fresh directory below the build directory: on the disk, not in memory.
pub(crate) struct Place {
    directory: tempfile::TempDir,
}

impl Place {
    pub(crate) fn new() -> Place {
        let below = std::env::var_os("STEPWELL_BENCH_DIR")
            .map_or_else(|| PathBuf::from(env!("CARGO_TARGET_TMPDIR")), PathBuf::from);
        Place {
            directory: tempfile::tempdir_in(below).expect("a writable directory"),
        }
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
        "# {what}: payload 95 bytes, {workers} workers, SQLite WAL, {} processors",
        processors()
    );
}

fn processors() -> usize {
    std::thread::available_parallelism().map_or(0, std::num::NonZeroUsize::get)
}

/// A number of this process from `/proc/self/FILE`, for example `VmRSS` of `status`; none where there is no such file.
pub(crate) fn proc_number(file: &str, key: &str) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/self/{file}")).ok()?;
    let line = text.lines().find(|line| line.starts_with(key))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

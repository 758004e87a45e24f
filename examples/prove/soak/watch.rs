//! What is measured of the process, and when it is too much.

use std::path::{Path, PathBuf};
use std::time::Duration;

/// As `reliability` has it: no growth that a year would make a problem of.
const SLOPE_MAX: f64 = 1024.0;
/// A shorter run cannot tell a slope from noise.
const SLOPE_FROM: Duration = Duration::from_secs(3600);
/// And is judged by this: what came on top after the warm-up.
const GROWTH_MAX_KIB: u64 = 32 * 1024;
const WAL_MAX: u64 = 64 << 20;
/// And it becomes as small as this again when nobody holds it.
const WAL_RESTS_AT: u64 = 16 << 20;
/// Threads and descriptors come and go with connections; as many more as connections may.
const SLACK: u64 = 24;
const SAMPLES_MAX: u32 = 4000;

#[derive(Clone, Copy, Default)]
struct Sample {
    at: Duration,
    rss_kib: u64,
    wal: u64,
    threads: u64,
    files: u64,
}

/// One of the figures of a sample.
type Figure = fn(&Sample) -> u64;

pub(crate) struct Watch {
    wal: PathBuf,
    length: Duration,
    samples: Vec<Sample>,
}

fn entries(dir: &str) -> u64 {
    std::fs::read_dir(dir).map_or(0, |entries| entries.count() as u64)
}

/// Resident memory.
fn rss_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let number = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
    number.expect("the system says how large a process is")
}

impl Watch {
    pub(crate) fn new(db: &Path, length: Duration) -> Watch {
        let mut wal = db.as_os_str().to_owned();
        wal.push("-wal");
        Watch {
            wal: wal.into(),
            length,
            samples: Vec::new(),
        }
    }

    pub(crate) fn interval(&self) -> Duration {
        (self.length / SAMPLES_MAX).max(Duration::from_millis(500))
    }

    pub(crate) fn sample(&mut self, at: Duration) {
        self.samples.push(Sample {
            at,
            rss_kib: rss_kib(),
            wal: std::fs::metadata(&self.wal).map_or(0, |file| file.len()),
            threads: entries("/proc/self/task"),
            files: entries("/proc/self/fd"),
        });
    }

    pub(crate) fn line(&self) -> String {
        let last = self.samples.last().copied().unwrap_or_default();
        format!(
            "RSS {} KiB, log {} KiB, {} threads, {} descriptors;",
            last.rss_kib,
            last.wal >> 10,
            last.threads,
            last.files
        )
    }

    /// The samples after the warm-up: a third, or ten minutes.
    fn settled(&self) -> &[Sample] {
        let warm = (self.length / 3).min(Duration::from_secs(600));
        let first = self.samples.partition_point(|sample| sample.at < warm);
        &self.samples[first..]
    }

    /// KiB an hour by least squares.
    fn slope(&self) -> f64 {
        let samples = self.settled();
        let count = samples.len() as f64;
        let hours = |sample: &Sample| sample.at.as_secs_f64() / 3600.0;
        let (mean_x, mean_y) = (
            samples.iter().map(hours).sum::<f64>() / count,
            samples.iter().map(|it| it.rss_kib as f64).sum::<f64>() / count,
        );
        let (mut over, mut under) = (0.0, 0.0);
        for sample in samples {
            let x = hours(sample) - mean_x;
            over += x * (sample.rss_kib as f64 - mean_y);
            under += x * x;
        }
        over / under
    }

    /// The highest of a figure in the first and in the second half of what is judged.
    fn halves(&self, figure: Figure) -> (u64, u64) {
        let samples = self.settled();
        let (first, second) = samples.split_at(samples.len() / 2);
        let highest = |half: &[Sample]| half.iter().map(figure).max().unwrap_or(0);
        (highest(first), highest(second))
    }

    pub(crate) fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if self.settled().len() < 20 {
            problems.push("too few samples to judge".to_owned());
            return problems;
        }
        let wal = self.samples.iter().map(|it| it.wal).max().unwrap_or(0);
        if wal > WAL_MAX {
            problems.push(format!("the log grew to {} MiB", wal >> 20));
        }
        let least = self.settled().iter().map(|it| it.wal).min().unwrap_or(0);
        if least > WAL_RESTS_AT {
            problems.push(format!("the log stays at {} MiB", least >> 20));
        }
        let (before, after) = self.halves(|it| it.rss_kib);
        if after > before + GROWTH_MAX_KIB {
            problems.push(format!("memory grew from {before} to {after} KiB"));
        }
        if self.length >= SLOPE_FROM && self.slope() >= SLOPE_MAX {
            problems.push(format!("memory grows by {:.0} KiB an hour", self.slope()));
        }
        let figures: [(&str, Figure); 2] =
            [("threads", |it| it.threads), ("descriptors", |it| it.files)];
        for (name, figure) in figures {
            let (before, after) = self.halves(figure);
            if after > before + SLACK {
                problems.push(format!("{name} grew from {before} to {after}"));
            }
        }
        problems
    }

    pub(crate) fn figures(&self) -> String {
        let highest = |figure: Figure| self.samples.iter().map(figure).max().unwrap_or(0);
        let slope = if self.length >= SLOPE_FROM {
            format!(", {:+.0} KiB an hour", self.slope())
        } else {
            String::new()
        };
        format!(
            "RSS at most {} MiB{slope}, log at most {} MiB, {} threads, {} descriptors",
            highest(|it| it.rss_kib) >> 10,
            highest(|it| it.wal) >> 20,
            highest(|it| it.threads),
            highest(|it| it.files)
        )
    }
}

//! Real trouble with the disk: it is full, the file is gone, the file is damaged.
//!
//! What it would catch: an acknowledged job that is lost on a full disk, or one that was refused and is there; an outcome that
//! is dropped and not recorded later; a thread that spins or a log that is flooded while nothing can be written; an error without
//! a kind that says what to do; a panic or a hang on a damaged file.
//!
//! The full disk is a small tmpfs. Mounting one needs root, or `sudo` without a password: without them these tests say so and pass,
//! or fail where `CI` is set.
#![allow(
    clippy::disallowed_methods,
    clippy::print_stderr,
    reason = "tests that wait for what the disk does, and say loudly what they cannot do"
)]

mod damaged;
mod full;
// Elsewhere nobody can take away a file that is open.
#[cfg(unix)]
mod gone;
mod reserve;

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, Once, PoisonError};
use std::thread::park_timeout;
use std::time::{Duration, Instant};

/// Counts log lines and panics, and keeps the newest lines for a failure's report.
struct Watch {
    lines: Mutex<Vec<String>>,
    panics: AtomicUsize,
}

static WATCH: Watch = Watch {
    lines: Mutex::new(Vec::new()),
    panics: AtomicUsize::new(0),
};

impl log::Log for Watch {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        metadata.level() <= log::Level::Info
    }

    fn log(&self, record: &log::Record<'_>) {
        if self.enabled(record.metadata()) {
            let line = format!("{} {}", record.level(), record.args());
            let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
            assert!(lines.len() < 100_000, "the log is flooded: {line}");
            lines.push(line);
        }
    }

    fn flush(&self) {}
}

/// One test at a time has the log and the processor to itself.
struct Alone(#[allow(dead_code, reason = "held, not read")] MutexGuard<'static, ()>);

impl Alone {
    fn new() -> Alone {
        static ONE: Mutex<()> = Mutex::new(());
        static WATCHED: Once = Once::new();
        let guard = ONE.lock().unwrap_or_else(PoisonError::into_inner);
        WATCHED.call_once(|| {
            log::set_logger(&WATCH).expect("no other logger is there");
            log::set_max_level(log::LevelFilter::Info);
            let shown = std::panic::take_hook();
            std::panic::set_hook(Box::new(move |info| {
                WATCH.panics.fetch_add(1, Ordering::SeqCst);
                shown(info);
            }));
        });
        WATCH
            .lines
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clear();
        WATCH.panics.store(0, Ordering::SeqCst);
        Alone(guard)
    }

    fn lines(&self) -> Vec<String> {
        WATCH
            .lines
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn panics(&self) -> usize {
        WATCH.panics.load(Ordering::SeqCst)
    }
}

/// Waits for `is_so`, at most for 20 s.
fn wait_for(what: &str, mut is_so: impl FnMut() -> bool) {
    let until = Instant::now() + Duration::from_secs(20);
    while !is_so() {
        assert!(Instant::now() < until, "{what}: not within 20 s");
        park_timeout(Duration::from_millis(2));
    }
}

/// Processor time of this process.
fn processor_time() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // After the name in parentheses; utime and stime are fields 14 and 15, in hundredths of a second.
    let fields = stat
        .rsplit(')')
        .next()
        .unwrap_or_default()
        .split_whitespace();
    let ticks = fields
        .skip(11)
        .take(2)
        .map(|field| field.parse::<u64>().unwrap_or(0));
    Duration::from_millis(ticks.sum::<u64>() * 10)
}

/// A small file system in memory.
struct SmallDisk(PathBuf);

impl SmallDisk {
    /// None, and a word on standard error, where none can be mounted.
    fn mount(parent: &Path, size: &str) -> Option<SmallDisk> {
        let path = parent.join("disk");
        std::fs::create_dir(&path).expect("a directory can be made");
        let mount = |command: &mut Command| {
            let options = format!("size={size},mode=0777");
            let mounted = command.args(["-t", "tmpfs", "-o", &options, "tmpfs"]);
            let mounted = mounted.arg(&path).output();
            mounted
                .map_err(|error| error.to_string())
                .and_then(|output| {
                    let problem = String::from_utf8_lossy(&output.stderr).into_owned();
                    output.status.success().then_some(()).ok_or(problem)
                })
        };
        let mounted = mount(&mut Command::new("mount"))
            .or_else(|_| mount(Command::new("sudo").args(["-n", "mount"])));
        if let Err(problem) = mounted {
            let is_ci = std::env::var_os("CI").is_some();
            assert!(!is_ci, "no tmpfs can be mounted: {problem}");
            eprintln!(
                "*** SKIPPED: no tmpfs can be mounted, so a full disk is not tested: {problem} ***"
            );
            return None;
        }
        Some(SmallDisk(path))
    }

    fn db(&self) -> PathBuf {
        self.0.join("jobs.db")
    }

    /// Takes all the space that is left.
    fn fill(&self) {
        let file = File::options()
            .create(true)
            .append(true)
            .open(self.0.join("filler"));
        let mut file = file.expect("a file can be made");
        let mut size = 1 << 16;
        while size > 0 {
            if file.write_all(&vec![1; size]).is_err() {
                size /= 2;
            }
        }
    }

    fn free(&self) {
        std::fs::remove_file(self.0.join("filler")).expect("the filler is there");
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let umount = |command: &mut Command| {
            let done = command.arg("-l").arg(&self.0).output();
            done.is_ok_and(|output| output.status.success())
        };
        if !umount(&mut Command::new("umount")) {
            umount(Command::new("sudo").args(["-n", "umount"]));
        }
    }
}

//! What does it cost to have it? `cargo bench --bench footprint`.
//!
//! - idle: processor time and context switches of all threads of a queue with 4 workers and no job, over 10 s;
//! - memory: resident set of a process with 4 workers, idle, and with 1,000,000 pending jobs in the file, in the process that
//!   enqueued them and in one that opens it;
//! - disk: bytes written and fsyncs for each job of a bulk of 60,000, durability full;
//! - size: the smallest example, stripped, without default features and with all; with `STEPWELL_BENCH=long` also built with the
//!   profile `small`.
//!
//! Linux only, apart from the size. fsyncs are counted by `strace` where there is one.

mod support;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use stepwell::{Builder, Durability, JobHandle, JobQueue, JobType, Phase};
use support::{Place, bulk, drain, figure, is_long, noop, proc_number, settings};

const ONE: Phase<Value> = Phase::new("one");
const PENDING: usize = 1_000_000;
const UNDER_LOAD: usize = 60_000;
const IDLE: Duration = Duration::from_secs(10);

fn open(db: &Path) -> (JobQueue, JobHandle<Value, Value>) {
    let mut builder: Builder = JobQueue::builder(db)
        .durability(Durability::Full)
        .workers(4);
    let jobs = builder.register(JobType::<Value>::new("email").phase(ONE, |_| noop()));
    (builder.open().expect("opens"), jobs)
}

/// Processor time in nanoseconds and context switches of every thread but this one.
fn other_threads() -> Option<(u64, u64)> {
    let own = std::fs::read_link("/proc/thread-self").ok()?;
    let (mut nanos, mut switches) = (0, 0);
    for task in std::fs::read_dir("/proc/self/task").ok()? {
        let task = task.ok()?.path();
        if task.file_name() == own.file_name() {
            continue;
        }
        let schedule = std::fs::read_to_string(task.join("schedstat")).ok()?;
        nanos += schedule.split(' ').next()?.parse::<u64>().ok()?;
        let status = std::fs::read_to_string(task.join("status")).ok()?;
        let counts = status.lines().filter(|line| line.contains("ctxt_switches"));
        for count in counts.filter_map(|line| line.split_whitespace().nth(1)) {
            switches += count.parse::<u64>().ok()?;
        }
    }
    Some((nanos, switches))
}

#[allow(clippy::cast_precision_loss, reason = "small numbers")]
fn rss(name: &str) {
    if let Some(kib) = proc_number("status", "VmRSS") {
        figure(name, kib as f64 / 1024.0, "MiB");
    }
}

#[allow(clippy::cast_precision_loss, reason = "small numbers")]
#[allow(clippy::disallowed_methods, reason = "it waits for nothing to happen")]
fn idle(db: &Path) {
    let (queue, _) = open(db);
    std::thread::sleep(Duration::from_millis(500));
    let before = other_threads();
    std::thread::sleep(IDLE);
    if let (Some(before), Some(after)) = (before, other_threads()) {
        figure("idle_cpu_10_s", (after.0 - before.0) as f64 / 1e6, "ms");
        figure(
            "idle_switches_10_s",
            (after.1 - before.1) as f64,
            "switches",
        );
    }
    rss("rss_idle");
    queue.shutdown(Duration::from_secs(10)).expect("closes");
}

fn fill(db: &Path) {
    let (queue, jobs) = open(db);
    queue.pause().expect("pauses");
    bulk(&jobs, PENDING);
    rss("rss_1m_pending_enqueued_here");
    queue.shutdown(Duration::from_secs(10)).expect("closes");
}

fn opened(db: &Path) {
    let (queue, _) = open(db);
    queue.stats().expect("counts");
    rss("rss_1m_pending_opened");
    queue.shutdown(Duration::from_secs(10)).expect("closes");
}

#[allow(clippy::cast_precision_loss, reason = "small numbers")]
fn disk(db: &Path) {
    let (queue, jobs) = open(db);
    queue.pause().expect("pauses");
    let before = proc_number("io", "write_bytes");
    bulk(&jobs, UNDER_LOAD);
    queue.resume().expect("resumes");
    drain(&queue);
    if let (Some(before), Some(after)) = (before, proc_number("io", "write_bytes")) {
        let each = (after - before) as f64 / UNDER_LOAD as f64;
        figure("disk_per_job_full", each, "bytes");
    }
    rss("rss_after_60000_jobs");
    queue.shutdown(Duration::from_secs(10)).expect("closes");
}

/// As `disk`, and says nothing: strace counts.
fn quiet(db: &Path) {
    let (queue, jobs) = open(db);
    queue.pause().expect("pauses");
    bulk(&jobs, UNDER_LOAD);
    queue.resume().expect("resumes");
    drain(&queue);
    queue.shutdown(Duration::from_secs(10)).expect("closes");
}

#[allow(clippy::cast_precision_loss, reason = "small numbers")]
fn fsyncs(place: &Place) {
    let log = place.path("strace");
    let program = std::env::current_exe().expect("this program");
    let status = Command::new("strace")
        .args([
            "-f",
            "--seccomp-bpf",
            "-qq",
            "-e",
            "trace=fsync,fdatasync",
            "-o",
        ])
        .arg(&log)
        .arg(program)
        .env("STEPWELL_PROBE", "1")
        .arg("quiet")
        .arg(place.db())
        .status();
    if !status.is_ok_and(|status| status.success()) {
        return support::note("no strace: fsyncs are not counted");
    }
    let log = std::fs::read_to_string(&log).expect("its output");
    let count = log.lines().filter(|line| line.contains("sync(")).count();
    let each = count as f64 / UNDER_LOAD as f64;
    figure("fsyncs_per_1000_jobs_full", each * 1000.0, "fsyncs");
}

/// Builds an example as a user would who cares for its size, and measures it.
#[allow(clippy::cast_precision_loss, reason = "small numbers")]
fn size(profile: &str, features: &str, name: &str) {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let built = Command::new(cargo)
        .args([
            "rustc",
            "--quiet",
            "--profile",
            profile,
            "--example",
            EXAMPLE,
            features,
        ])
        .args(["--", "-C", "strip=symbols"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .status();
    assert!(built.is_ok_and(|status| status.success()), "does not build");
    let target = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    let target = target.parent().expect("the build directory");
    let program = target.join(profile).join("examples").join(EXAMPLE);
    let bytes = std::fs::metadata(program).expect("was built").len();
    figure(name, bytes as f64 / 1e6, "MB");
}

const EXAMPLE: &str = "schedule";

fn in_a_process_of_its_own(what: &str, place: &Place) {
    let program = std::env::current_exe().expect("this program");
    let status = Command::new(program)
        .env("STEPWELL_PROBE", "1")
        .arg(what)
        .arg(place.db())
        .status()
        .expect("runs");
    assert!(status.success(), "the probe failed");
}

fn main() {
    if std::env::var_os("STEPWELL_PROBE").is_some() {
        let words: Vec<String> = std::env::args().skip(1).collect();
        let db = Path::new(&words[1]);
        return match words[0].as_str() {
            "idle" => idle(db),
            "fill" => fill(db),
            "opened" => opened(db),
            "disk" => disk(db),
            _ => quiet(db),
        };
    }
    settings("footprint, durability full");
    in_a_process_of_its_own("idle", &Place::new());
    let million = Place::new();
    in_a_process_of_its_own("fill", &million);
    in_a_process_of_its_own("opened", &million);
    in_a_process_of_its_own("disk", &Place::new());
    fsyncs(&Place::new());
    size(
        "release",
        "--no-default-features",
        "stripped_no_default_features",
    );
    size("release", "--all-features", "stripped_all_features");
    if is_long() {
        // SQLite is built anew.
        let name = "stripped_no_default_features_profile_small";
        size("small", "--no-default-features", name);
        size(
            "small",
            "--all-features",
            "stripped_all_features_profile_small",
        );
    }
}

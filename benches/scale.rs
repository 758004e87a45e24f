//! Does a long backlog, or a long past, make anything slow? `cargo bench --bench scale`; `STEPWELL_BENCH=long` goes on to a
//! backlog of 1,000,000 and a past of 10,000,000 jobs.
//!
//! For each size: how long it takes to open the queue, to enqueue a job, to claim and finish one, to read the counts, and how
//! much memory the process has.

mod support;

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;
use stepwell::{Durability, JobHandle, JobQueue, JobType, Phase, Retention};
use support::{Place, figure, median, noop, payload, proc_number, settings, timed};

const ONE: Phase<Value> = Phase::new("one");
/// Operations whose median is a figure.
const PROBES: usize = 400;

fn open(db: &Path) -> (JobQueue, JobHandle<Value, Value>) {
    let mut builder = JobQueue::builder(db)
        .durability(Durability::Normal)
        .retention(Retention::forever())
        .workers(4);
    let jobs = builder.register(JobType::<Value>::new("email").phase(ONE, |_| noop()));
    (builder.open().expect("opens"), jobs)
}

fn fill(jobs: &JobHandle<Value, Value>, count: usize) {
    for start in (0..count).step_by(10_000) {
        let inputs: Vec<Value> = (start..count.min(start + 10_000)).map(payload).collect();
        jobs.enqueue_many(&inputs).expect("enqueues");
    }
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

/// Opens the queue of a filled file a few times and measures what a user does first.
#[allow(clippy::disallowed_methods, reason = "it measures")]
fn probe(db: &Path, name: &str, size: &str) {
    let mut opens = Vec::new();
    for _ in 0..5 {
        let mut opened = None;
        opens.push(millis(timed(|| opened = Some(open(db)))));
        let (queue, _) = opened.expect("opened");
        queue.shutdown(Duration::from_secs(10)).expect("closes");
    }
    figure(&format!("open_{name}_{size}"), median(opens), "ms");
    let (queue, jobs) = open(db);
    // Paused: the enqueueing alone.
    queue.pause().expect("pauses");
    let one = payload(1);
    let enqueues =
        (0..PROBES).map(|_| timed(|| assert!(jobs.enqueue(&one).is_ok())).as_secs_f64() * 1e6);
    figure(
        &format!("enqueue_{name}_{size}"),
        median(enqueues.collect()),
        "us",
    );
    let stats =
        (0..PROBES).map(|_| timed(|| drop(queue.stats().expect("counts"))).as_secs_f64() * 1e6);
    figure(
        &format!("stats_{name}_{size}"),
        median(stats.collect()),
        "us",
    );
    // Claim and finish some thousands of the backlog.
    let before = queue.stats().expect("counts").completed;
    let started = Instant::now();
    queue.resume().expect("resumes");
    let (mut done, mut wait) = (0, queue.subscribe().expect("subscribes"));
    while done < 5_000 && queue.stats().expect("counts").pending > 0 {
        wait.recv_timeout(Duration::from_millis(20)).ok();
        wait = queue.subscribe().expect("subscribes");
        done = queue.stats().expect("counts").completed - before;
    }
    #[allow(clippy::cast_precision_loss, reason = "some thousands")]
    figure(
        &format!("process_{name}_{size}"),
        done as f64 / started.elapsed().as_secs_f64(),
        "jobs/s",
    );
    if let Some(kib) = proc_number("status", "VmRSS") {
        #[allow(clippy::cast_precision_loss, reason = "some thousands")]
        figure(&format!("rss_{name}_{size}"), kib as f64 / 1024.0, "MiB");
    }
    queue.shutdown(Duration::from_secs(10)).expect("closes");
}

/// What the filling left in memory must not count.
fn probe_in_a_process_of_its_own(place: &Place, name: &str, size: usize) {
    let program = std::env::current_exe().expect("this program");
    let words = [
        place.db().into_os_string(),
        name.into(),
        size.to_string().into(),
    ];
    let status = Command::new(program)
        .env("STEPWELL_PROBE", "1")
        .args(words)
        .status()
        .expect("runs");
    assert!(status.success(), "the probe failed");
}

fn main() {
    if std::env::var_os("STEPWELL_PROBE").is_some() {
        let words: Vec<String> = std::env::args().skip(1).collect();
        return probe(Path::new(&words[0]), &words[1], &words[2]);
    }
    settings("scale, durability normal, retention forever");
    let backlogs: &[usize] = if support::is_long() {
        &[1_000, 10_000, 100_000, 1_000_000]
    } else {
        &[1_000, 100_000]
    };
    for &size in backlogs {
        let place = Place::new();
        let (queue, jobs) = open(&place.db());
        queue.pause().expect("pauses");
        fill(&jobs, size.max(5_000 + PROBES));
        queue.shutdown(Duration::from_secs(10)).expect("closes");
        drop(queue);
        probe_in_a_process_of_its_own(&place, "backlog", size);
    }
    let pasts: &[usize] = if support::is_long() {
        &[0, 1_000_000, 10_000_000]
    } else {
        &[0, 100_000]
    };
    for &size in pasts {
        let place = Place::new();
        let (queue, jobs) = open(&place.db());
        fill(&jobs, size);
        while queue.stats().expect("counts").pending + queue.stats().expect("counts").running > 0 {
            queue
                .subscribe()
                .expect("subscribes")
                .recv_timeout(Duration::from_millis(50))
                .ok();
        }
        queue.pause().expect("pauses");
        fill(&jobs, 6_000);
        queue.shutdown(Duration::from_secs(10)).expect("closes");
        drop(queue);
        probe_in_a_process_of_its_own(&place, "finished", size);
    }
}

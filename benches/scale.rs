//! Does a long backlog, or a long past, make anything slow? `cargo bench --bench scale`; `STEPWELL_BENCH=long` goes on to a
//! backlog of 1,000,000 and a past of 10,000,000 jobs.
//!
//! For each size: how long it takes to open the queue, to enqueue a job, to claim and finish one, to read the counts, and how
//! much memory the process has. All files are made first and written back to the disk. Then a fresh process looks at each in
//! turn, several times, and the medians are told: so what the machine does meanwhile falls on all sizes alike. Each look leaves
//! the backlog as long as it was.

mod support;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use stepwell::{Durability, JobHandle, JobQueue, JobType, Phase, Retention};
use support::{
    Place, bulk, drain, figure, median, noop, payload, proc_number, rate, settings, timed,
};

const ONE: Phase<Value> = Phase::new("one");
/// Operations whose median is a figure.
const PROBES: usize = 1_000;
/// Jobs that are claimed and finished for a figure.
const PROCESSED: usize = 20_000;

fn open(db: &Path) -> (JobQueue, JobHandle<Value, Value>) {
    let mut builder = JobQueue::builder(db)
        .durability(Durability::Normal)
        .retention(Retention::forever())
        .workers(4);
    let jobs = builder.register(JobType::<Value>::new("email").phase(ONE, |_| noop()));
    (builder.open().expect("opens"), jobs)
}

fn close(queue: &JobQueue) {
    queue.shutdown(Duration::from_secs(10)).expect("closes");
}

fn medians_of(count: usize, mut act: impl FnMut() -> Duration) -> f64 {
    median((0..count).map(|_| act().as_secs_f64() * 1e6).collect())
}

/// Opens the queue of a filled file a few times and measures what a user does first.
fn probe(db: &Path, name: &str) {
    let opened = medians_of(5, || {
        let mut opened = None;
        let took = timed(|| opened = Some(open(db)));
        close(&opened.expect("opened").0);
        took
    });
    figure(&format!("open_{name}"), opened / 1e3, "ms");
    let (queue, jobs) = open(db);
    // Paused: the enqueueing alone.
    queue.pause().expect("pauses");
    let one = payload(1);
    let enqueue = medians_of(PROBES, || timed(|| assert!(jobs.enqueue(&one).is_ok())));
    figure(&format!("enqueue_{name}"), enqueue, "us");
    let stats = medians_of(PROBES, || timed(|| drop(queue.stats().expect("counts"))));
    figure(&format!("stats_{name}"), stats, "us");
    bulk(&jobs, PROCESSED - PROBES);
    figure(&format!("process_{name}"), process(&queue), "jobs/s");
    if let Some(kib) = proc_number("status", "VmRSS") {
        #[allow(clippy::cast_precision_loss, reason = "some thousands")]
        figure(&format!("rss_{name}"), kib as f64 / 1024.0, "MiB");
    }
    close(&queue);
}

/// Claims and finishes some thousands of the backlog, and answers how many a second.
#[allow(clippy::disallowed_methods, reason = "it measures")]
fn process(queue: &JobQueue) -> f64 {
    let completed = || usize::try_from(queue.stats().expect("counts").completed).expect("a count");
    let (before, started) = (completed(), Instant::now());
    queue.resume().expect("resumes");
    let mut done = 0;
    while done < PROCESSED {
        std::thread::sleep(Duration::from_millis(1));
        done = completed() - before;
    }
    rate(done, started.elapsed())
}

/// What the filling left in memory must not count. Answers the figures by name, with their units.
fn probe_in_a_process_of_its_own(place: &Place, name: &str) -> Vec<(String, f64, String)> {
    let output = Command::new(std::env::current_exe().expect("this program"))
        .env("STEPWELL_PROBE", "1")
        .arg(place.db())
        .arg(name)
        .stderr(Stdio::inherit())
        .output()
        .expect("runs");
    assert!(output.status.success(), "the probe failed");
    let text = String::from_utf8(output.stdout).expect("text");
    let figure = |line: &str| {
        let mut words = line.split(' ').map(str::to_owned);
        let (name, value) = (words.next()?, words.next()?.parse().ok()?);
        Some((name, value, words.next()?))
    };
    text.lines()
        .map(|line| figure(line).expect("a figure"))
        .collect()
}

/// Files with backlogs and pasts of these sizes.
fn fill(backlogs: &[usize], pasts: &[usize]) -> Vec<(String, Place)> {
    let mut files = Vec::new();
    for &size in backlogs {
        let place = Place::new();
        let (queue, jobs) = open(&place.db());
        queue.pause().expect("pauses");
        bulk(&jobs, size);
        close(&queue);
        files.push((format!("backlog_{size}"), place));
    }
    for &size in pasts {
        let place = Place::new();
        let (queue, jobs) = open(&place.db());
        bulk(&jobs, size);
        drain(&queue);
        close(&queue);
        files.push((format!("finished_{size}"), place));
    }
    files
}

fn main() {
    if std::env::var_os("STEPWELL_PROBE").is_some() {
        let words: Vec<String> = std::env::args().skip(1).collect();
        return probe(Path::new(&words[0]), &words[1]);
    }
    settings("scale, durability normal, retention forever");
    let files = if support::is_long() {
        fill(&[1_000, 100_000, 1_000_000], &[0, 1_000_000, 10_000_000])
    } else {
        fill(&[1_000, 100_000], &[0, 100_000])
    };
    for (_, place) in &files {
        let file = std::fs::File::open(place.db()).expect("a closed file");
        file.sync_all().expect("written back");
    }
    let rounds = if support::is_long() { 7 } else { 3 };
    let mut figures: BTreeMap<String, (Vec<f64>, String)> = BTreeMap::new();
    for _ in 0..rounds {
        for (name, place) in &files {
            for (figure, value, unit) in probe_in_a_process_of_its_own(place, name) {
                let entry = figures.entry(figure).or_insert((Vec::new(), unit));
                entry.0.push(value);
            }
        }
    }
    for (name, (values, unit)) in figures {
        figure(&name, median(values), &unit);
    }
}

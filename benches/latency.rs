//! How soon does an idle queue start a job? `cargo bench --bench latency`; `STEPWELL_BENCH=long` takes ten times the samples.
//!
//! From the call that enqueues to the first line of the handler, on 4 workers that sleep; and how long that call takes. Beside
//! it, between the same jobs and on the same disk: what it takes to append one commit's worth of bytes to a file and sync it.

mod support;

use std::fs::File;
use std::io::Write;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use serde_json::Value;
use stepwell::{Durability, JobQueue, JobType, Phase};
use support::{MODES, Place, figure, is_long, noop, payload, quantile, settings, timed};

const ONE: Phase<Value> = Phase::new("one");
/// What SQLite appends to its log for a job: three pages of 4096 bytes with their headers.
const COMMIT_BYTES: usize = 3 * (4096 + 24);

fn micros(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e6
}

#[allow(clippy::disallowed_methods, reason = "it measures")]
fn measure(durability: Durability, mode: &str, samples: usize) {
    let place = Place::new();
    let (started, starts) = mpsc::channel();
    let mut builder = JobQueue::builder(place.db())
        .durability(durability)
        .workers(4);
    let jobs = builder.register(JobType::<Value>::new("email").phase(ONE, move |_| {
        started.send(Instant::now()).ok();
        noop()
    }));
    let queue = builder.open().expect("opens");
    let mut file = File::create(place.path("fsync")).expect("creates");
    let bytes = vec![7; COMMIT_BYTES];
    std::thread::sleep(Duration::from_millis(500));
    let (mut start, mut call, mut sync) = (Vec::new(), Vec::new(), Vec::new());
    for n in 0..samples {
        let called = Instant::now();
        jobs.enqueue(&payload(n)).expect("enqueues");
        call.push(micros(called.elapsed()));
        start.push(micros(starts.recv().expect("runs") - called));
        // Not in step with anything that happens every so often.
        std::thread::sleep(Duration::from_millis(20 + n as u64 * 7 % 23));
        sync.push(micros(timed(|| {
            file.write_all(&bytes).expect("writes");
            file.sync_all().expect("syncs");
        })));
        std::thread::sleep(Duration::from_millis(5));
    }
    queue.shutdown(Duration::from_secs(10)).expect("closes");
    for (name, values) in [
        ("start", &mut start),
        ("call", &mut call),
        ("fsync", &mut sync),
    ] {
        for (quantile_name, q) in [("p50", 0.5), ("p99", 0.99)] {
            figure(
                &format!("{name}_{quantile_name}_{mode}"),
                quantile(values, q),
                "us",
            );
        }
    }
}

fn main() {
    settings("latency of an idle queue, durability full and normal");
    let samples = if is_long() { 2_000 } else { 200 };
    for (durability, mode) in MODES {
        measure(durability, mode, samples);
    }
}

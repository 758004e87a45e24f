//! Soak: a queue under a steady mixed load for hours, and whether anything of it grows.
//!
//! What it would catch: memory, threads or descriptors that are not given back; a log beside the file that is not folded in while
//! somebody reads; a stream that misses an event or slows jobs down; a delivery or a job that never ends.
//!
//! Everything is in one process: the queue, its callers, receivers of webhooks that answer, fail and hang, and readers of
//! streams that are slow, stuck or cut off. So what grows may also be the load's, and a clean run says that neither does.

mod load;
mod streams;
mod watch;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use stepwell::{DeliveryQuery, DeliveryStatus, JobQueue};

use crate::progress::Progress;
use load::Load;
use watch::Watch;

/// What has to happen at least once; a run without it was none.
pub(crate) const RARE: [&str; 12] = [
    "jobs",
    "cancelled",
    "retried by hand",
    "tries that failed",
    "deliveries that failed",
    "requests that hung",
    "events of slow streams",
    "streams resumed",
    "streams stuck",
    "snapshots held",
    "deleted by retention",
    "lists read",
];

/// The queue has this long to end everything when the load has stopped.
const DRAIN_MAX: Duration = Duration::from_secs(120);

/// Runs for `minutes`; false when something has grown, was lost, or has never happened.
pub(crate) fn run(mut progress: Progress, minutes: u64) -> bool {
    let dir = tempfile::tempdir().expect("a directory can be made");
    let path = dir.path().join("jobs.db");
    let over = Arc::new(AtomicBool::new(false));
    let load = Load::start(&path, &over);
    let length = Duration::from_secs(60 * minutes);
    let mut watch = Watch::new(&path, length);
    let started = Instant::now();
    while started.elapsed() < length {
        std::thread::park_timeout(watch.interval());
        watch.sample(started.elapsed());
        load.count(&mut progress.counters);
        progress.tick(&watch.line());
    }
    over.store(true, Ordering::SeqCst);
    let audit = load.audit();
    let queue = load.stop(&mut progress.counters);
    let mut problems = load::problems();
    problems.extend(watch.problems());
    problems.extend(drained(&queue, &audit));
    progress.problems(&problems);
    let what = format!("{minutes} min; {}", watch.figures());
    progress.end_of("soak", &what, &RARE, "no rate")
}

/// After the load every job ends, and every delivery to the receiver that answers; those to the others wait for their breaker. The
/// file is sound, and the queue stops in time.
fn drained(queue: &JobQueue, audit: &str) -> Vec<String> {
    let mut problems = Vec::new();
    let until = Instant::now() + DRAIN_MAX;
    let is_over = || {
        let stats = queue.stats().ok()?;
        let query = DeliveryQuery::new()
            .status(DeliveryStatus::Pending)
            .limit(1000);
        let page = queue.deliveries(&query).ok()?;
        let is_left = page.deliveries.iter().any(|it| it.url.contains(audit));
        Some(stats.pending + stats.running == 0 && !is_left)
    };
    while is_over() != Some(true) {
        if Instant::now() > until {
            problems.push(format!("not over after {DRAIN_MAX:?}: {:?}", queue.stats()));
            break;
        }
        std::thread::park_timeout(Duration::from_millis(20));
    }
    match queue.check() {
        Ok(found) => problems.extend(found),
        Err(error) => problems.push(format!("the file cannot be checked: {error}")),
    }
    let (timeout, started) = (Duration::from_secs(5), Instant::now());
    if let Err(error) = queue.shutdown(timeout) {
        problems.push(format!("the end: {error}"));
    }
    if started.elapsed() > timeout + Duration::from_millis(250) {
        problems.push(format!("the end took {:?}", started.elapsed()));
    }
    problems
}

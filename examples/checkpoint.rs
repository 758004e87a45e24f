//! A long phase that saves how far it is, and goes on from there after it was cut off: `cargo run --example checkpoint`.
//!
//! Here a shutdown cuts it off; after a crash, a kill or a power cut it is the same.

#![allow(clippy::print_stdout, reason = "a program for people")]

use std::sync::mpsc::{Sender, channel};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use stepwell::{
    Builder, InterruptionReason, JobHandle, JobQueue, JobType, Phase, PhaseContext, PhaseError,
};

const SUM: Phase<u64> = Phase::new("sum");
const SECONDS: Duration = Duration::from_secs(10);

/// What is saved: it replaces what was saved before, and is dropped when the phase completes.
#[derive(Default, Serialize, Deserialize)]
struct Progress {
    next: u64,
    sum: u64,
}

/// Adds up the numbers below the input, and tells where it started and that it is half-way.
fn sum(cx: &PhaseContext<u64>, told: &Sender<u64>, waits: bool) -> Result<u64, PhaseError> {
    let mut at: Progress = cx.saved()?.unwrap_or_default();
    told.send(at.next)?;
    if let Some(cut) = cx.interruption() {
        println!(
            "phase {} goes on at {}; it was cut off: {}",
            cut.phase,
            at.next,
            cut.reason.as_str()
        );
        assert_eq!(cut.reason, InterruptionReason::Shutdown);
    }
    while at.next < *cx.input() {
        at.sum += at.next;
        at.next += 1;
        if at.next.is_multiple_of(100) {
            cx.save(&at)?;
        }
        if waits && at.next == 550 {
            told.send(at.next)?;
            cx.sleep(Duration::from_secs(3600))?;
        }
    }
    Ok(at.sum)
}

fn register(builder: &mut Builder, told: Sender<u64>, waits: bool) -> JobHandle<u64, u64> {
    builder.register(JobType::<u64>::new("sum").phase(SUM, move |cx| sum(cx, &told, waits)))
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("jobs.db");

    let (tx, told) = channel();
    let mut builder = JobQueue::builder(&path);
    let sums = register(&mut builder, tx, true);
    let queue = builder.open()?;
    let id = sums.enqueue(&1000)?;
    assert_eq!(told.recv_timeout(SECONDS)?, 0);
    assert_eq!(told.recv_timeout(SECONDS)?, 550);
    // No time to end by itself: the error says that a handler had to be stopped.
    let stopped = queue.shutdown(Duration::ZERO);
    println!("{}", stopped.expect_err("the handler waits"));

    let (tx, told) = channel();
    let mut builder = JobQueue::builder(&path);
    let sums = register(&mut builder, tx, false);
    let queue = builder.open()?;
    assert_eq!(sums.wait(id, SECONDS)?, 999 * 1000 / 2);
    assert_eq!(told.recv_timeout(SECONDS)?, 500, "where it saved last");
    queue.shutdown(SECONDS)?;
    Ok(())
}

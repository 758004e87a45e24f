//! Cancelling a job that runs, one that waits and one that is over: `cargo run --example cancel`.
//!
//! A cancelled job is over at once, whatever its handler does. The handler is asked to stop, and does so where it looks.

#![allow(clippy::print_stdout, reason = "a program for people")]

use std::sync::mpsc::channel;
use std::time::Duration;

use stepwell::{CancelOutcome, EventKind, JobId, JobQueue, JobStatus, JobType, Phase};
use stepwell::{PhaseStatus, StopReason};

const COUNT: Phase<u64> = Phase::new("count");
const SECONDS: Duration = Duration::from_secs(10);

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let dir = tempfile::tempdir()?;
    let (entered_tx, entered) = channel();
    let (stopped_tx, stopped) = channel();

    let mut builder = JobQueue::builder(dir.path().join("jobs.db")).workers(1);
    let counts = builder.register(JobType::<u64>::new("count").phase(COUNT, move |cx| {
        entered_tx.send(cx.job_id()).ok();
        for number in 0..*cx.input() {
            // Between steps: is somebody asking us to stop?
            if let Err(stop) = cx.check() {
                stopped_tx.send((number, cx.stop_reason())).ok();
                return Err(stop);
            }
            // Wakes up at once when that happens.
            cx.sleep(Duration::from_millis(1)).ok();
        }
        Ok(*cx.input())
    }));
    let queue = builder.open()?;

    let running = counts.enqueue(&u64::MAX)?;
    let waiting = counts.enqueue(&1)?;
    assert_eq!(entered.recv_timeout(SECONDS)?, running);
    // The only worker is busy, so this one never runs.
    assert_eq!(queue.cancel(waiting)?, CancelOutcome::Cancelled);
    assert_eq!(queue.cancel(running)?, CancelOutcome::Cancelled);
    // Over in the file by now; the handler hears of it.
    let job = queue.get(running)?.ok_or("it is kept")?;
    assert_eq!(
        (job.status, job.phases[0].status),
        (JobStatus::Cancelled, PhaseStatus::Cancelled)
    );
    let (number, reason) = stopped.recv_timeout(SECONDS)?;
    assert_eq!(reason, Some(StopReason::Cancelled));
    println!("job {running} was stopped at {number}");

    let short = counts.enqueue(&3)?;
    assert_eq!(counts.wait(short, SECONDS)?, 3);
    let over = CancelOutcome::AlreadyFinished(JobStatus::Completed);
    assert_eq!(queue.cancel(short)?, over);
    assert_eq!(
        queue.cancel(JobId::from_i64(1_000))?,
        CancelOutcome::NotFound
    );

    let events = queue.events_of(running)?;
    let cancelled = events
        .iter()
        .filter(|event| event.kind == EventKind::Cancelled);
    assert_eq!(cancelled.count(), 1, "exactly one");
    queue.shutdown(SECONDS)?;
    Ok(())
}

//! A phase that fails twice is tried again, and those before it are not: `cargo run --example retry_and_resume`.
//!
//! Then a job without tries left is retried by hand, from the phase that failed.

#![allow(clippy::print_stdout, reason = "a program for people")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use stepwell::{JobQueue, JobStatus, JobType, Phase, PhaseError, RetryFrom, RetryPolicy};

const CHARGE: Phase<String> = Phase::new("charge");
const SHIP: Phase<String> = Phase::new("ship");

const MINUTE: Duration = Duration::from_secs(60);

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let dir = tempfile::tempdir()?;
    let charges = Arc::new(AtomicU32::new(0));
    let is_down = Arc::new(AtomicBool::new(false));
    let (charged, down) = (charges.clone(), is_down.clone());

    let mut builder = JobQueue::builder(dir.path().join("jobs.db"));
    let orders = builder.register(
        JobType::<u32>::new("order")
            // 3 tries: after 10 ms and 20 ms, each a little more or less.
            .retry(RetryPolicy::exponential(Duration::from_millis(10), 2.0).max_attempts(3))
            .phase(CHARGE, move |cx| {
                charged.fetch_add(1, Ordering::Relaxed);
                Ok(format!("receipt for order {}", cx.input()))
            })
            .phase(SHIP, move |cx| {
                if down.load(Ordering::Relaxed) {
                    return Err(PhaseError::retry("the carrier is down"));
                }
                if cx.attempt() < 3 {
                    return Err(PhaseError::retry(format!(
                        "no truck for try {}",
                        cx.attempt()
                    )));
                }
                Ok(format!("sent with {}", cx.get(CHARGE)?))
            }),
    );
    let queue = builder.open()?;

    let id = orders.enqueue(&7)?;
    assert_eq!(orders.wait(id, MINUTE)?, "sent with receipt for order 7");
    assert_eq!(
        charges.load(Ordering::Relaxed),
        1,
        "nobody is charged twice"
    );
    let job = queue.get(id)?.ok_or("it is kept")?;
    for error in &job.errors {
        println!("attempt {}: {}", error.attempt, error.message);
    }
    assert_eq!(job.errors.len(), 2);

    // Three tries are not enough this time.
    is_down.store(true, Ordering::Relaxed);
    let id = orders.enqueue(&8)?;
    let job = queue.wait(id, MINUTE)?;
    assert_eq!(
        (job.status, job.attempt, job.errors.len()),
        (JobStatus::Failed, 3, 3)
    );
    println!("{}", orders.wait(id, MINUTE).expect_err("it has failed"));

    // The carrier is up again: go on at the phase that failed, with all of its tries.
    is_down.store(false, Ordering::Relaxed);
    queue.retry(id, RetryFrom::Failed)?;
    println!("{}", orders.wait(id, MINUTE)?);
    assert_eq!(charges.load(Ordering::Relaxed), 2, "one for each order");

    queue.shutdown(MINUTE)?;
    Ok(())
}

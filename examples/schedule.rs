//! When a job runs: delay, priority, unique keys, pause, and why it does not run yet: `cargo run --example schedule`.

#![allow(clippy::print_stdout, reason = "a program for people")]

use std::sync::{Arc, Mutex};
use std::time::Duration;

use stepwell::{Hindrance, JobQueue, JobType, NewJob, Phase, Timestamp, While};

const NOTE: Phase<()> = Phase::new("note");
const SECONDS: Duration = Duration::from_secs(10);
const HOUR: Duration = Duration::from_secs(3600);

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let dir = tempfile::tempdir()?;
    let order = Arc::new(Mutex::new(Vec::new()));
    let noted = order.clone();
    let mut builder = JobQueue::builder(dir.path().join("jobs.db")).workers(1);
    let notes = builder.register(JobType::<String>::new("note").phase(NOTE, move |cx| {
        if let Ok(mut order) = noted.lock() {
            order.push(cx.input().clone());
        }
        Ok(())
    }));
    let queue = builder.open()?;
    let job = |text: &str| notes.job(&text.to_owned());

    // Nothing starts while the queue is paused; that holds over restarts too.
    queue.pause()?;
    let plain = notes.enqueue_job(job("plain")?)?;
    let urgent = notes.enqueue_job(job("urgent")?.priority(10))?;
    let soon = notes.enqueue_job(job("soon")?.delay(Duration::from_millis(500)))?;
    let later = notes.enqueue_job(job("later")?.run_at(Timestamp::now().after(HOUR)))?;

    // While this one is not over, another of its key is not taken in.
    let first = notes.enqueue_job(job("daily")?.unique_key("daily", While::Live))?;
    let second = notes.enqueue_job(job("daily")?.unique_key("daily", While::Live))?;
    assert_eq!(
        (second.id, first.is_new, second.is_new),
        (first.id, true, false)
    );

    let why = queue.explain(plain.id)?;
    println!("job {}: {}", plain.id, why.hindrances[0]);
    assert!(why.hindrances.contains(&Hindrance::QueuePaused));

    queue.resume()?;
    for id in [plain.id, urgent.id, soon.id, first.id] {
        queue.wait(id, SECONDS)?;
    }
    let order = order.lock().map_err(|_| "a handler panicked")?.clone();
    println!("{}", order.join(", "));
    assert_eq!(order, ["urgent", "plain", "daily", "soon"]);

    let why = queue.explain(later.id)?;
    println!("job {}: {}", later.id, why.hindrances[0]);
    assert!(matches!(
        why.hindrances[..],
        [Hindrance::NotDue {
            is_retry: false,
            ..
        }]
    ));

    // A type that nobody has registered here waits for a process that has.
    let strange = queue.enqueue_job(NewJob::new("strange", &1)?)?;
    let why = queue.explain(strange.id)?;
    println!("job {}: {}", strange.id, why.hindrances[0]);
    assert!(matches!(why.hindrances[0], Hindrance::NotRegistered { .. }));

    queue.shutdown(SECONDS)?;
    Ok(())
}

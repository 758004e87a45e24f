//! Enqueueing from a process that runs no jobs: `cargo run --example client`.
//!
//! Both ends are in this one program, so that it can be run by itself; the client knows only the path of the file, and works as
//! well from another process. It needs no running queue either: what it enqueues waits for one.

#![allow(clippy::print_stdout, reason = "a program for people")]

use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use serde_json::json;
use stepwell::{Client, Hindrance, JobQueue, JobStatus, JobType, Phase};

const GREET: Phase<String> = Phase::new("greet");
const SECONDS: Duration = Duration::from_secs(10);

#[allow(clippy::disallowed_methods, reason = "it measures")]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("jobs.db");

    let client = Client::open(&path)?;
    let early = client.enqueue("greet", &json!({"name": "Ada"}))?;
    assert_eq!(client.owner_pid(), None);
    let why = client.explain(early)?;
    println!("job {early}: {}", why.hindrances[0]);
    assert_eq!(why.hindrances[0], Hindrance::NoOwner);

    let (tx, greeted) = channel();
    let mut builder = JobQueue::builder(&path).workers(1);
    let _ = builder.register(
        JobType::<serde_json::Value>::new("greet").phase(GREET, move |cx| {
            tx.send(Instant::now()).ok();
            Ok(format!("hello {}", cx.input()["name"]))
        }),
    );
    let queue = builder.open()?;
    assert_eq!(client.owner_pid(), Some(std::process::id()));
    greeted.recv_timeout(SECONDS)?;
    queue.wait(early, SECONDS)?;

    // The queue sleeps without a deadline now; the client's commit wakes it.
    let called = Instant::now();
    let id = client.enqueue("greet", &json!({"name": "Grace"}))?;
    let started = greeted.recv_timeout(SECONDS)?;
    println!("job {id} started {:?} after the call", started - called);

    let job = queue.wait(id, SECONDS)?;
    assert_eq!(job.phases[0].result, Some(json!("hello \"Grace\"")));
    assert_eq!(client.status(id)?, Some(JobStatus::Completed));
    assert_eq!(client.stats()?.completed, 2);
    queue.shutdown(SECONDS)?;
    Ok(())
}

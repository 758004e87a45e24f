//! Following what happens: a subscription that goes on where another stopped, and a callback: `cargo run --example events`.
//!
//! Events are rows of the file, committed with the change that they tell of. A reader is a position in them: it loses nothing by
//! being slow or away, and slows nobody down.

#![allow(clippy::print_stdout, reason = "a program for people")]

use std::sync::mpsc::channel;
use std::time::Duration;

use stepwell::{EventKind, JobQueue, JobType, Notice, Phase};

const STIR: Phase<()> = Phase::new("stir");
const SERVE: Phase<()> = Phase::new("serve");
const SECONDS: Duration = Duration::from_secs(10);

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let dir = tempfile::tempdir()?;
    let mut builder = JobQueue::builder(dir.path().join("jobs.db"));
    let soups = builder.register(
        JobType::<String>::new("soup")
            .phase(STIR, |cx| {
                // For listeners that want it; not stored.
                cx.progress(0.5, "it thickens");
                Ok(())
            })
            .phase(SERVE, |_| Ok(())),
    );
    let queue = builder.open()?;

    // On a thread of its own; it may call any method of the queue.
    let (tx, completed) = channel();
    queue.on_event(move |event| {
        if event.kind == EventKind::Completed {
            tx.send(event.job_id).ok();
        }
    })?;

    let id = soups.enqueue(&"pea".to_owned())?;
    assert_eq!(completed.recv_timeout(SECONDS)?, id);

    // From the beginning of the log. It waits for what is still to come.
    let mut kinds = Vec::new();
    let mut first = queue.subscribe_after(0);
    while kinds.last() != Some(&EventKind::PhaseCompleted) {
        kinds.extend(kind_of(&first.recv_timeout(SECONDS)?));
    }
    // Somebody else goes on from there, tomorrow perhaps.
    let mut second = queue.subscribe_after(first.position());
    while kinds.last() != Some(&EventKind::Completed) {
        kinds.extend(kind_of(&second.recv_timeout(SECONDS)?));
    }
    let names: Vec<&str> = kinds.iter().map(|kind| kind.as_str()).collect();
    println!("{}", names.join(" "));
    let expected = "job:created job:started job:phase:started job:phase:completed \
                    job:phase:started job:phase:completed job:completed";
    assert_eq!(names.join(" "), expected);

    // The same of one job, as JSON.
    for event in queue.events_of(id)? {
        println!("{}", serde_json::to_string(&event)?);
    }
    queue.shutdown(SECONDS)?;
    Ok(())
}

fn kind_of(notice: &Notice) -> Option<EventKind> {
    match notice {
        Notice::Event(event) => Some(event.kind),
        // Retention has deleted a part of the log: what is missed is known, not guessed.
        Notice::Lagged { after, next } => {
            println!("missed what came after {after} and before {next}");
            None
        }
        _ => None,
    }
}

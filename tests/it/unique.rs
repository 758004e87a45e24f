//! Unique keys: for how long one stands for a job, and for whom.

use std::time::Duration;

use serde_json::Value;
use stepwell::{CancelOutcome, Enqueued, JobQueue, JobStatus, JobType, NewJob, While};

use crate::support::{Gate, Harness, ONE, assert_sound};

const HOUR: Duration = Duration::from_secs(3600);

fn keyed(job_type: &str, hold: While) -> NewJob {
    NewJob::new(job_type, &Value::Null)
        .unwrap()
        .unique_key("the key", hold)
}

/// A type whose jobs wait at the gate.
fn held(harness: &Harness) -> (JobQueue, Gate) {
    let gate = Gate::new();
    let inside = gate.clone();
    let (queue, _) = harness.open(JobType::<Value>::new("held").phase(ONE, move |cx| {
        inside.pass(cx);
        Ok(Value::Null)
    }));
    (queue, gate)
}

#[test]
fn a_key_that_holds_while_queued_is_free_once_its_job_has_started() {
    let harness = Harness::new();
    let (queue, gate) = held(&harness);
    queue.pause().unwrap();
    let enqueue = || queue.enqueue_job(keyed("held", While::Queued)).unwrap();
    let first = enqueue();
    assert!(first.is_new);
    for again in [enqueue(), enqueue()] {
        assert_eq!((again.id, again.is_new), (first.id, false));
    }
    assert_eq!(queue.stats().unwrap().pending, 1);
    queue.resume().unwrap();
    gate.wait(&harness);
    let second = enqueue();
    assert!(second.is_new && second.id != first.id);
    gate.open();
    gate.open();
    for id in [first.id, second.id] {
        harness.wait_for(&queue, id, JobStatus::Completed);
    }
    assert_sound(&queue);
}

/// The bug: with a worker free, the first of them was stored as started, and its key was free for the second.
#[test]
fn of_two_jobs_with_one_key_in_one_call_one_is_new() {
    let harness = Harness::new();
    let (queue, gate) = held(&harness);
    queue.enqueue("held", &Value::Null).unwrap();
    gate.wait(&harness);
    // Workers are free, and the queue knows that nothing else waits.
    let pair = [While::Queued, While::Live].map(|hold| keyed("held", hold));
    let enqueued = queue.enqueue_all(pair.into()).unwrap();
    assert_eq!(enqueued[0].id, enqueued[1].id);
    assert!(enqueued[0].is_new && !enqueued[1].is_new);
    gate.open();
    gate.open();
    harness.wait_for(&queue, enqueued[0].id, JobStatus::Completed);
    assert_sound(&queue);
}

#[test]
fn a_key_that_holds_while_live_is_free_once_its_job_is_over() {
    let harness = Harness::new();
    let (queue, gate) = held(&harness);
    let enqueue = || queue.enqueue_job(keyed("held", While::Live)).unwrap();
    let first = enqueue();
    gate.wait(&harness);
    assert_eq!((enqueue().id, enqueue().is_new), (first.id, false));
    gate.open();
    harness.wait_for(&queue, first.id, JobStatus::Completed);
    let second = enqueue();
    assert!(second.is_new);
    gate.wait(&harness);
    assert_eq!(queue.cancel(second.id).unwrap(), CancelOutcome::Cancelled);
    assert!(enqueue().is_new, "cancelled is over too");
    gate.open();
    gate.open();
}

#[test]
fn a_key_that_holds_for_a_time_outlives_its_job() {
    let harness = Harness::with_fake_clock();
    let (queue, gate) = held(&harness);
    let enqueue = || queue.enqueue_job(keyed("held", While::For(HOUR))).unwrap();
    let first = enqueue();
    gate.open();
    harness.wait_for(&queue, first.id, JobStatus::Completed);
    queue.delete(first.id).unwrap();
    harness.clock().advance(HOUR - Duration::from_millis(1));
    let again = enqueue();
    assert_eq!((again.id, again.is_new), (first.id, false));
    assert_eq!(queue.get(again.id).unwrap(), None, "it was deleted");
    harness.clock().advance(Duration::from_millis(1));
    assert!(enqueue().is_new);
    gate.open();
}

#[test]
fn a_key_belongs_to_its_job_type() {
    let harness = Harness::new();
    let queue = harness.open_without_workers();
    let jobs = ["left", "right", "left", "right"].map(|name| keyed(name, While::Live));
    let enqueued = queue.enqueue_all(jobs.into()).unwrap();
    let is_new: Vec<bool> = enqueued.iter().map(|job| job.is_new).collect();
    assert_eq!(is_new, [true, true, false, false], "also within one call");
    assert_eq!(enqueued[0].id, enqueued[2].id);
    assert_eq!(enqueued[1].id, enqueued[3].id);
    let job = queue.get(enqueued[0].id).unwrap().unwrap();
    assert_eq!(job.unique_key.as_deref(), Some("the key"));
}

#[test]
fn a_key_holds_over_a_restart() {
    let harness = Harness::new();
    let queue = harness.open_without_workers();
    let first = queue.enqueue_job(keyed("later", While::Live)).unwrap();
    queue.shutdown(harness.left()).unwrap();
    let queue = harness.open_without_workers();
    let again = queue.enqueue_job(keyed("later", While::Live)).unwrap();
    assert_eq!((again.id, again.is_new), (first.id, false));
}

/// 30 rounds, 8 threads.
#[test]
fn of_many_concurrent_enqueues_with_one_key_one_is_new() {
    let harness = Harness::new();
    let queue = harness.open_without_workers();
    for round in 0..30 {
        let barrier = std::sync::Barrier::new(8);
        let enqueued: Vec<Enqueued> = std::thread::scope(|scope| {
            let enqueue = || {
                let job = NewJob::new("same", &round).unwrap();
                let job = job.unique_key(format!("round {round}"), While::Live);
                barrier.wait();
                queue.enqueue_job(job).unwrap()
            };
            let threads = [(); 8].map(|()| scope.spawn(enqueue));
            threads
                .into_iter()
                .map(|thread| thread.join().unwrap())
                .collect()
        });
        assert_eq!(enqueued.iter().filter(|job| job.is_new).count(), 1);
        assert!(enqueued.iter().all(|job| job.id == enqueued[0].id));
    }
    assert_eq!(queue.stats().unwrap().pending, 30);
}

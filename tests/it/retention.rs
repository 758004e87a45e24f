//! What is over is deleted in time, what is not over never.

use std::time::Duration;

use serde_json::Value;
use stepwell::{
    CancelOutcome, Client, ErrorKind, EventKind, JobHandle, JobId, JobQueue, JobStatus, JobType,
    Keep, NewJob, PhaseError, Retention, RetryPolicy, Timestamp, While,
};

use crate::support::{Gate, Harness, ONE, assert_refused, assert_sound};

const HOUR: Duration = Duration::from_secs(3600);
const MS: Duration = Duration::from_millis(1);

/// Jobs that complete at once; those with the input `"fail"` fail, those with `"hold"` wait at the gate.
fn open(harness: &Harness, retention: Retention) -> (JobQueue, JobHandle<Value, Value>, Gate) {
    let gate = Gate::new();
    let inside = gate.clone();
    let mut builder = harness.builder().retention(retention);
    let jobs = builder.register(
        JobType::<Value>::new("job")
            .retry(RetryPolicy::never())
            .phase(ONE, move |cx| match cx.input().as_str() {
                Some("fail") => Err(PhaseError::retry("as it was told")),
                Some("hold") => {
                    inside.pass(cx);
                    Ok(Value::Null)
                }
                _ => Ok(Value::Null),
            }),
    );
    (builder.open().unwrap(), jobs, gate)
}

fn failed(harness: &Harness, queue: &JobQueue, jobs: &JobHandle<Value, Value>) -> JobId {
    let id = jobs.enqueue(&"fail".into()).unwrap();
    harness.wait_for(queue, id, JobStatus::Failed);
    id
}

fn cancelled(queue: &JobQueue, jobs: &JobHandle<Value, Value>) -> JobId {
    let later = jobs.job(&Value::Null).unwrap().delay(1000 * HOUR);
    let id = jobs.enqueue_job(later).unwrap().id;
    assert_eq!(queue.cancel(id).unwrap(), CancelOutcome::Cancelled);
    id
}

fn is_there(queue: &JobQueue, id: JobId) -> bool {
    queue.get(id).unwrap().is_some()
}

#[test]
fn each_status_goes_when_it_is_as_old_as_is_said_for_it() {
    let harness = Harness::with_fake_clock();
    let retention = Retention::forever()
        .completed(Keep::for_age(3 * HOUR))
        .failed(Keep::for_age(2 * HOUR))
        .cancelled(Keep::for_age(HOUR));
    let (queue, jobs, _) = open(&harness, retention);
    let completed = harness.run_one(&queue, &jobs, &Value::Null);
    let failed = failed(&harness, &queue, &jobs);
    let cancelled = cancelled(&queue, &jobs);
    for (next, rest) in [
        (cancelled, &[failed, completed][..]),
        (failed, &[completed]),
        (completed, &[]),
    ] {
        harness.clock().advance(HOUR - MS);
        // Later than any deletion that was due.
        queue.pause().unwrap();
        queue.resume().unwrap();
        assert!(is_there(&queue, next), "not before its time");
        harness.clock().advance(MS);
        harness.wait_event(&queue, next, EventKind::Deleted);
        assert!(!is_there(&queue, next));
        assert!(rest.iter().all(|id| is_there(&queue, *id)));
    }
    let stats = queue.stats().unwrap();
    assert_eq!((stats.completed, stats.failed, stats.cancelled), (0, 0, 0));
    assert_sound(&queue);
}

#[test]
fn a_job_that_ends_later_goes_at_its_own_time() {
    let harness = Harness::with_fake_clock();
    let retention = Retention::forever()
        .completed(Keep::for_age(10 * HOUR))
        .cancelled(Keep::for_age(HOUR));
    let (queue, jobs, _) = open(&harness, retention);
    let completed = harness.run_one(&queue, &jobs, &Value::Null);
    // By now it is known when the next one will be too old.
    harness.clock().advance(2 * HOUR);
    harness.run_one(&queue, &jobs, &Value::Null);
    let cancelled = cancelled(&queue, &jobs);
    harness.clock().advance(HOUR);
    harness.wait_event(&queue, cancelled, EventKind::Deleted);
    assert!(is_there(&queue, completed));
}

#[test]
fn too_many_are_cut_back_once_there_are_a_tenth_more_than_allowed() {
    let harness = Harness::with_fake_clock();
    let retention = Retention::forever().completed(Keep::newest(20));
    let (queue, jobs, _) = open(&harness, retention);
    let mut ids = Vec::new();
    for _ in 0..22 {
        ids.push(harness.run_one(&queue, &jobs, &Value::Null));
        harness.clock().advance(MS);
    }
    queue.pause().unwrap();
    queue.resume().unwrap();
    assert_eq!(
        queue.stats().unwrap().completed,
        22,
        "a tenth more is let be"
    );
    ids.push(harness.run_one(&queue, &jobs, &Value::Null));
    harness.wait_event(&queue, ids[2], EventKind::Deleted);
    assert_eq!(queue.stats().unwrap().completed, 20);
    let kept: Vec<bool> = ids.iter().map(|id| is_there(&queue, *id)).collect();
    assert_eq!(kept[..3], [false; 3], "the oldest");
    assert_eq!(kept[3..], [true; 20]);
    assert_sound(&queue);
}

/// The bug: nobody looked unless a worker had ended a job. What callers end in their own commits grew for an hour.
#[test]
fn too_many_that_callers_have_cancelled_are_cut_back_too() {
    let harness = Harness::new();
    let retention = Retention::forever().cancelled(Keep::newest(20));
    let (queue, jobs, _) = open(&harness, retention);
    queue.pause().unwrap();
    let inputs = vec![Value::Null; 23];
    let ids = jobs.enqueue_many(&inputs).unwrap();
    // Whoever is still busy with the opening, or with what was before, goes to sleep.
    let rest = || std::thread::park_timeout(100 * MS);
    rest();
    for id in &ids {
        if id == ids.last().unwrap() {
            rest();
        }
        assert_eq!(queue.cancel(*id).unwrap(), CancelOutcome::Cancelled);
    }
    // To 20, or, if the look at the opening came as late as that, to 20 and one more since.
    harness.until("they are cut back", || {
        queue.stats().unwrap().cancelled <= 22
    });
    assert_sound(&queue);
}

#[test]
fn what_is_not_over_is_never_deleted() {
    let harness = Harness::with_fake_clock();
    let none = Keep::for_age(MS).and_newest(0);
    let retention = Retention::forever()
        .completed(none)
        .failed(none)
        .cancelled(none);
    let (queue, jobs, gate) = open(&harness, retention);
    let running = jobs.enqueue(&"hold".into()).unwrap();
    gate.wait(&harness);
    let delayed = jobs.job(&Value::Null).unwrap().delay(1000 * HOUR);
    let delayed = jobs.enqueue_job(delayed).unwrap().id;
    let unknown = queue.enqueue("unheard-of", &1).unwrap();
    for _ in 0..3 {
        let over = jobs.enqueue(&Value::Null).unwrap();
        harness.wait_event(&queue, over, EventKind::Completed);
        harness.clock().advance(100 * HOUR);
        harness.wait_event(&queue, over, EventKind::Deleted);
    }
    for id in [running, delayed, unknown] {
        assert!(is_there(&queue, id));
    }
    gate.open();
    harness.wait_event(&queue, running, EventKind::Completed);
}

#[test]
fn a_job_can_be_deleted_by_hand_once_it_is_over() {
    let harness = Harness::new();
    let (queue, jobs, gate) = open(&harness, Retention::forever());
    let id = jobs.enqueue(&"hold".into()).unwrap();
    gate.wait(&harness);
    assert_refused(
        queue.delete(id),
        ErrorKind::Conflict,
        "job 1 is running: only jobs that are over can be deleted: cancel it first",
    );
    gate.open();
    harness.wait_for(&queue, id, JobStatus::Completed);
    let failed = failed(&harness, &queue, &jobs);
    queue.delete(id).unwrap();
    queue.delete(failed).unwrap();
    assert_eq!(queue.get(id).unwrap(), None);
    assert_eq!(queue.events_of(id).unwrap(), []);
    assert_refused(
        queue.delete(id),
        ErrorKind::NotFound,
        "job 1: there is no such job",
    );
    for table in ["job", "phase", "payload", "job_error", "checkpoint"] {
        let rows = harness.sql::<i64>(&format!("SELECT count(*) FROM {table}"));
        assert_eq!(rows, [0], "{table}");
    }
    let deleted = harness.wait_event(&queue, id, EventKind::Deleted);
    assert_eq!(deleted.data["reason"], "requested", "the log still has it");
    assert_sound(&queue);
}

#[test]
fn a_dedupe_key_outlives_its_deleted_job() {
    let harness = Harness::with_fake_clock();
    let retention = Retention::forever().completed(Keep::for_age(HOUR));
    let (queue, jobs, _) = open(&harness, retention);
    let enqueue = || {
        let job = NewJob::new("job", &Value::Null).unwrap();
        let job = job.unique_key("invoice 7", While::For(10 * HOUR));
        queue.enqueue_job(job).unwrap()
    };
    let first = enqueue();
    harness.wait_for(&queue, first.id, JobStatus::Completed);
    harness.clock().advance(HOUR);
    harness.wait_event(&queue, first.id, EventKind::Deleted);
    let again = enqueue();
    assert_eq!((again.id, again.is_new), (first.id, false));
    harness.clock().advance(9 * HOUR);
    assert!(enqueue().is_new);
    drop(jobs);
}

#[test]
fn jobs_that_ended_before_the_clock_was_set_do_not_go_by_age() {
    let harness = Harness::with_fake_clock_at(Timestamp::from_millis(5));
    let retention = Retention::forever().completed(Keep::for_age(HOUR).and_newest(10));
    let (queue, jobs, _) = open(&harness, retention);
    let ids: Vec<JobId> = (0..3)
        .map(|_| harness.run_one(&queue, &jobs, &Value::Null))
        .collect();
    // The board learns the time.
    harness
        .clock()
        .advance(crate::support::START.since(harness.clock().now()));
    let new = harness.run_one(&queue, &jobs, &Value::Null);
    harness.clock().advance(HOUR);
    harness.wait_event(&queue, new, EventKind::Deleted);
    assert!(ids.iter().all(|id| is_there(&queue, *id)));
}

#[test]
fn events_go_by_age_and_the_newest_stays() {
    let harness = Harness::with_fake_clock();
    let retention = Retention::forever().events(Keep::for_age(HOUR));
    let (queue, jobs, _) = open(&harness, retention);
    let id = harness.run_one(&queue, &jobs, &Value::Null);
    let head = queue.stats().unwrap().head_seq;
    harness.clock().advance(HOUR);
    harness.until("the events are deleted", || {
        queue.events_after(0, 100).unwrap().len() < 3
    });
    assert!(is_there(&queue, id), "its job is kept");
    let stats = queue.stats().unwrap();
    assert_eq!((stats.head_seq, stats.completed), (head, 1));
    let next = harness.run_one(&queue, &jobs, &Value::Null);
    let created = harness.wait_event(&queue, next, EventKind::Created);
    assert_eq!(created.seq, head + 1, "numbers are never used again");
}

#[test]
fn events_go_by_count() {
    let harness = Harness::with_fake_clock();
    let retention = Retention::forever().events(Keep::newest(50));
    let (queue, jobs, _) = open(&harness, retention);
    for _ in 0..40 {
        harness.run_one(&queue, &jobs, &Value::Null);
    }
    harness.until("they are cut back", || {
        queue.events_after(0, 1000).unwrap().len() <= 55
    });
    let kept = queue.events_after(0, 1000).unwrap().len();
    assert!(kept >= 50, "{kept} are kept");
}

#[test]
fn what_was_due_while_nobody_was_there_is_deleted_at_the_next_start() {
    let harness = Harness::with_fake_clock();
    let retention = || Retention::forever().completed(Keep::for_age(HOUR));
    let (queue, jobs, _) = open(&harness, retention());
    let id = harness.run_one(&queue, &jobs, &Value::Null);
    queue.shutdown(harness.left()).unwrap();
    harness.clock().advance(10 * HOUR);
    let (queue, ..) = open(&harness, retention());
    harness.wait_event(&queue, id, EventKind::Deleted);
    assert_sound(&queue);
}

#[test]
fn deleted_space_is_used_again() {
    let harness = Harness::with_fake_clock();
    let retention = Retention::forever()
        .completed(Keep::newest(20))
        .events(Keep::newest(200));
    let (queue, jobs, _) = open(&harness, retention);
    let round = || {
        let inputs = vec![Value::from("x".repeat(2000)); 100];
        jobs.enqueue_many(&inputs).unwrap();
        harness.until("they ran and were cut back", || {
            let stats = queue.stats().unwrap();
            stats.pending + stats.running == 0 && stats.completed <= 22
        });
        harness.sql::<i64>("SELECT page_count FROM pragma_page_count()")[0]
    };
    let first = (0..3).map(|_| round()).max().unwrap();
    let last = (0..5).map(|_| round()).max().unwrap();
    assert!(last <= first + first / 4, "{first} pages became {last}");
}

/// The bug: the queue was not told that a job had ended, and looked again when one of its own did, or at its next start.
#[test]
fn what_another_process_has_ended_grows_old_and_is_counted_too() {
    let forever = Retention::forever;
    for retention in [
        forever().cancelled(Keep::for_age(HOUR)),
        forever().cancelled(Keep::newest(1)),
    ] {
        let harness = Harness::with_fake_clock();
        let (queue, jobs, _) = open(&harness, retention);
        harness.run_one(&queue, &jobs, &Value::Null);
        let client = Client::open(harness.path()).unwrap();
        let cancelled: Vec<JobId> = (0..3)
            .map(|_| {
                let later = NewJob::new("job", &Value::Null).unwrap().delay(1000 * HOUR);
                let id = client.enqueue_all(vec![later]).unwrap()[0].id;
                assert_eq!(client.cancel(id).unwrap(), CancelOutcome::Cancelled);
                id
            })
            .collect();
        harness.until("the first is deleted", || {
            // More than once: what was seen late counts from then.
            harness.clock().advance(HOUR);
            !is_there(&queue, cancelled[0])
        });
        assert_sound(&queue);
    }
}

//! What a handler says after its claim is over counts no more, and no job has two handlers at a time.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use crossbeam_channel::unbounded;
use serde_json::{Value, json};
use stepwell::{
    CancelOutcome, ErrorCause, EventKind, Hindrance, JobHandle, JobQueue, JobStatus, JobType,
    Phase, RetryFrom, RetryPolicy,
};

use crate::support::{Gate, Harness, ONE, TWO, assert_sound, at_once, count};

struct Held {
    queue: JobQueue,
    /// Their first phase waits at the gate.
    jobs: JobHandle<Value, Value>,
    /// One short phase.
    quick: JobHandle<Value, Value>,
    gate: Gate,
}

fn held(harness: &Harness, workers: usize) -> Held {
    let gate = Gate::new();
    let inside = gate.clone();
    let mut builder = harness.builder().workers(workers);
    let jobs = builder.register(
        JobType::<Value>::new("held")
            .phase(ONE, move |cx| {
                inside.pass(cx);
                Ok(json!({"attempt": cx.attempt(), "told": cx.is_cancelled()}))
            })
            .phase(TWO, |cx| cx.get(ONE)),
    );
    let quick = builder.register(JobType::<Value>::new("quick").phase(ONE, |_| Ok(Value::Null)));
    let queue = builder.open().unwrap();
    Held {
        queue,
        jobs,
        quick,
        gate,
    }
}

#[test]
fn the_late_result_of_a_cancelled_handler_is_dropped() {
    let harness = Harness::new();
    let Held {
        queue,
        jobs,
        quick,
        gate,
    } = held(&harness, 1);
    let id = jobs.enqueue(&Value::Null).unwrap();
    gate.wait(&harness);
    assert_eq!(queue.cancel(id).unwrap(), CancelOutcome::Cancelled);
    let before = queue.get(id).unwrap();
    gate.open();
    // By the one worker, after it has come back.
    harness.run_one(&queue, &quick, &Value::Null);
    assert_eq!(queue.get(id).unwrap(), before);
    assert_eq!(count(&queue, id, EventKind::PhaseCompleted), 0);
    assert_sound(&queue);
}

#[test]
fn a_retried_job_waits_until_its_cancelled_handler_has_returned() {
    let harness = Harness::new();
    let Held {
        queue,
        jobs,
        quick,
        gate,
    } = held(&harness, 2);
    let id = jobs.enqueue(&Value::Null).unwrap();
    gate.wait(&harness);
    assert_eq!(queue.cancel(id).unwrap(), CancelOutcome::Cancelled);
    queue.retry(id, RetryFrom::Failed).unwrap();
    // A later job passes it on the other worker.
    harness.run_one(&queue, &quick, &Value::Null);
    assert_eq!(queue.status(id).unwrap(), Some(JobStatus::Pending));
    let explained = queue.explain(id).unwrap().hindrances;
    assert_eq!(explained, [Hindrance::HandlerNotReturned]);
    assert!(!gate.is_anybody_here());

    gate.open();
    gate.wait(&harness);
    gate.open();
    let job = harness.wait_for(&queue, id, JobStatus::Completed);
    assert_eq!(
        job.phases[0].result,
        Some(json!({"attempt": 1, "told": false})),
        "of the new series, with a flag of its own"
    );
    assert_eq!(count(&queue, id, EventKind::PhaseCompleted), 2);
    assert_sound(&queue);
}

#[test]
fn the_late_result_of_a_phase_that_timed_out_is_dropped() {
    const TIMED: Phase<Value> = Phase::new("one").timeout(Duration::from_secs(5));
    let harness = Harness::with_fake_clock();
    let gate = Gate::new();
    let inside = gate.clone();
    let (queue, jobs) = harness.open(JobType::<Value>::new("timed").retry(at_once(2)).phase(
        TIMED,
        move |cx| {
            inside.pass(cx);
            Ok(json!(cx.attempt()))
        },
    ));
    let id = jobs.enqueue(&Value::Null).unwrap();
    gate.wait(&harness);
    harness.clock().advance(Duration::from_secs(5));
    harness.wait_event(&queue, id, EventKind::PhaseFailed);
    let job = queue.get(id).unwrap().unwrap();
    assert_eq!(job.status, JobStatus::Pending, "recorded at once");
    assert_eq!(job.errors[0].kind, ErrorCause::Timeout);

    gate.open();
    gate.wait(&harness);
    gate.open();
    let job = harness.wait_for(&queue, id, JobStatus::Completed);
    assert_eq!(job.phases[0].result, Some(json!(2)), "of the second try");
    assert_eq!(job.errors.len(), 1);
    assert_sound(&queue);
}

#[test]
fn a_late_failure_is_dropped_too() {
    let harness = Harness::new();
    let gate = Gate::new();
    let inside = gate.clone();
    let mut builder = harness.builder().workers(1);
    let jobs = builder.register(
        JobType::<Value>::new("late")
            .retry(RetryPolicy::never())
            .phase(ONE, move |cx| {
                inside.pass(cx);
                if cx.is_cancelled() {
                    panic!("too late");
                }
                Ok(Value::Null)
            }),
    );
    let queue = builder.open().unwrap();
    let id = jobs.enqueue(&Value::Null).unwrap();
    gate.wait(&harness);
    assert_eq!(queue.cancel(id).unwrap(), CancelOutcome::Cancelled);
    gate.open();
    gate.open();
    harness.run_one(&queue, &jobs, &Value::Null);
    let job = queue.get(id).unwrap().unwrap();
    assert_eq!((job.status, job.errors.len()), (JobStatus::Cancelled, 0));
}

#[test]
fn a_cancelled_handler_can_save_nothing_any_more() {
    let harness = Harness::new();
    let gate = Gate::new();
    let (inside, (tx, saved)) = (gate.clone(), unbounded());
    let (queue, jobs) = harness.open(JobType::<Value>::new("save").phase(ONE, move |cx| {
        cx.save(&json!("before"))?;
        inside.pass(cx);
        tx.send(cx.save(&json!("after")).map_err(|error| error.to_string()))
            .unwrap();
        Ok(Value::Null)
    }));
    let id = jobs.enqueue(&Value::Null).unwrap();
    gate.wait(&harness);
    assert_eq!(queue.cancel(id).unwrap(), CancelOutcome::Cancelled);
    gate.open();
    let refused = harness.recv(&saved).expect_err("the job is cancelled");
    assert_eq!(refused, "stopped: the job was told to");
    let values = harness.sql::<String>("SELECT value FROM checkpoint");
    assert_eq!(values, ["\"before\""], "a retry may go on from there");
}

/// 100 rounds, 2 workers: cancels and retries hit a job whose handlers take their time to stop.
#[test]
fn a_job_never_has_two_handlers_at_a_time() {
    let harness = Harness::new();
    let is_over = Arc::new(AtomicBool::new(false));
    let (inside, most) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));
    let (over, now, max) = (is_over.clone(), inside.clone(), most.clone());
    let (queue, jobs) = harness.open(JobType::<Value>::new("alone").phase(ONE, move |cx| {
        max.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
        let slept = if over.load(Ordering::SeqCst) {
            Ok(())
        } else {
            cx.sleep(Duration::from_secs(60))
        };
        std::thread::park_timeout(Duration::from_millis(1));
        now.fetch_sub(1, Ordering::SeqCst);
        slept.map(|()| Value::Null)
    }));
    let id = jobs.enqueue(&Value::Null).unwrap();
    let mut seq = 0;
    for round in 1..=100 {
        seq = harness
            .wait_event_after(&queue, id, EventKind::PhaseStarted, seq)
            .seq;
        is_over.store(round == 100, Ordering::SeqCst);
        assert_eq!(queue.cancel(id).unwrap(), CancelOutcome::Cancelled);
        queue.retry(id, RetryFrom::Start).unwrap();
    }
    harness.wait_for(&queue, id, JobStatus::Completed);
    assert_eq!(most.load(Ordering::SeqCst), 1);
    assert_eq!(count(&queue, id, EventKind::Started), 101);
    assert_sound(&queue);
}

//! Handlers that do not stop when they are told to: fenced, counted, and their workers replaced.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use stepwell::{
    CancelOutcome, EventKind, Hindrance, JobHandle, JobId, JobQueue, JobStatus, JobType, Phase,
};

use crate::crash;
use crate::support::{Gate, Harness, ONE, assert_sound, at_once};

const S: Duration = Duration::from_secs(1);
const TIMED: Phase<Value> = Phase::new("one").timeout(Duration::from_secs(5));

struct Scene {
    queue: JobQueue,
    /// Their handlers wait at the gate, whatever they are told; 5 s are allowed.
    deaf: JobHandle<Value, Value>,
    quick: JobHandle<Value, Value>,
    gate: Gate,
    /// Another type like the first, with a gate of its own: a gate does not say whom it lets through.
    other_deaf: JobHandle<Value, Value>,
    other_gate: Gate,
    /// Last, for it has the directory of the queue's file.
    harness: Harness,
}

/// One worker, and at most so many abandoned handlers that are replaced.
fn scene(max_abandoned: usize) -> Scene {
    let harness = Harness::with_fake_clock();
    let mut builder = harness.builder().workers(1).max_abandoned(max_abandoned);
    let mut deaf = |name: &str| {
        let gate = Gate::new();
        let inside = gate.clone();
        let job_type = JobType::<Value>::new(name)
            .retry(at_once(3))
            .phase(TIMED, move |cx| {
                inside.pass(cx);
                Ok(json!(cx.attempt()))
            });
        (builder.register(job_type), gate)
    };
    let ((deaf, gate), (other_deaf, other_gate)) = (deaf("deaf"), deaf("other-deaf"));
    let quick = builder.register(JobType::<Value>::new("quick").phase(ONE, |_| Ok(Value::Null)));
    let queue = builder.open().unwrap();
    Scene {
        harness,
        queue,
        deaf,
        quick,
        gate,
        other_deaf,
        other_gate,
    }
}

impl Scene {
    /// A job whose handler has come to the gate.
    fn stuck(&self) -> JobId {
        let id = self.deaf.enqueue(&Value::Null).unwrap();
        assert_eq!(self.gate.wait(&self.harness), id);
        id
    }

    /// Lets the time of the newest handler pass, and then the time that it has to notice.
    fn time_out(&self, id: JobId) {
        let head = self.queue.stats().unwrap().head_seq;
        self.harness.clock().advance(5 * S);
        self.harness
            .wait_event_after(&self.queue, id, EventKind::PhaseFailed, head);
        // The grace begins after the commit.
        let waits = Hindrance::HandlerNotReturned;
        self.harness.until("its handler is told", || {
            let explained = self.queue.explain(id).unwrap();
            explained.hindrances.contains(&waits)
        });
        self.harness.clock().advance(2 * S);
    }

    fn wait_abandoned(&self, count: usize) {
        self.harness.until("so many handlers are abandoned", || {
            self.abandoned() == count
        });
    }

    fn abandoned(&self) -> usize {
        self.queue.stats().unwrap().abandoned
    }
}

/// The job behind a deaf handler is under way, and no worker is in it: one comes late, or none at all.
#[test]
fn a_deadline_passes_while_a_job_waits_for_a_worker() {
    for max_abandoned in [4, 0] {
        let scene = scene(max_abandoned);
        let first = scene.stuck();
        let cancelled = scene.queue.cancel(first).unwrap();
        assert_eq!(cancelled, CancelOutcome::Cancelled);
        let late = scene.deaf.job(&Value::Null).unwrap().deadline(3 * S);
        let late = scene.queue.enqueue_job(late).unwrap().id;
        // Due before that deadline, and behind it in the line for a worker.
        let next = scene.quick.job(&Value::Null).unwrap().delay(2 * S);
        let next = scene.queue.enqueue_job(next).unwrap().id;
        scene
            .harness
            .wait_event(&scene.queue, late, EventKind::PhaseStarted);
        scene.harness.clock().advance(10 * S);
        let failed = scene
            .harness
            .wait_event(&scene.queue, late, EventKind::Failed);
        assert_eq!(failed.data["kind"], "deadline");
        if max_abandoned > 0 {
            // The worker that came has not been lost to a handler whose time was over before it began.
            scene
                .harness
                .wait_event(&scene.queue, next, EventKind::Completed);
        }
        assert_sound(&scene.queue);
        scene.gate.open();
    }
}

#[test]
fn a_handler_that_ignores_its_timeout_is_counted_and_its_worker_replaced() {
    let scene = scene(4);
    let id = scene.stuck();
    assert_eq!(scene.abandoned(), 0);
    scene.time_out(id);
    scene.wait_abandoned(1);
    let job = scene.queue.get(id).unwrap().unwrap();
    assert_eq!((job.status, job.errors.len()), (JobStatus::Pending, 1));
    let reasons = scene.queue.explain(id).unwrap().hindrances;
    assert!(
        reasons.contains(&Hindrance::HandlerNotReturned),
        "{reasons:?}"
    );
    // The pool has its one worker again.
    scene
        .harness
        .run_one(&scene.queue, &scene.quick, &Value::Null);

    scene.gate.open();
    assert_eq!(scene.gate.wait(&scene.harness), id, "its second try");
    scene.wait_abandoned(0);
    scene.gate.open();
    let job = scene
        .harness
        .wait_for(&scene.queue, id, JobStatus::Completed);
    assert_eq!(job.phases[0].result, Some(json!(2)));
    assert_sound(&scene.queue);
}

#[test]
fn a_handler_that_ignores_a_cancel_is_replaced_too() {
    let scene = scene(4);
    let id = scene.stuck();
    assert_eq!(scene.queue.cancel(id).unwrap(), CancelOutcome::Cancelled);
    scene.harness.clock().advance(2 * S);
    scene.wait_abandoned(1);
    scene
        .harness
        .run_one(&scene.queue, &scene.quick, &Value::Null);
    scene.gate.open();
    scene.wait_abandoned(0);
}

#[test]
fn a_handler_that_stops_in_time_is_not_abandoned() {
    let scene = scene(4);
    let id = scene.stuck();
    assert_eq!(scene.queue.cancel(id).unwrap(), CancelOutcome::Cancelled);
    scene.gate.open();
    scene
        .harness
        .run_one(&scene.queue, &scene.quick, &Value::Null);
    scene.harness.clock().advance(10 * S);
    scene
        .harness
        .run_one(&scene.queue, &scene.quick, &Value::Null);
    assert_eq!(scene.abandoned(), 0);
}

#[test]
fn the_pool_is_as_large_as_before_when_all_have_returned() {
    let scene = scene(4);
    let ids = [(); 3].map(|()| {
        let id = scene.stuck();
        assert_eq!(scene.queue.cancel(id).unwrap(), CancelOutcome::Cancelled);
        scene.harness.clock().advance(2 * S);
        id
    });
    scene.wait_abandoned(3);
    for _ in ids {
        scene.gate.open();
    }
    scene.wait_abandoned(0);
    // One worker: while it is busy, nobody else takes a job.
    let held = scene.stuck();
    let waits = scene.quick.enqueue(&Value::Null).unwrap();
    scene.queue.pause_type("another").unwrap();
    assert_eq!(
        scene.queue.explain(waits).unwrap().hindrances,
        [Hindrance::NoWorkerFree { workers: 1 }]
    );
    scene.gate.open();
    for id in [held, waits] {
        scene
            .harness
            .wait_for(&scene.queue, id, JobStatus::Completed);
    }
}

#[test]
fn no_more_workers_are_replaced_than_allowed_and_the_pool_comes_back() {
    let scene = scene(1);
    for _ in 1..=2 {
        let id = scene.stuck();
        assert_eq!(scene.queue.cancel(id).unwrap(), CancelOutcome::Cancelled);
        scene.harness.clock().advance(2 * S);
        scene.wait_abandoned(1);
    }
    // Both workers are lost: the first one, and the only one that was started in its place.
    let waits = scene.quick.enqueue(&Value::Null).unwrap();
    scene.queue.pause_type("another").unwrap();
    assert_ne!(
        scene.queue.status(waits).unwrap(),
        Some(JobStatus::Completed)
    );
    assert_eq!(scene.abandoned(), 1, "the second one keeps its worker");
    scene.gate.open();
    scene.gate.open();
    scene.wait_abandoned(0);
    scene
        .harness
        .wait_for(&scene.queue, waits, JobStatus::Completed);
    assert_sound(&scene.queue);
}

/// The bug: nobody came back to a worker that could not be replaced when its time was up, and the queue stood still with none.
#[test]
fn when_one_has_returned_the_next_worker_is_replaced() {
    let scene = scene(1);
    let both = [
        (&scene.deaf, &scene.gate),
        (&scene.other_deaf, &scene.other_gate),
    ];
    let [_, waits] = both.map(|(deaf, gate)| {
        let id = deaf.enqueue(&Value::Null).unwrap();
        assert_eq!(gate.wait(&scene.harness), id);
        assert_eq!(scene.queue.cancel(id).unwrap(), CancelOutcome::Cancelled);
        let job = scene.quick.job(&Value::Null).unwrap().delay(S);
        let waits = scene.queue.enqueue_job(job).unwrap().id;
        scene.harness.clock().advance(2 * S);
        scene.wait_abandoned(1);
        // Claimed by whoever has looked for alarms before.
        scene
            .harness
            .wait_event(&scene.queue, waits, EventKind::PhaseStarted);
        waits
    });
    // The handler that came first, whose worker was replaced and ends; the other one goes on for ever.
    scene.gate.open();
    scene
        .harness
        .wait_for(&scene.queue, waits, JobStatus::Completed);
    scene.wait_abandoned(1);
    scene.other_gate.open();
    scene.wait_abandoned(0);
    assert_sound(&scene.queue);
}

/// The bug: it took the whole timeout.
#[test]
fn a_queue_does_not_wait_for_a_handler_that_overstays_and_keeps_its_worker() {
    let scene = scene(0);
    let id = scene.stuck();
    assert_eq!(scene.queue.cancel(id).unwrap(), CancelOutcome::Cancelled);
    scene.harness.clock().advance(2 * S);
    let hour = Duration::from_secs(3600);
    let report = scene.queue.shutdown(hour).unwrap();
    assert_eq!(report.handlers_left, 1);
    scene.gate.open();
}

#[test]
fn a_queue_closes_beside_an_abandoned_handler() {
    let scene = scene(4);
    let id = scene.stuck();
    assert_eq!(scene.queue.cancel(id).unwrap(), CancelOutcome::Cancelled);
    scene.harness.clock().advance(2 * S);
    scene.wait_abandoned(1);
    let report = scene.queue.shutdown(scene.harness.left()).unwrap();
    assert_eq!(report.interrupted, [], "its claim was over long ago");
    assert_eq!(report.handlers_left, 1);
    let queue = scene.harness.open_without_workers();
    assert_eq!(queue.status(id).unwrap(), Some(JobStatus::Cancelled));
    scene.gate.open();
}

/// Its worker wrote "inside of nothing" into the file that names what the workers of the next owner are inside of; when that
/// one died, nobody knew where.
#[test]
fn a_handler_that_outlives_its_queue_spoils_no_evidence_of_the_next() {
    let harness = Harness::with_fake_clock();
    let (gate, life) = (Gate::new(), Arc::new(()));
    let (inside, alive) = (gate.clone(), Arc::downgrade(&life));
    let mut builder = harness.builder().workers(1);
    let deaf = builder.register(JobType::<Value>::new("deaf").phase(ONE, move |cx| {
        let _alive = &life;
        inside.pass(cx);
        Ok(Value::Null)
    }));
    let queue = builder.open().unwrap();
    let id = deaf.enqueue(&Value::Null).unwrap();
    gate.wait(&harness);
    assert_eq!(queue.cancel(id).unwrap(), CancelOutcome::Cancelled);
    harness.clock().advance(2 * S);
    harness.until("its worker is replaced", || {
        queue.stats().unwrap().abandoned == 1
    });
    queue.shutdown(harness.left()).unwrap();
    drop(queue);

    let killed = crash::killed_inside_the_second_phase_while(&harness, || {
        gate.open();
        harness.until("the last thread of the closed queue has ended", || {
            alive.strong_count() == 0
        });
    });
    let (_queue, seen) = crash::run_again(&harness, killed);
    let interruption = seen.interruption.expect("it is known where it died");
    assert_eq!(&*interruption.phase, "two");
}

//! Cancelling: decided on disk at once, told to the handler, and said once.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use crossbeam_channel::unbounded;
use serde_json::Value;
use stepwell::{
    BulkAction, CancelOutcome, ErrorKind, EventKind, JobId, JobQueue, JobStatus, JobType,
    PhaseStatus, StopReason,
};

use crate::support::{Gate, Harness, ONE, TWO, assert_refused, assert_sound, count, events_of};

#[test]
fn a_running_job_is_cancelled_at_once_and_its_handler_is_told_why() {
    let harness = Harness::new();
    let gate = Gate::new();
    let (held, (tx, told)) = (gate.clone(), unbounded());
    let (queue, jobs) = harness.open(JobType::<Value>::new("hold").phase(ONE, move |cx| {
        let before = cx.is_cancelled();
        held.pass(cx);
        tx.send((before, cx.stop_reason(), cx.check().is_err()))
            .unwrap();
        Ok(Value::Null)
    }));
    let id = jobs.enqueue(&Value::Null).unwrap();
    gate.wait(&harness);
    assert_eq!(queue.cancel(id).unwrap(), CancelOutcome::Cancelled);
    assert_eq!(queue.status(id).unwrap(), Some(JobStatus::Cancelled));
    gate.open();
    assert_eq!(
        harness.recv(&told),
        (false, Some(StopReason::Cancelled), true)
    );
    assert_sound(&queue);
}

#[test]
fn a_sleeping_handler_wakes_up_when_its_job_is_cancelled() {
    let harness = Harness::new();
    let (tx, woken) = unbounded();
    let (at_door, entered) = unbounded();
    let (queue, jobs) = harness.open(JobType::<Value>::new("sleep").phase(ONE, move |cx| {
        at_door.send(()).unwrap();
        let slept = cx.sleep(Duration::from_secs(3600));
        tx.send(slept.is_err()).unwrap();
        slept.map(|()| Value::Null)
    }));
    let id = jobs.enqueue(&Value::Null).unwrap();
    // Not the event: that one tells that the phase was offered, and a cancel could come before the handler.
    harness.recv(&entered);
    assert_eq!(queue.cancel(id).unwrap(), CancelOutcome::Cancelled);
    assert!(harness.recv(&woken));
    assert_eq!(
        events_of(&queue, id),
        [
            "job:created",
            "job:started",
            "job:phase:started",
            "job:cancelled"
        ]
    );
}

#[test]
fn a_job_that_was_cancelled_before_it_started_never_runs() {
    let harness = Harness::new();
    let (tx, ran) = unbounded();
    let (queue, jobs) = harness.open(JobType::<Value>::new("note").phase(ONE, move |cx| {
        tx.send(cx.job_id()).unwrap();
        Ok(Value::Null)
    }));
    queue.pause().unwrap();
    let cancelled = jobs.enqueue(&Value::Null).unwrap();
    let other = jobs.enqueue(&Value::Null).unwrap();
    assert_eq!(queue.cancel(cancelled).unwrap(), CancelOutcome::Cancelled);
    queue.resume().unwrap();
    harness.wait_for(&queue, other, JobStatus::Completed);
    assert_eq!(ran.try_iter().collect::<Vec<_>>(), [other]);
}

#[test]
fn a_job_that_is_over_is_not_cancelled_any_more() {
    let harness = Harness::new();
    let (queue, jobs) =
        harness.open(JobType::<Value>::new("quick").phase(ONE, |_| Ok(Value::Null)));
    let id = harness.run_one(&queue, &jobs, &Value::Null);
    let head = queue.stats().unwrap().head_seq;
    assert_eq!(
        queue.cancel(id).unwrap(),
        CancelOutcome::AlreadyFinished(JobStatus::Completed)
    );
    let unknown = JobId::from_i64(id.as_i64() + 1);
    assert_eq!(queue.cancel(unknown).unwrap(), CancelOutcome::NotFound);
    assert_eq!(queue.stats().unwrap().head_seq, head, "no event");
}

#[test]
fn a_handler_can_call_cancel_on_its_own_job() {
    let harness = Harness::new();
    let own: Arc<OnceLock<JobQueue>> = Arc::default();
    let inside = own.clone();
    let (tx, answers) = unbounded();
    let (queue, jobs) = harness.open(
        JobType::<Value>::new("own")
            .phase(ONE, move |cx| {
                let queue = inside.wait();
                tx.send((queue.cancel(cx.job_id()).unwrap(), cx.is_cancelled()))
                    .unwrap();
                Ok(Value::Null)
            })
            .phase(TWO, |_| Ok(Value::Null)),
    );
    own.set(queue.clone()).unwrap();
    let id = jobs.enqueue(&Value::Null).unwrap();
    assert_eq!(harness.recv(&answers), (CancelOutcome::Cancelled, true));
    let job = harness.wait_for(&queue, id, JobStatus::Cancelled);
    assert_eq!(
        job.phases[0].status,
        PhaseStatus::Cancelled,
        "what it returned came too late"
    );
    queue.shutdown(harness.left()).unwrap();
}

/// 50 rounds, 8 threads.
#[test]
fn of_many_concurrent_cancels_one_did_it() {
    let harness = Harness::new();
    let (queue, jobs) = harness.open(JobType::<Value>::new("sleep").phase(ONE, |cx| {
        cx.sleep(Duration::from_secs(3600))?;
        Ok(Value::Null)
    }));
    for _ in 0..50 {
        let id = jobs.enqueue(&Value::Null).unwrap();
        let barrier = std::sync::Barrier::new(8);
        let answers: Vec<CancelOutcome> = std::thread::scope(|scope| {
            let cancel = || {
                barrier.wait();
                queue.cancel(id).unwrap()
            };
            let threads = [(); 8].map(|()| scope.spawn(cancel));
            threads
                .into_iter()
                .map(|thread| thread.join().unwrap())
                .collect()
        });
        let did = |answer: &&CancelOutcome| **answer == CancelOutcome::Cancelled;
        assert_eq!(answers.iter().filter(did).count(), 1, "{answers:?}");
        assert_eq!(count(&queue, id, EventKind::Cancelled), 1);
    }
    assert_sound(&queue);
}

#[test]
fn all_jobs_of_a_status_are_cancelled_in_one_go() {
    let harness = Harness::new();
    let gate = Gate::new();
    let held = gate.clone();
    let (queue, jobs) = harness.open(JobType::<Value>::new("hold").phase(ONE, move |cx| {
        held.pass(cx);
        cx.check()?;
        Ok(Value::Null)
    }));
    let running = [(); 2].map(|()| jobs.enqueue(&Value::Null).unwrap());
    gate.wait(&harness);
    gate.wait(&harness);
    queue.pause().unwrap();
    let pending = [(); 3].map(|()| jobs.enqueue(&Value::Null).unwrap());
    let cancel = |status, expect| queue.bulk(BulkAction::Cancel, status, None, expect);
    assert_refused(
        cancel(JobStatus::Pending, Some(5)),
        ErrorKind::Conflict,
        "3 jobs are pending, not 5",
    );
    assert_eq!(cancel(JobStatus::Pending, Some(3)).unwrap(), 3);
    assert_eq!(cancel(JobStatus::Running, None).unwrap(), 2);
    assert_refused(
        cancel(JobStatus::Cancelled, None),
        ErrorKind::Conflict,
        "is cancelled: only jobs that are not over can be cancelled",
    );
    for id in running.iter().chain(&pending) {
        assert_eq!(queue.status(*id).unwrap(), Some(JobStatus::Cancelled));
        assert_eq!(count(&queue, *id, EventKind::Cancelled), 1);
    }
    gate.open();
    gate.open();
    assert_sound(&queue);
}

//! The findings that this project began with, each as the fact that it must keep. `docs/seed-findings.md` maps every line of that
//! document; the letters and numbers are its own.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use stepwell::{
    CancelOutcome, ErrorKind, Event, EventKind, InterruptionReason, JobId, JobStatus, JobType,
    Keep, Phase, PhaseContext, PhaseError, PhaseStatus, Retention, RetryFrom, RetryPolicy,
};

use crate::crash;
use crate::support::{
    AtTheEdge, Gate, Harness, ONE, THREE, TWO, assert_refused, assert_sound, at_once, count,
};

// ---- 2.A: one `job:cancelled` when the cancel lands at a phase boundary ----

#[test]
fn a_cancel_at_a_phase_boundary_emits_one_job_cancelled() {
    let harness = Harness::new();
    let edge = AtTheEdge::new(&harness);
    let heard = Arc::new(Mutex::new(Vec::new()));
    let events = heard.clone();
    let hear = move |event: &Event| events.lock().unwrap().push((event.job_id, event.kind));
    edge.queue.on_event(hear).unwrap();

    assert_eq!(
        edge.queue.cancel(edge.job).unwrap(),
        CancelOutcome::Cancelled
    );
    // The worker comes back, finds the offer of the second phase, and runs a job that was enqueued later.
    edge.gate.open();
    harness.wait_for(&edge.queue, edge.other, JobStatus::Completed);
    let later = edge.queue.enqueue("short", &Value::Null).unwrap();
    harness.wait_for(&edge.queue, later, JobStatus::Completed);

    assert_eq!(count(&edge.queue, edge.job, EventKind::Cancelled), 1);
    assert!(!edge.gate.is_anybody_here(), "the second phase never began");
    assert_sound(&edge.queue);
    edge.queue.shutdown(harness.left()).unwrap();
    let is_ours = |event: &&(JobId, EventKind)| **event == (edge.job, EventKind::Cancelled);
    assert_eq!(heard.lock().unwrap().iter().filter(is_ours).count(), 1);
}

/// 100 rounds, one caller, two workers: the cancel comes when the first phase is over, and the second may have begun.
#[test]
fn a_cancel_that_races_a_phase_boundary_emits_one_job_cancelled() {
    let harness = Harness::new();
    let (queue, jobs) = harness.open(
        JobType::<Value>::new("race")
            .phase(ONE, |_| Ok(Value::Null))
            .phase(TWO, |cx| {
                cx.sleep(Duration::from_secs(60))?;
                Ok(Value::Null)
            }),
    );
    for _ in 0..100 {
        let id = jobs.enqueue(&Value::Null).unwrap();
        harness.wait_event(&queue, id, EventKind::PhaseCompleted);
        assert_eq!(queue.cancel(id).unwrap(), CancelOutcome::Cancelled);
        let again = queue.cancel(id).unwrap();
        assert_eq!(again, CancelOutcome::AlreadyFinished(JobStatus::Cancelled));
        assert_eq!(count(&queue, id, EventKind::Cancelled), 1);
    }
    queue.shutdown(harness.left()).unwrap();
    let queue = harness.open_without_workers();
    assert_eq!(queue.stats().unwrap().cancelled, 100);
    assert_sound(&queue);
}

// ---- 2.B: no phase of a cancelled job is pending ----

#[test]
fn a_cancelled_pending_job_has_all_phases_cancelled() {
    let harness = Harness::new();
    let (queue, jobs) = harness.open(three_phases(|_| Ok(Value::Null)));
    queue.pause().unwrap();
    let id = jobs.enqueue(&Value::Null).unwrap();
    assert_eq!(queue.cancel(id).unwrap(), CancelOutcome::Cancelled);
    let job = queue.get(id).unwrap().unwrap();
    assert_eq!(job.status, JobStatus::Cancelled);
    for phase in &job.phases {
        assert_eq!(phase.status, PhaseStatus::Cancelled, "{job:#?}");
        assert_eq!(phase.finished_at, job.finished_at, "{job:#?}");
    }
    assert_sound(&queue);
}

#[test]
fn a_cancelled_running_job_keeps_completed_phases_and_has_the_others_cancelled() {
    let harness = Harness::new();
    let gate = Gate::new();
    let held = gate.clone();
    let (queue, jobs) = harness.open(three_phases(move |cx| {
        held.pass(cx);
        Ok(Value::Null)
    }));
    let id = jobs.enqueue(&Value::Null).unwrap();
    gate.wait(&harness);
    assert_eq!(queue.cancel(id).unwrap(), CancelOutcome::Cancelled);
    let job = queue.get(id).unwrap().unwrap();
    let statuses: Vec<_> = job.phases.iter().map(|phase| phase.status).collect();
    use PhaseStatus::{Cancelled, Completed};
    assert_eq!(statuses, [Completed, Cancelled, Cancelled]);
    gate.open();
    assert_sound(&queue);
}

/// Text that does not survive being read as a JSON value and written again: its fields would be sorted.
#[derive(serde::Serialize, serde::Deserialize)]
struct Unsorted {
    z: f64,
    a: (f64, String),
    n: i64,
}

const FIRST: Phase<Unsorted> = Phase::new("one");

/// The second phase does as it is told.
fn three_phases(
    second: impl Fn(&PhaseContext<Value>) -> Result<Value, PhaseError> + Send + Sync + 'static,
) -> JobType<Value, Value> {
    JobType::<Value>::new("three")
        .retry(RetryPolicy::never())
        .phase(FIRST, |_| {
            Ok(Unsorted {
                z: 1.5,
                a: (1e3, "\u{e9}\n".to_owned()),
                n: 9_007_199_254_740_993,
            })
        })
        .phase(TWO, second)
        .phase(THREE, |cx| cx.get_json("one"))
}

// ---- 2.D: a shutdown that times out still cleans up ----

#[test]
fn a_shutdown_that_times_out_still_tears_everything_down() {
    let harness = Harness::new();
    let gate = Gate::new();
    let held = gate.clone();
    let (queue, jobs) = harness.open(three_phases(move |cx| {
        held.pass(cx);
        Ok(json!("too late"))
    }));
    let heard = Arc::new(Mutex::new(Vec::new()));
    let events = heard.clone();
    queue
        .on_event(move |event| events.lock().unwrap().push(event.kind))
        .unwrap();
    let mut subscription = queue.subscribe_after(0);
    let id = jobs.enqueue(&Value::Null).unwrap();
    gate.wait(&harness);

    let (timeout, started) = (Duration::from_millis(300), Instant::now());
    assert_refused(
        queue.shutdown(timeout),
        ErrorKind::Timeout,
        &format!("the queue is closed, but 1 handlers did not end within 300ms (jobs {id})"),
    );
    let took = started.elapsed();
    assert!(took >= timeout, "{took:?}: the handler had its time");
    assert!(took < timeout + Duration::from_millis(250), "{took:?}");
    // The listeners have heard everything and are gone.
    assert_eq!(heard.lock().unwrap().last(), Some(&EventKind::Interrupted));
    let mut received = std::iter::repeat_with(|| subscription.recv_timeout(harness.left()));
    let end = received.find_map(Result::err).unwrap();
    assert_eq!(end.kind(), ErrorKind::Closed);
    // The store is closed, and the file free, while the handler is still inside.
    assert_eq!(queue.get(id).unwrap_err().kind(), ErrorKind::Closed);
    assert_eq!(harness.client().owner_pid(), None);
    let again = harness.open_without_workers();
    let job = again.get(id).unwrap().unwrap();
    assert_eq!((job.status, job.attempt), (JobStatus::Pending, 0));
    let interruption = job.interruption.as_ref().expect("it was recorded");
    assert_eq!(
        (&*interruption.phase, interruption.reason),
        ("two", InterruptionReason::Shutdown)
    );
    assert_sound(&again);
    gate.open();
}

// ---- 3: `job:deleted` is no snapshot of the job ----

#[test]
fn job_deleted_carries_only_the_deleted_job_id_and_a_reason() {
    let harness = Harness::with_fake_clock();
    let hour = Duration::from_secs(3600);
    let retention = Retention::forever().completed(Keep::for_age(hour));
    let mut builder = harness.builder().retention(retention);
    let jobs = builder.register(three_phases(|_| Ok(Value::Null)));
    let queue = builder.open().unwrap();
    let by_hand = harness.run_one(&queue, &jobs, &json!({"secret": 1}));
    let by_age = harness.run_one(&queue, &jobs, &json!({"secret": 2}));
    queue.delete(by_hand).unwrap();
    harness.clock().advance(hour);

    for (id, reason) in [(by_hand, "requested"), (by_age, "retention")] {
        let event = harness.wait_event(&queue, id, EventKind::Deleted);
        let data = serde_json::to_value(&event.data).unwrap();
        assert_eq!(data, json!({"deletedJobId": id, "reason": reason}));
        let whole = serde_json::to_value(&event).unwrap();
        let keys: BTreeSet<&str> = whole
            .as_object()
            .unwrap()
            .keys()
            .map(String::as_str)
            .collect();
        let envelope = ["at", "event", "job_id", "seq"];
        let expected = envelope.iter().chain(&["deletedJobId", "reason"]);
        assert_eq!(keys, expected.copied().collect(), "{whole}");
        assert_eq!(queue.get(id).unwrap(), None);
    }
}

// ---- 6.2: a partial retry keeps the results of completed phases ----

#[test]
fn a_partial_retry_keeps_completed_results_byte_for_byte() {
    let harness = Harness::new();
    let is_mended = Arc::new(Mutex::new(false));
    let switch = is_mended.clone();
    let (queue, jobs) = harness.open(three_phases(move |_| {
        if *switch.lock().unwrap() {
            Ok(Value::Null)
        } else {
            Err(PhaseError::retry("not yet"))
        }
    }));
    let id = jobs.enqueue(&Value::Null).unwrap();
    let failed = harness.wait_for(&queue, id, JobStatus::Failed);
    let stored = format!("SELECT result FROM phase WHERE id = {}", id.as_i64() * 256);
    let before: Vec<String> = harness.sql(&stored);
    let text = r#"{"z":1.5,"a":[1000.0,"é\n"],"n":9007199254740993}"#;
    assert_eq!(before, [text], "the first phase's result is there");

    *is_mended.lock().unwrap() = true;
    queue.retry(id, RetryFrom::Failed).unwrap();
    let job = harness.wait_for(&queue, id, JobStatus::Completed);
    assert_eq!(harness.sql::<String>(&stored), before);
    assert_eq!(job.phases[0], failed.phases[0], "it did not run again");
    assert_eq!(
        job.phases[2].result, failed.phases[0].result,
        "a later phase sees it"
    );
    assert_sound(&queue);
}

#[test]
fn an_automatic_retry_keeps_completed_results_byte_for_byte() {
    let harness = Harness::new();
    let (queue, jobs) = harness.open(
        three_phases(|cx| match cx.attempt() {
            1 => Err(PhaseError::retry("not yet")),
            _ => cx.get_json("one"),
        })
        .retry(at_once(2)),
    );
    let id = harness.run_one(&queue, &jobs, &Value::Null);
    let job = queue.get(id).unwrap().unwrap();
    assert_eq!(
        [job.phases[0].attempt, job.phases[1].attempt],
        [1, 2],
        "the first phase did not run again"
    );
    assert_eq!(job.phases[1].result, job.phases[0].result);
}

// ---- 6.3: a restart keeps the context of the interrupted phase ----

#[test]
fn a_restart_keeps_the_context_of_the_interrupted_phase() {
    let harness = Harness::new();
    let id = crash::killed_inside_the_second_phase(&harness);
    let running = harness.client().get(id).unwrap().unwrap();
    let (queue, seen) = crash::run_again(&harness, id);
    let interruption = seen.interruption.expect("the handler is told");
    assert_eq!(&*interruption.phase, "two");
    assert_eq!(interruption.attempt, 1);
    assert_eq!(interruption.reason, InterruptionReason::ProcessDied);
    assert!(Some(interruption.since) >= running.phases[1].started_at);
    assert!(interruption.since <= interruption.at);
    assert_eq!(seen.saved, Some(json!({"position": 7})), "its checkpoint");
    assert_eq!(
        Some(seen.first),
        running.phases[0].result,
        "earlier results"
    );
    let job = queue.get(id).unwrap().unwrap();
    assert_eq!(job.interruption, Some(interruption), "tools see it too");
}

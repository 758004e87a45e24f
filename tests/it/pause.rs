//! Pausing, and what `explain` says of jobs that do not run.

use std::time::Duration;

use serde_json::{Value, json};
use stepwell::{
    CancelOutcome, ErrorKind, EventKind, Hindrance, JobHandle, JobId, JobQueue, JobStatus, JobType,
};

use crate::support::{
    Gate, Harness, ONE, START, TWO, assert_refused, assert_sound, count, events_of,
};

fn plain(name: &str) -> JobType<Value, Value> {
    JobType::<Value>::new(name).phase(ONE, |_| Ok(Value::Null))
}

fn held(name: &str, gate: &Gate) -> JobType<Value, Value> {
    let gate = gate.clone();
    JobType::<Value>::new(name)
        .phase(ONE, move |cx| {
            gate.pass(cx);
            Ok(json!(cx.is_cancelled()))
        })
        .phase(TWO, |cx| cx.get(ONE))
}

fn reasons(queue: &JobQueue, id: JobId) -> Vec<Hindrance> {
    queue.explain(id).unwrap().hindrances
}

#[test]
fn nothing_starts_while_the_queue_is_paused() {
    let harness = Harness::new();
    let (queue, jobs) = harness.open(plain("plain"));
    queue.pause().unwrap();
    let ids = [(); 3].map(|()| jobs.enqueue(&Value::Null).unwrap());
    // A change of the file that comes later than any claim of them would have.
    queue.pause_type("another").unwrap();
    assert_eq!(queue.stats().unwrap().pending, 3);
    assert_eq!(reasons(&queue, ids[0]), [Hindrance::QueuePaused]);
    queue.resume().unwrap();
    for id in ids {
        harness.wait_for(&queue, id, JobStatus::Completed);
    }
}

#[test]
fn a_paused_type_waits_while_others_run() {
    let harness = Harness::new();
    let mut builder = harness.builder();
    let paused = builder.register(plain("paused"));
    let other = builder.register(plain("other"));
    let queue = builder.open().unwrap();
    queue.pause_type("paused").unwrap();
    let id = paused.enqueue(&Value::Null).unwrap();
    harness.run_one(&queue, &other, &Value::Null);
    let job_type = "paused".to_owned();
    assert_eq!(reasons(&queue, id), [Hindrance::TypePaused { job_type }]);
    assert_eq!(queue.stats().unwrap().paused_types, ["paused"]);
    assert!(!queue.stats().unwrap().paused);
    queue.resume_type("paused").unwrap();
    harness.wait_for(&queue, id, JobStatus::Completed);
    assert_refused(
        queue.pause_type("no name"),
        ErrorKind::InvalidJob,
        "job type \"no name\" is not a name",
    );
}

#[test]
fn a_pause_holds_over_a_restart() {
    let harness = Harness::new();
    let open = || {
        let mut builder = harness.builder();
        let one: JobHandle<Value, Value> = builder.register(plain("one"));
        let two = builder.register(plain("two"));
        (builder.open().unwrap(), one, two)
    };
    let (queue, ..) = open();
    queue.pause().unwrap();
    queue.pause_type("one").unwrap();
    queue.shutdown(harness.left()).unwrap();

    let (queue, one, two) = open();
    let waits = one.enqueue(&Value::Null).unwrap();
    let waits_too = two.enqueue(&Value::Null).unwrap();
    let job_type = "one".to_owned();
    assert_eq!(
        reasons(&queue, waits),
        [Hindrance::QueuePaused, Hindrance::TypePaused { job_type }],
        "each reason"
    );
    queue.resume().unwrap();
    harness.wait_for(&queue, waits_too, JobStatus::Completed);
    assert_eq!(queue.status(waits).unwrap(), Some(JobStatus::Pending));
    queue.shutdown(harness.left()).unwrap();

    let (queue, ..) = open();
    queue.resume_type("one").unwrap();
    harness.wait_for(&queue, waits, JobStatus::Completed);
    assert_sound(&queue);
}

#[test]
fn a_job_under_way_stops_at_its_next_edge_and_goes_on_from_there() {
    for pause_all in [true, false] {
        let harness = Harness::new();
        let gate = Gate::new();
        let (queue, jobs) = harness.open(held("held", &gate));
        let id = jobs.enqueue(&Value::Null).unwrap();
        gate.wait(&harness);
        if pause_all {
            queue.pause().unwrap();
        } else {
            queue.pause_type("held").unwrap();
        }
        gate.open();
        let event = harness.wait_event(&queue, id, EventKind::Interrupted);
        assert_eq!(event.data["reason"], json!("paused"));
        let job = queue.get(id).unwrap().unwrap();
        assert_eq!((job.status, job.attempt), (JobStatus::Pending, 0));
        assert_eq!(job.phases[0].result, Some(json!(false)), "it was not told");
        assert_eq!((&job.interruption, job.errors.len()), (&None, 0));
        if pause_all {
            queue.resume().unwrap();
        } else {
            queue.resume_type("held").unwrap();
        }
        let job = harness.wait_for(&queue, id, JobStatus::Completed);
        assert_eq!(job.attempt, 1);
        assert_eq!(count(&queue, id, EventKind::PhaseCompleted), 2);
        assert_sound(&queue);
    }
}

#[test]
fn a_job_that_was_claimed_but_not_entered_is_given_back() {
    let harness = Harness::new();
    let edge = crate::support::AtTheEdge::new(&harness);
    edge.queue.pause().unwrap();
    let job = harness.wait_for(&edge.queue, edge.job, JobStatus::Pending);
    assert_eq!((job.attempt, job.phases_done), (0, 1));
    assert_eq!(
        events_of(&edge.queue, edge.job).last(),
        Some(&"job:interrupted")
    );
    edge.queue.resume().unwrap();
    edge.gate.open();
    edge.gate.open();
    harness.wait_for(&edge.queue, edge.job, JobStatus::Completed);
    assert_sound(&edge.queue);
}

#[test]
fn explain_lists_each_reason_why_a_job_waits() {
    let harness = Harness::with_fake_clock();
    let gate = Gate::new();
    let mut builder = harness.builder().workers(1);
    let jobs = builder.register(held("held", &gate).concurrency(1));
    let other = builder.register(plain("other"));
    let queue = builder.open().unwrap();
    let running = jobs.enqueue(&Value::Null).unwrap();
    gate.wait(&harness);
    let first = jobs.enqueue(&Value::Null).unwrap();
    let late = jobs.job(&Value::Null).unwrap();
    let late = late.delay(Duration::from_secs(60));
    let late = jobs.enqueue_job(late).unwrap().id;
    let unknown = queue.enqueue("unheard-of", &Value::Null).unwrap();
    let free = other.enqueue(&Value::Null).unwrap();

    assert_eq!(reasons(&queue, running), [], "it runs");
    let limit = Hindrance::ConcurrencyLimit { max: 1, running: 1 };
    let busy = Hindrance::NoWorkerFree { workers: 1 };
    assert_eq!(reasons(&queue, first), [limit.clone(), busy.clone()]);
    assert_eq!(reasons(&queue, free), std::slice::from_ref(&busy));
    let not_due = Hindrance::NotDue {
        run_at: START.after(Duration::from_secs(60)),
        is_retry: false,
    };
    assert_eq!(
        reasons(&queue, late),
        [
            not_due,
            Hindrance::Behind { jobs: 1 },
            limit.clone(),
            busy.clone()
        ]
    );
    let not_registered = Hindrance::NotRegistered {
        job_type: "unheard-of".to_owned(),
    };
    assert_eq!(reasons(&queue, unknown), [not_registered, busy]);
    let texts: Vec<String> = reasons(&queue, late)
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(
        texts,
        [
            "it may not start before 2027-01-15T08:01:00.000Z",
            "1 jobs of its type are before it",
            "1 jobs of its type run, 1 are allowed",
            "all 1 workers are busy"
        ]
    );
    gate.open();
    gate.open();
    harness.wait_for(&queue, first, JobStatus::Completed);
    assert_eq!(reasons(&queue, first), [], "it is over");
    assert_refused(
        queue.explain(JobId::from_i64(99)),
        ErrorKind::NotFound,
        "job 99: there is no such job",
    );
}

/// What a pause had taken back was counted again when that was committed, and one job too many was claimed for it.
#[test]
fn what_a_pause_gives_back_makes_room_for_one_job_and_no_more() {
    let harness = Harness::new();
    let gate = Gate::new();
    let mut builder = harness.builder().workers(1).in_flight(1);
    let held = builder.register(held("held", &gate));
    let one = builder.register(plain("one"));
    let two = builder.register(plain("two"));
    let queue = builder.open().unwrap();
    let first = held.enqueue(&Value::Null).unwrap();
    gate.wait(&harness);
    // Its handler keeps the worker; another job is claimed in its place, and waits for the worker.
    assert_eq!(queue.cancel(first).unwrap(), CancelOutcome::Cancelled);
    let waits = one.enqueue(&Value::Null).unwrap();
    harness.wait_event(&queue, waits, EventKind::Started);
    let others = [(); 3].map(|()| two.enqueue(&Value::Null).unwrap());
    queue.pause_type("one").unwrap();
    harness.wait_event(&queue, waits, EventKind::Interrupted);
    harness.wait_event(&queue, others[0], EventKind::Started);
    assert_eq!(queue.stats().unwrap().running, 1);
    gate.open();
    harness.wait_for(&queue, others[2], JobStatus::Completed);
    assert_sound(&queue);
}

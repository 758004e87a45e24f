//! A client beside the process that runs the jobs: it is noticed at once.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use crossbeam_channel::unbounded;
use serde_json::{Value, json};
use stepwell::{
    BulkAction, CancelOutcome, Client, ErrorKind, EventKind, Hindrance, JobHandle, JobPlan,
    JobQueue, JobStatus, JobType, ListFilter, NewJob, PhaseSpec, RetryFrom, StopReason,
};

use crate::crash;
use crate::support::{
    Gate, Harness, ONE, OtherProcess, asleep, assert_refused, assert_sound, count,
};

fn plain() -> JobType<Value, Value> {
    JobType::<Value>::new("plain").phase(ONE, |cx| Ok(cx.input().clone()))
}

/// A queue that has nothing to do and sleeps, and a client beside it.
fn beside(harness: &Harness) -> (JobQueue, JobHandle<Value, Value>, Client) {
    let (queue, jobs) = harness.open(plain());
    harness.run_one(&queue, &jobs, &Value::Null);
    (queue, jobs, harness.client())
}

#[test]
fn a_job_from_a_client_wakes_the_queue() {
    let harness = Harness::new();
    let (queue, _, client) = beside(&harness);
    // On Windows each is noticed within a second.
    for n in 0..if cfg!(windows) { 5 } else { 20 } {
        let id = client.enqueue("plain", &json!(n)).unwrap();
        harness.wait_event(&queue, id, EventKind::Completed);
        let job = client.get(id).unwrap().unwrap();
        assert_eq!(job.phases[0].result, Some(json!(n)));
    }
    assert_sound(&queue);
}

#[test]
fn a_cancel_from_a_client_stops_a_running_handler() {
    let harness = Harness::new();
    let (tx, told) = unbounded();
    let (queue, jobs) = harness.open(JobType::<Value>::new("sleep").phase(ONE, move |cx| {
        tx.send(None).unwrap();
        let slept = cx.sleep(Duration::from_secs(3600));
        tx.send(cx.stop_reason()).unwrap();
        slept.map(|()| Value::Null)
    }));
    let client = harness.client();
    let id = jobs.enqueue(&Value::Null).unwrap();
    assert_eq!(harness.recv(&told), None);
    assert_eq!(client.cancel(id).unwrap(), CancelOutcome::Cancelled);
    assert_eq!(harness.recv(&told), Some(StopReason::Cancelled));
    assert_eq!(count(&queue, id, EventKind::Cancelled), 1);
    let again = client.cancel(id).unwrap();
    assert_eq!(again, CancelOutcome::AlreadyFinished(JobStatus::Cancelled));
    assert_sound(&queue);
}

#[test]
fn a_job_that_a_client_cancels_and_retries_waits_for_its_handler() {
    let harness = Harness::new();
    let gate = Gate::new();
    let inside = gate.clone();
    let mut builder = harness.builder();
    let jobs = builder.register(JobType::<Value>::new("held").phase(ONE, move |cx| {
        inside.pass(cx);
        Ok(json!(cx.is_cancelled()))
    }));
    let quick = builder.register(plain());
    let queue = builder.open().unwrap();
    let client = harness.client();
    let id = jobs.enqueue(&Value::Null).unwrap();
    gate.wait(&harness);
    assert_eq!(client.cancel(id).unwrap(), CancelOutcome::Cancelled);
    client.retry(id, RetryFrom::Failed).unwrap();
    harness.run_one(&queue, &quick, &Value::Null);
    assert!(!gate.is_anybody_here(), "a second handler");
    gate.open();
    gate.wait(&harness);
    gate.open();
    let job = harness.wait_for(&queue, id, JobStatus::Completed);
    assert_eq!(job.phases[0].result, Some(json!(false)));
    assert_sound(&queue);
}

#[test]
fn a_client_can_retry_delete_and_act_on_many() {
    let harness = Harness::new();
    let (queue, jobs, client) = beside(&harness);
    queue.pause().unwrap();
    let ids = jobs.enqueue_many(&vec![Value::Null; 3]).unwrap();
    let cancel = BulkAction::Cancel;
    assert_refused(
        client.bulk(cancel, JobStatus::Pending, None, Some(4)),
        ErrorKind::Conflict,
        "3 jobs are pending, not 4",
    );
    let cancelled = client.bulk(cancel, JobStatus::Pending, Some("plain"), Some(3));
    assert_eq!(cancelled.unwrap(), 3);
    client.delete(ids[0]).unwrap();
    client.retry(ids[1], RetryFrom::Start).unwrap();
    client.resume().unwrap();
    harness.wait_event(&queue, ids[1], EventKind::Completed);
    assert_eq!(queue.get(ids[0]).unwrap(), None);
    assert_eq!(queue.status(ids[2]).unwrap(), Some(JobStatus::Cancelled));
    assert_sound(&queue);
}

#[test]
fn a_pause_by_a_client_holds_in_the_running_process() {
    let harness = Harness::new();
    let (queue, jobs, client) = beside(&harness);
    client.pause().unwrap();
    let mut newest = None;
    harness.until("the queue has heard of it", || {
        let id = jobs.enqueue(&Value::Null).unwrap();
        newest = Some(id);
        queue.status(id).unwrap() == Some(JobStatus::Pending)
    });
    let id = newest.unwrap();
    // Later than any claim that was under way.
    queue.pause_type("another").unwrap();
    assert_eq!(queue.status(id).unwrap(), Some(JobStatus::Pending));
    let reasons = client.explain(id).unwrap().hindrances;
    assert!(reasons.contains(&Hindrance::QueuePaused), "{reasons:?}");
    client.resume().unwrap();
    harness.wait_for(&queue, id, JobStatus::Completed);
}

#[test]
fn who_waits_in_the_queue_hears_of_an_end_that_a_client_made() {
    let harness = Harness::new();
    let (queue, jobs, client) = beside(&harness);
    queue.pause().unwrap();
    let id = jobs.enqueue(&Value::Null).unwrap();
    let waiting = queue.clone();
    let hour = Duration::from_secs(3600);
    let answer = asleep(&harness, move || waiting.wait(id, hour));
    assert_eq!(client.cancel(id).unwrap(), CancelOutcome::Cancelled);
    let job = harness.recv(&answer).unwrap();
    assert_eq!(job.status, JobStatus::Cancelled);
}

#[test]
fn a_client_works_without_a_running_process() {
    let harness = Harness::new();
    let client = harness.client();
    assert_eq!(client.owner_pid(), None);
    let id = client.enqueue("plain", &json!(7)).unwrap();
    let explained = client.explain(id).unwrap();
    assert_eq!(explained.hindrances, [Hindrance::NoOwner]);
    assert_eq!(client.list(&ListFilter::new()).unwrap().jobs.len(), 1);
    assert_eq!(client.events_of(id).unwrap().len(), 1);
    assert_eq!(client.stats().unwrap().pending, 1);
    let (queue, _) = harness.open(plain());
    let job = harness.wait_for(&queue, id, JobStatus::Completed);
    assert_eq!(job.phases[0].result, Some(json!(7)));
    assert_eq!(client.owner_pid(), Some(std::process::id()));
    assert_eq!(client.explain(id).unwrap().hindrances, []);
    assert_eq!(client.check().unwrap(), Vec::<String>::new());
}

#[test]
fn a_planned_job_from_a_client_is_planned_by_the_process_that_runs_it() {
    let harness = Harness::new();
    let planned = JobType::planned(
        "planned",
        |count: &u32| match count {
            0 => Err("nothing to do".to_owned()),
            count => Ok(JobPlan::new(
                (0..*count).map(|n| PhaseSpec::new(format!("p{n}"))),
            )),
        },
        |cx| Ok(cx.phase().to_owned()),
    );
    let (queue, _) = harness.open(planned);
    let client = harness.client();
    let good = client.enqueue("planned", &3).unwrap();
    let bad = client.enqueue("planned", &0).unwrap();
    let own = NewJob::new("planned", &2).unwrap();
    let own = own.phases(["p0", "p1"].map(stepwell::PhaseName::new));
    let own = client.enqueue_all(vec![own]).unwrap()[0].id;
    assert_eq!(client.get(own).unwrap().unwrap().phases.len(), 2);
    let job = harness.wait_for(&queue, good, JobStatus::Completed);
    assert_eq!(job.phases.len(), 3);
    harness.wait_for(&queue, own, JobStatus::Completed);
    let job = harness.wait_for(&queue, bad, JobStatus::Failed);
    assert_eq!(job.errors[0].message, "job type \"planned\": nothing to do");
    assert_sound(&queue);
}

/// The bug: each commit that came upon jobs without a plan started a thread for them, and found the next ones at once: as many
/// threads, and inputs in memory, as there were such jobs.
#[test]
fn plans_are_made_one_after_another_and_hold_up_nobody() {
    let harness = Harness::new();
    let (inside, gate) = (
        Arc::new(AtomicUsize::new(0)),
        Arc::new(AtomicBool::new(false)),
    );
    let (count, is_open) = (inside.clone(), gate.clone());
    let planned = JobType::planned(
        "planned",
        move |_: &u32| {
            count.fetch_add(1, Ordering::SeqCst);
            while !is_open.load(Ordering::SeqCst) {
                std::thread::park_timeout(Duration::from_millis(1));
            }
            Ok(JobPlan::new([PhaseSpec::new("a")]))
        },
        |_| Ok(Value::Null),
    );
    let mut builder = harness.builder().workers(1);
    builder.register(plain());
    builder.register(planned);
    let queue = builder.open().unwrap();
    let client = harness.client();
    let new = |n: u32| NewJob::new("planned", &n).unwrap();
    let jobs = client.enqueue_all((0..200).map(new).collect()).unwrap();
    harness.until("the first is being planned", || {
        inside.load(Ordering::SeqCst) > 0
    });
    // The others are looked at in its commit, and before it.
    let other = queue.enqueue("plain", &json!(1)).unwrap();
    harness.wait_for(&queue, other, JobStatus::Completed);
    assert_eq!(inside.load(Ordering::SeqCst), 1);
    gate.store(true, Ordering::SeqCst);
    for job in jobs {
        harness.wait_for(&queue, job.id, JobStatus::Completed);
    }
    assert_sound(&queue);
}

/// The bug: the next ones were looked for when a plan was made, and not when none could be.
#[test]
fn jobs_behind_those_that_cannot_be_planned_are_looked_at_too() {
    let harness = Harness::new();
    let planned = JobType::planned(
        "planned",
        |_: &u32| {
            // Slower than the commits that find the others.
            std::thread::park_timeout(Duration::from_millis(2));
            Err("not today".to_owned())
        },
        |_| Ok(Value::Null),
    );
    let mut builder = harness.builder().workers(40);
    builder.register(planned);
    let queue = builder.open().unwrap();
    let client = harness.client();
    let new = |n: u32| NewJob::new("planned", &n).unwrap();
    for job in client.enqueue_all((0..150).map(new).collect()).unwrap() {
        harness.wait_for(&queue, job.id, JobStatus::Failed);
    }
    assert_sound(&queue);
}

/// It panics while it is decoded.
struct Unreadable;

impl<'de> serde::Deserialize<'de> for Unreadable {
    fn deserialize<D: serde::Deserializer<'de>>(_: D) -> Result<Unreadable, D::Error> {
        panic!("no such input")
    }
}

/// The bug: it was called by whoever commits. One that called the queue waited for itself, and everybody for it; one that
/// panicked poisoned the queue, also after the next start.
#[test]
fn a_plan_may_call_the_queue_and_may_panic() {
    let harness = Harness::new();
    let slot: Arc<OnceLock<JobQueue>> = Arc::default();
    let own = slot.clone();
    let planned = JobType::planned(
        "planned",
        move |is_bad: &bool| {
            assert!(!is_bad, "no plan for this");
            let queue = own.get().ok_or("not yet")?;
            let other = queue.enqueue("plain", &json!(1));
            other.map_err(|error| error.to_string())?;
            Ok(JobPlan::new([PhaseSpec::new("a")]))
        },
        |_| Ok(Value::Null),
    );
    let unreadable = JobType::planned(
        "unreadable",
        |_: &Unreadable| Ok(JobPlan::default()),
        |_| Ok(Value::Null),
    );
    let mut builder = harness.builder();
    builder.register(plain());
    builder.register(planned);
    builder.register(unreadable);
    let queue = builder.open().unwrap();
    assert!(slot.set(queue.clone()).is_ok());
    let client = harness.client();
    let good = client.enqueue("planned", &false).unwrap();
    let bad = client.enqueue("planned", &true).unwrap();
    let worse = client.enqueue("unreadable", &true).unwrap();
    harness.wait_for(&queue, good, JobStatus::Completed);
    let job = harness.wait_for(&queue, bad, JobStatus::Failed);
    let says = "job type \"planned\": its plan panicked: no plan for this";
    assert_eq!(job.errors[0].message, says);
    let job = harness.wait_for(&queue, worse, JobStatus::Failed);
    let of_input = "job type \"unreadable\": its plan panicked: no such input";
    assert_eq!(job.errors[0].message, of_input);
    assert_refused(queue.enqueue("planned", &true), ErrorKind::InvalidJob, says);
    assert!(queue.health().is_good());
    harness.until("the job of the plan is over", || {
        queue.stats().unwrap().completed >= 2
    });
    assert_sound(&queue);
    queue.shutdown(harness.left()).unwrap();
}

/// 4 clients on threads of their own, 40 jobs each, beside 2 workers and a caller.
#[test]
fn many_clients_and_the_queue_write_to_one_file() {
    let harness = Harness::new();
    let (queue, jobs, _) = beside(&harness);
    let mut ids: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4)
            .map(|thread| {
                let client = harness.client();
                scope.spawn(move || {
                    let one = |n: u32| client.enqueue("plain", &(thread * 40 + n)).unwrap();
                    (0..40).map(one).collect::<Vec<_>>()
                })
            })
            .collect();
        let own: Vec<_> = (0..40).map(|n| jobs.enqueue(&json!(n)).unwrap()).collect();
        let others = threads
            .into_iter()
            .flat_map(|thread| thread.join().unwrap());
        own.into_iter().chain(others).collect()
    });
    for id in &ids {
        let job = harness.wait_for(&queue, *id, JobStatus::Completed);
        assert_eq!(job.phases[0].result.as_ref(), Some(&job.input));
    }
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), 200);
    assert_sound(&queue);
}

#[test]
fn a_second_process_that_wants_to_run_jobs_is_refused_with_the_pid_of_the_first() {
    let harness = Harness::new();
    let (_queue, _) = harness.open(plain());
    assert_refused(
        harness.builder().open(),
        ErrorKind::Locked,
        &format!(
            "process {} runs jobs on this file: end it, or use a Client beside it",
            std::process::id()
        ),
    );

    let other = Harness::new();
    let id = other.client().enqueue("steps", &Value::Null).unwrap();
    let process = OtherProcess::start(&other, crash::PLAYER, "inside the second phase");
    assert_eq!(process.hear().as_deref(), Some("inside"));
    assert_refused(
        other.builder().open(),
        ErrorKind::Locked,
        &format!("process {} runs jobs on this file", process.pid()),
    );
    assert_eq!(other.client().owner_pid(), Some(process.pid()));
    // And a client works beside it.
    assert_eq!(other.client().cancel(id).unwrap(), CancelOutcome::Cancelled);
    process.kill();
}

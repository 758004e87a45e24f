//! Handlers and callbacks that work on, or ask for the end, while the queue is being closed; and who keeps it open.

use std::sync::{Arc, OnceLock};
use std::thread::park_timeout;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, unbounded};
use serde_json::Value;
use stepwell::{
    CancelOutcome, ErrorKind, EventKind, JobPlan, JobQueue, JobStatus, JobType, PhaseSpec,
    RetryPolicy,
};

use crate::support::{Gate, Harness, ONE, assert_refused, assert_sound};

/// Of what must not last, and would end by itself.
const LONG: Duration = Duration::from_secs(10);
const HOUR: Duration = Duration::from_secs(3600);

fn plain() -> JobType<Value, Value> {
    JobType::<Value>::new("plain").phase(ONE, |_| Ok(Value::Null))
}

/// Until callers from outside are refused.
fn is_closing(harness: &Harness, queue: &JobQueue) {
    harness.until("the queue is closing", || queue.health().closing);
    let refused = queue.enqueue("plain", &Value::Null).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Closed);
}

/// The bug: it was refused, and its job had failed: at each shutdown, all that fan out.
#[test]
fn a_handler_may_enqueue_while_the_queue_waits_for_it() {
    let harness = Harness::new();
    let gate = Gate::new();
    let inside = gate.clone();
    let mut builder = harness.builder();
    let others = builder.register(plain());
    let fan_out = builder.register(
        JobType::<Value>::new("fan_out")
            .retry(RetryPolicy::never())
            .phase(ONE, move |cx| {
                inside.pass(cx);
                Ok(Value::from(others.enqueue(&Value::Null)?.as_i64()))
            }),
    );
    let queue = builder.open().unwrap();
    let id = fan_out.enqueue(&Value::Null).unwrap();
    gate.wait(&harness);
    let (closing, (tx, reports)) = (queue.clone(), unbounded());
    let closer = std::thread::spawn(move || tx.send(closing.shutdown(HOUR)));
    is_closing(&harness, &queue);
    gate.open();
    assert!(harness.recv(&reports).is_ok());
    closer.join().unwrap().unwrap();
    drop(queue);
    let queue = harness.open_without_workers();
    let job = queue.get(id).unwrap().unwrap();
    assert_eq!(job.status, JobStatus::Completed, "{:?}", job.errors);
    let result = job.phases[0].result.as_ref().and_then(Value::as_i64);
    let other = queue
        .status(stepwell::JobId::from_i64(result.unwrap()))
        .unwrap();
    assert_eq!(other, Some(JobStatus::Pending), "for the next start");
    assert_sound(&queue);
}

/// The bug: it was counted as one of those that are waited for, though nobody waits for who overstays. The others were cut off.
#[test]
fn a_handler_that_overstays_and_asks_for_the_end_cuts_off_nobody() {
    let harness = Harness::with_fake_clock();
    let own: Arc<OnceLock<JobQueue>> = Arc::default();
    let ([deaf, held], inside) = ([Gate::new(), Gate::new()], own.clone());
    let (deaf_gate, held_gate) = (deaf.clone(), held.clone());
    let mut builder = harness.builder();
    let ends = builder.register(JobType::<Value>::new("ends").phase(ONE, move |cx| {
        deaf_gate.pass(cx);
        inside.wait().shutdown(HOUR).ok();
        Ok(Value::Null)
    }));
    let works = builder.register(JobType::<Value>::new("works").phase(ONE, move |cx| {
        held_gate.pass(cx);
        Ok(Value::Null)
    }));
    let queue = builder.open().unwrap();
    own.set(queue.clone()).unwrap();
    let id = ends.enqueue(&Value::Null).unwrap();
    let other = works.enqueue(&Value::Null).unwrap();
    deaf.wait(&harness);
    held.wait(&harness);
    assert_eq!(queue.cancel(id).unwrap(), CancelOutcome::Cancelled);
    harness.until("it has overstayed", || {
        harness.clock().advance(Duration::from_millis(500));
        queue.stats().unwrap().abandoned == 1
    });
    deaf.open();
    is_closing(&harness, &queue);
    // The time in which it was cut off.
    park_timeout(Duration::from_millis(300));
    held.open();
    let report = queue.wait_closed();
    assert_eq!((report.interrupted, report.handlers_left), (vec![], 1));
    let queue = harness.open_without_workers();
    assert_eq!(queue.status(other).unwrap(), Some(JobStatus::Completed));
    assert_sound(&queue);
}

/// The bug: once somebody waited for the end of the callbacks nobody knew their thread any more, and each waited for the other.
#[test]
fn a_slow_callback_can_ask_for_the_end_that_another_has_asked_for() {
    let harness = Harness::new();
    let mut builder = harness.builder();
    let jobs = builder.register(plain());
    let queue = builder.open().unwrap();
    let own = queue.downgrade();
    let mut end = queue.subscribe().unwrap();
    let (tx, heard) = unbounded();
    let events = std::sync::Mutex::new(queue.subscribe().unwrap());
    queue
        .on_event(move |event| {
            if event.kind == EventKind::Completed {
                tx.send(()).unwrap();
                let mut events = events.lock().unwrap();
                while events.recv().is_ok() {}
                // Everything is over but us.
                park_timeout(Duration::from_millis(50));
                if let Some(queue) = own.upgrade() {
                    queue.shutdown(LONG).ok();
                }
            }
        })
        .unwrap();
    jobs.enqueue(&Value::Null).unwrap();
    harness.recv(&heard);
    let started = Instant::now();
    queue.shutdown(LONG).ok();
    let took = started.elapsed();
    assert!(took < Duration::from_secs(5), "{took:?}");
    while end.recv().is_ok() {}
}

/// The bug: a callback with the queue in it kept its engine, and itself, also after the shutdown.
#[test]
fn callbacks_are_let_go_when_the_queue_is_closed() {
    let harness = Harness::new();
    let (queue, _) = harness.open(plain());
    let (own, token) = (queue.clone(), Arc::new(()));
    let left = Arc::downgrade(&token);
    queue
        .on_event(move |event| drop((own.status(event.job_id), token.clone())))
        .unwrap();
    queue.shutdown(HOUR).unwrap();
    let weak = queue.downgrade();
    drop(queue);
    harness.until("the callback is gone", || left.upgrade().is_none());
    harness.until("the queue is gone", || weak.upgrade().is_none());
}

#[test]
fn a_callback_with_a_weak_queue_does_not_keep_it_open() {
    let harness = Harness::new();
    let (queue, jobs) = harness.open(plain());
    let (own, (tx, heard)) = (queue.downgrade(), unbounded());
    queue
        .on_event(move |event| {
            let status = own.upgrade().and_then(|own| own.status(event.job_id).ok());
            tx.send(status.flatten()).ok();
        })
        .unwrap();
    jobs.enqueue(&Value::Null).unwrap();
    assert!(harness.recv(&heard).is_some());
    drop((queue, jobs));
    assert_sound(&harness.open_without_workers());
}

/// The bug: whoever had made a queue of it at that moment kept it open, and `main` came to its end without a shutdown.
#[test]
fn a_queue_that_was_made_of_a_weak_one_keeps_nothing_open() {
    let harness = Harness::new();
    let (queue, jobs) = harness.open(plain());
    let made = queue.downgrade().upgrade().unwrap();
    drop((queue, jobs));
    assert!(made.shutdown_report().is_some());
    assert_sound(&harness.open_without_workers());
}

/// The bug: it heard from where the first one was.
#[test]
fn a_second_callback_hears_nothing_of_before() {
    let harness = Harness::new();
    let (queue, jobs) = harness.open(plain());
    let ((held, go), (tx, heard)) = (unbounded::<()>(), unbounded());
    queue
        .on_event(move |_| {
            go.recv().ok();
        })
        .unwrap();
    for _ in 0..3 {
        harness.run_one(&queue, &jobs, &Value::Null);
    }
    let head = queue.stats().unwrap().head_seq;
    queue
        .on_event(move |event| tx.send(event.seq).unwrap())
        .unwrap();
    drop(held);
    harness.run_one(&queue, &jobs, &Value::Null);
    assert_eq!(harness.recv(&heard), head + 1);
}

/// A queue whose plans are made when something comes through the second channel; the first says that one is being made, and ends with
/// the queue.
fn planning(harness: &Harness) -> (JobQueue, Receiver<()>, Sender<()>) {
    let ((tell, told), (go, may_go)) = (unbounded(), unbounded());
    let planned = JobType::planned(
        "planned",
        move |_: &Value| {
            tell.send(()).unwrap();
            may_go.recv_timeout(LONG).ok();
            Ok(JobPlan::new([PhaseSpec::new("one")]))
        },
        |_| Ok(Value::Null),
    );
    (harness.open(planned).0, told, go)
}

/// The queue was closed, and said so; then the plan of the next job was asked for, by a thread that nobody had waited for.
#[test]
fn no_plan_is_asked_for_once_the_queue_is_closed() {
    let harness = Harness::new();
    let (queue, told, go) = planning(&harness);
    let client = harness.client();
    for _ in 0..3 {
        client.enqueue("planned", &Value::Null).unwrap();
    }
    harness.recv(&told);
    let closing = queue.clone();
    let closing = std::thread::spawn(move || closing.shutdown(LONG));
    harness.until("the queue is closing", || queue.health().closing);
    for _ in 0..3 {
        go.send(()).unwrap();
    }
    closing.join().unwrap().unwrap();
    drop(queue);
    // Until the planner is gone, and so everybody who could call it.
    assert_eq!(told.iter().count(), 0);
    let queue = harness.open_without_workers();
    assert_eq!(queue.stats().unwrap().pending, 3, "nothing is lost");
    assert_sound(&queue);
}

/// Neither does it hold the queue beyond its time, nor is it passed over in silence.
#[test]
fn a_plan_that_takes_too_long_is_named_in_the_report() {
    let harness = Harness::new();
    let (queue, told, go) = planning(&harness);
    harness.client().enqueue("planned", &Value::Null).unwrap();
    harness.recv(&told);
    let timeout = Duration::from_millis(50);
    let says = "a plan was not made within 50ms";
    assert_refused(queue.shutdown(timeout), ErrorKind::Timeout, says);
    let report = queue.shutdown_report().unwrap();
    assert_eq!((report.planner_left, report.handlers_left), (true, 0));
    go.send(()).unwrap();
    drop(queue);
    assert_eq!(told.iter().count(), 0);
    let queue = harness.open_without_workers();
    assert_eq!(queue.stats().unwrap().pending, 1);
}

/// He waited for the end, and the end for him.
#[test]
fn a_plan_may_ask_for_the_end() {
    let harness = Harness::new();
    let own: Arc<OnceLock<JobQueue>> = Arc::default();
    let shared = own.clone();
    let planned = JobType::planned(
        "planned",
        move |_: &Value| {
            let queue = shared.get().expect("it is open");
            match queue.shutdown(LONG) {
                Ok(_) => Err("there is no time for this".to_owned()),
                Err(error) => Err(error.to_string()),
            }
        },
        |_| Ok(Value::Null),
    );
    let (queue, _) = harness.open::<Value, Value>(planned);
    let queue = own.get_or_init(|| queue);
    let started = Instant::now();
    harness.client().enqueue("planned", &Value::Null).unwrap();
    let report = queue.wait_closed();
    assert!(started.elapsed() < LONG / 2, "{:?}", started.elapsed());
    assert_eq!(report.interrupted, []);
}

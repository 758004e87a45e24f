//! The end of a queue: in its order, within its time, from wherever it is asked for.

use std::io::Write;
use std::sync::{Arc, Barrier, Mutex, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::unbounded;
use serde_json::{Value, json};
use stepwell::{
    CancelOutcome, Durability, ErrorKind, EventKind, InterruptionReason, JobHandle, JobQueue,
    JobStatus, JobType, NewJob, PhaseError, RetryFrom, ShutdownReport, StopReason,
};

use crate::support::{
    AtTheEdge, Gate, Harness, ONE, TWO, asleep, assert_refused, assert_sound, closed, count,
    events_of,
};

const MS: Duration = Duration::from_millis(1);
/// By how much a shutdown may overrun its timeout, whatever happens.
const OVERRUN: Duration = Duration::from_millis(250);

fn plain() -> JobType<Value, Value> {
    JobType::<Value>::new("plain").phase(ONE, |_| Ok(Value::Null))
}

/// A gate in the first of two phases; the handlers there do not look at their flag.
fn held(harness: &Harness) -> (JobQueue, JobHandle<Value, Value>, Gate) {
    let gate = Gate::new();
    let inside = gate.clone();
    let (queue, jobs) = harness.open(
        JobType::<Value>::new("held")
            .phase(ONE, move |cx| {
                inside.pass(cx);
                Ok(json!(cx.attempt()))
            })
            .phase(TWO, |cx| cx.get(ONE)),
    );
    (queue, jobs, gate)
}

type Closing = JoinHandle<stepwell::Result<ShutdownReport>>;

/// Shuts down on another thread; returns when the queue takes nothing any more.
fn begin_shutdown(harness: &Harness, queue: &JobQueue, timeout: Duration) -> Closing {
    let closing = queue.clone();
    let thread = std::thread::spawn(move || closing.shutdown(timeout));
    harness.until("the intake is closed", || is_closed(queue));
    thread
}

fn is_closed(queue: &JobQueue) -> bool {
    queue.health().closing
}

#[test]
fn an_idle_queue_closes_at_once() {
    let harness = Harness::new();
    let (queue, jobs) = harness.open(plain());
    harness.run_one(&queue, &jobs, &Value::Null);
    let started = Instant::now();
    let report = queue.shutdown(60 * 1000 * MS).unwrap();
    assert!(started.elapsed() < 5000 * MS, "{:?}", started.elapsed());
    assert_eq!(report.interrupted, []);
    assert_eq!((report.handlers_left, report.listeners_cut), (0, false));
    assert_eq!(queue.shutdown_report(), Some(report));
    for suffix in ["-wal", "-shm", "-wake"] {
        let left = harness.file(&format!("jobs.db{suffix}"));
        assert!(!left.exists(), "{} is left", left.display());
    }
    assert_sound(&harness.open_without_workers());
}

/// 30 rounds, with time and without. The commit that is under way when the end is asked for claims jobs. The bug: who asked
/// had looked before it was through, and nobody gave them back: they were `running` in a file that nobody ran.
/// The bug: the end waited ten seconds for whoever read an older state of the file, and told nobody what it had done.
#[test]
fn a_reader_of_an_older_state_does_not_hold_the_end() {
    let harness = Harness::new();
    let (queue, jobs) = harness.open(plain());
    harness.run_one(&queue, &jobs, &Value::Null);
    let reader = rusqlite::Connection::open(harness.path()).expect("it can be opened");
    let read = "BEGIN; SELECT * FROM job;";
    reader.execute_batch(read).expect("it can be read");
    harness.run_one(&queue, &jobs, &Value::Null);
    let report = queue.shutdown(5000 * MS);
    report.expect("nothing is under way");
    reader.execute_batch("COMMIT").expect("it is still open");
}

#[test]
fn what_is_claimed_while_the_queue_closes_is_given_back() {
    let harness = Harness::new();
    let client = harness.client();
    for round in 0..30 {
        for _ in 0..5 {
            client.enqueue("plain", &Value::Null).unwrap();
        }
        // A commit that takes its time.
        let mut builder = harness.builder().durability(Durability::Full);
        builder.register(plain());
        let queue = builder.open().unwrap();
        let timeout = [Duration::ZERO, harness.left()][round % 2];
        // Whether a handler was inside at the end is not the question here.
        queue.shutdown(timeout).ok();
        assert_eq!(client.stats().unwrap().running, 0, "round {round}");
    }
    assert_sound(&harness.open_without_workers());
}

#[test]
fn a_job_under_way_stops_at_its_edge_uncharged() {
    let harness = Harness::new();
    let (queue, jobs, gate) = held(&harness);
    let id = jobs.enqueue(&Value::Null).unwrap();
    gate.wait(&harness);
    let closing = begin_shutdown(&harness, &queue, harness.left());
    gate.open();
    let report = closing.join().unwrap().unwrap();
    assert_eq!(report.interrupted, []);

    let (queue, _, _) = held(&harness);
    let job = harness.wait_for(&queue, id, JobStatus::Completed);
    assert_eq!((job.attempt, job.crash_count), (1, 0));
    assert_eq!((&job.interruption, job.errors.len()), (&None, 0));
    assert_eq!(job.phases[1].result, Some(json!(1)));
    assert_eq!(
        events_of(&queue, id)[..5],
        [
            "job:created",
            "job:started",
            "job:phase:started",
            "job:phase:completed",
            "job:interrupted",
        ]
    );
    let interrupted = harness.wait_event(&queue, id, EventKind::Interrupted);
    assert_eq!(interrupted.data["reason"], json!("shutdown"));
    assert_sound(&queue);
}

#[test]
fn a_claimed_job_whose_handler_was_not_entered_is_given_back() {
    let harness = Harness::new();
    let edge = AtTheEdge::new(&harness);
    let closing = begin_shutdown(&harness, &edge.queue, harness.left());
    edge.gate.open();
    closing.join().unwrap().unwrap();
    let queue = harness.open_without_workers();
    let job = queue.get(edge.job).unwrap().unwrap();
    assert_eq!((job.status, job.phases_done), (JobStatus::Pending, 1));
    assert_eq!((job.attempt, job.crash_count), (0, 0));
    let other = queue.status(edge.other).unwrap();
    assert_eq!(other, Some(JobStatus::Completed), "its result was kept");
    assert_sound(&queue);
}

#[test]
fn a_handler_that_looks_at_its_flag_is_told_at_the_deadline() {
    let harness = Harness::new();
    let (tx, reasons) = unbounded();
    let (queue, jobs) = harness.open(JobType::<Value>::new("sleep").phase(ONE, move |cx| {
        tx.send(None).unwrap();
        let slept = cx.sleep(Duration::from_secs(3600));
        tx.send(cx.stop_reason()).unwrap();
        slept.map(|()| Value::Null)
    }));
    let id = jobs.enqueue(&Value::Null).unwrap();
    assert_eq!(harness.recv(&reasons), None);
    let says = format!("1 handlers did not end within 50ms (jobs {id})");
    assert_refused(queue.shutdown(50 * MS), ErrorKind::Timeout, &says);
    assert_eq!(harness.recv(&reasons), Some(StopReason::Shutdown));
    let report = queue.shutdown_report().unwrap();
    assert_eq!(report.interrupted, [id]);
    assert_eq!(report.handlers_left, 0, "it came back");

    let queue = harness.open_without_workers();
    let job = queue.get(id).unwrap().unwrap();
    assert_eq!((job.status, job.attempt), (JobStatus::Pending, 0));
    let reason = job.interruption.map(|interruption| interruption.reason);
    assert_eq!(reason, Some(InterruptionReason::Shutdown));
    assert_eq!(count(&queue, id, EventKind::Interrupted), 1, "said once");
}

#[test]
fn a_handler_that_ignores_its_flag_does_not_hold_the_queue_beyond_its_timeout() {
    let harness = Harness::new();
    let (queue, jobs, gate) = held(&harness);
    let id = jobs.enqueue(&Value::Null).unwrap();
    gate.wait(&harness);
    let (timeout, started) = (200 * MS, Instant::now());
    let says = "they are recorded as interrupted and run again";
    assert_refused(queue.shutdown(timeout), ErrorKind::Timeout, says);
    let took = started.elapsed();
    assert!(took < timeout + OVERRUN, "{took:?}");
    assert_eq!(queue.shutdown_report().unwrap().handlers_left, 1);

    // The file is free at once, and what the zombie says later is heard by nobody.
    let (queue, _, second_gate) = held(&harness);
    second_gate.wait(&harness);
    gate.open();
    second_gate.open();
    let job = harness.wait_for(&queue, id, JobStatus::Completed);
    assert_eq!((job.attempt, job.crash_count), (1, 0));
    assert_eq!(count(&queue, id, EventKind::PhaseCompleted), 2);
    assert_sound(&queue);
}

/// It was not waited for, although there was time: a program that ended then cut it off while it cleaned up.
#[test]
fn a_handler_that_was_cancelled_before_can_clean_up() {
    let harness = Harness::new();
    let (closing, is_clean) = (
        Arc::new(OnceLock::<JobQueue>::new()),
        Arc::new(OnceLock::new()),
    );
    let (sees, cleans) = (closing.clone(), is_clean.clone());
    let (entered, runs) = unbounded();
    let (queue, jobs) = harness.open(JobType::<Value>::new("tidy").phase(ONE, move |cx| {
        entered.send(()).unwrap();
        let stopped = cx.sleep(3600 * 1000 * MS);
        while !sees.get().is_some_and(is_closed) {
            std::thread::yield_now();
        }
        let mut half_done = tempfile::tempfile()?;
        for _ in 0..50 {
            half_done.write_all(b"taken back\n")?;
            half_done.sync_all()?;
        }
        cleans.set(()).ok();
        stopped.map(|()| Value::Null)
    }));
    closing.set(queue.clone()).ok();
    let id = jobs.enqueue(&Value::Null).unwrap();
    harness.recv(&runs);
    assert_eq!(queue.cancel(id).unwrap(), CancelOutcome::Cancelled);
    let report = queue.shutdown(60 * 1000 * MS).unwrap();
    assert!(is_clean.get().is_some());
    assert_eq!((report.interrupted, report.handlers_left), (vec![], 0));
}

#[test]
fn a_panic_during_the_shutdown_is_a_failed_try() {
    let harness = Harness::new();
    let gate = Gate::new();
    let inside = gate.clone();
    let (queue, jobs) = harness.open(JobType::<Value>::new("panic").phase(ONE, move |cx| {
        inside.pass(cx);
        if cx.attempt() == 1 {
            panic!("in the middle of it");
        }
        Ok(Value::Null)
    }));
    let id = jobs.enqueue(&Value::Null).unwrap();
    gate.wait(&harness);
    let closing = begin_shutdown(&harness, &queue, harness.left());
    gate.open();
    closing.join().unwrap().unwrap();
    let queue = harness.open_without_workers();
    let job = queue.get(id).unwrap().unwrap();
    assert_eq!((job.status, job.attempt), (JobStatus::Pending, 1));
    assert!(job.errors[0].message.ends_with(": in the middle of it"));
    assert_sound(&queue);
}

/// 6 threads.
#[test]
fn everyone_who_asks_for_the_end_gets_the_same_report() {
    let harness = Harness::new();
    let (queue, jobs, gate) = held(&harness);
    jobs.enqueue(&Value::Null).unwrap();
    gate.wait(&harness);
    let barrier = std::sync::Barrier::new(6);
    let reports: Vec<ShutdownReport> = std::thread::scope(|scope| {
        let close = || {
            barrier.wait();
            queue.shutdown(harness.left()).unwrap()
        };
        let threads = [(); 6].map(|()| scope.spawn(close));
        harness.until("the intake is closed", || is_closed(&queue));
        gate.open();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect()
    });
    assert!(reports.iter().all(|report| report == &reports[0]));
    assert_eq!(queue.shutdown(Duration::ZERO).unwrap(), reports[0]);
    assert_eq!(closed(&queue), reports[0]);
}

#[test]
fn a_second_call_with_less_time_hurries_the_first() {
    let harness = Harness::new();
    let (queue, jobs, gate) = held(&harness);
    jobs.enqueue(&Value::Null).unwrap();
    gate.wait(&harness);
    let closing = begin_shutdown(&harness, &queue, 3600 * 1000 * MS);
    let started = Instant::now();
    queue.shutdown(Duration::ZERO).unwrap_err();
    assert!(started.elapsed() < OVERRUN, "{:?}", started.elapsed());
    assert_eq!(
        closing.join().unwrap().unwrap_err().kind(),
        ErrorKind::Timeout
    );
    gate.open();
}

#[test]
fn a_handler_can_shut_its_queue_down() {
    let harness = Harness::new();
    let own: Arc<OnceLock<JobQueue>> = Arc::default();
    let (inside, (tx, answers)) = (own.clone(), unbounded());
    let (queue, jobs) = harness.open(JobType::<Value>::new("end").phase(ONE, move |_| {
        let started = Instant::now();
        let answer = inside.wait().shutdown(Duration::from_secs(3600));
        tx.send((answer.map_err(|error| error.kind()), started.elapsed()))
            .unwrap();
        Ok(Value::Null)
    }));
    own.set(queue.clone()).unwrap();
    let id = jobs.enqueue(&Value::Null).unwrap();
    let (answer, took) = harness.recv(&answers);
    assert_eq!(answer, Err(ErrorKind::Timeout), "it was cut off itself");
    assert!(took < Duration::from_secs(5), "{took:?}");
    assert_eq!(closed(&queue).interrupted, [id]);
    let queue = harness.open_without_workers();
    assert_eq!(queue.status(id).unwrap(), Some(JobStatus::Pending));
    assert_sound(&queue);
}

/// The bug: only who asked first was not waited for. The other handler waited for the end, and the end for it.
#[test]
fn two_handlers_can_shut_their_queue_down() {
    let harness = Harness::new();
    let own: Arc<OnceLock<JobQueue>> = Arc::default();
    let (inside, (tx, took)) = (own.clone(), unbounded());
    let both = Arc::new(Barrier::new(2));
    let (queue, jobs) = harness.open(JobType::<Value>::new("end").phase(ONE, move |_| {
        both.wait();
        let started = Instant::now();
        inside.wait().shutdown(Duration::from_secs(3600)).ok();
        tx.send(started.elapsed()).unwrap();
        Ok(Value::Null)
    }));
    own.set(queue.clone()).unwrap();
    let ids = [(); 2].map(|()| jobs.enqueue(&Value::Null).unwrap());
    for _ in ids {
        let took = harness.recv(&took);
        assert!(took < Duration::from_secs(5), "{took:?}");
    }
    let mut interrupted = closed(&queue).interrupted;
    interrupted.sort();
    assert_eq!(interrupted, ids);
}

/// The bug: as above.
#[test]
fn a_callback_can_ask_for_the_end_that_another_has_asked_for() {
    let harness = Harness::new();
    let (queue, jobs) = harness.open(plain());
    let (own, hour) = (queue.clone(), Duration::from_secs(3600));
    queue
        .on_event(move |event| {
            if event.kind == EventKind::Completed {
                own.shutdown(hour).ok();
            }
        })
        .unwrap();
    let (asked, started) = (queue.clone(), Instant::now());
    jobs.enqueue(&Value::Null).unwrap();
    asked.shutdown(hour).ok();
    let took = started.elapsed();
    assert!(took < Duration::from_secs(5), "{took:?}");
}

#[test]
fn a_callback_can_shut_its_queue_down() {
    let harness = Harness::new();
    let (queue, jobs) = harness.open(plain());
    let (own, (tx, answers)) = (queue.clone(), unbounded());
    queue
        .on_event(move |event| {
            if event.kind == EventKind::Completed {
                let started = Instant::now();
                let answer = own.shutdown(Duration::from_secs(3600));
                tx.send((answer.is_ok(), started.elapsed())).unwrap();
            }
        })
        .unwrap();
    let id = jobs.enqueue(&Value::Null).unwrap();
    let (is_ok, took) = harness.recv(&answers);
    assert!(took < Duration::from_secs(5), "{took:?}");
    assert!(is_ok, "it does not wait for itself");
    closed(&queue);
    let queue = harness.open_without_workers();
    assert_eq!(queue.status(id).unwrap(), Some(JobStatus::Completed));
}

/// A handler that shuts another queue down is not one of that queue's.
#[test]
fn a_handler_of_another_queue_waits_like_anybody() {
    let harness = Harness::new();
    let (queue, jobs, gate) = held(&harness);
    let id = jobs.enqueue(&Value::Null).unwrap();
    gate.wait(&harness);
    let (other, left, (tx, answers)) = (queue.clone(), harness.left(), unbounded());
    let mut builder = harness.builder_in_memory();
    let ends = builder.register(JobType::<Value>::new("end").phase(ONE, move |_| {
        tx.send(other.shutdown(left).map(|report| report.interrupted))
            .unwrap();
        Ok(Value::Null)
    }));
    let asking = builder.open().unwrap();
    let end = ends.enqueue(&Value::Null).unwrap();
    harness.until("the intake is closed", || is_closed(&queue));
    gate.open();
    assert_eq!(harness.recv(&answers).unwrap(), [], "nobody was cut off");
    harness.wait_for(&asking, end, JobStatus::Completed);
    let queue = harness.open_without_workers();
    let job = queue.get(id).unwrap().unwrap();
    assert_eq!(job.phases[0].result, Some(json!(1)));
}

#[test]
fn dropping_the_last_clone_shuts_the_queue_down() {
    let harness = Harness::new();
    let (queue, jobs, gate) = held(&harness);
    let id = jobs.enqueue(&Value::Null).unwrap();
    gate.wait(&harness);
    let clone = queue.clone();
    drop(queue);
    assert_eq!(clone.status(id).unwrap(), Some(JobStatus::Running));
    let started = Instant::now();
    drop(clone);
    let took = started.elapsed();
    assert!(
        took < 500 * MS + OVERRUN,
        "{took:?}: the harness allows 500 ms"
    );
    let error = jobs.enqueue(&Value::Null).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Closed);
    let queue = harness.open_without_workers();
    let job = queue.get(id).unwrap().unwrap();
    let reason = job.interruption.map(|interruption| interruption.reason);
    assert_eq!(reason, Some(InterruptionReason::Shutdown));
    gate.open();
}

#[test]
fn the_last_clone_can_be_dropped_inside_a_handler() {
    let harness = Harness::new();
    let last: Arc<Mutex<Option<JobQueue>>> = Arc::default();
    let gate = Gate::new();
    let (inside, held, (tx, dropped)) = (last.clone(), gate.clone(), unbounded());
    let (queue, jobs) = harness.open(JobType::<Value>::new("drop").phase(ONE, move |cx| {
        held.pass(cx);
        drop(inside.lock().unwrap().take());
        tx.send(()).unwrap();
        Ok(Value::Null)
    }));
    let id = jobs.enqueue(&Value::Null).unwrap();
    gate.wait(&harness);
    *last.lock().unwrap() = Some(queue);
    gate.open();
    harness.recv(&dropped);
    let queue = harness.open_without_workers();
    assert_eq!(queue.status(id).unwrap(), Some(JobStatus::Pending));
    assert_sound(&queue);
}

#[test]
fn a_closed_queue_refuses_everything_and_says_so() {
    let harness = Harness::new();
    let (queue, jobs) = harness.open(plain());
    let id = harness.run_one(&queue, &jobs, &Value::Null);
    queue.shutdown(harness.left()).unwrap();
    let new = NewJob::new("plain", &1).unwrap();
    let answers = [
        queue.enqueue("plain", &1).map(drop),
        queue.enqueue_all(vec![new]).map(drop),
        jobs.enqueue(&Value::Null).map(drop),
        queue.cancel(id).map(drop),
        queue.retry(id, RetryFrom::Start),
        queue.delete(id),
        queue.pause(),
        queue.resume_type("plain"),
        queue.get(id).map(drop),
        queue.status(id).map(drop),
        queue.stats().map(drop),
        queue.explain(id).map(drop),
        queue.events_after(0, 10).map(drop),
        queue.subscribe().map(drop),
        queue.on_event(|_| {}),
        queue.wait(id, Duration::ZERO).map(drop),
        queue.check().map(drop),
    ];
    for (index, answer) in answers.into_iter().enumerate() {
        let error = answer.expect_err("it is closed");
        assert_eq!(error.kind(), ErrorKind::Closed, "{index}: {error}");
    }
    assert_refused(
        queue.enqueue("plain", &1),
        ErrorKind::Closed,
        "the queue is closed: open it again to go on",
    );
}

#[test]
fn who_waits_for_a_job_is_told_that_the_queue_closes() {
    let harness = Harness::new();
    let queue = harness.open_without_workers();
    let id = queue.enqueue("plain", &1).unwrap();
    let waiting = queue.clone();
    let hour = Duration::from_secs(3600);
    let answer = asleep(&harness, move || waiting.wait(id, hour));
    queue.shutdown(harness.left()).unwrap();
    let answer = harness.recv(&answer);
    assert_eq!(answer.unwrap_err().kind(), ErrorKind::Closed);
}

/// 20 rounds: every job that a worker finished before the end is recorded, and none is done again.
#[test]
fn what_was_finished_before_the_end_is_recorded() {
    let harness = Harness::new();
    let ran: Arc<Mutex<Vec<u32>>> = Arc::default();
    let open = || {
        let note = ran.clone();
        harness.open(JobType::<u32>::new("note").phase(ONE, move |cx| {
            note.lock().unwrap().push(*cx.input());
            Ok(Value::Null)
        }))
    };
    for round in 0..20 {
        let (queue, jobs) = open();
        let inputs: Vec<u32> = (0..40).map(|n| round * 40 + n).collect();
        jobs.enqueue_many(&inputs).unwrap();
        queue.shutdown(harness.left()).unwrap();
    }
    let (queue, _) = open();
    harness.until("all jobs are done", || {
        let stats = queue.stats().unwrap();
        stats.pending + stats.running == 0
    });
    queue.shutdown(harness.left()).unwrap();
    let mut ran = ran.lock().unwrap().clone();
    ran.sort_unstable();
    assert!(ran.iter().copied().eq(0..800), "each once");
    let queue = harness.open_without_workers();
    assert_eq!(queue.stats().unwrap().completed, 800);
    assert_sound(&queue);
}

#[test]
fn a_retry_that_waits_goes_on_waiting_in_the_next_process() {
    let harness = Harness::with_fake_clock();
    let open = || {
        harness.open(
            JobType::<Value>::new("fail").phase(ONE, |cx| match cx.attempt() {
                1 => Err(PhaseError::retry_after(Duration::from_secs(60), "later")),
                _ => Ok(Value::Null),
            }),
        )
    };
    let (queue, jobs) = open();
    let id = jobs.enqueue(&Value::Null).unwrap();
    harness.wait_event(&queue, id, EventKind::Retrying);
    queue.shutdown(harness.left()).unwrap();
    let (queue, _) = open();
    harness.clock().advance(Duration::from_secs(60));
    let job = harness.wait_for(&queue, id, JobStatus::Completed);
    assert_eq!(job.attempt, 2);
}

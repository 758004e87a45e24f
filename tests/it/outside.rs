//! One handler of a job at a time, and what a handler says after its claim was over counts no more: also when another process
//! ends the claim and this one hears of it late.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde_json::Value;
use stepwell::testing::FakeClock;
use stepwell::{
    CancelOutcome, Client, JobQueue, JobStatus, JobType, NewJob, Phase, RetryFrom, StopReason,
    Timestamp,
};

use crate::support::{Harness, ONE};

const ONLY: Phase<u32> = Phase::new("only");
const LONG: Duration = Duration::from_secs(30);

/// How many handlers are inside, and how many were at most.
#[derive(Default)]
struct Inside {
    now: AtomicUsize,
    most: AtomicUsize,
}

impl Inside {
    fn with(&self, act: impl FnOnce()) {
        let now = self.now.fetch_add(1, Ordering::SeqCst) + 1;
        self.most.fetch_max(now, Ordering::SeqCst);
        act();
        self.now.fetch_sub(1, Ordering::SeqCst);
    }
}

/// A job type whose handlers tell that they were entered, and wait without looking at their flag until they are let go.
fn gated(inside: &Arc<Inside>) -> (JobType<Value, u32>, Receiver<()>, Sender<()>) {
    let (entered, is_entered) = channel();
    let (go, may_go) = channel();
    let (entered, may_go) = (Mutex::new(entered), Mutex::new(may_go));
    let inside = inside.clone();
    let job_type = JobType::<Value>::new("gated").phase(ONLY, move |cx| {
        inside.with(|| {
            let entered = entered
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .clone();
            entered.send(()).ok();
            let may_go = may_go.lock().unwrap_or_else(PoisonError::into_inner);
            may_go.recv_timeout(LONG).ok();
        });
        Ok(cx.attempt())
    });
    (job_type, is_entered, go)
}

/// The other process cancels the job and tries it again before this one has heard of either: it is claimed anew while its old
/// handler is inside. Each round is a race; 100 of them.
#[test]
fn a_job_that_another_process_cancels_and_retries_waits_for_its_old_handler() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("jobs.db");
    let inside = Arc::new(Inside::default());
    let (job_type, is_entered, go) = gated(&inside);
    let mut builder = JobQueue::builder(&path).workers(3);
    builder.register(job_type);
    let other = builder.register(JobType::<Value>::new("other").phase(ONLY, |_| Ok(1)));
    let queue = builder.open().unwrap();
    let client = Client::open(&path).unwrap();
    for _ in 0..100 {
        let id = queue.enqueue("gated", &Value::Null).unwrap();
        is_entered.recv_timeout(LONG).unwrap();
        assert_eq!(client.cancel(id).unwrap(), CancelOutcome::Cancelled);
        client.retry(id, RetryFrom::Failed).unwrap();
        // The queue has heard of it by the time these are done.
        for _ in 0..2 {
            let id = other.enqueue(&Value::Null).unwrap();
            other.wait(id, LONG).unwrap();
        }
        go.send(()).unwrap();
        is_entered.recv_timeout(LONG).unwrap();
        go.send(()).unwrap();
        let job = queue.wait(id, LONG).unwrap();
        assert_eq!(job.status, JobStatus::Completed);
    }
    assert_eq!(inside.most.load(Ordering::SeqCst), 1);
    let report = queue.shutdown(LONG).unwrap();
    assert_eq!(report.interrupted, []);
}

/// The handler returns while the cancel is on its way. Its claim stayed in the table for ever, as a handler that never returns:
/// its job was never claimed again, and a shutdown waited for it until its deadline.
#[test]
fn a_handler_that_returns_while_another_process_cancels_its_job_leaves_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("jobs.db");
    let inside = Arc::new(Inside::default());
    let (job_type, is_entered, go) = gated(&inside);
    let mut builder = JobQueue::builder(&path).workers(1);
    builder.register(job_type);
    let queue = builder.open().unwrap();
    let client = Client::open(&path).unwrap();
    for _ in 0..100 {
        let id = queue.enqueue("gated", &Value::Null).unwrap();
        is_entered.recv_timeout(LONG).unwrap();
        go.send(()).unwrap();
        let is_cancelled = client.cancel(id).unwrap() == CancelOutcome::Cancelled;
        let over = queue.wait(id, LONG).unwrap();
        assert_eq!(over.status == JobStatus::Cancelled, is_cancelled);
        if is_cancelled {
            queue.retry(id, RetryFrom::Failed).unwrap();
            is_entered.recv_timeout(LONG).unwrap();
            go.send(()).unwrap();
            assert_eq!(queue.wait(id, LONG).unwrap().status, JobStatus::Completed);
        }
    }
    let report = queue.shutdown(LONG).unwrap();
    assert_eq!(report.interrupted, []);
}

/// No worker may be replaced any more. The worker of the handler that overstayed ended nevertheless when the handler returned,
/// and nobody was left to run anything.
#[test]
fn a_worker_that_was_not_replaced_goes_on_when_its_handler_returns() {
    let clock = FakeClock::new(Timestamp::from_millis(1_700_000_000_000));
    let inside = Arc::new(Inside::default());
    let (job_type, is_entered, go) = gated(&inside);
    let mut builder = JobQueue::in_memory()
        .workers(1)
        .max_abandoned(0)
        .clock(&clock);
    builder.register(job_type);
    let other = builder.register(JobType::<Value>::new("other").phase(ONLY, |_| Ok(1)));
    let queue = builder.open().unwrap();
    let id = queue.enqueue("gated", &Value::Null).unwrap();
    is_entered.recv_timeout(LONG).unwrap();
    assert_eq!(queue.cancel(id).unwrap(), CancelOutcome::Cancelled);
    // Fails by its deadline, in the same look at the clock that finds the handler overstaying.
    let second = Duration::from_secs(1);
    let late = NewJob::new("other", &Value::Null)
        .unwrap()
        .delay(second)
        .deadline(second);
    let late = queue.enqueue_job(late).unwrap().id;
    clock.advance(3 * second);
    assert_eq!(queue.wait(late, LONG).unwrap().status, JobStatus::Failed);
    go.send(()).unwrap();
    let id = other.enqueue(&Value::Null).unwrap();
    assert_eq!(other.wait(id, LONG).unwrap(), 1);
}

fn plain() -> JobType<Value, Value> {
    JobType::<Value>::new("plain").phase(ONE, |_| Ok(Value::Null))
}

/// Its handlers say that they are inside, and then why they were to stop.
fn long() -> (JobType<Value, Value>, Receiver<Option<StopReason>>) {
    let (tell, told) = channel();
    let tell = Mutex::new(tell);
    let job_type = JobType::<Value>::new("long").phase(ONE, move |cx| {
        let tell = tell.lock().unwrap_or_else(PoisonError::into_inner).clone();
        tell.send(None).unwrap();
        cx.sleep(LONG).ok();
        tell.send(cx.stop_reason()).unwrap();
        Ok(Value::Null)
    });
    (job_type, told)
}

/// A client that dies behind its commit rings nobody. What it had enqueued waited for the bell of another, or for the next start; a
/// handler whose job it had cancelled went on, who waited for that job waited for ever, and a pause was no pause.
#[test]
fn what_a_client_does_unheard_is_noticed_with_the_next_commit() {
    let harness = Harness::new();
    let (long, told) = long();
    let mut builder = harness.builder();
    let jobs = builder.register(plain());
    let long = builder.register(long);
    let queue = builder.open().unwrap();
    let client = harness.client();
    // The name by which it would ring.
    std::fs::remove_file(harness.file("jobs.db-wake")).ok();

    let unheard = client.enqueue("plain", &Value::Null).unwrap();
    jobs.enqueue(&Value::Null).unwrap();
    harness.wait_for(&queue, unheard, JobStatus::Completed);

    let id = long.enqueue(&Value::Null).unwrap();
    assert_eq!(told.recv_timeout(LONG), Ok(None), "it is inside");
    assert_eq!(client.cancel(id).unwrap(), CancelOutcome::Cancelled);
    jobs.enqueue(&Value::Null).unwrap();
    let reason = told.recv_timeout(harness.left());
    assert_eq!(reason, Ok(Some(StopReason::Cancelled)));

    queue.pause().unwrap();
    let id = jobs.enqueue(&Value::Null).unwrap();
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| queue.wait(id, harness.left()));
        assert_eq!(client.cancel(id).unwrap(), CancelOutcome::Cancelled);
        queue.pause_type("another").unwrap();
        let job = waiting.join().unwrap().unwrap();
        assert_eq!(job.status, JobStatus::Cancelled);
    });
}

/// On a file system that has no sockets nothing woke it, and it had nothing to commit itself.
#[test]
fn an_idle_queue_without_a_socket_looks_by_itself() {
    let harness = Harness::new();
    // Cannot be removed, nor bound.
    std::fs::create_dir(harness.file("jobs.db-wake")).unwrap();
    let (long, told) = long();
    let (queue, jobs) = harness.open(long);
    let id = jobs.enqueue(&Value::Null).unwrap();
    assert_eq!(told.recv_timeout(LONG), Ok(None), "it is inside");
    let client = harness.client();
    assert_eq!(client.cancel(id).unwrap(), CancelOutcome::Cancelled);
    let reason = told.recv_timeout(harness.left());
    assert_eq!(reason, Ok(Some(StopReason::Cancelled)));
    let id = client.enqueue("long", &Value::Null).unwrap();
    assert_eq!(told.recv_timeout(harness.left()), Ok(None));
    assert_eq!(client.cancel(id).unwrap(), CancelOutcome::Cancelled);
    queue.shutdown(LONG).unwrap();
}

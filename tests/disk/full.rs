//! The disk is full.

use std::collections::BTreeSet;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Mutex, PoisonError};
use std::thread::park_timeout;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use stepwell::{
    Builder, Client, ErrorKind, JobId, JobQueue, JobStatus, JobType, ListFilter, NewJob, Phase,
    PhaseContext,
};

use crate::{Alone, SmallDisk, processor_time, wait_for};

const A: Phase<Value> = Phase::new("a");
const B: Phase<Value> = Phase::new("b");
pub(crate) const WORKERS: usize = 4;
pub(crate) const LONG: Duration = Duration::from_secs(20);

/// Handlers that have been entered and wait to be let go.
pub(crate) struct Gate {
    entered: Receiver<()>,
    go: Sender<()>,
}

fn open(disk: &SmallDisk) -> (JobQueue, Gate) {
    let (builder, gate) = builder(disk);
    (builder.open().expect("the queue can be opened"), gate)
}

/// With the types of these tests.
pub(crate) fn builder(disk: &SmallDisk) -> (Builder, Gate) {
    let ((entered, is_entered), (go, may_go)) = (channel(), channel());
    let (entered, may_go) = (Mutex::new(entered), Mutex::new(may_go));
    let mut builder = JobQueue::builder(disk.db()).workers(WORKERS);
    let gated = JobType::<Value>::new("gated").phase(A, move |_| {
        let tell = entered
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        tell.send(()).ok();
        let until = Instant::now() + LONG;
        // Not under the lock while it waits: four of them wait at once.
        while Instant::now() < until {
            let let_go = may_go
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .try_recv();
            if let_go.is_ok() {
                break;
            }
            park_timeout(Duration::from_millis(5));
        }
        Ok(json!("a"))
    });
    builder.register(gated.phase(B, |cx: &PhaseContext<Value>| cx.get(A)));
    builder.register(JobType::<Value>::new("quick").phase(A, |_| Ok(json!("quick"))));
    let gate = Gate {
        entered: is_entered,
        go,
    };
    (builder, gate)
}

impl Gate {
    pub(crate) fn wait_entered(&self, count: usize) {
        for _ in 0..count {
            self.entered
                .recv_timeout(LONG)
                .expect("a handler is entered");
        }
    }

    pub(crate) fn let_go(&self, count: usize) {
        for _ in 0..count {
            self.go.send(()).expect("a handler waits");
        }
    }
}

pub(crate) fn job(tag: usize) -> NewJob {
    NewJob::new("quick", &json!({"tag": tag, "pad": "x".repeat(2000)})).expect("it is JSON")
}

/// Fills the disk, and enqueues until nothing goes any more: what a failed commit gives back is taken, too. Answers what was
/// acknowledged, and the next tag.
fn fill(queue: &JobQueue, disk: &SmallDisk) -> (Vec<(usize, JobId)>, usize) {
    let (mut acknowledged, mut refused) = (Vec::new(), 0);
    for tag in 0..5000 {
        if refused == 20 {
            return (acknowledged, tag);
        }
        disk.fill();
        match queue.enqueue_job(job(tag)) {
            Ok(enqueued) => {
                acknowledged.push((tag, enqueued.id));
                refused = 0;
            }
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::StorageFull, "{error}");
                assert!(error.to_string().contains("make room"), "{error}");
                refused += 1;
            }
        }
    }
    panic!("the disk of 2 MiB took 10 MB");
}

fn tags(queue: &JobQueue) -> BTreeSet<u64> {
    let mut found = BTreeSet::new();
    let mut filter = ListFilter::new().limit(1000).job_type("quick");
    loop {
        let page = queue.list(&filter).expect("jobs can be listed");
        for job in &page.jobs {
            let job = queue
                .get(job.id)
                .expect("a job can be read")
                .expect("it is there");
            let tag = job.input["tag"].as_u64().expect("it has a tag");
            assert!(found.insert(tag), "tag {tag} is there twice");
        }
        match page.next {
            Some(next) => filter = ListFilter::new().limit(1000).job_type("quick").after(next),
            None => return found,
        }
    }
}

/// Nothing can be done, and nothing is done over and over.
fn assert_rests(alone: &Alone) {
    let (lines, started) = (alone.lines().len(), processor_time());
    park_timeout(Duration::from_millis(2000));
    let (busy, said) = (processor_time() - started, alone.lines());
    let all = said.join("\n");
    assert!(
        busy < Duration::from_millis(400),
        "spins: {busy:?} of 2 s\n{all}"
    );
    assert_eq!(
        said.len(),
        lines,
        "nothing has changed, and it logs:\n{all}"
    );
}

/// A change of state is one line, whatever was refused meanwhile.
pub(crate) fn assert_told_once(alone: &Alone, what: &str) {
    let lines = alone.lines();
    let count = lines.iter().filter(|line| line.contains(what)).count();
    assert_eq!(count, 1, "{what:?} in the log:\n{}", lines.join("\n"));
}

#[test]
fn outcomes_are_kept_while_the_disk_is_full_and_recorded_when_there_is_space() {
    let alone = Alone::new();
    let dir = tempfile::tempdir().expect("a directory can be made");
    let Some(disk) = SmallDisk::mount(dir.path(), "2m") else {
        return;
    };
    let (queue, gate) = open(&disk);
    let gated: Vec<JobId> = (0..WORKERS)
        .map(|_| {
            queue
                .enqueue("gated", &Value::Null)
                .expect("there is space")
        })
        .collect();
    gate.wait_entered(WORKERS);
    let (acknowledged, next) = fill(&queue, &disk);
    assert!(
        queue.health().store_failure.is_some(),
        "{:?}",
        queue.health()
    );
    // A cancel that cannot be written has not happened.
    let cancelled = queue.cancel(gated[0]);
    assert_eq!(
        cancelled.expect_err("the disk is full").kind(),
        ErrorKind::StorageFull
    );
    // The handlers return, and what they say cannot be written.
    gate.let_go(WORKERS);
    assert_rests(&alone);
    for id in &gated {
        assert_eq!(
            queue.status(*id).expect("it can be read"),
            Some(JobStatus::Running)
        );
    }
    // Callers are refused one by one, and that is not logged one by one.
    for tag in next..next + 50 {
        let error = queue.enqueue_job(job(tag)).expect_err("the disk is full");
        assert_eq!(error.kind(), ErrorKind::StorageFull, "{error}");
    }
    assert_told_once(&alone, "the store failed");
    disk.free();
    // Nobody asks for anything: the queue finds out by itself.
    wait_for("it works again", || queue.health().is_good());
    for id in gated {
        let job = queue.wait(id, LONG).expect("it ends");
        assert_eq!((job.status, job.attempt), (JobStatus::Completed, 1));
    }
    for (_, id) in &acknowledged {
        assert_eq!(
            queue.wait(*id, LONG).expect("it ends").status,
            JobStatus::Completed
        );
    }
    let expected: BTreeSet<u64> = acknowledged.iter().map(|(tag, _)| *tag as u64).collect();
    assert_eq!(
        tags(&queue),
        expected,
        "exactly what was acknowledged is there"
    );
    queue.shutdown(LONG).expect("nothing is under way");
    let broken = Client::open(disk.db()).expect("it can be opened").check();
    assert_eq!(broken.expect("it can be checked"), Vec::<String>::new());
    assert_eq!(alone.panics(), 0);
}

/// A single caller is refused, and nothing else is under way: the queue was left spinning for good.
#[test]
fn an_idle_queue_on_a_full_disk_rests_and_finds_out_when_there_is_space() {
    let alone = Alone::new();
    let dir = tempfile::tempdir().expect("a directory can be made");
    let Some(disk) = SmallDisk::mount(dir.path(), "2m") else {
        return;
    };
    let (queue, _gate) = open(&disk);
    queue.pause().expect("there is space");
    let (acknowledged, _) = fill(&queue, &disk);
    assert!(queue.health().store_failure.is_some());
    let started = processor_time();
    // Opening the file anew gives a little space back, enough for the smallest write: it may work and fail in turn.
    for _ in 0..200 {
        disk.fill();
        park_timeout(Duration::from_millis(10));
    }
    let busy = processor_time() - started;
    assert!(busy < Duration::from_millis(300), "spins: {busy:?} of 2 s");
    disk.free();
    wait_for("it works again", || queue.health().is_good());
    queue.resume().expect("there is space");
    for (_, id) in acknowledged {
        assert_eq!(
            queue.wait(id, LONG).expect("it ends").status,
            JobStatus::Completed
        );
    }
    assert_told_once(&alone, "the store failed");
    assert_told_once(&alone, "the store works again");
}

#[test]
fn a_queue_on_a_full_disk_can_be_shut_down_and_goes_on_later() {
    let alone = Alone::new();
    let dir = tempfile::tempdir().expect("a directory can be made");
    let Some(disk) = SmallDisk::mount(dir.path(), "2m") else {
        return;
    };
    let (queue, gate) = open(&disk);
    let gated: Vec<JobId> = (0..WORKERS)
        .map(|_| {
            queue
                .enqueue("gated", &Value::Null)
                .expect("there is space")
        })
        .collect();
    gate.wait_entered(WORKERS);
    let (acknowledged, _) = fill(&queue, &disk);
    gate.let_go(WORKERS);
    let (started, timeout) = (Instant::now(), Duration::from_millis(500));
    // Callers that wait while the queue closes get an answer, too.
    std::thread::scope(|scope| {
        for tag in 0..4 {
            let queue = &queue;
            scope.spawn(move || {
                while Instant::now() < started + timeout {
                    let error = queue
                        .enqueue_job(job(90_000 + tag))
                        .expect_err("the disk is full");
                    if error.kind() == ErrorKind::Closed {
                        return;
                    }
                    assert_eq!(error.kind(), ErrorKind::StorageFull, "{error}");
                    park_timeout(Duration::from_micros(500));
                }
            });
        }
        park_timeout(Duration::from_millis(50));
        queue.shutdown(timeout).ok();
        assert!(
            started.elapsed() < timeout + Duration::from_millis(350),
            "{:?}",
            started.elapsed()
        );
    });
    let took = started.elapsed();
    assert!(
        took < timeout + Duration::from_millis(500),
        "a caller waited for {took:?}"
    );
    // What had returned and could not be recorded runs again, and is told of.
    let told = queue.shutdown_report().expect("it is closed").interrupted;
    drop(queue);
    disk.free();
    let (queue, gate) = open(&disk);
    for id in gated.iter().copied() {
        let status = queue.status(id).expect("readable");
        let is_lost = status != Some(JobStatus::Completed);
        assert_eq!(told.contains(&id), is_lost, "job {id}: {status:?}");
    }
    gate.let_go(WORKERS);
    for id in acknowledged.into_iter().map(|(_, id)| id).chain(gated) {
        let job = queue.wait(id, LONG).expect("it ends");
        assert_eq!(job.status, JobStatus::Completed);
    }
    assert_eq!(
        queue.check().expect("it can be checked"),
        Vec::<String>::new()
    );
    assert_eq!(alone.panics(), 0);
}

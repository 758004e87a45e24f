//! What every test has: a directory of its own, a queue in it, perhaps a clock that stands still, and waits that end.
//!
//! Nothing sleeps. Tests wait for an event of the log, for a status, or for a handler at a [`Gate`]; all waits of a test share
//! one deadline, so that a test which waits for what never comes ends by saying so.

mod edge;
mod gate;
mod process;
mod sound;
mod wait;

use std::fmt::Debug;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crossbeam_channel::Receiver;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use stepwell::testing::FakeClock;
use stepwell::{
    Builder, Client, Durability, Error, ErrorKind, Event, EventKind, Job, JobHandle, JobId,
    JobQueue, JobStatus, JobType, Notice, Phase, Retention, RetryPolicy, Subscription, Timestamp,
};
use tempfile::TempDir;

pub(crate) use edge::AtTheEdge;
pub(crate) use gate::Gate;
pub(crate) use process::{OtherProcess, told};
pub(crate) use sound::{assert_shape, assert_sound, status_after};
pub(crate) use wait::{asleep, closed};

/// All waits of one test end after this long.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);
/// Where a fake clock starts: 2027-01-15T08:00:00Z.
pub(crate) const START: Timestamp = Timestamp::from_millis(1_800_000_000_000);

/// Phases for tests that do not care what they are.
pub(crate) const ONE: Phase<Value> = Phase::new("one");
pub(crate) const TWO: Phase<Value> = Phase::new("two");
pub(crate) const THREE: Phase<Value> = Phase::new("three");

/// A test's surroundings, and the only code that knows how to build a queue.
pub(crate) struct Harness {
    dir: PathBuf,
    /// Nothing in another process: the directory belongs to the test that started it.
    _owned: Option<TempDir>,
    clock: Option<FakeClock>,
    until: Instant,
}

impl Harness {
    pub(crate) fn new() -> Harness {
        let owned = tempfile::tempdir().unwrap();
        Harness {
            dir: owned.path().to_owned(),
            _owned: Some(owned),
            clock: None,
            until: Instant::now() + PATIENCE,
        }
    }

    /// In another process: on the file that it was told.
    pub(crate) fn at(path: &Path) -> Harness {
        Harness {
            dir: path.parent().unwrap().to_owned(),
            _owned: None,
            clock: None,
            until: Instant::now() + PATIENCE,
        }
    }

    /// With a clock that stands still until the test moves it.
    pub(crate) fn with_fake_clock() -> Harness {
        Harness::with_fake_clock_at(START)
    }

    pub(crate) fn with_fake_clock_at(start: Timestamp) -> Harness {
        Harness {
            clock: Some(FakeClock::new(start)),
            ..Harness::new()
        }
    }

    pub(crate) fn clock(&self) -> &FakeClock {
        self.clock.as_ref().expect("made with a fake clock")
    }

    /// The file of the queue.
    pub(crate) fn path(&self) -> PathBuf {
        self.file("jobs.db")
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Two workers, nothing deleted by itself, and a short shutdown when the queue is dropped.
    pub(crate) fn builder(&self) -> Builder {
        self.settings(JobQueue::builder(self.path()))
    }

    pub(crate) fn builder_in_memory(&self) -> Builder {
        self.settings(JobQueue::in_memory())
    }

    fn settings(&self, builder: Builder) -> Builder {
        let builder = builder
            .workers(2)
            .durability(Durability::Normal)
            .retention(Retention::forever())
            .shutdown_timeout(Duration::from_millis(500));
        match &self.clock {
            Some(clock) => builder.clock(clock),
            None => builder,
        }
    }

    /// A queue with one job type.
    pub(crate) fn open<I: DeserializeOwned + 'static, O>(
        &self,
        job_type: JobType<I, O>,
    ) -> (JobQueue, JobHandle<I, O>) {
        let mut builder = self.builder();
        let jobs = builder.register(job_type);
        (builder.open().unwrap(), jobs)
    }

    /// A queue that takes jobs and runs none.
    pub(crate) fn open_without_workers(&self) -> JobQueue {
        self.builder().workers(0).open().unwrap()
    }

    pub(crate) fn client(&self) -> Client {
        Client::open(self.path()).unwrap()
    }

    /// What is left of this test's patience.
    pub(crate) fn left(&self) -> Duration {
        self.until.saturating_duration_since(Instant::now())
    }

    pub(crate) fn recv<T>(&self, from: &Receiver<T>) -> T {
        from.recv_timeout(self.left())
            .expect("something is sent in time")
    }

    /// The next event of a subscription.
    pub(crate) fn next(&self, events: &mut Subscription) -> Event {
        let notice = events.recv_timeout(self.left()).unwrap();
        let Notice::Event(event) = notice else {
            panic!("an event was expected, not {notice:?}");
        };
        event
    }

    /// Waits until the log has such an event of the job.
    pub(crate) fn wait_event(&self, queue: &JobQueue, id: JobId, kind: EventKind) -> Event {
        self.wait_event_after(queue, id, kind, 0)
    }

    pub(crate) fn wait_event_after(
        &self,
        queue: &JobQueue,
        id: JobId,
        kind: EventKind,
        seq: i64,
    ) -> Event {
        let mut events = queue.subscribe_after(seq);
        let mut heard = Vec::new();
        loop {
            match events.recv_timeout(self.left()) {
                Ok(Notice::Event(event)) if event.job_id == id => {
                    if event.kind == kind {
                        return event;
                    }
                    heard.push(event.kind.as_str());
                }
                Ok(_) => {}
                Err(error) => panic!("job {id}: no {kind} came ({error}), but {heard:?}"),
            }
        }
    }

    /// Waits until the job stands there, looking at each event.
    pub(crate) fn wait_for(&self, queue: &JobQueue, id: JobId, status: JobStatus) -> Job {
        let mut events = queue.subscribe().unwrap();
        loop {
            let job = queue.get(id).unwrap().expect("the job is there");
            if job.status == status {
                return job;
            }
            if let Err(error) = events.recv_timeout(self.left()) {
                panic!(
                    "job {id}: is not {status} ({error}): {job:#?}\n{:?}\n{:?}",
                    queue.explain(id),
                    queue.health()
                );
            }
        }
    }

    /// Runs one more job of `jobs` to its end: what was to happen before it has happened.
    pub(crate) fn run_one<I: Serialize, O>(
        &self,
        queue: &JobQueue,
        jobs: &JobHandle<I, O>,
        input: &I,
    ) -> JobId {
        let id = jobs.enqueue(input).unwrap();
        self.wait_for(queue, id, JobStatus::Completed);
        id
    }

    /// For what has no event: another process, a clock step that was taken in, a thread that ended.
    pub(crate) fn until(&self, what: &str, mut is: impl FnMut() -> bool) {
        while !is() {
            assert!(!self.left().is_zero(), "in time: {what}");
            std::thread::park_timeout(Duration::from_millis(1));
        }
    }

    /// Raw columns, for what the queue does not show. The queue may be open.
    pub(crate) fn sql<T: rusqlite::types::FromSql>(&self, query: &str) -> Vec<T> {
        let conn = rusqlite::Connection::open(self.path()).unwrap();
        let mut statement = conn.prepare(query).unwrap();
        let rows = statement.query_map([], |row| row.get(0)).unwrap();
        rows.collect::<Result<_, _>>().unwrap()
    }
}

/// No wait between tries, so that a test of what is tried need not move the clock.
pub(crate) fn at_once(tries: u32) -> RetryPolicy {
    RetryPolicy::fixed(Duration::ZERO).max_attempts(tries)
}

/// The names of a job's events, in order.
pub(crate) fn events_of(queue: &JobQueue, id: JobId) -> Vec<&'static str> {
    let events = queue.events_of(id).unwrap();
    events.iter().map(|event| event.kind.as_str()).collect()
}

pub(crate) fn count(queue: &JobQueue, id: JobId, kind: EventKind) -> usize {
    let events = queue.events_of(id).unwrap();
    events.iter().filter(|event| event.kind == kind).count()
}

/// That it failed, in this way and with this message.
#[track_caller]
pub(crate) fn assert_refused<T: Debug>(result: Result<T, Error>, kind: ErrorKind, says: &str) {
    let error = result.expect_err(says);
    assert_eq!(error.kind(), kind, "{error}");
    assert!(
        error.to_string().contains(says),
        "{error}\nwas to say: {says}"
    );
}

//! A queue in memory, a job in it, what happens to it, and what must hold afterwards. Test code.

use std::collections::BTreeMap;
use std::panic::resume_unwind;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;

use crate::config::{Keep, Retention};
use crate::delivery::{EndpointSpec, Kinds};
use crate::engine::Engine;
use crate::error::ErrorKind;
use crate::event::EventKind;
use crate::job::{CancelOutcome, JobId, JobStatus, RetryFrom};
use crate::new_job::NewJob;
use crate::phase::context::PhaseContext;
use crate::phase::{JobType, Phase, PhaseError};
use crate::queue::JobQueue;
use crate::queue::builder::Builder;
use crate::retry::RetryPolicy;
use crate::store::ops::Op;
use crate::store::outbox::{Attempted, DeliveryFilter, Verdict};
use crate::sync::{AtomicBool, Mutex, Ordering, spawn, yield_now};
use crate::time::{FakeClock, Timestamp};

const S: Duration = Duration::from_secs(1);
const TIMEOUT: Duration = S;
const AGE: Duration = Duration::from_secs(60);
const SHUTDOWN: Duration = Duration::from_millis(5);
const WAIT: Duration = Duration::from_secs(3600);

/// What happens to the job while it runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Act {
    /// Its phases alone.
    Nothing,
    Cancel,
    /// It is tried again, if it is over and not completed.
    Retry,
    /// The queue is paused, and resumed.
    Pause,
    /// It is old enough to be deleted as soon as it is over.
    Retention,
    /// It is deleted, if it is over.
    Delete,
    /// A delivery about it ends.
    Delivery,
    /// Its phase has taken too long; its handler goes on.
    LateResult,
    /// Its handler panics, once.
    Panic,
    /// Another process has changed something, perhaps.
    Bell,
    /// Another job comes.
    Enqueue,
    /// A caller waits for its end.
    Wait,
    Shutdown,
}

impl Act {
    pub(super) const ALL: [Act; 13] = [
        Act::Nothing,
        Act::Cancel,
        Act::Retry,
        Act::Pause,
        Act::Retention,
        Act::Delete,
        Act::Delivery,
        Act::LateResult,
        Act::Panic,
        Act::Bell,
        Act::Enqueue,
        Act::Wait,
        Act::Shutdown,
    ];
}

/// What handlers write down.
#[derive(Default)]
struct Record {
    inside: Mutex<BTreeMap<JobId, u32>>,
    panics: AtomicBool,
}

pub(super) struct World {
    queue: JobQueue,
    engine: Arc<Engine>,
    clock: FakeClock,
    job: JobId,
    /// Cancels that were answered with `Cancelled`, and retries that won.
    cancelled: Mutex<u32>,
    retried: Mutex<u32>,
    acknowledged: Mutex<Vec<JobId>>,
}

impl World {
    pub(super) fn run(acts: [Act; 2]) {
        let world = Arc::new(World::open(acts));
        let threads = acts.map(|act| {
            let world = world.clone();
            spawn("act", move || world.act(act)).expect("a thread")
        });
        for thread in threads {
            thread.join().expect("no act panics");
        }
        world.settle(acts.contains(&Act::Shutdown));
        world.judge(acts);
        world.queue.shutdown(SHUTDOWN).ok();
        world.after_the_end();
    }

    fn open(acts: [Act; 2]) -> World {
        let record = Arc::new(Record::default());
        record
            .panics
            .store(acts.contains(&Act::Panic), Ordering::SeqCst);
        let clock = FakeClock::new(Timestamp::from_millis(1_800_000_000_000));
        let age = if acts.contains(&Act::Retention) {
            Keep::for_age(AGE)
        } else {
            Keep::FOREVER
        };
        let retention = Retention::forever()
            .completed(age)
            .failed(age)
            .cancelled(age);
        let builder = Builder::in_memory().workers(2).in_flight(2);
        let mut builder = builder.retention(retention).clock(&clock);
        let job_type = JobType::<Value>::new("job").retry(RetryPolicy::fixed(Duration::ZERO));
        builder.register(
            job_type
                .phase(Phase::<u32>::new("one").timeout(TIMEOUT), handler(&record))
                .phase(Phase::<u32>::new("two").timeout(TIMEOUT), handler(&record)),
        );
        let queue = builder.open().expect("it opens");
        let engine = queue.engine().clone();
        let mut job = NewJob::new("job", &1).expect("JSON");
        job.endpoints = vec![EndpointSpec {
            url: "http://a.example/".to_owned(),
            events: Kinds::of([
                EventKind::Created,
                EventKind::Cancelled,
                EventKind::Completed,
            ]),
            secrets: Vec::new(),
        }];
        let job = queue.enqueue_job(job).expect("it is taken").id;
        World {
            queue,
            engine,
            clock,
            job,
            cancelled: Mutex::default(),
            retried: Mutex::default(),
            acknowledged: Mutex::new(vec![job]),
        }
    }

    fn act(&self, act: Act) {
        match act {
            Act::Nothing | Act::Panic => {}
            Act::Cancel => match self.queue.cancel(self.job) {
                Ok(CancelOutcome::Cancelled) => *self.cancelled.lock() += 1,
                Ok(CancelOutcome::AlreadyFinished(_) | CancelOutcome::NotFound) => {}
                Err(error) => assert_eq!(error.kind(), ErrorKind::Closed),
            },
            Act::Retry => match self.queue.retry(self.job, RetryFrom::Failed) {
                Ok(()) => *self.retried.lock() += 1,
                Err(error) => assert!(
                    matches!(
                        error.kind(),
                        ErrorKind::Conflict | ErrorKind::Closed | ErrorKind::NotFound
                    ),
                    "{error}"
                ),
            },
            Act::Delete => match self.queue.delete(self.job) {
                Ok(()) => assert_eq!(self.engine.reader.status(self.job).ok(), Some(None)),
                Err(error) => assert!(
                    matches!(
                        error.kind(),
                        ErrorKind::Conflict | ErrorKind::Closed | ErrorKind::NotFound
                    ),
                    "{error}"
                ),
            },
            Act::Pause => {
                self.queue.pause().ok();
                self.queue.resume().ok();
            }
            Act::Retention => self.clock.advance(AGE),
            Act::LateResult => self.clock.advance(TIMEOUT),
            Act::Delivery => self.deliver(),
            Act::Bell => self.engine.follow_bell(),
            Act::Enqueue => match self.queue.enqueue("job", &2) {
                Ok(id) => self.acknowledged.lock().push(id),
                Err(error) => assert_eq!(error.kind(), ErrorKind::Closed),
            },
            Act::Wait => self.wait(self.job),
            Act::Shutdown => drop(self.queue.shutdown(SHUTDOWN)),
        }
    }

    fn deliver(&self) {
        let filter = DeliveryFilter::default();
        let Ok((rows, _)) = self.engine.reader.deliveries(&filter, None, 10) else {
            return;
        };
        for row in rows {
            self.engine.committer.post(Op::Attempted(Attempted {
                id: row.id,
                due: row.next_at,
                at: self.clock.now(),
                took_ms: 1,
                status: Some(200),
                error: None,
                answer: None,
                verdict: Verdict::Delivered,
            }));
        }
    }

    /// Everything that was acknowledged ends, by itself. If it does not, shuttle says so.
    fn settle(&self, is_closed: bool) {
        if is_closed {
            return;
        }
        let jobs = self.acknowledged.lock().clone();
        for id in jobs {
            self.wait(id);
        }
    }

    fn wait(&self, id: JobId) {
        match self.queue.wait(id, WAIT) {
            Ok(job) => assert!(job.status.is_terminal()),
            Err(error) => assert!(
                matches!(error.kind(), ErrorKind::NotFound | ErrorKind::Closed),
                "{error}"
            ),
        }
    }

    /// What must hold, with the queue open or closed.
    fn judge(&self, acts: [Act; 2]) {
        let reader = &self.engine.reader;
        assert_eq!(reader.check().expect("readable"), Vec::<String>::new());
        let head = reader.head().expect("readable");
        for status in JobStatus::ALL {
            let count = head.counts[status as usize];
            assert!((0..=3).contains(&count), "{status}: {count}");
        }
        let events = crate::requests::events_after(&**reader, 0, 1000).expect("readable");
        let (mut seq, mut ended) = (0, BTreeMap::new());
        for event in &events {
            seq += 1;
            assert_eq!(event.seq, seq, "numbers without gaps");
            let is_over = ended.entry(event.job_id).or_insert(false);
            match event.kind {
                EventKind::Retrying if event.data["reason"] == "requested" => {
                    assert!(*is_over, "only what is over is tried again");
                    *is_over = false;
                }
                EventKind::WebhookDelivered | EventKind::WebhookFailed => {}
                EventKind::Deleted => assert!(*is_over, "only what is over is deleted"),
                kind @ (EventKind::Created
                | EventKind::Started
                | EventKind::PhaseStarted
                | EventKind::PhaseCompleted
                | EventKind::PhaseFailed
                | EventKind::Progress
                | EventKind::Retrying
                | EventKind::Interrupted
                | EventKind::Completed
                | EventKind::Failed
                | EventKind::Cancelled) => {
                    assert!(!*is_over, "{kind} after the end of job {}", event.job_id);
                    *is_over = kind.is_terminal();
                }
            }
        }
        self.judge_answers(
            &events
                .iter()
                .map(|event| (event.job_id, event.kind))
                .collect::<Vec<_>>(),
        );
        let is_kept = !acts.contains(&Act::Retention) && !acts.contains(&Act::Delete);
        for id in self.acknowledged.lock().iter() {
            let status = reader.status(*id).expect("readable");
            assert!(status.is_some() || !is_kept, "job {id} is gone");
        }
    }

    fn judge_answers(&self, events: &[(JobId, EventKind)]) {
        let count = |kind| {
            let of_kind = |event: &&(JobId, EventKind)| **event == (self.job, kind);
            events.iter().filter(of_kind).count()
        };
        let cancelled = *self.cancelled.lock();
        assert_eq!(
            count(EventKind::Cancelled),
            cancelled as usize,
            "as answered"
        );
        let status = self.engine.reader.status(self.job).expect("readable");
        let retried = *self.retried.lock();
        if let Some(status) = status.filter(|_| cancelled > retried) {
            assert_eq!(
                status,
                JobStatus::Cancelled,
                "a cancel that was answered holds"
            );
        }
    }

    /// Nothing is under way in the file, and nothing is taken.
    fn after_the_end(&self) {
        let head = self.engine.reader.head().expect("readable");
        assert_eq!(head.counts[JobStatus::Running as usize], 0, "nothing runs");
        assert!(self.engine.live.len() == 0, "nothing is under way");
        let refused = self.queue.enqueue("job", &3).map_err(|error| error.kind());
        assert_eq!(refused, Err(ErrorKind::Closed));
        let broken = self.engine.reader.check().expect("readable");
        assert_eq!(broken, Vec::<String>::new());
    }
}

/// The handler of both phases.
fn handler(
    record: &Arc<Record>,
) -> impl Fn(&PhaseContext<Value>) -> Result<u32, PhaseError> + Send + Sync + use<> {
    let record = record.clone();
    move |cx| {
        let enter = |by: u32| {
            let mut inside = record.inside.lock();
            let count = inside.entry(cx.job_id()).or_default();
            *count = count.wrapping_add(by);
            assert!(*count <= 1, "two handlers of job {}", cx.job_id());
        };
        enter(1);
        if cx.phase() == "two" {
            let before: u32 = cx.get(Phase::new("one"))?;
            assert_eq!(before, 7, "as it was saved");
        }
        for _ in 0..3 {
            yield_now();
        }
        let panics = record.panics.swap(false, Ordering::SeqCst);
        enter(u32::MAX);
        if panics {
            // Without the hook, which would tell shuttle that the run has failed.
            resume_unwind(Box::new("on purpose"));
        }
        Ok(7)
    }
}

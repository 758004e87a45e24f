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
use crate::event::{Event, EventKind};
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
const PHASES: [&str; 2] = ["one", "two"];

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
    /// With this one a job may end otherwise than completed, be gone, or be left.
    fn is_harsh(self) -> bool {
        match self {
            Act::Cancel
            | Act::Retry
            | Act::Retention
            | Act::Delete
            | Act::LateResult
            | Act::Panic
            | Act::Shutdown => true,
            Act::Nothing | Act::Pause | Act::Delivery | Act::Bell | Act::Enqueue | Act::Wait => {
                false
            }
        }
    }

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
    /// How often a handler of a phase was entered.
    starts: Mutex<BTreeMap<(JobId, u32), usize>>,
    panics: AtomicBool,
}

pub(super) struct World {
    record: Arc<Record>,
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
                .phase(
                    Phase::<i64>::new(PHASES[0]).timeout(TIMEOUT),
                    handler(&record),
                )
                .phase(
                    Phase::<i64>::new(PHASES[1]).timeout(TIMEOUT),
                    handler(&record),
                ),
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
            record,
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
        self.judge_answers(&events);
        self.judge_phases(&events, !acts.iter().any(|act| act.is_harsh()));
        let is_kept = !acts.contains(&Act::Retention) && !acts.contains(&Act::Delete);
        for id in self.acknowledged.lock().iter() {
            let status = reader.status(*id).expect("readable");
            assert!(status.is_some() || !is_kept, "job {id} is gone");
        }
    }

    fn judge_answers(&self, events: &[Event]) {
        let of_job = |event: &&Event| event.job_id == self.job;
        let count = |is: &dyn Fn(&Event) -> bool| {
            events
                .iter()
                .filter(of_job)
                .filter(|event| is(event))
                .count()
        };
        let cancelled = *self.cancelled.lock() as usize;
        let cancels = count(&|event| event.kind == EventKind::Cancelled);
        assert_eq!(cancels, cancelled, "cancelled, as answered");
        let retried = *self.retried.lock() as usize;
        assert_eq!(count(&is_retry), retried, "tried again, as answered");
        let status = self.engine.reader.status(self.job).expect("readable");
        if let Some(status) = status.filter(|_| cancelled > retried) {
            assert_eq!(
                status,
                JobStatus::Cancelled,
                "a cancel that was answered holds"
            );
        }
    }

    /// Each phase has the result of its own handler, is completed once, and was entered no more often than it had reason to be. Where
    /// nothing harsh happened, that is once, and every job is completed.
    fn judge_phases(&self, events: &[Event], is_gentle: bool) {
        let reader = &self.engine.reader;
        let starts = self.record.starts.lock().clone();
        for id in self.acknowledged.lock().iter() {
            let status = reader.status(*id).expect("readable");
            assert!(
                !is_gentle || status == Some(JobStatus::Completed),
                "job {id} is {status:?}"
            );
            let of_job: Vec<_> = events.iter().filter(|event| event.job_id == *id).collect();
            for (index, phase) in (0..).zip(PHASES) {
                let of_phase = |kind| {
                    let told = of_job.iter().filter(|event| event.kind == kind);
                    told.filter(|event| event.phase.as_deref() == Some(phase))
                        .count()
                };
                let completed = of_phase(EventKind::PhaseCompleted);
                assert!(
                    completed <= 1,
                    "phase {phase} of job {id} is completed {completed} times"
                );
                let result = reader.result(*id, index).expect("readable");
                if status.is_some() {
                    let expected = (completed == 1).then(|| result_of(*id, index).to_string());
                    assert_eq!(result, expected, "phase {phase} of job {id}");
                }
                let entered = starts.get(&(*id, index)).copied().unwrap_or(0);
                let retries = of_job.iter().filter(|event| is_retry(event)).count();
                let reasons = 1 + of_phase(EventKind::PhaseFailed) + retries;
                assert!(
                    (completed..=reasons).contains(&entered) && !(is_gentle && entered != 1),
                    "phase {phase} of job {id} was entered {entered} times: {of_job:#?}"
                );
            }
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

fn is_retry(event: &Event) -> bool {
    event.kind == EventKind::Retrying && event.data["reason"] == "requested"
}

/// No two phases of any jobs have the same.
fn result_of(id: JobId, phase_index: u32) -> i64 {
    id.as_i64() * 10 + i64::from(phase_index)
}

/// The handler of both phases.
fn handler(
    record: &Arc<Record>,
) -> impl Fn(&PhaseContext<Value>) -> Result<i64, PhaseError> + Send + Sync + use<> {
    let record = record.clone();
    move |cx| {
        let enter = |by: u32| {
            let mut inside = record.inside.lock();
            let count = inside.entry(cx.job_id()).or_default();
            *count = count.wrapping_add(by);
            assert!(*count <= 1, "two handlers of job {}", cx.job_id());
        };
        enter(1);
        let phase_index = u32::from(cx.phase() == PHASES[1]);
        *record
            .starts
            .lock()
            .entry((cx.job_id(), phase_index))
            .or_default() += 1;
        if phase_index == 1 {
            let before: i64 = cx.get(Phase::new(PHASES[0]))?;
            assert_eq!(before, result_of(cx.job_id(), 0), "as it was saved");
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
        Ok(result_of(cx.job_id(), phase_index))
    }
}

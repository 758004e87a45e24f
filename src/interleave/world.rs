//! A queue in memory, a job in it, what happens to it, and what comes after. Test code.

use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use shuttle::rand::Rng;

use crate::config::{Keep, Retention};
use crate::delivery::{EndpointSpec, Kinds};
use crate::error::{ErrorKind, Result};
use crate::event::EventKind;
use crate::interleave::place::Place;
use crate::interleave::record::Record;
use crate::job::{CancelOutcome, JobId, JobStatus, RetryFrom};
use crate::new_job::NewJob;
use crate::phase::{JobType, Phase};
use crate::queue::JobQueue;
use crate::queue::builder::Builder;
use crate::requests;
use crate::retry::RetryPolicy;
use crate::store::Store;
use crate::store::outbox::DeliveryRow;
use crate::sync::{JoinHandle, Mutex, Ordering, spawn, unbounded};
use crate::time::{FakeClock, Timestamp};

const S: Duration = Duration::from_secs(1);
const TIMEOUT: Duration = S;
const AGE: Duration = Duration::from_secs(60);
const SHUTDOWN: Duration = Duration::from_millis(5);
pub(super) const WAIT: Duration = Duration::from_secs(3600);
/// How often something happens only when the job is over.
const LATE: f64 = 0.25;
pub(super) const PHASES: [&str; 2] = ["one", "two"];
/// What the job's endpoint wants to know.
pub(super) const WANTED: [EventKind; 6] = [
    EventKind::Created,
    EventKind::Retrying,
    EventKind::Completed,
    EventKind::Failed,
    EventKind::Cancelled,
    EventKind::Deleted,
];

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
    /// Its events are delivered meanwhile.
    Delivery,
    /// The same, and the first of them is refused for good; all are sent again by hand.
    Redelivery,
    /// Its phase has taken too long; its handler goes on.
    LateResult,
    /// Its handler panics, once.
    Panic,
    /// Another process does it, and rings.
    ClientCancel,
    ClientRetry,
    ClientPause,
    ClientEnqueue,
    /// Another job comes.
    Enqueue,
    /// A caller waits for its end.
    Wait,
    /// Another process wants to run the jobs.
    SecondOpen,
    Shutdown,
}

impl Act {
    /// With this one a job may end otherwise than completed, or be gone.
    pub(super) fn is_harsh(self) -> bool {
        match self {
            Act::Cancel
            | Act::Retry
            | Act::Retention
            | Act::Delete
            | Act::LateResult
            | Act::Panic
            | Act::ClientCancel
            | Act::ClientRetry => true,
            Act::Nothing
            | Act::Pause
            | Act::Delivery
            | Act::Redelivery
            | Act::ClientPause
            | Act::ClientEnqueue
            | Act::Enqueue
            | Act::Wait
            | Act::SecondOpen
            | Act::Shutdown => false,
        }
    }

    fn is_of_a_client(self) -> bool {
        matches!(
            self,
            Act::ClientCancel | Act::ClientRetry | Act::ClientPause | Act::ClientEnqueue
        )
    }

    pub(super) const ALL: [Act; 18] = [
        Act::Nothing,
        Act::Cancel,
        Act::Retry,
        Act::Pause,
        Act::Retention,
        Act::Delete,
        Act::Delivery,
        Act::Redelivery,
        Act::LateResult,
        Act::Panic,
        Act::ClientCancel,
        Act::ClientRetry,
        Act::ClientPause,
        Act::ClientEnqueue,
        Act::Enqueue,
        Act::Wait,
        Act::SecondOpen,
        Act::Shutdown,
    ];
}

pub(super) struct World {
    pub(super) acts: [Act; 2],
    pub(super) record: Arc<Record>,
    place: Place,
    clock: FakeClock,
    pub(super) queue: JobQueue,
    /// The one that came after it.
    pub(super) second: Mutex<Option<JobQueue>>,
    pub(super) job: JobId,
    /// Cancels that were answered with `Cancelled`, retries that won, and deliveries that were sent again.
    pub(super) cancelled: Mutex<usize>,
    pub(super) retried: Mutex<usize>,
    pub(super) sent_again: Mutex<usize>,
    pub(super) acknowledged: Mutex<Vec<JobId>>,
    /// Deliveries that were over when nothing moved.
    pub(super) ended: Mutex<Vec<DeliveryRow>>,
}

impl World {
    pub(super) fn run(acts: [Act; 2]) {
        let (world, listener) = World::open(acts);
        let world = Arc::new(world);
        let threads = acts.map(|act| {
            let world = world.clone();
            let run = move || {
                // Sometimes it comes upon a job that is over, and a queue that sleeps.
                if shuttle::rand::thread_rng().gen_bool(LATE) {
                    wait(&world.queue, world.job);
                }
                world.act(act);
            };
            spawn("act", run).expect("a thread")
        });
        for thread in threads {
            thread.join().expect("no act panics");
        }
        if !acts.contains(&Act::Shutdown) {
            world.settle(&world.queue);
        }
        let has_second = world.second.lock().is_some();
        if !has_second {
            world.judge();
        }
        let left = world.end(&world.queue);
        world.place.fall_silent();
        listener.join().expect("it does not panic");
        if !has_second {
            world.judge_rest();
        }
        if acts.contains(&Act::SecondOpen) || acts.contains(&Act::Shutdown) {
            world.go_on(left);
        }
    }

    fn open(acts: [Act; 2]) -> (World, JoinHandle<()>) {
        let clock = FakeClock::new(Timestamp::from_millis(1_800_000_000_000));
        let place = Place::new(&clock);
        let record = Arc::new(Record::new(place.reader.clone()));
        let is_among = |act| acts.contains(&act);
        record.panics.store(is_among(Act::Panic), Ordering::SeqCst);
        let is_ended = is_among(Act::Shutdown);
        record.are_slow.store(is_ended, Ordering::SeqCst);
        let resends = is_among(Act::Redelivery);
        record.refuses.store(resends, Ordering::SeqCst);
        record.has_resent.store(resends, Ordering::SeqCst);
        let store = place.acquire().expect("nobody has it");
        let queue = open_queue(store, 0, acts, &record, &clock);
        let listener = place.listen(queue.engine(), unbounded());
        let mut job = NewJob::new("job", &1).expect("JSON");
        job.endpoints = vec![EndpointSpec {
            url: "http://a.example/".to_owned(),
            events: Kinds::of(WANTED),
            secrets: Vec::new(),
        }];
        // A client's job is claimed while everything else happens, and not with its own commit.
        let enqueued = if acts.iter().any(|act| act.is_of_a_client()) {
            requests::enqueue(&place, vec![job])
        } else {
            queue.enqueue_all(vec![job])
        };
        let job = enqueued.expect("it is taken")[0].id;
        let world = World {
            acts,
            record,
            place,
            clock,
            queue,
            second: Mutex::default(),
            job,
            cancelled: Mutex::default(),
            retried: Mutex::default(),
            sent_again: Mutex::default(),
            acknowledged: Mutex::new(vec![job]),
            ended: Mutex::default(),
        };
        (world, listener)
    }

    fn act(&self, act: Act) {
        match act {
            Act::Nothing | Act::Panic | Act::Delivery => {}
            Act::Cancel => self.cancelled(self.queue.cancel(self.job)),
            Act::ClientCancel => self.cancelled(requests::cancel(&self.place, self.job)),
            Act::Retry => self.retried(self.queue.retry(self.job, RetryFrom::Failed)),
            Act::ClientRetry => {
                self.retried(requests::retry(&self.place, self.job, RetryFrom::Failed));
            }
            Act::Delete => {
                if self.is_done(self.queue.delete(self.job)) {
                    assert_eq!(self.place.reader.status(self.job).ok(), Some(None));
                }
            }
            Act::Pause => {
                self.queue.pause().ok();
                self.queue.resume().ok();
            }
            Act::ClientPause => {
                let set = |paused| requests::set_paused(&self.place, None, paused);
                set(true).expect("it is done");
                set(false).expect("it is done");
            }
            Act::Retention => self.clock.advance(AGE),
            Act::LateResult => self.clock.advance(TIMEOUT),
            Act::Redelivery => self.send_again(),
            Act::Enqueue => self.enqueued(self.queue.enqueue("job", &2)),
            Act::ClientEnqueue => {
                let job = NewJob::new("job", &2).expect("JSON");
                let enqueued = requests::enqueue(&self.place, vec![job]);
                self.enqueued(enqueued.map(|enqueued| enqueued[0].id));
            }
            Act::Wait => wait(&self.queue, self.job),
            Act::SecondOpen => {
                if let Some(store) = self.place.acquire() {
                    self.open_second(store);
                }
            }
            Act::Shutdown => drop(self.queue.shutdown(SHUTDOWN)),
        }
    }

    fn cancelled(&self, answer: Result<CancelOutcome>) {
        match answer {
            Ok(CancelOutcome::Cancelled) => *self.cancelled.lock() += 1,
            Ok(CancelOutcome::AlreadyFinished(_) | CancelOutcome::NotFound) => {}
            Err(error) => assert_eq!(error.kind(), ErrorKind::Closed),
        }
    }

    fn retried(&self, answer: Result<()>) {
        if self.is_done(answer) {
            *self.retried.lock() += 1;
        }
    }

    fn enqueued(&self, answer: Result<JobId>) {
        match answer {
            Ok(id) => self.acknowledged.lock().push(id),
            Err(error) => assert_eq!(error.kind(), ErrorKind::Closed),
        }
    }

    /// Whether it was done, or lawfully refused.
    fn is_done(&self, answer: Result<()>) -> bool {
        let lawful = [ErrorKind::Conflict, ErrorKind::Closed, ErrorKind::NotFound];
        match answer {
            Ok(()) => true,
            Err(error) if lawful.contains(&error.kind()) => false,
            Err(error) => panic!("{error}"),
        }
    }

    fn send_again(&self) {
        for row in self.record.deliveries() {
            if self.is_done(self.queue.redeliver(row.id)) {
                *self.sent_again.lock() += 1;
            }
        }
    }

    /// The lock was free: nothing of the first queue is under way, and none of its threads changes anything any more.
    fn open_second(&self, store: Box<dyn Store>) {
        let head = self.place.reader.head().expect("readable");
        let running = head.counts[JobStatus::Running as usize];
        assert_eq!(running, 0, "nothing runs that nobody runs");
        assert!(self.queue.health().closing, "it is open");
        let queue = open_queue(store, 1, self.acts, &self.record, &self.clock);
        *self.second.lock() = Some(queue);
    }

    /// The first queue is closed. The one after it does what was left, and finds nothing else.
    fn go_on(&self, handlers_left: usize) {
        if self.second.lock().is_none() {
            let store = self.place.acquire().expect("it was let go");
            self.open_second(store);
        }
        let second = self.second.lock().clone();
        let second = second.expect("it is open");
        assert!(self.place.acquire().is_none(), "it is open, and let go");
        if self.acts.contains(&Act::Pause) {
            // It is in the file, and the end may have come between the two.
            second.resume().expect("it is done");
        }
        self.settle(&second);
        self.judge();
        self.end(&second);
        self.judge_rest();
        let has_overlap = self.record.has_overlap.load(Ordering::SeqCst);
        assert!(
            !has_overlap || handlers_left > 0,
            "a handler goes on in secret after the end of its queue"
        );
    }

    /// Everything that was acknowledged ends, by itself. If it does not, shuttle says so.
    fn settle(&self, queue: &JobQueue) {
        let jobs = self.acknowledged.lock().clone();
        for id in jobs {
            wait(queue, id);
        }
        self.record.wait_for_handlers();
        if has_outlet(self.acts) {
            self.record.wait_for_deliveries();
        }
    }

    /// Closes a queue, and answers how many handlers it left behind.
    fn end(&self, queue: &JobQueue) -> usize {
        queue.shutdown(SHUTDOWN).ok();
        let report = queue.wait_closed();
        self.judge_end(queue);
        report.handlers_left
    }
}

fn open_queue(
    store: Box<dyn Store>,
    number: usize,
    acts: [Act; 2],
    record: &Arc<Record>,
    clock: &FakeClock,
) -> JobQueue {
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
    let mut builder = builder.retention(retention).clock(clock);
    let job_type = JobType::<Value>::new("job").retry(RetryPolicy::fixed(Duration::ZERO));
    let phase = |name| Phase::<i64>::new(name).timeout(TIMEOUT);
    builder.register(
        job_type
            .phase(phase(PHASES[0]), record.handler(number))
            .phase(phase(PHASES[1]), record.handler(number)),
    );
    let outlet = has_outlet(acts).then(|| record.outlet());
    builder.open_on(store, outlet).expect("it opens")
}

/// Where deliveries are what happens; elsewhere they wait, and there are so many threads less.
pub(super) fn has_outlet(acts: [Act; 2]) -> bool {
    acts.contains(&Act::Delivery) || acts.contains(&Act::Redelivery)
}

fn wait(queue: &JobQueue, id: JobId) {
    match queue.wait(id, WAIT) {
        Ok(job) => assert!(job.status.is_terminal()),
        Err(error) => assert!(
            matches!(error.kind(), ErrorKind::NotFound | ErrorKind::Closed),
            "{error}"
        ),
    }
}

/// No two phases of any jobs have the same.
pub(super) fn result_of(id: JobId, phase_index: u32) -> i64 {
    id.as_i64() * 10 + i64::from(phase_index)
}

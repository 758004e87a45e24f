//! Readers beside a load: whatever they read is the file as it was at one moment, and moments only pass. H9.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::{Value, json};
use stepwell::{
    CancelOutcome, Client, Event, EventKind, Job, JobId, JobQueue, JobStatus, JobType, ListFilter,
    PhaseError, Result, RetryFrom, Stats,
};

use crate::support::{Harness, ONE, TWO, assert_shape, assert_sound, at_once, status_after};

const JOBS: usize = 24;
/// Looks of each reader between whose beginning and end the log grew.
const MOVED: usize = 100;
const READERS: usize = 2;

/// What can be read, of the queue itself and of a client.
trait Reader: Send {
    fn stats(&self) -> Result<Stats>;
    fn list(&self) -> Result<BTreeMap<JobId, (JobStatus, u32)>>;
    fn get(&self, id: JobId) -> Result<Option<Job>>;
    fn events_after(&self, seq: i64) -> Result<Vec<Event>>;
}

macro_rules! reader {
    ($reader:ty) => {
        impl Reader for $reader {
            fn stats(&self) -> Result<Stats> {
                <$reader>::stats(self)
            }
            fn list(&self) -> Result<BTreeMap<JobId, (JobStatus, u32)>> {
                let page = <$reader>::list(self, &ListFilter::new().limit(1000))?;
                let jobs = page.jobs.iter();
                Ok(jobs
                    .map(|job| (job.id, (job.status, job.phases_done)))
                    .collect())
            }
            fn get(&self, id: JobId) -> Result<Option<Job>> {
                <$reader>::get(self, id)
            }
            fn events_after(&self, seq: i64) -> Result<Vec<Event>> {
                <$reader>::events_after(self, seq, 1000)
            }
        }
    };
}
reader!(JobQueue);
reader!(Client);

/// What the log has told up to one of its events: where each job stands, and how many of its phases are done.
#[derive(Default)]
struct Prefix {
    seq: i64,
    jobs: BTreeMap<JobId, (JobStatus, u32)>,
}

impl Prefix {
    fn take(&mut self, event: &Event) {
        assert_eq!(event.seq, self.seq + 1, "no gap, and nothing twice");
        self.seq = event.seq;
        let before = self.jobs.get(&event.job_id).copied();
        let (status, done) = before.map_or((None, 0), |(status, done)| (Some(status), done));
        let Some(status) = status_after(status, event) else {
            panic!("{event:?} at {before:?}");
        };
        let is_new = event.data.get("from") == Some(&"start".into());
        let done = if is_new { 0 } else { done };
        let done = done + u32::from(event.kind == EventKind::PhaseCompleted);
        self.jobs.insert(event.job_id, (status, done));
    }

    /// What is told after it, up to `head`: that it can be read was said by the head.
    fn rest(&self, reader: &dyn Reader, head: i64) -> Vec<Event> {
        let mut rest: Vec<Event> = Vec::new();
        loop {
            let last = rest.last().map_or(self.seq, |event| event.seq);
            if last >= head {
                rest.retain(|event| event.seq <= head);
                return rest;
            }
            let more = reader.events_after(last).unwrap();
            assert!(
                !more.is_empty(),
                "the head is {head}, and nothing comes after {last}"
            );
            rest.extend(more);
        }
    }
}

/// Reads counts, the list and each job, and finds all of it among the states that the file had meanwhile. Answers whether there were
/// several.
fn look(reader: &dyn Reader, prefix: &mut Prefix, ids: &[JobId]) -> bool {
    let stats = reader.stats().unwrap();
    assert!(stats.head_seq >= prefix.seq, "a head that goes back");
    for event in prefix.rest(reader, stats.head_seq) {
        prefix.take(&event);
    }
    for (status, count) in [
        (JobStatus::Pending, stats.pending),
        (JobStatus::Running, stats.running),
        (JobStatus::Completed, stats.completed),
        (JobStatus::Failed, stats.failed),
        (JobStatus::Cancelled, stats.cancelled),
    ] {
        let told = prefix.jobs.values().filter(|job| job.0 == status).count();
        assert_eq!(told as u64, count, "{status} at {}", prefix.seq);
    }
    let listed = reader.list().unwrap();
    let mut jobs = BTreeMap::new();
    for id in ids {
        let job = reader.get(*id).unwrap().expect("it is there");
        assert_shape(&job);
        jobs.insert(*id, (job.status, job.phases_done));
    }
    let head = reader.stats().unwrap().head_seq;

    let mut is_list = prefix.jobs == listed;
    jobs.retain(|id, job| prefix.jobs[id] != *job);
    let (begun, rest) = (prefix.seq, prefix.rest(reader, head));
    for event in &rest {
        prefix.take(event);
        is_list |= prefix.jobs == listed;
        jobs.retain(|id, job| prefix.jobs[id] != *job);
    }
    let meanwhile = format!("at no moment from {begun} to {head}: {rest:#?}");
    assert!(is_list, "the list {listed:?}, {meanwhile}");
    assert!(jobs.is_empty(), "jobs {jobs:?}, {meanwhile}");
    !rest.is_empty()
}

/// 2 readers, the queue and a client, while 24 jobs fail, are cancelled and are tried again.
#[test]
fn what_is_read_during_a_load_is_the_state_of_one_moment() {
    let harness = Harness::new();
    let job_type = JobType::<Value>::new("steps")
        .retry(at_once(2))
        .phase(ONE, |_| Ok(json!("one")))
        .phase(TWO, |cx| match cx.attempt() {
            1 => Err(PhaseError::retry("not yet")),
            _ => Err::<Value, _>(PhaseError::fail("never")),
        });
    let (queue, jobs) = harness.open(job_type);
    let ids = jobs.enqueue_many(&vec![Value::Null; JOBS]).unwrap();
    let done = AtomicUsize::new(0);
    let readers: [Box<dyn Reader>; READERS] = [Box::new(queue.clone()), Box::new(harness.client())];
    std::thread::scope(|scope| {
        for reader in readers {
            let (harness, ids, done) = (&harness, &ids, &done);
            scope.spawn(move || {
                let (mut prefix, mut moved) = (Prefix::default(), 0);
                while moved < MOVED && !harness.left().is_zero() {
                    moved += usize::from(look(&*reader, &mut prefix, ids));
                }
                done.fetch_add(1, Ordering::SeqCst);
                assert_eq!(moved, MOVED, "in time");
            });
        }
        // What they are too late for is told as a conflict.
        for (round, id) in ids.iter().cycle().enumerate() {
            if done.load(Ordering::SeqCst) == READERS || harness.left().is_zero() {
                break;
            }
            if round % 3 == 0 {
                assert_ne!(queue.cancel(*id).unwrap(), CancelOutcome::NotFound);
            }
            let from = [RetryFrom::Failed, RetryFrom::Start][round % 2];
            queue.retry(*id, from).ok();
        }
    });
    queue.pause().unwrap();
    harness.until("nothing is under way", || {
        queue.stats().unwrap().running == 0
    });
    assert_sound(&queue);
}

//! Deliveries under faults: where they go, how they are brought to their end, and the judge of what has come of them.
//!
//! The names S11, W1 and W2 are those of the specification of these proofs.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::park_timeout;
use std::time::{Duration, Instant};

use stepwell::webhook::{Endpoint, WebhookConfig};
use stepwell::{
    CancelOutcome, Client, Delivery, DeliveryQuery, DeliveryRecord, DeliveryStatus, Durability,
    Enqueued, Event, EventKind, Job, JobId, JobQueue, JobStatus, NewJob, Result, Retention,
    RetryFrom,
};

use crate::counters::Counters;
use crate::journal::{self, Journal};
use crate::load::{self, Door};
use crate::receiver::{NEVER, Receipt};

/// What a run must have seen.
pub(crate) const RARE: [&str; 4] = [
    "delivered at the first try",
    "refused, and delivered later",
    "dead letters",
    "accepted, not recorded, and sent again",
];
/// Tells a process where the receiver is.
pub(crate) const PORT: &str = "STEPWELL_FAULTS_RECEIVER";
/// An endpoint of the configuration: of all jobs.
const AUDIT: &str = "/audit";
/// An endpoint that some jobs have of their own.
pub(crate) const OWN: &str = "/own";
/// So often something is tried that is never accepted.
const TRIES: u32 = 3;
/// One call in so many adds jobs with an endpoint of their own.
const HOOKED_ONE_OF: u64 = 3;
const PATIENCE: Duration = Duration::from_secs(30);

/// The port of the receiver, for a process that is told of one.
pub(crate) fn port() -> Option<u16> {
    std::env::var(PORT).ok()?.parse().ok()
}

/// How it is sent: tried again at once, and seldom.
pub(crate) fn hooks() -> WebhookConfig {
    let delays = (0..u64::from(TRIES)).map(|index| Duration::from_millis(4 * index.min(1)));
    WebhookConfig::new()
        .threads(2)
        .delays(delays)
        .jitter(0.0)
        .allow_private("127.0.0.1")
}

/// What is told where.
fn kinds(path: &str) -> &'static [EventKind] {
    match path {
        AUDIT => &[
            EventKind::Created,
            EventKind::PhaseCompleted,
            EventKind::Completed,
        ],
        NEVER => &[EventKind::Completed],
        _ => &[
            EventKind::Created,
            EventKind::Started,
            EventKind::PhaseStarted,
            EventKind::PhaseCompleted,
            EventKind::PhaseFailed,
            EventKind::Retrying,
            EventKind::Interrupted,
            EventKind::Completed,
            EventKind::Failed,
            EventKind::Cancelled,
            EventKind::Deleted,
        ],
    }
}

fn endpoint(port: u16, path: &str) -> Endpoint {
    let url = format!("http://127.0.0.1:{port}{path}");
    let endpoint = Endpoint::new(&url).expect("it is a URL");
    endpoint.events(kinds(path).iter().copied())
}

pub(crate) fn audited(port: u16) -> WebhookConfig {
    hooks().endpoint("audit", endpoint(port, AUDIT))
}

/// Where jobs with endpoints of their own are told of.
pub(crate) fn own(port: u16) -> Endpoint {
    endpoint(port, OWN)
}

pub(crate) fn never(port: u16) -> Endpoint {
    endpoint(port, NEVER)
}

/// Some delivery is not over, or that cannot be read.
pub(crate) fn are_left(queue: &JobQueue) -> bool {
    let pending = DeliveryQuery::new()
        .status(DeliveryStatus::Pending)
        .limit(1);
    let page = queue.deliveries(&pending);
    page.map_or(true, |page| {
        !page.deliveries.is_empty() || page.next.is_some()
    })
}

/// Opens a queue on what is left of a file, and lets all jobs and deliveries end. Answers what was wrong.
pub(crate) fn finish(dir: &Path, durability: Durability, journal: &Arc<Journal>) -> Vec<String> {
    journal.line("P finish");
    let mut builder = JobQueue::builder(dir.join("jobs.db"))
        .workers(load::WORKERS)
        .durability(durability)
        .retention(Retention::forever())
        .webhooks(hooks());
    load::register(&mut builder, journal);
    let queue = match builder.open() {
        Ok(queue) => queue,
        Err(error) => return vec![format!("a queue cannot be opened on it: {error}")],
    };
    journal.line("O finish");
    let mut problems = Vec::new();
    // A process may have ended between a pause and its end.
    problems.extend(queue.resume().err().map(|error| error.to_string()));
    let is_over = || {
        let stats = queue.stats().expect("the queue can be read");
        stats.pending + stats.running == 0 && !are_left(&queue)
    };
    let until = Instant::now() + PATIENCE;
    while !is_over() {
        if Instant::now() > until {
            let pending = DeliveryQuery::new().status(DeliveryStatus::Pending);
            let page = queue.deliveries(&pending).expect("they can be listed");
            let (stats, left) = (queue.stats(), page.deliveries);
            problems.push(format!(
                "W1: not over after {PATIENCE:?}: {stats:?} {left:?}"
            ));
            break;
        }
        park_timeout(Duration::from_millis(2));
    }
    problems.extend(queue.check().expect("the file can be checked"));
    journal.line("H finish");
    let ended = queue.shutdown(PATIENCE);
    journal.line("h finish");
    problems.extend(ended.err().map(|error| error.to_string()));
    problems
}

/// A door through which one call in so many adds jobs that have an endpoint of their own, and writes that down.
pub(crate) struct Hooked<'a> {
    pub(crate) queue: &'a JobQueue,
    pub(crate) journal: &'a Journal,
    pub(crate) port: u16,
    pub(crate) calls: AtomicU64,
}

impl Door for Hooked<'_> {
    fn place(&self) -> &str {
        self.queue.place()
    }

    fn enqueue_all(&self, mut jobs: Vec<NewJob>) -> Result<Vec<Enqueued>> {
        let calls = self.calls.fetch_add(1, Ordering::Relaxed);
        let is_hooked = calls.is_multiple_of(HOOKED_ONE_OF);
        if is_hooked {
            let hook = |job: NewJob| job.webhook(endpoint(self.port, OWN));
            jobs = jobs.into_iter().map(hook).collect();
        }
        let enqueued = self.queue.enqueue_all(jobs)?;
        for new in enqueued.iter().filter(|job| is_hooked && job.is_new) {
            note(self.journal, new.id, OWN);
        }
        Ok(enqueued)
    }

    fn cancel(&self, id: JobId) -> Result<CancelOutcome> {
        self.queue.cancel(id)
    }

    fn retry(&self, id: JobId, from: RetryFrom) -> Result<()> {
        self.queue.retry(id, from)
    }

    fn delete(&self, id: JobId) -> Result<()> {
        self.queue.delete(id)
    }

    fn get(&self, id: JobId) -> Result<Option<Job>> {
        self.queue.get(id)
    }

    fn ids(&self, status: JobStatus, limit: usize) -> Result<Vec<JobId>> {
        self.queue.ids(status, limit)
    }

    fn pending(&self) -> Result<u64> {
        self.queue.pending()
    }
}

/// All deliveries of a file, by the id that receivers see.
pub(crate) fn all(client: &Client) -> BTreeMap<String, DeliveryRecord> {
    let (mut found, mut query) = (BTreeMap::new(), DeliveryQuery::new().limit(1000));
    loop {
        let page = client.deliveries(&query).expect("they can be listed");
        for Delivery { id, webhook_id, .. } in page.deliveries {
            let record = client.delivery(id).expect("it can be read");
            found.insert(webhook_id, record.expect("it is there"));
        }
        let Some(next) = page.next else { return found };
        query = DeliveryQuery::new().limit(1000).after(next);
    }
}

/// A file, and what was received of its deliveries.
pub(crate) struct Judge<'a> {
    client: &'a Client,
    /// By the id that receivers see.
    all: BTreeMap<String, DeliveryRecord>,
    /// What the log tells of, deliveries aside, by number.
    events: BTreeMap<i64, Event>,
    /// In the order in which they came.
    pub(crate) receipts: Vec<Receipt>,
}

impl Judge<'_> {
    pub(crate) fn new<'a>(client: &'a Client, log: &[Event], receipts: Vec<Receipt>) -> Judge<'a> {
        let is_told = |event: &&Event| {
            !matches!(
                event.kind,
                EventKind::WebhookDelivered | EventKind::WebhookFailed
            )
        };
        let told = log.iter().filter(is_told);
        Judge {
            client,
            all: all(client),
            events: told.map(|event| (event.seq, event.clone())).collect(),
            receipts,
        }
    }

    /// Of events that a power cut took back nothing is asked.
    pub(crate) fn forget_what_is_lost(&mut self) {
        let all = &self.all;
        self.receipts
            .retain(|receipt| all.contains_key(&receipt.webhook_id));
    }

    /// What must be so at any time: each event has its deliveries, and nothing came that is not in the file. The journal in `dir` says
    /// which jobs were given endpoints of their own for sure.
    pub(crate) fn at_any_time(&self, dir: &Path) -> Vec<String> {
        let mut problems = Vec::new();
        self.tell_of_their_events(&mut problems);
        self.each_event_once(dir, &mut problems);
        self.is_in_the_file(&mut problems);
        problems
    }

    /// What must be so when everything is over. Each of the tries that came may have been the last thing that a process did which ended
    /// before it could be recorded: `cut_off` of each delivery (W2).
    pub(crate) fn at_the_end(
        &self,
        dir: &Path,
        cut_off: usize,
        counters: &mut Counters,
    ) -> Vec<String> {
        let mut problems = self.at_any_time(dir);
        self.ends(cut_off, counters, &mut problems);
        self.order(&mut problems);
        problems
    }

    /// S11: the bodies are the events.
    fn tell_of_their_events(&self, problems: &mut Vec<String>) {
        for (id, DeliveryRecord { delivery, body, .. }) in &self.all {
            let event = self.events.get(&delivery.id.seq());
            let told: serde_json::Value = serde_json::from_str(body).expect("it is JSON");
            if told["data"] != serde_json::to_value(event).expect("it is JSON") {
                problems.push(format!("S11: {id} is {body}, its event {event:?}"));
            }
        }
    }

    /// S11: each event has one delivery for each endpoint that wanted to know of it, and no other has one.
    fn each_event_once(&self, dir: &Path, problems: &mut Vec<String>) {
        let noted = noted(&dir.join("journal"));
        let endpoints = self.client.endpoints().expect("they can be read");
        let jobs: BTreeSet<JobId> = self.events.values().map(|event| event.job_id).collect();
        let mut told: BTreeMap<(JobId, &str), Vec<i64>> = BTreeMap::new();
        for record in self.all.values() {
            let Delivery {
                id, job_id, url, ..
            } = &record.delivery;
            let place = (*job_id, path_of(url));
            told.entry(place).or_default().push(id.seq());
        }
        for job in jobs {
            for path in [AUDIT, OWN, NEVER] {
                let of_job = self.events.values().filter(|event| event.job_id == job);
                let wanted = of_job.filter(|event| kinds(path).contains(&event.kind));
                let wanted: Vec<i64> = wanted.map(|event| event.seq).collect();
                let mut told = told.remove(&(job, path)).unwrap_or_default();
                told.sort_unstable();
                let must = match path {
                    AUDIT => !endpoints.is_empty(),
                    // Who was not answered may have been given it, or not.
                    _ => noted.contains(&(job, path.to_owned())) || !told.is_empty(),
                };
                if must && told != wanted {
                    problems.push(format!(
                        "S11: job {job}, {path}: told of {told:?}, of {wanted:?} it was to be"
                    ));
                } else if !must && !told.is_empty() {
                    problems.push(format!("S11: job {job}, {path}: told of {told:?}"));
                }
            }
        }
        for ((job, path), told) in told {
            problems.push(format!(
                "S11: job {job} is not in the log, {path}: {told:?}"
            ));
        }
    }

    /// W1: what came is in the outbox, with this body.
    fn is_in_the_file(&self, problems: &mut Vec<String>) {
        for receipt in &self.receipts {
            let record = self.all.get(&receipt.webhook_id);
            let is_it = |record: &DeliveryRecord| {
                record.body == receipt.body && path_of(&record.delivery.url) == receipt.path
            };
            if !record.is_some_and(is_it) {
                problems.push(format!(
                    "W1: this came: {receipt}; in the outbox is {record:?}"
                ));
            }
        }
    }

    /// W1 and W2: how often each has come, against how it ended.
    fn ends(&self, cut_off: usize, counters: &mut Counters, problems: &mut Vec<String>) {
        let mut came: HashMap<&str, Vec<u16>> = HashMap::new();
        for receipt in &self.receipts {
            let statuses = came.entry(&receipt.webhook_id).or_default();
            statuses.push(receipt.status);
        }
        for (id, DeliveryRecord { delivery, .. }) in &self.all {
            let came = came.remove(id.as_str()).unwrap_or_default();
            let is_never = path_of(&delivery.url) == NEVER;
            let wanted = if is_never {
                DeliveryStatus::Failed
            } else {
                DeliveryStatus::Delivered
            };
            if delivery.status != wanted || came.contains(&200) == is_never {
                problems.push(format!("W1: {delivery:?} was answered {came:?}"));
            }
            let (tries, sent) = (delivery.tries as usize, came.len());
            if !(tries..=tries + cut_off).contains(&sent) {
                problems.push(format!("W2: {id} has {tries} tries, and came {sent} times"));
            }
            counters.add(match (delivery.status, sent > tries) {
                (DeliveryStatus::Failed, _) => "dead letters",
                (_, true) => "accepted, not recorded, and sent again",
                (_, false) if tries > 1 => "refused, and delivered later",
                (_, false) => "delivered at the first try",
            });
        }
    }

    /// W1: of one job and one endpoint they come in their order, repetitions aside.
    fn order(&self, problems: &mut Vec<String>) {
        let mut lines: BTreeMap<(JobId, &str), Vec<i64>> = BTreeMap::new();
        let mut known = BTreeSet::new();
        for receipt in &self.receipts {
            let Some(record) = self.all.get(&receipt.webhook_id) else {
                continue;
            };
            if known.insert(&receipt.webhook_id) {
                let line = (record.delivery.job_id, path_of(&record.delivery.url));
                let ids = lines.entry(line).or_default();
                ids.push(record.delivery.id.as_i64());
            }
        }
        for ((job, path), ids) in lines {
            if !ids.is_sorted() {
                problems.push(format!("W1: job {job}, {path}: they came as {ids:?}"));
            }
        }
    }
}

fn path_of(url: &str) -> &str {
    let place = url.splitn(4, '/').nth(3).map_or(0, str::len);
    &url[url.len() - place - 1..]
}

/// Jobs that were acknowledged with an endpoint of their own.
fn noted(journal: &Path) -> BTreeSet<(JobId, String)> {
    let lines = journal::read(journal).into_iter();
    let noted = lines.filter(|words| words[..2] == ["N", "endpoint"]);
    let id = |text: &str| text.parse().expect("the journal has job ids");
    noted
        .map(|words| (id(&words[2]), words[3].clone()))
        .collect()
}

/// Writes down that a job was acknowledged with an endpoint of its own.
pub(crate) fn note(journal: &Journal, id: JobId, path: &str) {
    journal.line(&format!("N endpoint {id} {path}"));
}

/// All events of a file.
pub(crate) fn log(client: &Client) -> Vec<Event> {
    let (mut log, mut last): (Vec<Event>, _) = (Vec::new(), 0);
    loop {
        let events = client.events_after(last, 10_000).expect("it can be read");
        let Some(newest) = events.last() else {
            return log;
        };
        last = newest.seq;
        log.extend(events);
    }
}

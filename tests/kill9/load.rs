//! The mixed load: job types whose handlers write the journal, and callers who ask for everything that can be asked.

use std::path::Path;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::park_timeout;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use stepwell::{
    Builder, CancelOutcome, Client, Durability, Enqueued, ErrorKind, Job, JobId, JobPlan, JobQueue,
    JobStatus, JobType, Keep, ListFilter, NewJob, Phase, PhaseContext, PhaseError, PhaseSpec,
    Result, Retention, RetryFrom, RetryPolicy, StopReason, While,
};

use crate::journal::{Journal, Random, hash};

#[path = "hooks.rs"]
pub(crate) mod hooks;

const A: Phase<Value> = Phase::new("a");
const B: Phase<Value> = Phase::new("b");
const C: Phase<Value> = Phase::new("c");
const SHORT: Phase<Value> = Phase::new("a").timeout(Duration::from_millis(5));

pub(crate) const WORKERS: usize = 8;
/// Job types that callers draw from; some are drawn more often.
const TYPES: [&str; 16] = [
    "one", "one", "three", "three", "three", "flaky", "panicky", "sleepy", "saver", "snoozer",
    "failer", "failer", "victim", "stubborn", "timed", "limited",
];
/// Jobs that may wait before callers stop adding to them.
const PENDING_MAX: u64 = 120;

type Answer = std::result::Result<Value, PhaseError>;

/// A number that no other run of a phase has, in any process; JSON's readers take 53 bits.
fn nonce() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let count = NEXT.fetch_add(1, Ordering::Relaxed);
    let (process, now) = (std::process::id(), stepwell::Timestamp::now());
    hash(format!("{process} {count} {now}").as_bytes()) >> 12
}

/// Runs one phase, and writes down that it started, what it saw of the phases before it, and how it ended.
fn recorded(
    journal: &Journal,
    cx: &PhaseContext<Value>,
    act: impl FnOnce(&PhaseContext<Value>) -> std::result::Result<(), PhaseError>,
) -> Answer {
    let (plan, index) = cx.plan();
    let at = format!("{} {index}", cx.job_id());
    let thread = std::thread::current();
    let worker = thread.name().unwrap_or_default();
    journal.line(&format!("S {at} {worker}"));
    let end = End { journal, at: &at };
    let mut seen = format!("W {at}");
    for phase in &plan[..index] {
        let result = cx.get_json(&phase.name)?;
        seen += &format!(" {}", hash(result.to_string().as_bytes()));
    }
    journal.line(&seen);
    // Of phases that come later there is nothing to be seen, also when they had been completed before a retry from the start.
    for phase in &plan[index..] {
        if let Ok(result) = cx.get_json(&phase.name) {
            journal.line(&format!("X H5: {at} sees {} of {}", result, phase.name));
        }
    }
    act(cx)?;
    let result = result(nonce());
    std::mem::forget(end);
    journal.line(&format!(
        "E {at} ok {}",
        hash(result.to_string().as_bytes())
    ));
    Ok(result)
}

/// A result that no other run has, with all that JSON has to be careful about.
fn result(nonce: u64) -> Value {
    let pad = "x".repeat(usize::try_from(nonce % 200).expect("small"));
    let share = (nonce % 1_000_000) as f64 / 7000.0;
    json!({"nonce": nonce, "pad": pad, "share": share, "text": ["\u{0}\"\\ä\u{1F980}", null, -1]})
}

/// Writes that a phase ended without a result, also when it panics.
struct End<'a> {
    journal: &'a Journal,
    at: &'a str,
}

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.journal.line(&format!("E {} no", self.at));
    }
}

/// Works without looking at its flag.
fn busy(ms: u64) {
    let until = Instant::now() + Duration::from_millis(ms);
    while Instant::now() < until {
        park_timeout(Duration::from_micros(200));
    }
}

fn ms(cx: &PhaseContext<Value>) -> u64 {
    cx.input()["ms"].as_u64().unwrap_or(0)
}

/// Saves its position five times, and goes on from what was saved.
fn save(journal: &Journal, cx: &PhaseContext<Value>) -> std::result::Result<(), PhaseError> {
    let at = format!("{} {}", cx.job_id(), cx.plan().1);
    let saved: u64 = cx.saved()?.unwrap_or(0);
    journal.line(&format!("L {at} {saved}"));
    for position in saved + 1..=5 {
        journal.line(&format!("v {at} {position}"));
        cx.save(&position)?;
        journal.line(&format!("V {at} {position}"));
    }
    Ok(())
}

/// Opens the queue with all types registered.
pub(crate) fn open(
    dir: &Path,
    durability: Durability,
    journal: &Arc<Journal>,
    few: bool,
) -> Result<JobQueue> {
    let retention = Retention::forever();
    let retention = if few {
        journal.line("T completed failed");
        retention
            .completed(Keep::newest(40))
            .failed(Keep::newest(200))
    } else {
        retention
    };
    let mut builder = JobQueue::builder(dir.join("jobs.db"))
        .workers(WORKERS)
        .durability(durability)
        .retention(retention)
        .shutdown_timeout(Duration::from_millis(100));
    register(&mut builder, journal);
    hooks::configure(builder).open()
}

/// Has callbacks write down what they hear. With `panics` one of them panics, once: it must not be called again.
pub(crate) fn listen(queue: &JobQueue, journal: &Arc<Journal>, panics: Option<i64>) -> Result<()> {
    let heard = journal.clone();
    queue.on_event(move |event| {
        if event.seq > 0 {
            let (seq, kind, job) = (event.seq, event.kind, event.job_id);
            heard.line(&format!("e {seq} {kind} {job}"));
        }
    })?;
    let Some(every) = panics else { return Ok(()) };
    let journal = journal.clone();
    queue.on_event(move |event| {
        if event.seq > 0 && event.seq % every == 0 {
            journal.line(&format!("p {}", event.seq));
            panic!("on purpose");
        }
    })
}

pub(crate) fn register(builder: &mut Builder, journal: &Arc<Journal>) {
    let quick = RetryPolicy::fixed(Duration::from_millis(2)).max_attempts(6);
    let phase = |act: fn(&Journal, &PhaseContext<Value>) -> std::result::Result<(), PhaseError>| {
        let journal = journal.clone();
        move |cx: &PhaseContext<Value>| recorded(&journal, cx, |cx| act(&journal, cx))
    };
    let nothing = || phase(|_, _| Ok(()));
    builder.register(JobType::<Value>::new("one").phase(A, nothing()));
    let three = JobType::<Value>::new("three")
        .phase(A, nothing())
        .phase(B, nothing());
    builder.register(three.phase(
        C,
        phase(|_, cx| cx.sleep(Duration::from_millis(ms(cx) / 8))),
    ));
    let flaky = JobType::<Value>::new("flaky")
        .retry(quick.clone())
        .phase(A, nothing());
    let flaky = flaky.phase(
        B,
        phase(|_, cx| match cx.attempt() {
            1 => Err(PhaseError::retry("flaky")),
            2 => Err(PhaseError::retry_after(Duration::from_millis(1), "flaky")),
            _ => Ok(()),
        }),
    );
    builder.register(flaky.phase(C, nothing()));
    let panicky = JobType::<Value>::new("panicky").retry(quick.clone());
    let panicky = panicky.phase(
        A,
        phase(|_, cx| match cx.attempt() {
            1 => panic!("on purpose"),
            _ => Ok(()),
        }),
    );
    builder.register(panicky.phase(B, nothing()));
    let sleepy = JobType::<Value>::new("sleepy").phase(A, nothing());
    builder.register(sleepy.phase(B, phase(|_, cx| cx.sleep(Duration::from_millis(ms(cx))))));
    let saver = JobType::<Value>::new("saver").phase(A, phase(save));
    builder.register(saver.phase(B, phase(save)));
    let snoozer = JobType::<Value>::new("snoozer").phase(A, nothing());
    builder.register(snoozer.phase(
        B,
        phase(|_, cx| {
            if cx.saved::<bool>()?.is_none() {
                cx.save(&true)?;
                return Err(PhaseError::snooze(Duration::from_millis(5)));
            }
            Ok(())
        }),
    ));
    let failer = JobType::<Value>::new("failer").phase(A, nothing());
    builder.register(failer.phase(
        B,
        phase(|_, cx| match ms(cx) % 3 {
            0 => Err(PhaseError::cancel()),
            _ => Err(PhaseError::fail("on purpose")),
        }),
    ));
    let victim = JobType::<Value>::new("victim").phase(A, nothing());
    builder.register(victim.phase(
        B,
        phase(|_, cx| cx.sleep(Duration::from_millis(3 * ms(cx)))),
    ));
    let stubborn = JobType::<Value>::new("stubborn").phase(
        A,
        phase(|_, cx| {
            busy(ms(cx) / 4);
            Ok(())
        }),
    );
    builder.register(stubborn.phase(
        B,
        phase(|_, cx| {
            busy(ms(cx) / 4);
            Ok(())
        }),
    ));
    // Its sleep ends at about the time at which its timeout does.
    let timed = JobType::<Value>::new("timed").retry(quick.clone()).phase(
        SHORT,
        phase(|_, cx| {
            busy(3 + ms(cx) % 4);
            Ok(())
        }),
    );
    builder.register(timed.phase(
        B,
        phase(|journal, cx| {
            if cx.stop_reason() == Some(StopReason::Timeout) {
                journal.line(&format!(
                    "X job {}: the timeout of a phase before stops this one",
                    cx.job_id()
                ));
            }
            Ok(())
        }),
    ));
    let limited = JobType::<Value>::new("limited")
        .concurrency(2)
        .phase(A, nothing());
    builder.register(limited.phase(B, nothing()));
    let plan = |input: &Value| {
        let names = input["phases"].as_array().ok_or("no phases")?;
        let specs = names.iter().filter_map(Value::as_str);
        Ok(JobPlan::new(
            specs.map(|name| PhaseSpec::new(name.to_owned())),
        ))
    };
    builder.register(JobType::<Value>::planned("planned", plan, nothing()));
}

/// The queue itself, or a client in another process.
pub(crate) trait Door: Sync {
    /// The job with the endpoints that are to be told of it.
    fn with_hooks(&self, _tag: &str, job: NewJob) -> Result<NewJob> {
        Ok(job)
    }
    /// What the journal says of an acknowledged cancel: the process that runs the jobs hears of a client's a little later.
    fn place(&self) -> &str;
    fn enqueue_all(&self, jobs: Vec<NewJob>) -> Result<Vec<Enqueued>>;
    fn cancel(&self, id: JobId) -> Result<CancelOutcome>;
    fn retry(&self, id: JobId, from: RetryFrom) -> Result<()>;
    fn delete(&self, id: JobId) -> Result<()>;
    fn get(&self, id: JobId) -> Result<Option<Job>>;
    fn ids(&self, status: JobStatus, limit: usize) -> Result<Vec<JobId>>;
    fn pending(&self) -> Result<u64>;
}

macro_rules! door {
    ($door:ty, $place:literal) => {
        impl Door for $door {
            fn place(&self) -> &str {
                $place
            }
            fn enqueue_all(&self, jobs: Vec<NewJob>) -> Result<Vec<Enqueued>> {
                <$door>::enqueue_all(self, jobs)
            }
            fn cancel(&self, id: JobId) -> Result<CancelOutcome> {
                <$door>::cancel(self, id)
            }
            fn retry(&self, id: JobId, from: RetryFrom) -> Result<()> {
                <$door>::retry(self, id, from)
            }
            fn delete(&self, id: JobId) -> Result<()> {
                <$door>::delete(self, id)
            }
            fn get(&self, id: JobId) -> Result<Option<Job>> {
                <$door>::get(self, id)
            }
            fn ids(&self, status: JobStatus, limit: usize) -> Result<Vec<JobId>> {
                let page = self.list(&ListFilter::new().status(status).limit(limit))?;
                Ok(page.jobs.iter().map(|job| job.id).collect())
            }
            fn pending(&self) -> Result<u64> {
                Ok(self.stats()?.pending)
            }
        }
    };
}
door!(JobQueue, "");
door!(Client, " beside");

/// One caller: asks until it is told to stop, or killed. Each question stands in the journal before it is asked, each answer
/// after it was given.
pub(crate) struct Caller<'a> {
    pub(crate) name: String,
    pub(crate) journal: &'a Journal,
    pub(crate) door: &'a dyn Door,
    pub(crate) random: Random,
    /// Jobs that callers of this process know.
    pub(crate) known: &'a Mutex<Vec<JobId>>,
    pub(crate) stop: &'a AtomicBool,
}

impl Caller<'_> {
    pub(crate) fn run(mut self, jobs_max: u64) {
        let mut asked = 0;
        while !self.stop.load(Ordering::Relaxed) {
            let done = match self.random.below(100) {
                0..60 if asked < jobs_max => {
                    asked += 1;
                    self.enqueue(asked)
                }
                0..75 => self.cancel(),
                75..95 => self.retry(),
                95..97 => self.delete(),
                _ => Ok(()),
            };
            match done {
                Ok(()) => {}
                // The queue is shutting down.
                Err(error) if error.kind() == ErrorKind::Closed => return,
                Err(error) => return self.journal.line(&format!("X {} {error}", self.name)),
            }
            if self.random.is(30) {
                park_timeout(Duration::from_micros(self.random.below(1500)));
            }
        }
    }

    fn enqueue(&mut self, count: u64) -> Result<()> {
        if self.door.pending()? > PENDING_MAX {
            return Ok(());
        }
        let many = if self.random.is(20) { 3 } else { 1 };
        let jobs: Vec<(String, NewJob)> = (0..many)
            .map(|index| {
                self.job(
                    &format!("{}-{count}", self.name),
                    &format!("{index}of{many}"),
                )
            })
            .collect::<Result<_>>()?;
        let (tags, jobs): (Vec<_>, Vec<_>) = jobs.into_iter().unzip();
        for tag in &tags {
            self.journal.line(&format!("Q? {tag}"));
        }
        let enqueued = self.door.enqueue_all(jobs)?;
        for (tag, enqueued) in tags.iter().zip(&enqueued) {
            let new = if enqueued.is_new { "new" } else { "old" };
            self.journal
                .line(&format!("Q! {tag} {} {new}", enqueued.id));
        }
        let ids = enqueued.iter().map(|enqueued| enqueued.id);
        self.known.lock().expect("no caller panics").extend(ids);
        // What was acknowledged can be read at once, unless somebody has deleted it since.
        if self.random.is(10) && self.door.get(enqueued[0].id)?.is_none() {
            self.journal.line(&format!("G {} none", enqueued[0].id));
        }
        Ok(())
    }

    fn job(&mut self, call: &str, member: &str) -> Result<(String, NewJob)> {
        // A key may keep a job out.
        let has_key = self.random.is(15);
        let tag = if has_key {
            format!("{call}-{member}k")
        } else {
            format!("{call}-{member}")
        };
        let job_type = if self.random.is(8) {
            "planned"
        } else {
            self.random.pick(&TYPES).copied().unwrap_or("one")
        };
        let mut input = json!({"tag": tag, "ms": self.random.below(60)});
        if job_type == "planned" {
            let names = ["p", "q", "r", "s"];
            let count = usize::try_from(1 + self.random.below(4)).expect("small");
            input["phases"] = json!(names[..count]);
        }
        let mut job = NewJob::new(job_type, &input)?;
        if self.random.is(15) {
            job = job.delay(Duration::from_millis(self.random.below(80)));
        }
        if self.random.is(15) {
            job = job.priority(i32::try_from(self.random.below(5)).expect("small") - 2);
        }
        if has_key {
            job = job.unique_key(format!("key{}", self.random.below(6)), While::Live);
        }
        let job = self.door.with_hooks(&tag, job)?;
        Ok((tag, job))
    }

    fn cancel(&mut self) -> Result<()> {
        let known = self.known.lock().expect("no caller panics").clone();
        let newest = &known[known.len().saturating_sub(12)..];
        let Some(&id) = self.random.pick(newest) else {
            return Ok(());
        };
        self.journal.line(&format!("C? {id}"));
        let answer = match self.door.cancel(id)? {
            CancelOutcome::Cancelled => "cancelled".to_owned(),
            CancelOutcome::AlreadyFinished(status) => format!("already-{status}"),
            CancelOutcome::NotFound => "none".to_owned(),
        };
        let place = self.door.place();
        self.journal.line(&format!("C! {id} {answer}{place}"));
        if answer == "cancelled" && self.random.is(40) {
            self.retry_of(id)?;
        }
        Ok(())
    }

    fn retry(&mut self) -> Result<()> {
        let status = if self.random.is(50) {
            JobStatus::Failed
        } else {
            JobStatus::Cancelled
        };
        let ids = self.door.ids(status, 8)?;
        match self.random.pick(&ids) {
            Some(&id) => self.retry_of(id),
            None => Ok(()),
        }
    }

    fn retry_of(&mut self, id: JobId) -> Result<()> {
        let (from, name) = if self.random.is(40) {
            (RetryFrom::Start, "start")
        } else {
            (RetryFrom::Failed, "failed")
        };
        self.journal.line(&format!("R? {id} {name}"));
        match self.door.retry(id, from) {
            Ok(()) => self.journal.line(&format!("R! {id} {name} ok")),
            Err(error) if error.kind() == ErrorKind::Conflict => {
                self.journal.line(&format!("R! {id} {name} conflict"))
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {
                self.journal.line(&format!("R! {id} {name} none"))
            }
            Err(error) => return Err(error),
        }
        self.known.lock().expect("no caller panics").push(id);
        Ok(())
    }

    fn delete(&mut self) -> Result<()> {
        let ids = self.door.ids(JobStatus::Completed, 20)?;
        let Some(&id) = ids.last() else { return Ok(()) };
        self.journal.line(&format!("D? {id}"));
        match self.door.delete(id) {
            Ok(()) => self.journal.line(&format!("D! {id}")),
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::Conflict) => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }
}

//! Takes a history through a real queue and the model, step by step, and compares all that can be seen of both after each.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use stepwell::testing::FakeClock;
use stepwell::webhook::Endpoint;
use stepwell::{
    BulkAction, CancelOutcome, Error, ErrorKind, Event, EventKind, JobId, JobQueue, JobStatus,
    NewJob, PhaseName, RetryFrom, Subscription, Timestamp, While,
};
use tempfile::TempDir;

use super::counters::Counters;
use super::kinds::{self, NAMES, Program, VERSIONS, ms_of};
use super::model::{Hold, Model, New, Status};
use super::outbox::{Outbox, Receiver};
use super::stage::{Answer, Order, Stage};
use super::step::{self, Bulk, Config, Hook, Rng, Step};

const START: i64 = 1_800_000_000_000;

pub(crate) type Checked = Result<(), String>;

/// A history that failed: what was wrong in a word, and all that is known.
pub(crate) struct Failure {
    pub(crate) what: String,
    pub(crate) text: String,
}

impl Failure {
    fn new(problem: String, at: &str) -> Failure {
        let what = problem.split([':', '\n']).next().unwrap_or_default();
        let what = what.chars().filter(|c| !c.is_ascii_digit()).collect();
        Failure {
            what,
            text: format!("{at}: {problem}"),
        }
    }
}

pub(crate) struct Drive<'a> {
    pub(crate) config: Config,
    pub(crate) receiver: &'a Receiver,
    pub(crate) counters: &'a mut Counters,
    pub(crate) model: Model,
    pub(crate) outbox: Outbox,
    dir: TempDir,
    file: PathBuf,
    files: usize,
    clock: FakeClock,
    pub(crate) stage: Arc<Stage>,
    pub(crate) queue: JobQueue,
    pub(crate) events: Subscription,
    /// Other subscriptions, and the events before each.
    pub(crate) others: Vec<(Subscription, usize)>,
    /// Every event of this opening.
    pub(crate) log: Vec<Event>,
    pub(crate) seq: i64,
    /// Jobs that this step was about.
    pub(crate) touched: BTreeSet<i64>,
    pub(crate) steps: usize,
    /// How many of the model's new events the outbox knows.
    pub(crate) delivered: usize,
    endpoints: usize,
}

/// The whole history; what was wrong.
pub(crate) fn history(
    config: Config,
    steps: &[Step],
    receiver: &Receiver,
    counters: &mut Counters,
) -> Result<(), Failure> {
    receiver.forget();
    let drive = Drive::new(config, receiver, counters);
    let mut drive = drive.map_err(|problem| Failure::new(problem, "opening"))?;
    let mut done = Ok(());
    for (index, step) in steps.iter().enumerate() {
        let checked = drive.step(step).and_then(|()| drive.settle());
        done = checked.map_err(|problem| Failure::new(problem, &format!("step {index}, {step:?}")));
        if done.is_err() {
            break;
        }
        drive.counters.add("steps");
    }
    let finish = |()| {
        drive
            .finish()
            .map_err(|problem| Failure::new(problem, "at the end"))
    };
    let done = done.and_then(finish);
    drive.stage.clear();
    drive.queue.shutdown(Duration::ZERO).ok();
    done
}

impl<'a> Drive<'a> {
    fn new(
        config: Config,
        receiver: &'a Receiver,
        counters: &'a mut Counters,
    ) -> Result<Self, String> {
        let dir = tempfile::tempdir().map_err(|error| error.to_string())?;
        let clock = FakeClock::new(Timestamp::from_millis(START));
        let stage = Arc::new(Stage::default());
        let file = dir.path().join("0.db");
        let program = Program {
            version: 0,
            has_later: false,
        };
        let mut model = Model::new(START, config.workers, config.keep);
        model.open(program);
        let queue = kinds::open(config, &file, program, &clock, &stage)?;
        let events = queue.subscribe_after(0);
        Ok(Drive {
            config,
            receiver,
            counters,
            model,
            outbox: Outbox::default(),
            dir,
            file,
            files: 0,
            clock,
            stage,
            queue,
            events,
            others: Vec::new(),
            log: Vec::new(),
            seq: 0,
            touched: BTreeSet::new(),
            steps: 0,
            delivered: 0,
            endpoints: 0,
        })
    }

    fn step(&mut self, step: &Step) -> Checked {
        match step {
            Step::Enqueue(jobs) => self.enqueue(jobs),
            Step::Refused(is_name) => self.refused(*is_name),
            Step::Answer(pick, answer) => self.answer(*pick, answer),
            Step::Save(pick, value) => self.save(*pick, *value),
            Step::Cancel(pick) => self.cancel(*pick),
            Step::Retry(pick, from_start) => self.retry(*pick, *from_start),
            Step::Delete(pick) => self.delete(*pick),
            Step::Bulk(bulk) => self.bulk(*bulk),
            Step::Pause(kind, is_paused) => self.pause(*kind, *is_paused),
            Step::Tick(ms) => {
                self.model.now += ms;
                self.model.passed += ms;
                self.clock.advance(ms_of(*ms));
                Ok(())
            }
            Step::Back(ms) => {
                self.counters.add("the clock was set back");
                self.clock.step_back(ms_of(*ms));
                Ok(())
            }
            Step::Forward(ms) => {
                self.counters.add("the clock was set forward");
                self.clock.step_forward(ms_of(*ms));
                self.model.now = self.clock.now().as_millis();
                Ok(())
            }
            Step::Subscribe => {
                if self.others.len() < 3 {
                    let after = self.queue.subscribe_after(self.seq);
                    self.others.push((after, self.log.len()));
                }
                Ok(())
            }
            Step::Restart(seed, leap) if !self.config.in_memory => self.restart(*seed, *leap),
            Step::Crash(seed, leap) if !self.config.in_memory => self.crash(*seed, *leap),
            Step::Restart(..) | Step::Crash(..) => Ok(()),
        }
    }

    // ---- Steps ----

    fn enqueue(&mut self, jobs: &[(New, Option<Hook>)]) -> Checked {
        let new = jobs.iter().map(|(new, hook)| self.new_job(new, *hook));
        let new: Vec<NewJob> = new.collect();
        let enqueued = self.queue.enqueue_all(new).map_err(told)?;
        for ((new, hook), enqueued) in jobs.iter().zip(enqueued) {
            let mut new = new.clone();
            if let Some((_, hold @ Hold::Until(_))) = &mut new.key
                && let Hold::Until(after) = *hold
            {
                *hold = Hold::Until(self.model.now + after);
            }
            let (id, is_new) = self.model.enqueue(&new);
            if is_new && let Some(hook) = hook {
                self.outbox.add(id, *hook);
            }
            if !is_new {
                self.counters.add("a unique key held");
            }
            same(
                "enqueued",
                (enqueued.id.as_i64(), enqueued.is_new),
                (id, is_new),
            )?;
            self.touched.insert(id);
            // The events of one job are told before those of the next are made.
            self.deliver();
        }
        Ok(())
    }

    fn new_job(&mut self, new: &New, hook: Option<Hook>) -> NewJob {
        let mut job = NewJob::new(NAMES[new.kind], &new.input).expect("JSON");
        job = job.priority(new.priority).delay(ms_of(new.delay));
        if let Some(ms) = new.deadline {
            job = job.deadline(ms_of(ms));
        }
        if let Some((key, hold)) = &new.key {
            let hold = match hold {
                Hold::Queued => While::Queued,
                Hold::Live => While::Live,
                Hold::Until(ms) => While::For(ms_of(*ms)),
            };
            job = job.unique_key(key.clone(), hold);
        }
        if let Some(phases) = new.phases {
            job = job.phases(phases.iter().map(|(name, _)| PhaseName::new(*name)));
        }
        if let Some(hook) = hook {
            self.endpoints += 1;
            // Jobs with the same endpoint would share it: its breaker, and its end.
            let url = format!("{}{}?{}", self.receiver.base(), hook.path(), self.endpoints);
            let mut endpoint = Endpoint::new(&url).expect("a URL");
            if hook == Hook::Gone {
                endpoint = endpoint.events([EventKind::Created, EventKind::Deleted]);
            }
            job = job.webhook(endpoint);
        }
        job
    }

    fn refused(&mut self, is_name: bool) -> Checked {
        let bad = if is_name {
            NewJob::new("not a name", &1)
        } else {
            NewJob::new(NAMES[kinds::PLANNED], &1)
        };
        let jobs = vec![NewJob::new("plain", &1).map_err(told)?, bad.map_err(told)?];
        let refused = self.queue.enqueue_all(jobs).map_err(|error| error.kind());
        same("a bad job", refused.map(|_| ()), Err(ErrorKind::InvalidJob))
    }

    fn inside(&self, pick: u64) -> Option<i64> {
        let inside: Vec<i64> = self.model.inside().keys().copied().collect();
        let at = pick.checked_rem(inside.len() as u64)?;
        inside.get(usize::try_from(at).ok()?).copied()
    }

    /// A job that is there, or was, or never was.
    fn any(&self, pick: u64) -> i64 {
        let live: Vec<i64> = self.model.jobs.keys().copied().collect();
        if pick.is_multiple_of(8) || live.is_empty() {
            return 1 + i64::try_from(pick >> 8).unwrap_or(0) % (self.model.last_id + 1);
        }
        // The newest are more interesting.
        let newest = live.len().min(12);
        let at = usize::try_from((pick >> 8) % newest as u64).unwrap_or(0);
        live[live.len() - 1 - at]
    }

    fn answer(&mut self, pick: u64, answer: &Answer) -> Checked {
        let Some(id) = self.inside(pick) else {
            return Ok(());
        };
        if self.model.is_zombie(id) {
            self.counters.add("a late result fenced");
        }
        if matches!(answer, Answer::Panic(_)) {
            self.counters.add("a handler panicked");
        }
        self.touched.insert(id);
        self.model.answer(id, answer);
        self.stage.order(id, Order::Answer(answer.clone()));
        Ok(())
    }

    fn save(&mut self, pick: u64, value: u64) -> Checked {
        let Some(id) = self.inside(pick) else {
            return Ok(());
        };
        self.touched.insert(id);
        let until = Instant::now() + self.config.patience;
        let saved = self.stage.save(id, value.into(), until)?;
        if !saved {
            self.counters.add("a checkpoint refused to a late handler");
        }
        same("saved", saved, self.model.save(id, value.into()))
    }

    fn cancel(&mut self, pick: u64) -> Checked {
        let id = self.any(pick);
        self.touched.insert(id);
        let outcome = self.queue.cancel(JobId::from_i64(id)).map_err(told)?;
        let is_inside = self.model.inside().contains_key(&id) && !self.model.is_zombie(id);
        let expected = match self.model.cancel(id) {
            Ok(()) if is_inside => {
                self.counters.add("cancelled inside a handler");
                CancelOutcome::Cancelled
            }
            Ok(()) => CancelOutcome::Cancelled,
            Err(Some(status)) => CancelOutcome::AlreadyFinished(status_of(status)),
            Err(None) => CancelOutcome::NotFound,
        };
        same("cancel", outcome, expected)
    }

    fn retry(&mut self, pick: u64, from_start: bool) -> Checked {
        let id = self.any(pick);
        self.touched.insert(id);
        let from = if from_start {
            RetryFrom::Start
        } else {
            RetryFrom::Failed
        };
        let done = self.queue.retry(JobId::from_i64(id), from);
        let expected = self.changed(id, |model| model.retry(id, from_start));
        if expected.is_ok() && self.model.is_zombie(id) {
            self.counters
                .add("tried again while the old handler was inside");
        }
        let is_past = |id| {
            self.model.jobs[&id]
                .deadline
                .is_some_and(|at| at <= self.model.now)
        };
        if expected.is_ok() && !is_past(id) {
            // Of two that try again one wins, unless the job has failed for its deadline meanwhile.
            let again = self.queue.retry(JobId::from_i64(id), from);
            let lost = again.is_err_and(|error| error.kind() == ErrorKind::Conflict);
            self.counters.add("a second retry lost");
            same("the second retry lost", lost, true)?;
        }
        same("retry", done.map_err(|error| error.kind()), expected)
    }

    fn delete(&mut self, pick: u64) -> Checked {
        let id = self.any(pick);
        self.touched.insert(id);
        let done = self.queue.delete(JobId::from_i64(id));
        let expected = self.changed(id, |model| model.delete(id, "requested"));
        if expected.is_ok() && self.outbox.has_orphan(&self.model) {
            self.counters.add("a job deleted before its deliveries");
        }
        same("delete", done.map_err(|error| error.kind()), expected)
    }

    fn changed(
        &mut self,
        id: i64,
        change: impl FnOnce(&mut Model) -> bool,
    ) -> Result<(), ErrorKind> {
        if !self.model.jobs.contains_key(&id) {
            return Err(ErrorKind::NotFound);
        }
        if change(&mut self.model) {
            Ok(())
        } else {
            Err(ErrorKind::Conflict)
        }
    }

    fn bulk(&mut self, bulk: Bulk) -> Checked {
        let action = match bulk.action {
            0 => BulkAction::Cancel,
            1 => BulkAction::Retry(RetryFrom::Failed),
            2 => BulkAction::Retry(RetryFrom::Start),
            _ => BulkAction::Delete,
        };
        let kind = bulk.kind.map(|kind| NAMES[kind]);
        let done = self
            .queue
            .bulk(action, JobStatus::ALL[bulk.status], kind, bulk.expect);
        let status = STATUSES[bulk.status];
        let ids = self.model.of(status, bulk.kind);
        let is_allowed = match bulk.action {
            0 => !status.is_over(),
            1 | 2 => matches!(status, Status::Failed | Status::Cancelled),
            _ => status.is_over(),
        };
        let is_refused =
            bulk.expect.is_some_and(|expect| expect != ids.len()) || !is_allowed && !ids.is_empty();
        let expected = if is_refused {
            Err(ErrorKind::Conflict)
        } else {
            Ok(ids.len())
        };
        for id in ids.iter().filter(|_| !is_refused) {
            self.touched.insert(*id);
            match bulk.action {
                0 => self.model.cancel(*id).map_err(|_| "it can be cancelled")?,
                1 | 2 => drop(self.model.retry(*id, bulk.action == 2)),
                _ => drop(self.model.delete(*id, "requested")),
            }
        }
        same("bulk", done.map_err(|error| error.kind()), expected)
    }

    fn pause(&mut self, kind: Option<usize>, is_paused: bool) -> Checked {
        let queue = &self.queue;
        let done = match kind.map(|kind| NAMES[kind]) {
            None if is_paused => queue.pause(),
            None => queue.resume(),
            Some(name) if is_paused => queue.pause_type(name),
            Some(name) => queue.resume_type(name),
        };
        self.model.pause(kind, is_paused);
        done.map_err(told)
    }

    // ---- The end of a process, and the next one ----

    fn restart(&mut self, seed: u64, leap: i64) -> Checked {
        let mut rng = Rng(seed);
        let mut results = BTreeMap::new();
        let has_claim = |id: &&i64| !self.model.is_zombie(**id);
        // One whose claim is over stays: its worker would enter what waits for one.
        for id in self.model.inside().keys().filter(has_claim) {
            match rng.below(12) {
                // It ignores its flag.
                0 => self
                    .counters
                    .add("shut down with a handler that ignores its flag"),
                1..=4 => {
                    let result = step::result(&mut rng);
                    results.insert(*id, result.clone());
                    self.stage.order(*id, Order::AtFlag(Answer::Done(result)));
                }
                _ => self.stage.order(*id, Order::AtFlag(Answer::Stopped)),
            }
        }
        let closed = self
            .queue
            .shutdown(Duration::ZERO)
            .map_err(|error| error.kind());
        let report = self.queue.wait_closed();
        let refused = self
            .queue
            .enqueue("plain", &1)
            .map_err(|error| error.kind());
        same(
            "enqueued in a closed queue",
            refused,
            Err(ErrorKind::Closed),
        )?;
        self.stage.clear();
        let told: BTreeSet<i64> = report.interrupted.iter().map(|id| id.as_i64()).collect();
        let expected = if told.is_empty() {
            Ok(report)
        } else {
            Err(ErrorKind::Timeout)
        };
        // On a slow machine the end may take longer than whoever asked for it waits.
        if !(expected.is_ok() && closed == Err(ErrorKind::Timeout)) {
            same("shutdown", closed, expected)?;
        }
        self.reopen(&mut rng, leap)?;
        // Whose handlers made it in time decides the machine; the log tells.
        results.retain(|id, _| self.first_event_of(*id) == Some(EventKind::PhaseCompleted));
        let interrupted = self.model.shut_down(&results).into_iter().collect();
        same("handlers that were told to stop", told, interrupted)?;
        self.begin();
        Ok(())
    }

    /// What a kill would leave is copied, and opened.
    fn crash(&mut self, seed: u64, leap: i64) -> Checked {
        let inside = self
            .model
            .inside()
            .keys()
            .any(|id| !self.model.is_zombie(*id));
        self.counters.add(if inside {
            "crashed inside a handler"
        } else {
            "crashed"
        });
        let old = self.file.clone();
        self.files += 1;
        self.file = self.dir.path().join(format!("{}.db", self.files));
        // By another process: a descriptor of the file that is closed here would drop the locks that SQLite holds.
        let copies = ["", "-wal", "-owner"].map(|end| {
            let path = |file: &PathBuf| format!("{}{end}", file.display());
            format!("cp '{}' '{}'", path(&old), path(&self.file))
        });
        let copied = Command::new("sh")
            .arg("-ec")
            .arg(copies.join("\n"))
            .status();
        same("copied", copied.is_ok_and(|status| status.success()), true)?;
        self.stage.clear();
        self.queue.shutdown(Duration::ZERO).ok();
        self.reopen(&mut Rng(seed), leap)?;
        self.model.now = self.clock.now().as_millis();
        self.model.crash();
        self.begin();
        Ok(())
    }

    fn reopen(&mut self, rng: &mut Rng, leap: i64) -> Checked {
        self.stage = Arc::new(Stage::default());
        if leap < 0 {
            self.counters.add("the clock was behind after a restart");
        }
        if leap != 0 || !self.config.has_hooks {
            self.clock = FakeClock::new(Timestamp::from_millis(self.model.now + leap));
        }
        let program = Program {
            version: rng.index(VERSIONS.len()),
            has_later: rng.one_in(2),
        };
        if self.config.has_hooks {
            self.receiver.believe(&self.file).map_err(told)?;
        }
        self.queue = kinds::open(self.config, &self.file, program, &self.clock, &self.stage)?;
        self.events = self.queue.subscribe_after(self.seq);
        self.others.clear();
        self.log.clear();
        self.model.open(program);
        let problems = self.queue.check().map_err(told)?;
        same("check", problems, Vec::new())
    }

    fn first_event_of(&self, id: i64) -> Option<EventKind> {
        let events = self
            .queue
            .events_after(self.seq, 10_000)
            .unwrap_or_default();
        let mut events = events.iter().filter(|event| event.job_id.as_i64() == id);
        events.next().map(|event| event.kind)
    }

    fn begin(&mut self) {
        // What the old process wrote, it wrote by the old clock.
        self.deliver();
        // Where the file was, if the clock is behind that.
        self.model.now = self.clock.now().as_millis();
        self.touched.extend(self.model.jobs.keys());
    }

    /// The model's new events go to the outbox.
    pub(crate) fn deliver(&mut self) {
        let from = self.delivered;
        let now = self.model.now;
        for (id, event) in &self.model.events[from..] {
            self.outbox.tell(*id, event, now);
        }
        self.delivered = self.model.events.len();
    }
}

pub(crate) const STATUSES: [Status; 5] = [
    Status::Pending,
    Status::Running,
    Status::Completed,
    Status::Failed,
    Status::Cancelled,
];

fn status_of(status: Status) -> JobStatus {
    JobStatus::ALL[status as usize]
}

pub(crate) fn told(error: Error) -> String {
    format!("{:?}: {error}", error.kind())
}

/// Whether the queue did what the model says.
pub(crate) fn same<T: PartialEq + std::fmt::Debug>(what: &str, found: T, expected: T) -> Checked {
    if found == expected {
        return Ok(());
    }
    Err(format!("{what}: {found:?}, expected {expected:?}"))
}

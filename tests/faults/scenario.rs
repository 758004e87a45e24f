//! What the process does whose I/O fails: short stories, each written down in the journal as it happens.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::thread::park_timeout;
use std::time::{Duration, Instant};

use serde_json::json;
use stepwell::{
    Client, Durability, Error, ErrorKind, JobId, JobQueue, Keep, NewJob, PhaseStatus, Retention,
};

use crate::deliveries;
use crate::journal::Journal;
use crate::load::{self, Door};
use crate::shim::Control;

#[path = "noted.rs"]
mod noted;
#[path = "stories.rs"]
mod stories;

/// One thing that a program does with a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scenario {
    OpenNew,
    OpenExisting,
    Enqueue,
    Bulk,
    OnePhase,
    ThreePhases,
    Retry,
    Cancel,
    Schedule,
    Retention,
    Shutdown,
    Recovery,
    Client,
    Watched,
    Pause,
    Deliver,
}

use Scenario as S;

impl Scenario {
    pub(crate) const ALL: [Scenario; 16] = [
        S::OpenNew,
        S::OpenExisting,
        S::Enqueue,
        S::Bulk,
        S::OnePhase,
        S::ThreePhases,
        S::Retry,
        S::Cancel,
        S::Schedule,
        S::Retention,
        S::Shutdown,
        S::Recovery,
        S::Client,
        S::Watched,
        S::Pause,
        S::Deliver,
    ];

    pub(crate) fn parse(name: &str) -> Scenario {
        let found = Scenario::ALL.into_iter().find(|s| format!("{s:?}") == name);
        found.expect("a scenario has this name")
    }

    /// Opening is a part of it.
    fn opens(self) -> bool {
        matches!(self, S::OpenNew | S::OpenExisting | S::Recovery)
    }

    /// Handlers whose result counts no more are a part of it.
    pub(crate) fn fences(self) -> bool {
        matches!(self, S::Shutdown | S::Cancel | S::Bulk | S::Retry)
    }
}

/// When the fault ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// After one call.
    Once,
    /// When the scenario is over; the same process goes on.
    Lifted,
    /// With the process.
    Never,
}

impl Ending {
    pub(crate) const ALL: [Ending; 3] = [Ending::Once, Ending::Lifted, Ending::Never];

    fn parse(name: &str) -> Ending {
        let found = Ending::ALL.into_iter().find(|e| format!("{e:?}") == name);
        found.expect("an ending has this name")
    }
}

const LONG: Duration = Duration::from_secs(30);
/// What is over when a fault lasts that has no more to say.
const SHORT: Duration = Duration::from_millis(80);
/// How much later than asked a shutdown may end, on a machine that does other things too.
const LATE: Duration = Duration::from_millis(2500);
const KEPT: u64 = 3;

/// The process itself: `template`, or how the fault ends; the scenario; its directory. Never returns.
pub(crate) fn child(told: &str) -> ! {
    let mut told = told.splitn(3, ' ');
    let mut next = || told.next().expect("three words");
    let (how, scenario, dir) = (next(), Scenario::parse(next()), Path::new(next()));
    let journal = Arc::new(Journal::open(&dir.join("journal")));
    exit_on_panic(&journal);
    noted::count(&journal);
    journal.line("P child");
    let mut story = Story {
        scenario,
        dir,
        journal,
        tags: 0,
        is_unreadable: false,
        heard: Arc::default(),
        port: deliveries::port().filter(|_| scenario == S::Deliver),
    };
    if how == "template" {
        story.prepare();
    } else {
        let control = Control::open(dir);
        story.is_unreadable = control.is_unreadable();
        story.run(Ending::parse(how), &control);
    }
    std::process::exit(0)
}

fn exit_on_panic(journal: &Arc<Journal>) {
    let journal = journal.clone();
    std::panic::set_hook(Box::new(move |info| {
        journal.line(&format!("X panic {info}").replace('\n', " "));
        eprintln!("{info}");
        std::process::exit(70);
    }));
}

/// Parts of log lines, and what they tell.
pub(crate) const NOTED: [(&str, &str); 4] = [
    ("the file is opened anew", "commit failed, looked for"),
    ("in doubt is in the file", "commit in doubt, found durable"),
    ("in doubt is not in the file", "commit in doubt, found lost"),
    ("outcomes are lost", "outcomes lost with the process"),
];

struct Story<'a> {
    scenario: Scenario,
    dir: &'a Path,
    journal: Arc<Journal>,
    tags: u64,
    /// Reads fail.
    is_unreadable: bool,
    /// The newest event that a callback has heard of.
    heard: Arc<AtomicI64>,
    /// Where a receiver of deliveries is, if this story has one.
    port: Option<u16>,
}

impl Story<'_> {
    fn open(&self) -> stepwell::Result<JobQueue> {
        let retention = match self.scenario {
            S::Retention => {
                self.journal.line("T completed");
                Retention::forever().completed(Keep::newest(KEPT))
            }
            _ => Retention::forever(),
        };
        let mut builder = JobQueue::builder(self.dir.join("jobs.db"))
            .workers(2)
            .durability(Durability::Full)
            .retention(retention)
            .shutdown_timeout(Duration::from_millis(100));
        if let Some(port) = self.port {
            builder = builder.webhooks(deliveries::audited(port));
        }
        load::register(&mut builder, &self.journal);
        let queue = builder.open()?;
        self.journal.line("O child");
        if self.listens() {
            let heard = self.heard.clone();
            queue.on_event(move |event| heard.store(event.seq, Ordering::SeqCst))?;
        }
        Ok(queue)
    }

    /// What is there before the scenario begins, made without faults.
    fn prepare(&mut self) {
        if self.scenario == S::OpenNew {
            return;
        }
        let queue = self.open().expect("it can be opened");
        let count = match self.scenario {
            S::OpenExisting => 3,
            S::Retention => 10,
            _ => 0,
        };
        for _ in 0..count {
            self.ask(&queue, "one", 0, 0);
        }
        match self.scenario {
            S::Retry => {
                self.ask(&queue, "failer", 1, 0);
            }
            S::Recovery => self.die_inside(&queue),
            _ => {}
        }
        self.until(LONG, || is_over(&queue));
        if self.scenario == S::OpenExisting {
            self.ask(&queue, "three", 0, 20);
        }
        queue.shutdown(LONG).expect("nothing is under way");
    }

    /// Ends this process while a handler is inside.
    fn die_inside(&mut self, queue: &JobQueue) {
        let victim = self.ask(queue, "victim", 20, 0).expect("it is stored");
        self.ask(queue, "three", 8, 0);
        self.until(LONG, || is_inside(queue, victim));
        self.ask(queue, "one", 0, 0);
        std::process::abort();
    }

    fn run(&mut self, ending: Ending, control: &Control) {
        let before = if self.scenario.opens() {
            control.arm();
            self.open()
        } else {
            let queue = self.open();
            if let Err(error) = &queue {
                self.journal
                    .line(&format!("X open without faults: {error}"));
            }
            queue
        };
        match before {
            Ok(queue) => self.act(&queue, ending, control),
            Err(error) => {
                self.typed(&error);
                if ending != Ending::Never {
                    control.lift();
                    self.reopen();
                }
            }
        }
    }

    /// After the fault a queue can be opened in the same process.
    fn reopen(&self) {
        match self.open() {
            Ok(queue) => self.settle(&queue),
            Err(error) => self
                .journal
                .line(&format!("X open after the fault: {error}")),
        }
    }

    fn act(&mut self, queue: &JobQueue, ending: Ending, control: &Control) {
        match self.scenario {
            S::OpenNew | S::OpenExisting | S::Recovery => {}
            S::Enqueue => self.enqueue(queue, control),
            S::Bulk => self.bulk(queue, control),
            S::OnePhase => {
                control.arm();
                self.ask(queue, "one", 0, 0);
            }
            S::ThreePhases => {
                control.arm();
                self.ask(queue, "three", 8, 0);
                self.ask(queue, "saver", 0, 0);
            }
            S::Retry => self.retry(queue, control),
            S::Cancel => self.cancel(queue, control),
            S::Schedule => {
                control.arm();
                self.ask(queue, "three", 8, 25);
                self.ask(queue, "snoozer", 0, 10);
            }
            S::Retention => self.retain(queue, control),
            S::Client => self.beside(control),
            S::Deliver => self.deliver(queue, control),
            S::Watched => return self.watched(queue, ending, control),
            S::Pause => return self.pause(queue, ending, control),
            S::Shutdown => return self.shut_down(queue, control),
        }
        self.end(queue, ending, control);
    }

    fn end(&self, queue: &JobQueue, ending: Ending, control: &Control) {
        self.rest(queue, control);
        if ending == Ending::Never {
            return self.close(queue, Duration::from_millis(100));
        }
        control.lift();
        self.settle(queue);
    }

    /// A client beside the queue goes on after a call that failed.
    fn beside(&mut self, control: &Control) {
        let client = Client::open(self.dir.join("jobs.db")).expect("nothing fails yet");
        control.arm();
        for _ in 0..4 {
            self.ask(&client, "one", 0, 0);
        }
    }

    /// A client has the file open: what a failed commit leaves in the log beside it does not go when the queue opens it anew.
    fn watched(&mut self, queue: &JobQueue, ending: Ending, control: &Control) {
        let client = Client::open(self.dir.join("jobs.db")).expect("nothing fails yet");
        client.stats().expect("nothing fails yet");
        self.enqueue(queue, control);
        self.end(queue, ending, control);
    }

    /// Who was told that the queue is resumed need not ask again.
    fn pause(&mut self, queue: &JobQueue, ending: Ending, control: &Control) {
        control.arm();
        self.ask(queue, "three", 8, 0);
        self.is_done(queue.pause());
        self.ask(queue, "one", 0, 0);
        let is_resumed = self.is_done(queue.resume()) || self.is_done(queue.resume());
        self.rest(queue, control);
        if ending == Ending::Never {
            return self.close(queue, Duration::from_millis(100));
        }
        control.lift();
        if !is_resumed && let Err(error) = queue.resume() {
            self.journal
                .line(&format!("X resume after the fault: {error}"));
        }
        self.settle(queue);
    }

    fn is_done(&self, answer: stepwell::Result<()>) -> bool {
        answer.map_err(|error| self.typed(&error)).is_ok()
    }

    fn enqueue(&mut self, queue: &JobQueue, control: &Control) {
        control.arm();
        for _ in 0..3 {
            self.ask(queue, "one", 0, 0);
        }
        self.ask(queue, "limited", 0, 0);
    }

    fn shut_down(&mut self, queue: &JobQueue, control: &Control) {
        let victim = self.ask(queue, "victim", 8, 0).expect("it is stored");
        self.ask(queue, "three", 8, 0);
        self.ask(queue, "saver", 0, 0);
        self.until(LONG, || is_inside(queue, victim) || is_over(queue));
        control.arm();
        self.close(queue, Duration::from_millis(10));
    }

    /// Waits until nothing is under way, or a fault that lasts has said what it has to say.
    fn rest(&self, queue: &JobQueue, control: &Control) {
        self.until(LONG, || self.is_over(queue) || is_stuck(control));
        if is_stuck(control) {
            let until = Instant::now() + SHORT;
            while Instant::now() < until && !self.is_over(queue) {
                park_timeout(Duration::from_millis(2));
            }
        }
    }

    /// Deliveries, too, if they are a part of it.
    fn is_over(&self, queue: &JobQueue) -> bool {
        is_over(queue) && (self.port.is_none() || !deliveries::are_left(queue))
    }

    /// Callbacks are a part of it.
    fn listens(&self) -> bool {
        self.scenario == S::OnePhase
    }

    /// The fault is over: everything ends by itself.
    fn settle(&self, queue: &JobQueue) {
        let is_small = || queue.stats().is_ok_and(|stats| stats.completed <= KEPT);
        let is_done = || self.is_over(queue) && queue.health().is_good();
        self.until(LONG, || {
            is_done() && (self.scenario != S::Retention || is_small())
        });
        let head = || queue.stats().map_or(0, |stats| stats.head_seq);
        self.until(LONG, || {
            !self.listens() || self.heard.load(Ordering::SeqCst) == head()
        });
        if let Some(problem) = queue.health().poisoned {
            self.journal.line(&format!("X poisoned {problem}"));
        }
        match queue.check() {
            Ok(broken) => broken
                .iter()
                .for_each(|line| self.journal.line(&format!("X check {line}"))),
            Err(error) => self.journal.line(&format!("X check {error}")),
        }
        self.close(queue, LONG);
    }

    fn close(&self, queue: &JobQueue, timeout: Duration) {
        let started = Instant::now();
        self.journal.line("H child");
        match queue.shutdown(timeout) {
            // An outcome that cannot be written counts as a handler that did not end.
            Err(error) if error.kind() != ErrorKind::Timeout => drop(self.typed(&error)),
            _ => {}
        }
        self.journal.line("h child");
        let took = started.elapsed();
        if took > timeout + LATE {
            self.journal
                .line(&format!("X a shutdown of {timeout:?} took {took:?}"));
        }
        if let Some(problem) = queue.health().poisoned {
            self.journal.line(&format!("X poisoned {problem}"));
        }
    }

    /// Adds a job, as a caller who writes everything down.
    fn ask(&mut self, door: &dyn Door, job_type: &str, ms: u64, delay_ms: u64) -> Option<JobId> {
        self.ask_with(door, job_type, ms, |job| match delay_ms {
            0 => job,
            _ => job.delay(Duration::from_millis(delay_ms)),
        })
    }

    fn ask_with(
        &mut self,
        door: &dyn Door,
        job_type: &str,
        ms: u64,
        with: impl FnOnce(NewJob) -> NewJob,
    ) -> Option<JobId> {
        self.tags += 1;
        let tag = format!("p{}-{}", std::process::id(), self.tags);
        let job = NewJob::new(job_type, &json!({"tag": tag, "ms": ms})).expect("it is JSON");
        let job = with(job);
        self.journal.line(&format!("Q? {tag}"));
        match door.enqueue_all(vec![job]) {
            Ok(enqueued) => {
                let id = enqueued[0].id;
                self.journal.line(&format!("Q! {tag} {id} new"));
                Some(id)
            }
            Err(error) => {
                if self.typed(&error) {
                    self.journal.line(&format!("Q- {tag}"));
                }
                None
            }
        }
    }

    /// The error is one that I/O may lead to. Answers whether it says that nothing was changed.
    fn typed(&self, error: &Error) -> bool {
        match error.kind() {
            ErrorKind::Storage | ErrorKind::StorageFull | ErrorKind::Closed => true,
            ErrorKind::OutcomeUnknown => {
                self.journal.line("N outcome unknown");
                false
            }
            // SQLite's word for a read that fails with EIO is that the file is malformed.
            ErrorKind::Corrupt if self.is_unreadable => {
                self.journal.line("N failed read taken for damage");
                true
            }
            kind => {
                self.journal
                    .line(&format!("X an error of kind {kind:?}: {error}"));
                false
            }
        }
    }

    fn until(&self, timeout: Duration, mut is_so: impl FnMut() -> bool) {
        let until = Instant::now() + timeout;
        while !is_so() {
            if Instant::now() > until {
                return self.journal.line(&format!("X not within {timeout:?}"));
            }
            park_timeout(Duration::from_millis(1));
        }
    }
}

fn is_over(queue: &JobQueue) -> bool {
    queue
        .stats()
        .is_ok_and(|stats| stats.pending + stats.running == 0)
}

fn is_stuck(control: &Control) -> bool {
    control.is_lasting() && control.failures() > 0
}

fn is_past(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::NotFound | ErrorKind::Conflict)
}

/// The second phase of a job is under way.
fn is_inside(queue: &JobQueue, id: JobId) -> bool {
    let job = queue.get(id).ok().flatten();
    let phase = job.and_then(|job| job.phases.get(1).map(|phase| phase.status));
    phase == Some(PhaseStatus::Running)
}

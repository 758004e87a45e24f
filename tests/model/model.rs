//! The plain model: what a queue is by its contract, with maps and lists, and nothing else.
//!
//! It is written from what is promised and knows no commits, threads or tables. It predicts for each job its row, phases, errors and
//! events, who is inside a handler and what he sees, and all counts. It does not say in which order events of *different* jobs
//! stand, nor those of a job and of its deliveries.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use serde_json::{Value, json};

use super::kinds::{self, NAMES, Name, Program};

/// A flag that was set is honoured within this, or the worker is replaced.
const GRACE: i64 = 1000;
const ERRORS_KEPT: usize = 50;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Status {
    Pending,
    Running,
    Completed,
    Failed,
    Cancelled,
}

impl Status {
    pub(crate) fn name(self) -> &'static str {
        ["pending", "running", "completed", "failed", "cancelled"][self as usize]
    }

    pub(crate) fn is_over(self) -> bool {
        !matches!(self, Status::Pending | Status::Running)
    }
}

/// A phase that is completed.
#[derive(Clone, Debug)]
pub(crate) struct Done {
    pub(crate) attempt: u32,
    pub(crate) started: i64,
    pub(crate) finished: i64,
    pub(crate) result: Value,
}

#[derive(Clone, Debug)]
pub(crate) struct Job {
    pub(crate) id: i64,
    pub(crate) kind: usize,
    pub(crate) status: Status,
    pub(crate) plan: Vec<Name>,
    pub(crate) input: Value,
    pub(crate) key: Option<String>,
    pub(crate) priority: i32,
    pub(crate) run_at: i64,
    pub(crate) created: i64,
    pub(crate) started: Option<i64>,
    pub(crate) offered: i64,
    pub(crate) finished: Option<i64>,
    pub(crate) deadline: Option<i64>,
    /// From the enqueueing to the first deadline, once that was put off.
    pub(crate) time: Option<i64>,
    pub(crate) attempt: u32,
    /// Tries of the present phase.
    pub(crate) tries: u32,
    pub(crate) crashes: u32,
    pub(crate) done: Vec<Done>,
    pub(crate) saved: Option<Value>,
    pub(crate) errors: Vec<Value>,
    pub(crate) interruption: Option<Value>,
    pub(crate) webhook_sent: bool,
}

impl Job {
    pub(crate) fn phase(&self) -> Option<&'static str> {
        self.plan.get(self.done.len()).map(|phase| phase.0)
    }
}

/// A job that is under way.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Claim {
    pub(crate) number: u64,
    pub(crate) entered: Option<i64>,
    /// What had passed by then.
    pub(crate) began: i64,
}

/// A handler whose claim is over.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Zombie {
    pub(crate) job: i64,
    /// What had passed by then.
    pub(crate) since: i64,
    pub(crate) is_replaced: bool,
}

/// How long a unique key stands for its job.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Hold {
    Queued,
    Live,
    Until(i64),
}

#[derive(Clone, Debug)]
pub(crate) struct New {
    pub(crate) kind: usize,
    pub(crate) input: Value,
    pub(crate) priority: i32,
    pub(crate) delay: i64,
    pub(crate) deadline: Option<i64>,
    pub(crate) key: Option<(String, Hold)>,
    pub(crate) phases: Option<&'static [Name]>,
}

#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Keep {
    /// Failed and cancelled jobs, for so long.
    pub(crate) age: Option<i64>,
    /// Completed jobs, so many.
    pub(crate) count: Option<usize>,
}

pub(crate) struct Model {
    pub(crate) now: i64,
    /// Time, whatever the clock is set to.
    pub(crate) passed: i64,
    pub(crate) jobs: BTreeMap<i64, Job>,
    pub(crate) last_id: i64,
    /// Events since they were taken last: which job, and what.
    pub(crate) events: Vec<(i64, Value)>,
    pub(crate) paused: bool,
    pub(crate) paused_kinds: BTreeSet<usize>,
    /// Handlers that returned too late, in this opening.
    pub(crate) late: u64,
    pub(crate) program: Program,
    pub(crate) keep: Keep,
    pub(crate) keys: BTreeMap<(usize, String), (i64, Hold)>,
    /// Phases that the file knows of types that this program does not register.
    pub(crate) known: BTreeMap<usize, &'static [Name]>,
    pub(crate) claims: BTreeMap<i64, Claim>,
    pub(crate) claim_number: u64,
    pub(crate) ready: VecDeque<(i64, u64)>,
    pub(crate) zombies: Vec<Zombie>,
    /// What each handler who is inside saw.
    pub(crate) inside: BTreeMap<i64, Value>,
    pub(crate) workers: usize,
    pub(crate) free: usize,
}

impl Model {
    pub(crate) fn new(now: i64, workers: usize, keep: Keep) -> Model {
        Model {
            now,
            passed: 0,
            jobs: BTreeMap::new(),
            last_id: 0,
            events: Vec::new(),
            paused: false,
            paused_kinds: BTreeSet::new(),
            late: 0,
            program: Program {
                version: 0,
                has_later: false,
            },
            keep,
            keys: BTreeMap::new(),
            known: BTreeMap::new(),
            claims: BTreeMap::new(),
            claim_number: 0,
            ready: VecDeque::new(),
            zombies: Vec::new(),
            inside: BTreeMap::new(),
            workers,
            free: 0,
        }
    }

    // ---- What is there ----

    pub(crate) fn inside(&self) -> &BTreeMap<i64, Value> {
        &self.inside
    }

    /// Whether a handler is inside whose claim is over.
    pub(crate) fn is_zombie(&self, job: i64) -> bool {
        self.zombies.iter().any(|zombie| zombie.job == job)
    }

    pub(crate) fn abandoned(&self) -> usize {
        self.zombies
            .iter()
            .filter(|zombie| zombie.is_replaced)
            .count()
    }

    pub(crate) fn count(&self, status: Status) -> usize {
        self.jobs
            .values()
            .filter(|job| job.status == status)
            .count()
    }

    pub(crate) fn of(&self, status: Status, kind: Option<usize>) -> Vec<i64> {
        let jobs = self.jobs.values().filter(|job| job.status == status);
        let jobs = jobs.filter(|job| kind.is_none_or(|kind| job.kind == kind));
        jobs.map(|job| job.id).collect()
    }

    // ---- What callers do ----

    /// The id, and whether it is new.
    pub(crate) fn enqueue(&mut self, new: &New) -> (i64, bool) {
        if let Some((key, _)) = &new.key
            && let Some((id, hold)) = self.keys.get(&(new.kind, key.clone()))
            && self.holds(*id, *hold)
        {
            return (*id, false);
        }
        self.last_id += 1;
        let (id, run_at) = (self.last_id, self.now + new.delay);
        let mut deadline = new.deadline;
        let mut plan = self.known.get(&new.kind).copied().unwrap_or_default();
        if kinds::is_registered(new.kind, self.program) {
            deadline = deadline.or(kinds::deadline(new.kind));
            if new.kind == kinds::PLANNED {
                let at = new.input["plan"]
                    .as_u64()
                    .and_then(|at| usize::try_from(at).ok());
                plan = kinds::PLANS[at.expect("a plan")];
            }
        } else if let Some(phases) = new.phases {
            plan = phases;
        }
        let job = Job {
            id,
            kind: new.kind,
            status: Status::Pending,
            plan: plan.to_vec(),
            input: new.input.clone(),
            key: new.key.as_ref().map(|(key, _)| key.clone()),
            priority: new.priority,
            run_at,
            created: self.now,
            started: None,
            offered: 0,
            finished: None,
            deadline: deadline.map(|after| run_at + after),
            time: None,
            attempt: 0,
            tries: 0,
            crashes: 0,
            done: Vec::new(),
            saved: None,
            errors: Vec::new(),
            interruption: None,
            webhook_sent: false,
        };
        self.jobs.insert(id, job);
        if let Some((key, hold)) = &new.key {
            self.keys.insert((new.kind, key.clone()), (id, *hold));
        }
        let data = match (new.priority, run_at > self.now) {
            (0, false) => json!({}),
            (priority, false) => json!({"priority": priority}),
            (priority, true) => json!({"priority": priority, "run_at": run_at}),
        };
        self.tell(id, "job:created", 0, None, data);
        (id, true)
    }

    /// Cancelled, or why not.
    pub(crate) fn cancel(&mut self, id: i64) -> Result<(), Option<Status>> {
        let job = self.jobs.get_mut(&id).ok_or(None)?;
        if job.status.is_over() {
            return Err(Some(job.status));
        }
        (job.status, job.finished) = (Status::Cancelled, Some(self.now));
        let attempt = job.attempt;
        self.end_claim(id);
        self.tell(id, "job:cancelled", attempt, None, json!({}));
        Ok(())
    }

    pub(crate) fn retry(&mut self, id: i64, from_start: bool) -> bool {
        let now = self.now;
        let Some(job) = self.jobs.get_mut(&id) else {
            return false;
        };
        if !matches!(job.status, Status::Failed | Status::Cancelled) {
            return false;
        }
        (job.status, job.run_at, job.started, job.finished) = (Status::Pending, now, None, None);
        (job.attempt, job.tries, job.crashes) = (0, 0, 0);
        (job.interruption, job.webhook_sent) = (None, false);
        // It gets the time that it had at first.
        if let Some(deadline) = job.deadline.filter(|deadline| *deadline <= now) {
            let time = *job.time.get_or_insert((deadline - job.created).max(0));
            job.deadline = Some(now + time);
        }
        if from_start {
            job.done.clear();
            job.saved = None;
        }
        if let Some(key) = job.key.clone().map(|key| (job.kind, key)) {
            self.hold_again(id, key);
        }
        let from = if from_start { "start" } else { "failed" };
        self.tell(
            id,
            "job:retrying",
            0,
            None,
            json!({"reason": "requested", "from": from}),
        );
        true
    }

    fn holds(&self, id: i64, hold: Hold) -> bool {
        let status = self.jobs.get(&id).map(|job| job.status);
        match hold {
            Hold::Queued => status == Some(Status::Pending),
            Hold::Live => status.is_some_and(|status| !status.is_over()),
            Hold::Until(at) => at > self.now,
        }
    }

    /// Its key stands for it again, if another had it since and is over; not if that one is deleted, and the key with it.
    fn hold_again(&mut self, id: i64, key: (usize, String)) {
        if let Some((holder, hold)) = self.keys.get(&key).copied()
            && !matches!(hold, Hold::Until(_))
            && self.jobs.contains_key(&holder)
            && !self.holds(holder, hold)
        {
            self.keys.insert(key, (id, hold));
        }
    }

    pub(crate) fn delete(&mut self, id: i64, reason: &str) -> bool {
        if !self.jobs.get(&id).is_some_and(|job| job.status.is_over()) {
            return false;
        }
        self.jobs.remove(&id);
        let event = json!({"event": "job:deleted", "job_id": id, "at": self.now, "deletedJobId": id, "reason": reason});
        self.events.push((id, event));
        true
    }

    /// What was offered and not entered of what rests is given back.
    pub(crate) fn pause(&mut self, kind: Option<usize>, is_paused: bool) {
        match kind {
            None => self.paused = is_paused,
            Some(kind) if is_paused => drop(self.paused_kinds.insert(kind)),
            Some(kind) => drop(self.paused_kinds.remove(&kind)),
        }
        let waits = |claim: &(&i64, &Claim)| claim.1.entered.is_none();
        let offered: Vec<i64> = self
            .claims
            .iter()
            .filter(waits)
            .map(|(id, _)| *id)
            .collect();
        for id in offered {
            if self.rests(self.jobs[&id].kind) {
                self.claims.remove(&id);
                self.give_back(id, "paused");
            }
        }
    }

    /// A handler saves: whether it could.
    pub(crate) fn save(&mut self, id: i64, value: Value) -> bool {
        if self.is_zombie(id) {
            return false;
        }
        self.jobs.get_mut(&id).expect("it is inside").saved = Some(value);
        true
    }

    // ---- Time, and what happens by itself ----

    /// Everything happens that can, until nothing can.
    pub(crate) fn run(&mut self) {
        while self.enter() || self.time_out() || self.replace_worker() || self.claim() {}
        if let Some(age) = self.keep.age {
            let is_old = |job: &&Job| {
                let is_meant = matches!(job.status, Status::Failed | Status::Cancelled);
                is_meant && job.finished.is_some_and(|at| at + age <= self.now)
            };
            let old: Vec<i64> = self
                .jobs
                .values()
                .filter(is_old)
                .map(|job| job.id)
                .collect();
            for id in old {
                self.delete(id, "retention");
            }
        }
        if let Some(count) = self.keep.count {
            let completed = self
                .jobs
                .values()
                .filter(|job| job.status == Status::Completed);
            let mut ended: Vec<_> = completed.map(|job| (job.finished, job.id)).collect();
            ended.sort_unstable();
            let excess = ended.len().saturating_sub(count);
            for (_, id) in ended.into_iter().take(excess) {
                self.delete(id, "retention");
            }
        }
    }

    pub(crate) fn rests(&self, kind: usize) -> bool {
        self.paused || self.paused_kinds.contains(&kind)
    }

    /// A free worker enters the phase that was offered first.
    fn enter(&mut self) -> bool {
        if self.free == 0 {
            return false;
        }
        while let Some((id, number)) = self.ready.pop_front() {
            let Some(claim) = self.claims.get_mut(&id) else {
                continue;
            };
            if claim.number != number || claim.entered.is_some() {
                continue;
            }
            (claim.entered, claim.began) = (Some(self.now), self.passed);
            self.free -= 1;
            let job = &self.jobs[&id];
            let (phase, results) = (job.phase().expect("a phase to run"), job.done.iter());
            let results: Vec<&Value> = results.map(|done| &done.result).collect();
            let error = job.errors.last();
            let error = error.map(|error| (&error["kind"], &error["attempt"], &error["at"]));
            let timeout = kinds::timeout(job.kind, phase).map(|ms| self.now + ms);
            let deadline = [timeout, job.deadline].into_iter().flatten().min();
            let seen = json!({"phase": phase, "attempt": job.attempt, "input": job.input, "results": results,
                "saved": job.saved, "error": error, "interruption": job.interruption,
                "key": format!("{id}:{phase}"), "deadline": deadline});
            self.inside.insert(id, seen);
            return true;
        }
        false
    }

    /// The first phase whose time is over has failed, and its handler is told. A deadline also passes where no worker is.
    fn time_out(&mut self) -> bool {
        // By how long each is overdue: a timeout knows nothing of a clock that was set.
        let mut due: Option<(i64, bool, i64)> = None;
        for (id, claim) in &self.claims {
            let job = &self.jobs[id];
            let timeout = kinds::timeout(job.kind, job.phase().unwrap_or_default());
            let timeout = timeout.filter(|_| claim.entered.is_some());
            let timeout = timeout.map(|ms| (claim.began + ms - self.passed, true));
            let deadline = job.deadline.map(|at| (at - self.now, false));
            for (left, is_timeout) in [timeout, deadline].into_iter().flatten() {
                if left <= 0 && due.is_none_or(|other| (left, is_timeout, *id) < other) {
                    due = Some((left, is_timeout, *id));
                }
            }
        }
        let Some((_, is_timeout, id)) = due else {
            return false;
        };
        let took = self.passed - self.claims[&id].began;
        self.end_claim(id);
        if is_timeout {
            let message = format!("the phase took longer than its timeout ({took} ms)");
            self.failed(id, ("timeout", &message), None, false);
        } else {
            let message = "the deadline passed before the job was over";
            self.failed(id, ("deadline", message), None, true);
        }
        true
    }

    /// Who does not stop loses his worker.
    fn replace_worker(&mut self) -> bool {
        let is_due =
            |zombie: &&mut Zombie| !zombie.is_replaced && zombie.since + GRACE <= self.passed;
        let Some(zombie) = self.zombies.iter_mut().find(is_due) else {
            return false;
        };
        zombie.is_replaced = true;
        self.free += 1;
        true
    }

    /// The job whose turn it is.
    fn claim(&mut self) -> bool {
        if self.claims.len() >= self.workers || self.paused {
            return false;
        }
        let running = |kind| self.of(Status::Running, Some(kind)).len();
        let may_run = |job: &&Job| {
            job.status == Status::Pending
                && job.run_at <= self.now
                && kinds::is_registered(job.kind, self.program)
                && !self.rests(job.kind)
                && !self.is_zombie(job.id)
                && running(job.kind) < kinds::concurrency(job.kind)
        };
        let due = self.jobs.values().filter(may_run);
        let Some(id) = due.min_by_key(|job| (-i64::from(job.priority), job.run_at, job.id)) else {
            return false;
        };
        let id = id.id;
        self.plan_anew(id);
        let now = self.now;
        let job = self.jobs.get_mut(&id).expect("it waits");
        let (phase, attempt) = (job.phase(), job.attempt);
        if job.deadline.is_some_and(|deadline| deadline <= now) {
            (job.status, job.finished) = (Status::Failed, Some(now));
            let message = "the deadline passed before the job was over";
            job.errors.push(json!({"phase": phase, "attempt": attempt, "at": now, "kind": "deadline", "message": message}));
            self.tell(
                id,
                "job:failed",
                attempt,
                None,
                json!({"kind": "deadline", "message": message}),
            );
            return true;
        }
        (job.status, job.offered) = (Status::Running, now);
        (job.attempt, job.tries) = (attempt + 1, job.tries + 1);
        job.started = job.started.or(Some(now));
        self.claim_number += 1;
        let number = self.claim_number;
        self.claims.insert(
            id,
            Claim {
                number,
                entered: None,
                began: 0,
            },
        );
        self.ready.push_back((id, number));
        self.tell(id, "job:started", attempt + 1, None, json!({}));
        self.tell(id, "job:phase:started", attempt + 1, phase, json!({}));
        true
    }

    // ---- Small things ----

    /// Pending again, as if the try had not been. Answers the try.
    pub(crate) fn uncharge(&mut self, id: i64, run_at: i64) -> u32 {
        let job = self.jobs.get_mut(&id).expect("it was running");
        let attempt = job.attempt;
        (job.status, job.run_at) = (Status::Pending, run_at);
        (job.attempt, job.tries) = (attempt - 1, job.tries.saturating_sub(1));
        attempt
    }

    pub(crate) fn give_back(&mut self, id: i64, reason: &str) {
        let attempt = self.uncharge(id, self.now);
        let phase = self.jobs[&id].phase();
        let data = json!({"reason": reason, "entered": false, "charged": false});
        self.tell(id, "job:interrupted", attempt, phase, data);
    }

    /// Somebody else has decided: a handler that is inside goes on for nothing.
    pub(crate) fn end_claim(&mut self, id: i64) {
        if self
            .claims
            .remove(&id)
            .is_some_and(|claim| claim.entered.is_some())
        {
            self.zombies.push(Zombie {
                job: id,
                since: self.passed,
                is_replaced: false,
            });
        }
    }

    pub(crate) fn tell(
        &mut self,
        id: i64,
        event: &str,
        attempt: u32,
        phase: Option<&str>,
        data: Value,
    ) {
        let mut told = json!({"event": event, "job_id": id, "at": self.now, "job_type": NAMES[self.jobs[&id].kind]});
        if let Some(phase) = phase {
            told["phase"] = json!(phase);
        }
        if attempt > 0 {
            told["attempt"] = json!(attempt);
        }
        let data = data.as_object().expect("an object").clone();
        told.as_object_mut().expect("an object").extend(data);
        self.events.push((id, told));
        let errors = &mut self.jobs.get_mut(&id).expect("it is there").errors;
        errors.drain(..errors.len().saturating_sub(ERRORS_KEPT));
    }
}

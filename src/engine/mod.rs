//! The engine: what a queue is made of, and how it is put together. L3.
//!
//! The parts know little of each other: the committer knows its [`Host`](crate::committer::Host), the pool its
//! [`Desk`], a handler its [`Services`](crate::phase::context::Services). This folder implements the three:
//! `host` says what to commit and acts on what was committed, `desk` runs phases, `services` serves running handlers.

mod claims;
mod desk;
mod ground;
mod health;
mod host;
mod plans;
mod services;
mod state;

use std::collections::{HashSet, VecDeque};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use crate::bus::Bus;
use crate::committer::Committer;
use crate::config::Config;
pub(crate) use crate::engine::ground::Ground;
use crate::engine::health::StoreHealth;
use crate::engine::plans::Replanned;
use crate::error::panic_message;
use crate::error::{Error, ErrorKind, Result};
use crate::event::{Plan, Seq};
use crate::job::{JobId, JobStatus};
use crate::live::{GRACE, Left, LiveTable, Offer};
use crate::outlet::{CLOSE_GRACE, Office, OpenOutlet, Outlet};
use crate::owner::{Owner, Predecessor, Recorder, WakeBell, WakeListener};
use crate::phase::Registry;
use crate::phase::stop::StopReason;
use crate::pool::{Desk, Pool};
use crate::retention::Pruner;
use crate::scheduler::{Backlog, Window};
use crate::store::ops::{Claimable, Op};
use crate::store::outbox::Mail;
use crate::store::view::newest_at;
use crate::store::{Done, Reader};
use crate::sync::{self, JoinHandle, Mutex, Sender, ThreadId, spawn, unbounded};
use crate::time::{Clock, Timestamp};

/// While the file cannot be read; short, since the end of the queue waits for it.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// A running queue.
pub(crate) struct Engine {
    pub(crate) config: Config,
    pub(crate) registry: Registry,
    pub(crate) clock: Clock,
    pub(crate) committer: Committer,
    pub(crate) reader: Arc<dyn Reader>,
    pub(crate) live: LiveTable,
    pub(crate) bus: Bus,
    pub(crate) pool: Pool,
    window: Window,
    /// To the workers; none after they were told to end.
    ready: Mutex<Option<Sender<Offer>>>,
    recorder: Option<Recorder>,
    /// Has us look at what other processes have changed, as they do.
    own_bell: OnceLock<WakeBell>,
    /// Who sends deliveries, if somebody does.
    outlet: OnceLock<Arc<dyn Outlet>>,
    state: Mutex<State>,
    threads: Mutex<Threads>,
    me: Weak<Engine>,
}

/// What decides about claims. Short looks, never with another lock held.
struct State {
    backlog: Backlog,
    pruner: Pruner,
    /// The newest event, and jobs by status, after the last commit.
    head_seq: Seq,
    counts: [i64; 5],
    /// Every registered type, with its number in the file.
    types: Vec<Claimable>,
    /// Those of them that are not paused.
    claimable: Arc<[Claimable]>,
    is_paused: bool,
    paused_types: HashSet<Arc<str>>,
    /// Looks at what is paused: how many were begun, and the number of the one that is believed.
    looks: u64,
    look: u64,
    /// How many had been begun when the present commit was asked for.
    looks_before: u64,
    is_stopping: bool,
    /// The store's last failure, until it works again.
    store_health: StoreHealth,
    /// A due job that cannot be read, or an outcome that was lost, until somebody resumes the queue or a type.
    claim_failure: Option<String>,
    poison: Option<String>,
    /// Jobs whose plan is being made, or not on disk yet.
    planning: HashSet<JobId>,
    /// Those of them that nobody has begun with: their types and inputs.
    unplanned: VecDeque<(JobId, Arc<str>, String)>,
    /// Somebody is making plans.
    is_planning: bool,
    replanned: Replanned,
    /// His thread, once he has begun.
    planner: Option<ThreadId>,
}

#[derive(Default)]
struct Threads {
    committer: Option<JoinHandle<()>>,
    wake: Option<JoinHandle<()>>,
    owner: Option<Owner>,
}

impl Engine {
    /// Opens the store, recovers what a dead process left, and starts the threads. `slot`: where handlers find it.
    pub(crate) fn open(
        config: Config,
        registry: Registry,
        clock: Clock,
        open_outlet: Option<OpenOutlet>,
        slot: &OnceLock<Weak<Engine>>,
    ) -> Result<Arc<Engine>> {
        config.validate()?;
        let began = clock.now();
        let ground = Ground::open(&config, began)?;
        Engine::open_on(ground, began, config, registry, clock, open_outlet, slot)
    }

    /// As [`Engine::open`], on a store that is open.
    pub(crate) fn open_on(
        ground: Ground,
        began: Timestamp,
        config: Config,
        registry: Registry,
        clock: Clock,
        open_outlet: Option<OpenOutlet>,
        slot: &OnceLock<Weak<Engine>>,
    ) -> Result<Arc<Engine>> {
        let Ground {
            store,
            owner,
            predecessor,
            wake,
        } = ground;
        let reader = store.reader();
        if let Some(at) = newest_at(&*reader).filter(|_| !config.trusts_clock) {
            clock.go_on_from(at);
        }
        let now = clock.now();
        if now.since(began) > Duration::from_secs(1) {
            log::warn!(
                "the system's clock is behind what is in the file: the queue goes on from {now}"
            );
        }
        let committer = Committer::new(store, clock.clone());
        let (ready, offered) = unbounded();
        let window = Window::new(config.workers, config.in_flight());
        let pruner = Pruner::new(config.retention.clone(), now);
        let recorder = owner.as_ref().map(Owner::recorder);
        let engine = Arc::new_cyclic(|me| Engine {
            state: Mutex::new(State::new(pruner)),
            threads: Mutex::new(Threads {
                owner,
                ..Threads::default()
            }),
            pool: Pool::new(offered),
            ready: Mutex::new(Some(ready)),
            live: LiveTable::default(),
            bus: Bus::default(),
            me: me.clone(),
            config,
            registry,
            clock,
            committer,
            reader,
            window,
            recorder,
            own_bell: OnceLock::new(),
            outlet: OnceLock::new(),
        });
        // Moved here, so that it is dropped before the engine's lock: the next owner's socket has the same name.
        let listener = wake;
        engine.prepare(predecessor.as_ref())?;
        if let Some(open) = open_outlet {
            engine.open_outlet(open)?;
        }
        // A job that waited in the file may be entered before we return. It is unset: each builder opens once.
        slot.set(engine.me.clone()).ok();
        // Last: once there are threads, the engine goes only by a shutdown.
        if let Err(error) = engine.start(listener) {
            engine.abort();
            return Err(error);
        }
        // What waited in the file before.
        engine.tell_outlet(|outlet| outlet.look());
        Ok(engine)
    }

    /// Everything that must be on disk before the first claim.
    fn prepare(&self, predecessor: Option<&Predecessor>) -> Result<()> {
        let plans = self
            .registry
            .iter()
            .map(|def| (def.name.clone(), def.fixed_plan()))
            .collect();
        self.call(Op::Register(plans))?;
        if let Some(endpoints) = &self.config.endpoints {
            self.call(Op::Mail(Mail::Configure(endpoints.clone())))?;
        }
        let recovered = self.call(Op::Recover(self.recovery(predecessor)))?;
        if let Done::Recovered {
            interrupted,
            failed,
        } = recovered
            && interrupted + failed > 0
        {
            log::info!(
                "{interrupted} jobs of the process before this one are pending again, {failed} have failed"
            );
        }
        // Only now may the evidence go: had we died before, the next process would have needed it.
        if let Some(owner) = &self.threads.lock().owner {
            owner.begin()?;
        }
        self.load_types()?;
        let head = self.reader.head()?;
        self.bus.ring(head.seq);
        let mut state = self.state.lock();
        state.head_seq = head.seq;
        state.counts = head.counts;
        state.backlog.unknown();
        Ok(())
    }

    /// The numbers of the registered types and plans, which never change.
    fn load_types(&self) -> Result<()> {
        let mut types = Vec::new();
        for (job_type, type_id, plan_id) in self.reader.types()? {
            let Some(def) = self.registry.get(&job_type) else {
                continue;
            };
            let plan: Option<Plan> = def.fixed_plan();
            let plan = plan.map(|plan| (plan_id, plan));
            types.push(Claimable {
                type_id,
                job_type,
                plan,
                concurrency: def.concurrency,
            });
        }
        self.state.lock().types = types;
        self.load_pauses()
    }

    /// Reads what is paused. Two may look at the same time, after a commit of ours and for another process: what the later one
    /// has seen stays, whoever is done first.
    pub(crate) fn load_pauses(&self) -> Result<()> {
        let look = self.state.lock().next_look();
        let (is_paused, types) = self.reader.pauses()?;
        let types = types.into_iter().collect();
        self.state.lock().take_pauses(look, is_paused, types);
        Ok(())
    }

    fn start(self: &Arc<Engine>, wake: Option<WakeListener>) -> Result<()> {
        for _ in 0..self.config.workers {
            self.start_worker()?;
        }
        if let Some(wake) = wake {
            let bell = wake.bell().map_err(|error| {
                Error::new(ErrorKind::Storage, "the wake-up socket cannot be used")
                    .with_source(error)
            })?;
            // It is unset: an engine is started once.
            self.own_bell.set(bell).ok();
            let thread = self.thread("stepwell-wake", move |engine| engine.listen(&wake))?;
            self.threads.lock().wake = Some(thread);
        }
        // Last: from now on jobs are claimed.
        let committer = self.thread("stepwell-commit", |engine| engine.committer.run(engine))?;
        self.threads.lock().committer = Some(committer);
        let me = self.me.clone();
        self.clock
            .on_step(move || me.upgrade().map(|engine| engine.committer.ring()).is_some());
        Ok(())
    }

    /// A thread could not be had: those that were started end, and the file is let go. Nothing has been claimed yet.
    fn abort(&self) {
        self.stop_intake();
        self.stop_workers();
        // A bell may have been heard, and its threads been started.
        self.with_outlet(|outlet| outlet.close(CLOSE_GRACE));
        self.stop_threads();
        self.pool.join(|| self.live.inside_count());
        self.close_store();
    }

    fn open_outlet(&self, open: OpenOutlet) -> Result<()> {
        let me = self.me.clone();
        let outlet = open(Office {
            reader: self.reader.clone(),
            clock: self.clock.clone(),
            file_id: self.reader.file_id()?,
            post: Box::new(move |attempted| {
                if let Some(engine) = me.upgrade() {
                    engine.committer.post(Op::Attempted(attempted));
                }
            }),
        });
        let stepped = Arc::downgrade(&outlet);
        self.clock
            .on_step(move || stepped.upgrade().map(|outlet| outlet.look()).is_some());
        // The one that is there is this one.
        self.outlet.set(outlet).ok();
        Ok(())
    }

    /// Tells it that there may be something to send. It may have no thread for that, and must be told again then.
    pub(crate) fn tell_outlet(&self, tell: impl FnOnce(&dyn Outlet)) {
        let again = self.with_outlet(|outlet| {
            tell(outlet);
            outlet.again()
        });
        if let Some(again) = again.flatten() {
            self.committer.ring_before(again.now);
        }
    }

    pub(crate) fn with_outlet<T>(&self, act: impl FnOnce(&dyn Outlet) -> T) -> Option<T> {
        self.outlet.get().map(|outlet| act(&**outlet))
    }

    pub(crate) fn start_worker(&self) -> Result<()> {
        let Some(me) = self.me.upgrade() else {
            return Err(Error::closed());
        };
        self.pool.start(me as Arc<dyn Desk>)
    }

    /// A thread that holds the engine, and poisons it if it ends by a panic.
    fn thread(
        self: &Arc<Engine>,
        name: &'static str,
        run: impl FnOnce(&Engine) + Send + 'static,
    ) -> Result<JoinHandle<()>> {
        let engine = self.clone();
        spawn(name, move || {
            let ran = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| run(&engine)));
            if let Err(panic) = ran {
                engine.poison(name, &panic_message(&*panic));
            }
        })
    }

    /// As [`Engine::call`], for callers from outside: not during the shutdown. A handler that it waits for may go on to the end of its
    /// phase, as if nothing were: what it enqueues is there at the next start.
    pub(crate) fn ask(&self, op: Op) -> Result<Done> {
        if self.is_stopping() && !self.pool.is_own_thread() {
            return Err(Error::closed());
        }
        self.call(op)
    }

    /// Does one operation and answers when it is on disk.
    pub(crate) fn call(&self, op: Op) -> Result<Done> {
        if let Some(poison) = &self.state.lock().poison {
            return Err(Error::new(ErrorKind::Poisoned, poison.clone()));
        }
        self.committer.call(self, op)
    }

    /// A bell that was heard for nothing would be a job that nobody sees, until somebody rings again: so the look is repeated.
    pub(crate) fn follow_bell(&self) {
        let mut has_failed = false;
        while let Err(error) = self.look_outside() {
            if !has_failed {
                log::warn!("what another process has changed cannot be read: {error}");
            }
            has_failed = true;
            if self.is_stopping() {
                return;
            }
            sync::pause(LOOK_AGAIN);
        }
    }

    /// Another process has written to the file: look at what that may have changed.
    fn look_outside(&self) -> Result<()> {
        let looked = self.load_pauses().and_then(|()| {
            let head = self.reader.head()?;
            // Cancelled from outside, and perhaps tried again: the handler must be told.
            for (id, epoch) in self.live.claims() {
                self.stop_if_over(id, epoch)?;
            }
            for id in self.bus.waited_for() {
                if self.reader.status(id)?.is_none_or(JobStatus::is_terminal) {
                    self.bus.is_over(id);
                }
            }
            self.state.lock().saw(&head, self.clock.now());
            self.bus.ring(head.seq);
            Ok(())
        });
        self.give_back_paused();
        self.tell_outlet(|outlet| outlet.look());
        self.committer.ring();
        looked
    }

    pub(crate) fn stop_if_over(&self, id: JobId, epoch: i64) -> Result<()> {
        let is_meant = |(status, claim)| status == JobStatus::Running && claim == epoch;
        if !self.reader.claim(id)?.is_some_and(is_meant) {
            self.end_one(id, epoch, StopReason::Cancelled);
            // A claim may be under way that has not seen the end of this one.
            self.state.lock().backlog.unknown();
        }
        Ok(())
    }

    /// The claim of a job is over by a decision from outside of its handler.
    fn end_claim(&self, id: JobId, reason: StopReason) {
        let now = self.clock.moment();
        let left = self.live.end(id, reason, now);
        self.claim_ended(id, left, now.now);
    }

    /// As [`Engine::end_claim`], for one claim and no later one of the job.
    fn end_one(&self, id: JobId, epoch: i64, reason: StopReason) {
        let now = self.clock.moment();
        let left = self.live.end_claim(id, epoch, reason, now);
        self.claim_ended(id, left, now.now);
    }

    fn claim_ended(&self, id: JobId, left: Left, now: Timestamp) {
        if left == Left::Zombie {
            self.committer.ring_before(now.after(GRACE));
        }
        self.state.lock().backlog.left();
        self.bus.forget(id);
    }

    fn listen(&self, wake: &WakeListener) {
        while wake.wait() == crate::owner::Wake::Rung {
            self.follow_bell();
        }
    }

    /// Has the thread that listens for other processes look at what they have changed. Nobody waits for it.
    fn ring_own_bell(&self) {
        if let Some(bell) = self.own_bell.get() {
            bell.ring();
        }
    }

    /// Offers a phase to the workers.
    fn offer(&self, offer: Offer) {
        // Cloned, so that no lock is held while sending.
        let ready = self.ready.lock().clone();
        if let Some(ready) = ready {
            // Without a receiver the queue is closing, and the job has been given back.
            ready.send(offer).ok();
        }
    }

    // ---- for the shutdown, in its order ----

    /// No new jobs from callers, no claims; jobs under way stop at their next edge.
    pub(crate) fn stop_intake(&self) {
        self.state.lock().is_stopping = true;
    }

    /// Lets the workers end once they have nothing to do.
    pub(crate) fn stop_workers(&self) {
        self.ready.lock().take();
    }

    /// Ends the committer when everything is written, and the thread that listens for other processes.
    pub(crate) fn stop_threads(&self) {
        self.committer.stop();
        let (committer, wake) = {
            let mut threads = self.threads.lock();
            (threads.committer.take(), threads.wake.take())
        };
        if let Some(bell) = self.own_bell.get() {
            bell.stop();
        }
        for thread in [committer, wake].into_iter().flatten() {
            if thread.thread().id() != crate::sync::current_thread() && thread.join().is_err() {
                log::error!("a thread of the queue ended by a panic");
            }
        }
    }

    /// Closes the store and lets the file go.
    pub(crate) fn close_store(&self) {
        self.committer.close_store();
        if let Some(owner) = self.threads.lock().owner.take() {
            owner.release();
        }
    }

    // ---- what is known ----

    pub(crate) fn now(&self) -> Timestamp {
        self.clock.now()
    }

    pub(crate) fn abandoned(&self) -> usize {
        self.live.left_count()
    }

    pub(crate) fn health(&self) -> (Option<String>, Option<String>) {
        let state = self.state.lock();
        (state.poison.clone(), state.failure().cloned())
    }

    pub(crate) fn is_stopping(&self) -> bool {
        self.state.lock().is_stopping
    }

    pub(crate) fn window(&self) -> usize {
        self.window.size()
    }
}

#[cfg(all(test, not(stepwell_shuttle)))]
mod tests;

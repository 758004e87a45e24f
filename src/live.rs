//! The jobs that are under way in this process. L3.
//!
//! # States of a claim
//!
//! | state | meaning | left by |
//! |---|---|---|
//! | offered | its phase is in the ready channel | a worker takes it → entered; its claim ends → gone |
//! | entered | a worker is inside its handler | it returns, its outcome is posted → handed in; its claim ends → zombie |
//! | handed in | its outcome is on its way to the disk | it is committed → offered (next phase) or gone; its claim ends → gone |
//! | zombie | its claim is over (cancelled, timed out, fenced by shutdown), the handler has not returned | the handler returns → gone |
//!
//! A claim may be over without our having been told: another process has cancelled the job, and perhaps tried it again. Then its
//! handler's outcome turns out to be stale, or the job is claimed anew while the old handler is inside; both end here.
//!
//! An [`Offer`] in the channel is only a hint: [`LiveTable::take`] decides whether there is anything to run. So one may stand
//! there twice, or for a claim that is over (a pause took it back), and no harm is done. It names claim and phase, and not the job
//! alone: else a worker that comes upon an old one would enter a later phase before those that have waited for longer. While a job
//! has a zombie it is not claimed again: never two handlers of one job at a time.

mod alarm;
mod zombie;

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use crate::error::Result;
use crate::event::Plan;
use crate::job::{Interruption, JobError, JobId};
use crate::phase::stop::{StopFlag, StopReason};
use crate::phase::{Resolved, TypeDef};
use crate::store::ops::Claimed;
use crate::sync::{Mutex, ThreadId, current_thread};
use crate::time::{Moment, Timestamp};

use crate::transition::{JobRow, Verdict};
pub(crate) use alarm::Alarm;
use alarm::Alarms;
use zombie::{Place, Zombie};
pub(crate) use zombie::{Replace, Returned};

/// Results of earlier phases that are kept in memory for later ones; larger ones are read again.
const RESULT_BYTES_KEPT: usize = 16 * 1024;
/// How long a handler may go on after its flag was set before its worker is replaced.
pub(crate) const GRACE: Duration = Duration::from_secs(1);

/// One claim: what does not change while it lasts.
pub(crate) struct Run {
    pub(crate) def: Arc<TypeDef>,
    pub(crate) plan: Plan,
    pub(crate) input: String,
    pub(crate) last_error: Option<Arc<JobError>>,
    pub(crate) interruption: Option<Arc<Interruption>>,
    /// Timeouts and retry policies, worked out by the first worker that needs them.
    resolved: OnceLock<Result<Resolved>>,
    results: Mutex<HashMap<usize, Arc<str>>>,
}

impl Run {
    pub(crate) fn new(claimed: Claimed, def: Arc<TypeDef>) -> (JobRow, Run) {
        let run = Run {
            def,
            plan: claimed.plan,
            input: claimed.details.input,
            last_error: claimed.details.last_error.map(Arc::new),
            interruption: claimed.details.interruption.map(Arc::new),
            resolved: OnceLock::new(),
            results: Mutex::default(),
        };
        (claimed.row, run)
    }

    /// Calls the user's plan function if the type has one: no lock may be held.
    pub(crate) fn resolved(&self) -> &Result<Resolved> {
        self.resolved.get_or_init(|| self.def.resolve(&self.input))
    }

    pub(crate) fn result(&self, phase_index: usize) -> Option<Arc<str>> {
        self.results.lock().get(&phase_index).cloned()
    }

    pub(crate) fn remember(&self, phase_index: usize, result: &str) {
        if result.len() <= RESULT_BYTES_KEPT && phase_index + 1 < self.plan.len() {
            self.results.lock().insert(phase_index, result.into());
        }
    }
}

/// A phase of a claim; sent to the workers when it may be entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Offer {
    pub(crate) id: JobId,
    epoch: i64,
    phase_index: u32,
}

impl Offer {
    pub(crate) fn of(row: &JobRow) -> Offer {
        Offer {
            id: row.id,
            epoch: row.epoch,
            phase_index: row.phase_index,
        }
    }

    fn claim(self) -> (JobId, i64) {
        (self.id, self.epoch)
    }
}

/// One phase to be run.
pub(crate) struct Task {
    pub(crate) run: Arc<Run>,
    /// The job as it was committed last.
    pub(crate) row: JobRow,
    pub(crate) entered: Moment,
    pub(crate) flag: Arc<StopFlag>,
}

struct Entry {
    run: Arc<Run>,
    row: JobRow,
    entered: Option<Moment>,
    /// Whose thread is, or was last, inside.
    worker: Option<ThreadId>,
    /// Its handler has returned, and its outcome is posted.
    is_handed_in: bool,
    /// What becomes of the job at the timeout of the phase, if it has one.
    on_timeout: Verdict,
    /// Of the phase that is offered or entered: a flag that came too late for one phase must not stop the next.
    flag: Arc<StopFlag>,
}

impl Entry {
    fn is_inside(&self) -> bool {
        self.entered.is_some() && !self.is_handed_in
    }
}

/// A phase whose time is over.
pub(crate) struct Due {
    pub(crate) row: JobRow,
    /// Now, if no worker has been free for it.
    pub(crate) entered: Moment,
    pub(crate) alarm: Alarm,
    /// At a timeout.
    pub(crate) on_timeout: Verdict,
}

#[derive(Default)]
struct State {
    runs: HashMap<JobId, Entry>,
    zombies: HashMap<(JobId, i64), Zombie>,
    alarms: Alarms,
    is_closed: bool,
}

/// Alarms of phases that are over stay until they are due, or until there are this many for each claim.
const ALARMS_OF_A_CLAIM: usize = 4;
const ALARMS_MIN: usize = 256;

impl State {
    fn end(&mut self, entry: Entry, reason: StopReason, now: Moment) -> Left {
        entry.flag.set(reason);
        if !entry.is_inside() {
            return Left::Nothing;
        }
        let zombie = Zombie {
            flag: entry.flag,
            phase_index: entry.row.phase_index,
            has_overstayed: false,
            worker: entry.worker,
            place: Place::Held,
        };
        let claim = (entry.row.id, entry.row.epoch);
        self.zombies.insert(claim, zombie);
        let at = now.after(GRACE).passed;
        self.set_alarm(at, Alarm::Overstayed, Offer::of(&entry.row));
        Left::Zombie
    }

    /// Of the phase that a claim has come to: one that passes while the outcome of a phase is on its way to the disk counts for
    /// the next.
    fn set_deadline(&mut self, row: &JobRow) {
        if let Some(at) = row.deadline {
            self.forget_old_alarms();
            self.alarms.at(at, Offer::of(row));
        }
    }

    fn set_alarm(&mut self, passed: Duration, alarm: Alarm, of: Offer) -> bool {
        self.forget_old_alarms();
        self.alarms.when_passed(passed, alarm, of)
    }

    fn returned(&mut self, id: JobId, epoch: i64) -> Option<Returned> {
        let zombie = self.zombies.remove(&(id, epoch))?;
        let waiting = self.runs.get(&id);
        Some(Returned {
            is_abandoned: zombie.place == Place::Taken,
            awaited_by: waiting.and_then(|entry| {
                let is_offered = entry.entered.is_none();
                is_offered.then(|| Offer::of(&entry.row))
            }),
        })
    }

    /// Claims whose handler is inside.
    fn entered(&self) -> impl Iterator<Item = &Entry> {
        self.runs.values().filter(|entry| entry.is_inside())
    }

    fn left_count(&self) -> usize {
        let zombies = self.zombies.values();
        zombies.filter(|it| it.place != Place::Held).count()
    }

    fn has_zombie(&self, id: JobId) -> bool {
        !self.zombies.is_empty() && self.zombies.keys().any(|(zombie, _)| *zombie == id)
    }

    /// A queue of short phases with long timeouts must not remember all of them.
    fn forget_old_alarms(&mut self) {
        let claims = self.runs.len() + self.zombies.len();
        if self.alarms.len() < ALARMS_MIN.max(claims * ALARMS_OF_A_CLAIM) {
            return;
        }
        let State { runs, zombies, .. } = self;
        self.alarms.retain(|alarm, of| match alarm {
            Alarm::PhaseTimeout | Alarm::Deadline => {
                let entry = runs.get(&of.id);
                entry.is_some_and(|entry| is_of(alarm, of, entry))
            }
            Alarm::Overstayed => zombies.contains_key(&of.claim()),
        });
    }
}

/// Whether an alarm goes for the phase that this claim has come to. A deadline also passes while no worker is in it.
fn is_of(alarm: Alarm, of: Offer, entry: &Entry) -> bool {
    Offer::of(&entry.row) == of && (alarm == Alarm::Deadline || entry.is_inside())
}

/// How a claim that ends left its handler.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub(crate) enum Left {
    /// No handler is inside.
    Nothing,
    /// The handler is still inside.
    Zombie,
}

#[derive(Default)]
pub(crate) struct LiveTable(Mutex<State>);

impl LiveTable {
    pub(crate) fn len(&self) -> usize {
        self.0.lock().runs.len()
    }

    /// A job was claimed, and its deadline counts from now on, if it has one. If a handler of an older claim is still inside, the
    /// new one waits for it.
    pub(crate) fn insert(&self, row: JobRow, run: Run, now: Moment) -> Left {
        let entry = Entry {
            run: Arc::new(run),
            row,
            entered: None,
            worker: None,
            is_handed_in: false,
            on_timeout: Verdict::Fail,
            flag: Arc::default(),
        };
        let mut state = self.0.lock();
        state.set_deadline(&row);
        let Some(older) = state.runs.insert(row.id, entry) else {
            return Left::Nothing;
        };
        state.end(older, StopReason::Cancelled, now)
    }

    /// A phase that was offered, now entered by the caller; nothing when the offer is out of date.
    pub(crate) fn take(&self, offer: Offer, now: Moment) -> Option<Task> {
        let mut state = self.0.lock();
        if state.is_closed || state.has_zombie(offer.id) {
            return None;
        }
        // With its flag set before somebody is inside, its deadline has passed, and that is about to be recorded.
        let may_enter = |entry: &Entry| entry.entered.is_none() && !entry.flag.is_set();
        let entry = state
            .runs
            .get_mut(&offer.id)
            .filter(|entry| Offer::of(&entry.row) == offer && may_enter(entry))?;
        (entry.entered, entry.worker) = (Some(now), Some(current_thread()));
        Some(Task {
            run: entry.run.clone(),
            row: entry.row,
            entered: now,
            flag: entry.flag.clone(),
        })
    }

    /// Sets the timeout of a phase that was entered, and what becomes of the job then; whether it comes before every other one.
    pub(crate) fn set_timeout(&self, task: &Task, timeout: Duration, verdict: Verdict) -> bool {
        let phase = Offer::of(&task.row);
        let at = task.entered.after(timeout).passed;
        let mut state = self.0.lock();
        let entry = state.runs.get_mut(&phase.id);
        if let Some(entry) = entry.filter(|entry| Offer::of(&entry.row) == phase) {
            entry.on_timeout = verdict;
        }
        state.set_alarm(at, Alarm::PhaseTimeout, phase)
    }

    /// The outcome of the entered phase is on disk and the next one may start.
    pub(crate) fn advance(&self, row: &JobRow) -> bool {
        let mut state = self.0.lock();
        let entry = state
            .runs
            .get_mut(&row.id)
            .filter(|entry| entry.row.epoch == row.epoch);
        let Some(entry) = entry else { return false };
        (entry.row, entry.entered, entry.is_handed_in) = (*row, None, false);
        if entry.flag.is_set() {
            // A timeout came up while the outcome was on its way to the disk, and lost.
            entry.flag = Arc::default();
        }
        state.set_deadline(row);
        true
    }

    /// The run of this claim, if it is under way.
    pub(crate) fn get(&self, id: JobId, epoch: i64) -> Option<Arc<Run>> {
        let state = self.0.lock();
        state
            .runs
            .get(&id)
            .filter(|entry| entry.row.epoch == epoch)
            .map(|entry| entry.run.clone())
    }

    /// The handler of this claim has returned, and its outcome is on disk or counts no more: nothing of the claim is left.
    pub(crate) fn finish(&self, id: JobId, epoch: i64) -> Option<Returned> {
        let mut state = self.0.lock();
        let is_meant = |entry: &Entry| entry.row.epoch == epoch;
        if state.runs.get(&id).is_some_and(is_meant) {
            state.runs.remove(&id);
        }
        state.returned(id, epoch)
    }

    /// A handler has returned. If its claim was over, it is gone now.
    pub(crate) fn returned(&self, id: JobId, epoch: i64) -> Option<Returned> {
        self.0.lock().returned(id, epoch)
    }

    /// The outcome of an entered phase was posted: nobody is inside any more. If its claim ended since the handler returned, it is
    /// gone now.
    pub(crate) fn handed_in(&self, phase: Offer) -> Option<Returned> {
        let mut state = self.0.lock();
        // It may be on disk already, and somebody in the next phase, or that one's claim over.
        let entry = state.runs.get_mut(&phase.id);
        if let Some(entry) = entry.filter(|entry| Offer::of(&entry.row) == phase) {
            entry.is_handed_in = entry.entered.is_some();
        }
        let zombie = state.zombies.get(&(phase.id, phase.epoch))?;
        if zombie.phase_index != phase.phase_index {
            return None;
        }
        state.returned(phase.id, phase.epoch)
    }

    /// The claim of a job is over by a decision from outside; its handler, if there is one, is told why.
    pub(crate) fn end(&self, id: JobId, reason: StopReason, now: Moment) -> Left {
        let mut state = self.0.lock();
        match state.runs.remove(&id) {
            Some(entry) => state.end(entry, reason, now),
            None => Left::Nothing,
        }
    }

    /// As [`LiveTable::end`], for one claim and no later one of the same job.
    pub(crate) fn end_claim(&self, id: JobId, epoch: i64, reason: StopReason, now: Moment) -> Left {
        let mut state = self.0.lock();
        let is_meant = |entry: &Entry| entry.row.epoch == epoch;
        if !state.runs.get(&id).is_some_and(is_meant) {
            return Left::Nothing;
        }
        match state.runs.remove(&id) {
            Some(entry) => state.end(entry, reason, now),
            None => Left::Nothing,
        }
    }

    /// Nothing is entered any more.
    pub(crate) fn close(&self) {
        self.0.lock().is_closed = true;
    }

    /// Takes back what no worker has entered yet.
    pub(crate) fn take_back(&self, is_wanted: impl Fn(&Run) -> bool) -> Vec<JobRow> {
        let mut state = self.0.lock();
        let offered: Vec<JobRow> = state
            .runs
            .values()
            .filter(|entry| entry.entered.is_none() && is_wanted(&entry.run))
            .map(|entry| entry.row)
            .collect();
        for row in &offered {
            state.runs.remove(&row.id);
        }
        offered
    }

    /// Every job whose handler is inside, with since when.
    pub(crate) fn inside(&self) -> Vec<(JobRow, Timestamp)> {
        let state = self.0.lock();
        let since = |entry: &Entry| Some((entry.row, entry.entered?.now));
        state.entered().filter_map(since).collect()
    }

    /// Jobs whose handler has returned and whose outcome is not on disk.
    pub(crate) fn unrecorded(&self) -> Vec<JobId> {
        let state = self.0.lock();
        let posted = state.runs.values().filter(|entry| entry.is_handed_in);
        posted.map(|entry| entry.row.id).collect()
    }

    /// Whether somebody may still return soon, or be entered: all but handlers that have overstayed, and those in these threads.
    pub(crate) fn has_others(&self, threads: &[ThreadId]) -> bool {
        let state = self.0.lock();
        let is_one = |worker: Option<ThreadId>| worker.is_some_and(|it| threads.contains(&it));
        let mut claims = state.runs.values();
        let mut told = state.zombies.values().filter(|told| !told.has_overstayed);
        claims.any(|entry| !(entry.is_inside() && is_one(entry.worker)))
            || told.any(|zombie| !is_one(zombie.worker))
    }

    /// The claims that are under way: jobs and epochs.
    pub(crate) fn claims(&self) -> Vec<(JobId, i64)> {
        let state = self.0.lock();
        let claims = state
            .runs
            .values()
            .map(|entry| (entry.row.id, entry.row.epoch));
        claims.collect()
    }

    pub(crate) fn is_under_way(&self, id: JobId) -> bool {
        self.0.lock().runs.contains_key(&id)
    }

    pub(crate) fn zombies(&self) -> HashSet<JobId> {
        self.0.lock().zombies.keys().map(|(id, _)| *id).collect()
    }

    /// The alarms that were due by `now`: phases whose time is over, whose handlers are told, and jobs whose handler has overstayed
    /// since.
    pub(crate) fn due(&self, now: Moment) -> (Vec<Due>, Vec<(JobId, i64)>) {
        let mut state = self.0.lock();
        let State {
            runs,
            zombies,
            alarms,
            ..
        } = &mut *state;
        let (mut due, mut overstayed) = (Vec::new(), Vec::new());
        for (alarm, of) in alarms.due(now) {
            match alarm {
                Alarm::PhaseTimeout | Alarm::Deadline => {
                    let entry = runs.get(&of.id);
                    if let Some(entry) = entry.filter(|entry| is_of(alarm, of, entry)) {
                        entry.flag.set(StopReason::Timeout);
                        due.push(Due {
                            row: entry.row,
                            entered: entry.entered.unwrap_or(now),
                            alarm,
                            on_timeout: entry.on_timeout,
                        });
                    }
                }
                Alarm::Overstayed => {
                    if let Some(zombie) = zombies.get_mut(&of.claim()) {
                        zombie.has_overstayed = true;
                        overstayed.push(of.claim());
                    }
                }
            }
        }
        (due, overstayed)
    }

    /// The worker of a handler that overstays is to be replaced, as long as fewer than `max` are.
    pub(crate) fn replace(&self, id: JobId, epoch: i64, max: usize) -> Replace {
        let mut state = self.0.lock();
        let is_full = state.left_count() >= max;
        let zombie = state.zombies.get_mut(&(id, epoch));
        match zombie.filter(|zombie| zombie.place == Place::Held) {
            None => Replace::No,
            Some(_) if is_full => Replace::TooMany,
            Some(zombie) => {
                zombie.place = Place::Wanted;
                Replace::Begin
            }
        }
    }

    /// It was replaced, and ends when the handler returns: false when that has, and its worker has gone on.
    pub(crate) fn replaced(&self, id: JobId, epoch: i64) -> bool {
        let mut state = self.0.lock();
        let zombie = state.zombies.get_mut(&(id, epoch));
        zombie.map(|zombie| zombie.place = Place::Taken).is_some()
    }

    /// It could not be replaced: it goes on when the handler returns, or is to be replaced at `again`.
    pub(crate) fn keep(&self, id: JobId, epoch: i64, again: Moment) {
        let mut state = self.0.lock();
        let Some(zombie) = state.zombies.get_mut(&(id, epoch)) else {
            return;
        };
        zombie.place = Place::Held;
        let phase_index = 0;
        let of = Offer {
            id,
            epoch,
            phase_index,
        };
        state.set_alarm(again.passed, Alarm::Overstayed, of);
    }

    /// Handlers that have overstayed and whose workers were replaced, or are being.
    pub(crate) fn left_count(&self) -> usize {
        self.0.lock().left_count()
    }

    /// A handler that has overstayed and whose worker was not replaced.
    pub(crate) fn overstayed(&self) -> Option<(JobId, i64)> {
        let state = self.0.lock();
        let is_left = |zombie: &Zombie| zombie.has_overstayed && zombie.place == Place::Held;
        let mut left = state.zombies.iter().filter(|(_, zombie)| is_left(zombie));
        left.next().map(|(claim, _)| *claim)
    }

    /// When the next alarm is due, as it looks now.
    pub(crate) fn next_alarm(&self, now: Moment) -> Option<Timestamp> {
        self.0.lock().alarms.next(now)
    }

    /// How many handlers are inside, their claims over or not.
    pub(crate) fn inside_count(&self) -> usize {
        let state = self.0.lock();
        state.zombies.len() + state.entered().count()
    }

    /// The flags of all handlers that are inside, their claim over or not, and the jobs of those whose claim is not.
    pub(crate) fn flags(&self) -> (Vec<Arc<StopFlag>>, Vec<JobId>) {
        let state = self.0.lock();
        let (mut flags, ids): (Vec<_>, Vec<_>) = state
            .entered()
            .map(|entry| (entry.flag.clone(), entry.row.id))
            .unzip();
        flags.extend(state.zombies.values().map(|zombie| zombie.flag.clone()));
        (flags, ids)
    }
}

#[cfg(test)]
mod tests;

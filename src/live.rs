//! The jobs that are under way in this process. L3.
//!
//! # States of a claim
//!
//! | state | meaning | left by |
//! |---|---|---|
//! | offered | its id is in the ready channel | a worker takes it → entered; its claim ends → gone |
//! | entered | a worker is inside its handler | the outcome is committed → offered (next phase) or gone; its claim ends → zombie |
//! | zombie | its claim is over (cancelled, timed out, fenced by shutdown), the handler has not returned | the handler returns → gone |
//!
//! An id in the channel is only a hint: [`LiveTable::take`] decides whether there is anything to run. So an id may stand in
//! the channel twice, or for a claim that is over, and no harm is done. While a job has a zombie it is not claimed again: never
//! two handlers of one job at a time.

use std::collections::{BinaryHeap, HashMap, HashSet};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use crate::error::Result;
use crate::event::Plan;
use crate::job::{Interruption, JobError, JobId};
use crate::phase::context::{StopFlag, StopReason};
use crate::phase::{Resolved, TypeDef};
use crate::store::ops::Claimed;
use crate::sync::Mutex;
use crate::time::Timestamp;
use crate::transition::JobRow;

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

/// One phase to be run.
pub(crate) struct Task {
    pub(crate) run: Arc<Run>,
    /// The job as it was committed last.
    pub(crate) row: JobRow,
    pub(crate) entered_at: Timestamp,
    pub(crate) flag: Arc<StopFlag>,
}

struct Entry {
    run: Arc<Run>,
    row: JobRow,
    entered_at: Option<Timestamp>,
    /// Of the phase that is offered or entered: a flag that came too late for one phase must not stop the next.
    flag: Arc<StopFlag>,
}

/// What comes due while a handler runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Alarm {
    /// The phase has taken too long.
    PhaseTimeout,
    /// The job has taken too long.
    Deadline,
    /// A handler did not stop when it was told to.
    Overstayed,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Timer {
    // A heap gives the greatest first.
    at: std::cmp::Reverse<Timestamp>,
    id: JobId,
    epoch: i64,
    phase_index: u32,
    alarm: Alarm,
}

/// A handler whose time is over.
pub(crate) struct Due {
    pub(crate) run: Arc<Run>,
    pub(crate) row: JobRow,
    pub(crate) entered_at: Timestamp,
    pub(crate) flag: Arc<StopFlag>,
    pub(crate) alarm: Alarm,
}

#[derive(Default)]
struct State {
    runs: HashMap<JobId, Entry>,
    zombies: HashMap<(JobId, i64), Zombie>,
    timers: BinaryHeap<Timer>,
}

struct Zombie {
    flag: Arc<StopFlag>,
    /// Its worker was replaced.
    is_abandoned: bool,
}

/// How a claim that ends left its handler.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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

    pub(crate) fn insert(&self, row: JobRow, run: Run) {
        self.0.lock().runs.insert(
            row.id,
            Entry {
                run: Arc::new(run),
                row,
                entered_at: None,
                flag: Arc::default(),
            },
        );
    }

    /// The phase that a job offers, now entered by the caller; nothing when the hint is out of date.
    pub(crate) fn take(&self, id: JobId, now: Timestamp) -> Option<Task> {
        let mut state = self.0.lock();
        let entry = state
            .runs
            .get_mut(&id)
            .filter(|entry| entry.entered_at.is_none())?;
        entry.entered_at = Some(now);
        Some(Task {
            run: entry.run.clone(),
            row: entry.row,
            entered_at: now,
            flag: entry.flag.clone(),
        })
    }

    /// Sets an alarm for a phase that was entered; the answer is the earliest alarm of all, if it is this one.
    pub(crate) fn set_alarm(&self, task: &Task, at: Timestamp, alarm: Alarm) -> Option<Timestamp> {
        let mut state = self.0.lock();
        let (id, epoch, phase_index) = (task.row.id, task.row.epoch, task.row.phase_index);
        let earliest = state.timers.peek().map(|timer| timer.at.0);
        state.timers.push(Timer {
            at: std::cmp::Reverse(at),
            id,
            epoch,
            phase_index,
            alarm,
        });
        earliest.is_none_or(|earliest| at < earliest).then_some(at)
    }

    /// The outcome of the entered phase is on disk and the next one may start.
    pub(crate) fn advance(&self, row: &JobRow) -> bool {
        let mut state = self.0.lock();
        let entry = state
            .runs
            .get_mut(&row.id)
            .filter(|entry| entry.row.epoch == row.epoch);
        let Some(entry) = entry else { return false };
        (entry.row, entry.entered_at) = (*row, None);
        if entry.flag.is_set() {
            // A timeout came up while the outcome was on its way to the disk, and lost.
            entry.flag = Arc::default();
        }
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

    /// The handler of this claim has returned and its outcome is on disk: nothing of the claim is left.
    pub(crate) fn finish(&self, id: JobId, epoch: i64) {
        let mut state = self.0.lock();
        if state
            .runs
            .get(&id)
            .is_some_and(|entry| entry.row.epoch == epoch)
        {
            state.runs.remove(&id);
        }
    }

    /// A handler has returned. If its claim was over, it is gone now; true when its worker had been replaced.
    pub(crate) fn returned(&self, id: JobId, epoch: i64) -> Option<bool> {
        self.0
            .lock()
            .zombies
            .remove(&(id, epoch))
            .map(|zombie| zombie.is_abandoned)
    }

    /// The claim of a job is over by a decision from outside; its handler, if there is one, is told why.
    pub(crate) fn end(&self, id: JobId, reason: StopReason, now: Timestamp) -> Left {
        let mut state = self.0.lock();
        let Some(entry) = state.runs.remove(&id) else {
            return Left::Nothing;
        };
        entry.flag.set(reason);
        if entry.entered_at.is_none() {
            return Left::Nothing;
        }
        let key = (id, entry.row.epoch);
        state.zombies.insert(
            key,
            Zombie {
                flag: entry.flag,
                is_abandoned: false,
            },
        );
        let at = std::cmp::Reverse(now.after(GRACE));
        let alarm = Alarm::Overstayed;
        state.timers.push(Timer {
            at,
            id,
            epoch: key.1,
            phase_index: entry.row.phase_index,
            alarm,
        });
        Left::Zombie
    }

    /// Takes back what no worker has entered yet.
    pub(crate) fn take_back(&self, is_wanted: impl Fn(&Run) -> bool) -> Vec<JobRow> {
        let mut state = self.0.lock();
        let offered: Vec<JobRow> = state
            .runs
            .values()
            .filter(|entry| entry.entered_at.is_none() && is_wanted(&entry.run))
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
        let entered = state
            .runs
            .values()
            .filter_map(|entry| Some((entry.row, entry.entered_at?)));
        entered.collect()
    }

    pub(crate) fn ids(&self) -> Vec<JobId> {
        self.0.lock().runs.keys().copied().collect()
    }

    pub(crate) fn zombies(&self) -> HashSet<JobId> {
        self.0.lock().zombies.keys().map(|(id, _)| *id).collect()
    }

    /// The alarms that were due by `now`: handlers whose time is over, and jobs whose handler has overstayed since.
    pub(crate) fn due(&self, now: Timestamp) -> (Vec<Due>, Vec<JobId>) {
        let mut state = self.0.lock();
        let State {
            runs,
            zombies,
            timers,
        } = &mut *state;
        let (mut due, mut overstayed) = (Vec::new(), Vec::new());
        while let Some(timer) = timers.peek().copied().filter(|timer| timer.at.0 <= now) {
            timers.pop();
            match timer.alarm {
                Alarm::PhaseTimeout | Alarm::Deadline => {
                    let is_meant = |entry: &&Entry| {
                        (entry.row.epoch, entry.row.phase_index) == (timer.epoch, timer.phase_index)
                    };
                    if let Some(entry) = runs.get(&timer.id).filter(is_meant)
                        && let Some(entered_at) = entry.entered_at
                    {
                        due.push(Due {
                            run: entry.run.clone(),
                            row: entry.row,
                            entered_at,
                            flag: entry.flag.clone(),
                            alarm: timer.alarm,
                        });
                    }
                }
                Alarm::Overstayed => {
                    if let Some(zombie) = zombies.get_mut(&(timer.id, timer.epoch)) {
                        zombie.is_abandoned = true;
                        overstayed.push(timer.id);
                    }
                }
            }
        }
        (due, overstayed)
    }

    pub(crate) fn next_alarm(&self) -> Option<Timestamp> {
        self.0.lock().timers.peek().map(|timer| timer.at.0)
    }

    /// Whether a handler is inside at all, its claim over or not.
    pub(crate) fn is_anybody_inside(&self) -> bool {
        let state = self.0.lock();
        !state.zombies.is_empty() || state.runs.values().any(|entry| entry.entered_at.is_some())
    }

    /// The flags of all handlers that are inside, their claim over or not, and the jobs of those whose claim is not.
    pub(crate) fn flags(&self) -> (Vec<Arc<StopFlag>>, Vec<JobId>) {
        let state = self.0.lock();
        let entered = state
            .runs
            .values()
            .filter(|entry| entry.entered_at.is_some());
        let (mut flags, ids): (Vec<_>, Vec<_>) = entered
            .map(|entry| (entry.flag.clone(), entry.row.id))
            .unzip();
        flags.extend(state.zombies.values().map(|zombie| zombie.flag.clone()));
        (flags, ids)
    }
}

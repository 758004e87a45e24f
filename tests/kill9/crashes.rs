//! S7: who was inside a handler at a kill is charged a crash, and nobody else.
//!
//! A worker that enters a handler says so in the owner's file first, and then the handler in the journal; one that leaves says so in
//! the journal first. So for each claim of a phase that a kill ended there are three cases, told apart by counting: the log has
//! one `job:phase:started` for each claim, the journal one line for each handler that was entered.
//!
//! | the journal, of the newest claim | it is charged |
//! |---|---|
//! | its handler was inside | yes |
//! | its handler had returned | perhaps: its worker says so until it has noted that it is inside of nothing; then it is told of, uncharged |
//! | nothing | perhaps: the kill may have hit the worker between its two notes |
//!
//! Each that is charged in the last two cases needs a worker of its own, which by the journal is inside of nothing else. And the last
//! case lasts for two small writes: it is seldom.
//!
//! All of it is judged only if each kill was followed by a look at the file, as the proof by kills does it.

use std::collections::{BTreeMap, HashMap};

use stepwell::{Event, EventKind, JobId};

use crate::counters::Counters;
use crate::load::WORKERS;

/// Kills between the two notes, of the 25 of one file. On a busy machine one in a hundred is one.
const BETWEEN_NOTES_MAX: usize = 5;

/// What the journal says at a kill of a job whose handler was entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Moment {
    Inside,
    Returned,
}

/// How far a process had come that was killed.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Stand {
    pub(super) has_lock: bool,
    pub(super) is_open: bool,
}

/// A kill, and what the file said then.
#[derive(Debug)]
struct Look {
    stand: Stand,
    /// Handlers that were inside.
    inside: usize,
    /// The newest event.
    newest: i64,
    /// Jobs that were under way.
    running: u64,
}

#[derive(Debug, Default)]
pub(super) struct Crashes {
    looks: Vec<Look>,
    /// Not looked at yet.
    kill: Option<(Stand, usize)>,
    /// Something else than a kill and a look: nothing can be said.
    is_mixed: bool,
    /// Handlers of a job that were entered before the look of this number, and since the one before.
    entries: HashMap<(JobId, usize), u32>,
    moments: HashMap<(JobId, usize), Moment>,
}

impl Crashes {
    pub(super) fn enters(&mut self, job: JobId) {
        *self.entries.entry((job, self.looks.len())).or_default() += 1;
    }

    /// A process was killed; nothing is known of how far it had come unless it was one of those that are looked at.
    pub(super) fn killed(&mut self, stand: Option<Stand>, moments: Vec<(JobId, Moment)>) {
        self.is_mixed |= stand.is_none() || self.kill.is_some();
        let is_inside = |(_, moment): &&(JobId, Moment)| *moment == Moment::Inside;
        let inside = moments.iter().filter(is_inside).count();
        self.kill = Some((stand.unwrap_or_default(), inside));
        let place = self.looks.len();
        let moments = moments.into_iter();
        self.moments
            .extend(moments.map(|(job, moment)| ((job, place), moment)));
    }

    /// The file was looked at, no process having been at it.
    pub(super) fn looked(&mut self, newest: i64, running: u64) {
        let Some((stand, inside)) = self.kill.take() else {
            self.is_mixed = true;
            return;
        };
        self.looks.push(Look {
            stand,
            inside,
            newest,
            running,
        });
    }

    pub(super) fn compare(
        &self,
        events: &BTreeMap<i64, Event>,
        counters: &mut Counters,
    ) -> Vec<String> {
        if self.is_mixed || self.looks.is_empty() {
            return Vec::new();
        }
        let mut found = Vec::new();
        let mut claims: HashMap<(JobId, usize), u32> = HashMap::new();
        let mut newest_claims: HashMap<JobId, usize> = HashMap::new();
        // Workers that must have been with a job that the journal does not show inside, by kill.
        let mut needed = vec![0; self.looks.len()];
        let mut between = Vec::new();
        let mut recoveries = vec![false; self.looks.len() + 1];
        for (seq, event) in events {
            let place = self.looks.partition_point(|look| look.newest < *seq);
            let job = event.job_id;
            if event.kind == EventKind::PhaseStarted {
                *claims.entry((job, place)).or_default() += 1;
                newest_claims.insert(job, place);
            }
            if event.kind != EventKind::Interrupted || event.data["reason"] != "process_died" {
                continue;
            }
            recoveries[place] = true;
            let is_charged = event.data["charged"] == true;
            let at = newest_claims.get(&job).copied().unwrap_or(place);
            let what = format!("S7: event {seq} of job {job}, after kill {at}");
            if at >= place {
                found.push(format!("{what}: nobody was killed since its claim"));
                continue;
            }
            let is_entered = event.data["entered"] == true;
            if is_charged && !is_entered {
                found.push(format!("{what}: {:?}", event.data));
            }
            let claimed = claims.get(&(job, at)).copied().unwrap_or(0);
            let entered = self.entries.get(&(job, at)).copied().unwrap_or(0);
            // Without a line for each claim it is not known to which of them the last line belongs.
            let is_known = entered == claimed;
            match (self.moments.get(&(job, at)), is_charged) {
                (Some(Moment::Inside), false) if is_known => {
                    found.push(format!("{what}: inside its handler, and not charged"));
                }
                (None, false) if is_known && is_entered => {
                    found.push(format!("{what}: it had no handler, and hears of one"));
                }
                (Some(Moment::Returned), false) if is_entered => {
                    counters.add("returned, and its outcome was lost with the process");
                }
                (Some(Moment::Inside), _) | (Some(Moment::Returned) | None, false) => {}
                (Some(Moment::Returned) | None, true) => {
                    needed[at] += 1;
                    if !is_known {
                        between.push(format!("{what}: charged, and never inside its handler"));
                    }
                }
            }
        }
        found.extend(self.entered_unclaimed(&claims));
        for (at, (look, needed)) in self.looks.iter().zip(needed).enumerate() {
            if look.inside + needed > WORKERS {
                found.push(format!(
                    "S7: kill {at}: {} handlers inside, {needed} more charged, {WORKERS} workers",
                    look.inside
                ));
            }
        }
        (0..between.len()).for_each(|_| counters.add("killed on the way into a handler"));
        if between.len() > BETWEEN_NOTES_MAX {
            found.append(&mut between);
        }
        self.count(&recoveries, counters);
        found
    }

    /// H8: no handler is entered before its claim is on disk.
    fn entered_unclaimed(&self, claims: &HashMap<(JobId, usize), u32>) -> Vec<String> {
        let mut found = Vec::new();
        for ((job, place), entered) in &self.entries {
            let claimed = claims.get(&(*job, *place)).copied().unwrap_or(0);
            if *entered > claimed {
                found.push(format!(
                    "H8: job {job} was entered {entered} times before kill {place}, and started {claimed} times by the log"
                ));
            }
        }
        found
    }

    /// Kills that hit the recovery itself.
    fn count(&self, recoveries: &[bool], counters: &mut Counters) {
        let mut running = 0;
        for (look, has_recovered) in self.looks.iter().zip(recoveries) {
            match (look.stand.is_open, *has_recovered) {
                (false, true) => counters.add("killed between the recovery and the open queue"),
                (false, false) if look.stand.has_lock && running > 0 => {
                    counters.add("killed with the lock, before the recovery was on disk");
                }
                _ => {}
            }
            running = look.running;
        }
    }
}

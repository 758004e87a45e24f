//! The comparison: what handlers and callers wrote down, against the invariants of a history and against the file.
//!
//! The names H1 to H6, S7 to S9 are those of the specification of these proofs.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt;
use std::path::Path;

use stepwell::{Client, ErrorCause, Job, JobId};

use crate::counters::Counters;
use crate::journal;
use crate::load::WORKERS;

#[path = "logged.rs"]
mod logged;

use logged::{Logged, compare_one};

/// What the journal says of one job.
#[derive(Debug, Default)]
struct Traces {
    /// The phase whose handler is inside.
    inside: Option<u32>,
    /// Phases whose completion was durable for sure.
    durable: u32,
    is_completed: bool,
    /// A retry from the start was asked for: once, phases may start again.
    may_restart: u32,
    /// The newest result that a handler returned, by phase.
    results: HashMap<u32, String>,
    /// The last thing that happened: the handler of this phase returned a result.
    returned: Option<u32>,
    /// And then its process was killed.
    is_killed: bool,
    /// The phase whose handler was the last to return, in this process: the outcome may not be durable.
    left: Option<u32>,
    /// Kills that may have hit it inside a handler, since it was tried again by hand.
    kills: u32,
    /// The newest kill is counted among them, if its file says that this phase was under way.
    killed_in: Option<u32>,
    /// The newest checkpoint, saved for sure, and the newest one that was tried.
    saved: HashMap<u32, (u64, u64)>,
    cancels_asked: usize,
    cancels_done: usize,
    retries_asked: usize,
    retries_done: usize,
    /// Asked and not answered yet.
    open_cancels: usize,
    open_retries: usize,
    /// A retry was under way while a cancel was: which came first is not known.
    is_mixed: bool,
    /// Its cancel was acknowledged, and no retry has been asked for since.
    is_cancelled: bool,
    /// The line of that answer, if the process that runs the jobs gave it: from then on no handler is entered.
    cancelled_at: usize,
    starts_after_cancel: usize,
    is_delete_asked: bool,
    is_delete_done: bool,
    was_unreadable: bool,
}

/// All that was written down about one file.
#[derive(Debug, Default)]
pub(crate) struct History {
    asked: BTreeSet<String>,
    /// Tags that were answered with an error which says that nothing was stored.
    refused: BTreeSet<String>,
    /// The job that a tag was answered with, and whether it was new.
    answered: BTreeMap<String, (JobId, bool)>,
    jobs: BTreeMap<JobId, Traces>,
    /// Statuses that retention deletes.
    retained: BTreeSet<String>,
    problems: Vec<String>,
}

impl History {
    pub(crate) fn read(path: &Path, counters: &mut Counters) -> History {
        let mut history = History::default();
        let mut process = Process::default();
        for (line, words) in journal::read(path).iter().enumerate() {
            let words: Vec<&str> = words.iter().map(String::as_str).collect();
            process.line = line;
            if let Err(problem) = history.take(&words, &mut process, counters) {
                history.problems.push(format!(
                    "journal line {}: {}: {problem}",
                    line + 1,
                    words.join(" ")
                ));
            }
        }
        history
    }

    fn take(
        &mut self,
        words: &[&str],
        process: &mut Process,
        counters: &mut Counters,
    ) -> Result<(), String> {
        match *words {
            ["P", _] => {
                *process = Process {
                    has_work: self.has_work(),
                    began: process.line,
                    line: process.line,
                    ..Process::default()
                };
                for job in self.jobs.values_mut() {
                    (job.left, job.killed_in) = (None, None);
                }
            }
            ["T", ref statuses @ ..] => {
                self.retained
                    .extend(statuses.iter().map(|&status| status.to_owned()));
            }
            ["O", _] => process.is_open = true,
            ["H", _] => process.is_stopping = true,
            ["h", _] => process.is_stopping = false,
            ["K", _] => self.killed(process, counters),
            ["X", ..] => return Err("must not happen".to_owned()),
            ["Q?", tag] => {
                self.asked.insert(tag.to_owned());
            }
            ["Q-", tag] => {
                self.refused.insert(tag.to_owned());
            }
            ["N", ..] => {}
            ["Q!", tag, id, new] => {
                counters.add(if new == "new" {
                    "acknowledged"
                } else {
                    "unique key kept a job out"
                });
                self.answered
                    .insert(tag.to_owned(), (job_id(id), new == "new"));
            }
            ["S", id, phase, worker] => {
                process.workers.insert(job_id(id), worker.to_owned());
                let free_since = process.free.get(worker).copied();
                let since = free_since.unwrap_or(process.began);
                return self.job(job_id(id)).starts(number(phase), since, counters);
            }
            ["E", id, phase, ref end @ ..] => {
                if let Some(worker) = process.workers.remove(&job_id(id)) {
                    process.free.insert(worker, process.line);
                }
                self.job(job_id(id)).ends(number(phase), end, counters);
            }
            ["C!", id, answer, ref place @ ..] => {
                let line = if place.is_empty() {
                    process.line
                } else {
                    usize::MAX
                };
                self.job(job_id(id)).cancelled(answer, line, counters);
            }
            [kind, id, ref rest @ ..] => return self.job(job_id(id)).take(kind, rest, counters),
            _ => return Err("not understood".to_owned()),
        }
        Ok(())
    }

    fn job(&mut self, id: JobId) -> &mut Traces {
        self.jobs.entry(id).or_default()
    }

    fn has_work(&self) -> bool {
        self.jobs
            .values()
            .any(|job| job.inside.is_some() || job.returned.is_some())
    }

    fn killed(&mut self, process: &Process, counters: &mut Counters) {
        if !process.is_open {
            counters.add("killed before the queue was open");
        }
        if !process.is_open && process.has_work {
            counters.add("killed while jobs had to be recovered");
        }
        if process.is_stopping {
            counters.add("killed in a shutdown");
        }
        for job in self.jobs.values_mut() {
            // What was asked and not answered has happened by now, or never will.
            (job.open_cancels, job.open_retries) = (0, 0);
            job.is_killed = true;
            job.killed_in = job.inside.or(job.left);
            job.kills += u32::from(job.killed_in.is_some());
            if job.inside.take().is_some() {
                counters.add("killed inside a handler");
            }
        }
    }
}

#[derive(Debug, Default)]
struct Process {
    is_open: bool,
    is_stopping: bool,
    has_work: bool,
    /// The line that is read, and the first one of this process.
    line: usize,
    began: usize,
    /// The workers that are inside of jobs, and since when the others are free.
    workers: HashMap<JobId, String>,
    free: HashMap<String, usize>,
}

fn job_id(text: &str) -> JobId {
    text.parse().expect("the journal has job ids")
}

fn number<T: std::str::FromStr>(text: &str) -> T
where
    T::Err: fmt::Debug,
{
    text.parse().expect("the journal has numbers")
}

impl Traces {
    fn take(&mut self, kind: &str, rest: &[&str], counters: &mut Counters) -> Result<(), String> {
        match (kind, rest) {
            ("W", [phase, seen @ ..]) => return self.sees(number(phase), seen),
            ("L", [phase, position]) => {
                let (least, most) = self.saved.get(&number(phase)).copied().unwrap_or_default();
                let position: u64 = number(position);
                if position > 0 {
                    counters.add("checkpoint resumed");
                }
                if (position < least && self.may_restart == 0) || position > most {
                    return Err(format!("the checkpoint was {least}, at most {most}"));
                }
            }
            ("v", [phase, position]) => {
                self.saved.entry(number(phase)).or_default().1 = number(position)
            }
            ("V", [phase, position]) => {
                self.saved.entry(number(phase)).or_default().0 = number(position)
            }
            ("D", [status, done]) => return self.is_seen(status, number(done)),
            ("C?", []) => {
                self.cancels_asked += 1;
                self.is_mixed = self.open_retries > 0 || (self.is_mixed && self.open_cancels > 0);
                self.open_cancels += 1;
            }
            ("C-", []) => {
                self.cancels_asked -= 1;
                self.open_cancels = self.open_cancels.saturating_sub(1);
            }
            ("R?", [from]) => {
                self.retries_asked += 1;
                self.open_retries += 1;
                self.is_mixed = true;
                self.may_restart += u32::from(*from == "start");
                self.is_cancelled = false;
                self.returned = None;
            }
            ("R-", [from]) => {
                self.retries_asked -= 1;
                self.retried(from, "refused", counters);
            }
            ("R!", [from, answer]) => self.retried(from, answer, counters),
            ("D?", []) => self.is_delete_asked = true,
            ("D!", []) => {
                self.is_delete_done = true;
                counters.add("deleted");
            }
            ("G", ["none"]) => self.was_unreadable = true,
            _ => return Err("not understood".to_owned()),
        }
        Ok(())
    }

    /// Its handler is inside. The worker was free for it since then.
    fn starts(&mut self, phase: u32, since: usize, counters: &mut Counters) -> Result<(), String> {
        if let Some(other) = self.inside.replace(phase) {
            return Err(format!("H4: its handler of phase {other} is still inside"));
        }
        if self.is_completed {
            return Err("H3: the job was completed, durably".to_owned());
        }
        if self.is_cancelled {
            if since > self.cancelled_at {
                return Err("H6: entered after its cancel was acknowledged".to_owned());
            }
            // A handler that was entered before the cancel may be late to say so. One, for each cancel.
            self.starts_after_cancel += 1;
            if self.starts_after_cancel > 1 {
                return Err("H6: a second phase started after it was cancelled".to_owned());
            }
            counters.add("entered during its cancel");
        }
        self.left = None;
        let is_killed = std::mem::take(&mut self.is_killed);
        if self.returned.take() == Some(phase) {
            counters.add(if is_killed {
                "killed between a handler's return and its commit"
            } else {
                "late result fenced"
            });
        }
        if phase < self.durable {
            if !self.take_restart() {
                return Err(format!(
                    "H3: {} phases were completed, durably",
                    self.durable
                ));
            }
            self.saved.clear();
        }
        if phase != self.durable {
            self.saved.remove(&phase);
        }
        self.durable = phase;
        Ok(())
    }

    fn ends(&mut self, phase: u32, end: &[&str], counters: &mut Counters) {
        (self.inside, self.returned, self.is_killed) = (None, None, false);
        self.left = Some(phase);
        if let ["ok", result] = end {
            self.results.insert(phase, (*result).to_owned());
            if self.is_cancelled {
                counters.add("late result fenced");
            } else {
                self.returned = Some(phase);
            }
        }
    }

    /// The phases before it have the results that their handlers returned last, since no handler starts before them.
    fn sees(&self, phase: u32, seen: &[&str]) -> Result<(), String> {
        for (earlier, seen) in (0..phase).zip(seen) {
            let result = self.results.get(&earlier).map_or("none", String::as_str);
            if result != *seen {
                return Err(format!("H5: phase {earlier} had returned {result}"));
            }
        }
        Ok(())
    }

    /// The file was looked at, no process having been at it.
    fn is_seen(&mut self, status: &str, done: u32) -> Result<(), String> {
        self.is_completed = status == "completed";
        let was_inside = |phase| status == "running" && phase >= done;
        if self
            .killed_in
            .take()
            .is_some_and(|phase| !was_inside(phase))
        {
            self.kills -= 1;
        }
        if done < self.durable {
            if !self.take_restart() {
                return Err(format!("{} phases were completed, durably", self.durable));
            }
            self.saved.clear();
        }
        if self.returned.is_some_and(|phase| phase < done) {
            self.returned = None;
        }
        self.durable = done;
        Ok(())
    }

    /// Uses up one of the retries from the start that were asked for; false when there is none.
    fn take_restart(&mut self) -> bool {
        let is_left = self.may_restart > 0;
        self.may_restart = self.may_restart.saturating_sub(1);
        is_left
    }

    fn retried(&mut self, from: &str, answer: &str, counters: &mut Counters) {
        self.open_retries = self.open_retries.saturating_sub(1);
        if answer != "ok" {
            if from == "start" {
                self.take_restart();
            }
            if answer != "refused" {
                counters.add("retry lost to another");
            }
            return;
        }
        self.retries_done += 1;
        (self.kills, self.killed_in) = (0, None);
        counters.add(match from {
            "start" => "retried by hand, from the start",
            _ => "retried by hand, resuming",
        });
    }

    fn cancelled(&mut self, answer: &str, line: usize, counters: &mut Counters) {
        self.open_cancels = self.open_cancels.saturating_sub(1);
        match answer {
            "cancelled" => {
                self.cancels_done += 1;
                self.is_cancelled = !self.is_mixed;
                (self.starts_after_cancel, self.cancelled_at) = (0, line);
                if self.inside.is_none() && self.returned.is_some() {
                    counters.add("cancelled at a phase boundary");
                }
                self.returned = None;
            }
            "already-completed" => counters.add("cancel lost to completion"),
            _ => {}
        }
    }
}

impl History {
    /// Compares with a file whose jobs are all over. Answers what is wrong.
    pub(crate) fn compare(mut self, client: &Client, counters: &mut Counters) -> Vec<String> {
        let logged = self.replay(client, counters);
        let mut ids_of_tags = HashSet::new();
        let mut tags = BTreeSet::new();
        let mut charged = Vec::new();
        for (id, logged) in &logged {
            let traces = self.jobs.remove(id).unwrap_or_default();
            let job = client.get(*id).expect("a job can be read");
            let mut found = Vec::new();
            compare_one(job.as_ref(), &traces, logged, &self.retained, &mut found);
            if let Some(job) = &job {
                let tag = job.input["tag"].as_str().unwrap_or_default().to_owned();
                if !self.asked.contains(&tag) || !tags.insert(tag.clone()) {
                    found.push(format!("H2: nobody asked for it, or not twice: {tag}"));
                }
                if self.refused.contains(&tag) {
                    found.push(format!("H2: {tag} was refused and is stored"));
                }
                if self
                    .answered
                    .get(&tag)
                    .is_some_and(|(answered, new)| *new && answered != id)
                {
                    found.push(format!("H1: {tag} was answered with another id"));
                }
                if !self.answered.contains_key(&tag) {
                    counters.add("asked, never answered, and stored");
                }
                count_errors(job, counters);
                if job.crash_count > traces.kills {
                    charged.push(format!(
                        "S7: job {id} is charged {} crashes, {} kills hit it inside a handler",
                        job.crash_count, traces.kills
                    ));
                    counters.add("killed on the way into a handler");
                }
            }
            ids_of_tags.insert(*id);
            self.problems.extend(
                found
                    .into_iter()
                    .map(|problem| format!("job {id}: {problem}")),
            );
        }
        // A kill may hit a worker that has entered a handler which has not written so yet. That is seldom.
        if charged.len() > WORKERS {
            self.problems.append(&mut charged);
        }
        for (tag, (id, _)) in &self.answered {
            if !ids_of_tags.contains(id) {
                self.problems.push(format!(
                    "H1: job {id} of {tag} was acknowledged and is gone"
                ));
            }
        }
        for (id, traces) in &self.jobs {
            if traces.retries_done + traces.cancels_done > 0
                || traces.inside.is_some()
                || !traces.results.is_empty()
            {
                self.problems
                    .push(format!("H2: job {id} is not in the log: {traces:?}"));
            }
        }
        let is_lost = |tag: &&String| !self.answered.contains_key(*tag) && !tags.contains(*tag);
        for _ in self.asked.iter().filter(is_lost) {
            counters.add("asked, never answered, and not stored");
        }
        let is_answered = |id: &JobId| self.answered.values().any(|(answered, _)| answered == id);
        let deleted = logged
            .iter()
            .filter(|(id, logged)| logged.deleted.is_some() && !is_answered(id));
        let deleted = deleted.count();
        self.all_or_none(&tags, deleted);
        self.problems
    }

    /// Jobs that were enqueued in one call are all there or none is, but for those that a key kept out or that are deleted.
    fn all_or_none(&mut self, tags: &BTreeSet<String>, mut deleted: usize) {
        let mut calls: BTreeMap<&str, Vec<&String>> = BTreeMap::new();
        for tag in &self.asked {
            let (call, member) = tag.rsplit_once('-').expect("a tag has parts");
            if member.contains("of3") {
                calls.entry(call).or_default().push(tag);
            }
        }
        for (call, members) in calls {
            let is_there =
                |tag: &&&String| tags.contains(**tag) || self.answered.contains_key(**tag);
            let is_free = |tag: &&&String| tag.ends_with('k');
            let free = members
                .iter()
                .filter(|tag| is_free(tag) && !is_there(tag))
                .count();
            let there = members.iter().filter(is_there).count();
            if there != 0 && there + free != 3 {
                if deleted == 0 {
                    self.problems
                        .push(format!("call {call}: {there} of its 3 jobs are stored"));
                }
                deleted = deleted.saturating_sub(1);
            }
        }
    }

    /// Follows the log, change by change.
    fn replay(&mut self, client: &Client, counters: &mut Counters) -> BTreeMap<JobId, Logged> {
        let mut jobs: BTreeMap<JobId, Logged> = BTreeMap::new();
        let mut last = 0;
        loop {
            let events = client
                .events_after(last, 10_000)
                .expect("events can be read");
            if events.is_empty() {
                return jobs;
            }
            for event in events {
                if event.seq != last + 1 {
                    self.problems
                        .push(format!("S8: event {} comes after {last}", event.seq));
                }
                last = event.seq;
                let job = jobs.entry(event.job_id).or_default();
                if let Err(problem) = job.follow(&event, counters) {
                    let place = format!("event {} of job {}", event.seq, event.job_id);
                    self.problems.push(format!("{place}: {problem}"));
                }
            }
        }
    }
}

fn count_errors(job: &Job, counters: &mut Counters) {
    for error in &job.errors {
        match error.kind {
            ErrorCause::Interrupted => counters.add("interruption told to a job"),
            ErrorCause::CrashLimit => counters.add("crash limit reached"),
            _ => {}
        }
    }
}

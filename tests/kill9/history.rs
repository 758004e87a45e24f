//! The comparison: what handlers and callers wrote down, against the invariants of a history and against the file.
//!
//! `traces` follows what the journal says of one job, `logged` what the log of its file says, `deliveries` what became of its events.
//! The names H1 to H8, S7 to S11 and W1 to W3 are those of the specification of these proofs.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt;
use std::path::Path;

use stepwell::{Client, ErrorCause, Event, Job, JobId};

use crate::counters::Counters;
use crate::journal;
use crate::load::WORKERS;

#[path = "crashes.rs"]
mod crashes;
#[path = "deliveries.rs"]
mod deliveries;
#[path = "heard.rs"]
mod heard;
#[path = "logged.rs"]
mod logged;
#[path = "traces.rs"]
mod traces;

use crashes::{Crashes, Moment, Stand};
use deliveries::Deliveries;
use heard::Heard;
use logged::{Logged, compare_one};
use traces::Traces;

/// All that was written down about one file.
#[derive(Debug, Default)]
pub(crate) struct History {
    asked: BTreeSet<String>,
    /// Tags that were answered with an error which says that nothing was stored.
    refused: BTreeSet<String>,
    /// The job that a tag was answered with, and whether it was new.
    answered: BTreeMap<String, (JobId, bool)>,
    jobs: BTreeMap<JobId, Traces>,
    crashes: Crashes,
    deliveries: Deliveries,
    heard: Heard,
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
                    began: process.line,
                    line: process.line,
                    ..Process::default()
                };
                self.deliveries.begins();
                self.heard.begins();
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
            // How far it had come is known of those that are killed to be looked at.
            ["K", _] => self.killed(None, process, counters),
            ["K", _, lock] => {
                let stand = Stand {
                    has_lock: lock == "locked",
                    is_open: process.is_open,
                };
                self.killed(Some(stand), process, counters);
            }
            ["M", newest, running] => {
                self.crashes.looked(number(newest), number(running));
                return self.heard.looked(number(newest));
            }
            ["e", seq, kind, id] => {
                return self.heard.hears(number(seq), kind, job_id(id), counters);
            }
            ["p", seq] => return self.heard.panics(number(seq), counters),
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
                self.crashes.enters(job_id(id));
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
            ["U", _] => self.deliveries.have_receiver(),
            ["w?", delivery, path, body, id] => {
                let said = (path, body, id);
                return self.deliveries.comes(number(delivery), said, counters);
            }
            ["w!", delivery, answer] => {
                return self.deliveries.answered(number(delivery), answer, counters);
            }
            ["m", newest, ref pending @ ..] => {
                let pending = pending.iter().map(|delivery| number(delivery));
                return self.deliveries.looked(number(newest), pending.collect());
            }
            [kind, id, ref rest @ ..] => return self.job(job_id(id)).take(kind, rest, counters),
            _ => return Err("not understood".to_owned()),
        }
        Ok(())
    }

    fn job(&mut self, id: JobId) -> &mut Traces {
        self.jobs.entry(id).or_default()
    }

    fn killed(&mut self, stand: Option<Stand>, process: &Process, counters: &mut Counters) {
        if !process.is_open {
            counters.add("killed before the queue was open");
        }
        if process.is_stopping {
            counters.add("killed in a shutdown");
        }
        let moment = |job: &Traces| match (job.inside, job.left) {
            (Some(_), _) => Some(Moment::Inside),
            (None, Some(_)) => Some(Moment::Returned),
            (None, None) => None,
        };
        let moments = self.jobs.iter();
        let moments = moments.filter_map(|(id, job)| Some((*id, moment(job)?)));
        self.crashes.killed(stand, moments.collect());
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

impl History {
    /// Compares with a file whose jobs are all over. Answers what is wrong.
    pub(crate) fn compare(mut self, client: &Client, counters: &mut Counters) -> Vec<String> {
        let (logged, events) = self.replay(client, counters);
        let mut known: HashMap<JobId, String> = HashMap::new();
        for (tag, (id, _)) in self.answered.iter().filter(|(_, (_, new))| *new) {
            known.insert(*id, tag.clone());
        }
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
                known.insert(*id, tag.clone());
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
                }
            }
            ids_of_tags.insert(*id);
            self.problems.extend(
                found
                    .into_iter()
                    .map(|problem| format!("job {id}: {problem}")),
            );
        }
        // A kill may hit a worker that has entered a handler which has not written so yet. That is seldom, and `crashes` judges each
        // of them, where there is a look after each kill.
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
        let unsent = self.deliveries.compare(client, &events, &known, counters);
        self.problems.extend(unsent);
        self.problems.extend(self.heard.compare(&events));
        let charged = self.crashes.compare(&events, counters);
        self.problems.extend(charged);
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

    /// Follows the log, change by change. Answers what it says of each job, and all events.
    fn replay(
        &mut self,
        client: &Client,
        counters: &mut Counters,
    ) -> (BTreeMap<JobId, Logged>, BTreeMap<i64, Event>) {
        let mut jobs: BTreeMap<JobId, Logged> = BTreeMap::new();
        let (mut last, mut all) = (0, BTreeMap::new());
        loop {
            let events = client
                .events_after(last, 10_000)
                .expect("events can be read");
            if events.is_empty() {
                return (jobs, all);
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
                all.insert(event.seq, event);
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

//! What has become of the files of this run: of their jobs' events while it lasts, and at its end of the files that are there.
//!
//! It is an account of *the files that the walk has found*, so the sums add up. Jobs of a run that was cut short may be about a
//! state that nobody found any more: a file that is gone is nobody's failure, and one that has changed has a younger job.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use stepwell::{Event, EventKind, JobQueue};

use crate::Failure;
use crate::file::{self, FileJob, State};
use crate::manifest::Bits;
use crate::phases::Ingest;
use crate::report::FAILURES_SHOWN;
use crate::sums::LAST_JOB;

/// What the events tell.
pub struct Tally {
    started: Instant,
    completed: Bits,
    failed: Bits,
}

/// What became of the files that were found.
#[derive(Default)]
pub struct Outcome {
    pub took: Duration,
    /// The jobs that have come to their end, those of older states too.
    pub jobs: u64,
    pub found: u64,
    pub done_now: u64,
    pub done_before: u64,
    /// Files that were gone before they could be read.
    pub gone: u64,
    pub failed: u64,
    /// Why, of the first of them.
    pub reasons: Vec<String>,
}

impl Tally {
    pub fn new() -> Tally {
        Tally {
            started: Instant::now(),
            completed: Bits::default(),
            failed: Bits::default(),
        }
    }

    pub fn note(&mut self, event: &Event) {
        let id = event.job_id;
        if &*event.job_type == LAST_JOB {
            // It is about no file.
        } else if matches!(event.kind, EventKind::Failed | EventKind::Cancelled) {
            self.failed.insert(id);
        } else if event.kind == EventKind::Completed {
            // It may have failed before, and been tried again.
            self.failed.remove(id);
            self.completed.insert(id);
        }
    }

    /// So far, and gone files among them.
    pub fn failed_count(&self) -> u64 {
        self.failed.count()
    }

    /// `found` are the jobs of the files that the walk has found.
    pub fn outcome(
        &self,
        found: &Bits,
        queue: &JobQueue,
        ingest: &Ingest,
    ) -> Result<Outcome, Failure> {
        let mut outcome = Outcome {
            took: self.started.elapsed(),
            jobs: self.completed.count() + self.failed.count(),
            found: found.count(),
            done_now: found.iter().filter(|id| self.completed.has(*id)).count() as u64,
            ..Outcome::default()
        };
        // By name, as they are now.
        let mut missing: BTreeMap<Vec<u8>, (State, String)> = BTreeMap::new();
        for id in found.iter().filter(|id| self.failed.has(*id)) {
            let Some(mut job) = queue.get(id)? else {
                outcome.fail(format!("job {id} was deleted"));
                continue;
            };
            let name = serde_json::from_value::<FileJob>(job.input)?.name;
            let reason = job.errors.pop().map(|error| error.message);
            let reason = reason.unwrap_or_else(|| format!("{name}: it was cancelled"));
            match file::state_now(ingest.root(), &name) {
                Ok(None) => outcome.gone += 1,
                Ok(Some(state)) => drop(missing.insert(name.bytes(), (state, reason))),
                Err(_) => outcome.fail(reason),
            }
        }
        if !missing.is_empty() {
            ingest.manifest.each_line(|line, _| {
                let name = line.name.bytes();
                // The job of another state has come upon the file as it is now.
                let is_there = |(state, _): &(State, String)| *state == line.state;
                if missing.get(&name).is_some_and(is_there) {
                    missing.remove(&name);
                    outcome.done_now += 1;
                }
                Ok::<(), Failure>(())
            })?;
        }
        for (_, reason) in missing.into_values() {
            outcome.fail(reason);
        }
        let others = outcome.done_now + outcome.gone + outcome.failed;
        outcome.done_before = outcome.found.saturating_sub(others);
        Ok(outcome)
    }
}

impl Outcome {
    fn fail(&mut self, reason: String) {
        self.failed += 1;
        if self.reasons.len() < FAILURES_SHOWN {
            self.reasons.push(reason);
        }
    }
}

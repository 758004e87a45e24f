//! The model at the end of a process, and at the beginning of the next one.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::kinds::{self, NAMES, Program};
use super::model::{Model, Status};

impl Model {
    /// Opened by a program, with nothing under way.
    pub(crate) fn open(&mut self, program: Program) {
        self.program = program;
        for kind in 0..NAMES.len() {
            if let Some(phases) =
                kinds::fixed(kind, program).filter(|_| kinds::is_registered(kind, program))
            {
                self.known.insert(kind, phases);
            }
        }
        self.free = self.workers;
        self.late = 0;
    }

    /// Shut down with no time for anybody. `finishes`: whose handlers return a result when they are told to stop. Answers whose
    /// handlers were told.
    pub(crate) fn shut_down(&mut self, finishes: &BTreeMap<i64, Value>) -> Vec<i64> {
        let mut told = Vec::new();
        for (id, claim) in std::mem::take(&mut self.claims) {
            let Some(entered) = claim.entered else {
                self.give_back(id, "shutdown");
                continue;
            };
            told.push(id);
            match finishes.get(&id) {
                Some(result) => self.done(id, claim, entered, result, "shutdown"),
                None => self.interrupt(id, entered, "shutdown"),
            }
        }
        self.forget();
        told
    }

    /// Everything that was in memory is gone.
    pub(crate) fn crash(&mut self) {
        for (id, claim) in std::mem::take(&mut self.claims) {
            match claim.entered {
                None => self.give_back(id, "process_died"),
                Some(entered) => self.interrupt(id, entered, "process_died"),
            }
        }
        self.forget();
    }

    fn forget(&mut self) {
        self.ready.clear();
        self.zombies.clear();
        self.inside.clear();
    }

    /// A handler was cut off.
    fn interrupt(&mut self, id: i64, entered: i64, reason: &str) {
        let now = self.now;
        let is_crash = reason == "process_died";
        let job = self.jobs.get_mut(&id).expect("it was running");
        let (phase, attempt) = (job.phase(), job.attempt);
        job.errors.push(json!({"phase": phase, "attempt": attempt, "at": now, "kind": "interrupted", "message": reason}));
        job.interruption = Some(
            json!({"phase": phase, "attempt": attempt, "since": entered, "at": now, "reason": reason}),
        );
        (job.status, job.run_at) = (Status::Pending, now);
        if is_crash {
            job.crashes += 1;
        } else {
            (job.attempt, job.tries) = (job.attempt - 1, job.tries - 1);
        }
        let (crashes, is_over) = (job.crashes, job.crashes > kinds::max_crashes(job.kind));
        let message = format!("the process died inside this job {crashes} times");
        if is_crash && is_over {
            (job.status, job.finished) = (Status::Failed, Some(now));
            job.errors.push(json!({"phase": phase, "attempt": attempt, "at": now, "kind": "crash_limit", "message": message}));
        }
        let data =
            json!({"reason": reason, "entered": true, "charged": is_crash, "since": entered});
        self.tell(id, "job:interrupted", attempt, phase, data);
        if is_crash && is_over {
            self.tell(
                id,
                "job:failed",
                attempt,
                None,
                json!({"kind": "crash_limit", "message": message}),
            );
        }
    }

    /// The program may have other phases by now: results are kept as far as the new phases have them.
    pub(crate) fn plan_anew(&mut self, id: i64) {
        let job = self.jobs.get_mut(&id).expect("it waits");
        let Some(plan) = kinds::fixed(job.kind, self.program).filter(|plan| **plan != job.plan[..])
        else {
            return;
        };
        let (old, before) = (
            std::mem::replace(&mut job.plan, plan.to_vec()),
            job.done.len(),
        );
        let goes_on = before < old.len() && old.get(..=before) == plan.get(..=before);
        let mut kept = Vec::new();
        for phase in &plan[..plan.len() - 1] {
            let at = old[..before.min(old.len())]
                .iter()
                .position(|other| other == phase);
            let Some(at) = at else { break };
            kept.push(job.done[at].clone());
        }
        (job.done, job.tries) = (kept, 0);
        if !goes_on {
            job.saved = None;
        }
    }
}

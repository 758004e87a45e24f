//! The model when a handler returns, or its time is over.

use serde_json::{Value, json};

use super::kinds;
use super::model::{Claim, Done, Model, Status};
use super::stage::Answer;

impl Model {
    pub(crate) fn answer(&mut self, id: i64, answer: &Answer) {
        self.inside.remove(&id);
        if let Some(at) = self.zombies.iter().position(|zombie| zombie.job == id) {
            let zombie = self.zombies.remove(at);
            self.late += 1;
            self.free += usize::from(!zombie.is_replaced);
            return;
        }
        self.free += 1;
        let claim = self.claims.remove(&id).expect("it was inside");
        let entered = claim.entered.expect("it was entered");
        match answer {
            Answer::Done(result) => self.done(id, claim, entered, result, "paused"),
            Answer::Retry(message) => self.failed(id, ("error", message), None, false),
            Answer::Stopped => self.failed(id, ("error", "stopped"), None, false),
            Answer::Panic(message) => self.failed(id, ("panic", message), None, false),
            Answer::RetryAfter(delay, message) => {
                let ms = i64::try_from(delay.as_millis()).expect("it fits");
                self.failed(id, ("error", message), Some(ms), false);
            }
            Answer::Fail(message) => self.failed(id, ("error", message), None, true),
            Answer::Snooze(delay) => {
                let run_at = self.now + i64::try_from(delay.as_millis()).expect("it fits");
                if self.jobs[&id].deadline.is_some_and(|at| run_at >= at) {
                    let message = "the handler put the phase off until after the deadline";
                    return self.failed(id, ("deadline", message), None, true);
                }
                let attempt = self.uncharge(id, run_at);
                self.tell(
                    id,
                    "job:retrying",
                    attempt,
                    None,
                    json!({"reason": "snoozed", "run_at": run_at}),
                );
            }
            Answer::Cancel => {
                let job = self.jobs.get_mut(&id).expect("it is running");
                (job.status, job.finished) = (Status::Cancelled, Some(self.now));
                let attempt = job.attempt;
                self.tell(id, "job:cancelled", attempt, None, json!({}));
            }
        }
    }

    pub(crate) fn done(
        &mut self,
        id: i64,
        claim: Claim,
        entered: i64,
        result: &Value,
        reason: &str,
    ) {
        let now = self.now;
        let job = self.jobs.get_mut(&id).expect("it is running");
        let (attempt, kind, phase) = (job.attempt, job.kind, job.phase());
        job.done.push(Done {
            attempt,
            started: entered,
            finished: now,
            result: result.clone(),
        });
        (job.tries, job.saved) = (0, None);
        let next = job.phase();
        if next.is_none() {
            (job.status, job.finished) = (Status::Completed, Some(now));
        }
        self.tell(id, "job:phase:completed", attempt, phase, json!({}));
        if next.is_none() {
            self.tell(id, "job:completed", attempt, None, json!({}));
        } else if self.rests(kind) || reason != "paused" {
            self.give_back(id, reason);
        } else {
            let job = self.jobs.get_mut(&id).expect("it is running");
            (job.tries, job.offered) = (1, now);
            self.claims.insert(
                id,
                Claim {
                    entered: None,
                    ..claim
                },
            );
            self.ready.push_back((id, claim.number));
            self.tell(id, "job:phase:started", attempt, next, json!({}));
        }
    }

    /// A try has failed: another one, or the end.
    pub(crate) fn failed(
        &mut self,
        id: i64,
        (cause, message): (&str, &str),
        after: Option<i64>,
        is_final: bool,
    ) {
        let now = self.now;
        let job = self.jobs.get_mut(&id).expect("it is running");
        let phase = job.phase();
        let (tries, wait) = kinds::policy(job.kind);
        let is_last = match kinds::own_tries(job.kind, phase.unwrap_or_default()) {
            Some(own) => job.tries >= own,
            None => job.attempt >= tries,
        };
        let run_at = now + after.unwrap_or(wait);
        let mut message = message.to_owned();
        let is_late =
            !is_final && !is_last && job.deadline.is_some_and(|deadline| run_at >= deadline);
        if is_late {
            message.push_str(" (no time for another try: deadline)");
        }
        let attempt = job.attempt;
        job.errors.push(json!({"phase": phase, "attempt": attempt, "at": now, "kind": cause, "message": message}));
        let is_over = is_final || is_last || is_late;
        if is_over {
            (job.status, job.finished) = (Status::Failed, Some(now));
        } else {
            (job.status, job.run_at) = (Status::Pending, run_at);
        }
        let data = json!({"kind": cause, "message": message});
        self.tell(id, "job:phase:failed", attempt, phase, data.clone());
        if is_over {
            self.tell(id, "job:failed", attempt, None, data);
        } else {
            self.tell(
                id,
                "job:retrying",
                attempt,
                None,
                json!({"reason": "failed", "run_at": run_at}),
            );
        }
    }
}

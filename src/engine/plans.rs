//! Plans that are made here: of due jobs that came without one, and anew of jobs whose type has other phases now. L3.
//!
//! # When a plan has changed
//!
//! The phases of a planned type follow from the input and from the program. A job keeps those it was stored with, but the program
//! may be a newer release by the time it runs, or the phases may be what a client took for right. The worker that enters a claim
//! asks the planner in any case, for timeouts and policies; when its answer has other phases than the claim:
//!
//! 1. The worker calls no handler and sets no timeout. It hands one outcome in: given back, not entered, with the new plan. So
//!    neither a try nor a crash is charged, whatever comes next.
//! 2. In one commit the job becomes pending and gets the new plan: its results stay for the longest beginning of the plan that
//!    has them, as for fixed phases (`Commit::replan`). At no time does it wait with the old plan, so that nobody can claim it
//!    in between; a crash leaves the old claim, or the new plan.
//! 3. It is due at once, and claimed anew: another epoch, and the planner's answer is what is stored.
//!
//! Whatever else ends the claim in the meantime (a cancel, the deadline, the fence of a shutdown, another process) makes the outcome
//! stale by its epoch: it changes nothing, and the next claim finds the difference again. In a pause and in a shutdown the job
//! is given back all the same, and waits with the new plan.
//!
//! A planner that gives another answer each time would have its jobs go round for ever. Since the program does not change while it
//! runs, a job is given another plan once in its process ([`Replanned`]); after that it goes on by the phases that it has,
//! with the settings of those whose names are known.

use std::collections::HashSet;
use std::sync::Arc;

use crate::engine::Engine;
use crate::job::{InterruptionReason, JobId};
use crate::live::Task;
use crate::store::ops::{Op, Settle};
use crate::sync::{ThreadId, current_thread};
use crate::transition::{Entered, Input};

/// Jobs that are remembered to have been given another plan. When there are more, all are forgotten: each of them may go round once
/// more, which costs two commits for this many others.
const REPLANNED_MAX: usize = 10_000;

/// The jobs that were given another plan by this process.
#[derive(Default)]
pub(super) struct Replanned(HashSet<JobId>);

impl Replanned {
    /// It is on disk. Noted no earlier: a job that was cancelled in between has the old one still.
    pub(super) fn note(&mut self, id: JobId) {
        if self.0.len() >= REPLANNED_MAX {
            self.0.clear();
        }
        self.0.insert(id);
    }
}

impl Engine {
    /// What is handed in instead of the outcome of a handler, when the job is to go on by other phases.
    pub(super) fn replanned(&self, task: &Task) -> Option<Settle> {
        let (run, row) = (&task.run, &task.row);
        if !run.def.is_planned() {
            return None;
        }
        let resolved = run.resolved().as_ref().ok()?;
        if resolved.plan == run.plan {
            return None;
        }
        let job_type = &run.def.name;
        if self.state.lock().replanned.0.contains(&row.id) {
            log::warn!(
                "job {}: job type {job_type:?} plans other phases each time it is asked: the job goes on by those it has",
                row.id
            );
            return None;
        }
        log::debug!(
            "job {}: job type {job_type:?} has other phases for it now: it goes on by them",
            row.id
        );
        let input = Input::Interrupted {
            epoch: row.epoch,
            reason: InterruptionReason::Replanned,
            entered: Entered::No,
            max_crashes: u32::MAX,
        };
        Some(Settle {
            plan: Some(resolved.plan.clone()),
            ..Settle::void(row, input)
        })
    }

    /// Makes the plans of due jobs that have none: those that came from outside. The user's code may be slow and may call the queue,
    /// which would wait for us: we lead.
    pub(super) fn plan(&self, unplanned: Vec<(JobId, Arc<str>, String)>) {
        let is_first = {
            let mut state = self.state.lock();
            state.unplanned.extend(unplanned);
            !std::mem::replace(&mut state.is_planning, true)
        };
        let Some(me) = self.me.upgrade().filter(|_| is_first) else {
            return;
        };
        if let Err(error) = me.thread("stepwell-plan", Engine::make_plans) {
            log::warn!("plans are made with everybody waiting: {error}");
            self.make_plans();
        }
    }

    /// One thread at a time: until there is no job without a plan.
    fn make_plans(&self) {
        self.state.lock().planner = Some(current_thread());
        while let Some((id, job_type, input)) = self.next_unplanned() {
            let plan = match self.registry.get(&job_type).map(|def| def.resolve(&input)) {
                Some(Ok(resolved)) => Ok(resolved.plan),
                // Perhaps because of that: it is asked again at the next start.
                Some(Err(_)) if self.is_stopping() => continue,
                Some(Err(error)) => Err(error.to_string()),
                None => Err(format!("job type {job_type:?} is not registered")),
            };
            self.committer.post(Op::SetPlan { id, plan });
        }
    }

    fn next_unplanned(&self) -> Option<(JobId, Arc<str>, String)> {
        let mut state = self.state.lock();
        // At the end of the queue those that are left are pending still, and asked for at the next start.
        let is_over = state.is_stopping || state.unplanned.is_empty();
        if is_over {
            (state.is_planning, state.planner) = (false, None);
            return None;
        }
        state.unplanned.pop_front()
    }

    /// Whether a plan is being made, but for these threads'.
    pub(crate) fn is_planning(&self, but: &[ThreadId]) -> bool {
        let state = self.state.lock();
        // Who makes plans may have died of a bug of ours.
        state.is_planning
            && state.poison.is_none()
            && !state.planner.is_some_and(|planner| but.contains(&planner))
    }

    /// Whether the calling thread makes plans.
    pub(crate) fn is_planner(&self) -> bool {
        self.state.lock().planner == Some(current_thread())
    }
}

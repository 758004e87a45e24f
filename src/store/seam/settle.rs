//! What became of a claimed job: a phase that ended, was cut off, put off or given back, and checkpoints inside one. L2.

use std::sync::Arc;

use serde_json::json;

use crate::config::{MESSAGE_BYTES_MAX, truncate};
use crate::error::{Error, ErrorKind, Result};
use crate::job::{InterruptionReason, JobId, JobStatus};
use crate::store::Done;
use crate::store::ops::{Release, Settle, Source};
use crate::store::seam::history::{failed_data, fault_row, interrupted_data, interrupted_row};
use crate::store::seam::{Commit, Extra};
use crate::transition::{self, Edge, Entered, Flags, Input, JobRow, Refusal};

impl Commit<'_> {
    pub(super) fn settle(&mut self, settle: &Settle) -> Result<Option<JobRow>> {
        let Some(before) = self.rows.job(settle.id)? else {
            return Ok(None);
        };
        // A timeout may come in beside the outcome of its phase: then the job is a phase further, in the same epoch.
        if before.phase_index != settle.phase_index {
            return Ok(None);
        }
        let input = self.at_the_edge(&before, settle.input);
        let transition = match transition::decide(&before, &input, self.now) {
            Ok(transition) => transition,
            Err(Refusal::Stale | Refusal::Illegal(_)) => return Ok(None),
        };
        let phase = self.phase_name(&before)?;
        let mut error = settle
            .error
            .as_ref()
            .map(|fault| fault_row(fault, phase.clone(), &before, self.now));
        let data = match input {
            Input::PhaseFailed { .. } => {
                if let (Some(error), Some(cause)) = (&mut error, transition.cause) {
                    let why = format!(" (no time for another try: {cause})");
                    truncate(&mut error.message, MESSAGE_BYTES_MAX - why.len());
                    error.message.push_str(&why);
                }
                failed_data(&transition, error.as_ref())
            }
            Input::Snooze { .. } => {
                let run_at = transition.after.run_at;
                Some(json!({"reason": "snoozed", "run_at": run_at}).to_string())
            }
            Input::Interrupted {
                reason, entered, ..
            } => {
                let since = (entered != Entered::No).then_some(settle.started_at);
                if since.is_some() {
                    error = Some(interrupted_row(reason, phase, &before, since, self.now));
                }
                interrupted_data(reason, since.is_some(), false, since)
            }
            Input::PhaseCompleted {
                edge: Edge::Release(reason),
                ..
            } => interrupted_data(reason, false, false, None),
            Input::PhaseCompleted {
                edge: Edge::GoOn, ..
            }
            | Input::HandlerCancelled { .. } => None,
            Input::Claim | Input::Cancel | Input::Retry(_) | Input::Delete => return Ok(None),
        };
        let extra = Extra {
            data,
            started_at: Some(settle.started_at),
            result: settle.result.as_deref(),
            error,
        };
        let mut after = self.write(&before, &transition, extra)?;
        if let (Some(row), Some(plan)) = (&after, &settle.plan)
            && row.status == JobStatus::Pending
        {
            // In this commit: the job never waits with phases that it would be given back for again.
            after = Some(self.replan(row, plan)?);
        }
        let has_left = after.is_some_and(|after| after.status != JobStatus::Running);
        if has_left && settle.is_from == Source::Handler {
            self.ended += 1;
        }
        Ok(after)
    }

    /// Turns "go on" into "give back" while the queue or the type rests.
    fn at_the_edge(&self, job: &JobRow, input: Input) -> Input {
        let Input::PhaseCompleted {
            epoch,
            edge: Edge::GoOn,
        } = input
        else {
            return input;
        };
        let edge = match &self.request.release {
            Release::Nobody => Edge::GoOn,
            Release::Everybody(reason) => Edge::Release(*reason),
            Release::Types(types) if types.contains(&job.type_id) => {
                Edge::Release(InterruptionReason::Paused)
            }
            Release::Types(_) => Edge::GoOn,
        };
        Input::PhaseCompleted { epoch, edge }
    }

    pub(super) fn phase_name(&mut self, row: &JobRow) -> Result<Option<Arc<str>>> {
        if row.plan_id == 0 {
            return Ok(None);
        }
        let plan = self.rows.plan(row.plan_id)?;
        Ok(plan
            .get(row.phase_index as usize)
            .map(|phase| phase.name.clone()))
    }

    pub(super) fn save(
        &mut self,
        id: JobId,
        epoch: i64,
        phase_index: u32,
        json: &str,
    ) -> Result<Done> {
        let before = self.load(id)?;
        if before.status != JobStatus::Running
            || before.epoch != epoch
            || before.phase_index != phase_index
        {
            let problem = format!("job {id}: this try is over, so its checkpoint was not saved");
            return Err(Error::new(ErrorKind::Conflict, problem));
        }
        if !before.flags.has(Flags::SAVED) {
            let after = JobRow {
                flags: before.flags.with(Flags::SAVED),
                ..before
            };
            self.rows.update_job(&before, &after)?;
        }
        self.writes += 1;
        self.rows.put_checkpoint(id, phase_index, Some(json))?;
        Ok(Done::Nothing)
    }
}

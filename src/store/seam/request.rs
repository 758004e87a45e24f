//! What a caller asks for: cancel, retry, delete, one job or many; pause; register; plan. L2.

use std::sync::Arc;

use serde_json::json;

use crate::error::{Error, ErrorKind, Result};
use crate::event::{Change, Plan};
use crate::job::{BulkAction, CancelOutcome, ErrorCause, JobId, JobStatus};
use crate::store::ops::{Bulk, Chosen, Fault};
use crate::store::seam::history::fault_row;
use crate::store::seam::{BULK_MAX, Commit, Extra};
use crate::store::{Done, Filter, TypeRow};
use crate::transition::{self, Input, JobRow, Phases, Refusal, Transition};

impl Commit<'_> {
    pub(super) fn cancel(&mut self, id: JobId) -> Result<CancelOutcome> {
        let Some(before) = self.rows.job(id)? else {
            return Ok(CancelOutcome::NotFound);
        };
        match transition::decide(&before, &Input::Cancel, self.now) {
            Ok(transition) => match self.write(&before, &transition, Extra::default())? {
                Some(_) => Ok(CancelOutcome::Cancelled),
                None => Err(Error::new(
                    ErrorKind::Corrupt,
                    format!("job {id}: its row changed while it was being read"),
                )),
            },
            Err(Refusal::Illegal(status)) => Ok(CancelOutcome::AlreadyFinished(status)),
            Err(Refusal::Stale) => Ok(CancelOutcome::AlreadyFinished(before.status)),
        }
    }

    /// Retry or delete one job.
    pub(super) fn change(&mut self, id: JobId, input: &Input, rule: &str) -> Result<JobRow> {
        let before = self.load(id)?;
        let transition = transition::decide(&before, input, self.now).map_err(|_| {
            Error::new(
                ErrorKind::Conflict,
                format!("job {id} is {}: {rule}", before.status),
            )
        })?;
        let data = requested_data(input);
        let written = self.write(
            &before,
            &transition,
            Extra {
                data,
                ..Extra::default()
            },
        )?;
        written.ok_or_else(|| {
            Error::new(
                ErrorKind::Corrupt,
                format!("job {id}: its row changed while it was being read"),
            )
        })
    }

    pub(super) fn bulk(&mut self, bulk: &Bulk) -> Result<Vec<JobRow>> {
        let (input, rule) = match bulk.action {
            BulkAction::Cancel => (
                Input::Cancel,
                "only jobs that are not over can be cancelled",
            ),
            BulkAction::Retry(from) => (
                Input::Retry(from),
                "only failed and cancelled jobs can be retried",
            ),
            BulkAction::Delete => (Input::Delete, "only jobs that are over can be deleted"),
        };
        let (filter, expect) = match &bulk.jobs {
            Chosen::Found { filter, expect } => (filter, *expect),
            Chosen::Listed(ids) => {
                let mut changed = Vec::new();
                for &id in ids {
                    let before = self.rows.job(id)?;
                    let allows = |row| transition::decide(row, &input, self.now).is_ok();
                    if before.as_ref().is_some_and(allows) {
                        changed.push(self.change(id, &input, rule)?);
                    }
                }
                return Ok(changed);
            }
        };
        self.found(filter, expect)?
            .into_iter()
            .map(|id| self.change(id, &input, rule))
            .collect()
    }

    /// The jobs that a filter names, if they are as many as expected.
    fn found(&mut self, filter: &Filter, expect: Option<usize>) -> Result<Vec<JobId>> {
        let Some(status) = filter.status else {
            return Err(Error::new(
                ErrorKind::InvalidJob,
                "a bulk operation needs a status to select by",
            ));
        };
        let type_id = match &filter.job_type {
            Some(name) => Some(self.rows.job_type(&name.as_str().into())?.id),
            None => None,
        };
        let ids = self.rows.ids(status, type_id, BULK_MAX + 1)?;
        if ids.len() > BULK_MAX {
            let problem = format!(
                "more than {BULK_MAX} jobs are {status}: select fewer, or take them by their ids"
            );
            return Err(Error::new(ErrorKind::Conflict, problem));
        }
        if let Some(expected) = expect
            && expected != ids.len()
        {
            let name = filter.job_type.as_ref();
            let of_type = name.map_or(String::new(), |name| format!(" of type {name:?}"));
            let problem = format!(
                "{} jobs{of_type} are {status}, not {expected}: look again, nothing was changed",
                ids.len()
            );
            return Err(Error::new(ErrorKind::Conflict, problem));
        }
        Ok(ids)
    }

    pub(super) fn set_paused(&mut self, job_type: Option<&Arc<str>>, paused: bool) -> Result<Done> {
        self.writes += 1;
        match job_type {
            None => self.rows.set_paused(paused)?,
            Some(name) => {
                let row = self.rows.job_type(name)?;
                self.rows.set_job_type(&TypeRow { paused, ..row })?;
            }
        }
        Ok(Done::Nothing)
    }

    pub(super) fn register(&mut self, types: &[(Arc<str>, Option<Plan>)]) -> Result<Done> {
        for (name, plan) in types {
            let row = self.rows.job_type(name)?;
            let plan_id = plan
                .as_ref()
                .map_or(Ok(0), |plan| self.rows.plan_id(plan))?;
            if row.plan_id != plan_id {
                self.writes += 1;
                self.rows.set_job_type(&TypeRow { plan_id, ..row })?;
            }
        }
        Ok(Done::Nothing)
    }

    pub(super) fn set_plan(
        &mut self,
        id: JobId,
        plan: &std::result::Result<Plan, String>,
    ) -> Result<Done> {
        let Some(before) = self.rows.job(id)? else {
            return Ok(Done::Nothing);
        };
        if before.status != JobStatus::Pending {
            return Ok(Done::Nothing);
        }
        match plan {
            Ok(plan) => {
                self.replan(&before, plan)?;
                Ok(Done::Nothing)
            }
            Err(problem) => {
                let failed = JobRow {
                    status: JobStatus::Failed,
                    finished_at: Some(self.now),
                    ..before
                };
                let transition = Transition {
                    after: failed,
                    change: Change::Expired,
                    phases: Phases::Keep,
                    cause: None,
                };
                let fault = Fault {
                    cause: ErrorCause::Decode,
                    message: problem.clone(),
                    backtrace: None,
                };
                let error = fault_row(&fault, None, &before, self.now);
                let data = Some(json!({"kind": error.cause, "message": error.message}).to_string());
                let extra = Extra {
                    data,
                    error: Some(error),
                    ..Extra::default()
                };
                let written = self.write(&before, &transition, extra)?;
                Ok(Done::Changed(written.into_iter().collect()))
            }
        }
    }
}

fn requested_data(input: &Input) -> Option<String> {
    match input {
        Input::Retry(crate::job::RetryFrom::Failed) => {
            Some(json!({"reason": "requested", "from": "failed"}).to_string())
        }
        Input::Retry(crate::job::RetryFrom::Start) => {
            Some(json!({"reason": "requested", "from": "start"}).to_string())
        }
        Input::Delete => Some(json!({"reason": "requested"}).to_string()),
        Input::Claim
        | Input::PhaseCompleted { .. }
        | Input::PhaseFailed { .. }
        | Input::Snooze { .. }
        | Input::HandlerCancelled { .. }
        | Input::Interrupted { .. }
        | Input::Cancel => None,
    }
}

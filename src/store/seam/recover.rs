//! After a crash: what becomes of the jobs that were under way. L2.

use serde_json::json;

use crate::error::Result;
use crate::job::{ErrorCause, JobStatus};
use crate::store::Done;
use crate::store::ops::{Fault, Noted, Recover};
use crate::store::seam::history::{fault_row, interrupted_data, interrupted_row};
use crate::store::seam::{Commit, Extra};
use crate::time::Timestamp;
use crate::transition::{self, Entered, Input, JobRow};

impl Commit<'_> {
    pub(super) fn recover(&mut self, recover: &Recover) -> Result<Done> {
        let (mut interrupted, mut failed) = (0, 0);
        for id in self.rows.ids(JobStatus::Running, None, usize::MAX)? {
            let before = self.load(id)?;
            let (how, since) = evidence(recover, &before);
            let entered = how != Entered::No;
            let max_crashes = self.max_crashes_of(&before, recover)?;
            let input = Input::Interrupted {
                epoch: before.epoch,
                reason: recover.reason,
                entered: how,
                max_crashes,
            };
            let Ok(transition) = transition::decide(&before, &input, self.now) else {
                continue;
            };
            let phase = self.phase_name(&before)?;
            let charged = transition.after.crash_count > before.crash_count;
            let mut error = entered
                .then(|| interrupted_row(recover.reason, phase.clone(), &before, since, self.now));
            let mut data =
                interrupted_data(recover.reason, entered, charged, since.filter(|_| entered));
            if transition.cause.is_some() {
                failed += 1;
                let message = format!(
                    "the process died inside this job {} times",
                    transition.after.crash_count
                );
                let fault = Fault {
                    cause: ErrorCause::CrashLimit,
                    message,
                    backtrace: None,
                };
                let limit = fault_row(&fault, phase, &before, self.now);
                data = Some(
                    json!({"reason": recover.reason, "entered": entered, "charged": charged, "since": since,
                        "kind": limit.cause, "message": limit.message})
                    .to_string(),
                );
                // The history tells it in the order of the events: cut off, and therefore failed.
                if let Some(interrupted) = error.replace(limit) {
                    self.writes += 1;
                    self.rows.add_error(id, &interrupted)?;
                }
            } else {
                interrupted += 1;
            }
            self.write(
                &before,
                &transition,
                Extra {
                    data,
                    error,
                    ..Extra::default()
                },
            )?;
        }
        Ok(Done::Recovered {
            interrupted,
            failed,
        })
    }

    fn max_crashes_of(&mut self, row: &JobRow, recover: &Recover) -> Result<u32> {
        for (name, max) in &recover.max_crashes {
            if self.rows.job_type(name)?.id == row.type_id {
                return Ok(*max);
            }
        }
        Ok(recover.max_crashes_default)
    }
}

/// How far the phase of a job had come, and since when it ran.
fn evidence(recover: &Recover, row: &JobRow) -> (Entered, Option<Timestamp>) {
    let noted = |list: &[Noted]| {
        let is_meant = |(id, epoch, phase_index, _): &&Noted| {
            (*id, *epoch, *phase_index) == (row.id, row.epoch, row.phase_index)
        };
        list.iter().find(is_meant).map(|(.., since)| *since)
    };
    let (inside, returned) = (noted(&recover.inside), noted(&recover.returned));
    let entered = if recover.all_entered || inside.is_some() {
        Entered::Inside
    } else if returned.is_some() {
        Entered::Returned
    } else {
        Entered::No
    };
    (entered, inside.or(returned).or(row.phase_started_at))
}

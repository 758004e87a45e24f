//! After a crash: what becomes of the jobs that were under way; and after a clock that was ahead: of those that wait for its time. L2.

use serde_json::json;

use crate::error::{ErrorKind, Result};
use crate::job::{ErrorCause, JobId, JobStatus};
use crate::store::Done;
use crate::store::ops::{Fault, Noted, Recover};
use crate::store::seam::history::{fault_row, interrupted_data, interrupted_row};
use crate::store::seam::{Commit, Extra};
use crate::time::Timestamp;
use crate::transition::{self, Entered, Flags, Input, JobRow};

impl Commit<'_> {
    pub(super) fn recover(&mut self, recover: &Recover) -> Result<Done> {
        self.bring_forward()?;
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

    /// The clock was decades ahead, and is not followed any more: what was to wait for seconds then would wait for decades. Every
    /// pending job is looked at, which takes its time, but is done once: what is written from now on has this time.
    fn bring_forward(&mut self) -> Result<()> {
        let newest = self.rows.event_time(self.head.seq)?;
        if newest.is_none_or(|at| at <= self.now) {
            return Ok(());
        }
        let mut jobs = 0;
        for id in self.rows.ids(JobStatus::Pending, None, usize::MAX)? {
            jobs += usize::from(self.bring_job_forward(id)?);
        }
        let deliveries = self.rows.bring_forward(self.now)?;
        if jobs + deliveries > 0 {
            self.writes += 1;
            log::warn!(
                "a clock was ahead when the file was last written: {jobs} jobs and {deliveries} deliveries wait for its time no more"
            );
        }
        Ok(())
    }

    fn bring_job_forward(&mut self, id: JobId) -> Result<bool> {
        let before = match self.rows.job(id) {
            Ok(Some(row)) if row.run_at > self.now => row,
            Ok(_) => return Ok(false),
            // Whoever claims it says so.
            Err(error) if error.kind() == ErrorKind::Corrupt => return Ok(false),
            Err(error) => return Err(error),
        };
        // The oldest end of the log may be gone.
        let told = self.rows.event_time(before.last_seq)?;
        let Some(after) = brought_forward(&before, told.unwrap_or(before.created_at), self.now)
        else {
            return Ok(false);
        };
        self.writes += 1;
        self.rows.update_job(&before, &after)
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

/// A pending job whose start was set by a clock that was ahead: it waits for as long as it was to wait by that clock. Nothing when
/// its start was set before that. `told`: when its last change was written.
fn brought_forward(row: &JobRow, told: Timestamp, now: Timestamp) -> Option<JobRow> {
    // After its start there may have been news of a delivery.
    let since = if row.run_at >= told {
        told
    } else if row.started_at.is_some() {
        row.run_at
    } else {
        row.created_at
    };
    if since <= now {
        return None;
    }
    let moved = |at: Timestamp| now.after(at.since(since));
    let is_new = row.created_at > now;
    Some(JobRow {
        run_at: moved(row.run_at),
        deadline: row.deadline.map(|at| if is_new { moved(at) } else { at }),
        flags: row.flags.with(Flags::MOVED),
        ..*row
    })
}

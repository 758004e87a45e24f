//! Enqueueing: new jobs, the keys that make them unique, and the direct hand-off to an idle worker. L2.

use serde_json::json;

use crate::error::{Error, ErrorKind, Result};
use crate::event::{Change, Plan};
use crate::job::{JobId, JobStatus};
use crate::new_job::{Enqueued, NewJob, UniqueKey, While};
use crate::store::ops::{Claimed, PlannedJob};
use crate::store::seam::Commit;
use crate::store::{Details, Holder, Rows, TypeRow, prune};
use crate::time::Timestamp;
use crate::transition::{self, Flags, Input, JobRow};

impl Commit<'_> {
    /// `direct`: it may be stored as claimed.
    pub(super) fn enqueue(&mut self, planned: &PlannedJob, direct: bool) -> Result<Enqueued> {
        let job = &planned.job;
        let job_type = self.rows.job_type(&job.job_type)?;
        if let Some(unique) = &job.unique
            && let Some(id) = self.holder_of(&job_type, unique)?
        {
            return Ok(Enqueued { id, is_new: false });
        }
        let (plan_id, phase_count) = match &planned.plan {
            Some(plan) => (self.rows.plan_id(plan)?, plan.len()),
            None if job_type.plan_id != 0 => {
                (job_type.plan_id, self.rows.plan(job_type.plan_id)?.len())
            }
            None => (0, 0),
        };
        let now = self.now;
        let run_at = job.run_at.at(now);
        if self.head.job_id >= JobId::MAX {
            return Err(Error::new(
                ErrorKind::Storage,
                "every job id has been used: start a new file",
            ));
        }
        self.head.job_id += 1;
        let mut row = JobRow {
            id: JobId::from_i64(self.head.job_id),
            type_id: job_type.id,
            plan_id,
            status: JobStatus::Pending,
            priority: job.priority,
            run_at,
            epoch: 0,
            attempt: 0,
            phase_index: 0,
            phase_count: u32::try_from(phase_count).expect("a plan has 256 phases at most"),
            phase_attempt: 0,
            crash_count: 0,
            created_at: now,
            started_at: None,
            phase_started_at: None,
            finished_at: None,
            deadline: job.deadline.map(|deadline| run_at.after(deadline)),
            last_seq: self.head.seq + 1,
            flags: Flags::default(),
        };
        self.own_endpoints(&mut row, &job.endpoints)?;
        let data = created_data(job.priority, run_at, now);
        let unique_key = job.unique.as_ref().map(|unique| unique.key.as_str());
        let plan = direct.then_some(planned.plan.as_ref());
        self.insert(row, &job.input, unique_key, data, plan)?;
        if let Some(unique) = &job.unique {
            let (hold, expires) = match unique.hold {
                While::Queued => (0, Timestamp::default()),
                While::Live => (1, Timestamp::default()),
                While::For(duration) => (2, now.after(duration)),
            };
            let holder = Holder {
                job_id: row.id,
                hold,
                expires,
            };
            self.rows.set_holder(job_type.id, &unique.key, &holder)?;
        }
        Ok(Enqueued {
            id: row.id,
            is_new: true,
        })
    }

    /// Stores a new job: as pending, or, when a worker is idle and nothing waits, as claimed already. `direct`: its plan, if it
    /// is known and not its type's; none when it may not be claimed here.
    fn insert(
        &mut self,
        row: JobRow,
        input: &str,
        unique_key: Option<&str>,
        data: Option<String>,
        direct: Option<Option<&Plan>>,
    ) -> Result<()> {
        let plan = direct.flatten();
        let fits =
            direct.is_some() && self.room > 0 && row.run_at <= self.now && row.phase_count > 0;
        let types = &self.request.types;
        let claimable = types
            .iter()
            .find(|claimable| fits && claimable.type_id == row.type_id);
        let claimable = claimable.filter(|claimable| claimable.concurrency.is_none());
        let claimed = claimable.and_then(|claimable| {
            let transition = transition::decide(&row, &Input::Claim, self.now).ok()?;
            let plan = match (&claimable.plan, plan) {
                (Some((plan_id, plan)), _) if *plan_id == row.plan_id => plan.clone(),
                (None, Some(plan)) => plan.clone(),
                _ => return None,
            };
            (transition.change == Change::Claimed)
                .then(|| (transition.after, plan, claimable.job_type.clone()))
        });
        self.writes += 1;
        let unlinked = JobRow { last_seq: 0, ..row };
        let Some((after, plan, job_type)) = claimed else {
            self.rows.insert_job(&row, input, unique_key)?;
            self.head.counts[JobStatus::Pending as usize] += 1;
            return self.log(&unlinked, Change::Created, (0, 0), data);
        };
        self.rows.insert_job(&after, input, unique_key)?;
        self.head.counts[JobStatus::Running as usize] += 1;
        self.log(&unlinked, Change::CreatedAndClaimed, (0, 1), data)?;
        self.room -= 1;
        let details = Details {
            input: input.to_owned(),
            ..Details::default()
        };
        self.claims.claimed.push(Claimed {
            row: after,
            job_type,
            plan,
            details,
        });
        Ok(())
    }

    /// A job that is tried again has its unique key again, if another has had it since and needs it no more. If that one does, both
    /// go on; and so they do when it was deleted, and the key with it.
    pub(super) fn hold_again(&mut self, row: &JobRow) -> Result<()> {
        let Some(key) = self.rows.unique_key(row.id)? else {
            return Ok(());
        };
        let Some(holder) = self.rows.holder(row.type_id, &key)? else {
            return Ok(());
        };
        if holder.hold == 2 || holder.job_id == row.id {
            return Ok(());
        }
        match holds(self.rows, &holder, self.now) {
            Ok(false) => {}
            Ok(true) => return Ok(()),
            // Nobody knows, and it keeps nobody from being tried again.
            Err(error) if error.kind() == ErrorKind::Corrupt => return Ok(()),
            Err(error) => return Err(error),
        }
        self.writes += 1;
        let job_id = row.id;
        let holder = Holder { job_id, ..holder };
        self.rows.set_holder(row.type_id, &key, &holder)
    }

    /// The job that a unique key stands for now.
    fn holder_of(&mut self, job_type: &TypeRow, unique: &UniqueKey) -> Result<Option<JobId>> {
        let Some(holder) = self.rows.holder(job_type.id, &unique.key)? else {
            return Ok(None);
        };
        let holds = holds(self.rows, &holder, self.now)?;
        Ok(holds.then_some(holder.job_id))
    }
}

/// Whether a job of those that are stored together may be claimed before the next is seen: they come up in the order in which they
/// are stored, and none of them has a key that would be free for the next by that.
pub(super) fn may_be_claimed_one_by_one(jobs: &[PlannedJob]) -> bool {
    let is_like = |a: &NewJob, b: &NewJob| a.priority == b.priority && a.job_type == b.job_type;
    let hold = |job: &NewJob| job.unique.as_ref().map(|unique| unique.hold);
    jobs.windows(2).all(|pair| {
        let (job, next) = (&pair[0].job, &pair[1].job);
        is_like(job, next) && hold(job) != Some(While::Queued)
    })
}

/// Whether a unique key stands for its job, or may again: a job that runs or is over can be tried again.
pub(crate) fn may_hold(rows: &mut dyn Rows, holder: &Holder, now: Timestamp) -> Result<bool> {
    if holder.hold == 2 {
        return Ok(holder.expires > now);
    }
    prune::is_there(rows, holder.job_id)
}

/// Whether a unique key still stands for its job.
fn holds(rows: &mut dyn Rows, holder: &Holder, now: Timestamp) -> Result<bool> {
    if holder.hold == 2 {
        return Ok(holder.expires > now);
    }
    let status = rows.job(holder.job_id)?.map(|row| row.status);
    Ok(match status {
        None => false,
        Some(status) if holder.hold == 0 => status == JobStatus::Pending,
        Some(status) => !status.is_terminal(),
    })
}

fn created_data(priority: i32, run_at: Timestamp, now: Timestamp) -> Option<String> {
    match (priority, run_at > now) {
        (0, false) => None,
        (priority, false) => Some(json!({"priority": priority}).to_string()),
        (priority, true) => Some(json!({"priority": priority, "run_at": run_at}).to_string()),
    }
}

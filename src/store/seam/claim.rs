//! Claims: which due jobs start now, and with which phases. L2.

use crate::error::Result;
use crate::event::Plan;
use crate::job::JobStatus;
use crate::store::ops::{Claimable, Claimed, Fault};
use crate::store::seam::history::{failed_data, fault_row};
use crate::store::seam::{Commit, Extra};
use crate::transition::{self, Flags, Input, JobRow};

/// Looks in one commit that came upon jobs past their deadline; more of them are left to the next commit.
const LOOKS_MAX: usize = 32;

/// What a look at what is due came to.
#[derive(PartialEq, Eq)]
enum Look {
    Done,
    /// It has failed a job past its deadline. That had been counted as if it were to run, so another may stand behind it.
    Again,
}

impl Commit<'_> {
    pub(super) fn claim(&mut self) -> Result<()> {
        let mut bytes = 0;
        for _ in 0..LOOKS_MAX {
            if self.look(&mut bytes)? == Look::Done {
                return Ok(());
            }
        }
        (self.claims.more, self.claims.is_full) = (true, true);
        Ok(())
    }

    fn look(&mut self, bytes: &mut usize) -> Result<Look> {
        self.claims.looked = true;
        (self.claims.more, self.claims.is_full) = (false, false);
        let request = self.request;
        let mut due: Vec<(JobRow, &Claimable)> = Vec::new();
        let mut rows = Vec::new();
        for claimable in request.types.iter() {
            let mut limit = self.room;
            if let Some(max) = claimable.concurrency {
                let running = self.rows.running(claimable.type_id)?;
                limit = limit.min(max.saturating_sub(running) as usize);
            }
            // A few more than there is room for: those that must not be claimed now, and one to know whether there are more.
            rows.clear();
            self.rows.due(
                claimable.type_id,
                self.now,
                limit + 1 + request.exclude.len(),
                &mut rows,
            )?;
            rows.retain(|row| !request.exclude.contains(&row.id));
            if let Some(end) = self.first_beyond_plans(&rows, claimable) {
                // Those behind it wait, and are not passed by.
                self.claims.more = true;
                rows.truncate(end);
            }
            if rows.len() > limit {
                self.claims.more = true;
                self.claims.is_full |= limit == self.room;
                rows.truncate(limit);
            }
            due.extend(rows.iter().map(|row| (*row, claimable)));
        }
        if request.types.len() > 1 {
            due.sort_by_key(|(row, _)| (std::cmp::Reverse(row.priority), row.run_at, row.id));
        }
        let ended = self.claims.ended.len();
        for (row, claimable) in due {
            if self.room == 0 || *bytes > request.bytes_max {
                self.claims.more = true;
                self.claims.is_full = true;
                break;
            }
            *bytes += self.claim_one(&row, claimable)?;
            if self.claims.ended.len() > ended {
                return Ok(Look::Again);
            }
        }
        if !self.claims.is_full {
            for claimable in request.types.iter() {
                let next = self.rows.next_due(claimable.type_id, self.now)?;
                self.claims.next_due = [self.claims.next_due, next].into_iter().flatten().min();
            }
        }
        Ok(Look::Done)
    }

    /// The first of these due jobs of a type that has no plan, and for which none may be asked now.
    fn first_beyond_plans(&self, rows: &[JobRow], claimable: &Claimable) -> Option<usize> {
        let has_none = |row: &JobRow| claimable.plan.is_none() && row.plan_id == 0;
        let mut unplanned = rows.iter().enumerate().filter(|(_, row)| has_none(row));
        unplanned.nth(self.request.plans_max).map(|(at, _)| at)
    }

    /// Claims a due job, and answers how many bytes of input that loaded.
    fn claim_one(&mut self, row: &JobRow, claimable: &Claimable) -> Result<usize> {
        let mut before = *row;
        let plan = match &claimable.plan {
            Some((plan_id, plan)) => {
                if before.plan_id != *plan_id {
                    before = self.replan(&before, plan)?;
                }
                plan.clone()
            }
            None if before.plan_id == 0 => {
                let unplanned = &self.claims.unplanned;
                if unplanned.iter().any(|(id, ..)| *id == before.id) {
                    return Ok(0);
                }
                if unplanned.len() >= self.request.plans_max {
                    self.claims.more = true;
                    return Ok(0);
                }
                let input = self.rows.details(&before)?.input;
                let bytes = input.len();
                self.claims
                    .unplanned
                    .push((before.id, claimable.job_type.clone(), input));
                return Ok(bytes);
            }
            None => self.rows.plan(before.plan_id)?,
        };
        let Ok(transition) = transition::decide(&before, &Input::Claim, self.now) else {
            return Ok(0);
        };
        let mut extra = Extra::default();
        if let Some(cause) = transition.cause {
            let message = "the deadline passed before the job was over".to_owned();
            let phase = plan
                .get(before.phase_index as usize)
                .map(|phase| phase.name.clone());
            let error = fault_row(
                &Fault {
                    cause,
                    message,
                    backtrace: None,
                },
                phase,
                &before,
                self.now,
            );
            extra.data = failed_data(&transition, Some(&error));
            extra.error = Some(error);
        }
        let Some(after) = self.write(&before, &transition, extra)? else {
            return Ok(0);
        };
        if after.status != JobStatus::Running {
            self.claims.ended.push((after.id, after.status));
            return Ok(0);
        }
        let details = self.rows.details(&after)?;
        let bytes = details.input.len();
        self.claims.claimed.push(Claimed {
            row: after,
            job_type: claimable.job_type.clone(),
            plan,
            details,
        });
        self.room -= 1;
        Ok(bytes)
    }

    /// Gives a pending job the phases of `plan`. Results are kept for the longest beginning of the new plan whose every phase,
    /// by name and version, has one; the phase behind it and all after that run again. A checkpoint is kept when the job goes
    /// on where it was: it must not be seen by another phase.
    pub(super) fn replan(&mut self, before: &JobRow, plan: &Plan) -> Result<JobRow> {
        let plan_id = self.rows.plan_id(plan)?;
        let old = self.rows.plan(before.plan_id)?;
        let (next, mut flags) = (before.phase_index as usize, before.flags);
        let mut kept = next;
        let is_fresh = next == 0 && !flags.has(Flags::SAVED);
        let goes_on = next < old.len() && old.get(..=next) == plan.get(..=next);
        if !is_fresh && !goes_on {
            kept = self.keep_results(before, &old, plan)?;
            flags = flags.without(Flags::SAVED);
        }
        let after = JobRow {
            plan_id,
            phase_count: u32::try_from(plan.len()).expect("a plan has 256 phases at most"),
            phase_index: u32::try_from(kept).expect("no more than phases"),
            phase_attempt: 0,
            flags,
            ..*before
        };
        self.writes += 1;
        self.rows.update_job(before, &after)?;
        Ok(after)
    }

    /// Moves the results that the new plan can use to their places in it, drops the others and all checkpoints, and answers
    /// how many are left.
    fn keep_results(&mut self, before: &JobRow, old: &Plan, plan: &Plan) -> Result<usize> {
        let results = self.rows.results(before.id)?;
        let found = |phase| {
            let has =
                |index: u32| index < before.phase_index && old.get(index as usize) == Some(phase);
            results.iter().find(|(index, _)| has(*index))
        };
        // A job that waits has a phase to run: when a plan was cut short behind its results, its last phase runs again.
        let most = plan.len().saturating_sub(1);
        let kept: Vec<_> = plan.iter().take(most).map_while(found).collect();
        self.writes += 1;
        self.rows.clear_results(before.id, 0)?;
        for (index, (_, done)) in (0..).zip(&kept) {
            self.rows.put_result(before.id, index, done)?;
        }
        Ok(kept.len())
    }
}

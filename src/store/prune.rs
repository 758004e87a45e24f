//! Retention: which jobs and events are deleted next. L2, written once for every backend.
//!
//! One call is one small step, so that a commit stays short; the caller decides how many steps it has time for.

use std::time::Duration;

use crate::config::Keep;
use crate::delivery::DeliveryId;
use crate::error::Result;
use crate::event::Seq;
use crate::job::{JobId, JobStatus};
use crate::store::ops::{Prune, Pruned};
use crate::store::{Head, Rows};
use crate::time::Timestamp;

/// A clock that shows less was never set (2020-01-01): what ended "then" says nothing about its age.
const CLOCK_WAS_SET: Timestamp = Timestamp::from_millis(1_577_836_800_000);

/// Unique keys that are looked at in a step. Those that go with their job are gone: these are for the ones that stand for a time, and
/// there must be more of them than of jobs that a step deletes.
const HOLDERS_MAX: usize = 256;

/// What a step needs of the open commit.
pub(crate) trait Delete {
    /// Deletes a job that is over, with its event.
    fn delete(&mut self, id: JobId) -> Result<bool>;
    fn rows(&mut self) -> (&mut dyn Rows, Head, Timestamp);
    fn written(&mut self);
}

/// One step.
pub(crate) fn run(commit: &mut dyn Delete, prune: &Prune) -> Result<Pruned> {
    let mut pruned = Pruned::default();
    for status in [
        JobStatus::Completed,
        JobStatus::Failed,
        JobStatus::Cancelled,
    ] {
        let room = prune.jobs_max.saturating_sub(pruned.jobs);
        let (deleted, next) = jobs(commit, prune, status, room)?;
        pruned.jobs += deleted;
        pruned.more |= deleted == room;
        pruned.next = [pruned.next, next].into_iter().flatten().min();
    }
    let (rows, head, now) = commit.rows();
    let (events, deliveries) = (prune.retention.events, prune.retention.deliveries);
    let keep_from = events.count.map_or(0, |count| {
        head.seq + 1 - i64::try_from(count).unwrap_or(i64::MAX)
    });
    let (gone, oldest) = self::events(rows, keep_from, cutoff(events, now), prune.events_max)?;
    pruned.events = gone;
    pruned.more |= gone == prune.events_max;
    pruned.until(oldest, events);
    rows.prune_holders(now, HOLDERS_MAX)?;
    let first = DeliveryId::of_event(keep_from.max(0), 0);
    let (mut jobs, oldest) =
        rows.prune_deliveries(first, cutoff(deliveries, now), prune.jobs_max)?;
    pruned.deliveries = jobs.len();
    pruned.more |= jobs.len() == prune.jobs_max;
    pruned.until(oldest, deliveries);
    jobs.sort();
    jobs.dedup();
    for job in jobs {
        if rows.job(job)?.is_none() {
            drop_endpoints(rows, job)?;
        }
    }
    if pruned.jobs + pruned.events + pruned.deliveries > 0 {
        commit.written();
    }
    Ok(pruned)
}

/// Deletes the own endpoints of a job that is gone, unless there are deliveries of it, which can be sent again.
pub(crate) fn drop_endpoints(rows: &mut dyn Rows, job: JobId) -> Result<()> {
    if rows.has_deliveries(job)? {
        return Ok(());
    }
    let endpoints = rows.endpoints_of(job)?;
    if endpoints.is_empty() {
        return Ok(());
    }
    rows.unlink_endpoints(job)?;
    for endpoint in endpoints {
        rows.drop_endpoint(endpoint.id)?;
    }
    Ok(())
}

impl Pruned {
    /// The oldest thing that is kept goes by this rule.
    fn until(&mut self, oldest: Option<Timestamp>, keep: Keep) {
        if let (Some(age), Some(oldest)) = (keep.age, oldest) {
            let next = Some(oldest.after(age));
            self.next = [self.next, next].into_iter().flatten().min();
        }
    }
}

/// What was before this goes by its age.
fn cutoff(keep: Keep, now: Timestamp) -> Timestamp {
    keep.age
        .map_or(Timestamp::from_millis(i64::MIN), |age| too_old(age, now))
}

/// What was before this is too old. What has just reached the age is: `Pruned::next` names that very time.
fn too_old(age: Duration, now: Timestamp) -> Timestamp {
    now.before(age).after(Duration::from_millis(1))
}

/// Deletes at most `room` jobs of a status; answers how many, and when the next one will be too old.
fn jobs(
    commit: &mut dyn Delete,
    prune: &Prune,
    status: JobStatus,
    room: usize,
) -> Result<(usize, Option<Timestamp>)> {
    let keep = prune.retention.of(status);
    let (rows, head, now) = commit.rows();
    let mut ids = Vec::new();
    if let Some(count) = keep.count {
        let excess =
            head.counts[status as usize].saturating_sub(i64::try_from(count).unwrap_or(i64::MAX));
        let excess = usize::try_from(excess).unwrap_or(0).min(room);
        if excess > 0 {
            let any = Timestamp::from_millis(i64::MIN);
            ids = rows.oldest_ended(status, any, Timestamp::MAX, excess)?;
        }
    }
    if let Some(age) = keep.age
        && ids.is_empty()
        && room > 0
    {
        ids = rows.oldest_ended(status, CLOCK_WAS_SET, too_old(age, now), room)?;
    }
    let mut deleted = 0;
    for id in ids {
        deleted += usize::from(commit.delete(id)?);
    }
    let mut next = None;
    if let Some(age) = keep.age {
        let (rows, ..) = commit.rows();
        let oldest = rows.oldest_ended(status, CLOCK_WAS_SET, Timestamp::MAX, 1)?;
        if let Some(id) = oldest.first()
            && let Some(row) = rows.job(*id)?
        {
            next = row.finished_at.map(|at| at.after(age));
        }
    }
    Ok((deleted, next))
}

/// Deletes at most `most` rows from the old end of the log: those of events before `keep_from`, and those that were written
/// before `cutoff`. Answers how many, and when the oldest that is left, and is not the newest row, was written.
fn events(
    rows: &mut dyn Rows,
    keep_from: Seq,
    cutoff: Timestamp,
    most: usize,
) -> Result<(usize, Option<Timestamp>)> {
    // One more than may go, to say when that one will be too old, and one behind it, where it ends. The last row that is read
    // stays, since it may be the newest, which has the head.
    let old = rows.oldest_events(most.saturating_add(2))?;
    let ends = old.iter().skip(1).map(|(seq, _)| *seq);
    let with_ends = old.iter().zip(ends).take(most);
    let is_old = |((_, at), end): &(&(Seq, Timestamp), Seq)| *end <= keep_from || *at < cutoff;
    let gone = with_ends.take_while(is_old).count();
    if gone > 0 {
        rows.delete_events(old[gone].0)?;
    }
    let oldest = old.get(gone).filter(|_| gone + 1 < old.len());
    Ok((gone, oldest.map(|(_, at)| *at)))
}

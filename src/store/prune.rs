//! Retention: which jobs and events are deleted next. L2, written once for every backend.
//!
//! One call is one small step, so that a commit stays short; the caller decides how many steps it has time for.

use std::time::Duration;

use crate::config::Keep;
use crate::delivery::DeliveryId;
use crate::error::{Error, ErrorKind, Result};
use crate::event::Seq;
use crate::job::{JobId, JobStatus};
use crate::store::ops::{Prune, Pruned};
use crate::store::{Head, Rows};
use crate::time::{CLOCK_WAS_SET, Timestamp};

/// Unique keys that are looked at in a step. Those that go with their job are gone: these are for the ones that stand for a time, and
/// there must be more of them than of jobs that a step deletes.
const HOLDERS_MAX: usize = 256;

/// Results, inputs and checkpoints that a step deletes: SQLite reads every page of a large one before it is free.
const BYTES_MAX: u64 = 4 << 20;

/// When a job ended, and which: the order of jobs that are over.
pub(crate) type Ended = (Timestamp, JobId);

const NO_JOB: JobId = JobId::from_i64(0);
/// Before all of them.
const FIRST: Ended = (Timestamp::from_millis(i64::MIN), NO_JOB);

/// Where the passes of retention are, which go on from one step to the next.
#[derive(Debug)]
pub(crate) struct Seen {
    /// The unique key that was looked at last.
    pub(crate) holders: (i64, String),
    /// By status: up to here no job could be deleted.
    stuck: [Ended; 5],
}

impl Default for Seen {
    fn default() -> Seen {
        Seen {
            holders: (0, String::new()),
            stuck: [FIRST; 5],
        }
    }
}

/// Jobs that are to go, and how many were asked for.
#[derive(Default)]
struct Batch {
    ended: Vec<Ended>,
    most: usize,
}

/// What a step needs of the open commit.
pub(crate) trait Delete {
    /// Deletes a job that is over, with its event.
    fn delete(&mut self, id: JobId) -> Result<bool>;
    fn rows(&mut self) -> (&mut dyn Rows, Head, Timestamp);
    fn written(&mut self);
    /// As in [`Rows`], for all that the commit has in mind.
    fn mark(&mut self) -> Result<()>;
    fn keep(&mut self) -> Result<()>;
    fn undo(&mut self) -> Result<()>;
}

/// One step. What is damaged is left where it is, and keeps nothing else from being deleted; that it is, is the answer of a step
/// that finds nothing else to do.
pub(crate) fn run(commit: &mut dyn Delete, prune: &Prune) -> Result<Pruned> {
    let mut step = Step {
        commit,
        prune,
        pruned: Pruned::default(),
        bytes: 0,
        is_full: false,
        damage: None,
    };
    for status in [
        JobStatus::Completed,
        JobStatus::Failed,
        JobStatus::Cancelled,
    ] {
        step.jobs(status)?;
    }
    step.log()?;
    step.part(|commit| {
        let (rows, _, now) = commit.rows();
        rows.prune_holders(now, HOLDERS_MAX)
    })?;
    step.deliveries()?;
    let Step { pruned, damage, .. } = step;
    let gone = pruned.jobs + pruned.events + pruned.deliveries;
    if gone > 0 {
        commit.written();
    }
    match damage {
        Some(error) if gone == 0 => Err(error),
        Some(_) => Ok(Pruned {
            more: true,
            ..pruned
        }),
        None => Ok(pruned),
    }
}

struct Step<'a> {
    commit: &'a mut dyn Delete,
    prune: &'a Prune,
    pruned: Pruned,
    /// What the jobs have stored that were taken so far, and whether one more would have been too much.
    bytes: u64,
    is_full: bool,
    /// The first thing that could not be done, if a damaged row is the reason.
    damage: Option<Error>,
}

impl Step<'_> {
    /// Does something that, on damage, is as if it had not been begun.
    fn part<T>(&mut self, work: impl FnOnce(&mut dyn Delete) -> Result<T>) -> Result<Option<T>> {
        self.commit.mark()?;
        match work(self.commit) {
            Ok(done) => {
                self.commit.keep()?;
                Ok(Some(done))
            }
            Err(error) if error.kind() == ErrorKind::Corrupt => {
                self.commit.undo()?;
                self.damage.get_or_insert(error);
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Jobs of a status.
    fn jobs(&mut self, status: JobStatus) -> Result<()> {
        let room = match self.is_full {
            true => 0,
            false => self.prune.jobs_max.saturating_sub(self.pruned.jobs),
        };
        let keep = self.prune.retention.of(status);
        let excess = self.part(|commit| excess(commit, status, keep, room))?;
        let mut deleted = self.delete(status, excess.unwrap_or_default())?;
        if let Some(age) = keep.age
            && deleted == 0
            && room > 0
        {
            let old = self.part(|commit| {
                let (rows, _, now) = commit.rows();
                let from = (CLOCK_WAS_SET, NO_JOB).max(rows.seen().stuck[status as usize]);
                let ended = rows.oldest_ended(status, from, too_old(age, now), room)?;
                Ok(Batch { ended, most: room })
            })?;
            deleted = self.delete(status, old.unwrap_or_default())?;
        }
        let oldest = self.part(|commit| first_ended(commit, status, keep))?;
        self.pruned.jobs += deleted;
        self.pruned.more |= deleted == room;
        self.pruned.until(oldest.flatten(), keep);
        Ok(())
    }

    /// Deletes what it can, and notes what it cannot, so that the next step begins behind it.
    fn delete(&mut self, status: JobStatus, batch: Batch) -> Result<usize> {
        let found = batch.ended.len();
        let ended = self.within_bytes(batch.ended)?;
        let is_end = found < batch.most && ended.len() == found;
        let all = self.part(|commit| {
            ended.iter().try_fold(0, |deleted, (_, id)| {
                Ok(deleted + usize::from(commit.delete(*id)?))
            })
        })?;
        let (mut deleted, mut stuck) = (all.unwrap_or(0), None);
        if deleted == 0 {
            // One of them is damaged, or none is what its index says.
            for (at, id) in ended {
                let is_deleted = self.part(|commit| commit.delete(id))?;
                deleted += usize::from(is_deleted.unwrap_or(false));
                stuck = if deleted == 0 { Some((at, id)) } else { stuck };
            }
        }
        let is_all_stuck = deleted == 0 && stuck.is_some();
        let seen = &mut self.commit.rows().0.seen().stuck[status as usize];
        if is_end {
            // From the oldest on again: somebody may have mended it.
            *seen = FIRST;
        } else if let Some(stuck) = stuck {
            *seen = stuck;
            self.pruned.more |= is_all_stuck;
        }
        Ok(deleted)
    }

    /// Those of them for which there is time. The first always is.
    fn within_bytes(&mut self, mut ended: Vec<Ended>) -> Result<Vec<Ended>> {
        for index in 0..ended.len() {
            let (rows, ..) = self.commit.rows();
            let bytes = match rows.stored_bytes(ended[index].1) {
                // It is seen when it is to be deleted.
                Err(error) if error.kind() == ErrorKind::Corrupt => 0,
                bytes => bytes?,
            };
            if self.bytes > 0 && self.bytes.saturating_add(bytes) > BYTES_MAX {
                ended.truncate(index);
                (self.is_full, self.pruned.more) = (true, true);
                break;
            }
            self.bytes = self.bytes.saturating_add(bytes);
        }
        Ok(ended)
    }

    fn log(&mut self) -> Result<()> {
        let (keep, most) = (self.prune.retention.events, self.prune.events_max);
        let done = self.part(|commit| {
            let (rows, head, now) = commit.rows();
            events(rows, head, keep, now, most)
        })?;
        if let Some((gone, oldest)) = done {
            self.pruned.events = gone;
            self.pruned.more |= gone == most;
            self.pruned.until(oldest, keep);
        }
        Ok(())
    }

    fn deliveries(&mut self) -> Result<()> {
        let (events, keep) = (self.prune.retention.events, self.prune.retention.deliveries);
        let most = self.prune.jobs_max;
        let done = self.part(|commit| {
            let (rows, head, now) = commit.rows();
            let first = DeliveryId::of_event(keep_from(events, head).max(0), 0);
            rows.prune_deliveries(first, ages_from(now)..cutoff(keep, now), most)
        })?;
        let Some((mut jobs, oldest)) = done else {
            return Ok(());
        };
        self.pruned.deliveries = jobs.len();
        self.pruned.more |= jobs.len() == most;
        self.pruned.until(oldest, keep);
        jobs.sort();
        jobs.dedup();
        for job in jobs {
            // An endpoint that is damaged stays, and keeps no delivery.
            self.part(|commit| {
                let (rows, ..) = commit.rows();
                if is_there(rows, job)? {
                    return Ok(());
                }
                drop_endpoints(rows, job)
            })?;
        }
        Ok(())
    }
}

/// Whether there is a job: one whose row cannot be read is.
pub(crate) fn is_there(rows: &mut dyn Rows, id: JobId) -> Result<bool> {
    match rows.job(id) {
        Ok(row) => Ok(row.is_some()),
        Err(error) if error.kind() == ErrorKind::Corrupt => Ok(true),
        Err(error) => Err(error),
    }
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

/// The first event that is kept for its count.
fn keep_from(keep: Keep, head: Head) -> Seq {
    keep.count.map_or(0, |count| {
        head.seq + 1 - i64::try_from(count).unwrap_or(i64::MAX)
    })
}

/// Jobs that are too many, at most `room`.
fn excess(commit: &mut dyn Delete, status: JobStatus, keep: Keep, room: usize) -> Result<Batch> {
    let (rows, head, _) = commit.rows();
    let count = keep.count.unwrap_or(u64::MAX);
    let excess =
        head.counts[status as usize].saturating_sub(i64::try_from(count).unwrap_or(i64::MAX));
    let most = usize::try_from(excess).unwrap_or(0).min(room);
    if most == 0 {
        return Ok(Batch::default());
    }
    let from = rows.seen().stuck[status as usize];
    let ended = rows.oldest_ended(status, from, Timestamp::MAX, most)?;
    Ok(Batch { ended, most })
}

/// When the first job of a status ended that goes by its age.
fn first_ended(
    commit: &mut dyn Delete,
    status: JobStatus,
    keep: Keep,
) -> Result<Option<Timestamp>> {
    if keep.age.is_none() {
        return Ok(None);
    }
    let (rows, ..) = commit.rows();
    let oldest = rows.oldest_ended(status, (CLOCK_WAS_SET, NO_JOB), Timestamp::MAX, 1)?;
    Ok(oldest.first().map(|(at, _)| *at))
}

/// What was before this says nothing about its age. While the clock is not set, what happens is measured by it all the same.
fn ages_from(now: Timestamp) -> Timestamp {
    if now < CLOCK_WAS_SET {
        Timestamp::from_millis(i64::MIN)
    } else {
        CLOCK_WAS_SET
    }
}

/// Whether a time of the log is that of the row's age. What is dated later than now was written while the clock was ahead.
fn says_its_age(at: Timestamp, now: Timestamp) -> bool {
    (ages_from(now)..=now).contains(&at)
}

/// Deletes at most `most` rows from the old end of the log. Answers how many, and when the oldest that is left, and is not the
/// newest row, was written.
///
/// A row that was written before the clock was set, or while it was ahead, is as old as the first one after it whose time says
/// something: it is older than that one, and nobody knows by how much.
fn events(
    rows: &mut dyn Rows,
    head: Head,
    keep: Keep,
    now: Timestamp,
    most: usize,
) -> Result<(usize, Option<Timestamp>)> {
    let (keep_from, cutoff) = (keep_from(keep, head), cutoff(keep, now));
    // One more than may go, to say when that one will be too old, and one behind it, where it ends. The last row that is read
    // stays, since it may be the newest, which has the head.
    let old = rows.oldest_events(most.saturating_add(2))?;
    let mut age_of_next = None;
    if let (Some((first, _)), Some((last, at))) = (old.first(), old.last())
        && keep.age.is_some()
        && !says_its_age(*at, now)
    {
        age_of_next = look_ahead(rows, (*first, *last), head.seq, now)?;
    }
    let mut ages: Vec<Option<Timestamp>> = Vec::with_capacity(old.len());
    for (_, at) in old.iter().rev() {
        if says_its_age(*at, now) {
            age_of_next = Some(*at);
        }
        ages.push(age_of_next);
    }
    ages.reverse();
    let ends = old.iter().skip(1).map(|(seq, _)| *seq);
    let is_old = |(end, at): &(Seq, &Option<Timestamp>)| {
        *end <= keep_from || at.is_some_and(|at| at < cutoff)
    };
    let gone = ends.zip(&ages).take(most).take_while(is_old).count();
    if gone > 0 {
        rows.delete_events(old[gone].0)?;
    }
    if gone + 1 >= old.len() {
        return Ok((gone, None));
    }
    // A time that is still to come says something then.
    let to_come = Some(old[gone].1).filter(|at| *at > now);
    Ok((gone, ages[gone].or(to_come)))
}

/// Looks behind the rows that begin with `first` and `last` for one whose time says something, in strides that double: some such
/// row, not always the first. The newest is looked at last.
fn look_ahead(
    rows: &mut dyn Rows,
    (first, last): (Seq, Seq),
    newest: Seq,
    now: Timestamp,
) -> Result<Option<Timestamp>> {
    let mut stride = last.saturating_sub(first).max(1);
    loop {
        let seq = last.saturating_add(stride).min(newest);
        let at = rows.event_time(seq)?.filter(|at| says_its_age(*at, now));
        if at.is_some() || seq >= newest {
            return Ok(at);
        }
        stride = stride.saturating_mul(2);
    }
}

//! What callers ask of a queue, in the same words for the process that runs it and for a client beside it. L3.
//!
//! [`Requests`] is the difference between the two: how an operation gets done, and what is known of job types.

use std::sync::Arc;
use std::time::Duration;

use crate::config::{self, Limits};
use crate::delivery::{is_https, not_https};
use crate::engine::Engine;
use crate::error::{Error, ErrorKind, Result};
use crate::event::{self, Event, Seq};
use crate::job::{BulkAction, CancelOutcome, Job, JobId, JobStatus, JobSummary, RetryFrom};
use crate::new_job::{Enqueued, NewJob};
use crate::phase::TypeDef;
use crate::store::ops::{Bulk, Chosen, Op, PlannedJob};
use crate::store::{Done, Filter, Reader, Slice};
use crate::time::monotonic;

/// How operations get done.
pub(crate) trait Requests {
    fn request(&self, op: Op) -> Result<Done>;
    fn job_type(&self, name: &str) -> Option<&Arc<TypeDef>>;
    fn limits(&self) -> &Limits;
    /// Whether endpoints that are not https are refused.
    fn is_https_only(&self) -> bool;
}

impl Requests for Engine {
    fn request(&self, op: Op) -> Result<Done> {
        self.ask(op)
    }

    fn job_type(&self, name: &str) -> Option<&Arc<TypeDef>> {
        self.registry.get(name)
    }

    fn limits(&self) -> &Limits {
        &self.config.limits
    }

    fn is_https_only(&self) -> bool {
        self.config.is_https_only
    }
}

/// Jobs to list. Defaults to all, 50 at a time.
#[derive(Clone, Debug, Default)]
pub struct ListFilter {
    filter: Filter,
    limit: Option<usize>,
    cursor: Option<String>,
}

impl ListFilter {
    /// All jobs, newest first.
    #[must_use]
    pub fn new() -> ListFilter {
        ListFilter::default()
    }

    /// Only jobs with this status; those that are over are listed by the time they ended, newest first.
    #[must_use]
    pub fn status(mut self, status: JobStatus) -> ListFilter {
        self.filter.status = Some(status);
        self
    }

    /// Only jobs of this type.
    #[must_use]
    pub fn job_type(mut self, name: impl Into<String>) -> ListFilter {
        self.filter.job_type = Some(name.into());
        self
    }

    /// At most this many. Defaults to `50`; 1 to 1000.
    #[must_use]
    pub fn limit(mut self, limit: usize) -> ListFilter {
        self.limit = Some(limit);
        self
    }

    /// From where another page ended: [`JobPage::next`].
    #[must_use]
    pub fn after(mut self, cursor: impl Into<String>) -> ListFilter {
        self.cursor = Some(cursor.into());
        self
    }
}

/// A page of a list.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct JobPage {
    /// Its jobs. Can be fewer than asked for, even none, with more to come: each call looks at 10,000 jobs at most.
    pub jobs: Vec<JobSummary>,
    /// Where the next page begins; none at the end.
    pub next: Option<String>,
}

pub(crate) fn enqueue(to: &dyn Requests, jobs: Vec<NewJob>) -> Result<Vec<Enqueued>> {
    let planned = jobs
        .into_iter()
        .map(|job| plan(to, job))
        .collect::<Result<Vec<_>>>()?;
    if planned.is_empty() {
        return Ok(Vec::new());
    }
    let done = to.request(Op::Enqueue(planned))?;
    let Done::Enqueued(enqueued) = done else {
        return Err(unexpected(&done));
    };
    Ok(enqueued)
}

/// Checks a new job, and works out its phases if its type is known here.
fn plan(to: &dyn Requests, mut job: NewJob) -> Result<PlannedJob> {
    job.check(to.limits())?;
    let insecure = job.endpoints.iter().find(|spec| !is_https(&spec.url));
    if let Some(spec) = insecure.filter(|_| to.is_https_only()) {
        let problem = not_https(&spec.url);
        let problem = format!("job type {:?}: webhook {problem}", job.job_type);
        return Err(Error::new(ErrorKind::InvalidJob, problem));
    }
    let plan = match (&job.phases, to.job_type(&job.job_type)) {
        (_, Some(def)) => {
            job.deadline = job.deadline.or(def.deadline);
            // The plan of a fixed type is in the file: it need not be looked up by its phases each time.
            if def.is_planned() {
                Some(def.resolve(&job.input)?.plan)
            } else {
                None
            }
        }
        (Some(phases), None) => Some(phases.as_slice().into()),
        (None, None) => None,
    };
    Ok(PlannedJob { job, plan })
}

pub(crate) fn cancel(to: &dyn Requests, id: JobId) -> Result<CancelOutcome> {
    let done = to.request(Op::Cancel(id))?;
    let Done::Cancelled(outcome) = done else {
        return Err(unexpected(&done));
    };
    Ok(outcome)
}

pub(crate) fn retry(to: &dyn Requests, id: JobId, from: RetryFrom) -> Result<()> {
    to.request(Op::Retry(id, from)).map(|_| ())
}

pub(crate) fn delete(to: &dyn Requests, id: JobId) -> Result<()> {
    to.request(Op::Delete(id)).map(|_| ())
}

pub(crate) fn bulk(
    to: &dyn Requests,
    action: BulkAction,
    status: JobStatus,
    job_type: Option<&str>,
    expect: Option<usize>,
) -> Result<usize> {
    // Else the name would be written down as that of a type.
    job_type.map_or(Ok(()), check_type)?;
    let filter = Filter {
        status: Some(status),
        job_type: job_type.map(str::to_owned),
    };
    change(to, action, Chosen::Found { filter, expect })
}

/// The same for those of these jobs that are there and allow it. Answers how many have changed: in one commit, or none.
#[cfg(feature = "http")]
pub(crate) fn bulk_listed(to: &dyn Requests, action: BulkAction, ids: Vec<JobId>) -> Result<usize> {
    change(to, action, Chosen::Listed(ids))
}

fn change(to: &dyn Requests, action: BulkAction, jobs: Chosen) -> Result<usize> {
    let done = to.request(Op::Bulk(Bulk { action, jobs }))?;
    let Done::Changed(rows) = done else {
        return Err(unexpected(&done));
    };
    Ok(rows.len())
}

pub(crate) fn set_paused(to: &dyn Requests, job_type: Option<&str>, paused: bool) -> Result<()> {
    job_type.map_or(Ok(()), check_type)?;
    to.request(Op::SetPaused {
        job_type: job_type.map(Arc::from),
        paused,
    })
    .map(|_| ())
}

fn check_type(name: &str) -> Result<()> {
    config::check_name("job type", name)
}

pub(crate) fn unexpected(done: &Done) -> Error {
    Error::new(
        ErrorKind::Corrupt,
        format!("the store answered another question: {done:?}"),
    )
}

/// The job, once it is over, as `look` reads it.
pub(crate) fn wait(
    engine: &Engine,
    id: JobId,
    timeout: Duration,
    look: fn(&dyn Reader, JobId) -> Result<Option<Job>>,
) -> Result<Job> {
    let started = monotonic();
    loop {
        let left = timeout.saturating_sub(started.elapsed());
        let mut status = None;
        engine.bus.wait_over(id, left, || {
            status = engine.reader.status(id)?;
            Ok::<_, Error>(status.is_none_or(JobStatus::is_terminal))
        })?;
        let job = look(&*engine.reader, id)?.ok_or_else(|| not_found(id))?;
        if job.status.is_terminal() {
            return Ok(job);
        }
        if started.elapsed() >= timeout {
            let problem = format!("job {id} is still {} after {timeout:?}", job.status);
            return Err(Error::new(ErrorKind::Timeout, problem));
        }
        if engine.is_stopping() {
            return Err(Error::closed());
        }
    }
}

pub(crate) fn not_found(id: JobId) -> Error {
    Error::new(
        ErrorKind::NotFound,
        format!("job {id}: there is no such job"),
    )
}

pub(crate) fn list(reader: &dyn Reader, filter: &ListFilter) -> Result<JobPage> {
    let limit = filter.limit.unwrap_or(50).clamp(1, 1000);
    filter
        .filter
        .job_type
        .as_deref()
        .map_or(Ok(()), check_type)?;
    let from = match &filter.cursor {
        None => None,
        Some(cursor) => Some(parse_cursor(cursor)?),
    };
    let Slice { jobs, next } = reader.list(&filter.filter, from, limit)?;
    Ok(JobPage {
        jobs,
        next: next.map(|(key, id)| format!("{key}.{id}")),
    })
}

fn parse_cursor(cursor: &str) -> Result<(i64, i64)> {
    let parsed = cursor
        .split_once('.')
        .and_then(|(key, id)| Some((key.parse().ok()?, id.parse().ok()?)));
    parsed.ok_or_else(|| {
        Error::new(
            ErrorKind::InvalidJob,
            format!("cursor {cursor:?} was not made by a list of jobs"),
        )
    })
}

/// Events that one call answers.
const EVENTS_MAX: usize = 10_000;

/// The first `limit` events after `after`, at most [`EVENTS_MAX`], oldest first.
pub(crate) fn events_after(reader: &dyn Reader, after: Seq, limit: usize) -> Result<Vec<Event>> {
    let limit = limit.min(EVENTS_MAX);
    // Nothing has a number below 1.
    let after = after.max(0);
    let changes = reader.changes_after(after, limit)?;
    Ok(event::expand_all(changes, after, limit))
}

/// Changes of one job that are shown: its newest.
const CHANGES_OF_JOB_MAX: usize = 1000;

pub(crate) fn events_of(reader: &dyn Reader, id: JobId) -> Result<Vec<Event>> {
    let mut events = Vec::new();
    for change in reader.changes_of(id, CHANGES_OF_JOB_MAX)? {
        event::expand(&change, 0, &mut events);
    }
    Ok(events)
}

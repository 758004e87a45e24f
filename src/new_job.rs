//! A job to be enqueued, and what enqueueing answers. L0, pure.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use crate::config::{self, JSON_DEPTH_MAX, Limits, UNIQUE_KEY_BYTES_MAX};
use crate::delivery::EndpointSpec;
use crate::error::{Error, ErrorKind, Result};
use crate::job::{JobId, PhaseName};
use crate::time::Timestamp;

/// Endpoints of one job: each of its events is written once for each.
const ENDPOINTS_MAX: usize = 16;

/// For how long a `unique_key` stands for the job that was enqueued with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum While {
    /// As long as that job is pending.
    Queued,
    /// As long as that job is not over.
    Live,
    /// For this long after it was enqueued, whatever becomes of the job, even when it has been deleted.
    For(Duration),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct UniqueKey {
    pub(crate) key: String,
    pub(crate) hold: While,
}

/// When a new job may start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RunAt {
    Now,
    After(Duration),
    At(Timestamp),
}

impl RunAt {
    /// The time it means to a job that is enqueued at `now`.
    pub(crate) fn at(self, now: Timestamp) -> Timestamp {
        match self {
            RunAt::Now => now,
            RunAt::After(delay) => now.after(delay),
            RunAt::At(at) => at.max(now),
        }
    }
}

/// A job to be enqueued: a job type, an input, and how it is to be treated.
///
/// ```
/// use stepwell::{NewJob, While};
/// use std::time::Duration;
///
/// let job = NewJob::new("import", &serde_json::json!({"url": "http://example.com/a"}))?
///     .priority(5)
///     .delay(Duration::from_secs(60))
///     .unique_key("http://example.com/a", While::Live);
/// # Ok::<(), stepwell::Error>(())
/// ```
#[derive(Clone)]
pub struct NewJob {
    pub(crate) job_type: Arc<str>,
    pub(crate) input: String,
    pub(crate) phases: Option<Vec<PhaseName>>,
    pub(crate) priority: i32,
    pub(crate) run_at: RunAt,
    pub(crate) deadline: Option<Duration>,
    pub(crate) unique: Option<UniqueKey>,
    pub(crate) endpoints: Vec<EndpointSpec>,
}

/// Without the input, which may be secret.
impl fmt::Debug for NewJob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NewJob")
            .field("job_type", &self.job_type)
            .field("input_bytes", &self.input.len())
            .field("phases", &self.phases)
            .field("priority", &self.priority)
            .field("run_at", &self.run_at)
            .field("deadline", &self.deadline)
            .field("unique", &self.unique)
            .field("endpoints", &self.endpoints)
            .finish()
    }
}

impl NewJob {
    /// A job of `job_type` with `input`, to be run as soon as possible.
    ///
    /// # Errors
    /// `InvalidJob` when the input cannot be written as JSON.
    pub fn new(job_type: impl Into<Arc<str>>, input: &impl Serialize) -> Result<NewJob> {
        let job_type = job_type.into();
        let input = serde_json::to_string(input).map_err(|error| {
            Error::new(
                ErrorKind::InvalidJob,
                format!("job type {job_type:?}: the input cannot be written as JSON"),
            )
            .with_source(error)
        })?;
        Ok(NewJob {
            job_type,
            input,
            phases: None,
            priority: 0,
            run_at: RunAt::Now,
            deadline: None,
            unique: None,
            endpoints: Vec::new(),
        })
    }

    /// Jobs of a higher priority start first. Defaults to `0`; any number is allowed, but each distinct one in use costs
    /// a little at every claim: use a handful.
    #[must_use]
    pub fn priority(mut self, priority: i32) -> NewJob {
        self.priority = priority;
        self
    }

    /// Not before this long from now. Defaults to `Duration::ZERO`, at once.
    #[must_use]
    pub fn delay(mut self, delay: Duration) -> NewJob {
        self.run_at = if delay.is_zero() {
            RunAt::Now
        } else {
            RunAt::After(delay)
        };
        self
    }

    /// Not before this time. Defaults to at once, and so does a time in the past.
    #[must_use]
    pub fn run_at(mut self, at: Timestamp) -> NewJob {
        self.run_at = RunAt::At(at);
        self
    }

    /// Fails the job when it is not over this long after it may first start; if it still waits for its turn then, when its turn
    /// comes. Defaults to the job type's deadline where the type is registered, and to none for a [`Client`](crate::Client).
    #[must_use]
    pub fn deadline(mut self, deadline: Duration) -> NewJob {
        self.deadline = Some(deadline);
        self
    }

    /// Enqueues nothing, and answers with the id of the job that is there, while `hold` says so for a job of the same type
    /// with the same key (1 to 512 bytes). Defaults to no key.
    ///
    /// A retry by hand is always done: it gives a job its key again, unless another job has the key by then, or was deleted with
    /// it. Then both are live with one key.
    #[must_use]
    pub fn unique_key(mut self, key: impl Into<String>, hold: While) -> NewJob {
        self.unique = Some(UniqueKey {
            key: key.into(),
            hold,
        });
        self
    }

    /// The phases of this job, for a planned type that the enqueueing process has not registered. Defaults to what the
    /// registered type says; a job that no one could plan is planned when it is claimed. The process that runs the job has the
    /// last word: when its type has other phases, or other versions of them, the job goes on by those.
    ///
    /// Each list that differs from all before it stays in the file for ever: no names that come from the input.
    #[must_use]
    pub fn phases(mut self, phases: impl IntoIterator<Item = PhaseName>) -> NewJob {
        self.phases = Some(phases.into_iter().collect());
        self
    }

    /// Checks what enqueueing would check, by the default limits: names, sizes, the unique key. For those who read many jobs
    /// from somewhere, and want to tell which of them is bad.
    ///
    /// # Errors
    /// `InvalidJob`.
    pub fn validate(&self) -> Result<()> {
        self.check(&Limits::default())
    }

    /// Whether it can be stored as it is.
    pub(crate) fn check(&self, limits: &Limits) -> Result<()> {
        let what = || format!("job type {:?}", self.job_type);
        config::check_name("job type", &self.job_type)?;
        if self.input.len() > limits.payload_bytes_max || self.input.len() > JSON_DEPTH_MAX {
            let what = format!("{}: input", what());
            config::check_json(&what, &self.input, limits.payload_bytes_max)?;
        }
        if let Some(phases) = &self.phases {
            config::check_plan(&self.job_type, phases)?;
        }
        if self.endpoints.len() > ENDPOINTS_MAX {
            let problem = format!(
                "{}: it has {} webhook endpoints of its own, at most {ENDPOINTS_MAX} are allowed",
                what(),
                self.endpoints.len()
            );
            return Err(Error::new(ErrorKind::InvalidJob, problem));
        }
        if let Some(unique) = &self.unique
            && !(1..=UNIQUE_KEY_BYTES_MAX).contains(&unique.key.len())
        {
            let problem = format!(
                "{}: unique key has {} bytes: expected 1 to {UNIQUE_KEY_BYTES_MAX}",
                what(),
                unique.key.len()
            );
            return Err(Error::new(ErrorKind::InvalidJob, problem));
        }
        Ok(())
    }
}

/// What enqueueing answers: the id, and whether this call stored the job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Enqueued {
    /// The job's id.
    pub id: JobId,
    /// False when a job with the same unique key was there: `id` is that one's.
    pub is_new: bool,
}

//! The typed handle of a registered job type. L4.

use std::fmt;
use std::marker::PhantomData;
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::engine::Engine;
use crate::error::{Error, ErrorKind, Result};
use crate::job::{JobId, JobStatus};
use crate::json;
use crate::new_job::{Enqueued, NewJob};
use crate::requests;
use crate::time::Timestamp;

/// The engine behind the handles of a builder: there once the queue is open, gone when it is closed.
pub(crate) type Slot = Arc<OnceLock<Weak<Engine>>>;

/// Enqueues jobs of one type, input and result by their Rust types. Made by [`Builder::register`](crate::Builder::register);
/// cheap to clone, and works from any thread while the queue is open.
pub struct JobHandle<I, O> {
    pub(crate) job_type: Arc<str>,
    pub(crate) engine: Slot,
    pub(crate) types: PhantomData<fn(I) -> O>,
}

impl<I: Serialize, O> JobHandle<I, O> {
    /// Enqueues a job, to be run as soon as possible; it is on disk when this returns.
    ///
    /// # Errors
    /// `InvalidJob` when the input is too large or cannot be written as JSON; `Closed` before the queue is open and after
    /// its shutdown has begun; `Storage`, `StorageFull` or `OutcomeUnknown` when the disk fails.
    pub fn enqueue(&self, input: &I) -> Result<JobId> {
        Ok(self.enqueue_job(self.job(input)?)?.id)
    }

    /// Enqueues a job that starts at `at`, or as soon as possible if that has passed.
    ///
    /// # Errors
    /// As for [`enqueue`](JobHandle::enqueue).
    pub fn enqueue_at(&self, input: &I, at: Timestamp) -> Result<JobId> {
        Ok(self.enqueue_job(self.job(input)?.run_at(at))?.id)
    }

    /// Enqueues many jobs in one commit: all of them or none.
    ///
    /// # Errors
    /// As for [`enqueue`](JobHandle::enqueue).
    pub fn enqueue_many<'a>(&self, inputs: impl IntoIterator<Item = &'a I>) -> Result<Vec<JobId>>
    where
        I: 'a,
    {
        let jobs = inputs
            .into_iter()
            .map(|input| self.job(input))
            .collect::<Result<Vec<_>>>()?;
        let enqueued = requests::enqueue(&*self.engine()?, jobs)?;
        Ok(enqueued.into_iter().map(|enqueued| enqueued.id).collect())
    }

    /// A job of this type, for options that the shortcuts do not have: priority, delay, deadline, unique key.
    ///
    /// # Errors
    /// `InvalidJob` when the input cannot be written as JSON.
    pub fn job(&self, input: &I) -> Result<NewJob> {
        NewJob::new(self.job_type.clone(), input)
    }

    /// Enqueues what [`job`](JobHandle::job) made.
    ///
    /// # Errors
    /// As for [`enqueue`](JobHandle::enqueue).
    pub fn enqueue_job(&self, job: NewJob) -> Result<Enqueued> {
        let enqueued = requests::enqueue(&*self.engine()?, vec![job])?;
        enqueued.first().copied().ok_or_else(Error::closed)
    }
}

impl<I, O: DeserializeOwned> JobHandle<I, O> {
    /// Waits until the job is over, and answers with the result of its last phase.
    ///
    /// # Errors
    /// `Timeout` when it is not over by then; `Conflict` when it failed or was cancelled, with its last error, or has a result of
    /// another type; `Closed` when the queue is shut down meanwhile; `NotFound`.
    /// Do not wait inside a handler: enough of them would leave no worker for the jobs they wait for.
    pub fn wait(&self, id: JobId, timeout: Duration) -> Result<O> {
        let engine = self.engine()?;
        let job = requests::wait(&engine, id, timeout, |reader, id| reader.outline(id))?;
        let failed =
            |problem: String| Error::new(ErrorKind::Conflict, format!("job {id} {problem}"));
        match job.status {
            JobStatus::Completed => {}
            JobStatus::Failed | JobStatus::Cancelled => {
                let error = job
                    .errors
                    .last()
                    .map(|error| format!(": {}", error.message))
                    .unwrap_or_default();
                let verb = if job.status == JobStatus::Failed {
                    "has failed"
                } else {
                    "was cancelled"
                };
                return Err(failed(format!("{verb}{error}")));
            }
            JobStatus::Pending | JobStatus::Running => {
                return Err(failed("is under way again".to_owned()));
            }
        }
        // By its text: a number of more than 64 bits has no place in a `Value`.
        let result = engine
            .reader
            .result(id, job.phase_count.saturating_sub(1))?
            .ok_or_else(|| requests::not_found(id))?;
        serde_json::from_str(&result).map_err(|error| {
            let why = json::without_values(&error);
            failed(format!("has a result of another type: {why}"))
        })
    }
}

impl<I, O> JobHandle<I, O> {
    /// The name of the job type.
    #[must_use]
    pub fn job_type(&self) -> &str {
        &self.job_type
    }

    fn engine(&self) -> Result<Arc<Engine>> {
        let engine = self.engine.get().ok_or_else(|| {
            let problem = format!(
                "job type {:?}: the queue is not open yet: call Builder::open first",
                self.job_type
            );
            Error::new(ErrorKind::Closed, problem)
        })?;
        engine.upgrade().ok_or_else(Error::closed)
    }
}

impl<I, O> Clone for JobHandle<I, O> {
    fn clone(&self) -> JobHandle<I, O> {
        JobHandle {
            job_type: self.job_type.clone(),
            engine: self.engine.clone(),
            types: PhantomData,
        }
    }
}

impl<I, O> fmt::Debug for JobHandle<I, O> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "JobHandle({:?})", self.job_type)
    }
}

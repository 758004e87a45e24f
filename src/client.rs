//! A queue's file, opened by a process that does not run its jobs. L4: delegates only.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Serialize;

use crate::config::{Durability, Limits, PAYLOAD_BYTES_MAX};
use crate::delivery::DeliveryId;
use crate::error::{Error, ErrorKind, Result};
use crate::event::{Event, Seq};
use crate::explain::{self, Explanation, Stats};
use crate::job::{BulkAction, CancelOutcome, Job, JobId, JobStatus, RetryFrom};
use crate::new_job::{Enqueued, NewJob};
use crate::outbox::{self, DeliveryPage, DeliveryQuery, DeliveryRecord, EndpointState};
use crate::owner;
use crate::phase::TypeDef;
use crate::requests::{self, JobPage, ListFilter, Requests};
use crate::store::ops::{ClaimRequest, Op};
use crate::store::sqlite::{self, SqliteStore};
use crate::store::view::newest_at;
use crate::store::{Done, Failure, Reader, Store, seam};
use crate::sync::Mutex;
use crate::time::{Clock, Timestamp};

/// Enqueues, cancels, retries and inspects jobs in the file of a queue that another process runs, or none at present. The
/// running process notices at once; where it could not make the socket beside the file (its log has a warning), within a
/// second. Where the system's clock is behind the file, a client goes on from the newest event there, and so may be behind the queue
/// by as long as that has been idle: its delays and deadlines count from then. On a full disk a client that adds work is refused, as
/// callers of the queue are.
///
/// ```
/// # let dir = tempfile::tempdir().unwrap();
/// # let path = dir.path().join("jobs.db");
/// let client = stepwell::Client::open(&path)?;
/// let id = client.enqueue("import", &serde_json::json!({"url": "http://example.com/a"}))?;
/// assert_eq!(client.status(id)?, Some(stepwell::JobStatus::Pending));
/// # Ok::<(), stepwell::Error>(())
/// ```
pub struct Client {
    path: PathBuf,
    store: Mutex<SqliteStore>,
    reader: Arc<dyn Reader>,
    clock: Clock,
    limits: Limits,
}

impl Client {
    /// Opens the file of a queue, and creates it if it is not there. Its directory must be.
    ///
    /// # Errors
    /// `InvalidConfig` when the file is of another program or of a newer stepwell; `Storage` when it cannot be used.
    pub fn open(path: impl AsRef<Path>) -> Result<Client> {
        Client::open_with(path, Durability::Full)
    }

    /// As [`open`](Client::open); `durability` is what this client's own changes survive.
    ///
    /// # Errors
    /// As for [`open`](Client::open).
    pub fn open_with(path: impl AsRef<Path>, durability: Durability) -> Result<Client> {
        let path = sqlite::canonical(path.as_ref())?;
        let store = SqliteStore::open(&path, durability)?;
        let (reader, clock) = (store.reader(), Clock::system());
        if let Some(at) = newest_at(&*reader) {
            clock.go_on_from(at);
        }
        Ok(Client {
            path,
            store: Mutex::new(store),
            reader,
            clock,
            limits: Limits::default(),
        })
    }

    /// The largest input that this client enqueues, in bytes of JSON; the running queue's own limit is not asked for. Defaults to
    /// 256 KiB; at most 512 MiB.
    #[must_use]
    pub fn max_payload(mut self, bytes: usize) -> Client {
        self.limits.payload_bytes_max = bytes.min(PAYLOAD_BYTES_MAX);
        self
    }

    /// The process that runs jobs on this file now. None when there is none, and for a moment while one starts, which has the
    /// file and has not written its pid yet.
    #[must_use]
    pub fn owner_pid(&self) -> Option<u32> {
        owner::running_owner(&self.path).and_then(|owner| owner.pid)
    }

    /// Enqueues a job of `job_type`.
    ///
    /// # Errors
    /// `InvalidJob` when the input is too large or cannot be written as JSON; `Storage` and its kin when the disk fails.
    pub fn enqueue(&self, job_type: &str, input: &impl Serialize) -> Result<JobId> {
        let enqueued = self.enqueue_all(vec![NewJob::new(job_type, input)?])?;
        enqueued
            .first()
            .map(|enqueued| enqueued.id)
            .ok_or_else(Error::closed)
    }

    /// Enqueues jobs in one commit: all of them or none. Answers in the same order.
    ///
    /// # Errors
    /// As for [`enqueue`](Client::enqueue).
    pub fn enqueue_all(&self, jobs: Vec<NewJob>) -> Result<Vec<Enqueued>> {
        requests::enqueue(self, jobs)
    }

    /// See [`JobQueue::cancel`](crate::JobQueue::cancel).
    ///
    /// # Errors
    /// `Storage` and its kin.
    pub fn cancel(&self, id: JobId) -> Result<CancelOutcome> {
        requests::cancel(self, id)
    }

    /// See [`JobQueue::retry`](crate::JobQueue::retry).
    ///
    /// # Errors
    /// `NotFound`; `Conflict` when it is pending, running or completed; `Storage` and its kin.
    pub fn retry(&self, id: JobId, from: RetryFrom) -> Result<()> {
        requests::retry(self, id, from)
    }

    /// See [`JobQueue::delete`](crate::JobQueue::delete).
    ///
    /// # Errors
    /// `NotFound`; `Conflict` when it is not over; `Storage` and its kin.
    pub fn delete(&self, id: JobId) -> Result<()> {
        requests::delete(self, id)
    }

    /// See [`JobQueue::bulk`](crate::JobQueue::bulk).
    ///
    /// # Errors
    /// `Conflict` when the number is another or too large, or the status does not allow it; `Storage` and its kin.
    pub fn bulk(
        &self,
        action: BulkAction,
        status: JobStatus,
        job_type: Option<&str>,
        expect: Option<usize>,
    ) -> Result<usize> {
        requests::bulk(self, action, status, job_type, expect)
    }

    /// See [`JobQueue::pause`](crate::JobQueue::pause).
    ///
    /// # Errors
    /// `Storage` and its kin.
    pub fn pause(&self) -> Result<()> {
        requests::set_paused(self, None, true)
    }

    /// See [`JobQueue::resume`](crate::JobQueue::resume). A queue that has stopped because of a damaged row hears of it only if it was
    /// paused, since nothing changes in the file else.
    ///
    /// # Errors
    /// `Storage` and its kin.
    pub fn resume(&self) -> Result<()> {
        requests::set_paused(self, None, false)
    }

    /// See [`JobQueue::get`](crate::JobQueue::get).
    ///
    /// # Errors
    /// `Storage` or `Corrupt`.
    pub fn get(&self, id: JobId) -> Result<Option<Job>> {
        self.reader.job(id)
    }

    /// See [`JobQueue::status`](crate::JobQueue::status).
    ///
    /// # Errors
    /// `Storage` or `Corrupt`.
    pub fn status(&self, id: JobId) -> Result<Option<JobStatus>> {
        self.reader.status(id)
    }

    /// See [`JobQueue::list`](crate::JobQueue::list).
    ///
    /// # Errors
    /// `InvalidJob` for a bad cursor; `Storage` or `Corrupt`.
    pub fn list(&self, filter: &ListFilter) -> Result<JobPage> {
        requests::list(&*self.reader, filter)
    }

    /// See [`JobQueue::explain`](crate::JobQueue::explain). What only the running process knows is missing: whether the type
    /// is registered there, and whether its workers are busy.
    ///
    /// # Errors
    /// `NotFound`; `Storage` or `Corrupt`.
    pub fn explain(&self, id: JobId) -> Result<Explanation> {
        explain::from_outside(
            &*self.reader,
            id,
            owner::running_owner(&self.path).is_some(),
            self.clock.now(),
        )
    }

    /// See [`JobQueue::stats`](crate::JobQueue::stats).
    ///
    /// # Errors
    /// `Storage` or `Corrupt`.
    pub fn stats(&self) -> Result<Stats> {
        explain::stats(&*self.reader)
    }

    /// See [`JobQueue::events_after`](crate::JobQueue::events_after).
    ///
    /// # Errors
    /// `Storage` or `Corrupt`.
    pub fn events_after(&self, seq: Seq, limit: usize) -> Result<Vec<Event>> {
        requests::events_after(&*self.reader, seq, limit)
    }

    /// See [`JobQueue::events_of`](crate::JobQueue::events_of).
    ///
    /// # Errors
    /// `Storage` or `Corrupt`.
    pub fn events_of(&self, id: JobId) -> Result<Vec<Event>> {
        requests::events_of(&*self.reader, id)
    }

    /// A page of webhook deliveries, newest first.
    ///
    /// # Errors
    /// `InvalidJob` for a bad limit; `Storage` or `Corrupt`.
    pub fn deliveries(&self, query: &DeliveryQuery) -> Result<DeliveryPage> {
        outbox::deliveries(&*self.reader, query)
    }

    /// A webhook delivery with its body and its tries.
    ///
    /// # Errors
    /// `Storage` or `Corrupt`.
    pub fn delivery(&self, id: DeliveryId) -> Result<Option<DeliveryRecord>> {
        outbox::find(&*self.reader, id)
    }

    /// Sends a delivery again, from the first try on, whatever became of it. Its `webhook-id` and its body stay the same.
    ///
    /// # Errors
    /// `NotFound`; `Storage` and its kin.
    pub fn redeliver(&self, id: DeliveryId) -> Result<()> {
        outbox::redeliver(self, id)
    }

    /// Sends every delivery again whose event happened from `from` on and before `until`, and answers how many these are: for a
    /// receiver that has lost some.
    ///
    /// # Errors
    /// `Storage` and its kin.
    pub fn redeliver_between(&self, from: Timestamp, until: Timestamp) -> Result<usize> {
        outbox::redeliver_between(self, from, until)
    }

    /// The webhook endpoints of the configuration.
    ///
    /// # Errors
    /// `Storage` or `Corrupt`.
    pub fn endpoints(&self) -> Result<Vec<EndpointState>> {
        outbox::endpoints(&*self.reader)
    }

    /// Adds an endpoint that is told of the events of all jobs, or changes the one of this name: its URL, its events, its keys.
    /// Deliveries that are there go to the URL that they were written with, signed with the new keys. An endpoint that was disabled by
    /// hand or by a 410 stays so, unless its URL changes. A queue that is opened with a configuration that names other endpoints and
    /// not this one disables it. A client does not know whether that queue refuses what is not https:
    /// [`https_only`](crate::webhook::WebhookConfig::https_only).
    ///
    /// # Errors
    /// `InvalidJob` for a bad name; `Conflict` when 64 others are enabled; `Storage` and its kin.
    #[cfg(feature = "webhook")]
    pub fn put_endpoint(&self, name: &str, endpoint: crate::webhook::Endpoint) -> Result<()> {
        outbox::put(self, name, endpoint)
    }

    /// Has deliveries written for an endpoint again, and sends what waits.
    ///
    /// # Errors
    /// `NotFound`; `Conflict` when 64 others are enabled; `Storage` and its kin.
    pub fn enable_endpoint(&self, name: &str) -> Result<()> {
        outbox::enable(self, name, true)
    }

    /// Has no deliveries written for an endpoint, and sends none, until it is enabled again or is given another URL, also by other
    /// processes and after a restart.
    ///
    /// # Errors
    /// `NotFound`; `Storage` and its kin.
    pub fn disable_endpoint(&self, name: &str) -> Result<()> {
        outbox::enable(self, name, false)
    }

    /// See [`JobQueue::check`](crate::JobQueue::check).
    ///
    /// # Errors
    /// `Storage` or `Corrupt`.
    pub fn check(&self) -> Result<Vec<String>> {
        self.reader.check()
    }
}

impl Requests for Client {
    fn request(&self, op: Op) -> Result<Done> {
        let mut store = self.store.lock();
        if op.adds_work() {
            store.check_room()?;
        }
        let done = transact(&mut *store, op, self.clock.now());
        drop(store);
        let answer = match done {
            Ok(answer) => answer,
            Err(Failure::NothingDone(error)) => return Err(error),
            Err(Failure::Unknown(error)) => {
                let reopened = self.store.lock().reopen();
                if let Err(error) = reopened {
                    log::error!("the file cannot be opened anew: {error}");
                }
                let problem = format!("it may or may not have happened: {error}");
                return Err(Error::new(ErrorKind::OutcomeUnknown, problem));
            }
        };
        owner::ring(&self.path);
        answer
    }

    fn job_type(&self, _name: &str) -> Option<&Arc<TypeDef>> {
        None
    }

    fn limits(&self) -> &Limits {
        &self.limits
    }

    /// It knows nothing of the configuration of whoever sends.
    fn is_https_only(&self) -> bool {
        false
    }
}

/// One operation, in a transaction that claims nothing.
pub(crate) fn transact(
    store: &mut dyn Store,
    op: Op,
    now: Timestamp,
) -> std::result::Result<Result<Done>, Failure> {
    let ops = [op];
    let mut answers = Vec::new();
    store.transact(&mut |rows| {
        answers = seam::run(rows, &ops, &ClaimRequest::default(), now, 0)?.answers;
        Ok(())
    })?;
    Ok(answers.pop().unwrap_or_else(|| Err(Error::closed())))
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Client({})", self.path.display())
    }
}

//! The queue as its users see it. L4: delegates only.

pub(crate) mod builder;
#[cfg(feature = "signals")]
mod signals;

use std::fmt;
use std::path::Path;
use std::sync::{Arc, Weak};
use std::time::Duration;

use serde::Serialize;

use crate::delivery::DeliveryId;
use crate::engine::Engine;
use crate::error::Result;
use crate::event::{Event, Seq};
use crate::explain::{self, Explanation, Stats};
#[cfg(feature = "http")]
use crate::http::{Http, config::HttpConfig};
use crate::job::{BulkAction, CancelOutcome, Job, JobId, JobStatus, RetryFrom};
use crate::listener::{Listeners, Subscription};
use crate::new_job::{Enqueued, NewJob};
use crate::outbox::{self, DeliveryPage, DeliveryQuery, DeliveryRecord, EndpointState};
use crate::queue::builder::Builder;
use crate::requests::{self, JobPage, ListFilter};
use crate::shutdown::{Shutdown, ShutdownReport};
use crate::time::Timestamp;

/// A queue that runs jobs. Cheap to clone; every clone is the same queue, and may be used from any thread, from handlers and
/// from callbacks. When the last clone is dropped it shuts down, with the builder's `shutdown_timeout`; those that were made by
/// [`WeakQueue::upgrade`] do not count.
#[derive(Clone)]
pub struct JobQueue(
    Arc<Inner>,
    #[allow(dead_code, reason = "it is there to be dropped")] Option<Arc<KeepsOpen>>,
);

/// A queue that this does not keep open: for callbacks, and whatever else the queue itself holds.
///
/// ```
/// # use serde_json::Value;
/// # use stepwell::{JobQueue, JobType, Phase};
/// # let mut builder = JobQueue::in_memory();
/// # builder.register(JobType::<Value>::new("mail").phase(Phase::<()>::new("send"), |_| Ok(())));
/// # let queue = builder.open()?;
/// let own = queue.downgrade();
/// queue.on_event(move |event| {
///     if let Some(queue) = own.upgrade() {
///         println!("{} jobs are over", queue.stats().map_or(0, |stats| stats.completed));
///     }
/// })?;
/// # Ok::<(), stepwell::Error>(())
/// ```
#[derive(Clone)]
pub struct WeakQueue(Weak<Inner>);

impl WeakQueue {
    /// The queue, if a [`JobQueue`] is left. What this answers, and its clones, do not keep it open either.
    #[must_use]
    pub fn upgrade(&self) -> Option<JobQueue> {
        self.0.upgrade().map(|inner| JobQueue(inner, None))
    }
}

impl fmt::Debug for WeakQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("WeakQueue")
    }
}

struct Inner {
    engine: Arc<Engine>,
    listeners: Arc<Listeners>,
    shutdown: Arc<Shutdown>,
    #[cfg(feature = "http")]
    http: std::sync::OnceLock<Arc<Http>>,
}

/// Whether the queue can do its work.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Health {
    /// A thread of the queue has died by a bug of stepwell: which, and why. The queue refuses work; open it again.
    pub poisoned: Option<String>,
    /// The last commit failed, or the disk is full: why. Nothing is claimed until one works, or there is space; outcomes are kept
    /// and tried again, or recorded in the room that was kept for them ([`Builder::disk_reserve`]). Or a row
    /// is damaged, so that a due job cannot be read or an outcome is lost: then nothing is claimed until the queue is resumed or opened
    /// again.
    pub store_failure: Option<String>,
    /// The shutdown has begun: only handlers that it waits for may still change anything.
    pub closing: bool,
}

impl Health {
    /// Whether nothing is wrong. A queue that is closing is well.
    #[must_use]
    pub fn is_good(&self) -> bool {
        self.poisoned.is_none() && self.store_failure.is_none()
    }
}

impl JobQueue {
    /// Settings for a queue in the file at `path`, which is created if it is not there. Its directory must be. Files beside
    /// it have its name and `-wal`, `-shm`, `-owner`, `-wake`; on Windows `-pid` instead of `-wake`.
    #[must_use]
    pub fn builder(path: impl AsRef<Path>) -> Builder {
        Builder::new(path.as_ref())
    }

    /// Settings for a queue in memory, which is gone when it is dropped: for tests and throw-away work.
    #[must_use]
    pub fn in_memory() -> Builder {
        Builder::in_memory()
    }

    /// The same queue for whoever must not keep it open.
    #[must_use]
    pub fn downgrade(&self) -> WeakQueue {
        WeakQueue(Arc::downgrade(&self.0))
    }

    pub(crate) fn new(engine: Arc<Engine>) -> JobQueue {
        let inner = Arc::new(Inner {
            engine,
            listeners: Arc::default(),
            shutdown: Arc::default(),
            #[cfg(feature = "http")]
            http: std::sync::OnceLock::new(),
        });
        JobQueue(inner.clone(), Some(Arc::new(KeepsOpen(inner))))
    }

    #[cfg(all(test, stepwell_shuttle))]
    pub(crate) fn engine(&self) -> &Arc<Engine> {
        &self.0.engine
    }

    #[cfg(feature = "http")]
    pub(crate) fn serve(&self, config: &HttpConfig, listener: std::net::TcpListener) -> Result<()> {
        let http = Arc::new(Http::start(&self.0.engine, config, listener)?);
        self.0.shutdown.add(http.clone());
        // A queue is opened once.
        self.0.http.set(http).ok();
        Ok(())
    }

    /// Where it is served over HTTP: the address that was bound, with the port that the system has chosen.
    #[cfg(feature = "http")]
    #[must_use]
    pub fn http_addr(&self) -> Option<std::net::SocketAddr> {
        self.0.http.get().map(|http| http.addr)
    }

    /// Enqueues a job of `job_type`, to be run as soon as possible; it is on disk when this returns. The type need not be
    /// registered: then the job waits until a process has registered it.
    ///
    /// # Errors
    /// As for [`JobHandle::enqueue`](crate::JobHandle::enqueue).
    pub fn enqueue(&self, job_type: &str, input: &impl Serialize) -> Result<JobId> {
        Ok(self.enqueue_job(NewJob::new(job_type, input)?)?.id)
    }

    /// Enqueues a job with options.
    ///
    /// # Errors
    /// As for [`JobHandle::enqueue`](crate::JobHandle::enqueue).
    pub fn enqueue_job(&self, job: NewJob) -> Result<Enqueued> {
        let enqueued = self.enqueue_all(vec![job])?;
        enqueued
            .first()
            .copied()
            .ok_or_else(crate::error::Error::closed)
    }

    /// Enqueues jobs of any types in one commit: all of them or none. Answers in the same order.
    ///
    /// # Errors
    /// As for [`JobHandle::enqueue`](crate::JobHandle::enqueue).
    pub fn enqueue_all(&self, jobs: Vec<NewJob>) -> Result<Vec<Enqueued>> {
        requests::enqueue(&*self.0.engine, jobs)
    }

    /// Cancels a job that is not over: it and its unfinished phases are cancelled on disk when this returns, and its handler,
    /// if one is inside, has been told. What that handler returns later counts no more.
    ///
    /// # Errors
    /// `Closed`, or `Storage` and its kin when the disk fails.
    pub fn cancel(&self, id: JobId) -> Result<CancelOutcome> {
        requests::cancel(&*self.0.engine, id)
    }

    /// Tries a failed or cancelled job again, with all of its attempts. A deadline that has passed begins anew, as long as it was
    /// when the job was enqueued (its delay included); one that has not passed stays.
    ///
    /// # Errors
    /// `NotFound`; `Conflict` when it is pending, running or completed; `Closed`, or `Storage` and its kin.
    pub fn retry(&self, id: JobId, from: RetryFrom) -> Result<()> {
        requests::retry(&*self.0.engine, id, from)
    }

    /// Deletes a job that is over. Its events stay in the log.
    ///
    /// # Errors
    /// `NotFound`; `Conflict` when it is not over; `Closed`, or `Storage` and its kin.
    pub fn delete(&self, id: JobId) -> Result<()> {
        requests::delete(&*self.0.engine, id)
    }

    /// Does one thing to every job with this status (and type), in one commit: all of them or none. With `expect` it is
    /// refused when they are not exactly that many, so that nobody acts on a set that has changed since he looked at it.
    /// Answers how many there were. Everybody else waits for that commit, and so it takes 100,000 at most; where there are more,
    /// list them and take them one by one.
    ///
    /// # Errors
    /// `Conflict` when the number is another or too large, or the status does not allow it; `Closed`, or `Storage` and its kin.
    pub fn bulk(
        &self,
        action: BulkAction,
        status: JobStatus,
        job_type: Option<&str>,
        expect: Option<usize>,
    ) -> Result<usize> {
        requests::bulk(&*self.0.engine, action, status, job_type, expect)
    }

    /// Stops claiming jobs; those under way stop at their next phase edge. Kept in the file: it holds after a restart.
    ///
    /// # Errors
    /// `Closed`, or `Storage` and its kin.
    pub fn pause(&self) -> Result<()> {
        requests::set_paused(&*self.0.engine, None, true)
    }

    /// Undoes [`pause`](JobQueue::pause). A queue that claims nothing any more because of a damaged row (see
    /// [`Health::store_failure`]) goes on with it, too, and with nothing less.
    ///
    /// # Errors
    /// `Closed`, or `Storage` and its kin.
    pub fn resume(&self) -> Result<()> {
        requests::set_paused(&*self.0.engine, None, false)
    }

    /// As [`pause`](JobQueue::pause), for one job type.
    ///
    /// # Errors
    /// `InvalidJob` for a bad name; `Closed`, or `Storage` and its kin.
    pub fn pause_type(&self, job_type: &str) -> Result<()> {
        requests::set_paused(&*self.0.engine, Some(job_type), true)
    }

    /// Undoes [`pause_type`](JobQueue::pause_type).
    ///
    /// # Errors
    /// `InvalidJob` for a bad name; `Closed`, or `Storage` and its kin.
    pub fn resume_type(&self, job_type: &str) -> Result<()> {
        requests::set_paused(&*self.0.engine, Some(job_type), false)
    }

    /// Everything that is stored about a job; nothing if there is no such job.
    ///
    /// # Errors
    /// `Storage`, `Corrupt` or `Closed`.
    pub fn get(&self, id: JobId) -> Result<Option<Job>> {
        self.0.engine.reader.job(id)
    }

    /// Where a job stands; nothing if there is no such job.
    ///
    /// # Errors
    /// `Storage`, `Corrupt` or `Closed`.
    pub fn status(&self, id: JobId) -> Result<Option<JobStatus>> {
        self.0.engine.reader.status(id)
    }

    /// A page of jobs.
    ///
    /// # Errors
    /// `InvalidJob` for a bad cursor; `Storage`, `Corrupt` or `Closed`.
    pub fn list(&self, filter: &ListFilter) -> Result<JobPage> {
        requests::list(&*self.0.engine.reader, filter)
    }

    /// Each reason why a job is not running.
    ///
    /// # Errors
    /// `NotFound`; `Storage`, `Corrupt` or `Closed`.
    pub fn explain(&self, id: JobId) -> Result<Explanation> {
        explain::in_process(&self.0.engine, id)
    }

    /// Waits until a job is over. Do not wait inside a handler: enough of them would leave no worker for what they wait for.
    ///
    /// # Errors
    /// `Timeout` when it is not over by then; `NotFound`; `Closed` when the queue shuts down meanwhile.
    pub fn wait(&self, id: JobId, timeout: Duration) -> Result<Job> {
        requests::wait(&self.0.engine, id, timeout, |reader, id| reader.job(id))
    }

    /// Counts of jobs, at a cost that does not depend on them.
    ///
    /// # Errors
    /// `Storage`, `Corrupt` or `Closed`.
    pub fn stats(&self) -> Result<Stats> {
        let engine = &self.0.engine;
        let stats = explain::stats(&*engine.reader)?;
        Ok(Stats {
            abandoned: engine.abandoned(),
            window: engine.window(),
            ..stats
        })
    }

    /// Whether the queue can do its work.
    #[must_use]
    pub fn health(&self) -> Health {
        let (poisoned, store_failure) = self.0.engine.health();
        Health {
            poisoned,
            store_failure,
            closing: self.0.engine.is_stopping(),
        }
    }

    /// A reader of every event from now on.
    ///
    /// # Errors
    /// `Storage`, `Corrupt` or `Closed`.
    pub fn subscribe(&self) -> Result<Subscription> {
        let head = self.0.engine.reader.head()?.seq;
        Ok(self.subscribe_after(head))
    }

    /// A reader of every event after `seq`; 0 for all that are kept.
    #[must_use]
    pub fn subscribe_after(&self, seq: Seq) -> Subscription {
        Subscription::new(self.0.engine.clone(), seq)
    }

    /// Calls `callback` for every event from now on, in order, on a thread for all callbacks. It may call any method of the
    /// queue, `shutdown` too: by a [`WeakQueue`], since one that owns a `JobQueue` keeps it open until somebody shuts it down. One
    /// that panics is logged and not called again.
    ///
    /// # Errors
    /// `Storage`, `Corrupt` or `Closed`.
    pub fn on_event(&self, callback: impl Fn(&Event) + Send + Sync + 'static) -> Result<()> {
        self.0.listeners.add(&self.0.engine, Arc::new(callback))
    }

    /// At most `limit` events (10,000 at the most) after `seq`, oldest first.
    ///
    /// # Errors
    /// `Storage`, `Corrupt` or `Closed`.
    pub fn events_after(&self, seq: Seq, limit: usize) -> Result<Vec<Event>> {
        requests::events_after(&*self.0.engine.reader, seq, limit)
    }

    /// The events of one job, oldest first, as far as they are kept, of its newest 1,000 changes; none when the job is gone.
    ///
    /// # Errors
    /// `Storage`, `Corrupt` or `Closed`.
    pub fn events_of(&self, id: JobId) -> Result<Vec<Event>> {
        requests::events_of(&*self.0.engine.reader, id)
    }

    /// A page of webhook deliveries, newest first.
    ///
    /// # Errors
    /// `InvalidJob` for a bad limit; `Storage` or `Corrupt`.
    pub fn deliveries(&self, query: &DeliveryQuery) -> Result<DeliveryPage> {
        outbox::deliveries(&*self.0.engine.reader, query)
    }

    /// A webhook delivery with its body and its tries.
    ///
    /// # Errors
    /// `Storage` or `Corrupt`.
    pub fn delivery(&self, id: DeliveryId) -> Result<Option<DeliveryRecord>> {
        outbox::find(&*self.0.engine.reader, id)
    }

    /// Sends a delivery again, from the first try on, whatever became of it. Its `webhook-id` and its body stay the same.
    ///
    /// # Errors
    /// `NotFound`; `Storage` and its kin.
    pub fn redeliver(&self, id: DeliveryId) -> Result<()> {
        outbox::redeliver(&*self.0.engine, id)
    }

    /// Sends every delivery again whose event happened from `from` on and before `until`, the oldest 100,000 at most, and answers
    /// how many these are: for a receiver that has lost some.
    ///
    /// # Errors
    /// `Storage` and its kin.
    pub fn redeliver_between(&self, from: Timestamp, until: Timestamp) -> Result<usize> {
        outbox::redeliver_between(&*self.0.engine, from, until)
    }

    /// The webhook endpoints of the configuration.
    ///
    /// # Errors
    /// `Storage` or `Corrupt`.
    pub fn endpoints(&self) -> Result<Vec<EndpointState>> {
        outbox::endpoints(&*self.0.engine.reader)
    }

    /// Adds an endpoint that is told of the events of all jobs, or changes the one of this name: its URL, its events, its keys.
    /// Deliveries that are there go to the URL that they were written with, signed with the new keys. An endpoint that was disabled by
    /// hand or by a 410 stays so, unless its URL changes. A queue that is opened with a configuration that names other endpoints and
    /// not this one disables it.
    ///
    /// # Errors
    /// `InvalidJob` for a bad name; `InvalidConfig` when it is not https and
    /// [`https_only`](crate::webhook::WebhookConfig::https_only) is set; `Conflict` when 64 others are enabled; `Storage` and its kin.
    #[cfg(feature = "webhook")]
    pub fn put_endpoint(&self, name: &str, endpoint: crate::webhook::Endpoint) -> Result<()> {
        outbox::put(&*self.0.engine, name, endpoint)
    }

    /// Has deliveries written for an endpoint again, and sends what waits.
    ///
    /// # Errors
    /// `NotFound`; `Conflict` when 64 others are enabled; `Storage` and its kin.
    pub fn enable_endpoint(&self, name: &str) -> Result<()> {
        outbox::enable(&*self.0.engine, name, true)
    }

    /// Has no deliveries written for an endpoint, and sends none, until it is enabled again or is given another URL, also by other
    /// processes and after a restart.
    ///
    /// # Errors
    /// `NotFound`; `Storage` and its kin.
    pub fn disable_endpoint(&self, name: &str) -> Result<()> {
        outbox::enable(&*self.0.engine, name, false)
    }

    /// The number of the oldest event that is kept; 0 when there is none.
    ///
    /// # Errors
    /// `Storage`, `Corrupt` or `Closed`.
    pub fn oldest_seq(&self) -> Result<Seq> {
        self.0.engine.reader.oldest_seq()
    }

    /// A name for this very file, made when it was created. Event numbers are comparable within one file only: whoever keeps
    /// a position for later keeps this name with it.
    ///
    /// # Errors
    /// `Storage`, `Corrupt` or `Closed`.
    pub fn file_id(&self) -> Result<String> {
        self.0.engine.reader.file_id()
    }

    /// Checks the invariants of the file; each line is one that is broken. Reads all of it: not for every day.
    ///
    /// # Errors
    /// `Storage`, `Corrupt` or `Closed`.
    pub fn check(&self) -> Result<Vec<String>> {
        self.0.engine.reader.check()
    }

    /// Stops the queue. Nothing new is taken; jobs stop at their next phase edge and are pending again, uncharged; handlers
    /// that are still inside at the deadline are told to stop, and cut off if they do not; everything that was finished is
    /// recorded; deliveries that were never tried are sent, as far as there is time; then the file is let go. A handler that was
    /// told to stop before is waited for, too, for up to a second after that. Returns within `timeout` and 250 ms.
    ///
    /// Safe to call again, from several threads, from a handler (which then is one that is cut off) and from a callback.
    ///
    /// # Errors
    /// `Timeout`, after all of this was done, when a handler had to be told to stop or a callback has not heard everything; see
    /// [`shutdown_report`](JobQueue::shutdown_report). `Timeout` without a report when the disk keeps the file busy for longer: it
    /// is let go in the background.
    pub fn shutdown(&self, timeout: Duration) -> Result<ShutdownReport> {
        self.0
            .shutdown
            .run(&self.0.engine, &self.0.listeners, timeout)
    }

    /// What the shutdown did, once it is done.
    #[must_use]
    pub fn shutdown_report(&self) -> Option<ShutdownReport> {
        self.0.shutdown.report()
    }

    /// Waits until the queue has been shut down by somebody.
    pub fn wait_closed(&self) -> ShutdownReport {
        self.0.shutdown.wait()
    }

    /// Runs until SIGINT or SIGTERM, then shuts down; a second signal cuts the shutdown short. Installs the process's one
    /// handler for these signals (and SIGHUP), and may be called once in a process.
    ///
    /// # Errors
    /// `InvalidConfig` when the process has such a handler already; then as for [`shutdown`](JobQueue::shutdown).
    #[cfg(feature = "signals")]
    pub fn run_until_signal(&self, timeout: Duration) -> Result<ShutdownReport> {
        signals::run_until_signal(self, timeout)
    }
}

/// The queue is shut down when the last of those goes who keep it open.
struct KeepsOpen(Arc<Inner>);

impl Drop for KeepsOpen {
    fn drop(&mut self) {
        let Inner {
            engine,
            listeners,
            shutdown,
            ..
        } = &*self.0;
        if shutdown.is_asked() {
            return;
        }
        let timeout = engine.config.shutdown_timeout;
        if let Err(error) = shutdown.run(engine, listeners, timeout) {
            log::warn!("{error}");
        }
    }
}

impl fmt::Debug for JobQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "JobQueue({:?})", self.0.engine.config.location)
    }
}

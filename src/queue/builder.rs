//! Gathers settings and job types, then opens the queue. L4.

use std::fmt;
use std::marker::PhantomData;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use serde::de::DeserializeOwned;

use crate::config::{Config, Durability, Location, Retention};
use crate::engine::Engine;
#[cfg(all(test, stepwell_shuttle))]
use crate::engine::Ground;
use crate::error::{Error, Result};
use crate::handle::{JobHandle, Slot};
#[cfg(feature = "http")]
use crate::http::config::HttpConfig;
use crate::outlet::OpenOutlet;
use crate::phase::{JobType, Registry};
use crate::queue::JobQueue;
use crate::time::{Clock, FakeClock};

/// Settings of a queue and the job types that it runs. Made by [`JobQueue::builder`].
pub struct Builder {
    config: Config,
    registry: Registry,
    clock: Option<Clock>,
    slot: Slot,
    #[cfg(feature = "webhook")]
    webhooks: Option<crate::webhook::WebhookConfig>,
    #[cfg(feature = "http")]
    http: Option<HttpConfig>,
    /// The first thing that was wrong; `open` tells it.
    problem: Option<Error>,
}

impl Builder {
    pub(crate) fn new(path: &Path) -> Builder {
        Builder::with(Location::File(path.to_owned()))
    }

    pub(crate) fn in_memory() -> Builder {
        Builder::with(Location::Memory)
    }

    fn with(location: Location) -> Builder {
        Builder {
            config: Config::new(location),
            registry: Registry::default(),
            clock: None,
            slot: Arc::new(OnceLock::new()),
            #[cfg(feature = "webhook")]
            webhooks: None,
            #[cfg(feature = "http")]
            http: None,
            problem: None,
        }
    }

    /// Registers a job type with its phases, and gives the handle that enqueues its jobs once the queue is open. What is
    /// wrong with it (a bad name, no phase, a name twice) is told by [`open`](Builder::open).
    pub fn register<I: DeserializeOwned + 'static, O>(
        &mut self,
        job_type: JobType<I, O>,
    ) -> JobHandle<I, O> {
        let def = job_type.into_def();
        let name = def.name.clone();
        if let Err(error) = self.registry.add(def) {
            self.problem.get_or_insert(error);
        }
        JobHandle {
            job_type: name,
            engine: self.slot.clone(),
            types: PhantomData,
        }
    }

    /// Worker threads, and so handlers that run at the same time. Defaults to the number of processors; 0 to 1024. With 0
    /// the queue takes jobs and runs none.
    #[must_use]
    pub fn workers(mut self, workers: usize) -> Builder {
        self.config.workers = workers;
        self
    }

    /// Jobs that are claimed at most, those inside a handler included. Jobs are claimed ahead of free workers only as far
    /// as short phases need it to keep the workers busy, so this is seldom worth a thought. Defaults to 64 for each worker,
    /// 64 to 1024 in all; the number of workers to 65,536.
    #[must_use]
    pub fn in_flight(mut self, jobs: usize) -> Builder {
        self.config.in_flight = Some(jobs);
        self
    }

    /// What survives a power cut. Defaults to [`Durability::Full`].
    #[must_use]
    pub fn durability(mut self, durability: Durability) -> Builder {
        self.config.durability = durability;
        self
    }

    /// How long jobs and events are kept. Defaults to [`Retention::default`].
    #[must_use]
    pub fn retention(mut self, retention: Retention) -> Builder {
        self.config.retention = retention;
        self
    }

    /// A job inside which the process dies more often than this has failed. Defaults to `3`.
    ///
    /// A power cut is no job's fault and is not counted, where the system tells that the machine was started anew: Linux, macOS and the
    /// BSDs. On Windows a power cut counts like a death of the process. On the BSDs, but for FreeBSD 13 and newer, a clock that
    /// was set in between looks like a power cut.
    #[must_use]
    pub fn max_crashes(mut self, max: u32) -> Builder {
        self.config.max_crashes = max;
        self
    }

    /// Handlers that ignore their stop flag lose their worker, and a new one takes its place, at most this many times at
    /// once. Defaults to 4 for each worker.
    #[must_use]
    pub fn max_abandoned(mut self, max: usize) -> Builder {
        self.config.abandoned_max = Some(max);
        self
    }

    /// The largest input of a job in bytes of JSON. Defaults to 256 KiB; at most 512 MiB.
    #[must_use]
    pub fn max_payload(mut self, bytes: usize) -> Builder {
        self.config.limits.payload_bytes_max = bytes;
        self
    }

    /// The largest result or checkpoint of a phase in bytes of JSON. Defaults to 1 MiB; at most 512 MiB.
    #[must_use]
    pub fn max_result(mut self, bytes: usize) -> Builder {
        self.config.limits.result_bytes_max = bytes;
        self
    }

    /// Room on the disk that is kept for jobs under way, in bytes: a file of that size beside the database, `<db>-reserve`. On a full
    /// disk it is given back to the file system, and what becomes of those jobs is recorded there, while new jobs and retries are
    /// refused with `StorageFull` and nothing is claimed. Once there is room for twice as much it is taken again, and the queue
    /// goes on. It is written at the first opening and after each time that it was needed, and not where it would take more than
    /// a quarter of what is free. Defaults to 1 MiB; 0 for none.
    #[must_use]
    pub fn disk_reserve(mut self, bytes: u64) -> Builder {
        self.config.reserve_bytes = bytes;
        self
    }

    /// Believes the system's clock also when it is behind what is in the file. Else the queue goes on from the newest event there: the
    /// better guess where no clock survives a power cut. For a file that was written while a clock was set wrong, ahead of the
    /// time: once is enough. What waits there for a time of that clock waits from now on, for as long as it was to wait
    /// by it; deliveries are sent at once.
    #[must_use]
    pub fn trust_clock(mut self) -> Builder {
        self.config.trusts_clock = true;
        self
    }

    /// How long the shutdown waits when the queue is dropped without one. Defaults to `10 s`.
    #[must_use]
    pub fn shutdown_timeout(mut self, timeout: Duration) -> Builder {
        self.config.shutdown_timeout = timeout;
        self
    }

    /// How webhooks are sent, and the endpoints that are told of the events of all jobs. Without it deliveries are sent
    /// by the defaults. Without an endpoint in it those that the file knows by name stay as they are.
    #[cfg(feature = "webhook")]
    #[must_use]
    pub fn webhooks(mut self, config: crate::webhook::WebhookConfig) -> Builder {
        self.webhooks = Some(config);
        self
    }

    /// Serves the queue over HTTP: live events, a dashboard, an API and metrics. What is wrong with the settings is told by
    /// [`open`](Builder::open). Defaults to not.
    #[cfg(feature = "http")]
    #[must_use]
    pub fn http(mut self, http: HttpConfig) -> Builder {
        self.http = Some(http);
        self
    }

    /// Time as a test says. Defaults to the system's clock.
    #[must_use]
    pub fn clock(mut self, clock: &FakeClock) -> Builder {
        self.clock = Some(Clock::fake(clock.clone()));
        self
    }

    /// Opens the queue: creates or migrates the file, recovers what a dead process left, and starts the workers.
    ///
    /// # Errors
    /// `InvalidConfig` for a wrong setting, job type, path or file; `Locked` when another process runs jobs on the file;
    /// `Storage`, `StorageFull` or `Corrupt` when the file cannot be used.
    pub fn open(mut self) -> Result<JobQueue> {
        if let Some(problem) = self.problem.take() {
            return Err(problem);
        }
        let outlet = self.outlet()?;
        // Before the engine, which runs jobs as soon as it is there: a port that is taken must not cost them anything.
        #[cfg(feature = "http")]
        let listener = self.listener()?;
        let clock = self.clock.unwrap_or_else(Clock::system);
        let engine = Engine::open(self.config, self.registry, clock, outlet, &self.slot)?;
        let queue = JobQueue::new(engine);
        #[cfg(feature = "http")]
        if let (Some(http), Some(listener)) = (&self.http, listener) {
            // Without it the queue is dropped, and so shut down.
            queue.serve(http, listener)?;
        }
        Ok(queue)
    }

    /// As [`Builder::open`], on a store that is shared with others, and with an outlet of the test's own.
    #[cfg(all(test, stepwell_shuttle))]
    pub(crate) fn open_on(
        self,
        store: Box<dyn crate::store::Store>,
        outlet: Option<OpenOutlet>,
    ) -> Result<JobQueue> {
        let clock = self.clock.unwrap_or_else(Clock::system);
        let (ground, began) = (Ground::of(store), clock.now());
        let engine = Engine::open_on(
            ground,
            began,
            self.config,
            self.registry,
            clock,
            outlet,
            &self.slot,
        )?;
        Ok(JobQueue::new(engine))
    }

    /// The port, if one is wanted. If it is taken by the process that runs jobs on the same file, that is the reason to tell.
    #[cfg(feature = "http")]
    fn listener(&self) -> Result<Option<std::net::TcpListener>> {
        let Some(http) = &self.http else {
            return Ok(None);
        };
        http.validate()?;
        http.bind().map(Some).map_err(|error| {
            let locked = match &self.config.location {
                Location::File(path) => crate::owner::refusal(path),
                Location::Memory => None,
            };
            locked.unwrap_or(error)
        })
    }

    /// Who sends deliveries.
    #[cfg(feature = "webhook")]
    fn outlet(&mut self) -> Result<Option<OpenOutlet>> {
        let config = self.webhooks.take().unwrap_or_default();
        self.config.is_https_only = config.is_https_only();
        let (endpoints, open) = crate::webhook::opener(config)?;
        self.config.endpoints = (!endpoints.is_empty()).then_some(endpoints);
        Ok(Some(open))
    }

    /// Nobody: what is written waits for a process that can.
    #[cfg(not(feature = "webhook"))]
    fn outlet(&mut self) -> Result<Option<OpenOutlet>> {
        Ok(None)
    }
}

impl fmt::Debug for Builder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Builder({:?})", self.config)
    }
}

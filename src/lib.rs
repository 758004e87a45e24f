//! Durable, multi-phase background jobs for ordinary, synchronous Rust programs: OS threads, one SQLite file, no async runtime,
//! no server.
//!
//! A **job** is one input of a **job type** on its way through ordered **phases**. Each phase's result is saved before the next
//! one starts, so that a retry, a restart or a power cut goes on after the last phase that was done.
//!
//! ```
//! use std::time::Duration;
//! use stepwell::{JobQueue, JobType, Phase};
//!
//! #[derive(serde::Serialize, serde::Deserialize)]
//! struct Import { url: String }
//!
//! // A key names a phase and the type of its result.
//! const FETCH: Phase<String> = Phase::new("fetch").timeout(Duration::from_secs(30));
//! const COUNT: Phase<usize> = Phase::new("count");
//!
//! # let dir = tempfile::tempdir().unwrap();
//! # let path = dir.path().join("jobs.db");
//! let mut builder = JobQueue::builder(&path).workers(2);
//! let imports = builder.register(
//!     JobType::<Import>::new("import")
//!         .phase(FETCH, |cx| Ok(format!("the page at {}", cx.input().url)))
//!         .phase(COUNT, |cx| Ok(cx.get(FETCH)?.len())),
//! );
//! let queue = builder.open()?;
//!
//! let id = imports.enqueue(&Import { url: "http://example.com".into() })?;
//! assert_eq!(imports.wait(id, Duration::from_secs(10))?, 30);
//! queue.shutdown(Duration::from_secs(5))?;
//! # Ok::<(), stepwell::Error>(())
//! ```
//!
//! # Where to look
//!
//! | to | see |
//! |---|---|
//! | open a queue and set it up | [`JobQueue::builder`], [`Builder`], [`Durability`], [`Retention`] |
//! | say what jobs do | [`JobType`], [`Phase`], [`PhaseContext`], [`PhaseError`], [`RetryPolicy`] |
//! | enqueue them | [`JobHandle`] by type, [`JobQueue::enqueue`] by name, [`NewJob`] with options |
//! | look after them | [`JobQueue::get`], [`JobQueue::list`], [`JobQueue::explain`], [`JobQueue::stats`] |
//! | change their course | [`JobQueue::cancel`], [`JobQueue::retry`], [`JobQueue::delete`], [`JobQueue::bulk`], [`JobQueue::pause`] |
//! | follow what happens | [`JobQueue::subscribe`], [`JobQueue::on_event`], [`JobQueue::events_after`] |
//! | tell other systems | `webhook` (feature `webhook`), [`JobQueue::deliveries`], [`JobQueue::redeliver`] |
//! | do so from another process | [`Client`] |
//! | look at it in a browser, or over HTTP | `HttpConfig` (feature `http`) |
//! | end well | [`JobQueue::shutdown`], by signal `JobQueue::run_until_signal` (feature `signals`) |
//! | test a program that uses it | [`JobQueue::in_memory`], [`testing`] |
//!
//! # The life of a job
//!
//! | status | becomes | when |
//! |---|---|---|
//! | `pending` | `running` | it is due, its type is registered, a worker is free |
//! | `running` | `pending` | a phase failed and a try is left (after a backoff); the handler snoozed; the job was paused, or the queue shut down, between two phases; the process died |
//! | `running` | `completed`, `failed` | its last phase is done; no try is left, the handler said [`PhaseError::fail`], its deadline has passed, or the process died in it too often |
//! | `pending` | `failed` | its deadline has passed when its turn comes, or no plan can be made for it |
//! | `pending`, `running` | `cancelled` | [`JobQueue::cancel`] |
//! | `failed`, `cancelled` | `pending` | [`JobQueue::retry`] |
//!
//! Each change is committed together with its [`Event`]; nobody sees one without the other.
//!
//! # What handlers must know
//!
//! - **At least once.** A phase that was inside its handler when the process died runs again. What it did outside of the file
//!   may have happened: [`PhaseContext::interruption`] tells, and [`PhaseContext::idempotency_key`] is the same each time.
//! - **Stopping is asked for.** After a cancel, a timeout or the deadline of a shutdown, [`PhaseContext::is_cancelled`] is true.
//!   What a handler returns after that counts no more; one that goes on loses its worker, and a new one takes its place.
//! - **No lock is held.** Handlers and callbacks may call any method of the queue, [`JobQueue::shutdown`] too. When it shuts down,
//!   handlers that it waits for may go on to do so; whoever else changes something is refused.
//! - **Panics are failed tries.** The first queue of a process puts a hook before the one that is there, to note the place and
//!   backtrace of panics inside handlers; it always calls the old one. `panic = "abort"` cannot be helped.
//!
//! # Time
//!
//! Times are [`Timestamp`]s, milliseconds UTC. When the system's clock steps forward it is followed within a minute; when it
//! steps back, or is behind what is in the file when that is opened, the queue goes on from where it was, at its old pace, so that
//! nothing waits for the year to come round again. (A clock that shows 2020 or later is believed against a file that is more than
//! ten years ahead, and always with [`Builder::trust_clock`]. What waits in the file for a time of the clock that was ahead is
//! then brought forward.) How long a phase takes goes by the time that passes, whatever the clock is set to.
//!
//! # Not promised
//!
//! Side effects outside of the file exactly once; an end of threads that ignore their flag; two processes that run jobs on one
//! file (the second one is refused; see [`Client`]); network file systems; `fork` without `exec`; a disk that lies about its
//! syncs.

#![forbid(unsafe_code)]

mod bus;
mod client;
mod committer;
mod config;
mod delivery;
mod engine;
mod error;
mod event;
mod explain;
#[cfg(all(any(fuzzing, test), any(feature = "http", feature = "webhook")))]
#[doc(hidden)]
pub mod fuzzing;
mod handle;
#[cfg(feature = "http")]
mod http;
#[cfg(all(test, stepwell_shuttle, feature = "webhook"))]
mod interleave;
mod job;
mod json;
mod listener;
mod live;
mod new_job;
mod outbox;
mod outlet;
mod owner;
mod phase;
mod pool;
mod queue;
mod requests;
mod retention;
mod retry;
mod runner;
mod scheduler;
mod shutdown;
mod store;
mod sync;
pub mod testing;
mod time;
mod transition;
#[cfg(feature = "webhook")]
pub mod webhook;

pub use client::Client;
pub use config::{Durability, Keep, Retention};
pub use delivery::{Delivery, DeliveryId, DeliveryStatus, DeliveryTry};
pub use error::{Error, ErrorKind, Result};
pub use event::{Event, EventKind, Seq};
pub use explain::{Explanation, Hindrance, Stats};
pub use handle::JobHandle;
#[cfg(feature = "http")]
pub use http::config::HttpConfig;
pub use job::{
    BulkAction, CancelOutcome, ErrorCause, Interruption, InterruptionReason, Job, JobError, JobId,
    JobStatus, JobSummary, PhaseName, PhaseRecord, PhaseStatus, RetryFrom,
};
pub use listener::{Notice, Subscription};
pub use new_job::{Enqueued, NewJob, While};
pub use outbox::{DeliveryPage, DeliveryQuery, DeliveryRecord, EndpointState};
pub use phase::context::PhaseContext;
pub use phase::stop::StopReason;
pub use phase::{JobPlan, JobType, Phase, PhaseError, PhaseSpec};
pub use queue::builder::Builder;
pub use queue::{Health, JobQueue, WeakQueue};
pub use requests::{JobPage, ListFilter};
pub use retry::RetryPolicy;
pub use shutdown::ShutdownReport;
pub use time::Timestamp;

/// The README's examples are tests too.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

//! Durable, multi-phase background jobs for synchronous Rust programs.
#![forbid(unsafe_code)]

mod bus;
mod client;
mod committer;
mod config;
mod engine;
mod error;
mod event;
mod explain;
mod handle;
mod job;
mod json;
mod listener;
mod live;
mod new_job;
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

pub use client::Client;
pub use config::{Durability, Keep, Retention};
pub use error::{Error, ErrorKind, Result};
pub use event::{Event, EventKind, Seq};
pub use explain::{Explanation, Hindrance, Stats};
pub use handle::JobHandle;
pub use job::{
    BulkAction, CancelOutcome, ErrorCause, Interruption, InterruptionReason, Job, JobError, JobId,
    JobStatus, JobSummary, PhaseName, PhaseRecord, PhaseStatus, RetryFrom,
};
pub use listener::{Notice, Subscription};
pub use new_job::{Enqueued, NewJob, While};
pub use phase::context::{PhaseContext, StopReason};
pub use phase::{JobPlan, JobType, Phase, PhaseError, PhaseSpec};
pub use queue::builder::Builder;
pub use queue::{Health, JobQueue};
pub use requests::{JobPage, ListFilter};
pub use retry::RetryPolicy;
pub use shutdown::ShutdownReport;
pub use time::Timestamp;

//! Durable, multi-phase background jobs for synchronous Rust programs.
#![forbid(unsafe_code)]
mod config;
mod context;
mod error;
mod event;
mod job;
mod new_job;
mod phase;
mod retry;
mod store;
mod sync;
mod time;
mod transition;
pub use context::*;
pub use error::{Error, ErrorKind, Result};
pub use job::*;
pub use new_job::*;
pub use phase::*;

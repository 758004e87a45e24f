//! Webhooks: events of jobs, sent to HTTP endpoints at least once. L3. Feature `webhook`.
//!
//! A delivery is a row of the outbox, written in the commit of its event (`store/seam/outbox.rs`). Here is what sends it: `dispatch`
//! says which one is next, `courier` has the threads, `sender` makes one request. Nothing here writes to the store: what came of
//! a try goes to the committer.

mod address;
mod breaker;
mod config;
mod courier;
mod dispatch;
mod endpoint;
#[cfg(any(fuzzing, test))]
pub(crate) mod fuzz;
mod schedule;
mod secret;
mod sender;
mod signature;
mod target;

pub use config::WebhookConfig;
pub use endpoint::Endpoint;
pub use secret::Secret;
pub use signature::{Signed, Unverified};

pub(crate) use config::opener;

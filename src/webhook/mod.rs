//! Webhooks: events of jobs, sent to HTTP endpoints at least once. L3. Feature `webhook`.
//!
//! # What a receiver gets, and what its answer means
//!
//! A POST of `{"type": ..., "timestamp": ..., "data": ...}`; `data` is the [`Event`](crate::Event) as JSON. The headers are those of
//! [Standard Webhooks](https://www.standardwebhooks.com): `webhook-id`, the same at each try, `webhook-timestamp`, and with a secret
//! `webhook-signature`; [`Signed::verify`] checks them.
//!
//! | answer | means |
//! |---|---|
//! | 200 to 299 | delivered |
//! | 410 | given up, and the endpoint is disabled: until [`enable_endpoint`](crate::JobQueue::enable_endpoint) for one of the configuration, also over restarts |
//! | anything else, a redirect too (none is followed), or none in time | a failed try. `Retry-After`, 1 s to 24 h, takes the place of the next wait |
//!
//! After the last try a delivery is dead, a [`EventKind::WebhookFailed`](crate::EventKind::WebhookFailed) event says so, and
//! [`redeliver`](crate::JobQueue::redeliver) sends it again.
//!
//! # Inside
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
#[cfg(all(test, stepwell_shuttle))]
mod scripted;
mod secret;
mod sender;
mod signature;
mod target;

pub use config::WebhookConfig;
pub use endpoint::Endpoint;
pub use secret::Secret;
pub use signature::{Signed, Unverified};

pub(crate) use config::opener;
#[cfg(all(test, stepwell_shuttle))]
pub(crate) use scripted::{Letter, outlet};

//! Between the engine and whoever sends its deliveries. L3.
#![cfg_attr(
    not(feature = "webhook"),
    allow(
        dead_code,
        reason = "the sender is left out, what it needs of the store is not"
    )
)]

use std::sync::Arc;
use std::time::Duration;

use crate::store::Reader;
use crate::store::outbox::Attempted;
use crate::time::{Clock, Moment};

/// For deliveries that are cut off to end.
pub(crate) const CLOSE_GRACE: Duration = Duration::from_millis(50);
/// After a thread could not be had.
pub(crate) const START_AGAIN: Duration = Duration::from_secs(10);

/// Who sends deliveries. All of it returns at once, except `close`.
pub(crate) trait Outlet: Send + Sync {
    /// These endpoints have something to send. Called by whoever leads a commit.
    fn arrived(&self, endpoints: &[i64]);
    /// What came of a try is on disk. Called by whoever leads a commit.
    fn recorded(&self, attempted: &Attempted);
    /// What came of a try cannot be recorded: a row is damaged. It is not sent again before the next start.
    fn not_recorded(&self, attempted: &Attempted);
    /// Anything may have changed: by another process, or because the clock was set.
    fn look(&self);
    /// It could have no thread for what it was told: when it is to be told to `look` again.
    fn again(&self) -> Option<Moment>;
    /// Takes nothing any more but what was never tried.
    fn drain(&self);
    /// Nothing is on its way, and nothing would be taken now.
    fn is_drained(&self) -> bool;
    /// Takes nothing any more, cuts what is on its way, and waits for its threads, for `patience` at most. What is cut is charged no
    /// try.
    fn close(&self, patience: Duration);
}

/// What an outlet needs of the engine.
pub(crate) struct Office {
    pub(crate) reader: Arc<dyn Reader>,
    pub(crate) clock: Clock,
    /// Names the file in the ids of deliveries.
    pub(crate) file_id: String,
    /// Has what came of a try recorded.
    pub(crate) post: Box<dyn Fn(Attempted) + Send + Sync>,
}

/// Makes one, when the queue is opened.
pub(crate) type OpenOutlet = Box<dyn FnOnce(Office) -> Arc<dyn Outlet>>;

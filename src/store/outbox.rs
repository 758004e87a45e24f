//! The outbox as rows: endpoints, deliveries and their tries. L2.
//!
//! A delivery is written in the commit of its event, by the seam, and is on its own from then on: it has its body and its URL, and
//! needs the job no more. Of the pending deliveries of one endpoint and one job only the first has a time (`next_at`); the end
//! of one gives the next its time. So they go out in the order of their events, and what may be sent now is found by an
//! index, however many wait.
//!
//! No claim is stored: the one process that sends knows what is on its way, and after its death that is sent again, under
//! the same id.
#![cfg_attr(
    not(feature = "webhook"),
    allow(
        dead_code,
        reason = "the sender is left out, what it needs of the store is not"
    )
)]

use std::ops::Range;
use std::sync::Arc;

use crate::delivery::{DeliveryId, DeliveryStatus, DeliveryTry, EndpointSpec, Kinds};
use crate::error::Result;
use crate::event::EventKind;
use crate::job::JobId;
use crate::time::Timestamp;

/// Tries that are kept of one delivery.
pub(crate) const TRIES_KEPT: usize = 20;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct EndpointRow {
    /// 0 before it is stored.
    pub(crate) id: i64,
    /// One of the configuration has a name; else it belongs to jobs.
    pub(crate) name: Option<Arc<str>>,
    pub(crate) spec: EndpointSpec,
    pub(crate) is_enabled: bool,
    /// Why it was disabled, if not by the user.
    pub(crate) problem: Option<String>,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct DeliveryRow {
    pub(crate) id: DeliveryId,
    pub(crate) endpoint_id: i64,
    pub(crate) job_id: JobId,
    pub(crate) kind: EventKind,
    pub(crate) url: String,
    pub(crate) body: Arc<str>,
    pub(crate) status: DeliveryStatus,
    pub(crate) tries: u32,
    pub(crate) next_at: Option<Timestamp>,
    pub(crate) created_at: Timestamp,
    pub(crate) finished_at: Option<Timestamp>,
    pub(crate) last_status: Option<u16>,
    pub(crate) last_error: Option<String>,
}

/// What is to be done with endpoints and deliveries by hand.
#[derive(Clone, Debug)]
pub(crate) enum Mail {
    /// The endpoints of the configuration: those that it does not name are disabled.
    Configure(Vec<(Arc<str>, EndpointSpec)>),
    /// Adds or changes an endpoint by its name.
    Put(Arc<str>, EndpointSpec),
    Enable(Arc<str>, bool),
    /// Sends these again, from the first try on.
    Redeliver(Which),
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Which {
    One(DeliveryId),
    /// Those of events that happened from the first time on and before the second.
    Between(Timestamp, Timestamp),
}

/// What came of a try.
#[derive(Clone, Debug)]
pub(crate) struct Attempted {
    pub(crate) id: DeliveryId,
    /// When it was due, as it was taken: a later time says that it was sent again by hand since.
    pub(crate) due: Option<Timestamp>,
    pub(crate) at: Timestamp,
    pub(crate) took_ms: u64,
    pub(crate) status: Option<u16>,
    pub(crate) error: Option<String>,
    pub(crate) answer: Option<String>,
    pub(crate) verdict: Verdict,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Delivered,
    RetryAt(Timestamp),
    GiveUp,
    /// Given up, and the endpoint wants no more (410).
    Gone,
    /// Given up without a try: its endpoint has said 410 to another one, and nobody can enable it again by name.
    Unwanted,
}

/// Single rows within one open transaction.
pub(crate) trait OutboxRows {
    /// Endpoints of the configuration, the disabled ones too.
    fn named_endpoints(&mut self) -> Result<Vec<EndpointRow>>;
    /// Endpoints of a job.
    fn endpoints_of(&mut self, job: JobId) -> Result<Vec<EndpointRow>>;
    fn endpoint(&mut self, id: i64) -> Result<Option<EndpointRow>>;
    /// Stores an endpoint, and answers its number. One without a name is stored once for each URL, events and keys.
    fn put_endpoint(&mut self, row: &EndpointRow) -> Result<i64>;
    fn link_endpoint(&mut self, job: JobId, endpoint_id: i64) -> Result<()>;
    fn unlink_endpoints(&mut self, job: JobId) -> Result<()>;
    /// Deletes an endpoint without a name that no job is linked to and no pending delivery needs.
    fn drop_endpoint(&mut self, id: i64) -> Result<()>;

    fn delivery(&mut self, id: DeliveryId) -> Result<Option<DeliveryRow>>;
    fn insert_delivery(&mut self, row: &DeliveryRow) -> Result<()>;
    /// Writes everything that can change: status, tries, times and what came of the last try.
    fn update_delivery(&mut self, row: &DeliveryRow) -> Result<()>;
    /// The first pending delivery of this endpoint and job.
    fn first_in_line(&mut self, endpoint_id: i64, job: JobId) -> Result<Option<DeliveryId>>;
    /// Adds a try, and drops the oldest beyond [`TRIES_KEPT`].
    fn add_try(&mut self, id: DeliveryId, attempt: &DeliveryTry) -> Result<()>;
    fn deliveries_between(
        &mut self,
        from: Timestamp,
        to: Timestamp,
        limit: usize,
    ) -> Result<Vec<DeliveryId>>;
    /// Lets every delivery be sent now that has a later time. Answers how many.
    fn bring_forward(&mut self, now: Timestamp) -> Result<usize>;
    /// Whether there is a delivery that tells of this job.
    fn has_deliveries(&mut self, job: JobId) -> Result<bool>;
    /// Deletes deliveries that are over and ended in `old`, or that were delivered and whose event is before `first`; at most
    /// `limit`. Answers of which jobs they told, one for each delivery, and when the first of those that are left ended, not before
    /// `old` begins.
    fn prune_deliveries(
        &mut self,
        first: DeliveryId,
        old: Range<Timestamp>,
        limit: usize,
    ) -> Result<(Vec<JobId>, Option<Timestamp>)>;
}

/// Which deliveries a list shows.
#[derive(Clone, Debug, Default)]
pub(crate) struct DeliveryFilter {
    pub(crate) status: Option<DeliveryStatus>,
    pub(crate) job: Option<JobId>,
}

/// Reads committed data, from any thread.
pub(crate) trait OutboxReader: Send + Sync {
    /// Every endpoint of the configuration, and those of jobs, by number.
    fn all_endpoints(&self) -> Result<Vec<EndpointRow>>;
    fn find_endpoint(&self, id: i64) -> Result<Option<EndpointRow>>;
    /// Each endpoint with something to send, and when the first of it may be sent.
    fn waiting(&self) -> Result<Vec<(i64, Timestamp)>>;
    /// When the first delivery of an endpoint may be sent.
    fn next_of(&self, endpoint_id: i64) -> Result<Option<Timestamp>>;
    /// The first deliveries of an endpoint, by the time from which on they may be sent. Not those that wait for another one.
    fn sendable(&self, endpoint_id: i64, limit: usize) -> Result<Vec<DeliveryRow>>;
    /// A page of deliveries, newest first, with ids below `before`. Looks at a bounded number of rows.
    fn deliveries(
        &self,
        filter: &DeliveryFilter,
        before: Option<DeliveryId>,
        limit: usize,
    ) -> Result<(Vec<DeliveryRow>, Option<DeliveryId>)>;
    fn find_delivery(&self, id: DeliveryId) -> Result<Option<(DeliveryRow, Vec<DeliveryTry>)>>;
}

/// The union of what endpoints want.
pub(crate) fn wanted<'a>(endpoints: impl IntoIterator<Item = &'a EndpointRow>) -> Kinds {
    let kinds = endpoints.into_iter().map(|endpoint| endpoint.spec.events);
    kinds.fold(Kinds::default(), Kinds::with)
}

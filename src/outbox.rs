//! What callers ask of webhook deliveries and endpoints, of a queue or of a client beside it. L3.

use crate::delivery::{Delivery, DeliveryId, DeliveryStatus, DeliveryTry, Kinds, shown_url};
use crate::error::{Error, ErrorKind, Result};
use crate::event::EventKind;
use crate::job::JobId;
use crate::json;
use crate::requests::Requests;
use crate::store::ops::Op;
use crate::store::outbox::{DeliveryFilter, DeliveryRow, EndpointRow, Mail, Which};
use crate::store::{Done, Reader};
use crate::time::Timestamp;

/// Deliveries to list. Defaults to all, 50 at a time.
#[derive(Clone, Debug, Default)]
pub struct DeliveryQuery {
    filter: DeliveryFilter,
    limit: Option<usize>,
    before: Option<DeliveryId>,
}

impl DeliveryQuery {
    /// All deliveries, newest first.
    #[must_use]
    pub fn new() -> DeliveryQuery {
        DeliveryQuery::default()
    }

    /// Only deliveries with this status.
    #[must_use]
    pub fn status(mut self, status: DeliveryStatus) -> DeliveryQuery {
        self.filter.status = Some(status);
        self
    }

    /// Only those that tell of this job.
    #[must_use]
    pub fn job(mut self, id: JobId) -> DeliveryQuery {
        self.filter.job = Some(id);
        self
    }

    /// At most this many. Defaults to `50`; 1 to 1000.
    #[must_use]
    pub fn limit(mut self, limit: usize) -> DeliveryQuery {
        self.limit = Some(limit);
        self
    }

    /// From where another page ended: [`DeliveryPage::next`].
    #[must_use]
    pub fn after(mut self, next: DeliveryId) -> DeliveryQuery {
        self.before = Some(next);
        self
    }
}

/// A page of a list.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct DeliveryPage {
    /// Its deliveries. Can be fewer than asked for, even none, with more to come: each call looks at 10,000 at most.
    pub deliveries: Vec<Delivery>,
    /// Where the next page begins; none at the end.
    pub next: Option<DeliveryId>,
}

/// A delivery with everything that is known about it.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct DeliveryRecord {
    /// What lists show.
    pub delivery: Delivery,
    /// The bytes that are sent with each try.
    pub body: String,
    /// Its tries, oldest first: the newest 20.
    pub log: Vec<DeliveryTry>,
}

json::object!(DeliveryRecord {
    delivery,
    body,
    log,
});

/// An endpoint of the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct EndpointState {
    /// Its name.
    pub name: String,
    /// Where it is, without the query string.
    pub url: String,
    /// What it wants to be told.
    pub events: Vec<EventKind>,
    /// Whether deliveries are written for it, and sent.
    pub enabled: bool,
    /// Why it is disabled, if nobody did it by hand.
    pub problem: Option<String>,
}

json::object!(EndpointState {
    name,
    url,
    events,
    enabled,
    problem,
});

pub(crate) fn deliveries(reader: &dyn Reader, query: &DeliveryQuery) -> Result<DeliveryPage> {
    let limit = query.limit.unwrap_or(50);
    if !(1..=1000).contains(&limit) {
        let problem = format!("limit is {limit}: expected 1 to 1000");
        return Err(Error::new(ErrorKind::InvalidJob, problem));
    }
    let file_id = reader.file_id()?;
    let (rows, next) = reader.deliveries(&query.filter, query.before, limit)?;
    let deliveries = rows.iter().map(|row| delivery(row, &file_id)).collect();
    Ok(DeliveryPage { deliveries, next })
}

pub(crate) fn find(reader: &dyn Reader, id: DeliveryId) -> Result<Option<DeliveryRecord>> {
    let file_id = reader.file_id()?;
    let found = reader.find_delivery(id)?;
    Ok(found.map(|(row, log)| DeliveryRecord {
        delivery: delivery(&row, &file_id),
        body: row.body.to_string(),
        log,
    }))
}

fn delivery(row: &DeliveryRow, file_id: &str) -> Delivery {
    Delivery {
        id: row.id,
        webhook_id: row.id.webhook_id(file_id),
        event: row.kind,
        job_id: row.job_id,
        url: shown_url(&row.url).to_owned(),
        status: row.status,
        tries: row.tries,
        next_at: row.next_at,
        created_at: row.created_at,
        finished_at: row.finished_at,
        last_status: row.last_status,
        last_error: row.last_error.clone(),
    }
}

pub(crate) fn redeliver(to: &dyn Requests, id: DeliveryId) -> Result<()> {
    to.request(Op::Mail(Mail::Redeliver(Which::One(id))))
        .map(|_| ())
}

pub(crate) fn redeliver_between(
    to: &dyn Requests,
    from: Timestamp,
    until: Timestamp,
) -> Result<usize> {
    let done = to.request(Op::Mail(Mail::Redeliver(Which::Between(from, until))))?;
    let Done::Counted(count) = done else {
        return Err(crate::requests::unexpected(&done));
    };
    Ok(count)
}

pub(crate) fn endpoints(reader: &dyn Reader) -> Result<Vec<EndpointState>> {
    let rows = reader.all_endpoints()?.into_iter();
    Ok(rows.filter_map(state).collect())
}

fn state(row: EndpointRow) -> Option<EndpointState> {
    Some(EndpointState {
        name: row.name?.to_string(),
        url: shown_url(&row.spec.url).to_owned(),
        events: Kinds::iter(row.spec.events).collect(),
        enabled: row.is_enabled,
        problem: row.problem,
    })
}

#[cfg(feature = "webhook")]
pub(crate) fn put(to: &dyn Requests, name: &str, endpoint: crate::webhook::Endpoint) -> Result<()> {
    crate::config::check_name("webhook endpoint", name)?;
    if to.is_https_only() && !endpoint.is_https() {
        let problem = crate::delivery::not_https(&endpoint.into_spec().url);
        let problem = format!("webhook endpoint {name:?}: {problem}");
        return Err(Error::new(ErrorKind::InvalidConfig, problem));
    }
    to.request(Op::Mail(Mail::Put(name.into(), endpoint.into_spec())))
        .map(|_| ())
}

pub(crate) fn enable(to: &dyn Requests, name: &str, is_enabled: bool) -> Result<()> {
    to.request(Op::Mail(Mail::Enable(name.into(), is_enabled)))
        .map(|_| ())
}

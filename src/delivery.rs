//! Webhook deliveries as their readers see them, and what is stored of an endpoint. L0.

use std::fmt;
use std::str::FromStr;

use crate::error::{Error, ErrorKind, Result};
use crate::event::{EventKind, Seq};
use crate::job::JobId;
use crate::json;
use crate::time::Timestamp;

/// Endpoints of the configuration that may be enabled: each event has room for 256 deliveries, those of its job's own endpoints
/// (16 at most) included.
pub(crate) const NAMED_MAX: usize = 64;

/// The number of a delivery: of its event, times 256, and a place. Never used twice in one file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeliveryId(i64);

json::number!(DeliveryId);

impl DeliveryId {
    /// Deliveries that one event can have.
    pub(crate) const PLACES: i64 = 256;

    pub(crate) const fn of_event(seq: Seq, place: i64) -> DeliveryId {
        DeliveryId(seq * DeliveryId::PLACES + place)
    }

    /// From a number, as the tools print it.
    #[must_use]
    pub const fn from_i64(id: i64) -> DeliveryId {
        DeliveryId(id)
    }

    /// As a number.
    #[must_use]
    pub const fn as_i64(self) -> i64 {
        self.0
    }

    /// The number of the event that it tells of.
    #[must_use]
    pub const fn seq(self) -> Seq {
        self.0 / DeliveryId::PLACES
    }

    /// The `webhook-id` header of each of its tries. Receivers know repetitions by it.
    pub(crate) fn webhook_id(self, file_id: &str) -> String {
        format!("msg_{file_id}_{}", self.0)
    }
}

impl fmt::Display for DeliveryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for DeliveryId {
    type Err = Error;

    fn from_str(text: &str) -> Result<DeliveryId> {
        match text.parse() {
            Ok(id) if id > 0 => Ok(DeliveryId(id)),
            _ => Err(Error::new(
                ErrorKind::InvalidJob,
                format!("delivery id {text:?}: expected a positive whole number"),
            )),
        }
    }
}

/// Where a delivery stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DeliveryStatus {
    /// To be sent, or to be sent again.
    Pending,
    /// The receiver has accepted it.
    Delivered,
    /// Given up: a dead letter. It can be sent again by hand.
    Failed,
}

json::name!(DeliveryStatus);

impl DeliveryStatus {
    pub(crate) const ALL: [DeliveryStatus; 3] = [
        DeliveryStatus::Pending,
        DeliveryStatus::Delivered,
        DeliveryStatus::Failed,
    ];

    /// The name on the wire, for example `pending`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            DeliveryStatus::Pending => "pending",
            DeliveryStatus::Delivered => "delivered",
            DeliveryStatus::Failed => "failed",
        }
    }

    pub(crate) const fn code(self) -> i64 {
        self as i64
    }

    pub(crate) fn from_code(code: i64) -> Option<DeliveryStatus> {
        DeliveryStatus::ALL
            .get(usize::try_from(code).ok()?)
            .copied()
    }
}

impl FromStr for DeliveryStatus {
    type Err = Error;

    fn from_str(text: &str) -> Result<DeliveryStatus> {
        let named = |status: &DeliveryStatus| status.as_str() == text;
        DeliveryStatus::ALL.into_iter().find(named).ok_or_else(|| {
            let names = DeliveryStatus::ALL.map(DeliveryStatus::as_str).join(", ");
            let problem = format!("delivery status {text:?}: expected one of {names}");
            Error::new(ErrorKind::InvalidJob, problem)
        })
    }
}

impl fmt::Display for DeliveryStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// One event on its way to one endpoint.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Delivery {
    /// Its id.
    pub id: DeliveryId,
    /// The `webhook-id` header of each try: the receiver's key against repetitions.
    pub webhook_id: String,
    /// What it tells.
    pub event: EventKind,
    /// Of which job. The job may be gone.
    pub job_id: JobId,
    /// Where it goes, without the query string.
    pub url: String,
    /// Where it stands.
    pub status: DeliveryStatus,
    /// Tries that were made.
    pub tries: u32,
    /// When it is tried next; none while an earlier one for the same endpoint and job is pending, and when it is over.
    pub next_at: Option<Timestamp>,
    /// When its event happened.
    pub created_at: Timestamp,
    /// When it was delivered or given up.
    pub finished_at: Option<Timestamp>,
    /// The HTTP status of the last try, if there was an answer.
    pub last_status: Option<u16>,
    /// What was wrong with the last try.
    pub last_error: Option<String>,
}

json::object!(Delivery {
    id,
    webhook_id,
    event,
    job_id,
    url,
    status,
    tries,
    next_at,
    created_at,
    finished_at,
    last_status,
    last_error,
});

/// One try of a delivery.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DeliveryTry {
    /// When it began.
    pub at: Timestamp,
    /// Milliseconds until it ended.
    pub took_ms: u64,
    /// The HTTP status, if there was an answer.
    pub status: Option<u16>,
    /// What was wrong.
    pub error: Option<String>,
    /// The first 2 KiB of the answer's body.
    pub answer: Option<String>,
}

json::object!(DeliveryTry {
    at,
    took_ms,
    status,
    error,
    answer,
});

/// A set of kinds of events.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Kinds(pub(crate) i64);

impl Kinds {
    /// All that can be delivered. What tells of deliveries is not: it would never end; and progress is not in the log.
    pub(crate) const ALL: &'static [EventKind] = &[
        EventKind::Created,
        EventKind::Started,
        EventKind::PhaseStarted,
        EventKind::PhaseCompleted,
        EventKind::PhaseFailed,
        EventKind::Retrying,
        EventKind::Interrupted,
        EventKind::Completed,
        EventKind::Failed,
        EventKind::Cancelled,
        EventKind::Deleted,
    ];

    pub(crate) fn all() -> Kinds {
        Kinds::of(Kinds::ALL.iter().copied())
    }

    pub(crate) fn of(kinds: impl IntoIterator<Item = EventKind>) -> Kinds {
        Kinds(
            kinds
                .into_iter()
                .fold(0, |set, kind| set | Kinds::bit(kind)),
        )
    }

    pub(crate) fn has(self, kind: EventKind) -> bool {
        self.0 & Kinds::bit(kind) != 0
    }

    pub(crate) fn with(self, other: Kinds) -> Kinds {
        Kinds(self.0 | other.0)
    }

    pub(crate) fn iter(self) -> impl Iterator<Item = EventKind> {
        EventKind::ALL
            .iter()
            .copied()
            .filter(move |kind| self.has(*kind))
    }

    fn bit(kind: EventKind) -> i64 {
        1 << kind.code()
    }
}

/// An endpoint as a job or the configuration names it.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct EndpointSpec {
    pub(crate) url: String,
    pub(crate) events: Kinds,
    /// The keys that sign, the newest first.
    pub(crate) secrets: Vec<String>,
}

impl fmt::Debug for EndpointSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let keys = self.secrets.len();
        write!(f, "EndpointSpec({}, {keys} keys)", shown_url(&self.url))
    }
}

/// Whether what is sent to this URL is encrypted on its way.
pub(crate) fn is_https(url: &str) -> bool {
    url.get(..8)
        .is_some_and(|scheme| scheme.eq_ignore_ascii_case("https://"))
}

/// What is said of a URL that is not, where only that is allowed.
pub(crate) fn not_https(url: &str) -> String {
    let url = shown_url(url);
    format!("{url} is not https, and WebhookConfig::https_only allows nothing else")
}

/// A URL as it may be shown: a query string can be a secret.
pub(crate) fn shown_url(url: &str) -> &str {
    url.split(['?', '#']).next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_delivery_is_named_by_its_event_and_its_place() {
        let id = DeliveryId::of_event(7, 3);
        assert_eq!((id.as_i64(), id.seq()), (1795, 7));
        assert_eq!(id.webhook_id("0a1b"), "msg_0a1b_1795");
        assert!("0".parse::<DeliveryId>().is_err());
        assert!("1795".parse::<DeliveryId>().is_ok_and(|same| same == id));
    }

    #[test]
    fn sets_of_kinds_hold_what_was_put_in() {
        let some = Kinds::of([EventKind::Completed, EventKind::Deleted]);
        let all: Vec<_> = some.iter().collect();
        assert_eq!(all, [EventKind::Completed, EventKind::Deleted]);
        assert!(!Kinds::all().has(EventKind::WebhookFailed));
        assert!(Kinds::all().has(EventKind::Created));
        assert_eq!(
            Kinds::ALL.len() + 3,
            EventKind::ALL.len(),
            "a new kind must be thought about"
        );
    }

    #[test]
    fn a_url_is_shown_without_what_may_be_secret() {
        assert_eq!(
            shown_url("https://a.example/x?token=1#y"),
            "https://a.example/x"
        );
        let spec = EndpointSpec {
            url: "https://a.example/?k=1".into(),
            events: Kinds::all(),
            secrets: vec!["whsec_x".into()],
        };
        assert_eq!(
            format!("{spec:?}"),
            "EndpointSpec(https://a.example/, 1 keys)"
        );
    }
}

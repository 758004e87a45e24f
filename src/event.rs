//! Events: their names, and the JSON of each (the wire contract, in one place). L0, pure.
//!
//! What is stored is a [`Change`]: one row for one transition of a job, in the commit of that transition. A change stands for
//! one to three events with consecutive numbers, so that finishing a phase and starting the next costs one row and not two.
//! Jobs with consecutive ids to which the same happens in one commit share a row, a *run*: first all events of the first job,
//! then those of the next. Readers never see a change; [`expand`] turns each into its [`Event`]s.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::ser::{Serialize, SerializeMap, Serializer};
use serde_json::{Map, Value};

use crate::error::{Error, ErrorKind, Result};
use crate::job::JobId;
use crate::json;
use crate::time::Timestamp;

/// The number of an event: strictly rising in the order of commits, never used twice. 0 stands before the first one.
pub type Seq = i64;

/// What an event tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum EventKind {
    /// `job:created`: enqueued.
    Created,
    /// `job:started`: claimed for a worker.
    Started,
    /// `job:phase:started`
    PhaseStarted,
    /// `job:phase:completed`: its result is stored.
    PhaseCompleted,
    /// `job:phase:failed`: with `kind` and `message`.
    PhaseFailed,
    /// `job:progress`: what a handler says of itself. Not stored, no number: only the newest one of a job is passed on.
    Progress,
    /// `job:retrying`: pending again until `run_at`, with `reason` = `failed`, `snoozed` or `requested`.
    Retrying,
    /// `job:interrupted`: pending again, with `reason`, `entered` (was it inside a handler?) and `charged`.
    Interrupted,
    /// `job:completed`
    Completed,
    /// `job:failed`: with `kind` and `message`.
    Failed,
    /// `job:cancelled`
    Cancelled,
    /// `job:deleted`: carries only `deletedJobId` and a `reason` = `retention` or `requested`.
    Deleted,
    /// `job:webhook:delivered`
    WebhookDelivered,
    /// `job:webhook:failed`
    WebhookFailed,
}

json::name!(EventKind);

impl EventKind {
    /// Every kind.
    pub const ALL: &'static [EventKind] = &[
        EventKind::Created,
        EventKind::Started,
        EventKind::PhaseStarted,
        EventKind::PhaseCompleted,
        EventKind::PhaseFailed,
        EventKind::Progress,
        EventKind::Retrying,
        EventKind::Interrupted,
        EventKind::Completed,
        EventKind::Failed,
        EventKind::Cancelled,
        EventKind::Deleted,
        EventKind::WebhookDelivered,
        EventKind::WebhookFailed,
    ];

    /// The name on the wire, for example `job:phase:started`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            EventKind::Created => "job:created",
            EventKind::Started => "job:started",
            EventKind::PhaseStarted => "job:phase:started",
            EventKind::PhaseCompleted => "job:phase:completed",
            EventKind::PhaseFailed => "job:phase:failed",
            EventKind::Progress => "job:progress",
            EventKind::Retrying => "job:retrying",
            EventKind::Interrupted => "job:interrupted",
            EventKind::Completed => "job:completed",
            EventKind::Failed => "job:failed",
            EventKind::Cancelled => "job:cancelled",
            EventKind::Deleted => "job:deleted",
            EventKind::WebhookDelivered => "job:webhook:delivered",
            EventKind::WebhookFailed => "job:webhook:failed",
        }
    }

    /// Whether it ends an attempt series.
    #[must_use]
    pub const fn is_terminal(self) -> bool {
        matches!(
            self,
            EventKind::Completed | EventKind::Failed | EventKind::Cancelled
        )
    }

    /// A small number, the same for ever.
    pub(crate) const fn code(self) -> i64 {
        self as i64
    }

    pub(crate) fn from_code(code: i64) -> Option<EventKind> {
        EventKind::ALL
            .iter()
            .copied()
            .find(|kind| kind.code() == code)
    }

    /// The keys of a change's data that belong to this event.
    const fn fields(self) -> &'static [&'static str] {
        match self {
            EventKind::Created => &["priority", "run_at"],
            EventKind::PhaseFailed | EventKind::Failed => &["kind", "message"],
            EventKind::Retrying => &["reason", "run_at", "from"],
            EventKind::Interrupted => &["reason", "entered", "charged", "since"],
            EventKind::Deleted => &["reason"],
            EventKind::Progress => &["fraction", "message"],
            EventKind::WebhookDelivered | EventKind::WebhookFailed => {
                &["delivery_id", "url", "status", "tries"]
            }
            EventKind::Started
            | EventKind::PhaseStarted
            | EventKind::PhaseCompleted
            | EventKind::Completed
            | EventKind::Cancelled => &[],
        }
    }

    /// Whether the event is about one phase.
    const fn has_phase(self) -> bool {
        match self {
            EventKind::PhaseStarted
            | EventKind::PhaseCompleted
            | EventKind::PhaseFailed
            | EventKind::Progress
            | EventKind::Interrupted => true,
            EventKind::Created
            | EventKind::Started
            | EventKind::Retrying
            | EventKind::Completed
            | EventKind::Failed
            | EventKind::Cancelled
            | EventKind::Deleted
            | EventKind::WebhookDelivered
            | EventKind::WebhookFailed => false,
        }
    }
}

impl fmt::Display for EventKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for EventKind {
    type Err = Error;

    fn from_str(text: &str) -> Result<EventKind> {
        EventKind::ALL
            .iter()
            .copied()
            .find(|kind| kind.as_str() == text)
            .ok_or_else(|| {
                Error::new(
                    ErrorKind::InvalidJob,
                    format!("event {text:?}: there is no such event"),
                )
            })
    }
}

/// One event of the log.
///
/// As JSON: `seq`, `event`, `job_id`, `job_type`, `at` (milliseconds UTC), `phase` and `attempt` where they apply, then what
/// the kind of event adds. `job:deleted` has neither type, phase nor attempt.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Event {
    /// Its number; 0 for `job:progress`, which is not in the log.
    pub seq: Seq,
    /// What it tells.
    pub kind: EventKind,
    /// Of which job.
    pub job_id: JobId,
    /// The job's type.
    pub job_type: Arc<str>,
    /// When its change was committed.
    pub at: Timestamp,
    /// The phase it is about.
    pub phase: Option<Arc<str>>,
    /// The attempt it happened in; 0 if none has begun.
    pub attempt: u32,
    /// What this kind adds.
    pub data: Map<String, Value>,
}

impl Serialize for Event {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        if self.seq != 0 {
            map.serialize_entry("seq", &self.seq)?;
        }
        map.serialize_entry("event", self.kind.as_str())?;
        map.serialize_entry("job_id", &self.job_id)?;
        map.serialize_entry("at", &self.at)?;
        if self.kind != EventKind::Deleted {
            map.serialize_entry("job_type", &self.job_type)?;
            if let Some(phase) = &self.phase {
                map.serialize_entry("phase", phase)?;
            }
            if self.attempt > 0 {
                map.serialize_entry("attempt", &self.attempt)?;
            }
        }
        for (key, value) in &self.data {
            map.serialize_entry(key, value)?;
        }
        map.end()
    }
}

/// What one stored row of the log records: one transition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Change {
    Created = 1,
    CreatedAndClaimed = 2,
    Claimed = 3,
    Advanced = 4,
    Completed = 5,
    /// A phase was completed and the job given back at its edge, for a shutdown or a pause.
    AdvancedAndReleased = 6,
    FailedAndRetrying = 7,
    Failed = 8,
    Snoozed = 9,
    Cancelled = 10,
    Interrupted = 11,
    /// Interrupted once too often.
    InterruptedAndFailed = 12,
    /// Past its deadline, outside a phase.
    Expired = 13,
    Retried = 14,
    Deleted = 15,
    WebhookDelivered = 16,
    WebhookFailed = 17,
}

impl Change {
    pub(crate) const ALL: [Change; 17] = [
        Change::Created,
        Change::CreatedAndClaimed,
        Change::Claimed,
        Change::Advanced,
        Change::Completed,
        Change::AdvancedAndReleased,
        Change::FailedAndRetrying,
        Change::Failed,
        Change::Snoozed,
        Change::Cancelled,
        Change::Interrupted,
        Change::InterruptedAndFailed,
        Change::Expired,
        Change::Retried,
        Change::Deleted,
        Change::WebhookDelivered,
        Change::WebhookFailed,
    ];

    /// No change has more events.
    pub(crate) const SPAN_MAX: i64 = 3;

    /// The events it stands for, in their order.
    pub(crate) const fn events(self) -> &'static [EventKind] {
        match self {
            Change::Created => &[EventKind::Created],
            Change::CreatedAndClaimed => &[
                EventKind::Created,
                EventKind::Started,
                EventKind::PhaseStarted,
            ],
            Change::Claimed => &[EventKind::Started, EventKind::PhaseStarted],
            Change::Advanced => &[EventKind::PhaseCompleted, EventKind::PhaseStarted],
            Change::Completed => &[EventKind::PhaseCompleted, EventKind::Completed],
            Change::AdvancedAndReleased => &[EventKind::PhaseCompleted, EventKind::Interrupted],
            Change::FailedAndRetrying => &[EventKind::PhaseFailed, EventKind::Retrying],
            Change::Failed => &[EventKind::PhaseFailed, EventKind::Failed],
            Change::Snoozed | Change::Retried => &[EventKind::Retrying],
            Change::Cancelled => &[EventKind::Cancelled],
            Change::Interrupted => &[EventKind::Interrupted],
            Change::InterruptedAndFailed => &[EventKind::Interrupted, EventKind::Failed],
            Change::Expired => &[EventKind::Failed],
            Change::Deleted => &[EventKind::Deleted],
            Change::WebhookDelivered => &[EventKind::WebhookDelivered],
            Change::WebhookFailed => &[EventKind::WebhookFailed],
        }
    }

    /// How many events of one job.
    pub(crate) fn span(self) -> i64 {
        i64::try_from(self.events().len()).expect("three at most")
    }

    pub(crate) const fn code(self) -> i64 {
        self as i64
    }

    pub(crate) fn from_code(code: i64) -> Option<Change> {
        Change::ALL.into_iter().find(|change| change.code() == code)
    }
}

/// A change as it is read back from the log, its names resolved.
#[derive(Clone, Debug)]
pub(crate) struct LoggedChange {
    /// The number of its first event.
    pub(crate) seq: Seq,
    /// How many events, of all jobs.
    pub(crate) span: i64,
    pub(crate) change: Change,
    /// The job, or the first one of a run: the others have the ids that follow.
    pub(crate) job_id: JobId,
    pub(crate) job_type: Arc<str>,
    pub(crate) at: Timestamp,
    /// The job's phases, as planned then; empty when it was not.
    pub(crate) plan: Plan,
    /// The phase that the change is about.
    pub(crate) phase_index: u32,
    pub(crate) attempt: u32,
    pub(crate) data: Map<String, Value>,
}

/// The phases of a job, in order. Jobs of one type share it.
pub(crate) type Plan = Arc<[crate::job::PhaseName]>;

/// The first `most` events of `changes` whose number is greater than `after`. A change may stand for thousands: no more are made than
/// are wanted.
pub(crate) fn expand_all(changes: Vec<LoggedChange>, after: Seq, most: usize) -> Vec<Event> {
    let mut events = Vec::new();
    for mut change in changes {
        let room = i64::try_from(most - events.len()).unwrap_or(i64::MAX);
        let skipped = (after + 1 - change.seq).max(0);
        change.span = change.span.min(skipped.saturating_add(room));
        expand(&change, after, &mut events);
        if events.len() >= most {
            break;
        }
    }
    events
}

/// The events of a change whose number is greater than `after`.
pub(crate) fn expand(change: &LoggedChange, after: Seq, out: &mut Vec<Event>) {
    let kinds = change.change.events();
    for offset in (after + 1 - change.seq).max(0)..change.span {
        let (job_index, position) = (offset / change.change.span(), offset % change.change.span());
        let kind = kinds[usize::try_from(position).expect("three at most")];
        // A phase that starts after another was completed in the same change is the next one.
        let follows =
            kind == EventKind::PhaseStarted && kinds.first() == Some(&EventKind::PhaseCompleted);
        let follows = follows
            || change.change == Change::AdvancedAndReleased && kind == EventKind::Interrupted;
        let phase_index = change.phase_index as usize + usize::from(follows);
        let phase = change
            .plan
            .get(phase_index)
            .filter(|_| kind.has_phase())
            .map(|phase| phase.name.clone());
        let job_id = JobId::from_i64(change.job_id.as_i64().saturating_add(job_index));
        let mut data: Map<String, Value> = kind
            .fields()
            .iter()
            .filter_map(|&field| Some((field.to_owned(), change.data.get(field)?.clone())))
            .collect();
        if kind == EventKind::Deleted {
            data.insert("deletedJobId".to_owned(), job_id.as_i64().into());
        }
        out.push(Event {
            seq: change.seq + offset,
            kind,
            job_id,
            job_type: change.job_type.clone(),
            at: change.at,
            phase,
            // A job that was stored as claimed was created before its first attempt.
            attempt: if kind == EventKind::Created {
                0
            } else {
                change.attempt
            },
            data,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::PhaseName;

    fn change(change: Change, data: Value) -> LoggedChange {
        LoggedChange {
            seq: 10,
            span: change.span(),
            change,
            job_id: JobId::from_i64(7),
            job_type: "import".into(),
            at: Timestamp::from_millis(99),
            plan: [PhaseName::new("fetch"), PhaseName::new("load")].into(),
            phase_index: 0,
            attempt: 2,
            data: data.as_object().cloned().unwrap_or_default(),
        }
    }

    fn json(logged: &LoggedChange, after: Seq) -> Vec<String> {
        let mut events = Vec::new();
        expand(logged, after, &mut events);
        events
            .iter()
            .map(|event| serde_json::to_string(event).unwrap_or_default())
            .collect()
    }

    #[test]
    fn kinds_and_changes_lead_back_to_what_they_name() {
        for &kind in EventKind::ALL {
            assert_eq!(
                kind.as_str()
                    .parse::<EventKind>()
                    .map_err(|e| e.to_string()),
                Ok(kind)
            );
        }
        for change in Change::ALL {
            assert_eq!(Change::from_code(change.code()), Some(change));
        }
        assert!(Change::from_code(0).is_none());
    }

    #[test]
    fn an_advance_completes_one_phase_and_starts_the_next() {
        assert_eq!(
            json(&change(Change::Advanced, Value::Null), 0),
            [
                r#"{"seq":10,"event":"job:phase:completed","job_id":7,"at":99,"job_type":"import","phase":"fetch","attempt":2}"#,
                r#"{"seq":11,"event":"job:phase:started","job_id":7,"at":99,"job_type":"import","phase":"load","attempt":2}"#,
            ]
        );
        assert_eq!(json(&change(Change::Advanced, Value::Null), 10).len(), 1);
        assert_eq!(json(&change(Change::Advanced, Value::Null), 11).len(), 0);
    }

    #[test]
    fn each_event_of_a_failure_carries_its_own_data() {
        let data = serde_json::json!({"kind": "error", "message": "boom", "reason": "failed", "run_at": 5});
        assert_eq!(
            json(&change(Change::FailedAndRetrying, data), 0),
            [
                r#"{"seq":10,"event":"job:phase:failed","job_id":7,"at":99,"job_type":"import","phase":"fetch","attempt":2,"kind":"error","message":"boom"}"#,
                r#"{"seq":11,"event":"job:retrying","job_id":7,"at":99,"job_type":"import","attempt":2,"reason":"failed","run_at":5}"#,
            ]
        );
    }

    #[test]
    fn a_run_of_created_jobs_has_one_event_for_each() {
        let run = LoggedChange {
            span: 3,
            attempt: 0,
            ..change(Change::Created, Value::Null)
        };
        assert_eq!(
            json(&run, 11),
            [r#"{"seq":12,"event":"job:created","job_id":9,"at":99,"job_type":"import"}"#]
        );
    }

    #[test]
    fn a_run_tells_all_of_one_job_then_all_of_the_next() {
        let run = LoggedChange {
            span: 6,
            ..change(Change::Completed, Value::Null)
        };
        assert_eq!(
            json(&run, 11),
            [
                r#"{"seq":12,"event":"job:phase:completed","job_id":8,"at":99,"job_type":"import","phase":"fetch","attempt":2}"#,
                r#"{"seq":13,"event":"job:completed","job_id":8,"at":99,"job_type":"import","attempt":2}"#,
                r#"{"seq":14,"event":"job:phase:completed","job_id":9,"at":99,"job_type":"import","phase":"fetch","attempt":2}"#,
                r#"{"seq":15,"event":"job:completed","job_id":9,"at":99,"job_type":"import","attempt":2}"#,
            ]
        );
        let all = expand_all(vec![run.clone(), run.clone()], 0, usize::MAX);
        assert_eq!(all.len(), 12);
        for (after, most, seqs) in [(0, 3, 10..13), (11, 3, 12..15), (14, 9, 15..16)] {
            let some = expand_all(vec![run.clone()], after, most);
            let told: Vec<Seq> = some.iter().map(|event| event.seq).collect();
            assert_eq!(told, seqs.collect::<Vec<_>>(), "{most} after {after}");
        }
    }

    #[test]
    fn job_deleted_carries_only_the_deleted_job_id_and_a_reason() {
        let data = serde_json::json!({"reason": "retention", "message": "no"});
        assert_eq!(
            json(&change(Change::Deleted, data), 0),
            [
                r#"{"seq":10,"event":"job:deleted","job_id":7,"at":99,"deletedJobId":7,"reason":"retention"}"#
            ]
        );
    }
}

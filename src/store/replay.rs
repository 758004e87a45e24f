//! What the log says of a job: its changes, followed one after another, lead to what its row must be. L2, pure.
//!
//! The way back of [`transition::decide`](crate::transition::decide), made from the log alone and sharing no code with it: a mistake
//! in one of them shows as a difference between log and row. The log does not tell everything. A rewind, which looks like any other
//! failed try but for the tries of its phase (`phase_attempt`), and a new plan for a job that waits move a pending job to an
//! earlier phase without saying to which; the next claim says it. So the phase of a pending job is an upper limit after those,
//! and is known exactly after everything else. A start that lay in the past when the job was enqueued is not told either, nor one
//! that was put forward when the clock was found to have been ahead.
//!
//! A job whose oldest changes were deleted by retention is followed from the first change that is left; what only the older ones
//! knew is `None`.

use serde_json::Value;

use crate::config::MESSAGE_BYTES_MAX;
use crate::event::{Change, EventKind, LoggedChange, Seq};
use crate::job::{ErrorCause, InterruptionReason, JobStatus};
use crate::store::Part;
use crate::time::Timestamp;
use crate::transition::{Flags, JobRow};

/// What the log says of a job so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Told {
    /// The first event of its newest change.
    pub(crate) last_seq: Seq,
    pub(crate) status: JobStatus,
    pub(crate) attempt: u32,
    /// Completed phases; of a pending job at most as many, where [`Told::may_go_back`].
    pub(crate) phase_index: u32,
    /// The change that made it pending may have been a rewind.
    pub(crate) may_go_back: bool,
    pub(crate) epoch: Option<i64>,
    pub(crate) crash_count: Option<u32>,
    pub(crate) type_id: i64,
    pub(crate) plan_id: i64,
    /// When it may start, while it waits; when it ended, once it is over.
    pub(crate) time: Option<Timestamp>,
}

/// A whole log is followed at once.
const _: () = assert!(size_of::<Told>() <= 80);

/// One change of one job, with what a [`LoggedChange`] leaves out.
pub(crate) struct Logged<'a> {
    pub(crate) change: &'a LoggedChange,
    /// Which job of a run, and where it stands in the log.
    pub(crate) part: Part,
    pub(crate) type_id: i64,
    pub(crate) plan_id: i64,
}

/// A broken invariant: its name, and what is wrong.
pub(crate) type Broken = (&'static str, String);

/// What the job was before `logged`, and what it is after it; nothing when it is gone. `before` is what is known of it, and
/// `oldest` the number of the oldest event of the log.
pub(crate) fn follow(
    before: Option<Told>,
    logged: &Logged<'_>,
    oldest: Seq,
    broken: &mut Vec<Broken>,
) -> Option<Told> {
    let found = broken.len();
    check_link(before.as_ref(), logged, oldest, broken);
    let before = before.unwrap_or_else(|| guess(logged));
    check_edge(&before, logged, broken);
    // What follows from a change that must not be here is no news.
    if broken.len() == found {
        check_numbers(&before, logged, broken);
    }
    check_data(logged, broken);
    after(&before, logged)
}

/// What a row has otherwise than the log says.
pub(crate) fn compare(told: &Told, row: &JobRow, broken: &mut Vec<Broken>) {
    if told.status != row.status {
        let text = format!("the log says {}, the row says {}", told.status, row.status);
        broken.push(("S9", text));
    }
    let mut differ = |name, what: &str, log: i64, row: i64| {
        if log != row {
            let text = format!("the log says {what} {log}, the row says {row}");
            broken.push((name, text));
        }
    };
    differ("S9", "last_seq", told.last_seq, row.last_seq);
    differ("S9", "attempt", told.attempt.into(), row.attempt.into());
    differ("S9", "type_id", told.type_id, row.type_id);
    differ("S9", "epoch", told.epoch.unwrap_or(row.epoch), row.epoch);
    let crash_count = told.crash_count.unwrap_or(row.crash_count);
    differ(
        "S7",
        "crash_count",
        crash_count.into(),
        row.crash_count.into(),
    );
    let waits = row.status == JobStatus::Pending;
    if !waits {
        differ("S9", "plan_id", told.plan_id, row.plan_id);
    }
    let may_go_back = told.may_go_back && row.phase_attempt == 0 || told.plan_id != row.plan_id;
    let is_less = waits && may_go_back && row.phase_index < told.phase_index;
    if !is_less {
        let (log, row) = (told.phase_index.into(), row.phase_index.into());
        differ("S9", "phase_index", log, row);
    }
    let row_status = row.status;
    let (what, time) = match row_status {
        JobStatus::Pending if row.flags.has(Flags::MOVED) => return,
        JobStatus::Pending => ("run_at_ms", Some(row.run_at)),
        JobStatus::Running => return,
        JobStatus::Completed | JobStatus::Failed | JobStatus::Cancelled => {
            ("finished_at_ms", row.finished_at)
        }
    };
    // Of another status the log tells another time.
    if let (Some(log), Some(row)) = (told.time, time)
        && told.status == row_status
    {
        differ("S9", what, log.as_millis(), row.as_millis());
    }
}

pub(crate) const fn is_creation(change: Change) -> bool {
    matches!(change, Change::Created | Change::CreatedAndClaimed)
}

/// From which statuses a change leads away. A job that is being created counts as pending.
const fn sources(change: Change) -> &'static [JobStatus] {
    match change {
        Change::Created | Change::CreatedAndClaimed | Change::Claimed | Change::Expired => {
            &[JobStatus::Pending]
        }
        Change::Advanced
        | Change::Completed
        | Change::AdvancedAndReleased
        | Change::FailedAndRetrying
        | Change::Failed
        | Change::Snoozed
        | Change::Interrupted
        | Change::InterruptedAndFailed => &[JobStatus::Running],
        Change::Cancelled => &[JobStatus::Pending, JobStatus::Running],
        Change::Retried => &[JobStatus::Failed, JobStatus::Cancelled],
        Change::Deleted => &[
            JobStatus::Completed,
            JobStatus::Failed,
            JobStatus::Cancelled,
        ],
        Change::WebhookDelivered | Change::WebhookFailed => &JobStatus::ALL,
    }
}

/// What the job must have been before the change, where the log does not say it.
fn guess(logged: &Logged<'_>) -> Told {
    let change = logged.change;
    let cut = Told {
        last_seq: logged.part.prev_seq,
        status: told_status(change).unwrap_or(sources(change.change)[0]),
        attempt: change.attempt,
        phase_index: change.phase_index,
        may_go_back: true,
        epoch: None,
        crash_count: None,
        type_id: logged.type_id,
        plan_id: logged.plan_id,
        time: None,
    };
    if is_creation(change.change) {
        return Told {
            attempt: 0,
            phase_index: 0,
            epoch: Some(0),
            crash_count: Some(0),
            ..cut
        };
    }
    let is_claim = change.change == Change::Claimed;
    Told {
        attempt: change.attempt.saturating_sub(u32::from(is_claim)),
        ..cut
    }
}

/// What became of a delivery is told with where its job stands: nothing else says it when the older changes are gone.
fn told_status(change: &LoggedChange) -> Option<JobStatus> {
    change.data.get("job")?.as_str()?.parse().ok()
}

/// The changes of a job are linked, from its creation on, and without one between.
fn check_link(before: Option<&Told>, logged: &Logged<'_>, oldest: Seq, broken: &mut Vec<Broken>) {
    let (seq, prev_seq) = (logged.part.seq, logged.part.prev_seq);
    let is_new = is_creation(logged.change.change);
    let text = match before {
        Some(_) if is_new => format!("is created once more by event {seq}"),
        Some(told) if told.last_seq != prev_seq => format!(
            "event {seq} is linked to event {prev_seq}, the one before it is {}",
            told.last_seq
        ),
        None if is_new && prev_seq != 0 => {
            format!("is created by event {seq}, which is linked to event {prev_seq}")
        }
        None if !is_new && !(1..oldest).contains(&prev_seq) => {
            format!("event {seq} is linked to event {prev_seq}, which is not one of this job")
        }
        Some(_) | None => return,
    };
    broken.push(("S9", text));
}

/// Only certain changes are possible, by the status; and one series of attempts ends once.
fn check_edge(before: &Told, logged: &Logged<'_>, broken: &mut Vec<Broken>) {
    let change = logged.change.change;
    let is_told = told_status(logged.change).is_none_or(|told| told == before.status);
    if sources(change).contains(&before.status) && is_told {
        return;
    }
    let (seq, name) = (logged.part.seq, last_event(change));
    broken.push(if before.status.is_terminal() {
        let text = format!(
            "event {seq} ({name}) comes after event {}, which ended the job as {}",
            before.last_seq, before.status
        );
        ("S10", text)
    } else {
        let text = format!(
            "event {seq} ({name}) happens to a job that is {}",
            before.status
        );
        ("S9", text)
    });
}

fn last_event(change: Change) -> EventKind {
    change.events()[change.events().len() - 1]
}

/// The attempt and the phase that a change tells of are those that the job was in.
fn check_numbers(before: &Told, logged: &Logged<'_>, broken: &mut Vec<Broken>) {
    let change = logged.change;
    let attempt = match change.change {
        Change::CreatedAndClaimed | Change::Claimed => before.attempt.saturating_add(1),
        Change::Retried => 0,
        Change::Created
        | Change::Advanced
        | Change::Completed
        | Change::AdvancedAndReleased
        | Change::FailedAndRetrying
        | Change::Failed
        | Change::Snoozed
        | Change::Cancelled
        | Change::Interrupted
        | Change::InterruptedAndFailed
        | Change::Expired
        | Change::Deleted
        | Change::WebhookDelivered
        | Change::WebhookFailed => before.attempt,
    };
    let mut differ = |what: &str, found: u32, expected: u32| {
        let seq = logged.part.seq;
        let text = format!("event {seq} tells of {what} {found}, the log before it of {expected}");
        broken.push(("S9", text));
    };
    if change.attempt != attempt {
        differ("attempt", change.attempt, attempt);
    }
    let waited = before.status == JobStatus::Pending;
    let may_go_back = before.may_go_back || logged.plan_id != before.plan_id;
    let is_moved = waited && may_go_back && change.phase_index < before.phase_index;
    if change.phase_index != before.phase_index && !is_moved {
        differ("phase", change.phase_index, before.phase_index);
    }
    let is_replanned = !waited && logged.plan_id != before.plan_id;
    if is_replanned || logged.type_id != before.type_id {
        let text = format!("event {} tells of another type or plan", logged.part.seq);
        broken.push(("S9", text));
    }
}

/// What a change tells beside its numbers is there, and one of the words that stepwell writes.
fn check_data(logged: &Logged<'_>, broken: &mut Vec<Broken>) {
    let (change, seq) = (logged.change, logged.part.seq);
    let text = |key| change.data.get(key).and_then(Value::as_str);
    let is_true = |key| change.data.get(key) == Some(&Value::Bool(true));
    let mut report = |name, what: &str| broken.push((name, format!("event {seq} {what}")));
    let mut fails = false;
    for kind in change.change.events() {
        let (reason, allowed): (_, &[&str]) = match kind {
            EventKind::PhaseFailed | EventKind::Failed => {
                fails = true;
                continue;
            }
            EventKind::Retrying => (text("reason"), retrying(change.change)),
            EventKind::Deleted => (text("reason"), &["retention", "requested"]),
            EventKind::Interrupted => (
                text("reason"),
                &InterruptionReason::ALL.map(InterruptionReason::as_str),
            ),
            EventKind::Created
            | EventKind::Started
            | EventKind::PhaseStarted
            | EventKind::PhaseCompleted
            | EventKind::Progress
            | EventKind::Completed
            | EventKind::Cancelled
            | EventKind::WebhookDelivered
            | EventKind::WebhookFailed => continue,
        };
        if !reason.is_some_and(|reason| allowed.contains(&reason)) {
            let name = if change.change == Change::Retried {
                "S10"
            } else {
                "S1"
            };
            let reason = reason.map_or("no reason".to_owned(), |it| format!("the reason {it:?}"));
            report(name, &format!("({kind}) has {reason}"));
        }
    }
    if fails && text("kind").and_then(ErrorCause::from_name).is_none() {
        report("S5", "is a failure that names no kind of error");
    }
    if text("message").is_some_and(|message| message.len() > MESSAGE_BYTES_MAX) {
        report("S12", "has a message that is too long");
    }
    let crashed = is_true("entered") && text("reason") == Some("process_died");
    if is_true("charged") && !crashed {
        report(
            "S7",
            "charges a job that was in no handler when its process died",
        );
    }
    if change.change == Change::InterruptedAndFailed && !is_true("charged") {
        report("S7", "ends a job at its crash limit without a crash");
    }
}

/// Why a job is to be tried again.
const fn retrying(change: Change) -> &'static [&'static str] {
    match change {
        Change::FailedAndRetrying => &["failed"],
        Change::Snoozed => &["snoozed"],
        Change::Retried => &["requested"],
        Change::Created
        | Change::CreatedAndClaimed
        | Change::Claimed
        | Change::Advanced
        | Change::Completed
        | Change::AdvancedAndReleased
        | Change::Failed
        | Change::Cancelled
        | Change::Interrupted
        | Change::InterruptedAndFailed
        | Change::Expired
        | Change::Deleted
        | Change::WebhookDelivered
        | Change::WebhookFailed => &[],
    }
}

/// What becomes of the job.
fn after(before: &Told, logged: &Logged<'_>) -> Option<Told> {
    let change = logged.change;
    let same = Told {
        last_seq: logged.part.seq,
        attempt: change.attempt,
        phase_index: change.phase_index,
        type_id: logged.type_id,
        plan_id: logged.plan_id,
        ..*before
    };
    let is_replanned = change.data.get("reason") == Some(&Value::from("replanned"));
    let to = |status| Told {
        status,
        may_go_back: change.change == Change::FailedAndRetrying || is_replanned,
        time: time_after(change),
        ..same
    };
    let uncharged = Told {
        attempt: change.attempt.saturating_sub(1),
        ..to(JobStatus::Pending)
    };
    let next = change.phase_index.saturating_add(1);
    let crashed = |told: Told| Told {
        attempt: change.attempt,
        crash_count: before.crash_count.map(|count| count.saturating_add(1)),
        ..told
    };
    Some(match change.change {
        Change::Created | Change::FailedAndRetrying => to(JobStatus::Pending),
        Change::CreatedAndClaimed | Change::Claimed => Told {
            epoch: before.epoch.map(|epoch| epoch + 1),
            ..to(JobStatus::Running)
        },
        Change::Advanced => Told {
            phase_index: next,
            ..to(JobStatus::Running)
        },
        Change::Completed => Told {
            phase_index: next,
            ..to(JobStatus::Completed)
        },
        Change::AdvancedAndReleased => Told {
            phase_index: next,
            ..uncharged
        },
        Change::Snoozed => uncharged,
        Change::Interrupted if change.data.get("charged") == Some(&Value::Bool(true)) => {
            crashed(uncharged)
        }
        Change::Interrupted => uncharged,
        Change::InterruptedAndFailed => crashed(to(JobStatus::Failed)),
        Change::Failed | Change::Expired => to(JobStatus::Failed),
        Change::Cancelled => to(JobStatus::Cancelled),
        Change::Retried => Told {
            attempt: 0,
            crash_count: Some(0),
            phase_index: match change.data.get("from").and_then(Value::as_str) {
                Some("start") => 0,
                Some(_) | None => change.phase_index,
            },
            ..to(JobStatus::Pending)
        },
        Change::WebhookDelivered | Change::WebhookFailed => same,
        Change::Deleted => return None,
    })
}

/// When a change lets the job start, or ends it, if it says so.
fn time_after(change: &LoggedChange) -> Option<Timestamp> {
    match change.change {
        Change::Created | Change::FailedAndRetrying | Change::Snoozed => {
            let run_at = change.data.get("run_at").and_then(Value::as_i64);
            run_at.map(Timestamp::from_millis)
        }
        Change::AdvancedAndReleased
        | Change::Interrupted
        | Change::Retried
        | Change::Completed
        | Change::Failed
        | Change::Expired
        | Change::Cancelled
        | Change::InterruptedAndFailed => Some(change.at),
        Change::CreatedAndClaimed
        | Change::Claimed
        | Change::Advanced
        | Change::WebhookDelivered
        | Change::WebhookFailed
        | Change::Deleted => None,
    }
}

//! What the log and the error history say of a change, as text. L2, pure.

use std::sync::Arc;

use serde_json::json;

use crate::config::{BACKTRACE_BYTES_MAX, MESSAGE_BYTES_MAX, truncate};
use crate::event::Change;
use crate::job::{ErrorCause, InterruptionReason};
use crate::store::ErrorRow;
use crate::store::ops::Fault;
use crate::time::Timestamp;
use crate::transition::{JobRow, Transition};

/// Within its limits, whoever says it: the log and webhooks take the text from this row.
pub(super) fn fault_row(
    fault: &Fault,
    phase: Option<Arc<str>>,
    before: &JobRow,
    at: Timestamp,
) -> ErrorRow {
    let Fault {
        cause,
        message,
        backtrace,
    } = fault;
    let (mut message, mut backtrace) = (message.clone(), backtrace.clone());
    truncate(&mut message, MESSAGE_BYTES_MAX);
    if let Some(backtrace) = &mut backtrace {
        truncate(backtrace, BACKTRACE_BYTES_MAX);
    }
    ErrorRow {
        phase,
        attempt: before.attempt,
        at,
        since: before.phase_started_at,
        cause: *cause,
        message,
        backtrace,
    }
}

pub(super) fn interrupted_row(
    reason: InterruptionReason,
    phase: Option<Arc<str>>,
    before: &JobRow,
    since: Option<Timestamp>,
    at: Timestamp,
) -> ErrorRow {
    let message = reason.as_str().to_owned();
    let cause = ErrorCause::Interrupted;
    ErrorRow {
        phase,
        attempt: before.attempt,
        at,
        since,
        cause,
        message,
        backtrace: None,
    }
}

pub(super) fn failed_data(transition: &Transition, error: Option<&ErrorRow>) -> Option<String> {
    let (kind, message) = error.map_or((ErrorCause::Error, ""), |error| {
        (error.cause, error.message.as_str())
    });
    let mut data = json!({"kind": kind, "message": message});
    if transition.change == Change::FailedAndRetrying {
        data["reason"] = json!("failed");
        data["run_at"] = json!(transition.after.run_at);
    }
    Some(data.to_string())
}

pub(super) fn interrupted_data(
    reason: InterruptionReason,
    entered: bool,
    charged: bool,
    since: Option<Timestamp>,
) -> Option<String> {
    let mut data = json!({"reason": reason, "entered": entered, "charged": charged});
    if let Some(since) = since {
        data["since"] = json!(since);
    }
    Some(data.to_string())
}

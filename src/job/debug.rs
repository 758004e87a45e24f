//! How jobs print for debugging: payloads by their size alone. They may be secret, and `{job:?}` ends in logs. L0.

use std::fmt;

use serde_json::Value;

use crate::job::{Job, PhaseRecord};

/// A payload that is not shown.
struct Payload<'a>(&'a Value);

impl fmt::Debug for Payload<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes of JSON", self.0.to_string().len())
    }
}

impl fmt::Debug for PhaseRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let PhaseRecord {
            name,
            version,
            status,
            attempt,
            started_at,
            finished_at,
            result,
            error,
        } = self;
        f.debug_struct("PhaseRecord")
            .field("name", name)
            .field("version", version)
            .field("status", status)
            .field("attempt", attempt)
            .field("started_at", started_at)
            .field("finished_at", finished_at)
            .field("result", &result.as_ref().map(Payload))
            .field("error", error)
            .finish()
    }
}

impl fmt::Debug for Job {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Job {
            summary,
            input,
            unique_key,
            phases,
            errors,
            interruption,
        } = self;
        f.debug_struct("Job")
            .field("summary", summary)
            .field("input", &Payload(input))
            .field("unique_key", unique_key)
            .field("phases", phases)
            .field("errors", errors)
            .field("interruption", interruption)
            .finish()
    }
}

//! What running handlers ask of the engine. L3.

use std::sync::Arc;

use serde_json::json;

use crate::config::{MESSAGE_BYTES_MAX, check_json, truncate};
use crate::engine::Engine;
use crate::error::Result;
use crate::event::{Event, EventKind};
use crate::phase::context::{Attempt, Services};
use crate::store::ops::Op;
use crate::time::Clock;

impl Services for Engine {
    fn save(&self, attempt: &Attempt, json: String) -> Result<()> {
        check_json(
            &format!("job {}: checkpoint", attempt.job_id),
            &json,
            self.config.limits.result_bytes_max,
        )?;
        let phase_index = u32::try_from(attempt.phase_index).expect("256 phases at most");
        self.call(Op::Save {
            id: attempt.job_id,
            epoch: attempt.epoch,
            phase_index,
            json,
        })
        .map(|_| ())
    }

    fn saved(&self, attempt: &Attempt) -> Result<Option<String>> {
        let phase_index = u32::try_from(attempt.phase_index).expect("256 phases at most");
        self.reader.checkpoint(attempt.job_id, phase_index)
    }

    fn result(&self, attempt: &Attempt, phase_index: usize) -> Result<Option<Arc<str>>> {
        let run = self.live.get(attempt.job_id, attempt.epoch);
        if let Some(result) = run.as_ref().and_then(|run| run.result(phase_index)) {
            return Ok(Some(result));
        }
        let index = u32::try_from(phase_index).expect("256 phases at most");
        let result = self.reader.result(attempt.job_id, index)?;
        if let (Some(run), Some(result)) = (&run, &result) {
            run.remember(phase_index, result);
        }
        Ok(result.map(Arc::from))
    }

    fn progress(&self, attempt: &Attempt, fraction: f64, message: &str) {
        if attempt.flag.is_set() {
            return;
        }
        let mut message = message.to_owned();
        truncate(&mut message, MESSAGE_BYTES_MAX);
        let data = json!({"fraction": fraction, "message": message});
        self.bus.progress(Event {
            seq: 0,
            kind: EventKind::Progress,
            job_id: attempt.job_id,
            job_type: attempt.job_type.clone(),
            at: self.now(),
            phase: Some(attempt.phase().name.clone()),
            attempt: attempt.attempt,
            data: data.as_object().cloned().unwrap_or_default(),
        });
    }

    fn clock(&self) -> &Clock {
        &self.clock
    }
}

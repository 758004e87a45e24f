//! A job of the model as the queue is to show it.

use serde_json::{Value, json};

use super::kinds::NAMES;
use super::model::{Job, Model, Status};

impl Model {
    /// A job as the queue shows it, without what is said elsewhere.
    pub(crate) fn view(&self, id: i64) -> Option<Value> {
        let job = self.jobs.get(&id)?;
        let mut phases = Vec::new();
        for (index, (name, version)) in job.plan.iter().enumerate() {
            let status = phase_status(job, index);
            let mut view = json!({"name": name, "version": version, "status": status, "attempt": 0,
                "finished_at": null, "result": null, "error": null});
            if let Some(done) = job.done.get(index) {
                view["attempt"] = json!(done.attempt);
                view["started_at"] = json!(done.started);
                view["finished_at"] = json!(done.finished);
                view["result"] = done.result.clone();
            } else {
                view["finished_at"] = json!(job.finished);
                if index == job.done.len() && job.tries > 0 {
                    view["attempt"] = json!(job.attempt);
                    let mut errors = job.errors.iter().rev();
                    let last = errors.find(|error| error["phase"] == *name);
                    view["error"] = last.map_or(Value::Null, |error| error["message"].clone());
                }
                if status == "running" {
                    view["started_at"] = json!(job.offered);
                }
            }
            phases.push(view);
        }
        let mut view = self.summary(id)?;
        let more = json!({"input": job.input, "unique_key": job.key, "phases": phases, "errors": job.errors,
            "interruption": job.interruption});
        let more = more.as_object().expect("an object").clone();
        view.as_object_mut().expect("an object").extend(more);
        Some(view)
    }

    /// What lists say of it.
    pub(crate) fn summary(&self, id: i64) -> Option<Value> {
        let job = self.jobs.get(&id)?;
        Some(
            json!({"id": id, "type": NAMES[job.kind], "status": job.status.name(), "attempt": job.attempt,
            "crash_count": job.crashes, "priority": job.priority, "run_at": job.run_at, "created_at": job.created,
            "started_at": job.started, "finished_at": job.finished, "deadline": job.deadline,
            "webhook_sent": job.webhook_sent, "phases_done": job.done.len(), "phase_count": job.plan.len()}),
        )
    }
}

fn phase_status(job: &Job, index: usize) -> &'static str {
    let is_next = index == job.done.len();
    match job.status {
        _ if index < job.done.len() => "completed",
        Status::Pending | Status::Completed => "pending",
        Status::Running if is_next => "running",
        Status::Running => "pending",
        Status::Failed if is_next && job.tries > 0 => "failed",
        Status::Failed => "skipped",
        Status::Cancelled => "cancelled",
    }
}

//! `/metrics` and `/healthz`: for machines that look after the queue. L3.
//!
//! Format: Prometheus text, version 0.0.4.

use std::fmt::Write;

use serde_json::json;

use crate::explain;
use crate::http::answer::{Answer, failed};
use crate::http::router::{Call, Reply, Site};
use crate::job::JobStatus;
use crate::sync::Ordering;

/// Whether the queue can do its work. Says no more than that without a token.
pub(super) fn healthz(site: &Site, call: &Call<'_>) -> Result<Reply, Answer> {
    let (poisoned, store_failure) = site.engine.health();
    let closing = site.engine.is_stopping();
    let status = match (&poisoned, &store_failure) {
        (Some(_), _) => "poisoned",
        (None, Some(_)) => "store_failed",
        (None, None) if closing => "closing",
        (None, None) => "ok",
    };
    let mut shown = json!({ "status": status });
    if site.guard.is_known(call.request) {
        shown["problem"] = json!(poisoned.or(store_failure));
    }
    let mut answer = Answer::json(&shown);
    if status != "ok" {
        answer.status = 503;
    }
    Ok(answer.into())
}

pub(super) fn metrics(site: &Site, call: &Call<'_>) -> Result<Reply, Answer> {
    call.only(&[])?;
    let engine = &site.engine;
    let look = || {
        Ok((
            explain::stats(&*engine.reader)?,
            engine.reader.oldest_seq()?,
        ))
    };
    let (stats, oldest) = look().map_err(|error| failed(&error))?;
    let (poisoned, store_failure) = engine.health();
    let is_up = poisoned.is_none() && store_failure.is_none();
    let jobs = JobStatus::ALL.map(|status| {
        let count = match status {
            JobStatus::Pending => stats.pending,
            JobStatus::Running => stats.running,
            JobStatus::Completed => stats.completed,
            JobStatus::Failed => stats.failed,
            JobStatus::Cancelled => stats.cancelled,
        };
        (format!("{{status=\"{status}\"}}"), count.to_string())
    });
    let paused_types = stats.paused_types.len();
    let streams = site.gauges.streams.load(Ordering::Relaxed);
    let connections = site.gauges.connections.load(Ordering::Relaxed);
    let mut text = Text::default();
    text.family("jobs", "gauge", "Jobs in the file, by status.", &jobs);
    text.counter(
        "events_total",
        "Events ever written to the log.",
        stats.head_seq,
    );
    text.gauge(
        "oldest_event",
        "Number of the oldest event that is kept.",
        oldest,
    );
    text.gauge("up", "1 when the queue can do its work.", u8::from(is_up));
    text.gauge(
        "paused",
        "1 while the queue is paused.",
        u8::from(stats.paused),
    );
    text.gauge("paused_types", "Job types that are paused.", paused_types);
    text.gauge("workers", "Worker threads.", engine.config.workers);
    text.gauge(
        "claimed_max",
        "Jobs that may be claimed at present.",
        engine.window(),
    );
    text.gauge(
        "abandoned_handlers",
        "Handlers that ignore their stop flag.",
        engine.abandoned(),
    );
    text.gauge("http_streams", "Event streams that are open.", streams);
    text.gauge(
        "http_connections",
        "HTTP connections, streams included.",
        connections,
    );
    Ok(Answer::new(200, "text/plain; version=0.0.4; charset=utf-8", text.0).into())
}

#[derive(Default)]
struct Text(String);

impl Text {
    fn family(&mut self, name: &str, kind: &str, help: &str, samples: &[(String, String)]) {
        let head = format!("# HELP stepwell_{name} {help}\n# TYPE stepwell_{name} {kind}\n");
        self.0.push_str(&head);
        for (labels, value) in samples {
            writeln!(self.0, "stepwell_{name}{labels} {value}").expect("writing to a string");
        }
    }

    fn gauge(&mut self, name: &str, help: &str, value: impl ToString) {
        self.family(name, "gauge", help, &[(String::new(), value.to_string())]);
    }

    fn counter(&mut self, name: &str, help: &str, value: impl ToString) {
        self.family(name, "counter", help, &[(String::new(), value.to_string())]);
    }
}

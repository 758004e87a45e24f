//! Waits until the queue has done all that the model says it does, then compares all that can be seen.

use std::collections::BTreeMap;
use std::thread::park_timeout;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use stepwell::{DeliveryQuery, Event, EventKind, JobId, ListFilter, Notice};

use super::drive::{Checked, Drive, STATUSES, same, told};
use super::kinds::NAMES;

/// Every job is looked at in full after so many steps; in between, those that the step was about.
const FULL: usize = 8;
impl Drive<'_> {
    /// After each step.
    pub(crate) fn settle(&mut self) -> Checked {
        let base = self.receiver.base();
        self.model.run();
        self.deliver();
        self.outbox.run(&mut self.model, &base);
        let until = Instant::now() + self.config.patience;
        self.compare_events(until)?;
        self.stage
            .wait(self.model.inside(), self.model.late, until)?;
        if self.config.has_hooks {
            self.compare_deliveries(until)?;
        }
        self.compare_counts(until)?;
        self.compare_jobs()?;
        self.touched.clear();
        self.steps += 1;
        Ok(())
    }

    fn compare_events(&mut self, until: Instant) -> Checked {
        let expected = std::mem::take(&mut self.model.events);
        self.delivered = 0;
        let mut about = std::mem::take(&mut self.outbox.events);
        about.retain(|(id, _)| self.model.jobs.contains_key(id));
        for (id, event) in &expected {
            self.note(event["event"].as_str().unwrap_or_default(), event);
            self.touched.insert(*id);
        }
        self.touched.extend(about.iter().map(|(id, _)| *id));
        let mut found = (Vec::new(), Vec::new());
        let mut late = None;
        while found.0.len() < expected.len() || found.1.len() < about.len() {
            let notice = self
                .events
                .recv_timeout(until.saturating_duration_since(Instant::now()));
            let event = match notice {
                Ok(Notice::Event(event)) => event,
                other => {
                    late = Some(format!("{other:?}"));
                    break;
                }
            };
            self.hear(event, &mut found)?;
        }
        self.hear_the_rest(&mut found)?;
        let told =
            compare_by_job(&found.0, &expected).and_then(|()| compare_by_job(&found.1, &about));
        match (told, late) {
            (Err(problem), Some(late)) => {
                Err(format!("{problem}\n  after waiting: {late}{}", self.why()))
            }
            (Ok(()), Some(late)) => Err(format!("waited for an event: {late}")),
            (told, None) => told,
        }
    }

    /// What the queue says of itself.
    fn why(&self) -> String {
        let mut why = format!("\n  {:?}, {:?}", self.queue.health(), self.queue.stats());
        for id in self.model.jobs.keys() {
            let explained = self.queue.explain(JobId::from_i64(*id));
            why = format!("{why}\n  {explained:?}");
        }
        why
    }

    fn hear(&mut self, event: Event, found: &mut (Told, Told)) -> Checked {
        same("the number of an event", event.seq, self.seq + 1)?;
        self.seq = event.seq;
        let id = event.job_id.as_i64();
        let is_about = matches!(
            event.kind,
            EventKind::WebhookDelivered | EventKind::WebhookFailed
        );
        let told = plain(&event, is_about);
        self.log.push(event);
        if !is_about {
            found.0.push((id, told));
        } else if self.model.jobs.contains_key(&id) {
            found.1.push((id, told));
        }
        Ok(())
    }

    /// What nobody expects, and what other subscriptions hear.
    fn hear_the_rest(&mut self, found: &mut (Told, Told)) -> Checked {
        if self.steps.is_multiple_of(FULL) {
            while let Ok(Notice::Event(event)) = self.events.recv_timeout(Duration::ZERO) {
                self.hear(event, found)?;
            }
        }
        for (other, from) in &mut self.others {
            for event in &self.log[*from..] {
                let heard = other.recv_timeout(Duration::ZERO).map_err(told)?;
                same(
                    "what another subscription hears",
                    heard,
                    Notice::Event(event.clone()),
                )?;
            }
            *from = self.log.len();
        }
        Ok(())
    }

    fn note(&mut self, name: &str, event: &Value) {
        let what = match (name, event["kind"].as_str(), event["reason"].as_str()) {
            ("job:phase:failed", Some("timeout"), _) => "a phase took too long",
            ("job:phase:failed", Some("deadline"), _) => "a deadline passed inside a handler",
            ("job:failed", Some("deadline"), _) => "failed for its deadline",
            ("job:failed", Some("crash_limit"), _) => "the crash limit was reached",
            ("job:deleted", _, Some("retention")) => "deleted by retention",
            ("job:interrupted", _, Some("paused")) => "given back for a pause",
            ("job:interrupted", _, Some("shutdown")) => "cut off or given back by a shutdown",
            ("job:retrying", _, Some("snoozed")) => "snoozed",
            ("job:retrying", _, Some("failed")) => "retried by the policy",
            ("job:completed", ..) => "completed",
            _ => return,
        };
        self.counters.add(what);
    }

    fn compare_deliveries(&mut self, until: Instant) -> Checked {
        let base = self.receiver.base();
        for id in self.outbox.jobs() {
            let expected = self.outbox.view(id, &base);
            loop {
                let query = DeliveryQuery::new().job(JobId::from_i64(id)).limit(1000);
                let page = self.queue.deliveries(&query).map_err(told)?;
                let mut found: Vec<Value> = page.deliveries.iter().map(delivery).collect();
                found.reverse();
                if found == expected {
                    break;
                }
                if Instant::now() > until {
                    let differ = found.iter().zip(&expected).find(|(a, b)| a != b);
                    let lengths = (found.len(), expected.len());
                    return Err(format!("deliveries of job {id}: {lengths:?}, {differ:#?}"));
                }
                // A try that failed has no event.
                park_timeout(Duration::from_millis(1));
            }
        }
        for (id, _) in self.model.jobs.iter().filter(|(_, job)| job.webhook_sent) {
            self.touched.insert(*id);
        }
        Ok(())
    }

    fn compare_counts(&mut self, until: Instant) -> Checked {
        let mut stats = self.queue.stats().map_err(told)?;
        while stats.abandoned != self.model.abandoned() && Instant::now() < until {
            // A worker that is replaced has no event.
            park_timeout(Duration::from_millis(1));
            stats = self.queue.stats().map_err(told)?;
        }
        if stats.abandoned > 0 {
            self.counters.add("a handler abandoned");
        }
        let counts = [
            stats.pending,
            stats.running,
            stats.completed,
            stats.failed,
            stats.cancelled,
        ];
        let expected = STATUSES.map(|status| self.model.count(status) as u64);
        same("counts by status", counts, expected)?;
        same(
            "handlers that were abandoned",
            stats.abandoned,
            self.model.abandoned(),
        )?;
        same("paused", stats.paused, self.model.paused)?;
        let paused = self
            .model
            .paused_kinds
            .iter()
            .map(|kind| NAMES[*kind].to_owned());
        let (mut paused, mut found) = (paused.collect::<Vec<_>>(), stats.paused_types);
        paused.sort();
        found.sort();
        same("paused types", found, paused)
    }

    fn compare_jobs(&mut self) -> Checked {
        let page = self
            .queue
            .list(&ListFilter::new().limit(1000))
            .map_err(told)?;
        let found: Vec<i64> = page.jobs.iter().map(|job| job.id.as_i64()).collect();
        let expected: Vec<i64> = self.model.jobs.keys().rev().copied().collect();
        same("the list of jobs", found, expected)?;
        for job in &page.jobs {
            let expected = self.model.summary(job.id.as_i64()).unwrap_or_default();
            same("a job in the list", json(job), expected)?;
        }
        if self.steps.is_multiple_of(FULL) {
            self.touched.extend(self.model.jobs.keys());
        }
        for id in std::mem::take(&mut self.touched) {
            let job = self.queue.get(JobId::from_i64(id)).map_err(told)?;
            let (found, expected) = (job.as_ref().map(|job| full(json(job))), self.model.view(id));
            if found != expected {
                return Err(format!("job {id}:\n{found:#?}\nexpected\n{expected:#?}"));
            }
        }
        Ok(())
    }

    /// After the last step.
    pub(crate) fn finish(&mut self) -> Checked {
        self.steps = 0;
        self.settle()?;
        for id in self.model.jobs.keys() {
            let events = self.queue.events_of(JobId::from_i64(*id)).map_err(told)?;
            let of_job = |event: &&Event| event.job_id.as_i64() == *id;
            let logged: Vec<&Event> = self.log.iter().filter(of_job).collect();
            let tail = events.len().saturating_sub(logged.len());
            let tail: Vec<&Event> = events[tail..].iter().collect();
            same("the events of a job", tail, logged)?;
        }
        let problems = self.queue.check().map_err(told)?;
        same("check", problems, Vec::new())
    }
}

/// Events by their jobs.
type Told = Vec<(i64, Value)>;

fn compare_by_job(found: &Told, expected: &Told) -> Checked {
    let (found, expected) = (by_job(found), by_job(expected));
    if found == expected {
        return Ok(());
    }
    let mut ids: Vec<_> = found.keys().chain(expected.keys()).collect();
    ids.sort();
    ids.dedup();
    let mut problem = "events".to_owned();
    for id in ids
        .into_iter()
        .filter(|id| found.get(id) != expected.get(id))
    {
        let list = |from: &BTreeMap<i64, Vec<&Value>>| {
            let events = from.get(id).map(Vec::as_slice).unwrap_or_default();
            let events = events.iter().map(|event| format!("\n    {event}"));
            events.collect::<String>()
        };
        problem = format!(
            "{problem}\n  job {id}:{}\n  expected{}",
            list(&found),
            list(&expected)
        );
    }
    Err(problem)
}

fn by_job(told: &Told) -> BTreeMap<i64, Vec<&Value>> {
    let mut of_job: BTreeMap<i64, Vec<&Value>> = BTreeMap::new();
    for (id, event) in told {
        of_job.entry(*id).or_default().push(event);
    }
    of_job
}

fn json(value: &impl serde::Serialize) -> Value {
    serde_json::to_value(value).expect("it is plain data")
}

/// An event without what the model does not know.
fn plain(event: &Event, is_about_delivery: bool) -> Value {
    let mut value = json(event);
    let fields = value.as_object_mut().expect("an object");
    fields.remove("seq");
    if is_about_delivery {
        // It stands anywhere between the others.
        fields.remove("attempt");
        fields.remove("delivery_id");
    }
    if event.kind == EventKind::PhaseFailed || event.kind == EventKind::Failed {
        without_place(&mut value["message"]);
    }
    value
}

/// A panic's message names its place.
fn without_place(message: &mut Value) {
    if let Some(text) = message.as_str()
        && text.starts_with("panicked at ")
        && let Some((_, text)) = text.split_once(": ")
    {
        *message = json!(text);
    }
}

/// A job without what the model does not know.
fn full(mut job: Value) -> Value {
    for error in job["errors"].as_array_mut().into_iter().flatten() {
        error
            .as_object_mut()
            .expect("an object")
            .remove("backtrace");
        without_place(&mut error["message"]);
    }
    for phase in job["phases"].as_array_mut().into_iter().flatten() {
        without_place(&mut phase["error"]);
        if !["completed", "running"].contains(&phase["status"].as_str().unwrap_or_default()) {
            phase
                .as_object_mut()
                .expect("an object")
                .remove("started_at");
        }
    }
    job
}

fn delivery(delivery: &stepwell::Delivery) -> Value {
    let mut value = json(delivery);
    for field in ["id", "webhook_id", "last_error"] {
        value.as_object_mut().expect("an object").remove(field);
    }
    value
}

//! Stories that are longer than a few calls: what callers ask, with what they are answered, in the journal.

use std::time::{Duration, Instant};

use serde_json::json;
use stepwell::{
    BulkAction, CancelOutcome, ErrorKind, JobId, JobQueue, JobStatus, ListFilter, NewJob, RetryFrom,
};

use super::{KEPT, LONG, Story, is_inside, is_past, is_stuck};
use crate::deliveries::{self, OWN};
use crate::receiver::NEVER;
use crate::shim::Control;

impl Story<'_> {
    /// Twelve jobs in one commit, then all that wait are cancelled in another.
    pub(super) fn bulk(&mut self, queue: &JobQueue, control: &Control) {
        control.arm();
        let (wait, started) = (Duration::from_millis(200), Instant::now());
        let tags: Vec<String> = (0..12).map(|index| format!("bulk-{index}of12")).collect();
        for tag in &tags {
            self.journal.line(&format!("Q? {tag}"));
        }
        let jobs = tags.iter().map(|tag| {
            let job = NewJob::new(
                "three",
                &json!({"tag": tag, "ms": 0, "pad": "x".repeat(900)}),
            );
            job.expect("it is JSON").delay(wait)
        });
        match queue.enqueue_all(jobs.collect()) {
            Ok(enqueued) => {
                for (tag, enqueued) in tags.iter().zip(&enqueued) {
                    self.journal.line(&format!("Q! {tag} {} new", enqueued.id));
                }
                for enqueued in &enqueued {
                    self.journal.line(&format!("C? {}", enqueued.id));
                }
                match queue.bulk(BulkAction::Cancel, JobStatus::Pending, None, None) {
                    Ok(12) => enqueued.iter().for_each(|enqueued| {
                        self.journal.line(&format!("C! {} cancelled", enqueued.id));
                    }),
                    // The others were not waiting any more.
                    Ok(count) if count < 12 && started.elapsed() >= wait => {}
                    Ok(count) => self
                        .journal
                        .line(&format!("X of 12 {count} were cancelled")),
                    Err(error) => drop(self.typed(&error)),
                }
            }
            Err(error) if self.typed(&error) => {
                for tag in &tags {
                    self.journal.line(&format!("Q- {tag}"));
                }
            }
            Err(_) => {}
        }
    }

    pub(super) fn retry(&mut self, queue: &JobQueue, control: &Control) {
        let page = queue.list(&ListFilter::new().status(JobStatus::Failed));
        let id = page.expect("it can be read").jobs.first().map(|job| job.id);
        let id = id.expect("the template has a failed job");
        control.arm();
        self.ask(queue, "flaky", 0, 0);
        for (from, name) in [(RetryFrom::Failed, "failed"), (RetryFrom::Start, "start")] {
            self.journal.line(&format!("R? {id} {name}"));
            match queue.retry(id, from) {
                Ok(()) => self.journal.line(&format!("R! {id} {name} ok")),
                Err(error) if error.kind() == ErrorKind::Conflict => {
                    self.journal.line(&format!("R! {id} {name} conflict"));
                }
                Err(error) if self.typed(&error) => self.journal.line(&format!("R- {id} {name}")),
                Err(_) => {}
            }
            self.rest(queue, control);
        }
    }

    pub(super) fn cancel(&mut self, queue: &JobQueue, control: &Control) {
        let victim = self.ask(queue, "victim", 60, 0).expect("it is stored");
        let waiting = self.ask(queue, "one", 0, 250).expect("it is stored");
        self.until(LONG, || is_inside(queue, victim));
        control.arm();
        for id in [victim, waiting, victim] {
            self.journal.line(&format!("C? {id}"));
            match queue.cancel(id) {
                Ok(CancelOutcome::Cancelled) => self.journal.line(&format!("C! {id} cancelled")),
                Ok(CancelOutcome::AlreadyFinished(status)) => {
                    self.journal.line(&format!("C! {id} already-{status}"));
                }
                Ok(CancelOutcome::NotFound) => self.journal.line(&format!("X job {id} is gone")),
                Err(error) if self.typed(&error) => self.journal.line(&format!("C- {id}")),
                Err(_) => {}
            }
        }
    }

    pub(super) fn retain(&mut self, queue: &JobQueue, control: &Control) {
        control.arm();
        self.ask(queue, "one", 0, 0);
        let filter = ListFilter::new().status(JobStatus::Completed).limit(1);
        if let Ok(page) = queue.list(&filter)
            && let Some(job) = page.jobs.first()
        {
            self.delete(queue, job.id);
        }
        let is_small = || queue.stats().is_ok_and(|stats| stats.completed <= KEPT);
        self.until(LONG, || is_small() || is_stuck(control));
    }

    fn delete(&self, queue: &JobQueue, id: JobId) {
        self.journal.line(&format!("D? {id}"));
        match queue.delete(id) {
            Ok(()) => self.journal.line(&format!("D! {id}")),
            Err(error) if is_past(&error) => {}
            Err(error) => drop(self.typed(&error)),
        }
    }

    /// One job whose events are delivered, and two that have endpoints of their own: one of these never accepts anything, and the
    /// other job is deleted while its deliveries are under way.
    pub(super) fn deliver(&mut self, queue: &JobQueue, control: &Control) {
        control.arm();
        let port = self.port.expect("there is a receiver");
        self.ask(queue, "one", 0, 0);
        let own = self.ask_with(queue, "one", 0, |job| job.webhook(deliveries::own(port)));
        let never = self.ask_with(queue, "one", 0, |job| job.webhook(deliveries::never(port)));
        for (id, path) in [(own, OWN), (never, NEVER)] {
            if let Some(id) = id {
                deliveries::note(&self.journal, id, path);
            }
        }
        let Some(own) = own else { return };
        let status = || queue.status(own).ok().flatten();
        let is_done = || status().is_some_and(JobStatus::is_terminal);
        self.until(LONG, || is_done() || is_stuck(control));
        if is_done() {
            self.delete(queue, own);
        }
    }
}

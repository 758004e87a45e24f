//! What must hold afterwards. Test code.

use std::collections::BTreeMap;

use crate::delivery::DeliveryStatus;
use crate::error::ErrorKind;
use crate::event::{Event, EventKind};
use crate::interleave::world::{Act, PHASES, WANTED, World, has_outlet, result_of};
use crate::job::{JobId, JobStatus};
use crate::queue::JobQueue;
use crate::requests;
use crate::store::outbox::DeliveryRow;

impl World {
    /// What must hold, with a queue open or closed.
    pub(super) fn judge(&self) {
        let reader = &self.record.reader;
        assert_eq!(reader.check().expect("readable"), Vec::<String>::new());
        let head = reader.head().expect("readable");
        let most = i64::try_from(self.acknowledged.lock().len()).expect("few");
        for status in JobStatus::ALL {
            let count = head.counts[status as usize];
            assert!((0..=most).contains(&count), "{status}: {count}");
        }
        let events = self.events();
        judge_order(&events);
        self.judge_answers(&events);
        let is_gentle = !self.acts.iter().any(|act| act.is_harsh());
        self.judge_phases(&events, is_gentle);
        let is_kept = !self.acts.contains(&Act::Retention) && !self.acts.contains(&Act::Delete);
        for id in self.acknowledged.lock().iter() {
            let status = reader.status(*id).expect("readable");
            assert!(status.is_some() || !is_kept, "job {id} is gone");
        }
    }

    fn events(&self) -> Vec<Event> {
        requests::events_after(&*self.record.reader, 0, 1000).expect("readable")
    }

    fn judge_answers(&self, events: &[Event]) {
        let of_job = |event: &&Event| event.job_id == self.job;
        let count = |is: &dyn Fn(&Event) -> bool| {
            events
                .iter()
                .filter(of_job)
                .filter(|event| is(event))
                .count()
        };
        let cancelled = *self.cancelled.lock();
        let cancels = count(&|event| event.kind == EventKind::Cancelled);
        assert_eq!(cancels, cancelled, "cancelled, as answered");
        let retried = *self.retried.lock();
        assert_eq!(count(&is_retry), retried, "tried again, as answered");
        let status = self.record.reader.status(self.job).expect("readable");
        if let Some(status) = status.filter(|_| cancelled > retried) {
            assert_eq!(
                status,
                JobStatus::Cancelled,
                "a cancel that was answered holds"
            );
        }
    }

    /// Each phase has the result of its own handler, is completed once, and was entered no more often than it had reason to be. Where
    /// nothing harsh happened, that is once, and every job is completed; but a queue that ends may leave it to the next.
    fn judge_phases(&self, events: &[Event], is_gentle: bool) {
        let reader = &self.record.reader;
        let starts = self.record.starts.lock().clone();
        let has_ended = self.acts.contains(&Act::Shutdown);
        let is_left = has_ended && self.second.lock().is_none();
        for id in self.acknowledged.lock().iter() {
            let status = reader.status(*id).expect("readable");
            assert!(
                !is_gentle || is_left || status == Some(JobStatus::Completed),
                "job {id} is {status:?}"
            );
            let of_job: Vec<_> = events.iter().filter(|event| event.job_id == *id).collect();
            for (index, phase) in (0..).zip(PHASES) {
                let of_phase = |kind| {
                    let told = of_job.iter().filter(|event| event.kind == kind);
                    told.filter(|event| event.phase.as_deref() == Some(phase))
                        .count()
                };
                let completed = of_phase(EventKind::PhaseCompleted);
                assert!(
                    completed <= 1,
                    "phase {phase} of job {id} is completed {completed} times"
                );
                let result = reader.result(*id, index).expect("readable");
                // Asked afterwards: retention may delete it meanwhile.
                if reader.status(*id).expect("readable").is_some() {
                    let expected = (completed == 1).then(|| result_of(*id, index).to_string());
                    assert_eq!(result, expected, "phase {phase} of job {id}");
                }
                let entered = starts.get(&(*id, index)).copied().unwrap_or(0);
                let retries = of_job.iter().filter(|event| is_retry(event)).count();
                let again = of_phase(EventKind::PhaseFailed) + of_phase(EventKind::Interrupted);
                let reasons = 1 + again + retries;
                let is_once = is_gentle && !has_ended;
                assert!(
                    (completed..=reasons).contains(&entered) && !(is_once && entered != 1),
                    "phase {phase} of job {id} was entered {entered} times: {of_job:#?}"
                );
            }
        }
    }

    /// A queue has ended: nothing of it is under way, and nothing is taken.
    pub(super) fn judge_end(&self, queue: &JobQueue) {
        assert!(queue.engine().live.len() == 0, "nothing is under way");
        let refused = queue.enqueue("job", &3).map_err(|error| error.kind());
        assert_eq!(refused, Err(ErrorKind::Closed));
    }

    /// No queue is open: nothing moves.
    pub(super) fn judge_rest(&self) {
        let reader = &self.record.reader;
        let head = reader.head().expect("readable");
        assert_eq!(head.counts[JobStatus::Running as usize], 0, "nothing runs");
        let broken = reader.check().expect("readable");
        assert_eq!(broken, Vec::<String>::new());
        assert_eq!(*self.record.broken.lock(), Vec::<String>::new());
        let mut rows = self.record.deliveries();
        rows.reverse();
        let events = self.events();
        judge_written(&events, &rows, self.job);
        self.judge_endings(&events, &rows);
        self.judge_letters(&rows);
        for before in std::mem::take(&mut *self.ended.lock()) {
            assert!(rows.contains(&before), "{before:?} was final");
        }
        rows.retain(|row| row.status != DeliveryStatus::Pending);
        *self.ended.lock() = rows;
    }

    /// Each delivery that ended has one event that says how, unless its job was gone by then. Sent again by hand it ends once more.
    fn judge_endings(&self, events: &[Event], rows: &[DeliveryRow]) {
        let sent_again = *self.sent_again.lock();
        let is_gone = events.iter().any(|event| event.kind == EventKind::Deleted);
        let mut repeated = 0;
        for row in rows {
            let endings: Vec<_> = events
                .iter()
                .filter(|event| is_ending(event.kind))
                .filter(|event| event.data["delivery_id"] == row.id.as_i64())
                .collect();
            let last = endings.last().map(|event| event.kind);
            let expected = match row.status {
                DeliveryStatus::Pending => None,
                DeliveryStatus::Delivered => Some(EventKind::WebhookDelivered),
                DeliveryStatus::Failed => Some(EventKind::WebhookFailed),
            };
            let ends = usize::from(expected.is_some());
            let found = endings.len();
            assert!(
                found >= ends || is_gone,
                "no event tells of the end of {row:?}"
            );
            assert!(
                found <= ends + sent_again,
                "{found} events tell of the end of {row:?}"
            );
            assert!(
                last == expected || is_gone || expected.is_none() && sent_again > 0,
                "{row:?} has ended as {last:?}"
            );
            repeated += found.saturating_sub(ends);
        }
        assert!(
            repeated <= sent_again,
            "{repeated} more ends than there were reasons for"
        );
        let told = events.iter().filter(|event| is_ending(event.kind));
        let is_known = |event: &Event| {
            rows.iter()
                .any(|row| event.data["delivery_id"] == row.id.as_i64())
        };
        for event in told {
            assert!(is_known(event), "{event:?} tells of no delivery");
        }
    }

    /// What reached the receiver: for the first time in the order of the events, and each time the same.
    fn judge_letters(&self, rows: &[DeliveryRow]) {
        let letters = self.record.letters.lock();
        let mut newest = None;
        for (id, body) in letters.iter() {
            let is_first = newest.is_none_or(|newest| newest < *id);
            let row = rows.iter().find(|row| row.id == *id);
            let row = row.unwrap_or_else(|| panic!("delivery {id} is sent, and is not there"));
            assert_eq!(*body, *row.body, "delivery {id}");
            if is_first {
                let passed = rows
                    .iter()
                    .filter(|row| newest < Some(row.id) && row.id < *id);
                assert_eq!(passed.count(), 0, "delivery {id} is sent before another");
                newest = Some(*id);
            }
        }
        let is_tried = |row: &&DeliveryRow| row.status != DeliveryStatus::Pending;
        for row in rows.iter().filter(is_tried) {
            let is_there = letters.iter().any(|(id, _)| *id == row.id);
            assert!(is_there, "{row:?} was never sent");
        }
        assert!(
            has_outlet(self.acts) || rows.iter().all(|row| !is_tried(&row)),
            "nobody sends"
        );
    }
}

/// Each event that the endpoint wants has one delivery, written with it, and nothing else has.
fn judge_written(events: &[Event], rows: &[DeliveryRow], job: JobId) {
    let wanted = events
        .iter()
        .filter(|event| event.job_id == job && WANTED.contains(&event.kind));
    let wanted: Vec<_> = wanted.map(|event| (event.seq, event.kind)).collect();
    let found: Vec<_> = rows.iter().map(|row| (row.id.seq(), row.kind)).collect();
    assert_eq!(found, wanted, "a delivery for each event that is wanted");
    assert!(rows.iter().all(|row| row.job_id == job));
}

fn is_ending(kind: EventKind) -> bool {
    matches!(kind, EventKind::WebhookDelivered | EventKind::WebhookFailed)
}

/// Numbers without gaps, and of each job what can follow what.
fn judge_order(events: &[Event]) {
    let (mut seq, mut ended) = (0, BTreeMap::new());
    for event in events {
        seq += 1;
        assert_eq!(event.seq, seq, "numbers without gaps");
        let is_over = ended.entry(event.job_id).or_insert(false);
        match event.kind {
            EventKind::Retrying if event.data["reason"] == "requested" => {
                assert!(*is_over, "only what is over is tried again");
                *is_over = false;
            }
            EventKind::WebhookDelivered | EventKind::WebhookFailed => {}
            EventKind::Deleted => assert!(*is_over, "only what is over is deleted"),
            kind @ (EventKind::Created
            | EventKind::Started
            | EventKind::PhaseStarted
            | EventKind::PhaseCompleted
            | EventKind::PhaseFailed
            | EventKind::Progress
            | EventKind::Retrying
            | EventKind::Interrupted
            | EventKind::Completed
            | EventKind::Failed
            | EventKind::Cancelled) => {
                assert!(!*is_over, "{kind} after the end of job {}", event.job_id);
                *is_over = kind.is_terminal();
            }
        }
    }
}

fn is_retry(event: &Event) -> bool {
    event.kind == EventKind::Retrying && event.data["reason"] == "requested"
}

//! Deliveries: what the receiver got and said, against the outbox and the log.
//!
//! W1: each ends delivered or dead, with one id and one body, in the order of its job's events; once its end is on disk it is never
//! sent again. W2: a 2xx that was not recorded before a kill is sent again. W3: an outcome whose job is gone changes nothing. S11: each
//! event that an endpoint wants has exactly one delivery. The names are those of the specification of these proofs.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use serde_json::Value;
use stepwell::{
    Client, Delivery, DeliveryQuery, DeliveryStatus, Event, EventKind, JobId, Timestamp,
};

use crate::counters::Counters;
use crate::journal::hash;
use crate::load::hooks::{self, DELAYS, Hook};

/// By how much the times of two commits may stand in the other order: a client and the queue each ask for the time before they wait
/// for each other. What a delivery of a job that is there must have told is judged by the check of the file, at every look.
const APART_MS: i64 = 1000;

/// What the receiver knows of one delivery.
#[derive(Debug)]
struct Received {
    id: String,
    path: String,
    body: String,
    count: u32,
    /// Processes that sent it. All of them were killed, but the last.
    senders: BTreeSet<u32>,
    is_accepted: bool,
    /// The newest process that was told so.
    accepted_from: u32,
}

/// What happened to the deliveries of one file. They are named by the number at the end of their `webhook-id`.
#[derive(Debug, Default)]
pub(super) struct Deliveries {
    /// Without one nothing is judged here.
    has_receiver: bool,
    received: BTreeMap<i64, Received>,
    /// All requests, in their order.
    order: Vec<i64>,
    /// Counts the processes.
    process: u32,
    /// What the file said when it was looked at last: the newest one, and those that were not over.
    newest: i64,
    pending: BTreeSet<i64>,
    /// Accepted by the receiver, and the process died before this was on disk.
    owed: BTreeSet<i64>,
}

impl Deliveries {
    pub(super) fn have_receiver(&mut self) {
        self.has_receiver = true;
    }

    /// A process begins.
    pub(super) fn begins(&mut self) {
        self.process += 1;
    }

    /// A request has come.
    pub(super) fn comes(
        &mut self,
        number: i64,
        (path, body, id): (&str, &str, &str),
        counters: &mut Counters,
    ) -> Result<(), String> {
        self.order.push(number);
        let was_over = number <= self.newest && !self.pending.contains(&number);
        let process = self.process;
        let first = self.received.entry(number).or_insert_with(|| Received {
            id: id.to_owned(),
            path: path.to_owned(),
            body: body.to_owned(),
            count: 0,
            senders: BTreeSet::new(),
            is_accepted: false,
            accepted_from: 0,
        });
        first.count += 1;
        first.senders.insert(process);
        self.owed.remove(&number);
        if was_over {
            return Err("W1: sent again, although its end was on disk".to_owned());
        }
        if (&*first.id, &*first.path, &*first.body) != (id, path, body) {
            return Err(format!("W1: it had been {first:?}"));
        }
        if first.is_accepted && first.accepted_from == process {
            return Err("W2: sent again by the process that was told 200".to_owned());
        }
        if first.is_accepted {
            counters.add("accepted, not recorded before a kill, and sent again");
        }
        Ok(())
    }

    /// A request is answered.
    pub(super) fn answered(
        &mut self,
        number: i64,
        answer: &str,
        counters: &mut Counters,
    ) -> Result<(), String> {
        let process = self.process;
        let received = self.received.get_mut(&number).ok_or("never received")?;
        if answer == "200" {
            (received.is_accepted, received.accepted_from) = (true, process);
        } else {
            counters.add("delivery refused");
        }
        Ok(())
    }

    /// The file was looked at, no process having been at it.
    pub(super) fn looked(&mut self, newest: i64, pending: BTreeSet<i64>) -> Result<(), String> {
        let again: Vec<_> = pending
            .iter()
            .filter(|number| **number <= self.newest && !self.pending.contains(number))
            .collect();
        let result = if again.is_empty() {
            Ok(())
        } else {
            Err(format!("S11: {again:?} were over, and are not"))
        };
        let process = self.process;
        let is_owed = |number: &&i64| {
            let received = self.received.get(number);
            received.is_some_and(|it| it.is_accepted && it.accepted_from == process)
        };
        self.owed.extend(pending.iter().filter(is_owed));
        (self.newest, self.pending) = (newest, pending);
        result
    }

    /// Compares with a file whose jobs and deliveries are all over. `tags`: of the jobs of which they are known.
    pub(super) fn compare(
        &self,
        client: &Client,
        events: &BTreeMap<i64, Event>,
        tags: &HashMap<JobId, String>,
        counters: &mut Counters,
    ) -> Vec<String> {
        let mut found: Vec<String> = Vec::new();
        // Other proofs have receivers of their own, and judge them themselves.
        if !self.has_receiver {
            return found;
        }
        let outbox = outbox(client);
        let log = Log::of(events);
        for number in &self.owed {
            found.push(format!(
                "W2: delivery {number}: accepted, not recorded before a kill, and never sent again"
            ));
        }
        for (number, received) in &self.received {
            if outbox
                .get(number)
                .is_none_or(|delivery| delivery.webhook_id != received.id)
            {
                found.push(format!(
                    "H2: delivery {number} is not in the outbox: {received:?}"
                ));
            }
        }
        for (number, delivery) in &outbox {
            counters.add("deliveries");
            let mut problems = self.compare_one(client, delivery, events);
            problems.extend(log.told(delivery, counters).err());
            let place = format!("delivery {number} of job {}", delivery.job_id);
            found.extend(problems.iter().map(|problem| format!("{place}: {problem}")));
        }
        let hooks = |job: &JobId| tags.get(job).map(|tag| hooks::of(tag));
        found.extend(each_has_one(&outbox, events, hooks));
        found.extend(self.in_order(&outbox));
        found
    }

    fn compare_one(
        &self,
        client: &Client,
        delivery: &Delivery,
        events: &BTreeMap<i64, Event>,
    ) -> Vec<String> {
        let mut found = Vec::new();
        let received = self.received.get(&delivery.id.as_i64());
        match delivery.status {
            DeliveryStatus::Pending => {
                found.push("W1: it is neither delivered nor dead".to_owned())
            }
            DeliveryStatus::Delivered if !received.is_some_and(|it| it.is_accepted) => {
                found.push("W1: delivered, by the file, and never accepted".to_owned());
            }
            DeliveryStatus::Failed if usize::try_from(delivery.tries) != Ok(DELAYS.len()) => {
                found.push(format!("W1: given up after {} tries", delivery.tries));
            }
            DeliveryStatus::Delivered | DeliveryStatus::Failed => {}
        }
        let record = client.delivery(delivery.id).expect("it can be read");
        let body = record.map(|record| record.body).unwrap_or_default();
        let said: Value = serde_json::from_str(&body).unwrap_or_default();
        let event = events.get(&delivery.id.seq());
        if event.and_then(|event| serde_json::to_value(event).ok()) != Some(said["data"].clone()) {
            found.push(format!("S11: it says {body}, the log says {event:?}"));
        }
        let Some(received) = received else {
            return found;
        };
        if received.body != hash(body.as_bytes()).to_string() {
            found.push("W1: received with another body".to_owned());
        }
        // Of each process that was killed the last try may not be recorded.
        let unrecorded = received.count.checked_sub(delivery.tries);
        let unrecorded = unrecorded.and_then(|count| usize::try_from(count).ok());
        if unrecorded.is_none_or(|count| count > received.senders.len()) {
            found.push(format!(
                "W2: received {} times from {} processes, {} tries are recorded",
                received.count,
                received.senders.len(),
                delivery.tries
            ));
        }
        found
    }

    /// Of one endpoint and job, what has come was followed by nothing older.
    fn in_order(&self, outbox: &BTreeMap<i64, Delivery>) -> Vec<String> {
        let mut newest: HashMap<(JobId, &str), i64> = HashMap::new();
        let mut found = Vec::new();
        for number in &self.order {
            let (Some(delivery), Some(received)) = (outbox.get(number), self.received.get(number))
            else {
                continue;
            };
            let newest = newest
                .entry((delivery.job_id, &received.path))
                .or_insert(*number);
            if number < newest {
                found.push(format!(
                    "W1: delivery {number} of job {} came after {newest}",
                    delivery.job_id
                ));
            }
            *newest = *number.max(newest);
        }
        found
    }
}

/// All deliveries of a file, by number.
fn outbox(client: &Client) -> BTreeMap<i64, Delivery> {
    let mut query = DeliveryQuery::new().limit(1000);
    let mut outbox = BTreeMap::new();
    loop {
        let page = client.deliveries(&query).expect("deliveries can be listed");
        let deliveries = page.deliveries.into_iter();
        outbox.extend(deliveries.map(|delivery| (delivery.id.as_i64(), delivery)));
        let Some(next) = page.next else {
            return outbox;
        };
        query = query.after(next);
    }
}

/// The last part of a delivery's URL.
fn path(delivery: &Delivery) -> &str {
    delivery.url.rsplit('/').next().unwrap_or_default()
}

/// S11: each event that an endpoint of its job wants has one delivery, and no other event has one.
fn each_has_one(
    outbox: &BTreeMap<i64, Delivery>,
    events: &BTreeMap<i64, Event>,
    hooks: impl Fn(&JobId) -> Option<&'static [Hook]>,
) -> Vec<String> {
    let mut found = Vec::new();
    let mut there = HashSet::new();
    for delivery in outbox.values() {
        if !there.insert((delivery.id.seq(), path(delivery))) {
            found.push(format!("S11: a second delivery of one event: {delivery:?}"));
        }
    }
    let mut wanted = HashSet::new();
    for (seq, event) in events {
        // The tag of a job is not known that is gone and whose caller was never answered: then what is there tells of it.
        let hooks: Vec<&Hook> = match hooks(&event.job_id) {
            Some(hooks) => hooks.iter().collect(),
            None => [hooks::ALL, hooks::ENDS, hooks::OWN, hooks::WAYS]
                .iter()
                .filter(|hook| there.contains(&(*seq, hook.path)))
                .collect(),
        };
        let wants = hooks.iter().filter(|hook| hook.wants(event.kind));
        wanted.extend(wants.map(|hook| (*seq, hook.path)));
    }
    for (seq, path) in wanted.difference(&there) {
        found.push(format!("S11: event {seq} was never written for {path}"));
    }
    for (seq, path) in there.difference(&wanted) {
        found.push(format!("S11: event {seq} was written for {path}: unwanted"));
    }
    found
}

/// What the log says about deliveries.
#[derive(Default)]
struct Log {
    /// Events that tell of the end of a delivery.
    ends: HashMap<i64, Vec<(i64, EventKind)>>,
    /// Where jobs were deleted, when, and whether by retention.
    deleted: HashMap<JobId, (i64, Timestamp, bool)>,
}

impl Log {
    fn of(events: &BTreeMap<i64, Event>) -> Log {
        let mut log = Log::default();
        for (seq, event) in events {
            match event.kind {
                EventKind::WebhookDelivered | EventKind::WebhookFailed => {
                    let number = event.data["delivery_id"].as_i64().unwrap_or(0);
                    log.ends.entry(number).or_default().push((*seq, event.kind));
                }
                EventKind::Deleted => {
                    let by_retention = event.data["reason"] == "retention";
                    let deleted = (*seq, event.at, by_retention);
                    log.deleted.insert(event.job_id, deleted);
                }
                _ => {}
            }
        }
        log
    }

    /// The end of a delivery is an event of its job, once, if the job is there.
    fn told(&self, delivery: &Delivery, counters: &mut Counters) -> Result<(), String> {
        let ends = self.ends.get(&delivery.id.as_i64());
        let ends = ends.map(Vec::as_slice).unwrap_or_default();
        let kind = match delivery.status {
            DeliveryStatus::Delivered => EventKind::WebhookDelivered,
            DeliveryStatus::Failed => EventKind::WebhookFailed,
            DeliveryStatus::Pending => return Ok(()),
        };
        if kind == EventKind::WebhookFailed {
            counters.add("delivery given up");
        }
        let deleted = self.deleted.get(&delivery.job_id);
        match (ends, deleted) {
            ([(_, told)], None) if *told == kind => Ok(()),
            ([(seq, told)], Some((deleted, ..))) if *told == kind && seq < deleted => Ok(()),
            ([(seq, _)], Some((deleted, ..))) if seq > deleted => {
                Err("W3: the log tells of it after its job was deleted".to_owned())
            }
            ([], Some((seq, at, by_retention)))
                if delivery
                    .finished_at
                    .is_some_and(|ended| ended.as_millis() + APART_MS >= at.as_millis()) =>
            {
                if delivery.id.seq() < *seq {
                    counters.add(if *by_retention {
                        "retention met a live delivery"
                    } else {
                        "delivery ended after its job was deleted by hand"
                    });
                }
                Ok(())
            }
            _ => Err(format!(
                "its end is {kind}, the log says {ends:?}, its job was deleted: {deleted:?}"
            )),
        }
    }
}

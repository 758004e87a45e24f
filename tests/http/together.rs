//! Streams, webhooks, retries and retention at the same time: every reader of the log tells the same story.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use stepwell::webhook::{Endpoint, WebhookConfig};
use stepwell::{
    CancelOutcome, DeliveryQuery, DeliveryStatus, Event, EventKind, JobId, JobQueue, JobType, Keep,
    NewJob, Notice, Phase, PhaseError, Retention, RetryPolicy,
};

use crate::receiver::Receiver;
use crate::support::{PATIENCE, Sent, Stream, builder, job_type, local, until};

const FIRST: Phase<Value> = Phase::new("first");
const SECOND: Phase<Value> = Phase::new("second");
const JOBS: usize = 20;

fn hooks(receiver: &Receiver, kinds: &[EventKind]) -> WebhookConfig {
    let ms = Duration::from_millis;
    let endpoint = Endpoint::new(&receiver.url("/ok")).unwrap();
    WebhookConfig::new()
        .allow_private("127.0.0.1")
        .delays([ms(0), ms(10), ms(20)])
        .jitter(0.0)
        .endpoint("all", endpoint.events(kinds.iter().copied()))
}

/// Its second phase fails once.
fn fails_once() -> JobType<Value, Value> {
    JobType::<Value>::new("once")
        .retry(RetryPolicy::fixed(Duration::ZERO).max_attempts(2))
        .phase(FIRST, |cx| Ok(cx.input().clone()))
        .phase(SECOND, |cx| match cx.attempt() {
            1 => Err(PhaseError::retry("not yet")),
            _ => cx.get(FIRST),
        })
}

/// Reads the log from its beginning to the end of a job of the type `end`; breaks off after five events each time.
fn follow(addr: SocketAddr, file_id: &str) -> Vec<Sent> {
    let (mut heard, mut id): (Vec<Sent>, _) = (Vec::new(), format!("{file_id}-0"));
    let started = Instant::now();
    loop {
        let is_late = started.elapsed() >= 3 * PATIENCE;
        assert!(!is_late, "no end came among {} events", heard.len());
        let mut stream = Stream::open(addr, "/events", &format!("Last-Event-ID: {id}\r\n"));
        for _ in 0..5 {
            let Some(sent) = stream.next() else { break };
            let Some(new) = &sent.id else { continue };
            id.clone_from(new);
            let is_end = sent.name == "job:completed" && sent.data["job_type"] == "end";
            heard.push(sent);
            if is_end {
                return heard;
            }
        }
    }
}

fn is_quiet(queue: &JobQueue) -> bool {
    let stats = queue.stats().unwrap();
    let jobs = stats.pending + stats.running + stats.completed + stats.failed + stats.cancelled;
    let waiting = DeliveryQuery::new().status(DeliveryStatus::Pending);
    jobs == 0 && queue.deliveries(&waiting).unwrap().deliveries.is_empty()
}

/// 20 jobs that fail once, an endpoint that is told everything, one that fails twice before it answers, a reader that breaks off
/// after every fifth event, and a retention that keeps nothing.
#[test]
fn streams_webhooks_retries_and_retention_work_together() {
    let receiver = Receiver::start();
    let dir = tempfile::tempdir().unwrap();
    let mut builder = builder(&dir.path().join("jobs.db"))
        .http(local())
        .webhooks(hooks(&receiver, Endpoint::DELIVERED))
        .retention(Retention::forever().completed(Keep::newest(0)));
    let jobs = builder.register(fails_once());
    let end = builder.register(JobType::<Value>::new("end").phase(FIRST, |_| Ok(Value::Null)));
    let queue = builder.open().unwrap();
    let (addr, file_id) = (queue.http_addr().unwrap(), queue.file_id().unwrap());
    let reader = std::thread::spawn(move || follow(addr, &file_id));

    let own = Endpoint::new(&receiver.url("/twice")).unwrap();
    let with_own = jobs.job(&json!("own")).unwrap();
    let with_own = with_own.webhook(own.events([EventKind::Completed]));
    let own_id = jobs.enqueue_job(with_own).unwrap().id;
    let inputs: Vec<Value> = (1..JOBS).map(Value::from).collect();
    let mut ids = jobs.enqueue_many(&inputs).unwrap();
    ids.push(own_id);
    until("all jobs are gone and all deliveries over", || {
        is_quiet(&queue)
    });
    end.enqueue(&Value::Null).unwrap();
    let heard = reader.join().unwrap();

    let log = queue.events_after(0, heard.len()).unwrap();
    let json = |event: &Event| serde_json::to_value(event).unwrap();
    let told: Vec<_> = log.iter().map(json).collect();
    let streamed: Vec<_> = heard.iter().map(|sent| sent.data.clone()).collect();
    assert_eq!(streamed, told, "the stream is the log");
    for id in &ids {
        let kinds: Vec<_> = of(&log, *id).map(|event| event.kind).collect();
        let number = |kind| kinds.iter().filter(|other| **other == kind).count();
        let numbers = [
            EventKind::Retrying,
            EventKind::Completed,
            EventKind::Deleted,
        ]
        .map(number);
        assert_eq!(numbers, [1, 1, 1], "job {id}: {kinds:?}");
    }
    assert_eq!(
        receiver.at("/twice").len(),
        3,
        "two failures, then a success"
    );
    let mut sent: BTreeMap<i64, Vec<Value>> = BTreeMap::new();
    let mut seen = BTreeSet::new();
    for request in receiver.at("/ok") {
        assert!(
            seen.insert(request.id().to_owned()),
            "nothing made it come twice"
        );
        let data = request.json()["data"].clone();
        sent.entry(data["job_id"].as_i64().unwrap())
            .or_default()
            .push(data);
    }
    for id in &ids {
        let delivered = |event: &&Event| Endpoint::DELIVERED.contains(&event.kind);
        let events = of(&log, *id).filter(delivered);
        let events: Vec<_> = events
            .map(|event| serde_json::to_value(event).unwrap())
            .collect();
        assert_eq!(sent[&id.as_i64()], events, "job {id}: webhooks are the log");
    }
    assert_eq!(queue.check().unwrap(), Vec::<String>::new());
}

fn of(log: &[Event], id: JobId) -> impl Iterator<Item = &Event> {
    log.iter().filter(move |event| event.job_id == id)
}

/// The seed's finding A, seen by everybody who could see it. 30 rounds; each cancel comes right after a phase was completed.
#[test]
fn a_cancel_at_a_phase_boundary_is_told_once_to_callbacks_streams_and_webhooks() {
    let receiver = Receiver::start();
    let dir = tempfile::tempdir().unwrap();
    let mut builder = builder(&dir.path().join("jobs.db"))
        .http(local())
        .webhooks(hooks(&receiver, &[EventKind::Cancelled]));
    let jobs = builder.register(job_type());
    let queue = builder.open().unwrap();
    let called = Arc::new(Mutex::new(Vec::new()));
    let calls = called.clone();
    let note = move |event: &Event| {
        if event.kind == EventKind::Cancelled {
            calls.lock().unwrap().push(event.job_id);
        }
    };
    queue.on_event(note).unwrap();
    let addr = queue.http_addr().unwrap();
    let mut stream = Stream::open(addr, "/events?type=job:cancelled", "");
    let mut events = queue.subscribe().unwrap();
    let mut ids = Vec::new();
    for _ in 0..30 {
        let id = jobs.enqueue(&json!({"wait": true})).unwrap();
        let is_edge = |event: &Event| event.job_id == id && event.kind == EventKind::PhaseCompleted;
        while !matches!(events.recv_timeout(PATIENCE).unwrap(), Notice::Event(event) if is_edge(&event))
        {
        }
        assert_eq!(queue.cancel(id).unwrap(), CancelOutcome::Cancelled);
        ids.push(id);
    }
    // What comes after all of them: had one been told twice, this would not be the next.
    let last = NewJob::new("nobody", &Value::Null).unwrap();
    let last = queue.enqueue_job(last).unwrap().id;
    assert_eq!(queue.cancel(last).unwrap(), CancelOutcome::Cancelled);
    ids.push(last);

    let numbers: Vec<_> = ids.iter().map(|id| id.as_i64()).collect();
    let streamed = ids
        .iter()
        .map(|_| stream.next().unwrap().data["job_id"].as_i64().unwrap());
    assert_eq!(streamed.collect::<Vec<_>>(), numbers);
    let waiting = DeliveryQuery::new().status(DeliveryStatus::Pending);
    until("all deliveries are over", || {
        queue.deliveries(&waiting).unwrap().deliveries.is_empty()
    });
    queue.shutdown(PATIENCE).unwrap();
    assert_eq!(*called.lock().unwrap(), ids);
    let received = receiver.received();
    let mut posted: Vec<_> = received
        .iter()
        .map(|request| request.json()["data"]["job_id"].as_i64().unwrap())
        .collect();
    posted.sort_unstable();
    assert_eq!(posted, numbers);
}

//! kill -9 with deliveries under way: each arrives, at least once, with one id and one body, in order.
//!
//! The sender is this very program, started again with a file to work on. It is killed at a random moment, 300 times. The
//! receiver is here, remembers everything, takes its time, and refuses one in eight when it sees it first.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::process::{Command, Stdio};
use std::thread::park_timeout;
use std::time::Duration;

use serde_json::{Value, json};
use stepwell::{Client, DeliveryQuery, DeliveryStatus, JobId, JobQueue, JobStatus, JobType};

use crate::Bench;
use crate::receiver::{is_refused_once, wait_until};

const CHILD: &str = "STEPWELL_WEBHOOK_SENDER";
const ROUNDS: u64 = 300;
/// There is one host.
const UNDER_WAY_MAX: usize = 2;

/// The killed one.
#[test]
fn sender() {
    let Ok(place) = std::env::var(CHILD) else {
        return;
    };
    let (path, url) = place.split_once(' ').unwrap();
    let endpoint = stepwell::webhook::Endpoint::new(url).unwrap();
    let hooks = crate::quick().endpoint("audit", endpoint);
    let mut builder = JobQueue::builder(path).workers(2).webhooks(hooks);
    let jobs = builder
        .register(JobType::<Value>::new("import").phase(crate::ONE, |cx| Ok(cx.input().clone())));
    let _queue = builder.open().unwrap();
    let mut number = 0;
    loop {
        jobs.enqueue(&json!(number)).unwrap();
        number += 1;
        park_timeout(Duration::from_millis(10));
    }
}

#[test]
fn deliveries_survive_300_kills() {
    let bench = Bench::new();
    let place = format!(
        "{} {}",
        bench.path().display(),
        bench.receiver.url("/shaky")
    );
    let seed = std::env::var("STEPWELL_KILL_SEED")
        .ok()
        .and_then(|text| text.parse().ok());
    let mut chance: u64 = seed.unwrap_or(1);
    for _ in 0..ROUNDS {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["kill::sender", "--exact", "--nocapture"])
            .env(CHILD, &place)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        // Knuth's multiplicative generator for MMIX; the high bits are the good ones.
        chance = chance
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        park_timeout(Duration::from_millis(15 + (chance >> 33) % 60));
        child.kill().unwrap();
        let status = child.wait().unwrap();
        assert_eq!(status.code(), None, "the sender ended by itself: {status}");
    }
    let client = Client::open(bench.path()).unwrap();
    assert_eq!(client.check().unwrap(), Vec::<String>::new());
    let (queue, _) = bench.open(crate::quick().endpoint("audit", bench.endpoint("/shaky")));
    wait_until("everything is delivered", || {
        let stats = queue.stats().unwrap();
        let pending = DeliveryQuery::new().status(DeliveryStatus::Pending);
        let page = queue.deliveries(&pending).unwrap();
        stats.pending + stats.running == 0 && page.deliveries.is_empty() && page.next.is_none()
    });
    assert_eq!(queue.check().unwrap(), Vec::<String>::new());
    verify(&bench, &queue);
}

fn verify(bench: &Bench, queue: &JobQueue) {
    let mut known = BTreeMap::new();
    let mut query = DeliveryQuery::new().limit(1000);
    loop {
        let page = queue.deliveries(&query).unwrap();
        for delivery in page.deliveries {
            assert_eq!(delivery.status, DeliveryStatus::Delivered, "{delivery:?}");
            let other = known.insert(delivery.webhook_id.clone(), delivery);
            assert!(other.is_none(), "two deliveries of one id: {other:?}");
        }
        let Some(next) = page.next else { break };
        query = query.after(next);
    }
    let events = log(queue);
    let told: HashSet<_> = known.values().map(|delivery| delivery.id.seq()).collect();
    assert_eq!(
        told,
        events.keys().copied().collect(),
        "each event has its delivery, and nothing else has one"
    );
    assert_eq!(known.len(), events.len(), "and no event has two");

    let received = bench.receiver.received();
    let mut bodies: HashMap<&str, &str> = HashMap::new();
    let mut order: HashMap<JobId, Vec<i64>> = HashMap::new();
    for one in &received {
        let delivery = known
            .get(one.id())
            .unwrap_or_else(|| panic!("{} is not in the outbox", one.id()));
        match bodies.insert(one.id(), &one.body) {
            Some(first) => assert_eq!(first, one.body, "one id, one body"),
            None => order
                .entry(delivery.job_id)
                .or_default()
                .push(delivery.id.as_i64()),
        }
        let event = &events[&delivery.id.seq()];
        assert_eq!(one.json()["data"], *event, "what the log says");
    }
    assert_eq!(bodies.len(), known.len(), "each arrived");
    for (job, ids) in order {
        assert!(ids.is_sorted(), "job {job}: {ids:?}");
        let job = queue.get(job).unwrap().unwrap();
        assert_eq!(job.status, JobStatus::Completed, "{job:?}");
    }
    // The receiver refuses some once: what comes then is no repetition.
    let refused = bodies.keys().filter(|id| is_refused_once(id)).count();
    let repeated = received.len() - bodies.len() - refused;
    assert!(
        (1..=UNDER_WAY_MAX * usize::try_from(ROUNDS).unwrap()).contains(&repeated),
        "{repeated} were repeated: none means that no kill met a delivery under way"
    );
    assert!(
        known.len() > 1000 && refused > 100,
        "only {} deliveries: the rounds were too short",
        known.len()
    );
}

/// What the log tells of, deliveries aside, by number.
fn log(queue: &JobQueue) -> HashMap<i64, Value> {
    let (mut events, mut after) = (HashMap::new(), 0);
    loop {
        let page = queue.events_after(after, 1000).unwrap();
        let Some(last) = page.last() else {
            return events;
        };
        after = last.seq;
        let told = page
            .iter()
            .filter(|event| !event.kind.as_str().contains("webhook"));
        events.extend(told.map(|event| (event.seq, serde_json::to_value(event).unwrap())));
    }
}

//! When deliveries are tried again, on a clock that stands still until a test moves it.

use std::time::Duration;

use serde_json::json;
use stepwell::testing::FakeClock;
use stepwell::webhook::WebhookConfig;
use stepwell::{Delivery, DeliveryStatus, EventKind, JobQueue, JobType, Timestamp};

use crate::receiver::wait_until;
use crate::{Bench, ONE, deliveries};

/// 2027-01-15T08:00:00Z.
const START: Timestamp = Timestamp::from_millis(1_800_000_000_000);

/// A queue with the default schedule, and one endpoint that is told when jobs are created.
fn open(bench: &Bench, path: &str) -> (JobQueue, FakeClock, impl Fn() -> Delivery) {
    let clock = FakeClock::new(START);
    let endpoint = bench.endpoint(path).events([EventKind::Created]);
    let config = WebhookConfig::new()
        .allow_private("127.0.0.1")
        .endpoint("audit", endpoint);
    let mut builder = JobQueue::builder(bench.path())
        .webhooks(config)
        .clock(&clock);
    let jobs = builder.register(JobType::<i32>::new("import").phase(ONE, |_| Ok(json!(1))));
    let queue = builder.open().unwrap();
    jobs.enqueue(&1).unwrap();
    let lists = queue.clone();
    (queue, clock, move || deliveries(&lists).remove(0))
}

#[test]
fn ten_tries_are_made_on_the_schedule_and_then_it_is_a_dead_letter() {
    let bench = Bench::new();
    let (queue, clock, delivery) = open(&bench, "/always-500");
    let waits = [5, 300, 1800, 7200, 18_000, 36_000, 50_400, 72_000, 86_400];
    let waits = waits.map(Duration::from_secs);
    for (tries, wait) in (1..).zip(waits) {
        wait_until("it was tried", || delivery().tries == tries);
        assert_eq!(bench.receiver.received().len(), tries as usize);
        let next = delivery().next_at.unwrap().since(clock.now());
        assert!(
            next >= wait.mul_f64(0.8) && next <= wait.mul_f64(1.2),
            "after try {tries}: {next:?}, and not {wait:?}"
        );
        clock.advance(next);
    }
    wait_until("it is given up", || {
        delivery().status == DeliveryStatus::Failed
    });
    let (delivery, told) = (delivery(), queue.events_after(0, 1000).unwrap());
    assert_eq!((delivery.tries, delivery.next_at), (10, None));
    let failed = told
        .iter()
        .filter(|event| event.kind == EventKind::WebhookFailed);
    assert_eq!(failed.count(), 1);
    let log = queue.delivery(delivery.id).unwrap().unwrap().log;
    assert_eq!(log.len(), 10);
    assert!(log.iter().all(|attempt| attempt.status == Some(500)));
}

#[test]
fn a_date_to_come_back_at_is_kept() {
    let bench = Bench::new();
    let (_queue, clock, delivery) = open(&bench, "/later-date");
    wait_until("it was tried", || delivery().tries == 1);
    assert_eq!(
        delivery().next_at,
        Some(START.after(Duration::from_secs(90)))
    );
    clock.advance(Duration::from_secs(90));
    wait_until("it is delivered", || {
        delivery().status == DeliveryStatus::Delivered
    });
}

/// After a step back the queue's own time goes on from where it was. Receivers compare with theirs: five minutes off, and none
/// of them accepted anything until the clock had caught up.
#[test]
fn a_delivery_is_signed_with_what_the_wall_clock_shows() {
    let bench = Bench::new();
    let (queue, clock, delivery) = open(&bench, "/always-500");
    wait_until("it was tried", || delivery().tries == 1);
    clock.step_back(Duration::from_secs(3600));
    clock.advance(Duration::from_secs(10));
    wait_until("it was tried again", || delivery().tries == 2);
    let sent = bench.receiver.received();
    let seconds = sent
        .iter()
        .map(|one| one.headers["webhook-timestamp"].parse().unwrap());
    let start = START.as_millis() / 1000;
    assert_eq!(seconds.collect::<Vec<i64>>(), [start, start - 3590]);
    drop(queue);
}

//! The end of a queue with deliveries under way.

use std::time::{Duration, Instant};

use serde_json::json;
use stepwell::{DeliveryStatus, EventKind, NewJob};

use crate::receiver::Receiver;
use crate::{Bench, deliveries, finish, quick};

#[test]
fn hung_deliveries_are_cut_and_charged_no_try() {
    let bench = Bench::new();
    // Two at a time go to one host: four hosts hang.
    let others: Vec<Receiver> = (0..3).map(|_| Receiver::start()).collect();
    let config = quick().threads(8).timeouts(
        Duration::from_secs(3),
        Duration::from_secs(5),
        Duration::from_secs(15),
    );
    let (queue, _) = bench.open(config);
    let receivers = [&bench.receiver, &others[0], &others[1], &others[2]];
    for receiver in receivers.iter().chain(&receivers) {
        let endpoint = stepwell::webhook::Endpoint::new(&receiver.url("/hang")).unwrap();
        let job = NewJob::new("import", &1)
            .unwrap()
            .webhook(endpoint.events([EventKind::Created]));
        queue.enqueue_job(job).unwrap();
    }
    for receiver in receivers {
        receiver.wait_for(2);
    }
    let asked = Instant::now();
    queue.shutdown(Duration::from_secs(2)).unwrap();
    let took = asked.elapsed();
    assert!(
        took >= Duration::from_secs(2) && took < Duration::from_millis(2250),
        "{took:?}"
    );
    let client = stepwell::Client::open(bench.path()).unwrap();
    let left = client
        .deliveries(&stepwell::DeliveryQuery::new())
        .unwrap()
        .deliveries;
    assert_eq!(left.len(), 8);
    for delivery in left {
        assert_eq!(
            (delivery.status, delivery.tries),
            (DeliveryStatus::Pending, 0),
            "{delivery:?}"
        );
        assert!(
            client
                .delivery(delivery.id)
                .unwrap()
                .unwrap()
                .log
                .is_empty()
        );
    }
    assert_eq!(client.check().unwrap(), Vec::<String>::new());
}

/// The seed's finding C: the store was closed under what a delivery had to record.
#[test]
fn a_shutdown_waits_for_deliveries_under_way_and_records_them() {
    let bench = Bench::new();
    let (queue, jobs) = bench.open(quick().endpoint("slow", bench.endpoint("/slow")));
    let id = jobs.enqueue(&json!(1)).unwrap();
    finish(&queue, id);
    queue.shutdown(Duration::from_secs(30)).unwrap();
    let client = stepwell::Client::open(bench.path()).unwrap();
    let all = client
        .deliveries(&stepwell::DeliveryQuery::new())
        .unwrap()
        .deliveries;
    assert_eq!(all.len(), 5);
    for delivery in all {
        assert_eq!(
            (delivery.status, delivery.tries),
            (DeliveryStatus::Delivered, 1),
            "{delivery:?}"
        );
    }
    assert!(client.get(id).unwrap().unwrap().webhook_sent);
    let told = client.events_of(id).unwrap();
    assert_eq!(
        told.iter()
            .filter(|event| event.kind == EventKind::WebhookDelivered)
            .count(),
        5
    );
}

#[test]
fn retries_do_not_hold_the_shutdown() {
    let bench = Bench::new();
    let config = quick().delays([
        Duration::ZERO,
        Duration::from_secs(1),
        Duration::from_secs(1),
    ]);
    let (queue, jobs) = bench.open(config.endpoint(
        "bad",
        bench.endpoint("/always-500").events([EventKind::Created]),
    ));
    jobs.enqueue(&json!(1)).unwrap();
    bench.receiver.wait_for(1);
    let asked = Instant::now();
    queue.shutdown(Duration::from_secs(20)).unwrap();
    assert!(
        asked.elapsed() < Duration::from_secs(5),
        "{:?}",
        asked.elapsed()
    );
    drop(jobs);
    let (queue, _) = bench.open(quick());
    assert_eq!(deliveries(&queue)[0].tries, 1);
}

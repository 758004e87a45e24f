//! What is delivered, in which order, and to whom.

use std::time::{Duration, Instant};

use serde_json::json;
use stepwell::webhook::{Endpoint, Secret, Signed, WebhookConfig};
use stepwell::{Client, DeliveryStatus, ErrorKind, EventKind, Keep, NewJob, Retention, Timestamp};

use crate::receiver::{PATIENCE, Receiver, wait_until};
use crate::{Bench, deliveries, finish, quick, wait_over};

#[test]
fn every_event_is_delivered_signed_and_in_order() {
    let bench = Bench::new();
    let secret = Secret::generate().unwrap();
    let (queue, jobs) =
        bench.open(quick().endpoint("all", bench.endpoint("/ok").secret(secret.clone())));
    let id = jobs.enqueue(&json!(7)).unwrap();
    finish(&queue, id);
    let sent = bench.receiver.wait_for(5);
    let told: Vec<_> = sent.iter().map(|one| one.event()).collect();
    assert_eq!(
        told,
        [
            "job:created",
            "job:started",
            "job:phase:started",
            "job:phase:completed",
            "job:completed"
        ]
    );
    let events = queue.events_of(id).unwrap();
    for (one, event) in sent.iter().zip(&events) {
        let signed = Signed {
            id: one.id(),
            timestamp: &one.headers["webhook-timestamp"],
            signature: &one.headers["webhook-signature"],
            body: one.body.as_bytes(),
        };
        assert_eq!(
            signed.verify(std::slice::from_ref(&secret), Timestamp::now()),
            Ok(())
        );
        assert_eq!(one.headers["content-type"], "application/json");
        assert_eq!(one.json()["data"], serde_json::to_value(event).unwrap());
    }
    wait_over(&queue, 5);
    assert!(queue.get(id).unwrap().unwrap().webhook_sent);
    let kinds: Vec<_> = queue
        .events_of(id)
        .unwrap()
        .iter()
        .map(|event| event.kind)
        .collect();
    let position = |kind| kinds.iter().position(|other| *other == kind).unwrap();
    assert!(position(EventKind::WebhookDelivered) > 0);
    let last = kinds
        .iter()
        .rposition(|kind| *kind == EventKind::WebhookDelivered)
        .unwrap();
    assert!(
        position(EventKind::Completed) < last,
        "a delivery is told after what it tells of: {kinds:?}"
    );
    assert_eq!(queue.check().unwrap(), Vec::<String>::new());
}

#[test]
fn a_failure_holds_up_its_own_job_and_no_other() {
    let bench = Bench::new();
    let config = quick().delays([
        Duration::ZERO,
        Duration::from_secs(1),
        Duration::from_millis(10),
    ]);
    let (queue, _) = bench.open(config);
    let slow = queue.enqueue_job(bench.job("/twice")).unwrap().id;
    let quick_one = queue.enqueue_job(bench.job("/ok")).unwrap().id;
    finish(&queue, slow);
    finish(&queue, quick_one);
    wait_over(&queue, 10);
    let order: Vec<_> = bench
        .receiver
        .at("/twice")
        .iter()
        .map(|one| one.event())
        .collect();
    let mut deduplicated = order.clone();
    deduplicated.dedup();
    assert_eq!(
        deduplicated.len(),
        5,
        "in order, each repeated at once: {order:?}"
    );
    assert_eq!(order.len(), 15);
    let last_ok = bench.receiver.at("/ok").last().unwrap().at;
    let second_slow = bench.receiver.at("/twice")[1].at;
    assert!(
        last_ok < second_slow,
        "the other job's were through before the first repetition"
    );
}

#[test]
fn a_host_is_sent_two_at_a_time() {
    let bench = Bench::new();
    let (queue, _) = bench.open(quick().threads(8));
    for _ in 0..10 {
        let endpoint = bench.endpoint("/slow").events([EventKind::Created]);
        queue
            .enqueue_job(NewJob::new("import", &1).unwrap().webhook(endpoint))
            .unwrap();
    }
    wait_over(&queue, 10);
    assert_eq!(bench.receiver.most_under_way(), 2);
}

#[test]
fn a_dead_endpoint_delays_no_other() {
    let bench = Bench::new();
    let other = Receiver::start();
    let healthy = Endpoint::new(&other.url("/ok"))
        .unwrap()
        .events([EventKind::Created]);
    let dead = bench.endpoint("/hang").events([EventKind::Created]);
    let (queue, jobs) = bench.open(quick().endpoint("dead", dead).endpoint("healthy", healthy));
    let started = Instant::now();
    jobs.enqueue_many([json!(1)].iter().cycle().take(200))
        .unwrap();
    other.wait_for(200);
    assert!(
        started.elapsed() < Duration::from_secs(10),
        "{:?}",
        started.elapsed()
    );
    let tried = bench.receiver.received().len();
    assert!(
        tried < 20,
        "two at a time, and then its breaker is open: {tried}"
    );
    queue.shutdown(Duration::ZERO).ok();
}

#[test]
fn an_endpoint_that_fails_is_left_in_peace_for_a_while() {
    let bench = Bench::new();
    let always = bench.endpoint("/always-500").events([EventKind::Created]);
    let (queue, jobs) = bench.open(quick().endpoint("bad", always));
    jobs.enqueue_many([json!(1)].iter().cycle().take(50))
        .unwrap();
    bench.receiver.wait_for(5);
    // Another endpoint at the same time shows that the threads are free.
    let healthy = bench.endpoint("/ok").events([EventKind::Created]);
    queue.put_endpoint("good", healthy).unwrap();
    jobs.enqueue_many([json!(1)].iter().cycle().take(50))
        .unwrap();
    wait_until("the good one has all", || {
        bench.receiver.at("/ok").len() == 50
    });
    let tried = bench.receiver.at("/always-500").len();
    assert!(
        (5..=6).contains(&tried),
        "five failures, and one that was on its way: {tried}"
    );
}

#[test]
fn what_waits_is_sent_after_a_restart_with_the_same_id_and_body() {
    let bench = Bench::new();
    let config = || quick().delays([Duration::ZERO, Duration::from_millis(300), Duration::ZERO]);
    let endpoint = bench.endpoint("/twice").events([EventKind::Created]);
    let (queue, _) = bench.open(config());
    queue
        .enqueue_job(NewJob::new("import", &1).unwrap().webhook(endpoint))
        .unwrap();
    bench.receiver.wait_for(1);
    queue.shutdown(Duration::from_secs(5)).unwrap();
    drop(queue);
    let (queue, _) = bench.open(config());
    let delivery = wait_over(&queue, 1).remove(0);
    assert_eq!(
        (delivery.status, delivery.tries),
        (DeliveryStatus::Delivered, 3)
    );
    let sent = bench.receiver.received();
    assert!(
        sent.iter()
            .all(|one| one.id() == sent[0].id() && one.body == sent[0].body),
        "{sent:?}"
    );
}

#[test]
fn a_job_that_retention_deletes_takes_no_delivery_with_it() {
    let bench = Bench::new();
    let mut builder = stepwell::JobQueue::builder(bench.path())
        .webhooks(quick())
        .retention(Retention::forever().completed(Keep::newest(0)));
    builder.register(
        stepwell::JobType::<serde_json::Value>::new("import").phase(crate::ONE, |_| Ok(json!(1))),
    );
    let queue = builder.open().unwrap();
    let endpoint = bench.endpoint("/slow").events([EventKind::Completed]);
    let id = queue
        .enqueue_job(NewJob::new("import", &1).unwrap().webhook(endpoint))
        .unwrap()
        .id;
    wait_until("the job is gone", || queue.get(id).unwrap().is_none());
    let delivery = wait_over(&queue, 1).remove(0);
    assert_eq!(
        (delivery.status, delivery.last_status),
        (DeliveryStatus::Delivered, Some(200))
    );
    assert_eq!(queue.check().unwrap(), Vec::<String>::new());
    queue.redeliver(delivery.id).unwrap();
    let sent = bench.receiver.wait_for(2);
    assert_eq!((sent[0].id(), &sent[0].body), (sent[1].id(), &sent[1].body));
}

/// The seed's finding 6.1: recording what came of a delivery looked for its job, which was not there any more, and failed.
#[test]
fn a_delivery_that_ends_after_its_job_was_deleted_is_recorded() {
    let bench = Bench::new();
    let (queue, _) = bench.open(quick());
    let endpoint = bench.endpoint("/held").events([EventKind::Completed]);
    let job = NewJob::new("import", &1).unwrap().webhook(endpoint);
    let id = queue.enqueue_job(job).unwrap().id;
    // It is under way, and the receiver takes its time.
    bench.receiver.wait_for(1);
    queue.delete(id).unwrap();
    assert_eq!(queue.get(id).unwrap(), None);
    assert_eq!(deliveries(&queue)[0].status, DeliveryStatus::Pending);
    bench.receiver.let_go();
    let delivery = wait_over(&queue, 1).remove(0);
    assert_eq!(
        (delivery.status, delivery.last_status, delivery.tries),
        (DeliveryStatus::Delivered, Some(200), 1)
    );
    assert_eq!(queue.get(id).unwrap(), None, "it does not come back");
    let told = queue.events_after(0, 100).unwrap();
    let last = told.last().unwrap();
    assert_eq!((last.job_id, last.kind), (id, EventKind::Deleted));
    assert!(queue.health().is_good());
    assert_eq!(queue.check().unwrap(), Vec::<String>::new());
}

/// A note of the seed: who hears of the completion may find `webhook_sent` false; it becomes true with the delivery's own event.
#[test]
fn a_completion_is_told_before_its_delivery_and_marked_after_it() {
    let bench = Bench::new();
    let (queue, _) = bench.open(quick());
    let endpoint = bench.endpoint("/held").events([EventKind::Completed]);
    let job = NewJob::new("import", &1).unwrap().webhook(endpoint);
    let id = queue.enqueue_job(job).unwrap().id;
    bench.receiver.wait_for(1);
    let last = |queue: &stepwell::JobQueue| queue.events_of(id).unwrap().pop().unwrap().kind;
    assert_eq!(last(&queue), EventKind::Completed);
    assert!(!queue.get(id).unwrap().unwrap().webhook_sent);
    bench.receiver.let_go();
    wait_over(&queue, 1);
    assert_eq!(last(&queue), EventKind::WebhookDelivered);
    assert!(queue.get(id).unwrap().unwrap().webhook_sent);
}

#[test]
fn endpoints_are_disabled_enabled_and_changed_while_the_queue_runs() {
    let bench = Bench::new();
    let endpoint = |path| bench.endpoint(path).events([EventKind::Created]);
    let (queue, jobs) = bench.open(quick().endpoint("audit", endpoint("/a")));
    queue.disable_endpoint("audit").unwrap();
    jobs.enqueue(&json!(1)).unwrap();
    assert!(deliveries(&queue).is_empty());
    queue.enable_endpoint("audit").unwrap();
    jobs.enqueue(&json!(1)).unwrap();
    wait_over(&queue, 1);
    queue.put_endpoint("audit", endpoint("/b")).unwrap();
    jobs.enqueue(&json!(1)).unwrap();
    wait_over(&queue, 2);
    assert_eq!(
        (bench.receiver.at("/a").len(), bench.receiver.at("/b").len()),
        (1, 1)
    );
    let state = queue.endpoints().unwrap().remove(0);
    assert_eq!((state.name.as_str(), state.enabled), ("audit", true));
    assert_eq!(state.url, bench.receiver.url("/b"));
    assert_eq!(
        queue.enable_endpoint("other").unwrap_err().kind(),
        ErrorKind::NotFound
    );
    assert_eq!(
        queue
            .put_endpoint("bad name", endpoint("/b"))
            .unwrap_err()
            .kind(),
        ErrorKind::InvalidJob
    );
    // A restart keeps what was done by hand.
    queue.disable_endpoint("audit").unwrap();
    queue.shutdown(Duration::from_secs(5)).unwrap();
    let (queue, _) = bench.open(quick().endpoint("audit", endpoint("/b")));
    assert!(!queue.endpoints().unwrap()[0].enabled);
}

/// A program that only says how webhooks are sent, a tool perhaps, disabled every endpoint of the file when it opened it.
#[test]
fn a_configuration_without_endpoints_leaves_them_as_they_are() {
    let bench = Bench::new();
    let endpoint = |path| bench.endpoint(path).events([EventKind::Created]);
    let (queue, _) = bench.open(quick().endpoint("audit", endpoint("/a")));
    queue.put_endpoint("later", endpoint("/b")).unwrap();
    queue.shutdown(Duration::from_secs(5)).unwrap();
    let (queue, jobs) = bench.open(quick());
    jobs.enqueue(&json!(1)).unwrap();
    wait_over(&queue, 2);
    queue.shutdown(Duration::from_secs(5)).unwrap();
    let (queue, _) = bench.open(quick().endpoint("audit", endpoint("/a")));
    let states = queue.endpoints().unwrap();
    let enabled: Vec<_> = states.iter().map(|state| state.enabled).collect();
    assert_eq!(
        enabled,
        [true, false],
        "one that does not name it does: {states:?}"
    );
}

/// 410 to one delivery of a job: what waits is given up, and a job that names the endpoint later is told of.
#[test]
fn a_job_s_endpoint_that_is_gone_is_sent_nothing_until_a_job_names_it_again() {
    let bench = Bench::new();
    let (queue, _) = bench.open(quick());
    let job = || bench.job("/gone-once");
    let first = queue.enqueue_job(job()).unwrap().id;
    finish(&queue, first);
    let told = wait_over(&queue, 1);
    assert_eq!(bench.receiver.received().len(), 1, "{told:?}");
    for delivery in &told {
        assert_eq!(delivery.status, DeliveryStatus::Failed);
        let (tries, says) = if delivery.event == EventKind::Created {
            (1, "status 410")
        } else {
            let says = "not sent, its endpoint is disabled: it answered 410: gone";
            (0, says)
        };
        assert_eq!(delivery.tries, tries, "{delivery:?}");
        assert_eq!(delivery.last_error.as_deref(), Some(says));
    }
    let second = queue.enqueue_job(job()).unwrap().id;
    finish(&queue, second);
    wait_until("the second one is told of", || {
        queue.get(second).unwrap().unwrap().webhook_sent
    });
    assert_eq!(bench.receiver.received().len(), 6);
}

#[test]
fn a_client_s_jobs_are_told_of_and_its_redelivery_is_done() {
    let bench = Bench::new();
    let (queue, _) = bench.open(quick().endpoint(
        "audit",
        bench.endpoint("/ok").events([EventKind::Completed]),
    ));
    let client = Client::open(bench.path()).unwrap();
    let id = client.enqueue("import", &1).unwrap();
    finish(&queue, id);
    let delivery = wait_over(&queue, 1).remove(0);
    client.redeliver(delivery.id).unwrap();
    let sent = bench.receiver.wait_for(2);
    assert_eq!((sent[0].id(), &sent[0].body), (sent[1].id(), &sent[1].body));
    wait_over(&queue, 1);
    let count = client
        .redeliver_between(
            delivery.created_at,
            Timestamp::now().after(Duration::from_secs(1)),
        )
        .unwrap();
    assert_eq!(count, 1);
    bench.receiver.wait_for(3);
    assert_eq!(
        client.delivery(delivery.id).unwrap().unwrap().body,
        sent[0].body
    );
}

#[test]
fn a_configuration_that_cannot_work_is_refused() {
    let bench = Bench::new();
    let refused = |config: WebhookConfig| {
        let queue = stepwell::JobQueue::builder(bench.path())
            .webhooks(config)
            .open();
        let error = queue.expect_err("it is refused");
        assert_eq!(error.kind(), ErrorKind::InvalidConfig);
        error.to_string()
    };
    let endpoint = || bench.endpoint("/ok");
    assert!(refused(WebhookConfig::new().threads(0)).contains("threads is 0"));
    assert!(refused(WebhookConfig::new().delays([])).contains("there is no delay"));
    assert!(
        refused(WebhookConfig::new().delays([Duration::from_secs(60)]))
            .contains("the first delay is 60s: the first try is made at once")
    );
    assert!(refused(WebhookConfig::new().jitter(2.0)).contains("jitter is 2"));
    let second = Duration::from_secs(1);
    for strange in [Duration::ZERO, Duration::MAX] {
        let says = format!("a timeout is {strange:?}: expected 1 ms to 1 day");
        let config = WebhookConfig::new().timeouts(second, second, strange);
        assert!(refused(config).contains(&says));
    }
    assert!(
        refused(WebhookConfig::new().endpoint("a b", endpoint())).contains("\"a b\" is not a name")
    );
    assert!(
        refused(
            WebhookConfig::new()
                .endpoint("a", endpoint())
                .endpoint("a", endpoint())
        )
        .contains("there twice")
    );
    for host in [
        "",
        "http://localhost",
        "localhost:8080",
        "localhost/",
        "a b",
    ] {
        let says = format!("allow_private is {host:?}: expected a host alone");
        assert!(refused(WebhookConfig::new().allow_private(host)).contains(&says));
    }
    let hosts = [
        "localhost",
        "127.0.0.1",
        "[::1]",
        "fd00::1",
        "my_host.lan",
        "käse.example",
    ];
    let config = hosts
        .iter()
        .fold(WebhookConfig::new(), WebhookConfig::allow_private);
    bench.open(config).0.shutdown(PATIENCE).unwrap();
    assert!(
        refused(
            WebhookConfig::new()
                .endpoint("a", endpoint())
                .https_only(true)
        )
        .contains("is not https")
    );
}

/// The bug: only endpoints of the configuration were looked at. One that came later was taken, and each of its deliveries was given
/// up at its first try.
#[test]
fn an_endpoint_that_is_not_https_is_refused_when_only_that_is_allowed() {
    let bench = Bench::new();
    let (queue, jobs) = bench.open(quick());
    queue
        .put_endpoint("before", bench.endpoint("/before"))
        .unwrap();
    queue.shutdown(PATIENCE).unwrap();

    let (queue, jobs_2) = bench.open(quick().https_only(true));
    drop(jobs);
    let error = queue.put_endpoint("later", bench.endpoint("/later?key=hunter2"));
    let error = error.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidConfig);
    let says = "is not https, and WebhookConfig::https_only allows nothing else";
    let told = error.to_string();
    assert!(
        told.starts_with("webhook endpoint \"later\": http://127.0.0.1:"),
        "{told}"
    );
    assert!(told.ends_with(says) && !told.contains("hunter2"), "{told}");
    for refused in [
        queue.enqueue_job(bench.job("/own?key=hunter2")),
        jobs_2.enqueue_job(bench.job("/own?key=hunter2")),
    ] {
        let error = refused.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidJob);
        let told = error.to_string();
        assert!(
            told.starts_with("job type \"import\": webhook http://127.0.0.1:"),
            "{told}"
        );
        assert!(told.ends_with(says) && !told.contains("hunter2"), "{told}");
    }
    assert_eq!(queue.stats().unwrap().pending, 0);
    let names: Vec<_> = queue
        .endpoints()
        .unwrap()
        .into_iter()
        .map(|it| it.name)
        .collect();
    assert_eq!(
        names,
        ["before"],
        "it stays as it is, and a warning tells of it"
    );
    let secure = Endpoint::new("HTTPS://hooks.example/").unwrap();
    queue.put_endpoint("secure", secure.clone()).unwrap();
    let job = NewJob::new("import", &1).unwrap();
    queue.enqueue_job(job.webhook(secure.events([]))).unwrap();
}

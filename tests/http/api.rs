//! The JSON API.

use serde_json::{Value, json};
use stepwell::JobStatus;

use crate::support::{Served, builder, job_type, local};

#[test]
fn a_list_goes_on_where_it_stopped_and_knows_filters() {
    let served = Served::new();
    for n in 0..5 {
        served.run(&json!(n));
    }
    served.run(&json!({"fail": "boom"}));
    let (mut seen, mut cursor) = (Vec::new(), String::new());
    loop {
        let page = served
            .get(&format!(
                "/api/jobs?limit=2&status=completed&type=work&cursor={cursor}"
            ))
            .json();
        seen.extend(
            page["jobs"]
                .as_array()
                .unwrap()
                .iter()
                .map(|job| job["id"].as_i64().unwrap()),
        );
        match page["next"].as_str() {
            Some(next) => cursor = next.to_owned(),
            None => break,
        }
    }
    assert_eq!(seen, [5, 4, 3, 2, 1]);
    let failed = served.get("/api/jobs?status=failed&with=error").json();
    assert_eq!(failed["jobs"][0]["error"]["message"], "boom");
    for bad in [
        "status=done",
        "limit=0",
        "limit=x",
        "cursor=x",
        "with=x",
        "state=failed",
        "a=%zz",
    ] {
        assert_eq!(served.get(&format!("/api/jobs?{bad}")).status, 400, "{bad}");
    }
}

#[test]
fn a_job_is_shown_without_its_payloads_unless_they_are_to_be_shown() {
    let secret = json!({"password": "hunter2"});
    let hidden = Served::new();
    let id = hidden.run(&secret);
    let answer = hidden.get(&format!("/api/jobs/{id}"));
    assert!(!answer.body.contains("hunter2"), "{}", answer.body);
    let text = hidden.get(&format!("/api/jobs/{id}?payloads=text"));
    assert!(!text.body.contains("hunter2"), "{}", text.body);
    let job = answer.json();
    assert_eq!(
        (&job["status"], &job["payloads_shown"]),
        (&json!("completed"), &json!(false))
    );
    assert_eq!(job["phases"].as_array().unwrap().len(), 2);
    assert_eq!(job["events"][0]["event"], "job:created");
    let shown = Served::with(local().show_payloads());
    let id = shown.run(&secret);
    let job = shown.get(&format!("/api/jobs/{id}")).json();
    assert_eq!(
        (&job["input"], &job["phases"][1]["result"]),
        (&secret, &secret)
    );
    assert_eq!(shown.get("/api/jobs/99").status, 404);
    assert_eq!(shown.get("/api/jobs/0").status, 400);
}

/// The bug: they were read, made values of, and thrown away: 20 MiB of results for a few lines of answer. Damaged ones show
/// who looks at them.
#[test]
fn payloads_that_are_not_shown_are_not_read() {
    let served = Served::new();
    let id = served.run(&json!(7));
    let failed = served.run(&json!({"fail": "boom"}));
    let sql = "UPDATE job SET input = '}'; UPDATE phase SET result = '}';";
    let raw = rusqlite::Connection::open(served.dir.path().join("jobs.db")).unwrap();
    raw.execute_batch("PRAGMA ignore_check_constraints = ON")
        .unwrap();
    raw.execute_batch(sql).unwrap();
    assert!(served.queue.get(id).is_err());
    let job = served.get(&format!("/api/jobs/{id}")).json();
    assert_eq!(
        (&job["status"], &job["phases"][1]["status"]),
        (&json!("completed"), &json!("completed"))
    );
    assert!(job.get("input").is_none() && job["phases"][1].get("result").is_none());
    let list = served.get("/api/jobs?with=error").json();
    assert_eq!(list["jobs"][0]["id"], json!(failed));
    assert_eq!(list["jobs"][0]["error"]["message"], "boom");
}

/// JavaScript reads these numbers as 9007199254740992 and 1.
#[test]
fn payloads_come_as_text_for_readers_that_would_round_them() {
    let served = Served::with(local().show_payloads());
    let input = json!({"big": 9_007_199_254_740_993_u64, "one": 1.0, "wait": false});
    let id = served.run(&input);
    let job = served.get(&format!("/api/jobs/{id}?payloads=text")).json();
    let text = r#"{"big":9007199254740993,"one":1.0,"wait":false}"#;
    assert_eq!(
        (&job["input"], &job["phases"][1]["result"]),
        (&json!(text), &json!(text))
    );
    let waits = served.jobs.enqueue(&json!({"wait": true})).unwrap();
    let job = served
        .get(&format!("/api/jobs/{waits}?payloads=text"))
        .json();
    assert_eq!(job["phases"][1]["result"], json!(null), "it has none yet");
}

#[test]
fn a_job_is_cancelled_retried_and_deleted() {
    let served = Served::new();
    let id = served.jobs.enqueue(&json!({"wait": true})).unwrap();
    served.wait_for(id, JobStatus::Running);
    let job = |action: &str| format!("/api/jobs/{id}{action}");
    crate::support::until("its progress is told", || {
        served.get(&job("")).json()["progress"]["message"] == "half\r\nid: 7"
    });
    assert_eq!(
        served.post(&job("/retry"), "{\"from\":\"failed\"}").status,
        409
    );
    assert_eq!(
        served
            .send("DELETE", &job(""), "Content-Type: application/json\r\n", "")
            .status,
        409
    );
    assert_eq!(
        served.post(&job("/cancel"), "").json(),
        json!({"outcome": "cancelled"})
    );
    let again = served.post(&job("/cancel"), "{}").json();
    assert_eq!(
        again,
        json!({"outcome": "already_finished", "status": "cancelled"})
    );
    for bad in [
        "",
        "{\"from\":\"middle\"}",
        "{\"from\":1}",
        "[]",
        "{",
        "{\"form\":\"start\"}",
    ] {
        assert_eq!(served.post(&job("/retry"), bad).status, 400, "{bad}");
    }
    assert_eq!(
        served.post(&job("/retry"), "{\"from\":\"start\"}").json()["outcome"],
        "retried"
    );
    served.wait_for(id, JobStatus::Running);
    served.post(&job("/cancel"), "");
    let deleted = served.send("DELETE", &job(""), "Content-Type: application/json\r\n", "");
    assert_eq!(deleted.json()["outcome"], "deleted");
    assert_eq!(served.get(&job("")).status, 404);
    assert_eq!(served.post(&job("/cancel"), "").status, 404);
    assert_eq!(served.get(&job("/cancel")).header("Allow"), Some("POST"));
}

#[test]
fn many_jobs_are_changed_together_and_only_if_they_are_as_many_as_expected() {
    let served = Served::new();
    let ids: Vec<_> = (0..4)
        .map(|_| served.run(&json!({"fail": "x"})).as_i64())
        .collect();
    let bulk = |body: Value| served.post("/api/jobs/bulk", &body.to_string());
    let stale = bulk(json!({"action": "delete", "status": "failed", "expect_count": 3}));
    assert_eq!(stale.status, 409);
    assert_eq!(served.queue.stats().unwrap().failed, 4);
    let some = bulk(json!({"action": "delete", "ids": [ids[0], ids[1], 999]})).json();
    assert_eq!(some, json!({"changed": 2, "skipped": 1}));
    let rest =
        bulk(json!({"action": "delete", "status": "failed", "type": "work", "expect_count": 2.0}));
    assert_eq!(rest.json(), json!({"changed": 2}));
    for bad in [
        json!({"action": "delete"}),
        json!({"action": "explode", "status": "failed"}),
        json!({"action": "retry", "status": "failed"}),
        json!({"action": "delete", "ids": []}),
        json!({"action": "delete", "ids": [1], "status": "failed"}),
        json!({"action": "delete", "ids": ["1"]}),
        json!({"action": "delete", "status": "failed", "expect_count": -1}),
        json!({"action": "delete", "status": "failed", "expect_count": 1.5}),
        json!({"action": "delete", "status": "failed", "expect_count": "1"}),
    ] {
        assert_eq!(bulk(bad.clone()).status, 400, "{bad}");
    }
}

/// The bug: each id was a commit of its own. A thousand of them could take longer than an answer may, and after one that failed
/// nobody was told which were changed.
#[test]
fn jobs_that_are_listed_are_changed_in_one_commit() {
    let served = Served::new();
    served.queue.pause().unwrap();
    let ids = served.jobs.enqueue_many(&vec![json!(1); 20]).unwrap();
    let raw = rusqlite::Connection::open(served.dir.path().join("jobs.db")).unwrap();
    // What happens to neighbours in one commit is one row of the log.
    let rows = || {
        let sql = "SELECT count(*) FROM event";
        raw.query_row(sql, [], |row| row.get::<_, i64>(0)).unwrap()
    };
    let body = json!({"action": "cancel", "ids": ids});
    let before = rows();
    let answer = served.post("/api/jobs/bulk", &body.to_string());
    assert_eq!(answer.json(), json!({"changed": 20, "skipped": 0}));
    assert_eq!(rows(), before + 1);
    let again = served.post("/api/jobs/bulk", &body.to_string());
    assert_eq!(again.json(), json!({"changed": 0, "skipped": 20}));
    let twice = json!({"action": "retry", "from": "start", "ids": [ids[7], ids[7], 999]});
    let answer = served.post("/api/jobs/bulk", &twice.to_string());
    assert_eq!(answer.json(), json!({"changed": 1, "skipped": 2}));
}

#[test]
fn a_pause_is_seen_and_undone() {
    let served = Served::new();
    assert_eq!(
        served.post("/api/queue/pause", "{}").json(),
        json!({"paused": true, "type": null})
    );
    assert_eq!(
        served
            .post("/api/queue/pause", "{\"type\":\"work\"}")
            .status,
        200
    );
    let stats = served.get("/api/stats").json();
    assert_eq!(
        (&stats["paused"], &stats["paused_types"]),
        (&json!(true), &json!(["work"]))
    );
    assert_eq!(stats["types"], json!(["work"]));
    let id = served.jobs.enqueue(&json!(1)).unwrap();
    let reasons = served.get(&format!("/api/jobs/{id}")).json();
    assert_eq!(reasons["hindrances"][0]["reason"], "queue_paused");
    served.post("/api/queue/resume", "");
    served.post("/api/queue/resume", "{\"type\":\"work\"}");
    served.wait_for(id, JobStatus::Completed);
    assert!(
        served
            .get("/metrics")
            .body
            .contains("stepwell_jobs{status=\"completed\"} 1\n")
    );
}

#[test]
fn a_queue_that_closes_says_so_and_lets_its_port_go() {
    let served = Served::new();
    let id = served.jobs.enqueue(&json!({"wait": true})).unwrap();
    served.wait_for(id, JobStatus::Running);
    let mut stream = served.stream("/events", "");
    served
        .queue
        .shutdown(std::time::Duration::from_millis(300))
        .ok();
    let heard = stream.rest();
    // Progress has no number, and may come after what a stream has from the log.
    let last = heard.iter().rfind(|sent| sent.id.is_some());
    assert_eq!(last.unwrap().name, "job:interrupted", "{heard:?}");
    assert!(stream.is_whole, "it ended with its last chunk");
    std::net::TcpListener::bind(served.addr).unwrap();
    // And the file: it opens again.
    let mut again = builder(&served.dir.path().join("jobs.db"));
    again.register(job_type());
    again.open().unwrap();
}

#[test]
fn five_hundred_streams_end_whole_within_two_seconds() {
    let served = Served::with(local().max_streams(512));
    let mut streams: Vec<_> = (0..512).map(|_| served.stream("/events", "")).collect();
    served.run(&json!(1));
    let report = served
        .queue
        .shutdown(std::time::Duration::from_secs(2))
        .unwrap();
    println!("512 streams: {:?}", report.took);
    assert!(
        report.took <= std::time::Duration::from_secs(2),
        "{:?}",
        report.took
    );
    for stream in &mut streams {
        assert_eq!(stream.rest().last().unwrap().name, "job:completed");
        assert!(stream.is_whole && !stream.has_half_an_event());
    }
}

#[cfg(feature = "webhook")]
#[test]
fn a_job_is_shown_with_its_deliveries_and_they_are_sent_again() {
    use stepwell::webhook::Endpoint;
    use stepwell::{DeliveryStatus, EventKind, NewJob};

    let served = Served::new();
    // Nobody is there, and loopback is not allowed: it is given up at once.
    let endpoint = Endpoint::new("http://127.0.0.1:9/hooks?token=secret")
        .unwrap()
        .events([EventKind::Completed]);
    let job = NewJob::new("work", &json!(1)).unwrap().webhook(endpoint);
    let id = served.queue.enqueue_job(job).unwrap().id;
    let failed = |count: usize| {
        let started = std::time::Instant::now();
        loop {
            let page = served
                .queue
                .deliveries(&stepwell::DeliveryQuery::new().job(id))
                .unwrap();
            let over = page
                .deliveries
                .iter()
                .find(|one| one.status == DeliveryStatus::Failed);
            if let Some(one) = over
                && served.queue.delivery(one.id).unwrap().unwrap().log.len() == count
            {
                return one.id;
            }
            assert!(started.elapsed() < crate::support::PATIENCE, "{page:?}");
            std::thread::yield_now();
        }
    };
    let delivery = failed(1);
    // What was told after the end of the job does not keep its stream open.
    let mut stream = served.stream(&format!("/jobs/{id}/events"), "");
    let last = stream.rest().pop().unwrap();
    assert_eq!(
        (&last.name[..], stream.is_whole),
        ("job:webhook:failed", true)
    );
    let answer = served.get(&format!("/api/jobs/{id}"));
    assert!(!answer.body.contains("token"), "{}", answer.body);
    let shown = &answer.json()["deliveries"][0];
    assert_eq!(
        (&shown["status"], &shown["event"]),
        (&json!("failed"), &json!("job:completed"))
    );
    let one = served.get(&format!("/api/deliveries/{delivery}")).json();
    assert!(
        one["log"][0]["error"]
            .as_str()
            .unwrap()
            .contains("not public"),
        "{one}"
    );
    assert!(
        one.get("body").is_none(),
        "that may be as secret as a payload"
    );
    let again = served.post(&format!("/api/deliveries/{delivery}/redeliver"), "{}");
    assert_eq!(again.json()["outcome"], "redelivered");
    failed(2);
    assert_eq!(served.get("/api/deliveries/77").status, 404);
    assert_eq!(served.get("/api/deliveries/x").status, 400);
    assert_eq!(
        served.post("/api/deliveries/77/redeliver", "{}").status,
        404
    );
}

//! Files of released versions, opened by this one.
//!
//! What it would catch: a change of the schema or of what a row means that an older file does not survive; a result, an error, an
//! event or a delivery that reads differently than before; work that an older version left and this one does not finish.
//!
//! `NAME.queue` is the file as a process of that version left it when it died, `NAME.json` what that version read in it. More
//! may be read today, but nothing else. Files of released versions stay for ever. As long as a version is not released, its file
//! is made anew after a change of the schema:
//!
//! ```text
//! cargo run --example prove -- golden
//! ```
#![cfg(target_os = "linux")]
#![allow(
    clippy::disallowed_methods,
    reason = "a test that copies files and waits"
)]

mod content;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use stepwell::testing::FakeClock;
use stepwell::{
    Client, Delivery, DeliveryQuery, DeliveryStatus, JobQueue, JobStatus, JobType, Phase,
    Retention, Timestamp, webhook::WebhookConfig,
};

const PATIENCE: Duration = Duration::from_secs(60);
const VERSIONS: [&str; 1] = [env!("CARGO_PKG_VERSION")];

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

fn known(version: &str) -> Value {
    let text = std::fs::read_to_string(folder().join(format!("{version}.json")));
    serde_json::from_str(&text.expect("it is there")).expect("it is JSON")
}

/// A copy, since opening changes a file.
fn copy(version: &str, dir: &Path) -> PathBuf {
    let path = dir.join(format!("{version}.db"));
    std::fs::copy(folder().join(format!("{version}.queue")), &path).expect("it can be copied");
    path
}

/// Where `now` does not have what `then` has.
fn differs(then: &Value, now: &Value, place: &str, found: &mut Vec<String>) {
    match (then, now) {
        (Value::Object(then), Value::Object(now)) => {
            for (key, value) in then {
                let now = now.get(key).unwrap_or(&Value::Null);
                differs(value, now, &format!("{place}/{key}"), found);
            }
        }
        (Value::Array(then), Value::Array(now)) if then.len() == now.len() => {
            for (index, (then, now)) in then.iter().zip(now).enumerate() {
                differs(then, now, &format!("{place}/{index}"), found);
            }
        }
        _ if then == now => {}
        _ => found.push(format!("{place}: was {then}, is {now}")),
    }
}

#[test]
fn a_file_of_each_version_is_sound_and_says_what_it_said() {
    let dir = tempfile::tempdir().expect("a directory can be made");
    for version in VERSIONS {
        let path = copy(version, dir.path());
        let client = Client::open(&path).expect("it can be opened");
        assert_eq!(
            client.check().expect("it can be checked"),
            [""; 0],
            "{version}"
        );
        let mut found = Vec::new();
        differs(&known(version), &content::read(&path), "", &mut found);
        assert!(found.is_empty(), "{version}:\n{}", found.join("\n"));
    }
}

/// What is compared is there: a file of nothing would say what it said.
#[test]
fn the_newest_file_has_one_of_everything() {
    let known = known(VERSIONS[VERSIONS.len() - 1]);
    let all = |list: &str, pointer: &str| -> Vec<String> {
        let list = known[list].as_array().expect("a list");
        let found = list.iter().filter_map(|it| it.pointer(pointer)?.as_str());
        found.map(str::to_owned).collect()
    };
    let statuses = all("jobs", "/status");
    for status in JobStatus::ALL {
        assert!(statuses.contains(&status.to_string()), "no job is {status}");
    }
    let kinds = all("events", "/event");
    for kind in stepwell::EventKind::ALL {
        // Progress is not kept; an interruption is recorded by the process that comes after.
        let is_kept = !["job:progress", "job:interrupted"].contains(&kind.as_str());
        assert_eq!(kinds.contains(&kind.to_string()), is_kept, "{kind}");
    }
    let statuses = all("deliveries", "/delivery/status");
    for status in ["pending", "delivered", "failed"] {
        assert!(
            statuses.contains(&status.to_owned()),
            "no delivery is {status}"
        );
    }
    let text = known.to_string();
    for part in [
        "large large",
        "\"paused\":true",
        "held",
        "b.c",
        "panic",
        "deadline",
        "410",
    ] {
        assert!(text.contains(part), "{part} is missing");
    }
}

#[test]
fn the_work_that_each_version_left_is_finished() {
    let dir = tempfile::tempdir().expect("a directory can be made");
    for version in VERSIONS {
        let path = copy(version, dir.path());
        let clock = FakeClock::new(Timestamp::now());
        let queue = open(&path, &clock);
        let until = Instant::now() + PATIENCE;
        let is_over = || {
            let stats = queue.stats().expect("it can be read");
            // Those of the file's own endpoints wait until somebody names these again.
            let of_jobs = ["/bad", "/later"];
            let waits = |it: &Delivery| {
                it.status == DeliveryStatus::Pending
                    && of_jobs.iter().any(|at| it.url.ends_with(at))
            };
            let query = DeliveryQuery::new().limit(1000);
            let page = queue.deliveries(&query).expect("it can be read");
            stats.pending + stats.running == 0 && !page.deliveries.iter().any(waits)
        };
        while !is_over() {
            assert!(Instant::now() < until, "{version}: {:?}", queue.stats());
            // Retries are waited for, and pauses after failed deliveries.
            clock.advance(Duration::from_secs(600));
            std::thread::park_timeout(Duration::from_millis(5));
        }
        assert_eq!(
            queue.check().expect("it can be checked"),
            [""; 0],
            "{version}"
        );
        let before = known(version);
        for then in before["jobs"].as_array().expect("a list") {
            finished(&queue, then, version);
        }
        queue.shutdown(PATIENCE).expect("it ends");
    }
}

fn open(path: &Path, clock: &FakeClock) -> JobQueue {
    let mut builder = JobQueue::builder(path)
        .workers(2)
        .clock(clock)
        .retention(Retention::forever())
        // Nobody is at those addresses any more.
        .webhooks(WebhookConfig::new().delays([Duration::ZERO; 2]));
    content::register(&mut builder, || {});
    const LATER: Phase<Value> = Phase::new("later");
    builder.register(JobType::<Value>::new("later").phase(LATER, |cx| Ok(cx.input().clone())));
    let queue = builder.open().expect("it can be opened");
    queue.resume().expect("it can be resumed");
    queue.resume_type("held").expect("it can be resumed");
    queue
}

/// What was over is as it was; what was not, is now, and kept what it had.
fn finished(queue: &JobQueue, then: &Value, version: &str) {
    let id = then["id"].as_i64().map(|id| id.to_string()).expect("an id");
    let job = queue
        .get(id.parse().expect("an id"))
        .expect("it can be read");
    let job = json!(job.expect("it is there"));
    let status = then["status"].as_str().expect("a status");
    let mut found = Vec::new();
    if ["completed", "failed", "cancelled"].contains(&status) {
        differs(then, &job, "", &mut found);
    } else {
        let fails = ["always", "panic"]
            .map(Value::from)
            .contains(&then["input"]["fails"]);
        let wanted = if fails { "failed" } else { "completed" };
        assert_eq!(job["status"], wanted, "{version}: {job:#}");
        let done = then["phases"].as_array().expect("a list");
        for (index, phase) in done.iter().enumerate() {
            if phase["status"] == "completed" {
                differs(phase, &job["phases"][index], "", &mut found);
            }
        }
    }
    assert!(
        found.is_empty(),
        "{version}: job {id}:\n{}",
        found.join("\n")
    );
    if then["job_type"] == "stuck" {
        let result = &job["phases"][1]["result"];
        assert_eq!(
            result["before"],
            json!({"rows": 41}),
            "its checkpoint is lost"
        );
        assert!(
            result["interrupted"].is_object(),
            "it was not told that it was interrupted: {job:#}"
        );
    }
}

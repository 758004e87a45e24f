//! Files of released versions, opened by this one.
//!
//! What it would catch: a change of the schema or of what a row means that an older file does not survive; a result, an error, an
//! event or a delivery that reads differently than before; work that an older version left and this one does not finish; a unique key
//! that holds for another time, a secret that does not sign, a crash of the older version's process that is not charged.
//!
//! `NAME.queue` is the file as a process of that version left it when it died, `NAME.owner` what it had noted of itself beside it,
//! `NAME.json` what that version read. More may be read today, but nothing else. Files of released versions stay for ever. As long as
//! a version is not released, its file is made anew after a change of the schema:
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
mod crash;
mod keys;
mod signed;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use stepwell::testing::FakeClock;
use stepwell::{
    Client, Delivery, DeliveryQuery, DeliveryStatus, ErrorCause, InterruptionReason, JobId,
    JobQueue, JobStatus, JobType, Phase, Retention, Timestamp, webhook::WebhookConfig,
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

/// A copy, since opening changes a file. Its process died with its machine: this one was started later.
fn copy(version: &str, dir: &Path) -> PathBuf {
    let path = dir.join(format!("{version}.db"));
    std::fs::copy(folder().join(format!("{version}.queue")), &path).expect("it can be copied");
    crash::note(version, &path, "an earlier start of the machine");
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
        let known = known(version);
        differs(&known, &content::read(&path), "", &mut found);
        assert!(found.is_empty(), "{version}:\n{}", found.join("\n"));
        for job in known["jobs"].as_array().expect("a list") {
            // Found by the links of the log, unlike those above.
            let history = client.events_of(id_of(job)).expect("it can be read");
            let events = known["events"].as_array().expect("a list").iter();
            let expected: Vec<_> = events.filter(|it| it["job_id"] == job["id"]).collect();
            assert_eq!(json!(history), json!(expected), "{version}: {}", job["id"]);
        }
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
        // Progress is not kept.
        let is_kept = kind.as_str() != "job:progress";
        assert_eq!(kinds.contains(&kind.to_string()), is_kept, "{kind}");
    }
    let statuses = all("deliveries", "/delivery/status");
    for status in ["pending", "delivered", "failed"] {
        assert!(
            statuses.contains(&status.to_owned()),
            "no delivery is {status}"
        );
    }
    let jobs = known["jobs"].as_array().expect("a list");
    let errors = jobs.iter().flat_map(|job| job["errors"].as_array());
    let causes: Vec<_> = errors
        .flatten()
        .map(|error| error["kind"].as_str())
        .collect();
    for cause in [
        "error",
        "panic",
        "timeout",
        "deadline",
        "result",
        "decode",
        "interrupted",
        "crash_limit",
    ] {
        assert!(causes.contains(&Some(cause)), "no error is {cause}");
    }
    assert!(jobs.iter().any(|job| job["crash_count"] == 1));
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

/// The words that are compared above may have changed places: here the errors are told by what has happened.
#[test]
fn the_errors_of_each_version_mean_what_they_meant() {
    let dir = tempfile::tempdir().expect("a directory can be made");
    for version in VERSIONS {
        let client = Client::open(copy(version, dir.path())).expect("it can be opened");
        let known = known(version);
        let of = |name: &str, fails: Value| {
            let mut jobs = known["jobs"].as_array().expect("a list").iter();
            let job = jobs.find(|job| {
                let has_failed = job["errors"].as_array().is_some_and(|it| !it.is_empty());
                job["type"] == name && job["input"]["fails"] == fails && has_failed
            });
            let job = client.get(id_of(job.expect("it is there")));
            job.expect("it can be read").expect("it is there")
        };
        for (name, fails, cause) in [
            ("import", json!("for good"), ErrorCause::Error),
            ("import", json!("panic"), ErrorCause::Panic),
            ("faulty", json!("slow"), ErrorCause::Timeout),
            ("faulty", json!("large"), ErrorCause::Result),
            ("faulty", json!("to be read"), ErrorCause::Decode),
            ("planless", Value::Null, ErrorCause::Decode),
            ("snoozing", Value::Null, ErrorCause::Deadline),
            ("stuck", Value::Null, ErrorCause::Interrupted),
            ("fragile", Value::Null, ErrorCause::CrashLimit),
        ] {
            let job = of(name, fails);
            let last = job.errors.last().map(|error| error.kind);
            assert_eq!(last, Some(cause), "{version}: {job:?}");
        }
        let interruption = of("stuck", Value::Null).interruption;
        let reason = interruption.map(|it| it.reason);
        assert_eq!(reason, Some(InterruptionReason::ProcessDied), "{version}");
    }
}

/// What no reader shows: which changes of the log stand for events, and runs.
#[test]
fn the_newest_file_has_every_change_and_runs_of_jobs() {
    let dir = tempfile::tempdir().expect("a directory can be made");
    let path = copy(VERSIONS[VERSIONS.len() - 1], dir.path());
    let conn = rusqlite::Connection::open(path).expect("it can be opened");
    let number = |sql: &str| -> i64 {
        let number = conn.query_row(sql, [], |row| row.get(0));
        number.expect("it can be read")
    };
    assert_eq!(number("SELECT count(DISTINCT change) FROM event"), 17);
    // Created, cancelled, tried again.
    for change in [1, 10, 14] {
        let runs = format!("SELECT count(*) FROM event WHERE change = {change} AND span = 3");
        assert!(number(&runs) > 0, "no run of change {change}");
    }
    let linked = "SELECT count(*) FROM event WHERE change IN (10, 14) AND prev_step = 1";
    assert_eq!(number(linked), 2, "none is linked to a run before it");
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
            let of_jobs = ["/bad", "/later", "/signed"];
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
    content::register(&mut builder, |_| {});
    content::register_planless(&mut builder);
    const LATER: Phase<Value> = Phase::new("later");
    builder.register(JobType::<Value>::new("later").phase(LATER, |cx| Ok(cx.input().clone())));
    let queue = builder.open().expect("it can be opened");
    queue.resume().expect("it can be resumed");
    queue.resume_type("held").expect("it can be resumed");
    queue
}

/// What was over is as it was; what was not, is now, and kept what it had.
fn finished(queue: &JobQueue, then: &Value, version: &str) {
    let id = id_of(then);
    let job = queue.get(id).expect("it can be read");
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
    if then["type"] == "stuck" {
        let result = &job["phases"][1]["result"];
        assert_eq!(
            result["before"],
            json!({"rows": 41}),
            "its checkpoint is lost"
        );
        assert_eq!(result["interrupted"]["reason"], "machine_went_down");
        assert_eq!(job["crash_count"], then["crash_count"], "no fault of its");
    }
}

fn id_of(job: &Value) -> JobId {
    JobId::from_i64(job["id"].as_i64().expect("an id"))
}

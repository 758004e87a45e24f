//! A queue that cannot do its work says so.

use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::json;

use crate::support::{Served, until};

/// What the planted panic says, and where.
const MARK: &str = "planted_panic_of_a_test";

/// No result can be written from now on: the table says so, to everybody who reads it again, and calls it `why`.
fn damage(served: &Served, why: &str) {
    let file = rusqlite::Connection::open(served.dir.path().join("jobs.db")).unwrap();
    let version: i64 = file
        .query_row("PRAGMA schema_version", [], |row| row.get(0))
        .unwrap();
    let (whole, damaged) = (
        "result TEXT NOT NULL",
        format!("result TEXT NOT NULL CONSTRAINT {why} CHECK (0)"),
    );
    let update = format!(
        "UPDATE sqlite_schema SET sql = replace(sql, '{whole}', '{damaged}') WHERE name = 'phase'"
    );
    let version = version + 1;
    file.execute_batch(&format!(
        "PRAGMA writable_schema = ON; {update}; PRAGMA schema_version = {version};"
    ))
    .unwrap();
}

/// The store fails, and stays so.
pub(crate) fn break_store(served: &Served) {
    damage(served, "damaged");
    served.jobs.enqueue(&json!(1)).unwrap();
    until("it is seen", || !served.queue.health().is_good());
}

#[test]
fn a_queue_whose_store_has_failed_is_not_healthy() {
    let served = Served::new();
    assert_eq!(served.get("/healthz").status, 200);
    break_store(&served);
    let answer = served.get("/healthz");
    assert_eq!(
        (answer.status, &answer.json()["status"]),
        (503, &json!("store_failed"))
    );
    let problem = answer.json()["problem"].to_string();
    assert!(problem.contains("cannot be recorded"), "{problem}");
    let stats = served.get("/api/stats").json();
    assert!(stats["health"]["store_failure"].is_string(), "{stats}");
    assert!(served.get("/metrics").body.contains("stepwell_up 0\n"));
}

/// A logger of the program that links stepwell: it panics, once, in the thread that tells of a failed store.
struct Panicking;

static HAS_PANICKED: AtomicBool = AtomicBool::new(false);

impl log::Log for Panicking {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        let text = record.args().to_string();
        if text.contains(MARK) && !HAS_PANICKED.swap(true, Ordering::Relaxed) {
            panic!("{MARK}");
        }
    }

    fn flush(&self) {}
}

#[test]
fn a_queue_with_a_dead_thread_is_not_healthy() {
    let served = Served::new();
    log::set_logger(&Panicking).unwrap();
    log::set_max_level(log::LevelFilter::Error);
    damage(&served, MARK);
    served.jobs.enqueue(&json!(1)).unwrap();
    until("it is seen", || served.queue.health().poisoned.is_some());
    let answer = served.get("/healthz");
    assert_eq!(
        (answer.status, &answer.json()["status"]),
        (503, &json!("poisoned"))
    );
    assert!(served.get("/metrics").body.contains("stepwell_up 0\n"));
    let refused = served.post("/api/queue/pause", "{}");
    assert_eq!(refused.status, 503, "{}", refused.body);
}

/// Without a token nobody is told more than that it is so.
#[test]
fn what_is_wrong_is_told_to_those_who_may_know() {
    let token = "0123456789abcdef0123";
    let served = Served::with(crate::support::local().token(token));
    break_store(&served);
    let answer = served.get("/healthz");
    assert_eq!(
        (answer.status, &answer.body[..]),
        (503, "{\"status\":\"store_failed\"}")
    );
    let bearer = format!("Authorization: Bearer {token}\r\n");
    let told = served.send("GET", "/healthz", &bearer, "").json();
    assert!(told["problem"].is_string(), "{told}");
}

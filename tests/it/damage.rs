//! A damaged row stops what concerns it, and nothing else.

use serde_json::Value;
use stepwell::{Client, ErrorKind, JobStatus, JobType, ListFilter, NewJob, Phase};

use crate::support::Harness;

const ONE: Phase<Value> = Phase::new("one");

/// Writes into the file behind the queue's back.
fn meddle(harness: &Harness, sql: &str) {
    let file = rusqlite::Connection::open(harness.path()).unwrap();
    file.execute_batch(sql).unwrap();
}

/// Changes how the table of results is declared, and makes everybody read it again.
fn change_table(harness: &Harness, from: &str, to: &str) {
    let version = harness.sql::<i64>("PRAGMA schema_version")[0] + 1;
    let update = format!(
        "UPDATE sqlite_schema SET sql = replace(sql, '{from}', '{to}') WHERE name = 'phase'"
    );
    meddle(
        harness,
        &format!("PRAGMA writable_schema = ON; {update}; PRAGMA schema_version = {version};"),
    );
}

/// The bug: one such row failed every commit that looked for something to claim, those of callers included.
#[test]
fn a_due_job_that_cannot_be_read_stops_claims_and_nothing_else() {
    let harness = Harness::new();
    let client = Client::open(harness.path()).unwrap();
    let damaged = client.enqueue("import", &Value::Null).unwrap();
    meddle(&harness, "UPDATE job SET attempt = -1");
    let (queue, jobs) =
        harness.open(JobType::<Value>::new("import").phase(ONE, |_| Ok(Value::Null)));
    let error = queue.get(damaged).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert!(
        error.to_string().contains("row 1: column attempt"),
        "{error}"
    );
    let whole = jobs.enqueue(&Value::Null).unwrap();
    assert_eq!(queue.status(whole).unwrap(), Some(JobStatus::Pending));
    let failure = queue
        .health()
        .store_failure
        .expect("nothing is claimed, and health says why");
    assert!(failure.contains("column attempt"), "{failure}");
    meddle(&harness, "UPDATE job SET attempt = 0");
    queue.resume().unwrap();
    harness.wait_for(&queue, damaged, JobStatus::Completed);
    harness.wait_for(&queue, whole, JobStatus::Completed);
    assert!(queue.health().is_good());
}

/// The bug: the outcome was dropped, and its job stayed under way in memory: its place was lost until the end, which then
/// waited for it in vain. `health` was good all the while.
#[test]
fn an_outcome_that_cannot_be_recorded_frees_its_place_and_is_told() {
    let harness = Harness::new();
    let job_type = || JobType::<Value>::new("import").phase(ONE, |_| Ok(Value::Null));
    let (queue, jobs) = harness.open(job_type());
    // No result can be written.
    let (whole, damaged) = ("result TEXT NOT NULL", "result TEXT NOT NULL CHECK (0)");
    change_table(&harness, whole, damaged);
    let lost = jobs.enqueue(&Value::Null).unwrap();
    harness.until("health is not good", || !queue.health().is_good());
    let failure = queue.health().store_failure.unwrap_or_default();
    let says = format!("job {lost}: its outcome cannot be recorded: ");
    assert!(failure.starts_with(&says), "{failure}");
    let waits = jobs.enqueue(&Value::Null).unwrap();
    assert_eq!(queue.status(waits).unwrap(), Some(JobStatus::Pending));
    let report = queue.shutdown(harness.left()).unwrap();
    assert_eq!(report.interrupted, [], "nothing is under way");

    change_table(&harness, damaged, whole);
    let (queue, _) = harness.open(job_type());
    for id in [lost, waits] {
        harness.wait_for(&queue, id, JobStatus::Completed);
    }
}

/// The bug: a view in the place of a table, or a trigger, that never ends kept whoever opened the file for ever.
#[test]
fn a_file_with_code_of_its_own_is_refused() {
    const ENDLESS: &str = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n)";
    for (script, says) in [
        (
            format!(
                "ALTER TABLE meta RENAME TO data; CREATE VIEW meta AS {ENDLESS} SELECT 'file_id' AS key, i AS value FROM n WHERE i < 0"
            ),
            "has a view \"meta\"",
        ),
        (
            format!(
                "CREATE TRIGGER mine AFTER INSERT ON event BEGIN SELECT count(*) FROM ({ENDLESS} SELECT i FROM n); END"
            ),
            "has a trigger \"mine\"",
        ),
    ] {
        let harness = Harness::new();
        Client::open(harness.path())
            .unwrap()
            .enqueue("import", &Value::Null)
            .unwrap();
        meddle(&harness, &script);
        let error = Client::open(harness.path()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt);
        assert!(error.to_string().contains(says), "{error}");
    }
}

/// Callers whose operations share commits with one that fails half-way: 4 good ones beside 2 bad ones, 20 rounds each.
#[test]
fn an_operation_that_fails_halfway_takes_no_other_along_and_leaves_nothing() {
    let harness = Harness::new();
    let builder = harness.builder().workers(0);
    // Commits that take their time, so that operations meet in one.
    let queue = builder
        .durability(stepwell::Durability::Full)
        .open()
        .unwrap();
    meddle(
        &harness,
        "INSERT INTO job_type (id, name, plan_id, paused) VALUES (77, 'damaged', 99, 0)",
    );
    let job = |name: &str| NewJob::new(name, &Value::Null).unwrap();
    std::thread::scope(|scope| {
        for caller in 0..6 {
            let queue = &queue;
            scope.spawn(move || {
                for _ in 0..20 {
                    if caller < 4 {
                        queue.enqueue_job(job("good")).unwrap();
                    } else {
                        let both = queue.enqueue_all(vec![job("half"), job("damaged")]);
                        assert_eq!(both.unwrap_err().kind(), ErrorKind::Corrupt);
                    }
                }
            });
        }
    });
    let all = queue.list(&ListFilter::new().limit(1000)).unwrap().jobs;
    assert_eq!(all.len(), 80);
    assert!(all.iter().all(|job| &*job.job_type == "good"), "{all:?}");
    assert!(queue.health().is_good());
}

//! A damaged row stops what concerns it, and nothing else.

use serde_json::Value;
use stepwell::{Client, ErrorKind, JobStatus, JobType, Phase};

use crate::support::Harness;

const ONE: Phase<Value> = Phase::new("one");

/// Writes into the file behind the queue's back.
fn meddle(harness: &Harness, sql: &str) {
    let file = rusqlite::Connection::open(harness.path()).unwrap();
    file.execute_batch(sql).unwrap();
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
    meddle(
        &harness,
        "CREATE TRIGGER damaged BEFORE INSERT ON phase BEGIN SELECT RAISE(ABORT, 'damaged'); END",
    );
    let lost = jobs.enqueue(&Value::Null).unwrap();
    harness.until("health is not good", || !queue.health().is_good());
    let failure = queue.health().store_failure.unwrap_or_default();
    let says = format!("job {lost}: its outcome cannot be recorded: ");
    assert!(failure.starts_with(&says), "{failure}");
    let waits = jobs.enqueue(&Value::Null).unwrap();
    assert_eq!(queue.status(waits).unwrap(), Some(JobStatus::Pending));
    let report = queue.shutdown(harness.left()).unwrap();
    assert_eq!(report.interrupted, [], "nothing is under way");

    meddle(&harness, "DROP TRIGGER damaged");
    let (queue, _) = harness.open(job_type());
    for id in [lost, waits] {
        harness.wait_for(&queue, id, JobStatus::Completed);
    }
}

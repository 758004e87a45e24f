//! Files that are no queue of ours, or not any more: an error that says so, and nothing is changed.

use std::time::Duration;

use serde_json::{Value, json};
use stepwell::{Client, ErrorKind, JobId, JobQueue, JobStatus, JobType, ListFilter};

use crate::support::{Harness, ONE, assert_refused, closed};

fn plain(name: &str) -> JobType<Value, Value> {
    JobType::<Value>::new(name).phase(ONE, |cx| Ok(cx.input().clone()))
}

/// What both kinds of openers answer.
#[track_caller]
fn refused_file(harness: &Harness, kind: ErrorKind, says: &str) {
    assert_refused(harness.builder().open(), kind, says);
    assert_refused(Client::open(harness.path()), kind, says);
}

#[test]
fn a_directory_is_no_file() {
    let harness = Harness::new();
    std::fs::create_dir(harness.path()).unwrap();
    let says = "jobs.db: is a directory: name a file in it";
    refused_file(&harness, ErrorKind::InvalidConfig, says);
}

#[test]
fn a_directory_that_is_missing_is_not_made() {
    let harness = Harness::new();
    let path = harness.file("missing/jobs.db");
    let mut says = "jobs.db: its directory cannot be opened: create it first: No such file";
    if cfg!(windows) {
        // It has words of its own for that.
        says = "jobs.db: its directory cannot be opened: create it first: ";
    }
    assert_refused(
        JobQueue::builder(&path).open(),
        ErrorKind::InvalidConfig,
        says,
    );
    assert_refused(Client::open(&path), ErrorKind::InvalidConfig, says);
    assert!(!harness.file("missing").exists());
    for path in ["/", ".."] {
        let opened = JobQueue::builder(path).open();
        assert_refused(opened, ErrorKind::InvalidConfig, "is a directory");
    }
}

/// `/proc` is a directory in which nobody can make a file, root included.
#[cfg(target_os = "linux")]
#[test]
fn a_directory_that_cannot_be_written_is_named() {
    let path = "/proc/jobs.db";
    assert_refused(
        JobQueue::builder(path).open(),
        ErrorKind::Storage,
        "/proc/jobs.db-owner: cannot be opened: check the permissions of its directory",
    );
    assert_refused(
        Client::open(path),
        ErrorKind::Storage,
        "/proc/jobs.db: the file cannot be created: check the permissions of its directory",
    );
}

#[test]
fn a_file_that_is_no_database_is_left_as_it_is() {
    let harness = Harness::new();
    let text = "Dear diary, ".repeat(1000);
    std::fs::write(harness.path(), &text).unwrap();
    let says = "jobs.db: cannot be opened: it is no SQLite file, name another one";
    refused_file(&harness, ErrorKind::InvalidConfig, says);
    assert_eq!(std::fs::read_to_string(harness.path()).unwrap(), text);
}

#[test]
fn a_database_of_another_program_is_left_as_it_is() {
    for script in [
        "CREATE TABLE notes (text)",
        "PRAGMA user_version = 3",
        "PRAGMA application_id = 252006674",
    ] {
        let harness = Harness::new();
        let conn = rusqlite::Connection::open(harness.path()).unwrap();
        conn.execute_batch(script).unwrap();
        drop(conn);
        let before = std::fs::read(harness.path()).unwrap();
        let says = "jobs.db: is an SQLite file of another program: name a file of its own";
        refused_file(&harness, ErrorKind::InvalidConfig, says);
        assert_eq!(std::fs::read(harness.path()).unwrap(), before, "{script}");
    }
}

#[test]
fn a_file_of_a_newer_version_is_refused() {
    let harness = Harness::new();
    drop(harness.client());
    let conn = rusqlite::Connection::open(harness.path()).unwrap();
    conn.execute_batch("PRAGMA user_version = 99").unwrap();
    drop(conn);
    let says =
        "jobs.db: was written by a newer stepwell (schema 99, this one knows 1): use that version";
    refused_file(&harness, ErrorKind::InvalidConfig, says);
}

#[test]
fn a_value_that_was_never_written_by_us_is_named() {
    let harness = Harness::new();
    let queue = harness.open_without_workers();
    let id = queue.enqueue("plain", &1).unwrap();
    let conn = rusqlite::Connection::open(harness.path()).unwrap();
    for (script, says) in [
        ("UPDATE job SET attempt = -7", "job, row 1: column attempt"),
        (
            "PRAGMA ignore_check_constraints = ON; UPDATE job SET attempt = 0, status = 9",
            "job, row 1: column status has the value 9, which stepwell never writes",
        ),
    ] {
        conn.execute_batch(script).unwrap();
        assert_refused(queue.get(id), ErrorKind::Corrupt, says);
        let cancelled = queue.cancel(id);
        assert_refused(cancelled, ErrorKind::Corrupt, says);
    }
    // The rest of the file is as good as before.
    let other = queue.enqueue("plain", &2).unwrap();
    assert!(queue.get(other).unwrap().is_some());
}

/// Each page but the first overwritten in turn: an answer or an error, no panic, and no hang that `health` does not explain.
#[test]
fn a_damaged_file_is_an_error_and_no_panic() {
    let harness = Harness::new();
    let (queue, jobs) = harness.open(plain("plain"));
    for n in 0..30 {
        harness.run_one(&queue, &jobs, &json!("x".repeat(n * 100)));
    }
    queue.shutdown(harness.left()).unwrap();
    let good = std::fs::read(harness.path()).unwrap();
    let mut refused = 0;
    for page in 1..good.len() / 4096 {
        let mut bad = good.clone();
        bad[page * 4096..][..4096].fill(0xA5);
        std::fs::write(harness.path(), &bad).unwrap();
        if let Err(error) = use_damaged(&harness) {
            let expected = [ErrorKind::Corrupt, ErrorKind::Storage];
            assert!(expected.contains(&error.kind()), "page {page}: {error:?}");
            refused += 1;
        }
    }
    assert!(refused > 0);
}

fn use_damaged(harness: &Harness) -> stepwell::Result<()> {
    let mut builder = harness.builder();
    builder.register(plain("plain"));
    let queue = builder.open()?;
    let used = use_queue(harness, &queue);
    // However it went, and however long it takes: the next one needs the file.
    queue.shutdown(Duration::from_millis(500)).ok();
    closed(&queue);
    used
}

fn use_queue(harness: &Harness, queue: &JobQueue) -> stepwell::Result<()> {
    let id = queue.enqueue("plain", &1)?;
    harness.until("it ran, or there is a reason why not", || {
        let is_over = queue
            .status(id)
            .is_ok_and(|status| status == Some(JobStatus::Completed));
        is_over || !queue.health().is_good()
    });
    assert_eq!(queue.health().poisoned, None);
    for id in 1..=30 {
        queue.get(JobId::from_i64(id))?;
    }
    queue.list(&ListFilter::new())?;
    queue.events_after(0, 1000)?;
    queue.check()?;
    Ok(())
}

#[cfg(unix)]
#[test]
fn the_files_of_a_queue_are_private() {
    use std::os::unix::fs::PermissionsExt;
    let harness = Harness::new();
    let queue = harness.open_without_workers();
    queue.enqueue("plain", &1).unwrap();
    for suffix in ["", "-wal", "-shm", "-owner", "-wake", "-reserve"] {
        let path = harness.file(&format!("jobs.db{suffix}"));
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{}", path.display());
    }
}

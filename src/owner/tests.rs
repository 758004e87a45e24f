//! Tests of the lock, the evidence and the wake-up.

use super::*;
use crate::job::JobId;
use crate::sync::{spawn, unbounded};

fn inside(job: i64) -> Inside {
    Inside {
        job_id: JobId::from_i64(job),
        epoch: 3,
        phase_index: 1,
        since: Timestamp::from_millis(77),
        has_returned: false,
    }
}

fn at(ms: i64) -> Timestamp {
    Timestamp::from_millis(ms)
}

/// An owner that has begun and whose worker 2 is inside job 9.
fn busy_owner(db: &Path) -> Owner {
    let (owner, _) = Owner::acquire(db, at(5)).unwrap();
    owner.begin().unwrap();
    owner.recorder().enter(2, inside(9));
    owner
}

#[test]
fn a_second_owner_is_refused_with_the_pid_of_the_first() {
    let dir = tempfile::tempdir().unwrap();
    let db = dir.path().join("jobs.db");
    let owner = busy_owner(&db);
    let error = Owner::acquire(&db, at(6)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Locked);
    let says = format!("process {} runs jobs on this file", std::process::id());
    assert!(error.to_string().contains(&says), "{error}");
    let pid = Some(std::process::id());
    assert_eq!(running_owner(&db), Some(RunningOwner { pid }));
    owner.release();
    assert_eq!(running_owner(&db), None);
    let (_, predecessor) = Owner::acquire(&db, at(7)).unwrap();
    assert_eq!(predecessor.end, PredecessorEnd::Closed);
    assert_eq!(predecessor.inside, [inside(9)], "cut off, and told so");
}

/// The bug: whoever held the lock without a pid that can be read, as on Windows everybody did, was told to be process 0.
#[test]
fn an_owner_whose_pid_cannot_be_read_is_one_without_a_name() {
    let dir = tempfile::tempdir().unwrap();
    let db = dir.path().join("jobs.db");
    std::fs::write(pid_path(&db), "no number").unwrap();
    let path = beside(&db, "-owner");
    let held = open(&path).unwrap();
    held.lock().unwrap();
    assert_eq!(running_owner(&db), Some(RunningOwner { pid: None }));
    let error = Owner::acquire(&db, at(6)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Locked);
    let says = "another process runs jobs on this file";
    assert!(error.to_string().contains(says), "{error}");
}

#[test]
fn evidence_survives_a_crash_in_the_recovery_and_ends_with_begin() {
    let dir = tempfile::tempdir().unwrap();
    let db = dir.path().join("jobs.db");
    assert_eq!(
        Owner::acquire(&db, at(1)).unwrap().1.end,
        PredecessorEnd::None
    );
    drop(busy_owner(&db));
    for _ in 0..3 {
        // Each of these dies after it has the lock, before its recovery is committed.
        let (_, predecessor) = Owner::acquire(&db, at(6)).unwrap();
        assert_eq!(predecessor.end, PredecessorEnd::ProcessDied);
        assert_eq!(predecessor.inside, [inside(9)]);
    }
    let (owner, _) = Owner::acquire(&db, at(6)).unwrap();
    owner.begin().unwrap();
    drop(owner);
    let (_, predecessor) = Owner::acquire(&db, at(6)).unwrap();
    assert_eq!(
        (predecessor.end, predecessor.inside),
        (PredecessorEnd::ProcessDied, vec![])
    );
}

/// It was wiped, and nobody heard of a phase whose outcome was not on disk yet.
#[test]
fn a_worker_that_has_left_says_what_it_was_inside_of_last() {
    let dir = tempfile::tempdir().unwrap();
    let db = dir.path().join("jobs.db");
    let owner = busy_owner(&db);
    let recorder = owner.recorder();
    recorder.enter(0, inside(4));
    recorder.returned(2);
    // One that never was inside of anything.
    recorder.returned(1);
    // Both hold the descriptor, and so the lock.
    drop((owner, recorder));
    let left = Inside {
        has_returned: true,
        ..inside(9)
    };
    let (owner, predecessor) = Owner::acquire(&db, at(6)).unwrap();
    assert_eq!(predecessor.inside, [inside(4), left]);
    // Whoever is inside next has not returned.
    owner.begin().unwrap();
    let recorder = owner.recorder();
    recorder.enter(2, inside(5));
    recorder.returned(2);
    recorder.enter(2, inside(6));
    drop((owner, recorder));
    assert_eq!(Owner::acquire(&db, at(6)).unwrap().1.inside, [inside(6)]);
}

#[test]
fn after_a_restart_of_the_machine_nothing_is_believed() {
    let dir = tempfile::tempdir().unwrap();
    let db = dir.path().join("jobs.db");
    drop(busy_owner(&db));
    let (_, predecessor) = Owner::acquire_in_boot(&db, "another boot", at(6)).unwrap();
    assert_eq!(
        (predecessor.end, predecessor.inside),
        (PredecessorEnd::MachineWentDown, vec![])
    );
}

/// What a power cut leaves when the header of the owner that was running had not reached the disk: that of the one before, which had
/// ended well.
#[test]
fn a_header_of_an_earlier_boot_that_says_closed_is_not_believed() {
    let dir = tempfile::tempdir().unwrap();
    let db = dir.path().join("jobs.db");
    let (owner, _) = Owner::acquire(&db, at(1)).unwrap();
    owner.begin().unwrap();
    owner.release();
    let (_, predecessor) = Owner::acquire_in_boot(&db, "another boot", at(6)).unwrap();
    assert_eq!(predecessor.end, PredecessorEnd::MachineWentDown);
    assert_eq!(
        Owner::acquire(&db, at(6)).unwrap().1.end,
        PredecessorEnd::Closed
    );
}

#[test]
fn a_torn_or_foreign_file_is_no_evidence() {
    let dir = tempfile::tempdir().unwrap();
    let db = dir.path().join("jobs.db");
    drop(busy_owner(&db));
    let path = beside(&db, "-owner");
    let good = std::fs::read(&path).unwrap();
    for cut in [0, 10, 64, 100, 191, 192, 250, good.len() - 1] {
        std::fs::write(&path, &good[..cut]).unwrap();
        assert!(
            Owner::acquire(&db, at(6)).unwrap().1.inside.is_empty(),
            "cut at {cut}"
        );
    }
    for byte in 192 + 128..192 + 128 + 48 {
        let mut bad = good.clone();
        bad[byte] ^= 1;
        std::fs::write(&path, &bad).unwrap();
        assert!(
            Owner::acquire(&db, at(6)).unwrap().1.inside.is_empty(),
            "byte {byte}"
        );
    }
    std::fs::write(&path, [0xA5; 4096]).unwrap();
    assert_eq!(
        Owner::acquire(&db, at(6)).unwrap().1.end,
        PredecessorEnd::None
    );
}

#[cfg(unix)]
#[test]
fn the_files_beside_are_private() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let db = dir.path().join("jobs.db");
    let _owner = busy_owner(&db);
    let _listener = WakeListener::bind(&db);
    for suffix in ["-owner", "-wake"] {
        let mode = std::fs::metadata(beside(&db, suffix))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600, "{suffix}");
    }
}

/// Rings, and sees the wait end; also for a path that is longer than a socket's name can be.
#[test]
fn a_ring_wakes_the_owner_and_a_stop_ends_it() {
    for directory in ["short".to_owned(), "long".repeat(50)] {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join(&directory)).unwrap();
        let db = dir.path().join(&directory).join("jobs.db");
        let listener = WakeListener::bind(&db);
        let bell = listener.bell().unwrap();
        let (tx, rx) = unbounded();
        let thread = spawn("listener", move || {
            loop {
                let wake = listener.wait();
                tx.send(wake).unwrap();
                if wake == Wake::Stopped {
                    return;
                }
            }
        })
        .unwrap();
        let wait = Duration::from_secs(20);
        #[cfg(unix)]
        {
            ring(&db);
            assert_eq!(rx.recv_timeout(wait), Ok(Wake::Rung));
            for _ in 0..10_000 {
                ring(&db);
            }
            // Somebody cleans up too much: the stop must reach it all the same.
            std::fs::remove_file(beside(&db, "-wake")).unwrap();
            ring(&db);
        }
        bell.stop();
        while rx.recv_timeout(wait).unwrap() == Wake::Rung {}
        thread.join().unwrap();
    }
}

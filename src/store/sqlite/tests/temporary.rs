//! SQLite's own temporary files: none. Test code, for systems that tell which files a process has open.

use std::ffi::OsStr;

use super::*;
use crate::config::{Keep, Retention};
use crate::store::ops::{Claimed, Prune};

const JOBS: usize = 512;

/// SQLite's temporary files that this process has open. They have lost their name, or never had one and are known by their number.
fn open_now() -> usize {
    let open = fs::read_dir("/proc/self/fd").expect("this system has it");
    let path = |entry: std::io::Result<fs::DirEntry>| fs::read_link(entry.ok()?.path()).ok();
    let is_temporary = |path: &PathBuf| {
        let name = path.file_name().and_then(OsStr::to_str);
        name.is_some_and(|name| name.starts_with("etilqs_") || name.starts_with('#'))
    };
    open.filter_map(path).filter(is_temporary).count()
}

/// One commit, and how many temporary files it has open at its end.
fn files_of(
    store: &mut SqliteStore,
    ops: &[Op],
    request: &ClaimRequest,
) -> (seam::Committed, usize) {
    let (now, mut done) = (Timestamp::from_millis(1_800_000_000_000), None);
    let outcome = store.transact(&mut |rows| {
        let committed = seam::run(rows, ops, request, now, 1)?;
        // Writes what was put off.
        rows.recount()?;
        done = Some((committed, open_now()));
        Ok(())
    });
    outcome.expect("a commit");
    done.expect("it was run")
}

/// The most temporary files that a commit has open: one of many outcomes, and a step of retention.
fn most_files(store: &mut SqliteStore) -> usize {
    let planned = |_| PlannedJob {
        job: NewJob::new("import", &"x".repeat(200)).expect("JSON"),
        plan: Some([crate::job::PhaseName::new("load")].into()),
    };
    let request = ClaimRequest {
        room: JOBS,
        bytes_max: usize::MAX,
        ..request()
    };
    let enqueue = Op::Enqueue((0..JOBS).map(planned).collect());
    let (committed, created) = files_of(store, &[enqueue], &request);
    let done = |claimed: &Claimed| {
        let (epoch, edge) = (claimed.row.epoch, Edge::GoOn);
        let input = Input::PhaseCompleted { epoch, edge };
        Op::Settle(Settle::void(&claimed.row, input))
    };
    let ops: Vec<Op> = committed.claims.claimed.iter().map(done).collect();
    assert_eq!(ops.len(), JOBS);
    let nobody = ClaimRequest::default();
    let (_, settled) = files_of(store, &ops, &nobody);
    let prune = Op::Prune(Prune {
        retention: Retention::forever().completed(Keep::newest(0)),
        jobs_max: JOBS,
        events_max: 9,
    });
    let (_, pruned) = files_of(store, &[prune], &nobody);
    created.max(settled).max(pruned)
}

/// The bug: what a statement or a savepoint may have to take back went to a file in `/var/tmp` or `/tmp` beyond 64 KiB. Where that
/// is read-only or full, outcomes could not be recorded and nothing be deleted, with "disk I/O error", for ever.
#[test]
fn no_commit_needs_a_temporary_file() {
    let scene = Scene::new();
    let mut store = scene.open().expect("a new file");
    assert_eq!(most_files(&mut store), 0);
    // Is this test able to see one?
    let conn = store.conn.as_ref().expect("it is open");
    conn.execute_batch("PRAGMA temp_store = FILE").expect("SQL");
    assert!(most_files(&mut store) > 0);
}

#[test]
fn no_connection_makes_temporary_files() {
    let scene = Scene::new();
    drop(scene.open().expect("a new file"));
    let connections = [
        open::writer(&scene.path(), Durability::Full),
        open::reader(&scene.path()),
    ];
    for conn in connections {
        let kept = conn.and_then(|conn| rows::number(&conn, "PRAGMA temp_store", &[]));
        assert_eq!(kept.expect("a number"), Some(2), "in memory");
    }
}

//! What is true of the file alone: which plans SQLite makes (`plans`), which files are refused, and what a damaged row is answered
//! with. Test code; what every backend must do is in `conformance`.

mod damage;
mod plans;
#[cfg(target_os = "linux")]
mod temporary;

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use rusqlite::Connection;

use super::*;
use crate::error::Error;
use crate::job::{ErrorCause, JobId};
use crate::new_job::NewJob;
use crate::store::ops::{ClaimRequest, Claimable, Fault, Op, PlannedJob, Settle};
use crate::store::{Filter, seam};
use crate::time::Timestamp;
use crate::transition::{Edge, Input, Tries, Verdict};

struct Scene {
    dir: tempfile::TempDir,
}

impl Scene {
    fn new() -> Scene {
        let dir = tempfile::tempdir().expect("a temporary directory");
        Scene { dir }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("jobs.db")
    }

    fn open(&self) -> Result<SqliteStore> {
        SqliteStore::open(&self.path(), Durability::Full)
    }

    /// A connection of another program.
    fn raw(&self) -> Connection {
        Connection::open(self.path()).expect("SQLite opens what SQLite wrote")
    }

    /// The error that opening the file ends in.
    fn refusal(&self) -> (ErrorKind, String) {
        let error = self.open().err().expect("this file is to be refused");
        let text = error.to_string();
        (
            error.kind(),
            text.replace(&self.path().display().to_string(), "FILE"),
        )
    }
}

fn commit(store: &mut SqliteStore, ops: &[Op], request: &ClaimRequest) -> Result<seam::Committed> {
    let (now, mut committed) = (Timestamp::from_millis(1_800_000_000_000), None);
    let outcome = store.transact(&mut |rows| {
        committed = Some(seam::run(rows, ops, request, now, 1)?);
        Ok(())
    });
    match outcome {
        Ok(()) => Ok(committed.expect("it was run")),
        Err(Failure::NothingDone(error) | Failure::Unknown(error)) => Err(error),
    }
}

/// The bug: it updated a row to what it was, for which SQLite writes nothing. A full disk looked as if it worked again.
#[test]
fn a_probe_really_writes() {
    let scene = Scene::new();
    let mut store = scene.open().expect("a new file");
    let log = scene.dir.path().join("jobs.db-wal");
    let size = || fs::metadata(&log).expect("it is open").len();
    let before = size();
    commit(&mut store, &[Op::Probe], &ClaimRequest::default()).expect("there is space");
    assert!(size() > before, "{before} bytes, as before");
}

/// Whoever is told acts on it; so it must not get lost with a transaction that comes to nothing.
#[test]
fn what_another_connection_has_committed_is_told_once() {
    let scene = Scene::new();
    let mut store = scene.open().expect("a new file");
    let mut other = scene.open().expect("a second connection");
    let has_news = |store: &mut SqliteStore| {
        let probed = commit(store, &[Op::Probe], &ClaimRequest::default());
        probed.expect("there is space").has_news
    };
    assert!(has_news(&mut store), "nobody knows what it has missed");
    assert!(!has_news(&mut store), "its own are none");
    assert!(has_news(&mut other));
    let rolled_back = store.transact(&mut |rows| {
        assert!(rows.has_news());
        Err(Error::closed())
    });
    assert!(rolled_back.is_err());
    store.transact(&mut |_| Ok(())).expect("it does not ask");
    assert!(has_news(&mut store));
    assert!(!has_news(&mut store));
    store.reopen().expect("it is there");
    assert!(has_news(&mut store), "perhaps something between the two");
}

/// A file with one pending job (1) that has a result, an error and a checkpoint.
fn furnished(scene: &Scene) -> SqliteStore {
    let mut store = scene.open().expect("a new file");
    let plan: crate::event::Plan = ["fetch", "load"]
        .map(crate::job::PhaseName::new)
        .into_iter()
        .collect();
    let job = NewJob::new("import", &serde_json::json!({"a": 1})).expect("JSON");
    let planned = PlannedJob {
        job,
        plan: Some(plan.clone()),
    };
    let request = request();
    let row = |committed: seam::Committed| committed.claims.claimed[0].row;
    let claimed = commit(&mut store, &[Op::Enqueue(vec![planned])], &request);
    let row = row(claimed.expect("a commit"));
    let settle = |phase_index, input, error| {
        Op::Settle(Settle {
            phase_index,
            result: Some(format!("{phase_index}")),
            error,
            ..Settle::void(&row, input)
        })
    };
    let save = Op::Save {
        id: row.id,
        epoch: 1,
        phase_index: 1,
        json: "7".to_owned(),
    };
    let done = Input::PhaseCompleted {
        epoch: 1,
        edge: Edge::GoOn,
    };
    let failed = Input::PhaseFailed {
        epoch: 1,
        verdict: Verdict::Retry {
            tries: Tries::OfJob { max: 9 },
            delay: Duration::from_secs(60),
        },
    };
    let fault = Fault {
        cause: ErrorCause::Error,
        message: "boom".to_owned(),
        backtrace: None,
    };
    let ops = [settle(0, done, None), save, settle(1, failed, Some(fault))];
    let committed = commit(&mut store, &ops, &ClaimRequest::default()).expect("a commit");
    assert!(committed.answers.iter().all(Result::is_ok));
    store
}

fn request() -> ClaimRequest {
    ClaimRequest {
        room: 9,
        bytes_max: 1000,
        types: Arc::new([Claimable {
            type_id: 1,
            job_type: "import".into(),
            plan: None,
            concurrency: None,
        }]),
        from_backlog: true,
        plans_max: 9,
        ..ClaimRequest::default()
    }
}

/// A file with a job under way, and all that the store has in mind of it.
fn with_a_claim(scene: &Scene) -> SqliteStore {
    let mut store = scene.open().expect("a new file");
    let planned = PlannedJob {
        job: NewJob::new("import", &1).expect("JSON"),
        plan: Some([crate::job::PhaseName::new("load")].into()),
    };
    let committed = commit(&mut store, &[Op::Enqueue(vec![planned])], &request());
    assert_eq!(committed.expect("a commit").claims.claimed.len(), 1);
    store
}

/// The epoch of job 1, whether its type is paused, and how many jobs are pending.
fn beliefs(rows: &mut dyn Rows) -> Result<(i64, bool, i64)> {
    let job = rows.job(JobId::from_i64(1))?.expect("it is there");
    let job_type = rows.job_type(&"import".into())?;
    Ok((job.epoch, job_type.paused, rows.head()?.counts[0]))
}

#[test]
fn what_another_connection_has_written_is_seen_at_once() {
    let scene = Scene::new();
    let mut store = with_a_claim(&scene);
    let mut seen = Vec::new();
    for change in [
        "",
        "UPDATE job SET epoch = 7",
        "UPDATE job_type SET paused = 1",
        "UPDATE event SET head = replace(head, '1 0 1', '1 5 1') WHERE head IS NOT NULL",
    ] {
        scene.raw().execute_batch(change).expect("SQL");
        let looked = store.transact(&mut |rows| {
            seen.push(beliefs(rows)?);
            Ok(())
        });
        assert!(looked.is_ok());
    }
    let expected = [(1, false, 0), (7, false, 0), (7, true, 0), (7, true, 5)];
    assert_eq!(seen, expected);
}

#[test]
fn what_was_rolled_back_is_not_believed() {
    let scene = Scene::new();
    let mut store = with_a_claim(&scene);
    let failed = store.transact(&mut |rows| {
        let before = rows.job(JobId::from_i64(1))?.expect("it is there");
        let after = crate::transition::JobRow { epoch: 7, ..before };
        assert!(rows.update_job(&before, &after)?);
        let mut job_type = rows.job_type(&"import".into())?;
        job_type.paused = true;
        rows.set_job_type(&job_type)?;
        assert_eq!(beliefs(rows)?, (7, true, 0));
        Err(Error::closed())
    });
    assert!(matches!(failed, Err(Failure::NothingDone(_))));
    let looked = store.transact(&mut |rows| {
        assert_eq!(beliefs(rows)?, (1, false, 0));
        Ok(())
    });
    assert!(looked.is_ok());
}

#[test]
fn the_file_of_another_program_is_refused_and_left_as_it_is() {
    let scene = Scene::new();
    scene
        .raw()
        .execute_batch("CREATE TABLE t (x); INSERT INTO t VALUES (1);")
        .expect("SQL");
    let before = fs::read(scene.path()).expect("a file");
    let expected = "FILE: is an SQLite file of another program: name a file of its own".to_owned();
    assert_eq!(
        scene.refusal(),
        (ErrorKind::InvalidConfig, expected.clone())
    );
    assert_eq!(fs::read(scene.path()).expect("a file"), before);
    assert!(!scene.dir.path().join("jobs.db-wal").exists());
    // An empty one that somebody has marked is not ours either.
    fs::remove_file(scene.path()).expect("removed");
    scene
        .raw()
        .execute_batch("PRAGMA application_id = 7; VACUUM;")
        .expect("SQL");
    assert_eq!(scene.refusal(), (ErrorKind::InvalidConfig, expected));
}

#[test]
fn the_file_of_a_newer_version_is_refused() {
    let scene = Scene::new();
    drop(scene.open().expect("a new file"));
    scene
        .raw()
        .execute_batch("PRAGMA user_version = 99")
        .expect("SQL");
    let expected =
        "FILE: was written by a newer stepwell (schema 99, this one knows 1): use that version";
    assert_eq!(
        scene.refusal(),
        (ErrorKind::InvalidConfig, expected.to_owned())
    );
}

#[test]
fn a_file_that_is_no_database_is_refused_and_an_empty_one_is_taken() {
    let scene = Scene::new();
    for size in [20, 512, 5000] {
        let garbage: Vec<u8> = b"no database at all. "
            .iter()
            .copied()
            .cycle()
            .take(size)
            .collect();
        fs::write(scene.path(), &garbage).expect("written");
        let (kind, message) = scene.refusal();
        assert_eq!(kind, ErrorKind::InvalidConfig, "{size}: {message}");
        assert!(
            message.contains("it is no SQLite file, name another one"),
            "{message}"
        );
        assert_eq!(fs::read(scene.path()).expect("a file"), garbage);
    }
    fs::write(scene.path(), b"").expect("written");
    drop(scene.open().expect("an empty file is a new one"));
}

#[test]
fn a_directory_is_refused_and_so_is_a_file_in_none() {
    let scene = Scene::new();
    let refusal = |path: PathBuf| {
        let error: Error = canonical(&path).expect_err("no path of a file");
        let text = error.to_string();
        (
            error.kind(),
            text.replace(&scene.dir.path().display().to_string(), "DIR"),
        )
    };
    let expected = "DIR: is a directory: name a file in it".to_owned();
    assert_eq!(
        refusal(scene.dir.path().to_owned()),
        (ErrorKind::InvalidConfig, expected)
    );
    let (kind, message) = refusal(scene.dir.path().join("none/jobs.db"));
    assert_eq!(kind, ErrorKind::InvalidConfig);
    let expected = "DIR/none/jobs.db: its directory cannot be opened: create it first";
    assert!(message.starts_with(expected), "{message}");
    let error = SqliteStore::open(scene.dir.path(), Durability::Full).err();
    assert_eq!(error.map(|error| error.kind()), Some(ErrorKind::Storage));
}

#[cfg(unix)]
#[test]
fn all_three_files_are_for_their_owner_alone() {
    use std::os::unix::fs::PermissionsExt;
    let scene = Scene::new();
    let _store = furnished(&scene);
    for name in ["jobs.db", "jobs.db-wal", "jobs.db-shm"] {
        let metadata = fs::metadata(scene.dir.path().join(name)).expect(name);
        assert_eq!(metadata.permissions().mode() & 0o777, 0o600, "{name}");
    }
}

#[test]
fn wal_and_durability_are_really_on() {
    for (durability, level) in [(Durability::Full, 2), (Durability::Normal, 1)] {
        let scene = Scene::new();
        let writer = open::writer(&scene.path(), durability).expect("a new file");
        let text = |pragma| writer.query_row(pragma, [], |row| row.get::<_, String>(0));
        assert_eq!(text("PRAGMA journal_mode").expect("read"), "wal");
        let number = |pragma| writer.query_row(pragma, [], |row| row.get::<_, i64>(0));
        assert_eq!(number("PRAGMA synchronous").expect("read"), level);
        let other = scene.raw();
        let mode = other.query_row("PRAGMA journal_mode", [], |row| row.get::<_, String>(0));
        assert_eq!(
            mode.expect("read"),
            "wal",
            "for every program that opens it"
        );
    }
}

#[test]
fn a_reader_cannot_write() {
    let scene = Scene::new();
    let _store = furnished(&scene);
    let reader = open::reader(&scene.path()).expect("a reader");
    assert!(reader.execute("DELETE FROM job", []).is_err());
}

#[test]
fn what_was_committed_is_there_when_the_file_is_opened_again() {
    let scene = Scene::new();
    let store = furnished(&scene);
    let (reader, id) = (store.reader(), JobId::from_i64(1));
    let (job, file_id) = (
        reader.job(id).expect("read"),
        reader.file_id().expect("read"),
    );
    drop((store, reader));
    let mut store = scene.open().expect("the same file");
    let reader = store.reader();
    assert_eq!(reader.job(id).expect("read"), job);
    assert_eq!(reader.file_id().expect("read"), file_id);
    assert_eq!(file_id.len(), 12);
    store.checkpoint().expect("nobody reads");
    let wal = fs::metadata(scene.dir.path().join("jobs.db-wal")).expect("a log");
    assert_eq!(wal.len(), 0);
    store.reopen().expect("opened anew");
    assert_eq!(reader.job(id).expect("read"), job, "readers go on");
}

#[test]
fn a_damaged_row_is_named_by_table_row_and_column() {
    let cases = [
        ("UPDATE job SET status = 9", "job", "status", "9"),
        ("UPDATE job SET attempt = -1", "job", "attempt", "-1"),
        (
            "UPDATE job SET phase_index = 1 << 40",
            "job",
            "phase_index",
            "1099511627776",
        ),
        ("UPDATE job SET input = '{'", "job", "input", "{"),
        (
            "UPDATE job SET input = NULL",
            "payload",
            "job_id",
            "of no row",
        ),
        ("UPDATE plan SET phases = '[1]'", "plan", "phases", "[1]"),
        ("DELETE FROM plan", "plan", "id", "of no row"),
        ("DELETE FROM job_type", "job_type", "id", "of no row"),
        (
            "UPDATE job_error SET cause = 'x'",
            "job_error",
            "cause",
            "x",
        ),
        (
            "UPDATE job_error SET attempt = -2",
            "job_error",
            "attempt",
            "-2",
        ),
        ("UPDATE phase SET attempt = -3", "phase", "attempt", "-3"),
    ];
    for (sql, table, column, value) in cases {
        let problem = damaged(sql, |reader| reader.job(JobId::from_i64(1)).map(|_| ()));
        assert!(
            problem.starts_with(&format!("table {table}, row ")),
            "{sql}: {problem}"
        );
        let end = format!(": column {column} has the value {value}, which stepwell never writes");
        assert!(problem.ends_with(&end), "{sql}: {problem}");
    }
    let cases = [
        ("UPDATE event SET change = 99", "change", "99"),
        ("UPDATE event SET data = '['", "data", "["),
        ("UPDATE event SET attempt = -4", "attempt", "-4"),
        ("UPDATE event SET phase_index = -5", "phase_index", "-5"),
    ];
    for (sql, column, value) in cases {
        let problem = damaged(sql, |reader| reader.changes_after(0, 9).map(|_| ()));
        let expected = format!(
            "table event, row 1: column {column} has the value {value}, which stepwell never writes"
        );
        assert_eq!(problem, expected, "{sql}");
    }
    let problem = damaged("UPDATE event SET head = '1 2'", |reader| {
        reader.head().map(|_| ())
    });
    assert!(
        problem.contains(r#"column head has the value "1 2""#),
        "{problem}"
    );
    let list = |reader: &dyn Reader| reader.list(&Filter::default(), None, 9).map(|_| ());
    let problem = damaged("UPDATE job SET crash_count = -1", list);
    assert!(
        problem.contains("column crash_count has the value -1"),
        "{problem}"
    );
}

/// Damages a furnished file, and answers what looking at it says.
fn damaged(sql: &str, look: impl Fn(&dyn Reader) -> Result<()>) -> String {
    let scene = Scene::new();
    let store = furnished(&scene);
    let raw = scene.raw();
    raw.execute_batch("PRAGMA ignore_check_constraints = ON")
        .expect("SQL");
    assert!(raw.execute(sql, []).expect("SQL") > 0, "{sql}");
    let error = look(&*store.reader()).expect_err(sql);
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{sql}: {error}");
    error.to_string()
}

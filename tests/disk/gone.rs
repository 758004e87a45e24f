//! Somebody deletes or replaces the file, or changes its permissions, while a queue has it open.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use stepwell::{Client, Error, ErrorKind, JobQueue, JobType, Phase};

use crate::Alone;

const ONLY: Phase<Value> = Phase::new("only");
const LONG: Duration = Duration::from_secs(20);

fn open(path: &Path) -> JobQueue {
    let mut builder = JobQueue::builder(path).workers(2);
    builder.register(JobType::<Value>::new("quick").phase(ONLY, |_| Ok(json!(1))));
    builder.open().expect("the queue can be opened")
}

fn run_one(queue: &JobQueue) -> Result<(), Error> {
    let id = queue.enqueue("quick", &Value::Null)?;
    queue.wait(id, LONG)?;
    Ok(())
}

/// What is written into a file without a name is gone when it is closed: nobody may be told that it is safe.
fn assert_refused(queue: &JobQueue) {
    for _ in 0..3 {
        let error = queue
            .enqueue("quick", &Value::Null)
            .expect_err("the file is gone");
        assert_eq!(error.kind(), ErrorKind::Storage, "{error}");
        assert!(error.to_string().contains("deleted or replaced"), "{error}");
    }
    let started = Instant::now();
    queue.shutdown(Duration::from_millis(300)).ok();
    assert!(started.elapsed() < Duration::from_millis(800));
}

#[test]
fn a_deleted_file_is_noticed_and_not_made_anew() {
    let alone = Alone::new();
    let dir = tempfile::tempdir().expect("a directory can be made");
    let path = dir.path().join("jobs.db");
    let queue = open(&path);
    run_one(&queue).expect("it works");
    for name in ["jobs.db", "jobs.db-wal", "jobs.db-shm"] {
        std::fs::remove_file(dir.path().join(name)).expect("it is there");
    }
    assert_refused(&queue);
    assert!(
        !path.exists(),
        "an empty file in its place would hide the loss"
    );
    assert_eq!(alone.panics(), 0);
}

/// The bug: a caller who came while another one was being told waited until the pause was over, up to 5 s.
#[test]
fn no_caller_waits_for_the_pause_after_a_failure() {
    let _alone = Alone::new();
    let dir = tempfile::tempdir().expect("a directory can be made");
    let path = dir.path().join("jobs.db");
    let queue = open(&path);
    run_one(&queue).expect("it works");
    std::fs::rename(&path, dir.path().join("elsewhere")).expect("it is there");
    let until = Instant::now() + Duration::from_secs(4);
    let slowest = std::thread::scope(|scope| {
        let callers: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    let mut slowest = Duration::ZERO;
                    while Instant::now() < until {
                        let started = Instant::now();
                        let refused = queue.enqueue("quick", &Value::Null);
                        refused.expect_err("the file is gone");
                        slowest = slowest.max(started.elapsed());
                    }
                    slowest
                })
            })
            .collect();
        let slowest = callers.into_iter().map(|caller| caller.join());
        slowest.map(|one| one.expect("no caller panics")).max()
    });
    assert!(slowest < Some(Duration::from_millis(500)), "{slowest:?}");
    std::fs::rename(dir.path().join("elsewhere"), &path).expect("it is there");
    run_one(&queue).expect("it works again");
}

#[test]
fn a_replaced_file_is_noticed() {
    let alone = Alone::new();
    let dir = tempfile::tempdir().expect("a directory can be made");
    let (path, other) = (dir.path().join("jobs.db"), dir.path().join("other.db"));
    let queue = open(&path);
    run_one(&queue).expect("it works");
    drop(Client::open(&other).expect("another file can be made"));
    std::fs::rename(&other, &path).expect("it can be renamed");
    assert_refused(&queue);
    assert_eq!(alone.panics(), 0);
}

/// Names the directory in which [`without_permissions`] is to work: root may do everything, so it is another user's process.
const PLACE: &str = "STEPWELL_DISK_PLACE";
/// On every system somebody without rights.
const NOBODY: u32 = 65_534;

/// A queue keeps what it has open; who comes later is told what is wrong.
#[test]
fn a_queue_goes_on_when_permissions_are_taken_away_and_newcomers_get_typed_errors() {
    use std::os::unix::fs::{MetadataExt, chown};
    use std::os::unix::process::CommandExt;
    if let Some(place) = std::env::var_os(PLACE) {
        return without_permissions(Path::new(&place));
    }
    let dir = tempfile::tempdir().expect("a directory can be made");
    let is_root = dir.path().metadata().expect("it is there").uid() == 0;
    if !is_root {
        return without_permissions(dir.path());
    }
    // Where this program lies nobody else may come.
    let own = dir.path().join("test");
    std::fs::copy(std::env::current_exe().expect("it has a path"), &own).expect("room for it");
    chown(dir.path(), Some(NOBODY), Some(NOBODY)).expect("root may do everything");
    let test =
        "gone::a_queue_goes_on_when_permissions_are_taken_away_and_newcomers_get_typed_errors";
    let output = Command::new(&own)
        .args(["--exact", test, "--nocapture"])
        .env(PLACE, dir.path())
        .current_dir(dir.path())
        .uid(NOBODY)
        .gid(NOBODY)
        .output()
        .expect("a process can be started");
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {said}", output.status);
    assert!(said.contains("1 passed"), "{said}");
}

fn without_permissions(dir: &Path) {
    use std::os::unix::fs::PermissionsExt;
    let alone = Alone::new();
    let path = dir.join("jobs.db");
    let queue = open(&path);
    run_one(&queue).expect("it works");
    let set = |path: &Path, mode| {
        let mode = std::fs::Permissions::from_mode(mode);
        std::fs::set_permissions(path, mode).expect("it is ours");
    };
    set(&path, 0o000);
    set(dir, 0o500);
    for _ in 0..3 {
        run_one(&queue).expect("what is open stays open");
        let error = Client::open(&path).expect_err("nobody may open the file");
        assert_eq!(error.kind(), ErrorKind::Storage, "{error}");
        assert!(error.to_string().contains("permission"), "{error}");
    }
    set(dir, 0o700);
    set(&path, 0o600);
    run_one(&queue).expect("it works again");
    drop(Client::open(&path).expect("it can be opened again"));
    queue.shutdown(LONG).expect("nothing is under way");
    assert_eq!(alone.panics(), 0);
}

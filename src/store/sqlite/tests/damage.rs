//! Damaged rows: what is read of them, and what is written all the same. Test code.

use super::*;
use crate::config::{Keep, Retention};
use crate::event::Seq;
use crate::new_job::While;
use crate::store::Done;
use crate::store::ops::{Claimed, Prune, Pruned};

/// Changes a file as only another program could.
fn damage(scene: &Scene, sql: &str) {
    let raw = scene.raw();
    raw.execute_batch("PRAGMA ignore_check_constraints = ON")
        .expect("SQL");
    assert!(raw.execute(sql, []).expect("SQL") > 0, "{sql}");
}

/// One step of retention.
fn prune(store: &mut SqliteStore, retention: Retention) -> Result<Pruned> {
    prune_by(store, retention, 9)
}

fn prune_by(store: &mut SqliteStore, retention: Retention, jobs_max: usize) -> Result<Pruned> {
    let step = Op::Prune(Prune {
        retention,
        jobs_max,
        events_max: 9,
    });
    let mut committed = commit(store, std::slice::from_ref(&step), &ClaimRequest::default())?;
    let Done::Pruned(pruned) = committed.answers.remove(0)? else {
        panic!("{step:?}");
    };
    Ok(pruned)
}

/// Completes so many jobs, each with a unique key.
fn with_completed(scene: &Scene, jobs: usize) -> SqliteStore {
    let mut store = scene.open().expect("a new file");
    let planned = |n| PlannedJob {
        job: NewJob::new("import", &n)
            .expect("JSON")
            .unique_key(format!("k{n}"), While::Live),
        plan: Some([crate::job::PhaseName::new("load")].into()),
    };
    let enqueue = Op::Enqueue((1..=jobs).map(planned).collect());
    let committed = commit(&mut store, &[enqueue], &request()).expect("a commit");
    let done = |claimed: &Claimed| {
        let (epoch, edge) = (claimed.row.epoch, Edge::GoOn);
        let input = Input::PhaseCompleted { epoch, edge };
        Op::Settle(Settle::void(&claimed.row, input))
    };
    let ops: Vec<Op> = committed.claims.claimed.iter().map(done).collect();
    assert_eq!(ops.len(), jobs);
    commit(&mut store, &ops, &ClaimRequest::default()).expect("a commit");
    store
}

fn ids(scene: &Scene, sql: &str) -> Vec<i64> {
    let raw = scene.raw();
    let mut statement = raw.prepare(sql).expect("SQL");
    let ids = statement.query_map([], |row| row.get(0)).expect("rows");
    ids.map(|id| id.expect("a number")).collect()
}

fn seqs(scene: &Scene) -> Vec<Seq> {
    ids(scene, "SELECT seq FROM event ORDER BY seq")
}

/// Retention added it to the row's number: a panic, and where sums wrap around the deletion of a row that was to stay.
#[test]
fn a_row_of_the_log_that_stands_for_too_many_events_is_no_older_for_that() {
    let scene = Scene::new();
    let mut store = furnished(&scene);
    let whole = seqs(&scene);
    damage(
        &scene,
        "UPDATE event SET span = 9223372036854775807 WHERE seq = 1",
    );
    let newest = |count| Retention::forever().events(Keep::newest(count));
    assert_eq!(prune(&mut store, newest(1000)).expect("a step").events, 0);
    assert_eq!(seqs(&scene), whole);
    prune(&mut store, newest(1)).expect("a step");
    assert_eq!(
        seqs(&scene),
        whole[whole.len() - 1..],
        "by count it goes like the others"
    );
}

#[test]
fn an_oldest_event_with_an_impossible_number_is_named() {
    let problem = damaged("UPDATE event SET seq = -5 WHERE seq = 1", |reader| {
        reader.oldest_seq().map(|_| ())
    });
    let expected = "table event, row -5: column seq has the value -5, which stepwell never writes";
    assert_eq!(problem, expected);
}

/// The bug: one less than nothing was written, with a change that was sound, and nobody could open the file any more.
#[test]
fn counters_that_are_too_low_are_counted_anew() {
    let scene = Scene::new();
    let mut store = furnished(&scene);
    damage(
        &scene,
        "UPDATE event SET head = replace(head, '1 1 0 ', '1 0 0 ') WHERE head IS NOT NULL",
    );
    let cancel = Op::Cancel(JobId::from_i64(1));
    let committed = commit(&mut store, &[cancel], &ClaimRequest::default()).expect("a commit");
    assert!(committed.answers[0].is_ok(), "{:?}", committed.answers);
    drop(store);
    let reader = scene
        .open()
        .expect("the file is as good as before")
        .reader();
    assert_eq!(reader.head().expect("a head").counts, [0, 0, 0, 0, 1]);
}

/// What keeps job 2 from being deleted, and how many are as it must be found afterwards.
const STUCK: &[&str] = &[
    "UPDATE job SET attempt = -1 WHERE id = 2",
    // As a lost page of that table: the statements before it are done already.
    "CREATE TRIGGER t BEFORE DELETE ON phase WHEN old.id >> 8 = 2 BEGIN SELECT raise(ABORT, 'lost'); END",
];

/// The first one that could not be deleted kept all the others, the log, keys and deliveries from ever being deleted.
#[test]
fn a_job_that_cannot_be_deleted_keeps_nothing_else_from_it() {
    for stuck in STUCK {
        let scene = Scene::new();
        let mut store = with_completed(&scene, 3);
        let raw = scene.raw();
        raw.execute_batch(&format!("PRAGMA ignore_check_constraints = ON; {stuck}"))
            .expect("SQL");
        // A key that stands for nothing, and an old delivery of the job that cannot be read.
        raw.execute_batch(
            "INSERT INTO unique_key VALUES (1, 'old', 99, 2, 5), (1, 'a', 2, 0, 0);
            INSERT INTO delivery VALUES (257, 1, 2, 0, 'http://a', '{}', 1, 1, NULL, 1700000000000, 1700000000000, 200, NULL)",
        )
        .expect("SQL");
        let day = Duration::from_secs(86_400);
        let retention = Retention::forever()
            .completed(Keep::newest(0))
            .events(Keep::newest(1))
            .deliveries(day);
        let pruned = prune(&mut store, retention.clone()).expect("the others go");
        assert_eq!((pruned.jobs, pruned.deliveries), (2, 1), "{stuck}");
        assert!(pruned.events > 0 && pruned.more, "{stuck}: {pruned:?}");
        assert_eq!(ids(&scene, "SELECT id FROM job"), [2], "{stuck}");
        let keys = "SELECT job_id FROM unique_key ORDER BY job_id";
        assert_eq!(ids(&scene, keys), [2, 2], "{stuck}");
        // What the deletions have written is the newest row now. Then there is nothing left but to say what is wrong.
        let problem = std::iter::repeat_with(|| prune(&mut store, retention.clone()))
            .take(3)
            .find_map(Result::err);
        let problem = problem.expect("it is told");
        assert_eq!(problem.kind(), ErrorKind::Corrupt, "{stuck}: {problem}");
        assert_eq!(ids(&scene, keys), [2, 2], "{stuck}");
        let counts = store.reader().head().expect("a head").counts;
        assert_eq!(counts, [0, 0, 1, 0, 0], "{stuck}");
    }
}

/// The bug: what the first statements of a deletion had deleted stayed deleted, without an event, when a later one failed.
#[test]
fn a_deletion_that_fails_half_way_is_none() {
    let scene = Scene::new();
    let mut store = with_completed(&scene, 2);
    scene.raw().execute_batch(STUCK[1]).expect("SQL");
    let delete = Op::Delete(JobId::from_i64(2));
    let other = Op::SetPaused {
        job_type: None,
        paused: true,
    };
    let failed = commit(&mut store, &[other, delete], &ClaimRequest::default());
    assert_eq!(
        failed.err().map(|error| error.kind()),
        Some(ErrorKind::Corrupt)
    );
    let keys = "SELECT job_id FROM unique_key ORDER BY job_id";
    assert_eq!(ids(&scene, keys), [1, 2]);
    assert_eq!(ids(&scene, "SELECT id FROM job"), [1, 2]);
}

/// The bug: each step began with the oldest. A damaged plan keeps all of its jobs, and 128 of those kept everything else.
#[test]
fn more_jobs_than_a_step_takes_that_cannot_be_deleted_keep_no_other_from_it() {
    let forever = Retention::forever;
    for retention in [
        forever().completed(Keep::newest(0)),
        forever().completed(Keep::for_age(Duration::from_millis(1))),
    ] {
        let scene = Scene::new();
        let mut store = with_completed(&scene, 7);
        scene
            .raw()
            .execute_batch("UPDATE job SET finished_at_ms = 1700000000000")
            .expect("SQL");
        damage(&scene, "UPDATE job SET attempt = -1 WHERE id <= 5");
        let steps = |store: &mut SqliteStore| {
            let steps = (0..12).map(|_| prune_by(store, retention.clone(), 2));
            steps.filter(Result::is_err).count()
        };
        assert!(steps(&mut store) > 0, "it is told");
        assert_eq!(ids(&scene, "SELECT id FROM job"), [1, 2, 3, 4, 5]);
        damage(&scene, "UPDATE job SET attempt = 1");
        steps(&mut store);
        assert_eq!(ids(&scene, "SELECT id FROM job"), Vec::<i64>::new());
    }
}

/// A step that ends for its bytes has not seen the last of them.
#[test]
fn a_large_job_that_cannot_be_deleted_keeps_no_other_from_it() {
    let scene = Scene::new();
    let mut store = with_completed(&scene, 4);
    damage(
        &scene,
        "UPDATE phase SET result = printf('%.*c', 5000000, 'x')",
    );
    damage(&scene, "UPDATE job SET attempt = -1 WHERE id <= 2");
    let old = Retention::forever().completed(Keep::for_age(Duration::from_millis(1)));
    let raw = scene.raw();
    raw.execute_batch("UPDATE job SET finished_at_ms = 1700000000000")
        .expect("SQL");
    for _ in 0..6 {
        prune(&mut store, old.clone()).ok();
    }
    assert_eq!(ids(&scene, "SELECT id FROM job"), [1, 2]);
}

//! Damaged rows: what is read of them, and what is written all the same. Test code.

use super::*;
use crate::config::{Keep, Retention};
use crate::event::Seq;
use crate::store::Done;
use crate::store::ops::{Prune, Pruned};

/// Changes a file as only another program could.
fn damage(scene: &Scene, sql: &str) {
    let raw = scene.raw();
    raw.execute_batch("PRAGMA ignore_check_constraints = ON")
        .expect("SQL");
    assert!(raw.execute(sql, []).expect("SQL") > 0, "{sql}");
}

/// One step of retention.
fn prune(store: &mut SqliteStore, retention: Retention) -> Result<Pruned> {
    let step = Op::Prune(Prune {
        retention,
        jobs_max: 9,
        events_max: 9,
    });
    let mut committed = commit(store, &[step], &ClaimRequest::default())?;
    match committed.answers.remove(0)? {
        Done::Pruned(pruned) => Ok(pruned),
        other => panic!("{other:?}"),
    }
}

fn seqs(scene: &Scene) -> Vec<Seq> {
    let raw = scene.raw();
    let mut statement = raw
        .prepare("SELECT seq FROM event ORDER BY seq")
        .expect("SQL");
    let seqs = statement.query_map([], |row| row.get(0)).expect("rows");
    seqs.map(|seq| seq.expect("a number")).collect()
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

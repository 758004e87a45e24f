//! Runs: what happens to neighbours in one commit is one row of the log, and one statement. Test code.

use crate::config::{Keep, Retention};
use crate::event;
use crate::job::{BulkAction, JobId, JobStatus, RetryFrom};
use crate::store::Filter;
use crate::store::conformance::{Bench, MS, fault, new_job, settle};
use crate::store::ops::{Bulk, Chosen, ClaimRequest, Op, Prune, Settle};
use crate::store::seam::RUN_MAX;
use crate::transition::{Edge, Input, JobRow, Verdict};

/// Number, events and first job of each row behind `after`.
fn rows(bench: &Bench, after: i64) -> Vec<(i64, i64, i64)> {
    let changes = bench.reader.changes_after(after, usize::MAX);
    let row = |change: &event::LoggedChange| (change.seq, change.span, change.job_id.as_i64());
    changes.expect("a log").iter().map(row).collect()
}

fn claim(bench: &mut Bench) -> Vec<JobRow> {
    let claims = bench.claim();
    claims.claimed.iter().map(|claimed| claimed.row).collect()
}

/// The present phases of these claims are done, in one commit and in this order.
fn complete(bench: &mut Bench, jobs: &[JobRow]) {
    let done = |row: &JobRow| {
        let (epoch, edge) = (row.epoch, Edge::GoOn);
        let input = Input::PhaseCompleted { epoch, edge };
        let result = row.id.to_string();
        let outcome: Settle = settle(row, input, bench.now, Some(&result), None);
        Op::Settle(outcome)
    };
    let ops: Vec<Op> = jobs.iter().map(done).collect();
    let committed = bench.commit(&ops, &ClaimRequest::default());
    assert!(
        committed
            .expect("a commit")
            .answers
            .iter()
            .all(Result::is_ok)
    );
}

/// The events of one job, read by its own history, are those that the log has of it.
fn assert_history(bench: &Bench, id: i64) {
    let id = JobId::from_i64(id);
    let mut own = Vec::new();
    for change in bench.reader.changes_of(id, 99).expect("readable") {
        event::expand(&change, 0, &mut own);
    }
    let mut all = bench.events(0);
    all.retain(|event| event.job_id == id);
    assert_eq!(own, all, "job {id}");
}

pub(super) fn what_happens_to_neighbours_at_once_is_one_row(bench: &mut Bench) {
    bench.register("import", "fetch load");
    bench.enqueue_all(vec![new_job("import"); 5]); // 1-5
    let jobs = claim(bench);
    assert_eq!(rows(bench, 5), [(6, 10, 1)], "claimed");
    bench.later(MS);
    complete(bench, &jobs);
    assert_eq!(rows(bench, 15), [(16, 10, 1)], "advanced");
    let jobs: Vec<JobRow> = jobs.iter().map(|row| bench.row(row.id)).collect();
    bench.later(MS);
    complete(bench, &jobs[..3]);
    assert_eq!(rows(bench, 25), [(26, 6, 1)], "completed");
    let last: Vec<i64> = (1..=3)
        .map(|id| bench.row(JobId::from_i64(id)).last_seq)
        .collect();
    assert_eq!(last, [26, 28, 30]);
    for id in 1..=5 {
        assert_history(bench, id);
        let result = bench
            .reader
            .result(JobId::from_i64(id), 0)
            .expect("readable");
        assert_eq!(result, Some(id.to_string()), "each has its own result");
    }
    assert_eq!(
        bench.told(JobId::from_i64(2)),
        "created started phase:started(fetch) phase:completed(fetch) phase:started(load) \
         phase:completed(load) completed"
    );
    let step = Prune {
        retention: Retention::forever().completed(Keep::newest(0)),
        jobs_max: 99,
        events_max: 99,
    };
    bench.one(Op::Prune(step)).expect("a step");
    assert_eq!(rows(bench, 31), [(32, 3, 1)], "deleted");
}

pub(super) fn a_run_ends_where_the_next_job_differs(bench: &mut Bench) {
    bench.register("import", "fetch");
    bench.enqueue_all(vec![new_job("import"); 6]); // 1-6
    let jobs = claim(bench); // 7-18
    let [one, two, three, four, five, six] = jobs[..] else {
        panic!("{jobs:?}");
    };
    complete(bench, &[one, three, four, two]); // not next, next, an earlier one
    assert_eq!(rows(bench, 18), [(19, 2, 1), (21, 4, 3), (25, 2, 2)]);
    // What became of five differs from what becomes of six.
    let fails = Input::PhaseFailed {
        epoch: five.epoch,
        verdict: Verdict::Fail,
    };
    let error = Some(fault("boom"));
    let failed = settle(&five, fails, bench.now, None, error);
    let (epoch, edge) = (six.epoch, Edge::GoOn);
    let input = Input::PhaseCompleted { epoch, edge };
    let done = settle(&six, input, bench.now, Some("6"), None);
    let ops = [Op::Settle(failed), Op::Settle(done)];
    bench
        .commit(&ops, &ClaimRequest::default())
        .expect("a commit");
    assert_eq!(rows(bench, 26), [(27, 2, 5), (29, 2, 6)]);
    assert_eq!(bench.job(five.id).status, JobStatus::Failed);
    assert_eq!(bench.job(six.id).status, JobStatus::Completed);
    for id in 1..=6 {
        assert_history(bench, id);
    }
}

/// Two jobs whose changes before were far apart: no row could say where those of a third one are.
pub(super) fn a_run_is_of_jobs_that_were_neighbours_before(bench: &mut Bench) {
    bench.register("import", "fetch");
    bench.register("export", "fetch");
    bench.enqueue(new_job("import")); // 1
    bench.enqueue_all(vec![new_job("export"); 3]); // 2-4
    bench.cancel(JobId::from_i64(3)); // 5
    bench
        .one(Op::Retry(JobId::from_i64(3), RetryFrom::Failed))
        .expect("cancelled"); // 6
    claim(bench);
    assert_eq!(
        rows(bench, 6),
        [(7, 2, 1), (9, 2, 2), (11, 2, 3), (13, 2, 4)]
    );
    for id in 1..=4 {
        assert_history(bench, id);
    }
}

pub(super) fn a_row_of_the_log_has_a_limit(bench: &mut Bench) {
    bench.register("import", "fetch");
    let many = usize::try_from(RUN_MAX).expect("a thousand") + 7;
    bench.enqueue_all(vec![new_job("import"); many]);
    assert_eq!(
        rows(bench, 0),
        [(1, RUN_MAX, 1), (RUN_MAX + 1, 7, RUN_MAX + 1)]
    );
    assert_history(bench, RUN_MAX + 1);
}

/// One row of a deletion stands for many jobs: the check took a log that creates more jobs than it has rows for a damaged one.
pub(super) fn a_file_whose_jobs_were_deleted_together_is_sound(bench: &mut Bench) {
    bench.register("import", "fetch");
    bench.enqueue_all(vec![new_job("import"); 100]);
    let all = |action, status| {
        Op::Bulk(Bulk {
            action,
            jobs: Chosen::Found {
                filter: Filter {
                    status: Some(status),
                    job_type: None,
                },
                expect: None,
            },
        })
    };
    let cancel = all(BulkAction::Cancel, JobStatus::Pending);
    bench.one(cancel).expect("they wait");
    let delete = all(BulkAction::Delete, JobStatus::Cancelled);
    bench.one(delete).expect("they are over");
    // The bench has asked for a check after each commit.
    assert_eq!(rows(bench, 0), [(1, 100, 1), (101, 100, 1), (201, 100, 1)]);
}

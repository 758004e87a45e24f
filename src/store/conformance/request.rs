//! What a caller asks for: cancel, retry, delete, bulk, pause, plan. Test code.

use serde_json::json;

use crate::config::MESSAGE_BYTES_MAX;
use crate::error::ErrorKind;
use crate::event::EventKind;
use crate::job::{BulkAction, CancelOutcome, ErrorCause, JobId, JobStatus, PhaseStatus, RetryFrom};
use crate::store::conformance::refused;
use crate::store::conformance::{Bench, SECOND, START, ids, new_job, plan};
use crate::store::ops::{Bulk, Chosen, ClaimRequest, Op};
use crate::store::{Done, Filter};
use crate::transition::{Edge, Input, JobRow, Verdict};

fn cancel(bench: &mut Bench, id: i64) -> CancelOutcome {
    match bench.one(Op::Cancel(JobId::from_i64(id))) {
        Ok(Done::Cancelled(outcome)) => outcome,
        other => panic!("{other:?}"),
    }
}

pub(super) fn cancel_answers_what_it_found(bench: &mut Bench) {
    bench.register("import", "fetch load");
    let id = bench.enqueue(new_job("import"));
    assert_eq!(cancel(bench, 1), CancelOutcome::Cancelled);
    assert_eq!(bench.told(id), "created cancelled");
    let job = bench.job(id);
    assert_eq!(
        (job.status, job.finished_at),
        (JobStatus::Cancelled, Some(START))
    );
    assert!(
        job.phases
            .iter()
            .all(|phase| phase.status == PhaseStatus::Cancelled)
    );
    let again = CancelOutcome::AlreadyFinished(JobStatus::Cancelled);
    assert_eq!(cancel(bench, 1), again);
    let row = bench.start(new_job("import"));
    bench.fail(&row, Verdict::Fail);
    assert_eq!(
        cancel(bench, 2),
        CancelOutcome::AlreadyFinished(JobStatus::Failed)
    );
    assert_eq!(cancel(bench, 99), CancelOutcome::NotFound);
    assert_eq!(cancel(bench, -1), CancelOutcome::NotFound);
    assert_eq!(bench.told(id), "created cancelled", "one event");
}

pub(super) fn cancelling_a_running_job_fences_its_handler_off(bench: &mut Bench) {
    bench.register("import", "fetch load");
    let row = bench.start(new_job("import"));
    let next = bench.complete(&row, "1");
    bench.cancel(row.id);
    let job = bench.job(row.id);
    let statuses: Vec<_> = job.phases.iter().map(|phase| phase.status).collect();
    assert_eq!(statuses, [PhaseStatus::Completed, PhaseStatus::Cancelled]);
    let input = Input::PhaseCompleted {
        epoch: next.epoch,
        edge: Edge::GoOn,
    };
    assert_eq!(bench.settle(&next, input, Some("2"), None), None);
    assert_eq!(bench.job(row.id), job);
    // A job that was retried meanwhile is not the old handler's either.
    bench
        .one(Op::Retry(row.id, RetryFrom::Failed))
        .expect("cancelled");
    assert_eq!(bench.settle(&next, input, Some("2"), None), None);
    let again = bench.claim_one(row.id);
    assert_eq!(bench.settle(&next, input, Some("2"), None), None);
    assert_eq!(bench.complete(&again, "3").status, JobStatus::Completed);
}

/// A job of two phases that failed in the second one.
fn half_done(bench: &mut Bench) -> JobRow {
    bench.register("import", "fetch load");
    let row = bench.start(new_job("import"));
    let row = bench.complete(&row, r#"{ "z":1.0, "a" : "\u0041" }"#);
    let op = Op::Save {
        id: row.id,
        epoch: row.epoch,
        phase_index: 1,
        json: "7".to_owned(),
    };
    bench.one(op).expect("saved");
    bench.fail(&row, Verdict::Fail)
}

pub(super) fn retry_from_failed_keeps_results_byte_for_byte(bench: &mut Bench) {
    let failed = half_done(bench);
    bench.later(SECOND);
    let answer = bench
        .one(Op::Retry(failed.id, RetryFrom::Failed))
        .expect("it failed");
    let Done::Changed(rows) = answer else {
        panic!("{answer:?}")
    };
    assert_eq!(rows, [bench.row(failed.id)]);
    let row = rows[0];
    assert_eq!(
        (row.status, row.attempt, row.phase_index),
        (JobStatus::Pending, 0, 1)
    );
    assert_eq!(
        (row.run_at, row.finished_at, row.started_at),
        (bench.now, None, None)
    );
    let stored = bench.reader.result(row.id, 0).expect("readable");
    assert_eq!(stored.as_deref(), Some(r#"{ "z":1.0, "a" : "\u0041" }"#));
    let expected = json!({"reason": "requested", "from": "failed"});
    assert_eq!(bench.data(row.id, EventKind::Retrying), expected);
    let row = bench.claim_one(row.id);
    assert_eq!((row.attempt, row.phase_index, row.phase_attempt), (1, 1, 1));
    assert_eq!(bench.complete(&row, "2").status, JobStatus::Completed);
    assert_eq!(bench.job(row.id).errors.len(), 1, "the history stays");
}

pub(super) fn retry_from_start_forgets_results_and_checkpoints(bench: &mut Bench) {
    let failed = half_done(bench);
    bench
        .one(Op::Retry(failed.id, RetryFrom::Start))
        .expect("it failed");
    for index in 0..2 {
        assert_eq!(
            bench.reader.result(failed.id, index).expect("readable"),
            None
        );
        assert_eq!(
            bench.reader.checkpoint(failed.id, index).expect("readable"),
            None
        );
    }
    let job = bench.job(failed.id);
    assert_eq!(
        (job.phases_done, job.phases[0].status),
        (0, PhaseStatus::Pending)
    );
    let expected = json!({"reason": "requested", "from": "start"});
    assert_eq!(bench.data(failed.id, EventKind::Retrying), expected);
    assert_eq!(bench.claim_one(failed.id).phase_index, 0);
}

pub(super) fn retry_is_refused_unless_failed_or_cancelled(bench: &mut Bench) {
    bench.register("import", "fetch");
    let id = bench.enqueue(new_job("import"));
    let says = |status: &str| {
        let problem = format!("job 1 is {status}: only failed and cancelled jobs can be retried");
        (ErrorKind::Conflict, problem)
    };
    let retry = |bench: &mut Bench| refused(bench.one(Op::Retry(id, RetryFrom::Failed)));
    assert_eq!(retry(bench), says("pending"));
    let row = bench.claim_one(id);
    assert_eq!(retry(bench), says("running"));
    bench.complete(&row, "1");
    assert_eq!(retry(bench), says("completed"));
    let missing = bench.one(Op::Retry(JobId::from_i64(9), RetryFrom::Start));
    let expected = (
        ErrorKind::NotFound,
        "job 9: there is no such job".to_owned(),
    );
    assert_eq!(refused(missing), expected);
    let cancelled = bench.enqueue(new_job("import"));
    bench.cancel(cancelled);
    bench
        .one(Op::Retry(cancelled, RetryFrom::Failed))
        .expect("cancelled");
    // Of two retries one wins.
    let second = bench.one(Op::Retry(cancelled, RetryFrom::Failed));
    assert_eq!(refused(second).0, ErrorKind::Conflict);
    assert_eq!(bench.told(cancelled), "created cancelled retrying");
}

pub(super) fn retry_gives_a_passed_deadline_its_time_again(bench: &mut Bench) {
    bench.register("import", "fetch");
    let row = bench.start(new_job("import").deadline(10 * SECOND));
    bench.fail(&row, Verdict::Fail);
    bench.later(4 * SECOND);
    bench
        .one(Op::Retry(row.id, RetryFrom::Failed))
        .expect("it failed");
    assert_eq!(
        bench.job(row.id).deadline,
        Some(START.after(10 * SECOND)),
        "not passed yet"
    );
    bench.cancel(row.id);
    bench.later(100 * SECOND);
    bench
        .one(Op::Retry(row.id, RetryFrom::Failed))
        .expect("cancelled");
    assert_eq!(
        bench.job(row.id).deadline,
        Some(bench.now.after(10 * SECOND))
    );
    assert_eq!(bench.claim_one(row.id).attempt, 1);
}

pub(super) fn delete_takes_everything_but_the_log(bench: &mut Bench) {
    let failed = half_done(bench);
    let id = failed.id;
    let events = bench.events(0);
    let answer = bench.one(Op::Delete(id)).expect("it is over");
    assert!(matches!(answer, Done::Changed(rows) if rows[0].id == id));
    assert_eq!(bench.find(id), None);
    assert_eq!(bench.reader.status(id).expect("readable"), None);
    assert_eq!(bench.reader.result(id, 0).expect("readable"), None);
    assert_eq!(bench.reader.checkpoint(id, 1).expect("readable"), None);
    assert!(bench.reader.changes_of(id, 9).expect("readable").is_empty());
    assert!(
        bench
            .reader
            .situation(id, bench.now)
            .expect("readable")
            .is_none()
    );
    let now = bench.events(0);
    assert_eq!(now[..events.len()], events[..], "what was told stays told");
    let last = serde_json::to_value(&now[events.len()]).expect("JSON");
    let (seq, at) = (bench.head.seq, bench.now);
    let expected = json!({"seq": seq, "event": "job:deleted", "job_id": id, "at": at,
        "deletedJobId": id, "reason": "requested"});
    assert_eq!(last, expected);
    assert_eq!(bench.head.counts, [0; 5]);
    assert_eq!(refused(bench.one(Op::Delete(id))).0, ErrorKind::NotFound);
    let live = bench.enqueue(new_job("import"));
    let expected =
        format!("job {live} is pending: only jobs that are over can be deleted: cancel it first");
    assert_eq!(
        refused(bench.one(Op::Delete(live))),
        (ErrorKind::Conflict, expected)
    );
}

fn bulk(action: BulkAction, status: JobStatus, expect: Option<usize>) -> Op {
    let filter = Filter {
        status: Some(status),
        job_type: None,
    };
    let jobs = Chosen::Found { filter, expect };
    Op::Bulk(Bulk { action, jobs })
}

pub(super) fn bulk_of_a_list_changes_those_that_allow_it(bench: &mut Bench) {
    bench.register("import", "fetch");
    let ids = bench.enqueue_all(vec![new_job("import"); 3]);
    let mut ids: Vec<JobId> = ids.iter().map(|new| new.id).collect();
    bench.cancel(ids[1]);
    // One of them twice, and one that is not there.
    ids.extend([ids[0], JobId::from_i64(99)]);
    let mut listed = |action| {
        let jobs = Chosen::Listed(ids.clone());
        match bench.one(Op::Bulk(Bulk { action, jobs })) {
            Ok(Done::Changed(rows)) => rows.iter().map(|row| row.id.as_i64()).collect(),
            other => panic!("{other:?}"),
        }
    };
    let changed: Vec<i64> = listed(BulkAction::Cancel);
    assert_eq!(changed, [1, 3]);
    assert_eq!(listed(BulkAction::Retry(RetryFrom::Start)), [1, 2, 3]);
    assert_eq!(listed(BulkAction::Delete), Vec::<i64>::new());
    assert_eq!(listed(BulkAction::Cancel), [1, 2, 3]);
    assert_eq!(listed(BulkAction::Delete), [1, 2, 3]);
    assert_eq!(bench.head.counts, [0; 5]);
}

pub(super) fn bulk_changes_all_or_none(bench: &mut Bench) {
    bench.register("import", "fetch");
    bench.enqueue_all(vec![new_job("import"); 3]);
    let head = bench.head;
    let wrong = bench.one(bulk(BulkAction::Cancel, JobStatus::Pending, Some(2)));
    let expected = "3 jobs are pending, not 2: look again, nothing was changed".to_owned();
    assert_eq!(refused(wrong), (ErrorKind::Conflict, expected));
    assert_eq!(bench.head, head);
    let changed = |answer| -> Vec<i64> {
        match answer {
            Ok(Done::Changed(rows)) => rows.iter().map(|row: &JobRow| row.id.as_i64()).collect(),
            other => panic!("{other:?}"),
        }
    };
    let answer = bench.one(bulk(BulkAction::Cancel, JobStatus::Pending, Some(3)));
    let ids = changed(answer);
    assert_eq!((ids, bench.head.counts), (vec![1, 2, 3], [0, 0, 0, 0, 3]));
    let answer = bench.one(bulk(
        BulkAction::Retry(RetryFrom::Failed),
        JobStatus::Cancelled,
        None,
    ));
    assert_eq!(
        (changed(answer).len(), bench.head.counts),
        (3, [3, 0, 0, 0, 0])
    );
    let head = bench.head;
    let wrong = bench.one(bulk(BulkAction::Delete, JobStatus::Pending, Some(3)));
    assert_eq!(refused(wrong).0, ErrorKind::Conflict);
    assert_eq!(bench.head, head);
    let nothing = bench.one(bulk(BulkAction::Delete, JobStatus::Failed, Some(0)));
    assert_eq!(changed(nothing), [0; 0]);
    bench
        .one(bulk(BulkAction::Cancel, JobStatus::Pending, None))
        .expect("cancelled");
    let answer = bench.one(bulk(BulkAction::Delete, JobStatus::Cancelled, Some(3)));
    assert_eq!((changed(answer).len(), bench.head.counts), (3, [0; 5]));
}

pub(super) fn bulk_selects_by_type_and_needs_a_status(bench: &mut Bench) {
    bench.register("import", "fetch");
    bench.register("export", "fetch");
    bench.enqueue_all(vec![
        new_job("import"),
        new_job("export"),
        new_job("import"),
    ]);
    bench.claim_with(&ClaimRequest {
        room: 1,
        ..bench.request()
    });
    let of_type = |status, job_type: &str| {
        let filter = Filter {
            status,
            job_type: Some(job_type.to_owned()),
        };
        Op::Bulk(Bulk {
            action: BulkAction::Cancel,
            jobs: Chosen::Found {
                filter,
                expect: None,
            },
        })
    };
    let without = bench.one(of_type(None, "import"));
    assert_eq!(refused(without).0, ErrorKind::InvalidJob);
    bench
        .one(of_type(Some(JobStatus::Running), "export"))
        .expect("none");
    bench
        .one(of_type(Some(JobStatus::Pending), "unheard.of"))
        .expect("none");
    assert_eq!(bench.head.counts, [2, 1, 0, 0, 0]);
    bench
        .one(of_type(Some(JobStatus::Pending), "import"))
        .expect("one");
    assert_eq!(bench.head.counts, [1, 1, 0, 0, 1]);
    bench
        .one(of_type(Some(JobStatus::Running), "import"))
        .expect("one");
    assert_eq!(bench.head.counts, [1, 0, 0, 0, 2]);
    assert_eq!(bench.job(JobId::from_i64(2)).status, JobStatus::Pending);
}

pub(super) fn pauses_are_stored_by_queue_and_type(bench: &mut Bench) {
    bench.register("import", "fetch");
    bench.register("export", "fetch");
    let id = bench.enqueue(new_job("import"));
    let mut pause = |job_type: Option<&str>, paused| {
        let job_type = job_type.map(Into::into);
        bench
            .one(Op::SetPaused { job_type, paused })
            .expect("stored");
        let (queue, types) = bench.reader.pauses().expect("readable");
        let types: Vec<String> = types.iter().map(|name| name.to_string()).collect();
        (queue, types.join(" "))
    };
    assert_eq!(pause(Some("import"), true), (false, "import".to_owned()));
    assert_eq!(
        pause(Some("export"), true),
        (false, "export import".to_owned())
    );
    assert_eq!(pause(None, true), (true, "export import".to_owned()));
    assert_eq!(pause(None, true), (true, "export import".to_owned()));
    assert_eq!(pause(Some("export"), false), (true, "import".to_owned()));
    let situation = bench
        .reader
        .situation(id, bench.now)
        .expect("readable")
        .expect("there");
    assert!(situation.queue_paused && situation.type_paused);
    // Registering anew, as a restart does, leaves a pause alone.
    bench.register("import", "fetch load");
    let (is_paused, paused_types) = bench.reader.pauses().expect("readable");
    assert!(is_paused && paused_types.iter().any(|name| &**name == "import"));
}

pub(super) fn a_planned_job_can_be_claimed_and_an_unplannable_one_fails(bench: &mut Bench) {
    bench.register_as("planned", None, None);
    bench.register("import", "a");
    let good = bench.enqueue(new_job("planned"));
    let bad = bench.enqueue(new_job("planned"));
    let plain = bench.enqueue(new_job("import"));
    // One plan at a time: the other waits, and keeps nobody of another type waiting.
    let claims = bench.claim_with(&ClaimRequest {
        plans_max: 1,
        ..bench.request()
    });
    assert_eq!((ids(&claims), claims.unplanned.len()), (vec![plain], 1));
    assert_eq!((claims.more, claims.is_full), (true, false));
    // Those that have a plan need none.
    let planned = new_job("planned").priority(9);
    let planned = bench.enqueue(planned.phases([crate::job::PhaseName::new("a")]));
    let claims = bench.claim_with(&ClaimRequest {
        plans_max: 0,
        room: 1,
        ..bench.request()
    });
    assert_eq!((ids(&claims), claims.unplanned.len()), (vec![planned], 0));
    assert_eq!((claims.more, claims.is_full), (true, false));
    let claims = bench.claim();
    assert_eq!(ids(&claims), []);
    let unplanned: Vec<_> = claims.unplanned.iter().map(|(id, ..)| *id).collect();
    assert_eq!(unplanned, [good, bad]);
    assert_eq!(
        (&*claims.unplanned[0].1, claims.unplanned[0].2.as_str()),
        ("planned", "{}")
    );
    let set = |id, plan| Op::SetPlan { id, plan };
    bench.one(set(good, Ok(plan("a b")))).expect("planned");
    let answer = bench
        .one(set(bad, Err("no such table".to_owned())))
        .expect("failed");
    let Done::Changed(rows) = answer else {
        panic!("{answer:?}")
    };
    assert_eq!(
        rows,
        [bench.row(bad)],
        "the answer is the row as it is stored"
    );
    let job = bench.job(bad);
    assert_eq!(
        (job.status, job.errors[0].kind),
        (JobStatus::Failed, ErrorCause::Decode)
    );
    assert_eq!(job.errors[0].message, "no such table");
    let expected = json!({"kind": "decode", "message": "no such table"});
    assert_eq!(bench.data(bad, EventKind::Failed), expected);
    let row = bench.claim_one(good);
    assert_eq!(row.phase_count, 2);
    // Whoever comes too late with a plan changes nothing.
    for id in [good, bad, JobId::from_i64(77)] {
        bench.one(set(id, Ok(plan("x")))).expect("ignored");
        bench.one(set(id, Err("late".to_owned()))).expect("ignored");
    }
    assert_eq!(bench.row(good), row);
}

/// Only what handlers say was cut to its limit: the error of a planner was stored, logged and sent whole.
pub(super) fn a_long_error_of_a_planner_is_kept_within_its_limit(bench: &mut Bench) {
    bench.register_as("planned", None, None);
    let id = bench.enqueue(new_job("planned"));
    let problem = "x".repeat(MESSAGE_BYTES_MAX + 1);
    let plan = Err(problem.clone());
    bench.one(Op::SetPlan { id, plan }).expect("failed");
    let message = &bench.job(id).errors[0].message;
    assert_eq!(*message, problem[1..]);
    assert_eq!(bench.data(id, EventKind::Failed)["message"], **message);
}

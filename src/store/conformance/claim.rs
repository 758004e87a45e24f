//! Claims: order, limits, and what a claim brings along. Test code.

use std::collections::HashSet;

use serde_json::json;

use crate::event::EventKind;
use crate::job::{ErrorCause, JobId, JobStatus, PhaseStatus};
use crate::new_job::NewJob;
use crate::store::conformance::{Bench, MS, SECOND, START, again, ids, new_job, plan, settle};
use crate::store::ops::{ClaimRequest, Claims, Op};
use crate::transition::{Edge, Input, JobRow};

fn numbers(claims: &Claims) -> Vec<i64> {
    ids(claims).iter().map(|id| id.as_i64()).collect()
}

pub(super) fn claims_go_by_priority_then_time_then_id_across_types(bench: &mut Bench) {
    bench.register("import", "fetch");
    bench.register("export", "fetch");
    bench.enqueue_all(vec![
        new_job("import").delay(3 * MS),             // 1
        new_job("export").delay(2 * MS),             // 2
        new_job("import").delay(2 * MS),             // 3
        new_job("export").priority(-1),              // 4
        new_job("import").priority(i32::MAX),        // 5
        new_job("export").priority(7).delay(3 * MS), // 6
        new_job("import").priority(i32::MIN),        // 7
        new_job("import").priority(7).delay(SECOND), // 8, not due
    ]);
    bench.later(5 * MS);
    let claims = bench.claim();
    assert_eq!(numbers(&claims), [5, 6, 2, 3, 1, 4, 7]);
    assert_eq!(
        (claims.more, claims.next_due),
        (false, Some(START.after(SECOND)))
    );
}

pub(super) fn a_claim_charges_an_attempt_and_carries_what_a_handler_needs(bench: &mut Bench) {
    bench.register("import", "fetch load");
    let id = bench.enqueue(NewJob::new("import", &json!({"a": 1})).expect("JSON"));
    bench.later(MS);
    let claims = bench.claim();
    let claimed = &claims.claimed[0];
    let row = claimed.row;
    assert_eq!(row, bench.row(id), "the claim has the row as it is stored");
    assert_eq!(
        (row.status, row.epoch, row.attempt),
        (JobStatus::Running, 1, 1)
    );
    assert_eq!(
        (row.started_at, row.phase_started_at),
        (Some(bench.now), Some(bench.now))
    );
    assert_eq!(
        (&*claimed.job_type, claimed.details.input.as_str()),
        ("import", r#"{"a":1}"#)
    );
    assert_eq!(claimed.plan, plan("fetch load"));
    assert!(claimed.details.last_error.is_none() && claimed.details.interruption.is_none());
    assert_eq!(bench.told(id), "created started phase:started(fetch)");
    let first = row.started_at;
    bench.fail(&row, again(5, MS));
    bench.later(MS);
    let claims = bench.claim();
    let claimed = &claims.claimed[0];
    assert_eq!((claimed.row.epoch, claimed.row.attempt), (2, 2));
    assert_eq!(claimed.row.started_at, first, "the series has begun before");
    let error = claimed
        .details
        .last_error
        .as_ref()
        .expect("the error of the first try");
    assert_eq!((error.message.as_str(), error.attempt), ("boom", 1));
}

pub(super) fn no_more_is_claimed_than_there_is_room_for(bench: &mut Bench) {
    bench.register("import", "fetch");
    bench.register("export", "fetch");
    bench.enqueue_all(vec![
        new_job("import"),
        new_job("export"),
        new_job("import"),
        new_job("export"),
    ]);
    let room = |room| ClaimRequest {
        room,
        ..bench.request()
    };
    let (none, three, ten) = (room(0), room(3), room(10));
    let claims = bench.claim_with(&none);
    assert_eq!(numbers(&claims), [0; 0]);
    let claims = bench.claim_with(&three);
    assert_eq!((numbers(&claims), claims.more), (vec![1, 2, 3], true));
    let claims = bench.claim_with(&ten);
    assert_eq!((numbers(&claims), claims.more), (vec![4], false));
    let claims = bench.claim_with(&ten);
    assert_eq!(
        (numbers(&claims), claims.more, claims.next_due),
        (vec![], false, None)
    );
}

pub(super) fn a_claim_that_ends_makes_room_in_the_same_commit(bench: &mut Bench) {
    bench.register("import", "fetch load");
    let fresh = bench.start(new_job("import"));
    let [one, two] = [(); 2].map(|()| {
        let row = bench.start(new_job("import"));
        bench.complete(&row, "1")
    });
    bench.enqueue_all(vec![new_job("import"); 9]);
    let done = |row: &JobRow| {
        let epoch = row.epoch;
        let edge = Edge::GoOn;
        let input = Input::PhaseCompleted { epoch, edge };
        Op::Settle(settle(row, input, START, Some("1"), None))
    };
    // One goes on to its next phase, two end, and one of those had been too many.
    let request = ClaimRequest {
        room: 0,
        excess: 1,
        ..bench.request()
    };
    let ops = [done(&fresh), done(&one), done(&two)];
    let committed = bench.commit(&ops, &request).expect("a commit");
    assert_eq!(numbers(&committed.claims), [4]);
    let request = ClaimRequest {
        from_backlog: false,
        ..request
    };
    let row = bench.row(fresh.id);
    let committed = bench.commit(&[done(&row)], &request).expect("a commit");
    assert_eq!(numbers(&committed.claims), [0; 0], "none was asked for");
}

pub(super) fn excluded_jobs_stay_and_do_not_count_as_more(bench: &mut Bench) {
    bench.register("import", "fetch");
    bench.enqueue_all(vec![new_job("import"); 4]);
    let exclude: HashSet<JobId> = [1, 2].map(JobId::from_i64).into();
    let request = |room| ClaimRequest {
        room,
        exclude: exclude.clone(),
        ..bench.request()
    };
    let (one, two) = (request(1), request(2));
    let claims = bench.claim_with(&one);
    assert_eq!((numbers(&claims), claims.more), (vec![3], true));
    let claims = bench.claim_with(&two);
    assert_eq!((numbers(&claims), claims.more), (vec![4], false));
    let claims = bench.claim_with(&two);
    assert_eq!((numbers(&claims), claims.more), (vec![], false));
    assert_eq!(numbers(&bench.claim()), [1, 2]);
}

pub(super) fn a_type_runs_no_more_jobs_than_its_limit(bench: &mut Bench) {
    bench.register_as("limited", Some(plan("fetch")), Some(2));
    bench.register("free", "fetch");
    bench.enqueue_all(vec![new_job("limited"); 4]);
    bench.enqueue_all(vec![new_job("free"); 2]);
    let claims = bench.claim();
    assert_eq!((numbers(&claims), claims.more), (vec![1, 2, 5, 6], true));
    let claims2 = bench.claim();
    assert_eq!((numbers(&claims2), claims2.more), (vec![], true));
    bench.complete(&claims.claimed[0].row, "1");
    assert_eq!(numbers(&bench.claim()), [3]);
}

/// A type at its limit had everybody sleep until one of its jobs ended: jobs of other types that came due meanwhile started
/// late. The claims now say when those are due, also while due jobs are left.
pub(super) fn a_type_at_its_limit_does_not_hide_when_the_next_job_is_due(bench: &mut Bench) {
    bench.register_as("limited", Some(plan("fetch")), Some(1));
    bench.register("free", "fetch");
    bench.enqueue_all(vec![
        new_job("limited"),
        new_job("limited"),
        new_job("free").delay(SECOND),
    ]);
    let claims = bench.claim();
    assert_eq!((numbers(&claims), claims.more), (vec![1], true));
    assert_eq!(claims.next_due, Some(START.after(SECOND)));
}

pub(super) fn large_inputs_end_a_round_of_claims(bench: &mut Bench) {
    bench.register("import", "fetch");
    let job = || NewJob::new("import", &"x".repeat(98)).expect("JSON");
    bench.enqueue_all(vec![job(), job(), job(), job()]);
    let request = ClaimRequest {
        bytes_max: 150,
        ..bench.request()
    };
    let claims = bench.claim_with(&request);
    assert_eq!((numbers(&claims), claims.more), (vec![1, 2], true));
    let claims = bench.claim_with(&request);
    assert_eq!((numbers(&claims), claims.more), (vec![3, 4], false));
}

pub(super) fn the_next_due_time_is_the_earliest_of_all_types_and_priorities(bench: &mut Bench) {
    bench.register("import", "fetch");
    bench.register("export", "fetch");
    bench.enqueue_all(vec![
        new_job("import").priority(9).delay(9 * SECOND),
        new_job("import").priority(-9).delay(5 * SECOND),
        new_job("import").delay(7 * SECOND),
        new_job("export").delay(6 * SECOND),
    ]);
    let claims = bench.claim();
    assert_eq!(
        (numbers(&claims), claims.next_due),
        (vec![], Some(START.after(5 * SECOND)))
    );
    bench.now = START.after(5 * SECOND);
    let claims = bench.claim();
    assert_eq!(
        (numbers(&claims), claims.next_due),
        (vec![2], Some(START.after(6 * SECOND)))
    );
}

pub(super) fn only_registered_types_are_claimed(bench: &mut Bench) {
    bench.register("import", "fetch");
    bench.enqueue_all(vec![new_job("other"), new_job("import")]);
    let claims = bench.claim();
    assert_eq!(
        (numbers(&claims), claims.more, claims.next_due),
        (vec![2], false, None)
    );
    let job = bench.job(JobId::from_i64(1));
    assert_eq!((job.status, job.attempt), (JobStatus::Pending, 0));
}

pub(super) fn a_job_past_its_deadline_fails_instead_of_starting(bench: &mut Bench) {
    bench.register("import", "fetch load");
    let id = bench.enqueue(new_job("import").deadline(SECOND));
    let other = bench.enqueue(new_job("import"));
    bench.later(SECOND);
    let request = ClaimRequest {
        room: 1,
        ..bench.request()
    };
    let claims = bench.claim_with(&request);
    assert_eq!(claims.ended, [(id, JobStatus::Failed)]);
    assert_eq!(ids(&claims), [other], "it takes nobody's place");
    let job = bench.job(id);
    assert_eq!(
        (job.status, job.attempt, job.finished_at),
        (JobStatus::Failed, 0, Some(bench.now))
    );
    assert_eq!(job.errors[0].kind, ErrorCause::Deadline);
    let statuses: Vec<_> = job.phases.iter().map(|phase| phase.status).collect();
    assert_eq!(statuses, [PhaseStatus::Skipped; 2]);
    assert_eq!(bench.told(id), "created failed");
    let data = bench.data(id, EventKind::Failed);
    assert_eq!(data["kind"], "deadline");
}

/// A job past its deadline was counted as if it were to run: a job of another type overtook the one behind it, and with a limit of
/// its type nobody looked at that one again.
pub(super) fn jobs_past_their_deadline_hide_nobody_behind_them(bench: &mut Bench) {
    bench.register("import", "fetch");
    bench.register_as("limited", Some(plan("fetch")), Some(1));
    bench.enqueue_all(vec![
        new_job("limited").deadline(SECOND),             // 1
        new_job("limited").deadline(SECOND),             // 2
        new_job("limited"),                              // 3
        new_job("import"),                               // 4
        new_job("import").priority(-1).deadline(SECOND), // 5
    ]);
    bench.later(SECOND);
    let request = ClaimRequest {
        room: 1,
        ..bench.request()
    };
    let claims = bench.claim_with(&request);
    let failed = |id| (JobId::from_i64(id), JobStatus::Failed);
    assert_eq!(numbers(&claims), [3]);
    assert_eq!(
        claims.ended,
        [failed(1), failed(2)],
        "its turn has not come"
    );
    let claims = bench.claim();
    assert_eq!((numbers(&claims), claims.more), (vec![4], false));
    assert_eq!(claims.ended, [failed(5)]);
}

pub(super) fn many_jobs_past_their_deadline_are_left_to_the_next_commit(bench: &mut Bench) {
    bench.register("import", "fetch");
    bench.enqueue_all(vec![new_job("import").deadline(SECOND); 50]);
    bench.enqueue(new_job("import"));
    bench.later(SECOND);
    let claims = bench.claim();
    assert!(claims.ended.len() < 50 && claims.claimed.is_empty());
    assert!(claims.more && claims.is_full, "somebody is to look again");
    let claims = bench.claim();
    assert_eq!((numbers(&claims), claims.more), (vec![51], false));
}

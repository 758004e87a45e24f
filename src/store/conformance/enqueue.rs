//! Enqueueing: ids, the log, keys, deadlines, plans and the direct hand-off. Test code.

use std::time::Duration;

use serde_json::json;

use crate::event::EventKind;
use crate::job::{JobId, JobStatus, PhaseName, RetryFrom};
use crate::new_job::{Enqueued, NewJob, While};
use crate::store::Done;
use crate::store::conformance::{Bench, SECOND, START, again, ids, new_job, plan};
use crate::store::ops::{ClaimRequest, Op, PlannedJob};
use crate::time::Timestamp;

pub(super) fn ids_rise_and_are_never_used_twice(bench: &mut Bench) {
    bench.register("import", "fetch");
    let numbers = |enqueued: Vec<Enqueued>| -> Vec<i64> {
        enqueued.iter().map(|one| one.id.as_i64()).collect()
    };
    assert_eq!(
        numbers(bench.enqueue_all(vec![new_job("import"); 3])),
        [1, 2, 3]
    );
    bench.cancel(JobId::from_i64(3));
    bench
        .one(Op::Delete(JobId::from_i64(3)))
        .expect("it is over");
    assert_eq!(numbers(bench.enqueue_all(vec![new_job("import")])), [4]);
}

pub(super) fn jobs_enqueued_together_are_one_change_with_an_event_each(bench: &mut Bench) {
    bench.register("import", "fetch");
    bench.enqueue_all(vec![new_job("import"); 3]);
    let changes = bench.reader.changes_after(0, 10).expect("a log");
    let told: Vec<_> = changes
        .iter()
        .map(|change| (change.seq, change.span))
        .collect();
    assert_eq!(told, [(1, 3)]);
    let events = bench.events(0);
    let told: Vec<_> = events
        .iter()
        .map(|event| (event.seq, event.job_id.as_i64(), event.kind))
        .collect();
    let created = EventKind::Created;
    assert_eq!(told, [(1, 1, created), (2, 2, created), (3, 3, created)]);
    assert_eq!(bench.row(JobId::from_i64(3)).last_seq, 3);
    // The same from two operations of one commit.
    let op = |job: NewJob| Op::Enqueue(vec![PlannedJob { job, plan: None }]);
    let ops = [op(new_job("import")), op(new_job("import"))];
    bench
        .commit(&ops, &ClaimRequest::default())
        .expect("enqueued");
    let changes = bench.reader.changes_after(3, 10).expect("a log");
    assert_eq!((changes.len(), changes[0].span), (1, 2));
}

pub(super) fn a_run_of_created_jobs_ends_where_type_or_data_differ(bench: &mut Bench) {
    bench.register("import", "fetch");
    bench.register("export", "fetch");
    bench.enqueue_all(vec![
        new_job("import"),
        new_job("import"),
        new_job("export"),
        new_job("export").priority(1),
        new_job("export")
            .priority(1)
            .phases([PhaseName::new("other")]),
    ]);
    let changes = bench.reader.changes_after(0, 10).expect("a log");
    let told: Vec<_> = changes
        .iter()
        .map(|change| (change.seq, change.span, &*change.job_type))
        .collect();
    let expected = [
        (1, 2, "import"),
        (3, 1, "export"),
        (4, 1, "export"),
        (5, 1, "export"),
    ];
    assert_eq!(told, expected);
    assert_eq!(&*changes[3].plan[0].name, "other");
}

pub(super) fn priority_and_start_are_stored_and_told(bench: &mut Bench) {
    bench.register("import", "fetch");
    let plain = bench.enqueue(new_job("import"));
    let input = json!({"url": "x", "n": [1, 2]});
    let later = NewJob::new("import", &input)
        .expect("JSON")
        .delay(SECOND)
        .priority(-3);
    let later = bench.enqueue(later);
    let past = bench.enqueue(new_job("import").run_at(Timestamp::from_millis(5)));
    assert_eq!(bench.data(plain, EventKind::Created), json!({}));
    let run_at = START.after(SECOND);
    assert_eq!(
        bench.data(later, EventKind::Created),
        json!({"priority": -3, "run_at": run_at})
    );
    let job = bench.job(later);
    assert_eq!(
        (job.priority, job.run_at, job.created_at),
        (-3, run_at, START)
    );
    assert_eq!((job.status, job.input.clone()), (JobStatus::Pending, input));
    assert_eq!(bench.job(past).run_at, START, "a time in the past is now");
}

pub(super) fn an_input_of_any_size_comes_back_as_it_was(bench: &mut Bench) {
    bench.register("import", "fetch");
    for size in [0, 1, 253, 254, 255, 256, 300, 200_000] {
        let input = "é".repeat(size / 2) + if size % 2 == 1 { "x" } else { "" };
        let job = NewJob::new("import", &input).expect("JSON");
        let stored = job.input.clone();
        let row = bench.start(job.unique_key("k", While::Live));
        assert_eq!(bench.job(row.id).input, json!(input));
        assert_eq!(bench.job(row.id).unique_key.as_deref(), Some("k"));
        bench.fail(&row, again(2, SECOND));
        bench.later(SECOND);
        let claims = bench.claim();
        assert_eq!(claims.claimed[0].details.input, stored, "{size}");
        bench.cancel(row.id);
        bench.one(Op::Delete(row.id)).expect("it is over");
    }
}

pub(super) fn a_deadline_counts_from_the_time_the_job_may_start(bench: &mut Bench) {
    bench.register("import", "fetch");
    let job = new_job("import").delay(10 * SECOND).deadline(SECOND);
    let id = bench.enqueue(job);
    assert_eq!(bench.job(id).deadline, Some(START.after(11 * SECOND)));
}

/// Enqueues with the key `k`; answers the id, and whether it is new.
fn keyed(bench: &mut Bench, job_type: &str, hold: While) -> (i64, bool) {
    let enqueued = bench.enqueue_all(vec![new_job(job_type).unique_key("k", hold)]);
    (enqueued[0].id.as_i64(), enqueued[0].is_new)
}

pub(super) fn a_key_held_while_queued_is_free_once_the_job_has_started(bench: &mut Bench) {
    bench.register("import", "fetch");
    assert_eq!(keyed(bench, "import", While::Queued), (1, true));
    assert_eq!(keyed(bench, "import", While::Queued), (1, false));
    assert_eq!(
        bench.job(JobId::from_i64(1)).unique_key.as_deref(),
        Some("k")
    );
    bench.claim();
    assert_eq!(keyed(bench, "import", While::Queued), (2, true));
}

pub(super) fn a_key_held_while_live_is_free_once_the_job_is_over(bench: &mut Bench) {
    bench.register("import", "fetch");
    assert_eq!(keyed(bench, "import", While::Live), (1, true));
    let row = bench.claim_one(JobId::from_i64(1));
    assert_eq!(keyed(bench, "import", While::Live), (1, false));
    bench.complete(&row, "1");
    assert_eq!(keyed(bench, "import", While::Live), (2, true));
    bench.cancel(JobId::from_i64(2));
    bench
        .one(Op::Delete(JobId::from_i64(2)))
        .expect("it is over");
    assert_eq!(keyed(bench, "import", While::Live), (3, true));
}

pub(super) fn a_key_held_for_a_time_outlives_its_job(bench: &mut Bench) {
    bench.register("import", "fetch");
    let hold = While::For(10 * SECOND);
    assert_eq!(keyed(bench, "import", hold), (1, true));
    bench.cancel(JobId::from_i64(1));
    bench
        .one(Op::Delete(JobId::from_i64(1)))
        .expect("it is over");
    bench.now = START.after(9 * SECOND);
    assert_eq!(keyed(bench, "import", hold), (1, false));
    assert!(bench.find(JobId::from_i64(1)).is_none());
    bench.now = START.after(10 * SECOND);
    assert_eq!(keyed(bench, "import", hold), (2, true));
}

pub(super) fn a_key_counts_for_one_type_only(bench: &mut Bench) {
    bench.register("import", "fetch");
    bench.register("export", "fetch");
    assert_eq!(keyed(bench, "import", While::Live), (1, true));
    assert_eq!(keyed(bench, "export", While::Live), (2, true));
}

pub(super) fn two_jobs_with_one_key_in_one_commit_are_one(bench: &mut Bench) {
    bench.register("import", "fetch");
    let job = || new_job("import").unique_key("k", While::Live);
    let enqueued = bench.enqueue_all(vec![job(), job(), new_job("import")]);
    let told: Vec<_> = enqueued
        .iter()
        .map(|one| (one.id.as_i64(), one.is_new))
        .collect();
    assert_eq!(told, [(1, true), (1, false), (2, true)]);
}

pub(super) fn a_job_that_nobody_planned_has_no_phases(bench: &mut Bench) {
    let id = bench.enqueue(new_job("unheard.of"));
    let job = bench.job(id);
    assert_eq!((&*job.job_type, job.phase_count), ("unheard.of", 0));
    assert_eq!(job.phases, []);
    assert_eq!(bench.told(id), "created");
}

pub(super) fn a_job_takes_the_plan_of_its_type_or_its_own(bench: &mut Bench) {
    bench.register("import", "fetch load:2");
    let of_type = bench.enqueue(new_job("import"));
    let own = bench.enqueue(new_job("import").phases([PhaseName::new("only")]));
    let phases = |id| -> Vec<(String, u32)> {
        let phases = bench.job(id).phases;
        phases
            .iter()
            .map(|phase| (phase.name.to_string(), phase.version))
            .collect()
    };
    assert_eq!(
        phases(of_type),
        [("fetch".to_owned(), 1), ("load".to_owned(), 2)]
    );
    assert_eq!(phases(own), [("only".to_owned(), 1)]);
}

fn enqueue_op(job: NewJob, phases: &str) -> Op {
    let plan = Some(plan(phases));
    Op::Enqueue(vec![PlannedJob { job, plan }])
}

pub(super) fn an_idle_worker_gets_a_new_job_with_its_commit(bench: &mut Bench) {
    bench.register("import", "fetch load");
    let request = ClaimRequest {
        room: 1,
        direct: true,
        from_backlog: false,
        ..bench.request()
    };
    let ops = [
        enqueue_op(new_job("import"), "fetch load"),
        enqueue_op(new_job("import"), "fetch load"),
    ];
    let claims = bench.commit(&ops, &request).expect("enqueued").claims;
    assert_eq!(ids(&claims), [JobId::from_i64(1)], "there is room for one");
    let claimed = &claims.claimed[0];
    let row = claimed.row;
    assert_eq!(
        (row.status, row.epoch, row.attempt),
        (JobStatus::Running, 1, 1)
    );
    assert_eq!(row, bench.row(row.id));
    assert_eq!(
        (claimed.details.input.as_str(), claimed.plan.len()),
        ("{}", 2)
    );
    assert_eq!(bench.told(row.id), "created started phase:started(fetch)");
    assert_eq!(bench.told(JobId::from_i64(2)), "created");
    // Such a claim is like any other.
    assert_eq!(bench.complete(&row, "1").phase_index, 1);
}

pub(super) fn a_new_job_is_not_handed_over_when_it_must_wait(bench: &mut Bench) {
    bench.register("import", "fetch");
    bench.register_as("limited", Some(plan("fetch")), Some(5));
    let request = ClaimRequest {
        direct: true,
        from_backlog: false,
        ..bench.request()
    };
    let ops = [
        enqueue_op(new_job("import").delay(SECOND), "fetch"),
        enqueue_op(new_job("limited"), "fetch"),
        enqueue_op(new_job("import"), "another"),
        enqueue_op(new_job("unknown"), "fetch"),
        Op::Enqueue(vec![PlannedJob {
            job: new_job("unplanned"),
            plan: None,
        }]),
        enqueue_op(new_job("import").deadline(Duration::ZERO), "fetch"),
    ];
    let committed = bench.commit(&ops, &request).expect("enqueued");
    assert_eq!(ids(&committed.claims), []);
    assert_eq!(committed.answers.len(), 6);
    assert!(
        committed
            .answers
            .iter()
            .all(|answer| matches!(answer, Ok(Done::Enqueued(_))))
    );
    assert_eq!(bench.head.counts, [6, 0, 0, 0, 0]);
}

/// What one commit hands over and another operation of it cancels is under way nowhere; the others are.
pub(super) fn what_is_handed_over_and_taken_away_at_once_is_not_under_way(bench: &mut Bench) {
    bench.register("import", "fetch");
    let other = bench.start(new_job("import"));
    let request = ClaimRequest {
        direct: true,
        from_backlog: false,
        ..bench.request()
    };
    let ops = [
        enqueue_op(new_job("import"), "fetch"),
        enqueue_op(new_job("import"), "fetch"),
        Op::Cancel(other.id),
        Op::Cancel(JobId::from_i64(2)),
    ];
    let claims = bench.commit(&ops, &request).expect("a commit").claims;
    assert_eq!(ids(&claims), [JobId::from_i64(3)]);
    let cancelled = "created started phase:started(fetch) cancelled";
    assert_eq!(bench.told(JobId::from_i64(2)), cancelled);
}

pub(super) fn of_jobs_stored_together_none_is_handed_over_that_another_may_come_before(
    bench: &mut Bench,
) {
    bench.register("import", "fetch");
    bench.register("export", "fetch");
    let request = ClaimRequest {
        room: 1,
        direct: true,
        from_backlog: false,
        ..bench.request()
    };
    let cases = [
        (new_job("import").priority(1), false),
        (new_job("export"), false),
        (new_job("import"), true),
    ];
    for (second, is_handed_over) in cases {
        let jobs = [new_job("import"), second].map(|job| PlannedJob {
            job,
            plan: Some(plan("fetch")),
        });
        let ops = [Op::Enqueue(jobs.into())];
        let claims = bench.commit(&ops, &request).expect("a commit").claims;
        assert_eq!(claims.claimed.len(), usize::from(is_handed_over));
    }
}

/// The bug: the key stood for another job, which was over. So the job that was tried again and a third one were live with one key.
pub(super) fn a_key_stands_again_for_a_job_that_is_tried_again(bench: &mut Bench) {
    bench.register("import", "fetch");
    for hold in [While::Live, While::Queued] {
        let keyed = || vec![new_job("import").unique_key(format!("{hold:?}"), hold)];
        let retry = |bench: &mut Bench, id| {
            bench
                .one(Op::Retry(id, RetryFrom::Failed))
                .expect("it is over");
        };
        let first = bench.enqueue_all(keyed())[0].id;
        bench.cancel(first);
        let second = bench.enqueue_all(keyed())[0].id;
        retry(bench, first);
        let again = bench.enqueue_all(keyed())[0];
        assert_eq!((again.id, again.is_new), (second, false), "it is live");
        bench.cancel(first);
        bench.cancel(second);
        retry(bench, first);
        let again = bench.enqueue_all(keyed())[0];
        assert_eq!((again.id, again.is_new), (first, false));
        bench.cancel(first);
        // It goes with the job that it stands for, and with no other.
        bench.one(Op::Delete(second)).expect("it is over");
        retry(bench, first);
        let again = bench.enqueue_all(keyed())[0];
        assert_eq!((again.id, again.is_new), (first, false));
        bench.cancel(first);
    }
}

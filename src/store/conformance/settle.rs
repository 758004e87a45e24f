//! What becomes of a claimed job: each outcome, and those that come too late. Test code.

use std::collections::HashSet;
use std::time::Duration;

use serde_json::json;

use crate::config::{BACKTRACE_BYTES_MAX, ERRORS_KEPT, MESSAGE_BYTES_MAX};
use crate::error::ErrorKind;
use crate::event::EventKind;
use crate::job::{ErrorCause, InterruptionReason, JobId, JobStatus, PhaseStatus, RetryFrom};
use crate::store::conformance::{Bench, MS, SECOND, START, again, fault, ids, new_job, refused};
use crate::store::conformance::{plan, settle};
use crate::store::ops::{ClaimRequest, Fault, Op, Release};
use crate::store::{Done, Filter};
use crate::transition::{Edge, Entered, Flags, Input, JobRow, Tries, Verdict};

pub(super) fn phases_follow_one_another_within_a_claim(bench: &mut Bench) {
    bench.register("import", "fetch load:2");
    let row = bench.start(new_job("import"));
    bench.later(MS);
    let next = bench.complete(&row, r#"{"b":1,"a":[2.50]}"#);
    assert_eq!(
        (next.status, next.epoch, next.attempt),
        (JobStatus::Running, 1, 1)
    );
    assert_eq!((next.phase_index, next.phase_attempt), (1, 1));
    assert_eq!(next.phase_started_at, Some(bench.now));
    assert_eq!(next, bench.row(row.id));
    let job = bench.job(row.id);
    let statuses: Vec<_> = job.phases.iter().map(|phase| phase.status).collect();
    assert_eq!(statuses, [PhaseStatus::Completed, PhaseStatus::Running]);
    assert_eq!(job.phases[0].result, Some(json!({"b": 1, "a": [2.5]})));
    let stored = bench.reader.result(row.id, 0).expect("readable");
    assert_eq!(
        stored.as_deref(),
        Some(r#"{"b":1,"a":[2.50]}"#),
        "byte for byte"
    );
    bench.later(MS);
    let done = bench.complete(&next, "null");
    assert_eq!(
        (done.status, done.finished_at),
        (JobStatus::Completed, Some(bench.now))
    );
    let job = bench.job(row.id);
    assert_eq!((job.phases_done, job.phases[1].version), (2, 2));
    assert_eq!(job.phases[1].finished_at, Some(bench.now));
    assert_eq!(
        bench.told(row.id),
        "created started phase:started(fetch) phase:completed(fetch) phase:started(load) \
         phase:completed(load) completed"
    );
}

pub(super) fn a_failed_try_waits_and_is_told_with_its_reason(bench: &mut Bench) {
    bench.register("import", "fetch");
    let row = bench.start(new_job("import"));
    let after = bench.fail(&row, again(3, SECOND));
    assert_eq!((after.status, after.attempt), (JobStatus::Pending, 1));
    assert_eq!(after, bench.row(row.id));
    let run_at = START.after(SECOND);
    let expected = json!({"reason": "failed", "run_at": run_at});
    assert_eq!(bench.data(row.id, EventKind::Retrying), expected);
    let expected = json!({"kind": "error", "message": "boom"});
    assert_eq!(bench.data(row.id, EventKind::PhaseFailed), expected);
    assert_eq!(
        bench.told(row.id),
        "created started phase:started(fetch) phase:failed(fetch) retrying"
    );
    let job = bench.job(row.id);
    assert_eq!((job.errors.len(), job.errors[0].attempt), (1, 1));
    assert_eq!(job.errors[0].phase.as_deref(), Some("fetch"));
    let claims = bench.claim();
    assert_eq!((ids(&claims), claims.next_due), (vec![], Some(run_at)));
    bench.later(SECOND);
    assert_eq!(bench.claim_one(row.id).attempt, 2);
}

pub(super) fn the_last_try_fails_the_job_and_skips_what_follows(bench: &mut Bench) {
    bench.register("import", "fetch parse load");
    let row = bench.start(new_job("import"));
    bench.complete(&row, "1");
    let row = bench.row(row.id);
    bench.fail(&row, again(2, MS));
    bench.later(MS);
    let row = bench.claim_one(row.id);
    let after = bench.fail(&row, again(2, MS));
    assert_eq!(
        (after.status, after.finished_at),
        (JobStatus::Failed, Some(bench.now))
    );
    let job = bench.job(row.id);
    let statuses: Vec<_> = job.phases.iter().map(|phase| phase.status).collect();
    let expected = [
        PhaseStatus::Completed,
        PhaseStatus::Failed,
        PhaseStatus::Skipped,
    ];
    assert_eq!(statuses, expected);
    assert_eq!(
        (job.phases[1].attempt, job.phases[1].error.as_deref()),
        (2, Some("boom"))
    );
    assert_eq!(job.phases[2].error, None);
    assert!(bench.told(row.id).ends_with("phase:failed(parse) failed"));
    assert_eq!(bench.head.counts, [0, 0, 0, 1, 0]);
}

pub(super) fn tries_of_a_phase_are_counted_apart(bench: &mut Bench) {
    bench.register("import", "fetch load");
    let of_phase = Verdict::Retry {
        tries: Tries::OfPhase { max: 2 },
        delay: Duration::ZERO,
    };
    let mut row = bench.start(new_job("import"));
    bench.fail(&row, of_phase);
    row = bench.claim_one(row.id);
    row = bench.complete(&row, "1");
    // The job has used two tries, this phase one.
    assert_eq!(bench.fail(&row, of_phase).status, JobStatus::Pending);
    row = bench.claim_one(row.id);
    assert_eq!((row.attempt, row.phase_attempt), (3, 2));
    assert_eq!(bench.fail(&row, of_phase).status, JobStatus::Failed);
}

pub(super) fn fail_leaves_no_try(bench: &mut Bench) {
    bench.register("import", "fetch");
    let row = bench.start(new_job("import"));
    assert_eq!(bench.fail(&row, Verdict::Fail).status, JobStatus::Failed);
    let expected = json!({"kind": "error", "message": "boom"});
    assert_eq!(bench.data(row.id, EventKind::Failed), expected);
}

pub(super) fn a_retry_that_would_miss_the_deadline_fails(bench: &mut Bench) {
    bench.register("import", "fetch");
    let row = bench.start(new_job("import").deadline(SECOND));
    assert_eq!(bench.fail(&row, again(9, SECOND)).status, JobStatus::Failed);
    let error = &bench.job(row.id).errors[0];
    assert_eq!(error.message, "boom (no time for another try: deadline)");
}

/// The reason was put behind a message that was as long as one may be: the history had longer ones than it promises.
pub(super) fn a_reason_behind_a_long_message_keeps_it_within_its_limit(bench: &mut Bench) {
    bench.register("import", "fetch");
    let row = bench.start(new_job("import").deadline(SECOND));
    let input = Input::PhaseFailed {
        epoch: row.epoch,
        verdict: again(9, SECOND),
    };
    let long = fault(&"x".repeat(MESSAGE_BYTES_MAX));
    bench.settle(&row, input, None, Some(long)).expect("failed");
    let message = &bench.job(row.id).errors[0].message;
    assert_eq!(message.len(), MESSAGE_BYTES_MAX);
    assert!(message.ends_with("xx (no time for another try: deadline)"));
}

/// What stops a phase before its handler is entered has no runner to cut its message.
pub(super) fn a_long_error_is_kept_within_its_limit_whoever_it_is_from(bench: &mut Bench) {
    bench.register("import", "fetch");
    let row = bench.start(new_job("import"));
    let long = Fault {
        backtrace: Some("y".repeat(BACKTRACE_BYTES_MAX + 1)),
        ..fault(&"x".repeat(MESSAGE_BYTES_MAX + 1))
    };
    let input = Input::PhaseFailed {
        epoch: row.epoch,
        verdict: Verdict::Fail,
    };
    bench.settle(&row, input, None, Some(long)).expect("failed");
    let error = &bench.job(row.id).errors[0];
    assert_eq!(error.message.len(), MESSAGE_BYTES_MAX);
    let backtrace = error.backtrace.as_ref().expect("it has one");
    assert_eq!(backtrace.len(), BACKTRACE_BYTES_MAX);
    assert_eq!(
        bench.data(row.id, EventKind::Failed)["message"],
        *error.message
    );
}

pub(super) fn snooze_is_not_charged(bench: &mut Bench) {
    bench.register("import", "fetch");
    let row = bench.start(new_job("import"));
    let until = START.after(SECOND);
    let input = Input::Snooze {
        epoch: row.epoch,
        until,
    };
    let after = bench.settle(&row, input, None, None).expect("under way");
    assert_eq!(
        (after.status, after.attempt, after.run_at),
        (JobStatus::Pending, 0, until)
    );
    let expected = json!({"reason": "snoozed", "run_at": until});
    assert_eq!(bench.data(row.id, EventKind::Retrying), expected);
    assert_eq!(bench.job(row.id).errors, []);
    bench.now = until;
    let row = bench.claim_one(row.id);
    assert_eq!((row.attempt, row.phase_attempt, row.epoch), (1, 1, 2));
}

pub(super) fn a_handler_can_cancel_its_job(bench: &mut Bench) {
    bench.register("import", "fetch load");
    let row = bench.start(new_job("import"));
    let input = Input::HandlerCancelled { epoch: row.epoch };
    let after = bench.settle(&row, input, None, None).expect("under way");
    assert_eq!(after.status, JobStatus::Cancelled);
    let job = bench.job(row.id);
    assert!(
        job.phases
            .iter()
            .all(|phase| phase.status == PhaseStatus::Cancelled)
    );
    assert!(
        bench
            .told(row.id)
            .ends_with("phase:started(fetch) cancelled")
    );
}

fn interrupted(row: &JobRow, entered: Entered) -> Input {
    Input::Interrupted {
        epoch: row.epoch,
        reason: InterruptionReason::Shutdown,
        entered,
        max_crashes: 0,
    }
}

pub(super) fn an_interrupted_try_is_not_charged_and_the_next_one_hears_of_it(bench: &mut Bench) {
    bench.register("import", "fetch");
    let row = bench.start(new_job("import"));
    let since = bench.now;
    bench.later(MS);
    let input = settle(&row, interrupted(&row, Entered::Inside), since, None, None);
    bench.one(Op::Settle(input)).expect("settled");
    let job = bench.job(row.id);
    assert_eq!(
        (job.status, job.attempt, job.crash_count),
        (JobStatus::Pending, 0, 0)
    );
    let interruption = job.interruption.expect("an interruption");
    assert_eq!((&*interruption.phase, interruption.attempt), ("fetch", 1));
    assert_eq!((interruption.since, interruption.at), (since, bench.now));
    assert_eq!(interruption.reason, InterruptionReason::Shutdown);
    assert_eq!(job.errors[0].kind, ErrorCause::Interrupted);
    let expected = json!({"reason": "shutdown", "entered": true, "charged": false, "since": since});
    assert_eq!(bench.data(row.id, EventKind::Interrupted), expected);
    let claims = bench.claim();
    let details = &claims.claimed[0].details;
    assert_eq!(
        details.interruption.as_ref(),
        bench.job(row.id).interruption.as_ref()
    );
    assert_eq!(claims.claimed[0].row.attempt, 1);
}

pub(super) fn a_job_given_back_unentered_leaves_no_trace_in_its_history(bench: &mut Bench) {
    bench.register("import", "fetch");
    let row = bench.start(new_job("import"));
    bench.settle(&row, interrupted(&row, Entered::No), None, None);
    let job = bench.job(row.id);
    assert_eq!((job.status, job.attempt), (JobStatus::Pending, 0));
    assert_eq!((job.errors.len(), job.interruption.clone()), (0, None));
    let expected = json!({"reason": "shutdown", "entered": false, "charged": false});
    assert_eq!(bench.data(row.id, EventKind::Interrupted), expected);
}

/// Every outcome, as the claim `epoch` would say it.
fn outcomes(epoch: i64) -> Vec<Input> {
    vec![
        Input::PhaseCompleted {
            epoch,
            edge: Edge::GoOn,
        },
        Input::PhaseFailed {
            epoch,
            verdict: Verdict::Fail,
        },
        Input::PhaseFailed {
            epoch,
            verdict: again(9, SECOND),
        },
        Input::Snooze {
            epoch,
            until: START.after(SECOND),
        },
        Input::HandlerCancelled { epoch },
        Input::Interrupted {
            epoch,
            reason: InterruptionReason::Shutdown,
            entered: Entered::Inside,
            max_crashes: 3,
        },
    ]
}

pub(super) fn an_outcome_of_another_epoch_changes_nothing(bench: &mut Bench) {
    bench.register("import", "fetch");
    let old = bench.start(new_job("import"));
    bench.fail(&old, again(9, Duration::ZERO));
    let row = bench.claim_one(old.id);
    let (head, job) = (bench.head, bench.job(row.id));
    for epoch in [old.epoch, row.epoch + 1, 0] {
        for input in outcomes(epoch) {
            let after = bench.settle(&row, input, Some("9"), Some(fault("late")));
            assert_eq!(after, None, "{input:?}");
        }
    }
    assert_eq!((bench.head, bench.job(row.id)), (head, job));
    assert_eq!(bench.reader.result(row.id, 0).expect("readable"), None);
}

pub(super) fn an_outcome_for_a_job_that_is_not_running_changes_nothing(bench: &mut Bench) {
    bench.register("import", "fetch");
    let ended = |bench: &mut Bench, input: Input| {
        let row = bench.start(new_job("import"));
        let fails = matches!(input, Input::PhaseFailed { .. });
        bench.settle(&row, input, Some("1"), fails.then(|| fault("boom")));
        row
    };
    let epoch = 1;
    let deleted = ended(bench, Input::HandlerCancelled { epoch });
    bench.one(Op::Delete(deleted.id)).expect("it is over");
    let rows = outcomes(epoch).into_iter().map(|input| ended(bench, input));
    let rows: Vec<JobRow> = rows.chain([deleted]).collect();
    let (head, jobs) = (bench.head, bench.jobs());
    for row in rows {
        for input in outcomes(epoch) {
            assert_eq!(
                bench.settle(&row, input, Some("9"), Some(fault("late"))),
                None
            );
        }
    }
    assert_eq!((bench.head, bench.jobs()), (head, jobs));
}

pub(super) fn jobs_are_given_back_at_the_edge_when_asked_to(bench: &mut Bench) {
    bench.register("import", "fetch load");
    bench.register("export", "fetch load");
    let import = bench.start(new_job("import").priority(1));
    let export = bench.start(new_job("export"));
    let type_id = export.type_id;
    let mut step = |row: &JobRow, release: Release| {
        let input = Input::PhaseCompleted {
            epoch: row.epoch,
            edge: Edge::GoOn,
        };
        let op = Op::Settle(settle(row, input, START, Some("1"), None));
        let request = ClaimRequest {
            release,
            ..ClaimRequest::default()
        };
        let mut committed = bench.commit(&[op], &request).expect("settled");
        match committed.answers.pop() {
            Some(Ok(Done::Settled(Some(row)))) => row,
            other => panic!("{other:?}"),
        }
    };
    let paused = Release::Types(HashSet::from([type_id]));
    let on = step(&import, paused.clone());
    assert_eq!((on.status, on.phase_index), (JobStatus::Running, 1));
    let off = step(&export, paused);
    assert_eq!(
        (off.status, off.phase_index, off.attempt),
        (JobStatus::Pending, 1, 0)
    );
    // The last phase has no edge behind it.
    let everybody = Release::Everybody(InterruptionReason::Shutdown);
    assert_eq!(step(&on, everybody.clone()).status, JobStatus::Completed);
    let row = bench.claim_one(export.id);
    assert_eq!((row.attempt, row.phase_attempt, row.epoch), (1, 1, 2));
    let data = bench.data(export.id, EventKind::Interrupted);
    assert_eq!(
        data,
        json!({"reason": "paused", "entered": false, "charged": false})
    );
    assert_eq!(
        bench.told(export.id),
        "created started phase:started(fetch) phase:completed(fetch) interrupted(load) started \
         phase:started(load)"
    );
    let filter = Filter {
        status: Some(JobStatus::Completed),
        job_type: None,
    };
    let done = bench.reader.list(&filter, None, 9).expect("a list").jobs;
    assert_eq!(done.len(), 1);
}

pub(super) fn a_rewind_forgets_results_from_there_on(bench: &mut Bench) {
    bench.register("import", "a b c d");
    let mut row = bench.start(new_job("import"));
    for result in ["0", "1", "2"] {
        row = bench.complete(&row, result);
    }
    bench.one(save(&row, "7")).expect("saved");
    let verdict = Verdict::Rewind {
        tries: Tries::OfJob { max: 9 },
        delay: MS,
        phase_index: 1,
    };
    let after = bench.fail(&row, verdict);
    // The flag outlived the checkpoint: the job said that it had saved something, and there was nothing.
    assert!(!after.flags.has(Flags::SAVED));
    assert_eq!((after.phase_index, after.phase_attempt), (1, 0));
    let results = |bench: &Bench| -> Vec<Option<String>> {
        (0..4)
            .map(|index| bench.reader.result(row.id, index).expect("readable"))
            .collect()
    };
    assert_eq!(results(bench), [Some("0".to_owned()), None, None, None]);
    bench.later(MS);
    let row = bench.claim_one(row.id);
    assert_eq!((row.phase_index, row.attempt), (1, 2));
    assert!(
        bench
            .told(row.id)
            .ends_with("phase:failed(d) retrying started phase:started(b)")
    );
}

fn save(row: &JobRow, json: &str) -> Op {
    Op::Save {
        id: row.id,
        epoch: row.epoch,
        phase_index: row.phase_index,
        json: json.to_owned(),
    }
}

fn saved(bench: &Bench, id: JobId, phase_index: u32) -> Option<String> {
    bench.reader.checkpoint(id, phase_index).expect("readable")
}

pub(super) fn a_checkpoint_lives_until_its_phase_completes(bench: &mut Bench) {
    bench.register("import", "fetch load");
    let row = bench.start(new_job("import"));
    let head = bench.head;
    for json in ["1", r#"{"page":2}"#] {
        bench.one(save(&row, json)).expect("saved");
        assert_eq!(saved(bench, row.id, 0).as_deref(), Some(json));
    }
    assert_eq!(bench.head, head, "a checkpoint is no event");
    bench.fail(&row, again(9, Duration::ZERO));
    assert!(saved(bench, row.id, 0).is_some(), "kept over a retry");
    let row = bench.claim_one(row.id);
    bench.settle(&row, interrupted(&row, Entered::Inside), None, None);
    assert!(
        saved(bench, row.id, 0).is_some(),
        "kept over an interruption"
    );
    let row = bench.claim_one(row.id);
    bench.fail(&row, Verdict::Fail);
    bench
        .one(Op::Retry(row.id, RetryFrom::Failed))
        .expect("it failed");
    assert!(
        saved(bench, row.id, 0).is_some(),
        "kept over a retry by hand"
    );
    let row = bench.claim_one(row.id);
    let row = bench.complete(&row, "1");
    assert_eq!(saved(bench, row.id, 0), None);
    bench.one(save(&row, "3")).expect("saved");
    assert_eq!(saved(bench, row.id, 1).as_deref(), Some("3"));
    bench.complete(&row, "1");
    assert_eq!(saved(bench, row.id, 1), None);
}

pub(super) fn a_checkpoint_of_a_try_that_is_over_is_refused(bench: &mut Bench) {
    bench.register("import", "fetch load");
    let row = bench.start(new_job("import"));
    let next = bench.complete(&row, "1");
    let expected = format!(
        "job {}: this try is over, so its checkpoint was not saved",
        row.id
    );
    let too_late = [
        save(&row, "1"),
        save(&JobRow { epoch: 2, ..next }, "1"),
        save(
            &JobRow {
                phase_index: 2,
                ..next
            },
            "1",
        ),
    ];
    for op in too_late {
        assert_eq!(
            refused(bench.one(op)),
            (ErrorKind::Conflict, expected.clone())
        );
    }
    bench.cancel(row.id);
    assert_eq!(refused(bench.one(save(&next, "1"))).0, ErrorKind::Conflict);
    bench.one(Op::Delete(row.id)).expect("it is over");
    assert_eq!(refused(bench.one(save(&next, "1"))).0, ErrorKind::NotFound);
    assert_eq!(
        (saved(bench, row.id, 0), saved(bench, row.id, 1)),
        (None, None)
    );
    // The same phase is under way again: its first try saves no more.
    let old = bench.start(new_job("import"));
    bench.fail(&old, again(u32::MAX, Duration::ZERO));
    bench.claim_one(old.id);
    assert_eq!(refused(bench.one(save(&old, "1"))).0, ErrorKind::Conflict);
}

pub(super) fn only_the_newest_errors_are_kept(bench: &mut Bench) {
    bench.register_as("import", Some(plan("fetch")), None);
    let id = bench.enqueue(new_job("import"));
    for _ in 0..ERRORS_KEPT + 3 {
        let row = bench.claim_one(id);
        bench.fail(&row, again(u32::MAX, Duration::ZERO));
    }
    let errors = bench.job(id).errors;
    let attempts: Vec<u32> = errors.iter().map(|error| error.attempt).collect();
    let newest: Vec<u32> = (4..).take(ERRORS_KEPT).collect();
    assert_eq!(attempts, newest, "oldest first");
}

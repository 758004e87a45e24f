//! After a crash: what becomes of the jobs that were under way. Test code.

use std::time::Duration;

use serde_json::json;

use crate::event::EventKind;
use crate::job::{ErrorCause, InterruptionReason, JobId, JobStatus, PhaseStatus, RetryFrom};
use crate::store::Done;
use crate::store::conformance::outbox::{spec, with_endpoint};
use crate::store::conformance::{Bench, MS, SECOND, START, again, ids, new_job};
use crate::store::ops::{ClaimRequest, Op, Recover};
use crate::time::Timestamp;
use crate::transition::{Flags, JobRow};

/// The process died, and the flight recorder names these jobs.
fn died_inside(rows: &[(&JobRow, Timestamp)]) -> Recover {
    let inside = rows
        .iter()
        .map(|(row, since)| (row.id, row.epoch, row.phase_index, *since));
    Recover {
        reason: InterruptionReason::ProcessDied,
        inside: inside.collect(),
        returned: Vec::new(),
        all_entered: false,
        max_crashes: Vec::new(),
        max_crashes_default: 3,
    }
}

/// Answers how many were interrupted, and how many failed for it.
fn recover(bench: &mut Bench, recover: Recover) -> (usize, usize) {
    bench.later(MS);
    match bench.one(Op::Recover(recover)) {
        Ok(Done::Recovered {
            interrupted,
            failed,
        }) => (interrupted, failed),
        other => panic!("{other:?}"),
    }
}

pub(super) fn a_job_inside_a_handler_is_charged_and_hears_of_it(bench: &mut Bench) {
    bench.register("import", "fetch load");
    let row = bench.start(new_job("import"));
    let since = START;
    assert_eq!(recover(bench, died_inside(&[(&row, since)])), (1, 0));
    let job = bench.job(row.id);
    assert_eq!(
        (job.status, job.crash_count, job.attempt),
        (JobStatus::Pending, 1, 1)
    );
    assert_eq!((job.run_at, job.finished_at), (bench.now, None));
    let interruption = job.interruption.expect("an interruption");
    assert_eq!((&*interruption.phase, interruption.since), ("fetch", since));
    assert_eq!(interruption.reason, InterruptionReason::ProcessDied);
    assert_eq!(job.errors[0].kind, ErrorCause::Interrupted);
    let expected =
        json!({"reason": "process_died", "entered": true, "charged": true, "since": since});
    assert_eq!(bench.data(row.id, EventKind::Interrupted), expected);
    let claims = bench.claim();
    assert_eq!(claims.claimed[0].row.attempt, 2, "a crash is a try");
    assert!(claims.claimed[0].details.interruption.is_some());
}

pub(super) fn a_job_outside_of_a_handler_is_simply_pending_again(bench: &mut Bench) {
    bench.register("import", "fetch load");
    let row = bench.start(new_job("import"));
    let pending = bench.enqueue(new_job("import").delay(MS));
    assert_eq!(recover(bench, died_inside(&[])), (1, 0));
    let job = bench.job(row.id);
    assert_eq!(
        (job.status, job.crash_count, job.attempt),
        (JobStatus::Pending, 0, 0)
    );
    assert_eq!((job.errors.len(), job.interruption.clone()), (0, None));
    let expected = json!({"reason": "process_died", "entered": false, "charged": false});
    assert_eq!(bench.data(row.id, EventKind::Interrupted), expected);
    assert_eq!(bench.told(pending), "created", "others are left alone");
    assert_eq!(recover(bench, died_inside(&[])), (0, 0));
}

pub(super) fn a_job_whose_handler_had_returned_hears_of_it_and_is_not_charged(bench: &mut Bench) {
    bench.register("import", "fetch load");
    let row = bench.start(new_job("import"));
    let since = START;
    let returned = vec![(row.id, row.epoch, row.phase_index, since)];
    let died = Recover {
        returned,
        max_crashes_default: 0,
        ..died_inside(&[])
    };
    assert_eq!(recover(bench, died), (1, 0));
    let job = bench.job(row.id);
    assert_eq!(
        (job.status, job.crash_count, job.attempt),
        (JobStatus::Pending, 0, 0)
    );
    let interruption = job.interruption.expect("an interruption");
    assert_eq!((&*interruption.phase, interruption.since), ("fetch", since));
    let expected =
        json!({"reason": "process_died", "entered": true, "charged": false, "since": since});
    assert_eq!(bench.data(row.id, EventKind::Interrupted), expected);
    // Nor does one that is on disk say anything.
    let row = bench.claim_one(row.id);
    bench.complete(&row, "1");
    let stale = vec![(row.id, row.epoch, row.phase_index, since)];
    let died = Recover {
        returned: stale,
        ..died_inside(&[])
    };
    assert_eq!(recover(bench, died), (1, 0));
    let expected = json!({"reason": "process_died", "entered": false, "charged": false});
    assert_eq!(bench.data(row.id, EventKind::Interrupted), expected);
}

pub(super) fn a_recorder_entry_of_an_older_claim_says_nothing(bench: &mut Bench) {
    bench.register("import", "fetch load");
    let row = bench.start(new_job("import"));
    let next = bench.complete(&row, "1");
    let older = JobRow { epoch: 0, ..next };
    // The recorder still names the phase whose result is stored, and a claim that is over.
    assert_eq!(
        recover(bench, died_inside(&[(&row, START), (&older, START)])),
        (1, 0)
    );
    let job = bench.job(row.id);
    assert_eq!((job.crash_count, job.errors.len()), (0, 0));
}

pub(super) fn after_a_power_cut_nobody_is_charged(bench: &mut Bench) {
    bench.register("import", "fetch");
    bench.enqueue_all(vec![new_job("import"); 2]);
    bench.claim();
    let cut = Recover {
        reason: InterruptionReason::MachineWentDown,
        all_entered: true,
        max_crashes_default: 0,
        ..died_inside(&[])
    };
    assert_eq!(recover(bench, cut), (2, 0));
    for job in bench.jobs() {
        assert_eq!(
            (job.status, job.crash_count, job.attempt),
            (JobStatus::Pending, 0, 0)
        );
        let interruption = job.interruption.expect("an interruption");
        assert_eq!(interruption.reason, InterruptionReason::MachineWentDown);
        assert_eq!(
            interruption.since, START,
            "since it was offered to a worker"
        );
    }
}

pub(super) fn a_job_that_crashes_too_often_fails(bench: &mut Bench) {
    bench.register("fragile", "fetch load");
    bench.register("import", "fetch load");
    bench.enqueue_all(vec![new_job("fragile"), new_job("import")]);
    let claims = bench.claim();
    let (fragile, import) = (claims.claimed[0].row, claims.claimed[1].row);
    let limits = |rows: &[(&JobRow, Timestamp)]| Recover {
        max_crashes: vec![("fragile".into(), 0)],
        max_crashes_default: 1,
        ..died_inside(rows)
    };
    let both = limits(&[(&fragile, START), (&import, START)]);
    assert_eq!(recover(bench, both), (1, 1));
    let job = bench.job(fragile.id);
    assert_eq!((job.status, job.crash_count), (JobStatus::Failed, 1));
    assert_eq!(job.finished_at, Some(bench.now));
    let kinds: Vec<_> = job.errors.iter().map(|error| error.kind).collect();
    assert_eq!(
        kinds,
        [ErrorCause::Interrupted, ErrorCause::CrashLimit],
        "in this order"
    );
    let message = "the process died inside this job 1 times";
    assert_eq!(job.phases[0].error.as_deref(), Some(message));
    let statuses: Vec<_> = job.phases.iter().map(|phase| phase.status).collect();
    assert_eq!(statuses, [PhaseStatus::Failed, PhaseStatus::Skipped]);
    assert_eq!(
        bench.told(fragile.id),
        "created started phase:started(fetch) interrupted(fetch) failed"
    );
    let expected = json!({"kind": "crash_limit", "message": message});
    assert_eq!(bench.data(fragile.id, EventKind::Failed), expected);
    let expected =
        json!({"reason": "process_died", "entered": true, "charged": true, "since": START});
    assert_eq!(bench.data(fragile.id, EventKind::Interrupted), expected);
    // The other one has a second chance and no third.
    let row = bench.claim_one(import.id);
    let again = limits(&[(&row, bench.now)]);
    assert_eq!(recover(bench, again), (0, 1));
}

pub(super) fn completed_phases_and_checkpoints_survive(bench: &mut Bench) {
    bench.register("import", "fetch load");
    let row = bench.start(new_job("import"));
    let row = bench.complete(&row, "[1, 2]");
    let op = Op::Save {
        id: row.id,
        epoch: row.epoch,
        phase_index: 1,
        json: "7".to_owned(),
    };
    bench.one(op).expect("saved");
    recover(bench, died_inside(&[(&row, START)]));
    let result = bench.reader.result(row.id, 0).expect("readable");
    assert_eq!(result.as_deref(), Some("[1, 2]"));
    let saved = bench.reader.checkpoint(row.id, 1).expect("readable");
    assert_eq!(saved.as_deref(), Some("7"));
    assert_eq!(bench.claim_one(row.id).phase_index, 1);
}

/// Somebody sets the clock to 2091, and right again with the next start.
const AHEAD: Duration = Duration::from_secs(64 * 365 * 86_400);

/// The bug: the queue went on at the right time, and nothing that was enqueued or tried before ran in this century.
pub(super) fn what_waits_for_the_time_of_a_clock_that_was_ahead_waits_no_longer_than_it_was_to(
    bench: &mut Bench,
) {
    bench.register("import", "fetch load");
    let year = Duration::from_secs(365 * 86_400);
    // Enqueued before, and meant to wait.
    let before = bench.enqueue(new_job("import").run_at(START.after(year)));
    bench.later(AHEAD);
    let at_once = bench.enqueue(new_job("import").deadline(10 * SECOND));
    let delayed = bench.enqueue(new_job("import").delay(7 * SECOND));
    let retried = bench.enqueue(new_job("import").run_at(bench.now.after(year)));
    bench.cancel(retried);
    bench.later(MS);
    bench
        .one(Op::Retry(retried, RetryFrom::Failed))
        .expect("it is over");
    // It has come by this clock.
    let request = ClaimRequest {
        exclude: [before, at_once, retried].into(),
        ..bench.request()
    };
    let waits = bench.enqueue(new_job("import"));
    let claimed = bench.claim_with(&request).claimed[0].row;
    assert_eq!(claimed.id, waits);
    bench.fail(&claimed, again(9, 5 * SECOND));
    bench.later(MS);
    bench.now = START.after(SECOND);
    assert_eq!(recover(bench, died_inside(&[])), (0, 0));
    let starts = |bench: &Bench, ids: &[JobId]| -> Vec<Timestamp> {
        ids.iter().map(|id| bench.row(*id).run_at).collect()
    };
    let now = bench.now;
    let expected = [
        START.after(year),
        now,
        now.after(7 * SECOND),
        now,
        now.after(5 * SECOND),
    ];
    let all = [before, at_once, delayed, retried, waits];
    assert_eq!(starts(bench, &all), expected);
    assert_eq!(bench.job(at_once).deadline, Some(now.after(10 * SECOND)));
    // Once: the next start finds nothing to do.
    bench.enqueue(new_job("other"));
    assert_eq!(recover(bench, died_inside(&[])), (0, 0));
    assert_eq!(starts(bench, &all), expected);
    assert_eq!(ids(&bench.claim()), [at_once, retried]);
    assert!(!bench.row(at_once).flags.has(Flags::MOVED));
}

pub(super) fn deliveries_of_a_clock_that_was_ahead_can_be_sent(bench: &mut Bench) {
    bench.register("import", "fetch");
    bench.later(AHEAD);
    let job = with_endpoint(spec(
        "http://a",
        &[EventKind::Created, EventKind::Cancelled],
    ));
    let id = bench.enqueue(job);
    bench.cancel(id);
    bench.now = START;
    assert_eq!(bench.sendable(), []);
    recover(bench, died_inside(&[]));
    let times: Vec<_> = bench.deliveries().iter().map(|row| row.next_at).collect();
    assert_eq!(times, [Some(bench.now), None], "in their order");
    assert_eq!(bench.sendable().len(), 1);
}

//! A type whose phases changed between two tries of a job: what is kept, and what runs again. Test code.

use std::time::Duration;

use serde_json::json;

use crate::event::EventKind;
use crate::job::{InterruptionReason, JobId, JobStatus, PhaseName};
use crate::store::Done;
use crate::store::conformance::{Bench, again, new_job, plan};
use crate::store::ops::{Op, Settle};
use crate::transition::{Entered, Input, JobRow};

/// A job of the phases `a b c` that has done `done` of them, saved a checkpoint in the next one, and waits for its next try.
fn waiting(bench: &mut Bench, done: usize) -> JobRow {
    bench.register("import", "a b c");
    let mut row = bench.start(new_job("import"));
    for result in ["\"A\"", "\"B\""].iter().take(done) {
        row = bench.complete(&row, result);
    }
    let op = Op::Save {
        id: row.id,
        epoch: row.epoch,
        phase_index: row.phase_index,
        json: "7".to_owned(),
    };
    bench.one(op).expect("saved");
    bench.fail(&row, again(9, Duration::ZERO))
}

/// The results of a job, each missing one as `-`, and where its checkpoints are.
fn kept(bench: &Bench, id: JobId) -> (String, Vec<u32>) {
    let result = |index| bench.reader.result(id, index).expect("readable");
    let results = (0..4).map(|index| result(index).unwrap_or_else(|| "-".to_owned()));
    let saved = |index: &u32| {
        bench
            .reader
            .checkpoint(id, *index)
            .expect("readable")
            .is_some()
    };
    let results: Vec<String> = results.collect();
    (results.join(" "), (0..4).filter(saved).collect())
}

/// Registers other phases, claims, and answers the phase that runs next.
fn next_phase(bench: &mut Bench, id: JobId, phases: &str) -> String {
    bench.register("import", phases);
    let row = bench.claim_one(id);
    assert_eq!(row, bench.row(id));
    assert_eq!(row.phase_count as usize, phases.split(' ').count());
    let job = bench.job(id);
    let mut left = phases.split(' ');
    for phase in &job.phases {
        let known = left.next().expect("as many").split(':').next();
        assert_eq!(Some(&*phase.name), known);
    }
    job.phases[row.phase_index as usize].name.to_string()
}

pub(super) fn results_are_kept_for_the_unchanged_beginning(bench: &mut Bench) {
    let id = waiting(bench, 2).id;
    assert_eq!(next_phase(bench, id, "a b other"), "other");
    assert_eq!(kept(bench, id).0, r#""A" "B" - -"#);
    let row = bench.row(id);
    assert_eq!((row.phase_attempt, row.attempt), (1, 2));
    assert_eq!(bench.complete(&row, "9").status, JobStatus::Completed);
}

pub(super) fn a_new_version_runs_again_with_all_after_it(bench: &mut Bench) {
    let id = waiting(bench, 2).id;
    assert_eq!(next_phase(bench, id, "a:2 b c"), "a");
    assert_eq!(kept(bench, id), ("- - - -".to_owned(), vec![]));
}

pub(super) fn an_inserted_phase_runs_and_all_after_it_again(bench: &mut Bench) {
    let id = waiting(bench, 2).id;
    assert_eq!(next_phase(bench, id, "a new b c"), "new");
    assert_eq!(kept(bench, id), (r#""A" - - -"#.to_owned(), vec![]));
}

pub(super) fn a_phase_that_was_dropped_takes_no_result_with_it(bench: &mut Bench) {
    let id = waiting(bench, 2).id;
    assert_eq!(next_phase(bench, id, "b c"), "c");
    assert_eq!(kept(bench, id).0, r#""B" - - -"#);
}

pub(super) fn a_shrunk_plan_runs_its_last_phase_again(bench: &mut Bench) {
    let id = waiting(bench, 2).id;
    assert_eq!(next_phase(bench, id, "a b"), "b");
    assert_eq!(kept(bench, id), (r#""A" - - -"#.to_owned(), vec![]));
    let row = bench.row(id);
    assert_eq!(bench.complete(&row, "2").status, JobStatus::Completed);
}

/// A plan that was made for a job that waits could leave it without a phase to run until its claim: all phases done, and pending.
pub(super) fn a_plan_made_ahead_of_the_claim_leaves_a_phase_to_run(bench: &mut Bench) {
    let id = waiting(bench, 2).id;
    let plan = Ok(plan("a b"));
    bench.one(Op::SetPlan { id, plan }).expect("planned");
    let row = bench.row(id);
    assert_eq!((row.phase_index, row.phase_count), (1, 2));
    assert_eq!(kept(bench, id), (r#""A" - - -"#.to_owned(), vec![]));
}

pub(super) fn an_appended_phase_leaves_results_and_checkpoint_alone(bench: &mut Bench) {
    let id = waiting(bench, 1).id;
    assert_eq!(next_phase(bench, id, "a b c d"), "b");
    assert_eq!(kept(bench, id), (r#""A" - - -"#.to_owned(), vec![1]));
    let row = bench.row(id);
    bench.complete(&row, "1");
    assert_eq!(kept(bench, id), (r#""A" 1 - -"#.to_owned(), vec![]));
}

/// The checkpoint of a first phase was left to whichever phase stood in its place in a new plan: that handler would have
/// taken another phase's progress for its own.
pub(super) fn a_checkpoint_is_never_seen_by_another_phase(bench: &mut Bench) {
    let id = waiting(bench, 0).id;
    assert_eq!(kept(bench, id).1, [0]);
    assert_eq!(next_phase(bench, id, "new a b c"), "new");
    assert_eq!(kept(bench, id).1, Vec::<u32>::new());
    let row = bench.row(id);
    let row = bench.complete(&row, "1");
    bench.complete(&row, "1");
    assert_eq!(kept(bench, id), ("1 1 - -".to_owned(), vec![]));
}

/// A claimed job that its worker gives back, to go on by these phases.
fn give_back(row: &JobRow, phases: &str) -> Op {
    let input = Input::Interrupted {
        epoch: row.epoch,
        reason: InterruptionReason::Replanned,
        entered: Entered::No,
        max_crashes: u32::MAX,
    };
    Op::Settle(Settle {
        plan: Some(plan(phases)),
        ..Settle::void(row, input)
    })
}

pub(super) fn a_job_that_is_given_back_for_another_plan_has_it_in_the_same_commit(
    bench: &mut Bench,
) {
    bench.register_as("planned", None, None);
    let phases = ["a", "b", "c"].map(PhaseName::new);
    let row = bench.start(new_job("planned").phases(phases));
    let row = bench.complete(&row, "\"A\"");

    // Claimed anew with its new phases by the commit that gives it back.
    let request = bench.request();
    let ops = [give_back(&row, "a b:2")];
    let committed = bench.commit(&ops, &request).expect("given back");
    assert!(matches!(committed.answers[0], Ok(Done::Settled(Some(_)))));
    let claimed = &committed.claims.claimed[0];
    assert_eq!(claimed.plan, plan("a b:2"));
    let again = claimed.row;
    assert_eq!((again.epoch, again.attempt), (row.epoch + 1, row.attempt));
    assert_eq!((again.phase_index, again.phase_count), (1, 2));
    assert_eq!(kept(bench, row.id).0, r#""A" - - -"#);

    // The claim that was given back has nothing more to say.
    let stale = bench.one(give_back(&row, "x")).expect("no failure");
    assert!(matches!(stale, Done::Settled(None)));
    assert_eq!(bench.row(row.id), again);

    bench.one(give_back(&again, "a:2 b:2")).expect("given back");
    let waits = bench.row(row.id);
    assert_eq!((waits.status, waits.attempt), (JobStatus::Pending, 0));
    assert_eq!((waits.phase_index, waits.crash_count), (0, 0));
    assert_eq!(kept(bench, row.id).0, "- - - -");
    let told = bench.data(row.id, EventKind::Interrupted);
    let expected = json!({"reason": "replanned", "entered": false, "charged": false});
    assert_eq!(told, expected);
}

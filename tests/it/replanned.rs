//! Planned types whose plan is another one than a job was stored with: a new release of the program, or a client that did not
//! know better.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};
use stepwell::{
    CancelOutcome, EventKind, Job, JobId, JobPlan, JobQueue, JobStatus, JobType, NewJob, Phase,
    PhaseError, PhaseName, PhaseSpec, RetryFrom, RetryPolicy,
};

use crate::support::{Gate, Harness, assert_sound, at_once, count};

const A_V2: Phase<u32> = Phase::new("a").version(2);

/// Which phases ran, in which order.
type Ran = Arc<Mutex<Vec<String>>>;

fn ran(ran: &Ran) -> Vec<String> {
    std::mem::take(&mut *ran.lock().unwrap())
}

fn phases(names: &[(&str, u32)]) -> JobPlan {
    let spec = |(name, version): &(&str, u32)| PhaseSpec::new(*name).version(*version);
    JobPlan::new(names.iter().map(spec))
}

/// The first release: `a` and `b`, both of version 1; `b` never succeeds.
fn old() -> JobType<Value, Value> {
    JobType::planned(
        "steps",
        |_: &Value| Ok(phases(&[("a", 1), ("b", 1)])),
        |cx| match cx.phase() {
            "b" => Err(PhaseError::retry("stuck")),
            phase => Ok(json!(phase)),
        },
    )
    .retry(RetryPolicy::never())
}

/// The next release: other phases; every phase notes that it ran, and answers with the result of `a` in version 2 or with 2.
fn new(ran: &Ran, names: &'static [(&'static str, u32)]) -> JobType<Value, Value> {
    let ran = ran.clone();
    JobType::planned(
        "steps",
        move |_: &Value| Ok(phases(names)),
        move |cx| {
            ran.lock().unwrap().push(cx.phase().to_owned());
            match cx.phase() {
                "b" => cx.get(A_V2).map(|result| json!(result)),
                _ => Ok(json!(2)),
            }
        },
    )
    .retry(at_once(3))
}

/// A job of the first release that has done `a`, its queue closed.
fn stuck(harness: &Harness) -> JobId {
    let (queue, jobs) = harness.open(old());
    let id = jobs.enqueue(&Value::Null).unwrap();
    harness.wait_for(&queue, id, JobStatus::Failed);
    queue.shutdown(harness.left()).unwrap();
    id
}

/// Name, version and result of each phase.
fn results(job: &Job) -> Vec<(&str, u32, Value)> {
    let phases = job.phases.iter();
    let result = |phase: &stepwell::PhaseRecord| phase.result.clone().unwrap_or_default();
    phases
        .map(|phase| (&*phase.name, phase.version, result(phase)))
        .collect()
}

/// Runs it again by the new release, and answers which phases ran.
fn again(harness: &Harness, id: JobId, job_type: JobType<Value, Value>, from: RetryFrom) -> Job {
    let (queue, _) = harness.open(job_type);
    queue.retry(id, from).unwrap();
    let job = harness.wait_for(&queue, id, JobStatus::Completed);
    assert_eq!(job.attempt, 1, "to be given other phases is no try");
    assert_eq!(count(&queue, id, EventKind::Interrupted), 1);
    assert_sound(&queue);
    job
}

/// The bug: the stored plan won for ever. `get` found that `a` was not of version 2 and went back to it, where it ran as version 1
/// again, until no try was left: the job failed for good, and the side effects of `a` had happened several times.
#[test]
fn a_planned_phase_of_another_version_and_all_after_it_run_again() {
    for from in [RetryFrom::Failed, RetryFrom::Start] {
        let harness = Harness::new();
        let id = stuck(&harness);
        let notes = Ran::default();
        let job = again(&harness, id, new(&notes, &[("a", 2), ("b", 1)]), from);
        assert_eq!(ran(&notes), ["a", "b"]);
        assert_eq!(results(&job), [("a", 2, json!(2)), ("b", 1, json!(2))]);
    }
}

/// As for a type with fixed phases: what the new plan begins with is kept.
#[test]
fn a_planned_job_goes_on_by_the_phases_that_its_type_has_now() {
    let harness = Harness::new();
    let id = stuck(&harness);
    let notes = Ran::default();
    let job_type = new(&notes, &[("a", 1), ("between", 1), ("c", 1)]);
    let job = again(&harness, id, job_type, RetryFrom::Failed);
    assert_eq!(ran(&notes), ["between", "c"]);
    let expected = [
        ("a", 1, json!("a")),
        ("between", 1, json!(2)),
        ("c", 1, json!(2)),
    ];
    assert_eq!(results(&job), expected);
}

/// The bug: as above, from the first try on.
#[test]
fn the_phases_that_a_client_names_give_way_to_those_of_the_type() {
    let harness = Harness::new();
    let notes = Ran::default();
    let (queue, _) = harness.open(new(&notes, &[("a", 2), ("b", 1)]));
    let job = NewJob::new("steps", &Value::Null).unwrap();
    let job = job.phases(["a", "b"].map(PhaseName::new));
    let id = harness.client().enqueue_all(vec![job]).unwrap()[0].id;
    let job = harness.wait_for(&queue, id, JobStatus::Completed);
    assert_eq!(job.attempt, 1);
    assert_eq!(ran(&notes), ["a", "b"]);
    assert_eq!(results(&job), [("a", 2, json!(2)), ("b", 1, json!(2))]);
    assert_sound(&queue);
}

/// What would go round for ever: each claim finds that the plan is another one.
#[test]
fn a_plan_that_is_another_one_each_time_is_followed_once() {
    let harness = Harness::new();
    let asked = AtomicUsize::new(0);
    let (queue, jobs) = harness.open(JobType::planned(
        "steps",
        move |_: &Value| {
            let asked = asked.fetch_add(1, Ordering::SeqCst);
            let names = [format!("first-{asked}"), format!("second-{asked}")];
            Ok(JobPlan::new(names.map(PhaseSpec::new)))
        },
        |cx| Ok(json!(cx.phase())),
    ));
    for _ in 0..20 {
        let id = jobs.enqueue(&Value::Null).unwrap();
        let job = harness.wait_for(&queue, id, JobStatus::Completed);
        assert_eq!(job.attempt, 1);
        assert!(job.phases[0].name.starts_with("first-"));
        assert!(job.phases[1].name.starts_with("second-"));
        assert_eq!(count(&queue, id, EventKind::Interrupted), 1);
    }
    assert_sound(&queue);
}

/// The next release, whose plan is made while the test looks on.
fn slowly(gate: &Gate, notes: &Ran) -> JobType<Value, Value> {
    let (gate, notes) = (gate.clone(), notes.clone());
    JobType::planned(
        "steps",
        move |_: &Value| {
            gate.stay(JobId::from_i64(1));
            Ok(phases(&[("a", 2), ("b", 1)]))
        },
        move |cx| {
            notes.lock().unwrap().push(cx.phase().to_owned());
            Ok(json!(cx.phase()))
        },
    )
}

/// Opens the next release on a job of the first, and answers when a worker asks for its plan.
fn being_planned(harness: &Harness, gate: &Gate, notes: &Ran) -> (JobQueue, JobId) {
    let id = stuck(harness);
    let (queue, _) = harness.open(slowly(gate, notes));
    queue.retry(id, RetryFrom::Failed).unwrap();
    gate.wait(harness);
    (queue, id)
}

#[test]
fn a_job_whose_plan_changes_in_a_pause_waits_with_the_new_one() {
    let harness = Harness::new();
    let (gate, notes) = (Gate::new(), Ran::default());
    let (queue, id) = being_planned(&harness, &gate, &notes);
    queue.pause().unwrap();
    gate.open();
    let job = harness.wait_for(&queue, id, JobStatus::Pending);
    assert_eq!(
        results(&job),
        [("a", 2, Value::Null), ("b", 1, Value::Null)]
    );
    assert_eq!(ran(&notes), Vec::<String>::new());
    gate.open();
    queue.resume().unwrap();
    let job = harness.wait_for(&queue, id, JobStatus::Completed);
    assert_eq!(
        (job.attempt, ran(&notes)),
        (1, vec!["a".into(), "b".into()])
    );
    assert_sound(&queue);
}

#[test]
fn a_job_whose_plan_changes_in_a_shutdown_goes_on_after_it() {
    let harness = Harness::new();
    let (gate, notes) = (Gate::new(), Ran::default());
    let (queue, id) = being_planned(&harness, &gate, &notes);
    std::thread::scope(|scope| {
        let closing = scope.spawn(|| queue.shutdown(harness.left()));
        harness.until("it is closing", || queue.health().closing);
        gate.open();
        closing.join().unwrap().unwrap();
    });
    drop(queue);
    let (queue, _) = harness.open(new(&notes, &[("a", 2), ("b", 1)]));
    let job = harness.wait_for(&queue, id, JobStatus::Completed);
    assert_eq!(
        (job.attempt, ran(&notes)),
        (1, vec!["a".into(), "b".into()])
    );
    assert_eq!(job.crash_count, 0);
    assert_sound(&queue);
}

#[test]
fn a_job_that_is_cancelled_while_its_plan_changes_stays_so() {
    let harness = Harness::new();
    let (gate, notes) = (Gate::new(), Ran::default());
    let (queue, id) = being_planned(&harness, &gate, &notes);
    assert_eq!(queue.cancel(id).unwrap(), CancelOutcome::Cancelled);
    gate.open();
    // Entered by a worker only when the other one has left the plan.
    queue.retry(id, RetryFrom::Failed).unwrap();
    gate.wait(&harness);
    assert_eq!(queue.cancel(id).unwrap(), CancelOutcome::Cancelled);
    gate.open();
    queue.shutdown(harness.left()).unwrap();
    assert_eq!(ran(&notes), Vec::<String>::new());
    let queue = harness.open_without_workers();
    let job = queue.get(id).unwrap().unwrap();
    assert_eq!(job.status, JobStatus::Cancelled);
    assert_eq!(job.phases[0].version, 1);
    assert_sound(&queue);
}

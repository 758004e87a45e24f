//! Phases: their order, what each sees of the ones before it, checkpoints inside one, and what a handler is told.

use std::time::Duration;

use crossbeam_channel::unbounded;
use serde_json::{Value, json};
use stepwell::{
    ErrorCause, EventKind, JobPlan, JobStatus, JobType, Notice, Phase, PhaseError, PhaseSpec,
    PhaseStatus, RetryPolicy,
};

use crate::support::{Gate, Harness, ONE, THREE, TWO, assert_sound, at_once, events_of};

#[test]
fn phases_run_in_order_and_see_the_results_before_them() {
    let harness = Harness::new();
    let (queue, jobs) = harness.open(
        JobType::<i64>::new("sum")
            .phase(ONE, |cx| Ok(json!(*cx.input() + 1)))
            .phase(TWO, |cx| Ok(json!([cx.get(ONE)?])))
            .phase(THREE, |cx| {
                let (plan, index) = cx.plan();
                let names: Vec<_> = plan.iter().map(|phase| phase.name.clone()).collect();
                Ok(json!([cx.get(ONE)?, cx.get_json("two")?, names, index]))
            }),
    );
    let id = jobs.enqueue(&1).unwrap();
    let job = harness.wait_for(&queue, id, JobStatus::Completed);
    let results: Vec<Value> = job
        .phases
        .iter()
        .filter_map(|phase| phase.result.clone())
        .collect();
    assert_eq!(
        results,
        [
            json!(2),
            json!([2]),
            json!([2, [2], ["one", "two", "three"], 2])
        ]
    );
    assert_eq!((job.attempt, job.phases_done, job.phase_count), (1, 3, 3));
    assert_eq!(
        events_of(&queue, id),
        [
            "job:created",
            "job:started",
            "job:phase:started",
            "job:phase:completed",
            "job:phase:started",
            "job:phase:completed",
            "job:phase:started",
            "job:phase:completed",
            "job:completed",
        ]
    );
    assert_sound(&queue);
}

#[test]
fn a_result_is_in_the_file_before_the_next_phase_begins() {
    let harness = Harness::new();
    let path = harness.path();
    let (queue, jobs) = harness.open(
        JobType::<Value>::new("look")
            .phase(ONE, |_| Ok(json!("saved")))
            .phase(TWO, move |cx| {
                let client = stepwell::Client::open(&path)?;
                let job = client.get(cx.job_id())?.ok_or_else(PhaseError::cancel)?;
                Ok(json!([job.phases[0].result, job.phases[0].status.as_str()]))
            }),
    );
    let id = harness.run_one(&queue, &jobs, &Value::Null);
    let job = queue.get(id).unwrap().unwrap();
    assert_eq!(job.phases[1].result, Some(json!(["saved", "completed"])));
}

#[test]
fn a_checkpoint_is_kept_over_retries_and_goes_with_its_phase() {
    let harness = Harness::new();
    let (tx, seen) = unbounded();
    let then = tx.clone();
    let job_type = JobType::<Value>::new("save")
        .retry(at_once(3))
        .phase(ONE, move |cx| {
            tx.send(cx.saved::<Value>()?).unwrap();
            cx.save(&json!("half"))?;
            cx.save(&json!({"tries": cx.attempt()}))?;
            match cx.attempt() {
                3 => Ok(Value::Null),
                _ => Err(PhaseError::retry("again")),
            }
        })
        .phase(TWO, move |cx| {
            then.send(cx.saved::<Value>()?).unwrap();
            Ok(Value::Null)
        });
    let (queue, jobs) = harness.open(job_type);
    harness.run_one(&queue, &jobs, &Value::Null);
    let saved: Vec<_> = seen.try_iter().collect();
    let tries = |n: u32| Some(json!({"tries": n}));
    assert_eq!(saved, [None, tries(1), tries(2), None]);
    assert_eq!(harness.sql::<i64>("SELECT count(*) FROM checkpoint"), [0]);
}

#[test]
fn a_phase_that_asks_for_a_later_result_fails_its_job() {
    let harness = Harness::new();
    for asked in ["one", "two", "four"] {
        let (queue, jobs) = harness.open(
            JobType::<Value>::new("ask")
                .phase(ONE, move |cx| cx.get_json(asked))
                .phase(TWO, |_| Ok(Value::Null)),
        );
        let id = jobs.enqueue(&Value::Null).unwrap();
        let job = harness.wait_for(&queue, id, JobStatus::Failed);
        let problem =
            format!("phase \"one\" asked for the result of {asked:?}, which is no earlier phase");
        assert_eq!(job.errors[0].message, problem);
        assert_eq!(job.errors.len(), 1, "no try can mend that");
    }
}

#[test]
fn the_phases_after_a_failed_one_are_skipped() {
    let harness = Harness::new();
    let (queue, jobs) = harness.open(
        JobType::<Value>::new("break")
            .retry(RetryPolicy::never())
            .phase(ONE, |_| Ok(Value::Null))
            .phase(TWO, |_| Err::<Value, _>(PhaseError::retry("broken")))
            .phase(THREE, |_| Ok(Value::Null)),
    );
    let id = jobs.enqueue(&Value::Null).unwrap();
    let job = harness.wait_for(&queue, id, JobStatus::Failed);
    let statuses: Vec<_> = job.phases.iter().map(|phase| phase.status).collect();
    use PhaseStatus::{Completed, Failed, Skipped};
    assert_eq!(statuses, [Completed, Failed, Skipped]);
    let broken = &job.phases[1];
    assert_eq!(broken.error.as_deref(), Some("broken"));
    assert!(job.started_at <= broken.started_at && broken.started_at <= broken.finished_at);
    assert!(
        broken.started_at.is_some(),
        "when the failed try entered it"
    );
    assert_eq!(job.errors[0].kind, ErrorCause::Error);
    assert_sound(&queue);
}

#[test]
fn the_idempotency_key_is_the_same_for_every_try() {
    let harness = Harness::new();
    let (tx, keys) = unbounded();
    let job_type = JobType::<Value>::new("pay")
        .retry(at_once(3))
        .phase(ONE, move |cx| {
            tx.send(cx.idempotency_key()).unwrap();
            match cx.attempt() {
                3 => Ok(Value::Null),
                _ => Err(PhaseError::retry("again")),
            }
        });
    let (queue, jobs) = harness.open(job_type);
    let id = harness.run_one(&queue, &jobs, &Value::Null);
    let expected = format!("{id}:one");
    let keys: Vec<String> = keys.try_iter().collect();
    assert_eq!(keys, [&*expected; 3]);
}

#[test]
fn a_handler_knows_its_job() {
    let harness = Harness::with_fake_clock();
    let (tx, told) = unbounded();
    const TIMED: Phase<Value> = Phase::new("one").timeout(Duration::from_secs(60));
    let (queue, jobs) = harness.open(
        JobType::<Value>::new("know")
            .deadline(Duration::from_secs(3600))
            .phase(TIMED, move |cx| {
                tx.send((cx.job_id(), cx.created_at(), cx.deadline()))
                    .unwrap();
                Ok(json!([cx.job_type(), cx.phase(), cx.attempt()]))
            })
            .phase(TWO, |cx| Ok(json!(cx.deadline()))),
    );
    let id = harness.run_one(&queue, &jobs, &Value::Null);
    let job = queue.get(id).unwrap().unwrap();
    assert_eq!(job.phases[0].result, Some(json!(["know", "one", 1])));
    let now = harness.clock().now();
    let timeout = now.after(Duration::from_secs(60));
    assert_eq!(harness.recv(&told), (id, now, Some(timeout)));
    let deadline = now.after(Duration::from_secs(3600));
    assert_eq!(job.deadline, Some(deadline));
    assert_eq!(
        job.phases[1].result,
        Some(json!(deadline)),
        "no timeout of its own"
    );
}

#[test]
fn progress_reaches_those_who_ask_for_it_and_is_not_in_the_log() {
    let harness = Harness::new();
    let gate = Gate::new();
    let held = gate.clone();
    let (queue, jobs) = harness.open(JobType::<Value>::new("slow").phase(ONE, move |cx| {
        cx.progress(7.5, "more than all");
        held.pass(cx);
        Ok(Value::Null)
    }));
    let mut with = queue.subscribe().unwrap().with_progress();
    let id = jobs.enqueue(&Value::Null).unwrap();
    let progress = std::iter::repeat_with(|| harness.next(&mut with))
        .find(|event| event.kind == EventKind::Progress)
        .unwrap();
    assert_eq!((progress.seq, progress.job_id), (0, id));
    assert_eq!(progress.data["fraction"], json!(1.0), "0 to 1");
    assert_eq!(progress.data["message"], json!("more than all"));
    gate.open();
    harness.wait_for(&queue, id, JobStatus::Completed);
    assert!(!events_of(&queue, id).contains(&"job:progress"));
    let mut without = queue.subscribe_after(0);
    while let Ok(notice) = without.recv_timeout(Duration::ZERO) {
        let Notice::Event(event) = notice else {
            panic!("{notice:?}")
        };
        assert_ne!(event.kind, EventKind::Progress);
    }
}

#[test]
fn a_job_can_have_256_phases() {
    let harness = Harness::new();
    let job_type = JobType::planned(
        "long",
        |count: &u32| {
            Ok(JobPlan::new(
                (0..*count).map(|n| PhaseSpec::new(format!("p{n}"))),
            ))
        },
        |cx| match cx.plan() {
            (_, 0) => Ok(json!(0)),
            (plan, index) => {
                let before = cx.get_json(&plan[index - 1].name)?;
                Ok(json!(before.as_u64().map(|n| n + 1)))
            }
        },
    );
    let (queue, jobs) = harness.open(job_type);
    let id = harness.run_one(&queue, &jobs, &256);
    let job = queue.get(id).unwrap().unwrap();
    assert_eq!(job.phases.len(), 256);
    assert_eq!(job.phases[255].result, Some(json!(255)));
    assert_sound(&queue);
}

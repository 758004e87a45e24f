//! Tries after the first: by the policy, by what the handler says, and by hand.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use crossbeam_channel::unbounded;
use serde_json::{Value, json};
use stepwell::{
    BulkAction, CancelOutcome, ErrorCause, ErrorKind, EventKind, JobQueue, JobStatus, JobType,
    Phase, PhaseError, PhaseStatus, RetryFrom, RetryPolicy,
};

use crate::support::{
    Gate, Harness, ONE, TWO, assert_refused, assert_sound, at_once, count, events_of,
};

/// Fails until its attempt is `works_at`.
fn stubborn(tries: u32, works_at: u32) -> JobType<Value, Value> {
    JobType::<Value>::new("stubborn")
        .retry(at_once(tries))
        .phase(ONE, move |cx| {
            if cx.attempt() == works_at {
                Ok(json!("done"))
            } else {
                Err(PhaseError::retry(format!("try {}", cx.attempt())))
            }
        })
}

/// Fails until the switch is on.
fn switched() -> (JobType<Value, Value>, Arc<AtomicBool>) {
    let switch = Arc::new(AtomicBool::new(false));
    let is_on = switch.clone();
    let job_type = JobType::<Value>::new("switched")
        .retry(RetryPolicy::never())
        .phase(ONE, |cx| Ok(json!(cx.attempt())))
        .phase(TWO, move |cx| {
            if is_on.load(Ordering::SeqCst) {
                cx.get(ONE)
            } else {
                Err(PhaseError::retry("switched off"))
            }
        });
    (job_type, switch)
}

#[test]
fn a_failed_phase_is_tried_again_until_it_works() {
    let harness = Harness::new();
    let (queue, jobs) = harness.open(stubborn(5, 3));
    let id = harness.run_one(&queue, &jobs, &Value::Null);
    let job = queue.get(id).unwrap().unwrap();
    assert_eq!((job.attempt, job.phases[0].attempt), (3, 3));
    let errors: Vec<_> = job
        .errors
        .iter()
        .map(|error| (error.attempt, error.kind, &*error.message))
        .collect();
    assert_eq!(
        errors,
        [
            (1, ErrorCause::Error, "try 1"),
            (2, ErrorCause::Error, "try 2")
        ]
    );
    assert_eq!(count(&queue, id, EventKind::Retrying), 2);
    assert_sound(&queue);
}

#[test]
fn a_job_has_failed_when_no_try_is_left() {
    let harness = Harness::new();
    let (queue, jobs) = harness.open(stubborn(3, 9));
    let id = jobs.enqueue(&Value::Null).unwrap();
    let job = harness.wait_for(&queue, id, JobStatus::Failed);
    assert_eq!((job.attempt, job.errors.len()), (3, 3));
    assert_eq!(job.phases[0].status, PhaseStatus::Failed);
    assert_eq!(job.phases[0].error.as_deref(), Some("try 3"));
    let failed = harness.wait_event(&queue, id, EventKind::Failed);
    assert_eq!(
        (&failed.data["kind"], &failed.data["message"]),
        (&json!("error"), &json!("try 3"))
    );
    assert_eq!(count(&queue, id, EventKind::Failed), 1);
    assert_sound(&queue);
}

#[test]
fn a_handler_sees_the_error_of_the_try_before() {
    let harness = Harness::new();
    let (tx, seen) = unbounded();
    let job_type = JobType::<Value>::new("look")
        .retry(at_once(2))
        .phase(ONE, move |cx| {
            let last = cx.last_error();
            tx.send(last.map(|error| (error.attempt, error.message.clone())))
                .unwrap();
            match cx.attempt() {
                1 => Err(PhaseError::retry("the first")),
                _ => Ok(Value::Null),
            }
        });
    let (queue, jobs) = harness.open(job_type);
    harness.run_one(&queue, &jobs, &Value::Null);
    let seen: Vec<_> = seen.try_iter().collect();
    assert_eq!(seen, [None, Some((1, "the first".to_owned()))]);
}

#[test]
fn a_panic_is_a_failed_try_with_its_place_and_backtrace() {
    let harness = Harness::new();
    let job_type = JobType::<Value>::new("panic")
        .retry(at_once(2))
        .phase(ONE, |cx| match cx.attempt() {
            1 => panic!("out of {}", "cheese"),
            _ => Ok(Value::Null),
        });
    let (queue, jobs) = harness.open(job_type);
    let id = harness.run_one(&queue, &jobs, &Value::Null);
    let job = queue.get(id).unwrap().unwrap();
    let error = &job.errors[0];
    assert_eq!(error.kind, ErrorCause::Panic);
    assert!(
        error.message.starts_with("panicked at tests/it/retry.rs:"),
        "{}",
        error.message
    );
    assert!(
        error.message.ends_with(": out of cheese"),
        "{}",
        error.message
    );
    let backtrace = error.backtrace.as_deref().unwrap_or_default();
    assert!(backtrace.contains("retry"), "{backtrace}");
    assert!(queue.health().is_good(), "no thread of ours was harmed");
}

#[test]
fn a_panic_whose_value_panics_when_dropped_harms_no_worker() {
    struct Spiteful;
    impl Drop for Spiteful {
        fn drop(&mut self) {
            panic!("dropped");
        }
    }
    let harness = Harness::new();
    let mut builder = harness.builder().workers(1);
    let jobs = builder.register(
        JobType::<Value>::new("spite")
            .retry(RetryPolicy::never())
            .phase(ONE, |cx| {
                if cx.input().is_null() {
                    std::panic::panic_any(Spiteful);
                }
                Ok(Value::Null)
            }),
    );
    let queue = builder.open().unwrap();
    let id = jobs.enqueue(&Value::Null).unwrap();
    let job = harness.wait_for(&queue, id, JobStatus::Failed);
    assert!(
        job.errors[0]
            .message
            .ends_with("with a value that is no text"),
        "{}",
        job.errors[0].message
    );
    harness.run_one(&queue, &jobs, &json!(1));
}

#[test]
fn a_handler_that_says_fail_has_no_more_tries() {
    let harness = Harness::new();
    let job_type = JobType::<Value>::new("refuse")
        .retry(at_once(5))
        .phase(ONE, |_| Err::<Value, _>(PhaseError::fail("never")));
    let (queue, jobs) = harness.open(job_type);
    let id = jobs.enqueue(&Value::Null).unwrap();
    let job = harness.wait_for(&queue, id, JobStatus::Failed);
    assert_eq!((job.attempt, job.errors.len()), (1, 1));
}

#[test]
fn a_handler_can_cancel_its_own_job() {
    let harness = Harness::new();
    let job_type = JobType::<Value>::new("quit")
        .phase(ONE, |_| Ok(Value::Null))
        .phase(TWO, |_| Err::<Value, _>(PhaseError::cancel()));
    let (queue, jobs) = harness.open(job_type);
    let id = jobs.enqueue(&Value::Null).unwrap();
    let job = harness.wait_for(&queue, id, JobStatus::Cancelled);
    assert_eq!(job.phases[1].status, PhaseStatus::Cancelled);
    assert_eq!(count(&queue, id, EventKind::Cancelled), 1);
    assert_eq!(job.errors, []);
    assert_sound(&queue);
}

#[test]
fn a_phase_with_its_own_limit_counts_its_own_tries() {
    const PATIENT: Phase<Value> = Phase::new("two").max_attempts(4);
    let harness = Harness::new();
    let (tx, tries) = unbounded();
    let job_type = JobType::<Value>::new("mixed")
        .retry(at_once(3))
        .phase(ONE, |cx| match cx.attempt() {
            1 | 2 => Err(PhaseError::retry("one")),
            _ => Ok(Value::Null),
        })
        .phase(PATIENT, move |cx| {
            tx.send(cx.attempt()).unwrap();
            Err::<Value, _>(PhaseError::retry("two"))
        });
    let (queue, jobs) = harness.open(job_type);
    let id = jobs.enqueue(&Value::Null).unwrap();
    let job = harness.wait_for(&queue, id, JobStatus::Failed);
    // Two tries of the first phase failed; the second has four of its own, the first of them in the third attempt.
    assert_eq!(tries.try_iter().collect::<Vec<_>>(), [3, 4, 5, 6]);
    assert_eq!(job.attempt, 6);
}

/// The bug: a phase kept the policy that its type had when the phase was added, and waited by the default one.
#[test]
fn a_phase_with_its_own_limit_waits_by_the_policy_of_its_type() {
    const PATIENT: Phase<Value> = Phase::new("one").max_attempts(3);
    let harness = Harness::with_fake_clock();
    let job_type = JobType::<Value>::new("late")
        .phase(PATIENT, |_| Err::<Value, _>(PhaseError::retry("no")))
        .retry(at_once(1));
    let (queue, jobs) = harness.open(job_type);
    let id = jobs.enqueue(&Value::Null).unwrap();
    // The clock stands still: nothing that waits is tried again.
    let job = harness.wait_for(&queue, id, JobStatus::Failed);
    assert_eq!(job.attempt, 3);
}

/// The bug: a delay was asked for after the last try too, and a panic there lost the outcome and poisoned the queue.
#[test]
fn a_delay_of_ones_own_may_panic() {
    let harness = Harness::new();
    let waits = [Duration::ZERO, Duration::ZERO];
    let short = RetryPolicy::custom(move |failed| waits[failed as usize - 1]).max_attempts(3);
    let broken = RetryPolicy::custom(|_| panic!("no delay")).cap(Duration::ZERO);
    let fails = |name: &str, policy: RetryPolicy| {
        JobType::<Value>::new(name)
            .retry(policy)
            .phase(ONE, |_| Err::<Value, _>(PhaseError::retry("no")))
    };
    let mut builder = harness.builder();
    let types = [
        fails("short", short),
        fails("broken", broken.max_attempts(3)),
    ];
    let jobs = types.map(|job_type| builder.register(job_type));
    let queue = builder.open().unwrap();
    for jobs in &jobs {
        let id = jobs.enqueue(&Value::Null).unwrap();
        let job = harness.wait_for(&queue, id, JobStatus::Failed);
        assert_eq!((job.attempt, job.errors.len()), (3, 3));
    }
    assert!(queue.health().is_good());
}

/// The bug: at a timeout it was called by whoever commits, and waited for itself when it called the queue.
#[test]
fn a_delay_of_ones_own_may_call_the_queue() {
    let harness = Harness::with_fake_clock();
    let slot: Arc<OnceLock<JobQueue>> = Arc::default();
    let (own, gate) = (slot.clone(), Gate::new());
    let policy = RetryPolicy::custom(move |_| {
        if let Some(queue) = own.get() {
            queue.pause_type("another").unwrap();
        }
        Duration::ZERO
    });
    let inside = gate.clone();
    let job_type = JobType::<Value>::new("slow")
        .retry(policy.max_attempts(2))
        .phase(ONE.timeout(Duration::from_secs(1)), move |cx| {
            inside.pass(cx);
            Ok(Value::Null)
        });
    let (queue, jobs) = harness.open(job_type);
    assert!(slot.set(queue.clone()).is_ok());
    let id = jobs.enqueue(&Value::Null).unwrap();
    gate.wait(&harness);
    harness.clock().advance(Duration::from_secs(2));
    harness.wait_event(&queue, id, EventKind::PhaseFailed);
    gate.open();
    gate.open();
    harness.wait_for(&queue, id, JobStatus::Completed);
    queue.shutdown(harness.left()).unwrap();
}

/// The bug: each time the tries of the second phase began anew, and the job never ended.
#[test]
fn a_phase_with_its_own_limit_that_goes_back_ends_by_the_limit_of_the_job() {
    const PATIENT: Phase<Value> = Phase::new("two").max_attempts(3);
    const NUMBER: Phase<f64> = Phase::new("one");
    let harness = Harness::new();
    let job_type = JobType::<Value>::new("back")
        .retry(at_once(4))
        // Written as `null`, which is no number.
        .phase(NUMBER, |_| Ok(f64::NAN))
        .phase(PATIENT, |cx| Ok(json!(cx.get(NUMBER)?)));
    let (queue, jobs) = harness.open(job_type);
    let id = jobs.enqueue(&Value::Null).unwrap();
    let job = harness.wait_for(&queue, id, JobStatus::Failed);
    assert_eq!(job.attempt, 4);
    assert_sound(&queue);
}

#[test]
fn an_error_by_question_mark_is_told_with_its_causes() {
    let harness = Harness::new();
    let job_type = JobType::<String>::new("parse")
        .retry(RetryPolicy::never())
        .phase(ONE, |cx| {
            let number: i64 = cx.input().parse()?;
            Ok(json!(number))
        });
    let (queue, jobs) = harness.open(job_type);
    let id = jobs.enqueue(&"seven".to_owned()).unwrap();
    let job = harness.wait_for(&queue, id, JobStatus::Failed);
    assert_eq!(job.errors[0].message, "invalid digit found in string");
}

#[test]
fn a_retry_from_the_start_forgets_every_result() {
    let harness = Harness::new();
    let (job_type, switch) = switched();
    let (queue, jobs) = harness.open(job_type);
    let id = jobs.enqueue(&Value::Null).unwrap();
    harness.wait_for(&queue, id, JobStatus::Failed);
    switch.store(true, Ordering::SeqCst);
    queue.pause().unwrap();
    queue.retry(id, RetryFrom::Start).unwrap();
    let job = queue.get(id).unwrap().unwrap();
    assert_eq!((job.status, job.phases_done), (JobStatus::Pending, 0));
    assert!(job.phases.iter().all(|phase| phase.result.is_none()));
    queue.resume().unwrap();
    harness.wait_for(&queue, id, JobStatus::Completed);
    assert_eq!(count(&queue, id, EventKind::PhaseCompleted), 3);
    let retrying = harness.wait_event(&queue, id, EventKind::Retrying);
    assert_eq!(retrying.data["from"], json!("start"));
    assert_sound(&queue);
}

#[test]
fn a_retry_resumes_at_the_failed_phase_with_all_its_tries() {
    let harness = Harness::new();
    let (queue, jobs) = harness.open(stubborn(2, 9));
    let id = jobs.enqueue(&Value::Null).unwrap();
    harness.wait_for(&queue, id, JobStatus::Failed);
    let requested = queue.stats().unwrap().head_seq;
    queue.retry(id, RetryFrom::Failed).unwrap();
    harness.wait_event_after(&queue, id, EventKind::Failed, requested);
    let job = queue.get(id).unwrap().unwrap();
    let attempts: Vec<u32> = job.errors.iter().map(|error| error.attempt).collect();
    assert_eq!(attempts, [1, 2, 1, 2], "a new series, the history is kept");
    assert_eq!(count(&queue, id, EventKind::Failed), 2, "one for each");
    assert_sound(&queue);
}

#[test]
fn a_cancelled_job_can_be_retried() {
    let harness = Harness::new();
    let (queue, jobs) = harness.open(stubborn(1, 1));
    queue.pause().unwrap();
    let id = jobs.enqueue(&Value::Null).unwrap();
    assert_eq!(queue.cancel(id).unwrap(), CancelOutcome::Cancelled);
    queue.retry(id, RetryFrom::Failed).unwrap();
    queue.resume().unwrap();
    harness.wait_for(&queue, id, JobStatus::Completed);
    assert_eq!(
        events_of(&queue, id)[..4],
        [
            "job:created",
            "job:cancelled",
            "job:retrying",
            "job:started"
        ]
    );
    assert_sound(&queue);
}

#[test]
fn only_failed_and_cancelled_jobs_can_be_retried() {
    let harness = Harness::new();
    let gate = Gate::new();
    let held = gate.clone();
    let (queue, jobs) = harness.open(JobType::<Value>::new("hold").phase(ONE, move |cx| {
        held.pass(cx);
        Ok(Value::Null)
    }));
    let refused = |status: &str, id| {
        let says = format!("job {id} is {status}: only failed and cancelled jobs can be retried");
        assert_refused(
            queue.retry(id, RetryFrom::Start),
            ErrorKind::Conflict,
            &says,
        );
    };
    let id = jobs.enqueue(&Value::Null).unwrap();
    gate.wait(&harness);
    refused("running", id);
    queue.pause().unwrap();
    refused("pending", jobs.enqueue(&Value::Null).unwrap());
    gate.open();
    harness.wait_for(&queue, id, JobStatus::Completed);
    refused("completed", id);
}

/// 50 rounds, 2 threads.
#[test]
fn of_two_concurrent_retries_one_wins() {
    let harness = Harness::new();
    let (queue, jobs) = harness.open(stubborn(1, 1));
    queue.pause().unwrap();
    for _ in 0..50 {
        let id = jobs.enqueue(&Value::Null).unwrap();
        assert_eq!(queue.cancel(id).unwrap(), CancelOutcome::Cancelled);
        let barrier = std::sync::Barrier::new(2);
        let retry = || {
            barrier.wait();
            queue.retry(id, RetryFrom::Failed)
        };
        let answers = std::thread::scope(|scope| {
            let other = scope.spawn(retry);
            [retry(), other.join().unwrap()]
        });
        let (won, lost): (Vec<_>, Vec<_>) = answers.into_iter().partition(Result::is_ok);
        assert_eq!((won.len(), lost.len()), (1, 1));
        assert_eq!(count(&queue, id, EventKind::Retrying), 1);
    }
    assert_sound(&queue);
}

#[test]
fn a_retry_of_many_is_refused_when_they_are_not_as_many_as_expected() {
    let harness = Harness::new();
    let (job_type, switch) = switched();
    let (queue, jobs) = harness.open(job_type);
    let ids = jobs.enqueue_many(&[Value::Null, Value::Null, Value::Null]);
    let ids = ids.unwrap();
    for id in &ids {
        harness.wait_for(&queue, *id, JobStatus::Failed);
    }
    let retry = BulkAction::Retry(RetryFrom::Failed);
    let failed = JobStatus::Failed;
    assert_refused(
        queue.bulk(retry, failed, None, Some(2)),
        ErrorKind::Conflict,
        "3 jobs are failed, not 2: look again, nothing was changed",
    );
    assert_eq!(queue.stats().unwrap().failed, 3);
    assert_eq!(queue.bulk(retry, failed, Some("other"), None).unwrap(), 0);
    assert_refused(
        queue.bulk(retry, failed, Some("other"), Some(3)),
        ErrorKind::Conflict,
        "0 jobs of type \"other\" are failed, not 3",
    );
    switch.store(true, Ordering::SeqCst);
    let retried = queue.bulk(retry, failed, Some("switched"), Some(3));
    assert_eq!(retried.unwrap(), 3);
    for id in &ids {
        harness.wait_for(&queue, *id, JobStatus::Completed);
    }
    assert_refused(
        queue.bulk(retry, JobStatus::Completed, None, None),
        ErrorKind::Conflict,
        "is completed: only failed and cancelled jobs can be retried",
    );
    assert_sound(&queue);
}

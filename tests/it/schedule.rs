//! Time: what waits for it starts when it has come, not before and not twice, whatever the wall clock does.

use std::time::Duration;

use crossbeam_channel::unbounded;
use serde_json::{Value, json};
use stepwell::testing::FakeClock;
use stepwell::{
    ErrorCause, EventKind, Hindrance, JobHandle, JobId, JobQueue, JobStatus, JobType, NewJob,
    Phase, PhaseError, RetryPolicy, StopReason, Timestamp,
};

use crate::support::{Gate, Harness, ONE, START, TWO, assert_sound, at_once, count, events_of};

const S: Duration = Duration::from_secs(1);
const MS: Duration = Duration::from_millis(1);

/// A fake clock, the type under test, and a type whose jobs are over at once.
struct Scene {
    harness: Harness,
    queue: JobQueue,
    jobs: JobHandle<Value, Value>,
    quick: JobHandle<Value, Value>,
}

impl Scene {
    fn new(job_type: JobType<Value, Value>) -> Scene {
        let harness = Harness::with_fake_clock();
        let mut builder = harness.builder();
        let jobs = builder.register(job_type);
        let quick =
            builder.register(JobType::<Value>::new("quick").phase(ONE, |_| Ok(Value::Null)));
        let queue = builder.open().unwrap();
        Scene {
            harness,
            queue,
            jobs,
            quick,
        }
    }

    fn enqueue(&self, job: impl FnOnce(NewJob) -> NewJob) -> JobId {
        let new = job(self.jobs.job(&Value::Null).unwrap());
        self.jobs.enqueue_job(new).unwrap().id
    }

    fn advance(&self, by: Duration) {
        self.harness.clock().advance(by);
    }

    /// That it still waits, after whatever was due has been done.
    #[track_caller]
    fn assert_waits(&self, id: JobId, run_at: Timestamp, is_retry: bool) {
        self.harness.run_one(&self.queue, &self.quick, &Value::Null);
        let explained = self.queue.explain(id).unwrap();
        assert_eq!(
            explained.hindrances,
            [Hindrance::NotDue { run_at, is_retry }]
        );
    }

    fn wait_for(&self, id: JobId, status: JobStatus) -> stepwell::Job {
        self.harness.wait_for(&self.queue, id, status)
    }
}

fn plain() -> JobType<Value, Value> {
    JobType::<Value>::new("plain").phase(ONE, |cx| Ok(json!(cx.attempt())))
}

/// Fails its first `times` attempts.
fn failing(times: u32, policy: RetryPolicy) -> JobType<Value, Value> {
    JobType::<Value>::new("failing")
        .retry(policy)
        .phase(ONE, move |cx| {
            if cx.attempt() <= times {
                Err(PhaseError::retry("not yet"))
            } else {
                Ok(Value::Null)
            }
        })
}

#[test]
fn a_delayed_job_starts_when_its_time_has_come_and_not_before() {
    let scene = Scene::new(plain());
    let id = scene.enqueue(|job| job.delay(60 * S));
    scene.assert_waits(id, START.after(60 * S), false);
    scene.advance(60 * S - MS);
    scene.assert_waits(id, START.after(60 * S), false);
    scene.advance(MS);
    let job = scene.wait_for(id, JobStatus::Completed);
    assert_eq!(job.started_at, Some(START.after(60 * S)));
    assert_eq!(job.created_at, START);
    assert_sound(&scene.queue);
}

#[test]
fn a_job_for_a_time_that_has_passed_starts_at_once() {
    let scene = Scene::new(plain());
    let id = scene
        .jobs
        .enqueue_at(&Value::Null, START.before(1000 * S))
        .unwrap();
    let job = scene.wait_for(id, JobStatus::Completed);
    assert_eq!(job.run_at, START);
    let later = scene.jobs.enqueue_at(&Value::Null, START.after(S)).unwrap();
    scene.assert_waits(later, START.after(S), false);
}

#[test]
fn an_earlier_job_that_comes_later_is_not_overslept() {
    let scene = Scene::new(plain());
    let late = scene.enqueue(|job| job.delay(100 * S));
    let early = scene.enqueue(|job| job.delay(10 * S));
    scene.advance(10 * S);
    scene.wait_for(early, JobStatus::Completed);
    scene.assert_waits(late, START.after(100 * S), false);
    scene.advance(90 * S);
    scene.wait_for(late, JobStatus::Completed);
}

#[test]
fn a_delayed_job_keeps_its_time_over_a_restart() {
    let harness = Harness::with_fake_clock();
    let (queue, jobs) = harness.open(plain());
    let new = jobs.job(&Value::Null).unwrap().delay(10 * S);
    let id = jobs.enqueue_job(new).unwrap().id;
    queue.shutdown(harness.left()).unwrap();
    let (queue, _) = harness.open(plain());
    assert_eq!(queue.status(id).unwrap(), Some(JobStatus::Pending));
    harness.clock().advance(10 * S);
    harness.wait_for(&queue, id, JobStatus::Completed);
}

#[test]
fn tries_wait_as_long_as_the_policy_says() {
    let policy = RetryPolicy::exponential(10 * S, 3.0)
        .jitter(0.0)
        .cap(60 * S);
    let scene = Scene::new(failing(4, policy));
    let id = scene.enqueue(|job| job);
    let (mut at, mut seq) = (START, 0);
    for wait in [10, 30, 60, 60] {
        let retrying = scene
            .harness
            .wait_event_after(&scene.queue, id, EventKind::Retrying, seq);
        at = at.after(wait * S);
        seq = retrying.seq;
        assert_eq!(retrying.data["run_at"], json!(at));
        assert_eq!(retrying.data["reason"], json!("failed"));
        scene.advance(wait * S - MS);
        scene.assert_waits(id, at, true);
        scene.advance(MS);
    }
    let job = scene.wait_for(id, JobStatus::Completed);
    assert_eq!(job.attempt, 5);
    assert_sound(&scene.queue);
}

#[test]
fn a_handler_can_say_when_it_wants_to_be_tried_again() {
    let job_type = JobType::<Value>::new("later")
        .retry(RetryPolicy::fixed(1000 * S).max_attempts(2))
        .phase(ONE, |_| {
            Err::<Value, _>(PhaseError::retry_after(7 * S, "busy"))
        });
    let scene = Scene::new(job_type);
    let id = scene.enqueue(|job| job);
    scene
        .harness
        .wait_event(&scene.queue, id, EventKind::Retrying);
    scene.assert_waits(id, START.after(7 * S), true);
    scene.advance(7 * S);
    let job = scene.wait_for(id, JobStatus::Failed);
    assert_eq!(job.attempt, 2, "the policy's limit holds all the same");
}

#[test]
fn a_snooze_is_no_try_and_no_error() {
    let (tx, naps) = unbounded();
    let job_type = JobType::<Value>::new("snooze")
        .retry(RetryPolicy::never())
        .phase(ONE, |_| Ok(Value::Null))
        .phase(TWO, move |cx| {
            tx.send(cx.attempt()).unwrap();
            if tx.len() < 4 {
                return Err(PhaseError::snooze(30 * S));
            }
            Ok(json!("awake"))
        });
    let scene = Scene::new(job_type);
    let id = scene.enqueue(|job| job);
    let mut seq = 0;
    for _ in 0..3 {
        let snoozed = scene
            .harness
            .wait_event_after(&scene.queue, id, EventKind::Retrying, seq);
        seq = snoozed.seq;
        assert_eq!(snoozed.data["reason"], json!("snoozed"));
        scene.advance(30 * S);
    }
    let job = scene.wait_for(id, JobStatus::Completed);
    assert_eq!((job.attempt, job.errors.len()), (1, 0));
    assert_eq!(naps.try_iter().collect::<Vec<_>>(), [1, 1, 1, 1]);
    assert_eq!(count(&scene.queue, id, EventKind::PhaseCompleted), 2);
    assert_sound(&scene.queue);
}

/// The bug: it was failed when the snooze was over, and whoever waited for it waited as long.
#[test]
fn a_snooze_past_the_deadline_fails_at_once() {
    let job_type = JobType::<Value>::new("snooze")
        .deadline(60 * S)
        .phase(ONE, |_| -> Result<Value, _> {
            Err(PhaseError::snooze(3600 * S))
        });
    let scene = Scene::new(job_type);
    let id = scene.enqueue(|job| job);
    let job = scene.wait_for(id, JobStatus::Failed);
    assert_eq!((job.attempt, job.errors[0].kind), (1, ErrorCause::Deadline));
    assert_sound(&scene.queue);
}

#[test]
fn a_phase_that_takes_too_long_is_a_failed_try_and_its_handler_is_told() {
    const TIMED: Phase<Value> = Phase::new("one").timeout(Duration::from_secs(5));
    let (tx, reasons) = unbounded();
    let job_type = JobType::<Value>::new("timed")
        .retry(at_once(2))
        .phase(TIMED, move |cx| {
            tx.send(cx.stop_reason()).unwrap();
            let slept = cx.sleep(3600 * S);
            tx.send(cx.stop_reason()).unwrap();
            slept.map(|()| Value::Null)
        });
    let scene = Scene::new(job_type);
    let id = scene.enqueue(|job| job);
    for _ in 0..2 {
        assert_eq!(scene.harness.recv(&reasons), None);
        scene.advance(5 * S);
        assert_eq!(scene.harness.recv(&reasons), Some(StopReason::Timeout));
    }
    let job = scene.wait_for(id, JobStatus::Failed);
    let errors: Vec<_> = job
        .errors
        .iter()
        .map(|error| (error.attempt, error.kind, &*error.message))
        .collect();
    let message = "the phase took longer than its timeout (5000 ms)";
    assert_eq!(
        errors,
        [
            (1, ErrorCause::Timeout, message),
            (2, ErrorCause::Timeout, message)
        ]
    );
    assert_sound(&scene.queue);
}

#[test]
fn each_phase_has_a_timeout_of_its_own() {
    const SHORT: Phase<Value> = Phase::new("one").timeout(Duration::from_secs(5));
    const LONG: Phase<Value> = Phase::new("two").timeout(Duration::from_secs(50));
    let gate = Gate::new();
    let (first, second) = (gate.clone(), gate.clone());
    let job_type = JobType::<Value>::new("two")
        .phase(SHORT, move |cx| {
            first.pass(cx);
            Ok(Value::Null)
        })
        .phase(LONG, move |cx| {
            second.pass(cx);
            Ok(json!(cx.is_cancelled()))
        });
    let scene = Scene::new(job_type);
    let id = scene.enqueue(|job| job);
    gate.wait(&scene.harness);
    scene.advance(4 * S);
    gate.open();
    gate.wait(&scene.harness);
    // The first one's alarm comes due in the second one.
    scene.advance(40 * S);
    scene
        .harness
        .run_one(&scene.queue, &scene.quick, &Value::Null);
    gate.open();
    let job = scene.wait_for(id, JobStatus::Completed);
    assert_eq!(job.phases[1].result, Some(json!(false)));
}

#[test]
fn a_running_job_fails_at_its_deadline() {
    let job_type = JobType::<Value>::new("due")
        .deadline(60 * S)
        .phase(ONE, |cx| {
            cx.sleep(3600 * S)?;
            Ok(Value::Null)
        });
    let scene = Scene::new(job_type);
    let by_type = scene.enqueue(|job| job);
    let own = scene.enqueue(|job| job.deadline(20 * S));
    for id in [by_type, own] {
        scene
            .harness
            .wait_event(&scene.queue, id, EventKind::PhaseStarted);
    }
    scene.advance(20 * S);
    let job = scene.wait_for(own, JobStatus::Failed);
    assert_eq!(job.errors[0].kind, ErrorCause::Deadline);
    assert_eq!(
        job.errors[0].message,
        "the deadline passed before the job was over"
    );
    assert_eq!(
        scene.queue.status(by_type).unwrap(),
        Some(JobStatus::Running)
    );
    scene.advance(40 * S);
    scene.wait_for(by_type, JobStatus::Failed);
    assert_sound(&scene.queue);
}

#[test]
fn a_job_that_waited_past_its_deadline_fails_without_being_run() {
    let scene = Scene::new(plain());
    scene.queue.pause().unwrap();
    let id = scene.enqueue(|job| job.deadline(10 * S));
    scene.advance(10 * S);
    scene.queue.resume().unwrap();
    let job = scene.wait_for(id, JobStatus::Failed);
    assert_eq!((job.attempt, job.errors[0].kind), (0, ErrorCause::Deadline));
    assert_eq!(events_of(&scene.queue, id), ["job:created", "job:failed"]);
    // Tried again by hand it has as much time as it had at first.
    scene.queue.retry(id, stepwell::RetryFrom::Failed).unwrap();
    let job = scene.wait_for(id, JobStatus::Completed);
    assert_eq!(job.deadline, Some(START.after(20 * S)));
    assert_sound(&scene.queue);
}

#[test]
fn a_try_that_would_come_after_the_deadline_is_not_waited_for() {
    let policy = RetryPolicy::fixed(30 * S).max_attempts(9);
    let scene = Scene::new(failing(9, policy));
    let id = scene.enqueue(|job| job.deadline(50 * S));
    scene
        .harness
        .wait_event(&scene.queue, id, EventKind::Retrying);
    scene.advance(30 * S);
    let job = scene.wait_for(id, JobStatus::Failed);
    assert_eq!(job.attempt, 2);
    assert_eq!(
        job.errors[1].message,
        "not yet (no time for another try: deadline)"
    );
}

#[test]
fn a_clock_that_is_set_back_stalls_nothing() {
    let scene = Scene::new(failing(1, RetryPolicy::fixed(5 * S)));
    let id = scene.enqueue(|job| job.delay(10 * S));
    scene.harness.clock().step_back(3600 * 24 * 365 * S);
    scene.advance(10 * S);
    scene
        .harness
        .wait_event(&scene.queue, id, EventKind::Retrying);
    scene.harness.clock().step_back(3600 * S);
    scene.advance(5 * S);
    let job = scene.wait_for(id, JobStatus::Completed);
    assert_eq!(job.finished_at, Some(START.after(15 * S)));
    assert!(job.created_at <= job.run_at);
    assert_sound(&scene.queue);
}

#[test]
fn a_clock_that_jumps_ahead_runs_each_waiting_job_once() {
    let scene = Scene::new(plain());
    let ids: Vec<JobId> = (1..=50)
        .map(|n| scene.enqueue(|job| job.delay(n * 3600 * S)))
        .collect();
    let year = 3600 * 24 * 365 * S;
    for _ in 0..3 {
        scene.advance(year);
        scene.harness.clock().step_back(year);
    }
    for id in ids {
        scene.wait_for(id, JobStatus::Completed);
        assert_eq!(count(&scene.queue, id, EventKind::Started), 1);
    }
    assert_sound(&scene.queue);
}

/// No time passes by that: a sleep of a minute took none, and a test that jumps to next year saw handlers give up waiting.
#[test]
fn a_clock_that_is_set_ahead_ends_no_sleep_of_a_handler() {
    let (tell, inside) = unbounded();
    let scene = Scene::new(JobType::<Value>::new("sleeper").phase(ONE, move |cx| {
        tell.send(()).unwrap();
        cx.sleep(60 * S)?;
        Ok(Value::Null)
    }));
    let id = scene.enqueue(|job| job);
    scene.harness.recv(&inside);
    // It falls asleep during one of them, and the others must not wake it.
    for _ in 0..20 {
        scene.harness.clock().step_forward(3600 * S);
        let quick = &scene.quick;
        scene.harness.run_one(&scene.queue, quick, &Value::Null);
    }
    let status = scene.queue.status(id).unwrap();
    assert_eq!(status, Some(JobStatus::Running));
    scene.harness.until("it has slept", || {
        scene.advance(60 * S);
        scene.queue.status(id).unwrap() == Some(JobStatus::Completed)
    });
}

/// The first of them was handed to an idle worker before the others were looked at.
#[test]
fn of_jobs_that_are_enqueued_together_the_most_important_starts_first() {
    let harness = Harness::new();
    let mut builder = harness.builder().workers(1);
    builder.register(plain());
    let queue = builder.open().unwrap();
    let job = |priority| {
        let new = NewJob::new("plain", &Value::Null).unwrap();
        new.priority(priority)
    };
    let mut seen = 0;
    // The first time of all the queue has not looked yet whether anything waits: then nothing is handed over at once.
    for _ in 0..20 {
        let jobs = queue.enqueue_all([0, 9, 5].map(job).into()).unwrap();
        for job in &jobs {
            harness.wait_for(&queue, job.id, JobStatus::Completed);
        }
        let events = queue.events_after(seen, 100).unwrap();
        let started = events
            .iter()
            .filter(|event| event.kind == EventKind::Started);
        let order: Vec<_> = started.map(|event| event.job_id).collect();
        assert_eq!(order, [jobs[1].id, jobs[2].id, jobs[0].id]);
        seen = events.last().unwrap().seq;
    }
    assert_sound(&queue);
}

/// The bug: what waited for another try waited until the clock had come there: for ever, on a board without a battery and a network.
#[test]
fn what_waits_is_tried_again_after_a_restart_with_a_clock_that_was_never_set() {
    let harness = Harness::with_fake_clock();
    let job_type = || {
        JobType::<Value>::new("flaky")
            .retry(RetryPolicy::fixed(30 * S))
            .phase(ONE, |cx| match cx.attempt() {
                1 => Err(PhaseError::retry("not yet")),
                _ => Ok(Value::Null),
            })
    };
    let (queue, jobs) = harness.open(job_type());
    let id = jobs.enqueue(&Value::Null).unwrap();
    harness.wait_event(&queue, id, EventKind::Retrying);
    queue.shutdown(harness.left()).unwrap();
    drop((queue, jobs));
    let clock = FakeClock::new(Timestamp::from_millis(5));
    let mut builder = harness.builder().clock(&clock);
    builder.register(job_type());
    let queue = builder.open().unwrap();
    assert!(clock.now() >= START, "{clock:?}");
    clock.advance(30 * S);
    let job = harness.wait_for(&queue, id, JobStatus::Completed);
    assert_eq!(job.attempt, 2);
    assert_sound(&queue);
}

/// The bug: the queue went on at the right time, and what had been enqueued by the clock that was ahead waited for that time.
#[test]
fn jobs_of_a_clock_that_was_ahead_start_once_it_is_right() {
    for (ahead, is_trusted) in [(64 * 365 * 24 * 3600 * S, false), (3600 * S, true)] {
        let harness = Harness::with_fake_clock();
        let wrong = FakeClock::new(START.after(ahead));
        let queue = harness.builder().clock(&wrong).open().unwrap();
        let id = queue.enqueue("quick", &Value::Null).unwrap();
        queue.shutdown(harness.left()).unwrap();
        drop(queue);
        let mut builder = harness.builder();
        if is_trusted {
            builder = builder.trust_clock();
        }
        builder.register(JobType::<Value>::new("quick").phase(ONE, |_| Ok(Value::Null)));
        let queue = builder.open().unwrap();
        assert_eq!(harness.clock().now(), START);
        harness.wait_for(&queue, id, JobStatus::Completed);
        assert_sound(&queue);
    }
}

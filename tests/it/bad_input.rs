//! What is not acceptable is refused with an error that says what was wrong and what to do, and nothing is changed.

use std::time::Duration;

use serde::Serialize;
use serde_json::{Value, json};
use stepwell::{
    BulkAction, ErrorCause, ErrorKind, JobHandle, JobId, JobPlan, JobQueue, JobStatus, JobType,
    ListFilter, NewJob, Phase, PhaseError, PhaseName, PhaseSpec, RetryFrom, RetryPolicy, Timestamp,
    While,
};

use crate::support::{Harness, ONE, TWO, assert_refused, assert_sound, at_once};

fn plain(name: &str) -> JobType<Value, Value> {
    JobType::<Value>::new(name).phase(ONE, |cx| Ok(cx.input().clone()))
}

// ---- Names and payloads ----

#[test]
fn a_bad_job_type_name_is_refused() {
    let harness = Harness::new();
    let queue = harness.open_without_workers();
    let long = "x".repeat(129);
    for (name, says) in [
        ("", "job type \"\" is not a name: it is empty"),
        (
            "a b",
            "job type \"a b\" is not a name: allowed are the characters A-Z a-z 0-9 _ . : -",
        ),
        (
            "a\r\nevent: x",
            "job type \"a\\r\\nevent: x\" is not a name",
        ),
        ("käse", "is not a name: allowed are the characters"),
        ("a/../b", "is not a name"),
        ("nul\0", "job type \"nul\\0\" is not a name"),
        (&long, "it has 129 bytes, at most 128 are allowed"),
    ] {
        assert_refused(queue.enqueue(name, &1), ErrorKind::InvalidJob, says);
        let client = harness.client();
        assert_refused(client.enqueue(name, &1), ErrorKind::InvalidJob, says);
    }
    assert!(queue.enqueue(&long[..128], &1).is_ok());
    assert_eq!(queue.stats().unwrap().head_seq, 1);
}

/// The bug: a request for many jobs wrote the name of the type down, whatever it was, and the file was sound no more.
#[test]
fn a_bad_job_type_name_is_refused_where_jobs_are_selected() {
    let harness = Harness::new();
    let queue = harness.open_without_workers();
    let client = harness.client();
    let says = "job type \"a b\" is not a name";
    let kind = ErrorKind::InvalidJob;
    let retry = BulkAction::Retry(RetryFrom::Failed);
    let (failed, name) = (JobStatus::Failed, Some("a b"));
    assert_refused(queue.bulk(retry, failed, name, Some(0)), kind, says);
    assert_refused(client.bulk(retry, failed, name, None), kind, says);
    let filter = ListFilter::new().job_type("a b");
    assert_refused(queue.list(&filter), kind, says);
    assert_refused(client.list(&filter), kind, says);
    assert_refused(queue.pause_type("a b"), kind, says);
    assert_refused(queue.resume_type(""), kind, "it is empty");
    assert_sound(&queue);
}

/// The limits as they are when nobody sets them.
#[test]
fn a_result_may_have_a_mebibyte_and_no_more() {
    let harness = Harness::new();
    let (queue, jobs) = harness.open(
        JobType::<usize>::new("bytes")
            .phase(ONE, |cx| Ok(Value::from("x".repeat(*cx.input() - 2)))),
    );
    let run = |bytes: usize| {
        let id = jobs.enqueue(&bytes).unwrap();
        queue.wait(id, harness.left()).unwrap()
    };
    assert_eq!(run(1 << 20).status, JobStatus::Completed);
    let job = run((1 << 20) + 1);
    assert_eq!((job.status, job.attempt), (JobStatus::Failed, 1));
    let says = "the result: it has 1048577 bytes, at most 1048576 are allowed";
    assert!(job.errors[0].message.starts_with(says), "{job:#?}");
}

/// Times as far away as their types allow: nothing overflows, and what is due is due.
#[test]
fn the_longest_durations_and_the_farthest_times_are_accepted() {
    let harness = Harness::new();
    let mut builder = harness.builder();
    const LONG: Phase<Value> = Phase::new("long").timeout(Duration::MAX);
    let policy = RetryPolicy::exponential(Duration::MAX, 1000.0).cap(Duration::MAX);
    let jobs = builder.register(
        JobType::<Value>::new("long")
            .retry(policy)
            .phase(LONG, |cx| match cx.attempt() {
                1 if cx.input() == "fail" => Err(PhaseError::retry("no")),
                1 if cx.input() == "snooze" => Err(PhaseError::snooze(Duration::MAX)),
                _ => Ok(Value::Null),
            }),
    );
    let queue = builder.open().unwrap();
    let far = Timestamp::from_millis(i64::MAX);
    let job = || NewJob::new("long", &Value::Null).unwrap();
    let late = [
        job().delay(Duration::MAX),
        job().run_at(far).deadline(Duration::MAX),
        jobs.job(&json!("fail")).unwrap(),
        jobs.job(&json!("snooze")).unwrap(),
    ];
    let late = queue.enqueue_all(late.into()).unwrap();
    let now = [
        job().run_at(Timestamp::from_millis(i64::MIN)),
        job().unique_key("k", While::For(Duration::MAX)),
    ];
    for enqueued in queue.enqueue_all(now.into()).unwrap() {
        let job = queue.wait(enqueued.id, Duration::MAX).unwrap();
        assert_eq!(job.status, JobStatus::Completed);
    }
    for enqueued in late {
        harness.wait_for(&queue, enqueued.id, JobStatus::Pending);
        queue.explain(enqueued.id).unwrap();
    }
    assert_sound(&queue);
    queue.shutdown(Duration::MAX).unwrap();
}

#[test]
fn a_payload_over_the_limit_is_refused() {
    let harness = Harness::new();
    let (queue, jobs) = harness.open(plain("plain"));
    let text = |bytes: usize| Value::from("x".repeat(bytes - 2));
    assert_refused(
        jobs.enqueue(&text(256 * 1024 + 1)),
        ErrorKind::InvalidJob,
        "job type \"plain\": input: it has 262145 bytes, at most 262144 are allowed: keep the data elsewhere and pass a \
         reference",
    );
    let id = harness.run_one(&queue, &jobs, &text(256 * 1024));
    assert_eq!(
        queue.get(id).unwrap().unwrap().input,
        text(256 * 1024),
        "the limit itself is allowed"
    );
    queue.shutdown(harness.left()).unwrap();

    let queue = harness.builder().max_payload(10).open().unwrap();
    assert!(queue.enqueue("plain", &json!("12345678")).is_ok());
    assert_refused(
        queue.enqueue("plain", &json!("123456789")),
        ErrorKind::InvalidJob,
        "it has 11 bytes, at most 10 are allowed",
    );

    let large = text(256 * 1024 + 1);
    let says = "it has 262145 bytes, at most 262144 are allowed";
    let client = harness.client();
    let refused = client.enqueue("plain", &large);
    assert_refused(refused, ErrorKind::InvalidJob, says);
    let client = client.max_payload(512 * 1024);
    let id = client.enqueue("plain", &large).unwrap();
    assert_eq!(client.get(id).unwrap().unwrap().input, large);
}

#[test]
fn json_that_is_too_deep_is_refused() {
    let harness = Harness::new();
    let (queue, jobs) = harness.open(plain("plain"));
    let deep = |levels: usize| (0..levels).fold(Value::Null, |inner, _| json!([inner]));
    // With one level more it could be written, and never read again.
    assert_refused(
        jobs.enqueue(&deep(128)),
        ErrorKind::InvalidJob,
        "input: its JSON is 128 levels deep, at most 127 are allowed",
    );
    let id = jobs.enqueue(&deep(127)).unwrap();
    let job = harness.wait_for(&queue, id, JobStatus::Completed);
    assert_eq!(job.phases[0].result, Some(deep(127)));
}

#[test]
fn an_input_that_is_no_json_is_refused() {
    #[derive(Serialize)]
    struct Strange {
        by_place: std::collections::BTreeMap<(i32, i32), i32>,
    }
    let harness = Harness::new();
    let queue = harness.open_without_workers();
    let strange = Strange {
        by_place: [((1, 2), 3)].into(),
    };
    assert_refused(
        queue.enqueue("plain", &strange),
        ErrorKind::InvalidJob,
        "job type \"plain\": the input cannot be written as JSON: key must be a string",
    );
}

#[test]
fn a_unique_key_has_1_to_512_bytes() {
    let harness = Harness::new();
    let queue = harness.open_without_workers();
    let with_key = |bytes: usize| {
        let job = NewJob::new("plain", &1).unwrap();
        queue.enqueue_job(job.unique_key("k".repeat(bytes), While::Live))
    };
    for bytes in [0, 513] {
        let says = format!("job type \"plain\": unique key has {bytes} bytes: expected 1 to 512");
        assert_refused(with_key(bytes), ErrorKind::InvalidJob, &says);
    }
    assert!(with_key(512).unwrap().is_new);
}

#[test]
fn phases_of_a_single_job_are_checked_like_those_of_a_type() {
    let harness = Harness::new();
    let queue = harness.open_without_workers();
    let with = |names: &[&str]| {
        let job = NewJob::new("planned", &1).unwrap();
        queue.enqueue_job(job.phases(names.iter().map(|name| PhaseName::new(*name))))
    };
    for (names, says) in [
        (&[][..], "job type \"planned\": it has no phase"),
        (
            &["a", "a"],
            "job type \"planned\": phase \"a\" is there twice: names must differ",
        ),
        (
            &["a", "b c"],
            "job type \"planned\": phase \"b c\" is not a name",
        ),
    ] {
        assert_refused(with(names), ErrorKind::InvalidJob, says);
    }
}

/// The bug: only the policies of types were looked at.
#[test]
fn a_plan_with_a_policy_that_makes_no_sense_refuses_the_job() {
    let harness = Harness::new();
    let (_queue, jobs): (JobQueue, JobHandle<u32, ()>) = harness.open(JobType::planned(
        "planned",
        |which: &u32| {
            let (never, wild) = (at_once(0), RetryPolicy::default().jitter(3.0));
            let phase = PhaseSpec::new("a");
            Ok(match which {
                0 => JobPlan::new([phase.retry(never)]),
                _ => JobPlan::new([phase]).retry(wild),
            })
        },
        |_| Ok(()),
    ));
    for (input, says) in [(0, "max_attempts is 0"), (1, "jitter is 3")] {
        let says = format!("job type \"planned\": retry policy: {says}");
        assert_refused(jobs.enqueue(&input), ErrorKind::InvalidJob, &says);
    }
}

#[test]
fn a_planner_that_refuses_an_input_refuses_the_job() {
    let harness = Harness::new();
    let (queue, jobs): (JobQueue, JobHandle<u32, ()>) = harness.open(JobType::planned(
        "planned",
        |count: &u32| match count {
            7 => Err("seven is too many".to_owned()),
            count => Ok(JobPlan::new(
                (0..*count).map(|n| PhaseSpec::new(format!("p{n}"))),
            )),
        },
        |_| Ok(()),
    ));
    for (input, says) in [
        (7, "job type \"planned\": seven is too many"),
        (0, "job type \"planned\": it has no phase"),
        (
            257,
            "job type \"planned\": it has 257 phases, at most 256 are allowed",
        ),
    ] {
        assert_refused(jobs.enqueue(&input), ErrorKind::InvalidJob, says);
    }
    assert_refused(
        queue.enqueue("planned", &"text"),
        ErrorKind::InvalidJob,
        "job type \"planned\": its input cannot be decoded: invalid type: string",
    );
    assert_eq!(queue.stats().unwrap().head_seq, 0);
}

// ---- Results ----

#[test]
fn a_result_that_cannot_be_kept_fails_the_job_at_once() {
    let harness = Harness::new();
    let mut builder = harness.builder().max_result(100);
    builder.register(JobType::<u32>::new("bytes").phase(ONE, |cx| {
        Ok(Value::from("x".repeat(*cx.input() as usize - 2)))
    }));
    builder.register(JobType::<u32>::new("depth").phase(ONE, |cx| {
        Ok((0..*cx.input()).fold(Value::Null, |inner, _| json!([inner])))
    }));
    const MAP: Phase<std::collections::BTreeMap<(i32, i32), i32>> = Phase::new("map");
    builder.register(JobType::<u32>::new("map").phase(MAP, |_| Ok([((1, 2), 3)].into())));
    builder.register(
        JobType::<u32>::new("save")
            .phase(ONE, |cx| {
                cx.save(&"x".repeat(*cx.input() as usize))?;
                Ok(Value::Null)
            })
            .retry(RetryPolicy::never()),
    );
    let queue = builder.open().unwrap();
    let run = |job_type: &str, input: u32| {
        let id = queue.enqueue(job_type, &input).unwrap();
        queue.wait(id, harness.left()).unwrap()
    };
    assert_eq!(run("bytes", 100).status, JobStatus::Completed);
    for (job_type, input, says) in [
        (
            "bytes",
            101,
            "the result: it has 101 bytes, at most 100 are allowed: keep the data elsewhere and pass a reference",
        ),
        (
            "map",
            0,
            "the result cannot be written as JSON: key must be a string",
        ),
        (
            "save",
            99,
            "checkpoint: it has 101 bytes, at most 100 are allowed: keep the data elsewhere and pass a reference",
        ),
    ] {
        let job = run(job_type, input);
        assert_eq!((job.status, job.attempt), (JobStatus::Failed, 1));
        let error = &job.errors[0];
        assert!(error.message.ends_with(says), "{}", error.message);
        let is_result = job_type != "save";
        assert_eq!(error.kind == ErrorCause::Result, is_result, "{job_type}");
    }
    queue.shutdown(harness.left()).unwrap();

    let mut builder = harness.builder();
    builder.register(JobType::<u32>::new("depth").phase(ONE, |cx| {
        Ok((0..*cx.input()).fold(Value::Null, |inner, _| json!([inner])))
    }));
    let queue = builder.open().unwrap();
    let id = queue.enqueue("depth", &129).unwrap();
    let job = harness.wait_for(&queue, id, JobStatus::Failed);
    assert_eq!(
        job.errors[0].message,
        "the result: its JSON is 129 levels deep, at most 127 are allowed"
    );
}

#[test]
fn a_long_message_is_cut() {
    let harness = Harness::new();
    let (queue, jobs) = harness.open(
        JobType::<Value>::new("chatty")
            .retry(RetryPolicy::never())
            .phase(ONE, |_| {
                Err::<Value, _>(stepwell::PhaseError::retry("é".repeat(10_000)))
            }),
    );
    let id = jobs.enqueue(&Value::Null).unwrap();
    let job = harness.wait_for(&queue, id, JobStatus::Failed);
    assert_eq!(job.errors[0].message, "é".repeat(4096), "8 KiB");
}

// ---- Requests ----

#[test]
fn an_unknown_job_is_not_found() {
    let harness = Harness::new();
    let queue = harness.open_without_workers();
    for id in [1, 0, -1, i64::MIN, i64::MAX] {
        let (id, says) = (
            JobId::from_i64(id),
            format!("job {id}: there is no such job"),
        );
        let kind = ErrorKind::NotFound;
        assert_refused(queue.retry(id, RetryFrom::Start), kind, &says);
        assert_refused(queue.delete(id), kind, &says);
        assert_refused(queue.explain(id), kind, &says);
        assert_refused(queue.wait(id, Duration::ZERO), kind, &says);
        assert_eq!(queue.get(id).unwrap(), None);
        assert_eq!(queue.status(id).unwrap(), None);
        assert_eq!(queue.events_of(id).unwrap(), []);
    }
    for text in ["", "0", "-1", "1.5", "seven", "99999999999999999999"] {
        assert_refused(
            text.parse::<JobId>(),
            ErrorKind::InvalidJob,
            &format!("job id {text:?}: expected a positive whole number"),
        );
    }
}

#[test]
fn a_bad_cursor_is_refused() {
    let harness = Harness::new();
    let queue = harness.open_without_workers();
    queue.enqueue("plain", &1).unwrap();
    for cursor in ["", "7", "a.b", "1.", ".1", "1.2.3", "1; DROP TABLE job"] {
        assert_refused(
            queue.list(&ListFilter::new().after(cursor)),
            ErrorKind::InvalidJob,
            &format!("cursor {cursor:?} was not made by a list of jobs"),
        );
    }
    let page = queue.list(&ListFilter::new().limit(0)).unwrap();
    assert_eq!(page.jobs.len(), 1, "at least one a page");
    let events = queue.events_after(i64::MAX, usize::MAX).unwrap();
    assert_eq!(events, []);
    assert_eq!(queue.events_after(i64::MIN, 10).unwrap().len(), 1);
}

// ---- Settings and job types ----

#[test]
fn wrong_settings_are_refused_by_name_and_value() {
    let harness = Harness::new();
    let builder = || harness.builder();
    for (builder, says) in [
        (builder().workers(1025), "workers is 1025: at most 1024"),
        (
            builder().workers(4).in_flight(3),
            "in_flight is 3: expected the number of workers (4) to 65536",
        ),
        (
            builder().in_flight(65_537),
            "in_flight is 65537: expected the number of workers (2) to 65536",
        ),
        (
            builder().max_payload(0),
            "payload limit is 0 bytes: expected 1 to 512 MiB",
        ),
        (
            builder().max_result((512 << 20) + 1),
            "result limit is 536870913 bytes: expected 1 to 512 MiB",
        ),
    ] {
        assert_refused(builder.open(), ErrorKind::InvalidConfig, says);
    }
    assert!(!harness.path().exists(), "no file was made");
}

#[test]
fn a_wrong_job_type_is_told_when_the_queue_is_opened() {
    const SPACE: Phase<Value> = Phase::new("a b");
    const NO_TRY: Phase<Value> = Phase::new("none").max_attempts(0);
    let fixed = || plain("plain");
    for (job_type, says) in [
        (plain("a b"), "job type \"a b\" is not a name"),
        (
            plain("plain").phase(ONE, |_| Ok(Value::Null)),
            "job type \"plain\": phase \"one\" is there twice: names must differ",
        ),
        (
            plain("plain").phase(SPACE, |_| Ok(Value::Null)),
            "job type \"plain\": phase \"a b\" is not a name",
        ),
        (
            plain("plain").concurrency(0),
            "job type \"plain\": concurrency is 0, so that no job could run: pause the type instead",
        ),
        (
            plain("plain").retry(RetryPolicy::default().max_attempts(0)),
            "job type \"plain\": retry policy: max_attempts is 0: one try is the least",
        ),
        (
            plain("plain").retry(RetryPolicy::default().jitter(-0.1)),
            "job type \"plain\": retry policy: jitter is -0.1: expected 0 to 1",
        ),
        (
            plain("plain").retry(RetryPolicy::exponential(Duration::ZERO, f64::NAN)),
            "job type \"plain\": retry policy: factor is NaN: expected 1 to 1000",
        ),
        (
            plain("plain").phase(NO_TRY, |_| Ok(Value::Null)),
            "job type \"plain\": phase \"none\": retry policy: max_attempts is 0",
        ),
        (
            (0..256).fold(fixed(), |job_type, n| {
                let name: &'static str = format!("p{n}").leak();
                job_type.phase(Phase::new(name), |_| Ok(Value::Null))
            }),
            "job type \"plain\": it has 257 phases, at most 256 are allowed",
        ),
    ] {
        refused_type(job_type, says);
    }
    refused_type(
        JobType::<Value>::new("none"),
        "job type \"none\": it has no phase",
    );
    let plan = |_: &Value| Ok(JobPlan::new([PhaseSpec::new("a")]));
    refused_type(
        JobType::planned("both", plan, |_| Ok(Value::Null)).phase(ONE, |_| Ok(Value::Null)),
        "job type \"both\": its phases are planned, and one was added by `phase`",
    );
    let twice = Harness::new();
    let mut builder = twice.builder();
    builder.register(plain("plain"));
    builder.register(plain("plain").phase(TWO, |_| Ok(Value::Null)));
    assert_refused(
        builder.open(),
        ErrorKind::InvalidConfig,
        "job type \"plain\" is registered twice: names must differ",
    );
}

#[track_caller]
fn refused_type<O>(job_type: JobType<Value, O>, says: &str) {
    let harness = Harness::new();
    let mut builder = harness.builder();
    builder.register(job_type);
    assert_refused(builder.open(), ErrorKind::InvalidConfig, says);
}

#[test]
fn a_handle_is_of_no_use_before_its_queue_is_open_and_after() {
    let harness = Harness::new();
    let mut builder = harness.builder();
    let jobs = builder.register(plain("plain"));
    assert_refused(
        jobs.enqueue(&Value::Null),
        ErrorKind::Closed,
        "job type \"plain\": the queue is not open yet: call Builder::open first",
    );
    builder.open().unwrap().shutdown(harness.left()).unwrap();
    assert_refused(
        jobs.enqueue(&Value::Null),
        ErrorKind::Closed,
        "the queue is closed: open it again to go on",
    );
}

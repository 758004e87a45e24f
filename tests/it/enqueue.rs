//! New jobs: stored when the call returns, all or none, numbered in order, listed and counted.

use serde_json::{Value, json};
use stepwell::{
    ErrorKind, EventKind, Hindrance, JobId, JobStatus, JobType, ListFilter, NewJob, PhaseStatus,
    Timestamp,
};

use crate::support::{Harness, ONE, TWO, assert_refused, assert_sound, events_of};

fn plain() -> JobType<Value, Value> {
    JobType::<Value>::new("plain").phase(ONE, |cx| Ok(cx.input().clone()))
}

#[test]
fn an_enqueued_job_is_in_the_file_when_the_call_returns() {
    let harness = Harness::new();
    let queue = harness.open_without_workers();
    let client = harness.client();
    let input = json!({"text": "é\u{0}\n\"", "number": 1.5e300, "nested": [[], {}, null]});
    let before = Timestamp::now();
    let id = queue.enqueue("plain", &input).unwrap();
    let job = client.get(id).unwrap().expect("another connection sees it");
    assert_eq!(job.input, input);
    assert_eq!((&*job.job_type, job.status), ("plain", JobStatus::Pending));
    assert!(job.created_at >= before && job.run_at == job.created_at);
    assert_eq!((job.priority, job.attempt, job.crash_count), (0, 0, 0));
    assert_eq!((job.started_at, job.finished_at), (None, None));
    assert_eq!(events_of(&queue, id), ["job:created"]);
}

#[test]
fn a_registered_job_shows_its_phases_before_it_runs() {
    let harness = Harness::new();
    let (queue, jobs) = harness.open(plain().phase(TWO, |cx| cx.get(ONE)));
    queue.pause().unwrap();
    let id = jobs.enqueue(&Value::Null).unwrap();
    let job = queue.get(id).unwrap().unwrap();
    let phases: Vec<_> = job
        .phases
        .iter()
        .map(|phase| (&*phase.name, phase.version, phase.status))
        .collect();
    assert_eq!(
        phases,
        [
            ("one", 1, PhaseStatus::Pending),
            ("two", 1, PhaseStatus::Pending)
        ]
    );
}

#[test]
fn jobs_of_one_call_are_stored_all_or_none() {
    let harness = Harness::new();
    let queue = harness.open_without_workers();
    let good = |n: i64| NewJob::new("plain", &n).unwrap();
    let bad = NewJob::new("no name", &0).unwrap();
    assert_refused(
        queue.enqueue_all(vec![good(1), bad, good(2)]),
        ErrorKind::InvalidJob,
        "job type \"no name\" is not a name",
    );
    assert_eq!(queue.stats().unwrap().head_seq, 0, "nothing was stored");
    let stored = queue.enqueue_all(vec![good(1), good(2)]).unwrap();
    assert!(stored.iter().all(|enqueued| enqueued.is_new));
    assert_eq!(queue.stats().unwrap().pending, 2);
    assert_eq!(queue.enqueue_all(Vec::new()).unwrap(), []);
}

#[test]
fn ids_rise_and_are_never_used_again() {
    let harness = Harness::new();
    let (queue, jobs) = harness.open(plain());
    let inputs: Vec<Value> = (0..10).map(Value::from).collect();
    let ids = jobs.enqueue_many(&inputs).unwrap();
    assert!(ids.is_sorted(), "{ids:?}");
    for (id, input) in ids.iter().zip(&inputs) {
        let job = harness.wait_for(&queue, *id, JobStatus::Completed);
        assert_eq!(&job.input, input);
    }
    let last = *ids.last().unwrap();
    queue.delete(last).unwrap();
    assert!(jobs.enqueue(&Value::Null).unwrap() > last);
    queue.shutdown(harness.left()).unwrap();
    let queue = harness.open_without_workers();
    let newest = queue.enqueue("plain", &Value::Null).unwrap();
    assert_eq!(newest.as_i64(), last.as_i64() + 2);
}

#[test]
fn a_job_of_a_type_that_nobody_registered_waits_uncharged() {
    let harness = Harness::new();
    let queue = harness.builder().open().unwrap();
    let id = queue.enqueue("plain", &json!(7)).unwrap();
    let explained = queue.explain(id).unwrap();
    let job_type = "plain".to_owned();
    assert_eq!(
        explained.hindrances,
        [Hindrance::NotRegistered { job_type }]
    );
    assert_eq!(
        explained.hindrances[0].to_string(),
        "job type \"plain\" is not registered in the process that runs jobs"
    );
    queue.shutdown(harness.left()).unwrap();

    let (queue, _) = harness.open(plain());
    let job = harness.wait_for(&queue, id, JobStatus::Completed);
    assert_eq!((job.attempt, job.errors.len()), (1, 0));
    assert_eq!(job.phases[0].result, Some(json!(7)));
    assert_sound(&queue);
}

#[test]
fn an_idle_worker_is_given_a_new_job_in_the_commit_that_stores_it() {
    let harness = Harness::with_fake_clock();
    let (queue, jobs) = harness.open(plain());
    // The queue has looked at everything there is once this one is done.
    harness.run_one(&queue, &jobs, &Value::Null);
    let mut events = queue.subscribe().unwrap();
    let id = jobs.enqueue(&Value::Null).unwrap();
    let kinds = [(); 3].map(|()| harness.next(&mut events).kind);
    assert_eq!(
        kinds,
        [
            EventKind::Created,
            EventKind::Started,
            EventKind::PhaseStarted
        ]
    );
    harness.wait_for(&queue, id, JobStatus::Completed);
    assert_sound(&queue);
}

#[test]
fn a_queue_in_memory_runs_jobs_as_one_in_a_file_does() {
    let harness = Harness::new();
    let mut builder = harness.builder_in_memory();
    let jobs = builder.register(plain().phase(TWO, |cx| cx.get(ONE)));
    let queue = builder.open().unwrap();
    let id = harness.run_one(&queue, &jobs, &json!("x"));
    let job = queue.get(id).unwrap().unwrap();
    assert_eq!(job.phases[1].result, Some(json!("x")));
    assert_eq!(events_of(&queue, id).len(), 7);
    assert_sound(&queue);
    queue.shutdown(harness.left()).unwrap();
    assert!(!harness.path().exists(), "no file was made");
}

#[test]
fn a_list_shows_every_job_once_whatever_the_size_of_its_pages() {
    let harness = Harness::new();
    let (queue, jobs) = harness.open(plain());
    let inputs: Vec<Value> = (0..23).map(Value::from).collect();
    let ids = jobs.enqueue_many(&inputs).unwrap();
    for id in &ids {
        harness.wait_for(&queue, *id, JobStatus::Completed);
    }
    queue.pause().unwrap();
    let waiting = [(); 5].map(|()| jobs.enqueue(&Value::Null).unwrap());
    let other = queue.enqueue("other", &Value::Null).unwrap();

    let all: Vec<JobId> = ids
        .iter()
        .chain(&waiting)
        .chain([&other])
        .copied()
        .collect();
    for limit in [1, 7, 28, 29, 1000] {
        let mut newest_first = listed(&queue, &ListFilter::new().limit(limit));
        newest_first.reverse();
        assert_eq!(newest_first, all, "{limit} a page");
    }
    let of = |status| ListFilter::new().status(status).limit(4);
    let mut completed = listed(&queue, &of(JobStatus::Completed));
    completed.sort();
    assert_eq!(completed, ids);
    let pending = listed(&queue, &of(JobStatus::Pending));
    assert_eq!(pending.len(), 6);
    let of_type = of(JobStatus::Pending).job_type("other");
    assert_eq!(listed(&queue, &of_type), [other]);
    let unknown = ListFilter::new().job_type("unheard-of");
    assert_eq!(listed(&queue, &unknown), []);
}

fn listed(queue: &stepwell::JobQueue, filter: &ListFilter) -> Vec<JobId> {
    let (mut ids, mut filter) = (Vec::new(), filter.clone());
    loop {
        let page = queue.list(&filter).unwrap();
        ids.extend(page.jobs.iter().map(|job| job.id));
        match page.next {
            Some(next) => filter = filter.after(next),
            None => return ids,
        }
    }
}

#[test]
fn stats_count_jobs_by_status() {
    let harness = Harness::new();
    let job_type = JobType::<bool>::new("picky").phase(ONE, |cx| {
        if *cx.input() {
            Ok(Value::Null)
        } else {
            Err(stepwell::PhaseError::fail("as it was told"))
        }
    });
    let (queue, jobs) = harness.open(job_type);
    for is_good in [true, false, true, true] {
        let id = jobs.enqueue(&is_good).unwrap();
        queue.wait(id, harness.left()).unwrap();
    }
    queue.pause().unwrap();
    let cancelled = jobs.enqueue(&true).unwrap();
    assert_eq!(
        queue.cancel(cancelled).unwrap(),
        stepwell::CancelOutcome::Cancelled
    );
    jobs.enqueue(&true).unwrap();
    let stats = queue.stats().unwrap();
    let counts = [
        stats.pending,
        stats.running,
        stats.completed,
        stats.failed,
        stats.cancelled,
    ];
    assert_eq!(counts, [1, 0, 3, 1, 1]);
    assert!(stats.paused);
    let newest = queue.events_after(0, 1000).unwrap();
    assert_eq!(newest.last().unwrap().seq, stats.head_seq);
}

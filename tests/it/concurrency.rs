//! Many callers, many workers, many types: nothing is lost or done twice, limits hold, and what is more urgent goes first.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crossbeam_channel::unbounded;
use serde_json::{Value, json};
use stepwell::{
    CancelOutcome, ErrorKind, Hindrance, JobId, JobQueue, JobStatus, JobType, NewJob, PhaseError,
    RetryFrom,
};

use crate::support::{Gate, Harness, ONE, START, THREE, TWO, assert_sound, at_once};

const THREADS: u64 = 8;
const ROUNDS: u64 = 60;

/// 8 threads, 60 rounds each, beside 8 workers.
#[test]
fn callers_and_workers_at_once_lose_nothing_and_do_nothing_twice() {
    let harness = Harness::new();
    let inside: Arc<Mutex<BTreeSet<JobId>>> = Arc::default();
    let twice = Arc::new(AtomicU32::new(0));
    let (own, found) = (inside.clone(), twice.clone());
    let alone = move |cx: &stepwell::PhaseContext<u64>| {
        let is_alone = own.lock().unwrap().insert(cx.job_id());
        found.fetch_add(u32::from(!is_alone), Ordering::SeqCst);
        std::thread::yield_now();
        own.lock().unwrap().remove(&cx.job_id());
        match (cx.input() % 7, cx.attempt()) {
            (0, 1) => Err(PhaseError::retry("the first try of some")),
            (1, _) => Err(PhaseError::fail("as it was told")),
            _ => Ok(json!(cx.input())),
        }
    };
    let mut builder = harness.builder().workers(8);
    let jobs = builder.register(
        JobType::<u64>::new("mixed")
            .retry(at_once(3))
            .phase(ONE, alone.clone())
            .phase(TWO, alone.clone())
            .phase(THREE, alone),
    );
    let queue = builder.open().unwrap();
    let ids: Vec<JobId> = std::thread::scope(|scope| {
        let caller = |thread: u64| {
            let (queue, jobs) = (&queue, &jobs);
            scope.spawn(move || {
                let mut ids = Vec::new();
                for round in 0..ROUNDS {
                    ids.push(jobs.enqueue(&(thread * ROUNDS + round)).unwrap());
                    disturb(
                        queue,
                        ids[usize::try_from(thread * 31 + round * 17).unwrap() % ids.len()],
                        round,
                    );
                }
                ids
            })
        };
        let threads: Vec<_> = (0..THREADS).map(caller).collect();
        let ids = threads.into_iter().map(|thread| thread.join().unwrap());
        ids.flatten().collect()
    });
    for id in &ids {
        queue.wait(*id, harness.left()).unwrap();
    }
    assert_eq!(twice.load(Ordering::SeqCst), 0, "two handlers of one job");
    let stats = queue.stats().unwrap();
    assert_eq!(stats.pending + stats.running, 0);
    let over = stats.completed + stats.failed + stats.cancelled;
    assert_eq!(over, THREADS * ROUNDS);
    assert_eq!(ids.iter().collect::<BTreeSet<_>>().len(), ids.len());
    for id in ids {
        let job = queue.get(id).unwrap().expect("none is lost");
        if job.status == JobStatus::Completed {
            assert_eq!(job.phases[2].result.as_ref(), Some(&job.input));
        }
    }
    assert_sound(&queue);
}

fn disturb(queue: &JobQueue, id: JobId, round: u64) {
    match round % 4 {
        0 => {
            let outcome = queue.cancel(id).unwrap();
            assert_ne!(outcome, CancelOutcome::NotFound);
        }
        1 => {
            if let Err(error) = queue.retry(id, RetryFrom::Failed) {
                assert_eq!(error.kind(), ErrorKind::Conflict, "{error}");
            }
        }
        2 => assert!(queue.get(id).unwrap().is_some()),
        _ => assert!(queue.explain(id).is_ok()),
    }
}

#[test]
fn no_more_jobs_of_a_type_run_at_a_time_than_it_allows() {
    let harness = Harness::new();
    let gate = Gate::new();
    let held = gate.clone();
    let mut builder = harness.builder().workers(8);
    let limited = builder.register(JobType::<Value>::new("limited").concurrency(3).phase(
        ONE,
        move |cx| {
            held.pass(cx);
            Ok(Value::Null)
        },
    ));
    let free = builder.register(JobType::<Value>::new("free").phase(ONE, |_| Ok(Value::Null)));
    let queue = builder.open().unwrap();
    let inputs = vec![Value::Null; 20];
    let ids = limited.enqueue_many(&inputs).unwrap();
    for done in 0..=inputs.len() - 3 {
        if done == 0 {
            gate.wait(&harness);
            gate.wait(&harness);
        }
        gate.wait(&harness);
        // The other type has workers all the time; once one of its jobs is through, a fourth one here would have started.
        harness.run_one(&queue, &free, &Value::Null);
        assert!(!gate.is_anybody_here(), "a fourth one");
        assert_eq!(queue.stats().unwrap().running, 3);
        if done == 0 {
            let waiting = queue.explain(ids[19]).unwrap().hindrances;
            let limit = Hindrance::ConcurrencyLimit { max: 3, running: 3 };
            assert!(waiting.contains(&limit), "{waiting:?}");
        }
        gate.open();
    }
    gate.open();
    gate.open();
    for id in ids {
        harness.wait_for(&queue, id, JobStatus::Completed);
    }
    assert_sound(&queue);
}

/// 200 jobs, 8 workers, a limit of 2: short phases, so that claims run ahead.
#[test]
fn a_limit_holds_for_short_phases_too() {
    let harness = Harness::new();
    let (inside, most) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));
    let (now, max) = (inside.clone(), most.clone());
    let handler = move |_: &stepwell::PhaseContext<Value>| {
        max.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
        std::thread::yield_now();
        now.fetch_sub(1, Ordering::SeqCst);
        Ok(Value::Null)
    };
    let mut builder = harness.builder().workers(8);
    let jobs = builder.register(
        JobType::<Value>::new("limited")
            .concurrency(2)
            .phase(ONE, handler.clone())
            .phase(TWO, handler),
    );
    let queue = builder.open().unwrap();
    let ids = jobs.enqueue_many(&vec![Value::Null; 200]).unwrap();
    for id in ids {
        harness.wait_for(&queue, id, JobStatus::Completed);
    }
    assert!(most.load(Ordering::SeqCst) <= 2);
    assert_sound(&queue);
}

#[test]
fn the_more_urgent_goes_first_then_the_older_then_the_lower_id() {
    let harness = Harness::with_fake_clock();
    let (tx, ran) = unbounded();
    let mut builder = harness.builder().workers(1);
    for name in ["left", "right"] {
        let tx = tx.clone();
        builder.register(JobType::<u32>::new(name).phase(ONE, move |cx| {
            tx.send(*cx.input()).unwrap();
            Ok(Value::Null)
        }));
    }
    let queue = builder.open().unwrap();
    queue.pause().unwrap();
    let at = |seconds| START.after(Duration::from_secs(seconds));
    let job = |place: u32, job_type: &str| NewJob::new(job_type, &place).unwrap();
    let jobs = vec![
        job(6, "left"),
        job(7, "right"),
        job(9, "left").priority(-1),
        job(1, "right").priority(i32::MAX),
        job(8, "left").run_at(at(20)),
        job(3, "left").priority(5),
        job(4, "right").priority(5),
        job(2, "left").priority(6).run_at(at(30)),
        job(5, "right").priority(5).run_at(at(10)),
    ];
    queue.enqueue_all(jobs).unwrap();
    harness.clock().advance(Duration::from_secs(60));
    queue.resume().unwrap();
    let order = [(); 9].map(|()| harness.recv(&ran));
    assert_eq!(order, [1, 2, 3, 4, 5, 6, 7, 8, 9]);
}

/// 40 types, 5 jobs each, 4 workers.
#[test]
fn jobs_of_many_types_all_run() {
    let harness = Harness::new();
    let mut builder = harness.builder().workers(4);
    let handles: Vec<_> = (0..40)
        .map(|n| {
            let name = format!("type-{n}");
            let job_type = JobType::<u32>::new(name).phase(ONE, move |cx| {
                assert_eq!(cx.job_type(), format!("type-{n}"));
                Ok(json!(cx.input() + n))
            });
            builder.register(job_type)
        })
        .collect();
    let queue = builder.open().unwrap();
    let mut expected = BTreeMap::new();
    for input in 0..5 {
        for (n, handle) in (0..).zip(&handles) {
            expected.insert(handle.enqueue(&input).unwrap(), json!(input + n));
        }
    }
    for (id, result) in expected {
        let job = harness.wait_for(&queue, id, JobStatus::Completed);
        assert_eq!(job.phases[0].result, Some(result));
    }
    assert_sound(&queue);
}

/// 16 threads, 50 jobs each: their commits are grouped, and each answer is its own.
#[test]
fn concurrent_enqueues_get_different_ids_and_are_all_there() {
    let harness = Harness::new();
    let queue = harness.open_without_workers();
    let ids: BTreeMap<JobId, u64> = std::thread::scope(|scope| {
        let enqueue = |thread: u64| {
            let queue = &queue;
            scope.spawn(move || {
                let one = |n| {
                    (
                        queue.enqueue("plain", &(thread * 50 + n)).unwrap(),
                        thread * 50 + n,
                    )
                };
                (0..50).map(one).collect::<Vec<_>>()
            })
        };
        let threads: Vec<_> = (0..16).map(enqueue).collect();
        let ids = threads.into_iter().map(|thread| thread.join().unwrap());
        ids.flatten().collect()
    });
    assert_eq!(ids.len(), 800);
    for (id, n) in ids {
        assert_eq!(queue.get(id).unwrap().unwrap().input, json!(n));
    }
    assert_sound(&queue);
}

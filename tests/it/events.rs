//! The log as its readers hear it: in order, without gaps, never before its commit; and what callbacks may do.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use crossbeam_channel::unbounded;
use serde_json::Value;
use stepwell::{
    CancelOutcome, ErrorKind, Event, EventKind, JobId, JobQueue, JobStatus, JobType, Keep,
    ListFilter, Notice, PhaseError, PhaseStatus, Retention, RetryFrom,
};

use crate::support::{Harness, ONE, PATIENCE, TWO, assert_refused, assert_sound, at_once};

fn plain() -> JobType<Value, Value> {
    JobType::<Value>::new("plain")
        .retry(at_once(2))
        .phase(ONE, |_| Ok(Value::Null))
        .phase(TWO, |cx| match cx.attempt() {
            1 if cx.input().is_number() => Err(PhaseError::retry("once")),
            _ => Ok(Value::Null),
        })
}

/// Everything from `after` up to the completion of `last`.
fn heard_until(harness: &Harness, queue: &JobQueue, after: i64, last: JobId) -> Vec<Event> {
    let mut events = queue.subscribe_after(after);
    let mut heard = Vec::new();
    loop {
        let event = harness.next(&mut events);
        let is_last = event.job_id == last && event.kind == EventKind::Completed;
        heard.push(event);
        if is_last {
            return heard;
        }
    }
}

#[test]
fn numbers_rise_by_one_from_the_first_event_on() {
    let harness = Harness::new();
    let (queue, jobs) = harness.open(plain());
    let inputs: Vec<Value> = (0..20).map(Value::from).collect();
    let ids = jobs.enqueue_many(&inputs).unwrap();
    for id in &ids {
        harness.wait_for(&queue, *id, JobStatus::Completed);
    }
    let last = harness.run_one(&queue, &jobs, &Value::Null);
    let heard = heard_until(&harness, &queue, 0, last);
    let numbers: Vec<i64> = heard.iter().map(|event| event.seq).collect();
    let expected: Vec<i64> = (1..=i64::try_from(heard.len()).unwrap()).collect();
    assert_eq!(numbers, expected);
    assert_eq!(queue.stats().unwrap().head_seq, *numbers.last().unwrap());
    assert!(heard.windows(2).all(|pair| pair[0].at <= pair[1].at));
    assert_sound(&queue);
}

/// 60 jobs on 2 workers, one listener that looks at each job as soon as it hears of it.
#[test]
fn no_event_is_heard_before_its_change_can_be_read() {
    let harness = Harness::new();
    let (queue, jobs) = harness.open(plain());
    let mut events = queue.subscribe().unwrap();
    let inputs: Vec<Value> = (0..60).map(Value::from).collect();
    let ids = jobs.enqueue_many(&inputs).unwrap();
    let mut left = ids.len();
    while left > 0 {
        let event = harness.next(&mut events);
        let job = queue.get(event.job_id).unwrap().expect("it is there");
        let done = |phase: &str| {
            let phase = job.phases.iter().find(|record| &*record.name == phase);
            phase.is_some_and(|record| record.status == PhaseStatus::Completed)
        };
        let fits = match event.kind.as_str() {
            "job:started" => job.started_at.is_some(),
            "job:phase:completed" => done(event.phase.as_deref().unwrap()),
            "job:phase:failed" | "job:retrying" => job.errors.len() == 1,
            "job:completed" => job.status == JobStatus::Completed,
            _ => true,
        };
        assert!(fits, "{event:?} was heard before {job:#?}");
        left -= usize::from(event.kind == EventKind::Completed);
    }
}

#[test]
fn a_reader_goes_on_exactly_where_another_stopped() {
    let harness = Harness::new();
    let (queue, jobs) = harness.open(plain());
    let last = harness.run_one(&queue, &jobs, &Value::Null);
    let all = heard_until(&harness, &queue, 0, last);
    for stop in 0..all.len() {
        let mut first = queue.subscribe_after(0);
        for expected in &all[..stop] {
            assert_eq!(&harness.next(&mut first), expected);
        }
        let position = first.position();
        assert_eq!(position, all[..stop].last().map_or(0, |event| event.seq));
        let rest = queue.events_after(position, 1000).unwrap();
        assert_eq!(rest, all[stop..]);
        if stop < all.len() {
            assert_eq!(heard_until(&harness, &queue, position, last), rest);
        }
    }
    let none = queue.subscribe().unwrap().recv_timeout(Duration::ZERO);
    let error = none.unwrap_err();
    assert_eq!(
        error.kind(),
        ErrorKind::Timeout,
        "from now on only: {error}"
    );
}

#[test]
fn the_log_is_read_in_pieces_of_any_size() {
    let harness = Harness::new();
    let (queue, jobs) = harness.open(plain());
    let last = harness.run_one(&queue, &jobs, &Value::from(1));
    let all = heard_until(&harness, &queue, 0, last);
    for limit in 1..=all.len() + 1 {
        let (mut read, mut after) = (Vec::new(), 0);
        loop {
            let piece = queue.events_after(after, limit).unwrap();
            assert!(piece.len() <= limit);
            let Some(newest) = piece.last() else { break };
            after = newest.seq;
            read.extend(piece);
        }
        assert_eq!(read, all, "{limit} at a time");
    }
    assert_eq!(queue.events_of(last).unwrap(), all);
}

#[test]
fn a_reader_that_was_away_too_long_is_told_what_it_missed() {
    let harness = Harness::with_fake_clock();
    let day = Duration::from_secs(86_400);
    let retention = Retention::forever().events(Keep::for_age(day));
    let mut builder = harness.builder().retention(retention);
    let jobs = builder.register(plain());
    let queue = builder.open().unwrap();
    let mut slow = queue.subscribe_after(0);
    let old = harness.run_one(&queue, &jobs, &Value::Null);
    let first = harness.next(&mut slow);
    assert_eq!((first.seq, first.job_id), (1, old));
    // What it has read ahead is its own: let it stand there with nothing in hand.
    let read = queue.stats().unwrap().head_seq;
    while slow.position() < read {
        harness.next(&mut slow);
    }
    harness.run_one(&queue, &jobs, &Value::Null);
    harness.clock().advance(day);
    harness.until("the old events are deleted", || {
        queue.events_after(0, 100).unwrap().len() < 3
    });
    let new = harness.run_one(&queue, &jobs, &Value::Null);
    let notice = slow.recv_timeout(harness.left()).unwrap();
    let Notice::Lagged { after, next } = notice else {
        panic!("{notice:?}");
    };
    assert_eq!(after, read);
    assert!(next > read + 1);
    let mut event = harness.next(&mut slow);
    assert_eq!(event.seq, next);
    while event.job_id != new || event.kind != EventKind::Completed {
        event = harness.next(&mut slow);
    }
}

#[test]
fn callbacks_hear_every_event_in_order() {
    let harness = Harness::new();
    let (queue, jobs) = harness.open(plain());
    let heard: Arc<Mutex<Vec<Event>>> = Arc::default();
    let (left, right) = (heard.clone(), Arc::new(Mutex::new(0)));
    let other = right.clone();
    queue
        .on_event(move |event| left.lock().unwrap().push(event.clone()))
        .unwrap();
    queue
        .on_event(move |_| *other.lock().unwrap() += 1)
        .unwrap();
    let last = harness.run_one(&queue, &jobs, &Value::from(1));
    let all = heard_until(&harness, &queue, 0, last);
    queue.shutdown(harness.left()).unwrap();
    assert_eq!(*heard.lock().unwrap(), all);
    assert_eq!(*right.lock().unwrap(), all.len());
}

#[test]
fn a_callback_that_panics_is_not_called_again_and_harms_nobody() {
    let harness = Harness::new();
    let (queue, jobs) = harness.open(plain());
    let (tx, calls) = unbounded();
    let bad = tx.clone();
    queue
        .on_event(move |_| {
            bad.send("bad").unwrap();
            panic!("a callback");
        })
        .unwrap();
    queue.on_event(move |_| tx.send("good").unwrap()).unwrap();
    let last = harness.run_one(&queue, &jobs, &Value::Null);
    let all = heard_until(&harness, &queue, 0, last).len();
    assert!(queue.health().is_good());
    queue.shutdown(harness.left()).unwrap();
    let calls: Vec<_> = calls.try_iter().collect();
    let of = |who| calls.iter().filter(|call| **call == who).count();
    assert_eq!((of("bad"), of("good")), (1, all));
}

#[test]
fn a_callback_can_call_any_method_of_its_queue() {
    let harness = Harness::new();
    let (queue, jobs) = harness.open(plain());
    let (own, (tx, done)) = (queue.clone(), unbounded());
    queue
        .on_event(move |event| {
            if event.kind == EventKind::Completed {
                use_everything(&own, event.job_id);
                tx.send(()).unwrap();
            }
        })
        .unwrap();
    jobs.enqueue(&Value::Null).unwrap();
    harness.recv(&done);
    assert_sound(&queue);
    queue.shutdown(harness.left()).unwrap();
}

fn use_everything(queue: &JobQueue, over: JobId) {
    let id = queue.enqueue("unheard-of", &1).unwrap();
    assert_eq!(queue.get(id).unwrap().unwrap().status, JobStatus::Pending);
    assert_eq!(queue.cancel(id).unwrap(), CancelOutcome::Cancelled);
    queue.retry(id, RetryFrom::Failed).unwrap();
    assert!(queue.wait(over, Duration::ZERO).is_ok());
    queue.pause().unwrap();
    queue.pause_type("x").unwrap();
    assert_eq!(queue.list(&ListFilter::new()).unwrap().jobs.len(), 2);
    assert!(queue.stats().unwrap().paused);
    assert_eq!(queue.explain(id).unwrap().hindrances.len(), 2);
    queue.resume_type("x").unwrap();
    queue.resume().unwrap();
    let mut events = queue.subscribe_after(0);
    assert!(matches!(events.recv(), Ok(Notice::Event(_))));
    queue.on_event(|_| {}).unwrap();
    assert_eq!(queue.cancel(id).unwrap(), CancelOutcome::Cancelled);
    queue.delete(id).unwrap();
    assert_eq!(queue.check().unwrap(), Vec::<String>::new());
}

#[test]
fn a_slow_callback_slows_no_job_down() {
    let harness = Harness::new();
    let (queue, jobs) = harness.open(plain());
    let (tx, held) = unbounded::<()>();
    queue
        .on_event(move |_| assert!(held.recv_timeout(PATIENCE).is_err()))
        .unwrap();
    let ids = jobs.enqueue_many(&vec![Value::Null; 100]).unwrap();
    for id in ids {
        harness.wait_for(&queue, id, JobStatus::Completed);
    }
    // It has still to hear the first event, and goes on by itself.
    drop(tx);
    let report = queue.shutdown(harness.left()).unwrap();
    assert!(!report.listeners_cut);
}

#[test]
fn a_callback_that_hangs_is_cut_off_at_the_end() {
    let harness = Harness::new();
    let (queue, jobs) = harness.open(plain());
    let (tx, held) = unbounded::<()>();
    queue
        .on_event(move |_| assert!(held.recv_timeout(PATIENCE).is_err()))
        .unwrap();
    harness.run_one(&queue, &jobs, &Value::Null);
    assert_refused(
        queue.shutdown(Duration::from_millis(50)),
        ErrorKind::Timeout,
        "the queue is closed, but callbacks did not hear every event within 50ms",
    );
    assert!(queue.shutdown_report().unwrap().listeners_cut);
    drop(tx);
    assert_sound(&harness.open_without_workers());
}

#[test]
fn a_reader_hears_the_rest_after_the_end_and_then_that_it_is_the_end() {
    let harness = Harness::new();
    let (queue, jobs) = harness.open(plain());
    let mut events = queue.subscribe().unwrap();
    let reader = std::thread::spawn(move || {
        let mut kinds = Vec::new();
        loop {
            match events.recv() {
                Ok(Notice::Event(event)) => kinds.push(event.kind),
                Ok(other) => panic!("{other:?}"),
                Err(error) => return (kinds, error.kind()),
            }
        }
    });
    harness.run_one(&queue, &jobs, &Value::Null);
    queue.shutdown(harness.left()).unwrap();
    let (kinds, end) = reader.join().unwrap();
    assert_eq!(end, ErrorKind::Closed);
    assert_eq!(kinds.last(), Some(&EventKind::Completed));
}

/// The bug: a position below zero was reckoned with, and overflowed.
#[test]
fn a_position_before_the_beginning_is_the_beginning() {
    let harness = Harness::new();
    let queue = harness.open_without_workers();
    for n in 0..3 {
        queue.enqueue("plain", &n).unwrap();
    }
    for seq in [i64::MIN, -1, 0] {
        let seqs: Vec<_> = queue
            .events_after(seq, 10)
            .unwrap()
            .iter()
            .map(|event| event.seq)
            .collect();
        assert_eq!(seqs, [1, 2, 3], "{seq}");
        let next = queue
            .subscribe_after(seq)
            .recv_timeout(harness.left())
            .unwrap();
        assert!(matches!(next, stepwell::Notice::Event(event) if event.seq == 1));
    }
    assert_eq!(queue.events_after(i64::MAX, 10).unwrap(), []);
}

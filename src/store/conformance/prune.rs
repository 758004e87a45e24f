//! Retention: what goes, in which order, and what a step says about the next one. Test code.

use std::time::Duration;

use serde_json::json;

use crate::config::{Keep, Retention};
use crate::event::EventKind;
use crate::job::{JobId, JobStatus, RetryFrom};
use crate::new_job::While;
use crate::store::Done;
use crate::store::conformance::{Bench, MS, SECOND, START, new_job};
use crate::store::ops::{ClaimRequest, Op, Prune, Pruned};
use crate::time::Timestamp;
use crate::transition::{Tries, Verdict};

fn prune_by(bench: &mut Bench, retention: Retention, jobs_max: usize, events_max: usize) -> Pruned {
    let prune = Prune {
        retention,
        jobs_max,
        events_max,
    };
    let committed = bench.commit(&[Op::Prune(prune)], &ClaimRequest::default());
    let committed = committed.expect("a commit");
    let [Ok(Done::Pruned(pruned))] = &committed.answers[..] else {
        panic!("{:?}", committed.answers);
    };
    let gone = pruned.jobs + pruned.events + pruned.deliveries;
    assert_eq!(committed.has_written, gone > 0);
    *pruned
}

fn prune(bench: &mut Bench, retention: Retention) -> Pruned {
    prune_by(bench, retention, 100, 1000)
}

/// Ends a job of its own, one millisecond after the one before it.
fn ended(bench: &mut Bench, status: JobStatus) -> JobId {
    bench.later(MS);
    let row = bench.start(new_job("import"));
    match status {
        JobStatus::Completed => drop(bench.complete(&row, "1")),
        JobStatus::Failed => drop(bench.fail(&row, Verdict::Fail)),
        JobStatus::Cancelled => bench.cancel(row.id),
        JobStatus::Pending | JobStatus::Running => panic!("{status} is no end"),
    }
    row.id
}

fn stored(bench: &Bench) -> Vec<i64> {
    bench.jobs().iter().map(|job| job.id.as_i64()).collect()
}

/// A step at the very time that the step before it had named did nothing and named the same time again: with a clock that
/// stands still, for ever.
pub(super) fn jobs_go_by_age_when_it_is_reached(bench: &mut Bench) {
    bench.register("import", "fetch");
    ended(bench, JobStatus::Completed);
    ended(bench, JobStatus::Failed);
    ended(bench, JobStatus::Completed);
    let retention = || {
        Retention::forever()
            .completed(Keep::for_age(SECOND))
            .failed(Keep::for_age(5 * SECOND))
    };
    let first = START.after(MS).after(SECOND);
    let expected = Pruned {
        next: Some(first),
        ..Pruned::default()
    };
    assert_eq!(prune(bench, retention()), expected);
    bench.now = first;
    let expected = Pruned {
        jobs: 1,
        next: Some(first.after(2 * MS)),
        ..Pruned::default()
    };
    assert_eq!(prune(bench, retention()), expected);
    assert_eq!(stored(bench), [2, 3]);
    let id = JobId::from_i64(1);
    let expected = json!({"deletedJobId": 1, "reason": "retention"});
    assert_eq!(bench.data(id, EventKind::Deleted), expected);
    bench.later(SECOND);
    let expected = Pruned {
        jobs: 1,
        next: Some(START.after(2 * MS).after(5 * SECOND)),
        ..Pruned::default()
    };
    assert_eq!(prune(bench, retention()), expected);
    assert_eq!(stored(bench), [2]);
}

pub(super) fn jobs_go_by_count_the_oldest_first(bench: &mut Bench) {
    bench.register("import", "fetch");
    let first = bench.start(new_job("import"));
    for _ in 0..3 {
        ended(bench, JobStatus::Completed);
    }
    ended(bench, JobStatus::Cancelled);
    bench.later(MS);
    // Enqueued first, ended last.
    bench.complete(&first, "1");
    let retention = Retention::forever().completed(Keep::newest(2));
    let expected = Pruned {
        jobs: 2,
        ..Pruned::default()
    };
    assert_eq!(prune(bench, retention.clone()), expected);
    assert_eq!(stored(bench), [1, 4, 5]);
    assert_eq!(prune(bench, retention), Pruned::default());
    assert_eq!(bench.head.counts, [0, 0, 2, 0, 1]);
}

pub(super) fn jobs_that_ended_before_the_clock_was_set_go_by_count_alone(bench: &mut Bench) {
    bench.now = Timestamp::from_millis(1000);
    bench.register("import", "fetch");
    ended(bench, JobStatus::Completed);
    ended(bench, JobStatus::Completed);
    bench.now = START;
    ended(bench, JobStatus::Completed);
    bench.later(1000 * SECOND);
    let by_age = Retention::forever().completed(Keep::for_age(SECOND));
    let pruned = prune(bench, by_age);
    assert_eq!((pruned.jobs, pruned.next), (1, None));
    assert_eq!(stored(bench), [1, 2]);
    let by_count = Retention::forever().completed(Keep::newest(1));
    assert_eq!(prune(bench, by_count).jobs, 1);
    assert_eq!(stored(bench), [2]);
}

pub(super) fn a_step_is_bounded_and_says_that_there_is_more(bench: &mut Bench) {
    bench.register("import", "fetch");
    for status in [
        JobStatus::Completed,
        JobStatus::Failed,
        JobStatus::Cancelled,
    ] {
        ended(bench, status);
        ended(bench, status);
    }
    bench.later(SECOND);
    let all = || {
        Retention::forever()
            .completed(Keep::newest(0))
            .failed(Keep::for_age(MS))
            .cancelled(Keep::newest(0))
    };
    let steps: Vec<_> = (0..3).map(|_| prune_by(bench, all(), 3, 100)).collect();
    let told: Vec<_> = steps.iter().map(|step| (step.jobs, step.more)).collect();
    assert_eq!(told[..2], [(3, true), (3, true)]);
    assert_eq!(told[2], (0, false));
    assert_eq!(bench.head.counts, [0; 5]);
}

/// The bug: a step deleted 128 jobs whatever had to be read for it; of 3 MiB each, 384 MiB in one transaction.
pub(super) fn a_step_ends_with_what_is_large(bench: &mut Bench) {
    bench.register("import", "fetch");
    let large = format!("\"{}\"", "x".repeat(3 << 20));
    for result in ["1", &large, &large, "1"] {
        let row = bench.start(new_job("import"));
        bench.complete(&row, result);
    }
    let row = bench.start(new_job("import"));
    bench.fail(&row, Verdict::Fail);
    let retention = Retention::forever()
        .completed(Keep::newest(0))
        .failed(Keep::newest(0));
    let steps: Vec<_> = (0..3).map(|_| prune(bench, retention.clone())).collect();
    let told: Vec<_> = steps.iter().map(|step| (step.jobs, step.more)).collect();
    assert_eq!(told, [(2, true), (3, false), (0, false)]);
}

pub(super) fn live_jobs_are_never_pruned(bench: &mut Bench) {
    bench.register("import", "fetch");
    let running = bench.start(new_job("import"));
    let pending = bench.enqueue(new_job("import"));
    bench.later(1000 * SECOND);
    let keep = Keep::newest(0);
    let nothing = Retention::forever()
        .completed(keep)
        .failed(keep)
        .cancelled(keep);
    assert_eq!(prune(bench, nothing), Pruned::default());
    assert_eq!(stored(bench), [running.id.as_i64(), pending.as_i64()]);
}

pub(super) fn events_go_by_count_and_never_the_newest_row(bench: &mut Bench) {
    bench.register("import", "fetch load");
    let row = bench.start(new_job("import")); // 1 created, 2-3 claimed
    let row = bench.complete(&row, "1"); // 4-5
    bench.complete(&row, "2"); // 6-7
    let newest = |count| Retention::forever().events(Keep::newest(count));
    // A row goes when all of its events may go: 4 and 5 are one row.
    assert_eq!(prune(bench, newest(3)).events, 2);
    assert_eq!(bench.reader.oldest_seq().expect("readable"), 4);
    assert_eq!(bench.events(0).len(), 4);
    assert_eq!(prune(bench, newest(0)).events, 1);
    assert_eq!(bench.reader.oldest_seq().expect("readable"), 6);
    assert_eq!(prune(bench, newest(0)).events, 0);
    assert_eq!(
        bench.head.counts,
        [0, 0, 1, 0, 0],
        "the head is not forgotten"
    );
    let id = bench.enqueue(new_job("import"));
    assert_eq!((bench.row(id).last_seq, id.as_i64()), (8, 2));
}

pub(super) fn events_go_by_age_and_numbers_are_never_used_again(bench: &mut Bench) {
    bench.register("import", "fetch");
    bench.enqueue(new_job("import")); // 1
    bench.later(SECOND);
    bench.enqueue(new_job("import")); // 2
    bench.later(SECOND);
    bench.enqueue(new_job("import")); // 3
    let age = || Retention::forever().events(Keep::for_age(2 * SECOND));
    let expected = Pruned {
        events: 1,
        next: Some(START.after(3 * SECOND)),
        ..Pruned::default()
    };
    assert_eq!(prune(bench, age()), expected);
    bench.later(Duration::from_secs(1_000_000));
    let pruned = prune_by(bench, age(), 10, 1);
    assert_eq!((pruned.events, pruned.more), (1, true));
    assert_eq!(bench.reader.oldest_seq().expect("readable"), 3);
    bench.enqueue(new_job("import"));
    assert_eq!(bench.head.seq, 4);
}

/// The newest row is never deleted, however old: to name the time when it will be too old had an idle queue wake up again and
/// again for nothing.
pub(super) fn an_old_newest_row_calls_for_no_further_step(bench: &mut Bench) {
    bench.register("import", "fetch");
    let age = || Retention::forever().events(Keep::for_age(SECOND));
    assert_eq!(prune(bench, age()), Pruned::default());
    bench.enqueue(new_job("import"));
    assert_eq!(prune(bench, age()), Pruned::default());
    bench.later(1000 * SECOND);
    assert_eq!(prune(bench, age()), Pruned::default());
    bench.enqueue(new_job("import"));
    let expected = Pruned {
        events: 1,
        ..Pruned::default()
    };
    assert_eq!(prune(bench, age()), expected);
}

const BOOTED: Timestamp = Timestamp::from_millis(1000);

/// Enqueues jobs, each a row of the log, a millisecond after the one before it.
fn rows(bench: &mut Bench, count: usize) {
    for _ in 0..count {
        bench.later(MS);
        bench.enqueue(new_job("import"));
    }
}

fn oldest(bench: &Bench) -> i64 {
    bench.reader.oldest_seq().expect("readable")
}

/// A board boots in 1970, works for an hour and is told the time: the whole log of that hour was deleted at once, as 50 years old.
pub(super) fn events_of_before_the_clock_was_set_go_with_the_first_of_after_it(bench: &mut Bench) {
    bench.register("import", "fetch");
    bench.now = BOOTED;
    rows(bench, 3); // 1-3
    bench.now = START;
    rows(bench, 3); // 4-6
    let age = || Retention::forever().events(Keep::for_age(SECOND));
    let first = START.after(MS).after(SECOND);
    let expected = Pruned {
        next: Some(first),
        ..Pruned::default()
    };
    assert_eq!(prune(bench, age()), expected);
    bench.now = first;
    let expected = Pruned {
        events: 4,
        next: Some(first.after(MS)),
        ..Pruned::default()
    };
    assert_eq!(prune(bench, age()), expected);
    // The same behind rows of a time that was known: it has booted again.
    bench.now = BOOTED;
    rows(bench, 2); // 7-8
    bench.now = START.after(2 * SECOND);
    rows(bench, 2); // 9-10
    let pruned = prune(bench, age());
    let ninth = START.after(2 * SECOND).after(MS);
    assert_eq!((pruned.events, pruned.next), (2, Some(ninth.after(SECOND))));
    assert_eq!(oldest(bench), 7);
    let newest = |count| Retention::forever().events(Keep::for_age(SECOND).and_newest(count));
    assert_eq!(prune(bench, newest(3)).events, 1, "or by count");
}

/// More of them than a step looks at: what is behind them is looked for in longer and longer strides.
pub(super) fn a_long_time_before_the_clock_was_set_is_looked_across(bench: &mut Bench) {
    bench.register("import", "fetch");
    bench.now = BOOTED;
    rows(bench, 20); // 1-20
    let age = || Retention::forever().events(Keep::for_age(SECOND));
    bench.now = START;
    assert_eq!(
        prune_by(bench, age(), 9, 2),
        Pruned::default(),
        "nothing is known"
    );
    rows(bench, 5); // 21-25
    let pruned = prune_by(bench, age(), 9, 2);
    assert_eq!(pruned.events, 0);
    let next = pruned.next.expect("one of those five will be too old");
    assert!(next > START.after(SECOND), "{next:?}");
    bench.now = next;
    let steps = std::iter::repeat_with(|| prune_by(bench, age(), 9, 2).events);
    let gone: usize = steps.take_while(|gone| *gone > 0).sum();
    assert!(gone >= 21, "{gone}");
    // The only row that knows the time is the newest.
    bench.now = BOOTED;
    rows(bench, 20); // 26-45
    bench.now = next;
    rows(bench, 1); // 46
    bench.later(2 * SECOND);
    let steps = std::iter::repeat_with(|| prune_by(bench, age(), 9, 2).events);
    steps.take_while(|gone| *gone > 0).for_each(drop);
    assert_eq!(oldest(bench), 46);
}

/// Somebody had set the clock to 2090: once the first row of that time was the oldest, nothing went by its age any more.
pub(super) fn events_of_a_time_to_come_go_with_the_first_of_after_it(bench: &mut Bench) {
    bench.register("import", "fetch");
    rows(bench, 2); // 1-2
    bench.later(64 * 365 * 86_400 * SECOND);
    rows(bench, 20); // 3-22
    bench.now = START.after(SECOND);
    let age = || Retention::forever().events(Keep::for_age(SECOND));
    let first = START.after(MS).after(SECOND);
    let pruned = prune_by(bench, age(), 9, 1);
    assert_eq!((pruned.events, pruned.next), (0, Some(first)));
    rows(bench, 2); // 23-24
    bench.later(SECOND);
    // More of them than a step looks at.
    let steps = std::iter::repeat_with(|| prune_by(bench, age(), 9, 2).events);
    steps.take_while(|gone| *gone > 0).for_each(drop);
    assert_eq!(oldest(bench), 24);
}

/// A client's clock is a second ahead: its rows have an age as soon as that second is over.
pub(super) fn events_of_a_clock_that_is_a_little_ahead_are_waited_for(bench: &mut Bench) {
    bench.register("import", "fetch");
    rows(bench, 2);
    let now = bench.now;
    bench.now = START;
    let age = || Retention::forever().events(Keep::for_age(SECOND));
    let next = START.after(MS).after(SECOND);
    assert_eq!(prune(bench, age()).next, Some(next));
    bench.now = now.after(SECOND);
    assert_eq!(prune(bench, age()).events, 1);
}

/// A board that is never told the time has only this.
pub(super) fn events_go_by_age_while_the_clock_was_never_set(bench: &mut Bench) {
    bench.register("import", "fetch");
    bench.now = BOOTED;
    rows(bench, 3); // 1-3
    bench.later(SECOND);
    let age = || Retention::forever().events(Keep::for_age(SECOND));
    assert_eq!(prune(bench, age()).events, 2);
}

pub(super) fn dead_keys_are_dropped_and_live_ones_kept(bench: &mut Bench) {
    bench.register("import", "fetch");
    let keyed = |n: usize, hold| new_job("import").unique_key(format!("{n:03}"), hold);
    let left = |bench: &mut Bench| {
        let mut left = 0;
        let type_id = bench.types[0].type_id;
        bench.look(|rows| {
            left = 0;
            for n in 0..400 {
                left += usize::from(rows.holder(type_id, &format!("{n:03}"))?.is_some());
            }
            Ok(())
        });
        left
    };
    let holds = [While::Live, While::For(SECOND), While::Queued];
    let jobs = (0..90).map(|n| keyed(n, holds[n % 3]));
    bench.enqueue_all(jobs.collect());
    let claims = bench.claim();
    // A key goes with its job, but for the timed ones, which have half a second left.
    for claimed in claims.claimed.iter().take(45) {
        bench.complete(&claimed.row, "1");
        bench.one(Op::Delete(claimed.row.id)).expect("it is over");
    }
    bench.later(SECOND / 2);
    assert_eq!(left(bench), 15 + 45);
    prune(bench, Retention::forever());
    assert_eq!(left(bench), 15 + 45);
    bench.later(SECOND);
    prune(bench, Retention::forever());
    assert_eq!(left(bench), 30);
    // A step looks at some of them, the next one goes on from there.
    let jobs = (90..390).map(|n| keyed(n, While::For(SECOND)));
    bench.enqueue_all(jobs.collect());
    bench.later(2 * SECOND);
    prune(bench, Retention::forever());
    assert!((31..330).contains(&left(bench)), "{}", left(bench));
    prune(bench, Retention::forever());
    assert_eq!(left(bench), 30);
}

/// A key that another job has taken over does not go with the first.
pub(super) fn a_key_of_another_job_does_not_go_with_this_one(bench: &mut Bench) {
    bench.register("import", "fetch");
    let keyed = || vec![new_job("import").unique_key("k", While::Live)];
    let first = bench.enqueue_all(keyed())[0].id;
    bench.cancel(first);
    let second = bench.enqueue_all(keyed())[0].id;
    bench.one(Op::Delete(first)).expect("it is over");
    let third = bench.enqueue_all(keyed())[0];
    assert_eq!((third.id, third.is_new), (second, false));
}

/// A key was dropped as soon as its job ran or was over, and did not hold when the job was tried again.
pub(super) fn a_key_is_kept_for_a_job_that_can_be_tried_again(bench: &mut Bench) {
    bench.register("import", "fetch");
    let live = bench.enqueue(new_job("import").unique_key("live", While::Live));
    let queued = bench.enqueue(new_job("import").unique_key("queued", While::Queued));
    let claims = bench.claim();
    bench.cancel(live);
    prune(bench, Retention::forever());
    let delay = Duration::ZERO;
    let tries = Tries::OfJob { max: 2 };
    bench.fail(&claims.claimed[1].row, Verdict::Retry { tries, delay });
    bench
        .one(Op::Retry(live, RetryFrom::Failed))
        .expect("it is over");
    let keys = [
        ("live", While::Live, live),
        ("queued", While::Queued, queued),
    ];
    for (key, hold, id) in keys {
        let again = bench.enqueue_all(vec![new_job("import").unique_key(key, hold)]);
        assert_eq!((again[0].id, again[0].is_new), (id, false), "{key}");
    }
}

pub(super) fn history_ends_where_the_log_was_cut(bench: &mut Bench) {
    bench.register("import", "fetch load");
    bench.enqueue_all(vec![new_job("import"); 2]); // 1-2
    let claims = bench.claim(); // 3-4, 5-6, in one row
    let second = claims.claimed[1].row;
    let seqs = |bench: &Bench| -> Vec<i64> {
        let changes = bench.reader.changes_of(second.id, 9).expect("readable");
        changes.iter().map(|change| change.seq).collect()
    };
    assert_eq!(seqs(bench), [2, 5]);
    bench.complete(&second, "1"); // 7-8
    let keep = Retention::forever().events(Keep::newest(4));
    assert_eq!(prune(bench, keep).events, 1);
    assert_eq!(seqs(bench), [5, 7]);
}

//! The list, the pauses and the bell, without threads.

use super::batch::{BATCH_MAX, sort_outcomes};
use super::*;
use crate::job::{BulkAction, JobId};
use crate::store::memory::MemoryStore;
use crate::store::ops::{Settle, Source};
use crate::time::FakeClock;
use crate::transition::Input;

const MS: Duration = Duration::from_millis(1);

fn at(ms: i64) -> Timestamp {
    Timestamp::from_millis(ms)
}

/// A sleep that a fake clock ends.
fn until(ms: i64) -> Sleep {
    Sleep {
        until: Some(at(ms)),
        ends: None,
    }
}

fn settled(job: i64, epoch: i64) -> Op {
    Op::Settle(Settle {
        id: JobId::from_i64(job),
        phase_index: 0,
        input: Input::HandlerCancelled { epoch },
        started_at: at(0),
        result: None,
        error: None,
        is_from: Source::Handler,
        plan: None,
    })
}

fn posted(op: Op) -> Entry {
    Entry { op, promise: None }
}

/// Jobs and epochs of outcomes, 0 for other operations.
fn told(entries: &[Entry]) -> Vec<(i64, i64)> {
    let told = entries.iter().map(|entry| {
        if let Op::Settle(settle) = &entry.op {
            (settle.id.as_i64(), settle.input.epoch().unwrap_or(0))
        } else {
            (0, 0)
        }
    });
    told.collect()
}

#[test]
fn the_earliest_deadline_is_of_either_kind() {
    let deadline = |exact, lazy| Deadline { exact, lazy }.earliest();
    assert_eq!(deadline(None, None), None);
    assert_eq!(deadline(Some(at(2)), None), Some(at(2)));
    assert_eq!(deadline(None, Some(at(3))), Some(at(3)));
    assert_eq!(deadline(Some(at(2)), Some(at(1))), Some(at(1)));
}

#[test]
fn the_pause_after_a_failure_doubles_up_to_its_limit_and_begins_anew_after_a_good_minute() {
    let mut state = State::default();
    let mut now = monotonic();
    assert!(state.may_work(now));
    for pause in [50, 100, 200, 400, 800, 1600, 3200, 5000, 5000] {
        state.pause_longer(now);
        assert_eq!(state.retry_at, Some(now + pause * MS));
        assert!(!state.may_work(now + (pause - 1) * MS));
        // A caller who fails meanwhile.
        state.pause_longer(now + MS);
        assert_eq!(state.retry_at, Some(now + pause * MS), "not made longer");
        now += pause * MS;
        assert!(state.may_work(now));
    }
    assert!(state.is_well());
    assert!(!state.is_well(), "told once");
    let failed_at = state.failed_at.expect("it has failed");
    state.pause_longer(failed_at + PAUSE_KEPT - MS);
    assert_eq!(state.pause, PAUSE_MAX, "well for too short a time");
    assert!(state.is_well());
    state.pause_longer(failed_at + PAUSE_KEPT - MS + PAUSE_KEPT);
    assert_eq!(state.pause, PAUSE_MIN);
}

#[test]
fn a_batch_is_the_list_as_far_as_there_is_room() {
    let mut state = State::default();
    let jobs = i64::try_from(BATCH_MAX).expect("not many") + 2;
    state.list = (1..=jobs).map(|job| posted(settled(job, 1))).collect();
    let batch = take_batch(&mut state);
    assert_eq!(batch.len(), BATCH_MAX);
    assert_eq!(state.last_length, BATCH_MAX + 2);
    assert_eq!(told(&state.list), [(jobs - 1, 1), (jobs, 1)]);
    assert!(!state.is_done());
    assert_eq!(take_batch(&mut state).len(), 2);
    assert_eq!((state.list.len(), state.last_length), (0, 2));
    assert!(state.is_done());
}

#[test]
fn outcomes_are_sorted_by_job_between_other_operations_and_those_of_one_job_stay_in_order() {
    let list = [(3, 1), (1, 2), (1, 1), (0, 0), (2, 1), (1, 3)];
    let mut list: Vec<Entry> = list
        .into_iter()
        .map(|(job, epoch)| {
            posted(if job == 0 {
                Op::Probe
            } else {
                settled(job, epoch)
            })
        })
        .collect();
    sort_outcomes(&mut list);
    assert_eq!(
        told(&list),
        [(1, 2), (1, 1), (3, 1), (0, 0), (1, 3), (2, 1)]
    );
}

#[test]
fn during_a_pause_only_those_who_wait_are_taken() {
    let ticket = Arc::new(Ticket::default());
    let mut state = State::default();
    state.list.push(posted(settled(1, 1)));
    assert!(!state.has_callers());
    state.list.push(Entry {
        op: Op::Cancel(JobId::from_i64(2)),
        promise: Some(Promise::new(&ticket)),
    });
    state.list.push(posted(settled(3, 1)));
    assert!(state.has_callers());
    let callers = take_callers(&mut state);
    assert_eq!(callers.len(), 1);
    assert!(callers[0].promise.is_some());
    assert_eq!(told(&state.list), [(1, 1), (3, 1)]);
}

#[test]
fn the_sleeper_is_woken_for_what_comes_before_its_deadline_only() {
    let clock = Clock::fake(FakeClock::new(at(0)));
    let committer = Committer::new(Box::new(MemoryStore::new()), clock);
    let rung = |asleep: Option<Sleep>, is_led: bool, ring: &dyn Fn(&Committer)| {
        *committer.state.lock() = State {
            asleep,
            is_led,
            ..State::default()
        };
        ring(&committer);
        let state = committer.state.lock();
        (state.is_rung, state.asleep.is_none())
    };
    let before = |ms| move |committer: &Committer| committer.ring_before(at(ms));
    let until = Some(until(5));
    assert_eq!(rung(until, false, &before(4)), (true, true));
    assert_eq!(rung(until, false, &before(5)), (false, false));
    assert_eq!(
        rung(Some(Sleep::default()), false, &before(5)),
        (true, true)
    );
    assert_eq!(rung(None, false, &before(5)), (true, true), "it is awake");
    assert_eq!(rung(until, false, &Committer::ring), (true, true));
    // Whoever leads wakes it when the lead is given up.
    assert_eq!(rung(until, true, &before(4)), (true, false));
    assert_eq!(rung(until, true, &Committer::ring), (true, false));
}

/// An engine that has nothing but a deadline.
#[derive(Default)]
struct Idle {
    deadline: Option<Timestamp>,
    wants_claims: bool,
}

impl Host for Idle {
    fn request(&self, _: &[Op], _: Timestamp) -> ClaimRequest {
        ClaimRequest::default()
    }
    fn due(&self, _: Timestamp, _: bool, _: &mut Vec<Op>) {}
    fn wants_claims(&self, _: Timestamp) -> bool {
        self.wants_claims
    }
    fn committed(&self, _: Vec<Op>, _: &mut Committed, _: Duration, _: Timestamp) {}
    fn deadline(&self) -> Deadline {
        Deadline {
            exact: self.deadline,
            lazy: None,
        }
    }
    fn claims_failed(&self, _: &Error) {}
    fn refused(&self, _: &Op, _: &Error) {}
    fn died(&self) {}
    fn store_health(&self, _: Option<&Error>) {}
}

#[test]
fn who_gives_up_the_lead_wakes_the_sleeper_if_there_is_something_for_it() {
    let clock = Clock::fake(FakeClock::new(at(0)));
    let committer = Committer::new(Box::new(MemoryStore::new()), clock);
    let wakes = |asleep: Option<Sleep>, host: &Idle, state: State| {
        *committer.state.lock() = State {
            asleep,
            is_led: true,
            ..state
        };
        committer.give_up_lead(host);
        let mut state = committer.state.lock();
        assert!(!state.is_led);
        state.list.clear();
        state.is_rung && state.asleep.is_none()
    };
    let due = |ms| Idle {
        deadline: Some(at(ms)),
        ..Idle::default()
    };
    let until = Some(until(5));
    let quiet = State::default;
    assert!(!wakes(until, &Idle::default(), quiet()));
    assert!(!wakes(until, &due(5), quiet()), "it wakes up then");
    assert!(wakes(until, &due(4), quiet()));
    assert!(wakes(Some(Sleep::default()), &due(5), quiet()));
    assert!(!wakes(Some(Sleep::default()), &Idle::default(), quiet()));
    assert!(!wakes(None, &due(4), quiet()), "it is awake");
    let claims = Idle {
        wants_claims: true,
        ..Idle::default()
    };
    assert!(wakes(until, &claims, quiet()));
    let with = |change: &dyn Fn(&mut State)| {
        let mut state = State::default();
        change(&mut state);
        wakes(until, &Idle::default(), state)
    };
    assert!(with(&|state| state.list.push(posted(Op::Probe))));
    assert!(with(&|state| state.is_rung = true));
    assert!(with(&|state| state.is_stopping = true));
    assert!(with(&|state| state.retry_at = Some(monotonic())));
}

/// The bug: whoever slept until a time that a clock had passed in a jump was not woken for what was due a second later.
#[test]
fn a_sleeper_whose_time_has_passed_is_late_for_everything() {
    for (sleep, due, now, expected) in [
        (Sleep::default(), 5, 1, true),
        (until(9), 5, 1, true),
        (until(5), 9, 1, false),
        (until(5), 9, 7, true),
    ] {
        let is_late = sleep.is_late(at(due), at(now), monotonic());
        assert_eq!(is_late, expected, "{sleep:?}");
    }
}

#[test]
fn whoever_adds_work_does_not_get_the_room_that_was_given_away() {
    use crate::store::ops::Bulk;
    use crate::store::outbox::Mail;
    let id = JobId::from_i64(1);
    let bulk = |action| {
        Op::Bulk(Bulk {
            action,
            jobs: crate::store::ops::Chosen::Listed(Vec::new()),
        })
    };
    let start = crate::job::RetryFrom::Start;
    for op in [
        Op::Enqueue(Vec::new()),
        Op::Retry(id, start),
        bulk(BulkAction::Retry(start)),
        Op::Mail(Mail::Redeliver(crate::store::outbox::Which::Between(
            at(0),
            at(1),
        ))),
    ] {
        assert!(op.adds_work(), "{op:?}");
    }
    for op in [
        settled(1, 1),
        Op::Cancel(id),
        Op::Delete(id),
        bulk(BulkAction::Cancel),
        bulk(BulkAction::Delete),
        Op::Register(Vec::new()),
        Op::Mail(Mail::Configure(Vec::new())),
        Op::Probe,
    ] {
        assert!(!op.adds_work(), "{op:?}");
    }
}

/// A quota is full and the disk is not: the room is made again and gone at once.
#[test]
fn room_that_does_not_last_is_looked_for_more_and_more_seldom() {
    let mut state = State::default();
    let mut now = monotonic();
    let look = |state: &State| state.low.as_ref().expect("it is low").look_at;
    for pause in [1, 2, 4, 8, 16, 32, 64, 64] {
        state.begin_low(now);
        let pause = pause * 1000 * MS;
        assert_eq!(look(&state), now + pause);
        // There is too little room: that is cheap to find out.
        state.look_later(now + pause, false);
        assert_eq!(look(&state), now + pause + 1000 * MS);
        now += pause + 1000 * MS;
        state.end_low(now);
        assert!(state.low.is_none() && state.is_well());
    }
    now += 60_000 * MS;
    state.begin_low(now);
    assert_eq!(look(&state), now + 1000 * MS, "it has lasted");
    // It seemed to be there and could not be taken.
    state.look_later(now, true);
    assert_eq!(look(&state), now + 2000 * MS);
    state.look_later(now, true);
    assert_eq!(look(&state), now + 4000 * MS);
}

/// The bug: it slept for 50 minutes, all but for retention. The machine stood still for 45 of them, and so did the clock that it went
/// by: what a caller then enqueued for in 10 minutes was 40 minutes late.
#[test]
fn a_sleeper_whose_clock_has_stood_still_is_woken_for_what_comes_before_it_ends() {
    const MINUTE: i64 = 60_000;
    let now = at(45 * MINUTE);
    let clock = Clock::fake(FakeClock::new(now));
    let committer = Committer::new(Box::new(MemoryStore::new()), clock);
    let sleep = Sleep {
        until: Some(at(50 * MINUTE)),
        ends: Some(monotonic() + Duration::from_secs(50 * 60)),
    };
    for (minutes, expected) in [(55, true), (90, true), (45 + 51, false)] {
        let due = at(minutes * MINUTE);
        let asleep = || State {
            asleep: Some(sleep),
            ..State::default()
        };
        *committer.state.lock() = asleep();
        committer.ring_before(due);
        assert_eq!(committer.state.lock().is_rung, expected, "{minutes}");
        *committer.state.lock() = asleep();
        let idle = Idle {
            deadline: Some(due),
            ..Idle::default()
        };
        committer.give_up_lead(&idle);
        assert_eq!(committer.state.lock().is_rung, expected, "{minutes}");
    }
    // Rounding, and what the clocks differ by in an hour, wake nobody.
    assert!(!sleep.is_late(at(50 * MINUTE), at(1), monotonic()));
}

//! Claims, alarms and handlers that do not return, without threads.

use super::*;
use crate::job::{JobStatus, PhaseName};
use crate::phase::JobType;
use crate::store::Details;
use crate::transition::{Flags, Verdict};

const ID: JobId = JobId::from_i64(7);

fn at(second: u64) -> Timestamp {
    Timestamp::from_millis(0).after(Duration::from_secs(second))
}

/// A job of three phases that has just been claimed, due to be over at second 10.
fn row(epoch: i64) -> JobRow {
    JobRow {
        id: ID,
        type_id: 1,
        plan_id: 1,
        status: JobStatus::Running,
        priority: 0,
        run_at: at(0),
        epoch,
        attempt: 1,
        phase_index: 0,
        phase_count: 3,
        phase_attempt: 1,
        crash_count: 0,
        created_at: at(0),
        started_at: Some(at(0)),
        phase_started_at: Some(at(0)),
        finished_at: None,
        deadline: Some(at(10)),
        last_seq: 2,
        flags: Flags::default(),
    }
}

fn run(row: JobRow) -> Run {
    let claimed = Claimed {
        row,
        job_type: "t".into(),
        plan: ["a", "b", "c"].map(PhaseName::new).into(),
        details: Details::default(),
    };
    Run::new(claimed, Arc::new(JobType::<()>::new("t").into_def())).1
}

const fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}

/// The same on both clocks.
fn on(second: u64) -> Moment {
    Moment::default().after(seconds(second))
}

fn insert(live: &LiveTable, epoch: i64, now: Moment) -> Left {
    live.insert(row(epoch), run(row(epoch)), now)
}

/// The job under way, its first claim offered.
fn claimed() -> LiveTable {
    let live = LiveTable::default();
    assert_eq!(insert(&live, 1, on(0)), Left::Nothing);
    live
}

/// The first phase of a claim.
fn first(epoch: i64) -> Offer {
    Offer::of(&row(epoch))
}

/// The claim has come to its second phase.
fn second(epoch: i64) -> JobRow {
    JobRow {
        phase_index: 1,
        ..row(epoch)
    }
}

/// What came due: alarms and phases, and the claims whose handlers overstay.
type Alarms = (Vec<(Alarm, u32)>, Vec<(JobId, i64)>);

fn due(live: &LiveTable, now: Moment) -> Alarms {
    let (due, overstayed) = live.due(now);
    let alarms = due.iter().map(|due| (due.alarm, due.row.phase_index));
    (alarms.collect(), overstayed)
}

#[test]
fn a_claim_is_entered_once() {
    let live = claimed();
    assert_eq!((live.len(), live.inside_count()), (1, 0));
    let task = live.take(first(1), on(1)).unwrap();
    assert_eq!(task.entered, on(1));
    assert!(live.take(first(1), on(1)).is_none(), "entered twice");
    assert_eq!((live.len(), live.inside_count()), (1, 1));
    assert_eq!(live.finish(ID, 1), None);
    assert_eq!((live.len(), live.inside_count()), (0, 0));
    assert!(
        live.take(first(1), on(2)).is_none(),
        "entered after its end"
    );
}

/// What a pause took back and who waited for a handler stands in the channel for a while.
#[test]
fn an_old_offer_lets_nobody_into_a_later_phase() {
    let live = claimed();
    assert_eq!(live.take_back(|_| true), [row(1)]);
    assert_eq!(insert(&live, 2, on(1)), Left::Nothing);
    assert!(live.take(first(1), on(1)).is_none(), "of a claim before");
    assert!(live.take(first(2), on(1)).is_some());
    assert!(live.advance(&second(2)));
    assert!(live.take(first(2), on(2)).is_none(), "of a phase before");
    assert!(live.take(Offer::of(&second(2)), on(2)).is_some());
}

#[test]
fn nobody_enters_a_job_whose_deadline_has_passed() {
    let live = claimed();
    assert_eq!(live.next_alarm(on(0)), Some(at(10)));
    assert_eq!(due(&live, on(9)), (vec![], vec![]));
    assert_eq!(due(&live, on(10)), (vec![(Alarm::Deadline, 0)], vec![]));
    assert!(live.take(first(1), on(10)).is_none());
}

#[test]
fn a_deadline_tells_the_handler_and_is_told_once() {
    let live = claimed();
    let task = live.take(first(1), on(1)).unwrap();
    assert_eq!(due(&live, on(10)), (vec![(Alarm::Deadline, 0)], vec![]));
    assert_eq!(task.flag.reason(), Some(StopReason::Timeout));
    assert_eq!(due(&live, on(99)), (vec![], vec![]));
}

#[test]
fn a_deadline_also_holds_for_the_next_phase_and_a_timeout_does_not() {
    let live = claimed();
    let task = live.take(first(1), on(1)).unwrap();
    assert!(
        live.set_timeout(&task, seconds(2), Verdict::Fail),
        "the earliest alarm"
    );
    assert!(
        !live.set_timeout(&task, seconds(3), Verdict::Fail),
        "not the earliest"
    );
    assert!(live.advance(&second(1)));
    assert_eq!(due(&live, on(9)), (vec![], vec![]));
    assert_eq!(due(&live, on(10)), (vec![(Alarm::Deadline, 1)], vec![]));
}

#[test]
fn a_flag_that_lost_against_its_outcome_does_not_stop_the_next_phase() {
    let live = claimed();
    let task = live.take(first(1), on(1)).unwrap();
    live.set_timeout(&task, seconds(2), Verdict::Fail);
    assert_eq!(due(&live, on(3)), (vec![(Alarm::PhaseTimeout, 0)], vec![]));
    assert!(live.advance(&second(1)));
    let next = live.take(Offer::of(&second(1)), on(4)).unwrap();
    assert_eq!((task.flag.is_set(), next.flag.is_set()), (true, false));
}

#[test]
fn an_outcome_of_an_older_claim_moves_nothing() {
    let live = claimed();
    assert_eq!(insert(&live, 2, on(1)), Left::Nothing);
    assert!(!live.advance(&row(1)));
    assert_eq!(live.finish(ID, 1), None);
    let end = |epoch| live.end_claim(ID, epoch, StopReason::Cancelled, on(2));
    assert_eq!(end(1), Left::Nothing);
    assert_eq!(live.claims(), [(ID, 2)]);
    assert!(live.get(ID, 1).is_none() && live.get(ID, 2).is_some());
    assert_eq!((end(2), live.len()), (Left::Nothing, 0));
}

#[test]
fn a_claim_waits_until_the_handler_of_the_one_before_has_returned() {
    let live = claimed();
    let task = live.take(first(1), on(1)).unwrap();
    assert_eq!(insert(&live, 2, on(1)), Left::Zombie);
    assert_eq!(task.flag.reason(), Some(StopReason::Cancelled));
    assert!(
        live.take(first(2), on(2)).is_none(),
        "two handlers of one job"
    );
    assert_eq!(live.zombies(), HashSet::from([ID]));
    let returned = Returned {
        is_abandoned: false,
        awaited_by: Some(first(2)),
    };
    assert_eq!(live.returned(ID, 1), Some(returned));
    assert!(live.take(first(2), on(2)).is_some());
    assert_eq!(live.returned(ID, 1), None, "returned twice");
}

#[test]
fn a_handler_that_overstays_is_not_waited_for() {
    let live = claimed();
    assert!(live.take(first(1), on(1)).is_some());
    let left = live.end(ID, StopReason::Cancelled, on(2));
    assert_eq!((left, live.has_others(&[])), (Left::Zombie, true));
    // Its deadline is over with its claim.
    assert_eq!(due(&live, on(2).after(GRACE)), (vec![], vec![(ID, 1)]));
    assert_eq!(live.replace(ID, 1, 1), Replace::Begin);
    assert!(live.replaced(ID, 1));
    assert_eq!((live.has_others(&[]), live.inside_count()), (false, 1));
    assert_eq!(live.left_count(), 1);
    let returned = live.finish(ID, 1).unwrap();
    assert_eq!((returned.is_abandoned, returned.awaited_by), (true, None));
    assert_eq!(live.replace(ID, 1, 1), Replace::No, "it has returned");
    assert_eq!(live.left_count(), 0);
    assert_eq!(due(&live, on(99)), (vec![], vec![]));
}

#[test]
fn a_worker_that_could_not_be_replaced_stays_and_is_tried_again() {
    let live = claimed();
    assert!(live.take(first(1), on(1)).is_some());
    assert_eq!(live.end(ID, StopReason::Timeout, on(2)), Left::Zombie);
    assert_eq!(live.overstayed(), None);
    assert_eq!(due(&live, on(3)), (vec![], vec![(ID, 1)]));
    assert_eq!(live.overstayed(), Some((ID, 1)));
    assert_eq!(live.replace(ID, 1, 0), Replace::TooMany);
    assert_eq!(live.replace(ID, 1, 1), Replace::Begin);
    assert_eq!(live.replace(ID, 1, 9), Replace::No, "by one alone");
    assert_eq!(live.overstayed(), None);
    live.keep(ID, 1, on(5));
    assert_eq!(live.overstayed(), Some((ID, 1)));
    assert_eq!(due(&live, on(5)), (vec![], vec![(ID, 1)]));
    assert!(live.returned(ID, 1).is_some_and(|back| !back.is_abandoned));
    live.keep(ID, 1, on(9));
    assert_eq!(live.next_alarm(on(5)), Some(at(10)), "it has returned");
}

#[test]
fn nobody_is_inside_while_an_outcome_is_on_its_way_to_the_disk() {
    let live = claimed();
    let task = live.take(first(1), on(1)).unwrap();
    live.set_timeout(&task, seconds(2), Verdict::Fail);
    assert_eq!(live.returned(ID, 1), None, "its claim goes on");
    assert_eq!(live.handed_in(first(1)), None);
    assert_eq!(live.unrecorded(), [ID]);
    // Under way, but neither too late, nor to be told to stop, nor to be cut off.
    assert_eq!(
        (live.len(), live.inside_count(), live.has_others(&[])),
        (1, 0, true)
    );
    assert_eq!(due(&live, on(5)), (vec![], vec![]));
    assert!(live.flags().1.is_empty() && live.inside().is_empty());
    assert!(live.take(first(1), on(5)).is_none(), "entered twice");
    // An end from outside leaves no handler behind.
    assert_eq!(live.end(ID, StopReason::Cancelled, on(6)), Left::Nothing);
    assert_eq!(due(&live, on(99)), (vec![], vec![]));
}

#[test]
fn an_outcome_that_is_handed_in_says_nothing_of_the_next_phase() {
    let live = claimed();
    assert!(live.take(first(1), on(1)).is_some());
    // It is on disk, and somebody in the next phase, before we say so.
    assert!(live.advance(&second(1)));
    assert!(live.take(Offer::of(&second(1)), on(2)).is_some());
    assert_eq!(live.handed_in(first(1)), None);
    assert_eq!(live.inside_count(), 1);
    assert_eq!(live.end(ID, StopReason::Cancelled, on(3)), Left::Zombie);
    assert_eq!(live.handed_in(first(1)), None, "another handler's");
    assert_eq!(live.inside_count(), 1);
    assert!(live.returned(ID, 1).is_some());
    // The claim ends between the look and the outcome: the handler has left all the same.
    assert_eq!(insert(&live, 2, on(3)), Left::Nothing);
    assert!(live.take(first(2), on(3)).is_some());
    assert_eq!(live.returned(ID, 2), None);
    assert_eq!(live.end(ID, StopReason::Cancelled, on(3)), Left::Zombie);
    assert!(live.handed_in(first(2)).is_some());
    assert_eq!(live.inside_count(), 0);
}

#[test]
fn only_what_nobody_has_entered_is_taken_back() {
    let live = claimed();
    assert_eq!(live.take_back(|_| false), []);
    assert_eq!(live.take_back(|_| true), [row(1)]);
    assert_eq!(insert(&live, 2, on(1)), Left::Nothing);
    assert!(live.take(first(2), on(1)).is_some());
    assert_eq!(live.take_back(|_| true), []);
    assert_eq!(live.inside(), [(row(2), at(1))]);
    live.close();
    assert_eq!(insert(&live, 3, on(2)), Left::Zombie);
    assert_eq!(
        live.returned(ID, 2).and_then(|back| back.awaited_by),
        Some(first(3))
    );
    assert!(
        live.take(first(3), on(3)).is_none(),
        "entered after the end"
    );
}

#[test]
fn alarms_of_phases_that_are_over_are_forgotten() {
    let live = claimed();
    let far = seconds(1_000_000);
    let last = 10 * u32::try_from(ALARMS_MIN).unwrap();
    for phase_index in 0..=last {
        let row = JobRow {
            phase_index,
            ..row(1)
        };
        assert!(live.advance(&row));
        let task = live.take(Offer::of(&row), on(1)).unwrap();
        live.set_timeout(&task, far, Verdict::Fail);
    }
    let count = live.0.lock().alarms.len();
    assert!(count <= ALARMS_MIN, "{count} alarms for one job");
    // Those of the present phase are not among them.
    assert_eq!(
        due(&live, on(1).after(far)).0,
        [(Alarm::Deadline, last), (Alarm::PhaseTimeout, last)]
    );
}

/// The bug: a board that had run for a second since 1970 got the time of day, and every phase with a timeout had failed.
#[test]
fn a_clock_that_is_set_forward_times_no_phase_out() {
    let live = claimed();
    let task = live.take(first(1), on(1)).unwrap();
    live.set_timeout(&task, seconds(3), Verdict::Fail);
    let set_forward = |second| Moment {
        now: at(second + 1_000_000),
        ..on(second)
    };
    assert_eq!(live.next_alarm(on(2)), Some(at(4)));
    assert_eq!(due(&live, set_forward(3)).0, [(Alarm::Deadline, 0)]);
    assert_eq!(live.next_alarm(set_forward(3)), Some(at(1_000_004)));
    assert_eq!(due(&live, set_forward(4)).0, [(Alarm::PhaseTimeout, 0)]);
}

/// The bug: the thread had gone, and nobody had its place.
#[test]
fn a_handler_that_returns_while_its_worker_is_being_replaced_keeps_it() {
    let live = claimed();
    assert!(live.take(first(1), on(1)).is_some());
    assert_eq!(live.end(ID, StopReason::Timeout, on(2)), Left::Zombie);
    assert_eq!(due(&live, on(3)), (vec![], vec![(ID, 1)]));
    assert_eq!(live.replace(ID, 1, 1), Replace::Begin);
    assert!(live.returned(ID, 1).is_some_and(|back| !back.is_abandoned));
    assert!(!live.replaced(ID, 1), "there is one too many now");
}

/// The bug: one that asked for the end and had overstayed was counted as one of those who are waited for, and nobody was.
#[test]
fn who_asks_for_the_end_is_not_waited_for_and_all_others_are() {
    let live = claimed();
    let own = [current_thread()];
    assert!(live.has_others(&own), "it is offered");
    assert!(live.take(first(1), on(1)).is_some());
    assert!(!live.has_others(&own) && live.has_others(&[]));
    assert_eq!(live.end(ID, StopReason::Cancelled, on(2)), Left::Zombie);
    assert!(!live.has_others(&own) && live.has_others(&[]));
    assert_eq!(due(&live, on(3)), (vec![], vec![(ID, 1)]));
    assert!(!live.has_others(&[]), "it has overstayed");
    let other = JobRow {
        id: JobId::from_i64(8),
        ..row(1)
    };
    assert_eq!(live.insert(other, run(other), on(3)), Left::Nothing);
    let enter = || live.take(Offer::of(&other), on(3)).is_some();
    assert!(std::thread::scope(|scope| scope.spawn(enter).join()).unwrap());
    assert!(live.has_others(&own), "one of them is inside");
}

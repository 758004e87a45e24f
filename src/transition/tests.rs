//! Every pair of status and input, legal and illegal, and what each legal one makes of a row. Test code.

use std::collections::BTreeSet;

use super::*;

const NOW: Timestamp = Timestamp::from_millis(1_800_000_000_000);
const SECOND: Duration = Duration::from_secs(1);
/// The claim that is under way in [`row`].
const EPOCH: i64 = 4;

/// The second of three phases, in the second try.
fn row(status: JobStatus) -> JobRow {
    let is_running = status == JobStatus::Running;
    JobRow {
        id: JobId::from_i64(7),
        type_id: 1,
        plan_id: 2,
        status,
        priority: 3,
        run_at: NOW.before(9 * SECOND),
        epoch: EPOCH,
        attempt: 2,
        phase_index: 1,
        phase_count: 3,
        phase_attempt: 2,
        crash_count: 1,
        created_at: NOW.before(10 * SECOND),
        started_at: Some(NOW.before(8 * SECOND)),
        phase_started_at: is_running.then_some(NOW.before(SECOND)),
        finished_at: status.is_terminal().then_some(NOW.before(SECOND)),
        deadline: None,
        last_seq: 5,
        flags: Flags(Flags::SAVED | Flags::ERRORS),
    }
}

/// Every kind of input, those of a handler from the claim `epoch`.
fn inputs(epoch: i64) -> Vec<Input> {
    let tries = Tries::OfJob { max: 5 };
    let completed = |edge| Input::PhaseCompleted { epoch, edge };
    let failed = |verdict| Input::PhaseFailed { epoch, verdict };
    let mut inputs = vec![
        Input::Claim,
        completed(Edge::GoOn),
        completed(Edge::Release(InterruptionReason::Paused)),
        failed(Verdict::Fail),
        failed(Verdict::Retry {
            tries,
            delay: SECOND,
        }),
        failed(Verdict::Retry {
            tries: Tries::OfPhase { max: 2 },
            delay: SECOND,
        }),
        failed(Verdict::Rewind {
            tries,
            delay: SECOND,
            phase_index: 0,
        }),
        Input::Snooze {
            epoch,
            until: NOW.after(SECOND),
        },
        Input::HandlerCancelled { epoch },
        Input::Cancel,
        Input::Retry(RetryFrom::Failed),
        Input::Retry(RetryFrom::Start),
        Input::Delete,
    ];
    for reason in InterruptionReason::ALL {
        for (entered, max_crashes) in [
            (Entered::Inside, 9),
            (Entered::Inside, 1),
            (Entered::Returned, 0),
            (Entered::No, 0),
        ] {
            inputs.push(Input::Interrupted {
                epoch,
                reason,
                entered,
                max_crashes,
            });
        }
    }
    inputs
}

/// From which statuses an input is legal, and how it is refused from the others. This is the table.
fn legal_from(input: &Input) -> (&'static [JobStatus], fn(JobStatus) -> Refusal) {
    use JobStatus::{Cancelled, Completed, Failed, Pending, Running};
    match input {
        Input::Claim => (&[Pending], Refusal::Illegal),
        Input::PhaseCompleted { .. }
        | Input::PhaseFailed { .. }
        | Input::Snooze { .. }
        | Input::HandlerCancelled { .. }
        | Input::Interrupted { .. } => (&[Running], |_| Refusal::Stale),
        Input::Cancel => (&[Pending, Running], Refusal::Illegal),
        Input::Retry(_) => (&[Failed, Cancelled], Refusal::Illegal),
        Input::Delete => (&[Completed, Failed, Cancelled], Refusal::Illegal),
    }
}

#[test]
fn every_pair_of_status_and_input_is_decided_as_the_table_says() {
    for status in JobStatus::ALL {
        for input in inputs(EPOCH) {
            let (legal, refusal) = legal_from(&input);
            let decided = decide(&row(status), &input, NOW);
            if legal.contains(&status) {
                assert!(decided.is_ok(), "{status} {input:?}: {decided:?}");
            } else {
                assert_eq!(decided, Err(refusal(status)), "{status} {input:?}");
            }
        }
    }
}

#[test]
fn an_outcome_of_another_epoch_is_stale_in_every_status() {
    for epoch in [EPOCH - 1, EPOCH + 1, 0, -1] {
        for (input, same) in inputs(epoch).into_iter().zip(inputs(EPOCH)) {
            if input == same {
                continue; // It belongs to no claim.
            }
            for status in JobStatus::ALL {
                let decided = decide(&row(status), &input, NOW);
                assert_eq!(decided, Err(Refusal::Stale), "{status} {input:?}");
            }
        }
    }
}

/// An edge by names; a deleted job is `(gone)`.
type NamedEdge = (String, String);

/// Every edge that some row and some input lead along.
fn edges() -> BTreeSet<NamedEdge> {
    let mut edges = BTreeSet::new();
    for status in JobStatus::ALL {
        let usual = row(status);
        let last_phase = JobRow {
            phase_index: 2,
            ..usual
        };
        let past_deadline = JobRow {
            deadline: Some(NOW),
            ..usual
        };
        for row in [usual, last_phase, past_deadline] {
            for input in inputs(EPOCH) {
                if let Ok(transition) = decide(&row, &input, NOW) {
                    let after = match transition.phases {
                        Phases::Delete => "(gone)",
                        Phases::Keep | Phases::Complete | Phases::ClearFrom(_) => {
                            transition.after.status.as_str()
                        }
                    };
                    edges.insert((status.to_string(), after.to_owned()));
                }
            }
        }
    }
    edges
}

#[test]
fn the_diagram_in_the_docs_names_exactly_the_edges_that_there_are() {
    let source = include_str!("../transition.rs");
    let list = source.split("//! Every edge, as the tests read it:").nth(1);
    let list = list
        .and_then(|rest| rest.split("```").nth(1))
        .expect("a list in the docs");
    let mut named = BTreeSet::new();
    for line in list.lines().filter_map(|line| line.strip_prefix("//!")) {
        let Some((sources, rest)) = line.split_once("──>") else {
            continue;
        };
        let to = rest.split_whitespace().next().expect("where it leads");
        for from in sources.split(',').map(str::trim) {
            assert!(from.parse::<JobStatus>().is_ok(), "{from:?} is a status");
            assert!(
                named.insert((from.to_owned(), to.to_owned())),
                "{from} to {to} is there twice"
            );
        }
    }
    assert_eq!(named, edges());
}

#[test]
fn no_edge_moves_what_must_stay() {
    for status in JobStatus::ALL {
        for input in inputs(EPOCH) {
            let before = row(status);
            let Ok(Transition { after, .. }) = decide(&before, &input, NOW) else {
                continue;
            };
            let fixed = JobRow {
                id: before.id,
                type_id: before.type_id,
                plan_id: before.plan_id,
                priority: before.priority,
                created_at: before.created_at,
                phase_count: before.phase_count,
                last_seq: before.last_seq,
                ..after
            };
            assert_eq!(after, fixed, "{status} {input:?}");
            assert_eq!(
                after.finished_at.is_some(),
                after.status.is_terminal(),
                "{input:?}"
            );
            let is_running = after.status == JobStatus::Running;
            assert_eq!(after.phase_started_at.is_some(), is_running, "{input:?}");
            assert!(after.phase_index <= after.phase_count, "{input:?}");
            assert!(
                after.epoch == before.epoch || input == Input::Claim,
                "{input:?}"
            );
        }
    }
}

#[test]
fn each_input_is_told_as_its_change() {
    let change = |row: &JobRow, input: &Input| {
        let Transition { change, phases, .. } = decide(row, input, NOW).expect("a legal edge");
        (change, phases)
    };
    let running = row(JobStatus::Running);
    let over = row(JobStatus::Failed);
    let told: Vec<_> = inputs(EPOCH)[1..10]
        .iter()
        .map(|input| change(&running, input))
        .collect();
    let expected = [
        (Change::Advanced, Phases::Complete),
        (Change::AdvancedAndReleased, Phases::Complete),
        (Change::Failed, Phases::Keep),
        (Change::FailedAndRetrying, Phases::Keep),
        (Change::Failed, Phases::Keep), // Of this phase the second try was the last.
        (Change::FailedAndRetrying, Phases::ClearFrom(0)),
        (Change::Snoozed, Phases::Keep),
        (Change::Cancelled, Phases::Keep),
        (Change::Cancelled, Phases::Keep),
    ];
    assert_eq!(told, expected);
    let told: Vec<_> = inputs(EPOCH)[10..13]
        .iter()
        .map(|input| change(&over, input))
        .collect();
    let expected = [
        (Change::Retried, Phases::Keep),
        (Change::Retried, Phases::ClearFrom(0)),
        (Change::Deleted, Phases::Delete),
    ];
    assert_eq!(told, expected);
    let claim = change(&row(JobStatus::Pending), &Input::Claim);
    assert_eq!(claim, (Change::Claimed, Phases::Keep));
}

fn after(row: &JobRow, input: Input) -> JobRow {
    decide(row, &input, NOW).expect("a legal edge").after
}

#[test]
fn a_claim_counts_an_attempt_and_a_new_epoch() {
    let mut pending = row(JobStatus::Pending);
    pending.flags = pending.flags.with(Flags::WAITING);
    let expected = JobRow {
        status: JobStatus::Running,
        epoch: EPOCH + 1,
        attempt: 3,
        phase_attempt: 3,
        phase_started_at: Some(NOW),
        flags: Flags(Flags::SAVED | Flags::ERRORS),
        ..pending
    };
    assert_eq!(after(&pending, Input::Claim), expected);
    pending.started_at = None;
    assert_eq!(after(&pending, Input::Claim).started_at, Some(NOW));
}

#[test]
fn a_deadline_is_over_when_it_is_reached() {
    let at = |deadline| JobRow {
        deadline: Some(deadline),
        ..row(JobStatus::Pending)
    };
    let in_time = decide(&at(NOW.after(Duration::from_millis(1))), &Input::Claim, NOW);
    assert_eq!(
        in_time.map(|transition| transition.change),
        Ok(Change::Claimed)
    );
    let late = decide(&at(NOW), &Input::Claim, NOW).expect("a legal edge");
    assert_eq!(
        (late.change, late.cause),
        (Change::Expired, Some(ErrorCause::Deadline))
    );
    let (attempt, epoch) = (late.after.attempt, late.after.epoch);
    assert_eq!(
        (late.after.status, attempt, epoch),
        (JobStatus::Failed, 2, EPOCH)
    );
}

/// Each retry gave it the time from the enqueueing to the deadline that the retry before had made: more and more.
#[test]
fn a_deadline_that_was_put_off_is_put_off_by_the_same_time_again() {
    let day = Duration::from_secs(86_400);
    let mut job = row(JobStatus::Failed);
    for time in [Duration::ZERO, SECOND] {
        job = JobRow {
            deadline: Some(job.created_at.after(time)),
            ..row(JobStatus::Failed)
        };
        for now in [NOW, NOW.after(day), NOW.after(3 * day)] {
            let retried = decide(&job, &Input::Retry(RetryFrom::Failed), now);
            let after = retried.expect("a legal edge").after;
            assert_eq!(after.deadline, Some(now.after(time)));
            assert!(after.flags.has(Flags::ERRORS) && after.flags.has(Flags::SAVED));
            job = JobRow {
                status: JobStatus::Failed,
                ..after
            };
        }
    }
    // One that has not passed stays.
    let in_time = decide(&job, &Input::Retry(RetryFrom::Failed), NOW.after(3 * day));
    assert_eq!(in_time.expect("a legal edge").after.deadline, job.deadline);
}

#[test]
fn a_finished_phase_starts_the_next_one_or_ends_the_job() {
    let running = row(JobStatus::Running);
    let done = |edge| Input::PhaseCompleted { epoch: EPOCH, edge };
    let expected = JobRow {
        phase_index: 2,
        phase_attempt: 1,
        phase_started_at: Some(NOW),
        flags: Flags(Flags::ERRORS),
        ..running
    };
    assert_eq!(after(&running, done(Edge::GoOn)), expected);
    let release = Edge::Release(InterruptionReason::Shutdown);
    let expected = JobRow {
        status: JobStatus::Pending,
        run_at: NOW,
        attempt: 1,
        phase_index: 2,
        phase_attempt: 0,
        phase_started_at: None,
        flags: Flags(Flags::ERRORS),
        ..running
    };
    assert_eq!(after(&running, done(release)), expected);
    let last = JobRow {
        phase_index: 2,
        ..running
    };
    for edge in [Edge::GoOn, release] {
        let done = decide(&last, &done(edge), NOW).expect("a legal edge");
        assert_eq!(
            (done.change, done.after.status),
            (Change::Completed, JobStatus::Completed)
        );
        assert_eq!(
            (done.after.phase_index, done.after.finished_at),
            (3, Some(NOW))
        );
    }
}

#[test]
fn tries_are_counted_against_the_limit_that_was_asked_for() {
    let cases = [
        // (attempt, phase_attempt, limit, is_last)
        (1, 9, Tries::OfJob { max: 2 }, false),
        (2, 1, Tries::OfJob { max: 2 }, true),
        (3, 1, Tries::OfJob { max: 2 }, true),
        (9, 1, Tries::OfPhase { max: 2 }, false),
        (1, 2, Tries::OfPhase { max: 2 }, true),
        (1, 1, Tries::OfJob { max: 0 }, true),
    ];
    for (attempt, phase_attempt, tries, is_last) in cases {
        let running = JobRow {
            attempt,
            phase_attempt,
            ..row(JobStatus::Running)
        };
        let retry = Verdict::Retry {
            tries,
            delay: SECOND,
        };
        let rewind = Verdict::Rewind {
            tries,
            delay: SECOND,
            phase_index: 0,
        };
        for verdict in [retry, rewind] {
            let failed = Input::PhaseFailed {
                epoch: EPOCH,
                verdict,
            };
            let after = after(&running, failed);
            let expected = if is_last {
                JobStatus::Failed
            } else {
                JobStatus::Pending
            };
            assert_eq!(
                after.status, expected,
                "{attempt} {phase_attempt} {tries:?}"
            );
            assert_eq!(after.attempt, attempt, "a failed try is charged");
        }
    }
}

#[test]
fn a_retry_keeps_its_place_and_a_rewind_goes_back_and_never_forward() {
    let running = row(JobStatus::Running);
    let failed = |verdict| Input::PhaseFailed {
        epoch: EPOCH,
        verdict,
    };
    let tries = Tries::OfJob { max: 5 };
    let expected = JobRow {
        status: JobStatus::Pending,
        run_at: NOW.after(SECOND),
        phase_started_at: None,
        flags: running.flags.with(Flags::WAITING),
        ..running
    };
    let retry = Verdict::Retry {
        tries,
        delay: SECOND,
    };
    assert_eq!(after(&running, failed(retry)), expected);
    for (asked, index) in [(0, 0), (1, 1), (2, 1), (u32::MAX, 1)] {
        let rewind = Verdict::Rewind {
            tries,
            delay: SECOND,
            phase_index: asked,
        };
        let transition = decide(&running, &failed(rewind), NOW).expect("a legal edge");
        let expected = JobRow {
            phase_index: index,
            phase_attempt: 0,
            flags: expected.flags.without(Flags::SAVED),
            ..expected
        };
        assert_eq!(transition.after, expected);
        assert_eq!(transition.phases, Phases::ClearFrom(index));
    }
}

#[test]
fn a_retry_behind_the_deadline_is_none() {
    let running = JobRow {
        deadline: Some(NOW.after(SECOND)),
        ..row(JobStatus::Running)
    };
    for (delay, status, cause) in [
        (SECOND - Duration::from_millis(1), JobStatus::Pending, None),
        (SECOND, JobStatus::Failed, Some(ErrorCause::Deadline)),
    ] {
        let verdict = Verdict::Retry {
            tries: Tries::OfJob { max: 9 },
            delay,
        };
        let failed = Input::PhaseFailed {
            epoch: EPOCH,
            verdict,
        };
        let transition = decide(&running, &failed, NOW).expect("a legal edge");
        assert_eq!((transition.after.status, transition.cause), (status, cause));
    }
}

#[test]
fn snooze_release_and_shutdown_charge_nothing() {
    let running = row(JobStatus::Running);
    let until = NOW.after(SECOND);
    let snooze = Input::Snooze {
        epoch: EPOCH,
        until,
    };
    let expected = JobRow {
        status: JobStatus::Pending,
        run_at: until,
        attempt: 1,
        phase_attempt: 1,
        phase_started_at: None,
        flags: running.flags.with(Flags::WAITING),
        ..running
    };
    assert_eq!(after(&running, snooze), expected);
    // As many times as it likes.
    let none = JobRow {
        attempt: 0,
        phase_attempt: 0,
        ..running
    };
    assert_eq!(after(&none, snooze).attempt, 0);
}

#[test]
fn only_a_process_that_died_inside_the_handler_is_charged_to_the_job() {
    for reason in InterruptionReason::ALL {
        for entered in [Entered::Inside, Entered::Returned, Entered::No] {
            let running = row(JobStatus::Running);
            let input = Input::Interrupted {
                epoch: EPOCH,
                reason,
                entered,
                max_crashes: 2,
            };
            let transition = decide(&running, &input, NOW).expect("a legal edge");
            let after = transition.after;
            let is_charged =
                reason == InterruptionReason::ProcessDied && entered == Entered::Inside;
            let expected = JobRow {
                status: JobStatus::Pending,
                run_at: NOW,
                attempt: if is_charged { 2 } else { 1 },
                phase_attempt: if is_charged { 2 } else { 1 },
                crash_count: if is_charged { 2 } else { 1 },
                phase_started_at: None,
                flags: match entered {
                    Entered::Inside | Entered::Returned => running.flags.with(Flags::INTERRUPTED),
                    Entered::No => running.flags,
                },
                ..running
            };
            assert_eq!(after, expected, "{reason:?} {entered:?}");
            assert_eq!(transition.change, Change::Interrupted);
        }
    }
}

#[test]
fn a_job_fails_with_the_crash_that_is_one_too_many() {
    let running = row(JobStatus::Running);
    let died = |max_crashes| Input::Interrupted {
        epoch: EPOCH,
        reason: InterruptionReason::ProcessDied,
        entered: Entered::Inside,
        max_crashes,
    };
    assert_eq!(after(&running, died(2)).status, JobStatus::Pending);
    for max in [0, 1] {
        let failed = decide(&running, &died(max), NOW).expect("a legal edge");
        assert_eq!(failed.change, Change::InterruptedAndFailed);
        assert_eq!(failed.cause, Some(ErrorCause::CrashLimit));
        let (status, crashes) = (failed.after.status, failed.after.crash_count);
        assert_eq!((status, crashes), (JobStatus::Failed, 2));
    }
}

#[test]
fn a_retry_by_hand_begins_a_new_series() {
    let mut failed = row(JobStatus::Failed);
    failed.flags = failed.flags.with(Flags::INTERRUPTED | Flags::WAITING);
    let expected = JobRow {
        status: JobStatus::Pending,
        run_at: NOW,
        attempt: 0,
        phase_attempt: 0,
        crash_count: 0,
        started_at: None,
        finished_at: None,
        flags: Flags(Flags::SAVED | Flags::ERRORS),
        ..failed
    };
    assert_eq!(after(&failed, Input::Retry(RetryFrom::Failed)), expected);
    let expected = JobRow {
        phase_index: 0,
        flags: Flags(Flags::ERRORS),
        ..expected
    };
    assert_eq!(after(&failed, Input::Retry(RetryFrom::Start)), expected);
    // A deadline that has passed gives the new series as long as it gave the first one.
    failed.deadline = Some(failed.created_at.after(5 * SECOND));
    let again = after(&failed, Input::Retry(RetryFrom::Failed)).deadline;
    assert_eq!(again, Some(NOW.after(5 * SECOND)));
    failed.deadline = Some(NOW.after(SECOND));
    let same = after(&failed, Input::Retry(RetryFrom::Failed)).deadline;
    assert_eq!(same, failed.deadline);
}

//! What every backend must do, as one suite that is run against each. Test code; the bench that the cases run on is here.
//!
//! A case drives the seam as the engine does: operations and a claim request, one commit at a time, with the time passed in. After each
//! commit the bench itself checks what must always hold: the counters agree with a recount, event numbers have no gap, and
//! the events of every job, replayed, lead to its row.

mod claim;
mod endpoint;
mod enqueue;
mod log;
mod outbox;
mod prune;
mod random;
mod recover;
mod replan;
mod replay;
mod request;
mod resend;
mod run;
mod settle;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;

use crate::config::Durability;
use crate::error::{Error, ErrorKind, Result};
use crate::event::{self, Event, EventKind, Plan};
use crate::job::{ErrorCause, Job, JobId, JobStatus, PhaseName};
use crate::new_job::{Enqueued, NewJob};
use crate::store::memory::MemoryStore;
use crate::store::ops::{ClaimRequest, Claimable, Claims, Fault, Op, PlannedJob, Release, Settle};
use crate::store::seam::{self, Committed};
use crate::store::sqlite::SqliteStore;
use crate::store::{Done, Failure, Filter, Head, Reader, Rows, Store};
use crate::time::Timestamp;
use crate::transition::{Edge, Flags, Input, JobRow, Tries, Verdict};

/// Runs each case against each backend.
macro_rules! cases {
    ($($module:ident::$case:ident,)*) => {
        mod memory {
            $(#[test] fn $case() { super::$module::$case(&mut super::Bench::in_memory()); })*
        }
        mod sqlite {
            $(#[test] fn $case() { super::$module::$case(&mut super::Bench::in_a_file()); })*
        }
    };
}

cases! {
    outbox::an_event_and_its_deliveries_are_one_commit,
    outbox::deliveries_of_a_failed_commit_are_not_there,
    outbox::deliveries_of_a_job_go_out_one_after_another,
    outbox::a_delivery_about_the_end_marks_the_job,
    outbox::an_end_of_an_earlier_series_marks_nothing,
    outbox::a_delivery_outlives_its_job,
    outbox::a_dead_letter_can_be_sent_again_when_its_job_is_gone,
    outbox::a_dead_letter_is_kept_longer_than_its_event,
    outbox::what_is_sent_again_comes_before_what_was_under_way,
    outbox::a_job_s_endpoint_that_is_gone_is_wanted_again_by_the_next_job,
    outbox::no_more_endpoints_are_enabled_than_events_have_room_for,
    outbox::its_deletion_is_told_to_a_job_s_own_endpoint,
    outbox::jobs_with_the_same_endpoint_share_it,
    endpoint::one_that_is_gone_is_disabled_and_can_be_enabled,
    endpoint::what_is_gone_is_the_place_where_it_was,
    outbox::the_endpoint_of_a_job_that_was_never_told_anything_goes_with_it,
    outbox::a_delivery_is_sent_again_from_its_first_try_on,
    resend::a_try_from_before_takes_nothing_back,
    outbox::only_the_newest_tries_are_kept,
    outbox::deliveries_go_by_age_and_what_is_pending_stays,
    endpoint::deliveries_go_by_count_while_others_go_by_age,
    endpoint::deliveries_that_ended_before_the_clock_was_set_stay,
    outbox::a_failed_try_is_told_and_is_no_end,
    enqueue::ids_rise_and_are_never_used_twice,
    enqueue::jobs_enqueued_together_are_one_change_with_an_event_each,
    enqueue::a_run_of_created_jobs_ends_where_type_or_data_differ,
    enqueue::priority_and_start_are_stored_and_told,
    enqueue::an_input_of_any_size_comes_back_as_it_was,
    enqueue::a_deadline_counts_from_the_time_the_job_may_start,
    enqueue::a_key_held_while_queued_is_free_once_the_job_has_started,
    enqueue::a_key_held_while_live_is_free_once_the_job_is_over,
    enqueue::a_key_held_for_a_time_outlives_its_job,
    enqueue::a_key_stands_again_for_a_job_that_is_tried_again,
    enqueue::a_key_counts_for_one_type_only,
    enqueue::two_jobs_with_one_key_in_one_commit_are_one,
    enqueue::a_job_that_nobody_planned_has_no_phases,
    enqueue::a_job_takes_the_plan_of_its_type_or_its_own,
    enqueue::an_idle_worker_gets_a_new_job_with_its_commit,
    enqueue::a_new_job_is_not_handed_over_when_it_must_wait,
    enqueue::what_is_handed_over_and_taken_away_at_once_is_not_under_way,
    enqueue::of_jobs_stored_together_none_is_handed_over_that_another_may_come_before,
    claim::claims_go_by_priority_then_time_then_id_across_types,
    claim::a_claim_charges_an_attempt_and_carries_what_a_handler_needs,
    claim::jobs_past_their_deadline_hide_nobody_behind_them,
    claim::many_jobs_past_their_deadline_are_left_to_the_next_commit,
    claim::no_more_is_claimed_than_there_is_room_for,
    claim::a_claim_that_ends_makes_room_in_the_same_commit,
    claim::excluded_jobs_stay_and_do_not_count_as_more,
    claim::a_type_runs_no_more_jobs_than_its_limit,
    claim::a_type_at_its_limit_does_not_hide_when_the_next_job_is_due,
    claim::large_inputs_end_a_round_of_claims,
    claim::the_next_due_time_is_the_earliest_of_all_types_and_priorities,
    claim::only_registered_types_are_claimed,
    claim::a_job_past_its_deadline_fails_instead_of_starting,
    settle::phases_follow_one_another_within_a_claim,
    settle::a_failed_try_waits_and_is_told_with_its_reason,
    settle::the_last_try_fails_the_job_and_skips_what_follows,
    settle::tries_of_a_phase_are_counted_apart,
    settle::fail_leaves_no_try,
    settle::a_retry_that_would_miss_the_deadline_fails,
    settle::a_reason_behind_a_long_message_keeps_it_within_its_limit,
    settle::a_long_error_is_kept_within_its_limit_whoever_it_is_from,
    settle::snooze_is_not_charged,
    settle::a_handler_can_cancel_its_job,
    settle::an_interrupted_try_is_not_charged_and_the_next_one_hears_of_it,
    settle::a_job_given_back_unentered_leaves_no_trace_in_its_history,
    settle::an_outcome_of_another_epoch_changes_nothing,
    settle::an_outcome_for_a_job_that_is_not_running_changes_nothing,
    settle::jobs_are_given_back_at_the_edge_when_asked_to,
    settle::a_rewind_forgets_results_from_there_on,
    settle::a_checkpoint_lives_until_its_phase_completes,
    settle::a_checkpoint_of_a_try_that_is_over_is_refused,
    settle::only_the_newest_errors_are_kept,
    request::cancel_answers_what_it_found,
    request::cancelling_a_running_job_fences_its_handler_off,
    request::retry_from_failed_keeps_results_byte_for_byte,
    request::retry_from_start_forgets_results_and_checkpoints,
    request::retry_is_refused_unless_failed_or_cancelled,
    request::retry_gives_a_passed_deadline_its_time_again,
    request::delete_takes_everything_but_the_log,
    request::bulk_changes_all_or_none,
    request::bulk_selects_by_type_and_needs_a_status,
    request::bulk_of_a_list_changes_those_that_allow_it,
    request::pauses_are_stored_by_queue_and_type,
    request::a_planned_job_can_be_claimed_and_an_unplannable_one_fails,
    request::a_long_error_of_a_planner_is_kept_within_its_limit,
    replan::results_are_kept_for_the_unchanged_beginning,
    replan::a_new_version_runs_again_with_all_after_it,
    replan::an_inserted_phase_runs_and_all_after_it_again,
    replan::a_phase_that_was_dropped_takes_no_result_with_it,
    replan::a_shrunk_plan_runs_its_last_phase_again,
    replan::a_plan_made_ahead_of_the_claim_leaves_a_phase_to_run,
    replan::an_appended_phase_leaves_results_and_checkpoint_alone,
    replan::a_checkpoint_is_never_seen_by_another_phase,
    replan::a_job_that_is_given_back_for_another_plan_has_it_in_the_same_commit,
    recover::a_job_inside_a_handler_is_charged_and_hears_of_it,
    recover::a_job_outside_of_a_handler_is_simply_pending_again,
    recover::a_job_whose_handler_had_returned_hears_of_it_and_is_not_charged,
    recover::a_recorder_entry_of_an_older_claim_says_nothing,
    recover::after_a_power_cut_nobody_is_charged,
    recover::a_job_that_crashes_too_often_fails,
    recover::completed_phases_and_checkpoints_survive,
    recover::what_waits_for_the_time_of_a_clock_that_was_ahead_waits_no_longer_than_it_was_to,
    recover::deliveries_of_a_clock_that_was_ahead_can_be_sent,
    prune::jobs_go_by_age_when_it_is_reached,
    prune::jobs_go_by_count_the_oldest_first,
    prune::jobs_that_ended_before_the_clock_was_set_go_by_count_alone,
    prune::a_step_is_bounded_and_says_that_there_is_more,
    prune::a_step_ends_with_what_is_large,
    prune::live_jobs_are_never_pruned,
    prune::events_go_by_count_and_never_the_newest_row,
    prune::events_go_by_age_and_numbers_are_never_used_again,
    prune::an_old_newest_row_calls_for_no_further_step,
    prune::events_of_before_the_clock_was_set_go_with_the_first_of_after_it,
    prune::a_long_time_before_the_clock_was_set_is_looked_across,
    prune::events_of_a_time_to_come_go_with_the_first_of_after_it,
    prune::events_of_a_clock_that_is_a_little_ahead_are_waited_for,
    prune::events_go_by_age_while_the_clock_was_never_set,
    prune::dead_keys_are_dropped_and_live_ones_kept,
    prune::a_key_of_another_job_does_not_go_with_this_one,
    prune::a_key_is_kept_for_a_job_that_can_be_tried_again,
    prune::history_ends_where_the_log_was_cut,
    run::what_happens_to_neighbours_at_once_is_one_row,
    run::a_run_ends_where_the_next_job_differs,
    run::a_run_is_of_jobs_that_were_neighbours_before,
    run::a_row_of_the_log_has_a_limit,
    run::a_file_whose_jobs_were_deleted_together_is_sound,
    log::lists_are_paged_newest_first,
    log::lists_of_jobs_that_are_over_go_by_their_end,
    log::readers_resume_in_the_middle_of_a_change,
    log::history_of_one_job_has_its_newest_changes,
    log::explain_counts_the_jobs_ahead,
    log::a_refused_operation_leaves_its_neighbours_alone,
    log::an_error_after_writes_undoes_the_whole_commit,
    log::names_given_out_in_a_failed_commit_are_free_again,
    log::the_tag_of_a_commit_is_found_by_its_last_row,
}

/// A day in 2027, so that the clock counts as set.
pub(super) const START: Timestamp = Timestamp::from_millis(1_800_000_000_000);
pub(super) const MS: Duration = Duration::from_millis(1);
pub(super) const SECOND: Duration = Duration::from_secs(1);

/// A store, its clock, and what must hold after every commit.
struct Bench {
    store: Box<dyn Store>,
    reader: Arc<dyn Reader>,
    now: Timestamp,
    /// What a process that registered everything can run.
    types: Vec<Claimable>,
    replay: replay::Replay,
    head: Head,
    /// The jobs after the newest commit.
    seen: Vec<Job>,
    tag: i64,
    _dir: Option<tempfile::TempDir>,
}

impl Bench {
    fn in_memory() -> Bench {
        Bench::on(Box::new(MemoryStore::new()), None)
    }

    fn in_a_file() -> Bench {
        let dir = tempfile::tempdir().expect("a temporary directory");
        // Nothing here cuts the power: without a sync for each commit the suite takes a tenth of the time.
        let store = SqliteStore::open(&dir.path().join("jobs.db"), Durability::Normal);
        Bench::on(Box::new(store.expect("a new file")), Some(dir))
    }

    fn on(store: Box<dyn Store>, dir: Option<tempfile::TempDir>) -> Bench {
        Bench {
            reader: store.reader(),
            store,
            now: START,
            types: Vec::new(),
            replay: replay::Replay::default(),
            head: Head::default(),
            seen: Vec::new(),
            tag: 0,
            _dir: dir,
        }
    }

    /// Registers a type with fixed phases, written as `"fetch load:2"`.
    fn register(&mut self, name: &str, phases: &str) {
        self.register_as(name, Some(plan(phases)), None);
    }

    fn register_as(&mut self, name: &str, plan: Option<Plan>, concurrency: Option<u32>) {
        let job_type: Arc<str> = name.into();
        self.one(Op::Register(vec![(job_type.clone(), plan.clone())]))
            .expect("registering is never refused");
        let (mut type_id, mut plan_id) = (0, 0);
        self.look(|rows| {
            let row = rows.job_type(&job_type)?;
            (type_id, plan_id) = (row.id, row.plan_id);
            Ok(())
        });
        self.types.retain(|known| known.job_type != job_type);
        self.types.push(Claimable {
            type_id,
            job_type,
            plan: plan.map(|plan| (plan_id, plan)),
            concurrency,
        });
    }

    /// A transaction that writes nothing.
    fn look(&mut self, mut look: impl FnMut(&mut dyn Rows) -> Result<()>) {
        self.store.transact(&mut look).expect("reading");
    }

    /// A request for everything that is due.
    fn request(&self) -> ClaimRequest {
        ClaimRequest {
            room: 100,
            excess: 0,
            bytes_max: usize::MAX,
            types: self.types.clone().into(),
            exclude: HashSet::new(),
            plans_max: 100,
            direct: false,
            from_backlog: true,
            release: Release::Nobody,
        }
    }

    /// One commit, and what must hold after it.
    fn commit(&mut self, ops: &[Op], request: &ClaimRequest) -> Result<Committed> {
        self.tag += 1;
        let (now, tag) = (self.now, self.tag);
        let mut committed = None;
        let outcome = self.store.transact(&mut |rows| {
            committed = Some(seam::run(rows, ops, request, now, tag)?);
            Ok(())
        });
        match outcome {
            Ok(()) => {
                let mut committed = committed.expect("a transaction that ended well was run");
                self.check(&committed);
                // Only a file has others who write, and a connection that is new.
                committed.has_news = false;
                Ok(committed)
            }
            Err(Failure::NothingDone(error)) => {
                assert_eq!(self.reader.head().expect("a head"), self.head, "{error}");
                assert_eq!(self.jobs(), self.seen, "{error}");
                Err(error)
            }
            Err(Failure::Unknown(error)) => panic!("the commit itself failed: {error}"),
        }
    }

    fn check(&mut self, committed: &Committed) {
        let head = self.reader.head().expect("a head");
        assert_eq!(
            committed.last_row_seq != 0,
            head != self.head,
            "the head moves with the log"
        );
        assert!(committed.has_written || head == self.head);
        assert_eq!(
            head,
            if head == self.head {
                self.head
            } else {
                committed.head
            }
        );
        let before = std::mem::replace(&mut self.head, head);
        let changes = self.reader.changes_after(before.seq, usize::MAX);
        let changes = changes.expect("the log");
        let mut next = changes.first().map_or(head.seq, |change| change.seq - 1) + 1;
        for change in &changes {
            assert_eq!(change.seq, next, "numbers have no gap: {changes:?}");
            next += change.span;
        }
        assert_eq!(next, head.seq + 1, "the log ends where the head says");
        self.replay.follow(&changes);
        let jobs = self.jobs();
        let count = |status| jobs.iter().filter(|job| job.status == status).count();
        let recount = JobStatus::ALL.map(|status| i64::try_from(count(status)).expect("few"));
        assert_eq!(recount, head.counts, "the counters agree with a recount");
        let (reader, now) = (self.reader.clone(), self.now);
        let is_moved = |id| {
            let situation = reader.situation(id, now).expect("readable");
            situation.is_some_and(|job| job.row.flags.has(Flags::MOVED))
        };
        self.replay.compare(&jobs, is_moved);
        self.seen = jobs;
        assert_eq!(self.reader.check().expect("a check"), Vec::<String>::new());
    }

    /// One operation, and no claims.
    fn one(&mut self, op: Op) -> Result<Done> {
        let mut committed = self.commit(&[op], &ClaimRequest::default())?;
        committed
            .answers
            .pop()
            .expect("an answer for each operation")
    }

    fn enqueue_all(&mut self, jobs: Vec<NewJob>) -> Vec<Enqueued> {
        let planned = |job: NewJob| PlannedJob {
            plan: job.phases.clone().map(Into::into),
            job,
        };
        match self.one(Op::Enqueue(jobs.into_iter().map(planned).collect())) {
            Ok(Done::Enqueued(enqueued)) => enqueued,
            other => panic!("{other:?}"),
        }
    }

    fn enqueue(&mut self, job: NewJob) -> JobId {
        let enqueued = self.enqueue_all(vec![job]);
        assert!(enqueued[0].is_new);
        enqueued[0].id
    }

    fn claim(&mut self) -> Claims {
        let request = self.request();
        self.claim_with(&request)
    }

    fn claim_with(&mut self, request: &ClaimRequest) -> Claims {
        self.commit(&[], request).expect("claims").claims
    }

    /// Enqueues a job and claims it, alone.
    fn start(&mut self, job: NewJob) -> JobRow {
        let id = self.enqueue(job);
        self.claim_one(id)
    }

    fn claim_one(&mut self, id: JobId) -> JobRow {
        let claims = self.claim();
        assert_eq!(ids(&claims), [id]);
        claims.claimed[0].row
    }

    fn settle(
        &mut self,
        row: &JobRow,
        input: Input,
        result: Option<&str>,
        error: Option<Fault>,
    ) -> Option<JobRow> {
        let settle = settle(row, input, self.now, result, error);
        match self.one(Op::Settle(settle)) {
            Ok(Done::Settled(row)) => row,
            other => panic!("{other:?}"),
        }
    }

    /// The present phase of a claimed job is done.
    fn complete(&mut self, row: &JobRow, result: &str) -> JobRow {
        let input = Input::PhaseCompleted {
            epoch: row.epoch,
            edge: Edge::GoOn,
        };
        let row = self.settle(row, input, Some(result), None);
        row.expect("the claim is under way")
    }

    /// The present phase of a claimed job failed.
    fn fail(&mut self, row: &JobRow, verdict: Verdict) -> JobRow {
        let input = Input::PhaseFailed {
            epoch: row.epoch,
            verdict,
        };
        let row = self.settle(row, input, None, Some(fault("boom")));
        row.expect("the claim is under way")
    }

    fn cancel(&mut self, id: JobId) {
        let answer = self.one(Op::Cancel(id)).expect("cancel is never refused");
        assert!(
            matches!(
                answer,
                Done::Cancelled(crate::job::CancelOutcome::Cancelled)
            ),
            "{answer:?}"
        );
    }

    fn job(&self, id: JobId) -> Job {
        self.find(id).expect("the job is there")
    }

    fn find(&self, id: JobId) -> Option<Job> {
        let job = self.reader.job(id).expect("a readable job");
        let mut outline = job.clone();
        if let Some(job) = &mut outline {
            job.input = serde_json::Value::Null;
            for phase in &mut job.phases {
                phase.result = None;
            }
        }
        assert_eq!(self.reader.outline(id).expect("a readable job"), outline);
        job
    }

    fn row(&self, id: JobId) -> JobRow {
        let situation = self.reader.situation(id, self.now).expect("readable");
        situation.expect("the job is there").row
    }

    /// Every job, by id.
    fn jobs(&self) -> Vec<Job> {
        let (mut from, mut jobs) = (None, Vec::new());
        loop {
            let slice = self.reader.list(&Filter::default(), from, 100);
            let slice = slice.expect("a list");
            jobs.extend(slice.jobs.iter().map(|summary| self.job(summary.id)));
            from = slice.next;
            if from.is_none() {
                jobs.reverse();
                return jobs;
            }
        }
    }

    fn events(&self, after: i64) -> Vec<Event> {
        let mut events = Vec::new();
        for change in self.reader.changes_after(after, usize::MAX).expect("a log") {
            event::expand(&change, after, &mut events);
        }
        events
    }

    /// The events of one job by name, without the prefix; those of a phase with its name.
    fn told(&self, id: JobId) -> String {
        let events = self.events(0);
        let of_job = events.iter().filter(|event| event.job_id == id);
        let words: Vec<String> = of_job
            .map(|event| {
                let name = event.kind.as_str().trim_start_matches("job:");
                match &event.phase {
                    Some(phase) => format!("{name}({phase})"),
                    None => name.to_owned(),
                }
            })
            .collect();
        words.join(" ")
    }

    /// What the newest event of this kind adds, as JSON.
    fn data(&self, id: JobId, kind: EventKind) -> serde_json::Value {
        let events = self.events(0);
        let mut newest = events.into_iter().rev();
        let event = newest.find(|event| event.job_id == id && event.kind == kind);
        event.expect("such an event").data.into()
    }

    fn later(&mut self, by: Duration) {
        self.now = self.now.after(by);
    }
}

fn ids(claims: &Claims) -> Vec<JobId> {
    claims
        .claimed
        .iter()
        .map(|claimed| claimed.row.id)
        .collect()
}

fn settle(
    row: &JobRow,
    input: Input,
    started_at: Timestamp,
    result: Option<&str>,
    error: Option<Fault>,
) -> Settle {
    Settle {
        started_at,
        result: result.map(str::to_owned),
        error,
        ..Settle::void(row, input)
    }
}

fn fault(message: &str) -> Fault {
    Fault {
        cause: ErrorCause::Error,
        message: message.to_owned(),
        backtrace: None,
    }
}

/// A job of `job_type` whose input is `{}`.
fn new_job(job_type: &str) -> NewJob {
    NewJob::new(job_type, &json!({})).expect("plain JSON")
}

/// A plan, written as `"fetch load:2"`.
fn plan(phases: &str) -> Plan {
    let phase = |text: &str| match text.split_once(':') {
        None => PhaseName::new(text),
        Some((name, version)) => PhaseName {
            version: version.parse().expect("a version"),
            ..PhaseName::new(name)
        },
    };
    phases.split_whitespace().map(phase).collect()
}

/// Try again after `delay`, `max` times in all.
fn again(max: u32, delay: Duration) -> Verdict {
    Verdict::Retry {
        tries: Tries::OfJob { max },
        delay,
    }
}

/// The kind and message of what must be an error.
fn refused<T: std::fmt::Debug>(answer: Result<T>) -> (ErrorKind, String) {
    let error: Error = answer.expect_err("this is to be refused");
    (error.kind(), error.to_string())
}

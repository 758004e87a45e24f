//! When to delete what is over: in small steps, when there is nothing better to do. L3, pure.
//!
//! What to delete is the store's matter (`store/prune.rs`); this file says when a step is taken:
//! - for age, when the oldest thing is old enough;
//! - for counts, when there are a tenth more than allowed, and then until there are not; so a queue that stands at its limit
//!   deletes a thousand jobs at once and not one with every commit (flash memory wears by the write);
//! - a step waits for an idle moment, but never longer than ten times what the step before it took: under load retention
//!   takes a tenth of the time at most, and still keeps up.

use std::time::{Duration, Instant};

use crate::config::Retention;
use crate::event::Seq;
use crate::job::JobStatus;
use crate::store::ops::{Prune, Pruned};
use crate::time::Timestamp;

/// Jobs and event rows deleted in a step: a few milliseconds.
const JOBS_MAX: usize = 128;
const EVENTS_MAX: usize = 2048;
/// Under load a step may take one part in this many.
const SHARE: u32 = 10;
/// After a step that found nothing but damaged rows. What else comes to be over waits as long, and the row is named as often.
const FAILURE_REST: Duration = Duration::from_secs(60);
/// How often the age of things is looked at, at most: a clock that jumps must not make it spin.
const AGE_LOOK_MIN: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(crate) struct Pruner {
    retention: Retention,
    /// When something will be too old.
    next: Option<Timestamp>,
    is_under_way: bool,
    /// The newest event when the last step began, and when the last one that left nothing began.
    stepped_seq: Seq,
    pruned_seq: Seq,
    last: Option<(Instant, Duration)>,
    /// When a step may be taken next, by the wall clock: for the sleeper.
    rests_until: Timestamp,
    has_failed: bool,
    /// The counts of the last step, and whether it deleted no job for all that.
    tried: [i64; 5],
    was_in_vain: bool,
}

impl Pruner {
    /// Looks at everything first.
    pub(crate) fn new(retention: Retention, now: Timestamp) -> Pruner {
        Pruner {
            retention,
            next: Some(now),
            is_under_way: false,
            stepped_seq: 0,
            pruned_seq: 0,
            last: None,
            rests_until: Timestamp::default(),
            has_failed: false,
            tried: [0; 5],
            was_in_vain: false,
        }
    }

    /// The next step, if it is time for one.
    pub(crate) fn step(
        &mut self,
        (head_seq, counts): (Seq, &[i64; 5]),
        is_idle: bool,
        now: Timestamp,
        at: Instant,
    ) -> Option<Prune> {
        let is_old = self.next.is_some_and(|next| next <= now);
        if !is_old && !self.has_work((head_seq, counts)) {
            return None;
        }
        let has_time = self
            .last
            .is_none_or(|(ended, took)| at.saturating_duration_since(ended) >= took * SHARE);
        if (!is_idle && !has_time) || self.has_failed && now < self.rests_until {
            return None;
        }
        self.is_under_way = true;
        self.tried = *counts;
        self.stepped_seq = head_seq;
        Some(Prune {
            retention: self.retention.clone(),
            jobs_max: JOBS_MAX,
            events_max: EVENTS_MAX,
        })
    }

    pub(crate) fn done(&mut self, pruned: &Pruned, took: Duration, now: Timestamp, at: Instant) {
        self.is_under_way = pruned.more;
        if !pruned.more {
            self.pruned_seq = self.stepped_seq;
        }
        self.next = pruned.next.map(|next| next.max(now.after(AGE_LOOK_MIN)));
        self.last = Some((at, took));
        // A millisecond more: the wall clock is that coarse.
        self.rests_until = now.after(took * SHARE + Duration::from_millis(1));
        self.has_failed = false;
        self.was_in_vain = pruned.jobs == 0;
    }

    /// A step could not be done: it came upon a row that cannot be read.
    pub(crate) fn failed(&mut self, now: Timestamp) {
        self.has_failed = true;
        self.rests_until = now.after(FAILURE_REST);
    }

    /// A job or event will be too old then, or a count is over its limit now. Who sleeps until then gets a step, idle or not.
    pub(crate) fn deadline(&self, stands: (Seq, &[i64; 5])) -> Option<Timestamp> {
        let next = if self.has_work(stands) {
            Some(self.rests_until)
        } else {
            self.next
        };
        next.map(|next| next.max(self.rests_until))
    }

    /// A job has ended at `now`: its age counts from then. Which status it has does not matter: a look too early finds nothing,
    /// and says when to look again.
    pub(crate) fn job_ended(&mut self, now: Timestamp) {
        let Retention {
            completed,
            failed,
            cancelled,
            ..
        } = &self.retention;
        let ages = [completed, failed, cancelled].map(|keep| keep.age);
        self.look_after(ages.into_iter().flatten().min(), now);
    }

    /// A delivery may have ended at `now`: its age counts from then.
    pub(crate) fn delivery_ended(&mut self, now: Timestamp) {
        self.look_after(self.retention.deliveries.age, now);
    }

    /// Events were written at `now`: their age counts from then.
    pub(crate) fn logged(&mut self, now: Timestamp) {
        self.look_after(self.retention.events.age, now);
    }

    fn look_after(&mut self, age: Option<Duration>, now: Timestamp) {
        let next = age.map(|age| now.after(age.max(AGE_LOOK_MIN)));
        self.next = [self.next, next].into_iter().flatten().min();
    }

    /// Whether something is to be deleted, whatever its age.
    fn has_work(&self, (head_seq, counts): (Seq, &[i64; 5])) -> bool {
        // Counts that nothing can be done about must not be tried at again and again.
        let is_in_vain = self.was_in_vain && self.tried == *counts;
        self.is_under_way
            || !is_in_vain && self.has_too_many(counts)
            || self.has_too_many_events(head_seq)
    }

    fn has_too_many(&self, counts: &[i64; 5]) -> bool {
        JobStatus::ALL.into_iter().any(|status| {
            let slack = |count: u64| count.saturating_add(count / 10);
            let limit = self.retention.of(status).count.map(slack);
            limit.is_some_and(|limit| u64::try_from(counts[status as usize]).unwrap_or(0) > limit)
        })
    }

    /// Whether a tenth more than allowed may be there: no more than allowed were, when the last look ended.
    fn has_too_many_events(&self, head_seq: Seq) -> bool {
        let new = u64::try_from(head_seq - self.pruned_seq).unwrap_or(0);
        let limit = self.retention.events.count;
        limit.is_some_and(|limit| new > limit / 10 && u64::try_from(head_seq).unwrap_or(0) > limit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Keep;
    use crate::time::monotonic;

    fn at(ms: i64) -> Timestamp {
        Timestamp::from_millis(ms)
    }

    #[test]
    fn counts_are_cut_back_in_batches() {
        let retention = Retention::forever().completed(Keep::newest(100));
        let mut pruner = Pruner::new(retention, at(0));
        let start = monotonic();
        assert!(
            pruner.step((0, &[0; 5]), true, at(0), start).is_some(),
            "the first look"
        );
        pruner.done(&Pruned::default(), Duration::ZERO, at(0), start);
        assert!(
            pruner
                .step((0, &[0, 0, 110, 0, 0]), true, at(1), start)
                .is_none(),
            "a tenth more is let be"
        );
        assert!(
            pruner
                .step((0, &[0, 0, 111, 0, 0]), true, at(1), start)
                .is_some()
        );
        pruner.done(
            &Pruned {
                more: true,
                ..Pruned::default()
            },
            Duration::ZERO,
            at(1),
            start,
        );
        assert!(
            pruner
                .step((0, &[0, 0, 101, 0, 0]), true, at(1), start)
                .is_some(),
            "and then all of it"
        );
    }

    #[test]
    fn under_load_a_step_waits_for_ten_times_its_own_length() {
        let retention = Retention::forever().completed(Keep::newest(1));
        let mut pruner = Pruner::new(retention, at(0));
        let (start, ms) = (monotonic(), Duration::from_millis(1));
        let full = (0, &[0, 0, 1000, 0, 0]);
        assert!(pruner.step(full, false, at(0), start).is_some());
        pruner.done(
            &Pruned {
                more: true,
                ..Pruned::default()
            },
            5 * ms,
            at(0),
            start,
        );
        assert!(pruner.step(full, false, at(0), start + 49 * ms).is_none());
        assert!(pruner.step(full, false, at(0), start + 50 * ms).is_some());
        assert!(
            pruner.step(full, true, at(0), start).is_some(),
            "but not when there is nothing else to do"
        );
    }

    /// In a damaged file the log counted jobs that its index did not find: the committer asked for a step after each step.
    #[test]
    fn counts_that_cannot_be_cut_back_are_tried_once() {
        let retention = Retention::forever().completed(Keep::newest(100));
        let mut pruner = Pruner::new(retention, at(0));
        let (start, full) = (monotonic(), [0, 0, 200, 0, 0]);
        assert!(pruner.step((0, &full), true, at(0), start).is_some());
        pruner.done(&Pruned::default(), Duration::ZERO, at(0), start);
        assert!(pruner.step((0, &full), true, at(0), start).is_none());
        let more = [0, 0, 201, 0, 0];
        assert!(pruner.step((0, &more), true, at(0), start).is_some());
    }

    #[test]
    fn a_step_that_failed_rests() {
        let mut pruner = Pruner::new(Retention::forever(), at(0));
        assert!(
            pruner
                .step((0, &[0; 5]), true, at(0), monotonic())
                .is_some()
        );
        pruner.failed(at(0));
        let rest = at(0).after(FAILURE_REST);
        assert_eq!(pruner.deadline((0, &[0; 5])), Some(rest));
        assert!(
            pruner
                .step((0, &[0; 5]), true, at(1), monotonic())
                .is_none()
        );
        assert!(pruner.step((0, &[0; 5]), true, rest, monotonic()).is_some());
    }

    /// A sleeper that was told "at once" woke up, was told to wait for the step's share of time, and slept for nothing.
    #[test]
    fn who_sleeps_until_the_deadline_gets_a_step() {
        let retention = Retention::forever().completed(Keep::newest(1));
        let mut pruner = Pruner::new(retention, at(0));
        let (start, ms) = (monotonic(), Duration::from_millis(1));
        let full = [0, 0, 1000, 0, 0];
        assert!(pruner.step((0, &full), false, at(0), start).is_some());
        let pruned = Pruned {
            more: true,
            jobs: 1,
            ..Pruned::default()
        };
        pruner.done(&pruned, 5 * ms, at(0), start);
        let wait = pruner
            .deadline((0, &[0; 5]))
            .map(|at| at.since(Timestamp::from_millis(0)));
        let wait = wait.expect("there is more to do");
        assert!(wait >= 50 * ms, "{wait:?}");
        assert!(
            pruner
                .step((0, &full), false, at(0).after(wait), start + wait)
                .is_some()
        );
    }

    #[test]
    fn age_has_a_due_time() {
        let retention = Retention::forever().failed(Keep::for_age(Duration::from_secs(60)));
        let mut pruner = Pruner::new(retention, at(0));
        pruner.done(&Pruned::default(), Duration::ZERO, at(0), monotonic());
        assert_eq!(
            pruner.deadline((0, &[0; 5])),
            None,
            "nothing is there to grow old"
        );
        pruner.job_ended(at(500));
        assert_eq!(pruner.deadline((0, &[0; 5])), Some(at(60_500)));
        pruner.job_ended(at(700));
        assert_eq!(
            pruner.deadline((0, &[0; 5])),
            Some(at(60_500)),
            "the older one"
        );
    }

    /// What was known to be due in 10 hours hid what came later and was due in one.
    #[test]
    fn what_ends_later_and_goes_earlier_is_not_overslept() {
        let hour = Duration::from_secs(3600);
        let retention = Retention::forever()
            .completed(Keep::for_age(10 * hour))
            .cancelled(Keep::for_age(hour));
        let mut pruner = Pruner::new(retention, at(0));
        let pruned = Pruned {
            next: Some(at(0).after(10 * hour)),
            ..Pruned::default()
        };
        pruner.done(&pruned, Duration::ZERO, at(0), monotonic());
        pruner.job_ended(at(500));
        assert_eq!(pruner.deadline((0, &[0; 5])), Some(at(500).after(hour)));
    }

    /// A rule for events alone was looked at when the queue was opened, and never again.
    #[test]
    fn events_are_counted_and_grow_old_without_a_rule_for_jobs() {
        let day = Duration::from_secs(86_400);
        let retention = Retention::forever().events(Keep::for_age(day).and_newest(100));
        let (mut pruner, start) = (Pruner::new(retention, at(0)), monotonic());
        let step = |pruner: &mut Pruner, head_seq, now| {
            let is_due = pruner.step((head_seq, &[0; 5]), true, now, start).is_some();
            if is_due {
                pruner.done(&Pruned::default(), Duration::ZERO, now, start);
            }
            is_due
        };
        assert!(step(&mut pruner, 95, at(0)), "the first look");
        assert!(!step(&mut pruner, 105, at(1)), "a tenth more is let be");
        assert!(step(&mut pruner, 106, at(1)));
        assert!(!step(&mut pruner, 116, at(1)));
        assert!(step(&mut pruner, 117, at(1)));
        pruner.job_ended(at(500));
        assert_eq!(pruner.deadline((0, &[0; 5])), None, "no rule for jobs");
        pruner.logged(at(500));
        assert_eq!(pruner.deadline((0, &[0; 5])), Some(at(500).after(day)));
    }

    /// Nobody looked for them before the next start, or before a job was old.
    #[test]
    fn deliveries_grow_old_without_a_rule_for_anything_else() {
        let day = Duration::from_secs(86_400);
        let mut pruner = Pruner::new(Retention::forever().deliveries(day), at(0));
        assert!(
            pruner
                .step((0, &[0; 5]), true, at(0), monotonic())
                .is_some()
        );
        pruner.done(&Pruned::default(), Duration::ZERO, at(0), monotonic());
        pruner.job_ended(at(500));
        pruner.logged(at(500));
        assert_eq!(pruner.deadline((0, &[0; 5])), None, "no rule for those");
        pruner.delivery_ended(at(500));
        assert_eq!(pruner.deadline((0, &[0; 5])), Some(at(500).after(day)));
    }
}

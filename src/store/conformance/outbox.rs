//! Deliveries: written with their events, sent in line, ended once. Test code.

use std::time::Duration;

use serde_json::Value;

use crate::config::{Keep, Retention};
use crate::delivery::{DeliveryId, DeliveryStatus, EndpointSpec, Kinds, NAMED_MAX};
use crate::error::ErrorKind;
use crate::event::EventKind;
use crate::job::{JobId, JobStatus, RetryFrom};
use crate::new_job::NewJob;
use crate::store::Done;
use crate::store::conformance::{Bench, again, new_job, refused};
use crate::store::ops::{ClaimRequest, Op, Prune, Pruned};
use crate::store::outbox::{
    Attempted, DeliveryFilter, DeliveryRow, Mail, TRIES_KEPT, Verdict, Which,
};
use crate::transition::Verdict as OfPhase;

pub(super) fn spec(url: &str, kinds: &[EventKind]) -> EndpointSpec {
    EndpointSpec {
        url: url.to_owned(),
        events: Kinds::of(kinds.iter().copied()),
        secrets: vec!["whsec_key".to_owned()],
    }
}

fn everything(url: &str) -> EndpointSpec {
    EndpointSpec {
        events: Kinds::all(),
        ..spec(url, &[])
    }
}

pub(super) fn with_endpoint(spec: EndpointSpec) -> NewJob {
    NewJob {
        endpoints: vec![spec],
        ..new_job("import")
    }
}

impl Bench {
    pub(super) fn mail(&mut self, mail: Mail) {
        let before = self.reader.all_endpoints().expect("readable");
        let committed = self.commit(&[Op::Mail(mail)], &ClaimRequest::default());
        let committed = committed.expect("a commit");
        assert!(committed.answers[0].is_ok(), "{:?}", committed.answers);
        let after = self.reader.all_endpoints().expect("readable");
        assert!(committed.has_written || before == after);
    }

    /// Every delivery, oldest first.
    pub(super) fn deliveries(&self) -> Vec<DeliveryRow> {
        let all = self
            .reader
            .deliveries(&DeliveryFilter::default(), None, 1000);
        let mut rows = all.expect("a list").0;
        rows.reverse();
        rows
    }

    fn kinds(&self) -> Vec<EventKind> {
        self.deliveries().iter().map(|row| row.kind).collect()
    }

    /// What may be sent now, of every endpoint.
    pub(super) fn sendable(&self) -> Vec<DeliveryRow> {
        let waiting = self.reader.waiting().expect("readable");
        let rows = waiting.iter().map(|(id, _)| self.reader.sendable(*id, 100));
        let rows = rows.flat_map(|rows| rows.expect("readable"));
        let is_due = |row: &DeliveryRow| row.next_at.is_some_and(|at| at <= self.now);
        rows.filter(is_due).collect()
    }

    pub(super) fn attempt(&mut self, row: &DeliveryRow, verdict: Verdict) {
        let is_delivered = verdict == Verdict::Delivered;
        let attempted = Attempted {
            id: row.id,
            due: row.next_at,
            at: self.now,
            took_ms: 5,
            status: Some(if is_delivered { 200 } else { 500 }),
            error: (!is_delivered).then(|| "status 500".to_owned()),
            answer: Some("ok".to_owned()),
            verdict,
        };
        let about = |bench: &Bench| bench.reader.find_delivery(row.id).expect("readable");
        let before = about(self);
        let committed = self.commit(&[Op::Attempted(attempted)], &ClaimRequest::default());
        let committed = committed.expect("a commit");
        assert!(committed.answers[0].is_ok(), "{:?}", committed.answers);
        let after = about(self);
        assert_eq!(committed.has_written, before != after);
        if let Some((row, tries)) = after.filter(|after| Some(after) != before.as_ref())
            && let Some(last) = tries.last()
        {
            assert_eq!(row.last_error, last.error);
            assert_eq!(row.last_status, last.status);
        }
    }

    /// The endpoints that a commit has something for.
    fn mailed(&mut self, op: Op) -> Vec<i64> {
        let committed = self.commit(&[op], &ClaimRequest::default());
        committed.expect("a commit").mail
    }

    fn endpoint_ids(&self) -> Vec<i64> {
        let endpoints = self.reader.all_endpoints().expect("readable");
        endpoints.iter().map(|endpoint| endpoint.id).collect()
    }
}

pub(super) fn an_event_and_its_deliveries_are_one_commit(bench: &mut Bench) {
    bench.register("import", "a");
    bench.mail(Mail::Put(
        "billing".into(),
        spec("https://b.example/x?token=1", &[EventKind::Completed]),
    ));
    bench.mail(Mail::Put("audit".into(), everything("https://a.example/")));
    let row = bench.start(new_job("import"));
    bench.later(Duration::from_secs(1));
    bench.complete(&row, "1");
    use EventKind::{Completed, Created, PhaseCompleted, PhaseStarted, Started};
    assert_eq!(
        bench.kinds(),
        [
            Created,
            Started,
            PhaseStarted,
            PhaseCompleted,
            Completed,
            Completed
        ]
    );
    let row = bench.deliveries().pop().expect("the last");
    let event = bench.events(0).pop().expect("an event");
    assert_eq!(row.id.seq(), event.seq);
    let body: Value = serde_json::from_str(&row.body).expect("JSON");
    assert_eq!(body["type"], "job:completed");
    assert_eq!(body["timestamp"], event.at.to_string());
    assert_eq!(body["data"], serde_json::to_value(&event).expect("JSON"));
    assert_eq!(row.created_at, event.at);
}

pub(super) fn deliveries_of_a_failed_commit_are_not_there(bench: &mut Bench) {
    bench.register("import", "a");
    bench.mail(Mail::Put("audit".into(), everything("https://a.example/")));
    let job = with_endpoint(everything("https://own.example/"));
    let now = bench.now;
    let failed = bench.store.transact(&mut |rows| {
        let planned = crate::store::ops::PlannedJob {
            job: job.clone(),
            plan: None,
        };
        crate::store::seam::run(
            rows,
            &[Op::Enqueue(vec![planned])],
            &Default::default(),
            now,
            1,
        )?;
        Err(crate::error::Error::new(ErrorKind::Storage, "on purpose"))
    });
    assert!(failed.is_err());
    assert!(bench.deliveries().is_empty());
    assert_eq!(bench.reader.all_endpoints().expect("readable").len(), 1);
}

pub(super) fn deliveries_of_a_job_go_out_one_after_another(bench: &mut Bench) {
    bench.register("import", "a");
    bench.mail(Mail::Put("audit".into(), everything("https://a.example/")));
    let first = bench.start(new_job("import"));
    let second = bench.enqueue(new_job("import"));
    let heads = bench.sendable();
    let of: Vec<_> = heads.iter().map(|row| (row.job_id, row.kind)).collect();
    assert_eq!(
        of,
        [(first.id, EventKind::Created), (second, EventKind::Created)]
    );
    let later = bench.now.after(Duration::from_secs(5));
    bench.attempt(&heads[0], Verdict::RetryAt(later));
    assert!(
        bench.sendable().iter().all(|row| row.job_id == second),
        "the line waits for its first"
    );
    bench.later(Duration::from_secs(5));
    bench.attempt(&heads[0], Verdict::Delivered);
    let next: Vec<_> = bench.sendable().iter().map(|row| row.kind).collect();
    assert_eq!(next, [EventKind::Created, EventKind::Started]);
    bench.attempt(&heads[0], Verdict::GiveUp);
    let same = bench
        .reader
        .find_delivery(heads[0].id)
        .expect("readable")
        .expect("it is there")
        .0;
    assert_eq!(
        (same.status, same.tries),
        (DeliveryStatus::Delivered, 2),
        "what comes late is dropped"
    );
}

pub(super) fn a_delivery_about_the_end_marks_the_job(bench: &mut Bench) {
    bench.register("import", "a");
    let own = spec(
        "https://own.example/",
        &[EventKind::Completed, EventKind::Started],
    );
    let row = bench.start(with_endpoint(own));
    bench.complete(&row, "1");
    let started = bench.sendable().remove(0);
    bench.attempt(&started, Verdict::Delivered);
    assert!(
        !bench.job(row.id).webhook_sent,
        "that it has started is not its end"
    );
    let ended = bench.sendable().remove(0);
    bench.attempt(&ended, Verdict::Delivered);
    assert!(bench.job(row.id).webhook_sent);
    let data = bench.data(row.id, EventKind::WebhookDelivered);
    assert_eq!(data["delivery_id"], ended.id.as_i64());
    assert_eq!(data["status"], 200);
    assert!(
        bench
            .told(row.id)
            .ends_with("completed webhook:delivered webhook:delivered")
    );
}

pub(super) fn an_end_of_an_earlier_series_marks_nothing(bench: &mut Bench) {
    bench.register("import", "a");
    let row = bench.start(with_endpoint(spec(
        "https://own.example/",
        &[EventKind::Failed],
    )));
    bench.fail(&row, OfPhase::Fail);
    bench.later(Duration::from_secs(1));
    bench
        .one(Op::Retry(row.id, RetryFrom::Failed))
        .expect("retried");
    let again_row = bench.claim_one(row.id);
    bench.later(Duration::from_secs(1));
    bench.fail(&again_row, OfPhase::Fail);
    let first = bench.sendable().remove(0);
    bench.attempt(&first, Verdict::Delivered);
    assert!(!bench.job(row.id).webhook_sent);
    let second = bench.sendable().remove(0);
    bench.attempt(&second, Verdict::Delivered);
    assert!(bench.job(row.id).webhook_sent);
    bench
        .one(Op::Retry(row.id, RetryFrom::Failed))
        .expect("retried");
    assert!(
        !bench.job(row.id).webhook_sent,
        "a new series has no end yet"
    );
}

pub(super) fn a_delivery_outlives_its_job(bench: &mut Bench) {
    bench.register("import", "a");
    let row = bench.start(with_endpoint(spec(
        "https://own.example/",
        &[EventKind::Completed],
    )));
    bench.complete(&row, "1");
    let sent = bench.sendable().remove(0);
    bench.one(Op::Delete(row.id)).expect("deleted");
    let seq = bench.head.seq;
    bench.attempt(&sent, Verdict::Delivered);
    let found = bench
        .reader
        .find_delivery(sent.id)
        .expect("readable")
        .expect("it is there");
    assert_eq!(
        (found.0.status, found.1.len()),
        (DeliveryStatus::Delivered, 1)
    );
    assert_eq!(bench.head.seq, seq, "nothing is told of a job that is gone");
}

/// Retention by count deletes a job within seconds of a busy queue, a dead letter is there after three days: it could not be sent
/// again, since the endpoint and its keys had gone with the job.
pub(super) fn a_dead_letter_can_be_sent_again_when_its_job_is_gone(bench: &mut Bench) {
    bench.register("import", "a");
    let row = bench.start(with_endpoint(spec(
        "https://own.example/",
        &[EventKind::Completed],
    )));
    bench.complete(&row, "1");
    let sent = bench.sendable().remove(0);
    bench.one(Op::Delete(row.id)).expect("deleted");
    bench.attempt(&sent, Verdict::GiveUp);
    assert!(bench.sendable().is_empty());
    bench.mail(Mail::Redeliver(Which::One(sent.id)));
    let again = bench.sendable().remove(0);
    assert_eq!((again.id, again.tries), (sent.id, 0));
    let endpoints = |bench: &Bench| bench.reader.all_endpoints().expect("readable");
    assert_eq!(endpoints(bench)[0].spec.secrets, ["whsec_key"]);
    bench.attempt(&again, Verdict::Delivered);
    bench.later(Duration::from_secs(1001));
    let pruned = prune_deliveries(bench, Duration::from_secs(1000));
    assert_eq!(pruned.deliveries, 1);
    assert!(endpoints(bench).is_empty(), "nobody needs it any more");
}

pub(super) fn prune_deliveries(bench: &mut Bench, age: Duration) -> Pruned {
    let prune = Prune {
        retention: Retention::forever().deliveries(age).events(Keep::newest(2)),
        jobs_max: 10,
        events_max: 10,
    };
    match bench.one(Op::Prune(prune)) {
        Ok(Done::Pruned(pruned)) => pruned,
        other => panic!("{other:?}"),
    }
}

/// The log's count, and not the age of dead letters, decided how long somebody had to see them.
pub(super) fn a_dead_letter_is_kept_longer_than_its_event(bench: &mut Bench) {
    bench.register("import", "a");
    bench.mail(Mail::Put(
        "audit".into(),
        spec("https://a.example/", &[EventKind::Created]),
    ));
    let jobs: Vec<JobId> = (0..6).map(|_| bench.enqueue(new_job("import"))).collect();
    let rows = bench.sendable();
    bench.attempt(&rows[0], Verdict::GiveUp);
    bench.attempt(&rows[1], Verdict::Delivered);
    prune_deliveries(bench, Duration::from_secs(1000));
    let left: Vec<_> = bench.deliveries().iter().map(|row| row.job_id).collect();
    assert_eq!(left, [&jobs[..1], &jobs[2..]].concat());
}

/// While the later one was on its way an earlier one was sent again by hand. The later one failed, and from then on both had a
/// time: it could go out before the earlier one.
pub(super) fn what_is_sent_again_comes_before_what_was_under_way(bench: &mut Bench) {
    bench.register("import", "a");
    bench.mail(Mail::Put("audit".into(), everything("https://a.example/")));
    bench.start(new_job("import"));
    let created = bench.sendable().remove(0);
    bench.attempt(&created, Verdict::GiveUp);
    let started = bench.sendable().remove(0);
    bench.mail(Mail::Redeliver(Which::One(created.id)));
    let at = bench.now;
    bench.attempt(&started, Verdict::RetryAt(at));
    let ids = |bench: &Bench| -> Vec<_> { bench.sendable().iter().map(|row| row.id).collect() };
    assert_eq!(ids(bench), [created.id]);
    bench.attempt(&created, Verdict::Delivered);
    assert_eq!(ids(bench), [started.id]);
}

/// One 410, of a proxy perhaps, and no job with that endpoint was told of ever again; what waited for it waited for ever.
pub(super) fn a_job_s_endpoint_that_is_gone_is_wanted_again_by_the_next_job(bench: &mut Bench) {
    bench.register("import", "a");
    let own = || with_endpoint(spec("https://own.example/", &[EventKind::Created]));
    let first = bench.enqueue(own());
    bench.enqueue(own());
    let rows = bench.sendable();
    bench.attempt(&rows[0], Verdict::Gone);
    let endpoint = |bench: &Bench| bench.reader.all_endpoints().expect("readable").remove(0);
    assert!(!endpoint(bench).is_enabled);
    bench.attempt(&rows[1], Verdict::Unwanted);
    let (row, tries) = bench
        .reader
        .find_delivery(rows[1].id)
        .expect("readable")
        .expect("it is there");
    assert_eq!(
        (row.status, row.tries, tries.len()),
        (DeliveryStatus::Failed, 0, 0),
        "given up without a try"
    );
    assert!(bench.told(rows[1].job_id).ends_with("webhook:failed"));
    assert!(endpoint(bench).problem.is_some());
    let third = bench.enqueue(own());
    assert!(endpoint(bench).is_enabled);
    assert_eq!(endpoint(bench).problem, None);
    let waiting = bench.sendable().remove(0);
    assert_eq!(waiting.job_id, third);
    bench.attempt(&waiting, Verdict::Unwanted);
    assert_eq!(
        bench.sendable().len(),
        1,
        "it is wanted by now: {first} has it, too"
    );
}

/// An event has room for 256 deliveries. The endpoints beyond were told nothing, and nobody was told that.
pub(super) fn no_more_endpoints_are_enabled_than_events_have_room_for(bench: &mut Bench) {
    let spec = || spec("https://a.example/", &[EventKind::Created]);
    for number in 0..NAMED_MAX {
        bench.mail(Mail::Put(format!("e{number}").into(), spec()));
    }
    let full = refused(bench.one(Op::Mail(Mail::Put("more".into(), spec()))));
    assert_eq!(full.0, ErrorKind::Conflict);
    bench.mail(Mail::Put("e1".into(), everything("https://b.example/")));
    bench.mail(Mail::Enable("e0".into(), false));
    bench.mail(Mail::Put("more".into(), spec()));
    let full = refused(bench.one(Op::Mail(Mail::Enable("e0".into(), true))));
    assert_eq!(full.0, ErrorKind::Conflict);
}

pub(super) fn its_deletion_is_told_to_a_job_s_own_endpoint(bench: &mut Bench) {
    bench.register("import", "a");
    let id = bench.enqueue(with_endpoint(spec(
        "https://own.example/",
        &[EventKind::Deleted],
    )));
    bench.cancel(id);
    bench.one(Op::Delete(id)).expect("deleted");
    let sent = bench.sendable().remove(0);
    assert_eq!(sent.kind, EventKind::Deleted);
    let endpoint = bench
        .reader
        .find_endpoint(sent.endpoint_id)
        .expect("readable");
    assert!(endpoint.is_some(), "its keys are needed still");
    bench.attempt(&sent, Verdict::Delivered);
    bench.later(Duration::from_secs(2));
    prune_deliveries(bench, Duration::from_secs(1));
    assert!(
        bench
            .reader
            .find_endpoint(sent.endpoint_id)
            .expect("readable")
            .is_none()
    );
}

pub(super) fn jobs_with_the_same_endpoint_share_it(bench: &mut Bench) {
    bench.register("import", "a");
    let own = || with_endpoint(everything("https://own.example/"));
    let (first, second) = (bench.enqueue(own()), bench.enqueue(own()));
    assert_eq!(bench.reader.all_endpoints().expect("readable").len(), 1);
    bench.cancel(first);
    for row in bench.sendable() {
        bench.attempt(&row, Verdict::GiveUp);
    }
    for row in bench.sendable() {
        bench.attempt(&row, Verdict::GiveUp);
    }
    bench.one(Op::Delete(first)).expect("deleted");
    bench.attempt(&bench.sendable()[0].clone(), Verdict::Delivered);
    assert_eq!(
        bench.reader.all_endpoints().expect("readable").len(),
        1,
        "{second} has it"
    );
}

pub(super) fn a_delivery_is_sent_again_from_its_first_try_on(bench: &mut Bench) {
    bench.register("import", "a");
    bench.mail(Mail::Put(
        "audit".into(),
        spec("https://a.example/", &[EventKind::Created]),
    ));
    let start = bench.now;
    bench.enqueue(new_job("import"));
    bench.later(Duration::from_secs(1));
    bench.enqueue(new_job("import"));
    for row in bench.sendable() {
        bench.attempt(&row, Verdict::GiveUp);
    }
    assert!(
        bench
            .deliveries()
            .iter()
            .all(|row| row.status == DeliveryStatus::Failed)
    );
    let refused = refused(
        bench.one(Op::Mail(Mail::Redeliver(Which::One(DeliveryId::from_i64(
            1,
        ))))),
    );
    assert_eq!(refused.0, ErrorKind::NotFound);
    let between = Which::Between(start, bench.now);
    let answer = bench.one(Op::Mail(Mail::Redeliver(between)));
    assert!(matches!(answer, Ok(Done::Counted(1))), "{answer:?}");
    let again = bench.sendable();
    assert_eq!((again.len(), again[0].tries), (1, 0));
    assert_eq!(
        again[0].last_status,
        Some(500),
        "what came of the last try is not forgotten"
    );
}

pub(super) fn only_the_newest_tries_are_kept(bench: &mut Bench) {
    bench.register("import", "a");
    bench.mail(Mail::Put(
        "audit".into(),
        spec("https://a.example/", &[EventKind::Created]),
    ));
    bench.enqueue(new_job("import"));
    let row = bench.sendable().remove(0);
    for _ in 0..TRIES_KEPT + 3 {
        let at = bench.now;
        bench.attempt(&row, Verdict::RetryAt(at));
    }
    let (row, tries) = bench
        .reader
        .find_delivery(row.id)
        .expect("readable")
        .expect("it is there");
    assert_eq!(
        (row.tries as usize, tries.len()),
        (TRIES_KEPT + 3, TRIES_KEPT)
    );
}

pub(super) fn deliveries_go_by_age_and_what_is_pending_stays(bench: &mut Bench) {
    bench.register("import", "a");
    bench.mail(Mail::Put(
        "audit".into(),
        spec("https://a.example/", &[EventKind::Created]),
    ));
    let jobs: Vec<JobId> = (0..3).map(|_| bench.enqueue(new_job("import"))).collect();
    let rows = bench.sendable();
    bench.attempt(&rows[0], Verdict::Delivered);
    bench.later(Duration::from_secs(100));
    bench.attempt(&rows[1], Verdict::GiveUp);
    bench.later(Duration::from_secs(950));
    let retention = Retention::forever().deliveries(Duration::from_secs(1000));
    let prune = Prune {
        retention,
        jobs_max: 10,
        events_max: 10,
    };
    let pruned = match bench.one(Op::Prune(prune)) {
        Ok(Done::Pruned(pruned)) => pruned,
        other => panic!("{other:?}"),
    };
    assert_eq!((pruned.deliveries, pruned.more), (1, false));
    assert_eq!(pruned.next, Some(bench.now.after(Duration::from_secs(50))));
    let left: Vec<_> = bench.deliveries().iter().map(|row| row.job_id).collect();
    assert_eq!(left, jobs[1..]);
    assert_eq!(bench.job(jobs[0]).status, JobStatus::Pending);
}

pub(super) fn a_failed_try_is_told_and_is_no_end(bench: &mut Bench) {
    bench.register("import", "a");
    let row = bench.start(with_endpoint(spec(
        "https://own.example/",
        &[EventKind::PhaseFailed, EventKind::Retrying],
    )));
    bench.fail(&row, again(3, Duration::from_secs(1)));
    assert_eq!(bench.kinds(), [EventKind::PhaseFailed, EventKind::Retrying]);
    let sent = bench.sendable().remove(0);
    bench.attempt(&sent, Verdict::Delivered);
    assert!(!bench.job(row.id).webhook_sent);
}

pub(super) fn the_endpoint_of_a_job_that_was_never_told_anything_goes_with_it(bench: &mut Bench) {
    bench.register("import", "a");
    let own = |kind| with_endpoint(spec("https://own.example/", &[kind]));
    let quiet = bench.enqueue(own(EventKind::Failed));
    bench.cancel(quiet);
    assert_eq!(bench.endpoint_ids().len(), 1);
    assert_eq!(bench.mailed(Op::Delete(quiet)), Vec::<i64>::new());
    assert_eq!(bench.endpoint_ids(), Vec::<i64>::new());
    let loud = bench.enqueue(own(EventKind::Deleted));
    bench.cancel(loud);
    let ids = bench.endpoint_ids();
    assert_eq!(bench.mailed(Op::Delete(loud)), ids);
    assert_eq!(bench.endpoint_ids(), ids, "it has a delivery");
}

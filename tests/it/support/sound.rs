//! What is true of every file at any time: the shape of jobs, the numbers of the log, and that the log tells what the rows say.

use std::collections::BTreeMap;

use stepwell::{
    Event, EventKind, Job, JobId, JobQueue, JobStatus, ListFilter, PhaseRecord, PhaseStatus,
};

/// Checks all jobs and the whole log of a queue. Nothing may be under way.
#[track_caller]
pub(crate) fn assert_sound(queue: &JobQueue) {
    assert_eq!(queue.check().unwrap(), Vec::<String>::new());
    let events = all_events(queue);
    for pair in events.windows(2) {
        assert_eq!(pair[1].seq, pair[0].seq + 1, "{pair:?}");
    }
    let mut told: BTreeMap<JobId, Vec<Event>> = BTreeMap::new();
    let is_whole = events.first().is_none_or(|event| event.seq == 1);
    for event in events {
        told.entry(event.job_id).or_default().push(event);
    }
    let mut filter = ListFilter::new().limit(1000);
    loop {
        let page = queue.list(&filter).unwrap();
        for summary in page.jobs {
            let job = queue.get(summary.id).unwrap().expect("it was listed");
            assert_shape(&job);
            if is_whole {
                let status = replay(told.get(&job.id).map_or(&[], Vec::as_slice));
                assert_eq!(status, Some(job.status), "{job:#?}\n{:#?}", told[&job.id]);
            }
        }
        match page.next {
            Some(next) => filter = ListFilter::new().limit(1000).after(next),
            None => return,
        }
    }
}

fn all_events(queue: &JobQueue) -> Vec<Event> {
    let mut events: Vec<Event> = Vec::new();
    loop {
        let after = events.last().map_or(0, |event| event.seq);
        let more = queue.events_after(after, 10_000).unwrap();
        if more.is_empty() {
            return events;
        }
        events.extend(more);
    }
}

/// `completed* (running | failed | cancelled)? (pending | skipped | cancelled)*`, as the job's status wants it.
pub(crate) fn assert_shape(job: &Job) {
    let is_done = |phase: &&PhaseRecord| phase.status == PhaseStatus::Completed;
    let done = job.phases.iter().take_while(is_done).count();
    let rest: Vec<PhaseStatus> = job.phases[done..]
        .iter()
        .map(|phase| phase.status)
        .collect();
    let all = |statuses: &[PhaseStatus], status| statuses.iter().all(|it| *it == status);
    let fits = match job.status {
        JobStatus::Pending => all(&rest, PhaseStatus::Pending),
        JobStatus::Running => {
            rest.first() == Some(&PhaseStatus::Running) && all(&rest[1..], PhaseStatus::Pending)
        }
        JobStatus::Completed => rest.is_empty() && !job.phases.is_empty(),
        JobStatus::Failed => {
            job.phases.is_empty()
                || matches!(
                    rest.first(),
                    Some(PhaseStatus::Failed | PhaseStatus::Skipped)
                ) && all(&rest[1..], PhaseStatus::Skipped)
        }
        JobStatus::Cancelled => all(&rest, PhaseStatus::Cancelled),
    };
    assert!(fits, "{job:#?}");
    assert_eq!(
        job.status.is_terminal(),
        job.finished_at.is_some(),
        "{job:#?}"
    );
    for phase in &job.phases {
        let is_completed = phase.status == PhaseStatus::Completed;
        assert_eq!(phase.result.is_some(), is_completed, "{job:#?}");
        assert!(!is_completed || phase.finished_at.is_some(), "{job:#?}");
        assert!(
            phase.status != PhaseStatus::Failed || phase.error.is_some(),
            "{job:#?}"
        );
    }
}

/// Where a job stands after these events; each must be one that may follow the one before.
fn replay(events: &[Event]) -> Option<JobStatus> {
    let mut status: Option<JobStatus> = None;
    for event in events {
        let next = status_after(status, event);
        assert!(next.is_some(), "{event:?} at {status:?} in {events:#?}");
        status = next.filter(|_| event.kind != EventKind::Deleted);
    }
    status
}

/// Where a job stands after an event; nothing if that event may not follow. A deleted job stands where it stood.
pub(crate) fn status_after(status: Option<JobStatus>, event: &Event) -> Option<JobStatus> {
    let is_live = matches!(status, Some(JobStatus::Pending | JobStatus::Running));
    let is_running = status == Some(JobStatus::Running);
    let (may_follow, next) = match event.kind {
        EventKind::Created => (status.is_none(), Some(JobStatus::Pending)),
        EventKind::Started => (status == Some(JobStatus::Pending), Some(JobStatus::Running)),
        EventKind::PhaseStarted
        | EventKind::PhaseCompleted
        | EventKind::PhaseFailed
        | EventKind::Progress => (is_running, status),
        EventKind::Retrying if event.data.get("reason") == Some(&"requested".into()) => (
            matches!(status, Some(JobStatus::Failed | JobStatus::Cancelled)),
            Some(JobStatus::Pending),
        ),
        EventKind::Retrying | EventKind::Interrupted => (is_running, Some(JobStatus::Pending)),
        EventKind::Completed => (is_running, Some(JobStatus::Completed)),
        EventKind::Failed => (is_live, Some(JobStatus::Failed)),
        EventKind::Cancelled => (is_live, Some(JobStatus::Cancelled)),
        EventKind::Deleted => (status.is_some_and(JobStatus::is_terminal), status),
        EventKind::WebhookDelivered | EventKind::WebhookFailed => (status.is_some(), status),
        other => panic!("{other} is new: say here what may come before it"),
    };
    next.filter(|_| may_follow)
}

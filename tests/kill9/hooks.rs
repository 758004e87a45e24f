//! Which jobs of the load have endpoints: a quarter of them, one or two, as their tag says. So whoever judges knows it too, without
//! asking the file.

use std::time::Duration;

use stepwell::{
    Builder, CancelOutcome, Enqueued, EventKind, Job, JobId, JobStatus, NewJob, Result, RetryFrom,
};

use crate::journal::hash;
use crate::load::Door;

/// So many tries are made, with these waits before them. The last is so long that jobs are over, and some deleted, meanwhile.
pub(crate) const DELAYS: [Duration; 3] = [
    Duration::ZERO,
    Duration::from_millis(4),
    Duration::from_millis(250),
];

/// An endpoint: the path of its URL, and what it is told; everything, if that is empty.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Hook {
    pub(crate) path: &'static str,
    kinds: &'static [EventKind],
}

impl Hook {
    pub(crate) fn wants(&self, kind: EventKind) -> bool {
        let is_about_deliveries = matches!(
            kind,
            EventKind::WebhookDelivered | EventKind::WebhookFailed | EventKind::Progress
        );
        !is_about_deliveries && (self.kinds.is_empty() || self.kinds.contains(&kind))
    }
}

pub(crate) const ALL: Hook = Hook {
    path: "all",
    kinds: &[],
};
pub(crate) const ENDS: Hook = Hook {
    path: "ends",
    kinds: &[
        EventKind::Completed,
        EventKind::Failed,
        EventKind::Cancelled,
        EventKind::Deleted,
    ],
};
/// Its URL is another for each job: nobody else keeps the endpoint in the file when the job is gone.
pub(crate) const OWN: Hook = Hook {
    path: "own",
    kinds: ENDS.kinds,
};
pub(crate) const WAYS: Hook = Hook {
    path: "ways",
    kinds: &[
        EventKind::Created,
        EventKind::PhaseCompleted,
        EventKind::Retrying,
        EventKind::Interrupted,
        EventKind::Completed,
    ],
};

/// Those of the job that was enqueued with this tag.
pub(crate) fn of(tag: &str) -> &'static [Hook] {
    match hash(tag.as_bytes()) % 24 {
        0 => &[ALL],
        1..3 => &[ENDS],
        3 => &[OWN],
        4 => &[WAYS],
        5 => &[WAYS, OWN],
        _ => &[],
    }
}

/// How the queue sends.
#[cfg(feature = "webhook")]
pub(crate) fn configure(builder: Builder) -> Builder {
    let config = stepwell::webhook::WebhookConfig::new().allow_private("127.0.0.1");
    builder.webhooks(config.delays(DELAYS))
}

#[cfg(not(feature = "webhook"))]
pub(crate) fn configure(builder: Builder) -> Builder {
    builder
}

#[cfg(feature = "webhook")]
fn endpoint(hook: &Hook, tag: &str, port: u16) -> Result<stepwell::webhook::Endpoint> {
    use stepwell::webhook::Endpoint;
    let mut url = format!("http://127.0.0.1:{port}/{}", hook.path);
    if *hook == OWN {
        url += &format!("?{tag}");
    }
    let endpoint = Endpoint::new(&url)?;
    let kinds = Endpoint::DELIVERED.iter().copied();
    Ok(endpoint.events(kinds.filter(|kind| hook.wants(*kind))))
}

/// A door through which jobs go with the endpoints that their tags ask for.
pub(crate) struct Told<'a> {
    pub(crate) door: &'a dyn Door,
    /// Of the receiver.
    #[cfg_attr(
        not(feature = "webhook"),
        allow(dead_code, reason = "then no job has an endpoint")
    )]
    pub(crate) port: u16,
}

impl Door for Told<'_> {
    #[cfg(feature = "webhook")]
    fn with_hooks(&self, tag: &str, mut job: NewJob) -> Result<NewJob> {
        for hook in of(tag) {
            job = job.webhook(endpoint(hook, tag, self.port)?);
        }
        Ok(job)
    }
    fn place(&self) -> &str {
        self.door.place()
    }
    fn enqueue_all(&self, jobs: Vec<NewJob>) -> Result<Vec<Enqueued>> {
        self.door.enqueue_all(jobs)
    }
    fn cancel(&self, id: JobId) -> Result<CancelOutcome> {
        self.door.cancel(id)
    }
    fn retry(&self, id: JobId, from: RetryFrom) -> Result<()> {
        self.door.retry(id, from)
    }
    fn delete(&self, id: JobId) -> Result<()> {
        self.door.delete(id)
    }
    fn get(&self, id: JobId) -> Result<Option<Job>> {
        self.door.get(id)
    }
    fn ids(&self, status: JobStatus, limit: usize) -> Result<Vec<JobId>> {
        self.door.ids(status, limit)
    }
    fn pending(&self) -> Result<u64> {
        self.door.pending()
    }
}

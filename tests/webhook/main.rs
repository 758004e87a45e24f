//! Webhooks end to end: real queues, a real server that misbehaves, and what must be true of both sides afterwards.
#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "a test")]

mod answers;
mod clock;
mod delivery;
mod interop;
#[cfg(target_os = "linux")]
mod kill;
mod logs;
mod receiver;
mod shutdown;

use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;
use stepwell::webhook::{Endpoint, WebhookConfig};
use stepwell::{
    Delivery, DeliveryQuery, DeliveryStatus, JobHandle, JobId, JobQueue, JobType, NewJob, Phase,
};

use receiver::{Receiver, wait_until};

const ONE: Phase<Value> = Phase::new("one");

struct Bench {
    dir: tempfile::TempDir,
    receiver: Receiver,
}

/// Loopback is allowed, and nothing waits long.
fn quick() -> WebhookConfig {
    let ms = Duration::from_millis;
    WebhookConfig::new()
        .allow_private("127.0.0.1")
        .delays([ms(0), ms(10), ms(20)])
        .jitter(0.0)
        .timeouts(ms(1000), ms(1000), ms(1500))
}

impl Bench {
    fn new() -> Bench {
        Bench {
            dir: tempfile::tempdir().unwrap(),
            receiver: Receiver::start(),
        }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("jobs.db")
    }

    fn endpoint(&self, path: &str) -> Endpoint {
        Endpoint::new(&self.receiver.url(path)).unwrap()
    }

    fn open(&self, config: WebhookConfig) -> (JobQueue, JobHandle<Value, Value>) {
        let mut builder = JobQueue::builder(self.path()).workers(2).webhooks(config);
        let jobs = builder
            .register(JobType::<Value>::new("import").phase(ONE, |cx| Ok(cx.input().clone())));
        (builder.open().unwrap(), jobs)
    }

    fn job(&self, path: &str) -> NewJob {
        NewJob::new("import", &1)
            .unwrap()
            .webhook(self.endpoint(path))
    }
}

fn deliveries(queue: &JobQueue) -> Vec<Delivery> {
    let mut all = queue
        .deliveries(&DeliveryQuery::new().limit(1000))
        .unwrap()
        .deliveries;
    all.reverse();
    all
}

#[track_caller]
fn wait_over(queue: &JobQueue, count: usize) -> Vec<Delivery> {
    wait_until(&format!("{count} deliveries are over"), || {
        let all = deliveries(queue);
        all.len() >= count
            && all
                .iter()
                .all(|delivery| delivery.status != DeliveryStatus::Pending)
    });
    deliveries(queue)
}

fn finish(queue: &JobQueue, id: JobId) {
    queue.wait(id, receiver::PATIENCE).unwrap();
}

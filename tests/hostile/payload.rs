//! Payloads, results and errors: what comes out is what went in, or it is refused.

use std::path::PathBuf;
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};
use stepwell::{
    Durability, ErrorKind, JobHandle, JobQueue, JobStatus, JobType, NewJob, Phase, PhaseError,
    Retention, RetryPolicy, While,
};

use crate::tools::Bytes;

const ECHO: Phase<Value> = Phase::new("echo");
const AGAIN: Phase<Value> = Phase::new("again");
const PATIENCE: Duration = Duration::from_secs(30);

struct Bench {
    queue: JobQueue,
    jobs: JobHandle<Value, Value>,
}

fn open() -> Bench {
    let path: PathBuf =
        std::env::temp_dir().join(format!("stepwell-payload-{}.db", std::process::id()));
    for end in ["", "-wal", "-shm", "-owner", "-wake"] {
        let mut beside = path.clone().into_os_string();
        beside.push(end);
        std::fs::remove_file(beside).ok();
    }
    let retention = Retention::forever()
        .completed(stepwell::Keep::newest(50))
        .failed(stepwell::Keep::newest(50))
        .events(stepwell::Keep::newest(500));
    let mut builder = JobQueue::builder(path)
        .workers(1)
        .durability(Durability::Normal)
        .retention(retention);
    let jobs = builder.register(
        JobType::<Value>::new("echo")
            .retry(RetryPolicy::never())
            .phase(ECHO, |cx| {
                cx.save(cx.input())?;
                let saved: Option<Value> = cx.saved()?;
                assert_eq!(saved.as_ref(), Some(cx.input()), "a checkpoint");
                match cx.input()["fail"].as_str() {
                    Some(message) => Err(PhaseError::fail(message)),
                    None => Ok(cx.input().clone()),
                }
            })
            .phase(AGAIN, |cx| cx.get(ECHO)),
    );
    let queue = builder.open().expect("a queue");
    Bench { queue, jobs }
}

/// JSON is a payload; other bytes are the message of an error, and a unique key.
pub(crate) fn there_and_back(bytes: &[u8]) {
    static BENCH: LazyLock<Mutex<Bench>> = LazyLock::new(|| Mutex::new(open()));
    let bench = BENCH.lock().unwrap_or_else(PoisonError::into_inner);
    let value: Value = match serde_json::from_slice(bytes) {
        Ok(value) => value,
        Err(_) => {
            let mut bytes = Bytes(bytes);
            let key = String::from_utf8_lossy(bytes.some()).into_owned();
            let message = String::from_utf8_lossy(bytes.0);
            fails(&bench, key, &message);
            return;
        }
    };
    let id = match bench.jobs.enqueue(&value) {
        Ok(id) => id,
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::InvalidJob, "{error}");
            return;
        }
    };
    let done = bench.queue.wait(id, PATIENCE).expect("it ends");
    assert_eq!(done.input, value);
    if let Some(message) = value["fail"].as_str() {
        told(&done, message);
        return;
    }
    assert_eq!(done.status, JobStatus::Completed, "{done:?}");
    for phase in &done.phases {
        assert_eq!(phase.result.as_ref(), Some(&value));
    }
}

fn fails(bench: &Bench, key: String, message: &str) {
    let job = NewJob::new("echo", &json!({ "fail": message })).expect("JSON");
    let id = match bench.queue.enqueue_job(job.unique_key(key, While::Live)) {
        Ok(enqueued) => enqueued.id,
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::InvalidJob, "{error}");
            return;
        }
    };
    let done = bench.queue.wait(id, PATIENCE).expect("it ends");
    told(&done, message);
}

fn told(done: &stepwell::Job, message: &str) {
    assert_eq!(done.status, JobStatus::Failed);
    let error = done.errors.last().expect("it has failed");
    let is_cut = message.starts_with(error.message.trim_end_matches('\u{2026}').trim_end());
    assert!(
        error.message == message || (message.len() > 1000 && is_cut),
        "{error:?}"
    );
}

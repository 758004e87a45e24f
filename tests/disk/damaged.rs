//! Bytes in the middle of the file are not what was written.

use std::fs::OpenOptions;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use stepwell::{
    Client, Durability, Error, ErrorKind, JobQueue, JobStatus, JobType, Keep, ListFilter, NewJob,
    Phase, PhaseError, Retention, RetryFrom, RetryPolicy, While,
};

use crate::Alone;

const SEEDS: u64 = 20;
const ONE: Phase<Value> = Phase::new("one");
const TWO: Phase<Value> = Phase::new("two");
/// No single call may take longer: neither a hang nor a scan without end.
const CALL_MAX: Duration = Duration::from_secs(1);

fn open(path: &Path) -> Result<JobQueue, Error> {
    // Retention has something to do: it walks through most of the file.
    let retention = Retention::forever()
        .completed(Keep::newest(20))
        .events(Keep::newest(300));
    let mut builder = JobQueue::builder(path)
        .workers(2)
        .durability(Durability::Normal)
        .retention(retention);
    let job_type = JobType::<Value>::new("two")
        .retry(RetryPolicy::fixed(Duration::from_millis(1)).max_attempts(2))
        .phase(ONE, |_| Ok(json!({"pad": "y".repeat(300)})));
    builder.register(
        job_type.phase(TWO, |cx| match cx.input()["n"].as_u64().unwrap_or(0) % 5 {
            0 => Err(PhaseError::fail("on purpose")),
            _ => cx.get(ONE),
        }),
    );
    builder.open()
}

fn job(n: u64) -> Result<NewJob, Error> {
    let job = NewJob::new("two", &json!({"n": n, "pad": "x".repeat(500)}))?;
    let job = job.unique_key(format!("key{n}"), While::Live);
    Ok(if n.is_multiple_of(3) {
        job.delay(Duration::from_millis(n))
    } else {
        job
    })
}

/// A file with jobs of all kinds, closed.
fn make(path: &Path) {
    let queue = open(path).expect("the queue can be opened");
    let jobs = (0..200)
        .map(job)
        .collect::<Result<Vec<_>, _>>()
        .expect("they are JSON");
    queue.enqueue_all(jobs).expect("they can be stored");
    crate::wait_for("all jobs end", || {
        let stats = queue.stats().expect("it can be read");
        stats.pending + stats.running == 0
    });
    queue.pause().expect("it can be paused");
    let jobs = (1000..1100)
        .map(job)
        .collect::<Result<Vec<_>, _>>()
        .expect("they are JSON");
    queue.enqueue_all(jobs).expect("they can be stored");
    queue.resume().expect("it can be resumed");
    queue.shutdown(Duration::ZERO).ok();
}

/// Source: splitmix64 (Steele, Lea and Flood, OOPSLA 2014).
fn random(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// Changes some bytes after the first page.
fn damage(path: &Path, seed: u64) {
    let mut state = seed;
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .expect("it can be opened");
    let len = file.metadata().expect("it has a size").len();
    let runs = 1 + random(&mut state) % 40;
    for _ in 0..runs {
        let at = 4096 + random(&mut state) % (len - 4096 - 64);
        let mut bytes = vec![0; usize::try_from(1 + random(&mut state) % 32).expect("small")];
        file.seek(SeekFrom::Start(at)).expect("it is inside");
        file.read_exact(&mut bytes).expect("it is inside");
        for byte in &mut bytes {
            *byte ^= u8::try_from(1 + random(&mut state) % 255).expect("a byte");
        }
        file.seek(SeekFrom::Start(at)).expect("it is inside");
        file.write_all(&bytes).expect("it can be written");
    }
}

/// Does something with a damaged file: it works, or says in time what is wrong.
fn in_time<T>(seed: u64, what: &str, act: impl FnOnce() -> Result<T, Error>) -> Option<T> {
    let started = Instant::now();
    let done = act();
    let took = started.elapsed();
    assert!(took < CALL_MAX, "seed {seed}: {what} took {took:?}");
    match done {
        Ok(value) => Some(value),
        Err(error) => {
            let allowed = [
                ErrorKind::Corrupt,
                ErrorKind::Storage,
                ErrorKind::OutcomeUnknown,
                ErrorKind::InvalidConfig,
                ErrorKind::NotFound,
                ErrorKind::Conflict,
                ErrorKind::Timeout,
            ];
            assert!(
                allowed.contains(&error.kind()),
                "seed {seed}: {what}: {error:?}"
            );
            None
        }
    }
}

/// Everything that can be asked.
fn use_all(queue: &JobQueue, seed: u64) {
    let new = in_time(seed, "enqueue", || queue.enqueue_job(job(5000 + seed)?));
    in_time(seed, "stats", || queue.stats());
    in_time(seed, "check", || queue.check());
    in_time(seed, "events", || queue.events_after(0, 1000));
    for status in JobStatus::ALL {
        let filter = ListFilter::new().status(status).limit(5);
        let page = in_time(seed, "list", || queue.list(&filter));
        for summary in page.into_iter().flat_map(|page| page.jobs) {
            let id = summary.id;
            in_time(seed, "get", || queue.get(id));
            in_time(seed, "events of a job", || queue.events_of(id));
            in_time(seed, "explain", || queue.explain(id));
            match status {
                JobStatus::Pending | JobStatus::Running => {
                    in_time(seed, "cancel", || queue.cancel(id));
                }
                JobStatus::Failed | JobStatus::Cancelled => {
                    in_time(seed, "retry", || queue.retry(id, RetryFrom::Start));
                }
                JobStatus::Completed => {
                    in_time(seed, "delete", || queue.delete(id));
                }
            }
        }
    }
    if let Some(enqueued) = new {
        in_time(seed, "wait", || {
            queue.wait(enqueued.id, Duration::from_millis(200))
        });
    }
}

#[test]
fn a_damaged_file_is_told_and_never_a_panic_a_hang_or_a_flood() {
    let alone = Alone::new();
    let dir = tempfile::tempdir().expect("a directory can be made");
    let whole = dir.path().join("whole.db");
    make(&whole);
    for seed in 0..SEEDS {
        let path = dir.path().join(format!("damaged{seed}.db"));
        std::fs::copy(&whole, &path).expect("it can be copied");
        damage(&path, seed);
        let before = alone.lines().len();
        if let Some(queue) = in_time(seed, "open", || open(&path)) {
            use_all(&queue, seed);
            assert_eq!(queue.health().poisoned, None, "seed {seed}");
            // Nothing is asked for: nothing is done over and over.
            std::thread::park_timeout(Duration::from_millis(100));
            let started = crate::processor_time();
            std::thread::park_timeout(Duration::from_millis(300));
            let idle = crate::processor_time() - started;
            let said = alone.lines().split_off(before);
            assert!(
                idle < Duration::from_millis(200),
                "seed {seed}: spins, {idle:?} of 300 ms\n{}",
                said.join("\n")
            );
            in_time(seed, "shutdown", || {
                queue.shutdown(Duration::from_millis(300))
            });
        }
        if let Some(client) = in_time(seed, "open a client", || Client::open(&path)) {
            in_time(seed, "check", || client.check());
        }
        let said = alone.lines().split_off(before);
        assert!(
            said.len() < 40,
            "seed {seed}: floods the log\n{}",
            said.join("\n")
        );
        assert_eq!(alone.panics(), 0, "seed {seed}");
    }
}

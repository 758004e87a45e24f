//! The load: a queue with everything on, its callers, its receivers and its readers.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use stepwell::webhook::{Endpoint, WebhookConfig};
use stepwell::{
    Durability, EventKind, HttpConfig, JobQueue, JobStatus, JobType, Keep, ListFilter, NewJob,
    Phase, PhaseError, Retention, RetryFrom, RetryPolicy, While,
};

use super::streams;
use crate::counters::Counters;

const FIRST: Phase<Value> = Phase::new("first").timeout(Duration::from_secs(2));
const SECOND: Phase<Value> = Phase::new("second");
const CALLERS: u64 = 3;
/// Between two calls of a caller. The load is steady and far from what the queue can do: it is to last for hours.
const PAUSE: Duration = Duration::from_millis(15);
const SLOW_STREAMS: usize = 6;
const STUCK_STREAMS: usize = 3;
/// A reader of another program holds the file as it was for so long, again and again. The log cannot be folded in meanwhile:
/// at this load it grows by some 20 MiB a second.
const HELD: Duration = Duration::from_secs(2);

static COUNTS: Mutex<BTreeMap<&'static str, u64>> = Mutex::new(BTreeMap::new());
static PROBLEMS: Mutex<Vec<String>> = Mutex::new(Vec::new());

pub(crate) fn count(what: &'static str) {
    let mut counts = COUNTS.lock().unwrap_or_else(PoisonError::into_inner);
    *counts.entry(what).or_default() += 1;
}

pub(crate) fn problem(text: String) {
    let mut problems = PROBLEMS.lock().unwrap_or_else(PoisonError::into_inner);
    if problems.len() < 100 {
        problems.push(text);
    }
}

pub(crate) fn problems() -> Vec<String> {
    std::mem::take(&mut PROBLEMS.lock().unwrap_or_else(PoisonError::into_inner))
}

pub(crate) struct Load {
    queue: JobQueue,
    threads: Vec<JoinHandle<()>>,
    /// The receiver that answers.
    audit: SocketAddr,
}

impl Load {
    pub(crate) fn start(path: &Path, over: &Arc<AtomicBool>) -> Load {
        let receivers = ["ok", "fails", "hangs"].map(receiver);
        let queue = open(path, receivers[0]);
        queue
            .on_event(|event| {
                match event.kind {
                    EventKind::Deleted => count("deleted by retention"),
                    EventKind::PhaseFailed => count("tries that failed"),
                    EventKind::WebhookFailed => count("deliveries that failed"),
                    _ => {}
                };
            })
            .expect("the log can be read");
        let addr = queue.http_addr().expect("it is served");
        let mut threads = Vec::new();
        for caller in 0..CALLERS {
            let (queue, over) = (queue.clone(), over.clone());
            threads.push(std::thread::spawn(move || {
                call(&queue, caller, receivers, &over)
            }));
        }
        for _ in 0..SLOW_STREAMS {
            let over = over.clone();
            threads.push(std::thread::spawn(move || streams::slow(addr, &over)));
        }
        for _ in 0..STUCK_STREAMS {
            let over = over.clone();
            threads.push(std::thread::spawn(move || streams::stuck(addr, &over)));
        }
        let (path, over): (PathBuf, _) = (path.to_owned(), over.clone());
        threads.push(std::thread::spawn(move || hold(&path, &over)));
        Load {
            queue,
            threads,
            audit: receivers[0],
        }
    }

    pub(crate) fn count(&self, counters: &mut Counters) {
        let counts = COUNTS.lock().unwrap_or_else(PoisonError::into_inner);
        for (name, number) in counts.iter() {
            counters.set((*name).to_owned(), *number);
        }
    }

    pub(crate) fn audit(&self) -> String {
        self.audit.to_string()
    }

    /// Ends the load; the queue is still at work.
    pub(crate) fn stop(self, counters: &mut Counters) -> JobQueue {
        self.count(counters);
        let Load { queue, threads, .. } = self;
        for thread in threads {
            if thread.join().is_err() {
                problem("a thread of the load has panicked".to_owned());
            }
        }
        queue
    }
}

fn open(path: &Path, audit: SocketAddr) -> JobQueue {
    let retention = Retention::forever()
        .completed(Keep::newest(2000))
        .failed(Keep::newest(500))
        .cancelled(Keep::newest(500))
        .events(Keep::newest(40_000))
        .deliveries(Duration::from_secs(30));
    let second = Duration::from_secs(1);
    let audit = endpoint(audit).events([EventKind::Completed, EventKind::Failed]);
    let webhooks = WebhookConfig::new()
        .allow_private("127.0.0.1")
        .delays([Duration::ZERO, second])
        .timeouts(second, second, second)
        .endpoint("audit", audit);
    let mut builder = JobQueue::builder(path)
        .workers(4)
        .durability(Durability::Normal)
        .retention(retention)
        .webhooks(webhooks)
        .http(HttpConfig::new("127.0.0.1:0"));
    builder.register(
        JobType::<Value>::new("work")
            .retry(RetryPolicy::fixed(Duration::from_millis(50)).max_attempts(2))
            .phase(FIRST, |cx| {
                match cx.input()["n"].as_u64().unwrap_or(0) % 20 {
                    1 => Err(PhaseError::retry("on purpose")),
                    2 => panic!("on purpose"),
                    3 => {
                        cx.progress(0.5, "half");
                        cx.sleep(Duration::from_millis(100))?;
                        cx.save(&json!("half"))?;
                        Ok(Value::Null)
                    }
                    _ => Ok(cx.input().clone()),
                }
            })
            .phase(SECOND, |cx| cx.get(FIRST)),
    );
    builder.open().expect("the queue can be opened")
}

fn endpoint(at: SocketAddr) -> Endpoint {
    Endpoint::new(&format!("http://{at}/hook")).expect("a URL")
}

/// One caller: enqueues, cancels, retries, lists.
fn call(queue: &JobQueue, caller: u64, receivers: [SocketAddr; 3], over: &AtomicBool) {
    let mut n = caller;
    while !over.load(Ordering::Relaxed) {
        n += CALLERS;
        if let Err(error) = one(queue, n, receivers) {
            problem(format!("call {n}: {error}"));
        }
        std::thread::park_timeout(PAUSE);
    }
}

fn one(queue: &JobQueue, n: u64, receivers: [SocketAddr; 3]) -> stepwell::Result<()> {
    let pad = "x".repeat(usize::try_from(n * 37 % 2000).expect("small"));
    let mut job = NewJob::new("work", &json!({ "n": n, "pad": pad }))?;
    if n.is_multiple_of(5) {
        job = job.unique_key(format!("key {}", n % 50), While::Live);
    }
    if n.is_multiple_of(7) {
        job = job.delay(Duration::from_millis(n % 300));
    }
    if n.is_multiple_of(300) {
        job = job.webhook(endpoint(receivers[1]).events([EventKind::Completed]));
    }
    if n.is_multiple_of(900) {
        job = job.webhook(endpoint(receivers[2]).events([EventKind::Created]));
    }
    let id = queue.enqueue_job(job)?.id;
    count("jobs");
    if n.is_multiple_of(11) && queue.cancel(id)? == stepwell::CancelOutcome::Cancelled {
        count("cancelled");
        if n.is_multiple_of(2) && queue.retry(id, RetryFrom::Start).is_ok() {
            count("retried by hand");
        }
    }
    if n.is_multiple_of(17) {
        let filter = ListFilter::new().status(JobStatus::Failed).limit(100);
        for job in queue.list(&filter)?.jobs.iter().take(3) {
            // It may be gone by now.
            queue.explain(job.id).ok();
        }
        queue.stats()?;
        count("lists read");
    }
    Ok(())
}

/// A reader of another program that does not let go for a while: the log beside the file cannot be folded in.
fn hold(path: &Path, over: &AtomicBool) {
    while !over.load(Ordering::Relaxed) {
        let Ok(conn) = rusqlite::Connection::open(path) else {
            return problem("a reader cannot open the file".to_owned());
        };
        let held = conn.execute_batch("BEGIN").and_then(|()| {
            conn.query_row("SELECT count(*) FROM job", [], |row| row.get::<_, i64>(0))
        });
        if held.is_ok() {
            count("snapshots held");
        }
        wait(HELD, over);
        drop(conn);
        wait(4 * HELD, over);
    }
}

fn wait(length: Duration, over: &AtomicBool) {
    let until = Instant::now() + length;
    while Instant::now() < until && !over.load(Ordering::Relaxed) {
        std::thread::park_timeout(Duration::from_millis(100));
    }
}

/// A receiver that answers, fails or hangs. It ends with the process.
fn receiver(how: &'static str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let addr = listener.local_addr().expect("it is bound");
    std::thread::spawn(move || {
        let mut hung: Vec<TcpStream> = Vec::new();
        for connection in listener.incoming().flatten() {
            if how == "hangs" {
                count("requests that hung");
                hung.push(connection);
                // Those before have been given up long ago.
                hung.drain(..hung.len().saturating_sub(4));
            } else {
                answer(connection, how == "ok");
            }
        }
    });
    addr
}

/// Requests of one connection: each is a head and a body of JSON, and is answered with the connection's end.
fn answer(mut connection: TcpStream, is_well: bool) {
    connection
        .set_read_timeout(Some(Duration::from_secs(2)))
        .ok();
    let (mut request, mut piece) = (Vec::new(), [0; 4096]);
    while !request.ends_with(b"}") {
        match connection.read(&mut piece) {
            Ok(bytes) if bytes > 0 => request.extend_from_slice(&piece[..bytes]),
            _ => return,
        }
    }
    let status = if is_well {
        "204 No Content"
    } else {
        "500 Broken"
    };
    let answer = format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    connection.write_all(answer.as_bytes()).ok();
}

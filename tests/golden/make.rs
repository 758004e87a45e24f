//! Makes the file that this version leaves to the next ones: jobs of every status, every kind of change and error, runs of several jobs,
//! plans, checkpoints, unique keys, pauses, endpoints with their keys and deliveries of every kind, a large input, a job that was cut
//! off by a shutdown and by a crash, and two that were inside their handlers when the last process died, with the owner file that
//! says so.
//!
//! Three processes have had the file, one after another: [`past`](Maker::past), [`crash`](Maker::crash), [`present`](Maker::present).
//! A copy of the files of a queue that is at rest is what kill -9 would have left.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use stepwell::testing::FakeClock;
use stepwell::webhook::{Endpoint, Secret, WebhookConfig};
use stepwell::{
    Builder, BulkAction, Delivery, DeliveryQuery, DeliveryStatus, JobId, JobQueue, JobStatus,
    ListFilter, NewJob, Retention, RetryFrom, Timestamp, While,
};

use crate::content::{AUDIT, NEWER, OLDER, read, register, register_planless};

const HOUR: Duration = Duration::from_secs(3600);
const PATIENCE: Duration = Duration::from_secs(60);
/// 2023-11-14: whoever reads the file comes later, so that everything in it is due.
const START: Timestamp = Timestamp::from_millis(1_700_000_000_000);

/// Answers by path: `/ok`, `/gone` (410), and anything else with 500. Ends with the process.
fn receiver() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("it is bound").port();
    std::thread::spawn(move || {
        for connection in listener.incoming() {
            let Ok(mut connection) = connection else {
                return;
            };
            let (mut request, mut piece) = (Vec::new(), [0; 4096]);
            while !request.ends_with(b"}") {
                match connection.read(&mut piece) {
                    Ok(count) if count > 0 => request.extend_from_slice(&piece[..count]),
                    _ => break,
                }
            }
            let status = match &request[..] {
                it if it.starts_with(b"POST /ok") => "200 OK",
                it if it.starts_with(b"POST /gone") => "410 Gone",
                _ => "500 Internal Server Error",
            };
            let answer =
                format!("HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: 4\r\n\r\nword");
            connection.write_all(answer.as_bytes()).ok();
        }
    });
    port
}

fn wait(what: &str, is: impl Fn() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !is() {
        assert!(Instant::now() < until, "{what}: not within a minute");
        std::thread::park_timeout(Duration::from_millis(2));
    }
}

/// A process that has the file.
struct Maker {
    queue: JobQueue,
    clock: FakeClock,
    port: u16,
    /// The types whose handlers have been entered.
    inside: Receiver<String>,
    /// Each message lets a handler of those go that wait; none is left when it is dropped.
    go: Sender<()>,
}

impl Maker {
    fn open(path: &Path, clock: &FakeClock, port: u16, types: fn(&mut Builder)) -> Maker {
        let url = |path: &str| Endpoint::new(&format!("http://127.0.0.1:{port}{path}"));
        let audit = url("/ok").expect("a URL").secret(secret(AUDIT));
        let webhooks = WebhookConfig::new()
            .allow_private("127.0.0.1")
            .delays([Duration::ZERO, HOUR])
            .jitter(0.0)
            .endpoint("audit", audit)
            .endpoint("gone", url("/gone").expect("a URL"));
        let mut builder = JobQueue::builder(path)
            .workers(3)
            .retention(Retention::forever())
            .clock(clock)
            .webhooks(webhooks);
        types(&mut builder);
        let (enters, inside) = channel();
        let (go, goes) = channel::<()>();
        let goes = Arc::new(Mutex::new(goes));
        register(&mut builder, move |name| {
            enters.send(name.to_owned()).ok();
            if ["stuck", "fragile", "resting"].contains(&name) {
                goes.lock().expect("nobody panics there").recv().ok();
            }
        });
        Maker {
            queue: builder.open().expect("the queue can be opened"),
            clock: clock.clone(),
            port,
            inside,
            go,
        }
    }

    fn entered(&self, name: &str) {
        let entered = self.inside.recv_timeout(PATIENCE);
        assert_eq!(entered.as_deref(), Ok(name));
    }

    /// The queue goes on with what is left, and ends.
    fn end(self) {
        drop(self.go);
        self.queue.shutdown(PATIENCE).expect("it ends");
    }

    fn new_job(&self, name: &str, input: &Value) -> NewJob {
        NewJob::new(name, input).expect("it is JSON")
    }

    fn add(&self, job: NewJob) -> JobId {
        self.queue.enqueue_job(job).expect("it is stored").id
    }

    fn run(&self, name: &str, input: &Value) -> JobId {
        let id = self.add(self.new_job(name, input));
        self.queue.wait(id, PATIENCE).expect("it ends");
        id
    }

    fn is_tried(&self, id: JobId) {
        wait("a first try", || {
            let job = self.queue.get(id).expect("it can be read");
            job.is_some_and(|job| job.status == JobStatus::Pending && !job.errors.is_empty())
        });
    }

    fn to(&self, path: &str) -> Endpoint {
        Endpoint::new(&format!("http://127.0.0.1:{}{path}", self.port)).expect("a URL")
    }

    /// All that is over.
    fn past(&self) {
        self.run("import", &json!({"n": 1}));
        self.run("import", &json!({"n": 2, "pad": "large ".repeat(700)}));
        self.run("planned", &json!({"phases": ["a", "b.c", "d:e"]}));
        self.run("import", &json!({"fails": "for good"}));
        let twice = ["always", "panic", "once"].map(|fails| {
            let id = self.add(self.new_job("import", &json!({ "fails": fails })));
            self.is_tried(id);
            id
        });
        let dead = self.add(
            self.new_job("import", &json!({"n": 3}))
                .webhook(self.to("/bad")),
        );
        self.queue.wait(dead, PATIENCE).expect("it ends");
        let late = self.new_job("snoozing", &Value::Null).deadline(HOUR / 2);
        let late = self.add(late);
        let expired = self.new_job("import", &json!({"n": 10})).delay(HOUR);
        let expired = self.add(expired.deadline(HOUR / 2));
        self.clock.advance(HOUR + HOUR / 2);
        for id in twice {
            self.queue.wait(id, PATIENCE).expect("it ends");
        }
        for id in [late, expired] {
            self.queue.wait(id, PATIENCE).expect("its deadline comes");
        }
        let cancelled = self.add(self.new_job("import", &json!({"n": 4})).delay(HOUR));
        self.queue
            .cancel(cancelled)
            .map(drop)
            .expect("it can be cancelled");
        self.queue
            .retry(twice[0], RetryFrom::Start)
            .expect("it can be retried");
        self.is_tried(twice[0]);
        let deleted = self.run("import", &json!({"n": 5}));
        self.queue.delete(deleted).expect("it can be deleted");
        self.faults();
        self.together();
        // Nobody knows this type yet, so nobody refuses it.
        self.add(self.new_job("planless", &Value::Null));
        self.add(self.new_job("stuck", &json!({"n": 8})));
        self.entered("stuck");
        self.settle_deliveries();
        self.queue.shutdown(Duration::ZERO).ok();
    }

    /// The errors that no handler returns.
    fn faults(&self) {
        self.run("faulty", &json!({"fails": "large"}));
        self.run("faulty", &json!({"fails": "to be read"}));
        let slow = self.add(self.new_job("faulty", &json!({"fails": "slow"})));
        self.entered("faulty");
        self.clock.advance(Duration::from_secs(61));
        self.queue.wait(slow, PATIENCE).expect("its time is over");
        let resting = self.add(self.new_job("resting", &Value::Null));
        self.entered("resting");
        self.queue.pause().expect("it can be paused");
        self.go.send(()).expect("it waits");
        wait("it rests", || {
            let job = self.queue.get(resting).expect("it can be read");
            job.is_some_and(|job| job.status == JobStatus::Pending)
        });
        self.queue.resume().expect("it can be resumed");
        self.queue.wait(resting, PATIENCE).expect("it ends");
    }

    /// What happens to three jobs at once, each time in one row of the log.
    fn together(&self) {
        let three = |name: &str| vec![self.new_job(name, &Value::Null).delay(HOUR); 3];
        let batch = self.queue.enqueue_all(three("batch"));
        let batch = batch.expect("they are stored");
        let all = |action, status| {
            let done = self.queue.bulk(action, status, Some("batch"), Some(3));
            done.map(drop).expect("they can be changed");
        };
        all(BulkAction::Cancel, JobStatus::Pending);
        all(BulkAction::Retry(RetryFrom::Start), JobStatus::Cancelled);
        for job in batch {
            self.queue.wait(job.id, PATIENCE).expect("it ends");
        }
        let held = self.queue.enqueue_all(three("held"));
        held.map(drop).expect("they are stored");
    }

    /// One of two jobs must not be inside of a process that dies.
    fn crash(&self) {
        self.entered("stuck");
        let filter = ListFilter::new().job_type("planless");
        wait("nobody can plan it", || {
            let page = self.queue.list(&filter).expect("it can be read");
            page.jobs[0].status == JobStatus::Failed
        });
        self.add(self.new_job("fragile", &json!({"n": 9})));
        self.entered("fragile");
        self.settle_deliveries();
    }

    /// All that is not.
    fn present(&self) {
        self.entered("stuck");
        let key = |name: &str, hold| {
            self.new_job("keyed", &json!({ "key": name }))
                .delay(HOUR)
                .unique_key(name, hold)
        };
        self.add(key("queued", While::Queued));
        self.add(key("live", While::Live));
        self.add(key("for", While::For(24 * HOUR)));
        let gone = self.add(key("gone", While::For(24 * HOUR)));
        let cancelled = self.queue.cancel(gone);
        cancelled.map(drop).expect("it can be cancelled");
        self.queue.delete(gone).expect("it can be deleted");
        let important = self
            .new_job("import", &json!({"n": 6}))
            .priority(-7)
            .delay(2 * HOUR);
        self.add(
            important
                .webhook(self.to("/later"))
                .deadline(1_000_000 * HOUR),
        );
        let snoozing = self.add(self.new_job("snoozing", &Value::Null));
        wait("it snoozes", || {
            let job = self.queue.get(snoozing).expect("it can be read");
            job.is_some_and(|job| job.status == JobStatus::Pending && job.run_at > self.clock.now())
        });
        self.queue.pause_type("held").expect("it can be paused");
        self.add(self.new_job("held", &Value::Null));
        self.add(self.new_job("later", &json!("nobody knows this type yet")));
        let signed = self.to("/signed").secret(secret(NEWER));
        let pending = self.new_job("import", &json!({"n": 7}));
        let pending = pending.webhook(self.to("/bad"));
        let pending = self.add(pending.webhook(signed.also_secret(secret(OLDER))));
        self.queue.wait(pending, PATIENCE).expect("it ends");
        self.settle_deliveries();
        self.add(self.new_job("fragile", &json!({"n": 11})));
        self.entered("fragile");
        self.queue.pause().expect("it can be paused");
        self.add(self.new_job("import", &json!({"n": 12})));
        self.settle_deliveries();
    }

    /// No delivery is under way: each waits for its time, for the one ahead of it, or for an endpoint that is disabled.
    fn settle_deliveries(&self) {
        let query = DeliveryQuery::new()
            .status(DeliveryStatus::Pending)
            .limit(1000);
        let now = self.clock.now();
        wait("deliveries settle", || {
            let page = self.queue.deliveries(&query).expect("it can be read");
            let is_due = |it: &Delivery| it.next_at.is_some_and(|at| at <= now);
            let under_way = page.deliveries.into_iter().filter(is_due);
            under_way.filter(|it| !it.url.ends_with("/gone")).count() == 0
        });
    }
}

fn secret(text: &str) -> Secret {
    Secret::parse(text).expect("a secret")
}

/// Writes `NAME.queue`, `NAME.owner` and `NAME.json` into `dir`.
pub(crate) fn make(dir: &Path, name: &str) {
    let scratch = tempfile::tempdir().expect("a directory can be made");
    let (clock, port) = (FakeClock::new(START), receiver());
    let first = scratch.path().join("first.db");
    let maker = Maker::open(&first, &clock, port, |_| {});
    maker.past();
    drop(maker);
    let maker = Maker::open(&first, &clock, port, register_planless);
    maker.crash();
    let second = scratch.path().join("second.db");
    image(&first, &second);
    maker.end();
    let maker = Maker::open(&second, &clock, port, register_planless);
    maker.present();
    let last = scratch.path().join("last.db");
    image(&second, &last);
    maker.end();
    fold(&last);
    for (from, to) in [("", "queue"), ("-owner", "owner")] {
        let to = dir.join(format!("{name}.{to}"));
        std::fs::copy(beside(&last, from), to).expect("it can be copied");
    }
    let text = serde_json::to_string_pretty(&read(&last)).expect("it is JSON");
    std::fs::write(dir.join(format!("{name}.json")), text + "\n").expect("it can be written");
}

fn beside(path: &Path, end: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(end);
    PathBuf::from(name)
}

/// The files as a process leaves them that dies now.
fn image(from: &Path, to: &Path) {
    for end in ["", "-wal", "-owner"] {
        // Another process copies: one that opened and closed the files here would take the queue's locks away.
        let mut copy = Command::new("cp");
        let copied = copy.arg(beside(from, end)).arg(beside(to, end)).status();
        assert!(copied.is_ok_and(|status| status.success()), "cp has failed");
    }
}

/// Takes the log beside the file into it.
fn fold(path: &Path) {
    let folded = rusqlite::Connection::open(path).expect("it can be opened");
    folded
        .query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))
        .expect("the log can be folded in");
    folded.close().expect("it can be closed");
}

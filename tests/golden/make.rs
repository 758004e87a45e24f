//! Makes the file that this version leaves to the next ones: jobs of every status, plans, errors, checkpoints, unique keys, pauses,
//! endpoints and deliveries of every kind, a large input, and a job that was inside its handler when the process died.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::process::Command;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use stepwell::testing::FakeClock;
use stepwell::webhook::{Endpoint, Secret, WebhookConfig};
use stepwell::{
    Delivery, DeliveryQuery, DeliveryStatus, JobId, JobQueue, JobStatus, NewJob, Retention,
    RetryFrom, Timestamp, While,
};

use crate::content::{read, register};

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

struct Maker {
    queue: JobQueue,
    clock: FakeClock,
    port: u16,
}

impl Maker {
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
        self.clock.advance(HOUR + HOUR / 2);
        for id in twice {
            self.queue.wait(id, PATIENCE).expect("it ends");
        }
        self.queue.wait(late, PATIENCE).expect("its deadline comes");
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
    }

    /// All that is not.
    fn present(&self) {
        let key = |name: &str, hold| {
            self.new_job("import", &json!({ "key": name }))
                .delay(HOUR)
                .unique_key(name, hold)
        };
        self.add(key("queued", While::Queued));
        self.add(key("live", While::Live));
        let kept = self.add(key("for", While::For(24 * HOUR)));
        self.queue
            .cancel(kept)
            .map(drop)
            .expect("it can be cancelled");
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
        let pending = self.add(
            self.new_job("import", &json!({"n": 7}))
                .webhook(self.to("/bad")),
        );
        self.queue.wait(pending, PATIENCE).expect("it ends");
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

/// Writes `NAME.queue` and `NAME.json` into `dir`.
pub(crate) fn make(dir: &Path, name: &str) {
    let scratch = tempfile::tempdir().expect("a directory can be made");
    let path = scratch.path().join("jobs.db");
    let (clock, port) = (FakeClock::new(START), receiver());
    let url = |path: &str| Endpoint::new(&format!("http://127.0.0.1:{port}{path}")).expect("a URL");
    let secret = Secret::parse("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").expect("a secret");
    let webhooks = WebhookConfig::new()
        .allow_private("127.0.0.1")
        .delays([Duration::ZERO, HOUR])
        .jitter(0.0)
        .endpoint("audit", url("/ok").secret(secret))
        .endpoint("gone", url("/gone"));
    let mut builder = JobQueue::builder(&path)
        .workers(1)
        .retention(Retention::forever())
        .clock(&clock)
        .webhooks(webhooks);
    let (inside, is_inside): (Sender<()>, Receiver<()>) = channel();
    let (go, goes): (Sender<()>, Receiver<()>) = channel();
    let goes = Arc::new(Mutex::new(goes));
    register(&mut builder, move || {
        inside.send(()).expect("the maker waits");
        goes.lock().expect("one handler").recv().ok();
    });
    let queue = builder.open().expect("the queue can be opened");
    let maker = Maker { queue, clock, port };
    maker.past();
    maker.present();
    maker.settle_deliveries();
    maker.add(maker.new_job("stuck", &json!({"n": 8})));
    is_inside.recv().expect("the handler is entered");
    maker.queue.pause().expect("it can be paused");
    maker.add(maker.new_job("import", &json!({"n": 9})));
    maker.settle_deliveries();
    let file = dir.join(format!("{name}.queue"));
    image(&path, &file);
    drop(go);
    maker.queue.shutdown(PATIENCE).expect("it ends");
    let read_from = scratch.path().join("read.db");
    std::fs::copy(&file, &read_from).expect("it can be copied");
    let text = serde_json::to_string_pretty(&read(&read_from)).expect("it is JSON");
    std::fs::write(dir.join(format!("{name}.json")), text + "\n").expect("it can be written");
}

/// The file as a process leaves it that dies now, its log folded in.
fn image(from: &Path, to: &Path) {
    for end in ["", "-wal"] {
        let name = |path: &Path| {
            let mut name = path.as_os_str().to_owned();
            name.push(end);
            name
        };
        // Another process copies: one that opened and closed the file here would take the queue's locks away.
        let copied = Command::new("cp").arg(name(from)).arg(name(to)).status();
        assert!(copied.is_ok_and(|status| status.success()), "cp has failed");
    }
    let folded = rusqlite::Connection::open(to).expect("it can be opened");
    folded
        .query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))
        .expect("the log can be folded in");
    folded.close().expect("it can be closed");
}

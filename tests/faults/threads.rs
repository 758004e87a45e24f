//! The n-th thread cannot be started, for every n: once, or from there on until it is lifted.
//!
//! What it would catch: an opening that fails and leaves threads, the port or the file behind; a job, a plan, a callback or a delivery
//! that waits for ever because nobody tried to start its thread again; a shutdown that needs a thread to return.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::park_timeout;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use stepwell::testing::FakeClock;
use stepwell::webhook::{Endpoint, WebhookConfig};
use stepwell::{
    Client, ErrorKind, EventKind, HttpConfig, JobId, JobPlan, JobQueue, JobStatus, JobType, Phase,
    PhaseSpec, RetryPolicy, Timestamp,
};

use crate::io::{self, wait};
use crate::shim::{Control, Fault, Shim};

/// How long something may take that nobody hinders any more.
const PATIENCE: Duration = Duration::from_secs(20);
/// Deaf handlers are given up after this, by the queue's clock.
const TIMEOUT: Duration = Duration::from_secs(5);
const ONE: Phase<Value> = Phase::new("one").timeout(TIMEOUT);

/// Runs one case; `None` when so many threads are not started at all, else what went wrong.
pub(crate) fn run(shim: &Shim, at: u64, is_lasting: bool) -> Option<Vec<String>> {
    let dir = tempfile::tempdir().expect("a directory can be made");
    let control = Control::create(dir.path(), Fault::Thread, at, is_lasting);
    let mut command = io::command(&format!("threads {}", dir.path().display()), dir.path());
    shim.wrap(&mut command, dir.path(), None);
    let process = command.stdout(Stdio::null()).spawn();
    let status = wait(process.expect("a process can be started"));
    let mut problems = Vec::new();
    if !status.is_some_and(|status| status.success()) {
        let said = std::fs::read_to_string(dir.path().join("stderr")).unwrap_or_default();
        let case = if is_lasting { "from thread" } else { "thread" };
        problems.push(format!("{case} {at}: {status:?}\n{said}"));
    }
    match Client::open(dir.path().join("jobs.db")).and_then(|client| client.check()) {
        Ok(broken) => problems.extend(broken),
        Err(error) => problems.push(error.to_string()),
    }
    (control.failures() > 0 || !problems.is_empty()).then_some(problems)
}

/// The process. Never returns.
pub(crate) fn child(dir: &Path) -> ! {
    std::panic::set_hook(Box::new(|info| {
        eprintln!("{info}");
        // tiny_http's way of saying so, and what its own threads, which have no name, make of that.
        let is_foreign = std::thread::current().name().is_none();
        if !is_foreign && !info.to_string().contains("failed to spawn thread") {
            std::process::exit(70);
        }
    }));
    log::set_logger(&Log).expect("no other logger is there");
    log::set_max_level(log::LevelFilter::Info);
    let heard = Arc::new(AtomicUsize::new(0));
    let port = receiver(heard.clone());
    Story {
        dir,
        control: Control::open(dir),
        clock: FakeClock::new(Timestamp::now()),
        port,
        heard,
        is_inside: Arc::default(),
        may_return: Arc::default(),
    }
    .run();
    std::process::exit(0)
}

struct Log;

impl log::Log for Log {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }
    fn log(&self, record: &log::Record<'_>) {
        eprintln!("{} {}", record.level(), record.args());
    }
    fn flush(&self) {}
}

/// Takes deliveries, and counts them.
fn receiver(heard: Arc<AtomicUsize>) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("it is bound").port();
    std::thread::spawn(move || {
        for connection in listener.incoming() {
            let (mut connection, mut request) = (connection.expect("a connection"), Vec::new());
            let mut piece = [0; 4096];
            while !request.ends_with(b"}") {
                match connection.read(&mut piece) {
                    Ok(count) if count > 0 => request.extend_from_slice(&piece[..count]),
                    _ => break,
                }
            }
            heard.fetch_add(1, Ordering::SeqCst);
            let answer = "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";
            connection.write_all(answer.as_bytes()).ok();
        }
    });
    port
}

struct Story<'a> {
    dir: &'a Path,
    control: Control,
    clock: FakeClock,
    port: u16,
    heard: Arc<AtomicUsize>,
    is_inside: Arc<AtomicBool>,
    may_return: Arc<AtomicBool>,
}

impl Story<'_> {
    fn run(&self) {
        self.control.arm();
        let queue = self.open().unwrap_or_else(|error| {
            self.refused(&error);
            self.control.lift();
            self.until("its threads are gone", || threads() == 0);
            self.open().expect("nobody has the file, nor the port")
        });
        let told = Arc::new(AtomicUsize::new(0));
        let callback = |told: &Arc<AtomicUsize>| {
            let told = told.clone();
            move |_: &_| {
                told.fetch_add(1, Ordering::SeqCst);
            }
        };
        if let Err(error) = queue.on_event(callback(&told)) {
            self.refused(&error);
            self.control.lift();
            queue.on_event(callback(&told)).expect("a thread");
        }
        // It takes the only worker, and stays when its time is over.
        let deaf = queue.enqueue("deaf", &Value::Null).expect("stored");
        // And so its timeout counts.
        self.until("it is inside", || self.is_inside.load(Ordering::SeqCst));
        let client = Client::open(self.dir.join("jobs.db")).expect("a client");
        let planned = client
            .enqueue("planned", &json!(["a", "b"]))
            .expect("stored");
        if self.control.is_lasting() {
            self.clock.advance(TIMEOUT);
            self.until("its worker is replaced, or cannot be", || {
                self.control.failures() > 0 || is(&queue, deaf, JobStatus::Failed)
            });
            self.control.lift();
        }
        self.until("both are over", || {
            self.clock.advance(Duration::from_millis(100));
            is(&queue, deaf, JobStatus::Failed) && is(&queue, planned, JobStatus::Completed)
        });
        self.until("the receiver has heard of it", || {
            self.clock.advance(Duration::from_millis(100));
            self.heard.load(Ordering::SeqCst) == 1
        });
        self.until("so has the callback", || told.load(Ordering::SeqCst) > 0);
        self.may_return.store(true, Ordering::SeqCst);
        if self.control.is_lasting() {
            self.control.arm();
        }
        queue.shutdown(PATIENCE).expect("it returns");
        drop((queue, client));
        self.until("all threads have ended", || threads() == 0);
    }

    fn open(&self) -> stepwell::Result<JobQueue> {
        let url = format!("http://127.0.0.1:{}/", self.port);
        // A single one: no other starts the thread for it.
        let kinds = [EventKind::Completed];
        let webhooks = WebhookConfig::new()
            .endpoint("audit", Endpoint::new(&url)?.events(kinds))
            .threads(1)
            .allow_private("127.0.0.1");
        let mut builder = JobQueue::builder(self.dir.join("jobs.db"))
            .workers(1)
            .clock(&self.clock)
            .webhooks(webhooks)
            .http(HttpConfig::new("127.0.0.1:0"))
            .shutdown_timeout(PATIENCE);
        builder.register(JobType::planned(
            "planned",
            |names: &Vec<String>| {
                Ok(JobPlan::new(
                    names.iter().map(|name| PhaseSpec::new(&**name)),
                ))
            },
            |_| Ok(Value::Null),
        ));
        let (is_inside, may_return) = (self.is_inside.clone(), self.may_return.clone());
        builder.register(
            JobType::<Value>::new("deaf")
                .retry(RetryPolicy::never())
                .phase(ONE, move |_| {
                    is_inside.store(true, Ordering::SeqCst);
                    while !may_return.load(Ordering::SeqCst) {
                        park_timeout(Duration::from_millis(1));
                    }
                    Ok(Value::Null)
                }),
        );
        builder.open()
    }

    /// The error says what could not be had.
    fn refused(&self, error: &stepwell::Error) {
        assert!(self.control.failures() > 0, "{error}");
        let says = [": cannot be started", "no thread can be had"];
        assert_eq!(error.kind(), ErrorKind::Storage, "{error}");
        assert!(
            says.iter().any(|part| error.to_string().contains(part)),
            "{error}"
        );
    }

    fn until(&self, what: &str, is: impl Fn() -> bool) {
        let until = Instant::now() + PATIENCE;
        while !is() {
            let failed = self.control.failures();
            assert!(Instant::now() < until, "never: {what} ({failed} failed)");
            park_timeout(Duration::from_millis(2));
        }
    }
}

fn is(queue: &JobQueue, id: JobId, status: JobStatus) -> bool {
    let job = queue.get(id).expect("a look").expect("it is there");
    job.status == status
}

/// The queue's own threads in this process.
fn threads() -> usize {
    let tasks = std::fs::read_dir("/proc/self/task").expect("Linux");
    let names =
        tasks.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("comm")).ok());
    names.filter(|name| name.starts_with("stepwell")).count()
}

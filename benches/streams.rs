//! What 512 event streams cost: how late an event reaches its readers, and how many jobs fewer are run.
//! `cargo bench --features http --bench streams`.
//!
//! The readers are in this process, on one thread, and share its processors with the queue: what they cost counts too.
#![allow(
    clippy::disallowed_methods,
    clippy::print_stdout,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    clippy::cast_possible_truncation,
    reason = "it measures, and tells"
)]

mod support;

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};
use serde_json::Value;
use stepwell::{Durability, HttpConfig, JobHandle, JobQueue, JobType, Phase, Retention, Timestamp};
use support::{Place, median, noop, payload};

const STREAMS: usize = 512;
const STALLED: usize = 5;

fn open(place: &Place, workers: usize, with_http: bool) -> (JobQueue, JobHandle<Value, Value>) {
    let mut builder = JobQueue::builder(place.db())
        .workers(workers)
        .durability(Durability::Normal)
        .retention(Retention::forever());
    if with_http {
        builder = builder.http(HttpConfig::new("127.0.0.1:0").max_streams(STREAMS));
    }
    let jobs = builder.register(
        JobType::<Value>::new("work")
            .phase(Phase::<Value>::new("one"), |_| noop())
            .phase(Phase::<Value>::new("two"), |_| noop())
            .phase(Phase::<Value>::new("three"), |_| noop()),
    );
    (builder.open().expect("opened"), jobs)
}

/// 512 streams, read by one thread, but for some that read nothing.
struct Readers {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Vec<f64>>,
    _stalled: Vec<std::net::TcpStream>,
}

fn connect(addr: SocketAddr) -> std::net::TcpStream {
    let mut socket = std::net::TcpStream::connect(addr).expect("connected");
    socket
        .write_all(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        .expect("asked");
    let mut head = [0; 16];
    socket.read_exact(&mut head).expect("answered");
    assert_eq!(&head[..12], b"HTTP/1.1 200");
    socket
}

impl Readers {
    fn start(addr: SocketAddr, stalled: usize, with_latency: bool) -> Readers {
        let stop = Arc::new(AtomicBool::new(false));
        let mut sockets: Vec<_> = (0..STREAMS - stalled).map(|_| connect(addr)).collect();
        let stalled = (0..stalled).map(|_| connect(addr)).collect();
        let is_over = stop.clone();
        let thread = std::thread::spawn(move || {
            let mut poll = Poll::new().expect("a poll");
            let mut streams: Vec<_> = sockets
                .drain(..)
                .map(|socket| {
                    socket.set_nonblocking(true).expect("set");
                    TcpStream::from_std(socket)
                })
                .collect();
            for (index, stream) in streams.iter_mut().enumerate() {
                poll.registry()
                    .register(stream, Token(index), Interest::READABLE)
                    .expect("registered");
            }
            let (mut events, mut late) = (Events::with_capacity(1024), Vec::new());
            let mut piece = vec![0; 64 * 1024];
            while !is_over.load(Ordering::Relaxed) {
                poll.poll(&mut events, Some(Duration::from_millis(100)))
                    .expect("polled");
                for event in &events {
                    while let Ok(read) = streams[event.token().0].read(&mut piece) {
                        if read == 0 {
                            break;
                        }
                        if with_latency {
                            let now = Timestamp::now().as_millis();
                            late.extend(times(&piece[..read]).map(|at| (now - at) as f64));
                        }
                    }
                }
            }
            late
        });
        Readers {
            stop,
            thread,
            _stalled: stalled,
        }
    }

    fn stop(self) -> Vec<f64> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("it read")
    }
}

/// The times of the commits that the events tell.
fn times(bytes: &[u8]) -> impl Iterator<Item = i64> {
    let text = std::str::from_utf8(bytes).unwrap_or_default();
    text.split("\"at\":")
        .skip(1)
        .filter_map(|rest| rest.split([',', '}']).next()?.parse().ok())
}

/// 100 events a second, for ten seconds.
fn lateness() {
    let place = Place::new();
    let (queue, jobs) = open(&place, 0, true);
    let readers = Readers::start(queue.http_addr().expect("served"), 0, true);
    let started = Instant::now();
    for n in 0..1000_u32 {
        jobs.enqueue(&payload(n as usize)).expect("enqueued");
        let due = started + Duration::from_millis(10) * (n + 1);
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
    }
    std::thread::sleep(Duration::from_millis(300));
    let mut late = readers.stop();
    late.sort_by(f64::total_cmp);
    let at = |part: f64| late[((late.len() - 1) as f64 * part) as usize];
    println!(
        "{STREAMS} streams x 100 events/s: {} of {} came; commit to client p50 {} ms, p99 {} ms, max {} ms",
        late.len(),
        STREAMS * 1000,
        at(0.5),
        at(0.99),
        at(1.0)
    );
}

/// Processor time of this process so far, in seconds: its threads' own accounts, in nanoseconds. Threads that have ended are left out;
/// none ends while it is measured. 0 where there is no such account.
fn processor_time() -> f64 {
    let tasks = std::fs::read_dir("/proc/self/task")
        .into_iter()
        .flatten()
        .flatten();
    let accounts = tasks.filter_map(|task| {
        let text = std::fs::read_to_string(task.path().join("schedstat")).ok()?;
        text.split(' ').next()?.parse::<f64>().ok()
    });
    accounts.sum::<f64>() / 1e9
}

/// Jobs of three phases a second, and microseconds of processor time for each, the readers' included.
fn rate(with_http: bool, count: usize) -> (f64, f64) {
    let place = Place::new();
    let (queue, jobs) = open(&place, 4, with_http);
    let readers = queue
        .http_addr()
        .map(|addr| Readers::start(addr, STALLED, false));
    queue.pause().expect("paused");
    let inputs: Vec<_> = (0..count).map(payload).collect();
    jobs.enqueue_many(&inputs).expect("enqueued");
    let (started, used) = (Instant::now(), processor_time());
    queue.resume().expect("resumed");
    while queue.stats().expect("stats").completed < count as u64 {
        std::thread::sleep(Duration::from_millis(2));
    }
    let rate = count as f64 / started.elapsed().as_secs_f64();
    let cost = (processor_time() - used) * 1e6 / count as f64;
    if let Some(readers) = readers {
        readers.stop();
    }
    let asked = Instant::now();
    queue.shutdown(Duration::from_secs(5)).expect("closed");
    if with_http {
        println!(
            "  shut down with {STREAMS} streams in {:?}",
            asked.elapsed()
        );
    }
    (rate, cost)
}

fn main() {
    lateness();
    let (mut without, mut with) = (Vec::new(), Vec::new());
    for round in 0..8 {
        // Each goes first as often as the other.
        for with_http in [round % 2 == 0, round % 2 == 1] {
            let result = rate(with_http, 100_000);
            if with_http { &mut with } else { &mut without }.push(result);
        }
    }
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let middle = |all: &[(f64, f64)]| {
        let (rates, costs) = all.iter().copied().unzip();
        (median(rates), median(costs))
    };
    let ((rate, cost), (rate_with, cost_with)) = (middle(&without), middle(&with));
    println!("load average {}", load.trim_end());
    println!(
        "jobs/s of 3 phases, 4 workers, NORMAL: {rate:.0} without HTTP, {rate_with:.0} with {STREAMS} streams, {STALLED} of them stalled: {:.1} %",
        100.0 * rate_with / rate
    );
    println!(
        "processor time a job, the readers' included: {cost:.1} us without, {cost_with:.1} us with: {:+.1} %",
        100.0 * (cost_with / cost - 1.0)
    );
}

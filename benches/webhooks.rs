//! What a dead receiver costs a healthy one, and the jobs. `cargo bench --bench webhooks`
//!
//! Each round runs jobs that a healthy endpoint and a second one are told of. The second one is well, refuses (status 500), or never
//! answers; it is one endpoint of the configuration, or one for each job with a URL of its own, which no breaker can know. Told
//! are the jobs a second, and the deliveries a second that the healthy endpoint got. Rounds take turns, and the median of a few
//! is printed with its ratio to that of a second one that is well.

#![allow(
    clippy::print_stdout,
    clippy::disallowed_methods,
    reason = "a program that measures and tells"
)]

mod support;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use stepwell::webhook::{Endpoint, WebhookConfig};
use stepwell::{EventKind, JobQueue, JobType, NewJob, Phase, Retention};

use support::{Place, figure, is_long, median, noop, note, payload, quantile, rate};

const ONE: Phase<serde_json::Value> = Phase::new("one");

/// How a receiver is.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Manner {
    Well,
    Refuses,
    Hangs,
}

/// On an address of its own: a host is known by its address and port.
struct Receiver {
    url: String,
    taken: Arc<AtomicUsize>,
}

impl Receiver {
    fn start(ip: &str, manner: Manner) -> Receiver {
        let listener = TcpListener::bind((ip, 0)).expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("bound"));
        let taken = Arc::new(AtomicUsize::new(0));
        let counts = taken.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let counts = counts.clone();
                std::thread::spawn(move || serve(&stream, manner, &counts));
            }
        });
        Receiver { url, taken }
    }

    fn wait_for(&self, count: usize) {
        while self.taken.load(Ordering::Acquire) < count {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

fn serve(mut stream: &TcpStream, manner: Manner, taken: &AtomicUsize) -> Option<()> {
    let mut reader = BufReader::new(stream);
    loop {
        let (mut length, mut line) = (0, String::new());
        while reader.read_line(&mut line).ok()? > 2 {
            if let Some(value) = line.to_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse().ok()?;
            }
            line.clear();
        }
        reader.read_exact(&mut vec![0; length]).ok()?;
        let status = match manner {
            Manner::Well => "200 OK",
            Manner::Refuses => "500 Internal Server Error",
            Manner::Hangs => {
                // Until the sender has had enough.
                reader.read_line(&mut line).ok()?;
                return None;
            }
        };
        taken.fetch_add(1, Ordering::Release);
        let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n");
        stream.write_all(answer.as_bytes()).ok()?;
    }
}

/// Jobs a second, and healthy deliveries a second.
fn round(jobs: usize, second: Manner, is_per_job: bool) -> (f64, f64) {
    let place = Place::new();
    let healthy = Receiver::start("127.0.0.1", Manner::Well);
    let other = Receiver::start("127.0.0.2", second);
    let endpoint = |url: &str| {
        let endpoint = Endpoint::new(url).expect("a URL");
        endpoint.events([EventKind::Completed])
    };
    let mut hooks = WebhookConfig::new()
        .allow_private("127.0.0.1")
        .allow_private("127.0.0.2")
        .endpoint("healthy", endpoint(&healthy.url));
    if !is_per_job {
        hooks = hooks.endpoint("second", endpoint(&other.url));
    }
    let mut builder = JobQueue::builder(place.db())
        .retention(Retention::forever())
        .webhooks(hooks);
    builder.register(JobType::<serde_json::Value>::new("send").phase(ONE, |_| noop()));
    let queue = builder.open().expect("a queue");
    let started = Instant::now();
    let new_job = |number: usize| {
        let job = NewJob::new("send", &payload(number)).expect("a payload");
        if is_per_job {
            return job.webhook(endpoint(&format!("{}/{number}", other.url)));
        }
        job
    };
    queue
        .enqueue_all((0..jobs).map(new_job).collect())
        .expect("enqueued");
    while queue.stats().expect("counts").completed < jobs as u64 {
        std::thread::sleep(Duration::from_millis(1));
    }
    let ran = started.elapsed();
    healthy.wait_for(jobs);
    let told = started.elapsed();
    queue.shutdown(Duration::ZERO).ok();
    (rate(jobs, ran), rate(jobs, told))
}

/// Milliseconds from the enqueueing of a job to the arrival of its delivery, while `pending` others wait for a receiver that
/// never answers: the median and the 99th of a hundred.
fn delay(pending: usize) -> (f64, f64) {
    let place = Place::new();
    let healthy = Receiver::start("127.0.0.1", Manner::Well);
    let dead = Receiver::start("127.0.0.2", Manner::Hangs);
    let endpoint = |url: &str, kind| Endpoint::new(url).expect("a URL").events([kind]);
    let hooks = WebhookConfig::new()
        .allow_private("127.0.0.1")
        .allow_private("127.0.0.2")
        .endpoint("dead", endpoint(&dead.url, EventKind::Created));
    let mut builder = JobQueue::builder(place.db())
        .retention(Retention::forever())
        .webhooks(hooks);
    let jobs = builder.register(JobType::<usize>::new("send").phase(ONE, |_| noop()));
    let queue = builder.open().expect("a queue");
    for first in (0..pending).step_by(10_000) {
        let inputs: Vec<usize> = (first..pending.min(first + 10_000)).collect();
        jobs.enqueue_many(&inputs).expect("enqueued");
    }
    while queue.stats().expect("counts").completed < pending as u64 {
        std::thread::sleep(Duration::from_millis(10));
    }
    let other = endpoint(&healthy.url, EventKind::Completed);
    queue.put_endpoint("healthy", other).expect("put");
    let mut delays: Vec<f64> = (1..=100)
        .map(|count| {
            let started = Instant::now();
            jobs.enqueue(&count).expect("enqueued");
            healthy.wait_for(count);
            started.elapsed().as_secs_f64() * 1000.0
        })
        .collect();
    queue.shutdown(Duration::ZERO).ok();
    (quantile(&mut delays, 0.5), quantile(&mut delays, 0.99))
}

fn main() {
    let (jobs, rounds) = if is_long() { (10_000, 9) } else { (2000, 5) };
    note(&format!(
        "webhooks: {jobs} jobs of one phase, payload 95 bytes, workers by default, 4 threads that send, FULL, medians of {rounds} rounds; ratios to a second endpoint that is well"
    ));
    for pending in [0, 10_000, 100_000] {
        let (middle, late) = delay(pending);
        figure(&format!("delivery_p50_pending_{pending}"), middle, "ms");
        figure(&format!("delivery_p99_pending_{pending}"), late, "ms");
    }
    for is_per_job in [false, true] {
        let whose = if is_per_job { "many" } else { "one" };
        let manners = [Manner::Well, Manner::Refuses, Manner::Hangs];
        let mut figures = manners.map(|_| (Vec::new(), Vec::new()));
        for _ in 0..rounds {
            for (manner, (ran, told)) in manners.iter().zip(&mut figures) {
                let (jobs_rate, told_rate) = round(jobs, *manner, is_per_job);
                ran.push(jobs_rate);
                told.push(told_rate);
            }
        }
        let medians = figures.map(|(ran, told)| (median(ran), median(told)));
        for (manner, (ran, told)) in manners.iter().zip(medians) {
            let name = |what| format!("{what}_beside_{whose}_{manner:?}").to_lowercase();
            figure(&name("jobs"), ran, "jobs/s");
            figure(&name("jobs_ratio"), ran / medians[0].0, "x");
            figure(&name("healthy"), told, "deliveries/s");
            figure(&name("healthy_ratio"), told / medians[0].1, "x");
        }
    }
}

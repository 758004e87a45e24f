//! stepwell under the protocol of the rivals' programs: `peer MODE DB N SYNC`, `key=value` words out.
//!
//! `cargo run --release --example peer -- e2e /tmp/peer.db 60000 FULL`. MODE: `enqueue` (one call a job), `bulk` (1000 a call),
//! `e2e` (bulk, then 4 workers until all are done), `phases3` (as e2e, 3 phases, the enqueueing not counted), `latency` (one
//! job at a time into an idle queue), `idle` (4 workers, no job, N seconds). SYNC: `FULL` or `NORMAL`.

#![allow(
    clippy::print_stdout,
    clippy::disallowed_methods,
    reason = "a program that measures and tells"
)]
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "indexes of small lists"
)]

use std::error::Error;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use stepwell::{Builder, Durability, JobHandle, JobQueue, JobType, Phase, PhaseError};

const ONE: Phase<Value> = Phase::new("one");
const TWO: Phase<Value> = Phase::new("two");
const THREE: Phase<Value> = Phase::new("three");

fn payload(n: usize) -> Value {
    json!({"to": "someone@example.com", "subject": "Your order has shipped", "order": n, "lines": [1, 2, 3]})
}

fn noop() -> Result<Value, PhaseError> {
    Ok(json!({"ok": true, "rows": 17}))
}

fn one_phase(builder: &mut Builder) -> JobHandle<Value, Value> {
    builder.register(JobType::<Value>::new("email").phase(ONE, |_| noop()))
}

fn bulk(jobs: &JobHandle<Value, Value>, n: usize) -> stepwell::Result<()> {
    for start in (0..n).step_by(1000) {
        let inputs: Vec<Value> = (start..n.min(start + 1000)).map(payload).collect();
        jobs.enqueue_many(&inputs)?;
    }
    Ok(())
}

/// Resumes a paused queue and waits until its n jobs are done.
fn drain(queue: &JobQueue, n: u64) -> stepwell::Result<()> {
    queue.resume()?;
    let mut status = queue.stats()?;
    while status.pending + status.running > 0 {
        std::thread::sleep(Duration::from_millis(2));
        status = queue.stats()?;
    }
    assert_eq!(status.failed, 0, "of {n} jobs");
    Ok(())
}

/// From the call that enqueues a job to the start of its handler, on workers that sleep.
fn latency(mut builder: Builder, n: usize) -> Result<(), Box<dyn Error>> {
    let (tx, started_at) = std::sync::mpsc::channel();
    let tx = std::sync::Mutex::new(tx);
    let job = JobType::<Value>::new("email").phase(ONE, move |_| {
        let now = Instant::now();
        if let Ok(tx) = tx.lock() {
            tx.send(now).ok();
        }
        noop()
    });
    let jobs = builder.register(job);
    let _queue = builder.open()?;
    std::thread::sleep(Duration::from_millis(500));
    let mut micros = Vec::new();
    for i in 0..n {
        let called = Instant::now();
        jobs.enqueue(&payload(i))?;
        micros.push((started_at.recv()? - called).as_secs_f64() * 1e6);
        std::thread::sleep(Duration::from_millis(20 + i as u64 * 7 % 23));
    }
    micros.sort_by(f64::total_cmp);
    let quantile = |q: f64| micros[((micros.len() - 1) as f64 * q) as usize];
    println!(
        "start_p50_us={:.0} start_p99_us={:.0}",
        quantile(0.5),
        quantile(0.99)
    );
    Ok(())
}

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [mode, db, n, sync] = args.as_slice() else {
        return Err("usage: peer MODE DB N FULL|NORMAL".into());
    };
    let n: usize = n.parse()?;
    let durability = if sync == "NORMAL" {
        Durability::Normal
    } else {
        Durability::Full
    };
    let mut builder = JobQueue::builder(db).durability(durability).workers(4);
    let rate = |started: Instant| format!("{:.0}", n as f64 / started.elapsed().as_secs_f64());
    match mode.as_str() {
        "enqueue" => {
            let queue = builder.workers(0).open()?;
            let started = Instant::now();
            for i in 0..n {
                queue.enqueue("email", &payload(i))?;
            }
            println!("enqueue_per_s={}", rate(started));
        }
        "bulk" | "e2e" => {
            let jobs = one_phase(&mut builder);
            let queue = builder.open()?;
            queue.pause()?;
            let started = Instant::now();
            bulk(&jobs, n)?;
            if mode == "bulk" {
                println!("bulk_per_s={}", rate(started));
                return Ok(());
            }
            let processing = Instant::now();
            drain(&queue, n as u64)?;
            println!(
                "e2e_per_s={} process_per_s={} runs={n}",
                rate(started),
                rate(processing)
            );
        }
        "phases3" => {
            let three = JobType::<Value>::new("email")
                .phase(ONE, |_| noop())
                .phase(TWO, |_| noop());
            let jobs = builder.register(three.phase(THREE, |_| noop()));
            let queue = builder.open()?;
            queue.pause()?;
            bulk(&jobs, n)?;
            let processing = Instant::now();
            drain(&queue, n as u64)?;
            println!("process_per_s={} runs={n}", rate(processing));
        }
        "latency" => latency(builder, n)?,
        "idle" => {
            one_phase(&mut builder);
            let _queue = builder.open()?;
            std::thread::sleep(Duration::from_secs(n as u64));
            println!("idle_s={n}");
        }
        other => {
            return Err(
                format!("mode {other:?} is none of enqueue bulk e2e phases3 latency idle").into(),
            );
        }
    }
    Ok(())
}

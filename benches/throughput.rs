//! How many jobs in a second? `cargo bench --bench throughput`; `STEPWELL_BENCH=long` does more jobs, five rounds instead of
//! three.
//!
//! Each figure is the median of the rounds. The rounds go through all figures in turn, so that a slow minute of the machine
//! meets them all.

mod support;

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::Value;
use stepwell::{Builder, Durability, JobHandle, JobQueue, JobType, Phase};
use support::{
    MODES, Place, bulk, drain, figure, is_long, median, noop, payload, rate, settings, timed,
};

const ONE: Phase<Value> = Phase::new("one");
const TWO: Phase<Value> = Phase::new("two");
const THREE: Phase<Value> = Phase::new("three");

type Figures = BTreeMap<String, Vec<f64>>;

/// Jobs of one round.
struct Sizes {
    single_full: usize,
    single_normal: usize,
    threads: usize,
    bulk: usize,
}

fn builder(place: &Place, durability: Durability) -> Builder {
    JobQueue::builder(place.db())
        .durability(durability)
        .workers(4)
}

fn one_phase(builder: &mut Builder) -> JobHandle<Value, Value> {
    builder.register(JobType::<Value>::new("email").phase(ONE, |_| noop()))
}

fn three_phases(builder: &mut Builder) -> JobHandle<Value, Value> {
    let two = JobType::<Value>::new("email")
        .phase(ONE, |_| noop())
        .phase(TWO, |_| noop());
    builder.register(two.phase(THREE, |_| noop()))
}

/// One call a job, from so many threads, each waiting for its own commit; nothing runs meanwhile.
fn enqueue(durability: Durability, threads: usize, count: usize) -> f64 {
    let place = Place::new();
    let queue = builder(&place, durability)
        .workers(0)
        .open()
        .expect("opens");
    let each = count / threads;
    let took = timed(|| {
        std::thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(|| {
                    for n in 0..each {
                        queue.enqueue("email", &payload(n)).expect("enqueues");
                    }
                });
            }
        });
    });
    queue.shutdown(Duration::from_secs(10)).expect("closes");
    rate(each * threads, took)
}

/// Enqueues in bulk into a paused queue, then lets 4 workers do it all: the rates of both together and of each.
fn end_to_end(
    mut builder: Builder,
    register: fn(&mut Builder) -> JobHandle<Value, Value>,
    count: usize,
) -> [f64; 3] {
    let jobs = register(&mut builder);
    let queue = builder.open().expect("opens");
    queue.pause().expect("pauses");
    let enqueueing = timed(|| bulk(&jobs, count));
    let processing = timed(|| {
        queue.resume().expect("resumes");
        drain(&queue);
    });
    queue.shutdown(Duration::from_secs(10)).expect("closes");
    [enqueueing + processing, enqueueing, processing].map(|took| rate(count, took))
}

fn round(figures: &mut Figures, sizes: &Sizes) {
    let mut add = |name: String, value| figures.entry(name).or_default().push(value);
    for (durability, mode) in MODES {
        let single = match durability {
            Durability::Full => sizes.single_full,
            _ => sizes.single_normal,
        };
        add(
            format!("enqueue_1_thread_{mode}"),
            enqueue(durability, 1, single),
        );
        add(
            format!("enqueue_16_threads_{mode}"),
            enqueue(durability, 16, sizes.threads),
        );
        let place = Place::new();
        let builder_ = builder(&place, durability);
        let [both, bulk, processing] = end_to_end(builder_, one_phase, sizes.bulk);
        add(format!("bulk_1000_a_call_{mode}"), bulk);
        add(format!("end_to_end_1_phase_{mode}"), both);
        add(format!("process_1_phase_{mode}"), processing);
        let place = Place::new();
        let builder_ = builder(&place, durability);
        let [both, _, processing] = end_to_end(builder_, three_phases, sizes.bulk / 2);
        add(format!("end_to_end_3_phases_{mode}"), both);
        add(format!("process_3_phases_{mode}"), processing);
    }
}

fn main() {
    settings("throughput, durability full and normal");
    let (rounds, sizes) = if is_long() {
        let sizes = Sizes {
            single_full: 10_000,
            single_normal: 50_000,
            threads: 80_000,
            bulk: 200_000,
        };
        (5, sizes)
    } else {
        let sizes = Sizes {
            single_full: 3_000,
            single_normal: 20_000,
            threads: 32_000,
            bulk: 60_000,
        };
        (3, sizes)
    };
    let mut figures = Figures::new();
    for _ in 0..rounds {
        round(&mut figures, &sizes);
    }
    for (name, values) in figures {
        figure(&name, median(values), "jobs/s");
    }
}

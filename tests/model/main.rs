//! The model test: random histories through a real queue and a plain model, and after each step all that can be seen is compared.
//!
//! What it would catch: any way in which the queue as its users see it differs from its contract: a job in the wrong state,
//! a phase that runs again or sees another result than was saved, an event too many or too few, a count that drifts, a job
//! that nobody claims although it is due, two handlers of one job, a delivery that is lost or out of order, a restart or crash that
//! forgets or repeats.
//!
//! The queue is real: threads, an SQLite file (in one history of six the queue in memory), deliveries over HTTP. Only its clock
//! is fake, and its handlers wait for orders, so that every step is finished before the next begins, and a seed gives the same
//! history each time. The model (`model.rs`, `answers.rs`, `ends.rs`, `view.rs`, `outbox.rs`) is written from the contract, with maps and lists.
//!
//! A crash is a copy of the files as they lie, opened while nothing of the old process is told to the new one. What it does not
//! see: the order of events of different jobs, what happens when steps overlap (the interleavings are for that), a failing disk.
//!
//! `STEPWELL_SEED=n` repeats one history; `STEPWELL_MODEL_STEPS` sets how many steps are taken.
#![allow(
    clippy::disallowed_methods,
    clippy::print_stdout,
    clippy::wildcard_enum_match_arm,
    clippy::too_many_lines,
    reason = "a test that waits with a limit, reports its figures, and whose model is a list of cases"
)]

mod answers;
mod compare;
#[path = "../kill9/counters.rs"]
#[allow(dead_code, reason = "shared with other proofs")]
mod counters;
mod drive;
mod ends;
mod kinds;
mod model;
mod outbox;
mod run;
mod shrink;
mod stage;
mod step;
mod view;

use counters::Counters;
use run::{RARE, Runner};

/// Steps in the ordinary run.
const STEPS: u64 = 20_000;

#[test]
fn the_queue_does_what_the_plain_model_says() {
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse().ok());
    silence_handlers();
    let (runner, mut counters) = (Runner::new(), Counters::default());
    if let Some(seed) = number("STEPWELL_SEED") {
        runner
            .run(seed, &mut counters)
            .unwrap_or_else(|problem| panic!("{problem}"));
        return;
    }
    let steps = number("STEPWELL_MODEL_STEPS").unwrap_or(STEPS);
    let started = std::time::Instant::now();
    let mut seed = 0;
    while counters.count("steps") < steps {
        runner
            .run(seed, &mut counters)
            .unwrap_or_else(|problem| panic!("{problem}"));
        seed += 1;
    }
    println!(
        "{seed} histories in {:.1} s: {counters}",
        started.elapsed().as_secs_f64()
    );
    let never = counters.never(&RARE);
    assert!(
        steps < STEPS || never.is_empty(),
        "never reached: {}",
        never.join(", ")
    );
}

/// Handlers panic on purpose.
fn silence_handlers() {
    let shown = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        let name = std::thread::current().name().map(str::to_owned);
        if !name.is_some_and(|name| name.starts_with("stepwell-")) {
            shown(info);
        }
    }));
}

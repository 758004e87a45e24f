//! Input and output that fails, call by call.
//!
//! What it would catch: an acknowledged job that is lost, or a refused one that is stored, because a write, a sync, a truncation
//! or a read failed in the wrong moment; an error without a kind that says what to do; a panic; a queue that hangs, that stays
//! broken after the disk works again, or that forgets what a handler returned meanwhile; a phase that runs again although
//! its completion was durable.
//!
//! A process (this binary again) runs real stepwell code with `shim.c` between it and the system. In each of twelve scenarios
//! the n-th call fails, n = 1, 2, ..., until the scenario needs no more: with EIO, with ENOSPC, after half a write; once, until the
//! scenario is over, or until the process ends. Then the file is checked, what is left in it runs to its end, and all that was
//! written down is compared with it, as for the kills.
//!
//! Here: all n of the two smallest scenarios, once, and a sample of the others. All of it: `cargo run --release --example prove -- io`.
//! `STEPWELL_FAULTS_SEED` sets the seed, which is printed.
#![cfg(target_os = "linux")]
#![allow(
    clippy::wildcard_enum_match_arm,
    clippy::disallowed_methods,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "tests that look at the clock, report their figures, and say loudly what they cannot do"
)]

#[path = "../kill9/counters.rs"]
#[allow(dead_code, reason = "shared with other proofs")]
mod counters;
#[path = "../kill9/history.rs"]
#[allow(clippy::too_many_lines, reason = "the checker is a long list of cases")]
mod history;
mod io;
#[path = "../kill9/journal.rs"]
mod journal;
#[path = "../kill9/load.rs"]
#[allow(clippy::too_many_lines, reason = "the load is a long list of cases")]
mod load;
#[path = "../kill9/rounds.rs"]
#[allow(dead_code, reason = "shared with the proof that kills")]
mod rounds;
mod scenario;
mod shim;

use std::time::{Duration, Instant};

use counters::Counters;
use io::{Bench, CHILD, Case, Sweep};
use journal::Random;
use scenario::{Ending, Scenario};
use shim::Fault;

const SEED: &str = "STEPWELL_FAULTS_SEED";
/// How long the sample goes on.
const SAMPLE: Duration = Duration::from_secs(15);

#[test]
fn no_failed_call_loses_a_job_or_repeats_what_was_done() {
    if std::env::var(CHILD).is_ok() {
        return;
    }
    let clock = stepwell::Timestamp::now().as_millis().unsigned_abs();
    let seed = rounds::number(SEED).unwrap_or(clock % 1_000_000);
    println!("{SEED}={seed}");
    let Some(bench) = Bench::new() else { return };
    let (mut counters, mut cases) = (Counters::default(), 0);
    let mut problems = Vec::new();
    let mut run = |case: Case| {
        cases += 1;
        let ended = bench.run(case, &mut counters);
        problems.extend(ended.problems.iter().cloned());
        ended
    };
    for mut sweep in Sweep::all().filter(is_small) {
        while {
            let ended = run(sweep.case);
            sweep.step(&ended)
        } {}
    }
    let others: Vec<Case> = Sweep::all().map(|sweep| sweep.case).collect();
    let (mut random, started) = (Random::new(seed, 1), Instant::now());
    while started.elapsed() < SAMPLE {
        let mut case = *random.pick(&others).expect("there are cases");
        // How many calls there are depends on the scenario: half of them have fewer than 60.
        let most = if random.is(50) { 60 } else { 200 };
        case.at = 1 + random.below(most);
        run(case);
    }
    println!("{cases} cases: {counters}");
    assert!(
        problems.is_empty(),
        "{SEED}={seed}\n{}",
        problems.join("\n")
    );
}

/// What is run for every n here: few calls, and no waiting for a fault that lasts.
fn is_small(sweep: &Sweep) -> bool {
    let is_whole = matches!(sweep.case.scenario, Scenario::OpenNew | Scenario::OnePhase);
    is_whole && sweep.case.ending == Ending::Once && sweep.case.fault != Fault::Short
}

/// The other process. Returns at once when it is run as a test.
#[test]
fn the_process_whose_io_fails() {
    if let Ok(told) = std::env::var(CHILD) {
        scenario::child(&told);
    }
}

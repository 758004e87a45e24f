//! Input and output that fails, call by call.
//!
//! What it would catch: an acknowledged job that is lost, or a refused one that is stored, because a write, a sync, a truncation
//! or a read failed in the wrong moment; an error without a kind that says what to do; a panic; a queue that hangs, that stays
//! broken after the disk works again, or that forgets what a handler returned meanwhile; a phase that runs again although
//! its completion was durable.
//!
//! A process (this binary again) runs real stepwell code with `shim.c` between it and the system. In each of sixteen scenarios
//! the n-th call fails, n = 1, 2, ..., until the scenario needs no more: with EIO, with ENOSPC, after half a write; once, until the
//! scenario is over, or until the process ends. Then the file is checked, what is left in it runs to its end, and all that was
//! written down is compared with it, as for the kills.
//!
//! In one of them deliveries are sent to a receiver in this process, which outlives the one whose I/O fails: see `deliveries` for
//! what must come of them.
//!
//! Here: all n of five small scenarios in one way, a share of the deliveries', and a sample of all. All of it:
//! `cargo run --release --example prove -- io`.
//!
//! The same library writes down what a mixed load writes and syncs. Then the file is opened as it may be after a power cut: see
//! `disk` for what may be. It opens, the check finds nothing, its log is a beginning of what the log became, and with
//! `Durability::Full` everything is there that was acknowledged before the cut, or told to a receiver. In a share of the files a queue
//! then lets everything end: it charges no job for the cut, and tells each that was running of it. See `cut` for what must be so.
//! The long form is `prove -- power`.
//!
//! And the n-th thread cannot be started: see `threads`.
//!
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
mod cut;
mod deliveries;
mod disk;
#[path = "../kill9/history.rs"]
#[allow(clippy::too_many_lines, reason = "the checker is a long list of cases")]
mod history;
mod io;
#[path = "../kill9/journal.rs"]
mod journal;
#[path = "../kill9/load.rs"]
#[allow(clippy::too_many_lines, reason = "the load is a long list of cases")]
mod load;
mod power;
mod receiver;
#[path = "../kill9/rounds.rs"]
#[allow(dead_code, reason = "shared with the proof that kills")]
mod rounds;
mod scenario;
mod shim;
#[cfg(all(feature = "http", feature = "webhook"))]
mod threads;

use std::time::{Duration, Instant};

use counters::Counters;
use disk::Left;
use io::{Bench, CHILD, Case, Sweep};
use journal::Random;
use power::Record;
use scenario::{Ending, Scenario};
use shim::{Fault, Shim};

const SEED: &str = "STEPWELL_FAULTS_SEED";
/// Images of power cuts.
const IMAGES: u64 = 1200;
/// One with each kind of load.
const RECORDS: u64 = 4;
/// How long the sample goes on.
const SAMPLE: Duration = Duration::from_secs(8);

/// What the small scenarios fail in for sure: else nothing stood between the queue and the system.
const FAILED: [&str; 9] = [
    "failed first: open db",
    "failed first: open directory",
    "failed first: open wal",
    "failed first: read db",
    "failed first: read wal",
    "failed first: write wal",
    "failed first: sync wal",
    "failed first: sync directory",
    "failed first: write owner",
];
/// The small scenarios alone have more.
const CASES_MIN: u64 = 250;

fn seed() -> u64 {
    let clock = stepwell::Timestamp::now().as_millis().unsigned_abs();
    let seed = rounds::number(SEED).unwrap_or(clock % 1_000_000);
    println!("{SEED}={seed}");
    seed
}

#[test]
fn no_failed_call_loses_a_job_or_repeats_what_was_done() {
    if std::env::var(CHILD).is_ok() {
        return;
    }
    let seed = seed();
    let Some(bench) = Bench::new() else { return };
    let (mut counters, mut cases, mut failed) = (Counters::default(), 0, 0);
    let mut run = |case: Case| {
        cases += 1;
        let ended = bench.run(case, &mut counters);
        failed += u64::from(ended.was_reached);
        let problems = ended.problems.join("\n");
        assert!(problems.is_empty(), "{SEED}={seed}\n{problems}");
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
    println!("{cases} cases, in {failed} of them something failed: {counters}");
    let never = counters.never(&FAILED);
    assert!(never.is_empty(), "{SEED}={seed}: never: {never:?}");
    assert!(
        cases >= CASES_MIN && failed >= cases / 2,
        "{SEED}={seed}: only {cases} cases, and in {failed} of them something failed"
    );
}

/// Deliveries have many calls: each so many-th of them fails, from one by chance on.
#[test]
fn no_failed_call_loses_a_delivery_or_repeats_what_was_recorded() {
    if std::env::var(CHILD).is_ok() {
        return;
    }
    let seed = seed();
    let Some(bench) = Bench::new() else { return };
    let (mut random, mut counters) = (Random::new(seed, 2), Counters::default());
    let endings = [
        (Ending::Once, 23),
        (Ending::Lifted, 41),
        (Ending::Never, 41),
    ];
    for (ending, stride) in endings {
        let mut case = Case {
            scenario: Scenario::Deliver,
            ending,
            fault: Fault::Io,
            at: 1 + random.below(stride),
        };
        while {
            let ended = bench.run(case, &mut counters);
            let problems = ended.problems.join("\n");
            assert!(problems.is_empty(), "{SEED}={seed}\n{problems}");
            case.at += stride;
            counters.add("cases");
            ended.was_reached
        } {}
    }
    println!("{counters}");
    let never = counters.never(&deliveries::RARE);
    assert!(never.is_empty(), "{SEED}={seed}: never: {never:?}");
    assert!(counters.count("cases") >= 40, "{counters}");
}

#[test]
fn no_power_cut_loses_what_was_acknowledged() {
    if std::env::var(CHILD).is_ok() {
        return;
    }
    let seed = seed();
    rounds::silence_handlers();
    let dir = tempfile::tempdir().expect("a directory can be made");
    let Some(shim) = Shim::build(dir.path()) else {
        return;
    };
    let mut counters = Counters::default();
    for record in seed..seed + RECORDS {
        let problems = Record::make(&shim, record).cut(IMAGES / RECORDS, &mut counters);
        let problems = problems.join("\n");
        assert!(problems.is_empty(), "{SEED}={seed}\n{problems}");
    }
    println!("{counters}");
    let never = counters.never(&power::SEEN);
    assert!(never.is_empty(), "{SEED}={seed}: never: {never:?}");
}

/// The bug: the sync of a commit failed while a client had the file open. The caller was told that nothing was stored, but the pages
/// were whole in the log, and counted after a power cut.
#[test]
fn a_refused_job_does_not_come_back_after_a_power_cut() {
    if std::env::var(CHILD).is_ok() {
        return;
    }
    rounds::silence_handlers();
    let dir = tempfile::tempdir().expect("a directory can be made");
    let Some(shim) = Shim::build(dir.path()) else {
        return;
    };
    for at in 1..=3 {
        let record = Record::with_fault(&shim, 1, Scenario::Watched, at);
        let problems = record.cut_everywhere(Left::Everything).join("\n");
        assert!(problems.is_empty(), "sync {at}\n{problems}");
    }
}

#[test]
#[cfg(all(feature = "http", feature = "webhook"))]
fn a_thread_that_cannot_be_started_stops_nobody() {
    if std::env::var(CHILD).is_ok() {
        return;
    }
    let dir = tempfile::tempdir().expect("a directory can be made");
    let Some(shim) = Shim::build(dir.path()) else {
        return;
    };
    for is_lasting in [false, true] {
        let mut count = 0;
        while let Some(problems) = threads::run(&shim, count + 1, is_lasting) {
            count += 1;
            assert!(problems.is_empty(), "{}", problems.join("\n"));
        }
        println!("{count} threads");
        assert!(count > 8, "workers, HTTP, webhooks and more: {count}");
    }
}

/// What is run for every n here: few calls, and little waiting.
fn is_small(sweep: &Sweep) -> bool {
    let Case {
        scenario,
        ending,
        fault,
        ..
    } = sweep.case;
    match scenario {
        Scenario::OpenNew | Scenario::OpenExisting | Scenario::OnePhase | Scenario::Pause => {
            ending == Ending::Once && fault == Fault::Io
        }
        Scenario::Client => ending == Ending::Lifted && fault == Fault::Io,
        _ => false,
    }
}

/// The other process. Returns at once when it is run as a test.
#[test]
fn the_process_with_the_shim() {
    if let Ok(told) = std::env::var(CHILD) {
        #[cfg(all(feature = "http", feature = "webhook"))]
        if let Some(dir) = told.strip_prefix("threads ") {
            threads::child(std::path::Path::new(dir));
        }
        io::child(&told);
    }
}

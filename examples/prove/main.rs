//! The long forms of the proofs: `cargo run --release --example prove -- kill9 --rounds 10000`.
//!
//! `model` compares the queue with a plain model, `io` fails every I/O call of fifteen scenarios, `power` opens what power cuts may
//! leave, `kill9` kills a process again and again: each goes on where it was stopped (`--fresh` begins again). `soak` keeps a queue at
//! work for hours. All print a line a minute, and at the end a row for RELIABILITY.md. What each would catch is said in
//! `tests/model/main.rs`, `tests/faults/main.rs`, `tests/kill9/main.rs` and `soak/mod.rs`.
#![cfg_attr(
    not(target_os = "linux"),
    allow(unused, reason = "the proofs need Linux")
)]
#![allow(
    clippy::disallowed_methods,
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::wildcard_enum_match_arm,
    clippy::too_many_lines,
    reason = "a tool that looks at the clock and prints; the load and the checker are long lists of cases"
)]

#[cfg(target_os = "linux")]
#[path = "../../tests/golden/content.rs"]
mod content;
#[path = "../../tests/kill9/counters.rs"]
#[allow(dead_code, reason = "shared with the tests")]
mod counters;
#[cfg(target_os = "linux")]
#[path = "../../tests/faults/cut.rs"]
mod cut;
#[cfg(target_os = "linux")]
#[path = "../../tests/faults/deliveries.rs"]
mod deliveries;
#[cfg(target_os = "linux")]
#[path = "../../tests/faults/disk.rs"]
mod disk;
#[cfg(target_os = "linux")]
#[path = "../../tests/golden/make.rs"]
mod golden;
#[path = "../../tests/kill9/history.rs"]
mod history;
#[cfg(target_os = "linux")]
#[path = "../../tests/faults/io.rs"]
mod io;
#[path = "../../tests/kill9/journal.rs"]
mod journal;
#[path = "../../tests/kill9/load.rs"]
mod load;
mod model;
#[cfg(target_os = "linux")]
#[path = "../../tests/faults/power.rs"]
mod power;
mod progress;
#[cfg(target_os = "linux")]
#[path = "../../tests/faults/receiver.rs"]
mod receiver;
#[path = "../../tests/kill9/rounds.rs"]
#[allow(dead_code, reason = "shared with the tests")]
mod rounds;
#[cfg(target_os = "linux")]
#[path = "../../tests/faults/scenario.rs"]
mod scenario;
#[cfg(target_os = "linux")]
#[path = "../../tests/faults/shim.rs"]
mod shim;
#[cfg(all(target_os = "linux", feature = "http"))]
mod soak;

use clap::{Parser, Subcommand};

use counters::Counters;
use progress::Progress;

/// Processes whose calls fail, at the same time.
const AT_ONCE: u64 = 6;
const IMAGES_OF_A_RECORD: u64 = 1000;

/// Proofs of stepwell that take long.
#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    proof: Proof,
    /// Begins again, and does not go on where the last run was stopped.
    #[arg(long, global = true)]
    fresh: bool,
    /// The seed; random when it is not given.
    #[arg(long, global = true)]
    seed: Option<u64>,
}

#[derive(Subcommand)]
enum Proof {
    /// Random histories, and after each step everything compared with a plain model.
    Model {
        /// How many steps.
        #[arg(long, default_value_t = 5_000_000)]
        steps: u64,
    },
    /// Every I/O call fails, in every scenario, with every error, for every time.
    Io,
    /// Files as they may be after a power cut.
    Power {
        /// How many of them.
        #[arg(long, default_value_t = 100_000)]
        images: u64,
    },
    /// Makes the file that this version leaves to the next ones (`tests/golden`), and what is read in it.
    Golden,
    /// Kill -9 at a random moment of a mixed load.
    Kill9 {
        /// How many kills.
        #[arg(long, default_value_t = 10_000)]
        rounds: u64,
    },
    /// A steady mixed load with streams, failing receivers and a long reader: nothing may grow. Needs `--features http`.
    Soak {
        /// For how long. Memory's slope is judged from an hour on.
        #[arg(long, default_value_t = 180)]
        minutes: u64,
    },
}

fn main() {
    if let Ok(told) = std::env::var(rounds::CHILD) {
        rounds::child(&told);
    }
    #[cfg(target_os = "linux")]
    if let Ok(told) = std::env::var(io::CHILD) {
        io::child(&told);
    }
    let arguments = Arguments::parse();
    #[cfg(target_os = "linux")]
    if matches!(arguments.proof, Proof::Golden) {
        let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
        return golden::make(&dir, env!("CARGO_PKG_VERSION"));
    }
    rounds::silence_handlers();
    let is_proved = match arguments.proof {
        Proof::Model { steps } => histories(Progress::open("model", &arguments), steps),
        #[cfg(target_os = "linux")]
        Proof::Io => every_call(Progress::open("io", &arguments)),
        #[cfg(target_os = "linux")]
        Proof::Power { images } => power_cuts(Progress::open("power", &arguments), images),
        #[cfg(not(target_os = "linux"))]
        Proof::Io | Proof::Power { .. } => panic!("it needs Linux"),
        Proof::Golden => return,
        #[cfg(all(target_os = "linux", feature = "http"))]
        Proof::Soak { minutes } => soak::run(Progress::begin("soak", &arguments), minutes),
        #[cfg(not(all(target_os = "linux", feature = "http")))]
        Proof::Soak { .. } => panic!("it needs Linux and --features http"),
        Proof::Kill9 { rounds } => kills(Progress::open("kill9", &arguments), rounds),
    };
    if !is_proved {
        std::process::exit(1);
    }
}

#[cfg(target_os = "linux")]
fn every_call(mut progress: Progress) -> bool {
    let Some(bench) = io::Bench::new() else {
        return false;
    };
    let sweeps: Vec<io::Sweep> = io::Sweep::all().collect();
    let all = u64::try_from(sweeps.len()).expect("it fits");
    let skip = usize::try_from(progress.done).expect("it fits");
    for mut sweep in sweeps.into_iter().skip(skip) {
        while {
            let cases = sweep.cases(AT_ONCE);
            let ended: Vec<_> = std::thread::scope(|scope| {
                let run = |case| {
                    let bench = &bench;
                    scope.spawn(move || {
                        let mut counters = Counters::default();
                        (bench.run(case, &mut counters), counters)
                    })
                };
                let runs: Vec<_> = cases.into_iter().map(run).collect();
                let ended = runs
                    .into_iter()
                    .map(|run| run.join().expect("no run panics"));
                ended.collect()
            });
            let mut goes_on = true;
            for (ended, counters) in &ended {
                progress.counters.merge(counters);
                progress.counters.add("cases");
                progress.problems(&ended.problems);
                goes_on = sweep.step(ended);
            }
            progress.tick(&format!("{:?}", sweep.case));
            goes_on
        } {}
        progress.done += 1;
        progress.save();
    }
    let noted = scenario::NOTED.iter().map(|(_, what)| *what);
    let rare: Vec<&str> = noted.chain(deliveries::RARE).collect();
    let cases = progress.counters.count("cases");
    let what =
        format!("{cases} cases: all n of {all} combinations of scenario, error and duration");
    progress.end("io", cases, &what, &rare)
}

#[cfg(target_os = "linux")]
fn power_cuts(mut progress: Progress, images: u64) -> bool {
    let dir = tempfile::tempdir().expect("a directory can be made");
    let Some(shim) = shim::Shim::build(dir.path()) else {
        return false;
    };
    while progress.counters.count("images") < images {
        let record = power::Record::make(&shim, progress.seed + progress.done);
        let problems = record.cut(IMAGES_OF_A_RECORD, &mut progress.counters);
        progress.problems(&problems);
        progress.done += 1;
        progress.save();
        let at = format!("{} records", progress.done);
        progress.tick(&at);
    }
    let images = progress.counters.count("images");
    let what = format!("{images} images of {} records", progress.done);
    progress.end("power", images, &what, &power::RARE)
}

fn kills(mut progress: Progress, rounds: u64) -> bool {
    while progress.done < rounds {
        let end = (progress.done + rounds::ROUNDS_OF_A_FILE).min(rounds);
        let dir = tempfile::tempdir().expect("a directory can be made");
        let span = progress.done..end;
        let mut problems =
            rounds::one_file(dir.path(), span, progress.seed, &mut progress.counters);
        if !problems.is_empty() {
            problems.insert(
                0,
                format!("rounds to {end}, kept in {}", dir.keep().display()),
            );
        }
        progress.problems(&problems);
        progress.done = end;
        progress.save();
        progress.tick(&format!("round {end} of {rounds}"));
    }
    progress.end("kill9", rounds, &format!("{rounds} kills"), &rounds::RARE)
}

fn histories(mut progress: Progress, steps: u64) -> bool {
    let runner = model::run::Runner::new();
    while progress.counters.count("steps") < steps {
        let seed = progress.seed + progress.done;
        let ran = runner.run(seed, &mut progress.counters);
        progress.problems(&ran.err().into_iter().collect::<Vec<_>>());
        progress.done += 1;
        progress.save();
        let at = format!("{} histories", progress.done);
        progress.tick(&at);
    }
    let steps = progress.counters.count("steps");
    let what = format!("{steps} steps of {} histories", progress.done);
    progress.end("model", steps, &what, &model::run::RARE)
}

//! Kill -9 at a random moment of a mixed load, again and again on the same file.
//!
//! What it would catch: a job that was acknowledged and is gone; a phase that starts again although its completion was durable;
//! two handlers of one job at a time; a result that a later phase does not see as it was saved; a cancelled job that goes on or is
//! entered; a job that is charged a crash which hit it outside of its handler, or is not charged one that hit it inside; a deletion
//! that nobody asked for, or that was acknowledged and did not happen; a change without its event; an event that is heard before it is
//! on disk, not at all, or otherwise; a callback that panicked and is called again, or takes the others along; a delivery that is
//! missing, too many, altered, out of order, sent again when its end is on disk, or not sent again when it is not; a file that breaks
//! an invariant; a queue that does not come up again or leaves a job or a delivery lying.
//!
//! A round starts a process (this binary again) that opens the queue and works: 8 workers, 4 callers; in half of the rounds a
//! client in this process asks too. A quarter of the jobs have endpoints, of a receiver in this process. After a random time it is
//! killed; in 30 % of the rounds within the first milliseconds, while it opens the file or recovers. Then this process looks at the
//! file. Every 25 rounds the queue is opened here, drained, and all that was written down is compared with it: see `history`. Then
//! the next file begins. `forged` tests the judge.
//!
//! `STEPWELL_KILL_ROUNDS` sets the rounds (default 300), `STEPWELL_KILL_SEED` the seed, which is printed. A seed gives the same
//! load and the same moments, but threads are not deterministic: a failure does not always come again.
#![allow(
    clippy::wildcard_enum_match_arm,
    clippy::too_many_lines,
    reason = "the load and the checker are long lists of cases"
)]
#![allow(
    clippy::disallowed_methods,
    clippy::print_stdout,
    reason = "a test that kills by the clock and reports its figures"
)]

#[allow(dead_code, reason = "shared with other proofs")]
mod counters;
mod forged;
mod history;
mod journal;
mod load;
mod rounds;

use std::time::Instant;

use counters::Counters;
use rounds::{CHILD, RARE, ROUNDS, ROUNDS_DEFAULT, ROUNDS_OF_A_FILE, SEED};

#[test]
fn no_kill_loses_a_job_or_repeats_what_was_done() {
    if std::env::var(CHILD).is_ok() {
        return;
    }
    let rounds = rounds::number(ROUNDS).unwrap_or(ROUNDS_DEFAULT);
    let clock = stepwell::Timestamp::now().as_millis().unsigned_abs();
    let seed = rounds::number(SEED).unwrap_or(clock % 1_000_000);
    println!("{SEED}={seed} {ROUNDS}={rounds}");
    rounds::silence_handlers();
    let (started, mut counters) = (Instant::now(), Counters::default());
    let mut first = 0;
    while first < rounds {
        let end = (first + ROUNDS_OF_A_FILE).min(rounds);
        let dir = tempfile::tempdir().expect("a directory can be made");
        let problems = rounds::one_file(dir.path(), first..end, seed, &mut counters);
        if !problems.is_empty() {
            let shown = problems.iter().take(40).cloned().collect::<Vec<_>>();
            panic!(
                "{SEED}={seed}, rounds {first} to {end}, kept in {}: {} problems\n{}",
                dir.keep().display(),
                problems.len(),
                shown.join("\n")
            );
        }
        first = end;
    }
    println!(
        "{rounds} rounds in {:.1} s: {counters}",
        started.elapsed().as_secs_f64()
    );
    let never = counters.never(&RARE);
    assert!(
        rounds < ROUNDS_DEFAULT || never.is_empty(),
        "{rounds} rounds never reached: {}",
        never.join(", ")
    );
}

/// The other process. Returns at once when it is run as a test.
#[test]
fn the_process_that_is_killed() {
    if let Ok(told) = std::env::var(CHILD) {
        rounds::child(&told);
    }
}

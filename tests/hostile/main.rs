//! Input that means harm: damaged and forged database files, payloads, job lines of the runner.
//!
//! What it would catch: a panic, a hang or a lie on a file that somebody has meddled with; a payload that is stored as
//! something else; a job line that is taken and cannot run.
//!
//! The same functions are called by the fuzzer (`fuzz/`). Here they get the inputs that it has found (`fuzz/corpus`) and some
//! made from seeds. A watchdog ends what never returns; how long a call on a forged file takes is judged where it is made.
#![allow(clippy::disallowed_methods, reason = "tests with threads and a clock")]

#[path = "../../examples/runner/job_line.rs"]
#[allow(dead_code, unreachable_pub, reason = "shared with the runner")]
mod job_line;
#[path = "../../examples/runner/number.rs"]
#[allow(dead_code, unreachable_pub, reason = "shared with the runner")]
mod number;

mod file;
mod lines;
mod payload;
mod tools;

use std::path::Path;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// For a call that never returns; one that takes a second is noticed before (`file`).
const HANGS_AFTER: Duration = Duration::from_secs(60);
/// Files made from seeds, beside those of the corpus.
const SEEDS: u64 = 40;

/// Gives each input to `run` in a thread of its own, and says which one it was if that panics or hangs.
fn each(inputs: impl IntoIterator<Item = (String, Vec<u8>)>, run: fn(&[u8])) -> usize {
    static ALONE: Mutex<()> = Mutex::new(());
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let mut count = 0;
    for (name, bytes) in inputs {
        let (done, is_done) = channel();
        let thread = std::thread::spawn(move || {
            run(&bytes);
            done.send(()).ok();
        });
        match is_done.recv_timeout(HANGS_AFTER) {
            Ok(()) => count += 1,
            Err(RecvTimeoutError::Timeout) => panic!("{name}: hangs"),
            Err(RecvTimeoutError::Disconnected) => panic!("{name}: panics"),
        }
        thread.join().expect("it has done its work");
    }
    count
}

fn corpus(target: &str) -> Vec<(String, Vec<u8>)> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fuzz/corpus")
        .join(target);
    let entries = std::fs::read_dir(&dir).expect("the corpus is there");
    let mut inputs = Vec::new();
    for entry in entries {
        let path = entry.expect("it can be listed").path();
        let bytes = std::fs::read(&path).expect("it can be read");
        inputs.push((path.display().to_string(), bytes));
    }
    inputs
}

/// Bytes from a seed.
fn random(seed: u64) -> Vec<u8> {
    let mut state = seed;
    let count = 8 + tools::random(&mut state) % 120;
    let bytes = (0..count).map(|_| tools::random(&mut state).to_le_bytes()[0]);
    bytes.collect()
}

#[test]
fn files_of_the_corpus_are_told_to_be_bad_or_work() {
    assert!(each(corpus("database"), file::use_forged) >= 10);
}

#[test]
fn forged_and_damaged_files_are_told_to_be_bad_or_work() {
    let inputs = (0..SEEDS).map(|seed| (format!("seed {seed}"), random(seed)));
    each(inputs, file::use_forged);
}

#[test]
fn payloads_of_the_corpus_come_back_as_they_were() {
    assert!(each(corpus("payload"), payload::there_and_back) >= 10);
}

#[test]
fn job_lines_of_the_corpus_are_refused_or_can_be_stored() {
    assert!(each(corpus("job_lines"), lines::parse) >= 10);
}

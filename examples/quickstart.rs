//! Three phases, one job, its result: `cargo run --example quickstart`.
//!
//! Each phase's result is on disk before the next phase starts. A retry or a restart goes on after the last one that is.

#![allow(clippy::print_stdout, reason = "a program for people")]

use std::time::Duration;

use serde::{Deserialize, Serialize};
use stepwell::{JobQueue, JobType, Phase, PhaseContext, PhaseError};

/// The input of a job.
#[derive(Serialize, Deserialize)]
struct Import {
    text: String,
}

/// The result of its last phase.
#[derive(Debug, Serialize, Deserialize)]
struct Summary {
    words: usize,
    longest: usize,
}

// A key names a phase and the type of its result. A higher version makes older results count as missing.
const FETCH: Phase<String> = Phase::new("fetch").timeout(Duration::from_secs(30));
const PARSE: Phase<Vec<String>> = Phase::new("parse").version(2);
const LOAD: Phase<Summary> = Phase::new("load");

fn parse(cx: &PhaseContext<Import>) -> Result<Vec<String>, PhaseError> {
    let words: Vec<String> = cx
        .get(FETCH)?
        .split_whitespace()
        .map(str::to_owned)
        .collect();
    if words.is_empty() {
        return Err(PhaseError::fail("there is not a word in it"));
    }
    Ok(words)
}

fn load(cx: &PhaseContext<Import>) -> Result<Summary, PhaseError> {
    let words = cx.get(PARSE)?;
    let longest = words.iter().map(|word| word.len()).max();
    Ok(Summary {
        words: words.len(),
        longest: longest.unwrap_or(0),
    })
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let dir = tempfile::tempdir()?;
    let mut builder = JobQueue::builder(dir.path().join("jobs.db")).workers(4);
    // The handle knows the types: Import goes in, Summary comes out.
    let imports = builder.register(
        JobType::<Import>::new("import")
            .phase(FETCH, |cx| Ok(cx.input().text.to_lowercase()))
            .phase(PARSE, parse)
            .phase(LOAD, load),
    );
    let queue = builder.open()?;

    let id = imports.enqueue(&Import {
        text: "Down the Stairs to the Water".into(),
    })?;
    let summary = imports.wait(id, Duration::from_secs(60))?;
    println!("job {id}: {summary:?}");
    assert_eq!((summary.words, summary.longest), (6, 6));

    let bad = imports.enqueue(&Import { text: " ".into() })?;
    let failed = imports.wait(bad, Duration::from_secs(60));
    println!("{}", failed.expect_err("there is not a word in it"));

    queue.shutdown(Duration::from_secs(5))?;
    Ok(())
}

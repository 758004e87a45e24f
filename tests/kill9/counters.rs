//! How often each seldom taken path was taken.

use std::collections::BTreeMap;
use std::fmt;

/// Paths that are seldom taken. A long run must have taken each of them.
const RARE: [&str; 20] = [
    "acknowledged",
    "asked, never answered, and stored",
    "asked, never answered, and not stored",
    "killed inside a handler",
    "killed between a handler's return and its commit",
    "killed before the queue was open",
    "killed while jobs had to be recovered",
    "killed in a shutdown",
    "interruption told to a job",
    "crash limit reached",
    "cancelled at a phase boundary",
    "cancelled while pending",
    "cancel lost to completion",
    "late result fenced",
    "retry lost to another",
    "retried by hand, resuming",
    "retried by hand, from the start",
    "unique key kept a job out",
    "checkpoint resumed",
    "deleted",
];

/// How often what was seen.
#[derive(Debug, Default)]
pub(crate) struct Counters(BTreeMap<&'static str, u64>);

impl Counters {
    pub(crate) fn add(&mut self, name: &'static str) {
        *self.0.entry(name).or_default() += 1;
    }

    pub(crate) fn never(&self) -> Vec<&'static str> {
        RARE.into_iter()
            .filter(|name| !self.0.contains_key(name))
            .collect()
    }
}

impl fmt::Display for Counters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, count) in &self.0 {
            write!(f, "\n  {count:>8} {name}")?;
        }
        self.never()
            .iter()
            .try_for_each(|name| write!(f, "\n         0 {name}"))
    }
}

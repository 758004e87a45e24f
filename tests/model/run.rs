//! Histories by their seeds: one after the other, and what is to be told of one that fails.

use super::counters::Counters;
use super::drive;
use super::outbox::Receiver;
use super::shrink;
use super::stage;
use super::step::Config;

pub(crate) const STEPS_OF_A_HISTORY: usize = 150;
/// Paths that are seldom taken. A long run must have taken each of them.
pub(crate) const RARE: [&str; 27] = [
    "a checkpoint refused to a late handler",
    "a deadline passed inside a handler",
    "a handler abandoned",
    "a handler panicked",
    "a job deleted before its deliveries",
    "a late result fenced",
    "a phase took too long",
    "a second retry lost",
    "a unique key held",
    "cancelled inside a handler",
    "completed",
    "crashed",
    "crashed inside a handler",
    "cut off or given back by a shutdown",
    "deleted by retention",
    "failed for its deadline",
    "given back for a pause",
    "histories in memory",
    "histories with deliveries",
    "retried by the policy",
    "shut down with a handler that ignores its flag",
    "snoozed",
    "the clock was behind after a restart",
    "the clock was set back",
    "the clock was set forward",
    "the crash limit was reached",
    "tried again while the old handler was inside",
];

pub(crate) struct Runner(Receiver);

impl Runner {
    pub(crate) fn new() -> Runner {
        stage::listen();
        Runner(Receiver::start())
    }

    /// The history of a seed; if it fails, the shortest part of it that does.
    pub(crate) fn run(&self, seed: u64, counters: &mut Counters) -> Result<(), String> {
        let config = Config::new(seed);
        let steps = config.steps(STEPS_OF_A_HISTORY);
        if config.has_hooks {
            counters.add("histories with deliveries");
        }
        if config.in_memory {
            counters.add("histories in memory");
        }
        let Err(failure) = drive::history(config, &steps, &self.0, counters) else {
            return Ok(());
        };
        let first = failure.text.clone();
        let (steps, last) = shrink::shrink(config, steps, failure, &self.0);
        let last = last.text;
        let shown: Vec<String> = steps.iter().map(|step| format!("  {step:?}")).collect();
        Err(format!(
            "repeat with STEPWELL_SEED={seed}\n{config:?}\nat first: {first}\nthe shortest that fails:\n{}\n{last}",
            shown.join("\n")
        ))
    }
}

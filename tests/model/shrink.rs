//! Makes a history that fails shorter: delta debugging (Zeller and Hildebrandt, "Simplifying and Isolating Failure-Inducing Input", IEEE
//! Transactions on Software Engineering, 2002), by halves, quarters and so on down to single steps.

use std::time::{Duration, Instant};

use super::counters::Counters;
use super::drive::{self, Failure};
use super::outbox::Receiver;
use super::step::{Config, Step};

/// A failure that shows by waiting for what never comes takes long to repeat.
const TIME: Duration = Duration::from_secs(300);
const PATIENCE: Duration = Duration::from_secs(2);

/// The shortest history that was found to fail, and how.
pub(crate) fn shrink(
    mut config: Config,
    mut steps: Vec<Step>,
    mut failure: Failure,
    receiver: &Receiver,
) -> (Vec<Step>, Failure) {
    config.patience = PATIENCE;
    let started = Instant::now();
    let mut length = steps.len().div_ceil(2);
    while length > 0 {
        let (mut from, mut is_shorter) = (0, false);
        while from < steps.len() && started.elapsed() < TIME {
            let end = (from + length).min(steps.len());
            let rest: Vec<Step> = [&steps[..from], &steps[end..]].concat();
            match drive::history(config, &rest, receiver, &mut Counters::default()) {
                Err(other) if other.what == failure.what => {
                    (steps, failure, is_shorter) = (rest, other, true);
                }
                Ok(()) | Err(_) => from = end,
            }
        }
        if length == 1 && (!is_shorter || started.elapsed() >= TIME) {
            break;
        }
        length = length.div_ceil(2);
    }
    (steps, failure)
}

//! The flag of a running handler under loom: every interleaving of its threads, and every value that an atomic may still
//! show. `src/phase/stop.rs` is compiled here as it is, with loom's types in the place of the real ones.
//!
//! Built with `--cfg stepwell_shuttle` only, by `.ci/interleave`. What it would catch: a flag that is seen before its reason,
//! a second reason in the place of the first, a sleeper who misses the bell.
//! Source: loom, <https://github.com/tokio-rs/loom>.
#![cfg(stepwell_shuttle)]

#[path = "../../src/phase/stop.rs"]
#[allow(unreachable_pub, reason = "the library exports the reason")]
mod stop;
mod sync;
mod time;

use std::sync::Arc;
use std::time::Duration;

use loom::thread;

use stop::{StopFlag, StopReason};
use time::Clock;

#[test]
fn who_sees_the_flag_sees_the_first_reason_and_no_other() {
    loom::model(|| {
        let flag = Arc::new(StopFlag::default());
        let setters = [StopReason::Cancelled, StopReason::Timeout].map(|reason| {
            let flag = flag.clone();
            thread::spawn(move || flag.set(reason))
        });
        let seen = flag.is_set().then(|| flag.reason().expect("it has one"));
        for setter in setters {
            setter.join().expect("it ends");
        }
        assert!(flag.is_set());
        let first = flag.reason();
        assert!(first.is_some());
        assert!(seen.is_none() || seen == first, "{seen:?}, then {first:?}");
    });
}

/// The clock stands still: nothing but the flag wakes who sleeps, and loom reports one that nobody wakes.
#[test]
fn who_sleeps_is_woken_by_the_flag() {
    loom::model(|| {
        let flag = Arc::new(StopFlag::default());
        let sleeper = {
            let flag = flag.clone();
            thread::spawn(move || flag.sleep(&Clock, Duration::from_secs(1)))
        };
        flag.set(StopReason::Shutdown);
        let slept = sleeper.join().expect("it ends");
        assert!(!slept, "it was woken before its time");
    });
}

//! The flag of a running handler.

use std::sync::Arc;
use std::time::Duration;

use loom::thread;

use crate::stop::{StopFlag, StopReason};
use crate::time::Clock;

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

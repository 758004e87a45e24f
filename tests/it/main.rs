//! The integration tests: one binary, a file per behaviour.
#![allow(
    clippy::disallowed_methods,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "tests start threads, look at the clock, talk to their parent process, and end by a panic"
)]

mod abandon;
mod bad_file;
mod bad_input;
mod cancel;
mod client;
mod concurrency;
mod crash;
mod damage;
mod ending;
mod enqueue;
mod events;
mod fencing;
#[cfg(target_os = "linux")]
mod idle;
mod outside;
mod pause;
mod phases;
mod readers;
mod release;
mod replanned;
mod retention;
mod retry;
mod schedule;
mod seed;
mod shutdown;
#[cfg(all(target_os = "linux", feature = "signals"))]
mod signals;
mod support;
mod tidy;
mod typed;
mod unique;

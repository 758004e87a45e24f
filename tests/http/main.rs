//! HTTP, seen from the other end of a socket: one binary, a file per behaviour.
#![allow(
    clippy::disallowed_methods,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "tests start threads, look at the clock, talk to their parent process, and end by a panic"
)]

mod api;
mod browser;
mod gate;
mod health;
mod openapi;
#[cfg(feature = "webhook")]
#[path = "../webhook/receiver.rs"]
#[allow(dead_code, reason = "the tests of webhooks use more of it")]
mod receiver;
mod resume;
mod security;
mod streams;
mod support;
#[cfg(feature = "webhook")]
mod together;

//! The example `runner` as its users run it: several processes on one file, interrupted, killed and run again.
//!
//! It is Linux only: it sends signals and looks into `/proc`. The example must be built: `cargo test` does so,
//! `cargo test --test runner` alone does not.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "a test")]

mod bench;
mod commands;
mod tools;
mod webhooks;
mod work;

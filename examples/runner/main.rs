//! `runner`: durable pipelines of shell commands.
//!
//! Each phase of a job is a command. What a command prints is the result of its phase, and the commands after it find it in
//! their environment. A job goes on where it was after a crash, a power cut or Ctrl-C.
//!
//! ```text
//! cargo run --release --example runner -- --db jobs.db submit jobs.jsonl
//! cargo run --release --example runner -- --db jobs.db work
//! ```
//!
//! It needs a Unix: a command is run by `sh`, in a process group that ends as a whole. Elsewhere it says so and ends.
#![forbid(unsafe_code)]
#![allow(unreachable_pub, reason = "nothing is public in a program")]
#![allow(
    clippy::disallowed_methods,
    reason = "a program has its own clock, threads and pauses"
)]

#[cfg(unix)]
mod args;
#[cfg(unix)]
mod ask;
#[cfg(unix)]
mod command;
#[cfg(unix)]
mod group;
#[cfg(unix)]
mod job_line;
#[cfg(unix)]
mod number;
#[cfg(unix)]
mod output;
#[cfg(unix)]
mod program;
#[cfg(unix)]
mod show;
#[cfg(unix)]
mod work;

#[cfg(unix)]
use program::{FAILED, Failure, INTERRUPTED, Result};

#[cfg(unix)]
fn main() -> std::process::ExitCode {
    program::main()
}

#[cfg(not(unix))]
#[allow(clippy::print_stderr, reason = "it has nothing else to say")]
fn main() -> std::process::ExitCode {
    eprintln!("runner needs a Unix: a phase is a command of `sh`, and runs in a process group");
    std::process::ExitCode::FAILURE
}

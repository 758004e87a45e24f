//! See `tests/hostile/lines.rs`.
#![no_main]

#[path = "../../examples/runner/job_line.rs"]
#[allow(dead_code)]
mod job_line;
#[path = "../../examples/runner/number.rs"]
#[allow(dead_code)]
mod number;
#[path = "../../tests/hostile/lines.rs"]
mod lines;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| lines::parse(bytes));

//! See `tests/hostile/payload.rs`.
#![no_main]

#[path = "../../tests/hostile/payload.rs"]
mod payload;
#[path = "../../tests/hostile/tools.rs"]
#[allow(dead_code)]
mod tools;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| payload::there_and_back(bytes));

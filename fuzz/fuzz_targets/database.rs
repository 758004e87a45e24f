//! See `tests/hostile/file.rs`.
#![no_main]

#[path = "../../tests/hostile/file.rs"]
mod file;
#[path = "../../tests/hostile/tools.rs"]
mod tools;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| file::use_forged(bytes));

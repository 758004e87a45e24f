//! Helpers for the tests of programs that use stepwell.

pub use crate::time::FakeClock;

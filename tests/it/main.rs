//! The integration tests: one binary, a file per behaviour.

mod fencing;
mod tidy;

//! Helpers for the tests of programs that use stepwell.

use std::path::Path;

use crate::client::Client;
use crate::error::Result;

pub use crate::time::FakeClock;

/// What is wrong with the file of a queue: nothing, unless its disk or somebody else has damaged it. A line for each rule that is
/// broken, with the job or event that breaks it. A queue may be at work on the file meanwhile.
///
/// # Errors
/// As for [`Client::open`] and [`Client::check`].
///
/// # Examples
/// ```
/// let dir = tempfile::tempdir()?;
/// let path = dir.path().join("jobs.db");
/// stepwell::Client::open(&path)?.enqueue("import", &1)?;
/// assert_eq!(stepwell::testing::check(&path)?, Vec::<String>::new());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn check(path: impl AsRef<Path>) -> Result<Vec<String>> {
    Client::open(path)?.check()
}

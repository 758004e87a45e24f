//! Another process: this test program again, told by its environment to play a part. It dies by its own hand or by the test's.

use std::io::{BufRead, BufReader, Lines};
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};

use super::Harness;

const PART: &str = "STEPWELL_IT_PART";
const FILE: &str = "STEPWELL_IT_FILE";
/// Sets what the part says apart from what the test runner says.
const MARK: &str = "> ";

/// In the other process: the part to play and the file to play it on; nothing when this is an ordinary run.
pub(crate) fn told() -> Option<(String, PathBuf)> {
    let part = std::env::var(PART).ok()?;
    Some((part, std::env::var_os(FILE)?.into()))
}

/// In a test: the other process. Killed when it is dropped.
pub(crate) struct OtherProcess {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl OtherProcess {
    /// Starts it; the test named `player` plays the part.
    pub(crate) fn start(harness: &Harness, player: &str, part: &str) -> OtherProcess {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", player, "--nocapture", "--quiet"])
            .env(PART, part)
            .env(FILE, harness.path())
            .env("RUST_BACKTRACE", "0")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        OtherProcess { child, lines }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// In the other process: says something to the test.
    pub(crate) fn say(what: &str) {
        println!("{MARK}{what}");
    }

    /// What it says next; waits for it. Nothing when it has ended.
    pub(crate) fn hear(&mut self) -> Option<String> {
        let marked = |line: String| line.strip_prefix(MARK).map(str::to_owned);
        self.lines.by_ref().map_while(Result::ok).find_map(marked)
    }

    /// Waits until it has ended by itself.
    pub(crate) fn wait(mut self) -> ExitStatus {
        while self.hear().is_some() {}
        self.child.wait().unwrap()
    }

    /// As `kill -9`.
    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for OtherProcess {
    fn drop(&mut self) {
        // It has ended already, unless the test failed.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

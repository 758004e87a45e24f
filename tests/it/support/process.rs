//! Another process: this test program again, told by its environment to play a part. It dies by its own hand or by the test's.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::park_timeout;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, unbounded};

use super::{Harness, PATIENCE};

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
    part: String,
    child: Child,
    /// What it says, until its output ends.
    said: Receiver<String>,
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
        let (tx, said) = unbounded();
        // A pipe cannot be read with a limit. This ends with the other process.
        std::thread::spawn(move || {
            let marked = |line: String| line.strip_prefix(MARK).map(str::to_owned);
            for line in lines.map_while(Result::ok).filter_map(marked) {
                tx.send(line).ok();
            }
        });
        let part = part.to_owned();
        OtherProcess { part, child, said }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// In the other process: says something to the test.
    pub(crate) fn say(what: &str) {
        println!("{MARK}{what}");
    }

    /// What it says next; waits for it. Nothing when it has ended.
    pub(crate) fn hear(&self) -> Option<String> {
        match self.said.recv_timeout(PATIENCE) {
            Ok(line) => Some(line),
            Err(RecvTimeoutError::Disconnected) => None,
            Err(RecvTimeoutError::Timeout) => {
                panic!("{:?}: it neither speaks nor ends in time", self.part)
            }
        }
    }

    /// Waits until it has ended by itself.
    pub(crate) fn wait(mut self) -> ExitStatus {
        while self.hear().is_some() {}
        let until = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < until, "{:?}: it ends in time", self.part);
            park_timeout(Duration::from_millis(1));
        }
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

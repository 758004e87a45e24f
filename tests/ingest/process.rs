//! The example as a process: its lines on standard error as they come, signals, its end.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::PATIENCE;
use crate::tree::Tree;

/// How a process ended.
#[derive(Debug)]
pub(crate) struct Run {
    /// 128 and the signal, if that was its end.
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Run {
    pub(crate) fn says(&self, text: &str) -> bool {
        self.stdout.contains(text)
    }
}

pub(crate) struct Process {
    child: Child,
    lines: Receiver<String>,
    stderr: String,
}

impl Process {
    pub(crate) fn start(tree: &Tree, args: &[&str]) -> Process {
        Process::start_in(&tree.root(), args)
    }

    pub(crate) fn start_in(dir: &Path, args: &[&str]) -> Process {
        let test = std::env::current_exe().unwrap();
        let example = test.ancestors().nth(2).unwrap().join("examples/ingest");
        assert!(
            example.is_file(),
            "{} is not there: cargo build --example ingest",
            example.display()
        );
        let mut command = Command::new(example);
        command
            .arg(dir)
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let (tx, lines) = channel();
        std::thread::Builder::new()
            .spawn(move || {
                stderr
                    .lines()
                    .map_while(Result::ok)
                    .try_for_each(|line| tx.send(line))
            })
            .unwrap();
        Process {
            child,
            lines,
            stderr: String::new(),
        }
    }

    /// The next line on standard error that contains `text`, if one comes before the end.
    pub(crate) fn find(&mut self, text: &str) -> Option<String> {
        loop {
            match self.lines.recv_timeout(PATIENCE) {
                Ok(line) => {
                    self.stderr += &line;
                    self.stderr.push('\n');
                    if line.contains(text) {
                        return Some(line);
                    }
                }
                Err(RecvTimeoutError::Disconnected) => return None,
                Err(RecvTimeoutError::Timeout) => {
                    panic!("nothing for {PATIENCE:?} after {:?}", self.stderr)
                }
            }
        }
    }

    pub(crate) fn saw(&mut self, text: &str) -> bool {
        self.find(text).is_some()
    }

    pub(crate) fn wait_for(&mut self, text: &str) -> String {
        self.find(text)
            .unwrap_or_else(|| panic!("it ended without {text:?}: {}", self.stderr))
    }

    /// Lets it run for so long, or until its end.
    pub(crate) fn let_run(&mut self, time: Duration) {
        let started = self.stderr.len();
        while let Ok(line) = self.lines.recv_timeout(time) {
            self.stderr += &line;
            self.stderr.push('\n');
            if self.stderr.len() > started + 100_000 {
                return;
            }
        }
    }

    pub(crate) fn signal(&self, signal: Signal) {
        // It may have ended by itself, but it has not been waited for: its id is still its own.
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    pub(crate) fn end(mut self) -> Run {
        use std::os::unix::process::ExitStatusExt;
        while self.find("\0").is_some() {}
        let mut stdout = String::new();
        self.child
            .stdout
            .take()
            .unwrap()
            .read_to_string(&mut stdout)
            .unwrap();
        let status = self.child.wait().unwrap();
        let code = status
            .code()
            .or_else(|| status.signal().map(|signal| 128 + signal));
        Run {
            code: code.unwrap(),
            stdout,
            stderr: self.stderr,
        }
    }
}

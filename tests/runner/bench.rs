//! A directory with a queue, and the example as processes on it.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::park_timeout;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use stepwell::{Client, EventKind, JobId, JobStatus};

/// Nothing here takes longer on the slowest machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) struct Bench {
    dir: tempfile::TempDir,
}

/// How a process ended.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Run {
    /// Its output as JSON lines.
    pub(crate) fn json(&self) -> Vec<Value> {
        let lines = self.stdout.lines();
        lines
            .map(|line| serde_json::from_str(line).expect(line))
            .collect()
    }

    #[track_caller]
    pub(crate) fn ok(self) -> Run {
        assert_eq!(self.code, 0, "{self:?}");
        self
    }
}

impl Bench {
    pub(crate) fn new() -> Bench {
        Bench {
            dir: tempfile::tempdir().unwrap(),
        }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn client(&self) -> Client {
        Client::open(self.path("jobs.db")).unwrap()
    }

    pub(crate) fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).unwrap_or_default()
    }

    /// Runs the example to its end.
    pub(crate) fn runner(&self, args: &[&str]) -> Run {
        self.runner_with("", args)
    }

    /// The same, with something to read on standard input.
    pub(crate) fn runner_with(&self, input: &str, args: &[&str]) -> Run {
        let mut process = self.start(args);
        let mut stdin = process.child.stdin.take().unwrap();
        // Who refuses its arguments reads nothing.
        stdin.write_all(input.as_bytes()).ok();
        drop(stdin);
        process.end()
    }

    pub(crate) fn start(&self, args: &[&str]) -> Process {
        let mut all = vec!["--db", "jobs.db"];
        all.extend(args);
        self.start_bare(&all)
    }

    /// Without `--db`.
    pub(crate) fn start_bare(&self, args: &[&str]) -> Process {
        self.start_example("runner", args)
    }

    /// Another example.
    pub(crate) fn start_example(&self, name: &str, args: &[&str]) -> Process {
        let child = Command::new(example(name))
            .args(args)
            .current_dir(self.dir.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        Process { child }
    }

    /// Submits lines, and answers the ids.
    #[track_caller]
    pub(crate) fn submit(&self, lines: &str) -> Vec<JobId> {
        let run = self.runner_with(lines, &["submit", "-"]).ok();
        run.stdout.lines().map(|id| id.parse().unwrap()).collect()
    }

    #[track_caller]
    pub(crate) fn wait_for(&self, id: JobId, status: JobStatus) {
        let client = self.client();
        wait_until(&format!("job {id} is {status}"), || {
            client.status(id).unwrap() == Some(status)
        });
    }

    /// Waits until the file `name` holds so many lines.
    #[track_caller]
    pub(crate) fn wait_for_lines(&self, name: &str, count: usize) {
        wait_until(&format!("{name} has {count} lines"), || {
            self.read(name).lines().count() >= count
        });
    }

    pub(crate) fn show(&self, id: JobId) -> Value {
        let run = self.runner(&["show", &id.to_string(), "--json"]).ok();
        run.json().remove(0)
    }

    pub(crate) fn events(&self, id: JobId) -> Vec<EventKind> {
        let events = self.client().events_of(id).unwrap();
        events.iter().map(|event| event.kind).collect()
    }
}

/// A running one. It does not outlive its test.
pub(crate) struct Process {
    child: Child,
}

impl Process {
    pub(crate) fn signal(&self, signal: Signal) {
        // It has not been waited for, so its id is its own.
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    pub(crate) fn end(mut self) -> Run {
        drop(self.child.stdin.take());
        let (mut stdout, mut stderr) = (String::new(), String::new());
        let mut errors = self.child.stderr.take().unwrap();
        let reader = std::thread::Builder::new()
            .spawn(move || errors.read_to_string(&mut stderr).map(|_| stderr))
            .unwrap();
        self.child
            .stdout
            .take()
            .unwrap()
            .read_to_string(&mut stdout)
            .unwrap();
        let stderr = reader.join().unwrap().unwrap();
        Run {
            code: code(self.child.wait().unwrap()),
            stdout,
            stderr,
        }
    }

    /// Its standard output, to be read as it comes.
    pub(crate) fn stdout(&mut self) -> std::process::ChildStdout {
        self.child.stdout.take().unwrap()
    }

    /// Reads its standard error up to a line with `text`.
    #[track_caller]
    pub(crate) fn wait_for(&mut self, text: &str) {
        let mut lines = BufReader::new(self.child.stderr.take().unwrap()).lines();
        let found = lines.any(|line| line.unwrap().contains(text));
        assert!(found, "it ended without {text:?}");
    }

    pub(crate) fn wait(mut self) -> i32 {
        code(self.child.wait().unwrap())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// The exit code, or 128 and the signal.
fn code(status: ExitStatus) -> i32 {
    use std::os::unix::process::ExitStatusExt;
    let by_signal = status.signal().map(|signal| 128 + signal);
    status.code().or(by_signal).unwrap()
}

pub(crate) fn example(name: &str) -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let example = test.ancestors().nth(2).unwrap().join("examples").join(name);
    assert!(
        example.is_file(),
        "{} is not there: cargo build --example {name}",
        example.display()
    );
    example
}

#[track_caller]
pub(crate) fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let started = Instant::now();
    while !is_so() {
        assert!(
            started.elapsed() < PATIENCE,
            "not so after {PATIENCE:?}: {what}"
        );
        park_timeout(Duration::from_millis(5));
    }
}

/// Whether a process with this id is there and is no zombie.
pub(crate) fn is_alive(pid: &str) -> bool {
    let status = std::fs::read_to_string(Path::new("/proc").join(pid).join("status"));
    status.is_ok_and(|status| !status.contains("State:\tZ"))
}

//! The example `ingest` as its users run it: a process on a directory tree, interrupted, killed and run again.
//!
//! It is Linux only: it sends signals, makes names that are not UTF-8, and asks `sha256sum` for its opinion. The example must be
//! built: `cargo test` does so, `cargo test --test ingest` alone does not.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a test")]

use std::collections::hash_map::RandomState;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::ffi::OsStr;
use std::fs;
use std::hash::{BuildHasher, Hasher};
use std::io::{BufRead, BufReader, Read};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

/// Nothing here takes longer on the slowest machine.
const PATIENCE: Duration = Duration::from_secs(120);

#[test]
fn each_file_has_one_line_and_a_sum_that_sha256sum_accepts() {
    let tree = Tree::new();
    for name in ODD_NAMES {
        tree.write_bytes(name, name);
    }
    tree.write("a/deep/one", "the same words\nin two lines\n");
    tree.write("a/deep/two", "the same words\nin two lines\n");
    tree.write("binary", "\0\u{1}\u{2}");
    std::os::unix::fs::symlink("binary", tree.path("link")).unwrap();

    let run = tree.run(&[]);
    assert_eq!(run.code, 0, "{run:?}");
    assert!(
        run.says("15 files found: 15 done now, 0 done before, 0 failed"),
        "{run:?}"
    );
    assert!(run.says("1 duplicates with 28 B"), "{run:?}");
    tree.verify();
    let manifest = tree.manifest();
    let one = &manifest[&b"a/deep/one"[..]];
    assert_eq!(
        (&one["kind"], &one["lines"], &one["words"]),
        (&"text".into(), &2.into(), &6.into())
    );
    let binary = &manifest[&b"binary"[..]];
    assert_eq!(
        (&binary["kind"], binary.get("lines")),
        (&"binary".into(), None)
    );
}

#[test]
fn a_second_run_does_nothing_again_and_a_changed_file_is_read_again() {
    let tree = Tree::new();
    tree.fill(20);
    assert_eq!(tree.run(&[]).code, 0);
    let before = tree.manifest();

    let second = tree.run(&[]);
    assert!(
        second.says("20 files found: 0 done now, 20 done before, 0 failed"),
        "{second:?}"
    );
    assert_eq!(tree.manifest(), before);

    tree.write("file 3", "changed");
    tree.write("new", "new");
    fs::remove_file(tree.path("file 4")).unwrap();
    let third = tree.run(&[]);
    assert!(
        third.says("20 files found: 2 done now, 18 done before, 0 failed"),
        "{third:?}"
    );
    tree.verify();
    let after = tree.manifest();
    assert_ne!(
        after[&b"file 3"[..]]["sha256"],
        before[&b"file 3"[..]]["sha256"]
    );
    assert_eq!(after[&b"file 5"[..]], before[&b"file 5"[..]]);
}

#[test]
fn a_file_that_was_away_comes_back() {
    let tree = Tree::new();
    tree.fill(5);
    assert_eq!(tree.run(&[]).code, 0);
    // Twice, since the second key is not the first.
    for _ in 0..2 {
        let away = tree.dir.path().join("away");
        fs::rename(tree.path("file 1"), &away).unwrap();
        assert_eq!(tree.run(&[]).code, 0);
        tree.verify();
        fs::rename(&away, tree.path("file 1")).unwrap();
        let back = tree.run(&[]);
        assert!(
            back.says("5 files found: 1 done now, 4 done before, 0 failed"),
            "{back:?}"
        );
        tree.verify();
    }
}

#[test]
fn a_lost_or_damaged_manifest_is_made_whole() {
    let tree = Tree::new();
    tree.fill(8);
    assert_eq!(tree.run(&[]).code, 0);
    let path = tree.state("manifest.jsonl");
    let whole = fs::read_to_string(&path).unwrap();
    let lines: Vec<&str> = whole.lines().collect();

    // The newest line is torn.
    fs::write(&path, &whole[..whole.len() - 10]).unwrap();
    assert!(
        tree.run(&[])
            .says("8 files found: 1 done now, 7 done before")
    );
    tree.verify();
    // A line in the middle is not one.
    fs::write(&path, [lines[0], "\0\0\0", lines[2], ""].join("\n")).unwrap();
    assert!(
        tree.run(&[])
            .says("8 files found: 6 done now, 2 done before")
    );
    tree.verify();
    // All of it is gone.
    fs::remove_file(&path).unwrap();
    assert!(
        tree.run(&[])
            .says("8 files found: 8 done now, 0 done before")
    );
    tree.verify();
    // The queue is gone, and another begins to count at 1.
    for name in ["jobs.db", "jobs.db-owner"] {
        fs::remove_file(tree.state(name)).unwrap();
    }
    let anew = tree.run(&[]);
    assert!(
        anew.says("8 files found: 8 done now, 0 done before"),
        "{anew:?}"
    );
    assert!(
        anew.stderr.contains("made with another database"),
        "{anew:?}"
    );
    tree.verify();
}

#[test]
fn a_file_that_cannot_be_read_fails_alone_and_is_tried_again() {
    let tree = Tree::new();
    tree.fill(12);
    let (gone, swapped) = (tree.path("gone"), tree.path("swapped"));
    for name in ["gone", "swapped"] {
        tree.sparse(name, 3 << 30);
    }
    // Everything is enqueued then, and neither of the large files has been digested.
    let mut process = Process::start(&tree, &["--workers", "1"]);
    process.wait_for(" of 14 files,");
    process.signal(Signal::INT);
    assert_eq!(process.end().code, 130);
    let away = tree.dir.path().join("away");
    fs::rename(&gone, &away).unwrap();
    fs::remove_file(&swapped).unwrap();
    fs::create_dir(&swapped).unwrap();

    let run = tree.run(&[]);
    assert_eq!(run.code, 1, "{run:?}");
    assert!(
        run.says("12 files found") && run.says(", 2 failed\n"),
        "{run:?}"
    );
    assert!(run.says("  gone: No such file or directory"), "{run:?}");
    assert!(
        run.says("  swapped: it is no regular file any more"),
        "{run:?}"
    );
    tree.verify();
    // What is not there any more is nobody's failure.
    assert_eq!(tree.run(&[]).code, 0);
    // It is back in the state in which it could not be read.
    fs::rename(away, gone).unwrap();
    let again = tree.run(&[]);
    assert_eq!(again.code, 0, "{again:?}");
    assert!(
        again.says("13 files found: 1 done now, 12 done before, 0 failed"),
        "{again:?}"
    );
}

#[test]
fn state_and_output_inside_the_tree_are_left_out_wherever_they_are() {
    let tree = Tree::new();
    tree.fill(3);
    fs::create_dir(tree.path("queue")).unwrap();
    let (db, out) = (tree.path("queue/q.db"), tree.root());
    let args = [
        "--db",
        db.to_str().unwrap(),
        "--out",
        out.to_str().unwrap(),
        "--workers",
        "3",
    ];
    for _ in 0..2 {
        let run = tree.run(&args);
        assert!(run.says("3 files found"), "{run:?}");
    }
    let sums = fs::read_to_string(tree.path("SHA256SUMS")).unwrap();
    assert_eq!(sums.lines().count(), 3);
}

#[test]
fn bad_usage_is_told_from_a_bad_tree() {
    let tree = Tree::new();
    for args in [&["--workers", "0"][..], &["--no-such-option"], &["a", "b"]] {
        assert_eq!(tree.run(args).code, 2);
    }
    let run = Process::start_in(&tree.path("not there"), &[]).end();
    assert_eq!(run.code, 2);
    assert!(run.stderr.contains("No such file or directory"), "{run:?}");
    let empty = tree.run(&[]);
    assert_eq!(empty.code, 0, "{empty:?}");
    assert!(empty.says("0 files found"), "{empty:?}");
}

#[test]
fn a_killed_digest_goes_on_where_it_was() {
    let tree = Tree::new();
    // As large as it takes for this machine not to be through with it before it has told of a saved position.
    let mut size = 1 << 30;
    loop {
        tree.sparse("big", size);
        let mut process = Process::start(&tree, &["--workers", "1"]);
        if process.saw("big at ") {
            process.signal(Signal::KILL);
            process.end();
            break;
        }
        size *= 4;
        assert!(size <= 64 << 30, "this machine digests 16 GiB in a second");
    }
    // Not in the way of a second process.
    let mut process = Process::start(&tree, &[]);
    let line = process.wait_for("big: digest resumed at ");
    let position: u64 = line.split(' ').nth(4).unwrap().parse().unwrap();
    assert!(position > 0 && position < size, "{line}");
    let other = tree.run(&[]);
    assert_eq!(other.code, 1, "{other:?}");
    assert!(other.stderr.contains("is running on"), "{other:?}");

    let run = process.end();
    assert_eq!(run.code, 0, "{run:?}");
    tree.verify();
}

/// 12 rounds, 4 workers, 306 files, of which 6 are larger; the moment of the signal is drawn anew in each.
#[test]
fn interrupted_at_any_moment_the_manifest_holds_each_file_once() {
    let tree = Tree::new();
    tree.fill(300);
    for i in 0..6 {
        tree.sparse(&format!("large {i}"), 48 << 20);
    }
    let mut stopped = 0;
    for round in 0..12_u64 {
        let signal = if round % 3 == 0 {
            Signal::INT
        } else {
            Signal::KILL
        };
        let wait = Duration::from_micros(RandomState::new().build_hasher().finish() % 400_000);
        let mut process = Process::start(&tree, &["--workers", "4"]);
        process.let_run(wait);
        process.signal(signal);
        let run = process.end();
        stopped += u32::from(run.code != 0);
        assert!(
            [0, 130, 137].contains(&run.code),
            "round {round}, {signal:?} after {wait:?}: {run:?}"
        );
        tree.verify_partial(&format!("round {round}, {signal:?} after {wait:?}"));
    }
    assert!(stopped > 3, "only {stopped} of 12 rounds were cut short");
    let run = tree.run(&[]);
    assert_eq!(run.code, 0, "{run:?}");
    assert!(run.says("306 files found"), "{run:?}");
    tree.verify();
}

#[test]
fn after_ctrl_c_it_says_how_to_go_on() {
    let tree = Tree::new();
    tree.sparse("big", 8 << 30);
    let mut process = Process::start(&tree, &[]);
    process.wait_for("0 of 1 files");
    process.signal(Signal::INT);
    let run = process.end();
    assert_eq!(run.code, 130, "{run:?}");
    assert!(run.stderr.contains("Run it again to go on."), "{run:?}");
    assert_eq!(run.stdout, "", "no summary of what is not done");
}

const ODD_NAMES: [&[u8]; 12] = [
    b"with space",
    b" leading and trailing ",
    b"new\nline",
    b"back\\slash\\n",
    b"return\r",
    b"quote'\"",
    "umlaut \u{e4} \u{1f980}".as_bytes(),
    b"not \xff utf-8 \xc3",
    b"-",
    b"--check",
    b"*star",
    b"",
];

/// A directory for one test: the tree in it, and room beside the tree.
struct Tree {
    dir: TempDir,
}

impl Tree {
    fn new() -> Tree {
        let tree = Tree {
            dir: tempfile::tempdir().unwrap(),
        };
        fs::create_dir(tree.root()).unwrap();
        tree
    }

    fn root(&self) -> PathBuf {
        self.dir.path().join("tree")
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root().join(name)
    }

    fn bytes_path(&self, name: &[u8]) -> PathBuf {
        self.root().join(OsStr::from_bytes(name))
    }

    fn state(&self, name: &str) -> PathBuf {
        self.root().join(".stepwell").join(name)
    }

    fn write(&self, name: &str, content: &str) {
        self.write_bytes(name.as_bytes(), content.as_bytes());
    }

    fn write_bytes(&self, name: &[u8], content: &[u8]) {
        // An empty name stands for an empty file.
        let path = self.bytes_path(if name.is_empty() { b"empty" } else { name });
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    fn fill(&self, count: usize) {
        for i in 0..count {
            self.write(
                &format!("file {i}"),
                &format!("{} words\n", "many ".repeat(i)),
            );
        }
    }

    fn sparse(&self, name: &str, size: u64) {
        fs::File::create(self.path(name))
            .unwrap()
            .set_len(size)
            .unwrap();
    }

    fn run(&self, args: &[&str]) -> Run {
        Process::start(self, args).end()
    }

    /// The path of every regular file, but for the state of the program.
    fn files(&self) -> BTreeSet<Vec<u8>> {
        let (mut files, mut dirs) = (BTreeSet::new(), vec![self.root()]);
        while let Some(dir) = dirs.pop() {
            for entry in fs::read_dir(dir).unwrap().map(Result::unwrap) {
                let kind = entry.file_type().unwrap();
                if kind.is_dir() && entry.file_name() != ".stepwell" {
                    dirs.push(entry.path());
                } else if kind.is_file() {
                    let path = entry.path().strip_prefix(self.root()).unwrap().to_owned();
                    files.insert(path.into_os_string().into_vec());
                }
            }
        }
        files
    }

    /// The lines of the manifest by their paths. Each path is there once.
    fn manifest(&self) -> BTreeMap<Vec<u8>, Value> {
        let text = fs::read_to_string(self.state("manifest.jsonl")).unwrap();
        let mut lines = BTreeMap::new();
        for line in text.lines() {
            let line: Value = serde_json::from_str(line).unwrap();
            let path = path_of(&line);
            assert!(
                lines.insert(path, line.clone()).is_none(),
                "a path is there twice: {line}"
            );
        }
        lines
    }

    /// What a finished run promises.
    fn verify(&self) {
        let manifest = self.manifest();
        assert_eq!(
            manifest.keys().cloned().collect::<BTreeSet<_>>(),
            self.files()
        );
        let check = Command::new("sha256sum")
            .args(["--strict", "-c", ".stepwell/SHA256SUMS"])
            .current_dir(self.root())
            .output();
        let check = check.expect("sha256sum is there");
        if !manifest.is_empty() {
            assert!(check.status.success(), "{check:?}");
        }
        let sums = fs::read(self.state("SHA256SUMS")).unwrap();
        let sums: BTreeMap<Vec<u8>, String> = sums
            .split(|byte| *byte == b'\n')
            .filter_map(sum_of)
            .collect();
        let digest = |line: &Value| line["sha256"].as_str().unwrap().to_owned();
        assert_eq!(
            sums,
            manifest
                .into_iter()
                .map(|(path, line)| (path, digest(&line)))
                .collect()
        );
    }

    /// What holds at any moment: no line is there twice, and only the last one may be torn.
    fn verify_partial(&self, when: &str) {
        let text = fs::read(self.state("manifest.jsonl")).unwrap_or_default();
        let whole = text
            .iter()
            .rposition(|byte| *byte == b'\n')
            .map_or(0, |end| end + 1);
        let (mut jobs, mut paths) = (HashSet::new(), HashSet::new());
        for line in text[..whole].split_inclusive(|byte| *byte == b'\n') {
            let line: Value =
                serde_json::from_slice(line).unwrap_or_else(|error| panic!("{when}: {error}"));
            assert!(
                jobs.insert(line["job"].as_i64()),
                "{when}: a job is there twice: {line}"
            );
            assert!(
                paths.insert(path_of(&line)),
                "{when}: a path is there twice: {line}"
            );
        }
    }
}

fn path_of(line: &Value) -> Vec<u8> {
    match line.get("path_hex").and_then(Value::as_str) {
        Some(digits) => (0..digits.len() / 2)
            .map(|i| u8::from_str_radix(&digits[2 * i..][..2], 16).unwrap())
            .collect(),
        None => line["path"].as_str().unwrap().as_bytes().to_vec(),
    }
}

/// A line of SHA256SUMS, unescaped.
fn sum_of(line: &[u8]) -> Option<(Vec<u8>, String)> {
    let (line, is_escaped) = line
        .strip_prefix(b"\\")
        .map_or((line, false), |line| (line, true));
    let (digest, name) = line.split_at_checked(64)?;
    let name = name.strip_prefix(b"  ")?;
    let mut bytes = name.strip_prefix(b"./").unwrap_or(name).iter();
    let mut name = Vec::new();
    while let Some(byte) = bytes.next() {
        name.push(match byte {
            b'\\' if is_escaped => match bytes.next()? {
                b'n' => b'\n',
                b'r' => b'\r',
                other => *other,
            },
            other => *other,
        });
    }
    Some((name, String::from_utf8(digest.to_vec()).ok()?))
}

/// How a process ended.
#[derive(Debug)]
struct Run {
    /// 128 and the signal, if that was its end.
    code: i32,
    stdout: String,
    stderr: String,
}

impl Run {
    fn says(&self, text: &str) -> bool {
        self.stdout.contains(text)
    }
}

struct Process {
    child: Child,
    lines: Receiver<String>,
    stderr: String,
}

impl Process {
    fn start(tree: &Tree, args: &[&str]) -> Process {
        Process::start_in(&tree.root(), args)
    }

    fn start_in(dir: &Path, args: &[&str]) -> Process {
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
    fn find(&mut self, text: &str) -> Option<String> {
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

    fn saw(&mut self, text: &str) -> bool {
        self.find(text).is_some()
    }

    fn wait_for(&mut self, text: &str) -> String {
        self.find(text)
            .unwrap_or_else(|| panic!("it ended without {text:?}: {}", self.stderr))
    }

    /// Lets it run for so long, or until its end.
    fn let_run(&mut self, time: Duration) {
        let started = self.stderr.len();
        while let Ok(line) = self.lines.recv_timeout(time) {
            self.stderr += &line;
            self.stderr.push('\n');
            if self.stderr.len() > started + 100_000 {
                return;
            }
        }
    }

    fn signal(&self, signal: Signal) {
        // It may have ended by itself, but it has not been waited for: its id is still its own.
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    fn end(mut self) -> Run {
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

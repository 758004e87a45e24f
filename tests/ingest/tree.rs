//! A directory tree for one test, and what must hold of what the example has made of it.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;
use std::process::Command;

use serde_json::Value;
use stepwell::Client;
use tempfile::TempDir;

use crate::process::{Process, Run};

/// A directory for one test: the tree in it, and room beside the tree.
pub(crate) struct Tree {
    pub(crate) dir: TempDir,
}

impl Tree {
    pub(crate) fn new() -> Tree {
        let tree = Tree {
            dir: tempfile::tempdir().unwrap(),
        };
        fs::create_dir(tree.root()).unwrap();
        tree
    }

    pub(crate) fn root(&self) -> PathBuf {
        self.dir.path().join("tree")
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.root().join(name)
    }

    pub(crate) fn bytes_path(&self, name: &[u8]) -> PathBuf {
        self.root().join(OsStr::from_bytes(name))
    }

    pub(crate) fn state(&self, name: &str) -> PathBuf {
        self.root().join(".stepwell").join(name)
    }

    pub(crate) fn write(&self, name: &str, content: &str) {
        self.write_bytes(name.as_bytes(), content.as_bytes());
    }

    pub(crate) fn write_bytes(&self, name: &[u8], content: &[u8]) {
        // An empty name stands for an empty file.
        let path = self.bytes_path(if name.is_empty() { b"empty" } else { name });
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    pub(crate) fn fill(&self, count: usize) {
        for i in 0..count {
            self.write(
                &format!("file {i}"),
                &format!("{} words\n", "many ".repeat(i)),
            );
        }
    }

    pub(crate) fn sparse(&self, name: &str, size: u64) {
        fs::File::create(self.path(name))
            .unwrap()
            .set_len(size)
            .unwrap();
    }

    pub(crate) fn run(&self, args: &[&str]) -> Run {
        Process::start(self, args).end()
    }

    /// The path of every regular file, but for the state of the program.
    pub(crate) fn files(&self) -> BTreeSet<Vec<u8>> {
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
    pub(crate) fn manifest(&self) -> BTreeMap<Vec<u8>, Value> {
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
    pub(crate) fn verify(&self) {
        let manifest = self.manifest();
        let client = Client::open(self.state("jobs.db")).unwrap();
        assert_eq!(client.check().unwrap(), Vec::<String>::new());
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
    pub(crate) fn verify_partial(&self, when: &str) {
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

//! The example `ingest` as its users run it: a process on a directory tree, interrupted, killed and run again.
//!
//! It is Linux only: it sends signals, makes names that are not UTF-8, and asks `sha256sum` for its opinion. The example must be
//! built: `cargo test` does so, `cargo test --test ingest` alone does not.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a test")]

mod manifest;
mod process;
mod summary;
mod tree;

use std::collections::hash_map::RandomState;
use std::fs;
use std::hash::{BuildHasher, Hasher};
use std::time::Duration;

use rustix::process::Signal;
use stepwell::{Client, JobQueue};

use process::Process;
use tree::Tree;

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

/// What a kill between an append and its commit leaves behind, for every file at once: the manifest is newer than the queue.
#[test]
fn a_repeated_publish_writes_nothing_twice() {
    let tree = Tree::new();
    tree.fill(40);
    // The last job is held back: it would put the manifest in order, and hide what we look for.
    fs::create_dir(tree.state("")).unwrap();
    let queue = JobQueue::builder(tree.state("jobs.db"))
        .workers(0)
        .open()
        .unwrap();
    queue.enqueue("sums", &()).unwrap();
    queue.pause().unwrap();
    queue.pause_type("sums").unwrap();
    queue.shutdown(PATIENCE).unwrap();
    drop(queue);

    let stopped_when = |text| {
        let mut process = Process::start(&tree, &[]);
        process.wait_for(text);
        process.signal(Signal::INT);
        assert_eq!(process.end().code, 130);
    };
    stopped_when("0 of 40 files, 0 B, the queue is paused");
    let older = tree.dir.path().join("older.db");
    fs::copy(tree.state("jobs.db"), &older).unwrap();
    let resume = || {
        Client::open(tree.state("jobs.db"))
            .unwrap()
            .resume()
            .unwrap()
    };
    resume();
    stopped_when("39 of 40 files");
    assert_eq!(tree.manifest().len(), 40);

    fs::copy(&older, tree.state("jobs.db")).unwrap();
    resume();
    stopped_when("39 of 40 files");
    assert_eq!(tree.manifest().len(), 40);
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
    let size = killed_in_its_digest(&tree);
    // Not in the way of a second process.
    let mut process = Process::start(&tree, &[]);
    let line = process.wait_for("big: digest resumed at ");
    let position: u64 = line.split(' ').nth(4).unwrap().parse().unwrap();
    assert!(position > 0 && position < size, "{line}");
    // It must not be through with the rest before the other one has looked.
    process.signal(Signal::STOP);
    let other = tree.run(&[]);
    process.signal(Signal::CONT);
    assert_eq!(other.code, 1, "{other:?}");
    assert!(other.stderr.contains("is running on"), "{other:?}");

    let run = process.end();
    assert_eq!(run.code, 0, "{run:?}");
    tree.verify();
}

/// Leaves a large file `big` behind whose digest a kill has cut short, and tells its size.
fn killed_in_its_digest(tree: &Tree) -> u64 {
    // As large as it takes for this machine not to be through with it before it has told of a saved position.
    let mut size = 1 << 30;
    loop {
        tree.sparse("big", size);
        let mut process = Process::start(tree, &["--workers", "1"]);
        if process.saw("big at ") {
            process.signal(Signal::KILL);
            process.end();
            return size;
        }
        size *= 4;
        assert!(size <= 64 << 30, "this machine digests 16 GiB in a second");
    }
}

/// 12 rounds, 4 workers, 306 files, of which 6 are larger; the moment of the signal is drawn anew in each. A round that comes to
/// its end leaves the next one to start over.
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
        assert!(
            [0, 130, 137].contains(&run.code),
            "round {round}, {signal:?} after {wait:?}: {run:?}"
        );
        tree.verify_partial(&format!("round {round}, {signal:?} after {wait:?}"));
        if run.code == 0 {
            tree.verify();
            fs::remove_dir_all(tree.state("")).unwrap();
        } else {
            stopped += 1;
        }
    }
    assert!(stopped > 2, "only {stopped} of 12 rounds were cut short");
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

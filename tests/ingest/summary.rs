//! What the summary says of files that were not there to be read: its sums are those of the files that the run has found.

use std::fs;

use rustix::process::Signal;

use crate::killed_in_its_digest;
use crate::process::Process;
use crate::tree::Tree;

/// The bug: 12 files were found, 12 done, and 2 failed, which were not there to be found.
#[test]
fn a_file_that_was_gone_before_it_was_read_is_nobody_s_failure() {
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
    assert_eq!(run.code, 0, "{run:?}");
    assert!(
        run.says("12 files found") && run.says(" done before, 0 failed\n"),
        "{run:?}"
    );
    tree.verify();
    // It is back in the state in which it could not be read.
    fs::rename(away, gone).unwrap();
    let again = tree.run(&[]);
    assert_eq!(again.code, 0, "{again:?}");
    assert!(
        again.says("13 files found: 1 done now, 12 done before, 0 failed"),
        "{again:?}"
    );
    tree.verify();
}

/// The bug: the job of the old state told that the file had changed, which the job of the new state had ingested.
#[test]
fn a_file_that_has_changed_since_a_kill_is_done_and_has_not_failed() {
    let tree = Tree::new();
    killed_in_its_digest(&tree);
    tree.write("big", "small now");
    let run = tree.run(&[]);
    assert_eq!(run.code, 0, "{run:?}");
    assert!(
        run.says("1 files found: 1 done now, 0 done before, 0 failed"),
        "{run:?}"
    );
    tree.verify();
}

#[test]
fn a_file_that_changes_while_it_is_read_has_failed_and_is_done_by_the_next_run() {
    let tree = Tree::new();
    tree.fill(3);
    // No machine is through with it when it has told how far it is.
    tree.sparse("big", 1 << 40);
    let mut process = Process::start(&tree, &[]);
    process.wait_for("big at ");
    tree.write("big", "small now");
    let run = process.end();
    assert_eq!(run.code, 1, "{run:?}");
    assert!(
        run.says("4 files found: 3 done now, 0 done before, 1 failed\n"),
        "{run:?}"
    );
    assert!(
        run.says("1 failed:\n  big: it changed while it was read\n"),
        "{run:?}"
    );
    let next = tree.run(&[]);
    assert_eq!(next.code, 0, "{next:?}");
    assert!(
        next.says("4 files found: 1 done now, 3 done before, 0 failed\n"),
        "{next:?}"
    );
    tree.verify();
}

#[test]
fn a_file_that_goes_while_it_is_read_is_told_and_adds_up() {
    let tree = Tree::new();
    tree.fill(3);
    tree.sparse("big", 1 << 40);
    let mut process = Process::start(&tree, &[]);
    process.wait_for("big at ");
    // It must not tell of the change before the file is gone.
    process.signal(Signal::STOP);
    // What is open would be read to its end.
    tree.sparse("big", 0);
    fs::remove_file(tree.path("big")).unwrap();
    process.signal(Signal::CONT);
    let run = process.end();
    assert_eq!(run.code, 0, "{run:?}");
    assert!(
        run.says("4 files found: 3 done now, 0 done before, 0 failed, 1 gone meanwhile\n"),
        "{run:?}"
    );
    tree.verify();
}

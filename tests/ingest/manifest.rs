//! Whose manifest it is that lies there.

use std::fs;

use stepwell::Client;

use crate::tree::Tree;

/// The bug: where no line could be read as one of ours, all of it was taken for torn, and the file was emptied.
#[test]
fn a_manifest_of_another_program_is_refused_and_left_alone() {
    let tree = Tree::new();
    tree.fill(2);
    let out = tree.dir.path().join("out");
    fs::create_dir(&out).unwrap();
    let manifest = out.join("manifest.jsonl");
    for foreign in [
        "{\"url\":\"https://example.com/\"}\n{\"url\":\"https://example.org/\"}\n",
        "{\"url\":\"https://example.com/\"}",
        "{\"job\":1,\"image\":\"disk.img\"}\n",
        "some\ntext",
    ] {
        fs::write(&manifest, foreign).unwrap();
        let run = tree.run(&["--out", out.to_str().unwrap()]);
        assert_eq!(run.code, 2, "{run:?}");
        assert!(
            run.stderr.contains("manifest.jsonl: ")
                && run
                    .stderr
                    .contains("move it away, or choose another place with --out"),
            "{run:?}"
        );
        assert_eq!(fs::read_to_string(&manifest).unwrap(), foreign);
        assert_eq!(
            fs::read_dir(&out).unwrap().count(),
            1,
            "nothing is put beside it"
        );
    }
}

#[test]
fn a_manifest_of_which_a_crash_has_left_no_whole_line_is_made_anew() {
    let tree = Tree::new();
    tree.fill(2);
    assert_eq!(tree.run(&[]).code, 0);
    let path = tree.state("manifest.jsonl");
    let whole = fs::read_to_string(&path).unwrap();
    let first = whole.lines().next().unwrap();
    // A process died in its first append; the power failed before the content of a file was on the disk.
    let torn = [
        &first[..3],
        &first[..first.len() - 1],
        &"\0".repeat(100_000),
        "\0\0\n",
        "",
    ];
    for left in torn {
        fs::write(&path, left).unwrap();
        let run = tree.run(&[]);
        assert_eq!(run.code, 0, "{left:.80}: {run:?}");
        assert!(
            run.says("2 files found: 2 done now, 0 done before"),
            "{left:.80}: {run:?}"
        );
        tree.verify();
    }
}

/// The bug: the queue keeps 10,000 completed jobs. Where the files of all the newer ones were gone, the newest line was one of a
/// job that it had forgotten, and the manifest was set aside as that of another queue.
#[test]
fn a_manifest_whose_jobs_the_queue_has_forgotten_is_still_its_own() {
    let tree = Tree::new();
    tree.fill(5);
    assert_eq!(tree.run(&[]).code, 0);
    let client = Client::open(tree.state("jobs.db")).unwrap();
    for line in tree.manifest().values() {
        let id = line["job"].to_string().parse().unwrap();
        client.delete(id).unwrap();
    }
    drop(client);
    let run = tree.run(&[]);
    assert_eq!(run.code, 0, "{run:?}");
    assert!(!run.stderr.contains("another database"), "{run:?}");
    assert!(
        run.says("5 files found: 0 done now, 5 done before"),
        "{run:?}"
    );
    tree.verify();
}

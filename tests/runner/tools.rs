//! Everything beside running: bad lines, lists, events, bulk retries, checks.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};

use serde_json::json;
use stepwell::JobStatus;

use crate::bench::{Bench, example};

const GOOD: &str = r#"{"phases":[{"name":"a","run":"true"}]}"#;
const BAD: &str = r#"{"phases":[{"name":"a","run":"exit 100"}]}"#;

#[test]
fn of_a_file_with_a_bad_line_nothing_is_enqueued() {
    let bench = Bench::new();
    let run = bench.runner_with(&format!("{GOOD}\n{GOOD}x\n{GOOD}\n"), &["submit", "-"]);
    assert_eq!((run.code, run.stdout.as_str()), (2, ""));
    assert_eq!(
        run.stderr,
        "error: standard input: line 2: column 39: trailing characters; nothing is enqueued\n"
    );
    let run = bench.runner_with(&format!("{GOOD}\n{{}}\n"), &["run", "-"]);
    assert_eq!(run.code, 2);
    assert!(
        run.stderr.contains("line 2: ") && run.stderr.contains("missing field `phases`"),
        "{run:?}"
    );
    let run = bench.runner(&["submit", "no-such-file"]);
    assert_eq!(run.code, 2);
    assert!(
        run.stderr
            .starts_with("error: no-such-file: cannot be read, nothing is enqueued: "),
        "{run:?}"
    );
    assert!(!bench.path("jobs.db").exists(), "not even a file was made");
}

#[test]
fn bad_usage_is_told_and_makes_no_file() {
    let bench = Bench::new();
    for args in [
        &["list"][..],
        &["show", "1"],
        &["cancel", "1"],
        &["stats"],
        &["check"],
        &["pause"],
        &["events"],
    ] {
        let run = bench.runner(args);
        assert_eq!(run.code, 2, "{args:?}: {run:?}");
        assert!(run.stderr.contains("there is no such file"), "{run:?}");
    }
    assert!(!bench.path("jobs.db").exists());
    assert_eq!(bench.start_bare(&["list"]).end().code, 2, "no --db");
    bench.submit(GOOD);
    for args in [
        &["list", "--status", "done"][..],
        &["show", "x"],
        &["retry"],
        &["retry", "--status", "failed"],
        &["work", "--workers", "0"],
        &["retry", "1", "--status", "failed", "--expect", "1"],
        &["nonsense"],
        &["work", "--shutdown-timeout", "-1"],
    ] {
        let run = bench.runner(args);
        assert_eq!(run.code, 2, "{args:?}: {run:?}");
        assert!(!run.stderr.is_empty());
    }
    for args in [
        &["show", "77"][..],
        &["explain", "77"],
        &["delete", "77"],
        &["retry", "77"],
        &["cancel", "77"],
    ] {
        let run = bench.runner(args);
        assert_eq!(run.code, 1, "{args:?}: {run:?}");
        let says = "error: job 77: there is no such job: list shows the jobs that there are";
        assert!(run.stderr.starts_with(says), "{run:?}");
    }
}

#[test]
fn a_file_that_is_no_queue_is_told_and_left_alone() {
    let bench = Bench::new();
    let text = "Dear diary, ".repeat(100);
    std::fs::write(bench.path("jobs.db"), &text).unwrap();
    std::fs::write(bench.path("jobs.jsonl"), GOOD).unwrap();
    for args in [
        &["list"][..],
        &["submit", "jobs.jsonl"],
        &["run", "jobs.jsonl"],
        &["work", "--until-idle"],
        &["check"],
    ] {
        let run = bench.runner(args);
        assert_eq!((run.code, &*run.stdout), (2, ""), "{args:?}: {run:?}");
        assert!(
            run.stderr
                .contains("it is no SQLite file, name another one"),
            "{run:?}"
        );
    }
    assert_eq!(bench.read("jobs.db"), text);
}

#[test]
fn a_unique_key_stands_for_the_job_that_is_there() {
    let bench = Bench::new();
    let line = r#"{"phases":[{"name":"a","run":"true"}],"unique_key":"k"}"#;
    let run = bench
        .runner_with(
            &format!("{line}\n{line}\n{GOOD}\n"),
            &["submit", "-", "--json"],
        )
        .ok();
    let told =
        [(1, true), (1, false), (2, true)].map(|(id, is_new)| json!({"id": id, "is_new": is_new}));
    assert_eq!(run.json(), told);
    assert_eq!(
        run.stderr,
        "2 jobs enqueued, 1 there already by their unique keys\n"
    );
}

#[test]
fn failed_jobs_are_tried_again_only_if_they_are_so_many() {
    let bench = Bench::new();
    let lines = [BAD, GOOD, BAD, BAD].join("\n");
    assert_eq!(bench.runner_with(&lines, &["run", "-"]).code, 1);
    let refused = bench.runner(&["retry", "--status", "failed", "--expect", "2"]);
    assert_eq!(refused.code, 1);
    assert!(
        refused.stderr.contains("3 jobs are failed, not 2"),
        "{refused:?}"
    );
    let stats = |bench: &Bench| {
        let stats = bench.client().stats().unwrap();
        (stats.pending, stats.failed)
    };
    assert_eq!(stats(&bench), (0, 3));
    let other = bench
        .runner(&[
            "retry", "--status", "failed", "--type", "other", "--expect", "0",
        ])
        .ok();
    assert_eq!(other.stdout, "0 jobs tried again\n");
    let done = bench
        .runner(&["retry", "--status", "failed", "--expect", "3", "--json"])
        .ok();
    assert_eq!(done.json(), [json!({"retried": 3})]);
    assert_eq!(stats(&bench), (3, 0));
}

#[test]
fn jobs_are_cancelled_and_deleted_together_only_if_they_are_so_many() {
    let bench = Bench::new();
    bench.submit(&[GOOD, GOOD].join("\n"));
    let all = |verb, status, count| {
        let args = [
            verb, "--status", status, "--type", "command", "--expect", count,
        ];
        bench.runner(&args)
    };
    let refused = all("cancel", "pending", "3");
    assert_eq!(refused.code, 1, "{refused:?}");
    assert!(
        refused
            .stderr
            .contains("2 jobs of type \"command\" are pending, not 3"),
        "{refused:?}"
    );
    assert_eq!(
        all("cancel", "pending", "2").ok().stdout,
        "2 jobs cancelled\n"
    );
    assert_eq!(all("delete", "cancelled", "1").code, 1);
    assert_eq!(bench.client().stats().unwrap().cancelled, 2);
    assert_eq!(
        all("delete", "cancelled", "2").ok().stdout,
        "2 jobs deleted\n"
    );
    assert_eq!(bench.client().stats().unwrap().cancelled, 0);
}

#[test]
fn lists_and_counts_are_tables_or_json() {
    let bench = Bench::new();
    assert_eq!(
        bench
            .runner_with(&[GOOD, BAD, GOOD].join("\n"), &["run", "-"])
            .code,
        1
    );
    bench.submit(GOOD);
    let list = bench.runner(&["list"]).ok().stdout;
    let lines: Vec<_> = list.lines().collect();
    assert!(
        lines[0].starts_with("ID  TYPE     STATUS     PHASES"),
        "{list}"
    );
    assert!(
        lines[1].starts_with(" 4  command  pending    0/1"),
        "{list}"
    );
    assert_eq!(lines[5], "4 jobs");
    assert!(!list.contains('\x1b'), "no colour but on a terminal");
    let some = bench.runner(&["list", "--limit", "2"]).ok().stdout;
    assert!(
        some.ends_with("2 jobs, and more: raise --limit\n"),
        "{some}"
    );
    let ids = |args: &[&str]| {
        bench
            .runner(args)
            .ok()
            .json()
            .iter()
            .map(|job| job["id"].as_i64().unwrap())
            .collect::<Vec<_>>()
    };
    assert_eq!(ids(&["list", "--json", "--status", "failed"]), [2]);
    assert_eq!(ids(&["list", "--json", "--type", "command"]), [4, 3, 2, 1]);
    assert!(ids(&["list", "--json", "--type", "other"]).is_empty());
    let stats = bench.runner(&["stats", "--json"]).ok().json().remove(0);
    assert_eq!(
        json!([
            stats["pending"],
            stats["completed"],
            stats["failed"],
            stats["owner_pid"]
        ]),
        json!([1, 2, 1, null])
    );
    let stats = bench.runner(&["stats"]).ok().stdout;
    assert!(
        stats.contains("completed     2\n") && stats.contains("4 jobs; no process runs jobs"),
        "{stats}"
    );
    bench.runner(&["delete", "2"]).ok();
    let refused = bench.runner(&["delete", "4"]);
    assert_eq!(refused.code, 1, "it is not over: {refused:?}");
    assert_eq!(ids(&["list", "--json"]), [4, 3, 1]);
}

#[test]
fn show_has_the_whole_job() {
    let bench = Bench::new();
    let line = r#"{"phases":[{"name":"a","run":"echo 1"},{"name":"b","run":"echo bad >&2; exit 100"},{"name":"c","run":"true"}],"priority":7}"#;
    assert_eq!(bench.runner_with(line, &["run", "-"]).code, 1);
    let job = bench.show("1".parse().unwrap());
    assert_fields(
        &job,
        "id type status attempt crash_count priority run_at created_at started_at finished_at webhook_sent phases errors \
         interruption deadline phases_done phase_count input unique_key",
    );
    assert_eq!(
        (&job["priority"], &job["webhook_sent"]),
        (&json!(7), &json!(false))
    );
    let statuses: Vec<_> = job["phases"]
        .as_array()
        .unwrap()
        .iter()
        .map(|phase| phase["status"].as_str().unwrap())
        .collect();
    assert_eq!(statuses, ["completed", "failed", "skipped"]);
    assert_fields(
        &job["phases"][1],
        "name version status attempt started_at finished_at result error",
    );
    assert!(job["phases"][1]["started_at"].is_i64(), "{job}");
    let error = &job["errors"][0];
    let mut bare = error.clone();
    // Where it was wanted.
    bare.as_object_mut().unwrap().remove("backtrace");
    assert_fields(&bare, "phase attempt at kind message");
    assert_eq!(
        json!([
            error["phase"],
            error["attempt"],
            error["kind"],
            error["message"]
        ]),
        json!(["b", 1, "error", "exit status 100: bad"])
    );
    let human = bench.runner(&["show", "1"]).ok().stdout;
    assert!(
        human.ends_with("job 1 is failed: 1 of 3 phases done\n"),
        "{human}"
    );
}

/// The fields of the contract come first; no other comes in unnoticed.
#[track_caller]
fn assert_fields(object: &serde_json::Value, fields: &str) {
    let object = object.as_object().unwrap();
    let expected: BTreeSet<&str> = fields.split(' ').collect();
    let found: BTreeSet<&str> = object.keys().map(String::as_str).collect();
    assert_eq!(found, expected);
}

#[test]
fn events_are_told_as_they_happen() {
    let bench = Bench::new();
    bench.submit(GOOD);
    let all = bench.runner(&["events", "--json"]).ok().json();
    assert_eq!(
        json!([all[0]["seq"], all[0]["event"], all[0]["job_id"]]),
        json!([1, "job:created", 1])
    );
    assert!(all[0]["at"].is_i64());
    let mut follower = bench.start(&["events", "--follow", "--after", "1"]);
    let mut lines = BufReader::new(follower.stdout()).lines();
    bench.runner(&["work", "--until-idle"]).ok();
    let told: Vec<String> = (0..4).map(|_| lines.next().unwrap().unwrap()).collect();
    for (line, event) in told.iter().zip([
        "job:started",
        "job:phase:started",
        "job:phase:completed",
        "job:completed",
    ]) {
        assert!(line.contains(event), "{line}");
    }
    let human = bench.runner(&["events"]).ok().stdout;
    assert!(human.ends_with("\n5 events\n"), "{human}");
}

#[test]
fn who_has_seen_enough_may_go() {
    let bench = Bench::new();
    bench.submit(&vec![GOOD; 5000].join("\n"));
    let mut list = bench.start(&["list", "--limit", "5000"]);
    let mut first = String::new();
    BufReader::new(list.stdout()).read_line(&mut first).unwrap();
    assert!(first.starts_with("  ID"), "{first}");
    // The pipe is closed now.
    let run = list.wait();
    assert_eq!(run, 0);
}

/// The bug: when the pipe was closed, `delete` stopped half-way, `run` forgot that a job had failed, and both answered 0.
#[test]
fn who_acts_does_all_of_it_whoever_reads_its_output() {
    let bench = Bench::new();
    // More than the buffer between us and the pipe holds.
    let ids: Vec<String> = bench
        .submit(&vec![GOOD; 500].join("\n"))
        .iter()
        .map(ToString::to_string)
        .collect();
    let unread = |verb, more: &[&str]| {
        let ids = ids.iter().map(String::as_str);
        let args: Vec<&str> = [verb, "--json"].into_iter().chain(ids).collect();
        let mut process = bench.start(&[&args, more].concat());
        drop(process.stdout());
        process.wait()
    };
    assert_eq!(unread("cancel", &[]), 0);
    assert_eq!(bench.client().stats().unwrap().cancelled, 500);
    assert_eq!(unread("retry", &[]), 0);
    assert_eq!(bench.client().stats().unwrap().pending, 500);
    assert_eq!(unread("cancel", &["501"]), 1, "there is no such job");
    assert_eq!(unread("delete", &["501"]), 1, "there is no such job");
    assert_eq!(bench.client().stats().unwrap().cancelled, 0);

    std::fs::write(bench.path("jobs.jsonl"), BAD).unwrap();
    let mut run = bench.start(&["run", "jobs.jsonl"]);
    drop(run.stdout());
    assert_eq!(run.wait(), 1, "its job has failed");
}

#[test]
fn an_output_that_cannot_be_written_is_told_when_all_is_done() {
    let bench = Bench::new();
    let ids = bench.submit(&vec![GOOD; 500].join("\n"));
    let full = std::fs::File::create("/dev/full").unwrap();
    let ids = ids.iter().map(ToString::to_string);
    let args: Vec<String> = ["--db", "jobs.db", "cancel", "--json"]
        .map(str::to_owned)
        .into_iter()
        .chain(ids)
        .collect();
    let run = std::process::Command::new(example("runner"))
        .args(args)
        .current_dir(bench.path(""))
        .stdout(full)
        .output()
        .unwrap();
    assert_eq!(run.status.code(), Some(1));
    let errors = String::from_utf8(run.stderr).unwrap();
    assert!(errors.starts_with("error: standard output: "), "{errors}");
    assert_eq!(bench.client().stats().unwrap().cancelled, 500);
}

#[test]
fn check_finds_what_is_broken() {
    let bench = Bench::new();
    let id = bench.submit(GOOD)[0];
    bench.runner(&["work", "--until-idle"]).ok();
    assert_eq!(bench.runner(&["check"]).ok().stdout, "the file is sound\n");
    let file = rusqlite::Connection::open(bench.path("jobs.db")).unwrap();
    file.pragma_update(None, "ignore_check_constraints", true)
        .unwrap();
    file.execute(
        "UPDATE job SET finished_at_ms = NULL WHERE id = ?1",
        [id.as_i64()],
    )
    .unwrap();
    drop(file);
    let run = bench.runner(&["check", "--json"]);
    assert_eq!(run.code, 1, "{run:?}");
    let broken = run.json();
    let broken = broken.iter().map(|line| line["broken"].as_str().unwrap());
    assert!(
        broken.into_iter().any(|line| line.contains("job 1")),
        "{run:?}"
    );
}

#[test]
fn a_job_that_waits_for_its_time_says_so() {
    let bench = Bench::new();
    let id = bench.submit(r#"{"phases":[{"name":"a","run":"true"}],"delay_ms":3600000}"#)[0];
    let why = bench
        .runner(&["explain", &id.to_string(), "--json"])
        .ok()
        .json()
        .remove(0);
    let reasons: Vec<_> = why["hindrances"]
        .as_array()
        .unwrap()
        .iter()
        .map(|hindrance| hindrance["reason"].clone())
        .collect();
    assert_eq!(reasons, ["no_owner", "not_due"]);
    assert_eq!(bench.client().status(id).unwrap(), Some(JobStatus::Pending));
}

//! Running jobs: killed, interrupted, cancelled and tried again.

use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::json;
use stepwell::{EventKind, JobStatus};

use crate::bench::{Bench, is_alive, wait_until};

/// Three phases; the second one waits while the file `wait` is there.
const THREE: &str = r#"{"phases": [
    {"name": "one", "run": "echo one >> ran; echo first"},
    {"name": "two", "run": "echo two >> ran; echo $$ >> pids; while [ -e wait ]; do sleep 0.02; done; echo $STEPWELL_RESULT_ONE and second"},
    {"name": "three", "run": "echo three >> ran; echo $STEPWELL_RESULT_TWO and third"}
]}"#;

fn three() -> String {
    THREE.replace('\n', " ")
}

#[test]
fn a_killed_worker_s_job_goes_on_at_its_phase() {
    let bench = Bench::new();
    std::fs::write(bench.path("wait"), "").unwrap();
    let id = bench.submit(&three())[0];
    let worker = bench.start(&["work"]);
    bench.wait_for_lines("pids", 1);
    worker.signal(Signal::KILL);
    assert_eq!(worker.wait(), 128 + 9);
    let pid = bench.read("pids").trim().to_owned();
    wait_until("the guard has killed what the worker left", || {
        !is_alive(&pid)
    });
    assert_eq!(bench.show(id)["status"], "running", "nobody has looked yet");

    std::fs::remove_file(bench.path("wait")).unwrap();
    let run = bench.runner(&["work", "--until-idle", "--json"]).ok();
    assert_eq!(run.json()[0]["completed"], 1);
    assert_eq!(
        bench.read("ran"),
        "one\ntwo\ntwo\nthree\n",
        "phase one ran once"
    );
    let job = bench.show(id);
    assert_eq!(job["phases"][2]["result"], "first and second and third");
    assert_eq!(job["crash_count"], 1);
    let cut = &job["interruption"];
    assert_eq!(
        json!([cut["phase"], cut["attempt"], cut["reason"]]),
        json!(["two", 1, "process_died"])
    );
    assert!(cut["since"].as_i64().unwrap() <= cut["at"].as_i64().unwrap());
    let human = bench.runner(&["show", &id.to_string()]).ok().stdout;
    assert!(
        human.contains("phase two was interrupted in try 1"),
        "{human}"
    );
    assert_eq!(bench.runner(&["check"]).code, 0);
}

#[test]
fn a_cancel_from_another_process_ends_the_command() {
    let bench = Bench::new();
    let line = json!({"phases": [{"name": "a", "run": "echo $$ > pid; sleep 1000"}]});
    let id = bench.submit(&line.to_string())[0];
    let worker = bench.start(&["work"]);
    bench.wait_for_lines("pid", 1);
    let pid = bench.read("pid").trim().to_owned();
    assert!(is_alive(&pid));
    let cancelled = Instant::now();
    bench.runner(&["cancel", &id.to_string()]).ok();
    wait_until("the command has ended", || !is_alive(&pid));
    assert!(
        cancelled.elapsed() < Duration::from_secs(1),
        "{:?}",
        cancelled.elapsed()
    );
    let again = bench.runner(&["cancel", &id.to_string()]);
    assert_eq!(again.code, 1);
    assert!(
        again.stderr.contains("is over already: it is cancelled"),
        "{again:?}"
    );
    worker.signal(Signal::TERM);
    assert_eq!(worker.wait(), 0, "a graceful end");
    let count = bench
        .events(id)
        .into_iter()
        .filter(|kind| *kind == EventKind::Cancelled)
        .count();
    assert_eq!(count, 1);
}

#[test]
fn a_retry_resumes_and_from_start_starts_over() {
    let bench = Bench::new();
    let line = r#"{"phases": [{"name": "one", "run": "echo one >> ran"}, {"name": "two", "run": "echo two >> ran; test -e good"}], "max_attempts": 1}"#;
    assert_eq!(bench.runner_with(line, &["run", "-"]).code, 1);
    std::fs::write(bench.path("good"), "").unwrap();
    bench.runner(&["retry", "1"]).ok();
    bench.runner(&["work", "--until-idle"]).ok();
    assert_eq!(bench.read("ran"), "one\ntwo\ntwo\n");
    let refused = bench.runner(&["retry", "1"]);
    assert_eq!(refused.code, 1);
    assert!(refused.stderr.contains("completed"), "{refused:?}");

    std::fs::remove_file(bench.path("good")).unwrap();
    assert_eq!(bench.runner_with(line, &["run", "-"]).code, 1);
    std::fs::write(bench.path("good"), "").unwrap();
    std::fs::write(bench.path("ran"), "").unwrap();
    bench.runner(&["retry", "2", "--from-start"]).ok();
    bench.runner(&["work", "--until-idle"]).ok();
    assert_eq!(bench.read("ran"), "one\ntwo\n");
}

#[test]
fn an_interrupted_run_answers_130_and_work_goes_on_with_it() {
    let bench = Bench::new();
    std::fs::write(bench.path("wait"), "").unwrap();
    std::fs::write(bench.path("jobs.jsonl"), three()).unwrap();
    let run = bench.start(&["run", "jobs.jsonl", "--shutdown-timeout", "0.2"]);
    bench.wait_for_lines("pids", 1);
    run.signal(Signal::INT);
    let run = run.end();
    assert_eq!(run.code, 130, "{run:?}");
    assert!(
        run.stdout.contains("1 not over: work goes on with them"),
        "{run:?}"
    );
    assert!(
        !is_alive(bench.read("pids").trim()),
        "its command is gone before the end"
    );
    std::fs::remove_file(bench.path("wait")).unwrap();
    bench.runner(&["work", "--until-idle"]).ok();
    let job = bench.show("1".parse().unwrap());
    assert_eq!(job["status"], "completed");
    assert_eq!(job["crash_count"], 0, "a shutdown is no crash");
    assert_eq!(bench.read("ran"), "one\ntwo\ntwo\nthree\n");
}

#[test]
fn a_command_that_ignores_sigterm_does_not_hold_the_shutdown() {
    let bench = Bench::new();
    let line = json!({"phases": [{"name": "a", "run": "trap '' TERM; echo $$ > pid; while true; do sleep 0.1; done"}]});
    bench.submit(&line.to_string());
    let worker = bench.start(&["work", "--shutdown-timeout", "1"]);
    bench.wait_for_lines("pid", 1);
    let asked = Instant::now();
    worker.signal(Signal::TERM);
    assert_eq!(worker.wait(), 0);
    let took = asked.elapsed();
    assert!(took < Duration::from_secs(7), "{took:?}");
    assert!(
        took > Duration::from_secs(5),
        "{took:?}: it had 5 s to end by itself"
    );
    let pid = bench.read("pid").trim().to_owned();
    wait_until("it is killed", || !is_alive(&pid));
}

#[test]
fn a_second_signal_stops_at_once() {
    let bench = Bench::new();
    let line = json!({"phases": [{"name": "a", "run": "echo $$ > pid; sleep 1000"}]});
    let id = bench.submit(&line.to_string())[0];
    let mut worker = bench.start(&["work", "--shutdown-timeout", "600"]);
    bench.wait_for_lines("pid", 1);
    worker.signal(Signal::INT);
    worker.wait_for("stopping");
    worker.signal(Signal::INT);
    assert_eq!(worker.wait(), 0);
    assert_eq!(bench.show(id)["status"], "pending");
}

#[test]
fn two_workers_on_one_file_are_refused() {
    let bench = Bench::new();
    let line = json!({"phases": [{"name": "a", "run": "echo > began; sleep 1000"}]});
    bench.submit(&line.to_string());
    let _worker = bench.start(&["work"]);
    bench.wait_for_lines("began", 1);
    let second = bench.runner(&["work", "--until-idle"]);
    assert_eq!(second.code, 1, "{second:?}");
    assert!(
        second.stderr.starts_with("working on") || second.stderr.starts_with("error: "),
        "{second:?}"
    );
    assert!(
        second.stderr.contains("process"),
        "it names the other one: {second:?}"
    );
}

#[test]
fn a_paused_queue_is_idle_and_goes_on_after_resume() {
    let bench = Bench::new();
    let id = bench.submit(&json!({"phases": [{"name": "a", "run": "true"}]}).to_string())[0];
    bench.runner(&["pause"]).ok();
    let run = bench.runner(&["work", "--until-idle"]).ok();
    assert!(run.stderr.contains("the queue is paused"), "{run:?}");
    let why = bench.runner(&["explain", &id.to_string()]).ok().stdout;
    assert!(
        why.contains("- the queue is paused") && why.contains("- no process runs jobs"),
        "{why}"
    );
    let worker = bench.start(&["work"]);
    bench.runner(&["resume"]).ok();
    bench.wait_for(id, JobStatus::Completed);
    worker.signal(Signal::TERM);
    assert_eq!(worker.wait(), 0);
}

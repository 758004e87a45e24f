//! One command: what it is told, what becomes of its output and its end.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::bench::{Bench, is_alive, wait_until};
#[cfg(target_os = "linux")]
use crate::bench::{PATIENCE, example};

#[test]
fn a_command_finds_everything_in_its_environment() {
    let bench = Bench::new();
    let line = json!({
        "phases": [
            {"name": "fetch", "run": "printf '{\"n\": 5}'"},
            {"name": "two.words", "run": "echo 'some text'; echo"},
            {"name": "tell", "run": "echo $STEPWELL_JOB_ID,$STEPWELL_PHASE,$STEPWELL_ATTEMPT,$STEPWELL_KEY,$STEPWELL_INPUT,\
                $STEPWELL_RESULT_FETCH,$STEPWELL_RESULT_TWO_WORDS"},
        ],
        "input": {"url": "http://example.com/ a"},
    });
    let run = bench
        .runner_with(&line.to_string(), &["run", "-", "--json"])
        .ok();
    let told = r#"1,tell,1,1:tell,{"url":"http://example.com/ a"},{"n":5},some text"#;
    assert_eq!(
        run.json(),
        [json!({"id": 1, "status": "completed", "result": told})]
    );
    let results: Vec<Value> = bench
        .client()
        .get("1".parse().unwrap())
        .unwrap()
        .unwrap()
        .phases
        .into_iter()
        .map(|phase| phase.result.unwrap())
        .collect();
    assert_eq!(results, [json!({"n": 5}), json!("some text"), json!(told)]);
}

/// The bug: the version 3.10 was 3.1 for the commands after it, and of a long id only the first digits were right.
#[test]
fn a_printed_number_is_what_later_commands_find() {
    let bench = Bench::new();
    let line = json!({"phases": [
        {"name": "version", "run": "echo 3.10"},
        {"name": "id", "run": "echo '{\"id\": 12345678901234567890123}'"},
        {"name": "tell", "run": "echo $STEPWELL_RESULT_VERSION, $STEPWELL_RESULT_ID"},
    ]});
    let run = bench
        .runner_with(&line.to_string(), &["run", "-", "--json"])
        .ok();
    assert_eq!(
        run.json()[0]["result"],
        r#"3.10, {"id": 12345678901234567890123}"#
    );
}

/// Runs one phase with two tries, and answers (tries, error).
fn fate(command: &str) -> (u64, String) {
    let bench = Bench::new();
    let line =
        json!({"phases": [{"name": "a", "run": command}], "max_attempts": 2, "backoff_ms": 1});
    let run = bench.runner_with(&line.to_string(), &["run", "-", "--json"]);
    assert_eq!(run.code, 1, "{run:?}");
    let job = bench.show("1".parse().unwrap());
    assert_eq!(job["status"], "failed");
    let error = job["phases"][0]["error"].as_str().unwrap();
    (job["attempt"].as_u64().unwrap(), error.to_owned())
}

#[test]
fn the_exit_code_says_what_is_next() {
    assert_eq!(
        fate("echo why >&2; exit 100"),
        (1, "exit status 100: why".to_owned()),
        "for good"
    );
    assert_eq!(fate("exit 75"), (2, "exit status 75".to_owned()), "again");
    assert_eq!(
        fate("echo a >&2; echo b >&2; exit 1"),
        (2, "exit status 1: a\nb".to_owned()),
        "by policy"
    );
    assert_eq!(fate("kill -9 $$"), (2, "killed by signal 9".to_owned()));
    let (_, error) = fate("no-such-command-here");
    assert!(error.starts_with("exit status 127: "), "{error}");
}

#[test]
fn only_the_end_of_a_long_standard_error_is_told() {
    let (_, error) =
        fate("i=0; while [ $i -lt 2000 ]; do echo line $i >&2; i=$((i+1)); done; exit 100");
    assert!(
        error.ends_with("line 1998\nline 1999") && error.len() < 5000,
        "{error}"
    );
}

#[test]
fn too_much_output_ends_the_command_and_fails_for_good() {
    let (tries, error) = fate("yes");
    assert_eq!(tries, 1);
    assert!(error.contains("more than 1048576 bytes"), "{error}");
}

#[test]
fn a_result_that_no_variable_can_hold_is_told() {
    let bench = Bench::new();
    let line = json!({"phases": [
        {"name": "big", "run": "head -c 200000 /dev/zero | tr '\\0' x"},
        {"name": "next", "run": "true"},
    ]});
    let run = bench.runner_with(&line.to_string(), &["run", "-", "--json"]);
    assert_eq!(run.code, 1, "{run:?}");
    let error = run.json()[0]["error"].as_str().unwrap().to_owned();
    assert!(
        error.starts_with("STEPWELL_RESULT_BIG has 200000 bytes"),
        "{error}"
    );
}

#[test]
fn what_a_command_leaves_running_ends_with_it() {
    let bench = Bench::new();
    // It holds the standard output open, too.
    let line = json!({"phases": [{"name": "a", "run": "sleep 1000 & echo $!"}]});
    let run = bench
        .runner_with(&line.to_string(), &["run", "-", "--json"])
        .ok();
    let pid = run.json()[0]["result"].to_string();
    assert!(!is_alive(&pid), "{pid}");
}

/// Tells this program to be the process that [`the_init_that_reaps_nobody`] is.
#[cfg(target_os = "linux")]
const INIT: &str = "STEPWELL_RUNNER_INIT";

/// In another process: the first process of many a container, which gets every orphan and waits for none.
#[cfg(target_os = "linux")]
#[test]
fn the_init_that_reaps_nobody() {
    let Some(dir) = std::env::var_os(INIT) else {
        return;
    };
    rustix::process::set_child_subreaper(Some(rustix::process::getpid())).unwrap();
    let mut runner = std::process::Command::new(example("runner"));
    runner.args(["--db", "jobs.db", "run", "jobs.jsonl"]);
    let status = runner.current_dir(dir).status().unwrap();
    std::process::exit(status.code().unwrap());
}

/// The bug: what a command had left behind was ended, but stayed in the table of processes, since nobody asked for its exit code.
/// The phase waited for its group to be gone for as long as that was so: for ever.
#[cfg(target_os = "linux")]
#[test]
fn what_nobody_reaps_holds_up_no_phase() {
    use std::os::unix::process::CommandExt;
    let bench = Bench::new();
    let line = json!({"phases": [{"name": "a", "run": "sleep 1000 & echo $! > pid"}]});
    std::fs::write(bench.path("jobs.jsonl"), line.to_string()).unwrap();
    let mut init = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "commands::the_init_that_reaps_nobody"])
        .env(INIT, bench.path(""))
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .process_group(0)
        .spawn()
        .unwrap();
    let started = Instant::now();
    let status = loop {
        match init.try_wait().unwrap() {
            None if started.elapsed() < PATIENCE => {
                std::thread::park_timeout(Duration::from_millis(5));
            }
            ended => break ended,
        }
    };
    let group = rustix::process::Pid::from_child(&init);
    rustix::process::kill_process_group(group, rustix::process::Signal::KILL).ok();
    init.wait().unwrap();
    assert_eq!(status.and_then(|status| status.code()), Some(0));
    let took = started.elapsed();
    // Its own grace is 5 s: it ended by SIGTERM.
    assert!(took < Duration::from_secs(5), "{took:?}");
    assert!(!is_alive(bench.read("pid").trim()));
}

#[test]
fn a_timeout_ends_the_whole_group() {
    let bench = Bench::new();
    let line = json!({"phases": [{"name": "a", "run": "sleep 1000 & echo $! > pid; wait", "timeout_ms": 300}], "max_attempts": 1});
    let run = bench.runner_with(&line.to_string(), &["run", "-", "--json"]);
    assert_eq!(run.code, 1, "{run:?}");
    assert_eq!(
        bench.show("1".parse().unwrap())["errors"][0]["kind"],
        "timeout"
    );
    let pid = bench.read("pid").trim().to_owned();
    wait_until("the timeout has ended it", || !is_alive(&pid));
}

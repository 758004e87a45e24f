//! A queue with nothing to do makes no system call: none of its threads ever runs.

use std::thread::park_timeout;
use std::time::{Duration, Instant};

use serde_json::Value;
use stepwell::{JobQueue, JobType, Retention};

use crate::support::{Harness, ONE, OtherProcess, PATIENCE, told};

/// Longer than any poll that would be worth it.
const WINDOW: Duration = Duration::from_millis(1500);

/// How often the threads of the queue in process `pid` have run so far. A thread that is asleep has not.
fn switches(pid: u32) -> u64 {
    let mut switches = 0;
    let (mut threads, of) = (0, format!("/proc/{pid}/task"));
    for task in std::fs::read_dir(of).expect("it is alive") {
        let task = task.expect("it is alive").path();
        let name = std::fs::read_to_string(task.join("comm")).unwrap_or_default();
        if !name.starts_with("stepwell") {
            continue;
        }
        threads += 1;
        let status = std::fs::read_to_string(task.join("status")).expect("it is alive");
        let counts = status.lines().filter(|line| line.contains("ctxt_switches"));
        let counts = counts.filter_map(|line| line.split_whitespace().nth(1));
        switches += counts
            .map(|count| count.parse::<u64>().unwrap())
            .sum::<u64>();
    }
    assert!(threads >= 3, "two workers and the committer: {threads}");
    switches
}

/// Plays the part of the queue that is idle, until it is killed.
#[test]
fn the_process_that_is_idle() {
    let Some((_, path)) = told() else {
        return;
    };
    let mut builder = JobQueue::builder(path)
        .workers(2)
        .retention(Retention::forever());
    let jobs = builder.register(JobType::<Value>::new("plain").phase(ONE, |_| Ok(Value::Null)));
    let queue = builder.open().unwrap();
    let id = jobs.enqueue(&Value::Null).unwrap();
    queue.wait(id, PATIENCE).unwrap();
    OtherProcess::say("idle");
    park_timeout(10 * PATIENCE);
}

#[test]
fn an_idle_queue_makes_no_system_call() {
    let harness = Harness::new();
    let process = OtherProcess::start(&harness, "idle::the_process_that_is_idle", "idle");
    assert_eq!(process.hear().as_deref(), Some("idle"));
    let until = Instant::now() + PATIENCE;
    // What follows a job is over at some time; who polls is never.
    loop {
        let before = switches(process.pid());
        park_timeout(WINDOW);
        let ran = switches(process.pid()) - before;
        if ran == 0 {
            break;
        }
        assert!(
            Instant::now() < until,
            "its threads ran {ran} times in {WINDOW:?}"
        );
    }
    process.kill();
}

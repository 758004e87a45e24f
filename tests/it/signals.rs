//! The end by a signal: graceful by the first, at once by the second, and only for who asked for it.

use std::os::unix::process::ExitStatusExt;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, kill_process, setrlimit};
use serde_json::{Value, json};
use stepwell::{ErrorKind, InterruptionReason, JobId, JobQueue, JobStatus, JobType};

use crate::support::{Harness, ONE, OtherProcess, PATIENCE, TWO, assert_sound, told};

const PLAYER: &str = "signals::the_process_that_gets_signals";
const LONG: Duration = Duration::from_secs(60);

/// Whether this process has a handler for SIGINT and SIGTERM: the bits of their numbers, from 1.
/// <https://man7.org/linux/man-pages/man5/proc_pid_status.5.html>
fn is_armed() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:"));
    let caught = u64::from_str_radix(caught.unwrap().trim(), 16).unwrap();
    [Signal::INT, Signal::TERM]
        .iter()
        .all(|signal| caught >> (signal.as_raw() - 1) & 1 == 1)
}

/// Whether this process has a thread of that name.
fn has_thread(name: &str) -> bool {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    let names =
        tasks.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("comm")).ok());
    names.into_iter().any(|it| it.trim() == name)
}

/// From now on there is room for this and that in this process, but not for the stack of a thread.
fn allow_no_threads() {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let size = status.lines().find_map(|line| line.strip_prefix("VmSize:"));
    let kib = size.and_then(|size| size.split_whitespace().next());
    let current = Some((kib.unwrap().parse::<u64>().unwrap() + 1024) * 1024);
    let usual = getrlimit(Resource::As);
    setrlimit(Resource::As, Rlimit { current, ..usual }).unwrap();
    assert!(std::thread::Builder::new().spawn(|| {}).is_err());
}

fn pause_while(is_so: impl Fn() -> bool) {
    while is_so() {
        std::thread::park_timeout(Duration::from_millis(1));
    }
}

/// In the other process. As an ordinary test it has nothing to do.
#[test]
fn the_process_that_gets_signals() {
    let Some((part, path)) = told() else {
        return;
    };
    let (stays, asks) = (part == "stays", part != "asks for nothing");
    let own: Arc<OnceLock<JobQueue>> = Arc::default();
    let shared = own.clone();
    let mut builder = Harness::at(&path).builder();
    builder.register(
        JobType::<Value>::new("steps")
            .phase(ONE, move |cx| {
                // A signal that came before there is a handler would end the process.
                pause_while(|| asks && !is_armed());
                if part == "has no threads left" {
                    pause_while(|| !has_thread("ctrl-c") || !has_thread("stepwell-signal"));
                    allow_no_threads();
                }
                OtherProcess::say("inside");
                pause_while(|| !shared.get().is_some_and(|queue| queue.health().closing));
                OtherProcess::say("closing");
                if stays {
                    cx.sleep(LONG)?;
                }
                Ok(json!("done"))
            })
            .phase(TWO, |cx| cx.get(ONE)),
    );
    let queue = own.get_or_init(|| builder.open().unwrap());
    queue.enqueue("steps", &Value::Null).unwrap();
    if !asks {
        let started = Instant::now();
        while started.elapsed() < PATIENCE {
            std::thread::park_timeout(PATIENCE);
        }
        return;
    }
    let ended = queue.run_until_signal(LONG);
    let again = queue.run_until_signal(LONG).unwrap_err();
    assert_eq!(again.kind(), ErrorKind::InvalidConfig);
    OtherProcess::say(&format!("{:?}", ended.map(|report| report.interrupted)));
}

fn start(harness: &Harness, part: &str) -> OtherProcess {
    let other = OtherProcess::start(harness, PLAYER, part);
    assert_eq!(other.hear().as_deref(), Some("inside"));
    other
}

fn send(other: &OtherProcess, signal: Signal) {
    let pid = Pid::from_raw(other.pid().cast_signed()).unwrap();
    kill_process(pid, signal).unwrap();
}

#[test]
fn the_first_signal_lets_phases_end_and_the_queue_close() {
    for signal in [Signal::INT, Signal::TERM] {
        let harness = Harness::new();
        let other = start(&harness, "ends");
        send(&other, signal);
        assert_eq!(other.hear().as_deref(), Some("closing"));
        assert_eq!(other.hear().as_deref(), Some("Ok([])"));
        assert!(other.wait().success(), "{signal:?}");
        let queue = harness.open_without_workers();
        let job = queue.get(JobId::from_i64(1)).unwrap().unwrap();
        assert_eq!((job.status, job.phases_done), (JobStatus::Pending, 1));
        assert_eq!((job.attempt, job.crash_count), (0, 0), "it cost nothing");
        assert_sound(&queue);
    }
}

/// It returned an error and left the queue open: the program could end, but not by a signal, and its jobs ran on meanwhile.
#[test]
fn a_signal_closes_the_queue_also_when_no_thread_can_be_had() {
    let harness = Harness::new();
    let other = start(&harness, "has no threads left");
    send(&other, Signal::TERM);
    assert_eq!(other.hear().as_deref(), Some("closing"));
    assert_eq!(other.hear().as_deref(), Some("Ok([])"));
    assert!(other.wait().success());
}

#[test]
fn the_second_signal_does_not_wait_for_handlers() {
    let harness = Harness::new();
    let other = start(&harness, "stays");
    send(&other, Signal::TERM);
    assert_eq!(other.hear().as_deref(), Some("closing"));
    let started = Instant::now();
    send(&other, Signal::INT);
    let ended = other.hear().unwrap();
    assert!(ended.contains("1 handlers did not end"), "{ended}");
    assert!(started.elapsed() < LONG / 2, "{:?}", started.elapsed());
    assert!(other.wait().success());
    let queue = harness.open_without_workers();
    let job = queue.get(JobId::from_i64(1)).unwrap().unwrap();
    assert_eq!((job.status, job.attempt), (JobStatus::Pending, 0));
    let interruption = job.interruption.as_ref().unwrap();
    assert_eq!(interruption.reason, InterruptionReason::Shutdown);
    assert_sound(&queue);
}

#[test]
fn a_queue_that_was_not_asked_to_leaves_signals_alone() {
    let harness = Harness::new();
    let other = start(&harness, "asks for nothing");
    // Not SIGINT: what a shell starts in the background ignores that.
    send(&other, Signal::TERM);
    assert_eq!(other.wait().signal(), Some(Signal::TERM.as_raw()));
}

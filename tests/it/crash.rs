//! Deaths of the process that runs jobs: inside a phase, between two, during the recovery, again and again; and of the machine.
//!
//! The dying process is this test program again. What it was in the middle of is known, because it says so before it is killed.

use crossbeam_channel::unbounded;
use serde_json::{Value, json};
use stepwell::{
    Builder, ErrorCause, EventKind, Interruption, InterruptionReason, JobId, JobQueue, JobStatus,
    JobType, PhaseContext, PhaseError, PhaseStatus, Timestamp,
};

use crate::support::{
    AtTheEdge, Gate, Harness, ONE, OtherProcess, THREE, TWO, assert_sound, count, events_of, told,
};

/// The name of the test below, for who starts the other process.
pub(crate) const PLAYER: &str = "crash::the_other_process_plays_its_part";

/// In the other process. As an ordinary test it has nothing to do.
#[test]
fn the_other_process_plays_its_part() {
    let Some((part, path)) = told() else {
        return;
    };
    let harness = Harness::at(&path);
    match part.as_str() {
        "inside the second phase" => {
            let mut builder = harness.builder().workers(1);
            register_steps(&mut builder, |cx| {
                cx.save(&json!({"position": 7}))?;
                OtherProcess::say("inside");
                loop {
                    std::thread::park();
                }
            });
            let _queue = builder.open().unwrap();
            loop {
                std::thread::park();
            }
        }
        "behind the second phase" => {
            let mut builder = harness.builder().workers(1);
            let go = harness.file("go");
            register_steps(&mut builder, move |_| {
                OtherProcess::say("inside");
                while !go.exists() {
                    std::thread::park_timeout(std::time::Duration::from_millis(1));
                }
                Ok(json!("done"))
            });
            let _queue = builder.open().unwrap();
            loop {
                std::thread::park();
            }
        }
        "between two phases" => {
            let edge = AtTheEdge::new(&harness);
            OtherProcess::say(&format!("{} {}", edge.job, edge.other));
            loop {
                std::thread::park();
            }
        }
        "deadly handler" => {
            let mut builder = harness.builder();
            register_steps(&mut builder, |_| std::process::abort());
            let _queue = builder.open().unwrap();
            loop {
                std::thread::park();
            }
        }
        "recovery" => {
            let mut builder = harness.builder();
            register_steps(&mut builder, |cx| cx.get(ONE));
            let _queue = builder.open().unwrap();
            OtherProcess::say("it came through");
        }
        #[cfg(target_os = "linux")]
        "few descriptors" => with_few_descriptors(&harness),
        other => panic!("no part is called {other:?}"),
    }
}

/// Opens the queue again and again, each time with one descriptor more than the time before.
#[cfg(target_os = "linux")]
fn with_few_descriptors(harness: &Harness) {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let usual = getrlimit(Resource::Nofile);
    let open = std::fs::read_dir("/proc/self/fd").unwrap().count() as u64;
    let runs = Arc::new(AtomicUsize::new(0));
    for more in 0..24 {
        let inside = runs.clone();
        let mut builder = harness.builder();
        register_steps(&mut builder, move |_| {
            inside.fetch_add(1, Ordering::SeqCst);
            Err(PhaseError::snooze(std::time::Duration::ZERO))
        });
        let few = Some(open + more);
        setrlimit(
            Resource::Nofile,
            Rlimit {
                current: few,
                ..usual
            },
        )
        .unwrap();
        let opened = builder.open();
        setrlimit(Resource::Nofile, usual).unwrap();
        let before = runs.load(Ordering::SeqCst);
        match opened {
            Ok(queue) => drop(queue.shutdown(harness.left())),
            Err(error) => {
                // Nobody runs on unseen, and nobody holds the file.
                let queue = harness.open_without_workers();
                assert_eq!(queue.stats().unwrap().running, 0, "{error}");
                queue.shutdown(harness.left()).unwrap();
                assert_eq!(runs.load(Ordering::SeqCst), before, "{error}");
                OtherProcess::say(&error.to_string());
            }
        }
    }
    OtherProcess::say("it came through");
}

/// The bug: workers and the committer had been started when the socket that wakes them could not be had. The queue was not open,
/// and ran jobs, with nobody to stop it and its file held.
#[cfg(target_os = "linux")]
#[test]
fn an_opening_that_fails_leaves_nobody_behind() {
    let harness = Harness::new();
    let client = harness.client();
    client.enqueue("steps", &Value::Null).unwrap();
    drop(client);
    let process = OtherProcess::start(&harness, PLAYER, "few descriptors");
    let said: Vec<String> = std::iter::from_fn(|| process.hear()).collect();
    assert!(process.wait().success(), "{said:#?}");
    let of_socket = |line: &&String| line.contains("the wake-up socket cannot be used");
    assert!(said.iter().any(|line| of_socket(&line)), "{said:#?}");
    assert_eq!(said.last().map(String::as_str), Some("it came through"));
}

/// Three phases; the second one does as it is told.
pub(crate) fn register_steps(
    builder: &mut Builder,
    second: impl Fn(&PhaseContext<Value>) -> Result<Value, PhaseError> + Send + Sync + 'static,
) {
    builder.register(
        JobType::<Value>::new("steps")
            .max_crashes(2)
            .phase(ONE, |cx| Ok(json!({"from": cx.job_id(), "half": 0.5})))
            .phase(TWO, second)
            .phase(THREE, |cx| Ok(json!([cx.get(ONE)?, cx.get(TWO)?]))),
    );
}

/// What the second phase saw when it ran again.
#[derive(Debug)]
pub(crate) struct Seen {
    pub(crate) interruption: Option<Interruption>,
    pub(crate) saved: Option<Value>,
    pub(crate) first: Value,
    pub(crate) attempt: u32,
    pub(crate) last_error: Option<ErrorCause>,
}

/// Opens the file that a dead process left, and answers what the second phase of the job then sees.
pub(crate) fn run_again(harness: &Harness, id: JobId) -> (JobQueue, Seen) {
    let (tx, seen) = unbounded();
    let mut builder = harness.builder();
    register_steps(&mut builder, move |cx| {
        let saw = Seen {
            interruption: cx.interruption().cloned(),
            saved: cx.saved()?,
            first: cx.get(ONE)?,
            attempt: cx.attempt(),
            last_error: cx.last_error().map(|error| error.kind),
        };
        tx.send(saw).unwrap();
        Ok(json!("second"))
    });
    let queue = builder.open().unwrap();
    let seen = harness.recv(&seen);
    harness.wait_for(&queue, id, JobStatus::Completed);
    (queue, seen)
}

/// A job whose process was killed while its second phase ran.
pub(crate) fn killed_inside_the_second_phase(harness: &Harness) -> JobId {
    killed_inside_the_second_phase_while(harness, || {})
}

/// As above; before the kill something else happens.
pub(crate) fn killed_inside_the_second_phase_while(
    harness: &Harness,
    meanwhile: impl FnOnce(),
) -> JobId {
    let id = harness.client().enqueue("steps", &json!({"n": 1})).unwrap();
    let process = OtherProcess::start(harness, PLAYER, "inside the second phase");
    assert_eq!(process.hear().as_deref(), Some("inside"));
    meanwhile();
    process.kill();
    id
}

#[test]
fn a_killed_phase_runs_again_and_the_phases_before_it_do_not() {
    let harness = Harness::new();
    let id = killed_inside_the_second_phase(&harness);
    let before = harness.client().get(id).unwrap().unwrap();
    assert_eq!(before.status, JobStatus::Running);

    let (queue, seen) = run_again(&harness, id);
    assert_eq!(Some(&seen.first), before.phases[0].result.as_ref());
    let job = queue.get(id).unwrap().unwrap();
    assert_eq!(job.phases[0], before.phases[0], "it did not run again");
    assert_eq!((job.crash_count, job.attempt), (1, 2));
    assert_eq!(
        events_of(&queue, id),
        [
            "job:created",
            "job:started",
            "job:phase:started",
            "job:phase:completed",
            "job:phase:started",
            "job:interrupted",
            "job:started",
            "job:phase:started",
            "job:phase:completed",
            "job:phase:started",
            "job:phase:completed",
            "job:completed",
        ]
    );
    assert_sound(&queue);
}

#[test]
fn a_crash_is_told_to_the_handler_and_in_the_error_history() {
    let harness = Harness::new();
    let id = killed_inside_the_second_phase(&harness);
    let (queue, seen) = run_again(&harness, id);
    let interruption = seen.interruption.expect("it was interrupted");
    assert_eq!(interruption.reason, InterruptionReason::ProcessDied);
    assert_eq!(&*interruption.phase, "two");
    assert_eq!(
        (seen.attempt, seen.last_error),
        (2, Some(ErrorCause::Interrupted))
    );
    let job = queue.get(id).unwrap().unwrap();
    assert_eq!(job.interruption, Some(interruption));
    let errors: Vec<_> = job
        .errors
        .iter()
        .map(|error| (error.phase.as_deref(), error.kind, &*error.message))
        .collect();
    assert_eq!(
        errors,
        [(Some("two"), ErrorCause::Interrupted, "process_died")]
    );
}

/// Its side effects have happened, and its outcome was not on disk, for as long as that was full or slow: the next try heard of no
/// interruption.
#[test]
fn a_phase_whose_outcome_was_lost_with_the_process_hears_of_it_and_is_not_charged() {
    let harness = Harness::new();
    let id = harness.client().enqueue("steps", &json!({"n": 1})).unwrap();
    let process = OtherProcess::start(&harness, PLAYER, "behind the second phase");
    assert_eq!(process.hear().as_deref(), Some("inside"));
    // Nobody commits any more.
    let raw = rusqlite::Connection::open(harness.path()).unwrap();
    raw.execute_batch("BEGIN IMMEDIATE").unwrap();
    std::fs::write(harness.file("go"), "").unwrap();
    // The slot of the one worker, behind the header: its generation, and at 48 whether the handler has returned.
    harness.until("the handler has returned", || {
        let slot = std::fs::read(harness.file("jobs.db-owner")).unwrap()[192..].to_vec();
        slot[..8] == [0; 8] || slot[48] != 0
    });
    process.kill();
    drop(raw);

    let (queue, seen) = run_again(&harness, id);
    let interruption = seen.interruption.expect("the handler is told");
    assert_eq!(&*interruption.phase, "two");
    assert_eq!(interruption.reason, InterruptionReason::ProcessDied);
    let job = queue.get(id).unwrap().unwrap();
    assert_eq!((job.crash_count, job.attempt), (0, 1), "not charged");
    let interrupted = harness.wait_event(&queue, id, EventKind::Interrupted);
    assert_eq!(interrupted.data["entered"], json!(true));
    assert_eq!(interrupted.data["charged"], json!(false));
    assert_sound(&queue);
}

#[test]
fn a_job_between_two_phases_is_not_charged_for_the_crash() {
    let harness = Harness::new();
    let process = OtherProcess::start(&harness, PLAYER, "between two phases");
    let ids = process.hear().expect("it comes to the edge");
    let (job, other) = ids.split_once(' ').unwrap();
    let (job, other): (JobId, JobId) = (job.parse().unwrap(), other.parse().unwrap());
    process.kill();

    let gate = Gate::new();
    let mut builder = harness.builder();
    AtTheEdge::register(&mut builder, &gate);
    let queue = builder.open().unwrap();
    gate.open();
    gate.open();
    let job = harness.wait_for(&queue, job, JobStatus::Completed);
    let other = harness.wait_for(&queue, other, JobStatus::Completed);
    assert_eq!((job.crash_count, job.attempt), (0, 1));
    assert_eq!((&job.interruption, &job.errors), (&None, &vec![]));
    assert_eq!(
        count(&queue, job.id, EventKind::PhaseCompleted),
        2,
        "the first phase did not run again"
    );
    let interrupted = harness.wait_event(&queue, job.id, EventKind::Interrupted);
    assert_eq!(interrupted.data["entered"], json!(false));
    assert_eq!(interrupted.data["charged"], json!(false));
    // The one that was inside its handler beside it is.
    assert_eq!((other.crash_count, other.attempt), (1, 2));
    assert_sound(&queue);
}

#[test]
fn a_handler_that_kills_its_process_too_often_fails_its_job() {
    let harness = Harness::new();
    let id = harness.client().enqueue("steps", &Value::Null).unwrap();
    for _ in 0..3 {
        let status = OtherProcess::start(&harness, PLAYER, "deadly handler").wait();
        assert!(!status.success());
        if cfg!(unix) {
            assert_eq!(status.code(), None, "a signal ended it");
        }
    }
    let mut builder = harness.builder();
    register_steps(&mut builder, |_| Ok(json!("it would be harmless now")));
    let queue = builder.open().unwrap();
    let job = queue.get(id).unwrap().unwrap();
    assert_eq!((job.status, job.crash_count), (JobStatus::Failed, 3));
    let last = job.errors.last().unwrap();
    assert_eq!(last.kind, ErrorCause::CrashLimit);
    assert_eq!(last.message, "the process died inside this job 3 times");
    assert_eq!(job.phases[0].status, PhaseStatus::Completed);
    let failed = harness.wait_event(&queue, id, EventKind::Failed);
    assert_eq!(failed.data["kind"], json!("crash_limit"));
    assert_sound(&queue);

    // By hand it can be tried again, with all of its crashes allowed.
    queue.retry(id, stepwell::RetryFrom::Failed).unwrap();
    let job = harness.wait_for(&queue, id, JobStatus::Completed);
    assert_eq!((job.crash_count, job.attempt), (0, 1));
}

#[test]
fn a_process_that_dies_in_its_recovery_leaves_the_evidence_for_the_next() {
    let harness = Harness::new();
    let id = killed_inside_the_second_phase(&harness);
    let client = harness.client();
    // Somebody holds the file: the next process gets the owner's lock and no further.
    let holder = rusqlite::Connection::open(harness.path()).unwrap();
    holder.execute_batch("BEGIN IMMEDIATE").unwrap();
    for _ in 0..2 {
        let process = OtherProcess::start(&harness, PLAYER, "recovery");
        harness.until("it has the owner's lock", || {
            client.owner_pid() == Some(process.pid())
        });
        process.kill();
    }
    holder.execute_batch("ROLLBACK").unwrap();

    let (queue, seen) = run_again(&harness, id);
    let reason = seen.interruption.map(|interruption| interruption.reason);
    assert_eq!(reason, Some(InterruptionReason::ProcessDied));
    let job = queue.get(id).unwrap().unwrap();
    assert_eq!(job.crash_count, 1, "for one crash inside of it");
    assert_eq!(count(&queue, id, EventKind::Interrupted), 1);
}

#[test]
fn a_power_cut_is_no_jobs_fault() {
    let harness = Harness::new();
    let id = killed_inside_the_second_phase(&harness);
    pretend_the_machine_was_restarted(&harness);
    let (queue, seen) = run_again(&harness, id);
    let interruption = seen.interruption.expect("it counts as interrupted");
    assert_eq!(interruption.reason, InterruptionReason::MachineWentDown);
    assert_eq!(seen.saved, Some(json!({"position": 7})));
    let job = queue.get(id).unwrap().unwrap();
    assert_eq!((job.crash_count, job.attempt), (0, 1), "uncharged");
    assert_sound(&queue);
}

/// Writes the owner file's header as a process of another boot would have written it. Bytes 64..192: generation (8), closed (1),
/// at 16 the boot id in 64 bytes, and in the last 8 the FNV-1a sum of the others.
fn pretend_the_machine_was_restarted(harness: &Harness) {
    let path = harness.file("jobs.db-owner");
    let mut bytes = std::fs::read(&path).unwrap();
    let header = &mut bytes[64..192];
    assert_ne!(header[16], 0, "this system tells boots apart");
    header[16..80].fill(0);
    header[16..30].copy_from_slice(b"an-earlier-one");
    let sum = header[..120]
        .iter()
        .fold(0xcbf2_9ce4_8422_2325_u64, |sum, byte| {
            (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
        });
    header[120..].copy_from_slice(&sum.to_le_bytes());
    std::fs::write(&path, bytes).unwrap();
}

#[test]
fn a_killed_process_lets_the_file_go_at_once() {
    let harness = Harness::new();
    killed_inside_the_second_phase(&harness);
    let started = Timestamp::now();
    let queue = harness.open_without_workers();
    let took = Timestamp::now().since(started);
    assert!(took.as_secs() < 5, "{took:?}: no lease has to run out");
    assert_eq!(queue.stats().unwrap().running, 0);
}

#[test]
fn a_job_of_a_type_that_is_not_registered_any_more_is_recovered_too() {
    let harness = Harness::new();
    let id = killed_inside_the_second_phase(&harness);
    let queue = harness.open_without_workers();
    let job = queue.get(id).unwrap().unwrap();
    assert_eq!((job.status, job.crash_count), (JobStatus::Pending, 1));
    assert_sound(&queue);
}

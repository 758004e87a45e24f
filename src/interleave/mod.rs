//! What may happen at the same time, in many orders: the real committer, live table, engine, pool, shutdown and courier of webhooks
//! over the store in memory, under shuttle, which chooses at each lock, wait and atomic which thread goes on. Test code, built with
//! `--cfg stepwell_shuttle` only; `.ci/interleave` runs it.
//!
//! What it would catch: a wake-up that is lost (shuttle reports a deadlock), a claim that is not fenced, two handlers of one job, a
//! second terminal event, a cancel or a retry that was answered and did not hold, a handler that is not told of the end of its
//! claim, a job that was acknowledged and does not end, or fails or is done twice although nothing happened that may lead to it, a
//! result that is lost or another's, counts that drift; an event without its delivery, a delivery that is sent out of turn, after its
//! end, or without an event that tells of it; a store that is let go while something is under way.
//!
//! Each case is a job of two phases and two things that happen to it from two threads, while it runs: see [`Act`]. All pairs are
//! cases, a thing with itself too. What another process does is done to the store that all share, by the client's own transaction,
//! and then its bell is rung. The lock that keeps a second process out is the kernel's, and the bell's socket too: [`place`] has both
//! in the same protocol. A queue that was shut down, or that another process wanted to take over, is followed by a second
//! one, which must find nothing under way and bring everything to its end. Where deliveries are what happens, the courier sends
//! them to a receiver without a network; elsewhere they wait.
//!
//! `STEPWELL_SCHEDULES` sets how many schedules each pair gets; one that fails is printed, and
//! comes again with `STEPWELL_SCHEDULE` and `STEPWELL_PAIR`. Two schedulers share them: random choices, and PCT (Burckhardt, Kothari, Musuvathi,
//! Nagarakatte, "A Randomized Scheduler with Probabilistic Guarantees of Finding Bugs", ASPLOS 2010).
//!
//! Broken on purpose, and what came of it:
//!
//! | what was broken | noticed by | schedules of each pair |
//! |---|---|---|
//! | an outcome that is posted does not wake the committer | deadlock, in 10 of 11 tests | 60 |
//! | what changes during a look at the backlog is not looked at again (`Backlog::unknown`) | deadlock | 60 |
//! | a ring that comes while the committer is awake is forgotten | deadlock, in `a_late_result_goes_with` alone | 600, and not 60 |
//! | a job is claimed while its old handler is inside | two handlers of one job | 60 |
//! | an outcome of a claim that is over is written | a phase completed after the end of its job | 60 |
//! | what returns while the queue is paused has failed | not completed | 50 |
//! | each handler is called twice | entered twice | 50 |
//! | each result is stored as the first one of job 1 | not its own result | 50 |
//! | a retry is answered and nothing is done | retries that are not in the log | 50 |
//! | a client's cancel between the commit of a claim and its publication is not looked for (`Engine::look_again`) | deadlock: a handler that nobody tells | 200 |
//! | who hears the bell does not look at the claims under way; or a cancel of one's own does not tell the handler | the same | 200 |
//! | who hears the bell does not look at what is waited for | deadlock: a waiter | 100 |
//! | who hears the bell does not wake the committer | deadlock: a job of a client | 200 |
//! | an older look at what is paused wins | deadlock, in `pause_goes_with` and `a_pause_of_another_process_goes_with` | 200 |
//! | a claim that came in a client's pause is not offered when the pause was lifted between two looks: as it was | deadlock, in `a_pause_of_another_process_goes_with` | 200 |
//! | no delivery is written for the end of a job | an event without its delivery | 100 |
//! | the end of a delivery is told twice, or not at all | two events, or none, that tell of it | 100 |
//! | the outcome of a delivery needs its job's row | a delivery that never ends | 200 |
//! | the end of one delivery does not give the next its time; or the courier is not told that it is recorded | deadlock | 100 |
//! | a delivery is free for the next try before its outcome is recorded | sent after its end | 100 |
//! | the row of a job does not name the event of its delivery | the check: log and row differ | 100 |
//! | the store is let go when the shutdown begins, or before what is posted is written | a job that runs and nobody runs it | 100 |
//! | handlers that go on after the end are not counted | two handlers of one job, and no word of it | 200 |
//! | handlers that outlast the shutdown are not fenced off | a claim under way after the end | 200 |
//!
//! Not here: SQLite, files and sockets; a process that dies; waits that end by time alone; weak memory (shuttle knows
//! sequential consistency only; `tests/loom` has the pieces that it matters for).

mod judge;
mod place;
mod record;
mod world;

use shuttle::scheduler::{PctScheduler, RandomScheduler, Scheduler};
use shuttle::{Config, FailurePersistence, Runner};

use world::{Act, World};

/// For each pair.
const SCHEDULES: usize = 300;
/// Priority changes that PCT makes: most bugs need two or three.
const DEPTH: usize = 4;

fn schedules() -> usize {
    let named = std::env::var("STEPWELL_SCHEDULES").ok();
    named
        .and_then(|text| text.parse().ok())
        .unwrap_or(SCHEDULES)
}

fn check(acts: [Act; 2]) {
    let case = move || World::run(acts);
    println!("{acts:?}");
    if let Ok(schedule) = std::env::var("STEPWELL_SCHEDULE") {
        if std::env::var("STEPWELL_PAIR").is_ok_and(|pair| pair == format!("{acts:?}")) {
            shuttle::replay(case, &schedule);
        }
        return;
    }
    let half = schedules().div_ceil(2);
    let seed = std::env::var("STEPWELL_SEED")
        .ok()
        .and_then(|text| text.parse().ok());
    let seed: u64 = seed.unwrap_or_else(|| Act::ALL.len() as u64);
    run(RandomScheduler::new_from_seed(seed, half), case);
    run(PctScheduler::new_from_seed(seed, DEPTH, half), case);
}

fn run(scheduler: impl Scheduler + 'static, case: impl Fn() + Send + Sync + 'static) {
    let mut config = Config::new();
    config.stack_size = 1 << 18;
    config.failure_persistence = FailurePersistence::Print;
    Runner::new(scheduler, config).run(case);
}

/// All pairs with this one, but those that an earlier one has.
fn pairs_with(act: Act) {
    let rest = Act::ALL.iter().skip_while(|other| **other != act);
    for other in rest {
        check([act, *other]);
    }
}

macro_rules! pairs {
    ($($name:ident: $act:ident,)*) => {
        $(#[test]
        fn $name() {
            pairs_with(Act::$act);
        })*
    };
}

pairs! {
    nothing_else_goes_wrong_with: Nothing,
    cancel_goes_with: Cancel,
    retry_goes_with: Retry,
    pause_goes_with: Pause,
    retention_goes_with: Retention,
    a_deletion_goes_with: Delete,
    a_delivery_goes_with: Delivery,
    a_redelivery_goes_with: Redelivery,
    a_late_result_goes_with: LateResult,
    a_panic_goes_with: Panic,
    a_cancel_of_another_process_goes_with: ClientCancel,
    a_retry_of_another_process_goes_with: ClientRetry,
    a_pause_of_another_process_goes_with: ClientPause,
    a_job_of_another_process_goes_with: ClientEnqueue,
    enqueue_goes_with: Enqueue,
    waiting_goes_with: Wait,
    a_second_opening_goes_with: SecondOpen,
    shutdown_goes_with: Shutdown,
}

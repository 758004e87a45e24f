//! What the engine makes of commits, looked at from inside.

use std::collections::HashSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use serde_json::Value;

use crate::committer::Host;
use crate::config::{Config, Durability, Location, Retention};
use crate::delivery::{DeliveryId, EndpointSpec, Kinds};
use crate::engine::{Engine, State};
use crate::error::{Error, ErrorKind};
use crate::event::{Event, EventKind};
use crate::job::{JobId, JobStatus};
use crate::live::Offer;
use crate::new_job::NewJob;
use crate::outlet::{Office, OpenOutlet, Outlet};
use crate::phase::stop::StopReason;
use crate::phase::{JobType, Phase, Registry};
use crate::retention::Pruner;
use crate::store::ops::{ClaimRequest, Claimed, Op, PlannedJob, Settle, Source};
use crate::store::outbox::{Attempted, Verdict};
use crate::store::seam::{self, Committed};
use crate::store::sqlite::SqliteStore;
use crate::store::{Details, Done, Store};
use crate::sync::{Mutex, Receiver, Sender, pause as pause_for, unbounded};
use crate::time::{Clock, Moment, Timestamp, monotonic};
use crate::transition::{self, Edge, Flags, Input, JobRow};

const PATIENCE: Duration = Duration::from_secs(20);
const ONE: Phase<()> = Phase::new("one");

/// Writes down what it is told.
struct Stub {
    engine: Arc<OnceLock<Weak<Engine>>>,
    /// How many jobs were under way each time.
    arrived: (Sender<usize>, Receiver<usize>),
    not_recorded: Mutex<Vec<DeliveryId>>,
    on_look: Box<dyn Fn() + Send + Sync>,
}

impl Outlet for Stub {
    fn arrived(&self, _: &[i64]) {
        let engine = self.engine.get().and_then(Weak::upgrade);
        let under_way = engine.map_or(0, |engine| engine.live.len());
        self.arrived
            .0
            .send(under_way)
            .expect("we hold the other end");
    }

    fn recorded(&self, _: &Attempted) {}

    fn not_recorded(&self, attempted: &Attempted) {
        self.not_recorded.lock().push(attempted.id);
    }

    fn look(&self) {
        (self.on_look)();
    }

    fn again(&self) -> Option<Moment> {
        None
    }

    fn drain(&self) {}

    fn is_drained(&self) -> bool {
        true
    }

    fn close(&self, _: Duration) {}
}

/// A queue in memory whose jobs end at once, and what its outlet was told. Without workers if nothing is to run.
fn open(workers: usize) -> (Arc<Engine>, Arc<Stub>) {
    let job_type = JobType::<Value>::new("job").phase(ONE, |_| Ok(()));
    let slot = Arc::default();
    open_at(Location::Memory, workers, job_type, &slot, || {})
}

fn open_at(
    location: Location,
    workers: usize,
    job_type: JobType<Value, ()>,
    slot: &Arc<OnceLock<Weak<Engine>>>,
    on_look: impl Fn() + Send + Sync + 'static,
) -> (Arc<Engine>, Arc<Stub>) {
    let mut registry = Registry::default();
    registry.add(job_type.into_def()).expect("a sound type");
    let mut config = Config::new(location);
    config.workers = workers;
    let stub = Arc::new(Stub {
        engine: slot.clone(),
        arrived: unbounded(),
        not_recorded: Mutex::default(),
        on_look: Box::new(on_look),
    });
    let outlet = stub.clone();
    let open: OpenOutlet = Box::new(move |_: Office| outlet as Arc<dyn Outlet>);
    let engine =
        Engine::open(config, registry, Clock::system(), Some(open), slot).expect("it opens");
    (engine, stub)
}

fn job() -> PlannedJob {
    PlannedJob {
        job: NewJob::new("job", &1).expect("JSON"),
        plan: None,
    }
}

fn close(engine: &Engine) {
    engine.stop_intake();
    engine.live.close();
    engine.stop_workers();
    engine.stop_threads();
    engine.close_store();
}

/// A job that was claimed, by whoever calls.
fn claimed() -> (JobRow, Claimed) {
    let now = Timestamp::from_millis(1_800_000_000_000);
    let pending = JobRow {
        id: JobId::from_i64(7),
        type_id: 1,
        plan_id: 1,
        status: JobStatus::Pending,
        priority: 0,
        run_at: now,
        epoch: 0,
        attempt: 0,
        phase_index: 0,
        phase_count: 1,
        phase_attempt: 0,
        crash_count: 0,
        created_at: now,
        started_at: None,
        phase_started_at: None,
        finished_at: None,
        deadline: None,
        last_seq: 1,
        flags: Flags::default(),
    };
    let row = transition::decide(&pending, &Input::Claim, now)
        .expect("it may be claimed")
        .after;
    let job_type: Arc<str> = "job".into();
    let plan = [crate::job::PhaseName::new("one")].into();
    let details = Details::default();
    let claimed = Claimed {
        row,
        job_type,
        plan,
        details,
    };
    (row, claimed)
}

/// A queue that was resumed while the bell of a client was answered stayed paused, whatever its file said.
#[test]
fn an_older_look_at_what_is_paused_does_not_undo_a_later_one() {
    let pruner = Pruner::new(Retention::default(), Timestamp::default());
    let mut state = State::new(pruner);
    let (older, later) = (state.next_look(), state.next_look());
    state.take_pauses(later, false, HashSet::new());
    state.take_pauses(older, true, HashSet::new());
    assert!(!state.is_paused);
}

/// A shutdown between the two found nothing under way and nothing to send: the last deliveries waited for the next start.
#[test]
fn deliveries_of_the_end_are_told_before_the_job_is_over() {
    let (engine, stub) = open(1);
    let mut job = NewJob::new("job", &1).expect("JSON");
    job.endpoints = vec![EndpointSpec {
        url: "http://a.example/".to_owned(),
        events: Kinds::of([EventKind::Completed]),
        secrets: Vec::new(),
    }];
    let plan = None;
    engine
        .call(Op::Enqueue(vec![PlannedJob { job, plan }]))
        .expect("it is stored");
    assert_eq!(stub.arrived.1.recv_timeout(PATIENCE), Ok(1), "under way");
    close(&engine);
}

/// A delivery whose outcome could not be recorded in a commit of its own was under way for ever.
#[test]
fn the_outlet_is_told_what_cannot_be_recorded() {
    let (engine, stub) = open(0);
    let id = DeliveryId::from_i64(5);
    let attempted = Attempted {
        id,
        due: None,
        at: engine.clock.now(),
        took_ms: 1,
        status: Some(200),
        error: None,
        answer: None,
        verdict: Verdict::Delivered,
    };
    engine.refused(&Op::Attempted(attempted), &damaged());
    assert_eq!(*stub.not_recorded.lock(), [id]);
    close(&engine);
}

fn damaged() -> Error {
    Error::new(ErrorKind::Corrupt, "on purpose")
}

/// Its job could be claimed again, and entered by a second handler.
#[test]
fn a_handler_whose_timeout_cannot_be_recorded_is_inside_still() {
    let (engine, _) = open(0);
    let (row, claimed) = claimed();
    engine.begin(claimed);
    let now = engine.clock.moment();
    assert!(engine.live.take(Offer::of(&row), now).is_some());
    let timeout = Settle {
        is_from: Source::Supervisor(StopReason::Timeout),
        ..Settle::void(&row, Input::HandlerCancelled { epoch: row.epoch })
    };
    engine.refused(&Op::Settle(timeout), &damaged());
    assert_eq!((engine.live.len(), engine.live.inside_count()), (0, 1));
    assert_eq!(engine.live.zombies(), HashSet::from([row.id]));
    assert!(engine.live.returned(row.id, row.epoch).is_some());
    close(&engine);
}

/// Whoever answered the bell of another process that had cancelled the job did not know of the claim yet: its handler was never told.
#[test]
fn a_claim_that_another_process_ended_before_we_knew_of_it_is_not_entered() {
    let (engine, _) = open(0);
    let now = engine.clock.now();
    engine.request(&[], now);
    // It has cancelled and deleted the job since our commit, and rings.
    engine.follow_bell();
    let (row, claimed) = claimed();
    let mut committed = Committed::default();
    committed.claims.claimed.push(claimed);
    engine.committed(Vec::new(), &mut committed, Duration::ZERO, now);
    assert!(
        engine
            .live
            .take(Offer::of(&row), engine.clock.moment())
            .is_none()
    );
    close(&engine);
}

/// Claims in the commit of a pause were entered after it had been answered.
#[test]
fn a_claim_of_what_is_paused_is_given_back() {
    let (engine, _) = open(0);
    engine.state.lock().is_paused = true;
    let (row, of_queue) = claimed();
    engine.begin(of_queue);
    assert!(
        engine
            .live
            .take(Offer::of(&row), engine.clock.moment())
            .is_none()
    );
    {
        let mut state = engine.state.lock();
        state.is_paused = false;
        state.paused_types = HashSet::from(["job".into()]);
    }
    let (_, of_type) = claimed();
    engine.begin(of_type);
    assert!(
        engine
            .live
            .take(Offer::of(&row), engine.clock.moment())
            .is_none()
    );
    assert_eq!(engine.live.len(), 0);
    close(&engine);
}

/// The commit of a phase that `row` has behind it, with this answer.
fn phase_committed(engine: &Engine, row: &JobRow, answer: Option<JobRow>) {
    let input = Input::PhaseCompleted {
        epoch: row.epoch,
        edge: Edge::GoOn,
    };
    let mut committed = Committed {
        answers: vec![Ok(Done::Settled(answer))],
        ..Committed::default()
    };
    let ops = vec![Op::Settle(Settle::void(row, input))];
    engine.committed(ops, &mut committed, Duration::ZERO, engine.clock.now());
}

/// A pause, or the end, that came after its commit had been asked for: the next phase was entered by whoever came first, or was under
/// way, in a file that nobody runs, until the next start.
#[test]
fn the_next_phase_of_a_job_rests_when_the_queue_does() {
    for is_end in [false, true] {
        let (engine, _) = open(0);
        let (row, claimed) = claimed();
        engine.begin(claimed);
        let now = engine.clock.moment();
        assert!(engine.live.take(Offer::of(&row), now).is_some());
        if is_end {
            engine.stop_intake();
        } else {
            engine.state.lock().is_paused = true;
        }
        let next = JobRow {
            phase_index: 1,
            phase_count: 2,
            ..row
        };
        phase_committed(&engine, &row, Some(next));
        assert!(engine.live.take(Offer::of(&next), now).is_none());
        assert_eq!(engine.live.len(), 0, "it is given back");
        close(&engine);
    }
}

/// It was remembered, and shown, until the queue was closed.
#[test]
fn the_progress_of_a_job_that_another_process_has_ended_is_forgotten() {
    let (engine, _) = open(0);
    let (row, claimed) = claimed();
    engine.begin(claimed);
    let now = engine.clock.moment();
    assert!(engine.live.take(Offer::of(&row), now).is_some());
    engine.bus.progress(Event {
        seq: 0,
        kind: EventKind::Progress,
        job_id: row.id,
        job_type: "job".into(),
        at: now.now,
        phase: None,
        attempt: 1,
        data: serde_json::Map::new(),
    });
    assert_eq!(engine.bus.progress_after(0).0.len(), 1);
    phase_committed(&engine, &row, None);
    assert!(engine.bus.progress_after(0).0.is_empty());
    close(&engine);
}

/// It was told that the queue was not open yet: a job that had waited in the file to enqueue others failed, and so did a plan.
#[test]
fn a_handler_that_runs_before_the_opening_is_over_has_its_queue() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = || Location::File(dir.path().join("jobs.db"));
    let idle = JobType::<Value>::new("job").phase(ONE, |_| Ok(()));
    let (engine, _) = open_at(file(), 0, idle, &Arc::default(), || {});
    engine.call(Op::Enqueue(vec![job()])).expect("it is stored");
    close(&engine);

    let slot: Arc<OnceLock<Weak<Engine>>> = Arc::default();
    let (tell, told) = unbounded();
    let own = slot.clone();
    let parent = JobType::<Value>::new("job").phase(ONE, move |_| {
        let engine = own.get().and_then(Weak::upgrade);
        tell.send(engine.is_some_and(|engine| engine.ask(Op::Probe).is_ok()))
            .ok();
        Ok(())
    });
    let (pass_on, answered) = unbounded();
    // Called by the opening, and so it is not over before the handler has run.
    let on_look = move || {
        pass_on.send(told.recv_timeout(PATIENCE)).ok();
    };
    let (engine, _) = open_at(file(), 1, parent, &slot, on_look);
    assert_eq!(answered.recv_timeout(PATIENCE), Ok(Ok(true)));
    close(&engine);
}

/// Looks whether a file is there when it is dropped.
struct Witness(std::path::PathBuf, Sender<bool>);

impl Drop for Witness {
    fn drop(&mut self) {
        self.1.send(self.0.exists()).ok();
    }
}

/// The lock was let go first: whoever got it next had bound its own socket there when ours was removed by its name.
#[test]
fn an_opening_that_fails_removes_its_socket_before_it_lets_the_file_go() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("jobs.db");
    let (tell, told) = unbounded();
    // Goes with the registry, which the engine drops before its lock.
    let witness = Witness(dir.path().join("jobs.db-wake"), tell);
    let job_type = JobType::<Value>::new("job").phase(ONE, move |_| {
        let _ = &witness;
        Ok(())
    });
    let mut registry = Registry::default();
    registry.add(job_type.into_def()).expect("a sound type");
    // An error leaves the same way.
    let outlet: OpenOutlet = Box::new(|_: Office| panic!("on purpose"));
    let config = Config::new(Location::File(path));
    let slot = OnceLock::new();
    let open = || Engine::open(config, registry, Clock::system(), Some(outlet), &slot);
    assert!(catch_unwind(AssertUnwindSafe(open)).is_err());
    assert_eq!(told.try_recv(), Ok(false), "it is removed by then");
}

/// The stop after an outcome was lost ended with the bell of any other process, and with any pause, before somebody had looked.
#[test]
fn only_who_resumes_lifts_the_stop_after_an_outcome_was_lost() {
    let (engine, _) = open(0);
    let stops = || engine.state.lock().claim_failure.is_some();
    let set_paused = |name: Option<&str>, paused| {
        let job_type = name.map(Arc::from);
        let done = engine.call(Op::SetPaused { job_type, paused });
        done.expect("it is stored");
    };
    for job_type in [None, Some("job")] {
        engine.claims_failed(&damaged());
        engine.follow_bell();
        assert!(stops(), "after a bell");
        set_paused(job_type, true);
        assert!(stops(), "after a pause");
        engine.follow_bell();
        assert!(stops(), "nothing has changed");
        set_paused(job_type, false);
        assert!(!stops(), "resumed");
        engine.claims_failed(&damaged());
        set_paused(job_type, false);
        assert!(!stops(), "resumed, although it was not paused");

        // By another process.
        engine.claims_failed(&damaged());
        let types = HashSet::from_iter(job_type.map(Arc::from));
        let mut state = engine.state.lock();
        for (is_paused, types) in [(job_type.is_none(), types), (false, HashSet::new())] {
            assert!(state.claim_failure.is_some(), "not resumed yet");
            let look = state.next_look();
            state.take_pauses(look, is_paused, types);
        }
        drop(state);
        assert!(!stops(), "resumed by another process");
    }
    close(&engine);
}

/// It is not in the log, so its number would not have told; and whose claims went on then nobody knew.
#[test]
fn a_pause_that_nobody_rang_for_is_noticed_with_the_next_commit() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("jobs.db");
    let job_type = JobType::<Value>::new("job").phase(ONE, |_| Ok(()));
    let location = Location::File(path.clone());
    let (engine, _) = open_at(location, 0, job_type, &Arc::default(), || {});
    let looks = engine.state.lock().looks;
    for _ in 0..3 {
        engine.call(Op::Probe).expect("it is written");
    }
    let mut other = SqliteStore::open(&path, Durability::Normal).expect("a second connection");
    let pause = [Op::SetPaused {
        job_type: None,
        paused: true,
    }];
    let done = other.transact(&mut |rows| {
        seam::run(rows, &pause, &ClaimRequest::default(), engine.now(), 1).map(drop)
    });
    done.expect("it is written");
    engine.call(Op::Probe).expect("it is written");
    let until = monotonic() + PATIENCE;
    while !engine.state.lock().is_paused {
        assert!(monotonic() < until, "it is noticed");
        pause_for(Duration::from_millis(1));
    }
    let looked = engine.state.lock().looks - looks;
    assert_eq!(looked, 1, "what it writes itself is no news");
    close(&engine);
}

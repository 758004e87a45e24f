//! Where handlers stand until the history says what they do next.
//!
//! A handler tells what it sees when it is entered, then waits for orders. So the test knows who is inside, and nothing goes on by
//! itself. Each opening of the queue has a stage of its own.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use stepwell::{PhaseContext, PhaseError};

/// What a handler does.
#[derive(Clone, Debug)]
pub(crate) enum Order {
    Save(Value),
    /// Returns now.
    Answer(Answer),
    /// Returns when its flag is set, and not before.
    AtFlag(Answer),
}

#[derive(Clone, Debug)]
pub(crate) enum Answer {
    Done(Value),
    Retry(String),
    RetryAfter(Duration, String),
    Snooze(Duration),
    Fail(String),
    Cancel,
    Panic(String),
    /// What `check` says.
    Stopped,
}

#[derive(Default)]
pub(crate) struct Stage {
    state: Mutex<State>,
    bell: Condvar,
}

#[derive(Default)]
struct State {
    /// What each handler saw when it was entered.
    inside: BTreeMap<i64, Value>,
    orders: BTreeMap<i64, Order>,
    /// Answers to `Save`.
    saved: BTreeMap<i64, bool>,
    /// Handlers that are known to have returned too late.
    late: u64,
    problems: Vec<String>,
    /// Nobody waits here any more.
    is_over: bool,
}

thread_local! {
    /// The stage that this worker has left last.
    static LEFT: RefCell<Option<Arc<Stage>>> = const { RefCell::new(None) };
}

impl Stage {
    /// Waits until those who are inside see exactly `expected`, and `late` of them have returned late.
    pub(crate) fn wait(
        &self,
        expected: &BTreeMap<i64, Value>,
        late: u64,
        until: Instant,
    ) -> Result<(), String> {
        let mut state = self.state.lock().expect("no handler panics with the lock");
        loop {
            if let Some(problem) = state.problems.first() {
                return Err(problem.clone());
            }
            let left = until.saturating_duration_since(Instant::now());
            if state.inside == *expected && state.late == late {
                return Ok(());
            }
            if left.is_zero() {
                return Err(format!(
                    "inside are\n  {:?}, {} late, expected\n  {expected:?}, {late} late",
                    state.inside, state.late
                ));
            }
            state = self.bell.wait_timeout(state, left).expect("as above").0;
        }
    }

    /// Tells the handler of a job what to do.
    pub(crate) fn order(&self, job: i64, order: Order) {
        self.state
            .lock()
            .expect("as above")
            .orders
            .insert(job, order);
        self.bell.notify_all();
    }

    /// Has a handler save, and answers whether it could.
    pub(crate) fn save(&self, job: i64, value: Value, until: Instant) -> Result<bool, String> {
        self.order(job, Order::Save(value));
        let mut state = self.state.lock().expect("as above");
        loop {
            if let Some(saved) = state.saved.remove(&job) {
                return Ok(saved);
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(format!("job {job}: its handler does not save"));
            }
            state = self.bell.wait_timeout(state, left).expect("as above").0;
        }
    }

    /// Everybody goes, whatever he was told.
    pub(crate) fn clear(&self) {
        self.state.lock().expect("as above").is_over = true;
        self.bell.notify_all();
    }

    fn enter(&self, job: i64, seen: Value) {
        let mut state = self.state.lock().expect("as above");
        if let Some(other) = state.inside.insert(job, seen) {
            let problem = format!("job {job}: two handlers at a time, the first one saw {other}");
            state.problems.push(problem);
        }
        drop(state);
        self.bell.notify_all();
    }

    fn next(&self, job: i64) -> Order {
        let mut state = self.state.lock().expect("as above");
        loop {
            if let Some(order) = state.orders.remove(&job) {
                return order;
            }
            if state.is_over {
                return Order::Answer(Answer::Stopped);
            }
            state = self.bell.wait(state).expect("as above");
        }
    }

    fn leave(self: &Arc<Stage>, job: i64) {
        LEFT.with(|left| left.replace(Some(self.clone())));
        self.state.lock().expect("as above").inside.remove(&job);
        self.bell.notify_all();
    }
}

/// The handler of every phase.
pub(crate) fn handler(
    stage: &Arc<Stage>,
) -> impl Fn(&PhaseContext<Value>) -> Result<Value, PhaseError> + Send + Sync + use<> {
    let stage = stage.clone();
    move |cx| {
        let job = cx.job_id().as_i64();
        stage.enter(job, seen(cx)?);
        let answer = loop {
            match stage.next(job) {
                Order::Save(value) => {
                    let is_saved = cx.save(&value).is_ok();
                    stage
                        .state
                        .lock()
                        .expect("as above")
                        .saved
                        .insert(job, is_saved);
                    stage.bell.notify_all();
                }
                Order::Answer(answer) => break answer,
                Order::AtFlag(answer) => {
                    // No clock ever comes there.
                    cx.sleep(Duration::from_secs(1 << 40)).ok();
                    break answer;
                }
            }
        };
        stage.leave(job);
        act(answer)
    }
}

/// Everything that a handler can see.
fn seen(cx: &PhaseContext<Value>) -> Result<Value, PhaseError> {
    let (plan, at) = cx.plan();
    let results: Result<Vec<Value>, PhaseError> = plan[..at]
        .iter()
        .map(|phase| cx.get_json(&phase.name))
        .collect();
    let saved: Option<Value> = cx.saved()?;
    Ok(json!({
        "phase": cx.phase(), "attempt": cx.attempt(), "input": cx.input(), "results": results?, "saved": saved,
        "error": cx.last_error().map(|error| (error.kind, error.attempt, error.at)),
        "interruption": cx.interruption(), "key": cx.idempotency_key(), "deadline": cx.deadline(),
    }))
}

fn act(answer: Answer) -> Result<Value, PhaseError> {
    Err(match answer {
        Answer::Done(result) => return Ok(result),
        Answer::Retry(message) => PhaseError::retry(message),
        Answer::RetryAfter(delay, message) => PhaseError::retry_after(delay, message),
        Answer::Snooze(delay) => PhaseError::snooze(delay),
        Answer::Fail(message) => PhaseError::fail(message),
        Answer::Cancel => PhaseError::cancel(),
        Answer::Panic(message) => panic!("{message}"),
        Answer::Stopped => PhaseError::retry("stopped"),
    })
}

/// The queue tells at level debug when a handler has returned whose claim was over: there is no other sign of it, and a job that is
/// tried again waits for it.
struct Ear;

impl log::Log for Ear {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        metadata.level() == log::Level::Debug
    }

    fn log(&self, record: &log::Record<'_>) {
        let is_late = |text: String| text.ends_with("returned after its claim was over");
        if record.level() != log::Level::Debug || !is_late(record.args().to_string()) {
            return;
        }
        LEFT.with(|left| {
            if let Some(stage) = &*left.borrow() {
                stage.state.lock().expect("as above").late += 1;
                stage.bell.notify_all();
            }
        });
    }

    fn flush(&self) {}
}

/// Once for each process.
pub(crate) fn listen() {
    if log::set_logger(&Ear).is_ok() {
        log::set_max_level(log::LevelFilter::Debug);
    }
}

//! What a handler sees while it runs: its input, earlier results, its history, and its cancel flag. L0.
//!
//! The context reaches the engine through [`Services`], so that this file knows nothing of what lies behind it.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::Result;
use crate::job::{Interruption, JobError, JobId, PhaseName};
use crate::json;
use crate::phase::stop::{StopFlag, StopReason};
use crate::phase::{self, Phase, PhaseError};
use crate::time::{Clock, Timestamp};

/// What the engine does for a running handler.
pub(crate) trait Services: Send + Sync {
    /// Saves a checkpoint; it is on disk when this returns.
    fn save(&self, attempt: &Attempt, json: String) -> Result<()>;
    fn saved(&self, attempt: &Attempt) -> Result<Option<String>>;
    /// The stored result of an earlier phase of this job, by its index.
    fn result(&self, attempt: &Attempt, phase_index: usize) -> Result<Option<Arc<str>>>;
    fn progress(&self, attempt: &Attempt, fraction: f64, message: &str);
    fn clock(&self) -> &Clock;
}

/// The facts of one try of one phase.
pub(crate) struct Attempt {
    pub(crate) job_id: JobId,
    pub(crate) job_type: Arc<str>,
    pub(crate) plan: crate::event::Plan,
    pub(crate) phase_index: usize,
    pub(crate) epoch: i64,
    pub(crate) attempt: u32,
    pub(crate) created_at: Timestamp,
    pub(crate) deadline: Option<Timestamp>,
    pub(crate) last_error: Option<Arc<JobError>>,
    pub(crate) interruption: Option<Arc<Interruption>>,
    pub(crate) flag: Arc<StopFlag>,
    pub(crate) services: Arc<dyn Services>,
}

impl Attempt {
    pub(crate) fn phase(&self) -> &PhaseName {
        &self.plan[self.phase_index]
    }
}

/// What a handler gets: its input, the results of the phases before it, and what it may ask of the queue.
///
/// All of its methods may be called from any thread that the handler starts.
pub struct PhaseContext<I> {
    input: I,
    attempt: Attempt,
}

impl<I> PhaseContext<I> {
    pub(crate) fn new(input: I, attempt: Attempt) -> PhaseContext<I> {
        PhaseContext { input, attempt }
    }

    /// The claim that this is a try of.
    #[cfg(all(test, stepwell_shuttle))]
    pub(crate) fn epoch(&self) -> i64 {
        self.attempt.epoch
    }

    /// What the job was enqueued with.
    pub fn input(&self) -> &I {
        &self.input
    }

    /// The result of an earlier phase.
    ///
    /// # Errors
    /// Pass them on with `?`. When the phase has no usable result (its version or the shape of its type has changed), that
    /// phase and all after it run again. When the key names no earlier phase of this job, the job fails.
    pub fn get<T: DeserializeOwned>(&self, phase: Phase<T>) -> std::result::Result<T, PhaseError> {
        let (name, version) = phase.id();
        let json = self.result(name)?;
        let stored = self
            .attempt
            .plan
            .iter()
            .find(|planned| &*planned.name == name);
        if stored.is_some_and(|planned| planned.version != version) {
            let problem = format!("the result of phase {name:?} is not of version {version}");
            return Err(PhaseError::rewind(name, problem));
        }
        phase::decode(name, &json)
    }

    /// The result of the earlier phase `name`, whatever its version: for phases whose names are not known beforehand.
    ///
    /// # Errors
    /// As for [`get`](PhaseContext::get).
    pub fn get_json(&self, name: &str) -> std::result::Result<serde_json::Value, PhaseError> {
        phase::decode(name, &self.result(name)?)
    }

    fn result(&self, name: &str) -> std::result::Result<Arc<str>, PhaseError> {
        let index = self
            .attempt
            .plan
            .iter()
            .position(|planned| &*planned.name == name);
        let Some(index) = index.filter(|index| *index < self.attempt.phase_index) else {
            let here = &self.attempt.phase().name;
            return Err(PhaseError::fail(format!(
                "phase {here:?} asked for the result of {name:?}, which is no earlier phase"
            )));
        };
        match self.attempt.services.result(&self.attempt, index)? {
            Some(json) => Ok(json),
            None => Err(PhaseError::rewind(
                name,
                format!("the result of phase {name:?} is missing"),
            )),
        }
    }

    /// The names of this job's phases, in order, and the position of the present one (0-based).
    pub fn plan(&self) -> (&[PhaseName], usize) {
        (&self.attempt.plan, self.attempt.phase_index)
    }

    /// The job's id.
    pub fn job_id(&self) -> JobId {
        self.attempt.job_id
    }

    /// The job's type.
    pub fn job_type(&self) -> &str {
        &self.attempt.job_type
    }

    /// The name of the phase that runs.
    pub fn phase(&self) -> &str {
        &self.attempt.phase().name
    }

    /// Which try of the job this is, counted from 1 in each attempt series.
    pub fn attempt(&self) -> u32 {
        self.attempt.attempt
    }

    /// When the job was enqueued.
    pub fn created_at(&self) -> Timestamp {
        self.attempt.created_at
    }

    /// When this try will be given up: the phase's timeout or the job's deadline, whichever is earlier.
    /// The timeout as it looked when the try began: it does not follow a clock that is set.
    pub fn deadline(&self) -> Option<Timestamp> {
        self.attempt.deadline
    }

    /// The error of the try before this one, in this or an earlier phase.
    pub fn last_error(&self) -> Option<&JobError> {
        self.attempt.last_error.as_deref()
    }

    /// What was cut off in this job by a crash, a power cut or a shutdown, if anything was. The outcome of that phase's side
    /// effects is unknown: check before you repeat them. Best effort for a phase whose handler had returned when the process died
    /// and whose outcome was not on disk yet: told, unless its worker had gone on to another phase.
    pub fn interruption(&self) -> Option<&Interruption> {
        self.attempt.interruption.as_deref()
    }

    /// A key that is the same for every try of this phase of this job, over retries (also by hand), crashes and restarts:
    /// `job:phase`. Pass it to systems that take idempotency keys. Jobs of another file have the same keys: where several queues
    /// use one system, put [`JobQueue::file_id`](crate::JobQueue::file_id) before it.
    pub fn idempotency_key(&self) -> String {
        format!("{}:{}", self.attempt.job_id, self.phase())
    }

    /// Whether the handler should stop: the job was cancelled, has timed out, or the queue's shutdown is past its deadline.
    pub fn is_cancelled(&self) -> bool {
        self.attempt.flag.is_set()
    }

    /// Why the handler should stop, if it should.
    pub fn stop_reason(&self) -> Option<StopReason> {
        self.attempt
            .flag
            .is_set()
            .then(|| self.attempt.flag.reason())
            .flatten()
    }

    /// Returns an error when the handler should stop. Call it between steps: `cx.check()?`.
    ///
    /// # Errors
    /// When [`is_cancelled`](PhaseContext::is_cancelled). Pass it on.
    pub fn check(&self) -> std::result::Result<(), PhaseError> {
        if self.is_cancelled() {
            Err(PhaseError::stopped())
        } else {
            Ok(())
        }
    }

    /// Sleeps, and wakes up at once when the handler should stop.
    ///
    /// # Errors
    /// When woken up by that. Pass it on.
    pub fn sleep(&self, duration: Duration) -> std::result::Result<(), PhaseError> {
        let slept = self
            .attempt
            .flag
            .sleep(self.attempt.services.clock(), duration);
        if slept {
            Ok(())
        } else {
            Err(PhaseError::stopped())
        }
    }

    /// Tells listeners how far this phase is: a fraction from 0 to 1 (what is no number is 0) and a message. Best effort: not stored, and only the
    /// newest of a job is passed on. Cheap enough to call often.
    pub fn progress(&self, fraction: f64, message: &str) {
        let fraction = if fraction.is_nan() { 0.0 } else { fraction };
        self.attempt
            .services
            .progress(&self.attempt, fraction.clamp(0.0, 1.0), message);
    }

    /// Saves a checkpoint inside this phase. It is on disk when this returns, is kept over retries and crashes, and dropped
    /// when the phase completes. Each call replaces the one before.
    ///
    /// # Errors
    /// When the checkpoint is larger than a result may be, the store fails, or the handler should stop.
    pub fn save(&self, value: &impl Serialize) -> std::result::Result<(), PhaseError> {
        let json = serde_json::to_string(value)?;
        self.check()?;
        self.attempt.services.save(&self.attempt, json)?;
        Ok(())
    }

    /// What [`save`](PhaseContext::save) saved last in this phase, by this or an earlier try.
    ///
    /// # Errors
    /// When it does not decode as `T`, or the store fails.
    pub fn saved<T: DeserializeOwned>(&self) -> std::result::Result<Option<T>, PhaseError> {
        match self.attempt.services.saved(&self.attempt)? {
            Some(json) => serde_json::from_str(&json).map(Some).map_err(|error| {
                let why = json::without_values(&error);
                PhaseError::retry(format!("what was saved cannot be decoded: {why}"))
            }),
            None => Ok(None),
        }
    }
}

impl<I> fmt::Debug for PhaseContext<I> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "PhaseContext(job {}, phase {}, attempt {})",
            self.job_id(),
            self.phase(),
            self.attempt()
        )
    }
}

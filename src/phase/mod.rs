//! Job types and phases: what a user writes, and what a handler sees while it runs. L0.
//!
//! A handler is any `Fn(&PhaseContext<Input>) -> Result<T, PhaseError>`. Types stop here: the engine behind passes JSON text
//! and reaches the handler through [`TypeDef`], which knows how to turn one into the other.

pub(crate) mod context;
mod registry;
pub(crate) mod stop;

use std::fmt;
use std::marker::PhantomData;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{Error, ErrorKind, Result, panic_text};
use crate::job::{ErrorCause, PhaseName};
use crate::json;
use crate::phase::context::{Attempt, PhaseContext};
use crate::phase::registry::Phases;
use crate::retry::RetryPolicy;

pub(crate) use registry::{Registry, Resolved, TypeDef};

/// A phase key: the name of a phase, the type of its result, and its own limits.
///
/// Make it a `const`: the same key registers the handler and reads the result in later phases.
///
/// ```
/// use std::time::Duration;
/// use stepwell::Phase;
///
/// const FETCH: Phase<String> = Phase::new("fetch").version(2).timeout(Duration::from_secs(30)).max_attempts(10);
/// assert_eq!(FETCH.name(), "fetch");
/// ```
pub struct Phase<T> {
    name: &'static str,
    version: u32,
    timeout: Option<Duration>,
    max_attempts: Option<u32>,
    result: PhantomData<fn() -> T>,
}

impl<T> Phase<T> {
    /// The phase `name` (1 to 128 of `[A-Za-z0-9_.:-]`), version 1.
    #[must_use]
    pub const fn new(name: &'static str) -> Phase<T> {
        Phase {
            name,
            version: 1,
            timeout: None,
            max_attempts: None,
            result: PhantomData,
        }
    }

    /// Raise it when the meaning or shape of the result changes: results of another version count as missing, and this phase
    /// and all after it run again. Defaults to `1`.
    #[must_use]
    pub const fn version(mut self, version: u32) -> Phase<T> {
        self.version = version;
        self
    }

    /// After this long the try has failed, whatever the handler does, and whatever the wall clock is set to meanwhile. Defaults to
    /// no timeout.
    #[must_use]
    pub const fn timeout(mut self, timeout: Duration) -> Phase<T> {
        self.timeout = Some(timeout);
        self
    }

    /// Tries of this phase in an attempt series, instead of those of the job type's policy, which still says how long to wait. They
    /// count as tries of the job too, for the phases that have no number of their own. Defaults to the policy's.
    #[must_use]
    pub const fn max_attempts(mut self, max: u32) -> Phase<T> {
        self.max_attempts = Some(max);
        self
    }

    /// Its name.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        self.name
    }

    pub(crate) fn id(&self) -> (&'static str, u32) {
        (self.name, self.version)
    }
}

impl<T> Clone for Phase<T> {
    fn clone(&self) -> Phase<T> {
        *self
    }
}

impl<T> Copy for Phase<T> {}

impl<T> fmt::Debug for Phase<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Phase({} v{})", self.name, self.version)
    }
}

/// One phase of a plan that is computed from a job's input. See [`JobType::planned`].
#[derive(Clone, Debug)]
pub struct PhaseSpec {
    pub(crate) name: PhaseName,
    pub(crate) timeout: Option<Duration>,
    pub(crate) retry: Option<RetryPolicy>,
    /// Of a fixed phase: its own number of tries, by its type's policy.
    max_attempts: Option<u32>,
}

impl PhaseSpec {
    /// The phase `name`, version 1.
    #[must_use]
    pub fn new(name: impl Into<Arc<str>>) -> PhaseSpec {
        PhaseSpec {
            name: PhaseName::new(name),
            timeout: None,
            retry: None,
            max_attempts: None,
        }
    }

    /// See [`Phase::version`].
    #[must_use]
    pub fn version(mut self, version: u32) -> PhaseSpec {
        self.name.version = version;
        self
    }

    /// See [`Phase::timeout`].
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> PhaseSpec {
        self.timeout = Some(timeout);
        self
    }

    /// A policy for this phase alone, which counts the tries of this phase. They count as tries of the job too, for the phases that
    /// have no policy of their own. Defaults to the job's.
    #[must_use]
    pub fn retry(mut self, policy: RetryPolicy) -> PhaseSpec {
        self.retry = Some(policy);
        self
    }
}

/// The phases of one job and its retry policy, computed from its input.
#[derive(Clone, Debug, Default)]
pub struct JobPlan {
    pub(crate) phases: Vec<PhaseSpec>,
    pub(crate) retry: Option<RetryPolicy>,
}

impl JobPlan {
    /// A plan of these phases, in this order.
    #[must_use]
    pub fn new(phases: impl IntoIterator<Item = PhaseSpec>) -> JobPlan {
        JobPlan {
            phases: phases.into_iter().collect(),
            retry: None,
        }
    }

    /// The policy of this job. Defaults to the job type's.
    #[must_use]
    pub fn retry(mut self, policy: RetryPolicy) -> JobPlan {
        self.retry = Some(policy);
        self
    }
}

/// What a handler returns when it has no result: why, and what is to happen next.
///
/// Any [`std::error::Error`] becomes one by `?`, and means "try again by the policy".
pub struct PhaseError {
    pub(crate) answer: Answer,
    pub(crate) cause: ErrorCause,
    pub(crate) message: String,
    pub(crate) backtrace: Option<String>,
}

/// What is to happen after a try without a result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    Retry,
    RetryAfter(Duration),
    Snooze(Duration),
    Fail,
    Cancel,
    /// The handler saw its flag and stopped; who set it has decided what happens.
    Stopped,
    /// The result of this earlier phase cannot be used: run that one again.
    Rewind(Arc<str>),
}

impl PhaseError {
    fn new(answer: Answer, message: impl Into<String>) -> PhaseError {
        PhaseError {
            answer,
            cause: ErrorCause::Error,
            message: message.into(),
            backtrace: None,
        }
    }

    /// Where it was made, if `RUST_BACKTRACE` asks for it. Naming the places takes a tenth of a second in a large program: what is
    /// no error of the job goes without.
    fn traced(mut self) -> PhaseError {
        let backtrace = std::backtrace::Backtrace::capture();
        let captured = backtrace.status() == std::backtrace::BacktraceStatus::Captured;
        self.backtrace = captured.then(|| backtrace.to_string());
        self
    }

    /// Try again, by the retry policy.
    #[must_use]
    pub fn retry(message: impl Into<String>) -> PhaseError {
        PhaseError::new(Answer::Retry, message).traced()
    }

    /// Try again after `delay` instead of the policy's, if the policy has a try left.
    #[must_use]
    pub fn retry_after(delay: Duration, message: impl Into<String>) -> PhaseError {
        PhaseError::new(Answer::RetryAfter(delay), message).traced()
    }

    /// Not now: run this phase again after `delay`. No try is charged and no error recorded. If that is after the job's deadline the
    /// job fails at once.
    #[must_use]
    pub fn snooze(delay: Duration) -> PhaseError {
        PhaseError::new(Answer::Snooze(delay), "snoozed")
    }

    /// The job has failed; no more tries.
    #[must_use]
    pub fn fail(message: impl Into<String>) -> PhaseError {
        PhaseError::new(Answer::Fail, message).traced()
    }

    /// Cancel the job from within.
    #[must_use]
    pub fn cancel() -> PhaseError {
        PhaseError::new(Answer::Cancel, "cancelled by its handler")
    }

    pub(crate) fn stopped() -> PhaseError {
        PhaseError::new(Answer::Stopped, "stopped: the job was told to")
    }

    pub(crate) fn with_cause(mut self, cause: ErrorCause) -> PhaseError {
        self.cause = cause;
        self
    }

    /// The earlier phase `name` must run again, for a reason.
    pub(crate) fn rewind(name: &str, message: String) -> PhaseError {
        PhaseError::new(Answer::Rewind(name.into()), message).with_cause(ErrorCause::Decode)
    }

    /// What was wrong.
    #[must_use]
    pub fn message(&self) -> &str {
        &self.message
    }
}

impl fmt::Display for PhaseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl fmt::Debug for PhaseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PhaseError({:?}: {})", self.answer, self.message)
    }
}

/// `PhaseError` itself is no `std::error::Error`, so that this conversion can take all of them.
impl<E: std::error::Error> From<E> for PhaseError {
    fn from(error: E) -> PhaseError {
        let mut message = error.to_string();
        let mut source = error.source();
        while let Some(cause) = source {
            let text = cause.to_string();
            // Many errors print their source already.
            if !message.contains(&text) {
                message.push_str(": ");
                message.push_str(&text);
            }
            source = cause.source();
        }
        PhaseError::retry(message)
    }
}

pub(crate) type Handler =
    Arc<dyn Fn(Attempt, &str) -> std::result::Result<String, PhaseError> + Send + Sync>;
type Planner = Arc<dyn Fn(&str) -> Result<JobPlan> + Send + Sync>;

/// A job type: its name, its ordered phases with their handlers, and how its jobs are treated.
///
/// `I` is the input of its jobs, `O` the result of the last phase.
pub struct JobType<I, O = ()> {
    def: TypeDef,
    types: PhantomData<fn(I) -> O>,
}

impl<I: DeserializeOwned + 'static> JobType<I> {
    /// The job type `name` (1 to 128 of `[A-Za-z0-9_.:-]`), so far without phases.
    #[must_use]
    pub fn new(name: impl Into<Arc<str>>) -> JobType<I, ()> {
        JobType::with(
            name,
            Phases::Fixed {
                specs: Vec::new(),
                handlers: Vec::new(),
            },
        )
    }

    /// A job type whose phases are computed from each job's input, when it is enqueued and again when it runs: `plan` must
    /// give the same answer for the same input. It is called with no lock held; if it panics, the job cannot be planned. One handler
    /// runs all phases; [`PhaseContext::phase`] tells which.
    ///
    /// A new release of the program may plan other phases, or other versions of them. A job that was stored with the old ones is given
    /// back when its next try begins, before the handler is entered, and goes on by the new ones. No try is charged; its log has a
    /// `job:interrupted` with the reason `replanned`. Results are kept for the longest beginning of the new phases that has
    /// them, by name and version; the phase behind it and all after that run. This happens once for a job while the program
    /// runs: a `plan` that answers otherwise each time is not followed further.
    ///
    /// Each list of phases that differs from all before it stays in the file for ever, for the jobs and events that go by it. A
    /// handful is what this is made for; names or counts that come from the input (`page-1` to `page-731`) make a list for every job.
    #[must_use]
    pub fn planned<T: Serialize>(
        name: impl Into<Arc<str>>,
        plan: impl Fn(&I) -> std::result::Result<JobPlan, String> + Send + Sync + 'static,
        handler: impl Fn(&PhaseContext<I>) -> std::result::Result<T, PhaseError> + Send + Sync + 'static,
    ) -> JobType<I, T> {
        let name: Arc<str> = name.into();
        let of_type = name.clone();
        let planner: Planner = Arc::new(move |json| {
            let invalid = |problem| {
                Error::new(
                    ErrorKind::InvalidJob,
                    format!("job type {of_type:?}: {problem}"),
                )
            };
            // Decoding and dropping the input is the user's code too.
            let planned = catch_unwind(AssertUnwindSafe(|| {
                let input: I = serde_json::from_str(json).map_err(|error| {
                    let why = json::without_values(&error);
                    invalid(format!("its input cannot be decoded: {why}"))
                })?;
                plan(&input).map_err(invalid)
            }));
            planned.unwrap_or_else(|panic| {
                Err(invalid(format!("its plan panicked: {}", panic_text(panic))))
            })
        });
        JobType::with(
            name,
            Phases::Planned {
                planner,
                handler: erase(handler),
                is_mixed: false,
            },
        )
    }
}

impl<I, O> JobType<I, O> {
    fn with(name: impl Into<Arc<str>>, phases: Phases) -> JobType<I, O> {
        let def = TypeDef {
            name: name.into(),
            phases,
            retry: RetryPolicy::default(),
            deadline: None,
            max_crashes: None,
            concurrency: None,
        };
        JobType {
            def,
            types: PhantomData,
        }
    }

    /// How often and when a failed job is tried again. Defaults to [`RetryPolicy::default`].
    #[must_use]
    pub fn retry(mut self, policy: RetryPolicy) -> JobType<I, O> {
        self.def.retry = policy;
        self
    }

    /// Jobs that are not over this long after they may first start have failed; those that still wait for their turn then, when it
    /// comes. One whose next try would begin later than that fails at once. The deadline is given to a job by the queue that
    /// enqueues it and has this type; jobs of a [`Client`](crate::Client) need [`NewJob::deadline`](crate::NewJob::deadline).
    /// Defaults to no deadline.
    #[must_use]
    pub fn deadline(mut self, deadline: Duration) -> JobType<I, O> {
        self.def.deadline = Some(deadline);
        self
    }

    /// A job that kills its process more often than this has failed. Defaults to the queue's setting.
    #[must_use]
    pub fn max_crashes(mut self, max: u32) -> JobType<I, O> {
        self.def.max_crashes = Some(max);
        self
    }

    /// At most this many jobs of the type at a time. A job whose handler was told to stop and has not returned is not counted.
    /// Defaults to no limit but the number of workers.
    #[must_use]
    pub fn concurrency(mut self, max: u32) -> JobType<I, O> {
        self.def.concurrency = Some(max);
        self
    }

    pub(crate) fn into_def(self) -> TypeDef {
        self.def.finish()
    }
}

impl<I: DeserializeOwned + 'static, O> JobType<I, O> {
    /// Adds a phase: its key and its handler. A planned type has no use for it, and refuses it when the queue is opened.
    #[must_use]
    pub fn phase<T: Serialize>(
        mut self,
        phase: Phase<T>,
        handler: impl Fn(&PhaseContext<I>) -> std::result::Result<T, PhaseError> + Send + Sync + 'static,
    ) -> JobType<I, T> {
        let (name, version) = phase.id();
        let spec = PhaseSpec {
            name: PhaseName {
                name: name.into(),
                version,
            },
            timeout: phase.timeout,
            retry: None,
            max_attempts: phase.max_attempts,
        };
        match &mut self.def.phases {
            Phases::Fixed { specs, handlers } => {
                specs.push(spec);
                handlers.push(erase(handler));
            }
            Phases::Planned { is_mixed, .. } => *is_mixed = true,
        }
        JobType {
            def: self.def,
            types: PhantomData,
        }
    }
}

/// JSON text in, JSON text out.
fn erase<I: DeserializeOwned + 'static, T: Serialize>(
    handler: impl Fn(&PhaseContext<I>) -> std::result::Result<T, PhaseError> + Send + Sync + 'static,
) -> Handler {
    Arc::new(move |attempt, input| {
        let input: I = serde_json::from_str(input).map_err(|error| {
            let why = json::without_values(&error);
            PhaseError::fail(format!("the input cannot be decoded: {why}"))
                .with_cause(ErrorCause::Decode)
        })?;
        let result = handler(&PhaseContext::new(input, attempt))?;
        serde_json::to_string(&result).map_err(|error| {
            PhaseError::fail(format!("the result cannot be written as JSON: {error}"))
                .with_cause(ErrorCause::Result)
        })
    })
}

impl<I, O> fmt::Debug for JobType<I, O> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "JobType({:?})", self.def.name)
    }
}

/// The decoded result of a phase, or why it counts as missing.
pub(crate) fn decode<T: DeserializeOwned>(
    phase: &str,
    json: &str,
) -> std::result::Result<T, PhaseError> {
    serde_json::from_str(json).map_err(|error| {
        PhaseError::rewind(
            phase,
            format!(
                "the result of phase {phase:?} cannot be decoded: {}",
                json::without_values(&error)
            ),
        )
    })
}

//! The job types of the histories, and how a queue with them is opened: what is told to the queue, and what the model knows.

use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use stepwell::testing::FakeClock;
use stepwell::webhook::WebhookConfig;
use stepwell::{
    Builder, Durability, JobPlan, JobQueue, JobType, Keep, Phase, PhaseSpec, Retention, RetryPolicy,
};

use super::outbox::DELAYS;
use super::stage::{self, Stage};
use super::step::Config;

/// A phase by name and version.
pub(crate) type Name = (&'static str, u32);

pub(crate) const PLAIN: usize = 0;
pub(crate) const LIMITED: usize = 1;
pub(crate) const PLANNED: usize = 2;
pub(crate) const OWN: usize = 3;
pub(crate) const CHANGING: usize = 4;
pub(crate) const LATER: usize = 5;
pub(crate) const STRAY: usize = 6;
pub(crate) const NAMES: [&str; 7] = [
    "plain", "limited", "planned", "own", "changing", "later", "stray",
];

/// Phases that a job of the planned type can ask for.
pub(crate) const PLANS: [&[Name]; 4] = [
    &[("a", 1)],
    &[("a", 1), ("c", 1)],
    &[("c", 1), ("b", 1), ("a", 1)],
    &[("x", 1), ("b", 1)],
];
/// What the type `changing` was in each version of its program.
pub(crate) const VERSIONS: [&[Name]; 5] = [
    &[("a", 1), ("b", 1)],
    &[("a", 1), ("b", 1), ("c", 1)],
    &[("a", 2), ("b", 1)],
    &[("x", 1), ("a", 1), ("b", 1)],
    &[("b", 1)],
];

/// How a queue is opened: which program it is, so to speak.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Program {
    pub(crate) version: usize,
    pub(crate) has_later: bool,
}

/// The phases of a type whose phases are fixed.
pub(crate) fn fixed(kind: usize, program: Program) -> Option<&'static [Name]> {
    match kind {
        PLAIN => Some(&[("a", 1), ("b", 1), ("c", 1)]),
        LIMITED | OWN | LATER => Some(&[("a", 1), ("b", 1)]),
        CHANGING => Some(VERSIONS[program.version]),
        _ => None,
    }
}

pub(crate) fn is_registered(kind: usize, program: Program) -> bool {
    kind != STRAY && (kind != LATER || program.has_later)
}

pub(crate) fn concurrency(kind: usize) -> usize {
    if kind == LIMITED { 1 } else { usize::MAX }
}

/// Tries of the job, wait between them.
pub(crate) fn policy(kind: usize) -> (u32, i64) {
    match kind {
        PLAIN => (3, 2000),
        LIMITED => (2, 0),
        OWN => (5, 1000),
        _ => (3, 1000),
    }
}

/// Tries of one phase, when they are counted by themselves.
pub(crate) fn own_tries(kind: usize, phase: &str) -> Option<u32> {
    (kind == OWN && phase == "a").then_some(2)
}

pub(crate) fn timeout(kind: usize, phase: &str) -> Option<i64> {
    match (kind, phase) {
        (PLAIN, "b") => Some(10_000),
        (LIMITED, "a") => Some(3000),
        _ => None,
    }
}

pub(crate) fn deadline(kind: usize) -> Option<i64> {
    (kind == CHANGING).then_some(30_000)
}

pub(crate) fn max_crashes(kind: usize) -> u32 {
    if kind == CHANGING { 1 } else { 2 }
}

fn register(builder: &mut Builder, program: Program, stage: &Arc<Stage>) {
    for kind in (0..NAMES.len()).filter(|kind| is_registered(*kind, program)) {
        let Some(phases) = fixed(kind, program) else {
            builder.register(planned(stage));
            continue;
        };
        let mut job_type = JobType::<Value>::new(NAMES[kind]).retry(retry(kind));
        if kind == LIMITED {
            job_type = job_type.concurrency(1);
        }
        if let Some(ms) = deadline(kind) {
            job_type = job_type.deadline(ms_of(ms));
        }
        if kind == CHANGING {
            job_type = job_type.max_crashes(max_crashes(kind));
        }
        let mut phases = phases.iter();
        let first = phases.next().expect("a type has a phase");
        let mut job_type = job_type.phase(key(kind, *first), stage::handler(stage));
        for name in phases {
            job_type = job_type.phase(key(kind, *name), stage::handler(stage));
        }
        builder.register(job_type);
    }
}

fn planned(stage: &Arc<Stage>) -> JobType<Value, Value> {
    let plan = |input: &Value| {
        let plan = input["plan"]
            .as_u64()
            .and_then(|at| usize::try_from(at).ok());
        let phases = plan.and_then(|at| PLANS.get(at)).ok_or("no such plan")?;
        let specs = phases.iter().map(|(name, _)| PhaseSpec::new(*name));
        Ok(JobPlan::new(specs))
    };
    JobType::planned(NAMES[PLANNED], plan, stage::handler(stage)).retry(retry(PLANNED))
}

fn key(kind: usize, (name, version): Name) -> Phase<Value> {
    let mut phase = Phase::new(name).version(version);
    if let Some(ms) = timeout(kind, name) {
        phase = phase.timeout(ms_of(ms));
    }
    if let Some(max) = own_tries(kind, name) {
        phase = phase.max_attempts(max);
    }
    phase
}

fn retry(kind: usize) -> RetryPolicy {
    let (tries, wait) = policy(kind);
    RetryPolicy::fixed(ms_of(wait)).max_attempts(tries)
}

pub(crate) fn ms_of(ms: i64) -> Duration {
    Duration::from_millis(ms.unsigned_abs())
}

/// Opens the queue as a program would.
pub(crate) fn open(
    config: Config,
    file: &std::path::Path,
    program: Program,
    clock: &FakeClock,
    stage: &Arc<Stage>,
) -> Result<JobQueue, String> {
    let builder = if config.in_memory {
        JobQueue::in_memory()
    } else {
        JobQueue::builder(file)
    };
    let age = config
        .keep
        .age
        .map_or(Keep::FOREVER, |ms| Keep::for_age(ms_of(ms)));
    let count = config
        .keep
        .count
        .map_or(Keep::FOREVER, |count| Keep::newest(count as u64));
    let hooks = WebhookConfig::new()
        .allow_private("127.0.0.1")
        .delays(DELAYS.map(ms_of))
        .jitter(0.0);
    let mut builder = builder
        .workers(config.workers)
        .in_flight(config.workers)
        .max_abandoned(1000)
        .max_crashes(max_crashes(PLAIN))
        .durability(Durability::Normal)
        .retention(
            Retention::forever()
                .completed(count)
                .failed(age)
                .cancelled(age),
        )
        .clock(clock)
        .webhooks(hooks);
    register(&mut builder, program, stage);
    builder.open().map_err(|error| error.to_string())
}

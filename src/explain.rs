//! What is known of a queue and its jobs: counts, and why a job is not running. L3.

use std::fmt;

use serde::ser::{Serialize, SerializeMap, Serializer};

use crate::engine::Engine;
use crate::error::Result;
use crate::event::Seq;
use crate::job::{JobId, JobStatus};
use crate::json;
use crate::requests::not_found;
use crate::store::{Reader, Situation};
use crate::time::Timestamp;

/// Where a job stands, and each reason why it is not running.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Explanation {
    /// The job.
    pub id: JobId,
    /// Where it stands.
    pub status: JobStatus,
    /// What keeps it from running; empty when it runs, is over, or is next.
    pub hindrances: Vec<Hindrance>,
}

json::object!(Explanation {
    id,
    status,
    hindrances,
});

/// One reason why a job is not running.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Hindrance {
    /// No process runs jobs on this file.
    NoOwner,
    /// Its type is not registered in the process that runs jobs on this file.
    NotRegistered {
        /// The type.
        job_type: String,
    },
    /// The queue is paused.
    QueuePaused,
    /// Its type is paused.
    TypePaused {
        /// The type.
        job_type: String,
    },
    /// Its time has not come.
    NotDue {
        /// When it comes.
        run_at: Timestamp,
        /// It waits for another try, not for a time of the calendar.
        is_retry: bool,
    },
    /// As many jobs of its type run as are allowed.
    ConcurrencyLimit {
        /// How many are allowed.
        max: u32,
        /// How many run.
        running: u32,
    },
    /// The handler of an earlier try, whose claim is over, has not returned.
    HandlerNotReturned,
    /// Others of its type are before it; counted up to 10,000.
    Behind {
        /// How many.
        jobs: u32,
    },
    /// Every worker is busy.
    NoWorkerFree {
        /// How many there are.
        workers: usize,
    },
    /// The store has failed, and nothing is claimed until it works again.
    StoreFailed {
        /// How.
        problem: String,
    },
    /// The queue shuts down.
    ShuttingDown,
}

impl Hindrance {
    /// The name on the wire, for example `not_due`.
    #[must_use]
    pub const fn as_str(&self) -> &'static str {
        match self {
            Hindrance::NoOwner => "no_owner",
            Hindrance::NotRegistered { .. } => "not_registered",
            Hindrance::QueuePaused => "queue_paused",
            Hindrance::TypePaused { .. } => "type_paused",
            Hindrance::NotDue { .. } => "not_due",
            Hindrance::ConcurrencyLimit { .. } => "concurrency_limit",
            Hindrance::HandlerNotReturned => "handler_not_returned",
            Hindrance::Behind { .. } => "behind",
            Hindrance::NoWorkerFree { .. } => "no_worker_free",
            Hindrance::StoreFailed { .. } => "store_failed",
            Hindrance::ShuttingDown => "shutting_down",
        }
    }
}

/// `{"reason": its name, "message": what it says to a person}`
impl Serialize for Hindrance {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(2))?;
        map.serialize_entry("reason", self.as_str())?;
        map.serialize_entry("message", &self.to_string())?;
        map.end()
    }
}

impl fmt::Display for Hindrance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Hindrance::NoOwner => f.write_str("no process runs jobs on this file"),
            Hindrance::NotRegistered { job_type } => {
                write!(
                    f,
                    "job type {job_type:?} is not registered in the process that runs jobs"
                )
            }
            Hindrance::QueuePaused => f.write_str("the queue is paused"),
            Hindrance::TypePaused { job_type } => write!(f, "job type {job_type:?} is paused"),
            Hindrance::NotDue {
                run_at,
                is_retry: true,
            } => write!(f, "it waits until {run_at} for another try"),
            Hindrance::NotDue {
                run_at,
                is_retry: false,
            } => write!(f, "it may not start before {run_at}"),
            Hindrance::ConcurrencyLimit { max, running } => {
                write!(f, "{running} jobs of its type run, {max} are allowed")
            }
            Hindrance::HandlerNotReturned => {
                f.write_str("the handler of an earlier try has not returned")
            }
            Hindrance::Behind { jobs } => write!(f, "{jobs} jobs of its type are before it"),
            Hindrance::NoWorkerFree { workers } => write!(f, "all {workers} workers are busy"),
            Hindrance::StoreFailed { problem } => write!(f, "the store has failed: {problem}"),
            Hindrance::ShuttingDown => f.write_str("the queue shuts down"),
        }
    }
}

/// Numbers of a queue at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Jobs that wait.
    pub pending: u64,
    /// Jobs under way.
    pub running: u64,
    /// Jobs that are completed and kept.
    pub completed: u64,
    /// Jobs that have failed and are kept.
    pub failed: u64,
    /// Jobs that were cancelled and are kept.
    pub cancelled: u64,
    /// The number of the newest event.
    pub head_seq: Seq,
    /// The queue is paused.
    pub paused: bool,
    /// Job types that are paused.
    pub paused_types: Vec<String>,
    /// Handlers that ignored their stop flag and are still inside; their workers were replaced. 0 for a client.
    pub abandoned: usize,
    /// Jobs that may be under way at present. 0 for a client.
    pub window: usize,
}

json::object!(Stats {
    pending,
    running,
    completed,
    failed,
    cancelled,
    head_seq,
    paused,
    paused_types,
    abandoned,
    window,
});

/// What the file alone tells.
fn from_file(situation: &Situation, now: Timestamp) -> Vec<Hindrance> {
    let job_type = || situation.job_type.to_string();
    let row = &situation.row;
    let mut found = Vec::new();
    if situation.queue_paused {
        found.push(Hindrance::QueuePaused);
    }
    if situation.type_paused {
        found.push(Hindrance::TypePaused {
            job_type: job_type(),
        });
    }
    if row.run_at > now {
        let is_retry = row.flags.has(crate::transition::Flags::WAITING);
        found.push(Hindrance::NotDue {
            run_at: row.run_at,
            is_retry,
        });
    }
    if situation.ahead > 0 {
        found.push(Hindrance::Behind {
            jobs: situation.ahead,
        });
    }
    found
}

/// As the process that runs jobs sees it.
pub(crate) fn in_process(engine: &Engine, id: JobId) -> Result<Explanation> {
    let now = engine.now();
    let situation = engine
        .reader
        .situation(id, now)?
        .ok_or_else(|| not_found(id))?;
    let status = situation.row.status;
    if status != JobStatus::Pending {
        return Ok(Explanation {
            id,
            status,
            hindrances: Vec::new(),
        });
    }
    let mut hindrances = Vec::new();
    if engine.is_stopping() {
        hindrances.push(Hindrance::ShuttingDown);
    }
    if let Some(problem) = engine.health().1 {
        hindrances.push(Hindrance::StoreFailed { problem });
    }
    let def = engine.registry.get(&situation.job_type);
    if def.is_none() {
        hindrances.push(Hindrance::NotRegistered {
            job_type: situation.job_type.to_string(),
        });
    }
    hindrances.extend(from_file(&situation, now));
    if let Some(max) = def
        .and_then(|def| def.concurrency)
        .filter(|max| situation.running_of_type >= *max)
    {
        hindrances.push(Hindrance::ConcurrencyLimit {
            max,
            running: situation.running_of_type,
        });
    }
    if engine.live.zombies().contains(&id) {
        hindrances.push(Hindrance::HandlerNotReturned);
    }
    let workers = engine.config.workers;
    if engine.live.len() >= engine.window() {
        hindrances.push(Hindrance::NoWorkerFree { workers });
    }
    Ok(Explanation {
        id,
        status,
        hindrances,
    })
}

/// As a process beside it sees it. `has_owner`: some process runs jobs on the file.
pub(crate) fn from_outside(
    reader: &dyn Reader,
    id: JobId,
    has_owner: bool,
    now: Timestamp,
) -> Result<Explanation> {
    let situation = reader.situation(id, now)?.ok_or_else(|| not_found(id))?;
    let status = situation.row.status;
    let mut hindrances = Vec::new();
    if status == JobStatus::Pending {
        if !has_owner {
            hindrances.push(Hindrance::NoOwner);
        }
        hindrances.extend(from_file(&situation, now));
    }
    Ok(Explanation {
        id,
        status,
        hindrances,
    })
}

/// Counts, from the newest row of the log.
pub(crate) fn stats(reader: &dyn Reader) -> Result<Stats> {
    let head = reader.head()?;
    let [pending, running, completed, failed, cancelled] =
        head.counts.map(|count| u64::try_from(count).unwrap_or(0));
    let (paused, types) = reader.pauses()?;
    let paused_types = types.iter().map(ToString::to_string).collect();
    Ok(Stats {
        pending,
        running,
        completed,
        failed,
        cancelled,
        head_seq: head.seq,
        paused,
        paused_types,
        ..Stats::default()
    })
}

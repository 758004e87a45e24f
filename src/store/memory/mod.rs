//! The plain model: a store in memory, for throw-away queues and as the oracle that the file is compared with. L2.
//!
//! It keeps no promise about the end of the process, and every one about what a caller sees before it: order, counts, lists and
//! retention are those of the SQLite backend. Where that one is clever (numbers of names, links between the rows of the log,
//! counters in the log), this one does the obvious thing, so that a mistake there shows as a difference.
//!
//! One lock holds everything. A transaction has it from begin to end and writes in place; every table remembers what it
//! overwrote and puts it back when the transaction fails.

mod check;
mod outbox;
mod read;
mod rows;
mod table;

use std::cmp::Reverse;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::Arc;

use crate::delivery::{DeliveryId, DeliveryTry};
use crate::error::{Error, ErrorKind, Result};
use crate::event::{Plan, Seq};
use crate::job::{JobId, JobStatus};
use crate::store::memory::table::Table;
use crate::store::outbox::{DeliveryRow, EndpointRow};
use crate::store::prune::Seen;
use crate::store::{ErrorRow, EventRow, Failure, Head, Holder, PhaseDone};
use crate::store::{Reader, Rows, Store, TypeRow};
use crate::sync::Mutex;
use crate::time::Timestamp;
use crate::transition::JobRow;

/// The writing side of a store that lasts as long as the process.
pub(crate) struct MemoryStore {
    shared: Arc<Shared>,
    /// Where the passes of retention are.
    seen: Seen,
}

/// What the writer and the readers share.
struct Shared {
    file_id: String,
    data: Mutex<Data>,
}

/// The tables.
#[derive(Default)]
struct Data {
    jobs: Table<JobId, JobRow>,
    payloads: Table<JobId, Payload>,
    /// Pending jobs in the order of claims: type, priority, `run_at`, id.
    pending: Table<(i64, Reverse<i32>, Timestamp, JobId), ()>,
    /// Running jobs by type.
    running: Table<(i64, JobId), ()>,
    /// Terminal jobs by status in the order in which they ended.
    over: Table<(JobStatus, Timestamp, JobId), ()>,
    results: Table<(JobId, u32), PhaseDone>,
    checkpoints: Table<(JobId, u32), String>,
    /// By job and by a number that rises.
    errors: Table<(JobId, u64), ErrorRow>,
    /// The log; the last row of each commit has the head.
    events: Table<Seq, (EventRow, Option<Head>)>,
    types: Table<i64, (Arc<str>, TypeRow)>,
    plans: Table<i64, Plan>,
    /// Numbers of plans by their JSON.
    plan_ids: Table<String, i64>,
    holders: Table<(i64, String), Holder>,
    /// Has a row while the queue is paused.
    paused: Table<(), ()>,
    endpoints: Table<i64, EndpointRow>,
    named_endpoints: Table<Arc<str>, i64>,
    /// Endpoints of jobs by what they are: URL, events, keys.
    same_endpoints: Table<(String, i64, Vec<String>), i64>,
    job_endpoints: Table<(JobId, i64), ()>,
    endpoint_jobs: Table<(i64, JobId), ()>,
    deliveries: Table<DeliveryId, DeliveryRow>,
    job_deliveries: Table<(JobId, DeliveryId), ()>,
    /// Pending deliveries of each endpoint and job.
    lines: Table<(i64, JobId, DeliveryId), ()>,
    /// Those of each endpoint that have a time, in the order of sending.
    timed: Table<(i64, Timestamp, DeliveryId), ()>,
    /// Deliveries that are over in the order in which they ended, and those that were delivered.
    ended: Table<(Timestamp, DeliveryId), ()>,
    delivered: Table<DeliveryId, ()>,
    tries: Table<DeliveryId, Vec<DeliveryTry>>,
}

struct Payload {
    input: Arc<str>,
    unique_key: Option<String>,
}

impl MemoryStore {
    pub(crate) fn new() -> MemoryStore {
        // 48 random bits, as a file has. The hasher's keys are the standard library's only source of chance.
        let random = RandomState::new().build_hasher().finish() >> 16;
        MemoryStore {
            shared: Arc::new(Shared {
                file_id: format!("{random:012x}"),
                data: Mutex::default(),
            }),
            seen: Seen::default(),
        }
    }

    /// Another writer of the same data, as another process has it.
    #[cfg(all(test, stepwell_shuttle))]
    pub(crate) fn beside(&self) -> MemoryStore {
        MemoryStore {
            shared: self.shared.clone(),
            seen: Seen::default(),
        }
    }
}

impl Store for MemoryStore {
    fn transact(
        &mut self,
        work: &mut dyn FnMut(&mut dyn Rows) -> Result<()>,
    ) -> std::result::Result<(), Failure> {
        let mut data = self.shared.data.lock();
        let mut tx = rows::Tx {
            data: &mut data,
            seen: &mut self.seen,
        };
        match work(&mut tx) {
            Ok(()) => {
                data.commit();
                Ok(())
            }
            Err(error) => {
                data.roll_back();
                Err(Failure::NothingDone(error))
            }
        }
    }

    fn reopen(&mut self) -> Result<()> {
        Ok(())
    }

    fn checkpoint(&mut self) -> Result<()> {
        Ok(())
    }

    /// What is in memory stays readable for as long as somebody holds it.
    fn close(&mut self) {}

    fn reader(&self) -> Arc<dyn Reader> {
        self.shared.clone()
    }
}

/// Does the same to every table.
macro_rules! each_table {
    ($data:ident, $verb:ident) => {{
        $data.jobs.$verb();
        $data.payloads.$verb();
        $data.pending.$verb();
        $data.running.$verb();
        $data.over.$verb();
        $data.results.$verb();
        $data.checkpoints.$verb();
        $data.errors.$verb();
        $data.events.$verb();
        $data.types.$verb();
        $data.plans.$verb();
        $data.plan_ids.$verb();
        $data.holders.$verb();
        $data.paused.$verb();
        $data.endpoints.$verb();
        $data.named_endpoints.$verb();
        $data.same_endpoints.$verb();
        $data.job_endpoints.$verb();
        $data.endpoint_jobs.$verb();
        $data.deliveries.$verb();
        $data.job_deliveries.$verb();
        $data.lines.$verb();
        $data.timed.$verb();
        $data.ended.$verb();
        $data.delivered.$verb();
        $data.tries.$verb();
    }};
}

impl Data {
    fn commit(&mut self) {
        each_table!(self, commit);
    }

    fn roll_back(&mut self) {
        each_table!(self, roll_back);
    }

    fn mark(&mut self) {
        each_table!(self, mark);
    }

    fn undo(&mut self) {
        each_table!(self, undo);
    }

    /// Writes a job's row and its places in the indexes.
    fn put_job(&mut self, row: &JobRow) {
        self.remove_job(row.id);
        let at = row.finished_at.unwrap_or_default();
        match row.status {
            JobStatus::Pending => self.pending.put(claim_key(row), ()),
            JobStatus::Running => self.running.put((row.type_id, row.id), ()),
            JobStatus::Completed | JobStatus::Failed | JobStatus::Cancelled => {
                self.over.put((row.status, at, row.id), ());
            }
        }
        self.jobs.put(row.id, *row);
    }

    fn remove_job(&mut self, id: JobId) {
        let Some(row) = self.jobs.get(&id).copied() else {
            return;
        };
        let at = row.finished_at.unwrap_or_default();
        self.jobs.remove(&id);
        self.pending.remove(&claim_key(&row));
        self.running.remove(&(row.type_id, id));
        self.over.remove(&(row.status, at, id));
    }

    fn head(&self) -> Result<Head> {
        match self.events.last_key_value() {
            None => Ok(Head::default()),
            Some((_, (_, Some(head)))) => Ok(*head),
            Some((seq, (_, None))) => Err(damaged(format!("event {seq}: it has no head"))),
        }
    }

    fn type_id(&self, name: &str) -> Option<i64> {
        self.types
            .values()
            .find(|(known, _)| **known == *name)
            .map(|(_, row)| row.id)
    }

    fn type_name(&self, type_id: i64) -> Result<Arc<str>> {
        self.types
            .get(&type_id)
            .map(|(name, _)| name.clone())
            .ok_or_else(|| damaged(format!("job type {type_id}: it has no row")))
    }

    fn plan(&self, plan_id: i64) -> Result<Plan> {
        if plan_id == 0 {
            return Ok(Arc::new([]));
        }
        self.plans
            .get(&plan_id)
            .cloned()
            .ok_or_else(|| damaged(format!("plan {plan_id}: it has no row")))
    }

    fn payload(&self, id: JobId) -> Result<&Payload> {
        self.payloads
            .get(&id)
            .ok_or_else(|| damaged(format!("job {id}: it has no payload")))
    }

    /// Pending jobs of a type, in the order of claims.
    fn pending_of(&self, type_id: i64) -> impl Iterator<Item = (Reverse<i32>, Timestamp, JobId)> {
        let first = (type_id, Reverse(i32::MAX), EARLIEST, JobId::from_i64(0));
        self.pending
            .range(first..)
            .map_while(move |((of, priority, run_at, id), ())| {
                (*of == type_id).then_some((*priority, *run_at, *id))
            })
    }

    fn running_of(&self, type_id: i64) -> u32 {
        let (first, last) = (JobId::from_i64(0), JobId::from_i64(i64::MAX));
        let count = self.running.range((type_id, first)..=(type_id, last));
        u32::try_from(count.count()).unwrap_or(u32::MAX)
    }

    /// The error history of a job, oldest first.
    fn errors_of(&self, id: JobId) -> impl DoubleEndedIterator<Item = (&(JobId, u64), &ErrorRow)> {
        self.errors.range((id, 0)..=(id, u64::MAX))
    }

    fn results_of(&self, id: JobId) -> Vec<(u32, PhaseDone)> {
        self.results
            .range((id, 0)..=(id, u32::MAX))
            .map(|((_, index), done)| (*index, done.clone()))
            .collect()
    }
}

const EARLIEST: Timestamp = Timestamp::from_millis(i64::MIN);

fn claim_key(row: &JobRow) -> (i64, Reverse<i32>, Timestamp, JobId) {
    (row.type_id, Reverse(row.priority), row.run_at, row.id)
}

/// The store contradicts itself: a bug of ours.
fn damaged(problem: String) -> Error {
    Error::new(ErrorKind::Corrupt, problem)
}

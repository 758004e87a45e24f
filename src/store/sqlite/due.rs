//! What can be claimed, and when the next job can be. L2; reads only.
//!
//! The index `job_live` has the jobs of a type by priority, then `run_at_ms`. Due jobs of a priority are one range of it, those
//! of all priorities are not: each priority in use costs one step.

use std::collections::HashMap;

use rusqlite::{Connection, params};

use crate::error::Result;
use crate::job::JobId;
use crate::store::sqlite::rows::{self, job_columns, number, read};
use crate::time::Timestamp;
use crate::transition::JobRow;

// `status <= 1` says again what `status = 0` says: SQLite wants to see the condition of a partial index to use it.
pub(super) const SELECT_PRIORITY: &str = "SELECT priority FROM job
    WHERE status = 0 AND status <= 1 AND type_id = ?1 AND priority < ?2
    ORDER BY priority DESC LIMIT 1";
pub(super) const SELECT_DUE: &str = concat!(
    "SELECT ",
    job_columns!(),
    ", input FROM job
    WHERE status = 0 AND status <= 1 AND type_id = ?1 AND priority = ?2 AND run_at_ms <= ?3
    ORDER BY run_at_ms, id LIMIT ?4"
);
pub(super) const SELECT_NEXT_DUE: &str = "SELECT run_at_ms FROM job
    WHERE status = 0 AND status <= 1 AND type_id = ?1 AND priority = ?2 AND run_at_ms > ?3
    ORDER BY run_at_ms LIMIT 1";

/// Above every priority.
const TOP: i64 = i32::MAX as i64 + 1;

/// Appends due jobs of a type, in the order of claims, until `out` has `most`; and the inputs that are in their rows.
pub(super) fn first(
    conn: &Connection,
    type_id: i64,
    now: Timestamp,
    most: usize,
    out: &mut Vec<JobRow>,
    inputs: &mut HashMap<JobId, String>,
) -> Result<()> {
    let mut below = TOP;
    while out.len() < most
        && let Some(priority) = next_priority(conn, type_id, below)?
    {
        let mut statement = read(conn.prepare_cached(SELECT_DUE))?;
        let left = rows::limit(most - out.len());
        let mut rows = read(statement.query(params![type_id, priority, now.as_millis(), left]))?;
        while let Some(row) = read(rows.next())? {
            let job = rows::job(row)?;
            if let Some(input) = read(row.get(rows::JOB_COLUMNS))? {
                inputs.insert(job.id, input);
            }
            out.push(job);
        }
        below = priority;
    }
    Ok(())
}

/// When the next job of a type that is not due will be.
pub(super) fn next(conn: &Connection, type_id: i64, now: Timestamp) -> Result<Option<Timestamp>> {
    let (mut below, mut earliest) = (TOP, None);
    while let Some(priority) = next_priority(conn, type_id, below)? {
        let params = params![type_id, priority, now.as_millis()];
        let next = number(conn, SELECT_NEXT_DUE, params)?;
        earliest = [earliest, next].into_iter().flatten().min();
        below = priority;
    }
    Ok(earliest.map(Timestamp::from_millis))
}

/// The priorities of a type's pending jobs, highest first.
fn next_priority(conn: &Connection, type_id: i64, below: i64) -> Result<Option<i64>> {
    number(conn, SELECT_PRIORITY, params![type_id, below])
}

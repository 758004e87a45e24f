//! Jobs by their status: which, and how many. L2.
//!
//! What lives and what is over each have an index of their own (0001.sql), and so each a statement.

use rusqlite::{Connection, ToSql, params};

use crate::error::Result;
use crate::job::{JobId, JobStatus};
use crate::store::prune::Ended;
use crate::store::sqlite::rows::{limit, number, read};
use crate::time::Timestamp;

pub(super) const SELECT_OLDEST_OVER: &str = "SELECT finished_at_ms, id FROM job
    WHERE status = ?1 AND status >= 2 AND finished_at_ms >= ?2 AND finished_at_ms < ?3 AND (finished_at_ms > ?2 OR id > ?5)
    ORDER BY finished_at_ms, id LIMIT ?4";
pub(super) const COUNT_LIVE: &str = "SELECT count(*) FROM job WHERE status = ?1 AND status <= 1";
pub(super) const COUNT_OVER: &str = "SELECT count(*) FROM job WHERE status = ?1 AND status >= 2";
// In the order of their index. What is wanted is the order of ids, for which SQLite would build a tree beside the file.
pub(super) const SELECT_LIVE_IDS: &str = "SELECT id FROM job
    WHERE status = ?1 AND status <= 1 ORDER BY type_id, priority DESC, run_at_ms, id LIMIT ?2";
pub(super) const SELECT_LIVE_IDS_OF: &str = "SELECT id FROM job
    WHERE status = ?1 AND status <= 1 AND type_id = ?3 ORDER BY priority DESC, run_at_ms, id LIMIT ?2";
pub(super) const SELECT_OVER_IDS: &str = "SELECT id FROM job
    WHERE status = ?1 AND status >= 2 ORDER BY finished_at_ms, id LIMIT ?2";
pub(super) const SELECT_OVER_IDS_OF: &str = "SELECT id FROM job
    WHERE status = ?1 AND status >= 2 AND type_id = ?3 ORDER BY finished_at_ms, id LIMIT ?2";

/// Ids, ascending; when there are more than `most`, any of them.
pub(super) fn ids(
    conn: &Connection,
    status: JobStatus,
    type_id: Option<i64>,
    most: usize,
) -> Result<Vec<JobId>> {
    let sql = match (status.is_terminal(), type_id) {
        (false, None) => SELECT_LIVE_IDS,
        (false, Some(_)) => SELECT_LIVE_IDS_OF,
        (true, None) => SELECT_OVER_IDS,
        (true, Some(_)) => SELECT_OVER_IDS_OF,
    };
    let (status, most) = (status.code(), limit(most));
    let mut ids = match type_id {
        None => select(conn, sql, params![status, most])?,
        Some(type_id) => select(conn, sql, params![status, most, type_id])?,
    };
    ids.sort_unstable();
    Ok(ids)
}

/// Jobs that are over in the order in which they ended: those behind `after` that ended before `cutoff`.
pub(super) fn oldest_over(
    conn: &Connection,
    status: JobStatus,
    (at, id): Ended,
    cutoff: Timestamp,
    most: usize,
) -> Result<Vec<Ended>> {
    let (at, cutoff) = (at.as_millis(), cutoff.as_millis());
    let params = params![status.code(), at, cutoff, limit(most), id.as_i64()];
    let mut statement = read(conn.prepare_cached(SELECT_OLDEST_OVER))?;
    let ended = statement.query_map(params, |row| {
        let at = Timestamp::from_millis(row.get(0)?);
        Ok((at, JobId::from_i64(row.get(1)?)))
    });
    read(ended)?.map(read).collect()
}

fn select(conn: &Connection, sql: &str, params: &[&dyn ToSql]) -> Result<Vec<JobId>> {
    let mut statement = read(conn.prepare_cached(sql))?;
    let ids = read(statement.query_map(params, |row| row.get(0).map(JobId::from_i64)))?;
    ids.map(read).collect()
}

pub(super) fn counts(conn: &Connection) -> Result<[i64; 5]> {
    let mut counts = [0; 5];
    for status in JobStatus::ALL {
        let sql = if status.is_terminal() {
            COUNT_OVER
        } else {
            COUNT_LIVE
        };
        let count = number(conn, sql, params![status.code()])?;
        counts[status as usize] = count.unwrap_or(0);
    }
    Ok(counts)
}

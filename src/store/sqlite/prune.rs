//! Retention's own statements: old rows of the log, and unique keys that stand for nothing. L2.
//!
//! Jobs are not deleted here: that is a change of a job, made by the seam and written in `commit.rs`.

use rusqlite::{Connection, params};

use crate::error::Result;
use crate::event::Seq;
use crate::job::JobId;
use crate::store::Holder;
use crate::store::seam;
use crate::store::sqlite::commit::Tx;
use crate::store::sqlite::rows::{limit, number, phase_key, read};
use crate::time::Timestamp;

pub(super) const SELECT_HOLDERS: &str =
    "SELECT type_id, key, job_id, hold, expires_ms FROM unique_key
    WHERE (type_id, key) > (?1, ?2) ORDER BY type_id, key LIMIT ?3";
pub(super) const DELETE_HOLDER: &str = "DELETE FROM unique_key WHERE type_id = ?1 AND key = ?2";
/// The key of a job that is being deleted, if it stands for that job and goes with it.
pub(super) const DELETE_HOLDER_OF: &str = "DELETE FROM unique_key WHERE type_id = ?1
    AND key = (SELECT unique_key FROM job WHERE id = ?2) AND job_id = ?2 AND hold < 2";
pub(super) const SELECT_OLD_EVENTS: &str = "SELECT seq, at_ms FROM event ORDER BY seq LIMIT ?1";
pub(super) const SELECT_EVENT_TIME: &str =
    "SELECT at_ms FROM event WHERE seq <= ?1 ORDER BY seq DESC LIMIT 1";
pub(super) const DELETE_OLD_EVENTS: &str = "DELETE FROM event WHERE seq < ?1";

/// Where each stands is in its row: the pages behind it are not read.
pub(super) const SELECT_BYTES: &str = "SELECT
    (SELECT coalesce(sum(octet_length(result)), 0) FROM phase WHERE id BETWEEN ?1 AND ?2)
    + (SELECT coalesce(sum(octet_length(value)), 0) FROM checkpoint WHERE id BETWEEN ?1 AND ?2)
    + (SELECT coalesce(sum(octet_length(input)), 0) FROM payload WHERE job_id = ?3)";

/// How large what a job has stored is, its row aside.
pub(super) fn stored_bytes(conn: &Connection, id: JobId) -> Result<u64> {
    let (from, to) = (phase_key(id, 0), phase_key(id, 255));
    let bytes = number(conn, SELECT_BYTES, params![from, to, id.as_i64()])?;
    Ok(bytes
        .and_then(|bytes| u64::try_from(bytes).ok())
        .unwrap_or(0))
}

/// Looks at the next `most` unique keys, and drops those that stand for nothing any more.
pub(super) fn holders(tx: &mut Tx<'_>, now: Timestamp, most: usize) -> Result<()> {
    let seen = next_holders(tx, most)?;
    let is_end = seen.len() < most;
    for (type_id, key, holder) in seen {
        if !seam::may_hold(tx, &holder, now)? {
            tx.write(DELETE_HOLDER, params![type_id, key])?;
        }
        tx.seen.holders = (type_id, key);
    }
    if is_end {
        tx.seen.holders = (0, String::new());
    }
    Ok(())
}

fn next_holders(tx: &Tx<'_>, most: usize) -> Result<Vec<(i64, String, Holder)>> {
    let mut statement = read(tx.conn.prepare_cached(SELECT_HOLDERS))?;
    let (type_id, key) = &tx.seen.holders;
    let mut rows = read(statement.query(params![type_id, key, limit(most)]))?;
    let mut seen = Vec::new();
    while let Some(row) = read(rows.next())? {
        let holder = Holder {
            job_id: JobId::from_i64(read(row.get(2))?),
            hold: read(row.get(3))?,
            expires: Timestamp::from_millis(read(row.get(4))?),
        };
        seen.push((read(row.get(0))?, read(row.get(1))?, holder));
    }
    Ok(seen)
}

/// The oldest rows of the log. Not how many events each stands for: one ends where the next begins.
pub(super) fn oldest_events(tx: &Tx<'_>, most: usize) -> Result<Vec<(Seq, Timestamp)>> {
    let mut statement = read(tx.conn.prepare_cached(SELECT_OLD_EVENTS))?;
    let rows = statement.query_map([limit(most)], |row| {
        Ok((row.get(0)?, Timestamp::from_millis(row.get(1)?)))
    });
    read(rows)?.map(read).collect()
}

//! The reading side: connections of its own, which cannot write, each used by one thread at a time. L2.
//!
//! No cursor and no transaction stays open between calls: a reader that pauses with one would keep the log from being folded
//! back, and it would grow without end.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rusqlite::{Connection, OptionalExtension, Row, params};
use serde_json::Value;

use crate::config::ERRORS_KEPT;
use crate::error::{Error, Result};
use crate::event::{LoggedChange, Seq};
use crate::job::{Job, JobId, JobStatus};
use crate::store::sqlite::commit::{COUNT_RUNNING, SELECT_PAUSED};
use crate::store::sqlite::names::Names;
use crate::store::sqlite::rows::{self, Parts, event_columns, job_columns, phase_key, read};
use crate::store::sqlite::{check, errors, open};
use crate::store::view::{self, StoredError};
use crate::store::{
    AHEAD_MAX, Filter, Head, Part, Position, Reader, SCAN_MAX, Situation, Slice, summary,
};
use crate::sync::Mutex;
use crate::time::Timestamp;
use crate::transition::{Flags, JobRow};

/// Idle connections that are kept: one for the listener, one for a caller, one for a page of lists, one to spare.
const IDLE_MAX: usize = 4;

const SELECT_STATUS: &str = "SELECT status FROM job WHERE id = ?1";
const SELECT_UNIQUE_KEY: &str = "SELECT unique_key FROM job WHERE id = ?1";
const SELECT_RESULT: &str = "SELECT result FROM phase WHERE id = ?1";
const SELECT_CHECKPOINT: &str = "SELECT value FROM checkpoint WHERE id = ?1";
const SELECT_TYPE_ID: &str = "SELECT id FROM job_type WHERE name = ?1";
const SELECT_TYPE_PAUSED: &str = "SELECT paused FROM job_type WHERE id = ?1";
const SELECT_TYPES: &str = "SELECT name, id, plan_id FROM job_type ORDER BY id";
const SELECT_PAUSED_TYPES: &str = "SELECT name FROM job_type WHERE paused = 1 ORDER BY name";
const SELECT_FILE_ID: &str = "SELECT value FROM meta WHERE key = 'file_id'";
const SELECT_OLDEST_SEQ: &str = "SELECT seq FROM event ORDER BY seq LIMIT 1";
// A row stands for several events, or for a run of jobs: the one that holds ?1 begins at or before it.
pub(super) const SELECT_CHANGES: &str = concat!(
    "SELECT ",
    event_columns!(),
    " FROM event
    WHERE seq >= coalesce((SELECT seq FROM event WHERE seq <= ?1 ORDER BY seq DESC LIMIT 1), 0) AND seq + span > ?1
    ORDER BY seq LIMIT ?2"
);
pub(super) const SELECT_CHANGE_AT: &str = concat!(
    "SELECT ",
    event_columns!(),
    ", prev_seq, prev_step FROM event WHERE seq <= ?1 ORDER BY seq DESC LIMIT 1"
);
pub(super) const LIST_BY_ID: &str = concat!(
    "SELECT ",
    job_columns!(),
    " FROM job WHERE id < ?1 ORDER BY id DESC LIMIT ?2"
);
pub(super) const LIST_BY_END: &str = concat!(
    "SELECT ",
    job_columns!(),
    " FROM job
    WHERE status = ?3 AND status >= 2 AND (finished_at_ms, id) < (?4, ?1)
    ORDER BY finished_at_ms DESC, id DESC LIMIT ?2"
);
const LIST_RUNNING: &str = concat!(
    "SELECT ",
    job_columns!(),
    " FROM job WHERE status = 1 AND status <= 1 AND id < ?1 ORDER BY id DESC LIMIT ?2"
);
pub(super) const COUNT_AHEAD: &str = "SELECT count(*) FROM (
    SELECT 1 FROM job
    WHERE status = 0 AND status <= 1 AND type_id = ?1 AND run_at_ms <= ?2
      AND (priority > ?3 OR (priority = ?3 AND (run_at_ms, id) < (?4, ?5)))
    LIMIT ?6)";

/// Hands out reading connections to one file.
pub(super) struct Readers {
    path: PathBuf,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    idle: Vec<Connection>,
    names: Names,
    /// Connections of an older generation are dropped when they come back.
    generation: u64,
    is_closed: bool,
}

impl Readers {
    pub(super) fn new(path: &Path) -> Readers {
        Readers {
            path: path.to_owned(),
            state: Mutex::default(),
        }
    }

    pub(super) fn drop_all(&self) {
        let mut state = self.state.lock();
        *state = State {
            generation: state.generation + 1,
            ..State::default()
        };
    }

    /// No connection is handed out any more.
    pub(super) fn close(&self) {
        self.drop_all();
        self.state.lock().is_closed = true;
    }

    pub(super) fn with<T>(
        &self,
        look: impl FnOnce(&Connection, &mut Names) -> Result<T>,
    ) -> Result<T> {
        let (conn, mut names, generation) = {
            let mut state = self.state.lock();
            if state.is_closed {
                return Err(Error::closed());
            }
            (
                state.idle.pop(),
                std::mem::take(&mut state.names),
                state.generation,
            )
        };
        let conn = match conn {
            Some(conn) => conn,
            None => open::reader(&self.path)?,
        };
        // Several statements of one answer see one state of the file.
        let snapshot = read(conn.unchecked_transaction())?;
        let answer = look(&conn, &mut names);
        drop(snapshot);
        let mut state = self.state.lock();
        if state.generation == generation {
            state.names = names;
            if state.idle.len() < IDLE_MAX {
                state.idle.push(conn);
            }
        }
        answer
    }
}

/// The first column of a row, if there is one and it is not null.
fn text(conn: &Connection, sql: &str, key: i64) -> Result<Option<String>> {
    let mut statement = read(conn.prepare_cached(sql))?;
    let found = statement.query_row([key], |row| row.get(0)).optional();
    read(found).map(Option::flatten)
}

fn type_id(conn: &Connection, name: &str) -> Result<Option<i64>> {
    let mut statement = read(conn.prepare_cached(SELECT_TYPE_ID))?;
    read(statement.query_row([name], |row| row.get(0)).optional())
}

fn load(conn: &Connection, names: &mut Names, row: &JobRow, parts: Parts) -> Result<Job> {
    let (input, unique_key) = match parts {
        Parts::All => {
            let (input, unique_key) = rows::input(conn, row.id)?;
            let input = serde_json::from_str(&input).map_err(|_| {
                errors::corrupt(rows::table_of(&input), row.id.as_i64(), "input", &input)
            })?;
            (input, unique_key)
        }
        Parts::Outline => (Value::Null, text(conn, SELECT_UNIQUE_KEY, row.id.as_i64())?),
    };
    let stored: Vec<StoredError> = if row.flags.has(Flags::ERRORS) {
        rows::errors(conn, row.id, ERRORS_KEPT)?
    } else {
        Vec::new()
    };
    Ok(view::job(
        row,
        names.type_name(conn, row.type_id)?,
        &names.plan(conn, row.plan_id)?,
        (input, unique_key),
        rows::phases(conn, row.id, parts)?,
        stored,
    ))
}

impl Readers {
    fn find(&self, id: JobId, parts: Parts) -> Result<Option<Job>> {
        self.with(|conn, names| {
            rows::find_job(conn, id)?
                .map(|row| load(conn, names, &row, parts))
                .transpose()
        })
    }
}

impl Reader for Readers {
    fn head(&self) -> Result<Head> {
        self.with(|conn, _| rows::head(conn))
    }

    fn job(&self, id: JobId) -> Result<Option<Job>> {
        self.find(id, Parts::All)
    }

    fn outline(&self, id: JobId) -> Result<Option<Job>> {
        self.find(id, Parts::Outline)
    }

    fn status(&self, id: JobId) -> Result<Option<JobStatus>> {
        self.with(|conn, _| {
            let mut statement = read(conn.prepare_cached(SELECT_STATUS))?;
            let code: Option<i64> = read(
                statement
                    .query_row([id.as_i64()], |row| row.get(0))
                    .optional(),
            )?;
            let parse = |code| {
                JobStatus::from_code(code)
                    .ok_or_else(|| errors::corrupt("job", id.as_i64(), "status", code))
            };
            code.map(parse).transpose()
        })
    }

    fn claim(&self, id: JobId) -> Result<Option<(JobStatus, i64)>> {
        let row = self.with(|conn, _| rows::find_job(conn, id))?;
        Ok(row.map(|row| (row.status, row.epoch)))
    }

    fn list(&self, filter: &Filter, from: Option<Position>, limit: usize) -> Result<Slice> {
        self.with(|conn, names| list(conn, names, filter, from, limit))
    }

    fn result(&self, id: JobId, phase_index: u32) -> Result<Option<String>> {
        self.with(|conn, _| text(conn, SELECT_RESULT, phase_key(id, phase_index)))
    }

    fn checkpoint(&self, id: JobId, phase_index: u32) -> Result<Option<String>> {
        self.with(|conn, _| text(conn, SELECT_CHECKPOINT, phase_key(id, phase_index)))
    }

    fn changes_after(&self, seq: Seq, limit: usize) -> Result<Vec<LoggedChange>> {
        self.with(|conn, names| {
            let mut statement = read(conn.prepare_cached(SELECT_CHANGES))?;
            let limit = i64::try_from(limit).unwrap_or(i64::MAX);
            let mut found = read(statement.query([seq.saturating_add(1), limit]))?;
            let mut changes = Vec::new();
            while let Some(row) = read(found.next())? {
                changes.push(rows::change(conn, names, row)?);
            }
            Ok(changes)
        })
    }

    fn oldest_seq(&self) -> Result<Seq> {
        self.with(|conn, _| {
            let mut statement = read(conn.prepare_cached(SELECT_OLDEST_SEQ))?;
            let oldest: Option<i64> = read(statement.query_row([], |row| row.get(0)).optional())?;
            let check = |seq| rows::sane(seq, ("event", seq, "seq"));
            Ok(oldest.map(check).transpose()?.unwrap_or(0))
        })
    }

    fn changes_of(&self, id: JobId, limit: usize) -> Result<Vec<LoggedChange>> {
        self.with(|conn, names| {
            let Some(job) = rows::find_job(conn, id)? else {
                return Ok(Vec::new());
            };
            let mut statement = read(conn.prepare_cached(SELECT_CHANGE_AT))?;
            let (mut seq, mut changes) = (job.last_seq, Vec::new());
            while seq > 0 && changes.len() < limit {
                let mut found = read(statement.query([seq]))?;
                let Some(row) = read(found.next())? else {
                    break;
                };
                let change = rows::change(conn, names, row)?;
                let Some((change, prev_seq)) = part_of(change, row, id, seq)? else {
                    // The rest has been pruned.
                    break;
                };
                seq = prev_seq;
                changes.push(change);
            }
            changes.reverse();
            Ok(changes)
        })
    }

    fn situation(&self, id: JobId, now: Timestamp) -> Result<Option<Situation>> {
        self.with(|conn, names| {
            let Some(row) = rows::find_job(conn, id)? else {
                return Ok(None);
            };
            let count = |sql: &str, params: &[&dyn rusqlite::ToSql]| {
                let mut statement = read(conn.prepare_cached(sql))?;
                read(statement.query_row(params, |row| row.get::<_, i64>(0)))
            };
            let order = params![
                row.type_id,
                now.as_millis(),
                row.priority,
                row.run_at.as_millis(),
                row.id.as_i64(),
                rows::limit(AHEAD_MAX)
            ];
            Ok(Some(Situation {
                job_type: names.type_name(conn, row.type_id)?,
                queue_paused: count(SELECT_PAUSED, params![])? == 1,
                type_paused: count(SELECT_TYPE_PAUSED, params![row.type_id])? == 1,
                running_of_type: u32::try_from(count(COUNT_RUNNING, params![row.type_id])?)
                    .unwrap_or(u32::MAX),
                ahead: u32::try_from(count(COUNT_AHEAD, order)?).unwrap_or(u32::MAX),
                row,
            }))
        })
    }

    fn check(&self) -> Result<Vec<String>> {
        self.with(check::run)
    }

    fn file_id(&self) -> Result<String> {
        self.with(|conn, _| read(conn.query_row(SELECT_FILE_ID, [], |row| row.get(0))))
    }

    fn types(&self) -> Result<Vec<(Arc<str>, i64, i64)>> {
        self.with(|conn, _| {
            let mut statement = read(conn.prepare_cached(SELECT_TYPES))?;
            let types = read(statement.query_map([], |row| {
                Ok((row.get::<_, String>(0)?.into(), row.get(1)?, row.get(2)?))
            }))?;
            types.map(read).collect()
        })
    }

    fn pauses(&self) -> Result<(bool, Vec<Arc<str>>)> {
        self.with(|conn, _| {
            let paused: i64 = read(conn.query_row(SELECT_PAUSED, [], |row| row.get(0)))?;
            let mut statement = read(conn.prepare_cached(SELECT_PAUSED_TYPES))?;
            let names =
                read(statement.query_map([], |row| row.get::<_, String>(0).map(Arc::from)))?;
            Ok((paused == 1, names.map(read).collect::<Result<_>>()?))
        })
    }
}

/// What a row of the log says of one job, whose events begin at `seq`, and where the change before is; nothing if it is not about
/// that job.
fn part_of(
    mut change: LoggedChange,
    row: &Row<'_>,
    id: JobId,
    seq: Seq,
) -> Result<Option<(LoggedChange, Seq)>> {
    let first = Part {
        job_id: change.job_id,
        seq: change.seq,
        prev_seq: read(row.get(10))?,
    };
    let index = id.as_i64() - change.job_id.as_i64();
    let part = Part::of(first, change.change, read(row.get(11))?, index);
    let is_there = index >= 0 && part.seq < change.seq.saturating_add(change.span);
    if part.seq != seq || !is_there || part.prev_seq >= seq {
        return Ok(None);
    }
    (change.seq, change.span, change.job_id) = (seq, change.change.span(), id);
    Ok(Some((change, part.prev_seq)))
}

fn list(
    conn: &Connection,
    names: &mut Names,
    filter: &Filter,
    from: Option<Position>,
    limit: usize,
) -> Result<Slice> {
    let wanted_type = match &filter.job_type {
        Some(name) => match type_id(conn, name)? {
            Some(id) => Some(id),
            None => return Ok(Slice::default()),
        },
        None => None,
    };
    let (end, id) = from.unwrap_or((i64::MAX, i64::MAX));
    let by_end = filter.status.filter(|status| status.is_terminal());
    let sql = match filter.status {
        Some(JobStatus::Running) => LIST_RUNNING,
        Some(_) if by_end.is_some() => LIST_BY_END,
        _ => LIST_BY_ID,
    };
    let mut statement = read(conn.prepare_cached(sql))?;
    let mut found = match by_end {
        Some(status) => {
            read(statement.query(params![id, rows::limit(SCAN_MAX), status.code(), end]))?
        }
        None => read(statement.query(params![id, rows::limit(SCAN_MAX)]))?,
    };
    let (mut slice, mut scanned) = (Slice::default(), 0);
    while let Some(row) = read(found.next())? {
        let job: JobRow = rows::job(row)?;
        scanned += 1;
        let position = (
            job.finished_at.map_or(0, Timestamp::as_millis),
            job.id.as_i64(),
        );
        let fits = filter.status.is_none_or(|status| status == job.status)
            && wanted_type.is_none_or(|type_id| type_id == job.type_id);
        if fits {
            slice
                .jobs
                .push(summary(&job, names.type_name(conn, job.type_id)?));
        }
        if slice.jobs.len() >= limit || scanned == SCAN_MAX {
            slice.next = Some(position);
            break;
        }
    }
    Ok(slice)
}

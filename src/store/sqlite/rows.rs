//! Columns to types: the only place where a row of SQLite is taken apart. L2.
//!
//! A value that stepwell never writes is [`ErrorKind::Corrupt`](crate::ErrorKind), with table, row and column.

use std::sync::Arc;

use rusqlite::{Connection, OptionalExtension, Row, ToSql};

use crate::error::Result;
use crate::event::{Change, LoggedChange};
use crate::job::{ErrorCause, JobError, JobId, JobStatus};
use crate::store::sqlite::commit;
use crate::store::sqlite::errors::{self, Context};
use crate::store::sqlite::names::Names;
use crate::store::view::StoredError;
use crate::store::{Head, PhaseDone};
use crate::time::Timestamp;
use crate::transition::{Flags, JobRow};

/// The columns of a job row, in the order that [`job`] reads them.
macro_rules! job_columns {
    () => {
        "id, type_id, plan_id, status, priority, run_at_ms, epoch, attempt, phase_index, phase_count, phase_attempt, \
         crash_count, created_at_ms, started_at_ms, phase_started_at_ms, finished_at_ms, deadline_ms, last_seq, flags"
    };
}
pub(super) use job_columns;

/// How many they are: a column after them has this index.
pub(super) const JOB_COLUMNS: usize = 19;

/// The columns of the log, in the order that [`change`] reads them.
macro_rules! event_columns {
    () => {
        "seq, span, job_id, type_id, plan_id, change, at_ms, phase_index, attempt, data"
    };
}
pub(super) use event_columns;

pub(super) const SELECT_JOB: &str = concat!("SELECT ", job_columns!(), " FROM job WHERE id = ?1");
pub(super) const SELECT_HEAD: &str = "SELECT seq, span, head FROM event ORDER BY seq DESC LIMIT 1";
pub(super) const SELECT_INPUT: &str = "SELECT coalesce(job.input, payload.input), job.unique_key
    FROM job LEFT JOIN payload ON payload.job_id = job.id WHERE job.id = ?1";
const SELECT_UNIQUE_KEY: &str = "SELECT unique_key FROM job WHERE id = ?1";
pub(super) const SELECT_ERRORS: &str =
    "SELECT phase, attempt, at_ms, since_ms, cause, message, backtrace, id
    FROM job_error WHERE job_id = ?1 ORDER BY id DESC LIMIT ?2";
pub(super) const SELECT_PHASES: &str = "SELECT id, attempt, started_at_ms, finished_at_ms, result
    FROM phase WHERE id BETWEEN ?1 AND ?2 ORDER BY id";
// The pages that only results stand on are not touched.
const SELECT_PHASE_TIMES: &str = "SELECT id, attempt, started_at_ms, finished_at_ms, ''
    FROM phase WHERE id BETWEEN ?1 AND ?2 ORDER BY id";

/// What is read of a job.
#[derive(Clone, Copy)]
pub(super) enum Parts {
    All,
    /// All but its payloads.
    Outline,
}

/// Where the phases and checkpoints of a job begin.
pub(super) fn phase_key(id: JobId, phase_index: u32) -> i64 {
    id.as_i64() * 256 + i64::from(phase_index)
}

pub(super) fn read<T>(result: rusqlite::Result<T>) -> Result<T> {
    result.map_err(|error| errors::map(error, Context::Read))
}

/// The first column of the first row, if there is one.
pub(super) fn number(conn: &Connection, sql: &str, params: &[&dyn ToSql]) -> Result<Option<i64>> {
    let mut statement = read(conn.prepare_cached(sql))?;
    read(statement.query_row(params, |row| row.get(0)).optional())
}

/// A number of rows as SQLite counts them.
pub(super) fn limit(n: usize) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

/// No number that is counted gets there: 300 years of a million events a second. What is larger was not written by us, and could
/// not be reckoned with.
const NUMBER_MAX: i64 = 1 << 53;

/// A number that is not negative, and can be reckoned with.
pub(super) fn sane(value: i64, (table, id, column): (&str, i64, &str)) -> Result<i64> {
    if (0..=NUMBER_MAX).contains(&value) {
        Ok(value)
    } else {
        Err(errors::corrupt(table, id, column, value))
    }
}

/// A number that is small and not negative.
fn count(row: &Row<'_>, index: usize, (table, id, column): (&str, i64, &str)) -> Result<u32> {
    let value: i64 = read(row.get(index))?;
    let small = u32::try_from(value).ok().filter(|count| *count < u32::MAX);
    small.ok_or_else(|| errors::corrupt(table, id, column, value))
}

pub(super) fn job(row: &Row<'_>) -> Result<JobRow> {
    let id: i64 = read(row.get(0))?;
    let id = sane(id, ("job", id, "id"))?;
    let time = |index| read(row.get::<_, i64>(index)).map(Timestamp::from_millis);
    let maybe_time =
        |index| read(row.get::<_, Option<i64>>(index)).map(|ms| ms.map(Timestamp::from_millis));
    let count = |index, column| count(row, index, ("job", id, column));
    let status: i64 = read(row.get(3))?;
    Ok(JobRow {
        id: JobId::from_i64(id),
        type_id: read(row.get(1))?,
        plan_id: read(row.get(2))?,
        status: JobStatus::from_code(status)
            .ok_or_else(|| errors::corrupt("job", id, "status", status))?,
        priority: read(row.get(4))?,
        run_at: time(5)?,
        epoch: sane(read(row.get(6))?, ("job", id, "epoch"))?,
        attempt: count(7, "attempt")?,
        phase_index: count(8, "phase_index")?,
        phase_count: count(9, "phase_count")?,
        phase_attempt: count(10, "phase_attempt")?,
        crash_count: count(11, "crash_count")?,
        created_at: time(12)?,
        started_at: maybe_time(13)?,
        phase_started_at: maybe_time(14)?,
        finished_at: maybe_time(15)?,
        deadline: maybe_time(16)?,
        last_seq: sane(read(row.get(17))?, ("job", id, "last_seq"))?,
        flags: Flags(read(row.get(18))?),
    })
}

/// Where an input of this size is stored.
pub(super) fn table_of(input: &str) -> &'static str {
    if input.len() <= commit::INLINE_BYTES_MAX {
        "job"
    } else {
        "payload"
    }
}

/// The input of a job, wherever it is stored, and its unique key.
pub(super) fn input(conn: &Connection, id: JobId) -> Result<(String, Option<String>)> {
    let mut statement = read(conn.prepare_cached(SELECT_INPUT))?;
    let found = statement.query_row([id.as_i64()], |row| {
        Ok((row.get::<_, Option<String>>(0)?, row.get(1)?))
    });
    match read(found.optional())? {
        Some((Some(input), unique_key)) => Ok((input, unique_key)),
        Some((None, _)) | None => Err(errors::corrupt(
            "payload",
            id.as_i64(),
            "job_id",
            "of no row",
        )),
    }
}

pub(super) fn find_job(conn: &Connection, id: JobId) -> Result<Option<JobRow>> {
    let mut statement = read(conn.prepare_cached(SELECT_JOB))?;
    let mut rows = read(statement.query([id.as_i64()]))?;
    read(rows.next())?.map(job).transpose()
}

/// Where the log and the counters stand: the newest row has them.
pub(super) fn head(conn: &Connection) -> Result<Head> {
    let mut statement = read(conn.prepare_cached(SELECT_HEAD))?;
    let row = statement.query_row([], |row| {
        Ok((
            row.get::<_, i64>(0)?,
            row.get::<_, i64>(1)?,
            row.get::<_, Option<String>>(2)?,
        ))
    });
    let Some((seq, span, text)) = read(row.optional())? else {
        return Ok(Head::default());
    };
    let text = text.unwrap_or_default();
    let place = |column| ("event", seq, column);
    let newest = sane(seq, place("seq"))? + sane(span, place("span"))? - 1;
    let head = parse_head(&text, newest);
    let head = head.ok_or_else(|| errors::corrupt("event", seq, "head", format!("{text:?}")))?;
    for number in [head.job_id].iter().chain(&head.counts) {
        sane(*number, place("head"))?;
    }
    Ok(head)
}

/// `job_id pending running completed failed cancelled tag`
pub(super) fn parse_head(text: &str, seq: i64) -> Option<Head> {
    let mut numbers = [0_i64; 7];
    let mut words = text.split(' ');
    for number in &mut numbers {
        *number = words.next()?.parse().ok()?;
    }
    let [job_id, c0, c1, c2, c3, c4, tag] = numbers;
    words.next().is_none().then_some(Head {
        seq,
        job_id,
        counts: [c0, c1, c2, c3, c4],
        tag,
    })
}

pub(super) fn head_text(head: &Head) -> String {
    let [c0, c1, c2, c3, c4] = head.counts;
    let mut text = String::with_capacity(64);
    for number in [head.job_id, c0, c1, c2, c3, c4, head.tag] {
        if !text.is_empty() {
            text.push(' ');
        }
        push_number(&mut text, number);
    }
    text
}

/// As `write!` does, in a fifth of the time: it is done at each commit.
fn push_number(text: &mut String, number: i64) {
    let mut digits = ['0'; 20];
    let (mut left, mut from) = (number.unsigned_abs(), digits.len());
    while left > 0 || from == digits.len() {
        from -= 1;
        digits[from] = char::from(b'0' + u8::try_from(left % 10).expect("a digit"));
        left /= 10;
    }
    if number < 0 {
        text.push('-');
    }
    text.extend(&digits[from..]);
}

pub(super) fn change(conn: &Connection, names: &mut Names, row: &Row<'_>) -> Result<LoggedChange> {
    let seq: i64 = read(row.get(0))?;
    let seq = sane(seq, ("event", seq, "seq"))?;
    let code: i64 = read(row.get(5))?;
    let data: Option<String> = read(row.get(9))?;
    let data = match &data {
        Some(data) => {
            serde_json::from_str(data).map_err(|_| errors::corrupt("event", seq, "data", data))?
        }
        None => serde_json::Map::new(),
    };
    Ok(LoggedChange {
        seq,
        span: sane(read(row.get(1))?, ("event", seq, "span"))?,
        change: Change::from_code(code)
            .ok_or_else(|| errors::corrupt("event", seq, "change", code))?,
        job_id: JobId::from_i64(sane(read(row.get(2))?, ("event", seq, "job_id"))?),
        job_type: names.type_name(conn, read(row.get(3))?)?,
        at: Timestamp::from_millis(read(row.get(6))?),
        plan: names.plan(conn, read(row.get(4))?)?,
        phase_index: count(row, 7, ("event", seq, "phase_index"))?,
        attempt: count(row, 8, ("event", seq, "attempt"))?,
        data,
    })
}

/// The newest errors of a job, newest first.
pub(super) fn errors(conn: &Connection, id: JobId, limit: usize) -> Result<Vec<StoredError>> {
    let mut statement = read(conn.prepare_cached(SELECT_ERRORS))?;
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let mut rows = read(statement.query([id.as_i64(), limit]))?;
    let mut errors = Vec::new();
    while let Some(row) = read(rows.next())? {
        let cause: String = read(row.get(4))?;
        let number: i64 = read(row.get(7))?;
        let phase: Option<String> = read(row.get(0))?;
        let error = JobError {
            phase: phase.map(Arc::from),
            attempt: count(row, 1, ("job_error", number, "attempt"))?,
            at: Timestamp::from_millis(read(row.get(2))?),
            kind: ErrorCause::from_name(&cause)
                .ok_or_else(|| errors::corrupt("job_error", number, "cause", cause))?,
            message: read(row.get(5))?,
            backtrace: read(row.get(6))?,
        };
        let since: Option<i64> = read(row.get(3))?;
        errors.push((error, since.map(Timestamp::from_millis)));
    }
    Ok(errors)
}

/// The completed phases of a job; in an outline without their results.
pub(super) fn phases(conn: &Connection, id: JobId, parts: Parts) -> Result<Vec<(u32, PhaseDone)>> {
    let sql = match parts {
        Parts::All => SELECT_PHASES,
        Parts::Outline => SELECT_PHASE_TIMES,
    };
    let mut statement = read(conn.prepare_cached(sql))?;
    let mut rows = read(statement.query([phase_key(id, 0), phase_key(id, 255)]))?;
    let mut phases = Vec::new();
    while let Some(row) = read(rows.next())? {
        let key: i64 = read(row.get(0))?;
        let index = u32::try_from(key & 255).expect("8 bits");
        let done = PhaseDone {
            attempt: count(row, 1, ("phase", key, "attempt"))?,
            started_at: Timestamp::from_millis(read(row.get(2))?),
            finished_at: Timestamp::from_millis(read(row.get(3))?),
            result: read(row.get(4))?,
        };
        phases.push((index, done));
    }
    Ok(phases)
}

/// The unique key that a job was enqueued with.
pub(super) fn unique_key(conn: &Connection, id: JobId) -> Result<Option<String>> {
    let mut statement = read(conn.prepare_cached(SELECT_UNIQUE_KEY))?;
    let key = statement.query_row([id.as_i64()], |row| row.get(0));
    Ok(read(key.optional())?.flatten())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_head_is_read_as_it_was_written_and_nothing_else_is() {
        let head = Head {
            seq: 9,
            job_id: 4,
            counts: [1, 0, 2, 0, 1],
            tag: -7,
        };
        assert_eq!(head_text(&head), "4 1 0 2 0 1 -7");
        for tag in [-7, 0, 10, i64::MAX, i64::MIN] {
            let head = Head { tag, ..head };
            assert_eq!(parse_head(&head_text(&head), 9), Some(head));
        }
        for bad in ["", "1 2 3", "1 2 3 4 5 6 x", "1 2 3 4 5 6 7 8"] {
            assert_eq!(parse_head(bad, 1), None, "{bad}");
        }
    }
}

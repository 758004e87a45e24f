//! The writing side: one transaction, and single rows within it. L2. The only file that writes jobs and events
//! (`prune` deletes the old end of the log).
//!
//! Every statement reaches its row by an integer key, and is prepared once in the life of a connection. Updates of jobs are put
//! off to join those of their neighbours: `updates`. So are new jobs: `inserts`.

use std::collections::HashMap;
use std::sync::Arc;

use rusqlite::{Connection, OptionalExtension, ToSql, params};

use crate::error::{Error, ErrorKind, Result};
use crate::event::{Plan, Seq};
use crate::job::{JobId, JobStatus};
use crate::store::prune::{Ended, Seen};
use crate::store::sqlite::errors::{self, Context};
use crate::store::sqlite::held::Held;
use crate::store::sqlite::inserts::{self, Inserts};
use crate::store::sqlite::known::Known;
use crate::store::sqlite::names::Names;
use crate::store::sqlite::rows::{self, job_columns, limit, number, phase_key, read};
use crate::store::sqlite::updates::Updates;
use crate::store::sqlite::{by_status, due, prune};
use crate::store::view;
use crate::store::{Details, ErrorRow, EventRow, Failure, Head, Holder, PhaseDone, Rows, TypeRow};
use crate::time::Timestamp;
use crate::transition::{Flags, JobRow};

/// Inputs up to this size stay in the hot row: one page fewer is written for a job, and its claim reads one row fewer. Larger
/// ones would be written again with every change of the job.
pub(super) const INLINE_BYTES_MAX: usize = 256;

const INSERT_EVENT: &str = "INSERT INTO event
    (seq, span, prev_seq, prev_step, job_id, type_id, plan_id, change, at_ms, phase_index, attempt, data, head)
    VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13)";
const SELECT_EVENT_HEAD: &str = "SELECT head FROM event WHERE seq = ?1";
const INSERT_JOB: &str = concat!(
    "INSERT INTO job (",
    job_columns!(),
    ", unique_key, input) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19, ?20, ?21)"
);
pub(super) const INSERT_FRESH_JOB: &str = concat!(
    "INSERT INTO job (",
    job_columns!(),
    ", unique_key, input) VALUES (?1, ?2, ?3, 0, ?4, ?5, 0, 0, 0, ?6, 0, 0, ?7, NULL, NULL, NULL, ?8, ?9, 0, ?10, ?11)"
);
/// Up to 16 jobs that differ in id, `last_seq` and input, the first two by one from job to job. Beyond the last one inputs are null.
pub(super) const INSERT_FRESH_RUN: &str = concat!(
    "INSERT INTO job (",
    job_columns!(),
    ", unique_key, input) SELECT ?1 + column1, ?2, ?3, 0, ?4, ?5, 0, 0, 0, ?6, 0, 0, ?7, NULL, NULL, NULL, ?8, ?9 + column1, 0,
    NULL, column2 FROM (VALUES (0, ?10), (1, ?11), (2, ?12), (3, ?13), (4, ?14), (5, ?15), (6, ?16), (7, ?17), (8, ?18),
    (9, ?19), (10, ?20), (11, ?21), (12, ?22), (13, ?23), (14, ?24), (15, ?25)) WHERE column2 IS NOT NULL"
);
const INSERT_PAYLOAD: &str = "INSERT INTO payload (job_id, input) VALUES (?1, ?2)";
pub(super) const DELETE_JOB: &str = "DELETE FROM job WHERE id = ?1 AND status = ?2 AND epoch = ?3";
pub(super) const DELETE_PAYLOAD: &str = "DELETE FROM payload WHERE job_id = ?1";
pub(super) const DELETE_ERRORS: &str = "DELETE FROM job_error WHERE job_id = ?1";
pub(super) const DELETE_PHASES: &str = "DELETE FROM phase WHERE id BETWEEN ?1 AND ?2";
pub(super) const DELETE_CHECKPOINTS: &str = "DELETE FROM checkpoint WHERE id BETWEEN ?1 AND ?2";
const PUT_PHASE: &str =
    "INSERT OR REPLACE INTO phase (id, attempt, started_at_ms, finished_at_ms, result)
    VALUES (?1, ?2, ?3, ?4, ?5)";
const PUT_CHECKPOINT: &str = "INSERT OR REPLACE INTO checkpoint (id, value) VALUES (?1, ?2)";
const INSERT_ERROR: &str =
    "INSERT INTO job_error (job_id, phase, attempt, at_ms, since_ms, cause, message, backtrace)
    VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)";
pub(super) const TRIM_ERRORS: &str = "DELETE FROM job_error WHERE job_id = ?1 AND id <=
    (SELECT id FROM job_error WHERE job_id = ?1 ORDER BY id DESC LIMIT 1 OFFSET ?2)";
pub(super) const SELECT_TYPE: &str = "SELECT id, plan_id, paused FROM job_type WHERE name = ?1";
const SELECT_TYPE_BY_ID: &str = "SELECT id, plan_id, paused FROM job_type WHERE id = ?1";
const INSERT_TYPE: &str = "INSERT INTO job_type (name, plan_id, paused) VALUES (?1, 0, 0)";
const UPDATE_TYPE: &str = "UPDATE job_type SET plan_id = ?2, paused = ?3 WHERE id = ?1";
pub(super) const SELECT_PLAN_ID: &str = "SELECT id FROM plan WHERE phases = ?1";
const INSERT_PLAN: &str = "INSERT INTO plan (phases) VALUES (?1)";
pub(super) const SELECT_PAUSED: &str =
    "SELECT count(*) FROM meta WHERE key = 'paused' AND value = '1'";
/// Another value each time: SQLite writes no page whose bytes stay as they were.
const TOUCH: &str = "INSERT OR REPLACE INTO meta (key, value)
    VALUES ('touched', lower(hex(randomblob(8))))";
const PUT_PAUSED: &str = "INSERT OR REPLACE INTO meta (key, value) VALUES ('paused', ?1)";
pub(super) const COUNT_RUNNING: &str =
    "SELECT count(*) FROM job WHERE status = 1 AND status <= 1 AND type_id = ?1";
pub(super) const SELECT_HOLDER: &str =
    "SELECT job_id, hold, expires_ms FROM unique_key WHERE type_id = ?1 AND key = ?2";
const PUT_HOLDER: &str =
    "INSERT OR REPLACE INTO unique_key (type_id, key, job_id, hold, expires_ms)
    VALUES (?1, ?2, ?3, ?4, ?5)";

/// Runs `work` between BEGIN IMMEDIATE and COMMIT.
pub(super) fn transact(
    conn: &Connection,
    names: &mut Names,
    known: &mut Known,
    seen: &mut Seen,
    inserts: &mut Inserts,
    work: &mut dyn FnMut(&mut dyn Rows) -> Result<()>,
) -> std::result::Result<(), Failure> {
    execute(conn, "BEGIN IMMEDIATE", params![]).map_err(Failure::NothingDone)?;
    // Those of a transaction that was rolled back.
    inserts.clear();
    let mut tx = Tx {
        conn,
        held: Held::new(conn),
        names,
        known,
        seen,
        inputs: HashMap::new(),
        updates: None,
        inserts,
        failed: None,
    };
    let done = tx.known.check(conn).and_then(|()| work(&mut tx));
    let done = done
        .and_then(|()| tx.flush())
        .and_then(|()| tx.failed.take().map_or(Ok(()), Err));
    if let Err(error) = done {
        // SQLite has rolled back by itself after some errors; then this one fails, and nothing is left to do.
        execute(conn, "ROLLBACK", params![]).ok();
        return Err(Failure::NothingDone(error));
    }
    // An error here leaves open whether the commit record has reached the disk. Rolling back and going on would make the
    // answer "no" for this connection, while a reader of the file after a crash might still find it.
    let committed = conn.prepare_cached("COMMIT");
    committed
        .and_then(|mut commit| commit.execute([]))
        .map(|_| tx.known.committed())
        .map_err(|error| Failure::Unknown(errors::map(error, Context::Commit)))
}

fn execute(conn: &Connection, sql: &str, params: &[&dyn ToSql]) -> Result<usize> {
    conn.prepare_cached(sql)
        .and_then(|mut statement| statement.execute(params))
        .map_err(|error| errors::map(error, Context::Write))
}

/// One open transaction.
pub(super) struct Tx<'c> {
    pub(super) conn: &'c Connection,
    held: Held<'c>,
    names: &'c mut Names,
    pub(super) known: &'c mut Known,
    pub(super) seen: &'c mut Seen,
    /// Inputs that were read with their due jobs, for the claims that follow.
    inputs: HashMap<JobId, String>,
    /// Not written yet: to be flushed before anything else is done with rows of jobs.
    updates: Option<Updates>,
    /// The same for new jobs. There are never both.
    inserts: &'c mut Inserts,
    /// Why something that was put off could not be written. Whoever asked for rows then may have taken the error for an answer
    /// about itself alone; but what went before is not written either, and must not be committed without.
    failed: Option<Error>,
}

impl Tx<'_> {
    fn flush(&mut self) -> Result<()> {
        let done = if let Some(updates) = self.updates.take() {
            updates.write(self)
        } else if !self.inserts.is_empty() {
            let done = self.inserts.write(&mut self.held);
            self.inserts.clear();
            done
        } else {
            return Ok(());
        };
        done.inspect_err(|error| self.failed = Some(error.duplicate()))
    }

    pub(super) fn write(&mut self, sql: &'static str, params: &[&dyn ToSql]) -> Result<usize> {
        let changed = self.held.execute(sql, params);
        changed.map_err(|error| errors::map(error, Context::Write))
    }

    /// A statement without which this transaction must not be committed.
    fn mend(&mut self, sql: &'static str) -> Result<()> {
        let done = self.write(sql, params![]).map(|_| ());
        done.inspect_err(|error| self.failed = Some(error.duplicate()))
    }

    fn type_row(&self, sql: &str, key: &dyn ToSql) -> Result<Option<TypeRow>> {
        let mut statement = read(self.conn.prepare_cached(sql))?;
        let row = statement.query_row([key], |row| {
            Ok(TypeRow {
                id: row.get(0)?,
                plan_id: row.get(1)?,
                paused: row.get(2)?,
            })
        });
        read(row.optional())
    }
}

pub(super) fn ms(time: Option<Timestamp>) -> Option<i64> {
    time.map(Timestamp::as_millis)
}

impl Rows for Tx<'_> {
    fn mark(&mut self) -> Result<()> {
        self.flush()?;
        self.write("SAVEPOINT mark", params![]).map(|_| ())
    }

    fn keep(&mut self) -> Result<()> {
        self.flush()?;
        self.mend("RELEASE mark")
    }

    fn undo(&mut self) -> Result<()> {
        self.updates = None;
        self.inserts.clear();
        self.known.forget();
        self.mend("ROLLBACK TO mark")?;
        self.mend("RELEASE mark")
    }

    fn head(&mut self) -> Result<Head> {
        if let Some(head) = self.known.head {
            return Ok(head);
        }
        let head = rows::head(self.conn)?;
        self.known.head = Some(head);
        Ok(head)
    }

    fn has_news(&mut self) -> bool {
        self.known.tell_news()
    }

    fn recount(&mut self) -> Result<[i64; 5]> {
        self.flush()?;
        by_status::counts(self.conn)
    }

    fn tag_at(&mut self, seq: Seq) -> Result<Option<i64>> {
        let mut statement = read(self.conn.prepare_cached(SELECT_EVENT_HEAD))?;
        let text: Option<Option<String>> =
            read(statement.query_row([seq], |row| row.get(0)).optional())?;
        Ok(text
            .flatten()
            .and_then(|text| rows::parse_head(&text, seq))
            .map(|head| head.tag))
    }

    fn append(&mut self, row: &EventRow, head: Option<&Head>) -> Result<()> {
        if head.is_some() {
            self.known.head = head.copied();
        }
        let head = head.map(rows::head_text);
        self.write(
            INSERT_EVENT,
            params![
                row.seq,
                row.span,
                row.prev_seq,
                row.prev_step,
                row.job_id.as_i64(),
                row.type_id,
                row.plan_id,
                row.change.code(),
                row.at.as_millis(),
                row.phase_index,
                row.attempt,
                row.data,
                head
            ],
        )?;
        Ok(())
    }

    fn job_type(&mut self, name: &Arc<str>) -> Result<TypeRow> {
        if let Some(row) = self.known.job_type(name) {
            return Ok(row.clone());
        }
        let known = match self.names.type_id(name) {
            Some(id) => self.type_row(SELECT_TYPE_BY_ID, &id)?,
            None => self.type_row(SELECT_TYPE, &&**name)?,
        };
        let row = match known {
            Some(row) => row,
            None => {
                self.write(INSERT_TYPE, params![&**name])?;
                TypeRow {
                    id: self.conn.last_insert_rowid(),
                    plan_id: 0,
                    paused: false,
                }
            }
        };
        self.names.remember_type(row.id, name.clone());
        self.known.remember_type(name.clone(), row.clone());
        Ok(row)
    }

    fn type_name(&mut self, type_id: i64) -> Result<Arc<str>> {
        self.names.type_name(self.conn, type_id)
    }

    fn set_job_type(&mut self, row: &TypeRow) -> Result<()> {
        self.known.forget_types();
        self.write(UPDATE_TYPE, params![row.id, row.plan_id, row.paused])
            .map(|_| ())
    }

    fn plan_id(&mut self, plan: &Plan) -> Result<i64> {
        if let Some(id) = self.names.plan_id(plan) {
            return Ok(id);
        }
        let phases = serde_json::to_string(plan).map_err(|error| {
            Error::new(ErrorKind::InvalidJob, "a plan cannot be written").with_source(error)
        })?;
        let id = match number(self.conn, SELECT_PLAN_ID, params![phases])? {
            Some(id) => id,
            None => {
                self.write(INSERT_PLAN, params![phases])?;
                self.conn.last_insert_rowid()
            }
        };
        self.names.remember_plan(id, plan.clone());
        Ok(id)
    }

    fn plan(&mut self, plan_id: i64) -> Result<Plan> {
        self.names.plan(self.conn, plan_id)
    }

    fn touch(&mut self) -> Result<()> {
        self.write(TOUCH, params![]).map(|_| ())
    }

    fn set_paused(&mut self, paused: bool) -> Result<()> {
        self.write(PUT_PAUSED, params![if paused { "1" } else { "0" }])
            .map(|_| ())
    }

    fn job(&mut self, id: JobId) -> Result<Option<JobRow>> {
        match self.known.job(id) {
            Some(row) => Ok(Some(row)),
            None => {
                self.flush()?;
                rows::find_job(self.conn, id)
            }
        }
    }

    fn insert_job(&mut self, row: &JobRow, input: &str, unique_key: Option<&str>) -> Result<()> {
        self.known.written(row);
        let inline = (input.len() <= INLINE_BYTES_MAX).then_some(input);
        if inserts::is_fresh(row) {
            if inline.is_some() && unique_key.is_none() {
                if self.updates.is_some() || !self.inserts.fits(row) {
                    self.flush()?;
                }
                self.inserts.push(row, input);
                return Ok(());
            }
            self.flush()?;
            inserts::insert_one(&mut self.held, row, inline, unique_key)?;
        } else {
            self.flush()?;
            self.write(
                INSERT_JOB,
                params![
                    row.id.as_i64(),
                    row.type_id,
                    row.plan_id,
                    row.status.code(),
                    row.priority,
                    row.run_at.as_millis(),
                    row.epoch,
                    row.attempt,
                    row.phase_index,
                    row.phase_count,
                    row.phase_attempt,
                    row.crash_count,
                    row.created_at.as_millis(),
                    ms(row.started_at),
                    ms(row.phase_started_at),
                    ms(row.finished_at),
                    ms(row.deadline),
                    row.last_seq,
                    row.flags.0,
                    unique_key,
                    inline
                ],
            )?;
        }
        if inline.is_none() {
            self.write(INSERT_PAYLOAD, params![row.id.as_i64(), input])?;
        }
        Ok(())
    }

    fn update_job(&mut self, before: &JobRow, after: &JobRow) -> Result<bool> {
        self.known.written(after);
        let is_taken = self.updates.as_mut();
        if is_taken.is_some_and(|updates| updates.grow(before, after)) {
            return Ok(true);
        }
        self.flush()?;
        self.updates = Some(Updates::new(before, after));
        Ok(true)
    }

    fn delete_job(&mut self, row: &JobRow) -> Result<()> {
        self.flush()?;
        let id = row.id.as_i64();
        self.write(prune::DELETE_HOLDER_OF, params![row.type_id, id])?;
        self.write(DELETE_JOB, params![id, row.status.code(), row.epoch])?;
        // Most have none; it costs one look into a small table.
        self.write(DELETE_PAYLOAD, params![id])?;
        self.clear_results(row.id, 0)?;
        if row.flags.has(Flags::ERRORS) {
            self.write(DELETE_ERRORS, params![id])?;
        }
        Ok(())
    }

    fn details(&mut self, row: &JobRow) -> Result<Details> {
        let input = match self.inputs.remove(&row.id) {
            Some(input) => input,
            None => rows::input(self.conn, row.id)?.0,
        };
        let mut details = Details {
            input,
            ..Details::default()
        };
        if row.flags.has(Flags::ERRORS) {
            let errors = rows::errors(self.conn, row.id, crate::config::ERRORS_KEPT)?;
            if row.flags.has(Flags::INTERRUPTED) {
                details.interruption = errors.iter().find_map(view::interruption);
            }
            details.last_error = errors.into_iter().next().map(|(error, _)| error);
        }
        Ok(details)
    }

    fn put_result(&mut self, id: JobId, phase_index: u32, done: &PhaseDone) -> Result<()> {
        let (key, started_at) = (phase_key(id, phase_index), done.started_at.as_millis());
        let params = params![
            key,
            done.attempt,
            started_at,
            done.finished_at.as_millis(),
            done.result
        ];
        self.write(PUT_PHASE, params).map(|_| ())
    }

    fn results(&mut self, id: JobId) -> Result<Vec<(u32, PhaseDone)>> {
        rows::phases(self.conn, id, rows::Parts::All)
    }

    fn clear_results(&mut self, id: JobId, from_index: u32) -> Result<()> {
        let (from, to) = (phase_key(id, from_index), phase_key(id, 255));
        self.write(DELETE_PHASES, params![from, to])?;
        self.write(DELETE_CHECKPOINTS, params![from, to])
            .map(|_| ())
    }

    fn put_checkpoint(&mut self, id: JobId, phase_index: u32, json: Option<&str>) -> Result<()> {
        let key = phase_key(id, phase_index);
        match json {
            Some(json) => self.write(PUT_CHECKPOINT, params![key, json]).map(|_| ()),
            None => self
                .write(DELETE_CHECKPOINTS, params![key, key])
                .map(|_| ()),
        }
    }

    fn add_error(&mut self, id: JobId, error: &ErrorRow) -> Result<()> {
        self.write(
            INSERT_ERROR,
            params![
                id.as_i64(),
                error.phase.as_deref(),
                error.attempt,
                error.at.as_millis(),
                ms(error.since),
                error.cause.as_str(),
                error.message,
                error.backtrace
            ],
        )?;
        self.write(
            TRIM_ERRORS,
            params![id.as_i64(), limit(crate::config::ERRORS_KEPT)],
        )
        .map(|_| ())
    }

    fn due(
        &mut self,
        type_id: i64,
        now: Timestamp,
        most: usize,
        out: &mut Vec<JobRow>,
    ) -> Result<()> {
        self.flush()?;
        due::first(self.conn, type_id, now, most, out, &mut self.inputs)
    }

    fn next_due(&mut self, type_id: i64, now: Timestamp) -> Result<Option<Timestamp>> {
        self.flush()?;
        due::next(self.conn, type_id, now)
    }

    fn running(&mut self, type_id: i64) -> Result<u32> {
        self.flush()?;
        let count = number(self.conn, COUNT_RUNNING, params![type_id])?;
        Ok(count
            .and_then(|count| u32::try_from(count).ok())
            .unwrap_or(u32::MAX))
    }

    fn ids(&mut self, status: JobStatus, type_id: Option<i64>, most: usize) -> Result<Vec<JobId>> {
        self.flush()?;
        by_status::ids(self.conn, status, type_id, most)
    }

    fn oldest_ended(
        &mut self,
        status: JobStatus,
        after: Ended,
        cutoff: Timestamp,
        most: usize,
    ) -> Result<Vec<Ended>> {
        self.flush()?;
        by_status::oldest_over(self.conn, status, after, cutoff, most)
    }

    fn stored_bytes(&mut self, id: JobId) -> Result<u64> {
        prune::stored_bytes(self.conn, id)
    }

    fn seen(&mut self) -> &mut Seen {
        self.seen
    }

    fn unique_key(&mut self, id: JobId) -> Result<Option<String>> {
        rows::unique_key(self.conn, id)
    }

    fn holder(&mut self, type_id: i64, key: &str) -> Result<Option<Holder>> {
        let mut statement = read(self.conn.prepare_cached(SELECT_HOLDER))?;
        let holder = statement.query_row(params![type_id, key], |row| {
            Ok(Holder {
                job_id: JobId::from_i64(row.get(0)?),
                hold: row.get(1)?,
                expires: Timestamp::from_millis(row.get(2)?),
            })
        });
        read(holder.optional())
    }

    fn set_holder(&mut self, type_id: i64, key: &str, holder: &Holder) -> Result<()> {
        let expires = holder.expires.as_millis();
        self.write(
            PUT_HOLDER,
            params![type_id, key, holder.job_id.as_i64(), holder.hold, expires],
        )
        .map(|_| ())
    }

    fn prune_holders(&mut self, now: Timestamp, most: usize) -> Result<()> {
        prune::holders(self, now, most)
    }

    fn oldest_events(&mut self, most: usize) -> Result<Vec<(Seq, Timestamp)>> {
        prune::oldest_events(self, most)
    }

    fn event_time(&mut self, seq: Seq) -> Result<Option<Timestamp>> {
        let at = number(self.conn, prune::SELECT_EVENT_TIME, params![seq])?;
        Ok(at.map(Timestamp::from_millis))
    }

    fn delete_events(&mut self, before: Seq) -> Result<()> {
        self.write(prune::DELETE_OLD_EVENTS, params![before])
            .map(|_| ())
    }
}

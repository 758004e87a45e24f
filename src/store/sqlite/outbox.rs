//! Endpoints, deliveries and their tries. L2.
#![cfg_attr(
    not(feature = "webhook"),
    allow(
        dead_code,
        reason = "the sender is left out, what it needs of the store is not"
    )
)]

use std::ops::Range;
use std::sync::Arc;

use rusqlite::{Connection, OptionalExtension, Row, ToSql, params};

use crate::delivery::{DeliveryId, DeliveryStatus, DeliveryTry, EndpointSpec, Kinds};
use crate::error::Result;
use crate::event::EventKind;
use crate::job::JobId;
use crate::store::SCAN_MAX;
use crate::store::outbox::{
    DeliveryFilter, DeliveryRow, EndpointRow, OutboxReader, OutboxRows, TRIES_KEPT,
};
use crate::store::sqlite::commit::Tx;
use crate::store::sqlite::errors;
use crate::store::sqlite::read::Readers;
use crate::store::sqlite::rows::{limit, number, read};
use crate::time::Timestamp;

macro_rules! endpoint_columns {
    () => {
        "id, name, url, events, secrets, enabled, problem"
    };
}

macro_rules! delivery_columns {
    () => {
        "id, endpoint_id, job_id, kind, url, body, status, tries, next_at_ms, created_at_ms, finished_at_ms, last_status, \
         last_error"
    };
}

const SELECT_NAMED: &str = concat!(
    "SELECT ",
    endpoint_columns!(),
    " FROM endpoint WHERE name IS NOT NULL ORDER BY name"
);
const SELECT_ENDPOINTS: &str =
    concat!("SELECT ", endpoint_columns!(), " FROM endpoint ORDER BY id");
const SELECT_ENDPOINT: &str = concat!(
    "SELECT ",
    endpoint_columns!(),
    " FROM endpoint WHERE id = ?1"
);
pub(super) const SELECT_OF_JOB: &str = concat!(
    "SELECT ",
    endpoint_columns!(),
    " FROM endpoint WHERE id IN (SELECT endpoint_id FROM job_endpoint WHERE job_id = ?1) ORDER BY id"
);
pub(super) const SELECT_SAME: &str =
    "SELECT id FROM endpoint WHERE name IS NULL AND url = ?1 AND events = ?2 AND secrets = ?3";
const INSERT_ENDPOINT: &str = "INSERT INTO endpoint (name, url, events, secrets, enabled, problem) VALUES (?1, ?2, ?3, ?4, ?5, ?6)";
const UPDATE_ENDPOINT: &str = "UPDATE endpoint SET url = ?2, events = ?3, secrets = ?4, enabled = ?5, problem = ?6 WHERE id = ?1";
pub(super) const DROP_ENDPOINT: &str = "DELETE FROM endpoint WHERE id = ?1 AND name IS NULL
    AND NOT EXISTS (SELECT 1 FROM job_endpoint WHERE endpoint_id = ?1)
    AND NOT EXISTS (SELECT 1 FROM delivery WHERE endpoint_id = ?1 AND status = 0)";
const LINK: &str = "INSERT OR IGNORE INTO job_endpoint (job_id, endpoint_id) VALUES (?1, ?2)";
const UNLINK: &str = "DELETE FROM job_endpoint WHERE job_id = ?1";
const SELECT_DELIVERY: &str = concat!(
    "SELECT ",
    delivery_columns!(),
    " FROM delivery WHERE id = ?1"
);
const INSERT_DELIVERY: &str = concat!(
    "INSERT INTO delivery (",
    delivery_columns!(),
    ") VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13)"
);
const UPDATE_DELIVERY: &str = "UPDATE delivery
    SET status = ?2, tries = ?3, next_at_ms = ?4, finished_at_ms = ?5, last_status = ?6, last_error = ?7 WHERE id = ?1";
pub(super) const SELECT_FIRST: &str = "SELECT id FROM delivery WHERE status = 0 AND endpoint_id = ?1 AND job_id = ?2 ORDER BY id LIMIT 1";
const INSERT_TRY: &str =
    "INSERT INTO delivery_try (delivery_id, at_ms, took_ms, status, error, answer)
    VALUES (?1, ?2, ?3, ?4, ?5, ?6)";
pub(super) const TRIM_TRIES: &str = "DELETE FROM delivery_try WHERE delivery_id = ?1 AND id <=
    (SELECT id FROM delivery_try WHERE delivery_id = ?1 ORDER BY id DESC LIMIT 1 OFFSET ?2)";
const SELECT_TRIES: &str = "SELECT at_ms, took_ms, status, error, answer FROM delivery_try WHERE delivery_id = ?1 ORDER BY id";
const SELECT_BETWEEN: &str =
    "SELECT id FROM delivery WHERE created_at_ms >= ?1 AND created_at_ms < ?2 ORDER BY id LIMIT ?3";
pub(super) const SELECT_OVER: &str = "SELECT id, job_id, finished_at_ms FROM delivery
    WHERE status >= 1 AND finished_at_ms >= ?1 ORDER BY finished_at_ms LIMIT ?2";
pub(super) const SELECT_OLD: &str =
    "SELECT id, job_id FROM delivery WHERE id < ?1 AND status = 1 ORDER BY id LIMIT ?2";
const BRING_FORWARD: &str = "UPDATE delivery SET next_at_ms = ?1 WHERE next_at_ms > ?1";
pub(super) const HAS_DELIVERIES: &str = "SELECT 1 FROM delivery WHERE job_id = ?1 LIMIT 1";
const DELETE_DELIVERY: &str = "DELETE FROM delivery WHERE id = ?1";
const DELETE_TRIES: &str = "DELETE FROM delivery_try WHERE delivery_id = ?1";
pub(super) const NEXT_ENDPOINT: &str = "SELECT endpoint_id, next_at_ms FROM delivery
    WHERE next_at_ms IS NOT NULL AND endpoint_id > ?1 ORDER BY endpoint_id, next_at_ms LIMIT 1";
pub(super) const NEXT_OF: &str = "SELECT next_at_ms FROM delivery
    WHERE next_at_ms IS NOT NULL AND endpoint_id = ?1 ORDER BY next_at_ms LIMIT 1";
pub(super) const SELECT_SENDABLE: &str = concat!(
    "SELECT ",
    delivery_columns!(),
    " FROM delivery WHERE next_at_ms IS NOT NULL AND endpoint_id = ?1
    ORDER BY next_at_ms, id LIMIT ?2"
);
pub(super) const LIST: &str = concat!(
    "SELECT ",
    delivery_columns!(),
    " FROM delivery WHERE id < ?1 ORDER BY id DESC LIMIT ?2"
);
pub(super) const LIST_OF_JOB: &str = concat!(
    "SELECT ",
    delivery_columns!(),
    " FROM delivery WHERE job_id = ?3 AND id < ?1 ORDER BY id DESC LIMIT ?2"
);

impl OutboxRows for Tx<'_> {
    fn named_endpoints(&mut self) -> Result<Vec<EndpointRow>> {
        if let Some(endpoints) = &self.known.endpoints {
            return Ok(endpoints.clone());
        }
        let endpoints = endpoints(self.conn, SELECT_NAMED, params![])?;
        self.known.endpoints = Some(endpoints.clone());
        Ok(endpoints)
    }

    fn endpoints_of(&mut self, job: JobId) -> Result<Vec<EndpointRow>> {
        endpoints(self.conn, SELECT_OF_JOB, params![job.as_i64()])
    }

    fn endpoint(&mut self, id: i64) -> Result<Option<EndpointRow>> {
        Ok(endpoints(self.conn, SELECT_ENDPOINT, params![id])?.pop())
    }

    fn put_endpoint(&mut self, row: &EndpointRow) -> Result<i64> {
        self.known.endpoints = None;
        let EndpointSpec {
            url,
            events,
            secrets,
        } = &row.spec;
        let secrets = secrets_text(secrets);
        if row.id != 0 {
            let enabled = row.is_enabled;
            self.write(
                UPDATE_ENDPOINT,
                params![row.id, url, events.0, secrets, enabled, row.problem],
            )?;
            return Ok(row.id);
        }
        if row.name.is_none()
            && let Some(id) = number(self.conn, SELECT_SAME, params![url, events.0, secrets])?
        {
            return Ok(id);
        }
        let (name, enabled) = (row.name.as_deref(), row.is_enabled);
        self.write(
            INSERT_ENDPOINT,
            params![name, url, events.0, secrets, enabled, row.problem],
        )?;
        Ok(self.conn.last_insert_rowid())
    }

    fn link_endpoint(&mut self, job: JobId, endpoint_id: i64) -> Result<()> {
        self.write(LINK, params![job.as_i64(), endpoint_id])
            .map(|_| ())
    }

    fn unlink_endpoints(&mut self, job: JobId) -> Result<()> {
        self.write(UNLINK, params![job.as_i64()]).map(|_| ())
    }

    fn drop_endpoint(&mut self, id: i64) -> Result<()> {
        self.write(DROP_ENDPOINT, params![id]).map(|_| ())
    }

    fn delivery(&mut self, id: DeliveryId) -> Result<Option<DeliveryRow>> {
        Ok(deliveries(self.conn, SELECT_DELIVERY, params![id.as_i64()])?.pop())
    }

    fn insert_delivery(&mut self, row: &DeliveryRow) -> Result<()> {
        let params = params![
            row.id.as_i64(),
            row.endpoint_id,
            row.job_id.as_i64(),
            row.kind.code(),
            row.url,
            &*row.body,
            row.status.code(),
            row.tries,
            row.next_at.map(Timestamp::as_millis),
            row.created_at.as_millis(),
            row.finished_at.map(Timestamp::as_millis),
            row.last_status,
            row.last_error
        ];
        self.write(INSERT_DELIVERY, params).map(|_| ())
    }

    fn update_delivery(&mut self, row: &DeliveryRow) -> Result<()> {
        let params = params![
            row.id.as_i64(),
            row.status.code(),
            row.tries,
            row.next_at.map(Timestamp::as_millis),
            row.finished_at.map(Timestamp::as_millis),
            row.last_status,
            row.last_error
        ];
        self.write(UPDATE_DELIVERY, params).map(|_| ())
    }

    fn first_in_line(&mut self, endpoint_id: i64, job: JobId) -> Result<Option<DeliveryId>> {
        let id = number(self.conn, SELECT_FIRST, params![endpoint_id, job.as_i64()])?;
        Ok(id.map(DeliveryId::from_i64))
    }

    fn add_try(&mut self, id: DeliveryId, attempt: &DeliveryTry) -> Result<()> {
        let took = i64::try_from(attempt.took_ms).unwrap_or(i64::MAX);
        let at = attempt.at.as_millis();
        let (status, error, answer) = (attempt.status, &attempt.error, &attempt.answer);
        self.write(
            INSERT_TRY,
            params![id.as_i64(), at, took, status, error, answer],
        )?;
        self.write(TRIM_TRIES, params![id.as_i64(), limit(TRIES_KEPT)])
            .map(|_| ())
    }

    fn deliveries_between(
        &mut self,
        from: Timestamp,
        to: Timestamp,
        most: usize,
    ) -> Result<Vec<DeliveryId>> {
        let params = params![from.as_millis(), to.as_millis(), limit(most)];
        ids(self.conn, SELECT_BETWEEN, params)
    }

    fn bring_forward(&mut self, now: Timestamp) -> Result<usize> {
        self.write(BRING_FORWARD, params![now.as_millis()])
    }

    fn prune_deliveries(
        &mut self,
        first: DeliveryId,
        old: Range<Timestamp>,
        most: usize,
    ) -> Result<(Vec<JobId>, Option<Timestamp>)> {
        let mut over = over(self.conn, old.start, most)?;
        over.retain(|(.., at)| *at < old.end);
        let mut gone: Vec<_> = over.into_iter().map(|(id, job, _)| (id, job)).collect();
        if gone.len() < most {
            let mut more = delivered(self.conn, first, most)?;
            more.retain(|it| !gone.contains(it));
            more.truncate(most - gone.len());
            gone.extend(more);
        }
        for (id, _) in &gone {
            self.write(DELETE_DELIVERY, params![id.as_i64()])?;
            self.write(DELETE_TRIES, params![id.as_i64()])?;
        }
        let oldest = self::over(self.conn, old.start, 1)?.pop();
        let jobs = gone.into_iter().map(|(_, job)| job).collect();
        Ok((jobs, oldest.map(|(.., at)| at)))
    }

    fn has_deliveries(&mut self, job: JobId) -> Result<bool> {
        Ok(number(self.conn, HAS_DELIVERIES, params![job.as_i64()])?.is_some())
    }
}

impl OutboxReader for Readers {
    fn all_endpoints(&self) -> Result<Vec<EndpointRow>> {
        self.with(|conn, _| endpoints(conn, SELECT_ENDPOINTS, params![]))
    }

    fn find_endpoint(&self, id: i64) -> Result<Option<EndpointRow>> {
        self.with(|conn, _| Ok(endpoints(conn, SELECT_ENDPOINT, params![id])?.pop()))
    }

    fn waiting(&self) -> Result<Vec<(i64, Timestamp)>> {
        self.with(|conn, _| {
            let mut statement = read(conn.prepare_cached(NEXT_ENDPOINT))?;
            let (mut waiting, mut after) = (Vec::new(), 0_i64);
            loop {
                let next =
                    statement.query_row([after], |row| Ok((row.get(0)?, row.get::<_, i64>(1)?)));
                let Some((id, at)) = read(next.optional())? else {
                    return Ok(waiting);
                };
                waiting.push((id, Timestamp::from_millis(at)));
                after = id;
            }
        })
    }

    fn next_of(&self, endpoint_id: i64) -> Result<Option<Timestamp>> {
        let next = self.with(|conn, _| number(conn, NEXT_OF, params![endpoint_id]))?;
        Ok(next.map(Timestamp::from_millis))
    }

    fn sendable(&self, endpoint_id: i64, most: usize) -> Result<Vec<DeliveryRow>> {
        self.with(|conn, _| deliveries(conn, SELECT_SENDABLE, params![endpoint_id, limit(most)]))
    }

    fn deliveries(
        &self,
        filter: &DeliveryFilter,
        before: Option<DeliveryId>,
        most: usize,
    ) -> Result<(Vec<DeliveryRow>, Option<DeliveryId>)> {
        let below = before.map_or(i64::MAX, DeliveryId::as_i64);
        self.with(|conn, _| list(conn, filter, below, most))
    }

    fn find_delivery(&self, id: DeliveryId) -> Result<Option<(DeliveryRow, Vec<DeliveryTry>)>> {
        self.with(|conn, _| {
            let row = deliveries(conn, SELECT_DELIVERY, params![id.as_i64()])?.pop();
            row.map(|row| Ok((row, tries(conn, id)?))).transpose()
        })
    }
}

fn list(
    conn: &Connection,
    filter: &DeliveryFilter,
    below: i64,
    most: usize,
) -> Result<(Vec<DeliveryRow>, Option<DeliveryId>)> {
    let scan = if filter.status.is_some() {
        SCAN_MAX
    } else {
        most
    };
    let rows = match filter.job {
        Some(job) => deliveries(conn, LIST_OF_JOB, params![below, limit(scan), job.as_i64()])?,
        None => deliveries(conn, LIST, params![below, limit(scan)])?,
    };
    let is_end = rows.len() < scan;
    let last_seen = rows.last().map(|row| row.id);
    let is_wanted = |row: &DeliveryRow| filter.status.is_none_or(|status| row.status == status);
    let mut found: Vec<_> = rows.into_iter().filter(is_wanted).collect();
    let has_more = found.len() > most;
    found.truncate(most);
    let next = match (has_more, is_end) {
        (true, _) => found.last().map(|row| row.id),
        (false, true) => None,
        (false, false) => last_seen,
    };
    Ok((found, next))
}

fn secrets_text(secrets: &[String]) -> String {
    serde_json::Value::from(secrets.to_vec()).to_string()
}

fn endpoints(conn: &Connection, sql: &str, params: &[&dyn ToSql]) -> Result<Vec<EndpointRow>> {
    let mut statement = read(conn.prepare_cached(sql))?;
    let mut rows = read(statement.query(params))?;
    let mut found = Vec::new();
    while let Some(row) = read(rows.next())? {
        found.push(endpoint(row)?);
    }
    Ok(found)
}

fn endpoint(row: &Row<'_>) -> Result<EndpointRow> {
    let id: i64 = read(row.get(0))?;
    let secrets: String = read(row.get(4))?;
    // A damaged key is not told: it is one.
    let secrets = serde_json::from_str(&secrets)
        .map_err(|_| errors::corrupt("endpoint", id, "secrets", "not a list of keys"))?;
    let name: Option<String> = read(row.get(1))?;
    Ok(EndpointRow {
        id,
        name: name.map(Arc::from),
        spec: EndpointSpec {
            url: read(row.get(2))?,
            events: Kinds(read(row.get(3))?),
            secrets,
        },
        is_enabled: read(row.get(5))?,
        problem: read(row.get(6))?,
    })
}

fn deliveries(conn: &Connection, sql: &str, params: &[&dyn ToSql]) -> Result<Vec<DeliveryRow>> {
    let mut statement = read(conn.prepare_cached(sql))?;
    let mut rows = read(statement.query(params))?;
    let mut found = Vec::new();
    while let Some(row) = read(rows.next())? {
        found.push(delivery(row)?);
    }
    Ok(found)
}

fn delivery(row: &Row<'_>) -> Result<DeliveryRow> {
    let id: i64 = read(row.get(0))?;
    let corrupt = |column, value: i64| errors::corrupt("delivery", id, column, value);
    let (kind, status, tries): (i64, i64, i64) =
        (read(row.get(3))?, read(row.get(6))?, read(row.get(7))?);
    let time =
        |index| read(row.get::<_, Option<i64>>(index)).map(|ms| ms.map(Timestamp::from_millis));
    let body: String = read(row.get(5))?;
    Ok(DeliveryRow {
        id: DeliveryId::from_i64(id),
        endpoint_id: read(row.get(1))?,
        job_id: JobId::from_i64(read(row.get(2))?),
        kind: EventKind::from_code(kind).ok_or_else(|| corrupt("kind", kind))?,
        url: read(row.get(4))?,
        body: body.into(),
        status: DeliveryStatus::from_code(status).ok_or_else(|| corrupt("status", status))?,
        tries: u32::try_from(tries).map_err(|_| corrupt("tries", tries))?,
        next_at: time(8)?,
        created_at: Timestamp::from_millis(read(row.get(9))?),
        finished_at: time(10)?,
        last_status: read(row.get(11))?,
        last_error: read(row.get(12))?,
    })
}

fn tries(conn: &Connection, id: DeliveryId) -> Result<Vec<DeliveryTry>> {
    let mut statement = read(conn.prepare_cached(SELECT_TRIES))?;
    let rows = statement.query_map([id.as_i64()], |row| {
        Ok(DeliveryTry {
            at: Timestamp::from_millis(row.get(0)?),
            took_ms: u64::try_from(row.get::<_, i64>(1)?).unwrap_or(0),
            status: row.get(2)?,
            error: row.get(3)?,
            answer: row.get(4)?,
        })
    });
    read(rows)?.map(read).collect()
}

fn ids(conn: &Connection, sql: &str, params: &[&dyn ToSql]) -> Result<Vec<DeliveryId>> {
    let mut statement = read(conn.prepare_cached(sql))?;
    let ids = read(statement.query_map(params, |row| row.get(0).map(DeliveryId::from_i64)))?;
    ids.map(read).collect()
}

/// The oldest that were delivered, of events before `first`, and of which jobs they tell.
fn delivered(
    conn: &Connection,
    first: DeliveryId,
    most: usize,
) -> Result<Vec<(DeliveryId, JobId)>> {
    let mut statement = read(conn.prepare_cached(SELECT_OLD))?;
    let rows = statement.query_map(params![first.as_i64(), limit(most)], |row| {
        Ok((
            DeliveryId::from_i64(row.get(0)?),
            JobId::from_i64(row.get(1)?),
        ))
    });
    read(rows)?.map(read).collect()
}

/// The deliveries that ended first, from a time on; of which jobs they tell, and when they ended.
fn over(
    conn: &Connection,
    from: Timestamp,
    most: usize,
) -> Result<Vec<(DeliveryId, JobId, Timestamp)>> {
    let mut statement = read(conn.prepare_cached(SELECT_OVER))?;
    let rows = statement.query_map([from.as_millis(), limit(most)], |row| {
        Ok((
            DeliveryId::from_i64(row.get(0)?),
            JobId::from_i64(row.get(1)?),
            Timestamp::from_millis(row.get(2)?),
        ))
    });
    read(rows)?.map(read).collect()
}

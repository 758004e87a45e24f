//! Endpoints and deliveries in memory. L2.
#![cfg_attr(
    not(feature = "webhook"),
    allow(
        dead_code,
        reason = "the sender is left out, what it needs of the store is not"
    )
)]

use std::ops::{Range, RangeInclusive};

use crate::delivery::{DeliveryId, DeliveryStatus, DeliveryTry};
use crate::error::Result;
use crate::job::JobId;
use crate::store::SCAN_MAX;
use crate::store::memory::rows::Tx;
use crate::store::memory::{Data, EARLIEST, Shared};
use crate::store::outbox::{
    DeliveryFilter, DeliveryRow, EndpointRow, OutboxReader, OutboxRows, TRIES_KEPT,
};
use crate::time::Timestamp;

const FIRST: DeliveryId = DeliveryId::from_i64(i64::MIN);
const LAST: DeliveryId = DeliveryId::from_i64(i64::MAX);
const ANY_JOB: RangeInclusive<JobId> = JobId::from_i64(i64::MIN)..=JobId::from_i64(i64::MAX);

impl Data {
    /// Writes a delivery's row and its places in the indexes.
    fn put_delivery(&mut self, row: &DeliveryRow) {
        self.remove_delivery(row.id);
        self.job_deliveries.put((row.job_id, row.id), ());
        if row.status == DeliveryStatus::Pending {
            self.lines.put((row.endpoint_id, row.job_id, row.id), ());
        }
        if row.status == DeliveryStatus::Delivered {
            self.delivered.put(row.id, ());
        }
        if let Some(at) = row.next_at {
            self.timed.put((row.endpoint_id, at, row.id), ());
        }
        if let Some(at) = row.finished_at {
            self.ended.put((at, row.id), ());
        }
        self.deliveries.put(row.id, row.clone());
    }

    fn remove_delivery(&mut self, id: DeliveryId) {
        let Some(row) = self.deliveries.get(&id) else {
            return;
        };
        let (endpoint_id, job) = (row.endpoint_id, row.job_id);
        let (next_at, finished_at) = (row.next_at, row.finished_at);
        self.deliveries.remove(&id);
        self.job_deliveries.remove(&(job, id));
        self.lines.remove(&(endpoint_id, job, id));
        self.delivered.remove(&id);
        if let Some(at) = next_at {
            self.timed.remove(&(endpoint_id, at, id));
        }
        if let Some(at) = finished_at {
            self.ended.remove(&(at, id));
        }
    }

    /// Those of an endpoint that have a time, in the order of sending.
    fn in_order(&self, endpoint_id: i64) -> impl Iterator<Item = (Timestamp, DeliveryId)> {
        let range = (endpoint_id, EARLIEST, FIRST)..=(endpoint_id, Timestamp::MAX, LAST);
        self.timed.range(range).map(|((_, at, id), ())| (*at, *id))
    }

    /// Deliveries that ended at this time or later, the first first.
    fn ended_from(&self, from: Timestamp) -> impl Iterator<Item = (Timestamp, DeliveryId)> {
        self.ended.range((from, FIRST)..).map(|(key, ())| *key)
    }
}

/// What an endpoint of jobs is found by; one of the configuration is found by its name.
fn same_key(row: &EndpointRow) -> Option<(String, i64, Vec<String>)> {
    let spec = &row.spec;
    let key = || (spec.url.clone(), spec.events.0, spec.secrets.clone());
    row.name.is_none().then(key)
}

impl OutboxRows for Tx<'_> {
    fn named_endpoints(&mut self) -> Result<Vec<EndpointRow>> {
        let ids = self.data.named_endpoints.values();
        Ok(ids.map(|id| self.data.endpoints[id].clone()).collect())
    }

    fn endpoints_of(&mut self, job: JobId) -> Result<Vec<EndpointRow>> {
        let links = self
            .data
            .job_endpoints
            .range((job, i64::MIN)..=(job, i64::MAX));
        let ids = links.map(|((_, id), ())| id);
        Ok(ids
            .filter_map(|id| self.data.endpoints.get(id).cloned())
            .collect())
    }

    fn endpoint(&mut self, id: i64) -> Result<Option<EndpointRow>> {
        Ok(self.data.endpoints.get(&id).cloned())
    }

    fn put_endpoint(&mut self, row: &EndpointRow) -> Result<i64> {
        let key = same_key(row);
        let known = key
            .as_ref()
            .and_then(|key| self.data.same_endpoints.get(key));
        let id = match (row.id, known) {
            (0, Some(known)) => return Ok(*known),
            (0, None) => {
                let newest = self.data.endpoints.last_key_value();
                newest.map_or(1, |(id, _)| id + 1)
            }
            (id, _) => id,
        };
        if let Some(key) = key {
            self.data.same_endpoints.put(key, id);
        }
        if let Some(name) = &row.name {
            self.data.named_endpoints.put(name.clone(), id);
        }
        let row = EndpointRow { id, ..row.clone() };
        self.data.endpoints.put(id, row);
        Ok(id)
    }

    fn link_endpoint(&mut self, job: JobId, endpoint_id: i64) -> Result<()> {
        self.data.job_endpoints.put((job, endpoint_id), ());
        self.data.endpoint_jobs.put((endpoint_id, job), ());
        Ok(())
    }

    fn unlink_endpoints(&mut self, job: JobId) -> Result<()> {
        let links = self
            .data
            .job_endpoints
            .range((job, i64::MIN)..=(job, i64::MAX));
        for key in links.map(|(key, ())| *key).collect::<Vec<_>>() {
            self.data.job_endpoints.remove(&key);
            self.data.endpoint_jobs.remove(&(key.1, key.0));
        }
        Ok(())
    }

    fn drop_endpoint(&mut self, id: i64) -> Result<()> {
        let key = self.data.endpoints.get(&id).and_then(same_key);
        let (first, last) = (*ANY_JOB.start(), *ANY_JOB.end());
        let mut links = self.data.endpoint_jobs.range((id, first)..=(id, last));
        let mut pending = self.data.lines.range((id, first, FIRST)..=(id, last, LAST));
        if let Some(key) = key
            && links.next().is_none()
            && pending.next().is_none()
        {
            self.data.endpoints.remove(&id);
            self.data.same_endpoints.remove(&key);
        }
        Ok(())
    }

    fn delivery(&mut self, id: DeliveryId) -> Result<Option<DeliveryRow>> {
        Ok(self.data.deliveries.get(&id).cloned())
    }

    fn insert_delivery(&mut self, row: &DeliveryRow) -> Result<()> {
        self.data.put_delivery(row);
        Ok(())
    }

    fn update_delivery(&mut self, row: &DeliveryRow) -> Result<()> {
        self.insert_delivery(row)
    }

    fn first_in_line(&mut self, endpoint_id: i64, job: JobId) -> Result<Option<DeliveryId>> {
        let line = (endpoint_id, job, FIRST)..=(endpoint_id, job, LAST);
        let first = self.data.lines.range(line).next();
        Ok(first.map(|((.., id), ())| *id))
    }

    fn add_try(&mut self, id: DeliveryId, attempt: &DeliveryTry) -> Result<()> {
        let mut tries = self.data.tries.get(&id).cloned().unwrap_or_default();
        tries.push(attempt.clone());
        let surplus = tries.len().saturating_sub(TRIES_KEPT);
        tries.drain(..surplus);
        self.data.tries.put(id, tries);
        Ok(())
    }

    fn deliveries_between(
        &mut self,
        from: Timestamp,
        to: Timestamp,
        limit: usize,
    ) -> Result<Vec<DeliveryId>> {
        let rows = self.data.deliveries.values();
        let between = rows.filter(|row| (from..to).contains(&row.created_at));
        Ok(between.map(|row| row.id).take(limit).collect())
    }

    fn bring_forward(&mut self, now: Timestamp) -> Result<usize> {
        let waits = |row: &&DeliveryRow| row.next_at.is_some_and(|at| at > now);
        let waiting: Vec<_> = self
            .data
            .deliveries
            .values()
            .filter(waits)
            .cloned()
            .collect();
        for row in &waiting {
            let next_at = Some(now);
            self.data.put_delivery(&DeliveryRow {
                next_at,
                ..row.clone()
            });
        }
        Ok(waiting.len())
    }

    fn has_deliveries(&mut self, job: JobId) -> Result<bool> {
        let mut of_job = self.data.job_deliveries.range((job, FIRST)..=(job, LAST));
        Ok(of_job.next().is_some())
    }

    fn prune_deliveries(
        &mut self,
        first: DeliveryId,
        old: Range<Timestamp>,
        limit: usize,
    ) -> Result<(Vec<JobId>, Option<Timestamp>)> {
        let over = self.data.ended_from(old.start).take(limit);
        let mut gone: Vec<_> = over
            .filter(|(at, _)| *at < old.end)
            .map(|(_, id)| id)
            .collect();
        let delivered = self.data.delivered.range(..first).map(|(id, ())| *id);
        let others = delivered.filter(|id| !gone.contains(id));
        let more: Vec<_> = others.take(limit - gone.len()).collect();
        gone.extend(more);
        let mut jobs = Vec::new();
        for id in &gone {
            jobs.extend(self.data.deliveries.get(id).map(|row| row.job_id));
            self.data.remove_delivery(*id);
            self.data.tries.remove(id);
        }
        let oldest = self.data.ended_from(old.start).next();
        Ok((jobs, oldest.map(|(at, _)| at)))
    }
}

impl OutboxReader for Shared {
    fn all_endpoints(&self) -> Result<Vec<EndpointRow>> {
        Ok(self.data.lock().endpoints.values().cloned().collect())
    }

    fn find_endpoint(&self, id: i64) -> Result<Option<EndpointRow>> {
        Ok(self.data.lock().endpoints.get(&id).cloned())
    }

    fn waiting(&self) -> Result<Vec<(i64, Timestamp)>> {
        let data = self.data.lock();
        let (mut waiting, mut after) = (Vec::new(), i64::MIN);
        let first = |from: i64| data.timed.range((from, EARLIEST, FIRST)..).next();
        while let Some(((endpoint_id, at, _), ())) = first(after) {
            waiting.push((*endpoint_id, *at));
            after = endpoint_id + 1;
        }
        Ok(waiting)
    }

    fn next_of(&self, endpoint_id: i64) -> Result<Option<Timestamp>> {
        let data = self.data.lock();
        Ok(data.in_order(endpoint_id).next().map(|(at, _)| at))
    }

    fn sendable(&self, endpoint_id: i64, limit: usize) -> Result<Vec<DeliveryRow>> {
        let data = self.data.lock();
        let ids = data.in_order(endpoint_id).take(limit);
        Ok(ids.map(|(_, id)| data.deliveries[&id].clone()).collect())
    }

    fn deliveries(
        &self,
        filter: &DeliveryFilter,
        before: Option<DeliveryId>,
        limit: usize,
    ) -> Result<(Vec<DeliveryRow>, Option<DeliveryId>)> {
        let data = self.data.lock();
        let below = before.unwrap_or(DeliveryId::from_i64(i64::MAX));
        let ids: Box<dyn Iterator<Item = &DeliveryId>> = match filter.job {
            Some(job) => {
                let of_job = data.job_deliveries.range((job, FIRST)..(job, below));
                Box::new(of_job.rev().map(|((_, id), ())| id))
            }
            None => Box::new(data.deliveries.range(..below).rev().map(|(id, _)| id)),
        };
        let scan = if filter.status.is_some() {
            SCAN_MAX
        } else {
            limit
        };
        let seen: Vec<_> = ids.take(scan).map(|id| &data.deliveries[id]).collect();
        let is_wanted =
            |row: &&&DeliveryRow| filter.status.is_none_or(|status| row.status == status);
        let mut found: Vec<_> = seen
            .iter()
            .filter(is_wanted)
            .map(|row| (*row).clone())
            .collect();
        let has_more = found.len() > limit;
        found.truncate(limit);
        let next = match (has_more, seen.len() < scan) {
            (true, _) => found.last().map(|row| row.id),
            (false, true) => None,
            (false, false) => seen.last().map(|row| row.id),
        };
        Ok((found, next))
    }

    fn find_delivery(&self, id: DeliveryId) -> Result<Option<(DeliveryRow, Vec<DeliveryTry>)>> {
        let data = self.data.lock();
        let row = data.deliveries.get(&id).cloned();
        Ok(row.map(|row| (row, data.tries.get(&id).cloned().unwrap_or_default())))
    }
}

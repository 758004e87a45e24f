//! Endpoints and deliveries in memory. L2.
#![cfg_attr(
    not(feature = "webhook"),
    allow(
        dead_code,
        reason = "the sender is left out, what it needs of the store is not"
    )
)]

use std::ops::Range;

use crate::delivery::{DeliveryId, DeliveryStatus, DeliveryTry};
use crate::error::Result;
use crate::job::JobId;
use crate::store::SCAN_MAX;
use crate::store::memory::rows::Tx;
use crate::store::memory::{Data, Shared};
use crate::store::outbox::{
    DeliveryFilter, DeliveryRow, EndpointRow, OutboxReader, OutboxRows, TRIES_KEPT,
};
use crate::time::Timestamp;

impl Data {
    fn pending_deliveries(&self) -> impl Iterator<Item = &DeliveryRow> {
        let rows = self.deliveries.values();
        rows.filter(|row| row.status == DeliveryStatus::Pending)
    }

    /// Those of an endpoint that have a time, in the order of sending.
    fn in_order(&self, endpoint_id: i64) -> Vec<&DeliveryRow> {
        let timed = |row: &&DeliveryRow| row.endpoint_id == endpoint_id && row.next_at.is_some();
        let mut rows: Vec<_> = self.pending_deliveries().filter(timed).collect();
        rows.sort_by_key(|row| (row.next_at, row.id));
        rows
    }
}

impl OutboxRows for Tx<'_> {
    fn named_endpoints(&mut self) -> Result<Vec<EndpointRow>> {
        let rows = self.data.endpoints.values();
        let mut named: Vec<_> = rows.filter(|row| row.name.is_some()).cloned().collect();
        named.sort_by_key(|row| row.name.clone());
        Ok(named)
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
        let is_same = |known: &&EndpointRow| known.name.is_none() && known.spec == row.spec;
        let known = self
            .data
            .endpoints
            .values()
            .find(is_same)
            .map(|known| known.id);
        let id = match (row.id, known) {
            (0, Some(known)) if row.name.is_none() => return Ok(known),
            (0, _) => self
                .data
                .endpoints
                .last_key_value()
                .map_or(1, |(id, _)| id + 1),
            (id, _) => id,
        };
        self.data
            .endpoints
            .put(id, EndpointRow { id, ..row.clone() });
        Ok(id)
    }

    fn link_endpoint(&mut self, job: JobId, endpoint_id: i64) -> Result<()> {
        self.data.job_endpoints.put((job, endpoint_id), ());
        Ok(())
    }

    fn unlink_endpoints(&mut self, job: JobId) -> Result<()> {
        let links = self
            .data
            .job_endpoints
            .range((job, i64::MIN)..=(job, i64::MAX));
        for key in links.map(|(key, ())| *key).collect::<Vec<_>>() {
            self.data.job_endpoints.remove(&key);
        }
        Ok(())
    }

    fn drop_endpoint(&mut self, id: i64) -> Result<()> {
        let is_named = self
            .data
            .endpoints
            .get(&id)
            .is_none_or(|row| row.name.is_some());
        let is_linked = self
            .data
            .job_endpoints
            .keys()
            .any(|(_, linked)| *linked == id);
        let is_needed = self
            .data
            .pending_deliveries()
            .any(|row| row.endpoint_id == id);
        if !is_named && !is_linked && !is_needed {
            self.data.endpoints.remove(&id);
        }
        Ok(())
    }

    fn delivery(&mut self, id: DeliveryId) -> Result<Option<DeliveryRow>> {
        Ok(self.data.deliveries.get(&id).cloned())
    }

    fn insert_delivery(&mut self, row: &DeliveryRow) -> Result<()> {
        self.data.deliveries.put(row.id, row.clone());
        Ok(())
    }

    fn update_delivery(&mut self, row: &DeliveryRow) -> Result<()> {
        self.insert_delivery(row)
    }

    fn first_in_line(&mut self, endpoint_id: i64, job: JobId) -> Result<Option<DeliveryId>> {
        let mut pending = self.data.pending_deliveries();
        let first = pending.find(|row| row.endpoint_id == endpoint_id && row.job_id == job);
        Ok(first.map(|row| row.id))
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

    fn has_deliveries(&mut self, job: JobId) -> Result<bool> {
        Ok(self.data.deliveries.values().any(|row| row.job_id == job))
    }

    fn prune_deliveries(
        &mut self,
        first: DeliveryId,
        old: Range<Timestamp>,
        limit: usize,
    ) -> Result<(Vec<JobId>, Option<Timestamp>)> {
        let ended = |data: &Data, from: Timestamp| {
            let rows = data.deliveries.values();
            let mut ended: Vec<_> = rows
                .filter_map(|row| Some((row.finished_at?, row.id)))
                .filter(|(at, _)| *at >= from)
                .collect();
            ended.sort();
            ended
        };
        let is_delivered = |data: &Data, id: DeliveryId| {
            let row = data.deliveries.get(&id);
            row.is_some_and(|row| row.status == DeliveryStatus::Delivered)
        };
        let over = ended(self.data, old.start);
        let mut gone: Vec<_> = over
            .iter()
            .take(limit)
            .filter(|(at, _)| *at < old.end)
            .map(|(_, id)| *id)
            .collect();
        if gone.is_empty() {
            gone = ended(self.data, Timestamp::from_millis(i64::MIN))
                .iter()
                .map(|(_, id)| *id)
                .filter(|id| *id < first && is_delivered(self.data, *id))
                .collect();
            gone.sort();
            gone.truncate(limit);
        }
        let mut jobs = Vec::new();
        for id in &gone {
            jobs.extend(self.data.deliveries.get(id).map(|row| row.job_id));
            self.data.deliveries.remove(id);
            self.data.tries.remove(id);
        }
        Ok((jobs, ended(self.data, old.start).first().map(|(at, _)| *at)))
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
        let mut waiting = std::collections::BTreeMap::new();
        for row in data.pending_deliveries() {
            if let Some(at) = row.next_at {
                let first = waiting.entry(row.endpoint_id).or_insert(at);
                *first = at.min(*first);
            }
        }
        Ok(waiting.into_iter().collect())
    }

    fn next_of(&self, endpoint_id: i64) -> Result<Option<Timestamp>> {
        let data = self.data.lock();
        Ok(data
            .in_order(endpoint_id)
            .first()
            .and_then(|row| row.next_at))
    }

    fn sendable(&self, endpoint_id: i64, limit: usize) -> Result<Vec<DeliveryRow>> {
        let data = self.data.lock();
        let rows = data.in_order(endpoint_id).into_iter();
        Ok(rows.take(limit).cloned().collect())
    }

    fn deliveries(
        &self,
        filter: &DeliveryFilter,
        before: Option<DeliveryId>,
        limit: usize,
    ) -> Result<(Vec<DeliveryRow>, Option<DeliveryId>)> {
        let data = self.data.lock();
        let below = before.unwrap_or(DeliveryId::from_i64(i64::MAX));
        let rows = data.deliveries.range(..below).rev().map(|(_, row)| row);
        let of_job = rows.filter(|row| filter.job.is_none_or(|job| row.job_id == job));
        let scan = if filter.status.is_some() {
            SCAN_MAX
        } else {
            limit
        };
        let seen: Vec<_> = of_job.take(scan).collect();
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

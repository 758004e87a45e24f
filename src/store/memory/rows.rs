//! Single rows within one open transaction, in memory. L2.

use std::sync::Arc;

use crate::config::ERRORS_KEPT;
use crate::error::{Error, ErrorKind, Result};
use crate::event::{Plan, Seq};
use crate::job::{JobId, JobStatus};
use crate::store::memory::{Data, Payload, damaged};
use crate::store::prune::{Ended, Seen};
use crate::store::{Details, ErrorRow, EventRow, Head, Holder, PhaseDone, Rows, TypeRow};
use crate::store::{seam, view};
use crate::time::Timestamp;
use crate::transition::{Flags, JobRow};

/// One open transaction.
pub(super) struct Tx<'d> {
    pub(super) data: &'d mut Data,
    pub(super) seen: &'d mut Seen,
}

/// The number of a new row of a table from which nothing is ever deleted.
fn next_number(rows: usize) -> i64 {
    i64::try_from(rows + 1).expect("a row takes more than one byte")
}

impl Rows for Tx<'_> {
    fn mark(&mut self) -> Result<()> {
        self.data.mark();
        Ok(())
    }

    fn keep(&mut self) -> Result<()> {
        Ok(())
    }

    fn undo(&mut self) -> Result<()> {
        self.data.undo();
        Ok(())
    }

    fn head(&mut self) -> Result<Head> {
        self.data.head()
    }

    /// Nobody else has it.
    fn has_news(&mut self) -> bool {
        false
    }

    fn recount(&mut self) -> Result<[i64; 5]> {
        let mut counts = [0; 5];
        for row in self.data.jobs.values() {
            counts[row.status as usize] += 1;
        }
        Ok(counts)
    }

    fn tag_at(&mut self, seq: Seq) -> Result<Option<i64>> {
        let event = self.data.events.get(&seq);
        Ok(event.and_then(|(_, head)| head.map(|head| head.tag)))
    }

    fn append(&mut self, row: &EventRow, head: Option<&Head>) -> Result<()> {
        if self.data.events.contains_key(&row.seq) {
            return Err(damaged(format!("event {}: it is there already", row.seq)));
        }
        self.data.events.put(row.seq, (row.clone(), head.copied()));
        Ok(())
    }

    fn job_type(&mut self, name: &Arc<str>) -> Result<TypeRow> {
        if let Some(id) = self.data.type_id(name) {
            return Ok(self.data.types[&id].1.clone());
        }
        let row = TypeRow {
            id: next_number(self.data.types.len()),
            plan_id: 0,
            paused: false,
        };
        self.data.types.put(row.id, (name.clone(), row.clone()));
        Ok(row)
    }

    fn type_name(&mut self, type_id: i64) -> Result<Arc<str>> {
        self.data.type_name(type_id)
    }

    fn set_job_type(&mut self, row: &TypeRow) -> Result<()> {
        let name = self.data.type_name(row.id)?;
        self.data.types.put(row.id, (name, row.clone()));
        Ok(())
    }

    fn plan_id(&mut self, plan: &Plan) -> Result<i64> {
        let json = serde_json::to_string(plan).map_err(|error| {
            Error::new(ErrorKind::InvalidJob, "a plan cannot be written").with_source(error)
        })?;
        if let Some(id) = self.data.plan_ids.get(&json) {
            return Ok(*id);
        }
        let id = next_number(self.data.plans.len());
        self.data.plans.put(id, plan.clone());
        self.data.plan_ids.put(json, id);
        Ok(id)
    }

    fn plan(&mut self, plan_id: i64) -> Result<Plan> {
        self.data.plan(plan_id)
    }

    fn touch(&mut self) -> Result<()> {
        Ok(())
    }

    fn set_paused(&mut self, paused: bool) -> Result<()> {
        if paused {
            self.data.paused.put((), ());
        } else {
            self.data.paused.remove(&());
        }
        Ok(())
    }

    fn job(&mut self, id: JobId) -> Result<Option<JobRow>> {
        Ok(self.data.jobs.get(&id).copied())
    }

    fn insert_job(&mut self, row: &JobRow, input: &str, unique_key: Option<&str>) -> Result<()> {
        if self.data.jobs.contains_key(&row.id) {
            return Err(damaged(format!("job {}: it is there already", row.id)));
        }
        self.data.put_job(row);
        let payload = Payload {
            input: input.into(),
            unique_key: unique_key.map(str::to_owned),
        };
        self.data.payloads.put(row.id, payload);
        Ok(())
    }

    fn update_job(&mut self, before: &JobRow, after: &JobRow) -> Result<bool> {
        let stored = self.data.jobs.get(&before.id);
        let is_same =
            stored.is_some_and(|row| (row.status, row.epoch) == (before.status, before.epoch));
        if is_same {
            self.data.put_job(after);
        }
        Ok(is_same)
    }

    fn delete_job(&mut self, row: &JobRow) -> Result<()> {
        let payload = self.data.payload(row.id)?;
        if let Some(key) = payload.unique_key.clone() {
            let key = (row.type_id, key);
            let holder = self.data.holders.get(&key);
            if holder.is_some_and(|holder| holder.job_id == row.id && holder.hold < 2) {
                self.data.holders.remove(&key);
            }
        }
        self.data.remove_job(row.id);
        self.data.payloads.remove(&row.id);
        self.clear_results(row.id, 0)?;
        let errors: Vec<_> = self.data.errors_of(row.id).map(|(key, _)| *key).collect();
        for key in errors {
            self.data.errors.remove(&key);
        }
        Ok(())
    }

    fn details(&mut self, row: &JobRow) -> Result<Details> {
        let input = (*self.data.payload(row.id)?.input).to_owned();
        let newest_first = self.data.errors_of(row.id).rev();
        let errors: Vec<_> = newest_first.map(|(_, error)| view::error(error)).collect();
        let interruption = if row.flags.has(Flags::INTERRUPTED) {
            errors.iter().find_map(view::interruption)
        } else {
            None
        };
        Ok(Details {
            input,
            last_error: errors.into_iter().next().map(|(error, _)| error),
            interruption,
        })
    }

    fn put_result(&mut self, id: JobId, phase_index: u32, done: &PhaseDone) -> Result<()> {
        self.data.results.put((id, phase_index), done.clone());
        Ok(())
    }

    fn results(&mut self, id: JobId) -> Result<Vec<(u32, PhaseDone)>> {
        Ok(self.data.results_of(id))
    }

    fn clear_results(&mut self, id: JobId, from_index: u32) -> Result<()> {
        let range = (id, from_index)..=(id, u32::MAX);
        let done = self.data.results.range(range.clone());
        let done: Vec<_> = done.map(|(key, _)| *key).collect();
        let saved = self.data.checkpoints.range(range);
        let saved: Vec<_> = saved.map(|(key, _)| *key).collect();
        for key in done {
            self.data.results.remove(&key);
        }
        for key in saved {
            self.data.checkpoints.remove(&key);
        }
        Ok(())
    }

    fn put_checkpoint(&mut self, id: JobId, phase_index: u32, json: Option<&str>) -> Result<()> {
        let key = (id, phase_index);
        match json {
            Some(json) => self.data.checkpoints.put(key, json.to_owned()),
            None => self.data.checkpoints.remove(&key),
        }
        Ok(())
    }

    fn add_error(&mut self, id: JobId, error: &ErrorRow) -> Result<()> {
        let newest = self.data.errors_of(id).next_back();
        let number = newest.map_or(0, |((_, number), _)| number + 1);
        self.data.errors.put((id, number), error.clone());
        let numbers: Vec<_> = self.data.errors_of(id).map(|(key, _)| *key).collect();
        for key in numbers.iter().rev().skip(ERRORS_KEPT) {
            self.data.errors.remove(key);
        }
        Ok(())
    }

    fn due(
        &mut self,
        type_id: i64,
        now: Timestamp,
        limit: usize,
        out: &mut Vec<JobRow>,
    ) -> Result<()> {
        let room = limit.saturating_sub(out.len());
        let pending = self.data.pending_of(type_id);
        let due = pending.filter(|(_, run_at, _)| *run_at <= now).take(room);
        out.extend(due.map(|(.., id)| self.data.jobs[&id]));
        Ok(())
    }

    fn next_due(&mut self, type_id: i64, now: Timestamp) -> Result<Option<Timestamp>> {
        let pending = self.data.pending_of(type_id);
        Ok(pending
            .map(|(_, run_at, _)| run_at)
            .filter(|at| *at > now)
            .min())
    }

    fn running(&mut self, type_id: i64) -> Result<u32> {
        Ok(self.data.running_of(type_id))
    }

    fn ids(&mut self, status: JobStatus, type_id: Option<i64>, limit: usize) -> Result<Vec<JobId>> {
        let rows = self.data.jobs.values();
        let fit =
            rows.filter(|row| row.status == status && type_id.is_none_or(|id| id == row.type_id));
        Ok(fit.map(|row| row.id).take(limit).collect())
    }

    fn oldest_ended(
        &mut self,
        status: JobStatus,
        (at, id): Ended,
        cutoff: Timestamp,
        limit: usize,
    ) -> Result<Vec<Ended>> {
        use std::ops::Bound::{Excluded, Unbounded};
        let after = (Excluded((status, at, id)), Unbounded);
        let later = self.data.over.range(after).map(|(key, ())| *key);
        let ended = later.take_while(|(of, at, _)| *of == status && *at < cutoff);
        Ok(ended.take(limit).map(|(_, at, id)| (at, id)).collect())
    }

    fn stored_bytes(&mut self, id: JobId) -> Result<u64> {
        let range = (id, 0)..=(id, u32::MAX);
        let results = self.data.results.range(range.clone());
        let saved = self.data.checkpoints.range(range);
        let bytes: usize = results.map(|(_, done)| done.result.len()).sum();
        let bytes = bytes + saved.map(|(_, json)| json.len()).sum::<usize>();
        let input = self.data.payload(id)?.input.len();
        Ok(u64::try_from(bytes + input).unwrap_or(u64::MAX))
    }

    fn seen(&mut self) -> &mut Seen {
        self.seen
    }

    fn unique_key(&mut self, id: JobId) -> Result<Option<String>> {
        Ok(self.data.payload(id)?.unique_key.clone())
    }

    fn holder(&mut self, type_id: i64, key: &str) -> Result<Option<Holder>> {
        Ok(self.data.holders.get(&(type_id, key.to_owned())).copied())
    }

    fn set_holder(&mut self, type_id: i64, key: &str, holder: &Holder) -> Result<()> {
        self.data.holders.put((type_id, key.to_owned()), *holder);
        Ok(())
    }

    fn prune_holders(&mut self, now: Timestamp, limit: usize) -> Result<()> {
        use std::ops::Bound::{Excluded, Unbounded};
        let after = (Excluded(&self.seen.holders), Unbounded);
        let next = self.data.holders.range(after).take(limit);
        let seen: Vec<_> = next.map(|(key, holder)| (key.clone(), *holder)).collect();
        let is_end = seen.len() < limit;
        for (key, holder) in seen {
            if !seam::may_hold(self, &holder, now)? {
                self.data.holders.remove(&key);
            }
            self.seen.holders = key;
        }
        if is_end {
            self.seen.holders = (0, String::new());
        }
        Ok(())
    }

    fn oldest_events(&mut self, limit: usize) -> Result<Vec<(Seq, Timestamp)>> {
        let oldest = self.data.events.values().take(limit);
        Ok(oldest.map(|(row, _)| (row.seq, row.at)).collect())
    }

    fn event_time(&mut self, seq: Seq) -> Result<Option<Timestamp>> {
        let last = self.data.events.range(..=seq).next_back();
        Ok(last.map(|(_, (row, _))| row.at))
    }

    fn delete_events(&mut self, before: Seq) -> Result<()> {
        let old: Vec<Seq> = self
            .data
            .events
            .range(..before)
            .map(|(seq, _)| *seq)
            .collect();
        for seq in old {
            self.data.events.remove(&seq);
        }
        Ok(())
    }
}

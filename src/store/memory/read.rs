//! The reading side of the store in memory: each call sees one committed state. L2.

use std::sync::Arc;

use serde_json::Value;

use crate::error::Result;
use crate::event::{LoggedChange, Seq};
use crate::job::{Job, JobId, JobStatus};
use crate::store::memory::{Data, EARLIEST, Shared, check, damaged};
use crate::store::{AHEAD_MAX, SCAN_MAX, summary, view};
use crate::store::{EventRow, Filter, Head, Position, Reader, Situation, Slice};
use crate::time::Timestamp;
use crate::transition::JobRow;

impl Reader for Shared {
    fn head(&self) -> Result<Head> {
        self.data.lock().head()
    }

    fn job(&self, id: JobId) -> Result<Option<Job>> {
        let data = self.data.lock();
        let row = data.jobs.get(&id);
        row.map(|row| load(&data, row)).transpose()
    }

    fn outline(&self, id: JobId) -> Result<Option<Job>> {
        let mut found = self.job(id)?;
        if let Some(job) = &mut found {
            job.input = Value::Null;
            for phase in &mut job.phases {
                phase.result = None;
            }
        }
        Ok(found)
    }

    fn status(&self, id: JobId) -> Result<Option<JobStatus>> {
        Ok(self.data.lock().jobs.get(&id).map(|row| row.status))
    }

    fn claim(&self, id: JobId) -> Result<Option<(JobStatus, i64)>> {
        let data = self.data.lock();
        Ok(data.jobs.get(&id).map(|row| (row.status, row.epoch)))
    }

    fn list(&self, filter: &Filter, from: Option<Position>, limit: usize) -> Result<Slice> {
        list(&self.data.lock(), filter, from, limit)
    }

    fn result(&self, id: JobId, phase_index: u32) -> Result<Option<String>> {
        let data = self.data.lock();
        let done = data.results.get(&(id, phase_index));
        Ok(done.map(|done| done.result.clone()))
    }

    fn checkpoint(&self, id: JobId, phase_index: u32) -> Result<Option<String>> {
        let data = self.data.lock();
        Ok(data.checkpoints.get(&(id, phase_index)).cloned())
    }

    fn changes_after(&self, seq: Seq, limit: usize) -> Result<Vec<LoggedChange>> {
        let data = self.data.lock();
        let wanted = seq.saturating_add(1);
        // A row stands for several events: the one that holds the wanted event begins at or before it.
        let first = data.events.range(..=wanted).next_back();
        let first = first.map_or(wanted, |(first, _)| *first);
        let rows = data.events.range(first..).map(|(_, (row, _))| row);
        rows.filter(|row| row.seq + row.span > wanted)
            .take(limit)
            .map(|row| change(&data, row))
            .collect()
    }

    fn oldest_seq(&self) -> Result<Seq> {
        let data = self.data.lock();
        Ok(data.events.first_key_value().map_or(0, |(seq, _)| *seq))
    }

    fn changes_of(&self, id: JobId, limit: usize) -> Result<Vec<LoggedChange>> {
        let data = self.data.lock();
        if !data.jobs.contains_key(&id) {
            return Ok(Vec::new());
        }
        let newest_first = data.events.values().rev().map(|(row, _)| row);
        let mut changes = newest_first
            .filter_map(|row| part_of(row, id))
            .take(limit)
            .map(|row| change(&data, &row))
            .collect::<Result<Vec<_>>>()?;
        changes.reverse();
        Ok(changes)
    }

    fn situation(&self, id: JobId, now: Timestamp) -> Result<Option<Situation>> {
        let data = self.data.lock();
        let Some(row) = data.jobs.get(&id) else {
            return Ok(None);
        };
        let place = (std::cmp::Reverse(row.priority), row.run_at, row.id);
        let before = data
            .pending_of(row.type_id)
            .take_while(|other| *other < place)
            .filter(|(_, run_at, _)| *run_at <= now)
            .take(AHEAD_MAX);
        let ahead = before.count();
        Ok(Some(Situation {
            row: *row,
            job_type: data.type_name(row.type_id)?,
            queue_paused: !data.paused.is_empty(),
            type_paused: data
                .types
                .get(&row.type_id)
                .is_some_and(|(_, row)| row.paused),
            running_of_type: data.running_of(row.type_id),
            ahead: u32::try_from(ahead).unwrap_or(u32::MAX),
        }))
    }

    fn check(&self) -> Result<Vec<String>> {
        check::run(&self.data.lock())
    }

    fn file_id(&self) -> Result<String> {
        Ok(self.file_id.clone())
    }

    fn types(&self) -> Result<Vec<(Arc<str>, i64, i64)>> {
        let data = self.data.lock();
        Ok(data
            .types
            .values()
            .map(|(name, row)| (name.clone(), row.id, row.plan_id))
            .collect())
    }

    fn pauses(&self) -> Result<(bool, Vec<Arc<str>>)> {
        let data = self.data.lock();
        let paused = data.types.values().filter(|(_, row)| row.paused);
        let mut names: Vec<_> = paused.map(|(name, _)| name.clone()).collect();
        names.sort();
        Ok((!data.paused.is_empty(), names))
    }
}

fn load(data: &Data, row: &JobRow) -> Result<Job> {
    let payload = data.payload(row.id)?;
    let input = serde_json::from_str(&payload.input)
        .map_err(|_| damaged(format!("job {}: its input is no JSON", row.id)))?;
    let newest_first = data.errors_of(row.id).rev();
    Ok(view::job(
        row,
        data.type_name(row.type_id)?,
        &data.plan(row.plan_id)?,
        (input, payload.unique_key.clone()),
        data.results_of(row.id),
        newest_first.map(|(_, error)| view::error(error)).collect(),
    ))
}

pub(super) fn change(data: &Data, row: &EventRow) -> Result<LoggedChange> {
    let parse = |text: &String| {
        serde_json::from_str(text)
            .map_err(|_| damaged(format!("event {}: its data is no JSON", row.seq)))
    };
    Ok(LoggedChange {
        seq: row.seq,
        span: row.span,
        change: row.change,
        job_id: row.job_id,
        job_type: data.type_name(row.type_id)?,
        at: row.at,
        plan: data.plan(row.plan_id)?,
        phase_index: row.phase_index,
        attempt: row.attempt,
        data: row
            .data
            .as_ref()
            .map(parse)
            .transpose()?
            .unwrap_or_default(),
    })
}

/// What a row of the log says of one job: its place in the run, or nothing.
fn part_of(row: &EventRow, id: JobId) -> Option<EventRow> {
    let span = row.change.span();
    let index = id.as_i64() - row.job_id.as_i64();
    (0..row.span / span).contains(&index).then(|| EventRow {
        seq: row.seq + index * span,
        span,
        prev_seq: row.prev_seq + index * row.prev_step,
        job_id: id,
        ..row.clone()
    })
}

fn list(data: &Data, filter: &Filter, from: Option<Position>, limit: usize) -> Result<Slice> {
    let type_id = match &filter.job_type {
        Some(name) => match data.type_id(name) {
            Some(id) => Some(id),
            None => return Ok(Slice::default()),
        },
        None => None,
    };
    let (end, id) = from.map_or((Timestamp::MAX, i64::MAX), |(end, id)| {
        (Timestamp::from_millis(end), id)
    });
    let before = JobId::from_i64(id);
    let rows: Box<dyn Iterator<Item = &JobRow>> = match filter.status {
        Some(status) if status.is_terminal() => {
            let range = (status, EARLIEST, JobId::from_i64(0))..(status, end, before);
            let ended = data.over.range(range).rev();
            Box::new(ended.map(|((.., id), ())| &data.jobs[id]))
        }
        Some(JobStatus::Running) => {
            let rows = data.jobs.range(..before).rev().map(|(_, row)| row);
            Box::new(rows.filter(|row| row.status == JobStatus::Running))
        }
        Some(_) | None => Box::new(data.jobs.range(..before).rev().map(|(_, row)| row)),
    };
    let mut slice = Slice::default();
    for (scanned, row) in (1..).zip(rows) {
        let fits = filter.status.is_none_or(|status| status == row.status)
            && type_id.is_none_or(|type_id| type_id == row.type_id);
        if fits {
            let summary = summary(row, data.type_name(row.type_id)?);
            slice.jobs.push(summary);
        }
        if slice.jobs.len() >= limit || scanned == SCAN_MAX {
            let end = row.finished_at.map_or(0, Timestamp::as_millis);
            slice.next = Some((end, row.id.as_i64()));
            break;
        }
    }
    Ok(slice)
}

//! Deliveries: written with their events, changed by what came of a try, and by hand. L2.

use serde_json::json;

use crate::delivery::{
    DeliveryId, DeliveryStatus, DeliveryTry, EndpointSpec, NAMED_MAX, shown_url,
};
use crate::error::{Error, ErrorKind, Result};
use crate::event::{self, Change, Event, EventKind, LoggedChange};
use crate::job::{JobId, JobStatus};
use crate::store::outbox::{Attempted, DeliveryRow, EndpointRow, Mail, Verdict, Which, wanted};
use crate::store::seam::{BULK_MAX, Commit};
use crate::store::{Done, prune};
use crate::transition::{Flags, JobRow};

/// Why an endpoint is disabled that the configuration does not name.
const LEFT_OUT: &str = "the configuration names it no more";

impl Commit<'_> {
    /// Stores the endpoints of a new job. Before its row is written: its flags tell of them.
    pub(super) fn own_endpoints(&mut self, row: &mut JobRow, specs: &[EndpointSpec]) -> Result<()> {
        for spec in specs {
            let endpoint = EndpointRow {
                id: 0,
                name: None,
                spec: spec.clone(),
                is_enabled: true,
                problem: None,
            };
            self.writes += 1;
            let id = self.rows.put_endpoint(&endpoint)?;
            self.rows.link_endpoint(row.id, id)?;
            self.want_again(id)?;
            row.flags = row.flags.with(Flags::ENDPOINTS);
        }
        Ok(())
    }

    /// One that other jobs have had may have said 410 to them. Whoever names it now knows better, and there is no other way to
    /// enable it.
    fn want_again(&mut self, id: i64) -> Result<()> {
        let Some(row) = self.rows.endpoint(id)?.filter(|row| !row.is_enabled) else {
            return Ok(());
        };
        self.rows.put_endpoint(&EndpointRow {
            is_enabled: true,
            problem: None,
            ..row
        })?;
        self.mail(id);
        Ok(())
    }

    /// Writes a delivery for each endpoint that wants to know of this change.
    pub(super) fn notify(&mut self, row: &JobRow, change: &Notified<'_>) -> Result<()> {
        let own = if row.flags.has(Flags::ENDPOINTS) {
            self.rows.endpoints_of(row.id)?
        } else {
            Vec::new()
        };
        let mut endpoints = match self.named.take() {
            Some(named) => named,
            None => self.rows.named_endpoints()?,
        };
        let named = endpoints.len();
        endpoints.extend(own);
        let done = self.notify_each(row, change, &endpoints);
        if change.change == Change::Deleted && endpoints.len() > named {
            prune::drop_endpoints(self.rows, row.id)?;
        }
        endpoints.truncate(named);
        self.named = Some(endpoints);
        done
    }

    fn notify_each(
        &mut self,
        row: &JobRow,
        change: &Notified<'_>,
        endpoints: &[EndpointRow],
    ) -> Result<()> {
        let endpoints = endpoints.iter().filter(|endpoint| endpoint.is_enabled);
        let wanted = wanted(endpoints.clone());
        let kinds = change.change.events();
        if !kinds.iter().any(|kind| wanted.has(*kind)) {
            return Ok(());
        }
        for event in self.events_of(row, change)? {
            let endpoints = endpoints
                .clone()
                .filter(|endpoint| endpoint.spec.events.has(event.kind));
            for (place, endpoint) in (0..DeliveryId::PLACES).zip(endpoints) {
                self.post(&event, place, endpoint)?;
            }
        }
        Ok(())
    }

    fn events_of(&mut self, row: &JobRow, change: &Notified<'_>) -> Result<Vec<Event>> {
        let data = change.data.map(serde_json::from_str).transpose();
        let logged = LoggedChange {
            seq: change.seq,
            span: change.change.span(),
            change: change.change,
            job_id: row.id,
            job_type: self.rows.type_name(row.type_id)?,
            at: self.now,
            plan: self.rows.plan(row.plan_id)?,
            phase_index: change.about.0,
            attempt: change.about.1,
            data: data.ok().flatten().unwrap_or_default(),
        };
        let mut events = Vec::new();
        event::expand(&logged, 0, &mut events);
        Ok(events)
    }

    fn post(&mut self, event: &Event, place: i64, endpoint: &EndpointRow) -> Result<()> {
        let is_first = self
            .rows
            .first_in_line(endpoint.id, event.job_id)?
            .is_none();
        let body = json!({"type": event.kind, "timestamp": event.at.to_string(), "data": event});
        let row = DeliveryRow {
            id: DeliveryId::of_event(event.seq, place),
            endpoint_id: endpoint.id,
            job_id: event.job_id,
            kind: event.kind,
            url: endpoint.spec.url.clone(),
            body: body.to_string().into(),
            status: DeliveryStatus::Pending,
            tries: 0,
            next_at: is_first.then_some(self.now),
            created_at: self.now,
            finished_at: None,
            last_status: None,
            last_error: None,
        };
        self.rows.insert_delivery(&row)?;
        if is_first {
            self.mail(endpoint.id);
        }
        Ok(())
    }

    /// Something of this endpoint may be sent.
    fn mail(&mut self, endpoint_id: i64) {
        self.mail.insert(endpoint_id);
    }

    /// Records what came of a try. A delivery that is gone, or over by now, is none of its business any more.
    pub(super) fn attempted(&mut self, attempted: &Attempted) -> Result<Done> {
        let Some(before) = self.rows.delivery(attempted.id)? else {
            return Ok(Done::Nothing);
        };
        if before.status != DeliveryStatus::Pending {
            return Ok(Done::Nothing);
        }
        if attempted.verdict == Verdict::Unwanted {
            let endpoint = self.rows.endpoint(before.endpoint_id)?;
            if endpoint.is_some_and(|endpoint| endpoint.is_enabled) {
                return Ok(Done::Nothing);
            }
        }
        self.writes += 1;
        let is_sent_again = before.next_at.is_some() && before.next_at != attempted.due;
        let tries = before.tries;
        let mut after = self.tried(before, attempted)?;
        if is_sent_again && matches!(attempted.verdict, Verdict::RetryAt(_) | Verdict::GiveUp) {
            // It was the last of the tries before: those that were asked for begin now.
            let again = DeliveryRow { tries, ..after };
            return self.rows.update_delivery(&again).map(|()| Done::Nothing);
        }
        if let Verdict::RetryAt(at) = attempted.verdict {
            // Without a time it is not the first of its line any more: an earlier one is sent again by hand.
            after.next_at = after.next_at.map(|_| at);
            return self.rows.update_delivery(&after).map(|()| Done::Nothing);
        }
        let is_delivered = attempted.verdict == Verdict::Delivered;
        after.status = if is_delivered {
            DeliveryStatus::Delivered
        } else {
            DeliveryStatus::Failed
        };
        (after.next_at, after.finished_at) = (None, Some(self.now));
        self.rows.update_delivery(&after)?;
        if attempted.verdict == Verdict::Gone {
            let endpoint = self.rows.endpoint(after.endpoint_id)?;
            // It may have moved since: what is gone is the place where it was.
            if endpoint.is_some_and(|endpoint| endpoint.spec.url == after.url) {
                self.disable(after.endpoint_id, "it answered 410: gone")?;
            }
        }
        self.next_in_line(after.endpoint_id, after.job_id)?;
        self.tell_job(&after)?;
        Ok(Done::Nothing)
    }

    /// A delivery after a try.
    fn tried(&mut self, before: DeliveryRow, attempted: &Attempted) -> Result<DeliveryRow> {
        let last_error = attempted.error.clone();
        if attempted.verdict == Verdict::Unwanted {
            return Ok(DeliveryRow {
                last_error,
                ..before
            });
        }
        let attempt = DeliveryTry {
            at: attempted.at,
            took_ms: attempted.took_ms,
            status: attempted.status,
            error: last_error.clone(),
            answer: attempted.answer.clone(),
        };
        self.rows.add_try(before.id, &attempt)?;
        Ok(DeliveryRow {
            tries: before.tries.saturating_add(1),
            last_status: attempted.status,
            last_error,
            ..before
        })
    }

    /// The end of one delivery gives the next of its line its time.
    fn next_in_line(&mut self, endpoint_id: i64, job: JobId) -> Result<()> {
        let Some(next) = self.rows.first_in_line(endpoint_id, job)? else {
            return Ok(());
        };
        if let Some(row) = self.rows.delivery(next)?
            && row.next_at.is_none()
        {
            let next_at = Some(self.now);
            self.rows.update_delivery(&DeliveryRow { next_at, ..row })?;
        }
        self.mail(endpoint_id);
        Ok(())
    }

    fn disable(&mut self, endpoint_id: i64, problem: &str) -> Result<()> {
        let Some(row) = self.rows.endpoint(endpoint_id)? else {
            return Ok(());
        };
        let row = EndpointRow {
            is_enabled: false,
            problem: Some(problem.to_owned()),
            ..row
        };
        self.named = None;
        self.rows.put_endpoint(&row).map(|_| ())
    }

    /// The log tells what became of a delivery, as long as its job is there.
    fn tell_job(&mut self, delivery: &DeliveryRow) -> Result<()> {
        let Some(before) = self.rows.job(delivery.job_id)? else {
            return Ok(());
        };
        let is_delivered = delivery.status == DeliveryStatus::Delivered;
        let change = if is_delivered {
            Change::WebhookDelivered
        } else {
            Change::WebhookFailed
        };
        let data = json!({"delivery_id": delivery.id, "url": shown_url(&delivery.url),
            "status": delivery.last_status, "tries": delivery.tries, "job": before.status});
        let flags = if is_delivered && tells_of_end(delivery, &before) {
            before.flags.with(Flags::WEBHOOK_SENT)
        } else {
            before.flags
        };
        let after = JobRow {
            flags,
            last_seq: self.head.seq + 1,
            ..before
        };
        self.rows.update_job(&before, &after)?;
        let about = (before.phase_index, before.attempt);
        self.log(&before, change, about, Some(data.to_string()))
    }

    /// What a user wants done with endpoints and deliveries.
    pub(super) fn by_hand(&mut self, mail: &Mail) -> Result<Done> {
        self.named = None;
        match mail {
            Mail::Configure(endpoints) => self.configure(endpoints).map(|()| Done::Nothing),
            Mail::Put(name, spec) => {
                self.room_for(name)?;
                self.put(name, spec).map(|()| Done::Nothing)
            }
            Mail::Enable(name, is_enabled) => {
                if *is_enabled {
                    self.room_for(name)?;
                }
                let row = self.named(name)?.ok_or_else(|| {
                    let problem = format!("endpoint {name:?}: there is no such endpoint");
                    Error::new(ErrorKind::NotFound, problem)
                })?;
                self.writes += 1;
                self.rows.put_endpoint(&EndpointRow {
                    is_enabled: *is_enabled,
                    problem: None,
                    ..row
                })?;
                self.mail(row.id);
                Ok(Done::Nothing)
            }
            Mail::Redeliver(which) => self.redeliver(*which).map(Done::Counted),
        }
    }

    /// Each event has room for so many deliveries: one endpoint more would be told nothing.
    fn room_for(&mut self, name: &str) -> Result<()> {
        let others = self.rows.named_endpoints()?;
        let is_other = |row: &&EndpointRow| row.is_enabled && row.name.as_deref() != Some(name);
        if others.iter().filter(is_other).count() < NAMED_MAX {
            return Ok(());
        }
        let problem = format!(
            "endpoint {name:?}: {NAMED_MAX} others are enabled, which is the most: disable one first"
        );
        Err(Error::new(ErrorKind::Conflict, problem))
    }

    fn named(&mut self, name: &str) -> Result<Option<EndpointRow>> {
        let rows = self.rows.named_endpoints()?;
        Ok(rows
            .into_iter()
            .find(|row| row.name.as_deref() == Some(name)))
    }

    fn configure(&mut self, endpoints: &[(std::sync::Arc<str>, EndpointSpec)]) -> Result<()> {
        for (name, spec) in endpoints {
            self.put(name, spec)?;
        }
        let is_left = |row: &EndpointRow| {
            let is_named = endpoints
                .iter()
                .any(|(name, _)| row.name.as_ref() == Some(name));
            !is_named && row.is_enabled
        };
        for row in self.rows.named_endpoints()?.into_iter().filter(is_left) {
            self.writes += 1;
            self.disable(row.id, LEFT_OUT)?;
        }
        Ok(())
    }

    /// One that was disabled stays so, unless it has moved or was not wanted for a while.
    fn put(&mut self, name: &std::sync::Arc<str>, spec: &EndpointSpec) -> Result<()> {
        let known = self.named(name)?;
        let is_same = known.as_ref().is_some_and(|row| row.spec == *spec);
        let was_left_out = |row: &EndpointRow| row.problem.as_deref() == Some(LEFT_OUT);
        let stays = known
            .as_ref()
            .is_some_and(|row| row.spec.url == spec.url && !was_left_out(row));
        if is_same && stays {
            return Ok(());
        }
        let kept = known.as_ref().filter(|_| stays);
        let row = EndpointRow {
            id: known.as_ref().map_or(0, |row| row.id),
            name: Some(name.clone()),
            spec: spec.clone(),
            is_enabled: kept.is_none_or(|row| row.is_enabled),
            problem: kept.and_then(|row| row.problem.clone()),
        };
        self.writes += 1;
        let id = self.rows.put_endpoint(&row)?;
        self.mail(id);
        Ok(())
    }

    fn redeliver(&mut self, which: Which) -> Result<usize> {
        let ids = match which {
            Which::One(id) => vec![id],
            Which::Between(from, to) => self.rows.deliveries_between(from, to, BULK_MAX)?,
        };
        let mut count = 0;
        for id in ids {
            let row = self.rows.delivery(id)?.ok_or_else(|| {
                Error::new(
                    ErrorKind::NotFound,
                    format!("delivery {id}: there is no such delivery"),
                )
            })?;
            if self.rows.endpoint(row.endpoint_id)?.is_none() {
                if matches!(which, Which::Between(..)) {
                    continue;
                }
                let problem =
                    format!("delivery {id}: its endpoint belonged to a job that is deleted");
                return Err(Error::new(ErrorKind::Conflict, problem));
            }
            self.writes += 1;
            count += 1;
            self.send_again(row)?;
        }
        Ok(count)
    }

    /// From the first try on; in line, if an earlier one is pending.
    fn send_again(&mut self, row: DeliveryRow) -> Result<()> {
        let (endpoint_id, job) = (row.endpoint_id, row.job_id);
        let first = self.rows.first_in_line(endpoint_id, job)?;
        let is_first = first.is_none_or(|first| first >= row.id);
        if let Some(first) = first.filter(|first| *first > row.id)
            && let Some(other) = self.rows.delivery(first)?
        {
            // It goes before that one now.
            self.rows.update_delivery(&DeliveryRow {
                next_at: None,
                ..other
            })?;
        }
        self.rows.update_delivery(&DeliveryRow {
            status: DeliveryStatus::Pending,
            tries: 0,
            next_at: is_first.then_some(self.now),
            finished_at: None,
            ..row
        })?;
        self.mail(endpoint_id);
        Ok(())
    }
}

/// Whether it tells of the job's end, and not of that of an earlier series of attempts.
fn tells_of_end(delivery: &DeliveryRow, job: &JobRow) -> bool {
    let is_its_end = matches!(
        (job.status, delivery.kind),
        (JobStatus::Completed, EventKind::Completed)
            | (JobStatus::Failed, EventKind::Failed)
            | (JobStatus::Cancelled, EventKind::Cancelled)
    );
    is_its_end && job.finished_at == Some(delivery.created_at)
}

/// A change as it is logged, for those who want to know of it.
pub(super) struct Notified<'a> {
    pub(super) seq: i64,
    pub(super) change: Change,
    pub(super) about: (u32, u32),
    pub(super) data: Option<&'a str>,
}

//! The JSON API: looking at jobs and changing their course. L3; delegates.

use serde_json::{Map, Value, json};

use crate::config::Location;
use crate::error::{Error, ErrorKind};
use crate::event::Seq;
use crate::explain;
use crate::http::answer::{Answer, failed, problem};
use crate::http::router::{Call, Reply, Site};
use crate::job::{CancelOutcome, Job, JobStatus, RetryFrom};
use crate::outbox::{self, DeliveryQuery};
use crate::requests::{self, ListFilter};

/// As for `ListFilter`; with errors each job is one more look into the file.
const LIST_MAX: usize = 1000;
const LIST_WITH_ERRORS_MAX: usize = 200;
/// Deliveries that are shown of a job, the newest.
const DELIVERIES_MAX: usize = 100;

pub(super) fn jobs(site: &Site, call: &Call<'_>) -> Result<Reply, Answer> {
    call.only(&["status", "type", "limit", "cursor", "with"])?;
    let mut filter = ListFilter::new();
    if let Some(status) = call.param("status") {
        filter = filter.status(parse_status(status)?);
    }
    if let Some(name) = call.param("type") {
        filter = filter.job_type(name);
    }
    let with_errors = match call.param("with") {
        None => false,
        Some("error") => true,
        Some(other) => return Err(problem(400, &format!("with {other:?}: expected error"))),
    };
    if let Some(limit) = call.param("limit") {
        let limit = limit.parse().ok();
        let limit = limit.filter(|limit| (1..=LIST_MAX).contains(limit));
        let wrong = || problem(400, &format!("limit: expected 1 to {LIST_MAX}"));
        let limit = limit.ok_or_else(wrong)?;
        // A page may be short: the rest comes with the next one.
        filter = filter.limit(if with_errors {
            limit.min(LIST_WITH_ERRORS_MAX)
        } else {
            limit
        });
    }
    if let Some(cursor) = call.param("cursor") {
        filter = filter.after(cursor);
    }
    let page = requests::list(&*site.engine.reader, &filter).map_err(|error| failed(&error))?;
    let mut listed = Vec::with_capacity(page.jobs.len());
    for job in &page.jobs {
        let mut shown = object(job);
        if with_errors
            && let Some(whole) = site
                .engine
                .reader
                .outline(job.id)
                .map_err(|error| failed(&error))?
        {
            shown.insert("error".to_owned(), json!(whole.errors.last()));
        }
        listed.push(shown);
    }
    Ok(Answer::json(&json!({ "jobs": listed, "next": page.next })).into())
}

fn object(value: &impl serde::Serialize) -> Map<String, Value> {
    match serde_json::to_value(value) {
        Ok(Value::Object(map)) => map,
        _ => Map::new(),
    }
}

pub(super) fn parse_status(text: &str) -> Result<JobStatus, Answer> {
    text.parse()
        .map_err(|error| problem(400, &format!("{error}")))
}

pub(super) fn job(site: &Site, call: &Call<'_>) -> Result<Reply, Answer> {
    call.only(&["payloads"])?;
    let as_text = match call.param("payloads") {
        None => false,
        Some("text") => true,
        Some(other) => {
            let wrong = format!("payloads {other:?}: expected text");
            return Err(problem(400, &wrong));
        }
    };
    let id = call.job_id()?;
    let look = || {
        let reader = &site.engine.reader;
        let found = if site.shows_payloads {
            reader.job(id)?
        } else {
            reader.outline(id)?
        };
        let Some(job) = found else {
            return Err(requests::not_found(id));
        };
        let events = requests::events_of(&*site.engine.reader, id)?;
        let explained = explain::in_process(&site.engine, id)?;
        let of_job = DeliveryQuery::new().job(id).limit(DELIVERIES_MAX);
        let deliveries = outbox::deliveries(&*site.engine.reader, &of_job)?;
        Ok((job, events, explained.hindrances, deliveries.deliveries))
    };
    let (job, events, hindrances, deliveries) = look().map_err(|error| failed(&error))?;
    let mut shown = object(&job);
    if !site.shows_payloads {
        withhold_payloads(&mut shown);
    } else if as_text {
        quote_payloads(&mut shown, &job);
    }
    shown.insert("payloads_shown".to_owned(), json!(site.shows_payloads));
    shown.insert("hindrances".to_owned(), json!(hindrances));
    let progress = site.engine.bus.progress_of(id);
    shown.insert("progress".to_owned(), json!(progress));
    shown.insert("events".to_owned(), json!(events));
    shown.insert("deliveries".to_owned(), json!(deliveries));
    Ok(Answer::json(&shown).into())
}

/// Takes out what is not to be shown.
fn withhold_payloads(shown: &mut Map<String, Value>) {
    shown.remove("input");
    for phase in phases(shown) {
        phase.remove("result");
    }
}

/// The JSON of payloads as text, for readers that would round their numbers. Without line breaks: with them a deeply nested one
/// would grow a hundredfold.
fn quote_payloads(shown: &mut Map<String, Value>, job: &Job) {
    shown.insert("input".to_owned(), json!(job.input.to_string()));
    for (phase, record) in phases(shown).zip(&job.phases) {
        let result = record.result.as_ref().map(Value::to_string);
        phase.insert("result".to_owned(), json!(result));
    }
}

fn phases(shown: &mut Map<String, Value>) -> impl Iterator<Item = &mut Map<String, Value>> {
    let phases = shown.get_mut("phases").and_then(Value::as_array_mut);
    phases
        .into_iter()
        .flatten()
        .filter_map(Value::as_object_mut)
}

pub(super) fn cancel(site: &Site, call: &Call<'_>) -> Result<Reply, Answer> {
    call.only(&[])?;
    let id = call.job_id()?;
    let outcome = requests::cancel(&*site.engine, id).map_err(|error| failed(&error))?;
    let answer = match outcome {
        CancelOutcome::Cancelled => json!({ "outcome": "cancelled" }),
        CancelOutcome::AlreadyFinished(status) => {
            json!({ "outcome": "already_finished", "status": status })
        }
        CancelOutcome::NotFound => return Err(failed(&requests::not_found(id))),
    };
    Ok(Answer::json(&answer).into())
}

pub(super) fn retry(site: &Site, call: &Call<'_>) -> Result<Reply, Answer> {
    call.only(&["from"])?;
    let from = parse_from(call)?;
    requests::retry(&*site.engine, call.job_id()?, from).map_err(|error| failed(&error))?;
    Ok(Answer::json(&json!({ "outcome": "retried" })).into())
}

pub(super) fn parse_from(call: &Call<'_>) -> Result<RetryFrom, Answer> {
    match call.text("from")? {
        Some("failed") => Ok(RetryFrom::Failed),
        Some("start") => Ok(RetryFrom::Start),
        Some(_) | None => Err(problem(400, "\"from\" is to be \"failed\" or \"start\"")),
    }
}

pub(super) fn delete(site: &Site, call: &Call<'_>) -> Result<Reply, Answer> {
    call.only(&[])?;
    requests::delete(&*site.engine, call.job_id()?).map_err(|error| failed(&error))?;
    Ok(Answer::json(&json!({ "outcome": "deleted" })).into())
}

/// Its tries, and not its body: that may be as secret as a payload.
pub(super) fn delivery(site: &Site, call: &Call<'_>) -> Result<Reply, Answer> {
    call.only(&[])?;
    let id = call.delivery_id()?;
    let found = outbox::find(&*site.engine.reader, id).map_err(|error| failed(&error))?;
    let Some(record) = found else {
        let problem = format!("delivery {id}: there is no such delivery");
        return Err(failed(&Error::new(ErrorKind::NotFound, problem)));
    };
    let mut shown = object(&record.delivery);
    shown.insert("log".to_owned(), json!(record.log));
    Ok(Answer::json(&shown).into())
}

pub(super) fn redeliver(site: &Site, call: &Call<'_>) -> Result<Reply, Answer> {
    call.only(&[])?;
    outbox::redeliver(&*site.engine, call.delivery_id()?).map_err(|error| failed(&error))?;
    Ok(Answer::json(&json!({ "outcome": "redelivered" })).into())
}

pub(super) fn pause(site: &Site, call: &Call<'_>) -> Result<Reply, Answer> {
    set_paused(site, call, true)
}

pub(super) fn resume(site: &Site, call: &Call<'_>) -> Result<Reply, Answer> {
    set_paused(site, call, false)
}

fn set_paused(site: &Site, call: &Call<'_>, paused: bool) -> Result<Reply, Answer> {
    call.only(&["type"])?;
    let job_type = call.text("type")?;
    requests::set_paused(&*site.engine, job_type, paused).map_err(|error| failed(&error))?;
    Ok(Answer::json(&json!({ "paused": paused, "type": job_type })).into())
}

pub(super) fn stats(site: &Site, call: &Call<'_>) -> Result<Reply, Answer> {
    call.only(&[])?;
    let engine = &site.engine;
    let look = || {
        Ok((
            explain::stats(&*engine.reader)?,
            engine.reader.types()?,
            oldest(site)?,
        ))
    };
    let (mut stats, types, oldest) = look().map_err(|error| failed(&error))?;
    stats.abandoned = engine.abandoned();
    stats.window = engine.window();
    let (poisoned, store_failure) = engine.health();
    let mut shown = object(&stats);
    let file = match &engine.config.location {
        Location::File(path) => Some(path.display().to_string()),
        Location::Memory => None,
    };
    let names: Vec<_> = types.iter().map(|(name, _, _)| name).collect();
    let more = json!({
        "types": names,
        "workers": engine.config.workers,
        "now": engine.now(),
        "file_id": site.feed.file_id,
        "oldest_seq": oldest,
        "file": file,
        "health": { "poisoned": poisoned, "store_failure": store_failure, "closing": engine.is_stopping() },
    });
    shown.extend(object(&more));
    Ok(Answer::json(&shown).into())
}

fn oldest(site: &Site) -> crate::error::Result<Seq> {
    site.engine.reader.oldest_seq()
}

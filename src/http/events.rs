//! `/events` and `/jobs/{id}/events`: where a stream begins. L3.

use crate::event::{EventKind, Seq};
use crate::http::answer::{Answer, failed, problem};
use crate::http::frame;
use crate::http::ring::Filter;
use crate::http::router::{Call, Reply, Site};
use crate::http::stream::Start;

const PARAMS: [&str; 3] = ["type", "job_type", "last_event_id"];

/// Where a stream begins, and what it hears first.
struct From {
    after: Seq,
    preface: Vec<u8>,
    is_resumed: bool,
}

/// Every event from now on, or after the last one that the client has.
pub(super) fn all(site: &Site, call: &Call<'_>) -> Result<Reply, Answer> {
    call.only(&PARAMS)?;
    let filter = filter(call)?;
    let from = from(site, call)?;
    Ok(start(filter, from, false))
}

/// The events of one job, its past ones first. Ends after the one that ends the job.
pub(super) fn of_job(site: &Site, call: &Call<'_>) -> Result<Reply, Answer> {
    call.only(&PARAMS)?;
    let id = call.job_id()?;
    let filter = Filter {
        job: Some(id),
        ..filter(call)?
    };
    let reader = &site.engine.reader;
    let status = reader.status(id).map_err(|error| failed(&error))?;
    let Some(status) = status else {
        return Err(problem(404, &format!("job {id}: there is no such job")));
    };
    let mut from = from(site, call)?;
    if !from.is_resumed {
        from.after = 0;
    }
    if status.is_terminal() && from.preface.is_empty() {
        let past = site.feed.past_of_job(id, from.after, &filter);
        if past.map_err(|error| failed(&error))?.is_nothing_more() {
            // The client has everything that it wants. This tells it not to come again (HTML, section 9.2.3): an
            // `EventSource` that was sent an empty stream would, for ever.
            return Ok(Answer::empty().into());
        }
    }
    Ok(start(filter, from, true))
}

fn start(filter: Filter, from: From, replays_job: bool) -> Reply {
    Reply::Stream(Box::new(Start {
        filter,
        after: from.after,
        preface: from.preface,
        replays_job,
        headers: String::new(),
    }))
}

fn filter(call: &Call<'_>) -> Result<Filter, Answer> {
    let mut filter = Filter::default();
    for name in call.params("type").flat_map(|names| names.split(',')) {
        let kind: EventKind = name
            .parse()
            .map_err(|error| problem(400, &format!("{error}")))?;
        filter.kinds.push(kind);
    }
    let names = call.params("job_type").flat_map(|names| names.split(','));
    filter.job_types = names.map(str::to_owned).collect();
    Ok(filter)
}

fn from(site: &Site, call: &Call<'_>) -> Result<From, Answer> {
    let reader = &site.engine.reader;
    let head = reader.head().map_err(|error| failed(&error))?.seq;
    let header = call
        .request
        .header("last-event-id")
        .filter(|id| !id.is_empty());
    // The header wins: a browser that comes again still has the query of its first time.
    let Some(requested) = header.or(call.param("last_event_id")) else {
        return Ok(From {
            after: head,
            preface: Vec::new(),
            is_resumed: false,
        });
    };
    let oldest = reader.oldest_seq().map_err(|error| failed(&error))?;
    let file_id = &site.feed.file_id;
    let position = frame::parse_id(file_id, requested);
    if let Some(after) = position.filter(|seq| (oldest - 1..=head).contains(seq)) {
        return Ok(From {
            after,
            preface: Vec::new(),
            is_resumed: true,
        });
    }
    Ok(From {
        after: head,
        preface: frame::reset(file_id, requested, oldest, head),
        is_resumed: true,
    })
}

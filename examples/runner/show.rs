//! Commands that look: list, show, events, stats, explain, check.

use std::time::Duration;

use serde_json::json;
use stepwell::{
    Client, Delivery, DeliveryQuery, DeliveryStatus, Event, Job, JobId, JobStatus, JobSummary,
    ListFilter, PhaseRecord, Seq, Timestamp,
};

use crate::output::{Cell, Output, count, plain, remark, tame};
use crate::{FAILED, Result, ask};

/// How often `events --follow` looks for more.
const FOLLOW_EVERY: Duration = Duration::from_millis(100);
/// Events read at once.
const EVENTS_PAGE: usize = 1000;
/// Jobs read at once.
const JOBS_PAGE: usize = 1000;

pub fn list(
    client: &Client,
    status: Option<JobStatus>,
    job_type: Option<&str>,
    limit: usize,
    out: &mut Output,
) -> Result<u8> {
    let (mut jobs, mut cursor) = (Vec::new(), None::<String>);
    while jobs.len() < limit {
        let mut filter = ListFilter::new().limit((limit - jobs.len()).min(JOBS_PAGE));
        if let Some(status) = status {
            filter = filter.status(status);
        }
        if let Some(name) = job_type {
            filter = filter.job_type(name);
        }
        if let Some(cursor) = cursor.take() {
            filter = filter.after(cursor);
        }
        let page = client.list(&filter)?;
        jobs.extend(page.jobs);
        cursor = page.next;
        if cursor.is_none() {
            break;
        }
    }
    if out.is_json() {
        return jobs.iter().try_for_each(|job| out.json(job)).map(|()| 0);
    }
    let rows: Vec<_> = jobs.iter().map(row).collect();
    if !rows.is_empty() {
        out.table(
            [
                "ID", "TYPE", "STATUS", "PHASES", "TRY", "PRIORITY", "CREATED", "TOOK",
            ],
            &rows,
        );
    }
    let more = if cursor.is_some() {
        ", and more: raise --limit"
    } else {
        ""
    };
    out.line(&format!("{}{more}", count(jobs.len(), "job")));
    Ok(0)
}

fn row(job: &JobSummary) -> [Cell; 8] {
    [
        Cell::number(job.id),
        Cell::text(&job.job_type),
        Cell::Status(job.status),
        Cell::text(format!("{}/{}", job.phases_done, job.phase_count)),
        Cell::number(job.attempt),
        Cell::number(job.priority),
        Cell::text(job.created_at),
        Cell::maybe(took(job.started_at, job.finished_at)),
    ]
}

fn took(started: Option<Timestamp>, finished: Option<Timestamp>) -> Option<String> {
    Some(format!("{:.3} s", finished?.since(started?).as_secs_f64()))
}

pub fn job(client: &Client, id: JobId, out: &mut Output) -> Result<u8> {
    let job = client.get(id)?.ok_or_else(|| ask::not_found(id))?;
    if out.is_json() {
        return out.json(&job).map(|()| 0);
    }
    out.table(
        [
            "ID", "TYPE", "STATUS", "PHASES", "TRY", "PRIORITY", "CREATED", "TOOK",
        ],
        &[row(&job)],
    );
    if let Some(key) = &job.unique_key {
        out.line(&format!("unique key: {}", tame(key, 600)));
    }
    out.line("");
    let rows: Vec<_> = job.phases.iter().map(phase_row).collect();
    out.table(
        [
            "PHASE",
            "STATUS",
            "TRY",
            "STARTED",
            "TOOK",
            "RESULT OR ERROR",
        ],
        &rows,
    );
    if !job.errors.is_empty() {
        out.line("");
        let rows = job.errors.iter().map(|error| {
            [
                Cell::text(error.at),
                Cell::maybe(error.phase.as_ref()),
                Cell::number(error.attempt),
                Cell::text(error.kind),
                Cell::Text(tame(&error.message, 400)),
            ]
        });
        out.table(
            ["AT", "PHASE", "TRY", "ERROR", "MESSAGE"],
            &rows.collect::<Vec<_>>(),
        );
    }
    out.line("");
    out.line(&closing(&job));
    Ok(0)
}

fn phase_row(phase: &PhaseRecord) -> [Cell; 6] {
    let outcome = match (&phase.error, &phase.result) {
        (Some(error), _) => Some(error.clone()),
        (None, result) => result.as_ref().map(plain),
    };
    [
        Cell::text(&phase.name),
        Cell::text(phase.status),
        Cell::number(phase.attempt),
        Cell::maybe(phase.started_at),
        Cell::maybe(took(phase.started_at, phase.finished_at)),
        Cell::maybe(outcome),
    ]
}

fn closing(job: &Job) -> String {
    let mut text = format!(
        "job {} is {}: {} of {} phases done",
        job.id, job.status, job.phases_done, job.phase_count
    );
    if let Some(cut) = &job.interruption {
        let more = format!(
            "; phase {} was interrupted in try {} at {} ({})",
            cut.phase,
            cut.attempt,
            cut.at,
            cut.reason.as_str()
        );
        text.push_str(&more);
    }
    if job.crash_count > 0 {
        text.push_str(&format!(
            "; its process died in it {}",
            count(job.crash_count as usize, "time")
        ));
    }
    text
}

pub fn events(client: &Client, mut after: Seq, follow: bool, out: &mut Output) -> Result<u8> {
    let mut shown = 0;
    loop {
        let events = client.events_after(after, EVENTS_PAGE)?;
        if let Some(first) = events.first().map(|event| event.seq)
            && after > 0
            && first > after + 1
        {
            remark(&format!(
                "events {} to {} are kept no longer",
                after + 1,
                first - 1
            ));
        }
        for event in &events {
            if out.is_json() {
                out.json(event)?;
            } else {
                out.line(&told(event));
            }
            after = event.seq;
        }
        shown += events.len();
        if out.is_lost() {
            return Ok(0);
        }
        if !events.is_empty() {
            continue;
        }
        if !follow {
            break;
        }
        out.flush();
        std::thread::sleep(FOLLOW_EVERY);
    }
    if !out.is_json() {
        out.line(&count(shown, "event"));
    }
    Ok(0)
}

fn told(event: &Event) -> String {
    let mut text = format!(
        "{:>6}  {}  job {:<6} {:<20}",
        event.seq, event.at, event.job_id, event.kind
    );
    if let Some(phase) = &event.phase {
        text.push_str(&format!("  {phase}"));
    }
    if event.attempt > 1 {
        text.push_str(&format!("  try {}", event.attempt));
    }
    for (key, value) in &event.data {
        text.push_str(&format!("  {key}={}", tame(&plain(value), 200)));
    }
    text.trim_end().to_owned()
}

pub fn deliveries(
    client: &Client,
    status: Option<DeliveryStatus>,
    limit: usize,
    out: &mut Output,
) -> Result<u8> {
    let (mut all, mut next) = (Vec::new(), None);
    while all.len() < limit {
        let mut query = DeliveryQuery::new().limit((limit - all.len()).min(JOBS_PAGE));
        if let Some(status) = status {
            query = query.status(status);
        }
        if let Some(next) = next {
            query = query.after(next);
        }
        let page = client.deliveries(&query)?;
        all.extend(page.deliveries);
        next = page.next;
        if next.is_none() {
            break;
        }
    }
    if out.is_json() {
        return all
            .iter()
            .try_for_each(|delivery| out.json(delivery))
            .map(|()| 0);
    }
    let rows: Vec<_> = all.iter().map(delivery_row).collect();
    if !rows.is_empty() {
        out.table(
            [
                "ID", "EVENT", "JOB", "STATUS", "TRIES", "NEXT", "ANSWER", "URL", "ERROR",
            ],
            &rows,
        );
    }
    let more = if next.is_some() {
        ", and more: raise --limit"
    } else {
        ""
    };
    let number = if all.len() == 1 {
        "1 delivery".to_owned()
    } else {
        format!("{} deliveries", all.len())
    };
    out.line(&format!("{number}{more}"));
    Ok(0)
}

fn delivery_row(delivery: &Delivery) -> [Cell; 9] {
    [
        Cell::number(delivery.id),
        Cell::text(delivery.event),
        Cell::number(delivery.job_id),
        Cell::text(delivery.status),
        Cell::number(delivery.tries),
        Cell::maybe(delivery.next_at),
        Cell::maybe(delivery.last_status),
        Cell::text(&delivery.url),
        Cell::maybe(delivery.last_error.as_ref()),
    ]
}

pub fn stats(client: &Client, out: &mut Output) -> Result<u8> {
    let stats = client.stats()?;
    let owner = client.owner_pid();
    if out.is_json() {
        let mut value = serde_json::to_value(&stats)?;
        value["owner_pid"] = json!(owner);
        return out.json(&value).map(|()| 0);
    }
    let counts = [
        stats.pending,
        stats.running,
        stats.completed,
        stats.failed,
        stats.cancelled,
    ];
    let rows: Vec<_> = JobStatus::ALL
        .into_iter()
        .zip(counts)
        .map(|(status, jobs)| [Cell::Status(status), Cell::number(jobs)])
        .collect();
    out.table(["STATUS", "JOBS"], &rows);
    let work = match owner {
        _ if stats.paused => "the queue is paused".to_owned(),
        Some(pid) => format!("process {pid} runs jobs"),
        None => "no process runs jobs".to_owned(),
    };
    let jobs = usize::try_from(counts.iter().sum::<u64>()).unwrap_or(usize::MAX);
    out.line(&format!(
        "{}; {work}; newest event {}",
        count(jobs, "job"),
        stats.head_seq
    ));
    Ok(0)
}

pub fn explain(client: &Client, id: JobId, out: &mut Output) -> Result<u8> {
    let explanation = client.explain(id)?;
    if out.is_json() {
        return out.json(&explanation).map(|()| 0);
    }
    for hindrance in &explanation.hindrances {
        out.line(&format!("- {hindrance}"));
    }
    let next = match explanation.status {
        JobStatus::Pending if explanation.hindrances.is_empty() => ": it is next",
        JobStatus::Pending | JobStatus::Running | JobStatus::Completed => "",
        JobStatus::Failed | JobStatus::Cancelled => ": `retry` tries it again, `show` tells why",
    };
    out.line(&format!("job {id} is {}{next}", explanation.status));
    Ok(0)
}

pub fn check(client: &Client, out: &mut Output) -> Result<u8> {
    let broken = client.check()?;
    for problem in &broken {
        if out.is_json() {
            out.json(&json!({"broken": problem}))?;
        } else {
            out.line(problem);
        }
    }
    if !out.is_json() {
        let found = match broken.len() {
            0 => "the file is sound".to_owned(),
            broken => format!("{} broken", count(broken, "invariant")),
        };
        out.line(&found);
    }
    Ok(if broken.is_empty() { 0 } else { FAILED })
}

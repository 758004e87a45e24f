//! What must be so after a power cut: in the file as it was left, and once a queue has recovered it.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use stepwell::{
    Client, Durability, Event, EventKind, InterruptionReason, Job, JobId, JobQueue, JobStatus,
    ListFilter, Retention,
};

use crate::counters::Counters;
use crate::deliveries;
use crate::journal::{self, Journal};
use crate::load;

/// Bytes of the owner file: the header, and in it the boot id and the checksum.
const HEADER: std::ops::Range<usize> = 64..192;
const BOOT_ID: std::ops::Range<usize> = 16..80;
const CHECKED: usize = 120;
const PATIENCE: Duration = Duration::from_secs(30);

/// What one job was acknowledged, by the journal.
#[derive(Default)]
struct Told {
    is_stored: bool,
    cancels: usize,
    retries: usize,
    is_delete_asked: bool,
    is_deleted: bool,
    is_completed: bool,
    may_restart: bool,
    /// The last phase whose handler was entered.
    entered: u32,
}

/// H10: what was acknowledged before the cut is there, and what was begun stands on what is there.
pub(crate) fn acknowledged(dir: &Path, client: &Client, events: &[Event]) -> Vec<String> {
    let mut problems = Vec::new();
    let count = |id: JobId, is_it: &dyn Fn(&Event) -> bool| {
        let of_job = events.iter().filter(|event| event.job_id == id);
        of_job.filter(|event| is_it(event)).count()
    };
    for (id, told) in told(&dir.join("journal")) {
        let job = client.get(id).expect("a job can be read");
        if told.is_stored && !told.is_delete_asked && job.is_none() {
            problems.push(format!("H10: job {id} was acknowledged and is gone"));
        }
        let cancels = count(id, &|event| event.kind == EventKind::Cancelled);
        if cancels < told.cancels {
            let acknowledged = told.cancels;
            problems.push(format!(
                "H10: job {id}: {acknowledged} cancels were acknowledged, {cancels} are there"
            ));
        }
        let is_asked = |event: &Event| event.data.get("reason") == Some(&Value::from("requested"));
        let retries = count(id, &|event| {
            event.kind == EventKind::Retrying && is_asked(event)
        });
        if retries < told.retries {
            let acknowledged = told.retries;
            problems.push(format!(
                "H10: job {id}: {acknowledged} retries were acknowledged, {retries} are there"
            ));
        }
        let deleted = count(id, &|event| event.kind == EventKind::Deleted);
        if told.is_deleted && (deleted == 0 || job.is_some()) {
            problems.push(format!("H10: job {id}: its deletion was acknowledged"));
        }
        let completed = count(id, &|event| event.kind == EventKind::Completed);
        if told.is_completed && completed == 0 {
            problems.push(format!("H10: job {id}: its end was told, and is lost"));
        }
        let done = job.map_or(told.entered, |job| job.phases_done);
        if done < told.entered && !told.may_restart {
            let entered = told.entered;
            problems.push(format!(
                "H10: job {id}: phase {entered} was entered, {done} phases are completed"
            ));
        }
    }
    problems
}

fn told(journal: &Path) -> BTreeMap<JobId, Told> {
    let mut jobs: BTreeMap<JobId, Told> = BTreeMap::new();
    let id = |text: &str| -> JobId { text.parse().expect("the journal has job ids") };
    for words in journal::read(journal) {
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        match *words {
            ["Q!", _, job, _] => jobs.entry(id(job)).or_default().is_stored = true,
            ["C!", job, "cancelled"] => jobs.entry(id(job)).or_default().cancels += 1,
            ["C!", job, "already-completed"] => {
                jobs.entry(id(job)).or_default().is_completed = true;
            }
            ["R?", job, "start"] => jobs.entry(id(job)).or_default().may_restart = true,
            ["R!", job, _, "ok"] => jobs.entry(id(job)).or_default().retries += 1,
            ["D?", job] => jobs.entry(id(job)).or_default().is_delete_asked = true,
            ["D!", job] => jobs.entry(id(job)).or_default().is_deleted = true,
            ["S", job, phase, _] => {
                let job = jobs.entry(id(job)).or_default();
                job.entered = job.entered.max(phase.parse().expect("a number"));
            }
            _ => {}
        }
    }
    jobs
}

/// Writes the header of the owner file as a process of another boot would have written it; false when there is none that could be
/// believed. The checksum is FNV-1a. Source: `src/owner`.
pub(crate) fn restart(dir: &Path) -> bool {
    let path = dir.join("jobs.db-owner");
    let Ok(mut bytes) = std::fs::read(&path) else {
        return false;
    };
    let Some(header) = bytes.get_mut(HEADER) else {
        return false;
    };
    let sum = |header: &[u8]| {
        let bytes = header[..CHECKED].iter();
        let sum = bytes.fold(0xcbf2_9ce4_8422_2325_u64, |sum, byte| {
            (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
        });
        sum.to_le_bytes()
    };
    if sum(header) != header[CHECKED..] {
        return false;
    }
    assert_ne!(header[BOOT_ID.start], 0, "this system tells boots apart");
    header[BOOT_ID].fill(0);
    header[BOOT_ID.start..BOOT_ID.start + 14].copy_from_slice(b"an-earlier-one");
    let sum = sum(header);
    header[CHECKED..].copy_from_slice(&sum);
    std::fs::write(&path, bytes).expect("an image can be written");
    true
}

/// Recovers the file without running anything: a power cut is no job's fault, and each job that was running hears of it.
pub(crate) fn recover(
    dir: &Path,
    durability: Durability,
    journal: &Arc<Journal>,
    counters: &mut Counters,
) -> Vec<String> {
    let client = Client::open_with(dir.join("jobs.db"), durability).expect("it could be opened");
    let before = jobs(&client);
    journal.line("P recover");
    let mut builder = JobQueue::builder(dir.join("jobs.db"))
        .workers(0)
        .durability(durability)
        .retention(Retention::forever())
        .webhooks(deliveries::hooks());
    load::register(&mut builder, journal);
    let queue = match builder.open() {
        Ok(queue) => queue,
        Err(error) => return vec![format!("a queue cannot be opened on it: {error}")],
    };
    let mut problems = Vec::new();
    for before in before {
        let id = before.id;
        let Some(job) = queue.get(id).expect("a job can be read") else {
            problems.push(format!("job {id} is gone by the recovery"));
            continue;
        };
        if job.crash_count != before.crash_count {
            problems.push(format!(
                "S7: job {id} is charged {} crashes, {} before the power cut",
                job.crash_count, before.crash_count
            ));
        }
        if before.status != JobStatus::Running {
            continue;
        }
        counters.add("interrupted by a power cut");
        let running = before.phases.get(before.phases_done as usize);
        let phase = running.map(|phase| phase.name.clone());
        let heard = job.interruption.as_ref();
        let heard = heard.map(|heard| (heard.reason, heard.phase.clone()));
        if job.status != JobStatus::Pending
            || heard != phase.map(|phase| (InterruptionReason::MachineWentDown, phase))
        {
            problems.push(format!(
                "job {id} was running when the machine went down, is {}, and hears {heard:?}",
                job.status
            ));
        }
    }
    problems.extend(queue.check().expect("the file can be checked"));
    problems.extend(
        queue
            .shutdown(PATIENCE)
            .err()
            .map(|error| error.to_string()),
    );
    problems
}

fn jobs(client: &Client) -> Vec<Job> {
    let (mut found, mut filter) = (Vec::new(), ListFilter::new().limit(200));
    loop {
        let page = client.list(&filter).expect("jobs can be listed");
        let read = |id| client.get(id).expect("a job can be read");
        found.extend(page.jobs.iter().filter_map(|job| read(job.id)));
        match page.next {
            Some(next) => filter = ListFilter::new().limit(200).after(next),
            None => return found,
        }
    }
}

//! Commands that run jobs: work, run.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

use serde_json::{Value, json};
#[cfg(feature = "http")]
use stepwell::HttpConfig;
use stepwell::webhook::WebhookConfig;
use stepwell::{
    Client, ErrorKind, Event, EventKind, Job, JobId, JobQueue, JobStatus, JobType, ListFilter,
    Notice, PhaseStatus, Subscription,
};

use crate::args::{RunOptions, WorkOptions};
use crate::group::{GRACE, Groups};
use crate::job_line::{JOB_TYPE, Pipeline};
use crate::output::{Cell, Output, Warnings, count, plain, remark};
use crate::{FAILED, Failure, INTERRUPTED, Result, ask, command};

/// How often `run` and `work --until-idle` look whether they are through, and `work` whether the queue is in order.
const TICK: Duration = Duration::from_millis(50);
const WORK_TICK: Duration = Duration::from_secs(1);
/// A killed process holds its lock until the system has cleaned up after it.
const LOCK_PATIENCE: Duration = Duration::from_secs(2);
/// Jobs that `run` lists at its end. JSON has all of them.
const LISTED_MAX: usize = 20;

/// A queue at work.
struct Worker {
    queue: JobQueue,
    groups: Arc<Groups>,
    signals: Option<Receiver<()>>,
    shutdown_timeout: Duration,
    /// A process beside us has paused the queue, and the user was told.
    told_paused: bool,
}

pub fn work(db: &Path, options: &WorkOptions, out: &mut Output) -> Result<u8> {
    let mut worker = Worker::open(db, &options.options)?;
    remark(&format!("working on {}, stop with Ctrl-C", db.display()));
    let tick = if options.until_idle { TICK } else { WORK_TICK };
    let is_interrupted = loop {
        if worker.is_interrupted(tick)? {
            break true;
        }
        if options.until_idle && worker.is_idle()? {
            break false;
        }
    };
    worker.stop(is_interrupted)?;
    if out.is_json() {
        out.json(&Client::open(db)?.stats()?)?;
    }
    Ok(if is_interrupted && options.until_idle {
        INTERRUPTED
    } else {
        0
    })
}

pub fn run(db: &Path, file: &str, options: &RunOptions, out: &mut Output) -> Result<u8> {
    let jobs = ask::read(file)?;
    let mut worker = Worker::open(db, options)?;
    let mut events = worker.queue.subscribe()?;
    let enqueued = worker.queue.enqueue_all(jobs)?;
    ask::tell_enqueued(&enqueued, out);
    let mut runs = Runs::new(enqueued.iter().map(|enqueued| enqueued.id));
    runs.look(&worker.queue)?;
    let mut is_interrupted = false;
    while !is_interrupted && !runs.left.is_empty() {
        is_interrupted = worker.is_interrupted(Duration::ZERO)?;
        runs.listen(&worker.queue, &mut events)?;
    }
    let results = runs.results(&worker.queue)?;
    worker.stop(is_interrupted)?;
    runs.tell(&results, out)?;
    Ok(
        match runs
            .ended
            .values()
            .all(|(status, _)| *status == JobStatus::Completed)
        {
            _ if is_interrupted => INTERRUPTED,
            true => 0,
            false => FAILED,
        },
    )
}

impl Worker {
    fn open(db: &Path, options: &RunOptions) -> Result<Worker> {
        #[cfg(not(feature = "http"))]
        if let Some(addr) = &options.http {
            let problem =
                format!("--http {addr}: this runner was built without it: add --features http");
            return Err(Failure::usage(problem));
        }
        // Somebody else's logger would do as well.
        if log::set_logger(&Warnings).is_ok() {
            log::set_max_level(log::LevelFilter::Warn);
        }
        let (tx, signals) = channel();
        ctrlc::set_handler(move || {
            // Nobody listens any more when all is done.
            tx.send(()).ok();
        })?;
        let groups = Groups::start()?;
        let open = || {
            let runs_in = groups.clone();
            let hooks = options.allow_private.iter();
            let hooks = hooks.fold(WebhookConfig::new(), WebhookConfig::allow_private);
            let mut builder = JobQueue::builder(db)
                .durability(options.durability.into())
                .webhooks(hooks);
            if let Some(workers) = options.workers {
                builder = builder.workers(workers.into());
            }
            #[cfg(feature = "http")]
            if let Some(addr) = &options.http {
                builder = builder.http(HttpConfig::new(addr));
            }
            builder.register(JobType::planned(
                JOB_TYPE,
                |pipeline: &Pipeline| Ok(pipeline.plan()),
                move |cx| command::run(cx, &runs_in),
            ));
            builder.open()
        };
        let queue = when_free(open)?;
        #[cfg(feature = "http")]
        if let Some(addr) = queue.http_addr() {
            remark(&format!("serving http://{addr}/"));
        }
        Ok(Worker {
            queue,
            groups,
            signals: Some(signals),
            shutdown_timeout: options.shutdown_timeout,
            told_paused: false,
        })
    }

    /// Waits `time` for a signal.
    fn is_interrupted(&mut self, time: Duration) -> Result<bool> {
        if let Some(problem) = self.queue.health().poisoned {
            return Err(Failure::new(problem));
        }
        if self.queue.stats()?.paused != self.told_paused {
            self.told_paused = !self.told_paused;
            remark(if self.told_paused {
                "the queue is paused: resume starts jobs again"
            } else {
                "resumed"
            });
        }
        let signal = match &self.signals {
            Some(signals) => signals.recv_timeout(time),
            None => Err(RecvTimeoutError::Timeout),
        };
        Ok(signal.is_ok())
    }

    /// Whether nothing runs and nothing waits that we could run.
    fn is_idle(&self) -> Result<bool> {
        let stats = self.queue.stats()?;
        if stats.running > 0 {
            return Ok(false);
        }
        let is_paused = stats.paused || stats.paused_types.iter().any(|name| name == JOB_TYPE);
        if stats.pending == 0 || is_paused {
            return Ok(true);
        }
        let ours = ListFilter::new()
            .status(JobStatus::Pending)
            .job_type(JOB_TYPE)
            .limit(1);
        let page = self.queue.list(&ours)?;
        Ok(page.jobs.is_empty() && page.next.is_none())
    }

    /// Ends gracefully; a second signal cuts it short, a third one ends the process.
    fn stop(mut self, is_interrupted: bool) -> Result<()> {
        if is_interrupted {
            remark("stopping, once more to stop at once");
        }
        let (queue, signals) = (self.queue.clone(), self.signals.take());
        let hurry = move || {
            let Some(signals) = signals else { return };
            let mut times = 0;
            while signals.recv().is_ok() {
                times += 1;
                if times > 1 {
                    std::process::exit(INTERRUPTED.into());
                }
                remark("stopping at once");
                let hurried = queue.clone();
                // Without a thread for it the third signal is left.
                std::thread::Builder::new()
                    .spawn(move || hurried.shutdown(Duration::ZERO))
                    .ok();
            }
        };
        // Without a thread for it the timeout is waited for.
        std::thread::Builder::new().spawn(hurry).ok();
        match self.queue.shutdown(self.shutdown_timeout) {
            // That commands had to be ended is what the timeout is for.
            Err(error) if error.kind() != ErrorKind::Timeout => return Err(error.into()),
            Ok(_) | Err(_) => {}
        }
        // What is left after that is the guard's.
        self.groups.wait_empty(GRACE + Duration::from_millis(500));
        Ok(())
    }
}

fn when_free(open: impl Fn() -> stepwell::Result<JobQueue>) -> Result<JobQueue> {
    let started = std::time::Instant::now();
    loop {
        match open() {
            Err(error)
                if error.kind() == ErrorKind::Locked && started.elapsed() < LOCK_PATIENCE =>
            {
                std::thread::sleep(TICK);
            }
            opened => return Ok(opened?),
        }
    }
}

/// The jobs of one `run`.
struct Runs {
    ids: Vec<JobId>,
    left: HashSet<JobId>,
    /// What came of the others. Taken as soon as they are over: the queue forgets what has been over for long, or is one of many.
    ended: BTreeMap<JobId, (JobStatus, Value)>,
}

impl Runs {
    fn new(ids: impl Iterator<Item = JobId>) -> Runs {
        let mut ids: Vec<JobId> = ids.collect();
        let left: HashSet<JobId> = ids.iter().copied().collect();
        // Two lines with one unique key are one job.
        let mut seen = HashSet::new();
        ids.retain(|id| seen.insert(*id));
        Runs {
            ids,
            left,
            ended: BTreeMap::new(),
        }
    }

    /// Asks for the status of each that is left.
    fn look(&mut self, queue: &JobQueue) -> Result<()> {
        for id in self.left.clone() {
            match queue.status(id)? {
                Some(status) if status.is_terminal() => self.end(queue, id, status)?,
                Some(_) => {}
                // Somebody deleted it, and so it was over.
                None => self.end(queue, id, JobStatus::Cancelled)?,
            }
        }
        Ok(())
    }

    /// Takes in events for a while.
    fn listen(&mut self, queue: &JobQueue, events: &mut Subscription) -> Result<()> {
        match events.recv_timeout(TICK) {
            Ok(Notice::Event(event)) => self.note(queue, &event),
            // It was too slow: events have been deleted before it has read them.
            Ok(_) => self.look(queue),
            Err(error) if error.kind() == ErrorKind::Timeout => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn note(&mut self, queue: &JobQueue, event: &Event) -> Result<()> {
        let ends = [
            (EventKind::Completed, JobStatus::Completed),
            (EventKind::Failed, JobStatus::Failed),
            (EventKind::Cancelled, JobStatus::Cancelled),
        ];
        let Some((_, status)) = ends.into_iter().find(|(kind, _)| *kind == event.kind) else {
            return Ok(());
        };
        if self.left.contains(&event.job_id) {
            self.end(queue, event.job_id, status)?;
        }
        Ok(())
    }

    fn end(&mut self, queue: &JobQueue, id: JobId, status: JobStatus) -> Result<()> {
        let came_of_it = queue.get(id)?.and_then(came_of);
        self.left.remove(&id);
        self.ended
            .insert(id, (status, came_of_it.unwrap_or_default()));
        Ok(())
    }

    /// What came of each: the last result, or the error that ended it.
    fn results(&self, queue: &JobQueue) -> Result<Vec<(JobId, JobStatus, Value)>> {
        let mut results = Vec::with_capacity(self.ids.len());
        for id in &self.ids {
            let ended = match self.ended.get(id) {
                Some(ended) => Some(ended.clone()),
                None => queue
                    .get(*id)?
                    .map(|job| (job.status, came_of(job).unwrap_or_default())),
            };
            let (status, came_of_it) = ended.unwrap_or((JobStatus::Cancelled, Value::Null));
            results.push((*id, status, came_of_it));
        }
        Ok(results)
    }

    fn tell(&self, results: &[(JobId, JobStatus, Value)], out: &mut Output) -> Result<()> {
        if out.is_json() {
            return results.iter().try_for_each(|(id, status, result)| {
                let key = if *status == JobStatus::Failed {
                    "error"
                } else {
                    "result"
                };
                out.json(&json!({"id": id, "status": status, key: result}))
            });
        }
        let rows = results.iter().map(|(id, status, result)| {
            let text = if result.is_null() {
                "-".to_owned()
            } else {
                plain(result)
            };
            [Cell::number(id), Cell::Status(*status), Cell::text(text)]
        });
        let rows: Vec<_> = rows.take(LISTED_MAX).collect();
        if !rows.is_empty() {
            out.table(["ID", "STATUS", "RESULT OR ERROR"], &rows);
        }
        if results.len() > LISTED_MAX {
            out.line(&format!(
                "... and {} more: list shows them",
                results.len() - LISTED_MAX
            ));
        }
        let number = |wanted| {
            results
                .iter()
                .filter(|(_, status, _)| *status == wanted)
                .count()
        };
        let mut summary = count(results.len(), "job");
        for status in [
            JobStatus::Completed,
            JobStatus::Failed,
            JobStatus::Cancelled,
        ] {
            summary.push_str(&format!(", {} {status}", number(status)));
        }
        if !self.left.is_empty() {
            summary.push_str(&format!(
                ", {} not over: work goes on with them",
                self.left.len()
            ));
        }
        out.line(&summary);
        Ok(())
    }
}

/// The error of the phase that has failed, or the result of the last one.
fn came_of(mut job: Job) -> Option<Value> {
    let failed = job
        .phases
        .iter_mut()
        .find(|phase| phase.status == PhaseStatus::Failed);
    match failed {
        Some(phase) => phase.error.take().map(Value::from),
        None => job.phases.pop().and_then(|last| last.result),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use stepwell::Phase;

    /// The bug: results were read at the end, when the queue had forgotten all but the newest 10,000 jobs of the run.
    #[test]
    fn what_came_of_a_job_is_known_when_the_queue_has_forgotten_it() {
        const DOUBLE: Phase<u32> = Phase::new("double");
        let dir = tempfile::tempdir().expect("a directory");
        let mut builder = JobQueue::builder(dir.path().join("jobs.db"));
        let jobs =
            builder.register(JobType::<u32>::new("double").phase(DOUBLE, |cx| Ok(2 * *cx.input())));
        let queue = builder.open().expect("a queue");
        let mut events = queue.subscribe().expect("events");
        let ids = [1, 2, 3].map(|number| jobs.enqueue(&number).expect("a job"));
        let mut runs = Runs::new(ids.into_iter());
        while !runs.left.is_empty() {
            runs.listen(&queue, &mut events).expect("an event");
        }
        for id in ids {
            queue.delete(id).expect("deleted");
        }
        let results = runs.results(&queue).expect("results");
        let [one, two, three] = ids;
        let completed = |id, result: u32| (id, JobStatus::Completed, Value::from(result));
        assert_eq!(
            results,
            [completed(one, 2), completed(two, 4), completed(three, 6)]
        );
    }
}

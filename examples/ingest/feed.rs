//! Enqueues what the walk finds, on a thread of its own, while workers are already running.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use stepwell::{
    Enqueued, ErrorKind, JobHandle, JobId, JobQueue, JobStatus, NewJob, RetryFrom, While,
};

use crate::Failure;
use crate::file::FileJob;
use crate::manifest::{Bits, Manifest};
use crate::report::FAILURES_SHOWN;
use crate::walk::Walk;

/// Files in one commit.
const CHUNK: usize = 500;
/// A state of a file is ingested once, for good.
const FOR_GOOD: While = While::For(Duration::from_secs(100 * 365 * 86_400));

/// What the walk has seen.
#[derive(Clone, Debug, Default)]
pub struct Counts {
    pub found: u64,
    pub is_done: bool,
    /// Directories and entries that cannot be read: the first of them, and how many there are.
    pub unreadable: Vec<String>,
    pub unreadable_count: u64,
}

impl Counts {
    pub fn has_failures(&self) -> bool {
        self.unreadable_count > 0
    }
}

pub struct Feed {
    shared: Arc<Shared>,
    thread: JoinHandle<Result<Bits, Failure>>,
}

struct Shared {
    found: AtomicU64,
    is_done: AtomicBool,
    unreadable: Mutex<(Vec<String>, u64)>,
}

impl Feed {
    pub fn start(
        queue: &JobQueue,
        files: JobHandle<FileJob, ()>,
        root: &Path,
        own: HashSet<PathBuf>,
        manifest: Arc<Manifest>,
        stop: &Arc<AtomicBool>,
    ) -> Result<Feed, Failure> {
        let walk = Walk::new(root, own)?;
        let shared = Arc::new(Shared {
            found: AtomicU64::new(0),
            is_done: AtomicBool::new(false),
            unreadable: Mutex::default(),
        });
        let worker = Enqueuer {
            queue: queue.clone(),
            files,
            manifest,
        };
        let (counts, stop) = (shared.clone(), stop.clone());
        let thread = std::thread::Builder::new()
            .name("walk".to_owned())
            .spawn(move || {
                let outcome = feed(&worker, walk, &counts, &stop);
                counts.is_done.store(true, Ordering::SeqCst);
                outcome
            })?;
        Ok(Feed { shared, thread })
    }

    /// The walk is over and everything that it found is in the queue, or it has failed.
    pub fn is_done(&self) -> bool {
        self.shared.is_done.load(Ordering::SeqCst)
    }

    pub fn counts(&self) -> Counts {
        let unreadable = self
            .shared
            .unreadable
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        Counts {
            found: self.shared.found.load(Ordering::SeqCst),
            is_done: self.is_done(),
            unreadable: unreadable.0.clone(),
            unreadable_count: unreadable.1,
        }
    }

    /// What the walk has seen, and the jobs of the files that it has found.
    pub fn join(self) -> Result<(Counts, Bits), Failure> {
        let counts = self.counts();
        let jobs = self.thread.join().map_err(|_| "the walk panicked")??;
        let found = self.shared.found.load(Ordering::SeqCst);
        Ok((Counts { found, ..counts }, jobs))
    }
}

fn feed(
    enqueuer: &Enqueuer,
    walk: Walk,
    shared: &Shared,
    stop: &AtomicBool,
) -> Result<Bits, Failure> {
    let (mut chunk, mut jobs) = (Vec::with_capacity(CHUNK), Bits::default());
    for file in walk {
        if stop.load(Ordering::SeqCst) {
            return Ok(jobs);
        }
        match file {
            Ok(file) => chunk.push(file),
            Err(problem) => {
                let mut unreadable = shared
                    .unreadable
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner);
                if unreadable.0.len() < FAILURES_SHOWN {
                    unreadable.0.push(problem);
                }
                unreadable.1 += 1;
            }
        }
        if chunk.len() == CHUNK {
            enqueuer.enqueue(&chunk, &mut jobs)?;
            shared.found.fetch_add(CHUNK as u64, Ordering::SeqCst);
            chunk.clear();
        }
    }
    enqueuer.enqueue(&chunk, &mut jobs)?;
    shared.found.fetch_add(chunk.len() as u64, Ordering::SeqCst);
    Ok(jobs)
}

struct Enqueuer {
    queue: JobQueue,
    files: JobHandle<FileJob, ()>,
    manifest: Arc<Manifest>,
}

impl Enqueuer {
    fn enqueue(&self, files: &[FileJob], found: &mut Bits) -> Result<(), Failure> {
        let jobs = files.iter().map(|file| self.job(file, file.key()));
        let enqueued = self
            .queue
            .enqueue_all(jobs.collect::<stepwell::Result<_>>()?)?;
        for (file, enqueued) in files.iter().zip(enqueued) {
            found.insert(self.settle(file, enqueued)?);
        }
        Ok(())
    }

    fn job(&self, file: &FileJob, key: String) -> stepwell::Result<NewJob> {
        Ok(self.files.job(file)?.unique_key(key, FOR_GOOD))
    }

    /// When this state of the file has a job from before: is it done, under way, to be tried again, or done and its line lost?
    /// Answers the job that tells of the file from now on.
    fn settle(&self, file: &FileJob, mut there: Enqueued) -> stepwell::Result<JobId> {
        while !there.is_new && !self.manifest.has(there.id) {
            match self.queue.status(there.id)? {
                Some(JobStatus::Pending | JobStatus::Running) => break,
                Some(JobStatus::Failed | JobStatus::Cancelled) => {
                    match self.queue.retry(there.id, RetryFrom::Failed) {
                        // Somebody else was faster.
                        Err(error) if error.kind() == ErrorKind::Conflict => {}
                        retried => retried?,
                    }
                    break;
                }
                // It may have published between our two looks.
                Some(JobStatus::Completed) | None if self.manifest.has(there.id) => break,
                Some(JobStatus::Completed) | None => {
                    let key = format!("{}-{}", file.key(), there.id);
                    there = self.files.enqueue_job(self.job(file, key)?)?;
                }
            }
        }
        Ok(there.id)
    }
}

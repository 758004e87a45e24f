//! Reads every file of a directory tree, and writes a manifest and a `SHA256SUMS` of it: `cargo run --release --example ingest
//! -- [DIR]`, by default of the current directory. Ctrl-C stops it, and running it again goes on, also after kill -9 or a power
//! cut.
//!
//! # What it makes
//!
//! Everything lies in `DIR/.stepwell` (`--out`, `--db`): `manifest.jsonl` has one line for each regular file, `SHA256SUMS` is
//! what `sha256sum -c` reads from within `DIR`, `jobs.db` is the queue. Only that directory is left out, with symbolic links and
//! special files; hidden files, `.git` and `target` are files like any other. Names are bytes: one that is not UTF-8 has a
//! `path_hex` beside its `path`.
//!
//! # How
//!
//! One job is one *state* of one file: path, size and time of modification, which together are its unique key. It has four
//! phases ([`phases`]), each with a result that is on disk before the next begins: `inspect`, `digest`, `analyse`, `publish`. The
//! walk ([`walk`]) runs beside the workers and enqueues 500 files a commit ([`feed`]). When all jobs are over, a last one puts
//! the manifest in order and writes `SHA256SUMS` ([`sums`]).
//!
//! **A repeated publish writes nothing twice.** A phase is run *at least once*: when the process dies between the append and the
//! commit that says so, it runs again. So each line carries its job's id, and the program knows of every id whether it has a line:
//! one bit a job, 125 KB for a million, read from the manifest at start-up. Looking at the bit, appending and setting it happen
//! under one lock. A line that was torn by the death of the process has no end, or is no JSON: it is cut off at start-up, its
//! job has no bit, and publishes again. See [`manifest`].
//!
//! **Each path is there once, in its newest state.** A changed file has another key, so another job, and its line comes after
//! the old one; the last job drops the old line, and the lines of files that are gone. A state without a line comes back when the
//! walk finds it (a file that was moved away and back, a manifest that somebody deleted, a line lost in a power cut): the key says
//! "done", the bit says "no line", and so the file is enqueued under a second key. The manifest, not the queue, is the truth;
//! that is also why the queue may forget its oldest jobs.
//!
//! **Failures stop nothing.** A file that cannot be read fails its job, is listed at the end, makes the exit code 1, and is tried
//! again by the next run that finds it. A file that changes while it is read has failed too: half of each is no state. A job whose
//! file is gone, or was found in a younger state, is no failure of this run ([`tally`]).

#![allow(
    clippy::disallowed_methods,
    reason = "a program of its own: it starts threads and reads the clock"
)]
#![allow(unreachable_pub, reason = "nothing is public in a program")]

mod feed;
mod file;
mod manifest;
mod phases;
mod report;
mod sort;
mod sums;
mod tally;
mod walk;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use clap::Parser;
use stepwell::{Builder, Client, ErrorKind, JobHandle, JobId, JobQueue, Keep, Notice};
use stepwell::{Retention, Seq, Subscription};

use feed::Feed;
use file::FileJob;
use manifest::Manifest;
use phases::Ingest;
use report::Reporter;
use sums::Sums;
use tally::Tally;

/// How long jobs may take to reach the end of their phase after Ctrl-C. A digest that takes longer goes on where it saved last.
const STOP_TIMEOUT: Duration = Duration::from_secs(2);
/// How often the progress is shown and Ctrl-C is looked for.
const TICK: Duration = Duration::from_millis(20);
/// A process that was killed holds its locks until the system has cleaned up after it.
const LOCK_TIMEOUT: Duration = Duration::from_secs(2);
const INTERRUPTED: u8 = 130;

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Makes a manifest and a SHA256SUMS of a directory tree. Interrupt it whenever you like, and run it again to go on.
#[derive(Parser)]
#[command(
    name = "ingest",
    after_help = "Exit codes: 0 all done, 1 some files failed, 2 bad usage, 130 interrupted."
)]
struct Args {
    /// The directory to read
    #[arg(default_value = ".")]
    dir: PathBuf,
    /// Where manifest.jsonl and SHA256SUMS go [default: DIR/.stepwell]
    #[arg(long)]
    out: Option<PathBuf>,
    /// The queue's file; it belongs to this DIR and OUT [default: OUT/jobs.db]
    #[arg(long)]
    db: Option<PathBuf>,
    /// Files that are read at the same time [default: the number of processors]
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=256))]
    workers: Option<u16>,
}

/// Where everything lies. All of it absolute and free of symbolic links.
struct Places {
    root: PathBuf,
    out: PathBuf,
    db: PathBuf,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let reporter = Reporter::new();
    let places = match Places::find(&args) {
        Ok(places) => places,
        Err(error) => {
            reporter.line(&format!("error: {error}"));
            return ExitCode::from(2);
        }
    };
    match run(&args, &places, &reporter) {
        Ok(code) => code,
        Err(error) => {
            reporter.finish();
            reporter.line(&format!("error: {error}"));
            ExitCode::FAILURE
        }
    }
}

impl Places {
    fn find(args: &Args) -> Result<Places, Failure> {
        let told = |path: &Path, error| format!("{}: {error}", path.display());
        let root = args
            .dir
            .canonicalize()
            .map_err(|error| told(&args.dir, error))?;
        if !root.is_dir() {
            return Err(format!("{}: not a directory", root.display()).into());
        }
        let out = args
            .out
            .clone()
            .unwrap_or_else(|| root.join(walk::STATE_DIR));
        std::fs::create_dir_all(&out).map_err(|error| {
            format!(
                "{}: {error}: choose another place with --out",
                out.display()
            )
        })?;
        let out = out.canonicalize().map_err(|error| told(&out, error))?;
        // Before anything is written: not even a queue is made beside what is not ours.
        manifest::refuse_foreign(&out)?;
        if out == root.join(walk::STATE_DIR) {
            // So that a repository does not take it in. Nothing depends on it.
            std::fs::write(out.join(".gitignore"), "*\n").ok();
        }
        let db = match &args.db {
            None => out.join("jobs.db"),
            Some(db) => {
                let db = std::path::absolute(db)?;
                let name = db.file_name().ok_or("--db: not the name of a file")?;
                let dir = db.parent().unwrap_or(Path::new("/"));
                dir.canonicalize()
                    .map_err(|error| told(dir, error))?
                    .join(name)
            }
        };
        Ok(Places { root, out, db })
    }
}

/// The whole of it: opens what is there, feeds and watches the queue, lets the last job run, tells how it went.
fn run(args: &Args, places: &Places, reporter: &Reporter) -> Result<ExitCode, Failure> {
    let stop = stop_on_signals()?;
    let (manifest, seq) = open_manifest(places, reporter)?;
    let ingest = Arc::new(Ingest::new(
        &places.root,
        manifest.clone(),
        reporter.clone(),
    ));
    let mut builder = JobQueue::builder(&places.db).retention(retention());
    if let Some(workers) = args.workers {
        builder = builder.workers(workers.into());
    }
    let (files, last) = register(&mut builder, &ingest);
    let queue = builder.open()?;
    let events = queue.subscribe_after(seq);
    reporter.line(&format!(
        "reading {}, writing {}",
        places.root.display(),
        places.out.display()
    ));

    let feed = Feed::start(
        &queue,
        files,
        &places.root,
        walk::own_files(places),
        manifest,
        &stop,
    )?;
    let mut watch = Watch {
        queue: &queue,
        events,
        feed: &feed,
        reporter,
        stop: &stop,
        tally: Tally::new(),
    };
    let mut sums = None;
    if watch.files()? {
        sums = watch.last_job(&last)?;
    }
    let tally = watch.end()?;
    let (walked, found) = feed.join()?;
    let summary = match sums {
        Some(sums) => Some((tally.outcome(&found, &queue, &ingest)?, sums)),
        None => None,
    };
    // Its error says that handlers had to be told to stop, which is what we want of them.
    queue.shutdown(STOP_TIMEOUT).ok();
    reporter.finish();
    let Some((outcome, sums)) = summary else {
        reporter.line(&format!(
            "stopped with {} files in the manifest. Run it again to go on.",
            ingest.manifest.count()
        ));
        return Ok(ExitCode::from(INTERRUPTED));
    };
    report::summary(places, &outcome, &walked, &sums);
    Ok(if outcome.failed > 0 || walked.has_failures() {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

/// Opens the manifest, and looks where the log of the queue ends, before any worker runs.
fn open_manifest(places: &Places, reporter: &Reporter) -> Result<(Arc<Manifest>, Seq), Failure> {
    let client = Client::open(&places.db)?;
    let asked = Instant::now();
    while let Some(pid) = client.owner_pid() {
        if asked.elapsed() > LOCK_TIMEOUT {
            return Err(format!("process {pid} is running on {}", places.db.display()).into());
        }
        std::thread::sleep(TICK);
    }
    let seq = client.stats()?.head_seq;
    let manifest = Manifest::open(&places.out, |line| match client.get(line.job)? {
        Some(job) => {
            let file = serde_json::from_value::<FileJob>(job.input);
            Ok(file.is_ok_and(|file| file.name == line.name))
        }
        None => was_given_out(&client, line.job),
    })?;
    for note in manifest.notes() {
        reporter.line(note);
    }
    Ok((Arc::new(manifest), seq))
}

/// Whether a job that is not in the queue was there before: whoever has ingested many files since, and lost those, has a manifest
/// whose newest job the queue has forgotten. No id is used twice, so that of a new job is above all that were given out.
fn was_given_out(client: &Client, id: JobId) -> Result<bool, Failure> {
    // Should we die before it is deleted: it puts the manifest in order, which harms nothing.
    let new = client.enqueue(sums::LAST_JOB, &())?;
    client.cancel(new).map(drop)?;
    client.delete(new)?;
    Ok(id < new)
}

/// The queue forgets the oldest jobs, since the manifest remembers. The failed ones are kept for whoever wants to look.
fn retention() -> Retention {
    Retention::default()
        .completed(Keep::newest(10_000))
        .failed(Keep::FOREVER)
        .events(Keep::newest(1_000_000))
}

fn register(
    builder: &mut Builder,
    ingest: &Arc<Ingest>,
) -> (JobHandle<FileJob, ()>, JobHandle<(), Sums>) {
    (
        builder.register(phases::file_job(ingest)),
        builder.register(sums::last_job(ingest)),
    )
}

/// The first signal sets the flag, the second ends the process at once.
fn stop_on_signals() -> Result<Arc<AtomicBool>, Failure> {
    let stop = Arc::new(AtomicBool::new(false));
    let flag = stop.clone();
    ctrlc::set_handler(move || {
        if flag.swap(true, Ordering::SeqCst) {
            std::process::exit(INTERRUPTED.into());
        }
    })?;
    Ok(stop)
}

/// Follows the queue's events, and shows how far it is.
struct Watch<'a> {
    queue: &'a JobQueue,
    events: Subscription,
    feed: &'a Feed,
    reporter: &'a Reporter,
    stop: &'a AtomicBool,
    tally: Tally,
}

impl Watch<'_> {
    /// True once all files are through; false when the user wants to stop before that.
    fn files(&mut self) -> Result<bool, Failure> {
        while self.may_go_on()? {
            let is_fed = self.feed.is_done();
            let stats = self.queue.stats()?;
            if is_fed && stats.pending + stats.running == 0 {
                return Ok(true);
            }
            let problem = self.queue.health().store_failure;
            self.reporter
                .progress(&self.feed.counts(), &stats, &self.tally, problem.as_deref());
            self.listen(TICK)?;
        }
        Ok(false)
    }

    /// The result of the last job; none when the user wants to stop before that.
    fn last_job(&mut self, last: &JobHandle<(), Sums>) -> Result<Option<Sums>, Failure> {
        let id = last.enqueue(&())?;
        while self.may_go_on()? {
            match last.wait(id, TICK) {
                Ok(sums) => {
                    // A run every minute must not push the files' jobs out of what the queue keeps.
                    self.queue.delete(id)?;
                    return Ok(Some(sums));
                }
                Err(error) if error.kind() == ErrorKind::Timeout => self.reporter.finishing(),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(None)
    }

    fn may_go_on(&self) -> Result<bool, Failure> {
        let is_stopped = self.stop.load(Ordering::SeqCst);
        if is_stopped {
            self.reporter
                .line("stopping: Ctrl-C once more to stop at once");
        }
        match self.queue.health().poisoned {
            Some(problem) => Err(problem.into()),
            None => Ok(!is_stopped),
        }
    }

    /// Takes in events for `time`.
    fn listen(&mut self, time: Duration) -> Result<(), Failure> {
        let started = Instant::now();
        while let Some(left) = time.checked_sub(started.elapsed()) {
            match self.events.recv_timeout(left) {
                Ok(Notice::Event(event)) => self.tally.note(&event),
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::Timeout => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Everything that has happened so far.
    fn end(mut self) -> Result<Tally, Failure> {
        loop {
            match self.events.recv_timeout(Duration::ZERO) {
                Ok(Notice::Event(event)) => self.tally.note(&event),
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::Timeout => return Ok(self.tally),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

//! Kill -9 at a random moment of a mixed load, again and again on the same file.
//!
//! What it would catch: a job that was acknowledged and is gone; a phase that starts again although its completion was durable;
//! two handlers of one job at a time; a result that a later phase does not see as it was saved; a cancelled job that
//! goes on; a change without its event; a file that breaks an invariant; a queue that does not come up again or leaves a job
//! lying.
//!
//! A round starts a process (this binary again) that opens the queue and works: 8 workers, 4 callers; in half of the rounds a
//! client in this process asks too. After a random time it is killed; in 30 % of the rounds within the first
//! milliseconds, while it opens the file or recovers. Then this process looks at the file. Every 25 rounds the queue is opened
//! here, drained, and all that was written down is compared with it: see `history`. Then the next file begins.
//!
//! `STEPWELL_KILL_ROUNDS` sets the rounds (default 300), `STEPWELL_KILL_SEED` the seed, which is printed. A seed gives the same
//! load and the same moments, but threads are not deterministic: a failure does not always come again.
#![allow(
    clippy::wildcard_enum_match_arm,
    clippy::too_many_lines,
    reason = "the load and the checker are long lists of cases"
)]
#![allow(
    clippy::disallowed_methods,
    clippy::print_stdout,
    reason = "a test that kills by the clock and reports its figures"
)]

mod counters;
mod history;
mod journal;
mod load;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::park_timeout;
use std::time::{Duration, Instant};

use stepwell::{Client, Durability, JobId, JobStatus, ListFilter};

use counters::Counters;
use history::History;
use journal::{Journal, Random};
use load::Caller;

const CHILD: &str = "STEPWELL_KILL_CHILD";
const ROUNDS: &str = "STEPWELL_KILL_ROUNDS";
const SEED: &str = "STEPWELL_KILL_SEED";
const ROUNDS_DEFAULT: u64 = 300;
const ROUNDS_OF_A_FILE: u64 = 25;
/// What the other process says before it opens the queue.
const UP: &str = "up";
const CALLERS: u64 = 4;
/// Jobs that one caller adds in a round.
const JOBS_MAX: u64 = 12;
/// Nothing in the load takes longer than 200 ms.
const DRAIN_MAX: Duration = Duration::from_secs(60);

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// For exactly `duration`: a thread may be woken early.
fn wait(duration: Duration) {
    let until = Instant::now() + duration;
    while let Some(left) = until.checked_duration_since(Instant::now()) {
        park_timeout(left);
    }
}

/// Handlers panic on purpose: only a panic of the test itself is shown.
fn silence_handlers() {
    let shown = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        let is_worker = std::thread::current()
            .name()
            .is_some_and(|name| name.starts_with("stepwell-"));
        if !is_worker {
            shown(info);
        }
    }));
}

#[test]
fn no_kill_loses_a_job_or_repeats_what_was_done() {
    if std::env::var(CHILD).is_ok() {
        return;
    }
    let rounds = number(ROUNDS).unwrap_or(ROUNDS_DEFAULT);
    let clock = stepwell::Timestamp::now().as_millis().unsigned_abs();
    let seed = number(SEED).unwrap_or(clock % 1_000_000);
    println!("{SEED}={seed} {ROUNDS}={rounds}");
    silence_handlers();
    let (started, mut counters) = (Instant::now(), Counters::default());
    let mut first = 0;
    while first < rounds {
        let end = (first + ROUNDS_OF_A_FILE).min(rounds);
        let dir = tempfile::tempdir().expect("a directory can be made");
        let problems = one_file(dir.path(), first..end, seed, &mut counters);
        if !problems.is_empty() {
            let shown = problems.iter().take(40).cloned().collect::<Vec<_>>();
            panic!(
                "{SEED}={seed}, rounds {first} to {end}, kept in {}: {} problems\n{}",
                dir.keep().display(),
                problems.len(),
                shown.join("\n")
            );
        }
        first = end;
    }
    println!(
        "{rounds} rounds in {:.1} s: {counters}",
        started.elapsed().as_secs_f64()
    );
    let never = counters.never();
    assert!(
        rounds < ROUNDS_DEFAULT || never.is_empty(),
        "{rounds} rounds never reached: {}",
        never.join(", ")
    );
}

/// Some rounds on one file, a drain, and the comparison. Answers what was wrong.
fn one_file(
    dir: &Path,
    rounds: std::ops::Range<u64>,
    seed: u64,
    counters: &mut Counters,
) -> Vec<String> {
    let journal = Arc::new(Journal::open(&dir.join("journal")));
    let mut watcher = Watcher::default();
    let mut problems = Vec::new();
    let few = rounds.start / ROUNDS_OF_A_FILE % 2 == 1;
    for round in rounds {
        let mut random = Random::new(seed, round << 8);
        one_round(dir, round, seed, few, &journal, &mut random);
        journal.line(&format!("K {round}"));
        counters.add("rounds");
        let client = Client::open_with(dir.join("jobs.db"), durability(round));
        let client = client.expect("a client can open what a killed process left");
        watcher.look(&client, &journal);
        let broken = client.check().expect("the file can be checked");
        problems.extend(broken.iter().map(|line| format!("round {round}: {line}")));
        if !problems.is_empty() {
            return problems;
        }
    }
    journal.line("P drain");
    let queue =
        load::open(dir, Durability::Normal, &journal, few).expect("the queue can be opened");
    journal.line("O drain");
    problems.extend(queue.check().expect("the file can be checked"));
    let until = Instant::now() + DRAIN_MAX;
    loop {
        let stats = queue.stats().expect("the queue can be read");
        if stats.pending + stats.running == 0 {
            break;
        }
        if Instant::now() > until {
            problems.push(format!("jobs are left after {DRAIN_MAX:?}: {stats:?}"));
            for status in [JobStatus::Pending, JobStatus::Running] {
                let page = queue
                    .list(&ListFilter::new().status(status))
                    .expect("jobs can be listed");
                let text =
                    |job: &stepwell::JobSummary| format!("{job:?} {:?}", queue.explain(job.id));
                problems.extend(page.jobs.iter().take(5).map(text));
            }
            break;
        }
        park_timeout(Duration::from_millis(2));
    }
    // Handlers that were cut off may still be inside.
    let ended = queue.shutdown(Duration::from_secs(5));
    problems.extend(ended.err().map(|error| error.to_string()));
    let client = Client::open(dir.join("jobs.db")).expect("the file can be opened");
    problems.extend(client.check().expect("the file can be checked"));
    let history = History::read(&dir.join("journal"), counters);
    problems.extend(history.compare(&client, counters));
    problems
}

fn durability(round: u64) -> Durability {
    if round.is_multiple_of(2) {
        Durability::Full
    } else {
        Durability::Normal
    }
}

/// Starts a process, lets it work, kills it.
fn one_round(
    dir: &Path,
    round: u64,
    seed: u64,
    few: bool,
    journal: &Arc<Journal>,
    random: &mut Random,
) {
    let is_early = random.is(30);
    let micros = if is_early {
        random.below(4000)
    } else {
        5000 + random.below(115_000)
    };
    let has_client = random.is(50);
    let stop = AtomicBool::new(false);
    let known = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        // Opened before and closed after the kill in half of the rounds: then nobody has to rebuild the index of the log.
        let client = has_client.then(|| Client::open_with(dir.join("jobs.db"), durability(round)));
        let client = client.map(|client| Arc::new(client.expect("a client can be opened")));
        let mut process = start(dir, round, seed, few);
        if let Some(client) = client.clone() {
            let (stop, known, journal) = (&stop, &known, journal.clone());
            scope.spawn(move || {
                let name = format!("c{round}");
                let random = Random::new(seed, round << 8 | 99);
                Caller {
                    name,
                    journal: &journal,
                    door: &*client,
                    random,
                    known,
                    stop,
                }
                .run(JOBS_MAX);
            });
        }
        let said = BufReader::new(process.stdout.take().expect("it is a pipe"));
        if !said.lines().map_while(Result::ok).any(|line| line == UP) {
            stop.store(true, Ordering::Relaxed);
            let error = std::fs::read_to_string(dir.join("stderr")).unwrap_or_default();
            panic!("round {round}: the process did not come up: {error}");
        }
        wait(Duration::from_micros(micros));
        process.kill().expect("it can be killed");
        let status = process.wait().expect("it can be waited for");
        stop.store(true, Ordering::Relaxed);
        if status.code().is_some() {
            let error = std::fs::read_to_string(dir.join("stderr")).unwrap_or_default();
            panic!("round {round}: the process ended by itself ({status}): {error}");
        }
    });
}

fn start(dir: &Path, round: u64, seed: u64, few: bool) -> Child {
    let own: PathBuf = std::env::current_exe().expect("this program has a path");
    let errors = std::fs::File::create(dir.join("stderr")).expect("a file can be made");
    Command::new(own)
        .args([
            "--exact",
            "the_process_that_is_killed",
            "--nocapture",
            "--quiet",
        ])
        .env(
            CHILD,
            format!("{round} {seed} {} {}", u8::from(few), dir.display()),
        )
        .env("RUST_BACKTRACE", "0")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(errors)
        .spawn()
        .expect("a process can be started")
}

/// What the file said when it was looked at last, of the jobs that were not over.
#[derive(Default)]
struct Watcher {
    live: BTreeMap<JobId, (JobStatus, u32)>,
    newest: Option<JobId>,
}

impl Watcher {
    /// Writes down what is durable: no later process may do it again.
    fn look(&mut self, client: &Client, journal: &Journal) {
        let oldest = self.live.keys().next().copied().or(self.newest);
        let mut filter = ListFilter::new().limit(200);
        let mut seen = BTreeMap::new();
        loop {
            let page = client.list(&filter).expect("jobs can be listed");
            let is_enough = page.jobs.last().is_none_or(|job| Some(job.id) < oldest);
            for job in page.jobs {
                let known = self.newest.is_some_and(|newest| job.id <= newest);
                if !known || self.live.contains_key(&job.id) {
                    seen.insert(job.id, (job.status, job.phases_done));
                }
            }
            match page.next.filter(|_| !is_enough) {
                Some(next) => filter = ListFilter::new().limit(200).after(next),
                None => break,
            }
        }
        for (id, (status, done)) in &seen {
            if self.live.get(id) != Some(&(*status, *done)) {
                journal.line(&format!("D {id} {status} {done}"));
            }
        }
        self.newest = seen.keys().next_back().copied().max(self.newest);
        // Failed and cancelled ones may be tried again.
        seen.retain(|_, (status, _)| *status != JobStatus::Completed);
        self.live = seen;
    }
}

/// The other process. Returns at once when it is run as a test.
#[test]
fn the_process_that_is_killed() {
    let Ok(told) = std::env::var(CHILD) else {
        return;
    };
    let mut told = told.splitn(4, ' ');
    let mut next = || told.next().expect("four words");
    let (round, seed): (u64, u64) = (
        next().parse().expect("a number"),
        next().parse().expect("a number"),
    );
    let (few, dir) = (next() == "1", Path::new(next()));
    let journal = Arc::new(Journal::open(&dir.join("journal")));
    journal.line(&format!("P {round}"));
    // The other side counts from this line.
    println!("{UP}");
    let queue = match load::open(dir, durability(round), &journal, few) {
        Ok(queue) => queue,
        Err(error) => {
            journal.line(&format!("X open {error}"));
            loop {
                park_timeout(DRAIN_MAX);
            }
        }
    };
    journal.line(&format!("O {round}"));
    let mut random = Random::new(seed, round << 8 | 1);
    if random.is(10) {
        match queue.check() {
            Ok(broken) => broken
                .iter()
                .for_each(|line| journal.line(&format!("X check {line}"))),
            Err(error) => journal.line(&format!("X check {error}")),
        }
    }
    let known: Vec<JobId> = queue
        .list(&ListFilter::new().limit(30))
        .map(|page| page.jobs.iter().map(|job| job.id).rev().collect())
        .unwrap_or_default();
    let (known, stop) = (Mutex::new(known), AtomicBool::new(false));
    std::thread::scope(|scope| {
        for caller in 0..CALLERS {
            let (journal, queue, known, stop) = (&*journal, &queue, &known, &stop);
            scope.spawn(move || {
                let (name, random) = (
                    format!("r{round}t{caller}"),
                    Random::new(seed, (round << 8) | (10 + caller)),
                );
                Caller {
                    name,
                    journal,
                    door: queue,
                    random,
                    known,
                    stop,
                }
                .run(JOBS_MAX);
            });
        }
        // Some rounds are killed in the middle of a shutdown, or after it.
        if random.is(15) {
            wait(Duration::from_millis(random.below(60)));
            journal.line(&format!("H {round}"));
            queue.shutdown(Duration::from_millis(random.below(20))).ok();
            journal.line(&format!("h {round}"));
        }
        loop {
            park_timeout(DRAIN_MAX);
        }
    });
}

//! Rounds of kills on one file: the process that is killed, and the one that kills and looks.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread::park_timeout;
use std::time::{Duration, Instant};

use stepwell::{
    Client, DeliveryQuery, DeliveryStatus, Durability, JobId, JobQueue, JobStatus, ListFilter,
};

use crate::counters::Counters;
use crate::history::History;
use crate::journal::{Journal, Random};
use crate::load::hooks::Told;
use crate::load::{self, Caller};

#[path = "receiver.rs"]
mod receiver;

use receiver::Receiver;

pub(crate) const CHILD: &str = "STEPWELL_KILL_CHILD";
pub(crate) const ROUNDS: &str = "STEPWELL_KILL_ROUNDS";
pub(crate) const SEED: &str = "STEPWELL_KILL_SEED";
pub(crate) const ROUNDS_DEFAULT: u64 = 300;
pub(crate) const ROUNDS_OF_A_FILE: u64 = 25;
/// Paths that are seldom taken. A long run must have taken each of them.
pub(crate) const RARE: [&str; 28] = [
    "acknowledged",
    "asked, never answered, and stored",
    "asked, never answered, and not stored",
    "killed inside a handler",
    "killed between a handler's return and its commit",
    "killed before the queue was open",
    "killed with the lock, before the recovery was on disk",
    "killed between the recovery and the open queue",
    "killed in a shutdown",
    "interruption told to a job",
    "crash limit reached",
    "cancelled at a phase boundary",
    "cancelled while pending",
    "cancel lost to completion",
    "late result fenced",
    "retry lost to another",
    "retried by hand, resuming",
    "retried by hand, from the start",
    "unique key kept a job out",
    "checkpoint resumed",
    "deleted",
    "accepted, not recorded before a kill, and sent again",
    "delivery given up",
    "callback panicked",
    "heard after another callback had panicked",
    "delivery refused",
    "delivery ended after its job was deleted by hand",
    "retention met a live delivery",
];
/// What the other process says before it opens the queue.
const UP: &str = "up";
const CALLERS: u64 = 4;
/// Jobs that one caller adds in a round.
const JOBS_MAX: u64 = 12;
/// Nothing in the load takes longer than 200 ms.
const DRAIN_MAX: Duration = Duration::from_secs(60);

pub(crate) fn number(name: &str) -> Option<u64> {
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
pub(crate) fn silence_handlers() {
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

/// What a process is told.
struct Place<'a> {
    dir: &'a Path,
    round: u64,
    seed: u64,
    /// Few jobs are kept.
    few: bool,
    /// Of the receiver.
    port: u16,
}

/// Some rounds on one file, a drain, and the comparison. Answers what was wrong.
pub(crate) fn one_file(
    dir: &Path,
    rounds: std::ops::Range<u64>,
    seed: u64,
    counters: &mut Counters,
) -> Vec<String> {
    let journal = Arc::new(Journal::open(&dir.join("journal")));
    let receiver = Receiver::start(journal.clone(), seed ^ rounds.start);
    let mut watcher = Watcher::default();
    let mut problems = Vec::new();
    let few = rounds.start / ROUNDS_OF_A_FILE % 2 == 1;
    for round in rounds {
        let mut random = Random::new(seed, round << 8);
        let place = Place {
            dir,
            round,
            seed,
            few,
            port: receiver.port(),
        };
        let pid = one_round(&place, &journal, &mut random);
        receiver.settle();
        let lock = if had_lock(dir, pid) { "locked" } else { "-" };
        journal.line(&format!("K {round} {lock}"));
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
    problems.extend(drain(dir, &journal, few, counters));
    problems
}

/// Lets everything that is left in a file end, and compares the file with all that was written down.
pub(crate) fn drain(
    dir: &Path,
    journal: &Arc<Journal>,
    few: bool,
    counters: &mut Counters,
) -> Vec<String> {
    let mut problems = Vec::new();
    journal.line("P drain");
    let queue = load::open(dir, Durability::Normal, journal, few).expect("the queue can be opened");
    journal.line("O drain");
    problems.extend(queue.check().expect("the file can be checked"));
    // A process may have ended between a pause and its end.
    queue.resume().expect("the queue can be resumed");
    let until = Instant::now() + DRAIN_MAX;
    loop {
        let stats = queue.stats().expect("the queue can be read");
        if stats.pending + stats.running == 0 && !has_deliveries(&queue) {
            break;
        }
        if Instant::now() > until {
            problems.push(format!(
                "jobs or deliveries are left after {DRAIN_MAX:?}: {stats:?}"
            ));
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

/// Whether any is pending.
fn has_deliveries(queue: &JobQueue) -> bool {
    let pending = DeliveryQuery::new().status(DeliveryStatus::Pending);
    let page = queue.deliveries(&pending.limit(1));
    let page = page.expect("deliveries can be listed");
    !page.deliveries.is_empty() || page.next.is_some()
}

fn durability(round: u64) -> Durability {
    if round.is_multiple_of(2) {
        Durability::Full
    } else {
        Durability::Normal
    }
}

/// Whether this process was the last to get the lock of the file: whoever gets it writes its id there.
fn had_lock(dir: &Path, pid: u32) -> bool {
    let owner = std::fs::read(dir.join("jobs.db-owner")).unwrap_or_default();
    let holder = owner.split(|byte| *byte == b' ').next();
    holder == Some(pid.to_string().as_bytes())
}

/// Starts a process, lets it work, kills it. Answers its id.
fn one_round(place: &Place<'_>, journal: &Arc<Journal>, random: &mut Random) -> u32 {
    let Place {
        dir,
        round,
        seed,
        port,
        ..
    } = *place;
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
        let mut process = start(place);
        if let Some(client) = client.clone() {
            let (stop, known, journal) = (&stop, &known, journal.clone());
            scope.spawn(move || {
                let name = format!("c{round}");
                let random = Random::new(seed, round << 8 | 99);
                let door = Told {
                    door: &*client,
                    port,
                };
                Caller {
                    name,
                    journal: &journal,
                    door: &door,
                    random,
                    known,
                    stop,
                }
                .run(JOBS_MAX);
            });
        }
        if !comes_up(&mut process) {
            stop.store(true, Ordering::Relaxed);
            process.kill().expect("it can be killed");
            process.wait().expect("it can be waited for");
            let error = std::fs::read_to_string(dir.join("stderr")).unwrap_or_default();
            panic!("round {round}: the process did not come up within {DRAIN_MAX:?}: {error}");
        }
        wait(Duration::from_micros(micros));
        process.kill().expect("it can be killed");
        let status = process.wait().expect("it can be waited for");
        stop.store(true, Ordering::Relaxed);
        if status.code().is_some() {
            let error = std::fs::read_to_string(dir.join("stderr")).unwrap_or_default();
            panic!("round {round}: the process ended by itself ({status}): {error}");
        }
        process.id()
    })
}

/// Waits until the process has said that it opens the queue. False when it ends before, or says nothing in time.
fn comes_up(process: &mut Child) -> bool {
    let said = BufReader::new(process.stdout.take().expect("it is a pipe"));
    let (tx, is_up) = mpsc::channel();
    // A pipe cannot be read with a limit. This ends with the process.
    std::thread::spawn(move || {
        let is_up = said.lines().map_while(Result::ok).any(|line| line == UP);
        tx.send(is_up).ok();
    });
    is_up.recv_timeout(DRAIN_MAX).unwrap_or(false)
}

fn start(place: &Place<'_>) -> Child {
    let Place {
        dir,
        round,
        seed,
        few,
        port,
    } = place;
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
            format!("{round} {seed} {} {port} {}", u8::from(*few), dir.display()),
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
pub(crate) struct Watcher {
    live: BTreeMap<JobId, (JobStatus, u32)>,
    newest: Option<JobId>,
}

impl Watcher {
    /// Writes down what is durable: no later process may do it again.
    pub(crate) fn look(&mut self, client: &Client, journal: &Journal) {
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
        let stats = client.stats().expect("the file can be read");
        journal.line(&format!("M {} {}", stats.head_seq, stats.running));
        deliveries(client, journal);
        self.newest = seen.keys().next_back().copied().max(self.newest);
        // Failed and cancelled ones may be tried again.
        seen.retain(|_, (status, _)| *status != JobStatus::Completed);
        self.live = seen;
    }
}

/// Writes down the newest delivery and those that are not over, if there are any.
fn deliveries(client: &Client, journal: &Journal) {
    let list = |query: &DeliveryQuery| client.deliveries(query).expect("deliveries can be listed");
    let newest = list(&DeliveryQuery::new().limit(1));
    let Some(newest) = newest.deliveries.first() else {
        return;
    };
    let mut line = format!("m {}", newest.id);
    let mut query = DeliveryQuery::new()
        .status(DeliveryStatus::Pending)
        .limit(1000);
    loop {
        let page = list(&query);
        for delivery in &page.deliveries {
            line += &format!(" {}", delivery.id);
        }
        let Some(next) = page.next else { break };
        query = query.after(next);
    }
    journal.line(&line);
}

/// The other process: never returns.
pub(crate) fn child(told: &str) {
    let mut told = told.splitn(5, ' ');
    let mut next = || told.next().expect("five words");
    let (round, seed): (u64, u64) = (
        next().parse().expect("a number"),
        next().parse().expect("a number"),
    );
    let (few, port) = (next() == "1", next().parse().expect("a number"));
    let dir = Path::new(next());
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
    attend(&queue, &journal, &mut random);
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
                    door: &Told { door: queue, port },
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

/// Listens to what happens, and now and then has the file checked.
fn attend(queue: &JobQueue, journal: &Arc<Journal>, random: &mut Random) {
    let panics = random.is(40).then(|| {
        let every = 5 + random.below(40);
        i64::try_from(every).expect("small")
    });
    if let Err(error) = load::listen(queue, journal, panics) {
        journal.line(&format!("X listen {error}"));
    }
    if random.is(10) {
        match queue.check() {
            Ok(broken) => broken
                .iter()
                .for_each(|line| journal.line(&format!("X check {line}"))),
            Err(error) => journal.line(&format!("X check {error}")),
        }
    }
}

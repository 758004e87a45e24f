//! Power cuts: a mixed load is written down write by write, and then the file is opened as it may be after a cut at any moment.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::park_timeout;
use std::time::{Duration, Instant};

use stepwell::{Client, Durability, Event};

use crate::counters::Counters;
use crate::disk::{self, Disk, Left, Step};
use crate::io;
use crate::journal::{Journal, Random};
use crate::load::{self, Caller};
use crate::rounds::{self, Watcher};
use crate::scenario::Scenario;
use crate::shim::{Control, Fault, Shim};

/// The load of one record: processes, and jobs of each.
const STAGES: u64 = 3;
const JOBS: usize = 18;
const LONG: Duration = Duration::from_secs(30);
/// What is written down with a sync that fails, and up to which one.
const WITH_FAULTS: [Scenario; 8] = [
    Scenario::Enqueue,
    Scenario::Bulk,
    Scenario::OnePhase,
    Scenario::ThreePhases,
    Scenario::Schedule,
    Scenario::Cancel,
    Scenario::Client,
    Scenario::Watched,
];
const FAULT_MAX: u64 = 12;
/// One image of so many is drained, and all that was written down is compared with it.
const DRAINED_ONE_OF: u64 = 8;

/// Cuts that a long run must have had.
#[allow(dead_code, reason = "the short form is too short for it")]
pub(crate) const RARE: [&str; 5] = [
    "images after a sync that failed",
    "cut before the first event",
    "cut in the middle of the log",
    "cut with the whole log",
    "images drained",
];

/// What happened to one file, and the log that it ended with.
pub(crate) struct Record {
    steps: Vec<Step>,
    durability: Durability,
    /// One sync failed: then a commit may be there for a while that its caller is later told not to be.
    has_fault: bool,
    log: Vec<String>,
    seed: u64,
}

/// A process that is written down: `seed stage directory`. Three of four seeds sync each commit. The last stage has no clean end.
pub(crate) fn child(told: &str) -> ! {
    let mut told = told.splitn(3, ' ');
    let mut next = || told.next().expect("three words");
    let (seed, stage): (u64, u64) = (
        next().parse().expect("a number"),
        next().parse().expect("a number"),
    );
    let dir = Path::new(next());
    rounds::silence_handlers();
    let journal = Arc::new(Journal::open(&dir.join("journal")));
    journal.line("K stage");
    journal.line(&format!("P {stage}"));
    let queue = load::open(dir, durability(seed), &journal, false);
    let queue = queue.expect("nothing fails here");
    journal.line(&format!("O {stage}"));
    let (known, stop) = (Mutex::new(Vec::new()), AtomicBool::new(false));
    std::thread::scope(|scope| {
        for caller in 0..2 {
            let random = Random::new(seed, stage << 8 | caller);
            let (journal, door, known, stop) = (&*journal, &queue, &known, &stop);
            scope.spawn(move || {
                Caller {
                    name: format!("s{stage}t{caller}"),
                    journal,
                    door,
                    random,
                    known,
                    stop,
                }
                .run(u64::MAX);
            });
        }
        let until = Instant::now() + LONG;
        while known.lock().expect("no caller panics").len() < JOBS && Instant::now() < until {
            park_timeout(Duration::from_millis(1));
        }
        stop.store(true, Ordering::Relaxed);
    });
    if stage + 1 < STAGES {
        journal.line(&format!("H {stage}"));
        queue.shutdown(Duration::from_millis(40)).ok();
        journal.line(&format!("h {stage}"));
    }
    std::process::exit(0)
}

fn has_fault(seed: u64) -> bool {
    seed % 4 == 1
}

fn durability(seed: u64) -> Durability {
    if seed.is_multiple_of(4) {
        Durability::Normal
    } else {
        Durability::Full
    }
}

impl Record {
    pub(crate) fn make(shim: &Shim, seed: u64) -> Record {
        if has_fault(seed) {
            let mut random = Random::new(seed, 1 << 33);
            let scenario = random.pick(&WITH_FAULTS).expect("there are some");
            return Record::with_fault(shim, seed, *scenario, 1 + random.below(FAULT_MAX));
        }
        let stages = (0..STAGES).map(|stage| format!("power {seed} {stage}"));
        Record::of(shim, seed, stages.collect(), 0)
    }

    /// Of a scenario whose `at`-th sync fails.
    pub(crate) fn with_fault(shim: &Shim, seed: u64, scenario: Scenario, at: u64) -> Record {
        Record::of(shim, seed, vec![format!("Once {scenario:?}")], at)
    }

    fn of(shim: &Shim, seed: u64, told: Vec<String>, at: u64) -> Record {
        let dir = tempfile::tempdir().expect("a directory can be made");
        let path = dir.path().canonicalize().expect("it is there");
        let record = path.join("record");
        let control = Control::create(&path, Fault::Sync, at, false);
        for told in told {
            let mut command = io::command(&format!("{told} {}", path.display()), &path);
            shim.wrap(&mut command, &path, Some(&record));
            let status = io::wait(command.spawn().expect("a process can be started"));
            if !status.is_some_and(|status| status.success()) {
                let said = std::fs::read_to_string(path.join("stderr")).unwrap_or_default();
                panic!("seed {seed}: {told} hung or died: {status:?} {said}");
            }
        }
        let client = Client::open(path.join("jobs.db")).expect("nothing failed here");
        Record {
            steps: disk::read(&record),
            durability: durability(seed),
            has_fault: control.failures() > 0,
            log: log(&client),
            seed,
        }
    }

    /// About `count` cuts, spread over the record. Answers what was wrong.
    pub(crate) fn cut(&self, count: u64, counters: &mut Counters) -> Vec<String> {
        self.cuts(count, Left::any, counters)
    }

    /// A cut after every step.
    #[allow(dead_code, reason = "for the short form")]
    pub(crate) fn cut_everywhere(&self, left: Left) -> Vec<String> {
        let steps = u64::try_from(self.steps.len()).expect("it fits");
        self.cuts(steps, |_| left, &mut Counters::default())
    }

    fn cuts(
        &self,
        count: u64,
        left: impl Fn(&mut Random) -> Left,
        counters: &mut Counters,
    ) -> Vec<String> {
        let mut random = Random::new(self.seed, 1 << 32);
        let mut disk = Disk::default();
        let mut journal = Vec::new();
        let mut problems = Vec::new();
        let steps = u64::try_from(self.steps.len()).expect("it fits");
        for (index, step) in self.steps.iter().enumerate() {
            disk.apply(step);
            if let Step::Note(bytes) = step {
                journal.extend_from_slice(bytes);
            }
            let here = count / steps + u64::from(random.below(steps) < count % steps);
            for _ in 0..here {
                let left = left(&mut random);
                let dir = fast_dir();
                disk.image(left, &mut random, dir.path(), "jobs.db");
                std::fs::write(dir.path().join("journal"), &journal).expect("it can be written");
                let is_drained = random.below(DRAINED_ONE_OF) == 0;
                let before = problems.len();
                self.look(dir.path(), is_drained, counters, &mut problems);
                counters.add("images");
                counters.add_owned(format!("of {left:?}"));
                if problems.len() > before {
                    let kept = dir.keep();
                    let what = format!(
                        "seed {}, step {index}, {:?}, {left:?}, kept in {}",
                        self.seed,
                        self.durability,
                        kept.display()
                    );
                    problems.insert(before, what);
                }
            }
        }
        problems
    }

    fn look(
        &self,
        dir: &Path,
        is_drained: bool,
        counters: &mut Counters,
        problems: &mut Vec<String>,
    ) {
        let journal = Arc::new(Journal::open(&dir.join("journal")));
        journal.line("K cut");
        let is_full = self.durability == Durability::Full;
        let client = match Client::open_with(dir.join("jobs.db"), self.durability) {
            Ok(client) => client,
            Err(error) => return problems.push(format!("it cannot be opened: {error}")),
        };
        match client.check() {
            Ok(broken) => problems.extend(broken),
            Err(error) => problems.push(format!("it cannot be checked: {error}")),
        }
        let log = log(&client);
        if !self.has_fault && !self.log.starts_with(&log) {
            let at = log
                .iter()
                .zip(&self.log)
                .take_while(|(a, b)| a == b)
                .count();
            problems.push(format!(
                "H10: its log is no beginning of the log: {:?}, {:?} had been",
                log.get(at),
                self.log.get(at)
            ));
        }
        counters.add(match log.len() {
            0 => "cut before the first event",
            length if length < self.log.len() => "cut in the middle of the log",
            _ => "cut with the whole log",
        });
        if is_full {
            acknowledged(dir, &client, problems);
            Watcher::default().look(&client, &journal);
        }
        drop(client);
        if self.has_fault {
            counters.add("images after a sync that failed");
        }
        if (is_drained || self.has_fault) && is_full && problems.is_empty() {
            let mut seen = Counters::default();
            problems.extend(rounds::drain(dir, &journal, false, &mut seen));
            counters.add("images drained");
        }
    }
}

/// H10: what was acknowledged before the cut is there.
fn acknowledged(dir: &Path, client: &Client, problems: &mut Vec<String>) {
    let mut deleted = BTreeMap::new();
    let words = crate::journal::read(&dir.join("journal"));
    for words in &words {
        if words[0] == "D?" {
            deleted.insert(words[1].as_str(), ());
        }
    }
    for words in &words {
        if words[0] == "Q!" && !deleted.contains_key(words[2].as_str()) {
            let id = words[2].parse().expect("the journal has job ids");
            if client.status(id).ok().flatten().is_none() {
                problems.push(format!("H10: job {id} was acknowledged and is gone"));
            }
        }
    }
}

/// All events, as text.
fn log(client: &Client) -> Vec<String> {
    let mut log = Vec::new();
    let mut last = 0;
    loop {
        let events = client.events_after(last, 10_000).expect("it can be read");
        let Some(newest) = events.last() else {
            return log;
        };
        last = newest.seq;
        log.extend(events.iter().map(|event: &Event| format!("{event:?}")));
    }
}

/// In memory, if it can be: images are opened, not kept.
fn fast_dir() -> tempfile::TempDir {
    let memory = PathBuf::from("/dev/shm");
    let dir = tempfile::tempdir_in(&memory).or_else(|_| tempfile::tempdir());
    dir.expect("a directory can be made")
}

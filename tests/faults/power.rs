//! Power cuts: a mixed load is written down write by write, and then the file is opened as it may be after a cut at any moment.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::park_timeout;
use std::time::{Duration, Instant};

use stepwell::{Client, Durability, Event, JobQueue, Retention};

use crate::counters::Counters;
use crate::cut;
use crate::deliveries::{self, Hooked, Judge};
use crate::disk::{self, Disk, Left, Step};
use crate::io;
use crate::journal::{Journal, Random};
use crate::load::{self, Caller};
use crate::receiver::{Receipt, Receiver};
use crate::rounds::{self, Watcher};
use crate::scenario::Scenario;
use crate::shim::{Control, Fault, Shim};

/// The load of one record: processes, and jobs of each.
const STAGES: u64 = 3;
const JOBS: usize = 18;
const LONG: Duration = Duration::from_secs(30);
/// What is written down with a sync that fails, and up to which one.
const WITH_FAULTS: [Scenario; 9] = [
    Scenario::Enqueue,
    Scenario::Bulk,
    Scenario::OnePhase,
    Scenario::ThreePhases,
    Scenario::Schedule,
    Scenario::Cancel,
    Scenario::Client,
    Scenario::Watched,
    Scenario::Deliver,
];
const FAULT_MAX: u64 = 12;
/// One image of so many is drained, and all that was written down is compared with it.
const DRAINED_ONE_OF: u64 = 8;
/// Each of which may have ended within a try of a delivery: those of the record, and the one that recovers.
const PROCESSES: usize = 4;

/// Cuts that a long run must have had.
#[allow(dead_code, reason = "the short form is too short for it")]
pub(crate) const RARE: [&str; 10] = [
    "images after a sync that failed",
    "cut before the first event",
    "cut in the middle of the log",
    "cut with the whole log",
    "images drained",
    "images drained that were not synced",
    "drained after the death of the process",
    "interrupted by a power cut",
    "cut after a delivery was sent",
    "accepted, not recorded, and sent again",
];

/// Cuts that a short run must have had, too.
#[allow(dead_code, reason = "for the short form")]
pub(crate) const SEEN: [&str; 5] = [
    "cut in the middle of the log",
    "images drained",
    "images drained that were not synced",
    "interrupted by a power cut",
    "cut after a delivery was sent",
];

/// What happened to one file, and the log that it ended with.
pub(crate) struct Record {
    /// With the length of the record at each.
    steps: Vec<(u64, Step)>,
    durability: Durability,
    /// One sync failed: then a commit may be there for a while that its caller is later told not to be.
    has_fault: bool,
    log: Vec<String>,
    seed: u64,
    /// Where the deliveries go, before the cut and after it.
    receiver: Receiver,
    /// What it had received when the last process was over.
    receipts: Vec<Receipt>,
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
    let mut builder = JobQueue::builder(dir.join("jobs.db"))
        .workers(load::WORKERS)
        .durability(durability(seed))
        .retention(Retention::forever())
        .shutdown_timeout(Duration::from_millis(100))
        .webhooks(deliveries::hooks());
    load::register(&mut builder, &journal);
    let queue = builder.open().expect("nothing fails here");
    let hooked = Hooked {
        queue: &queue,
        journal: &journal,
        port: deliveries::port().expect("there is a receiver"),
        calls: AtomicU64::new(seed),
    };
    journal.line(&format!("O {stage}"));
    let (known, stop) = (Mutex::new(Vec::new()), AtomicBool::new(false));
    std::thread::scope(|scope| {
        for caller in 0..2 {
            let random = Random::new(seed, stage << 8 | caller);
            let (journal, door, known, stop) = (&*journal, &hooked, &known, &stop);
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
        let receiver = Receiver::beside(record.clone());
        for told in told {
            let mut command = io::command(&format!("{told} {}", path.display()), &path);
            shim.wrap(&mut command, &path, Some(&record));
            command.env(deliveries::PORT, receiver.port.to_string());
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
            log: text(&deliveries::log(&client)),
            seed,
            receipts: receiver.take(),
            receiver,
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
        for (index, (recorded, step)) in self.steps.iter().enumerate() {
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
                let cut = Cut {
                    record: self,
                    dir: dir.path(),
                    recorded: *recorded,
                    is_drained: self.has_fault || random.below(DRAINED_ONE_OF) == 0,
                    // Of a process that dies everything is left that it wrote.
                    is_machine: left != Left::Everything || random.is(50),
                };
                let found = cut.look(counters);
                counters.add("images");
                counters.add_owned(format!("of {left:?}"));
                if !found.is_empty() {
                    let kept = dir.keep();
                    problems.push(format!(
                        "seed {}, step {index}, {:?}, {left:?}, kept in {}",
                        self.seed,
                        self.durability,
                        kept.display()
                    ));
                    problems.extend(found);
                }
            }
        }
        problems
    }
}

/// One image, in a directory of its own.
struct Cut<'a> {
    record: &'a Record,
    dir: &'a Path,
    /// How long the record was when it was cut.
    recorded: u64,
    is_drained: bool,
    /// The machine went down; else only the process died.
    is_machine: bool,
}

impl Cut<'_> {
    /// Answers what is wrong.
    fn look(&self, counters: &mut Counters) -> Vec<String> {
        let (dir, record) = (self.dir, self.record);
        let journal = Arc::new(Journal::open(&dir.join("journal")));
        journal.line("K cut");
        let is_full = record.durability == Durability::Full;
        let client = match Client::open_with(dir.join("jobs.db"), record.durability) {
            Ok(client) => client,
            Err(error) => return vec![format!("it cannot be opened: {error}")],
        };
        let mut problems = match client.check() {
            Ok(broken) => broken,
            Err(error) => vec![format!("it cannot be checked: {error}")],
        };
        let events = deliveries::log(&client);
        problems.extend(self.is_a_beginning(&text(&events), counters));
        if is_full {
            problems.extend(cut::acknowledged(dir, &client, &events));
            Watcher::default().look(&client, &journal);
        }
        let judge = self.judge(&client, &events);
        problems.extend(judge.at_any_time(dir));
        if !judge.receipts.is_empty() {
            counters.add("cut after a delivery was sent");
        }
        let receipts = judge.receipts;
        drop(client);
        if record.has_fault {
            counters.add("images after a sync that failed");
        }
        if self.is_drained && problems.is_empty() {
            problems = self.drain(receipts, &journal, counters);
        }
        problems
    }

    /// H10: what is left of the log is a beginning of what it became.
    fn is_a_beginning(&self, log: &[String], counters: &mut Counters) -> Option<String> {
        let whole = &self.record.log;
        counters.add(match log.len() {
            0 => "cut before the first event",
            length if length < whole.len() => "cut in the middle of the log",
            _ => "cut with the whole log",
        });
        if self.record.has_fault || whole.starts_with(log) {
            return None;
        }
        let same = log.iter().zip(whole).take_while(|(a, b)| a == b);
        let at = same.count();
        Some(format!(
            "H10: its log is no beginning of the log: {:?}, {:?} had been",
            log.get(at),
            whole.get(at)
        ))
    }

    /// With what had come before the cut. Without a sync of each commit events may be lost that had been told of.
    fn judge<'a>(&self, client: &'a Client, log: &[Event]) -> Judge<'a> {
        let came = self.record.receipts.iter();
        let came = came.filter(|receipt| receipt.recorded <= self.recorded);
        let mut judge = Judge::new(client, log, came.cloned().collect());
        if self.record.durability == Durability::Normal {
            judge.forget_what_is_lost();
        }
        judge
    }

    /// Recovers the file, lets everything in it end, and looks at what has come of it.
    fn drain(
        &self,
        mut receipts: Vec<Receipt>,
        journal: &Arc<Journal>,
        counters: &mut Counters,
    ) -> Vec<String> {
        let (dir, durability) = (self.dir, self.record.durability);
        let is_full = durability == Durability::Full;
        let mut problems = Vec::new();
        if self.is_machine {
            let is_restarted = cut::restart(dir);
            counters.add(if is_restarted {
                "drained after a power cut"
            } else {
                "drained without an owner's header"
            });
            problems.extend(cut::recover(dir, durability, journal, counters));
        } else {
            counters.add("drained after the death of the process");
        }
        problems.extend(deliveries::finish(dir, durability, journal));
        receipts.extend(self.record.receiver.take());
        let client = Client::open_with(dir.join("jobs.db"), durability);
        let client = client.expect("it could be opened before");
        // Each process may have been cut off within a try; and whole tries may be forgotten where not every commit is synced.
        let cut_off = if is_full { PROCESSES } else { receipts.len() };
        let judge = Judge::new(&client, &deliveries::log(&client), receipts);
        problems.extend(judge.at_the_end(dir, cut_off, counters));
        drop(client);
        let mut seen = Counters::default();
        if is_full {
            problems.extend(rounds::drain(dir, journal, false, &mut seen));
        }
        counters.add("images drained");
        if !is_full {
            counters.add("images drained that were not synced");
        }
        problems
    }
}

fn text(events: &[Event]) -> Vec<String> {
    events.iter().map(|event| format!("{event:?}")).collect()
}

/// In memory, if it can be: images are opened, not kept.
fn fast_dir() -> tempfile::TempDir {
    let memory = PathBuf::from("/dev/shm");
    let dir = tempfile::tempdir_in(&memory).or_else(|_| tempfile::tempdir());
    dir.expect("a directory can be made")
}

//! The n-th I/O call fails, for every n: runs one case, and looks at what it left.

use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::thread::park_timeout;
use std::time::{Duration, Instant};

use stepwell::{Client, Durability};

use crate::counters::Counters;
use crate::deliveries::{self, Judge};
use crate::journal::{self, Journal};
use crate::power;
use crate::receiver::{Receipt, Receiver};
use crate::rounds::{self, Watcher};
use crate::scenario::{self, Ending, Scenario};
use crate::shim::{Control, Fault, Shim};

pub(crate) const CHILD: &str = "STEPWELL_FAULTS_CHILD";
/// Nothing that a process does here takes longer, unless it hangs.
const PROCESS_MAX: Duration = Duration::from_secs(120);
/// A call that is not reached this often in a row is not reached: threads may come in another order.
const UNREACHED_MAX: u64 = 2;

/// One run of a scenario.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Case {
    pub(crate) scenario: Scenario,
    pub(crate) ending: Ending,
    pub(crate) fault: Fault,
    /// Counted from 1.
    pub(crate) at: u64,
}

/// What became of it.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) was_reached: bool,
    pub(crate) problems: Vec<String>,
}

/// What scenarios begin with, made once.
#[derive(Debug)]
pub(crate) struct Bench {
    shim: Shim,
    dir: tempfile::TempDir,
}

impl Bench {
    /// None where there is no C compiler.
    pub(crate) fn new() -> Option<Bench> {
        let dir = tempfile::tempdir().expect("a directory can be made");
        let shim = Shim::build(dir.path())?;
        let bench = Bench { shim, dir };
        for scenario in Scenario::ALL {
            let dir = bench.dir.path().join(format!("{scenario:?}"));
            std::fs::create_dir(&dir).expect("a directory can be made");
            let mut command = command(&format!("template {scenario:?} {}", dir.display()), &dir);
            wait(
                command
                    .stdout(Stdio::null())
                    .spawn()
                    .expect("a process can be started"),
            );
            Journal::open(&dir.join("journal")).line("K template");
        }
        Some(bench)
    }

    pub(crate) fn run(&self, case: Case, counters: &mut Counters) -> Ended {
        let dir = tempfile::tempdir().expect("a directory can be made");
        // As the process sees it: names are compared.
        let path = dir.path().canonicalize().expect("it is there");
        let template = self.dir.path().join(format!("{:?}", case.scenario));
        for name in ["jobs.db", "jobs.db-wal", "jobs.db-owner", "journal"] {
            // Not every template has them all.
            std::fs::copy(template.join(name), path.join(name)).ok();
        }
        let is_lasting = case.ending != Ending::Once;
        let control = Control::create(&path, case.fault, case.at, is_lasting);
        let told = format!("{:?} {:?} {}", case.ending, case.scenario, path.display());
        let mut command = command(&told, &path);
        self.shim.wrap(&mut command, &path, None);
        let receiver = (case.scenario == Scenario::Deliver).then(Receiver::start);
        if let Some(receiver) = &receiver {
            command.env(deliveries::PORT, receiver.port.to_string());
        }
        let status = wait(command.spawn().expect("a process can be started"));
        control.lift();
        let mut problems = Vec::new();
        if !status.is_some_and(|status| status.success()) {
            problems.push(format!("the process hung or died: {status:?}"));
        }
        look(&path, case, receiver.as_ref(), counters, &mut problems);
        let was_reached = control.failures() > 0;
        if was_reached {
            counters.add_owned(format!("failed first: {}", control.failed()));
        }
        if !problems.is_empty() {
            problems.insert(
                0,
                format!("{case:?}, {}, kept in {}", control.failed(), path.display()),
            );
            drop(dir.keep());
        }
        Ended {
            was_reached,
            problems,
        }
    }
}

/// What a process left is whole, loses nothing, and goes on.
fn look(
    dir: &Path,
    case: Case,
    receiver: Option<&Receiver>,
    counters: &mut Counters,
    problems: &mut Vec<String>,
) {
    let journal = Arc::new(Journal::open(&dir.join("journal")));
    journal.line("K case");
    for words in journal::read(&dir.join("journal")) {
        if words[0] == "N" && words[1] != "endpoint" {
            counters.add_owned(words[1..].join(" "));
        }
    }
    match Client::open(dir.join("jobs.db")) {
        Ok(client) => {
            Watcher::default().look(&client, &journal);
            match client.check() {
                Ok(broken) => problems.extend(broken),
                Err(error) => problems.push(format!("it cannot be checked: {error}")),
            }
        }
        Err(error) => return problems.push(format!("it cannot be opened: {error}")),
    }
    if receiver.is_some() {
        problems.extend(deliveries::finish(dir, Durability::Full, &journal));
    }
    let mut seen = Counters::default();
    problems.extend(rounds::drain(dir, &journal, false, &mut seen));
    if let Some(receiver) = receiver {
        delivered(dir, case, receiver, counters, problems);
    }
    // What a handler has returned is kept until it can be written, as long as its process lives.
    if !case.scenario.fences() && seen.count("late result fenced") > 0 {
        problems.push("a phase ran again that had returned a result in this process".to_owned());
    }
    for name in [
        "acknowledged",
        "asked, never answered, and stored",
        "asked, never answered, and not stored",
    ] {
        if seen.count(name) > 0 {
            counters.add(name);
        }
    }
}

/// Each event was delivered, in order, and no more often than it had to be.
fn delivered(
    dir: &Path,
    case: Case,
    receiver: &Receiver,
    counters: &mut Counters,
    problems: &mut Vec<String>,
) {
    let client = Client::open(dir.join("jobs.db")).expect("it could be opened before");
    let log = deliveries::log(&client);
    let judge = Judge::new(&client, &log, receiver.take());
    // A process that went on until all was over has recorded all that it sent.
    let cut_off = usize::from(case.ending == Ending::Never);
    let found = judge.at_the_end(dir, cut_off, counters);
    if !found.is_empty() {
        problems.extend(found);
        let line = |receipt: &Receipt| format!("came: {receipt}");
        problems.extend(judge.receipts.iter().map(line));
    }
}

pub(crate) fn command(told: &str, dir: &Path) -> Command {
    let own = std::env::current_exe().expect("this program has a path");
    let errors = std::fs::File::create(dir.join("stderr")).expect("a file can be made");
    let mut command = Command::new(own);
    command
        .args(["--exact", "the_process_with_the_shim", "--nocapture"])
        .env(CHILD, told)
        .env("RUST_BACKTRACE", "0")
        .stdin(Stdio::null())
        .stderr(errors);
    command
}

/// None when it had to be killed.
pub(crate) fn wait(mut process: Child) -> Option<ExitStatus> {
    let until = Instant::now() + PROCESS_MAX;
    while Instant::now() < until {
        if let Some(status) = process.try_wait().expect("it can be waited for") {
            return Some(status);
        }
        park_timeout(Duration::from_micros(500));
    }
    process.kill().expect("it can be killed");
    process.wait().expect("it can be waited for");
    None
}

/// What a process does that was started so. Never returns.
pub(crate) fn child(told: &str) -> ! {
    match told.strip_prefix("power ") {
        Some(told) => power::child(told),
        None => scenario::child(told),
    }
}

/// All cases of one scenario, ending and fault, from `first` on, until the scenario needs no more calls or `is_enough`.
pub(crate) struct Sweep {
    pub(crate) case: Case,
    unreached: u64,
}

impl Sweep {
    pub(crate) fn all() -> impl Iterator<Item = Sweep> {
        Scenario::ALL.into_iter().flat_map(|scenario| {
            Ending::ALL.into_iter().flat_map(move |ending| {
                Fault::ALL.into_iter().map(move |fault| Sweep {
                    case: Case {
                        scenario,
                        ending,
                        fault,
                        at: 1,
                    },
                    unreached: 0,
                })
            })
        })
    }

    /// The next calls, for some runs at the same time: they mostly wait.
    #[allow(dead_code, reason = "for the long form")]
    pub(crate) fn cases(&self, count: u64) -> Vec<Case> {
        let at = self.case.at;
        (at..at + count)
            .map(|at| Case { at, ..self.case })
            .collect()
    }

    /// Goes on to the next call; false when there is none.
    pub(crate) fn step(&mut self, ended: &Ended) -> bool {
        self.unreached = if ended.was_reached {
            0
        } else {
            self.unreached + 1
        };
        self.case.at += 1;
        self.unreached < UNREACHED_MAX
    }
}

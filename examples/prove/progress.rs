//! Where a long run stands: kept in `target/prove`, so that it can be stopped and go on.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::Arguments;
use crate::counters::Counters;

const MINUTE: Duration = Duration::from_secs(60);
/// Problems shown at once.
const SHOWN_MAX: usize = 40;

pub(crate) struct Progress {
    path: PathBuf,
    pub(crate) seed: u64,
    /// Units that need not be done again.
    pub(crate) done: u64,
    /// Seconds of the runs before.
    before: u64,
    started: Instant,
    told: Instant,
    pub(crate) counters: Counters,
    /// Of the program that runs, if it was built from the tree as it stands.
    commit: String,
}

impl Progress {
    /// Goes on where the last run was stopped, or ends the process and says why it cannot.
    pub(crate) fn open(proof: &str, arguments: &Arguments) -> Progress {
        let mut progress = Progress::new(proof, arguments);
        if arguments.fresh {
            std::fs::remove_file(&progress.path).ok();
        }
        if let Err(problem) = progress.load(arguments.seed) {
            eprintln!("{proof}: {}: {problem}", progress.path.display());
            std::process::exit(2);
        }
        progress.announce(proof);
        progress
    }

    /// One that cannot go on where it was stopped.
    #[allow(dead_code, reason = "only the soak is one, with the feature `http`")]
    pub(crate) fn begin(proof: &str, arguments: &Arguments) -> Progress {
        let progress = Progress::new(proof, arguments);
        progress.announce(proof);
        progress
    }

    fn new(proof: &str, arguments: &Arguments) -> Progress {
        let target = std::env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into());
        let dir = PathBuf::from(target).join("prove");
        std::fs::create_dir_all(&dir).expect("a directory can be made");
        let clock = stepwell::Timestamp::now().as_millis().unsigned_abs();
        Progress {
            path: dir.join(proof),
            seed: arguments.seed.unwrap_or(clock % 1_000_000),
            done: 0,
            before: 0,
            started: Instant::now(),
            told: Instant::now(),
            counters: Counters::default(),
            commit: run("git", &["describe", "--always", "--dirty"]),
        }
    }

    fn announce(&self, proof: &str) {
        let (seed, done, commit) = (self.seed, self.done, &self.commit);
        println!("{proof}: commit {commit}, seed {seed}, {done} done before");
    }

    /// Lines of a number, or the commit, and a name. One row is of one commit and one seed: what other runs have done is not added to.
    fn load(&mut self, asked_seed: Option<u64>) -> Result<(), String> {
        let Ok(text) = std::fs::read_to_string(&self.path) else {
            return Ok(());
        };
        let mut begun_by = "";
        for line in text.lines() {
            // Without git it is empty.
            let (value, name) = line.trim_end().split_once(' ').expect("a value and a name");
            if name == "COMMIT" {
                begun_by = value;
                continue;
            }
            let (number, name) = line.trim().split_once(' ').expect("a number and a name");
            let number = number.parse().expect("a number");
            match name {
                "SEED" => self.seed = number,
                "DONE" => self.done = number,
                "SECONDS" => self.before = number,
                _ => self.counters.set(name.to_owned(), number),
            }
        }
        let commit = &self.commit;
        if begun_by != commit {
            return Err(format!(
                "this run was begun by commit {begun_by:?}, and the tree is at {commit:?}: one row cannot tell of both. Go on with that \
                commit, or begin again with --fresh"
            ));
        }
        match asked_seed.filter(|asked| *asked != self.seed) {
            None => Ok(()),
            Some(asked) => Err(format!(
                "this run was begun with seed {}, and not with {asked}: go on without --seed, or begin again with --fresh",
                self.seed
            )),
        }
    }

    pub(crate) fn save(&self) {
        let (seed, done, seconds) = (self.seed, self.done, self.seconds());
        let head = format!(
            "{} COMMIT\n{seed} SEED\n{done} DONE\n{seconds} SECONDS",
            self.commit
        );
        let kept = std::fs::write(&self.path, format!("{head}{}\n", self.counters));
        kept.expect("progress can be kept");
    }

    fn seconds(&self) -> u64 {
        self.before + self.started.elapsed().as_secs()
    }

    pub(crate) fn problems(&mut self, problems: &[String]) {
        for problem in problems.iter().take(SHOWN_MAX) {
            println!("PROBLEM {problem}");
        }
        if !problems.is_empty() {
            self.counters.add("with problems");
        }
    }

    /// A line a minute, problems first: a run that is stopped has no other end.
    pub(crate) fn tick(&mut self, at: &str) {
        if self.told.elapsed() < MINUTE {
            return;
        }
        self.told = Instant::now();
        let counters = self.counters.to_string().replace("\n", ",");
        let counters: Vec<&str> = counters.split_whitespace().collect();
        let (seconds, problems) = (self.seconds(), self.counters.count("with problems"));
        println!(
            "{problems} with problems, {seconds} s, {at}{}",
            counters.join(" ")
        );
    }

    /// As [`Progress::end_of`]: `clean` runs without a failure bound its rate at 3 / `clean`, with 95 % confidence.
    pub(crate) fn end(self, proof: &str, clean: u64, what: &str, rare: &[&str]) -> bool {
        let bound = format!("< {} of 100,000", 300_000_u64.div_ceil(clean.max(1)));
        self.end_of(proof, what, rare, &bound)
    }

    /// Prints all counters and the row; false when something was wrong, or a seldom taken path was never taken.
    pub(crate) fn end_of(self, proof: &str, what: &str, rare: &[&str], bound: &str) -> bool {
        self.save();
        println!("{}", self.counters);
        let never: Vec<&&str> = rare
            .iter()
            .filter(|name| self.counters.count(name) == 0)
            .collect();
        never.iter().for_each(|name| println!("NEVER {name}"));
        let problems = self.counters.count("with problems");
        let (day, commit) = (run("date", &["-u", "+%F"]), &self.commit);
        let (seed, minutes) = (self.seed, self.seconds() / 60);
        let bound = if problems == 0 { bound } else { "nothing" };
        println!(
            "| {day} | {commit} | `{proof}` | {seed} | {what} | {problems} with problems, {minutes} min | {bound} |"
        );
        problems == 0 && never.is_empty()
    }
}

/// What a program says, or nothing.
fn run(program: &str, arguments: &[&str]) -> String {
    let output = std::process::Command::new(program).args(arguments).output();
    output.map_or_else(
        |_| String::new(),
        |output| String::from_utf8_lossy(&output.stdout).trim().to_owned(),
    )
}

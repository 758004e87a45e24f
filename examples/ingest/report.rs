//! What the user sees: a progress bar on a terminal, plain lines elsewhere, and the summary.

use std::io::{IsTerminal, Write};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{HumanBytes, HumanCount, ProgressBar, ProgressStyle};
use stepwell::Stats;

use crate::Places;
use crate::feed::Counts;
use crate::file::Name;
use crate::manifest::{MANIFEST, SUMS};
use crate::sums::Sums;
use crate::tally::{Outcome, Tally};

/// The rest is counted.
pub const FAILURES_SHOWN: usize = 20;
/// Between plain lines.
const LINE_EVERY: Duration = Duration::from_secs(1);

/// Writes to standard error. Clones are the same.
#[derive(Clone)]
pub struct Reporter(Arc<Shared>);

struct Shared {
    bar: Option<ProgressBar>,
    said: Mutex<Instant>,
    bytes: AtomicU64,
    /// The large file that told last how far it is.
    reading: Mutex<String>,
}

impl Reporter {
    pub fn new() -> Reporter {
        let style = ProgressStyle::with_template(
            "[{elapsed_precise}] {bar:30} {human_pos}/{human_len} files, {msg}",
        );
        let is_terminal = std::io::stderr().is_terminal();
        let bar = style
            .ok()
            .filter(|_| is_terminal)
            .map(|style| ProgressBar::new(0).with_style(style));
        Reporter(Arc::new(Shared {
            bar,
            said: Mutex::new(Instant::now()),
            bytes: AtomicU64::new(0),
            reading: Mutex::default(),
        }))
    }

    pub fn line(&self, text: &str) {
        match &self.0.bar {
            Some(bar) => bar.suspend(|| say(text)),
            None => say(text),
        }
    }

    /// So many bytes more are digested.
    pub fn digested(&self, bytes: usize) {
        self.0.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// A large file is so far.
    pub fn reading(&self, name: &Name, position: u64, size: u64) {
        let percent = position * 100 / size.max(1);
        let text = if percent < 100 {
            format!(", {name} at {percent} %")
        } else {
            String::new()
        };
        *self
            .0
            .reading
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = text;
    }

    /// `problem` keeps the queue from going on.
    pub fn progress(&self, walked: &Counts, stats: &Stats, tally: &Tally, problem: Option<&str>) {
        let done = walked.found.saturating_sub(stats.pending + stats.running);
        let mut message = HumanBytes(self.0.bytes.load(Ordering::Relaxed)).to_string();
        if tally.failed_count() > 0 {
            message += &format!(", {} failed", HumanCount(tally.failed_count()));
        }
        message += &self
            .0
            .reading
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if stats.paused {
            message += ", the queue is paused";
        }
        if let Some(problem) = problem {
            message += &format!(", waiting: {problem}");
        }
        match &self.0.bar {
            Some(bar) => {
                bar.set_length(walked.found);
                bar.set_position(done);
                bar.set_message(message);
            }
            None => self.plain(|| {
                let more = if walked.is_done { "" } else { " found so far" };
                format!(
                    "{} of {} files{more}, {message}",
                    HumanCount(done),
                    HumanCount(walked.found)
                )
            }),
        }
    }

    /// All files are through, the last job is under way.
    pub fn finishing(&self) {
        match &self.0.bar {
            Some(bar) => {
                bar.set_position(bar.length().unwrap_or(0));
                bar.set_message(format!("writing {SUMS}"));
            }
            None => self.plain(|| format!("writing {SUMS}")),
        }
    }

    fn plain(&self, text: impl FnOnce() -> String) {
        let mut said = self.0.said.lock().unwrap_or_else(PoisonError::into_inner);
        if said.elapsed() >= LINE_EVERY {
            *said = Instant::now();
            say(&text());
        }
    }

    pub fn finish(&self) {
        if let Some(bar) = &self.0.bar {
            bar.finish_and_clear();
        }
    }
}

fn say(text: &str) {
    // A closed standard error is no reason to stop.
    writeln!(std::io::stderr(), "{text}").ok();
}

/// On standard output.
pub fn summary(places: &Places, outcome: &Outcome, walked: &Counts, sums: &Sums) {
    write_summary(&mut std::io::stdout().lock(), places, outcome, walked, sums).ok();
}

fn write_summary(
    out: &mut dyn Write,
    places: &Places,
    outcome: &Outcome,
    walked: &Counts,
    sums: &Sums,
) -> std::io::Result<()> {
    let seconds = outcome.took.as_secs_f64();
    let gone = match outcome.gone {
        0 => String::new(),
        gone => format!(", {} gone meanwhile", HumanCount(gone)),
    };
    writeln!(
        out,
        "{} files found: {} done now, {} done before, {} failed{gone}",
        HumanCount(outcome.found),
        HumanCount(outcome.done_now),
        HumanCount(outcome.done_before),
        HumanCount(outcome.failed)
    )?;
    writeln!(
        out,
        "{} files with {} in the manifest",
        HumanCount(sums.files + sums.changed),
        HumanBytes(sums.bytes)
    )?;
    writeln!(
        out,
        "{} duplicates with {}",
        HumanCount(sums.duplicates),
        HumanBytes(sums.duplicate_bytes)
    )?;
    if outcome.jobs > 0 {
        let pace = outcome.jobs as f64 / seconds;
        writeln!(out, "{seconds:.1} s, {pace:.0} jobs/s")?;
    }
    if sums.changed > 0 {
        writeln!(
            out,
            "{} files have changed meanwhile and are not in {SUMS}: run it again",
            HumanCount(sums.changed)
        )?;
    }
    failures(out, outcome.failed, "failed", outcome.reasons.iter())?;
    failures(
        out,
        walked.unreadable_count,
        "could not be looked into",
        walked.unreadable.iter(),
    )?;
    writeln!(out, "manifest: {}", places.out.join(MANIFEST).display())?;
    if sums.files > 0 {
        writeln!(out, "to check: {}", check_command(places))?;
    }
    Ok(())
}

fn failures<'a>(
    out: &mut dyn Write,
    count: u64,
    what: &str,
    reasons: impl Iterator<Item = &'a String>,
) -> std::io::Result<()> {
    if count == 0 {
        return Ok(());
    }
    writeln!(out, "{} {what}:", HumanCount(count))?;
    let mut shown = 0;
    for reason in reasons {
        writeln!(out, "  {reason}")?;
        shown += 1;
    }
    if shown < count {
        writeln!(out, "  and {} more", HumanCount(count - shown))?;
    }
    Ok(())
}

/// What the user can paste into a shell.
fn check_command(places: &Places) -> String {
    let sums = places.out.join(SUMS);
    let sums = sums.strip_prefix(&places.root).unwrap_or(&sums);
    let check = format!("sha256sum --quiet -c {}", quoted(sums));
    match std::env::current_dir() {
        Ok(here) if here == places.root => check,
        _ => format!("(cd {} && {check})", quoted(&places.root)),
    }
}

fn quoted(path: &Path) -> String {
    let path = path.to_string_lossy();
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "/._-+,:@%".contains(c);
    if path.chars().all(is_plain) {
        path.into_owned()
    } else {
        format!("'{}'", path.replace('\'', r"'\''"))
    }
}

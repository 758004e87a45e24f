//! The last job of a run: puts the manifest in order, then writes `SHA256SUMS` from it.

use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use stepwell::{JobType, Phase, PhaseContext, PhaseError};

use crate::file::{self, Name, State};
use crate::manifest::{self, Line, SUMS};
use crate::phases::Ingest;
use crate::sort::Sorter;

/// The manifest holds each path once, in its newest state, sorted; files that are gone are not in it.
const COMPACT: Phase<()> = Phase::new("compact");
/// `SHA256SUMS` is written.
const WRITE: Phase<Sums> = Phase::new("write");

/// The type of the last job.
pub const LAST_JOB: &str = "sums";

/// What is in `SHA256SUMS`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Sums {
    pub files: u64,
    pub bytes: u64,
    /// Files whose content another file has too: all but one of each content.
    pub duplicates: u64,
    pub duplicate_bytes: u64,
    /// Files that have changed since their line was published. They are left out.
    pub changed: u64,
}

pub fn last_job(ingest: &Arc<Ingest>) -> JobType<(), Sums> {
    let [compacting, writing] = std::array::from_fn(|_| ingest.clone());
    JobType::<()>::new(LAST_JOB)
        .phase(COMPACT, move |cx| compact(cx, &compacting))
        .phase(WRITE, move |cx| write_sums(cx, &writing))
}

/// The lines of one path, of which one is kept.
struct Choice {
    key: Vec<u8>,
    /// The file as it is now; none if it is gone.
    state: Option<State>,
    best: Line,
}

impl Choice {
    /// The line of the present state comes before others, the line of a younger job before that of an older one.
    fn add(&mut self, line: Line) {
        let rank = |line: &Line| (Some(line.state) == self.state, line.job);
        if rank(&line) > rank(&self.best) {
            self.best = line;
        }
    }
}

fn compact(cx: &PhaseContext<()>, ingest: &Ingest) -> Result<(), PhaseError> {
    ingest.manifest.rewrite(|lines, keep| {
        let mut sorter = Sorter::new(ingest.manifest.dir());
        manifest::each_line(lines, |line, json| {
            cx.check()?;
            Ok::<(), PhaseError>(sorter.push(line.name.bytes(), json.to_vec())?)
        })?;
        let mut choice: Option<Choice> = None;
        let mut end = |choice: Option<Choice>| match choice {
            Some(Choice {
                state: Some(_),
                best,
                ..
            }) => keep(&best),
            _ => Ok(()),
        };
        for record in sorter.finish()? {
            cx.check()?;
            let (key, json) = record?;
            let best: Line = serde_json::from_slice(&json)?;
            match &mut choice {
                Some(choice) if choice.key == key => choice.add(best),
                _ => {
                    let state = state_now(ingest.root(), &best.name);
                    end(choice.replace(Choice { key, state, best }))?;
                }
            }
        }
        Ok(end(choice)?)
    })
}

fn write_sums(cx: &PhaseContext<()>, ingest: &Ingest) -> Result<Sums, PhaseError> {
    let dir = ingest.manifest.dir();
    let mut sums = Sums::default();
    let mut contents = Sorter::new(dir);
    manifest::replace(dir, SUMS, |out| {
        ingest.manifest.each_line(|line, _| {
            cx.check()?;
            if state_now(ingest.root(), &line.name) != Some(line.state) {
                sums.changed += 1;
                return Ok(());
            }
            write_line(out, &line)?;
            sums.files += 1;
            sums.bytes += line.state.size;
            contents.push(
                line.sha256.into_bytes(),
                line.state.size.to_le_bytes().to_vec(),
            )?;
            Ok::<(), PhaseError>(())
        })
    })?;
    let mut last = Vec::new();
    for record in contents.finish()? {
        let (sha256, size) = record?;
        if sha256 == last {
            sums.duplicates += 1;
            sums.duplicate_bytes += size.try_into().map_or(0, u64::from_le_bytes);
        }
        last = sha256;
    }
    Ok(sums)
}

/// A line of GNU coreutils: when the name holds `\`, a line feed or a carriage return, they are escaped and the line begins with
/// `\`. A file named `-` would be read as standard input.
/// <https://www.gnu.org/software/coreutils/manual/html_node/cksum-output-modes.html>
fn write_line(out: &mut dyn Write, line: &Line) -> io::Result<()> {
    let mut name = Vec::new();
    for byte in line.name.bytes() {
        match byte {
            b'\\' => name.extend(br"\\"),
            b'\n' => name.extend(br"\n"),
            b'\r' => name.extend(br"\r"),
            other => name.push(other),
        }
    }
    if name.contains(&b'\\') {
        out.write_all(b"\\")?;
    }
    out.write_all(line.sha256.as_bytes())?;
    out.write_all(if name == b"-" { b"  ./" } else { b"  " })?;
    out.write_all(&name)?;
    out.write_all(b"\n")
}

/// None when there is no such regular file, or nobody can tell.
fn state_now(root: &Path, name: &Name) -> Option<State> {
    file::state_now(root, name).ok().flatten()
}

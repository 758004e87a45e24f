//! `manifest.jsonl`: one JSON object a line, appended by many workers, never twice for the same job.
//!
//! In memory there is one bit for each job: whether it has a line. The bits are read from the file when it is opened; looking at a
//! bit, appending the line and setting the bit happen under one lock. Lines that are not whole (the process was killed inside an
//! append, the power failed) are dropped at the opening, so their jobs publish again. A file in which there is more than that, and no
//! line of ours, was made by another program: [`refuse_foreign`].
//!
//! A line is not synced to the disk: one that a power cut takes away is missed by the next run, which ingests the file again.
//! The file is put in order, without the lines of old states and gone files, by [`Manifest::rewrite`].
//!
//! It is locked, and read and written through the handle that has locked it: on Windows nobody else can do either, and a handle that
//! only appends can be neither locked nor cut short.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, BufRead, BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use stepwell::JobId;

use crate::Failure;
use crate::file::{Name, State};
use crate::phases::{Kind, Text};

pub const MANIFEST: &str = "manifest.jsonl";
pub const SUMS: &str = "SHA256SUMS";
const SET_ASIDE: &str = "manifest.jsonl.old";
/// While a file is written anew; then it takes the name without this.
const UNFINISHED: &str = ".tmp";
/// Every name that this program uses in the directory of its output.
pub const FILES: [&str; 5] = [
    MANIFEST,
    SUMS,
    SET_ASIDE,
    "manifest.jsonl.tmp",
    "SHA256SUMS.tmp",
];
/// No line of ours is longer: 4 KiB of path, escaped and in hexadecimal.
const LINE_MAX: u64 = 64 * 1024;
/// How each line of ours begins.
const LINE_START: &[u8] = br#"{"job":"#;

/// One file in one state.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Line {
    pub job: JobId,
    #[serde(flatten)]
    pub name: Name,
    #[serde(flatten)]
    pub state: State,
    pub kind: Kind,
    pub sha256: String,
    /// As `wc` counts them; none for a binary file.
    #[serde(flatten)]
    pub text: Option<Text>,
}

pub struct Manifest {
    dir: PathBuf,
    open: Mutex<Open>,
    notes: Vec<String>,
}

struct Open {
    /// Locked, so that no second process writes it. Its position is anywhere.
    file: File,
    len: u64,
    /// An append has failed half-way: there is something after `len`.
    is_torn: bool,
    published: Bits,
}

impl Manifest {
    /// Opens the manifest in `dir`, and drops what is torn. `is_ours` says whether the job of a line is or was one of the queue's; if
    /// the newest one is not, the manifest was made with another queue and is set aside.
    pub fn open(
        dir: &Path,
        is_ours: impl Fn(&Line) -> Result<bool, Failure>,
    ) -> Result<Manifest, Failure> {
        let path = dir.join(MANIFEST);
        let mut notes = Vec::new();
        let mut file = open_locked(&path)?;
        let mut contents = Contents::read(&file)?;
        if let Some(newest) = &contents.newest
            && !is_ours(newest)?
        {
            std::fs::rename(&path, dir.join(SET_ASIDE))?;
            notes.push(format!("{MANIFEST} was made with another database: it is {SET_ASIDE} now, and every file is read again"));
            file = replace(dir, MANIFEST, |_| Ok::<(), io::Error>(()))?;
            contents = Contents::default();
        }
        let Dropped { count, is_inside } = contents.dropped;
        if count > 0 {
            notes.push(format!(
                "{MANIFEST}: dropped what was no whole line ({count}); their files are read again"
            ));
        }
        if is_inside {
            file.rewind()?;
            let copy =
                |out: &mut dyn Write| each_line(&file, |_, json| out.write_all(json)).map(drop);
            let new = write_anew(dir, MANIFEST, copy)?;
            take_place(dir, std::mem::replace(&mut file, new))?;
        } else {
            file.set_len(contents.whole_len)?;
        }
        let len = file.metadata()?.len();
        let open = Open {
            file,
            len,
            is_torn: false,
            published: contents.published,
        };
        Ok(Manifest {
            dir: dir.to_owned(),
            open: Mutex::new(open),
            notes,
        })
    }

    /// What the user should know about the opening.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Whether the job has its line.
    pub fn has(&self, job: JobId) -> bool {
        self.lock().published.has(job)
    }

    /// How many lines there are.
    pub fn count(&self) -> u64 {
        self.lock().published.count()
    }

    /// Appends the line, unless its job has one.
    pub fn publish(&self, line: &Line) -> io::Result<()> {
        let mut json = serde_json::to_vec(line)?;
        json.push(b'\n');
        let open = &mut *self.lock();
        if open.published.has(line.job) {
            return Ok(());
        }
        if open.is_torn {
            open.file.set_len(open.len)?;
        }
        open.is_torn = true;
        open.file.seek(SeekFrom::Start(open.len))?;
        open.file.write_all(&json)?;
        open.is_torn = false;
        open.len += json.len() as u64;
        open.published.insert(line.job);
        Ok(())
    }

    /// Calls `take` with each line, while nothing is published.
    pub fn each_line<E: From<io::Error>>(
        &self,
        take: impl FnMut(Line, &[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let open = &mut *self.lock();
        open.file.rewind()?;
        each_line(&open.file, take).map(drop)
    }

    /// Writes the manifest anew with the lines that `choose` takes from the present ones, which it reads, while nothing is published.
    pub fn rewrite<E: From<io::Error>>(
        &self,
        choose: impl FnOnce(&File, &mut dyn FnMut(&Line) -> io::Result<()>) -> Result<(), E>,
    ) -> Result<(), E> {
        let open = &mut *self.lock();
        open.file.rewind()?;
        let mut published = Bits::default();
        let new = write_anew(&self.dir, MANIFEST, |out| {
            choose(&open.file, &mut |line| {
                published.insert(line.job);
                serde_json::to_writer(&mut *out, line)?;
                out.write_all(b"\n")
            })
        })?;
        let len = new.metadata()?.len();
        if let Err(error) = take_place(&self.dir, std::mem::replace(&mut open.file, new)) {
            open.file = open_locked(&self.dir.join(MANIFEST))?;
            return Err(error.into());
        }
        open.len = len;
        open.is_torn = false;
        open.published = published;
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is in a manifest.
#[derive(Default)]
struct Contents {
    published: Bits,
    /// The line with the highest job id: the job that the queue forgets last.
    newest: Option<Line>,
    dropped: Dropped,
    /// The bytes of all whole lines.
    whole_len: u64,
}

impl Contents {
    fn read(file: &File) -> io::Result<Contents> {
        let mut contents = Contents::default();
        let dropped = each_line(file, |line, json| {
            contents.whole_len += json.len() as u64;
            contents.published.insert(line.job);
            if contents
                .newest
                .as_ref()
                .is_none_or(|newest| newest.job < line.job)
            {
                contents.newest = Some(line);
            }
            Ok::<(), io::Error>(())
        })?;
        Ok(Contents {
            dropped,
            ..contents
        })
    }
}

/// What is in a manifest and is no whole line of ours.
#[derive(Clone, Copy, Debug, Default)]
pub struct Dropped {
    count: u64,
    /// Whole lines come after it.
    is_inside: bool,
}

/// An error if the manifest in `dir` was made by another program. It reads up to the first line of ours and changes nothing.
pub fn refuse_foreign(dir: &Path) -> Result<(), Failure> {
    let path = dir.join(MANIFEST);
    let told = |error| format!("{}: {error}", path.display());
    let file = match File::open(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        opened => opened.map_err(told)?,
    };
    let mut reader = BufReader::with_capacity(1 << 16, file);
    let (mut json, mut is_foreign) = (Vec::new(), false);
    while read_line(&mut reader, &mut json).map_err(told)? {
        if parse(&json).is_some() {
            return Ok(());
        }
        is_foreign |= !may_be_torn(&json);
    }
    if is_foreign {
        return Err(format!(
            "{}: it was made by another program, and is left as it is: move it away, or choose another place with --out",
            path.display()
        )
        .into());
    }
    Ok(())
}

/// Whether a crash may have left it of a line of ours: its beginning, or zeros where the content was not on the disk yet.
fn may_be_torn(json: &[u8]) -> bool {
    let zeros = json.iter().take_while(|byte| **byte == 0).count();
    let rest = &json[zeros..];
    matches!(rest, b"" | b"\n")
        || !rest.ends_with(b"\n") && (rest.starts_with(LINE_START) || LINE_START.starts_with(rest))
}

/// Calls `take` with each whole line from here on, parsed and as it stands, and passes over the rest.
pub fn each_line<E: From<io::Error>>(
    file: &File,
    mut take: impl FnMut(Line, &[u8]) -> Result<(), E>,
) -> Result<Dropped, E> {
    let mut reader = BufReader::with_capacity(1 << 16, file);
    let (mut json, mut dropped) = (Vec::new(), Dropped::default());
    while read_line(&mut reader, &mut json)? {
        match parse(&json) {
            Some(line) => {
                dropped.is_inside |= dropped.count > 0;
                take(line, &json)?;
            }
            None => dropped.count += 1,
        }
    }
    Ok(dropped)
}

/// The next line with its end, as far as one of ours can be long; false at the end of the file.
fn read_line(reader: &mut impl BufRead, json: &mut Vec<u8>) -> io::Result<bool> {
    json.clear();
    Ok(reader.take(LINE_MAX).read_until(b'\n', json)? > 0)
}

fn parse(json: &[u8]) -> Option<Line> {
    let line = serde_json::from_slice(json).ok()?;
    json.ends_with(b"\n").then_some(line)
}

/// Writes a file anew under another name, syncs it and gives it its name: who reads it finds the old one or the new one, whole.
pub fn replace<E: From<io::Error>>(
    dir: &Path,
    name: &str,
    write: impl FnOnce(&mut dyn Write) -> Result<(), E>,
) -> Result<File, E> {
    let file = write_anew(dir, name, write)?;
    give_name(dir, name)?;
    Ok(file)
}

/// The first half: it has not got its name yet.
fn write_anew<E: From<io::Error>>(
    dir: &Path,
    name: &str,
    write: impl FnOnce(&mut dyn Write) -> Result<(), E>,
) -> Result<File, E> {
    let file = open_locked(&unfinished(dir, name))?;
    file.set_len(0)?;
    let mut out = BufWriter::with_capacity(1 << 16, &file);
    write(&mut out)?;
    out.flush()?;
    drop(out);
    file.sync_all()?;
    Ok(file)
}

fn give_name(dir: &Path, name: &str) -> io::Result<()> {
    std::fs::rename(unfinished(dir, name), dir.join(name))?;
    #[cfg(unix)]
    File::open(dir)?.sync_all()?;
    Ok(())
}

/// The manifest that was written anew takes the place of the `old` one, which stays locked until then. On Windows it cannot: not every
/// file system there replaces a file that is open.
fn take_place(dir: &Path, old: File) -> io::Result<()> {
    let _locked = cfg!(unix).then_some(old);
    give_name(dir, MANIFEST)
}

fn unfinished(dir: &Path, name: &str) -> PathBuf {
    dir.join(format!("{name}{UNFINISHED}"))
}

fn open_locked(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    let file = options.open(path)?;
    file.try_lock().map_err(|error| match error {
        TryLockError::WouldBlock => io::Error::other("another ingest is writing this manifest"),
        TryLockError::Error(error) => error,
    })?;
    Ok(file)
}

/// A set of jobs, one bit for each up to the highest.
#[derive(Default)]
pub struct Bits {
    words: Vec<u64>,
    count: u64,
}

impl Bits {
    pub fn has(&self, job: JobId) -> bool {
        let (word, bit) = place(job);
        self.words.get(word).is_some_and(|word| word & bit != 0)
    }

    pub fn insert(&mut self, job: JobId) {
        let (word, bit) = place(job);
        if self.words.len() <= word {
            self.words.resize(word + 1, 0);
        }
        self.count += u64::from(self.words[word] & bit == 0);
        self.words[word] |= bit;
    }

    pub fn remove(&mut self, job: JobId) {
        if self.has(job) {
            let (word, bit) = place(job);
            self.words[word] &= !bit;
            self.count -= 1;
        }
    }

    pub fn count(&self) -> u64 {
        self.count
    }

    /// In their order.
    pub fn iter(&self) -> impl Iterator<Item = JobId> {
        let ids = (0_i64..).zip(&self.words).flat_map(|(word, bits)| {
            let set = (0..64).filter(move |bit| bits >> bit & 1 == 1);
            set.map(move |bit| word * 64 + bit)
        });
        ids.map(JobId::from_i64)
    }
}

fn place(job: JobId) -> (usize, u64) {
    let id = usize::try_from(job.as_i64()).unwrap_or(0);
    (id / 64, 1 << (id % 64))
}

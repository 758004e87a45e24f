//! The phases of a file's job.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sha2::digest::common::hazmat::{SerializableState, SerializedState};
use sha2::{Digest, Sha256};
use stepwell::{JobType, Phase, PhaseContext, PhaseError, RetryPolicy};

use crate::file::{self, FileJob, State};
use crate::manifest::{Line, Manifest};
use crate::report::Reporter;

/// What the file is now.
const INSPECT: Phase<Inspected> = Phase::new("inspect");
/// Its SHA-256, in hexadecimal.
const DIGEST: Phase<String> = Phase::new("digest");
/// What is in it, if it is text.
const ANALYSE: Phase<Option<Text>> = Phase::new("analyse");
/// Its line in the manifest.
const PUBLISH: Phase<()> = Phase::new("publish");

/// Read at a time.
const BLOCK_BYTES: usize = 1 << 20;
/// A position is saved when this much was read since the last time, or this long ago: what a kill costs at most.
const SAVE_BYTES: u64 = 64 << 20;
const SAVE_AFTER: Duration = Duration::from_secs(1);
/// The beginning of a file, by which it is taken for text or not.
const SAMPLE_BYTES: u64 = 8 << 10;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    Text,
    Binary,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Inspected {
    state: State,
    kind: Kind,
}

/// As `wc` counts: ends of lines, and runs of anything but white space.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Text {
    pub lines: u64,
    pub words: u64,
}

/// What the handlers share.
pub struct Ingest {
    root: PathBuf,
    pub manifest: Arc<Manifest>,
    reporter: Reporter,
}

/// The job type. Errors that may pass are tried again by this policy. The limit of crashes guards against input that kills the
/// process; a digest does not, its user does, and he may as often as he likes.
pub fn file_job(ingest: &Arc<Ingest>) -> JobType<FileJob, ()> {
    let [inspect, digest, analyse, publish] = std::array::from_fn(|_| ingest.clone());
    JobType::<FileJob>::new("file")
        .retry(RetryPolicy::exponential(Duration::from_millis(200), 4.0).max_attempts(3))
        .max_crashes(u32::MAX)
        .phase(INSPECT, move |cx| inspect.inspect(cx))
        .phase(DIGEST, move |cx| digest.digest(cx))
        .phase(ANALYSE, move |cx| analyse.analyse(cx))
        .phase(PUBLISH, move |cx| publish.publish(cx))
}

impl Ingest {
    pub fn new(root: &Path, manifest: Arc<Manifest>, reporter: Reporter) -> Ingest {
        Ingest {
            root: root.to_owned(),
            manifest,
            reporter,
        }
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    /// A file that has changed since the walk came by is taken as it is now.
    fn inspect(&self, cx: &PhaseContext<FileJob>) -> Result<Inspected, PhaseError> {
        let (file, state) = self.open(cx)?;
        let mut sample = Vec::new();
        file.take(SAMPLE_BYTES)
            .read_to_end(&mut sample)
            .map_err(|error| failed(cx, &error))?;
        let kind = if is_text(&sample) {
            Kind::Text
        } else {
            Kind::Binary
        };
        Ok(Inspected { state, kind })
    }

    fn digest(&self, cx: &PhaseContext<FileJob>) -> Result<String, PhaseError> {
        let hasher = self.scan(cx, |hasher: &mut Hasher, block| {
            hasher.0.update(block);
            self.reporter.digested(block.len());
        })?;
        Ok(file::hex(&hasher.0.finalize()))
    }

    fn analyse(&self, cx: &PhaseContext<FileJob>) -> Result<Option<Text>, PhaseError> {
        match cx.get(INSPECT)?.kind {
            Kind::Binary => Ok(None),
            Kind::Text => Ok(Some(self.scan(cx, Counter::count)?.text)),
        }
    }

    fn publish(&self, cx: &PhaseContext<FileJob>) -> Result<(), PhaseError> {
        let Inspected { state, kind } = cx.get(INSPECT)?;
        let line = Line {
            job: cx.job_id(),
            name: cx.input().name.clone(),
            state,
            kind,
            sha256: cx.get(DIGEST)?,
            text: cx.get(ANALYSE)?,
        };
        self.manifest.publish(&line)?;
        Ok(())
    }

    /// Reads the whole file block by block into an `S`. Where it is, and the `S` so far, are saved now and then; a try after a
    /// crash goes on from there.
    fn scan<S: Serialize + DeserializeOwned + Default>(
        &self,
        cx: &PhaseContext<FileJob>,
        step: impl Fn(&mut S, &[u8]),
    ) -> Result<S, PhaseError> {
        let expected = cx.get(INSPECT)?.state;
        let (mut file, state) = self.open(cx)?;
        let mut at: Checkpoint<S> = cx.saved()?.unwrap_or_default();
        if at.position > 0 {
            file.seek(SeekFrom::Start(at.position))
                .map_err(|error| failed(cx, &error))?;
            self.reporter.line(&format!(
                "{}: {} resumed at {} bytes",
                cx.input().name,
                cx.phase(),
                at.position
            ));
        }
        let mut is_same = state == expected;
        let block_bytes = usize::try_from(expected.size.saturating_add(1)).unwrap_or(BLOCK_BYTES);
        let mut block = vec![0; block_bytes.min(BLOCK_BYTES)];
        let (mut saved_position, mut saved_at) = (at.position, Instant::now());
        while is_same {
            cx.check()?;
            let read = match file.read(&mut block) {
                Ok(0) => break,
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(failed(cx, &error)),
            };
            step(&mut at.state, &block[..read]);
            at.position += read as u64;
            is_same = at.position <= expected.size;
            if at.position - saved_position >= SAVE_BYTES || saved_at.elapsed() >= SAVE_AFTER {
                cx.save(&at)?;
                (saved_position, saved_at) = (at.position, Instant::now());
                self.reporter
                    .reading(&cx.input().name, at.position, expected.size);
            }
        }
        if saved_position > 0 {
            self.reporter
                .reading(&cx.input().name, at.position, at.position);
        }
        let now = State::of(&file.metadata().map_err(|error| failed(cx, &error))?);
        if is_same && now == expected && at.position == expected.size {
            Ok(at.state)
        } else {
            Err(PhaseError::fail(format!(
                "{}: it changed while it was read",
                cx.input().name
            )))
        }
    }

    fn open(&self, cx: &PhaseContext<FileJob>) -> Result<(File, State), PhaseError> {
        let path = self.root.join(cx.input().name.to_path());
        // Before it is opened: to open a pipe would wait for its other end.
        let kind = fs::symlink_metadata(&path)
            .map_err(|error| failed(cx, &error))?
            .file_type();
        if !kind.is_file() {
            return Err(PhaseError::fail(format!(
                "{}: it is no regular file any more",
                cx.input().name
            )));
        }
        let file = File::open(&path).map_err(|error| failed(cx, &error))?;
        let metadata = file.metadata().map_err(|error| failed(cx, &error))?;
        Ok((file, State::of(&metadata)))
    }
}

/// What another try will not cure fails at once.
fn failed(cx: &PhaseContext<FileJob>, error: &io::Error) -> PhaseError {
    const LASTING: [io::ErrorKind; 5] = [
        io::ErrorKind::NotFound,
        io::ErrorKind::NotADirectory,
        io::ErrorKind::IsADirectory,
        io::ErrorKind::InvalidFilename,
        io::ErrorKind::PermissionDenied,
    ];
    let message = format!("{}: {error}", cx.input().name);
    if LASTING.contains(&error.kind()) {
        PhaseError::fail(message)
    } else {
        PhaseError::retry(message)
    }
}

/// UTF-8 without a NUL, as far as the sample goes: its end may cut a character in two.
fn is_text(sample: &[u8]) -> bool {
    let is_utf8 = match std::str::from_utf8(sample) {
        Ok(_) => true,
        Err(error) => error.error_len().is_none(),
    };
    is_utf8 && !sample.contains(&0)
}

/// Where a scan is.
#[derive(Default, Serialize, Deserialize)]
struct Checkpoint<S> {
    position: u64,
    state: S,
}

/// SHA-256 with its inner state as JSON, so that it can be saved half-way.
#[derive(Clone, Default, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
struct Hasher(Sha256);

impl From<Hasher> for String {
    fn from(hasher: Hasher) -> String {
        file::hex(&hasher.0.serialize())
    }
}

impl TryFrom<String> for Hasher {
    type Error = &'static str;

    fn try_from(digits: String) -> Result<Hasher, &'static str> {
        let bytes = file::unhex(&digits).ok_or("not hexadecimal")?;
        let state = SerializedState::<Sha256>::try_from(&*bytes)
            .map_err(|_| "not as long as a state of SHA-256")?;
        Ok(Hasher(
            Sha256::deserialize(&state).map_err(|_| "no state of SHA-256")?,
        ))
    }
}

#[derive(Default, Serialize, Deserialize)]
struct Counter {
    text: Text,
    is_inside_word: bool,
}

impl Counter {
    fn count(&mut self, block: &[u8]) {
        for byte in block {
            let is_space = matches!(byte, b' ' | 9..=13);
            self.text.lines += u64::from(*byte == b'\n');
            self.text.words += u64::from(!is_space && !self.is_inside_word);
            self.is_inside_word = !is_space;
        }
    }
}

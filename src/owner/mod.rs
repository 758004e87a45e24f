//! Who runs jobs on a file: the lock, and what a dead owner left behind. L3.
//!
//! Death is proved by the kernel, not by a clock. The process that runs jobs holds a lock on `<db>-owner`; the kernel drops
//! it when the process dies, however it dies. Whoever gets the lock knows that the old owner is dead *now*. There are no
//! leases, no heartbeats and no idle writes, and no recovery begins too early or too late.
//!
//! # The file
//!
//! | bytes | what | written by |
//! |---|---|---|
//! | 0..64 | pid of the holder, for error messages | `acquire` |
//! | 64..192 | header: generation, state, boot id, checksum | `begin`, `release` |
//! | 192.. | slots of 64 bytes, one for each worker: see `recorder` | workers |
//!
//! Each slot carries the generation of the header it belongs to, so one small write of a header voids all older slots at once.
//!
//! On Windows nobody else can read what is locked (`LockFileEx`): there the pid stands in `<db>-pid` as well.
//!
//! # A crash at every point
//!
//! | the process dies | the next one finds | right because |
//! |---|---|---|
//! | after `acquire`, before the recovery is committed | the header and slots of the owner before it | the jobs are still as that owner left them |
//! | after that commit, before `begin` | the same slots | their jobs are not running any more: stale evidence names no job |
//! | within `begin` (a torn header) | a header with a wrong checksum: no evidence | the commit is done, nothing was claimed yet |
//! | while it runs | its own slots | that is what they are for |
//!
//! Only its header is synced, once for each opening: the rest tells about deaths of processes, and a process's writes survive its
//! death. After a power cut the boot id is another (`boot` says on which systems), and nothing in the file is believed.
//!
//! Turned down: a pid in a file (pids come again), fcntl locks (closing any descriptor of the file in the process drops them),
//! SQLite's exclusive mode (it would shut out clients and the `sqlite3` shell).

mod boot;
mod recorder;
mod wake;

use std::fs::{File, OpenOptions, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::error::{Error, ErrorKind, Result};
use crate::sync::{self, AtomicBool, Ordering};
use crate::time::Timestamp;

pub(crate) use recorder::{Inside, Recorder};
pub(crate) use wake::{Wake, WakeBell, WakeListener, ring};

const PID_BYTES: u64 = 64;
const HEADER_BYTES: usize = 128;
/// Where the slots begin.
const SLOTS_AT: u64 = PID_BYTES + HEADER_BYTES as u64;
/// A look from outside holds the lock for a moment: an owner that starts in that moment tries again.
const TRIES: u32 = 25;
const PAUSE: Duration = Duration::from_millis(4);

/// Proof of being the one process that runs jobs on a file.
#[derive(Debug)]
pub(crate) struct Owner {
    file: Arc<File>,
    generation: u64,
    boot_id: String,
    is_released: Arc<AtomicBool>,
}

/// How the process before this one ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PredecessorEnd {
    /// There was none, or nothing readable is left of it.
    None,
    Closed,
    ProcessDied,
    MachineWentDown,
}

/// What the process before this one left behind.
#[derive(Debug)]
pub(crate) struct Predecessor {
    pub(crate) end: PredecessorEnd,
    /// What its workers were inside last; empty when the machine went down, or nothing can be read.
    pub(crate) inside: Vec<Inside>,
}

/// The header as it is stored: fixed places, little endian.
struct Header {
    generation: u64,
    is_closed: bool,
    /// Empty where the system does not tell.
    boot_id: String,
}

impl Header {
    fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[..8].copy_from_slice(&self.generation.to_le_bytes());
        bytes[8] = u8::from(self.is_closed);
        let boot_id = &self.boot_id.as_bytes()[..self.boot_id.len().min(boot::NAME_BYTES_MAX)];
        bytes[16..16 + boot_id.len()].copy_from_slice(boot_id);
        let sum = recorder::checksum(&bytes[..HEADER_BYTES - 8]);
        bytes[HEADER_BYTES - 8..].copy_from_slice(&sum.to_le_bytes());
        bytes
    }

    fn decode(bytes: &[u8]) -> Option<Header> {
        let bytes: &[u8; HEADER_BYTES] = bytes.try_into().ok()?;
        let sum = u64::from_le_bytes(bytes[HEADER_BYTES - 8..].try_into().ok()?);
        if sum != recorder::checksum(&bytes[..HEADER_BYTES - 8]) {
            return None;
        }
        let boot_id = bytes[16..16 + boot::NAME_BYTES_MAX]
            .iter()
            .take_while(|byte| **byte != 0)
            .copied()
            .collect();
        Some(Header {
            generation: u64::from_le_bytes(bytes[..8].try_into().ok()?),
            is_closed: bytes[8] == 1,
            boot_id: String::from_utf8(boot_id).ok()?,
        })
    }
}

impl Owner {
    /// Gets the lock and reads what the owner before left. What it left stays until [`Owner::begin`].
    pub(crate) fn acquire(db: &Path, now: Timestamp) -> Result<(Owner, Predecessor)> {
        Owner::acquire_in_boot(db, &boot::id(), now)
    }

    fn acquire_in_boot(db: &Path, boot_id: &str, now: Timestamp) -> Result<(Owner, Predecessor)> {
        let path = beside(db, "-owner");
        let file = open(&path)?;
        lock(&file, &path, db)?;
        let broken = |error| {
            Error::new(
                ErrorKind::Storage,
                format!("{}: cannot be read or written", path.display()),
            )
            .with_source(error)
        };
        let mut bytes = Vec::new();
        let mut reading: &File = &file;
        std::io::Read::read_to_end(&mut reading, &mut bytes).map_err(broken)?;
        let pid = format!("{:<63}\n", std::process::id());
        recorder::write_at(&file, pid.as_bytes(), 0).map_err(broken)?;
        let told = pid_path(db);
        if told != path
            && let Err(error) = std::fs::write(&told, &pid)
        {
            log::warn!("{}: nobody can read who runs jobs: {error}", told.display());
        }
        let header = bytes.get(64..64 + HEADER_BYTES).and_then(Header::decode);
        // A generation that nobody can have used, also when the old one cannot be read.
        let fresh = now.as_millis().unsigned_abs() << 8;
        let generation = header
            .as_ref()
            .map_or(fresh, |header| header.generation.wrapping_add(1));
        let predecessor = match &header {
            None => Predecessor {
                end: PredecessorEnd::None,
                inside: Vec::new(),
            },
            Some(header) => look_back(header, boot_id, bytes.get(192..).unwrap_or_default()),
        };
        Ok((
            Owner {
                file: Arc::new(file),
                generation,
                boot_id: boot_id.to_owned(),
                is_released: Arc::default(),
            },
            predecessor,
        ))
    }

    /// The recovery is committed: what the owner before left is void from here on. Synced, unlike what workers write: after a power
    /// cut an old header would say that this owner never was, or that it had ended well.
    pub(crate) fn begin(&self) -> Result<()> {
        self.write_header(false)?;
        self.file.sync_data().map_err(|error| {
            Error::new(ErrorKind::Storage, "the owner file cannot be synced").with_source(error)
        })
    }

    /// A recorder of what this owner's workers are inside.
    pub(crate) fn recorder(&self) -> Recorder {
        Recorder::new(self.file.clone(), self.generation, self.is_released.clone())
    }

    /// A clean end. Without it the next owner takes this one for dead, which is right, too.
    pub(crate) fn release(self) {
        self.is_released.store(true, Ordering::Release);
        if let Err(error) = self.write_header(true) {
            log::debug!("the owner file cannot be closed: {error}");
        }
        if let Err(error) = self.file.unlock() {
            log::warn!("the owner file stays locked until the process ends: {error}");
        }
    }

    fn write_header(&self, is_closed: bool) -> Result<()> {
        let header = Header {
            generation: self.generation,
            is_closed,
            boot_id: self.boot_id.clone(),
        };
        recorder::write_at(&self.file, &header.encode(), PID_BYTES).map_err(|error| {
            Error::new(ErrorKind::Storage, "the owner file cannot be written").with_source(error)
        })
    }
}

fn look_back(header: &Header, boot_id: &str, slots: &[u8]) -> Predecessor {
    // Where the system does not tell boots apart, every death counts as the process's: else a handler that kills it would be
    // tried for ever.
    let same_boot = header.boot_id.is_empty() || boot_id.is_empty() || header.boot_id == boot_id;
    let end = match (header.is_closed, same_boot) {
        (true, true) => PredecessorEnd::Closed,
        (false, true) => PredecessorEnd::ProcessDied,
        // Also when it says that it was closed: the header of one that came later may not have reached the disk. After a clean end
        // nothing is running.
        (_, false) => PredecessorEnd::MachineWentDown,
    };
    let inside = match end {
        // Also after a shutdown: on a disk that did not work it could not record whom it cut off.
        PredecessorEnd::ProcessDied | PredecessorEnd::Closed => {
            recorder::read(slots, header.generation)
        }
        PredecessorEnd::None | PredecessorEnd::MachineWentDown => Vec::new(),
    };
    Predecessor { end, inside }
}

/// Who runs jobs on a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RunningOwner {
    /// None where it cannot be read: it took the lock a moment ago, or somebody else has written there.
    pub(crate) pid: Option<u32>,
}

/// The process that runs jobs on this file now, if one does.
pub(crate) fn running_owner(db: &Path) -> Option<RunningOwner> {
    let file = File::open(beside(db, "-owner")).ok()?;
    match file.try_lock_shared() {
        // Nobody held it. Ours goes with the descriptor, at once.
        Ok(()) | Err(TryLockError::Error(_)) => None,
        Err(TryLockError::WouldBlock) => Some(RunningOwner { pid: holder(db) }),
    }
}

/// What whoever wants to run jobs on this file is told, if another process does.
#[cfg_attr(
    not(feature = "http"),
    allow(dead_code, reason = "else the lock itself is asked for first")
)]
pub(crate) fn refusal(db: &Path) -> Option<Error> {
    let db = db.canonicalize().ok()?;
    let owner = running_owner(&db)?;
    Some(locked(&db, owner.pid))
}

fn holder(db: &Path) -> Option<u32> {
    let bytes = std::fs::read(pid_path(db)).ok()?;
    std::str::from_utf8(bytes.get(..64)?)
        .ok()?
        .trim()
        .parse()
        .ok()
}

/// Where the pid of the holder can be read while the lock is held.
fn pid_path(db: &Path) -> PathBuf {
    beside(db, if cfg!(windows) { "-pid" } else { "-owner" })
}

fn open(path: &Path) -> Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path).map_err(|error| {
        let problem = format!(
            "{}: cannot be opened: check the permissions of its directory",
            path.display()
        );
        Error::new(ErrorKind::Storage, problem).with_source(error)
    })
}

fn lock(file: &File, path: &Path, db: &Path) -> Result<()> {
    for _ in 0..TRIES {
        match file.try_lock() {
            Ok(()) => return Ok(()),
            Err(TryLockError::WouldBlock) => sync::pause(PAUSE),
            Err(TryLockError::Error(error)) => {
                let problem = format!(
                    "{}: cannot be locked: use a local file system",
                    path.display()
                );
                return Err(Error::new(ErrorKind::Storage, problem).with_source(error));
            }
        }
    }
    Err(locked(db, holder(db)))
}

fn locked(db: &Path, holder: Option<u32>) -> Error {
    let holder = holder.map_or_else(
        || "another process".to_owned(),
        |pid| format!("process {pid}"),
    );
    let problem = format!(
        "{}: {holder} runs jobs on this file: end it, or use a Client beside it",
        db.display()
    );
    Error::new(ErrorKind::Locked, problem)
}

/// The path of a file beside the database: `jobs.db` and `-owner` give `jobs.db-owner`.
fn beside(db: &Path, suffix: &str) -> PathBuf {
    let mut name = db.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

#[cfg(test)]
mod tests;

//! The flight recorder: what each worker is inside of, for the process that comes after a crash. L3.
//!
//! One small write for each phase, never synced. A slot that names a phase whose outcome is recorded already is stale and
//! harmless: the recovery compares job, epoch and phase with the job's row.
//!
//! A worker that has nothing to do marks its slot and leaves what it names: the outcome of that phase may not be on disk yet, and
//! if it gets lost with the process, the next try is to hear that the handler had been there. So this is best effort: of a worker
//! that has gone on to another phase only that one is known.

use std::fs::File;
use std::io;
use std::sync::Arc;

use crate::job::JobId;
use crate::owner::SLOTS_AT;
use crate::sync::{AtomicBool, Ordering};
use crate::time::Timestamp;

const SLOT_BYTES: usize = 64;
/// Where a slot says that the handler has returned: 1 if so. Behind the checksum, so that it can be written alone.
const RETURNED_AT: usize = 48;

/// A phase that a worker was inside of last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Inside {
    pub(crate) job_id: JobId,
    pub(crate) epoch: i64,
    pub(crate) phase_index: u32,
    pub(crate) since: Timestamp,
    /// Its handler is not inside any more; that its outcome is on disk is not said.
    pub(crate) has_returned: bool,
}

/// Writes what workers are inside of. Best effort: a write that fails is logged once.
#[derive(Debug)]
pub(crate) struct Recorder {
    file: Arc<File>,
    generation: u64,
    /// The file may be another owner's by now.
    is_released: Arc<AtomicBool>,
    has_failed: AtomicBool,
}

impl Recorder {
    pub(crate) fn new(file: Arc<File>, generation: u64, is_released: Arc<AtomicBool>) -> Recorder {
        Recorder {
            file,
            generation,
            is_released,
            has_failed: AtomicBool::new(false),
        }
    }

    /// Worker `slot` enters a handler.
    pub(crate) fn enter(&self, slot: usize, inside: Inside) {
        self.write(slot, 0, &encode(self.generation, inside));
    }

    /// Worker `slot` has entered no handler after all.
    pub(crate) fn leave(&self, slot: usize) {
        self.write(slot, 0, &[0; SLOT_BYTES]);
    }

    /// The handler of worker `slot` has returned, and the worker is inside of nothing.
    pub(crate) fn returned(&self, slot: usize) {
        self.write(slot, RETURNED_AT, &[1]);
    }

    fn write(&self, slot: usize, at: usize, bytes: &[u8]) {
        // A handler that its queue has left behind comes back when it likes.
        if self.is_released.load(Ordering::Acquire) {
            return;
        }
        let at = SLOTS_AT + (slot * SLOT_BYTES + at) as u64;
        if let Err(error) = write_at(&self.file, bytes, at)
            && !self.has_failed.swap(true, Ordering::Relaxed)
        {
            log::warn!(
                "the flight recorder cannot be written, a crash will charge no job: {error}"
            );
        }
    }
}

/// generation, job, epoch, phase, since, checksum: six numbers of 8 bytes, little endian; whether it has returned; then zeros.
fn encode(generation: u64, inside: Inside) -> [u8; SLOT_BYTES] {
    let mut bytes = [0; SLOT_BYTES];
    bytes[..8].copy_from_slice(&generation.to_le_bytes());
    bytes[8..16].copy_from_slice(&inside.job_id.as_i64().to_le_bytes());
    bytes[16..24].copy_from_slice(&inside.epoch.to_le_bytes());
    bytes[24..32].copy_from_slice(&u64::from(inside.phase_index).to_le_bytes());
    bytes[32..40].copy_from_slice(&inside.since.as_millis().to_le_bytes());
    let sum = checksum(&bytes[..40]);
    bytes[40..48].copy_from_slice(&sum.to_le_bytes());
    bytes[RETURNED_AT] = u8::from(inside.has_returned);
    bytes
}

/// The slots of a generation that name something; torn and foreign ones name nothing.
pub(super) fn read(slots: &[u8], generation: u64) -> Vec<Inside> {
    let number = |slot: &[u8], at: usize| -> [u8; 8] {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&slot[at..at + 8]);
        bytes
    };
    let mut found = Vec::new();
    for slot in slots.chunks_exact(SLOT_BYTES) {
        let is_ours = u64::from_le_bytes(number(slot, 0)) == generation;
        if !is_ours || u64::from_le_bytes(number(slot, 40)) != checksum(&slot[..40]) {
            continue;
        }
        let Ok(phase_index) = u32::try_from(u64::from_le_bytes(number(slot, 24))) else {
            continue;
        };
        found.push(Inside {
            job_id: JobId::from_i64(i64::from_le_bytes(number(slot, 8))),
            epoch: i64::from_le_bytes(number(slot, 16)),
            phase_index,
            since: Timestamp::from_millis(i64::from_le_bytes(number(slot, 32))),
            has_returned: slot[RETURNED_AT] != 0,
        });
    }
    found
}

/// FNV-1a, 64 bit. Source: <http://www.isthe.com/chongo/tech/comp/fnv/>. Never 0 for a slot of zeros.
pub(super) fn checksum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

#[cfg(unix)]
pub(super) fn write_at(file: &File, bytes: &[u8], at: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::write_all_at(file, bytes, at)
}

#[cfg(windows)]
pub(super) fn write_at(file: &File, bytes: &[u8], at: u64) -> io::Result<()> {
    let written = std::os::windows::fs::FileExt::seek_write(file, bytes, at)?;
    if written == bytes.len() {
        Ok(())
    } else {
        Err(io::ErrorKind::WriteZero.into())
    }
}

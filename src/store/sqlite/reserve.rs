//! Room on the disk that is kept for what is under way. L2.
//!
//! A file of some size beside the database. On a full disk it is cut to nothing, and what is under way can be recorded in the room
//! that this gives back; who wants to add work is refused until the file is whole again. See `committer::reserve` for who may use it.
//!
//! | length | says |
//! |---|---|
//! | no file | nothing was kept: there was no room for it, or none was wanted |
//! | all of it | held |
//! | less | spent, or being made when the machine went down |
//!
//! It holds bytes that look random: a file of zeros has no room of its own where the file system compresses, or leaves holes. It
//! is not synced, since it is nothing that could be lost.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use crate::config::RESERVE_BYTES;

/// It is made where there is room for so many of them: on a small disk it must not be what fills it.
const ROOM_AT_FIRST: u64 = 4;
/// It is made again where there is room for so many of them: else the next job would fill the disk again.
const ROOM_AGAIN: u64 = 2;

#[derive(Debug)]
pub(super) struct Reserve {
    path: PathBuf,
    bytes: u64,
}

impl Reserve {
    pub(super) fn new(db: &Path, bytes: u64) -> Reserve {
        let mut name = db.as_os_str().to_owned();
        name.push("-reserve");
        Reserve {
            path: name.into(),
            bytes,
        }
    }

    /// Its length, if there is one.
    fn length(&self) -> Option<u64> {
        std::fs::metadata(&self.path).ok().map(|found| found.len())
    }

    /// At the opening: makes it, unless there is too little room for it. One that is larger than wanted gives the rest back.
    pub(super) fn prepare(&self) {
        let done = match self.length() {
            _ if self.bytes == 0 => match std::fs::remove_file(&self.path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                _ => Ok(()),
            },
            Some(length) if length > self.bytes => self.cut_to(self.bytes),
            Some(length) if length == self.bytes => Ok(()),
            Some(_) => self.refill().map(|_| ()),
            None if self.has_room_for(ROOM_AT_FIRST) => self.fill(),
            None => Ok(()),
        };
        if let Err(error) = done {
            log::warn!("{}: no room can be kept: {error}", self.path.display());
        }
        if self.bytes > 0 && self.length().is_none() {
            log::info!(
                "{}: no room is kept, the disk is nearly full",
                self.path.display()
            );
        }
    }

    /// For a client, who does not know how much is kept: whether it was given away, and the disk is as full as it was then.
    pub(super) fn is_given_away(db: &Path) -> bool {
        let reserve = Reserve::new(db, RESERVE_BYTES);
        reserve.length() == Some(0) && !reserve.has_room_for(1)
    }

    /// Whether its room was given away, and has not come back.
    pub(super) fn is_spent(&self) -> bool {
        self.length().is_some_and(|length| length < self.bytes)
    }

    /// Gives its room away; false when there is none to give.
    pub(super) fn spend(&self) -> bool {
        let has_room = self.bytes > 0 && self.length().is_some_and(|length| length > 0);
        has_room
            && self
                .cut_to(0)
                .inspect_err(|error| log::warn!("{}: {error}", self.path.display()))
                .is_ok()
    }

    /// Takes its room back if there is enough of it; whether it did.
    pub(super) fn refill(&self) -> io::Result<bool> {
        if !self.has_room_for(ROOM_AGAIN) {
            return Ok(false);
        }
        self.fill().map(|()| true)
    }

    /// Where nobody can tell, there is none.
    fn has_room_for(&self, times: u64) -> bool {
        let parent = self.path.parent().unwrap_or(Path::new("."));
        fs4::available_space(parent).is_ok_and(|room| room / times >= self.bytes)
    }

    fn cut_to(&self, bytes: u64) -> io::Result<()> {
        OpenOptions::new()
            .write(true)
            .open(&self.path)?
            .set_len(bytes)
    }

    /// All or nothing: half of it would be room that nobody can use.
    fn fill(&self) -> io::Result<()> {
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let mut file = options.open(&self.path)?;
        write_noise(&mut file, self.bytes).inspect_err(|_| {
            file.set_len(0).ok();
        })
    }
}

/// Bytes that no file system makes smaller: xorshift64 (Marsaglia, 2003).
fn write_noise(file: &mut File, bytes: u64) -> io::Result<()> {
    let mut left = usize::try_from(bytes).map_err(|_| io::ErrorKind::InvalidInput)?;
    let mut word = 0x9E37_79B9_7F4A_7C15_u64;
    let mut piece = Vec::with_capacity(left.min(1 << 16) + 8);
    while left > 0 {
        piece.clear();
        while piece.len() < left.min(1 << 16) {
            word ^= word << 13;
            word ^= word >> 7;
            word ^= word << 17;
            piece.extend_from_slice(&word.to_le_bytes());
        }
        piece.truncate(left.min(1 << 16));
        file.write_all(&piece)?;
        left -= piece.len();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const BYTES: u64 = 100_001;

    fn length(db: &Path) -> Option<u64> {
        Reserve::new(db, 1).length()
    }

    #[test]
    fn it_is_made_spent_and_made_again() {
        let dir = tempfile::tempdir().expect("a directory can be made");
        let db = dir.path().join("jobs.db");
        let reserve = Reserve::new(&db, BYTES);
        assert!(!reserve.is_spent(), "there was none");
        assert!(!reserve.spend(), "there is none");
        reserve.prepare();
        assert_eq!(length(&db), Some(BYTES));
        assert!(!reserve.is_spent());
        assert!(reserve.spend());
        assert!(reserve.is_spent() && !reserve.spend());
        assert_eq!(length(&db), Some(0));
        assert!(reserve.refill().expect("there is room"));
        assert!(!reserve.is_spent());
        // Opened with another size.
        for bytes in [BYTES - 1, BYTES + 1, 0] {
            let reserve = Reserve::new(&db, bytes);
            reserve.prepare();
            assert!(!reserve.is_spent());
            assert_eq!(length(&db), (bytes > 0).then_some(bytes));
        }
    }

    #[test]
    fn it_takes_no_room_from_a_disk_that_has_little() {
        let dir = tempfile::tempdir().expect("a directory can be made");
        let db = dir.path().join("jobs.db");
        let room = fs4::available_space(dir.path()).expect("it can be asked");
        let reserve = Reserve::new(&db, room / 3);
        reserve.prepare();
        assert_eq!(length(&db), None);
        assert!(!reserve.is_spent(), "nothing was given away");
        // One that was spent and has no room yet stays spent.
        let reserve = Reserve::new(&db, room);
        File::create(dir.path().join("jobs.db-reserve")).expect("a file can be made");
        reserve.prepare();
        assert!(reserve.is_spent());
        assert!(!reserve.refill().expect("it is not even tried"));
    }

    #[test]
    fn its_bytes_cannot_be_packed() {
        let dir = tempfile::tempdir().expect("a directory can be made");
        let path = dir.path().join("noise");
        write_noise(&mut File::create(&path).expect("a file"), 70_003).expect("it is written");
        let bytes = std::fs::read(&path).expect("it can be read");
        assert_eq!(bytes.len(), 70_003);
        let mut counts = [0_u32; 256];
        bytes
            .iter()
            .for_each(|byte| counts[usize::from(*byte)] += 1);
        // 273 of each are expected.
        assert!(counts.iter().all(|count| (180..380).contains(count)));
        assert_ne!(bytes[..8192], bytes[8192..16_384]);
    }
}

//! A disk as it may be after a power cut: what was synced, and any part of what was not.
//!
//! The model. A sync of a file makes its bytes, its length and its name durable. A sync of the directory makes names durable.
//! What was written since is there or not, each sector of 512 bytes for itself, whatever the order in which it was written; the
//! same holds for truncations. Names that were made or removed since are there or not, but in their order for each name.
//! When a sync fails, what it was to sync can still be read, but no later sync makes it durable: the system has forgotten that it
//! was to be written. Lengths and names are not lost so.
//! Sectors are not torn, and a disk that lies about its syncs is not modelled.

use std::collections::BTreeMap;
use std::path::Path;

use crate::journal::Random;

const SECTOR: usize = 512;
const ENTRY_BYTES: usize = 32;

/// What happened, in the order in which it did. The numbers are those of `shim.c`.
#[derive(Debug)]
pub(crate) enum Step {
    Create(u64),
    Write {
        file: u64,
        at: usize,
        bytes: Vec<u8>,
    },
    Truncate {
        file: u64,
        length: usize,
    },
    Unlink(u64),
    Sync(u64),
    SyncFailed(u64),
    SyncNames,
    /// Bytes of the journal of the tests.
    Note(Vec<u8>),
}

/// The files that survive a power cut, by their number, and what follows the name of the database. The index of the log is made anew.
const FILES: [(u64, &str); 4] = [(1, ""), (2, "-wal"), (4, "-owner"), (8, "-journal")];
const DIRECTORY: u64 = 6;
const JOURNAL: u64 = 7;

/// Reads what the shim wrote down: each step, and how long the record was with it.
pub(crate) fn read(path: &Path) -> Vec<(u64, Step)> {
    let bytes = std::fs::read(path).expect("there is a record");
    let mut rest = &bytes[..];
    let mut steps = Vec::new();
    // The process may have ended within an entry.
    while let Some((head, after)) = rest.split_at_checked(ENTRY_BYTES) {
        let number = |index: usize| {
            let bytes = head[index * 8..index * 8 + 8].try_into();
            u64::from_le_bytes(bytes.expect("eight bytes"))
        };
        let size = |index: usize| usize::try_from(number(index)).expect("it fits");
        let (file, at, length) = (number(1), size(2), size(3));
        let Some((data, after)) = after.split_at_checked(length) else {
            break;
        };
        rest = after;
        let end = u64::try_from(bytes.len() - rest.len()).expect("it fits");
        let is_kept = FILES.iter().any(|(known, _)| *known == file);
        let step = match number(0) {
            3 if file == JOURNAL => Step::Note(data.to_vec()),
            4 if file == DIRECTORY => Step::SyncNames,
            _ if !is_kept => continue,
            1 => Step::Create(file),
            3 => Step::Write {
                file,
                at,
                bytes: data.to_vec(),
            },
            4 => Step::Sync(file),
            5 => Step::Truncate { file, length: at },
            6 => Step::Unlink(file),
            9 => Step::SyncFailed(file),
            other => panic!("what is a call of kind {other}?"),
        };
        steps.push((end, step));
    }
    steps
}

/// What is left of what was not synced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Left {
    Nothing,
    Everything,
    /// Some writes, whole.
    Writes,
    /// Some sectors, of 100.
    Sectors(u64),
    /// Everything but some sectors of the newest write.
    TornEnd,
}

impl Left {
    pub(crate) fn any(random: &mut Random) -> Left {
        let all = [
            Left::Nothing,
            Left::Everything,
            Left::Writes,
            Left::Sectors(10),
            Left::Sectors(50),
            Left::Sectors(90),
            Left::TornEnd,
        ];
        *random.pick(&all).expect("there are some")
    }
}

#[derive(Debug, Default)]
struct Inode {
    durable: Vec<u8>,
    pending: Vec<Pending>,
}

/// What was written since the last sync.
#[derive(Debug)]
struct Pending {
    at: usize,
    /// None: `at` is the new length.
    bytes: Option<Vec<u8>>,
    /// No sync makes it durable any more.
    is_lost: bool,
}

/// All files of one queue.
#[derive(Debug, Default)]
pub(crate) struct Disk {
    inodes: Vec<Inode>,
    names: BTreeMap<u64, usize>,
    durable_names: BTreeMap<u64, usize>,
    /// A name that was made or removed.
    pending_names: Vec<(u64, Option<usize>)>,
}

impl Disk {
    pub(crate) fn apply(&mut self, step: &Step) {
        match step {
            Step::Create(file) => {
                self.create(*file);
            }
            Step::Write { file, at, bytes } => {
                let inode = self.inode(*file);
                self.inodes[inode].pending.push(Pending {
                    at: *at,
                    bytes: Some(bytes.clone()),
                    is_lost: false,
                });
            }
            Step::Truncate { file, length } => {
                let inode = self.inode(*file);
                self.inodes[inode].pending.push(Pending {
                    at: *length,
                    bytes: None,
                    is_lost: false,
                });
            }
            Step::Unlink(file) => {
                self.names.remove(file);
                self.pending_names.push((*file, None));
            }
            Step::Sync(file) => self.sync(*file),
            Step::SyncFailed(file) => {
                let inode = self.inode(*file);
                let pending = &mut self.inodes[inode].pending;
                pending
                    .iter_mut()
                    .for_each(|change| change.is_lost |= change.bytes.is_some());
            }
            Step::SyncNames => {
                for (file, inode) in std::mem::take(&mut self.pending_names) {
                    name(&mut self.durable_names, file, inode);
                }
            }
            Step::Note(_) => {}
        }
    }

    fn create(&mut self, file: u64) -> usize {
        let inode = self.inodes.len();
        self.inodes.push(Inode::default());
        self.names.insert(file, inode);
        self.pending_names.push((file, Some(inode)));
        inode
    }

    fn inode(&mut self, file: u64) -> usize {
        match self.names.get(&file) {
            Some(inode) => *inode,
            None => self.create(file),
        }
    }

    fn sync(&mut self, file: u64) {
        let inode = self.inode(file);
        let pending = std::mem::take(&mut self.inodes[inode].pending);
        for change in pending.iter().filter(|change| !change.is_lost) {
            let bytes = change.bytes.as_deref();
            put(&mut self.inodes[inode].durable, change.at, bytes);
        }
        let (own, others) = std::mem::take(&mut self.pending_names)
            .into_iter()
            .partition(|(of, _)| *of == file);
        self.pending_names = others;
        let own: Vec<_> = own;
        for (file, inode) in own {
            name(&mut self.durable_names, file, inode);
        }
    }

    /// Writes what may be left into the directory `to`; `name` is that of the database.
    pub(crate) fn image(&self, left: Left, random: &mut Random, to: &Path, db: &str) {
        let mut names = self.durable_names.clone();
        for (file, _) in FILES {
            let own = self.pending_names.iter().filter(|(of, _)| *of == file);
            let own: Vec<_> = own.collect();
            let count = u64::try_from(own.len()).expect("it fits");
            let kept = match left {
                Left::Nothing => 0,
                Left::Everything | Left::TornEnd => count,
                Left::Writes | Left::Sectors(_) => random.below(count + 1),
            };
            for (file, inode) in own
                .into_iter()
                .take(usize::try_from(kept).expect("it fits"))
            {
                name(&mut names, *file, *inode);
            }
        }
        for (file, suffix) in FILES {
            let path = to.join(format!("{db}{suffix}"));
            match names.get(&file) {
                Some(inode) => {
                    let bytes = self.inodes[*inode].left(left, random);
                    std::fs::write(path, bytes).expect("an image can be written");
                }
                None => drop(std::fs::remove_file(path)),
            }
        }
    }
}

impl Inode {
    fn left(&self, left: Left, random: &mut Random) -> Vec<u8> {
        let mut bytes = self.durable.clone();
        let newest = self.pending.len().saturating_sub(1);
        for (
            index,
            Pending {
                at, bytes: change, ..
            },
        ) in self.pending.iter().enumerate()
        {
            let percent = match left {
                Left::Nothing => 0,
                Left::Everything => 100,
                Left::Writes => [0, 100][usize::from(random.is(50))],
                Left::Sectors(percent) => percent,
                Left::TornEnd if index == newest => 50,
                Left::TornEnd => 100,
            };
            let Some(new) = change else {
                if random.is(percent) {
                    put(&mut bytes, *at, None);
                }
                continue;
            };
            let mut from = 0;
            while from < new.len() {
                // To the end of the sector.
                let end = (from + SECTOR - (at + from) % SECTOR).min(new.len());
                if random.is(percent) {
                    put(&mut bytes, at + from, Some(&new[from..end]));
                }
                from = end;
            }
        }
        bytes
    }
}

fn name(names: &mut BTreeMap<u64, usize>, file: u64, inode: Option<usize>) {
    match inode {
        Some(inode) => drop(names.insert(file, inode)),
        None => drop(names.remove(&file)),
    }
}

fn put(file: &mut Vec<u8>, at: usize, bytes: Option<&[u8]>) {
    match bytes {
        None => file.resize(at, 0),
        Some(bytes) => {
            let end = at + bytes.len();
            if file.len() < end {
                file.resize(end, 0);
            }
            file[at..end].copy_from_slice(bytes);
        }
    }
}

#[test]
fn a_sync_makes_durable_what_came_before_it_and_nothing_else() {
    let dir = tempfile::tempdir().expect("a directory can be made");
    let mut disk = Disk::default();
    let write = |at: usize, byte: u8| Step::Write {
        file: 1,
        at,
        bytes: vec![byte; 1024],
    };
    for step in [Step::Create(1), write(0, 1), Step::Sync(1), write(512, 2)] {
        disk.apply(&step);
    }
    let (mut random, mut seen) = (Random::new(1, 1), Vec::new());
    for left in [Left::Nothing, Left::Everything] {
        disk.image(left, &mut random, dir.path(), "x");
        let bytes = std::fs::read(dir.path().join("x")).expect("it is there");
        seen.push(
            bytes
                .chunks(SECTOR)
                .map(|sector| sector[0])
                .collect::<Vec<u8>>(),
        );
    }
    assert_eq!(seen, [vec![1, 1], vec![1, 2, 2]]);
    let mut found = std::collections::BTreeSet::new();
    for _ in 0..200 {
        disk.image(Left::Sectors(50), &mut random, dir.path(), "x");
        let bytes = std::fs::read(dir.path().join("x")).expect("it is there");
        found.insert(
            bytes
                .chunks(SECTOR)
                .map(|sector| sector[0])
                .collect::<Vec<u8>>(),
        );
    }
    let all = [
        vec![1, 0, 2],
        vec![1, 1],
        vec![1, 1, 2],
        vec![1, 2],
        vec![1, 2, 2],
    ];
    assert!(
        found.iter().all(|image| all.contains(image)) && found.len() >= 4,
        "{found:?}"
    );
    // What a failed sync has lost does not come back.
    for step in [Step::SyncFailed(1), write(1024, 3), Step::Sync(1)] {
        disk.apply(&step);
    }
    disk.image(Left::Everything, &mut random, dir.path(), "x");
    let bytes = std::fs::read(dir.path().join("x")).expect("it is there");
    let last: Vec<u8> = bytes.chunks(SECTOR).map(|sector| sector[0]).collect();
    assert_eq!(last, vec![1, 1, 3, 3]);
    // A name that was removed and not synced may be there again.
    disk.apply(&Step::Unlink(1));
    disk.image(Left::Nothing, &mut random, dir.path(), "x");
    assert!(dir.path().join("x").exists());
    disk.apply(&Step::SyncNames);
    disk.image(Left::Nothing, &mut random, dir.path(), "x");
    assert!(!dir.path().join("x").exists());
}

//! The walk through the tree, one entry at a time: its memory is its depth.

use std::collections::HashSet;
use std::fs::{self, ReadDir};
use std::io;
use std::path::{Path, PathBuf};

use crate::Places;
use crate::file::{FileJob, Name, State};
use crate::manifest;

/// In `DIR`, and always left out.
pub const STATE_DIR: &str = ".stepwell";

/// What this program and its queue write, by full path: they are left out wherever `--out` and `--db` have put them.
pub fn own_files(places: &Places) -> HashSet<PathBuf> {
    let mut own: HashSet<PathBuf> = manifest::FILES
        .iter()
        .map(|name| places.out.join(name))
        .collect();
    for suffix in [
        "", "-journal", "-wal", "-shm", "-owner", "-wake", "-pid", "-reserve",
    ] {
        let mut path = places.db.clone().into_os_string();
        path.push(suffix);
        own.insert(path.into());
    }
    own.insert(places.root.join(STATE_DIR));
    own
}

/// Every regular file under `root`, in the order of the file system. An error names the directory or file that cannot be read,
/// and the walk goes on.
pub struct Walk {
    root: PathBuf,
    own: HashSet<PathBuf>,
    open: Vec<(PathBuf, ReadDir)>,
}

impl Walk {
    pub fn new(root: &Path, own: HashSet<PathBuf>) -> io::Result<Walk> {
        let open = vec![(root.to_owned(), fs::read_dir(root)?)];
        Ok(Walk {
            root: root.to_owned(),
            own,
            open,
        })
    }

    fn visit(&mut self, entry: &fs::DirEntry) -> io::Result<Option<FileJob>> {
        let path = entry.path();
        if self.own.contains(&path) {
            return Ok(None);
        }
        let kind = entry.file_type()?;
        if kind.is_dir() {
            let inside = fs::read_dir(&path)?;
            self.open.push((path, inside));
        } else if kind.is_file() {
            // Of the entry itself: a link that has taken its place is not followed.
            let state = State::of(&entry.metadata()?);
            return Ok(Some(FileJob {
                name: self.name(&path),
                state,
            }));
        }
        Ok(None)
    }

    fn name(&self, path: &Path) -> Name {
        Name::new(path.strip_prefix(&self.root).unwrap_or(path))
    }
}

impl Iterator for Walk {
    type Item = Result<FileJob, String>;

    fn next(&mut self) -> Option<Result<FileJob, String>> {
        loop {
            let (dir, entries) = self.open.last_mut()?;
            let (path, found) = match entries.next() {
                None => {
                    self.open.pop();
                    continue;
                }
                // Reading on may give the same error for ever.
                Some(Err(error)) => (self.open.pop()?.0, Err(error)),
                Some(Ok(entry)) => (dir.join(entry.file_name()), self.visit(&entry)),
            };
            match found {
                Ok(Some(file)) => return Some(Ok(file)),
                Ok(None) => {}
                // Gone since its name was read.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Some(Err(format!("{}: {error}", self.name(&path)))),
            }
        }
    }
}

//! Sorting more than fits in memory: sorted runs in temporary files, merged. Bounded by one chunk and a buffer for each run.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Seek, Write};
use std::path::{Path, PathBuf};

/// Bytes of records that are sorted at a time; what they cost in memory is about twice that.
const CHUNK_BYTES: usize = 8 << 20;
/// Of each run while they are merged.
const BUFFER_BYTES: usize = 32 << 10;

type Record = (Vec<u8>, Vec<u8>);

/// Takes records, a key and a value each, in any order.
pub struct Sorter {
    /// Where the temporary files go.
    dir: PathBuf,
    chunk: Vec<Record>,
    chunk_bytes: usize,
    runs: Vec<BufReader<File>>,
}

/// Gives them back by their keys.
pub struct Sorted {
    runs: Vec<BufReader<File>>,
    /// The last chunk, which need not go to the disk.
    rest: std::vec::IntoIter<Record>,
    /// The next record of each source; the rest counts as the last run.
    heads: BinaryHeap<Reverse<(Record, usize)>>,
}

impl Sorter {
    pub fn new(dir: &Path) -> Sorter {
        Sorter {
            dir: dir.to_owned(),
            chunk: Vec::new(),
            chunk_bytes: 0,
            runs: Vec::new(),
        }
    }

    pub fn push(&mut self, key: Vec<u8>, value: Vec<u8>) -> io::Result<()> {
        self.chunk_bytes += key.len() + value.len();
        self.chunk.push((key, value));
        if self.chunk_bytes < CHUNK_BYTES {
            Ok(())
        } else {
            self.spill()
        }
    }

    fn spill(&mut self) -> io::Result<()> {
        self.chunk.sort_unstable();
        let mut out = BufWriter::new(tempfile::tempfile_in(&self.dir)?);
        for (key, value) in self.chunk.drain(..) {
            for part in [key, value] {
                let len = u32::try_from(part.len()).map_err(io::Error::other)?;
                out.write_all(&len.to_le_bytes())?;
                out.write_all(&part)?;
            }
        }
        let mut file = out.into_inner().map_err(io::IntoInnerError::into_error)?;
        file.rewind()?;
        self.runs.push(BufReader::with_capacity(BUFFER_BYTES, file));
        self.chunk_bytes = 0;
        Ok(())
    }

    pub fn finish(mut self) -> io::Result<Sorted> {
        self.chunk.sort_unstable();
        let mut sorted = Sorted {
            runs: self.runs,
            rest: self.chunk.into_iter(),
            heads: BinaryHeap::new(),
        };
        for source in 0..=sorted.runs.len() {
            sorted.advance(source)?;
        }
        Ok(sorted)
    }
}

impl Sorted {
    fn advance(&mut self, source: usize) -> io::Result<()> {
        let record = match self.runs.get_mut(source) {
            Some(run) => read_record(run)?,
            None => self.rest.next(),
        };
        self.heads
            .extend(record.map(|record| Reverse((record, source))));
        Ok(())
    }
}

impl Iterator for Sorted {
    type Item = io::Result<Record>;

    fn next(&mut self) -> Option<io::Result<Record>> {
        let Reverse((record, source)) = self.heads.pop()?;
        Some(self.advance(source).map(|()| record))
    }
}

/// None at the end of the run.
fn read_record(run: &mut BufReader<File>) -> io::Result<Option<Record>> {
    match read_part(run) {
        Ok(key) => Ok(Some((key, read_part(run)?))),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
        Err(error) => Err(error),
    }
}

fn read_part(run: &mut BufReader<File>) -> io::Result<Vec<u8>> {
    let mut len = [0; 4];
    run.read_exact(&mut len)?;
    let mut part = vec![0; u32::from_le_bytes(len) as usize];
    run.read_exact(&mut part)?;
    Ok(part)
}

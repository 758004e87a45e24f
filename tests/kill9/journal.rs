//! The journal: what handlers did, and what callers asked and were answered, in one file beside the queue's own.
//!
//! One `write` in append mode for each line, so that lines stand in the order in which things happened, in all processes together.
//! A kill may cut a line short: a whole one ends with a mark, and each process begins with a line break.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::Path;

const MARK: &str = " .";

#[derive(Debug)]
pub(crate) struct Journal(File);

impl Journal {
    pub(crate) fn open(path: &Path) -> Journal {
        let file = OpenOptions::new().create(true).append(true).open(path);
        let journal = Journal(file.expect("the journal can be opened"));
        journal.line("");
        journal
    }

    pub(crate) fn line(&self, text: &str) {
        let line = format!("{text}{MARK}\n");
        (&self.0)
            .write_all(line.as_bytes())
            .expect("the journal can be written");
    }
}

/// The whole lines of a journal, as words.
pub(crate) fn read(path: &Path) -> Vec<Vec<String>> {
    let text = std::fs::read_to_string(path).expect("the journal can be read");
    let whole = text.split('\n').filter_map(|line| line.strip_suffix(MARK));
    let words = whole.map(|line| line.split(' ').map(str::to_owned).collect());
    words
        .filter(|words: &Vec<String>| words.len() > 1)
        .collect()
}

/// FNV-1a, 64 bit. Source: <http://www.isthe.com/chongo/tech/comp/fnv/>.
pub(crate) fn hash(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// Random numbers from a seed. Source: splitmix64 (Steele, Lea and Flood, OOPSLA 2014).
#[derive(Debug)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64, stream: u64) -> Random {
        let mut random = Random(seed ^ stream.wrapping_mul(0xD134_2543_DE82_EF95));
        random.next();
        random
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    pub(crate) fn is(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    pub(crate) fn pick<'a, T>(&mut self, from: &'a [T]) -> Option<&'a T> {
        let end = u64::try_from(from.len()).expect("it fits");
        if end == 0 {
            return None;
        }
        from.get(usize::try_from(self.below(end)).expect("it fits"))
    }
}

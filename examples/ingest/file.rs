//! What a file is to this program: a name that survives JSON, and a state that tells whether it has changed.

use std::fmt;
use std::fs::{self, Metadata};
use std::io;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// A path relative to `DIR`, with `/` between its parts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Name {
    /// As text; bytes that are not UTF-8 are replaced, and then `path_hex` is the truth.
    pub path: String,
    /// Its bytes, when they are not UTF-8.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path_hex: Option<String>,
}

/// By which a file is the same as it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    pub size: u64,
    pub mtime_ns: i64,
}

/// The input of a job: one state of one file.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct FileJob {
    pub name: Name,
    pub state: State,
}

impl Name {
    #[cfg(unix)]
    pub fn new(path: &Path) -> Name {
        use std::os::unix::ffi::OsStrExt;
        Name {
            path: path.to_string_lossy().into_owned(),
            path_hex: path
                .to_str()
                .is_none()
                .then(|| hex(path.as_os_str().as_bytes())),
        }
    }

    #[cfg(not(unix))]
    pub fn new(path: &Path) -> Name {
        Name {
            path: path.to_string_lossy().replace('\\', "/"),
            path_hex: None,
        }
    }

    pub fn bytes(&self) -> Vec<u8> {
        let exact = self.path_hex.as_ref().and_then(|digits| unhex(digits));
        exact.unwrap_or_else(|| self.path.clone().into_bytes())
    }

    #[cfg(unix)]
    pub fn to_path(&self) -> PathBuf {
        use std::os::unix::ffi::OsStringExt;
        PathBuf::from(std::ffi::OsString::from_vec(self.bytes()))
    }

    #[cfg(not(unix))]
    pub fn to_path(&self) -> PathBuf {
        PathBuf::from(&self.path)
    }
}

/// As one line, whatever is in it.
impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.path.contains(char::is_control) {
            write!(f, "{:?}", self.path)
        } else {
            f.write_str(&self.path)
        }
    }
}

impl State {
    pub fn of(metadata: &Metadata) -> State {
        let since = |time: std::time::SystemTime| match time.duration_since(UNIX_EPOCH) {
            Ok(after) => i64::try_from(after.as_nanos()).unwrap_or(i64::MAX),
            Err(before) => i64::try_from(before.duration().as_nanos()).map_or(i64::MIN, |ns| -ns),
        };
        State {
            size: metadata.len(),
            mtime_ns: metadata.modified().map_or(0, since),
        }
    }
}

impl FileJob {
    /// Its unique key. A path may be longer than a key, so this is a digest.
    pub fn key(&self) -> String {
        let mut hasher = Sha256::new();
        hasher.update(self.state.size.to_le_bytes());
        hasher.update(self.state.mtime_ns.to_le_bytes());
        hasher.update(self.name.bytes());
        hex(&hasher.finalize()[..16])
    }
}

/// None when there is no such regular file.
pub fn state_now(root: &Path, name: &Name) -> io::Result<Option<State>> {
    match fs::symlink_metadata(root.join(name.to_path())) {
        Ok(metadata) => Ok(metadata.is_file().then(|| State::of(&metadata))),
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
            ) =>
        {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

pub fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digit = |value: u8| char::from(DIGITS[usize::from(value)]);
    bytes
        .iter()
        .flat_map(|byte| [digit(byte >> 4), digit(byte & 15)])
        .collect()
}

pub fn unhex(digits: &str) -> Option<Vec<u8>> {
    let digits = digits.as_bytes();
    let value = |digit: u8| u8::try_from(char::from(digit).to_digit(16)?).ok();
    let (pairs, []) = digits.as_chunks::<2>() else {
        return None;
    };
    pairs
        .iter()
        .map(|[high, low]| Some(value(*high)? << 4 | value(*low)?))
        .collect()
}

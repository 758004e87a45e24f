//! The other side of `shim.c`: builds it, and tells it what to do.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const SOURCE: &str = include_str!("shim.c");
const CONTROL: &str = "STEPWELL_SHIM_CONTROL";
const RECORD: &str = "STEPWELL_SHIM_RECORD";
const DIR: &str = "STEPWELL_SHIM_DIR";
/// Eight numbers of 8 bytes.
const CONTROL_BYTES: u64 = 64;

/// What a call fails with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// EIO; any call.
    Io,
    /// ENOSPC; calls that may need space.
    Full,
    /// Half of a write is done, then ENOSPC; calls that may need space.
    Short,
    /// EIO of a sync. What had been written is gone, though it can be read, and though later syncs work.
    /// Source: <https://wiki.postgresql.org/wiki/Fsync_Errors>.
    Sync,
    /// EAGAIN; threads that are to be started. Not I/O: its sweep is in `threads`.
    #[allow(
        dead_code,
        reason = "the long form of I/O has no use for it, nor who has no HTTP"
    )]
    Thread,
}

impl Fault {
    /// A sync that fails is one of the calls that fail with EIO.
    pub(crate) const ALL: [Fault; 3] = [Fault::Io, Fault::Full, Fault::Short];

    fn code(self) -> u64 {
        // Source: errno(3), Linux.
        match self {
            Fault::Io => 5,
            Fault::Full => 28,
            Fault::Short => 0,
            Fault::Sync => 256 + 5,
            Fault::Thread => 512 + 11,
        }
    }
}

/// The compiled shim.
#[derive(Debug)]
pub(crate) struct Shim(PathBuf);

impl Shim {
    /// None, and a word on standard error, where there is no C compiler.
    pub(crate) fn build(dir: &Path) -> Option<Shim> {
        let library = dir.join("shim.so");
        let source = dir.join("shim.c");
        std::fs::write(&source, SOURCE).expect("a file can be written");
        let built = Command::new("cc")
            .args(["-shared", "-fPIC", "-O2", "-Wall", "-Werror", "-o"])
            .args([&library, &source])
            .args(["-ldl", "-lpthread"])
            .output();
        match built {
            Ok(output) if output.status.success() => Some(Shim(library)),
            Ok(output) => panic!("{}", String::from_utf8_lossy(&output.stderr)),
            Err(error) => {
                eprintln!(
                    "*** SKIPPED: no I/O fault is tested, there is no C compiler: {error} ***"
                );
                None
            }
        }
    }

    /// Makes `command` run with the shim before the files of the queue in `dir`.
    pub(crate) fn wrap(&self, command: &mut Command, dir: &Path, record: Option<&Path>) {
        command
            .env("LD_PRELOAD", &self.0)
            .env(DIR, dir)
            .env(CONTROL, control_path(dir))
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        if let Some(record) = record {
            command.env(RECORD, record);
        }
    }
}

fn control_path(dir: &Path) -> PathBuf {
    dir.join("control")
}

/// What the shim is told, and what it has counted.
#[derive(Debug)]
pub(crate) struct Control(File);

impl Control {
    /// Nothing fails until it is armed.
    pub(crate) fn create(dir: &Path, fault: Fault, at: u64, is_lasting: bool) -> Control {
        let mut options = File::options();
        options.read(true).write(true).create(true).truncate(true);
        let file = options.open(control_path(dir)).expect("a file can be made");
        file.set_len(CONTROL_BYTES).expect("a file can be made");
        let control = Control(file);
        control.set(1, at);
        control.set(2, u64::from(is_lasting));
        control.set(3, fault.code());
        control
    }

    /// As the process sees it that runs with the shim.
    pub(crate) fn open(dir: &Path) -> Control {
        let file = File::options()
            .read(true)
            .write(true)
            .open(control_path(dir));
        Control(file.expect("it was created"))
    }

    pub(crate) fn arm(&self) {
        self.set(0, 1);
    }

    pub(crate) fn lift(&self) {
        self.set(0, 0);
    }

    /// Whether reads fail.
    pub(crate) fn is_unreadable(&self) -> bool {
        self.get(3) == Fault::Io.code()
    }

    pub(crate) fn failures(&self) -> u64 {
        self.get(5)
    }

    pub(crate) fn is_lasting(&self) -> bool {
        self.get(2) == 1
    }

    /// The first call that failed.
    pub(crate) fn failed(&self) -> String {
        const CALLS: [&str; 11] = [
            "none",
            "open",
            "read",
            "write",
            "sync",
            "truncate",
            "unlink",
            "stat",
            "map",
            "failed sync",
            "thread",
        ];
        const FILES: [&str; 9] = [
            "none",
            "db",
            "wal",
            "shm",
            "owner",
            "other",
            "directory",
            "journal",
            "rollback",
        ];
        let name = |names: &[&'static str], index: u64| {
            let index = usize::try_from(index).unwrap_or(usize::MAX);
            names.get(index).copied().unwrap_or("?")
        };
        format!(
            "{} {}",
            name(&CALLS, self.get(6)),
            name(&FILES, self.get(7))
        )
    }

    fn set(&self, index: u64, value: u64) {
        let written = self.0.write_all_at(&value.to_le_bytes(), index * 8);
        written.expect("the control file can be written");
    }

    fn get(&self, index: u64) -> u64 {
        let mut bytes = [0; 8];
        let read = self.0.read_exact_at(&mut bytes, index * 8);
        read.expect("the control file can be read");
        u64::from_le_bytes(bytes)
    }
}

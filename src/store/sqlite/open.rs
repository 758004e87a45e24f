//! Opening a file: its mode, pragmas, identity and schema, and what a foreign or damaged file is answered with. L2.
//!
//! Traps that decide the order of things here:
//! - SQLite creates files with mode 0644 and gives `-wal` and `-shm` the mode of the main file: the main file is made first,
//!   0600, before SQLite sees it. After that the process never opens it itself: closing any descriptor of it would drop every
//!   lock that SQLite holds (<https://www.sqlite.org/howtocorrupt.html>, section 2.2).
//! - A pragma that is refused reports nothing: `journal_mode` is read back. The switch to WAL does not use the busy handler.
//! - What a statement or a savepoint may have to take back goes to a file in a directory of the system beyond 64 KiB, unless it is
//!   told otherwise: the queue would need a second place that can be written and is not full.
//! - A deferred transaction that reads first and writes later gets `SQLITE_BUSY` at once: writers say `BEGIN IMMEDIATE`.

use std::fs::OpenOptions;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, MAIN_DB, OpenFlags, TransactionBehavior};

use crate::config::Durability;
use crate::error::{Error, ErrorKind, Result};
use crate::store::sqlite::errors::{self, Context};
use crate::sync;

/// "step" in ASCII; marks a file as ours. Source: <https://www.sqlite.org/pragma.html#pragma_application_id>.
const APPLICATION_ID: i32 = 0x7374_6570;
/// The scripts that lead from an empty file to the present schema; `user_version` says how many have been run.
pub(super) const MIGRATIONS: &[&str] = &[include_str!("0001.sql")];
/// Older versions can corrupt a WAL with several connections. Source: <https://www.sqlite.org/wal.html>, "The WAL-reset bug".
const SQLITE_MIN: i32 = 3_051_003;
/// Every statement of ours fits, so that none is ever prepared twice.
const STATEMENTS: usize = 128;
/// The log is folded back at 1000 pages; after a burst its file shrinks back to this.
const WAL_BYTES_KEPT: i64 = 8 << 20;
/// How often a busy file is tried again before it is an error: with the pauses of [`busy`] about 10 s.
const BUSY_TRIES_MAX: i32 = 1000;

/// What runs code of its own when we read or write: it may have no end, or undo what we do. Nothing of ours is of that kind.
const SELECT_FOREIGN: &str = "SELECT type, name FROM sqlite_schema
    WHERE type IN ('trigger', 'view') OR sql LIKE 'CREATE VIRTUAL%'
    ORDER BY name LIMIT 1";

/// Opens the writing connection, creating or migrating the file as needed.
pub(super) fn writer(path: &Path, durability: Durability) -> Result<Connection> {
    if rusqlite::version_number() < SQLITE_MIN {
        let problem = format!(
            "SQLite {} has a bug that can corrupt the file: 3.51.3 is needed",
            rusqlite::version()
        );
        return Err(Error::new(ErrorKind::InvalidConfig, problem));
    }
    create_private(path)?;
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut conn = Connection::open_with_flags(path, flags)
        .map_err(|e| errors::map(e, Context::Open(path)))?;
    // A file that cannot be opened for writing is opened for reading by SQLite, without a word, and stays so: for good, when
    // the disk had failed only once.
    if conn.is_readonly(MAIN_DB).unwrap_or(true) {
        let problem = format!(
            "{}: cannot be opened for writing: check the permissions of the file and its directory",
            path.display()
        );
        return Err(Error::new(ErrorKind::Storage, problem));
    }
    prepare(&mut conn, path, durability).and_then(|()| migrate(&mut conn, path))?;
    Ok(conn)
}

/// Opens a connection that cannot write. The file must have been opened for writing before.
pub(super) fn reader(path: &Path) -> Result<Connection> {
    let map = |error| errors::map(error, Context::Open(path));
    // Not read-only in SQLite's sense: a reader of a WAL must be able to write the shared index beside it.
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut conn = Connection::open_with_flags(path, flags).map_err(map)?;
    conn.busy_handler(Some(busy)).map_err(map)?;
    set_up(&conn).map_err(map)?;
    // Readers look at few rows: 64 pages are enough, and there may be several of them.
    conn.execute_batch("PRAGMA query_only = ON; PRAGMA cache_size = -256;")
        .map_err(map)?;
    Ok(conn)
}

/// The path that names this file, whatever links lead to it: the files beside it are found by it.
pub(crate) fn canonical(path: &Path) -> Result<PathBuf> {
    let invalid = |problem: String| {
        Error::new(
            ErrorKind::InvalidConfig,
            format!("{}: {problem}", path.display()),
        )
    };
    if path.is_dir() {
        return Err(invalid("is a directory: name a file in it".to_owned()));
    }
    if let Ok(found) = path.canonicalize() {
        return Ok(found);
    }
    let name = path
        .file_name()
        .ok_or_else(|| invalid("is not the path of a file".to_owned()))?;
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let parent = parent.canonicalize().map_err(|error| {
        invalid("its directory cannot be opened: create it first".to_owned()).with_source(error)
    })?;
    Ok(parent.join(name))
}

/// Prepares each statement once in the life of a connection, and makes no temporary files.
fn set_up(conn: &Connection) -> rusqlite::Result<()> {
    conn.set_prepared_statement_cache_capacity(STATEMENTS);
    // Without this SQLite plans a statement with a bound LIMIT anew whenever a value is bound, in case another plan suits the
    // value better: 30 to 60 us at every claim. Source: <https://www.sqlite.org/c3ref/c_dbconfig_defensive.html>.
    conn.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
    // What is kept is the pages that one step or statement changes. Source: <https://www.sqlite.org/tempfiles.html>, section 3.
    conn.execute_batch("PRAGMA temp_store = MEMORY")
}

fn create_private(path: &Path) -> Result<()> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    match options.open(path) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => {
            let problem = format!(
                "{}: the file cannot be created: check the permissions of its directory",
                path.display()
            );
            Err(Error::new(errors::kind_of_io(&error), problem).with_source(error))
        }
    }
}

/// Names a file, whatever its path: device and number. Nothing where the system has no such numbers.
#[cfg(unix)]
pub(super) type Identity = (u64, u64);
#[cfg(not(unix))]
pub(super) type Identity = ();

/// Which file stands at `path`. Does not open it.
pub(super) fn identity(path: &Path) -> std::io::Result<Identity> {
    let metadata = std::fs::metadata(path)?;
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        Ok((metadata.dev(), metadata.ino()))
    }
    #[cfg(not(unix))]
    {
        let _ = metadata;
        Ok(())
    }
}

/// The file that was opened is not at its path any more.
pub(super) fn moved(path: &Path) -> Error {
    let problem = format!(
        "{}: the file was deleted or replaced while it was open: put it back, or close the queue and open it again",
        path.display()
    );
    Error::new(ErrorKind::Storage, problem)
}

fn prepare(conn: &mut Connection, path: &Path, durability: Durability) -> Result<()> {
    let map = |error| errors::map(error, Context::Open(path));
    conn.busy_handler(Some(busy)).map_err(map)?;
    set_up(conn).map_err(map)?;
    identify(conn, path)?;
    let mut tries = 0;
    loop {
        match conn.query_row("PRAGMA journal_mode = WAL", [], |row| {
            row.get::<_, String>(0)
        }) {
            Ok(mode) if mode == "wal" => break,
            Ok(mode) => {
                let problem = format!(
                    "{}: cannot be switched to WAL, journal_mode stays {mode}",
                    path.display()
                );
                return Err(Error::new(ErrorKind::Storage, problem));
            }
            Err(error) if errors::is_busy(&error) && busy(tries) => tries += 1,
            Err(error) => return Err(map(error)),
        }
    }
    let synchronous = match durability {
        Durability::Full => "FULL",
        Durability::Normal => "NORMAL",
    };
    conn.execute_batch(&format!(
        "PRAGMA synchronous = {synchronous};
         PRAGMA wal_autocheckpoint = 1000;
         PRAGMA journal_size_limit = {WAL_BYTES_KEPT};
         PRAGMA cache_size = -2000;
         PRAGMA trusted_schema = OFF;
         PRAGMA cell_size_check = ON;"
    ))
    .map_err(map)
}

/// Refuses files that are not ours before anything is changed in them.
fn identify(conn: &Connection, path: &Path) -> Result<()> {
    let map = |error| errors::map(error, Context::Open(path));
    let number = |pragma: &str| {
        conn.query_row(pragma, [], |row| row.get::<_, i32>(0))
            .map_err(map)
    };
    let (id, version) = (
        number("PRAGMA application_id")?,
        number("PRAGMA user_version")?,
    );
    let tables = number("SELECT count(*) FROM sqlite_schema")?;
    let known = i32::try_from(MIGRATIONS.len()).expect("a handful");
    if id != APPLICATION_ID && (tables > 0 || id != 0 || version != 0) {
        let problem = format!(
            "{}: is an SQLite file of another program: name a file of its own",
            path.display()
        );
        return Err(Error::new(ErrorKind::InvalidConfig, problem));
    }
    if version > known {
        let problem = format!(
            "{}: was written by a newer stepwell (schema {version}, this one knows {known}): use that version",
            path.display()
        );
        return Err(Error::new(ErrorKind::InvalidConfig, problem));
    }
    let foreign = conn.query_row(SELECT_FOREIGN, [], |row| {
        Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?))
    });
    match foreign {
        Ok((what, name)) => {
            let problem = format!(
                "{}: has a {what} {name:?}, which stepwell did not make: drop it",
                path.display()
            );
            Err(Error::new(ErrorKind::Corrupt, problem))
        }
        Err(rusqlite::Error::QueryReturnedNoRows) => Ok(()),
        Err(error) => Err(map(error)),
    }
}

fn migrate(conn: &mut Connection, path: &Path) -> Result<()> {
    let map = |error| errors::map(error, Context::Open(path));
    let tx = conn
        .transaction_with_behavior(TransactionBehavior::Immediate)
        .map_err(map)?;
    let version: i32 = tx
        .query_row("PRAGMA user_version", [], |row| row.get(0))
        .map_err(map)?;
    let done = usize::try_from(version).unwrap_or(0);
    if done < MIGRATIONS.len() {
        for script in &MIGRATIONS[done..] {
            tx.execute_batch(script).map_err(map)?;
        }
        if done == 0 {
            tx.execute(
                "INSERT INTO meta (key, value) VALUES ('file_id', lower(hex(randomblob(6))))",
                [],
            )
            .map_err(map)?;
        }
        let batch = format!(
            "PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {};",
            MIGRATIONS.len()
        );
        tx.execute_batch(&batch).map_err(map)?;
    }
    tx.commit().map_err(map)
}

/// Waits a little longer each time, and never as long as another process that waits for the same file.
pub(super) fn busy(tries: i32) -> bool {
    if tries >= BUSY_TRIES_MAX {
        return false;
    }
    let base = u64::try_from(tries.clamp(1, 20)).unwrap_or(1) * 500;
    let jitter = u64::from(std::process::id())
        .wrapping_mul(0x9E37_79B9)
        .rotate_left(tries.unsigned_abs() % 32)
        % 500;
    sync::pause(Duration::from_micros(base + jitter));
    true
}

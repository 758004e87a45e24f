//! SQLite's errors as ours: what happened, to which file or row, and what to do. L2.

use std::path::Path;

use rusqlite::ErrorCode;

use crate::config::truncate;
use crate::error::{Error, ErrorKind};

/// What was being done.
#[derive(Clone, Copy)]
pub(super) enum Context<'a> {
    Open(&'a Path),
    Read,
    Write,
    Commit,
}

pub(super) fn is_busy(error: &rusqlite::Error) -> bool {
    matches!(
        error.sqlite_error_code(),
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked)
    )
}

pub(super) fn kind_of_io(error: &std::io::Error) -> ErrorKind {
    use std::io::ErrorKind as Io;
    if matches!(error.kind(), Io::StorageFull | Io::QuotaExceeded) {
        ErrorKind::StorageFull
    } else {
        ErrorKind::Storage
    }
}

pub(super) fn map(error: rusqlite::Error, context: Context<'_>) -> Error {
    let doing = match context {
        Context::Open(path) => format!("{}: cannot be opened", path.display()),
        Context::Read => "the store cannot be read".to_owned(),
        Context::Commit => "the store cannot be written".to_owned(),
        Context::Write => "the store cannot be written, nothing was changed".to_owned(),
    };
    let (kind, advice) = match error.sqlite_error_code() {
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => (
            ErrorKind::Storage,
            ": another program has held the file for more than 10 s",
        ),
        Some(ErrorCode::DiskFull) => (ErrorKind::StorageFull, ": make room on the disk"),
        // The index of the log gets its blocks when it is made.
        _ if is_for_want_of_room(&error) => (ErrorKind::StorageFull, ": make room on the disk"),
        Some(ErrorCode::NotADatabase) => (
            ErrorKind::InvalidConfig,
            ": it is no SQLite file, name another one",
        ),
        // A commit writes, and reads only to fold the log back: SQLite calls a file malformed when a read fails with EIO.
        Some(ErrorCode::DatabaseCorrupt) if matches!(context, Context::Commit) => {
            (ErrorKind::Storage, "")
        }
        Some(ErrorCode::DatabaseCorrupt) => (
            ErrorKind::Corrupt,
            ": the file is damaged or its disk cannot be read: if that lasts, restore it from a copy",
        ),
        Some(ErrorCode::ReadOnly | ErrorCode::CannotOpen | ErrorCode::PermissionDenied) => (
            ErrorKind::Storage,
            ": check the permissions of the file and its directory",
        ),
        Some(ErrorCode::ConstraintViolation) => (ErrorKind::Corrupt, ""),
        _ if is_of_a_value(&error) => (ErrorKind::Corrupt, ""),
        _ => (ErrorKind::Storage, ""),
    };
    Error::new(kind, format!("{doing}{advice}")).with_source(error)
}

fn is_for_want_of_room(error: &rusqlite::Error) -> bool {
    let code = error.sqlite_error().map(|error| error.extended_code);
    code == Some(rusqlite::ffi::SQLITE_IOERR_SHMSIZE)
}

/// A column that holds another type than we ever write.
fn is_of_a_value(error: &rusqlite::Error) -> bool {
    use rusqlite::Error as Sql;
    matches!(
        error,
        Sql::InvalidColumnType(..)
            | Sql::FromSqlConversionFailure(..)
            | Sql::IntegralValueOutOfRange(..)
            | Sql::Utf8Error(..)
    )
}

/// Of a value that is damaged.
const VALUE_BYTES_SHOWN: usize = 40;

/// A value in a row that we never write.
pub(super) fn corrupt(table: &str, id: i64, column: &str, value: impl std::fmt::Display) -> Error {
    // It may be a payload: no more of it than tells what it is.
    let mut value = value.to_string();
    if value.len() > VALUE_BYTES_SHOWN {
        truncate(&mut value, VALUE_BYTES_SHOWN);
        value.push_str("...");
    }
    let problem = format!(
        "table {table}, row {id}: column {column} has the value {value}, which stepwell never writes"
    );
    Error::new(ErrorKind::Corrupt, problem)
}

//! The SQLite backend. L2; nothing of `rusqlite` is named outside this folder.
//!
//! `open` makes connections, `commit` writes jobs and events, and nothing else does but `updates` and `inserts`, which write what
//! happens to neighbouring jobs at once. `held` keeps statements at hand, `by_status` finds jobs, `due` what can be claimed, `prune`
//! has the statements of retention, `rows` turns columns into types, `read` is the reading side, `names` remembers job types and
//! plans, `known` what was written last, and `reserve` keeps room on the disk.

mod by_status;
mod check;
mod commit;
mod due;
mod errors;
mod held;
mod inserts;
mod known;
mod names;
mod open;
mod outbox;
mod prune;
mod read;
mod reserve;
mod rows;
#[cfg(test)]
mod tests;
mod updates;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rusqlite::Connection;

use crate::config::Durability;
use crate::error::{Error, ErrorKind, Result};
use crate::store::prune::Seen;
use crate::store::{Failure, Reader, Rows, Store, disk_is_full};

pub(crate) use open::canonical;

/// The writing side of one file.
pub(crate) struct SqliteStore {
    path: PathBuf,
    durability: Durability,
    /// None after a failed commit, until it is opened anew.
    conn: Option<Connection>,
    is_closed: bool,
    /// None for a client: the room is for who runs jobs.
    reserve: Option<reserve::Reserve>,
    /// The file that was opened: another one, or none, may stand at its path by now.
    identity: open::Identity,
    names: names::Names,
    known: known::Known,
    readers: Arc<read::Readers>,
    /// Where the passes of retention are.
    seen: Seen,
    /// Kept for its memory.
    inserts: inserts::Inserts,
}

impl SqliteStore {
    pub(crate) fn open(path: &Path, durability: Durability) -> Result<SqliteStore> {
        let conn = open::writer(path, durability)?;
        let identity = open::identity(path).map_err(|_| open::moved(path))?;
        Ok(SqliteStore {
            path: path.to_owned(),
            durability,
            conn: Some(conn),
            is_closed: false,
            reserve: None,
            identity,
            names: names::Names::default(),
            known: known::Known::default(),
            readers: Arc::new(read::Readers::new(path)),
            seen: Seen::default(),
            inserts: inserts::Inserts::default(),
        })
    }

    /// As [`SqliteStore::open`], for who runs jobs: keeps so many bytes of the disk for what is under way. If the disk is full now,
    /// they are given away, so that what a process before this one left can be recovered.
    pub(crate) fn open_with_reserve(
        path: &Path,
        durability: Durability,
        bytes: u64,
    ) -> Result<SqliteStore> {
        let reserve = reserve::Reserve::new(path, bytes);
        let mut store = match SqliteStore::open(path, durability) {
            Err(error) if error.kind() == ErrorKind::StorageFull && reserve.spend() => {
                SqliteStore::open(path, durability)?
            }
            opened => opened?,
        };
        reserve.prepare();
        store.reserve = Some(reserve);
        Ok(store)
    }

    /// For a client: refuses to take the room that was given away for jobs under way.
    pub(crate) fn check_room(&self) -> Result<()> {
        if reserve::Reserve::is_given_away(&self.path) {
            return Err(disk_is_full());
        }
        Ok(())
    }

    /// Believes nothing that is not read from the file.
    fn forget(&mut self) {
        self.names = names::Names::default();
        self.known = known::Known::default();
    }

    /// The writing connection to the file that was opened first, and to no other.
    fn take_writer(&mut self) -> Result<Connection> {
        if self.is_closed {
            return Err(Error::closed());
        }
        // What is written to a file without a name is lost when it is closed, and a file that is opened in its place is empty.
        // It costs a microsecond a commit. SQLite looks itself, but only in its other journal modes.
        if open::identity(&self.path).ok() != Some(self.identity) {
            return Err(open::moved(&self.path));
        }
        match self.conn.take() {
            Some(conn) => Ok(conn),
            None => open::writer(&self.path, self.durability),
        }
    }
}

impl Store for SqliteStore {
    fn transact(
        &mut self,
        work: &mut dyn FnMut(&mut dyn Rows) -> Result<()>,
    ) -> std::result::Result<(), Failure> {
        let conn = self.take_writer().map_err(Failure::NothingDone)?;
        let (names, known) = (&mut self.names, &mut self.known);
        let (seen, inserts) = (&mut self.seen, &mut self.inserts);
        let outcome = commit::transact(&conn, names, known, seen, inserts, work);
        if outcome.is_err() {
            // A number that was given to a name in this transaction is free again, and what it wrote is not there.
            self.forget();
        }
        // When a rollback failed, nothing can be begun on this connection any more.
        self.conn = Some(conn).filter(Connection::is_autocommit);
        outcome
    }

    fn reopen(&mut self) -> Result<()> {
        // Every connection goes first: what the failed commit left in their memory must not be believed.
        self.conn = None;
        self.forget();
        self.readers.drop_all();
        self.conn = Some(self.take_writer()?);
        Ok(())
    }

    /// Does not wait for readers: a copy of the file that is being made may take hours.
    fn checkpoint(&mut self) -> Result<()> {
        let Some(conn) = &mut self.conn else {
            return Ok(());
        };
        let folded = conn
            .busy_timeout(Duration::ZERO)
            .and_then(|()| conn.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get(0)));
        let folded = conn.busy_handler(Some(open::busy)).and(folded);
        let busy: i64 =
            folded.map_err(|error| errors::map(error, errors::Context::Open(&self.path)))?;
        if busy == 0 {
            Ok(())
        } else {
            Err(Error::new(
                ErrorKind::Storage,
                "a reader keeps the log from being folded back",
            ))
        }
    }

    fn close(&mut self) {
        self.readers.close();
        self.conn = None;
        self.is_closed = true;
    }

    fn reader(&self) -> Arc<dyn Reader> {
        self.readers.clone()
    }

    fn spend_reserve(&mut self) -> bool {
        self.reserve.as_ref().is_some_and(reserve::Reserve::spend)
    }

    fn is_reserve_spent(&self) -> bool {
        let reserve = self.reserve.as_ref();
        reserve.is_some_and(reserve::Reserve::is_spent)
    }

    fn refill_reserve(&mut self) -> std::io::Result<bool> {
        self.reserve
            .as_ref()
            .map_or(Ok(true), reserve::Reserve::refill)
    }
}

//! What the writing connection has read or written last, so that it need not read it again. L2.
//!
//! All of it is true as long as no other connection has committed anything, which SQLite answers within the transaction
//! (`PRAGMA data_version`, <https://www.sqlite.org/pragma.html#pragma_data_version>), and as long as every transaction of our own
//! was committed. Else it is forgotten, and read when it is asked for.

use std::collections::HashMap;
use std::sync::Arc;

use rusqlite::Connection;

use crate::error::Result;
use crate::job::{JobId, JobStatus};
use crate::store::outbox::EndpointRow;
use crate::store::sqlite::rows::number;
use crate::store::{Head, TypeRow};
use crate::transition::JobRow;

const DATA_VERSION: &str = "PRAGMA data_version";
/// More than are ever under way at once; a hundred bytes each.
const RUNNING_MAX: usize = 4096;

#[derive(Default)]
pub(super) struct Known {
    version: Option<i64>,
    /// Another connection has committed something that nobody was told of yet.
    has_news: bool,
    /// They were told of in the present transaction.
    are_told: bool,
    pub(super) head: Option<Head>,
    /// The webhook endpoints that have a name.
    pub(super) endpoints: Option<Vec<EndpointRow>>,
    types: HashMap<Arc<str>, TypeRow>,
    /// Jobs under way: their next change comes soon, and most likely from us.
    running: HashMap<JobId, JobRow>,
}

impl Known {
    /// Forgets what may not be true any more. To be called first in each transaction.
    pub(super) fn check(&mut self, conn: &Connection) -> Result<()> {
        let version = number(conn, DATA_VERSION, &[])?;
        self.are_told = false;
        if self.version != version {
            self.version = version;
            self.has_news = true;
            self.forget();
        }
        Ok(())
    }

    /// Some of it may have been taken back.
    pub(super) fn forget(&mut self) {
        *self = Known {
            version: self.version,
            has_news: self.has_news,
            are_told: self.are_told,
            ..Known::default()
        };
    }

    /// Whether another connection has committed something since this was told last, in a transaction that was committed. Also true for
    /// a connection that is new itself: nobody knows what it has missed.
    pub(super) fn tell_news(&mut self) -> bool {
        self.are_told = true;
        self.has_news
    }

    /// The transaction is committed.
    pub(super) fn committed(&mut self) {
        self.has_news &= !self.are_told;
    }

    pub(super) fn job_type(&self, name: &str) -> Option<&TypeRow> {
        self.types.get(name)
    }

    pub(super) fn remember_type(&mut self, name: Arc<str>, row: TypeRow) {
        self.types.insert(name, row);
    }

    pub(super) fn forget_types(&mut self) {
        self.types.clear();
    }

    pub(super) fn job(&self, id: JobId) -> Option<JobRow> {
        self.running.get(&id).copied()
    }

    /// A job was written.
    pub(super) fn written(&mut self, row: &JobRow) {
        if row.status == JobStatus::Running && self.running.len() < RUNNING_MAX {
            self.running.insert(row.id, *row);
        } else if !self.running.is_empty() {
            // The map would hash the id first.
            self.running.remove(&row.id);
        }
    }
}

//! Statements that are held over one transaction. L2.
//!
//! The connection keeps prepared statements by their text. Taking one out and giving it back hashes that text three times, which
//! costs a tenth of what a commit of many jobs costs. So a statement is taken once in a transaction.

use rusqlite::{CachedStatement, Connection, ToSql};

/// Statements of one transaction by their text, a handful.
pub(super) struct Held<'c> {
    conn: &'c Connection,
    statements: Vec<(&'static str, CachedStatement<'c>)>,
}

impl<'c> Held<'c> {
    pub(super) fn new(conn: &'c Connection) -> Held<'c> {
        Held {
            conn,
            statements: Vec::with_capacity(8),
        }
    }

    /// Runs a statement that answers no rows, and says how many it changed.
    pub(super) fn execute(
        &mut self,
        sql: &'static str,
        params: &[&dyn ToSql],
    ) -> rusqlite::Result<usize> {
        let index = match self.find(sql) {
            Some(index) => index,
            None => {
                self.statements.push((sql, self.conn.prepare_cached(sql)?));
                self.statements.len() - 1
            }
        };
        self.statements[index].1.execute(params)
    }

    fn find(&self, sql: &'static str) -> Option<usize> {
        let by_address = self
            .statements
            .iter()
            .position(|(held, _)| std::ptr::eq(*held, sql));
        // One text may stand at several addresses.
        by_address.or_else(|| self.statements.iter().position(|(held, _)| *held == sql))
    }
}

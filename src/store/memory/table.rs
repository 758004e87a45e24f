//! An ordered map that can be put back to where the last commit left it. L2.

use std::collections::BTreeMap;
use std::ops::Deref;

/// Rows by key, and what they were before the open transaction.
pub(super) struct Table<K, V> {
    rows: BTreeMap<K, V>,
    /// What each write of the open transaction found, oldest first.
    undo: Vec<(K, Option<V>)>,
    /// How many of them there were at the mark.
    mark: usize,
}

impl<K, V> Default for Table<K, V> {
    fn default() -> Table<K, V> {
        Table {
            rows: BTreeMap::new(),
            undo: Vec::new(),
            mark: 0,
        }
    }
}

impl<K, V> Deref for Table<K, V> {
    type Target = BTreeMap<K, V>;

    fn deref(&self) -> &BTreeMap<K, V> {
        &self.rows
    }
}

impl<K: Ord + Clone, V> Table<K, V> {
    pub(super) fn put(&mut self, key: K, value: V) {
        let before = self.rows.insert(key.clone(), value);
        self.undo.push((key, before));
    }

    pub(super) fn remove(&mut self, key: &K) {
        if let Some((key, before)) = self.rows.remove_entry(key) {
            self.undo.push((key, Some(before)));
        }
    }

    pub(super) fn commit(&mut self) {
        // Not `clear`: one large transaction must not leave its capacity behind.
        self.undo = Vec::new();
    }

    pub(super) fn roll_back(&mut self) {
        self.roll_back_to(0);
    }

    pub(super) fn mark(&mut self) {
        self.mark = self.undo.len();
    }

    pub(super) fn undo(&mut self) {
        self.roll_back_to(self.mark);
    }

    fn roll_back_to(&mut self, length: usize) {
        while self.undo.len() > length
            && let Some((key, before)) = self.undo.pop()
        {
            match before {
                Some(value) => self.rows.insert(key, value),
                None => self.rows.remove(&key),
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_that_is_rolled_back_is_as_it_was_however_often_a_row_was_written() {
        let mut table = Table::default();
        table.put(1, "a");
        table.put(2, "b");
        table.commit();
        let before: Vec<_> = table.iter().map(|(k, v)| (*k, *v)).collect();
        table.put(1, "x");
        table.put(1, "y");
        table.remove(&2);
        table.remove(&9);
        table.put(3, "z");
        table.remove(&3);
        table.put(2, "w");
        let halfway: Vec<_> = table.iter().map(|(k, v)| (*k, *v)).collect();
        table.mark();
        table.put(2, "v");
        table.put(4, "u");
        table.undo();
        assert_eq!(
            table.iter().map(|(k, v)| (*k, *v)).collect::<Vec<_>>(),
            halfway
        );
        table.roll_back();
        assert_eq!(
            table.iter().map(|(k, v)| (*k, *v)).collect::<Vec<_>>(),
            before
        );
    }
}

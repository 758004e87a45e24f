//! How often each seldom taken path was taken.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

/// How often what was seen.
#[derive(Debug, Default)]
pub(crate) struct Counters(BTreeMap<Cow<'static, str>, u64>);

impl Counters {
    pub(crate) fn add(&mut self, name: &'static str) {
        *self.0.entry(name.into()).or_default() += 1;
    }

    pub(crate) fn add_owned(&mut self, name: String) {
        *self.0.entry(name.into()).or_default() += 1;
    }

    pub(crate) fn merge(&mut self, other: &Counters) {
        for (name, count) in &other.0 {
            *self.0.entry(name.clone()).or_default() += count;
        }
    }

    pub(crate) fn set(&mut self, name: String, count: u64) {
        self.0.insert(name.into(), count);
    }

    pub(crate) fn count(&self, name: &str) -> u64 {
        self.0.get(name).copied().unwrap_or(0)
    }

    /// Those of `rare` that were never seen.
    pub(crate) fn never(&self, rare: &[&'static str]) -> Vec<&'static str> {
        let is_new = |name: &&&str| !self.0.contains_key(**name);
        rare.iter().filter(is_new).copied().collect()
    }
}

impl fmt::Display for Counters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0
            .iter()
            .try_for_each(|(name, count)| write!(f, "\n  {count:>8} {name}"))
    }
}

//! H8: no event before its commit. What a callback heard in a process that was killed must stand in its file, as it was heard, with
//! nothing left out; one that panicked is not called again, and the others hear on.

use std::collections::BTreeMap;

use stepwell::{Event, EventKind, JobId};

use crate::counters::Counters;

#[derive(Debug, Default)]
pub(super) struct Heard {
    /// By number: the kind of event, and its job.
    events: BTreeMap<i64, (String, JobId)>,
    /// The last one in this process.
    last: Option<i64>,
    /// What the callback heard that panicked in this process.
    panicked: Option<i64>,
    /// The newest event that the file had when it was looked at last.
    newest: i64,
}

impl Heard {
    /// A process begins.
    pub(super) fn begins(&mut self) {
        (self.last, self.panicked) = (None, None);
    }

    pub(super) fn hears(
        &mut self,
        seq: i64,
        kind: &str,
        job: JobId,
        counters: &mut Counters,
    ) -> Result<(), String> {
        let same = (kind.to_owned(), job);
        if let Some(other) = self.events.insert(seq, same.clone())
            && other != same
        {
            return Err(format!("H8: it had been {other:?}"));
        }
        match self.last.replace(seq) {
            Some(last) if seq != last + 1 => {
                return Err(format!("H8: heard after {last}"));
            }
            None if seq <= self.newest => {
                return Err(format!("H8: {} was there before", self.newest));
            }
            Some(_) | None => {}
        }
        if self.panicked.is_some_and(|panicked| panicked < seq) {
            counters.add("heard after another callback had panicked");
        }
        Ok(())
    }

    pub(super) fn panics(&mut self, seq: i64, counters: &mut Counters) -> Result<(), String> {
        counters.add("callback panicked");
        match self.panicked.replace(seq) {
            Some(first) => Err(format!("called again, it had panicked at {first}")),
            None => Ok(()),
        }
    }

    /// The file was looked at, no process having been at it: what was heard by then is there, or never was true.
    pub(super) fn looked(&mut self, newest: i64) -> Result<(), String> {
        let before = std::mem::replace(&mut self.newest, newest);
        if newest < before {
            return Err(format!("S8: event {before} had been the newest"));
        }
        match self.events.last_key_value() {
            Some((last, what)) if *last > newest => {
                Err(format!("H8: event {last} was heard, {what:?}"))
            }
            _ => Ok(()),
        }
    }

    /// What was heard is what the log says.
    pub(super) fn compare(&self, events: &BTreeMap<i64, Event>) -> Vec<String> {
        let is_other = |(seq, (kind, job)): &(&i64, &(String, JobId))| {
            let event = events.get(seq);
            event.is_none_or(|event| event.kind.as_str() != kind || event.job_id != *job)
        };
        let others = self.events.iter().filter(is_other);
        let text = |(seq, heard): (&i64, &(String, JobId))| {
            let said: Option<EventKind> = events.get(seq).map(|event| event.kind);
            format!("H8: event {seq} was heard as {heard:?}, the log says {said:?}")
        };
        others.map(text).collect()
    }
}

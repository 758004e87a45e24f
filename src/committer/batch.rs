//! What a lead takes from the list. L3.

use super::State;
use super::ticket::Promise;
use crate::store::ops::Op;

/// Operations in one transaction: enough to make its fixed costs small, few enough to keep it short.
pub(super) const BATCH_MAX: usize = 512;

pub(super) struct Entry {
    pub(super) op: Op,
    /// None for what was posted.
    pub(super) promise: Option<Promise>,
}

/// Lets others add to the list, as long as it grows, while it is much shorter than the last one: after a commit of many the
/// first outcome comes in when the others are microseconds away. The lead is taken, so that nobody else begins.
pub(super) fn gather(state: &mut crate::sync::MutexGuard<'_, State>) {
    loop {
        let length = state.list.len();
        if length == 0 || length * 4 > state.last_length {
            return;
        }
        crate::sync::MutexGuard::unlocked(state, crate::sync::yield_now);
        if state.list.len() == length {
            return;
        }
    }
}

pub(super) fn take_batch(state: &mut State) -> Vec<Entry> {
    state.last_length = state.list.len();
    let mut batch = if state.list.len() <= BATCH_MAX {
        std::mem::take(&mut state.list)
    } else {
        let rest = state.list.split_off(BATCH_MAX);
        std::mem::replace(&mut state.list, rest)
    };
    sort_outcomes(&mut batch);
    batch
}

/// Puts the outcomes of neighbouring jobs side by side: what happens to neighbours at once is written at once. Those of one job
/// keep their order, and none is moved past an operation of another kind.
pub(super) fn sort_outcomes(batch: &mut [Entry]) {
    let job = |entry: &Entry| {
        if let Op::Settle(settle) = &entry.op {
            Some(settle.id)
        } else {
            None
        }
    };
    for outcomes in batch.chunk_by_mut(|a, b| job(a).is_some() && job(b).is_some()) {
        outcomes.sort_by_key(job);
    }
}

pub(super) fn apart(batch: Vec<Entry>) -> (Vec<Op>, Vec<Option<Promise>>) {
    let entries = batch.into_iter();
    entries.map(|entry| (entry.op, entry.promise)).unzip()
}

pub(super) fn together(ops: Vec<Op>, promises: Vec<Option<Promise>>) -> Vec<Entry> {
    let pairs = ops.into_iter().zip(promises);
    pairs.map(|(op, promise)| Entry { op, promise }).collect()
}

/// What callers wait for. The rest stays.
pub(super) fn take_callers(state: &mut State) -> Vec<Entry> {
    let is_callers = |entry: &Entry| entry.promise.is_some();
    let (callers, rest) = std::mem::take(&mut state.list)
        .into_iter()
        .partition(is_callers);
    state.list = rest;
    callers
}

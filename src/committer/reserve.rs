//! The room that is kept on the disk, and who may use it. L3.
//!
//! | the disk | callers who add work | everybody else | claims |
//! |---|---|---|---|
//! | has room | done | done | go on |
//! | is full, the room is given away: *low* | `StorageFull` | done in that room | stop |
//! | is full, and so is that room | `StorageFull` | as without it: outcomes are kept and tried again | stop |
//!
//! A commit for which there is no room gives the room away, and is done again at once without those who add work. From then on
//! every commit is folded back into the file, so that the log beside it takes no more than one commit. [`LOOK_EVERY`] the committer
//! thread, or a caller who comes then, looks whether the disk has enough room to keep some again; the next commit says that all
//! is well. Where that does not last (a quota is full, and the disk is not) the next look comes later and later.
//!
//! Who adds work says [`Op::adds_work`](crate::store::ops::Op::adds_work). Clients look at the same file before they add any.

use std::time::{Duration, Instant};

use super::{Committer, Entry, Host, State};
use crate::error::{Error, ErrorKind};
use crate::store::disk_is_full;
use crate::time::monotonic;

/// How often somebody looks whether there is room again: one call of the system.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Where the room was taken back and was gone again within a minute.
const LOOK_SELDOM: Duration = Duration::from_secs(64);
const LASTING: Duration = Duration::from_secs(60);

/// The room is given away.
#[derive(Debug)]
pub(super) struct Low {
    pub(super) look_at: Instant,
}

/// How it went lately.
#[derive(Debug, Default)]
pub(super) struct Looks {
    pause: Duration,
    /// When the room was taken back last.
    refilled_at: Option<Instant>,
}

impl State {
    pub(super) fn begin_low(&mut self, now: Instant) {
        let lasted = |at: Instant| now.saturating_duration_since(at) >= LASTING;
        let pause = &mut self.looks.pause;
        *pause = if self.looks.refilled_at.is_none_or(lasted) {
            LOOK_EVERY
        } else {
            (*pause * 2).min(LOOK_SELDOM)
        };
        let look_at = now + *pause;
        self.low = Some(Low { look_at });
    }

    pub(super) fn look_later(&mut self, now: Instant, is_futile: bool) {
        if is_futile {
            self.looks.pause = (self.looks.pause * 2).clamp(LOOK_EVERY, LOOK_SELDOM);
        }
        let pause = if is_futile {
            self.looks.pause
        } else {
            LOOK_EVERY
        };
        self.low = Some(Low {
            look_at: now + pause,
        });
    }

    pub(super) fn end_low(&mut self, now: Instant) {
        self.low = None;
        self.looks.refilled_at = Some(now);
        // The next commit that works says so.
        self.retry_at.get_or_insert(now);
    }
}

impl Committer {
    /// At the opening: the process before this one had given the room away.
    pub(super) fn begin_low_if_spent(&self) {
        if self.store.lock().is_reserve_spent() {
            let look_at = monotonic();
            self.state.lock().low = Some(Low { look_at });
        }
    }

    /// Whether a failure is one that the room helps against; it is given away then.
    pub(super) fn gives_room(&self, error: &Error) -> bool {
        if error.kind() != ErrorKind::StorageFull || !self.store.lock().spend_reserve() {
            return false;
        }
        self.state.lock().begin_low(monotonic());
        self.fold_back();
        true
    }

    /// Who adds work is refused, the others are done in the room that was given away.
    pub(super) fn lead_with_room(&self, host: &dyn Host, error: &Error, batch: Vec<Entry>) {
        host.store_health(Some(error));
        let rest = refuse_work(batch, error);
        if !rest.is_empty() {
            self.lead(host, rest);
        }
    }

    /// While the room is given away: refuses who adds work, unless it can be taken back now.
    pub(super) fn admit(&self, host: &dyn Host, batch: Vec<Entry>) -> Vec<Entry> {
        if self.state.lock().low.is_none() || self.refill(host) {
            return batch;
        }
        refuse_work(batch, &disk_is_full())
    }

    /// Takes the room back, if it is time to look and there is enough; whether it has just done so.
    pub(super) fn refill(&self, host: &dyn Host) -> bool {
        let is_due = |low: &Low| low.look_at <= monotonic();
        if !self.state.lock().low.as_ref().is_some_and(is_due) {
            return false;
        }
        let taken = self.store.lock().refill_reserve();
        let now = monotonic();
        let mut state = self.state.lock();
        match taken {
            Ok(true) => {
                state.end_low(now);
                return true;
            }
            Ok(false) => state.look_later(now, false),
            Err(error) => {
                state.look_later(now, true);
                log::debug!("there seemed to be room, and it cannot be taken: {error}");
            }
        }
        drop(state);
        host.store_health(Some(&disk_is_full()));
        false
    }

    /// While the room is given away the log beside the file is kept short.
    pub(super) fn fold_back(&self) {
        if let Err(error) = self.store.lock().checkpoint() {
            log::debug!("the log was not folded back: {error}");
        }
    }
}

fn refuse_work(batch: Vec<Entry>, error: &Error) -> Vec<Entry> {
    let refuse = |entry: Entry| match entry.promise {
        Some(promise) if entry.op.adds_work() => {
            promise.keep(Err(error.duplicate()));
            None
        }
        promise => Some(Entry {
            op: entry.op,
            promise,
        }),
    };
    batch.into_iter().filter_map(refuse).collect()
}

//! Workers that are to end as soon as they have no handler: another has taken the place of each. L3.
//!
//! As many end as were counted, and no order is asked for beside that: a worker that does not see the newest count yet goes on, and
//! the next one that has no handler ends in its stead. `tests/loom` takes this file as it is.

use crate::sync::{AtomicUsize, Ordering};

#[derive(Debug, Default)]
pub(crate) struct Surplus(AtomicUsize);

impl Surplus {
    pub(crate) fn add(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// Whether the caller is one of them. Costs one look when there is none.
    pub(crate) fn take(&self) -> bool {
        if self.0.load(Ordering::Relaxed) == 0 {
            return false;
        }
        // Another worker may have been quicker.
        let less = |count: usize| count.checked_sub(1);
        let taken = self
            .0
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
        taken.is_ok()
    }
}

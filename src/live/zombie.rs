//! Handlers that are inside although their claim is over. L3.

use std::sync::Arc;

use crate::live::Offer;
use crate::phase::stop::StopFlag;
use crate::sync::ThreadId;

/// A handler has returned after its claim was over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Returned {
    /// Its worker was replaced, and has to end.
    pub(crate) is_abandoned: bool,
    /// The phase of a newer claim of the job, which has waited for it and is to be offered.
    pub(crate) awaited_by: Option<Offer>,
}

pub(super) struct Zombie {
    pub(super) flag: Arc<StopFlag>,
    pub(super) phase_index: u32,
    pub(super) worker: Option<ThreadId>,
    /// It did not stop when it was told to.
    pub(super) has_overstayed: bool,
    pub(super) place: Place,
}

/// The place of a worker whose handler overstays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    Held,
    /// Another worker is being started for it.
    Wanted,
    /// Another worker has it: this one ends when its handler returns.
    Taken,
}

/// Whether a worker may be replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub(crate) enum Replace {
    /// By the caller, who says then how it went.
    Begin,
    /// So many others are.
    TooMany,
    /// Its handler has returned, or somebody else does.
    No,
}

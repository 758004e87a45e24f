//! What decides about claims, as it changes. L3.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;

use crate::engine::State;
use crate::engine::health::StoreHealth;
use crate::engine::plans::Replanned;
use crate::new_job::Enqueued;
use crate::retention::Pruner;
use crate::scheduler::Backlog;
use crate::store::ops::{Claimable, Claimed, PlannedJob};
use crate::time::Timestamp;

impl State {
    pub(super) fn new(pruner: Pruner) -> State {
        State {
            backlog: Backlog::default(),
            pruner,
            head_seq: 0,
            counts: [0; 5],
            types: Vec::new(),
            claimable: Arc::new([]),
            is_paused: false,
            paused_types: HashSet::new(),
            looks: 0,
            look: 0,
            looks_before: 0,
            is_stopping: false,
            store_health: StoreHealth::default(),
            claim_failure: None,
            poison: None,
            planning: HashSet::new(),
            unplanned: VecDeque::new(),
            is_planning: false,
            replanned: Replanned::default(),
            planner: None,
        }
    }

    /// New jobs are there. `direct`: those of them that a worker has already, which nobody need look for.
    pub(super) fn enqueued(
        &mut self,
        jobs: &[PlannedJob],
        enqueued: &[Enqueued],
        direct: &[Claimed],
        now: Timestamp,
    ) {
        let is_direct = |id| direct.binary_search_by_key(&id, |new| new.row.id).is_ok();
        let waits = |new: &Enqueued| new.is_new && !is_direct(new.id);
        for (planned, _) in jobs.iter().zip(enqueued).filter(|(_, new)| waits(new)) {
            self.backlog.added(planned.job.run_at.at(now), now);
        }
    }

    /// A number for who is about to look at what is paused.
    pub(super) fn next_look(&mut self) -> u64 {
        self.looks += 1;
        self.looks
    }

    /// What was committed, when it cannot be read.
    pub(super) fn set_paused(&mut self, job_type: Option<Arc<str>>, paused: bool) {
        let (mut is_paused, mut types) = (self.is_paused, self.paused_types.clone());
        match job_type {
            None => is_paused = paused,
            Some(name) if paused => drop(types.insert(name)),
            Some(name) => drop(types.remove(&name)),
        }
        let look = self.next_look();
        self.take_pauses(look, is_paused, types);
    }

    /// What look number `look` has seen, unless a later one has been here.
    pub(super) fn take_pauses(&mut self, look: u64, is_paused: bool, types: HashSet<Arc<str>>) {
        self.backlog.unknown();
        if look < self.look {
            return;
        }
        let is_resumed = self.is_paused && !is_paused || !self.paused_types.is_subset(&types);
        if is_resumed {
            self.claim_failure = None;
        }
        (self.look, self.is_paused, self.paused_types) = (look, is_paused, types);
        let is_open = |claimable: &&Claimable| {
            !self.is_paused && !self.paused_types.contains(&claimable.job_type)
        };
        self.claimable = self.types.iter().filter(is_open).cloned().collect();
    }
}

//! What a queue is put on: a store and, where it is a file, the proof of being the one process that runs its jobs. L3.

use crate::config::{Config, Location};
use crate::engine::Engine;
use crate::error::Result;
use crate::job::InterruptionReason;
use crate::owner::{Owner, Predecessor, PredecessorEnd, WakeListener};
use crate::store::Store;
use crate::store::memory::MemoryStore;
use crate::store::ops::Recover;
use crate::store::sqlite::{self, SqliteStore};
use crate::time::Timestamp;

pub(crate) struct Ground {
    pub(super) store: Box<dyn Store>,
    pub(super) owner: Option<Owner>,
    /// What the process before this one left.
    pub(super) predecessor: Option<Predecessor>,
    pub(super) wake: Option<WakeListener>,
}

impl Ground {
    pub(super) fn open(config: &Config, began: Timestamp) -> Result<Ground> {
        let path = match &config.location {
            Location::Memory => return Ok(Ground::of(Box::new(MemoryStore::new()))),
            Location::File(path) => sqlite::canonical(path)?,
        };
        let (owner, predecessor) = Owner::acquire(&path, began)?;
        let store = SqliteStore::open_with_reserve(&path, config.durability, config.reserve_bytes)?;
        Ok(Ground {
            wake: Some(WakeListener::bind(&path)),
            store: Box::new(store),
            owner: Some(owner),
            predecessor: Some(predecessor),
        })
    }

    /// A store that needs no such proof.
    pub(crate) fn of(store: Box<dyn Store>) -> Ground {
        Ground {
            store,
            owner: None,
            predecessor: None,
            wake: None,
        }
    }
}

impl Engine {
    /// What a new owner knows about the process before it.
    pub(super) fn recovery(&self, predecessor: Option<&Predecessor>) -> Recover {
        let (reason, all_entered) = match predecessor.map(|predecessor| predecessor.end) {
            // With nothing readable left of it, whatever is running was cut off by a power cut.
            Some(PredecessorEnd::MachineWentDown | PredecessorEnd::None) => {
                (InterruptionReason::MachineWentDown, true)
            }
            Some(PredecessorEnd::Closed) => (InterruptionReason::Shutdown, false),
            Some(PredecessorEnd::ProcessDied) | None => (InterruptionReason::ProcessDied, false),
        };
        let slots = predecessor
            .map(|predecessor| &predecessor.inside[..])
            .unwrap_or_default();
        let noted = |has_returned| {
            let those = slots.iter().filter(|at| at.has_returned == has_returned);
            those
                .map(|at| (at.job_id, at.epoch, at.phase_index, at.since))
                .collect()
        };
        Recover {
            reason,
            inside: noted(false),
            returned: noted(true),
            all_entered,
            max_crashes: self
                .registry
                .iter()
                .filter_map(|def| Some((def.name.clone(), def.max_crashes?)))
                .collect(),
            max_crashes_default: self.config.max_crashes,
        }
    }
}

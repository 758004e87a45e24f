//! What becomes of a commit that failed: see the protocol in the parent module. L3.

use std::time::Duration;

use super::{Committer, Entry, Host, Promise, is_of_one};
use crate::error::{Error, ErrorKind, Result};
use crate::store::Failure;
use crate::store::ops::Op;
use crate::store::seam::Committed;
use crate::time::{Timestamp, monotonic};

/// Why a batch was not committed.
pub(super) enum Outcome {
    /// Nothing was changed.
    Failed(Error),
    /// It may have been changed, and the file cannot be read.
    Unknown(Error, Box<Trial>),
}

/// What a commit did if it is in the file.
pub(super) struct Trial {
    pub(super) committed: Committed,
    pub(super) tag: i64,
    pub(super) now: Timestamp,
    pub(super) took: Duration,
}

impl Trial {
    /// It changed something and left no row in the log, so it cannot be recognised: pauses, endpoints, checkpoints of handlers.
    fn has_no_mark(&self) -> bool {
        self.committed.last_row_seq == 0 && self.committed.has_written
    }
}

/// Where a commit is whose end nobody has seen.
enum Found {
    OnMedium,
    /// Whoever reads sees it, and a power cut may undo it.
    InFile,
    Nowhere,
}

/// A commit that may be in the file.
pub(super) struct Doubt {
    pub(super) trial: Trial,
    /// Its operations, and whether they were posted. Those of callers are not done again: they were told that nobody knows.
    pub(super) ops: Vec<(Op, bool)>,
}

impl Committer {
    /// Looks for a commit in doubt, and acts on what it finds.
    pub(super) fn clear_up(&self, host: &dyn Host) -> Result<()> {
        let Some(doubt) = self.state.lock().doubt.take() else {
            return Ok(());
        };
        let trial = &doubt.trial;
        match self.find(trial) {
            // Nobody was told that it is on the medium: it need not be.
            Ok(Found::OnMedium | Found::InFile) => {
                log::info!("the commit in doubt is in the file");
                let (ops, _): (Vec<_>, Vec<_>) = doubt.ops.into_iter().unzip();
                let promises = ops.iter().map(|_| None).collect();
                self.publish(host, ops, promises, doubt.trial);
                Ok(())
            }
            Ok(Found::Nowhere) => {
                log::info!("the commit in doubt is not in the file");
                let posted = doubt.ops.into_iter().filter(|(_, is_posted)| *is_posted);
                self.keep(posted.map(|(op, _)| op));
                Ok(())
            }
            Err(error) => {
                self.state.lock().doubt = Some(doubt);
                // Whatever is wrong, it is not the fault of the operations that wait.
                let kind = if error.kind() == ErrorKind::StorageFull {
                    ErrorKind::StorageFull
                } else {
                    ErrorKind::Storage
                };
                let problem = "a commit before this one is in doubt, and the file cannot be read";
                Err(Error::new(kind, problem).with_source(error))
            }
        }
    }

    /// Puts operations back to the head of the list.
    fn keep(&self, ops: impl Iterator<Item = Op>) {
        let ops = ops.filter(|op| !is_made_anew(op));
        let mut kept: Vec<Entry> = ops.map(|op| Entry { op, promise: None }).collect();
        let mut state = self.state.lock();
        kept.append(&mut state.list);
        state.list = kept;
    }

    /// After a failed commit: forgets everything that is in memory, and looks whether the commit is in the file.
    pub(super) fn look(&self, error: Error, trial: Trial) -> std::result::Result<Trial, Outcome> {
        log::debug!("a commit failed, the file is opened anew to see whether it happened: {error}");
        match self.find(&trial) {
            Ok(Found::OnMedium) => Ok(trial),
            Ok(Found::InFile) => {
                let problem = format!(
                    "{error}; it is in the file, and may not survive a power cut while somebody reads an older state of it"
                );
                let error = Error::new(ErrorKind::OutcomeUnknown, problem);
                Err(Outcome::Unknown(error, Box::new(trial)))
            }
            // A write that failed: its end is not in the log, whether it can be recognised or not.
            _ if error.kind() == ErrorKind::StorageFull => Err(Outcome::Failed(error)),
            Ok(Found::Nowhere) if trial.has_no_mark() => {
                let problem = format!("it may or may not have happened: {error}");
                Err(Outcome::Failed(Error::new(
                    ErrorKind::OutcomeUnknown,
                    problem,
                )))
            }
            Ok(Found::Nowhere) => Err(Outcome::Failed(error)),
            Err(reopen_error) => {
                let problem = format!("{error}; then the file cannot be opened: {reopen_error}");
                let error = Error::new(ErrorKind::OutcomeUnknown, problem);
                Err(Outcome::Unknown(error, Box::new(trial)))
            }
        }
    }

    /// Before a file is taken for damaged: SQLite says so, too, when a read fails with EIO. Then an outcome would be dropped, and
    /// no job claimed any more, for a disk that had failed once. A file that cannot even be opened is the disk's fault.
    pub(super) fn read_anew(&self, error: &Error) -> Result<()> {
        log::debug!("the file is opened anew to see whether it is damaged: {error}");
        let reopened = self.store.lock().reopen();
        reopened.map_err(|error| {
            if is_of_one(&error) && error.kind() != ErrorKind::Closed {
                Error::new(ErrorKind::Storage, "the file cannot be read").with_source(error)
            } else {
                error
            }
        })
    }

    /// Where a commit is. If it is nowhere, it never will be anywhere: while another process has the file open, its pages are still
    /// in the log beside the file, whole when only their sync has failed, and would count after a crash. So they are written over.
    fn find(&self, trial: &Trial) -> Result<Found> {
        let (seq, tag) = (trial.committed.last_row_seq, trial.tag);
        let mut store = self.store.lock();
        store.reopen()?;
        let mut found = None;
        let looked = store.transact(&mut |rows| {
            found = rows.tag_at(seq)?;
            if found == Some(tag) {
                return Ok(());
            }
            rows.touch()
        });
        if let Err(Failure::NothingDone(error) | Failure::Unknown(error)) = looked {
            return Err(error);
        }
        if found != Some(tag) {
            return Ok(Found::Nowhere);
        }
        // Its sync has failed, and another one would say nothing: the system has marked the pages as written. Folded back they are
        // written anew, and synced.
        Ok(match store.checkpoint() {
            Ok(()) => Found::OnMedium,
            Err(error) => {
                log::debug!("the log was not folded back: {error}");
                Found::InFile
            }
        })
    }

    /// Nothing was changed: callers are told, the rest is kept for another try.
    pub(super) fn failed(
        &self,
        host: &dyn Host,
        error: &Error,
        ops: Vec<Op>,
        promises: Vec<Option<Promise>>,
    ) {
        let mut posted = Vec::new();
        for (op, promise) in ops.into_iter().zip(promises) {
            match promise {
                Some(promise) => promise.keep(Err(error.duplicate())),
                None => posted.push(op),
            }
        }
        if is_of_one(error) {
            for op in posted {
                host.refused(&op, error);
            }
            // A store that had failed does not work yet, whatever it is now.
            let mut state = self.state.lock();
            if state.retry_at.is_some() {
                state.pause_longer(monotonic());
            }
        } else {
            self.keep(posted.into_iter());
            self.state.lock().pause_longer(monotonic());
            host.store_health(Some(error));
        }
    }

    /// The file cannot be read: callers are told that nobody knows, and the next lead clears it up.
    pub(super) fn unknown(
        &self,
        host: &dyn Host,
        error: &Error,
        trial: Trial,
        ops: Vec<Op>,
        promises: Vec<Option<Promise>>,
    ) {
        let unknown = Error::new(
            ErrorKind::OutcomeUnknown,
            format!("it may or may not have happened: {error}"),
        );
        let mut doubtful = Vec::with_capacity(ops.len());
        for (op, promise) in ops.into_iter().zip(promises) {
            doubtful.push((op, promise.is_none()));
            if let Some(promise) = promise {
                promise.keep(Err(unknown.duplicate()));
            }
        }
        let mut state = self.state.lock();
        state.doubt = Some(Box::new(Doubt {
            trial,
            ops: doubtful,
        }));
        state.pause_longer(monotonic());
        drop(state);
        host.store_health(Some(&unknown));
    }
}

/// Whether an operation that nobody waits for need not be kept after a failure: its maker makes it again.
fn is_made_anew(op: &Op) -> bool {
    matches!(op, Op::Prune(_) | Op::Probe)
}

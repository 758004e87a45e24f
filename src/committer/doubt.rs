//! Commits whose end nobody has seen, over a store that says so.

use super::*;
use crate::job::{JobId, PhaseName};
use crate::new_job::NewJob;

use crate::store::memory::MemoryStore;
use crate::store::ops::PlannedJob;
use crate::store::{Reader, Rows};

/// Does what it is asked, and then what it is set to.
struct Unsure {
    inner: MemoryStore,
    /// What becomes of the next transactions: done or not without a word, or none for as usual.
    commits: std::collections::VecDeque<Option<bool>>,
    /// It cannot be read any more.
    is_damaged: bool,
    /// Somebody reads an older state of the file, so that the log cannot be folded back.
    is_read: bool,
}

impl Store for Unsure {
    fn transact(
        &mut self,
        work: &mut dyn FnMut(&mut dyn Rows) -> Result<()>,
    ) -> std::result::Result<(), Failure> {
        if self.is_damaged {
            let problem = "a row has a value that is never written";
            return Err(Failure::NothingDone(Error::new(
                ErrorKind::Corrupt,
                problem,
            )));
        }
        let Some(is_done) = self.commits.pop_front().flatten() else {
            return self.inner.transact(work);
        };
        let unknown = || Error::new(ErrorKind::Storage, "the sync has failed");
        if is_done {
            self.inner.transact(work)?;
        } else {
            // Rolled back, and nobody was told.
            let undone = self
                .inner
                .transact(&mut |rows| work(rows).and(Err(unknown())));
            assert!(undone.is_err());
        }
        Err(Failure::Unknown(unknown()))
    }

    fn reopen(&mut self) -> Result<()> {
        self.inner.reopen()
    }

    fn checkpoint(&mut self) -> Result<()> {
        if self.is_read {
            return Err(Error::new(ErrorKind::Storage, "somebody reads"));
        }
        self.inner.checkpoint()
    }

    fn close(&mut self) {
        self.inner.close();
    }

    fn reader(&self) -> Arc<dyn Reader> {
        self.inner.reader()
    }
}

/// Counts what was published.
#[derive(Default)]
struct Told {
    enqueued: AtomicU64,
}

impl Host for Told {
    fn request(&self, _: &[Op], _: Timestamp) -> ClaimRequest {
        ClaimRequest::default()
    }
    fn due(&self, _: Timestamp, _: bool, _: &mut Vec<Op>) {}
    fn wants_claims(&self, _: Timestamp) -> bool {
        false
    }
    fn committed(&self, ops: Vec<Op>, _: &mut Committed, _: Duration, _: Timestamp) {
        let enqueued = ops.iter().filter(|op| matches!(op, Op::Enqueue(_))).count();
        self.enqueued
            .fetch_add(enqueued.try_into().expect("few"), Ordering::SeqCst);
    }
    fn deadline(&self) -> Deadline {
        Deadline::default()
    }
    fn claims_failed(&self, _: &Error) {}
    fn refused(&self, _: &Op, _: &Error) {}
    fn died(&self) {}
    fn store_health(&self, _: Option<&Error>) {}
}

fn enqueue() -> Op {
    let job = NewJob::new("a", &1).expect("it is JSON");
    let plan = Some([PhaseName::new("a")].into());
    Op::Enqueue(vec![PlannedJob { job, plan }])
}

fn pause() -> Op {
    Op::SetPaused {
        job_type: None,
        paused: true,
    }
}

fn committer(commits: &[Option<bool>], is_read: bool) -> (Committer, Arc<dyn Reader>) {
    let store = Unsure {
        inner: MemoryStore::new(),
        commits: commits.iter().copied().collect(),
        is_damaged: false,
        is_read,
    };
    let reader = store.reader();
    (Committer::new(Box::new(store), Clock::system()), reader)
}

fn is_there(reader: &dyn Reader, id: i64) -> bool {
    let job = reader.job(JobId::from_i64(id)).expect("it can be read");
    job.is_some()
}

#[test]
fn what_is_found_is_told_as_done_and_what_is_not_as_failed() {
    // Between the two somebody looks.
    let commits = [Some(true), None, Some(false)];
    let (host, (committer, reader)) = (Told::default(), committer(&commits, false));
    assert!(committer.call(&host, enqueue()).is_ok());
    let error = committer.call(&host, enqueue()).expect_err("it is nowhere");
    assert_eq!(error.kind(), ErrorKind::Storage, "{error}");
    assert_eq!(host.enqueued.load(Ordering::SeqCst), 1);
    assert!(is_there(&*reader, 1) && !is_there(&*reader, 2));
}

/// The bug: the commit was in the file, and could not be folded back while somebody read: nothing was committed any more until that
/// reader had ended, and each try waited ten seconds for it.
#[test]
fn a_reader_of_an_older_state_keeps_nobody_from_going_on() {
    let (host, (committer, reader)) = (Told::default(), committer(&[Some(true)], true));
    let error = committer
        .call(&host, enqueue())
        .expect_err("a power cut might undo it");
    assert_eq!(error.kind(), ErrorKind::OutcomeUnknown, "{error}");
    assert_eq!(host.enqueued.load(Ordering::SeqCst), 0);
    assert!(committer.call(&host, enqueue()).is_ok());
    assert_eq!(host.enqueued.load(Ordering::SeqCst), 2, "acted on, now");
    assert!(is_there(&*reader, 1) && is_there(&*reader, 2));
}

/// The bug: a pause whose sync had failed was told as failed, and was in the file.
#[test]
fn nobody_knows_of_a_commit_that_left_no_row_in_the_log() {
    for is_done in [true, false] {
        let (host, (committer, reader)) = (Told::default(), committer(&[Some(is_done)], false));
        let error = committer.call(&host, pause()).expect_err("it may be there");
        assert_eq!(error.kind(), ErrorKind::OutcomeUnknown, "{error}");
        assert_eq!(reader.pauses().expect("it can be read").0, is_done);
    }
}

/// The bug: the store had failed, and then the file could not be read. What was to show whether it works was refused at once, and tried
/// again at once, for ever.
#[test]
fn a_damaged_file_is_not_tried_again_without_a_pause() {
    let store = Unsure {
        inner: MemoryStore::new(),
        commits: std::collections::VecDeque::new(),
        is_damaged: true,
        is_read: false,
    };
    let (host, committer) = (
        Told::default(),
        Committer::new(Box::new(store), Clock::system()),
    );
    committer.state.lock().pause_longer(monotonic());
    let over = committer.state.lock().retry_at.expect("it has failed");
    while monotonic() < over {
        crate::sync::pause(PAUSE_MIN);
    }
    assert!(committer.state.lock().may_work(monotonic()));
    assert!(committer.lead_with_due(&host, Vec::new(), true));
    let state = committer.state.lock();
    assert!(!state.may_work(over), "it does not rest");
    assert_eq!(state.pause, 2 * PAUSE_MIN);
}

//! Updates of jobs, put off until it is known whether those of their neighbours are the same. L2.
//!
//! Under load the same happens to many jobs in one commit: a hundred are claimed, a hundred are completed, and their ids follow
//! each other. One statement for all of them takes three fifths of the time that one for each does. So an update waits
//! until another comes that does not fit, or until somebody asks for rows of jobs.
//!
//! The guard is that of a single update: status and epoch as they were read, and the number of changed rows is looked at. Within a
//! transaction nobody else writes, so another number means that an index and its table disagree: the transaction fails.

use rusqlite::params;

use crate::error::{Error, ErrorKind, Result};
use crate::store::sqlite::commit::Tx;
use crate::time::Timestamp;
use crate::transition::JobRow;

pub(super) const UPDATE_JOB: &str = "UPDATE job
    SET plan_id = ?4, status = ?5, run_at_ms = ?6, epoch = ?7, attempt = ?8, phase_index = ?9, phase_count = ?10,
      phase_attempt = ?11, crash_count = ?12, started_at_ms = ?13, phase_started_at_ms = ?14, finished_at_ms = ?15,
      deadline_ms = ?16, last_seq = ?17, flags = ?18
    WHERE id = ?1 AND status = ?2 AND epoch = ?3";
// Without the columns of the indexes: else SQLite would take the row out of them and put it back.
pub(super) const UPDATE_JOB_IN_PLACE: &str = "UPDATE job
    SET plan_id = ?4, attempt = ?5, phase_index = ?6, phase_count = ?7, phase_attempt = ?8, phase_started_at_ms = ?9,
      last_seq = ?10, flags = ?11
    WHERE id = ?1 AND status = ?2 AND epoch = ?3";
// The plus sign keeps SQLite from thinking of an index: it is a range of ids.
pub(super) const UPDATE_RUN: &str = "UPDATE job
    SET status = ?5, epoch = ?6, attempt = ?7, phase_index = ?8, phase_attempt = ?9,
      started_at_ms = coalesce(started_at_ms, ?10), phase_started_at_ms = ?11, finished_at_ms = ?12,
      last_seq = ?13 + (id - ?1) * ?14, flags = ?15
    WHERE id BETWEEN ?1 AND ?2 AND +status = ?3 AND epoch = ?4";
pub(super) const UPDATE_RUN_IN_PLACE: &str = "UPDATE job
    SET attempt = ?5, phase_index = ?6, phase_attempt = ?7, phase_started_at_ms = ?8,
      last_seq = ?9 + (id - ?1) * ?10, flags = ?11
    WHERE id BETWEEN ?1 AND ?2 AND +status = ?3 AND epoch = ?4";

/// One or more updates of jobs whose ids follow each other.
pub(super) struct Updates {
    before: JobRow,
    after: JobRow,
    jobs: i64,
    /// How much larger `last_seq` is for each next job.
    seq_step: i64,
}

impl Updates {
    pub(super) fn new(before: &JobRow, after: &JobRow) -> Updates {
        Updates {
            before: *before,
            after: *after,
            jobs: 1,
            seq_step: 0,
        }
    }

    /// Takes one more update in, if it is the same one of the next job.
    pub(super) fn grow(&mut self, before: &JobRow, after: &JobRow) -> bool {
        let step = after.last_seq - self.after.last_seq;
        let is_next = before.id.as_i64() == self.before.id.as_i64() + self.jobs
            && (self.jobs == 1 || step == self.jobs * self.seq_step);
        let fits = is_next
            && (before.status, before.epoch) == (self.before.status, self.before.epoch)
            && is_plain(&self.before, &self.after)
            && is_plain(before, after)
            && self.set() == Updates::new(before, after).set();
        if fits {
            self.jobs += 1;
            self.seq_step = if self.jobs == 2 { step } else { self.seq_step };
        }
        fits
    }

    /// What a run sets, `last_seq` aside. A start is only set where there is none.
    fn set(&self) -> impl PartialEq + use<> {
        let (before, after) = (&self.before, &self.after);
        (
            (after.status, after.epoch, after.attempt),
            (after.phase_index, after.phase_attempt),
            after.started_at.filter(|_| before.started_at.is_none()),
            (after.phase_started_at, after.finished_at),
            after.flags,
        )
    }

    /// Writes what has come together.
    pub(super) fn write(&self, tx: &mut Tx<'_>) -> Result<()> {
        let changed = if self.jobs == 1 {
            write_one(tx, &self.before, &self.after)?
        } else {
            self.write_run(tx)?
        };
        if i64::try_from(changed) == Ok(self.jobs) {
            return Ok(());
        }
        let (first, last) = (self.before.id, self.last_id());
        let problem = format!("table job, rows {first} to {last}: are not what was read of them");
        Err(Error::new(ErrorKind::Corrupt, problem))
    }

    fn last_id(&self) -> i64 {
        self.before.id.as_i64() + self.jobs - 1
    }

    fn write_run(&self, tx: &mut Tx<'_>) -> Result<usize> {
        let (before, after) = (&self.before, &self.after);
        let (first, status) = (before.id.as_i64(), before.status.code());
        if is_in_place(before, after) {
            return tx.write(
                UPDATE_RUN_IN_PLACE,
                params![
                    first,
                    self.last_id(),
                    status,
                    before.epoch,
                    after.attempt,
                    after.phase_index,
                    after.phase_attempt,
                    ms(after.phase_started_at),
                    after.last_seq,
                    self.seq_step,
                    after.flags.0
                ],
            );
        }
        tx.write(
            UPDATE_RUN,
            params![
                first,
                self.last_id(),
                status,
                before.epoch,
                after.status.code(),
                after.epoch,
                after.attempt,
                after.phase_index,
                after.phase_attempt,
                // The others of the run may have none, and get none.
                ms(after.started_at.filter(|_| before.started_at.is_none())),
                ms(after.phase_started_at),
                ms(after.finished_at),
                after.last_seq,
                self.seq_step,
                after.flags.0
            ],
        )
    }
}

/// Whether an update changes nothing but what a run can set.
fn is_plain(before: &JobRow, after: &JobRow) -> bool {
    let changed = JobRow {
        plan_id: before.plan_id,
        run_at: before.run_at,
        phase_count: before.phase_count,
        crash_count: before.crash_count,
        deadline: before.deadline,
        ..*after
    };
    let keeps_start = before.started_at.is_none() || before.started_at == after.started_at;
    changed == *after && keeps_start
}

/// Whether an update leaves the columns of the indexes alone.
fn is_in_place(before: &JobRow, after: &JobRow) -> bool {
    let in_place = JobRow {
        plan_id: after.plan_id,
        attempt: after.attempt,
        phase_index: after.phase_index,
        phase_count: after.phase_count,
        phase_attempt: after.phase_attempt,
        phase_started_at: after.phase_started_at,
        last_seq: after.last_seq,
        flags: after.flags,
        ..*before
    };
    in_place == *after
}

fn write_one(tx: &mut Tx<'_>, before: &JobRow, after: &JobRow) -> Result<usize> {
    let (id, status) = (before.id.as_i64(), before.status.code());
    if is_in_place(before, after) {
        return tx.write(
            UPDATE_JOB_IN_PLACE,
            params![
                id,
                status,
                before.epoch,
                after.plan_id,
                after.attempt,
                after.phase_index,
                after.phase_count,
                after.phase_attempt,
                ms(after.phase_started_at),
                after.last_seq,
                after.flags.0
            ],
        );
    }
    tx.write(
        UPDATE_JOB,
        params![
            id,
            status,
            before.epoch,
            after.plan_id,
            after.status.code(),
            after.run_at.as_millis(),
            after.epoch,
            after.attempt,
            after.phase_index,
            after.phase_count,
            after.phase_attempt,
            after.crash_count,
            ms(after.started_at),
            ms(after.phase_started_at),
            ms(after.finished_at),
            ms(after.deadline),
            after.last_seq,
            after.flags.0
        ],
    )
}

fn ms(time: Option<Timestamp>) -> Option<i64> {
    time.map(Timestamp::as_millis)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::config::Durability;
    use crate::job::{JobId, JobStatus};
    use crate::store::sqlite::SqliteStore;
    use crate::store::{Failure, Store};
    use crate::transition::Flags;

    pub(in crate::store::sqlite) fn pending(id: i64) -> JobRow {
        let now = Timestamp::from_millis(1_800_000_000_000);
        JobRow {
            id: JobId::from_i64(id),
            type_id: 1,
            plan_id: 1,
            status: JobStatus::Pending,
            priority: 0,
            run_at: now,
            epoch: 0,
            attempt: 0,
            phase_index: 0,
            phase_count: 1,
            phase_attempt: 0,
            crash_count: 0,
            created_at: now,
            started_at: None,
            phase_started_at: None,
            finished_at: None,
            deadline: None,
            last_seq: id,
            flags: Flags::default(),
        }
    }

    fn running(id: i64) -> JobRow {
        JobRow {
            status: JobStatus::Running,
            epoch: 1,
            last_seq: 10 + 2 * id,
            ..pending(id)
        }
    }

    /// Of one job, and of the middle one of a run: nothing of the transaction is written.
    #[test]
    fn an_update_of_what_is_not_there_fails_its_transaction() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("jobs.db");
        let mut store = SqliteStore::open(&path, Durability::Normal).expect("a new file");
        let stored = store.transact(&mut |rows| {
            // 3 is claimed already.
            let jobs = [pending(1), pending(2), running(3), pending(4)];
            jobs.iter()
                .try_for_each(|row| rows.insert_job(row, "1", None))
        });
        assert!(stored.is_ok());
        for ids in [3..=3, 2..=4] {
            let done = store.transact(&mut |rows| {
                for id in ids.clone() {
                    rows.update_job(&pending(id), &running(id))?;
                }
                Ok(())
            });
            let Err(Failure::NothingDone(error)) = done else {
                panic!("{ids:?}: {done:?}");
            };
            assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
            let looked = store.transact(&mut |rows| {
                for id in [1, 2, 4] {
                    assert_eq!(rows.job(JobId::from_i64(id))?, Some(pending(id)));
                }
                Ok(())
            });
            assert!(looked.is_ok());
        }
    }

    /// Else a type at its limit would be claimed from once more.
    #[test]
    fn a_claim_that_was_put_off_counts_for_whoever_looks() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("jobs.db");
        let mut store = SqliteStore::open(&path, Durability::Normal).expect("a new file");
        let done = store.transact(&mut |rows| {
            for id in 1..=3 {
                rows.insert_job(&pending(id), "1", None)?;
            }
            for id in 1..=3 {
                rows.update_job(&pending(id), &running(id))?;
                assert_eq!(i64::from(rows.running(1)?), id);
            }
            Ok(())
        });
        assert!(done.is_ok());
    }

    /// An operation that asks for rows writes what those before it have put off, and a job it cannot read is its own refusal.
    #[test]
    fn an_update_that_fails_when_somebody_else_asks_for_rows_fails_its_transaction() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("jobs.db");
        let mut store = SqliteStore::open(&path, Durability::Normal).expect("a new file");
        let stored = store.transact(&mut |rows| {
            let jobs = [pending(1), running(2)];
            jobs.iter()
                .try_for_each(|row| rows.insert_job(row, "1", None))
        });
        assert!(stored.is_ok());
        let done = store.transact(&mut |rows| {
            rows.update_job(&pending(2), &running(2))?;
            // As the seam does with an operation that has written nothing.
            assert!(rows.ids(JobStatus::Pending, None, 9).is_err());
            Ok(())
        });
        let Err(Failure::NothingDone(error)) = done else {
            panic!("{done:?}");
        };
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
    }
}

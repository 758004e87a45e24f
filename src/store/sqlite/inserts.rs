//! New jobs, put off until it is known whether those after them are the same. L2.
//!
//! Jobs that are enqueued together differ in their ids and inputs, and in hardly anything else. One statement for sixteen of
//! them takes three fifths of the instructions that one for each does: less is bound, and SQLite finds the end of the index
//! where it has put the row before.
//!
//! Within a transaction nobody else writes, and no id is given out twice. So a row that cannot be written means that the file is
//! damaged: the transaction fails.

use rusqlite::{ToSql, params};

use crate::error::{Error, ErrorKind, Result};
use crate::job::{JobId, JobStatus};
use crate::store::sqlite::commit::{INSERT_FRESH_JOB, INSERT_FRESH_RUN, ms};
use crate::store::sqlite::errors::{self, Context};
use crate::store::sqlite::held::Held;
use crate::transition::{Flags, JobRow};

/// Rows of [`INSERT_FRESH_RUN`]. Twice as many would save another 4 % of an insert, and cost more where fewer come together.
const RUN: usize = 16;
/// What is shorter is cheaper one by one: the statement goes over all its rows.
const RUN_MIN: usize = 4;

/// Fresh jobs without a key, whose ids and inputs differ, and nothing else. It is used again and again, for its memory.
#[derive(Default)]
pub(super) struct Inserts {
    /// None when there are none.
    first: Option<JobRow>,
    inputs: String,
    /// Where each input ends.
    ends: Vec<usize>,
}

impl Inserts {
    pub(super) fn is_empty(&self) -> bool {
        self.first.is_none()
    }

    /// Whether `row` can be the next one.
    pub(super) fn fits(&self, row: &JobRow) -> bool {
        let count = self.ends.len();
        self.first
            .is_none_or(|first| count < RUN && nth(&first, count) == *row)
    }

    /// Takes a job in that fits.
    pub(super) fn push(&mut self, row: &JobRow, input: &str) {
        self.first.get_or_insert(*row);
        self.inputs.push_str(input);
        self.ends.push(self.inputs.len());
    }

    pub(super) fn clear(&mut self) {
        self.first = None;
        self.inputs.clear();
        self.ends.clear();
    }

    /// Writes what has come together.
    pub(super) fn write(&self, held: &mut Held<'_>) -> Result<()> {
        let Some(first) = &self.first else {
            return Ok(());
        };
        let count = self.ends.len();
        if count >= RUN_MIN {
            return self.write_run(held, first);
        }
        (0..count).try_for_each(|n| insert_one(held, &nth(first, n), self.input(n), None))
    }

    fn write_run(&self, held: &mut Held<'_>, first: &JobRow) -> Result<()> {
        let inputs: [Option<&str>; RUN] = std::array::from_fn(|n| self.input(n));
        let (id, run_at) = (first.id.as_i64(), first.run_at.as_millis());
        let (created_at, deadline) = (first.created_at.as_millis(), ms(first.deadline));
        let mut params: Vec<&dyn ToSql> = Vec::with_capacity(9 + RUN);
        params.extend([&id as &dyn ToSql, &first.type_id, &first.plan_id]);
        params.extend([&first.priority as &dyn ToSql, &run_at, &first.phase_count]);
        params.extend([&created_at as &dyn ToSql, &deadline, &first.last_seq]);
        params.extend(inputs.iter().map(|input| input as &dyn ToSql));
        let written = execute(held, INSERT_FRESH_RUN, &params)?;
        if written == self.ends.len() {
            return Ok(());
        }
        let problem = format!("table job, rows {id} and after: {written} were written of a run");
        Err(Error::new(ErrorKind::Corrupt, problem))
    }

    fn input(&self, n: usize) -> Option<&str> {
        let end = *self.ends.get(n)?;
        let start = n.checked_sub(1).map_or(0, |before| self.ends[before]);
        Some(&self.inputs[start..end])
    }
}

/// Whether nothing has happened to a job since it was enqueued: these columns are constants of the statements here.
pub(super) fn is_fresh(row: &JobRow) -> bool {
    let fresh = JobRow {
        status: JobStatus::Pending,
        epoch: 0,
        attempt: 0,
        phase_index: 0,
        phase_attempt: 0,
        crash_count: 0,
        started_at: None,
        phase_started_at: None,
        finished_at: None,
        flags: Flags::default(),
        ..*row
    };
    fresh == *row
}

/// Stores a fresh job. `input`: none when it is stored elsewhere.
pub(super) fn insert_one(
    held: &mut Held<'_>,
    row: &JobRow,
    input: Option<&str>,
    unique_key: Option<&str>,
) -> Result<()> {
    let params = params![
        row.id.as_i64(),
        row.type_id,
        row.plan_id,
        row.priority,
        row.run_at.as_millis(),
        row.phase_count,
        row.created_at.as_millis(),
        ms(row.deadline),
        row.last_seq,
        unique_key,
        input
    ];
    execute(held, INSERT_FRESH_JOB, params).map(|_| ())
}

fn execute(held: &mut Held<'_>, sql: &'static str, params: &[&dyn ToSql]) -> Result<usize> {
    let changed = held.execute(sql, params);
    changed.map_err(|error| errors::map(error, Context::Write))
}

/// What the job `n` places after `first` is like.
fn nth(first: &JobRow, n: usize) -> JobRow {
    let n = i64::try_from(n).expect("a run is short");
    JobRow {
        id: JobId::from_i64(first.id.as_i64() + n),
        last_seq: first.last_seq + n,
        ..*first
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Durability;
    use crate::store::sqlite::SqliteStore;
    use crate::store::sqlite::updates::tests::pending;
    use crate::store::{Failure, Store};
    use crate::time::Timestamp;

    fn store(dir: &tempfile::TempDir) -> SqliteStore {
        SqliteStore::open(&dir.path().join("jobs.db"), Durability::Normal).expect("a new file")
    }

    /// A job with its input and its key.
    type Given = (JobRow, String, Option<String>);

    /// Runs of each length that is written in another way, each ended by a job that does not fit, for another reason each time.
    fn runs() -> Vec<Given> {
        let later = Timestamp::from_millis(1_900_000_000_000);
        let enders: [&dyn Fn(&mut Given); 8] = [
            &|job| job.0.type_id = 2,
            &|job| job.0.plan_id = 2,
            &|job| job.0.priority = -3,
            &|job| job.0.run_at = later,
            &|job| job.0.deadline = Some(later),
            &|job| job.0.last_seq += 1000,
            &|job| job.1 = "2".repeat(300),
            &|job| job.2 = Some("k".to_owned()),
        ];
        let mut jobs: Vec<Given> = Vec::new();
        let mut ended = 0;
        for length in [1, 3, 4, 15, 16, 17, 40] {
            for ender in &enders {
                for n in 0..=length {
                    let id = i64::try_from(jobs.len()).expect("few") + 1;
                    let mut job = (
                        pending(id),
                        "é".repeat(usize::try_from(id).expect("few") % 99),
                        None,
                    );
                    job.0.last_seq += ended;
                    if n == length {
                        ender(&mut job);
                        ended = job.0.last_seq - id;
                    }
                    jobs.push(job);
                }
            }
        }
        jobs
    }

    #[test]
    fn sixteen_jobs_in_line_come_together() {
        let mut inserts = Inserts::default();
        for id in 1..=16 {
            assert!(inserts.fits(&pending(id)), "{id}");
            inserts.push(&pending(id), "1");
            let later = pending(id + 2);
            assert!(!inserts.fits(&later), "{id}");
        }
        assert!(!inserts.fits(&pending(17)));
    }

    #[test]
    fn jobs_that_come_together_are_stored_as_they_are() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let (mut store, jobs) = (store(&dir), runs());
        let done = store.transact(&mut |rows| {
            jobs.iter()
                .try_for_each(|(row, input, key)| rows.insert_job(row, input, key.as_deref()))
        });
        assert!(done.is_ok());
        let looked = store.transact(&mut |rows| {
            for (row, input, _) in &jobs {
                assert_eq!(rows.job(row.id)?, Some(*row));
                assert_eq!(rows.details(row)?.input, *input);
            }
            assert_eq!(rows.ids(JobStatus::Pending, None, 9999)?.len(), jobs.len());
            Ok(())
        });
        assert!(looked.is_ok());
    }

    #[test]
    fn a_job_that_was_put_off_is_there_for_whoever_looks() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let done = store(&dir).transact(&mut |rows| {
            for id in 1..=9 {
                rows.insert_job(&pending(id), "1", None)?;
                assert_eq!(rows.job(JobId::from_i64(id))?, Some(pending(id)));
                rows.insert_job(&pending(id + 10), "1", None)?;
                let (now, mut due) = (pending(id).run_at, Vec::new());
                rows.due(1, now, 99, &mut due)?;
                assert_eq!(i64::try_from(due.len()), Ok(2 * id));
            }
            let later = JobRow {
                run_at: Timestamp::from_millis(1_900_000_000_000),
                ..pending(30)
            };
            rows.insert_job(&later, "1", None)?;
            let next = rows.next_due(1, pending(1).run_at)?;
            assert_eq!(next, Some(later.run_at));
            rows.insert_job(&pending(20), "1", None)?;
            rows.delete_job(&pending(20))?;
            assert_eq!(rows.job(JobId::from_i64(20))?, None);
            Ok(())
        });
        assert!(done.is_ok());
    }

    /// One by one and at once, at the end of the transaction and when somebody asks for rows who takes the error for an answer
    /// about itself: nothing of the transaction is written.
    #[test]
    fn a_job_whose_id_is_taken_fails_its_transaction() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let mut store = store(&dir);
        let stored = store.transact(&mut |rows| rows.insert_job(&pending(3), "1", None));
        assert!(stored.is_ok());
        for (ids, asks) in [(2..=4, false), (2..=4, true), (1..=9, false), (1..=9, true)] {
            let done = store.transact(&mut |rows| {
                for id in ids.clone() {
                    rows.insert_job(&pending(id), "1", None)?;
                }
                assert!(!asks || rows.job(JobId::from_i64(1)).is_err());
                Ok(())
            });
            let Err(Failure::NothingDone(error)) = done else {
                panic!("{ids:?}: {done:?}");
            };
            assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
            let looked = store.transact(&mut |rows| {
                let there = rows.ids(JobStatus::Pending, None, 99)?;
                assert_eq!(there, [JobId::from_i64(3)]);
                Ok(())
            });
            assert!(looked.is_ok());
        }
    }
}

//! What must hold in the store in memory: the log, followed, gives every row, and the counters of its head are right. L2.
//!
//! The same fold as in a file (`store::replay`), and the same names of invariants; what only a file can have wrong is not asked.

use std::collections::BTreeMap;

use crate::error::Result;
use crate::job::JobId;
use crate::store::Part;
use crate::store::memory::Data;
use crate::store::memory::read::change;
use crate::store::replay::{self, Broken, Logged, Told};

/// One line for each broken invariant.
pub(super) fn run(data: &Data) -> Result<Vec<String>> {
    let mut lines = Vec::new();
    let mut told = follow(data, &mut lines)?;
    let oldest = oldest(data);
    for (id, row) in data.jobs.iter() {
        let mut broken = Vec::new();
        match told.remove(id) {
            Some(told) => replay::compare(&told, row, &mut broken),
            None if (1..oldest).contains(&row.last_seq) => {}
            None => {
                let what = format!("its newest event, {}, is not in the log", row.last_seq);
                broken.push(("S9", what));
            }
        }
        report(*id, broken, &mut lines);
    }
    for (id, told) in told {
        lines.push(format!(
            "S9 job {id}: the log says {}, there is no row",
            told.status
        ));
    }
    recount(data, &mut lines)?;
    Ok(lines)
}

/// What the log says of each job that was not deleted.
fn follow(data: &Data, lines: &mut Vec<String>) -> Result<BTreeMap<JobId, Told>> {
    let (mut told, mut next) = (BTreeMap::new(), oldest(data));
    for (row, _) in data.events.values() {
        let seq = row.seq;
        if seq != next {
            lines.push(format!(
                "S8 event {seq}: the number that follows in the log is {next}"
            ));
        }
        next = seq + row.span;
        let (logged, span) = (change(data, row)?, row.change.span());
        let first = Part {
            job_id: row.job_id,
            seq,
            prev_seq: row.prev_seq,
        };
        for index in 0..row.span / span {
            let part = Part::of(first, row.change, row.prev_step, index);
            let logged = Logged {
                change: &logged,
                part,
                type_id: row.type_id,
                plan_id: row.plan_id,
            };
            let mut broken = Vec::new();
            let before = told.remove(&part.job_id);
            let after = replay::follow(before, &logged, oldest(data), &mut broken);
            report(part.job_id, broken, lines);
            told.extend(after.map(|after| (part.job_id, after)));
        }
    }
    Ok(told)
}

/// The oldest event that is kept.
fn oldest(data: &Data) -> i64 {
    data.events.first_key_value().map_or(1, |(seq, _)| *seq)
}

fn recount(data: &Data, lines: &mut Vec<String>) -> Result<()> {
    let mut counts = [0_i64; 5];
    for row in data.jobs.values() {
        counts[row.status as usize] += 1;
    }
    let head = data.head()?;
    if counts != head.counts {
        lines.push(format!(
            "S8 jobs by status: {counts:?} are stored, the log says {:?}",
            head.counts
        ));
    }
    let newest = data.jobs.last_key_value().map_or(0, |(id, _)| id.as_i64());
    if newest > head.job_id {
        lines.push(format!(
            "S8 the newest id is {} in the log, but there is job {newest}",
            head.job_id
        ));
    }
    Ok(())
}

fn report(id: JobId, broken: Vec<Broken>, lines: &mut Vec<String>) {
    let named = broken.into_iter();
    lines.extend(named.map(|(name, what)| format!("{name} job {id}: {what}")));
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::job::JobStatus;
    use crate::new_job::NewJob;
    use crate::store::memory::MemoryStore;
    use crate::store::ops::{ClaimRequest, Op, PlannedJob};
    use crate::store::{Store, seam};
    use crate::time::Timestamp;
    use crate::transition::JobRow;

    /// Two jobs in one row of the log; the second is cancelled.
    fn store() -> MemoryStore {
        let mut store = MemoryStore::new();
        let job = || PlannedJob {
            job: NewJob::new("job", &1).expect("JSON"),
            plan: Some(Arc::new([])),
        };
        let first = Op::Enqueue(vec![job(), job()]);
        for (tag, op) in (1..).zip([first, Op::Cancel(JobId::from_i64(2))]) {
            let (ops, now) = ([op], Timestamp::from_millis(1_800_000_000_000 + tag));
            let done = store.transact(&mut |rows| {
                seam::run(rows, &ops, &ClaimRequest::default(), now, tag).map(drop)
            });
            done.expect("a commit");
        }
        store
    }

    type Harm = fn(&mut Data);

    fn row(data: &mut Data, change: impl Fn(&mut JobRow)) {
        let mut row = data.jobs[&JobId::from_i64(2)];
        change(&mut row);
        data.put_job(&row);
    }

    #[test]
    fn what_the_log_does_not_say_is_found() {
        let cases: [(Harm, &[&str]); 7] = [
            (|_| {}, &[]),
            (
                |data| row(data, |row| row.status = JobStatus::Failed),
                &[
                    "S9 job 2: the log says cancelled, the row says failed",
                    "S8 jobs by status: [1, 0, 0, 1, 0] are stored, the log says [1, 0, 0, 0, 1]",
                ],
            ),
            (
                |data| row(data, |row| row.epoch = 7),
                &["S9 job 2: the log says epoch 0, the row says 7"],
            ),
            (
                |data| row(data, |row| row.last_seq = 2),
                &["S9 job 2: the log says last_seq 3, the row says 2"],
            ),
            (
                |data| row(data, |row| row.finished_at = Some(row.run_at)),
                &[
                    "S9 job 2: the log says finished_at_ms 1800000000002, the row says 1800000000001",
                ],
            ),
            (
                |data| data.remove_job(JobId::from_i64(1)),
                &[
                    "S9 job 1: the log says pending, there is no row",
                    "S8 jobs by status: [0, 0, 0, 0, 1] are stored, the log says [1, 0, 0, 0, 1]",
                ],
            ),
            (
                |data| {
                    let (mut event, head) = data.events[&3].clone();
                    (event.seq, event.prev_seq) = (5, 1);
                    data.events.remove(&3);
                    data.events.put(5, (event, head));
                },
                &[
                    "S8 event 5: the number that follows in the log is 3",
                    "S9 job 2: event 5 is linked to event 1, the one before it is 2",
                    "S9 job 2: the log says last_seq 5, the row says 3",
                ],
            ),
        ];
        for (harm, expected) in cases {
            let store = store();
            harm(&mut store.shared.data.lock());
            let found = store.reader().check().expect("readable");
            assert_eq!(found, expected);
        }
    }
}

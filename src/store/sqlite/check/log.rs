//! S8, S9, S10, and for S11 what `ends` asks: the log is followed once in its order, and what it says of each job is compared with the job's row. L2.
//!
//! Each change names the one before it of its job. That it is the newest one seen so far, and that the row names the last one, is
//! the same as saying that the chain from the row back to the creation visits every change of the job: so the chains need no
//! pass of their own.

use std::collections::{BTreeMap, HashSet};

use rusqlite::{Connection, Row};

use crate::error::{ErrorKind, Result};
use crate::event::{Change, LoggedChange, Seq};
use crate::job::{JobId, JobStatus};
use crate::store::replay::{self, Broken, Logged, Told};
use crate::store::seam::RUN_MAX;
use crate::store::sqlite::check::Findings;
use crate::store::sqlite::check::ends::Ends;
use crate::store::sqlite::names::Names;
use crate::store::sqlite::rows::{self, event_columns, job_columns, read};
use crate::store::{Head, Part};
use crate::time::Timestamp;

const SELECT_LOG: &str = concat!(
    "SELECT ",
    event_columns!(),
    ", prev_seq, prev_step, head FROM event ORDER BY seq"
);
/// A job that the log tells of has a row, or is deleted later in the log, where one row may stand for as many jobs as a run has.
/// One more for each row of the log: a few rows of jobs that are gone are to be named one by one.
const COUNT_JOBS: &str = "SELECT (SELECT count(*) FROM job)
    + (SELECT count(*) + coalesce(sum(max(min(span, ?1), 0)) FILTER (WHERE change = ?2), 0) FROM event)";
const SELECT_JOBS: &str = concat!("SELECT ", job_columns!(), " FROM job ORDER BY id");

pub(super) fn check(conn: &Connection, findings: &mut Findings) -> Result<()> {
    let deleted = Change::Deleted.code();
    let jobs_left = read(conn.query_row(COUNT_JOBS, [RUN_MAX, deleted], |row| row.get(0)))?;
    let mut pass = Pass {
        findings,
        jobs_left,
        oldest: 1,
        next: None,
        uncommitted: None,
        told: BTreeMap::new(),
        unreadable: HashSet::new(),
        ends: Ends::default(),
        counters: Counters::of(&Head::default()),
        has_head: true,
    };
    pass.log(conn)?;
    pass.jobs(conn)?;
    pass.ends.compare(conn, pass.oldest, pass.findings)
}

struct Pass<'f> {
    findings: &'f mut Findings,
    /// Jobs that the rest of the log can tell of for the first time, so that a damaged one does not fill the memory.
    jobs_left: i64,
    /// The oldest event that is kept.
    oldest: Seq,
    /// The number that the next row must have; none before the first.
    next: Option<Seq>,
    /// The newest row, if its commit is not over, and when that was.
    uncommitted: Option<(Seq, Timestamp)>,
    /// A tree and not a table of hashes, which would for a moment have twice its size when it grows.
    told: BTreeMap<JobId, Told>,
    /// Jobs with a change that cannot be read: nothing more can be said of them.
    unreadable: HashSet<JobId>,
    ends: Ends,
    counters: Counters,
    /// Whether the newest row had one that could be read.
    has_head: bool,
}

impl Pass<'_> {
    fn log(&mut self, conn: &Connection) -> Result<()> {
        // What a reader remembers of names is not what the file has now.
        let mut names = Names::default();
        let mut statement = read(conn.prepare(SELECT_LOG))?;
        let mut found = read(statement.query([]))?;
        while let Some(row) = read(found.next())? {
            let (seq, span): (Seq, i64) = (read(row.get(0))?, read(row.get(1))?);
            self.number(seq, span);
            match rows::change(conn, &mut names, row) {
                Ok(change) => self.change(&change, row)?,
                Err(error) if error.kind() == ErrorKind::Corrupt => {
                    self.unreadable(span, row)?;
                    self.findings.add("S1", format!("event {seq}: {error}"));
                }
                Err(error) => return Err(error),
            }
            self.head(seq, read(row.get(12))?);
            if self.findings.is_full() {
                return Ok(());
            }
        }
        if !self.has_head {
            let seq = self.uncommitted.map_or(self.oldest, |(seq, _)| seq);
            let what = format!("event {seq}: the newest row of the log has no counters");
            self.findings.add("S8", what);
        }
        Ok(())
    }

    /// Numbers follow each other; only at its old end may the log be cut.
    fn number(&mut self, seq: Seq, span: i64) {
        let expected = self.next.unwrap_or(seq.max(1));
        if self.next.is_none() {
            self.oldest = expected;
            self.counters.is_known = seq == 1;
        }
        if seq != expected {
            let what = format!("event {seq}: the number that follows in the log is {expected}");
            self.findings.add("S8", what);
        }
        self.next = Some(seq.saturating_add(span));
    }

    /// Sets the jobs of a row that cannot be read aside.
    fn unreadable(&mut self, span: i64, row: &Row<'_>) -> Result<()> {
        self.counters.is_known = false;
        self.ends.lose();
        let (first, code): (i64, i64) = (read(row.get(2))?, read(row.get(5))?);
        let events = Change::from_code(code).map_or(span, Change::span);
        let jobs = (span / events.max(1)).clamp(1, RUN_MAX);
        let ids = (0..jobs).map(|offset| JobId::from_i64(first.saturating_add(offset)));
        self.unreadable.extend(ids);
        Ok(())
    }

    fn change(&mut self, change: &LoggedChange, row: &Row<'_>) -> Result<()> {
        let seq = change.seq;
        if let Some((last, at)) = self.uncommitted
            && at != change.at
        {
            let what = format!("event {last}: the last row of its commit has no counters");
            self.findings.add("S8", what);
        }
        self.uncommitted = Some((seq, change.at));
        let jobs = change.span / change.change.span();
        let is_whole = jobs.saturating_mul(change.change.span()) == change.span;
        if !is_whole || !(1..=RUN_MAX).contains(&jobs) || !self.has_room(change, jobs) {
            let what = format!("event {seq}: the row stands for {} events", change.span);
            self.findings.add("S8", what);
            return self.unreadable(change.span, row);
        }
        self.ends.tell(change, self.findings);
        let first = Part {
            job_id: change.job_id,
            seq,
            prev_seq: read(row.get(10))?,
        };
        for index in 0..jobs {
            let logged = Logged {
                change,
                part: Part::of(first, change.change, read(row.get(11))?, index),
                type_id: read(row.get(3))?,
                plan_id: read(row.get(4))?,
            };
            self.follow(&logged);
        }
        Ok(())
    }

    /// Whether there can be as many jobs as the log has told of after this row.
    fn has_room(&self, change: &LoggedChange, jobs: i64) -> bool {
        if jobs <= self.jobs_left {
            return true;
        }
        if replay::is_creation(change.change) {
            return false;
        }
        let end = change.job_id.as_i64().saturating_add(jobs);
        let known = self.told.range(change.job_id..JobId::from_i64(end));
        jobs - i64::try_from(known.count()).unwrap_or(jobs) <= self.jobs_left
    }

    fn follow(&mut self, logged: &Logged<'_>) {
        let id = logged.part.job_id;
        if self.unreadable.contains(&id) {
            self.counters.is_known = false;
            return;
        }
        let before = self.told.remove(&id);
        self.jobs_left -= i64::from(before.is_none());
        let mut broken = Vec::new();
        let after = replay::follow(before, logged, self.oldest, &mut broken);
        self.report(id, &mut broken);
        let created = self.counters.apply(
            logged.change.change,
            id,
            before.map(|told| told.status),
            after.map(|told| told.status),
        );
        if let Err(expected) = created {
            let seq = logged.part.seq;
            let what = format!("event {seq}: creates job {id}, the next id is {expected}");
            self.findings.add("S8", what);
        }
        if let Some(after) = after {
            self.told.insert(id, after);
        }
    }

    /// The last row of a commit has the counters: those of the commit before, and what was changed since.
    fn head(&mut self, seq: Seq, text: Option<String>) {
        self.has_head = text.is_some();
        let Some(text) = text else {
            return;
        };
        self.uncommitted = None;
        let Some(head) = rows::parse_head(&text, seq) else {
            let what = format!("table event, row {seq}: column head has the value {text:?}");
            self.findings.add("S1", what);
            return;
        };
        if let Some(what) = self.counters.differ(&head) {
            self.findings.add("S8", format!("event {seq}: {what}"));
        }
        self.counters = Counters::of(&head);
    }

    /// Every row is what the log says, and the counters are right.
    fn jobs(&mut self, conn: &Connection) -> Result<()> {
        let mut counts = [0; 5];
        let mut newest = 0;
        let mut statement = read(conn.prepare(SELECT_JOBS))?;
        let mut found = read(statement.query([]))?;
        while let Some(row) = read(found.next())?
            && !self.findings.is_full()
        {
            newest = read(row.get(0))?;
            let id = JobId::from_i64(newest);
            let told = self.told.remove(&id);
            let row = match rows::job(row) {
                Ok(row) => row,
                Err(error) if error.kind() == ErrorKind::Corrupt => {
                    self.findings.add("S1", format!("job {id}: {error}"));
                    self.counters.is_known = false;
                    continue;
                }
                Err(error) => return Err(error),
            };
            counts[row.status as usize] += 1;
            let mut broken = Vec::new();
            match told {
                _ if self.unreadable.contains(&id) => {}
                Some(told) => replay::compare(&told, &row, &mut broken),
                None if (1..self.oldest).contains(&row.last_seq) => {}
                None => {
                    let what = format!("its newest event, {}, is not in the log", row.last_seq);
                    broken.push(("S9", what));
                }
            }
            self.report(id, &mut broken);
        }
        self.missing();
        self.recount(counts, newest);
        Ok(())
    }

    /// What the log says is there, and no row was found of.
    fn missing(&mut self) {
        let is_readable = |id: &JobId| !self.unreadable.contains(id);
        for (id, told) in self.told.iter().filter(|(id, _)| is_readable(id)) {
            let what = format!("job {id}: the log says {}, there is no row", told.status);
            self.findings.add("S9", what);
        }
    }

    fn recount(&mut self, counts: [i64; 5], newest: i64) {
        // Without a head, or with rows that nobody can read, a difference is no news.
        if !self.counters.is_known || !self.has_head {
            return;
        }
        for status in JobStatus::ALL {
            let (said, found) = (
                self.counters.counts[status as usize],
                counts[status as usize],
            );
            if said != found {
                let what = format!("the log counts {said} {status} jobs, there are {found}");
                self.findings.add("S8", what);
            }
        }
        if newest > self.counters.job_id {
            let said = self.counters.job_id;
            let what = format!("the newest id is {said} in the log, but there is job {newest}");
            self.findings.add("S8", what);
        }
    }

    fn report(&mut self, id: JobId, broken: &mut Vec<Broken>) {
        for (name, what) in broken.drain(..) {
            self.findings.add(name, format!("job {id}: {what}"));
        }
    }
}

/// What the next head must say. Damaged numbers must not stop the check, so sums wrap around.
struct Counters {
    counts: [i64; 5],
    job_id: i64,
    /// False before the first head of a log whose beginning is gone, and after what cannot be read.
    is_known: bool,
    /// False when a job was changed whose status before is not known, since that part of the log is gone: then only the sum
    /// of the counts can be told.
    is_exact: bool,
    total: i64,
}

impl Counters {
    fn of(head: &Head) -> Counters {
        Counters {
            counts: head.counts,
            job_id: head.job_id,
            is_known: true,
            is_exact: true,
            total: sum(&head.counts),
        }
    }

    /// Counts a change; an error, with the id that was expected, if it creates a job with another one.
    fn apply(
        &mut self,
        change: Change,
        id: JobId,
        before: Option<JobStatus>,
        after: Option<JobStatus>,
    ) -> std::result::Result<(), i64> {
        let is_new = matches!(change, Change::Created | Change::CreatedAndClaimed);
        let mut add = |status: JobStatus, n: i64| {
            let count = &mut self.counts[status as usize];
            *count = count.wrapping_add(n);
        };
        match before {
            Some(status) => add(status, -1),
            None if is_new => {}
            None => self.is_exact = false,
        }
        if let Some(status) = after {
            add(status, 1);
        }
        let grows = i64::from(is_new) - i64::from(after.is_none());
        self.total = self.total.wrapping_add(grows);
        if !is_new {
            return Ok(());
        }
        let expected = self.job_id.saturating_add(1);
        self.job_id = id.as_i64();
        if self.is_known && self.job_id != expected {
            return Err(expected);
        }
        Ok(())
    }

    fn differ(&self, head: &Head) -> Option<String> {
        if !self.is_known {
            return None;
        }
        let (said, expected) = (head.job_id, self.job_id);
        if said != expected {
            return Some(format!(
                "says that the newest id is {said}, it is {expected}"
            ));
        }
        let (said, expected) = (head.counts, self.counts);
        if self.is_exact && said != expected {
            return Some(format!(
                "counts {said:?} jobs, the changes since lead to {expected:?}"
            ));
        }
        let (said, expected) = (sum(&head.counts), self.total);
        (said != expected)
            .then(|| format!("counts {said} jobs, the changes since lead to {expected}"))
    }
}

fn sum(counts: &[i64; 5]) -> i64 {
    counts.iter().fold(0, |sum, count| sum.wrapping_add(*count))
}

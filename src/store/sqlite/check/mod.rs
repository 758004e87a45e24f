//! What must hold in the file after every commit, and so after every crash. L2.
//!
//! Each finding is one line that begins with the name of an invariant, for example
//! `S9 job 17: the log says completed, the row says running`. Damage is a finding, not an error: an error means that the file
//! could not be read at all.
//!
//! | name | what | where |
//! |---|---|---|
//! | S1 | SQLite finds the file sound (types, constraints, indexes); the tables are ours; every word and number is one that stepwell writes | here, `rules`, `log` |
//! | S2 | what refers to something refers to something that is there; a job has as many phases as its plan, and one input | `rules` |
//! | S3 | results are those of the phases before the next one, without a gap; a checkpoint is that of the next one | `rules` |
//! | S4 | the columns of a job fit its status; one that has failed has a phase that did, or a cause that needs none | `rules` |
//! | S5 | ended if and only if over; a failure has a reason | `rules`, `log` |
//! | S7 | only crashes inside a handler are charged, and all of them | `rules`, `log` |
//! | S8 | event numbers rise without a gap; the counters follow from the changes, and agree with a recount | `log` |
//! | S9 | the changes of a job, followed, give its row | `log` |
//! | S10 | one series of attempts ends once | `log` |
//! | S11 | a delivery is of the job and the kind of its event, and the only one of it for its endpoint; of each line the first that is pending may be sent, and no other; its end is told in the log, and is final | `rules`, `deliveries`, `ends` |
//! | S12 | names, values and messages are within their limits, and JSON is JSON | `rules`, `values` |
//!
//! Not here:
//! - S6 (nothing runs under an owner that is gone): whether an owner lives is not in the file. After a recovery and before the first claim,
//!   [`Head::counts`](crate::store::Head) must say that nothing is running; S8 proves that the count is right.
//! - S7's limit: how many crashes are allowed is a setting of the process, not of the file.
//! - S11, that each event has a delivery for each endpoint that wanted to know: what those wanted then is not in the file.
//! - `foreign_key_check`: the tables declare no foreign keys, so that it could never find anything; S2 asks instead.
//!
//! All passes stream. The log is read once in its order, with about 170 bytes of memory for each job that it tells of and that was
//! not deleted, and 40 for each delivery whose end it tells; everything else needs no memory that grows with the file. A million jobs that are all in the log take 5 s and 170 MB;
//! by default the log keeps a million events, so a fifth as many jobs. A snapshot is held meanwhile, and SQLite's own log
//! grows until the end.

mod deliveries;
mod ends;
mod log;
mod rules;
#[cfg(test)]
mod tests;
mod values;

use rusqlite::Connection;

use crate::error::{ErrorKind, Result};
use crate::store::sqlite::names::Names;
use crate::store::sqlite::open::MIGRATIONS;
use crate::store::sqlite::rows::read;

/// More lines say no more about what went wrong.
const FINDINGS_MAX: usize = 100;
/// The largest limit that can be set for payloads and results.
const VALUE_BYTES_MAX: usize = 512 << 20;

const INTEGRITY_CHECK: &str = "PRAGMA integrity_check(101)";
const SELECT_SCHEMA: &str = "SELECT type, name, sql FROM sqlite_schema
    WHERE name NOT LIKE 'sqlite/_%' ESCAPE '/' ORDER BY type, name";

/// One line for each broken invariant.
pub(super) fn run(conn: &Connection, _remembered: &mut Names) -> Result<Vec<String>> {
    run_with(conn, VALUE_BYTES_MAX)
}

fn run_with(conn: &Connection, value_bytes_max: usize) -> Result<Vec<String>> {
    let mut findings = Findings::default();
    let sound = integrity(conn, &mut findings);
    findings.note(sound)?;
    let same = schema(conn, &mut findings)?;
    if same {
        let kept = rules::check(conn, &mut findings);
        findings.note(kept)?;
        let told = deliveries::check(conn, &mut findings);
        findings.note(told)?;
        let readable = values::check(conn, value_bytes_max, &mut findings);
        findings.note(readable)?;
        let replayed = log::check(conn, &mut findings);
        findings.note(replayed)?;
    }
    Ok(findings.into_lines())
}

/// What SQLite itself finds: damaged pages, indexes that disagree with their table, values that a table does not allow.
fn integrity(conn: &Connection, findings: &mut Findings) -> Result<()> {
    let mut statement = read(conn.prepare(INTEGRITY_CHECK))?;
    let mut rows = read(statement.query([]))?;
    while let Some(row) = read(rows.next())? {
        let line: String = read(row.get(0))?;
        if line != "ok" {
            findings.add("S1", line);
        }
    }
    Ok(())
}

/// Whether the tables and indexes are those of this version: of others, nothing else can be asked. What somebody else has
/// added is left alone, but for triggers, which write.
fn schema(conn: &Connection, findings: &mut Findings) -> Result<bool> {
    let fresh = read(Connection::open_in_memory())?;
    for script in MIGRATIONS {
        read(fresh.execute_batch(script))?;
    }
    let (expected, found) = (objects(&fresh)?, objects(conn)?);
    let mut same = true;
    for object in &expected {
        if !found.contains(object) {
            same = false;
            findings.add(
                "S1",
                format!("{} {} is missing, or another one", object.0, object.1),
            );
        }
    }
    for object in found.iter().filter(|object| object.0 == "trigger") {
        findings.add("S1", format!("trigger {} is not of stepwell", object.1));
    }
    Ok(same)
}

/// Type, name and text.
type Object = (String, String, Option<String>);

fn objects(conn: &Connection) -> Result<Vec<Object>> {
    let mut statement = read(conn.prepare(SELECT_SCHEMA))?;
    let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)));
    read(rows)?.map(read).collect()
}

/// What was found broken so far.
#[derive(Default)]
struct Findings(Vec<String>);

impl Findings {
    fn add(&mut self, name: &str, what: impl std::fmt::Display) {
        // One more than is shown, to know that there are more.
        if !self.is_full() {
            self.0.push(format!("{name} {what}"));
        }
    }

    fn is_full(&self) -> bool {
        self.0.len() > FINDINGS_MAX
    }

    /// A pass that damage has stopped is a finding; the next one may still get through.
    fn note(&mut self, outcome: Result<()>) -> Result<()> {
        match outcome {
            Err(error) if error.kind() == ErrorKind::Corrupt => {
                self.add("S1", error);
                Ok(())
            }
            outcome => outcome,
        }
    }

    fn into_lines(mut self) -> Vec<String> {
        if self.is_full() {
            self.0.truncate(FINDINGS_MAX);
            self.0
                .push(format!("and more: these are the first {FINDINGS_MAX}"));
        }
        self.0
    }
}

//! S12: what the user gave, read back as its readers do: names, plans, JSON. L2.

use rusqlite::{Connection, Row};
use serde::de::IgnoredAny;

use crate::config::{check_json, check_name, check_plan};
use crate::error::Result;
use crate::job::PhaseName;
use crate::store::sqlite::check::Findings;
use crate::store::sqlite::rows::read;

const SELECT_TYPES: &str = "SELECT id, name FROM job_type ORDER BY id";
const SELECT_ENDPOINTS: &str = "SELECT id, name FROM endpoint WHERE name IS NOT NULL ORDER BY id";
const SELECT_PLANS: &str = "SELECT id, phases FROM plan ORDER BY id";
/// What is stored as JSON text: what it is, with the number of its row, and the text.
const SELECT_JSON: [&str; 5] = [
    "SELECT 'job ' || id || ': input', input FROM job WHERE input IS NOT NULL ORDER BY id",
    "SELECT 'job ' || job_id || ': input', input FROM payload ORDER BY job_id",
    "SELECT 'job ' || (id >> 8) || ': result of phase ' || (id & 255), result FROM phase ORDER BY id",
    "SELECT 'job ' || (id >> 8) || ': checkpoint of phase ' || (id & 255), value FROM checkpoint ORDER BY id",
    "SELECT 'delivery ' || id || ': body', body FROM delivery ORDER BY id",
];

pub(super) fn check(conn: &Connection, bytes_max: usize, findings: &mut Findings) -> Result<()> {
    each(conn, SELECT_TYPES, findings, |row| {
        let (id, name): (i64, String) = (read(row.get(0))?, read(row.get(1))?);
        Ok(problem(check_name(&format!("job type {id}: name"), &name)))
    })?;
    each(conn, SELECT_ENDPOINTS, findings, |row| {
        let (id, name): (i64, String) = (read(row.get(0))?, read(row.get(1))?);
        Ok(problem(check_name(&format!("endpoint {id}: name"), &name)))
    })?;
    each(conn, SELECT_PLANS, findings, |row| {
        let (id, phases): (i64, String) = (read(row.get(0))?, read(row.get(1))?);
        let Ok(phases) = serde_json::from_str::<Vec<PhaseName>>(&phases) else {
            return Ok(Some(format!("plan {id}: is not a list of phases")));
        };
        // Its type is not known here: several may have it, or none.
        let what = problem(check_plan("", &phases));
        Ok(what.map(|what| format!("plan {id}: {}", what.trim_start_matches("job type \"\": "))))
    })?;
    for sql in SELECT_JSON {
        each(conn, sql, findings, |row| {
            let (what, text): (String, String) = (read(row.get(0))?, read(row.get(1))?);
            if serde_json::from_str::<IgnoredAny>(&text).is_err() {
                return Ok(Some(format!("{what}: it is not JSON")));
            }
            Ok(problem(check_json(&what, &text, bytes_max)))
        })?;
    }
    Ok(())
}

/// Looks at each row, one at a time: a single value may be large.
fn each(
    conn: &Connection,
    sql: &str,
    findings: &mut Findings,
    look: impl Fn(&Row<'_>) -> Result<Option<String>>,
) -> Result<()> {
    let mut statement = read(conn.prepare(sql))?;
    let mut rows = read(statement.query([]))?;
    while let Some(row) = read(rows.next())?
        && !findings.is_full()
    {
        if let Some(what) = look(row)? {
            findings.add("S12", what);
        }
    }
    Ok(())
}

fn problem(outcome: Result<()>) -> Option<String> {
    outcome.err().map(|error| error.to_string())
}

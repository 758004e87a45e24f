//! S11: a delivery is of the job and the kind of its event. L2.
//!
//! The event is the one whose number is in the delivery's; what the log has forgotten says nothing. That there is such an event is asked
//! by one of the [`rules`](super::rules).

use rusqlite::{Connection, OptionalExtension};

use crate::delivery::DeliveryId;
use crate::error::Result;
use crate::event::{Change, EventKind, Seq};
use crate::store::sqlite::check::Findings;
use crate::store::sqlite::rows::read;

const SELECT_DELIVERIES: &str = "SELECT id, job_id, kind FROM delivery ORDER BY id";
const SELECT_EVENT: &str = "SELECT seq, span, job_id, change FROM event
    WHERE seq <= ?1 ORDER BY seq DESC LIMIT 1";

pub(super) fn check(conn: &Connection, findings: &mut Findings) -> Result<()> {
    let mut statement = read(conn.prepare(SELECT_DELIVERIES))?;
    let mut deliveries = read(statement.query([]))?;
    let mut found: Option<Logged> = None;
    while let Some(row) = read(deliveries.next())?
        && !findings.is_full()
    {
        let (id, job, kind): (i64, i64, i64) =
            (read(row.get(0))?, read(row.get(1))?, read(row.get(2))?);
        let seq = DeliveryId::from_i64(id).seq();
        // Many deliveries are of one row of the log.
        if !found.as_ref().is_some_and(|logged| logged.has(seq)) {
            found = Logged::at(conn, seq)?;
        }
        let Some((job_of, kind_of)) = found.as_ref().and_then(|logged| logged.tells(seq)) else {
            continue;
        };
        if job != job_of {
            let what = format!("delivery {id}: tells of job {job}, event {seq} is of job {job_of}");
            findings.add("S11", what);
        }
        if kind != kind_of.code() {
            let what = format!("delivery {id}: tells of kind {kind}, event {seq} is {kind_of}");
            findings.add("S11", what);
        }
    }
    Ok(())
}

/// A row of the log.
struct Logged {
    seq: Seq,
    span: i64,
    /// The first of its jobs.
    job_id: i64,
    /// None where the log is damaged, which is found elsewhere.
    change: Option<Change>,
}

impl Logged {
    /// The row of an event, or the last one before it.
    fn at(conn: &Connection, seq: Seq) -> Result<Option<Logged>> {
        let mut statement = read(conn.prepare_cached(SELECT_EVENT))?;
        let row = statement.query_row([seq], |row| {
            Ok(Logged {
                seq: row.get(0)?,
                span: row.get(1)?,
                job_id: row.get(2)?,
                change: Change::from_code(row.get(3)?),
            })
        });
        read(row.optional())
    }

    /// Which job the event is of, and what it is.
    fn tells(&self, seq: Seq) -> Option<(i64, EventKind)> {
        let change = self.change.filter(|_| self.has(seq))?;
        let offset = seq - self.seq;
        let place = usize::try_from(offset % change.span()).ok()?;
        let job = self.job_id.saturating_add(offset / change.span());
        Some((job, *change.events().get(place)?))
    }

    fn has(&self, seq: Seq) -> bool {
        (self.seq..self.seq.saturating_add(self.span)).contains(&seq)
    }
}

//! S11: the end of a delivery is told, and is final. L2.
//!
//! The log tells each end with the tries that led to it, counted from when the delivery was sent by its event or again by hand: the
//! latter is not in the log. Each try is recorded beside the delivery too, whoever asked for it, and the newest [`TRIES_KEPT`] are
//! kept. So ends that tell of more tries than are recorded are those of a delivery that has ended twice and was not sent again between.

use std::collections::BTreeMap;

use rusqlite::Connection;

use crate::delivery::{DeliveryId, DeliveryStatus};
use crate::error::Result;
use crate::event::{Change, LoggedChange, Seq};
use crate::store::outbox::TRIES_KEPT;
use crate::store::sqlite::check::Findings;
use crate::store::sqlite::rows::{limit, read};

const SELECT_DELIVERIES: &str = "SELECT id, status,
    (SELECT count(*) FROM delivery_try WHERE delivery_id = delivery.id),
    EXISTS (SELECT 1 FROM job WHERE job.id = job_id)
    FROM delivery ORDER BY id";

/// What the log tells of the ends of deliveries.
#[derive(Default)]
pub(super) struct Ends {
    told: BTreeMap<i64, Told>,
    /// A row of it cannot be read: it may have told more.
    is_partial: bool,
}

struct Told {
    /// The last of its ends.
    status: DeliveryStatus,
    /// Those of all its ends.
    tries: i64,
}

impl Ends {
    pub(super) fn tell(&mut self, change: &LoggedChange, findings: &mut Findings) {
        let status = match change.change {
            Change::WebhookDelivered => DeliveryStatus::Delivered,
            Change::WebhookFailed => DeliveryStatus::Failed,
            Change::Created
            | Change::CreatedAndClaimed
            | Change::Claimed
            | Change::Advanced
            | Change::Completed
            | Change::AdvancedAndReleased
            | Change::FailedAndRetrying
            | Change::Failed
            | Change::Snoozed
            | Change::Cancelled
            | Change::Interrupted
            | Change::InterruptedAndFailed
            | Change::Expired
            | Change::Retried
            | Change::Deleted => return,
        };
        let number = |key| change.data.get(key)?.as_i64();
        let (Some(id), Some(tries)) = (number("delivery_id"), number("tries")) else {
            let what = "tells of the end of a delivery, and not which, or after how many tries";
            findings.add("S11", format!("event {}: {what}", change.seq));
            self.is_partial = true;
            return;
        };
        let told = self.told.entry(id).or_insert(Told { status, tries: 0 });
        told.status = status;
        told.tries = told.tries.saturating_add(tries.max(0));
    }

    /// A row of the log cannot be read.
    pub(super) fn lose(&mut self) {
        self.is_partial = true;
    }

    /// `oldest`: the number of the oldest event of the log.
    pub(super) fn compare(
        &self,
        conn: &Connection,
        oldest: Seq,
        findings: &mut Findings,
    ) -> Result<()> {
        let mut statement = read(conn.prepare(SELECT_DELIVERIES))?;
        let mut deliveries = read(statement.query([]))?;
        while let Some(row) = read(deliveries.next())?
            && !findings.is_full()
        {
            let (id, status): (i64, i64) = (read(row.get(0))?, read(row.get(1))?);
            let (recorded, has_job): (i64, bool) = (read(row.get(2))?, read(row.get(3))?);
            // One that is sent again by hand is pending after its end.
            let over =
                DeliveryStatus::from_code(status).filter(|it| *it != DeliveryStatus::Pending);
            match (self.told.get(&id), over) {
                (Some(told), over) => {
                    if told.tries.min(limit(TRIES_KEPT)) > recorded {
                        let what = format!(
                            "delivery {id}: its ends in the log tell of {} tries, {recorded} are recorded",
                            told.tries
                        );
                        findings.add("S11", what);
                    }
                    if let Some(over) = over
                        && over != told.status
                    {
                        let what = format!(
                            "delivery {id}: the log says {}, the row says {over}",
                            told.status
                        );
                        findings.add("S11", what);
                    }
                }
                // The end comes after the event, so the log has kept it. Of a job that is gone nothing is told.
                (None, Some(over))
                    if has_job && !self.is_partial && DeliveryId::from_i64(id).seq() >= oldest =>
                {
                    let what = format!("delivery {id}: is {over}, and the log does not tell of it");
                    findings.add("S11", what);
                }
                (None, Some(_) | None) => {}
            }
        }
        Ok(())
    }
}

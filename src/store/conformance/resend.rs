//! Deliveries that are sent again by hand while they are on their way. Test code.

use std::time::Duration;

use crate::delivery::{DeliveryId, DeliveryStatus};
use crate::event::EventKind;
use crate::store::conformance::outbox::spec;
use crate::store::conformance::{Bench, new_job};
use crate::store::ops::Op;
use crate::store::outbox::{Mail, Verdict, Which};

/// The bug: the last try of the old series, which ended after it had been asked for, made it a dead letter, or put it off by a day.
pub(super) fn a_try_from_before_takes_nothing_back(bench: &mut Bench) {
    bench.register("import", "a");
    bench.mail(Mail::Put(
        "audit".into(),
        spec("https://a.example/", &[EventKind::Created]),
    ));
    bench.enqueue(new_job("import"));
    let again = |bench: &mut Bench, id: DeliveryId| {
        bench.later(Duration::from_secs(1));
        bench
            .one(Op::Mail(Mail::Redeliver(Which::One(id))))
            .expect("it is there");
    };
    for verdict in [
        Verdict::GiveUp,
        Verdict::RetryAt(bench.now.after(Duration::from_secs(86_400))),
    ] {
        let taken = bench.sendable().remove(0);
        again(bench, taken.id);
        bench.attempt(&taken, verdict);
        let row = bench.sendable().remove(0);
        assert_eq!((row.status, row.tries), (DeliveryStatus::Pending, 0));
        assert_eq!(row.next_at, Some(bench.now), "{verdict:?}");
        assert_eq!(row.last_status, Some(500), "it is in the log");
    }
    let taken = bench.sendable().remove(0);
    again(bench, taken.id);
    bench.attempt(&taken, Verdict::Delivered);
    assert_eq!(bench.deliveries()[0].status, DeliveryStatus::Delivered);
}

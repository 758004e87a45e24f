//! Endpoints of the configuration: disabled, enabled, moved; and how long their deliveries are kept. Test code.

use crate::error::ErrorKind;
use crate::event::EventKind;
use crate::store::conformance::outbox::{prune_deliveries, spec};
use crate::store::conformance::{Bench, SECOND, START, new_job, refused};
use crate::store::ops::Op;
use crate::store::outbox::{Mail, Verdict};
use crate::time::Timestamp;

pub(super) fn one_that_is_gone_is_disabled_and_can_be_enabled(bench: &mut Bench) {
    bench.register("import", "a");
    let spec = spec("https://a.example/", &[EventKind::Created]);
    bench.mail(Mail::Configure(vec![("audit".into(), spec.clone())]));
    bench.enqueue(new_job("import"));
    let sent = bench.sendable().remove(0);
    bench.attempt(&sent, Verdict::Gone);
    let endpoint = |bench: &Bench| bench.reader.all_endpoints().expect("readable").remove(0);
    assert!(!endpoint(bench).is_enabled);
    bench.mail(Mail::Configure(vec![("audit".into(), spec.clone())]));
    assert!(
        !endpoint(bench).is_enabled,
        "a restart does not change that"
    );
    bench.enqueue(new_job("import"));
    assert_eq!(bench.deliveries().len(), 1, "nothing is written for it");
    assert!(endpoint(bench).problem.is_some());
    bench.mail(Mail::Enable("audit".into(), true));
    assert_eq!(endpoint(bench).problem, None);
    bench.enqueue(new_job("import"));
    assert_eq!(bench.deliveries().len(), 2);
    bench.mail(Mail::Configure(vec![]));
    assert!(!endpoint(bench).is_enabled, "nobody wants it");
    bench.mail(Mail::Configure(vec![("audit".into(), spec)]));
    assert!(endpoint(bench).is_enabled, "somebody wants it again");
    let refused = refused(bench.one(Op::Mail(Mail::Enable("other".into(), true))));
    assert_eq!(refused.0, ErrorKind::NotFound);
}

/// A 410 from where an endpoint had been before it moved disabled it where it is now: what happened after that was written for nobody.
pub(super) fn what_is_gone_is_the_place_where_it_was(bench: &mut Bench) {
    bench.register("import", "a");
    let at = |url: &str| Mail::Put("audit".into(), spec(url, &[EventKind::Created]));
    bench.mail(at("https://old.example/"));
    bench.enqueue(new_job("import"));
    bench.mail(at("https://new.example/"));
    let sent = bench.sendable().remove(0);
    bench.attempt(&sent, Verdict::Gone);
    bench.enqueue(new_job("import"));
    let rows = bench.deliveries();
    assert_eq!(&*rows[1].url, "https://new.example/");
    assert_eq!(rows[0].next_at, None, "given up all the same");
}

/// The dead letters of a board that boots in 1970 were gone as soon as it was told the time.
pub(super) fn deliveries_that_ended_before_the_clock_was_set_stay(bench: &mut Bench) {
    bench.now = Timestamp::from_millis(1000);
    bench.register("import", "a");
    let spec = spec("https://a.example/", &[EventKind::Created]);
    bench.mail(Mail::Put("audit".into(), spec));
    for _ in 0..2 {
        bench.enqueue(new_job("import"));
        let sent = bench.sendable().remove(0);
        bench.attempt(&sent, Verdict::GiveUp);
        bench.now = START;
    }
    let pruned = prune_deliveries(bench, SECOND);
    let next = Some(START.after(SECOND));
    assert_eq!((pruned.deliveries, pruned.next), (0, next));
    bench.later(SECOND);
    let pruned = prune_deliveries(bench, SECOND);
    assert_eq!((pruned.deliveries, pruned.next), (1, None));
    assert_eq!(bench.deliveries().len(), 1);
    // Before a clock is set it measures what it has seen itself.
    bench.now = Timestamp::from_millis(10_000);
    assert_eq!(prune_deliveries(bench, SECOND).deliveries, 1);
}

/// The bug: as long as a single one went by age in each step, no other went by count.
pub(super) fn deliveries_go_by_count_while_others_go_by_age(bench: &mut Bench) {
    bench.register("import", "a");
    let spec = spec("https://a.example/", &[EventKind::Created]);
    bench.mail(Mail::Put("audit".into(), spec));
    for _ in 0..12 {
        bench.enqueue(new_job("import"));
    }
    let rows = bench.sendable();
    bench.attempt(&rows[0], Verdict::GiveUp);
    bench.attempt(&rows[1], Verdict::Delivered);
    bench.later(SECOND);
    for row in &rows[2..] {
        bench.attempt(row, Verdict::Delivered);
    }
    let pruned = prune_deliveries(bench, SECOND);
    assert_eq!((pruned.deliveries, pruned.more), (10, true));
    let left: Vec<_> = bench.deliveries().iter().map(|row| row.id).collect();
    assert_eq!(left, [rows[10].id, rows[11].id]);
}

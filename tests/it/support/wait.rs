//! Waits on threads of their own: with a limit where the queue has none, and begun before the test goes on.

use std::path::Path;

use crossbeam_channel::{Receiver, bounded};
use stepwell::{JobQueue, ShutdownReport};

use super::{Harness, PATIENCE};

/// The end of a queue that is being shut down. Fails when it does not come.
#[track_caller]
pub(crate) fn closed(queue: &JobQueue) -> ShutdownReport {
    let (tx, report) = bounded(1);
    let queue = queue.clone();
    std::thread::spawn(move || tx.send(queue.wait_closed()));
    let report = report.recv_timeout(PATIENCE);
    report.expect("the queue is closed in time")
}

/// Runs `wait` on a thread of its own, and returns when that sleeps: on an idle queue there is nothing else that it could wait
/// for. Only Linux tells that a thread sleeps; elsewhere it may not have begun. What it answers comes out of the channel.
pub(crate) fn asleep<T: Send + 'static>(
    harness: &Harness,
    wait: impl FnOnce() -> T + Send + 'static,
) -> Receiver<T> {
    let (tx, begun) = bounded(1);
    let (answered, answer) = bounded(1);
    std::thread::spawn(move || {
        // Its directory in /proc: PID/task/TID.
        let own = std::fs::read_link("/proc/thread-self").ok();
        tx.send(own).unwrap();
        answered.send(wait()).ok();
    });
    if let Some(own) = harness.recv(&begun) {
        let stat = Path::new("/proc").join(own).join("stat");
        harness.until("a thread waits, or has waited", || {
            // It is gone when the thread is. The state stands after the name in parentheses.
            let stat = std::fs::read_to_string(&stat).unwrap_or_default();
            stat.rsplit_once(") ")
                .is_none_or(|(_, rest)| rest.starts_with('S'))
        });
    }
    answer
}

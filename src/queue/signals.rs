//! A graceful end by signal, when asked for. L4. The only file that names `ctrlc`.
//!
//! `ctrlc` runs its handler on a thread of its own, so it may do what any thread may. It can be installed once in a process.

use std::time::Duration;

use crate::error::{Error, ErrorKind, Result};
use crate::queue::JobQueue;
use crate::shutdown::ShutdownReport;
use crate::sync::{Receiver, RecvTimeoutError, bounded, spawn};

/// Waits for a signal, or for somebody else to close the queue.
pub(crate) fn run_until_signal(queue: &JobQueue, timeout: Duration) -> Result<ShutdownReport> {
    let (tx, signals) = bounded(2);
    let closed = tx.clone();
    // First: from the moment that there is a handler no signal ends the process. It does not keep the queue open.
    let watched = queue.downgrade();
    spawn("stepwell-signal", move || {
        if let Some(queue) = watched.upgrade() {
            queue.wait_closed();
        }
        closed.try_send(false).ok();
    })?;
    ctrlc::set_handler(move || {
        // A third signal finds the channel full, and says nothing new.
        tx.try_send(true).ok();
    })
    .map_err(|error| {
        let problem = "the process has a handler for SIGINT already: call shutdown from it instead";
        Error::new(ErrorKind::InvalidConfig, problem).with_source(error)
    })?;
    if signals.recv() == Ok(true)
        && let Err(error) = listen_for_another(queue, signals, timeout)
    {
        log::warn!("a second signal will not cut the shutdown short: {error}");
    }
    queue.shutdown(timeout)
}

/// During the shutdown that the first one has begun.
fn listen_for_another(queue: &JobQueue, signals: Receiver<bool>, timeout: Duration) -> Result<()> {
    let hurried = queue.downgrade();
    spawn("stepwell-signal", move || {
        match signals.recv_timeout(timeout) {
            Ok(true) => {
                log::warn!("a second signal: the shutdown is cut short");
                if let Some(queue) = hurried.upgrade() {
                    queue.shutdown(Duration::ZERO).ok();
                }
            }
            Ok(false) | Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {}
        }
    })
    .map(drop)
}

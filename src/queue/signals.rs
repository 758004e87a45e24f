//! A graceful end by signal, when asked for. L4. The only file that names `ctrlc`.
//!
//! `ctrlc` runs its handler on a thread of its own, so it may do what any thread may. It can be installed once in a process.

use std::time::Duration;

use crate::error::{Error, ErrorKind, Result};
use crate::queue::JobQueue;
use crate::shutdown::ShutdownReport;
use crate::sync::{RecvTimeoutError, bounded, spawn};

/// Waits for a signal, or for somebody else to close the queue.
pub(crate) fn run_until_signal(queue: &JobQueue, timeout: Duration) -> Result<ShutdownReport> {
    let (tx, signals) = bounded(2);
    let closed = tx.clone();
    ctrlc::set_handler(move || {
        // A third signal finds the channel full, and says nothing new.
        tx.try_send(true).ok();
    })
    .map_err(|error| {
        let problem = "the process has a handler for SIGINT already: call shutdown from it instead";
        Error::new(ErrorKind::InvalidConfig, problem).with_source(error)
    })?;
    let watched = queue.clone();
    spawn("stepwell-signal", move || {
        watched.wait_closed();
        closed.try_send(false).ok();
    })?;
    if signals.recv() == Ok(true) {
        let hurried = queue.clone();
        spawn("stepwell-signal", move || {
            match signals.recv_timeout(timeout) {
                Ok(true) => {
                    log::warn!("a second signal: the shutdown is cut short");
                    hurried.shutdown(Duration::ZERO).ok();
                }
                Ok(false) | Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {}
            }
        })?;
    }
    queue.shutdown(timeout)
}

//! The real ones. L1.

pub(crate) use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering, fence};
pub(crate) use std::thread::JoinHandle;
pub(crate) use std::thread::ThreadId;

pub(crate) use crossbeam_channel::{Receiver, Sender, TryRecvError, unbounded};
#[cfg(feature = "signals")]
pub(crate) use crossbeam_channel::{RecvTimeoutError, bounded};
pub(crate) use parking_lot::{Condvar, Mutex, MutexGuard};

use crate::error::{Error, ErrorKind, Result};

/// Starts a named thread.
///
/// # Errors
/// `Storage` when the operating system has no thread left to give.
pub(crate) fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>> {
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(run)
        .map_err(|error| {
            Error::new(
                ErrorKind::Storage,
                format!("thread {name}: cannot be started"),
            )
            .with_source(error)
        })
}

/// The thread that calls.
pub(crate) fn current_thread() -> ThreadId {
    std::thread::current().id()
}

/// Whether the calling thread is on its way down by a panic.
pub(crate) fn is_panicking() -> bool {
    std::thread::panicking()
}

/// Lets other threads run that can.
pub(crate) fn yield_now() {
    std::thread::yield_now();
}

/// Lets this thread rest, for a store that is busy. Nothing else may wait by the clock: wait for an event instead.
pub(crate) fn pause(duration: std::time::Duration) {
    std::thread::park_timeout(duration);
}

/// Processors that this process may use; 2 where the system does not say.
pub(crate) fn processors() -> usize {
    std::thread::available_parallelism().map_or(2, std::num::NonZeroUsize::get)
}

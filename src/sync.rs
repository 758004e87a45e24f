//! Locks, condvars, channels, threads and atomics: the only file that names them, so that a model checker can stand in for all
//! of them in one place. L1; every layer may use it.
//!
//! `real`: `parking_lot` for locks (no poisoning: a panic in user code never holds one of our locks), `crossbeam_channel` for queues
//! of job ids, `std` for threads and atomics. No lock is held across user code, network traffic or a channel send, and no
//! thread ever holds two of them. `model`: the same on a scheduler that tries out interleavings, for `src/interleave`; built with
//! `--cfg stepwell_shuttle` only.

#[cfg(all(test, stepwell_shuttle))]
mod model;
#[cfg(not(all(test, stepwell_shuttle)))]
mod real;

#[cfg(all(test, stepwell_shuttle))]
use model as chosen;
#[cfg(not(all(test, stepwell_shuttle)))]
use real as chosen;

pub(crate) use chosen::{
    AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Condvar, JoinHandle, Mutex, MutexGuard, Ordering,
    Receiver, Sender, ThreadId, TryRecvError, current_thread, fence, is_panicking, pause,
    processors, spawn, unbounded, yield_now,
};
#[cfg(all(test, stepwell_shuttle))]
pub(crate) use model::passed;
#[cfg(all(feature = "signals", not(all(test, stepwell_shuttle))))]
pub(crate) use real::{RecvTimeoutError, bounded};

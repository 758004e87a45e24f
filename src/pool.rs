//! The worker threads: pull an offer, run one phase, pull the next. L3.

mod surplus;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use crate::error::Result;
use crate::error::panic_message;
use crate::live::{Offer, Task};
use crate::sync::{JoinHandle, Mutex, Receiver, TryRecvError, current_thread, pause, spawn};
use surplus::Surplus;

/// A worker that is not inside a handler ends within microseconds; we look for so long whether it has.
const LOOK: Duration = Duration::from_millis(1);
const LOOKS_MAX: u32 = 50;

/// What a worker does with an offer.
pub(crate) trait Desk: Send + Sync {
    /// The phase that is offered, if it still is.
    fn take(&self, offer: Offer) -> Option<Task>;
    /// Runs it and hands its outcome in.
    fn perform(&self, task: Task, worker: usize) -> After;
    /// The worker has nothing to do.
    fn idle(&self, worker: usize);
    /// A thread of ours ended by a panic.
    fn poison(&self, thread: &str, message: &str);
}

/// What a worker does after a phase.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub(crate) enum After {
    Next,
    /// It was replaced while its handler overstayed.
    End,
}

/// The threads of a queue.
pub(crate) struct Pool {
    ready: Receiver<Offer>,
    state: Arc<Mutex<State>>,
    surplus: Surplus,
}

#[derive(Default)]
struct State {
    threads: Vec<JoinHandle<()>>,
    /// Each worker has a number of its own: its slot in the flight recorder.
    numbers: usize,
    /// Numbers of workers that have ended.
    free: Vec<usize>,
}

impl Pool {
    pub(crate) fn new(ready: Receiver<Offer>) -> Pool {
        Pool {
            ready,
            state: Arc::default(),
            surplus: Surplus::default(),
        }
    }

    /// Starts one more worker.
    pub(crate) fn start(&self, desk: Arc<dyn Desk>) -> Result<()> {
        let mut state = self.state.lock();
        let worker = state.free.pop().unwrap_or(state.numbers);
        let (ready, own) = (self.ready.clone(), self.state.clone());
        let name = format!("stepwell-{worker}");
        let thread = spawn(&name, move || {
            let name = format!("stepwell-{worker}");
            let work = catch_unwind(AssertUnwindSafe(|| work(&*desk, &ready, worker)));
            if let Err(panic) = work {
                desk.poison(&name, &panic_message(&*panic));
            }
            own.lock().free.push(worker);
        });
        let thread = thread.inspect_err(|_| {
            if worker < state.numbers {
                state.free.push(worker);
            }
        })?;
        state.numbers = state.numbers.max(worker + 1);
        state.threads.retain(|thread| !thread.is_finished());
        state.threads.push(thread);
        Ok(())
    }

    /// A worker goes on although another was started in its place.
    pub(crate) fn one_too_many(&self) {
        self.surplus.add();
    }

    /// What the calling worker does now that it has no handler.
    pub(crate) fn next(&self) -> After {
        if self.surplus.take() {
            After::End
        } else {
            After::Next
        }
    }

    /// Whether the calling thread is one of the workers.
    pub(crate) fn is_own_thread(&self) -> bool {
        let own = current_thread();
        let state = self.state.lock();
        state
            .threads
            .iter()
            .any(|thread| thread.thread().id() == own)
    }

    /// Joins the workers, but for those inside a handler: they are left behind, and counted. The ready channel must have been
    /// closed before, so that all others end by themselves.
    pub(crate) fn join(&self, inside_count: impl Fn() -> usize) -> usize {
        let mut threads = std::mem::take(&mut self.state.lock().threads);
        for _ in 0..LOOKS_MAX {
            let ended = threads.extract_if(.., |thread| thread.is_finished());
            for thread in ended {
                if thread.join().is_err() {
                    log::error!("a worker ended by a panic");
                }
            }
            if threads.len() <= inside_count() {
                break;
            }
            pause(LOOK);
        }
        threads.len().min(inside_count())
    }
}

fn work(desk: &dyn Desk, ready: &Receiver<Offer>, worker: usize) {
    loop {
        let offer = match ready.try_recv() {
            Ok(offer) => offer,
            Err(TryRecvError::Disconnected) => return,
            Err(TryRecvError::Empty) => {
                desk.idle(worker);
                match ready.recv() {
                    Ok(offer) => offer,
                    Err(_) => return,
                }
            }
        };
        if let Some(task) = desk.take(offer)
            && desk.perform(task, worker) == After::End
        {
            return;
        }
    }
}

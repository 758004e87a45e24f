//! The worker threads: pull a job id, run one phase, pull the next. L3.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use crate::error::Result;
use crate::job::JobId;
use crate::live::Task;
use crate::runner::panic_message;
use crate::sync::{JoinHandle, Mutex, Receiver, ThreadId, TryRecvError, current_thread, spawn};

/// What a worker does with an id.
pub(crate) trait Desk: Send + Sync {
    /// The phase that the job offers now.
    fn take(&self, id: JobId) -> Option<Task>;
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
    ready: Receiver<JobId>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    threads: Vec<(ThreadId, JoinHandle<()>)>,
    /// Each worker has a number of its own: its slot in the flight recorder.
    started: usize,
}

impl Pool {
    pub(crate) fn new(ready: Receiver<JobId>) -> Pool {
        Pool {
            ready,
            state: Mutex::default(),
        }
    }

    /// Starts one more worker.
    pub(crate) fn start(&self, desk: Arc<dyn Desk>) -> Result<()> {
        let mut state = self.state.lock();
        let worker = state.started;
        let ready = self.ready.clone();
        let name = format!("stepwell-{worker}");
        let thread = spawn(&name, move || {
            let name = format!("stepwell-{worker}");
            let work = catch_unwind(AssertUnwindSafe(|| work(&*desk, &ready, worker)));
            if let Err(panic) = work {
                desk.poison(&name, &panic_message(&*panic));
            }
        })?;
        state.started += 1;
        state.threads.retain(|(_, thread)| !thread.is_finished());
        state.threads.push((thread.thread().id(), thread));
        Ok(())
    }

    /// Joins the workers that have ended or will end by themselves; those inside a handler are left behind. The ready channel
    /// must have been closed before.
    pub(crate) fn join(&self, is_inside: impl Fn() -> bool) -> usize {
        let threads = std::mem::take(&mut self.state.lock().threads);
        let own = current_thread();
        let mut left = 0;
        for (id, thread) in threads {
            if id == own || (is_inside() && !thread.is_finished()) {
                left += 1;
            } else if thread.join().is_err() {
                log::error!("a worker ended by a panic");
            }
        }
        left
    }
}

fn work(desk: &dyn Desk, ready: &Receiver<JobId>, worker: usize) {
    loop {
        let id = match ready.try_recv() {
            Ok(id) => id,
            Err(TryRecvError::Disconnected) => return,
            Err(TryRecvError::Empty) => {
                desk.idle(worker);
                match ready.recv() {
                    Ok(id) => id,
                    Err(_) => return,
                }
            }
        };
        if let Some(task) = desk.take(id)
            && desk.perform(task, worker) == After::End
        {
            return;
        }
    }
}

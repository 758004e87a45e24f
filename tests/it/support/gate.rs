//! A place where handlers wait until the test lets them go on.

use crossbeam_channel::{Receiver, Sender, unbounded};
use stepwell::{JobId, PhaseContext};

use super::{Harness, PATIENCE};

/// Holds handlers at a known point. Clones are the same gate.
#[derive(Clone)]
pub(crate) struct Gate {
    came: (Sender<JobId>, Receiver<JobId>),
    opened: (Sender<()>, Receiver<()>),
}

impl Gate {
    pub(crate) fn new() -> Gate {
        Gate {
            came: unbounded(),
            opened: unbounded(),
        }
    }

    /// In a handler: says that it is here, and stays until it is let through. It does not look at its stop flag.
    pub(crate) fn pass<I>(&self, cx: &PhaseContext<I>) {
        self.stay(cx.job_id());
    }

    /// As [`Gate::pass`], for what knows no context.
    pub(crate) fn stay(&self, id: JobId) {
        self.came.0.send(id).unwrap();
        self.opened
            .1
            .recv_timeout(PATIENCE)
            .expect("the gate is opened in time");
    }

    /// In a test: waits until a handler is here.
    pub(crate) fn wait(&self, harness: &Harness) -> JobId {
        harness.recv(&self.came.1)
    }

    /// Whether a handler has come that was not waited for.
    pub(crate) fn is_anybody_here(&self) -> bool {
        !self.came.1.is_empty()
    }

    /// Lets one handler through, now or when it comes.
    pub(crate) fn open(&self) {
        self.opened.0.send(()).unwrap();
    }
}

//! Where a caller waits for the answer to its operation, and the promise of one that goes with the operation. L3.
//! `tests/loom` takes this file as it is.

use std::sync::Arc;

use crate::error::{Error, ErrorKind, Result};
use crate::store::Done;
use crate::sync::{Condvar, Mutex, is_panicking};

/// Where a caller waits.
#[derive(Default)]
pub(super) struct Ticket {
    answer: Mutex<Option<Result<Done>>>,
    bell: Condvar,
}

impl Ticket {
    pub(super) fn wait(&self) -> Result<Done> {
        let mut answer = self.answer.lock();
        loop {
            match answer.take() {
                Some(answer) => return answer,
                None => self.bell.wait(&mut answer),
            }
        }
    }

    fn answer(&self, answer: Result<Done>) {
        *self.answer.lock() = Some(answer);
        self.bell.notify_one();
    }
}

/// The promise of an answer. Whatever becomes of it, the caller gets one: no caller waits for ever.
pub(super) struct Promise {
    ticket: Arc<Ticket>,
    is_kept: bool,
}

impl Promise {
    pub(super) fn new(ticket: &Arc<Ticket>) -> Promise {
        Promise {
            ticket: ticket.clone(),
            is_kept: false,
        }
    }

    pub(super) fn keep(mut self, answer: Result<Done>) {
        self.is_kept = true;
        self.ticket.answer(answer);
    }
}

impl Drop for Promise {
    fn drop(&mut self) {
        if self.is_kept {
            return;
        }
        self.ticket.answer(Err(if is_panicking() {
            let problem = "a bug of stepwell: it may or may not have happened, close the queue and open it again";
            Error::new(ErrorKind::Poisoned, problem)
        } else {
            // It was never begun.
            Error::closed()
        }));
    }
}

#[cfg(all(test, not(stepwell_shuttle)))]
mod tests {
    use super::*;

    #[test]
    fn a_promise_that_is_dropped_is_answered_all_the_same() {
        let ticket = Arc::new(Ticket::default());
        drop(Promise::new(&ticket));
        let error = ticket.wait().expect_err("nothing was done");
        assert_eq!(error.kind(), ErrorKind::Closed);
    }

    #[test]
    fn a_promise_that_a_panic_dropped_says_that_nobody_knows() {
        let ticket = Arc::new(Ticket::default());
        let promise = Promise::new(&ticket);
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(move || {
            let _promise = promise;
            std::panic::resume_unwind(Box::new(()));
        }));
        assert!(panicked.is_err());
        let error = ticket.wait().expect_err("nobody answered");
        assert_eq!(error.kind(), ErrorKind::Poisoned);
    }
}

//! Runs one phase: calls the handler, catches its panic, and makes its outcome data. L3; knows no store.
//!
//! A panic's place and backtrace are only known to the panic hook, while it happens. So the first queue of a process puts a
//! hook before the one that is there: inside a handler it keeps the backtrace for us; then, always, it calls the old one.

use std::backtrace::Backtrace;
use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;

use crate::config::{BACKTRACE_BYTES_MAX, MESSAGE_BYTES_MAX, check_json, truncate};
use crate::job::ErrorCause;
use crate::phase::context::Attempt;
use crate::phase::{Answer, Handler, PhaseError};

/// What a handler's run came to.
#[derive(Debug)]
#[must_use]
pub(crate) enum Outcome {
    /// Its result, as JSON.
    Completed(String),
    Refused(Refused),
}

/// Why there is no result.
#[derive(Debug)]
pub(crate) struct Refused {
    pub(crate) answer: Answer,
    pub(crate) cause: ErrorCause,
    pub(crate) message: String,
    pub(crate) backtrace: Option<String>,
}

thread_local! {
    static IS_INSIDE: Cell<bool> = const { Cell::new(false) };
    static PANIC: RefCell<Option<(String, String)>> = const { RefCell::new(None) };
}

/// Whether the calling thread is inside a handler.
fn is_inside_handler() -> bool {
    IS_INSIDE.with(Cell::get)
}

/// Calls the handler once.
pub(crate) fn run(
    handler: &Handler,
    attempt: Attempt,
    input: &str,
    result_bytes_max: usize,
) -> Outcome {
    hook();
    // Of a panic that an earlier handler caught itself.
    PANIC.with(RefCell::take);
    IS_INSIDE.with(|inside| inside.set(true));
    let returned = catch_unwind(AssertUnwindSafe(|| handler(attempt, input)));
    IS_INSIDE.with(|inside| inside.set(false));
    let mut refused = match returned {
        Ok(Ok(result)) => match check_json("the result", &result, result_bytes_max) {
            Ok(()) => return Outcome::Completed(result),
            Err(error) => Refused {
                answer: Answer::Fail,
                cause: ErrorCause::Result,
                message: error.to_string(),
                backtrace: None,
            },
        },
        Ok(Err(PhaseError {
            answer,
            cause,
            message,
            backtrace,
        })) => Refused {
            answer,
            cause,
            message,
            backtrace,
        },
        Err(panic) => {
            let (place, backtrace) = PANIC.with(RefCell::take).unzip();
            let text = panic
                .downcast_ref::<&str>()
                .map(|text| (*text).to_owned())
                .or_else(|| panic.downcast_ref::<String>().cloned())
                .unwrap_or_else(|| "with a value that is no text".to_owned());
            // Dropping the value may panic again: that must not end the worker.
            if catch_unwind(AssertUnwindSafe(|| drop(panic))).is_err() {
                log::error!("a handler's panic value panicked when it was dropped");
            }
            let place = place
                .map(|place| format!(" at {place}"))
                .unwrap_or_default();
            Refused {
                answer: Answer::Retry,
                cause: ErrorCause::Panic,
                message: format!("panicked{place}: {text}"),
                backtrace,
            }
        }
    };
    truncate(&mut refused.message, MESSAGE_BYTES_MAX);
    if let Some(backtrace) = &mut refused.backtrace {
        truncate(backtrace, BACKTRACE_BYTES_MAX);
    }
    Outcome::Refused(refused)
}

fn hook() {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let next = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if is_inside_handler() {
                let place = info.location().map(ToString::to_string).unwrap_or_default();
                let backtrace = Backtrace::force_capture().to_string();
                PANIC.with(|panic| panic.replace(Some((place, backtrace))));
            }
            next(info);
        }));
    });
}

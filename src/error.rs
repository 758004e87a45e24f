//! The one error type of the public interface. L0: knows no other module.
//!
//! [`ErrorKind`] answers "what can the caller do about it?"; the message says what was wrong, with which value, and what to
//! do; [`std::error::Error::source`] has the cause. No type of a dependency appears in a public signature, so foreign errors
//! come in through private functions where they happen, never through `From`.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// What this crate returns where something can go wrong.
pub type Result<T> = std::result::Result<T, Error>;

/// What went wrong, by what the caller can do about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// There is no such job, job type or cursor.
    NotFound,
    /// The request does not fit the present state, for example `retry` of a job that is running. Look, then decide.
    Conflict,
    /// The queue is shutting down or closed. Nothing was stored.
    Closed,
    /// A setting, a path or a registration is wrong. Fix the program or its configuration.
    InvalidConfig,
    /// A name, a payload or a result is not acceptable. Nothing was stored.
    InvalidJob,
    /// Another process runs jobs on this file. Use a [`Client`](crate::Client) beside it.
    Locked,
    /// The store failed and nothing was stored. Trying again later may work.
    Storage,
    /// The disk is full and nothing was stored. Make room, then try again: a queue takes new jobs within a second,
    /// or a minute where that room was gone again before.
    StorageFull,
    /// The store failed in the middle of a commit and could not be read again: the change is there, or it is not.
    OutcomeUnknown,
    /// The file holds something that stepwell did not write. See `check`.
    Corrupt,
    /// The wait ended before the event did.
    Timeout,
    /// A thread of the queue died by a bug of ours. The file is safe: close the queue and open it again.
    Poisoned,
}

/// An error of this crate: a kind, a message and, often, a source.
pub struct Error(Box<Inner>);

struct Inner {
    kind: ErrorKind,
    message: String,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    pub(crate) fn new(kind: ErrorKind, message: impl Into<String>) -> Error {
        Error(Box::new(Inner {
            kind,
            message: message.into(),
            source: None,
        }))
    }

    pub(crate) fn with_source(
        mut self,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Error {
        self.0.source = Some(source.into());
        self
    }

    /// A second error like this one, for another caller who waited for the same commit. The source becomes text.
    pub(crate) fn duplicate(&self) -> Error {
        let mut copy = Error::new(self.0.kind, self.0.message.clone());
        if let Some(source) = &self.0.source {
            copy.0.source = Some(source.to_string().into());
        }
        copy
    }

    pub(crate) fn closed() -> Error {
        Error::new(
            ErrorKind::Closed,
            "the queue is closed: open it again to go on",
        )
    }

    /// What the caller can do about it.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.message)?;
        match &self.0.source {
            Some(source) => write!(f, ": {source}"),
            None => Ok(()),
        }
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Error({:?}: {self})", self.0.kind)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source.as_deref().map(|source| source as _)
    }
}

/// The message of a panic that was caught. Dropping its value may panic again, and is no matter.
pub(crate) fn panic_text(panic: Box<dyn std::any::Any + Send>) -> String {
    let text = panic_message(&*panic);
    catch_unwind(AssertUnwindSafe(|| drop(panic))).ok();
    text
}

/// The message of a panic.
pub(crate) fn panic_message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "no message".to_owned())
}

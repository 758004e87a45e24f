//! What the ticket uses of `crate::error`.

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ErrorKind {
    Closed,
    Poisoned,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Error(pub(crate) ErrorKind);

pub(crate) type Result<T> = std::result::Result<T, Error>;

impl Error {
    pub(crate) fn new(kind: ErrorKind, _problem: &str) -> Error {
        Error(kind)
    }

    pub(crate) fn closed() -> Error {
        Error(ErrorKind::Closed)
    }
}

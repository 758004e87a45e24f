//! What the ticket uses of `crate::store`.

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Done {
    Nothing,
}

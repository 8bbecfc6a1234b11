//! How a verb ends.

/// How a verb ended, when it did not fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    Done,
    Stopped,
    /// What was to be verified does not check out; the output says where.
    Refuted,
}

//! What can go wrong with a worker. No such error loses more than the current job.

use crate::trainer::TrainError;

/// Why a worker did not do its job. It has been ended, and the next job starts another one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WorkerError {
    #[error("the training worker cannot be started as {command:?}: {why}; name a Python with --python")]
    Start { command: String, why: String },
    #[error(
        "the training worker ended when asked to {phase} ({status}): {stderr}; \
         check that templar_torch is installed for this Python and that there is enough memory"
    )]
    Died { phase: &'static str, status: String, stderr: String },
    #[error(
        "the training worker did not {phase} within {limit_s} s and was ended: {stderr}; the next job starts another"
    )]
    TimedOut { phase: &'static str, limit_s: u64, stderr: String },
    #[error(
        "the training worker speaks protocol {found}, but this node speaks {expected}; \
         install the templar_torch of this release"
    )]
    Version { found: u64, expected: u64 },
    #[error(
        "the training worker sent a line of more than {limit_bytes} bytes when asked to {phase}; \
         install the templar_torch of this release"
    )]
    LineTooLong { phase: &'static str, limit_bytes: usize },
    #[error(
        "the training worker broke the protocol when asked to {phase}: {why}; install the templar_torch of this release"
    )]
    Protocol { phase: &'static str, why: String },
    #[error("the training worker's file `{file}` is invalid: {why}; install the templar_torch of this release")]
    Tensors { file: &'static str, why: String },
    #[error(
        "the training worker's file `{file}` has a number that is not finite; lower `inner.lr`, or check the device"
    )]
    NotFinite { file: &'static str },
    #[error("the training worker could not {phase}: {why}; its log: {stderr}")]
    Failed { phase: &'static str, why: String, stderr: String },
    #[error("the folder shared with the training worker, {folder}: {why}; it needs room for 16 bytes per parameter")]
    Exchange { folder: String, why: String },
}

impl From<WorkerError> for TrainError {
    fn from(error: WorkerError) -> Self {
        Self::Engine(Box::new(error))
    }
}

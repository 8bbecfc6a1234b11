//! What can go wrong with a worker. Nothing of it loses more than the job at hand.

use crate::trainer::TrainError;

/// Why a worker did not do its job. It was ended; the next job starts another one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WorkerError {
    #[error("the training worker cannot be started as {command:?}: {why}; name a Python with --python")]
    Start { command: String, why: String },
    #[error(
        "the training worker ended when it should {phase} ({status}): {stderr}; \
         check that templar_torch is installed for this Python and that there is memory left"
    )]
    Died { phase: &'static str, status: String, stderr: String },
    #[error(
        "the training worker did not {phase} within {limit_s} s and was ended: {stderr}; the next job starts another"
    )]
    TimedOut { phase: &'static str, limit_s: u64, stderr: String },
    #[error(
        "the training worker speaks protocol {found}, this node {expected}; install the templar_torch of this release"
    )]
    Version { found: u64, expected: u64 },
    #[error(
        "the training worker sent a line of more than {limit_bytes} bytes when it should {phase}; it is not of this protocol"
    )]
    LineTooLong { phase: &'static str, limit_bytes: usize },
    #[error(
        "the training worker broke the protocol when it should {phase}: {why}; install the templar_torch of this release"
    )]
    Protocol { phase: &'static str, why: String },
    #[error("the training worker's {file} is not what it should be: {why}; install the templar_torch of this release")]
    Tensors { file: &'static str, why: String },
    #[error("the training worker's {file} has a number that is not finite; lower `inner.lr`, or check the device")]
    NotFinite { file: &'static str },
    #[error("the training worker could not {phase}: {why}; its log: {stderr}")]
    Failed { phase: &'static str, why: String, stderr: String },
    #[error("the folder shared with the training worker, {folder}: {why}; it needs room for 16 bytes a parameter")]
    Exchange { folder: String, why: String },
}

impl From<WorkerError> for TrainError {
    fn from(error: WorkerError) -> Self {
        Self::Engine(Box::new(error))
    }
}

//! What did not work at a node, and what it means. The node goes on; whatever can be tried again is tried again.

use serde::{Deserialize, Serialize};

/// One thing that did not work.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Trouble {
    /// A step of the node failed. It is tried again at the next block.
    #[error("{cause}")]
    Step { part: Part, cause: String },
    /// The network's state cannot be reached from this node's: it takes over a certified one.
    #[error("{cause}; taking over a certified state")]
    Resynchronising { cause: String },
    /// A validator cannot say what a miner's header must contain, because its own copy of the samples is damaged.
    #[error("uid {uid} cannot be judged: {cause}; run `templar data verify`")]
    DataDamaged { uid: u16, cause: String },
    /// The words of the windows do not fit what the chain takes.
    #[error(
        "the chain takes {quota_bytes} bytes of commitments in {tempo_blocks} blocks, and the {windows} windows that end in \
         them need {needed_bytes}: some will miss this node's word; a run on this subnet needs longer windows"
    )]
    QuotaTooSmall { quota_bytes: u64, tempo_blocks: u64, windows: u64, needed_bytes: u64 },
    /// No bucket answers this node: it is to blame, and nobody else. [`Event::StorageBack`](crate::event::Event::StorageBack)
    /// gives the all-clear.
    #[error(
        "this node's own access to storage fails: {cause}; it blames nobody, votes on nothing and waits: check its line, \
         its clock and its credentials"
    )]
    OwnStorage { cause: String },
    /// A validator's own bucket did not take what it would have voted for, so it does not vote on the window.
    #[error(
        "the own bucket does not take the contributions to window {window}: {cause}; there is no vote without them"
    )]
    CannotServe { window: u64, cause: String },
    /// Something on this node's own disk is gone or changed. The node goes on without it.
    #[error("local state is damaged: {what}: {cause}; {}", what.cost())]
    LocalDamage { what: LocalPart, cause: String },
    /// The own bucket did not take something while it was of use.
    #[error(
        "window {window}: the own bucket did not take {put} by block {deadline_block}, and it is given up: check the bucket \
         and the way to it"
    )]
    UploadGivenUp { window: u64, put: Put, deadline_block: u64 },
    /// Old objects stay in the own bucket for now. They cost storage, nothing else.
    #[error("sweeping the own bucket: {cause}")]
    Sweep { cause: String },
    #[error("evaluation of window {window}: {cause}")]
    Evaluation { window: u64, cause: String },
    #[error("weights after window {window}: {cause}")]
    Weights { window: u64, cause: String },
    /// A checkpoint is left out, because the upload of the one before it still goes on.
    #[error("no checkpoint after {settled} windows: the one before it is still being uploaded")]
    CheckpointLeftOut { settled: u64 },
    /// A checkpoint is not complete. The next one is as good.
    #[error("checkpoint after {settled} windows: {cause}")]
    CheckpointFailed { settled: u64, cause: String },
    /// The chain's heads cannot be followed at the moment.
    #[error("no heads from the chain: {cause}")]
    NoHeads { cause: String },
    /// A node's process ended, and its parent starts it again.
    #[error("{cause}; it is started again, see {log}")]
    ProcessEnded { cause: String, log: String },
}

/// A part of a node's local state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum LocalPart {
    #[error("the error feedback")]
    ErrorFeedback,
    #[error("the optimiser's state")]
    Optimiser,
    #[error("the sealed payload of window {window}")]
    Pending { window: u64 },
    #[error("θ after {settled} windows")]
    Theta { settled: u64 },
}

impl LocalPart {
    /// What its loss costs.
    pub fn cost(self) -> &'static str {
        match self {
            Self::ErrorFeedback => "what was learned and not sent is lost",
            Self::Optimiser => "its moments start afresh",
            Self::Pending { .. } => "if it does not count, what it held is lost",
            Self::Theta { .. } => "the state before it is taken, or a certified checkpoint",
        }
    }
}

/// What a miner puts into its own bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Put {
    #[error("the contribution")]
    Contribution,
    #[error("the key")]
    Key,
}

/// The part of the world, or of the node, where a step failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Part {
    Chain,
    Storage,
    Training,
    Data,
    LocalDisk,
    /// The replicated state: what is certified cannot be had, or is another than this node's.
    Replica,
    Node,
}

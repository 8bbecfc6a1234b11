//! What failed at a node, and what that means. The node goes on and retries what can be retried.

use serde::{Deserialize, Serialize};

/// One failure.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Trouble {
    /// A step of the node failed. The node retries it at the next block.
    #[error("{cause}")]
    Step { part: Part, cause: String },
    /// Most validators accepted a contribution that nobody serves. The node goes on from the state in which nobody's
    /// contribution to that window counts; the next votes decide.
    #[error(
        "nobody serves the accepted contribution of uid {uid} to window {window}: going on as if none counted, until the \
         payload comes or the next votes decide"
    )]
    Withheld { window: u64, uid: u16 },
    /// The network's state cannot be reached from this node's, so it takes over a certified one.
    #[error("{cause}; taking over a certified state")]
    Resynchronising { cause: String },
    /// A validator cannot compute what a miner's header must contain, because its own copy of the samples is damaged.
    #[error("uid {uid} cannot be judged: {cause}; run `templar data verify`")]
    DataDamaged { uid: u16, cause: String },
    /// The on-chain records of the windows do not fit the chain's quota.
    #[error(
        "the chain takes {quota_bytes} bytes of commitments per {tempo_blocks} blocks, but the {windows} windows that end \
         in them need {needed_bytes}: some will lack this node's record; a run on this subnet needs longer windows"
    )]
    QuotaTooSmall { quota_bytes: u64, tempo_blocks: u64, windows: u64, needed_bytes: u64 },
    /// No bucket answers this node, so the fault is its own. [`Event::StorageBack`](crate::event::Event::StorageBack)
    /// reports the end of it.
    #[error(
        "this node's own access to storage fails: {cause}; until it works the node reports no faults and does not vote: \
         check its connection, its clock and its credentials"
    )]
    OwnStorage { cause: String },
    /// A validator's own bucket did not take what it would have voted for, so it does not vote on the window. It is told
    /// once, until [`Event::BucketBack`](crate::event::Event::BucketBack).
    #[error(
        "this node's own bucket does not take the contributions to window {window}: {cause}; without them the node does \
         not vote: check the bucket"
    )]
    CannotServe { window: u64, cause: String },
    /// Something on this node's own disk is missing or changed. The node goes on without it.
    #[error("local state is damaged: {what}: {cause}; {}", what.cost())]
    LocalDamage { what: LocalPart, cause: String },
    /// The node's own bucket did not take something in time.
    #[error(
        "window {window}: this node's own bucket did not take {put} by block {deadline_block}, so the node gave up the \
         upload: check the bucket and the connection to it"
    )]
    UploadGivenUp { window: u64, put: Put, deadline_block: u64 },
    /// The node's own bucket refuses something. The node goes on trying, silently, until it is of no use any more, and so
    /// with later windows. [`Event::BucketBack`](crate::event::Event::BucketBack) reports the end of it.
    #[error(
        "window {window}: this node's own bucket does not take {put}: {cause}; the node tries again until block \
         {deadline_block}, then with the next window, and tells when the bucket takes it: check the bucket and the \
         connection to it"
    )]
    UploadRefused { window: u64, put: Put, cause: String, deadline_block: u64 },
    /// The node's own bucket has not said whether strangers may write into it.
    #[error(
        "whether anybody could write into this node's own bucket is not known so far: {cause}; the node does not publish \
         the bucket until it is"
    )]
    Unproven { cause: String },
    /// Old objects stay in the node's own bucket for now. They cost storage and nothing else.
    #[error("cannot sweep this node's own bucket: {cause}")]
    Sweep { cause: String },
    #[error("cannot evaluate window {window}: {cause}")]
    Evaluation { window: u64, cause: String },
    #[error("cannot set weights after window {window}: {cause}")]
    Weights { window: u64, cause: String },
    /// A checkpoint is skipped, because the previous one is still being uploaded.
    #[error("no checkpoint after {settled} windows: the previous one is still being uploaded")]
    CheckpointLeftOut { settled: u64 },
    /// A checkpoint is incomplete. The next one replaces it.
    #[error("cannot publish the checkpoint after {settled} windows: {cause}")]
    CheckpointFailed { settled: u64, cause: String },
    /// The own bucket does not take what auditors read. The node goes on trying.
    #[error("window {window}: this node's own bucket does not take its inputs and state, which auditors read: {cause}")]
    ArchiveRefused { window: u64, cause: String },
    /// The own bucket has not taken what auditors read for many windows. It is told once for all that are left out.
    #[error(
        "from window {window} on, windows are left out of this node's archive, until its bucket takes objects again"
    )]
    ArchiveLeftOut { window: u64 },
    /// The node cannot follow the chain's heads at the moment.
    #[error("cannot follow the chain's heads: {cause}")]
    NoHeads { cause: String },
    /// A node's process ended, and its parent restarts it.
    #[error("{cause}; it is restarted, see {log}")]
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
    /// What its loss costs the node.
    pub fn cost(self) -> &'static str {
        match self {
            Self::ErrorFeedback => "what was learned but not sent is lost",
            Self::Optimiser => "its moments start afresh",
            Self::Pending { .. } => "error feedback begins anew: what was learned but not sent is lost",
            Self::Theta { .. } => "the node takes the state before it, or a certified checkpoint",
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

/// The part of the node or of its surroundings where a step failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Part {
    Chain,
    Storage,
    Training,
    Data,
    LocalDisk,
    /// The replicated state: the certified one cannot be obtained, or differs from this node's.
    Replica,
    Node,
}

//! Why a node cannot continue, or cannot continue right now.

use templar_chain::ChainError;
use templar_protocol::bucket::BucketError;
use templar_protocol::hash::Hash32;
use templar_protocol::keys::Hotkey;
use templar_record::trouble::Part;
use templar_store::StoreError;
use templar_train::TrainError;

use crate::frame::records::RecordError;
use crate::frame::weights::WeightsError;

/// An error of a node. Those that [`NodeError::is_fatal`] does not name are retried at the next block.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NodeError {
    #[error("the chain has genesis {found}, but the run lives on {expected}: check --chain and run.toml")]
    WrongChain { found: Hash32, expected: Hash32 },
    #[error("the dataset has manifest {found}, but the run trains on {expected}: fetch the run's dataset")]
    WrongDataset { found: Hash32, expected: Hash32 },
    #[error(
        "the dataset has sequences of {seq_len} tokens and a vocabulary of {vocab_size}, but the run's model takes sequences of \
         {model_seq_len} and a vocabulary of {model_vocab_size} at most: no node can train such a run; make another"
    )]
    DatasetDoesNotFitModel { seq_len: u32, vocab_size: u32, model_seq_len: u32, model_vocab_size: u32 },
    #[error(
        "θ₀ of seed {seed} has root {found}, but the run says {expected}: this build does not speak the run's protocol"
    )]
    WrongTheta0 { seed: u64, found: Hash32, expected: Hash32 },
    #[error(
        "the run starts from weights with root {root}, and none were given: name the folder that `run init --from` wrote"
    )]
    NoWeights { root: Hash32 },
    #[error(transparent)]
    Weights(#[from] WeightsError),
    #[error("hotkey {hotkey} is not registered in subnet {netuid}: register it, then restart")]
    NotRegistered { hotkey: Hotkey, netuid: u16 },
    #[error("this node's bucket cannot be published: {0}")]
    Bucket(#[from] BucketError),
    #[error(
        "anybody could overwrite this node's bucket {bucket:?}: the credential that the node publishes on chain, access key          {access_key_id} in [public] of bucket.toml, may write. Put a credential that may only read into [public], revoke          this one if the chain has ever had it, and start again"
    )]
    PublishedKeyWrites { bucket: String, access_key_id: String },
    #[error(
        "anybody could overwrite this node's bucket {bucket:?}: it takes objects from whoever shows no credential at all. Let          its policy allow writing to the credential in [write] of bucket.toml alone, and start again"
    )]
    AnybodyWrites { bucket: String },
    #[error("chain: {0}")]
    Chain(#[from] ChainError),
    #[error("storage: {0}")]
    Store(#[from] StoreError),
    #[error("training: {0}")]
    Train(#[from] TrainError),
    #[error("dataset: {0}")]
    Data(#[from] templar_data::ReadError),
    #[error("the local state in {path} is in use by another process: stop that, or name another --state-folder")]
    InUse { path: String },
    #[error("local state in {path}: {reason}; repair the disk, or remove the folder to start from the network")]
    Local { path: String, reason: String },
    #[error(
        "local state in {path}: the record {record:?} cannot be read: {source}; go back to the release that wrote it, or move \
         the folder away to start from the network, which loses what was learned and not sent"
    )]
    LocalRecord { path: String, record: String, source: RecordError },
    #[error(
        "the disk with {path} is full: {needed_bytes} bytes more were to be written. What is there is whole: free space, or \
         move the folder to a larger disk, then start again"
    )]
    DiskFull { path: String, needed_bytes: u64 },
    #[error("window {window} is certified, but nobody serves the contribution of uid {uid} any more")]
    ContributionGone { window: u64, uid: u16 },
    #[error("the network certified another state before window {window} than this node has")]
    Diverged { window: u64 },
    #[error("this node does not have the state from which window {window} starts")]
    NoBase { window: u64 },
    #[error("this node's own access to storage is in doubt: it waits until a bucket answers")]
    OwnStorage,
    #[error("the node is stopping")]
    Stopped,
    #[error("no certified checkpoint is served for any window before {window}; the node tries again at the next block")]
    NoCheckpoint { window: u64 },
}

impl NodeError {
    /// Whether the node has to take over a certified state before it can continue.
    pub fn needs_resynchronisation(&self) -> bool {
        matches!(self, Self::ContributionGone { .. } | Self::Diverged { .. } | Self::NoBase { .. })
    }

    /// Whether a retry cannot help.
    pub fn is_fatal(&self) -> bool {
        matches!(
            self,
            Self::WrongChain { .. }
                | Self::WrongDataset { .. }
                | Self::DatasetDoesNotFitModel { .. }
                | Self::WrongTheta0 { .. }
                | Self::NoWeights { .. }
                | Self::Weights(_)
                | Self::Bucket(_)
                | Self::PublishedKeyWrites { .. }
                | Self::AnybodyWrites { .. }
                | Self::InUse { .. }
                | Self::Local { .. }
                | Self::LocalRecord { .. }
                | Self::DiskFull { .. }
        )
    }

    /// The part of the node, or of its surroundings, that failed.
    pub fn part(&self) -> Part {
        match self {
            Self::WrongChain { .. } | Self::NotRegistered { .. } | Self::Chain(_) => Part::Chain,
            Self::Bucket(_)
            | Self::PublishedKeyWrites { .. }
            | Self::AnybodyWrites { .. }
            | Self::Store(_)
            | Self::OwnStorage => Part::Storage,
            Self::Train(_) | Self::WrongTheta0 { .. } | Self::NoWeights { .. } | Self::Weights(_) => Part::Training,
            Self::WrongDataset { .. } | Self::DatasetDoesNotFitModel { .. } | Self::Data(_) => Part::Data,
            Self::InUse { .. } | Self::Local { .. } | Self::LocalRecord { .. } | Self::DiskFull { .. } => {
                Part::LocalDisk
            }
            Self::ContributionGone { .. } | Self::Diverged { .. } | Self::NoBase { .. } | Self::NoCheckpoint { .. } => {
                Part::Replica
            }
            Self::Stopped => Part::Node,
        }
    }
}

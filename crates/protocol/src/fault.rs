//! What can be wrong with what others publish, and who is to blame. Nothing is slashed before blame is known.

use serde::{Deserialize, Serialize};

use crate::roster::EntryId;
use crate::word::WordError;

/// One fault, and whose it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    pub entry: EntryId,
    pub kind: FaultKind,
    pub attributed_to: Party,
}

/// Whose fault a fault is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Party {
    Miner,
    Validator,
    /// The miner's bucket did not serve: its own choice of provider, but no proof of ill will.
    Storage,
    Chain,
}

/// What is wrong with a candidate's contribution to a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum FaultKind {
    #[error("committed no header for this window")]
    NotCommitted,
    #[error("its header word on chain is malformed")]
    WordMalformed,
    #[error("its header could not be fetched")]
    HeaderUnavailable,
    #[error("its header is not in canonical form")]
    HeaderMalformed,
    #[error("its header is not the committed one")]
    HeaderMismatch,
    #[error("its header is not signed by its hotkey")]
    BadSignature,
    #[error("its header belongs to another run")]
    WrongRun,
    #[error("its header belongs to another window")]
    WrongWindow,
    #[error("its header belongs to another registration")]
    WrongEntry,
    #[error("it trained from another state")]
    WrongBase,
    #[error("its payload is larger than any valid one")]
    PayloadTooLarge,
    #[error("it claims more tokens than were assigned, or none")]
    TokenCount,
    #[error("its sample digest is not that of its assignment")]
    SampleDigest,
    #[error("it does not show that it holds θ")]
    Possession,
    #[error("its payload could not be fetched")]
    PayloadUnavailable,
    #[error("its payload is not the one in its header")]
    PayloadMismatch,
    #[error("committed, but did not publish its key in time")]
    NotOpened,
    #[error("its key is not the one in its header")]
    KeyMismatch,
    #[error("its payload does not open under its key")]
    SealBroken,
    #[error("its payload does not decode")]
    PayloadMalformed,
    #[error("its payload repeats another's")]
    Duplicate,
    #[error("could not be judged: this validator's own copy of the data is damaged, or it came to ask too late")]
    NotJudged,
}

impl FaultKind {
    /// Who is to blame when a validator sees this fault and its own links work.
    pub fn attributed_to(self) -> Party {
        match self {
            Self::HeaderUnavailable | Self::PayloadUnavailable => Party::Storage,
            Self::NotJudged => Party::Validator,
            _ => Party::Miner,
        }
    }

    /// Whether an object could not be had, which may still come; all other faults are in what was read.
    pub fn is_absence(self) -> bool {
        matches!(self, Self::HeaderUnavailable | Self::PayloadUnavailable | Self::NotOpened)
    }

    /// Whether the fault proves ill will or broken software, rather than a slow link: such a miner is no candidate
    /// for a while.
    pub fn excludes(self) -> bool {
        !matches!(
            self,
            Self::NotCommitted
                | Self::HeaderUnavailable
                | Self::PayloadUnavailable
                | Self::NotOpened
                | Self::WrongBase
                | Self::Possession
                | Self::NotJudged
        )
    }
}

/// What is wrong with what a validator serves as a certified checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum CheckpointFault {
    #[error("its state is no state of this run")]
    StateMalformed,
    #[error("its state has another digest than its name")]
    StateMismatch,
    #[error("a part of θ is missing")]
    ThetaMissing,
    #[error("a part of θ is longer or shorter than it must be")]
    ThetaLength,
    #[error("θ has another root than its state says")]
    ThetaMismatch,
    #[error("the state before it, from which the next window starts, is missing or another")]
    PreviousMissing,
    #[error("it comes too slowly")]
    TooSlow,
}

/// Why a vote does not count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum VoteFault {
    Absent,
    Tag,
    Length,
    /// It speaks of another window.
    Window,
    Padding,
}

impl From<WordError> for VoteFault {
    fn from(error: WordError) -> Self {
        match error {
            WordError::Absent => Self::Absent,
            WordError::Tag(_) => Self::Tag,
            WordError::Length { .. } => Self::Length,
            WordError::Window { .. } => Self::Window,
            WordError::Padding => Self::Padding,
        }
    }
}

/// Why what stands as a bucket on the chain cannot be read as one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum BucketFault {
    Malformed,
}

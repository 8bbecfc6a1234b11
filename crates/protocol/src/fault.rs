//! What can be wrong with what others publish, and who is to blame. Nothing is slashed before blame is known.

use serde::{Deserialize, Serialize};

use crate::roster::EntryId;
use crate::word::WordError;

/// One fault, and who is to blame for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    pub entry: EntryId,
    pub kind: FaultKind,
    pub attributed_to: Party,
}

/// Who is to blame for a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Party {
    Miner,
    Validator,
    /// The miner's bucket did not serve. The miner chose its provider, but that does not prove ill will.
    Storage,
    Chain,
}

/// What is wrong with a candidate's contribution to a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum FaultKind {
    #[error("it committed no header for this window")]
    NotCommitted,
    #[error("its header record on chain is malformed")]
    WordMalformed,
    #[error("its header could not be fetched")]
    HeaderUnavailable,
    #[error("its header is not in canonical form")]
    HeaderMalformed,
    #[error("its header is not the one that it committed")]
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
    #[error("it claims more inner steps than a window has, or zero steps")]
    StepCount,
    #[error("it claims more tokens than it was assigned, or zero tokens")]
    TokenCount,
    #[error("its sample digest does not match its assignment")]
    SampleDigest,
    #[error("it does not prove that it holds θ")]
    Possession,
    #[error("its payload could not be fetched")]
    PayloadUnavailable,
    #[error("its payload does not match its header")]
    PayloadMismatch,
    #[error("it committed a header, but did not publish its key in time")]
    NotOpened,
    #[error("its key does not match its header")]
    KeyMismatch,
    #[error("its payload does not open under its key")]
    SealBroken,
    #[error("its payload does not decode")]
    PayloadMalformed,
    #[error("its payload is the same as an earlier one, byte for byte")]
    Duplicate,
    #[error(
        "it could not be judged: this validator's own copy of the data is damaged, or the validator asked too late"
    )]
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

    /// Whether an object could not be fetched and may still appear; all other faults are in what was read.
    pub fn is_absence(self) -> bool {
        matches!(self, Self::HeaderUnavailable | Self::PayloadUnavailable | Self::NotOpened)
    }

    /// Whether the fault is in what the miner's hotkey signed, so that anybody can check it and no honest node can have
    /// made it: such a miner is excluded for a while. What is absent, unsigned, or may be a slow link's doing excludes
    /// nobody, and no statistic does.
    pub fn excludes(self) -> bool {
        match self {
            Self::WrongRun
            | Self::WrongWindow
            | Self::WrongEntry
            | Self::PayloadTooLarge
            | Self::StepCount
            | Self::TokenCount
            | Self::SampleDigest
            | Self::SealBroken
            | Self::PayloadMalformed => true,
            Self::NotCommitted
            | Self::WordMalformed
            | Self::HeaderUnavailable
            | Self::HeaderMalformed
            | Self::HeaderMismatch
            | Self::BadSignature
            | Self::WrongBase
            | Self::Possession
            | Self::PayloadUnavailable
            | Self::PayloadMismatch
            | Self::NotOpened
            | Self::KeyMismatch
            | Self::Duplicate
            | Self::NotJudged => false,
        }
    }
}

/// What is wrong with what a validator serves as a certified checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum CheckpointFault {
    #[error("its state is malformed or belongs to another run")]
    StateMalformed,
    #[error("its state does not hash to the digest in its name")]
    StateMismatch,
    #[error("a part of θ is missing")]
    ThetaMissing,
    #[error("a part of θ is longer or shorter than it must be")]
    ThetaLength,
    #[error("θ does not hash to the root in its state")]
    ThetaMismatch,
    #[error("the state before it, from which the next window starts, is missing or does not match")]
    PreviousMissing,
    #[error("it arrives too slowly")]
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
    /// It is about another window.
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

/// Why a bucket locator on chain cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum BucketFault {
    Malformed,
}

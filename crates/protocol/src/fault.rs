//! What can be wrong with what others publish, and who is to blame. Nothing is slashed before blame is known.
//!
//! The table in §9 of `docs/spec/protocol.md` says which check finds which [`FaultKind`]; a test compares it with this
//! file.

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

/// What is wrong with a candidate's contribution to a window. `FaultKind::class` says what each kind means for the
/// miner.
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

/// What a fault means for the miner.
#[derive(Clone, Copy)]
enum Class {
    /// The bucket did not serve an object, which may still appear.
    Unserved,
    /// The key is not there, and may still appear: publishing it is up to the miner.
    Unopened,
    /// The miner fell behind, as an honest one can.
    Lapse,
    /// The miner signed it, so anybody can check it, and no honest miner with sound software does.
    Proof,
    /// Bytes that the miner's hotkey did not sign: they may have been damaged in transit, or be somebody else's.
    Unsigned,
    /// The validator failed, not the miner.
    Unjudged,
}

impl FaultKind {
    /// Every kind is listed, so that the compiler asks where a new one belongs.
    fn class(self) -> Class {
        match self {
            Self::HeaderUnavailable | Self::PayloadUnavailable => Class::Unserved,
            Self::NotOpened => Class::Unopened,
            Self::NotCommitted | Self::WrongBase | Self::Possession => Class::Lapse,
            Self::WrongRun
            | Self::WrongWindow
            | Self::PayloadTooLarge
            | Self::StepCount
            | Self::TokenCount
            | Self::SampleDigest
            | Self::SealBroken
            | Self::PayloadMalformed => Class::Proof,
            Self::WordMalformed
            // Anybody can commit to a header that somebody else signed, and name the bucket that it is in.
            | Self::WrongEntry
            | Self::HeaderMalformed
            | Self::HeaderMismatch
            | Self::BadSignature
            | Self::PayloadMismatch
            | Self::KeyMismatch
            | Self::Duplicate => Class::Unsigned,
            Self::NotJudged => Class::Unjudged,
        }
    }

    /// Who is to blame when a validator sees this fault and its own links work.
    pub fn attributed_to(self) -> Party {
        match self.class() {
            Class::Unserved => Party::Storage,
            Class::Unopened | Class::Lapse | Class::Proof | Class::Unsigned => Party::Miner,
            Class::Unjudged => Party::Validator,
        }
    }

    /// Whether an object could not be fetched and may still appear; all other faults are in what was read.
    pub fn is_absence(self) -> bool {
        matches!(self.class(), Class::Unserved | Class::Unopened)
    }

    /// Whether the bytes read are not those that the chain and the header name: damage on their way, or the doing of whoever
    /// serves them.
    pub fn is_in_transit(self) -> bool {
        matches!(
            self,
            Self::HeaderMalformed
                | Self::HeaderMismatch
                | Self::BadSignature
                | Self::PayloadMismatch
                | Self::KeyMismatch
        )
    }

    /// Whether the fault is in what the miner's hotkey signed, so that anybody can check it and no honest node can have
    /// made it: such a miner is excluded for a while. What is absent, unsigned, or may be a slow link's doing excludes
    /// nobody, and no statistic does.
    pub fn excludes(self) -> bool {
        matches!(self.class(), Class::Proof)
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

#[cfg(test)]
mod tests {
    use serde::de::IntoDeserializer;
    use serde::de::value::{Error, StrDeserializer};

    use super::*;

    /// The kinds in the order in which this file declares them.
    fn kinds() -> Vec<FaultKind> {
        let (_, variants) = include_str!("fault.rs").split_once("pub enum FaultKind {").unwrap();
        let (variants, _) = variants.split_once("\n}").unwrap();
        let names = variants.lines().filter_map(|line| line.trim().strip_suffix(','));
        names.filter(|name| name.bytes().all(|byte| byte.is_ascii_alphabetic())).map(kind).collect()
    }

    fn kind(name: &str) -> FaultKind {
        let mut kebab = String::new();
        for letter in name.chars() {
            if letter.is_ascii_uppercase() && !kebab.is_empty() {
                kebab.push('-');
            }
            kebab.push(letter.to_ascii_lowercase());
        }
        let read: StrDeserializer<'_, Error> = kebab.as_str().into_deserializer();
        FaultKind::deserialize(read).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    /// A row is `| check | fault; fault | who is to blame | excludes |`.
    #[test]
    fn the_specification_has_every_kind_with_its_consequence() {
        let page = include_str!("../../../docs/spec/protocol.md");
        let (_, section) = page.split_once("\n## 9. ").unwrap();
        let (section, _) = section.split_once("\n## 10. ").unwrap();
        let mut told = Vec::new();
        for row in section.lines().filter(|line| line.starts_with("| ")).skip(1) {
            let cells: Vec<&str> = row.trim_matches('|').split('|').map(str::trim).collect();
            let [_, names, party, excludes] = cells[..] else { panic!("{row}") };
            for kind in names.split("; ").map(kind) {
                let blamed = format!("{:?}", kind.attributed_to()).to_lowercase();
                let consequence = if kind.excludes() { "yes" } else { "no" };
                assert_eq!((party, excludes), (blamed.as_str(), consequence), "{kind:?}");
                told.push(kind);
            }
        }
        let again = section.lines().find(|line| line.contains("are tried again at every block")).unwrap();
        let kinds = kinds();
        for kind in &kinds {
            assert_eq!(told.iter().filter(|other| *other == kind).count(), 1, "rows of {kind:?} in the table");
            assert_eq!(again.contains(&format!("{kind:?}")), kind.is_absence(), "{kind:?} is tried again");
        }
        assert_eq!(told.len(), kinds.len());
    }
}

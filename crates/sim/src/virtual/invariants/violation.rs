//! An invariant that did not hold.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What must hold, whatever happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Invariant {
    /// Honest nodes have the same state after a window, once the next votes have confirmed it.
    EqualRoots,
    /// Honest nodes read the same certificate for a window.
    OneCertificate,
    /// No honest miner is excluded, no honest validator denied.
    NobodyExcluded,
    /// No fault is laid on an honest node that its own injected failure does not explain.
    NobodyBlamed,
    /// An honest miner without a failure that has a seat is accepted, if most of the stake is honest and without a failure.
    Heard,
    /// What the chain emitted is paid or burned, to the last rao.
    EmissionConserved,
    /// Buckets, folders and logs of honest nodes do not grow without end.
    Bounded,
    /// A window is certified, and soon, if most of the stake is honest and without a failure.
    Progress,
    /// No honest node ends with an error.
    NoEnd,
}

impl fmt::Display for Invariant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::EqualRoots => "equal-roots",
            Self::OneCertificate => "one-certificate",
            Self::NobodyExcluded => "nobody-excluded",
            Self::NobodyBlamed => "nobody-blamed",
            Self::Heard => "heard",
            Self::EmissionConserved => "emission-conserved",
            Self::Bounded => "bounded",
            Self::Progress => "progress",
            Self::NoEnd => "no-end",
        })
    }
}

/// One case in which an invariant did not hold.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[error("seed {seed}, window {window}, {node}: {invariant} is violated: {seen}")]
pub struct Violation {
    pub seed: u64,
    pub window: u64,
    pub node: String,
    pub invariant: Invariant,
    /// What was seen, with its figures.
    pub seen: String,
}

//! What one validator knows of a window: all that pay follows from.
//!
//! A window is settled first and evaluated later, if there is time. Both come as one record each, so that whoever has a
//! validator's event log can compute its weights again.

use serde::{Deserialize, Serialize};
use templar_protocol::fault::FaultKind;
use templar_protocol::roster::EntryId;

/// What became of a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Decision {
    Certified,
    /// A payload that most of the stake accepted could not be had, so nobody's counts.
    Withheld,
    /// The validators reached no certificate.
    Null,
}

/// A settled window as one validator's record has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Judgement {
    pub window: u64,
    pub decision: Decision,
    /// The window's candidates, in their order.
    pub miners: Vec<Judged>,
}

/// What the validators' votes say of a contribution.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StakeVote {
    /// Most of all stake accepted it, whether it counts or is spare.
    Passed,
    /// Most of all stake voted and did not accept it.
    Refused,
    /// Neither: nobody knows whether most of the stake saw anything wrong.
    Split,
}

/// A candidate of a settled window.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Judged {
    pub entry: EntryId,
    pub vote: StakeVote,
    /// Tokens that it was trained on, by its header; those of a whole slice if this validator has no header of it.
    pub tokens: u64,
    /// What this validator found wrong with it; [`FaultKind::NotJudged`] if it did not look.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fault: Option<FaultKind>,
}

/// Mean losses, in nats per token, before and after one contribution.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    pub entry: EntryId,
    pub own_before: f64,
    pub own_after: f64,
    pub unseen_before: f64,
    pub unseen_after: f64,
}

//! What a validator measured about one miner.

use serde::{Deserialize, Serialize};
use templar_protocol::fault::FaultKind;

/// Mean losses, in nats per token, before and after one contribution.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    pub own_before: f64,
    pub own_after: f64,
    pub unseen_before: f64,
    pub unseen_after: f64,
}

/// What a validator observed about a drawn miner in a window.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Observation {
    Evaluated(Evaluation),
    Faulted(FaultKind),
}

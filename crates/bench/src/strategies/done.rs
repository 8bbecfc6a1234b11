//! What has been run.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::strategies::arm::Arm;

/// A run: an arm with one seed.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cell {
    pub arm: String,
    pub seed: u64,
}

impl Cell {
    pub(super) fn new(arm: &Arm, seed: u64) -> Self {
        Self { arm: arm.to_string(), seed }
    }
}

/// How one run ended: with figures, or with the reason why it has none (usually it diverged).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Outcome {
    Finished(Figures),
    Failed { why: String },
}

/// What has been run: for every arm, the outcome of each seed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Done {
    /// Settings and text of the runs, in words.
    pub of: String,
    pub arms: BTreeMap<String, BTreeMap<u64, Outcome>>,
}

/// What came out of one run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Figures {
    /// Held-out loss at the end, nats per token.
    pub loss: f64,
    /// The same of the mean of θ over the last tenth of the run.
    pub averaged_loss: f64,
    /// Inner steps so far, and the loss on fewer held-out sequences.
    pub curve: Vec<(u64, f64)>,
    /// What a peer sends per inner step.
    pub bytes_per_step: f64,
    pub wall_s: f64,
}

impl Done {
    /// Runs that have been run.
    pub fn count(&self) -> usize {
        self.arms.values().map(BTreeMap::len).sum()
    }

    pub fn outcome(&self, cell: &Cell) -> Option<&Outcome> {
        self.arms.get(&cell.arm)?.get(&cell.seed)
    }

    /// The loss of a run at its end: infinite if it diverged, nothing if it has not been run.
    pub(super) fn loss(&self, cell: &Cell) -> Option<f64> {
        self.outcome(cell).map(|outcome| match outcome {
            Outcome::Finished(figures) => figures.loss,
            Outcome::Failed { .. } => f64::INFINITY,
        })
    }
}

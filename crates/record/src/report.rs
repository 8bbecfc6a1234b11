//! The report of a run: the results of every window and every node. `docs/report.md` documents its schema.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use templar_protocol::fault::{FaultKind, Party};
use templar_protocol::hash::Hash32;
use templar_protocol::roster::Uid;
use templar_protocol::run::{RunId, RunSpec};

use crate::engine::EngineStats;
use crate::event::{FaultCount, Role};

/// Version of the schema. It rises when a field goes, changes its name, type or meaning; a new field leaves it as it
/// is, because readers ignore fields that they do not know.
pub const SCHEMA: u32 = 1;

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Report {
    pub schema: u32,
    pub run_id: RunId,
    pub seed: u64,
    pub config: RunSpec,
    /// How many windows were planned. A run that was stopped has reached fewer.
    pub windows_planned: u64,
    /// The windows that some node has reached, in order.
    pub windows: Vec<WindowReport>,
    pub nodes: Vec<NodeReport>,
    /// Nodes for which a paced block stopped waiting: the newest 1024.
    pub late: Vec<Late>,
    /// How often that happened in all.
    pub late_total: u64,
    #[serde(rename = "final")]
    pub last: Final,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct WindowReport {
    pub window: u64,
    pub certified: bool,
    /// Root of θ after the window, as most nodes have it.
    pub state_root: Hash32,
    /// Whether all nodes that settled the window have that root.
    pub one_root: bool,
    /// How many nodes have settled the window.
    pub settled_by: u64,
    /// How many of them have that root.
    pub agreed_by: u64,
    pub accepted: Vec<Uid>,
    /// Miners whose contribution was opened, according to them or the certificate.
    #[serde(default)]
    pub opened: Vec<Uid>,
    /// How many miners report that all seats went to others.
    #[serde(default)]
    pub no_seat: u64,
    /// How many miners report that an exclusion kept them out.
    #[serde(default)]
    pub excluded: u64,
    pub faults: Vec<FaultReport>,
    /// Validators whose vote did not count, and why.
    pub misvotes: Vec<Misvote>,
    pub tokens: u64,
    /// Mean over the miners of their mean loss while training, in nats per token.
    pub train_loss: Option<f64>,
    /// Loss after the window on text never trained on, in nats per token.
    pub val_loss: Option<f64>,
    pub val_bits_per_byte: Option<f64>,
    /// Mean size of a contribution on the wire.
    pub payload_bytes: u64,
    pub bits_per_value: f64,
    /// Longest training and longest upload of a miner.
    pub compute_s: f64,
    pub comm_s: f64,
    /// Model FLOPs utilisation, the mean over the miners whose device has a data sheet.
    #[serde(default)]
    pub mfu: Option<f64>,
    /// By node: what its engine reports about its training. Engines without a report are left out.
    #[serde(default)]
    pub engines: BTreeMap<String, EngineStats>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FaultReport {
    pub uid: Uid,
    pub fault: FaultKind,
    pub attributed_to: Party,
}

/// A vote that did not count.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Misvote {
    pub uid: Uid,
    pub cause: String,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NodeReport {
    pub uid: Uid,
    pub name: String,
    pub role: Role,
    /// `honest`, or how this node misbehaved in a rehearsal.
    pub behaviour: String,
    pub final_state_root: Hash32,
    /// A miner's score, the mean over validators.
    pub score: f64,
    /// A miner's share of the chain's incentive, a validator's of its dividends; 0 to 1.
    pub weight: f64,
    pub emission: f64,
    pub restarts: u32,
    /// Failures after which the node tried again.
    pub troubles: u64,
    /// How often this node met each fault of others.
    #[serde(default)]
    pub faults: Vec<FaultCount>,
    /// How many of the planned windows ended in which way for this node, by [`kind`](crate::outcome::Outcome::kind).
    #[serde(default)]
    pub outcomes: BTreeMap<String, u64>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Late {
    pub block: u64,
    pub uid: Uid,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Final {
    pub val_bits_per_byte: Option<f64>,
    /// Entropy of the built-in corpus; none for other text.
    pub floor_bits_per_byte: Option<f64>,
    pub tokens: u64,
    pub wall_s: f64,
}

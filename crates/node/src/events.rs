//! What a node tells the world about itself: one stream of typed events for progress, reports, logs and simulations.

use serde::{Deserialize, Serialize};
use templar_protocol::certificate::NullReason;
use templar_protocol::fault::Fault;
use templar_protocol::hash::Hash32;
use templar_protocol::roster::Uid;
use templar_protocol::score::Observation;
use templar_train::EngineStats;
use tokio::sync::mpsc;

/// One thing that happened to a node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Event {
    Started {
        uid: Uid,
        role: Role,
        settled: u64,
        state_root: Hash32,
    },
    /// The hotkey was registered again, as another entry: the node goes on as that.
    Registered {
        uid: Uid,
    },
    /// A miner took inner steps.
    Trained {
        window: u64,
        steps: u64,
        tokens: u64,
        train_loss: f64,
        compute_s: f64,
        /// How much of its device the engine used, if it says so.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        engine: Option<EngineStats>,
    },
    /// A miner uploaded its sealed payload and handed its header's hash to the chain.
    Sealed {
        window: u64,
        payload_bytes: u64,
        comm_s: f64,
    },
    /// A miner published the key of its payload.
    Opened {
        window: u64,
    },
    /// A miner could not contribute to a window.
    Missed {
        window: u64,
        reason: String,
    },
    /// A validator finished judging, and handed its vote to the chain.
    Voted {
        window: u64,
        accept: Vec<Uid>,
        faults: Vec<Fault>,
        comm_s: f64,
    },
    /// A validator's vote on a window does not count: it is malformed, or speaks of another window.
    Misvoted {
        window: u64,
        uid: Uid,
        cause: String,
    },
    /// A window is decided and in this node's state.
    Settled {
        window: u64,
        verdict: Verdict,
        state_root: Hash32,
        payload_bytes: u64,
        values: u64,
        tokens: u64,
    },
    /// A validator measured θ after `window` on held-out text.
    Validated {
        window: u64,
        loss: f64,
        bits_per_byte: f64,
    },
    /// A validator observed one miner.
    Observed {
        window: u64,
        uid: Uid,
        observation: Observation,
        score: f64,
    },
    /// A validator handed weights to the chain.
    Weighed {
        window: u64,
        weights: Vec<(Uid, u16)>,
    },
    /// The network certified another state than this node's: it goes back to one that the network shares.
    Diverged {
        window: u64,
        own: Hash32,
        certified: Hash32,
    },
    /// The node took over a certified state.
    Adopted {
        settled: u64,
        state_root: Hash32,
        from: Source,
    },
    /// Something did not work and is tried again.
    Trouble {
        what: String,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    Miner,
    Validator,
}

/// How a window ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    Certified { accepted: Vec<Uid>, excluded: Vec<Uid> },
    NoQuorum,
    NoMajority,
}

impl From<NullReason> for Verdict {
    fn from(reason: NullReason) -> Self {
        match reason {
            NullReason::NoQuorum => Self::NoQuorum,
            NullReason::NoMajority => Self::NoMajority,
        }
    }
}

/// Where a state came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Source {
    Local,
    Checkpoint,
    Genesis,
}

/// An event with the name of its node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NodeEvent {
    pub node: String,
    #[serde(flatten)]
    pub event: Event,
}

/// The sending end of a bounded stream of events.
#[derive(Clone, Debug)]
pub struct Events {
    node: String,
    sender: mpsc::Sender<NodeEvent>,
}

impl Events {
    pub fn new(node: impl Into<String>, sender: mpsc::Sender<NodeEvent>) -> Self {
        Self { node: node.into(), sender }
    }

    /// Waits if the reader is behind; nobody listening is fine.
    pub async fn emit(&self, event: Event) {
        tracing::debug!(node = self.node, ?event);
        let _ = self.sender.send(NodeEvent { node: self.node.clone(), event }).await;
    }
}

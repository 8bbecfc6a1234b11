//! What a local network is made of, what its starter gets to hear, and what comes of it.

use std::path::PathBuf;

use templar_data::Progress;
use templar_host::engine::Engine;
use templar_protocol::run::{CodecKind, RunSpec};
use templar_record::event::NodeEvent;
use templar_record::recorder::Recorder;
use templar_record::report::Report;

use crate::local::guest::Invitation;
use crate::plan::Plan;

/// A network of this machine.
#[derive(Debug)]
pub struct Network {
    pub plan: Plan,
    pub codec: CodecKind,
    pub text: Text,
    /// Where its files lie: chain, buckets, and a folder for each node.
    pub folder: PathBuf,
    /// One for each node, miners first; the last one is for all further nodes.
    pub engines: Vec<Engine>,
}

/// What whoever started a network gets to hear.
#[derive(Debug)]
pub enum News<'a> {
    /// Long work before the network stands.
    Starting(Work),
    /// A network that was killed goes on after so many windows, of which so many are validated too.
    Resumed {
        windows: u64,
        measured: u64,
    },
    /// Chain and buckets are served, and the nodes start: what they will train.
    Stands {
        spec: &'a RunSpec,
        nodes: usize,
    },
    /// A node on another machine may join.
    Invited(&'a Invitation),
    Event(&'a NodeEvent, &'a Recorder),
    /// Where the network is, every second.
    Moment(Moment),
    /// A paced block did not wait any longer for this node, in this window.
    Late {
        node: &'a str,
        block: u64,
        window: Option<u64>,
    },
}

/// Long work before a network stands, and how much of it is done.
#[derive(Clone, Copy, Debug)]
pub enum Work {
    Text(Progress),
    /// The root of θ₀.
    Theta0 {
        done_parameters: u64,
        parameters: u64,
    },
}

/// Where a network is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Moment {
    pub block: u64,
    /// None before the first window.
    pub window: Option<u64>,
    pub phase: Phase,
    /// How much of the window is behind the network, 0 to 1.
    pub share: f64,
    /// Inner steps that the miners of this process have done in this window, of so many.
    pub steps: Option<(u64, u64)>,
}

/// What the nodes of a network do in a part of a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// For the first window.
    Waiting,
    Training,
    Uploading,
    Judging,
}

/// Why there is no θ.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NoTheta {
    #[error("no validator has settled a window")]
    NothingSettled,
    #[error("no validator's disk gives θ. {node}: {reason}")]
    Unreadable { node: String, reason: String },
}

/// What came of it.
#[derive(Debug)]
pub struct Outcome {
    pub report: Report,
    pub spec: RunSpec,
    /// θ after the last window, from the disk of a validator that has it.
    pub theta: Result<Vec<f32>, NoTheta>,
    /// Whether it was told to stop before its last window.
    pub stopped: bool,
    /// Nodes that ended too early.
    pub failures: Vec<NodeFailure>,
}

/// A node that ended, and is not started again.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("node {name} ended: {reason}")]
pub struct NodeFailure {
    pub name: String,
    pub reason: String,
}

/// What is trained on.
#[derive(Clone, Debug)]
pub enum Text {
    /// The built-in corpus, whose entropy is known.
    BuiltIn,
    /// Files and folders.
    Paths { sources: Vec<PathBuf>, tokenizer: Option<PathBuf>, end_of_text: Option<String> },
    /// The folder of a dataset that is prepared already. Its samples are as long as the model's sequences.
    Prepared(PathBuf),
}

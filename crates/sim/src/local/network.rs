//! What a local network is made of, what it reports while it runs, and its result.

use std::path::PathBuf;

use templar_data::Progress;
use templar_host::engine::Engine;
use templar_node::pretrain::checkpoint::Retention;
use templar_protocol::run::{CodecKind, RunSpec};
use templar_record::event::NodeEvent;
use templar_record::recorder::Recorder;
use templar_record::report::Report;

use crate::local::guest::Invitation;
use crate::plan::Plan;

/// A network on this machine.
#[derive(Debug)]
pub struct Network {
    pub plan: Plan,
    pub codec: CodecKind,
    /// Keys of the run with other values than the default, such as `outer.rate`.
    pub set: Vec<(String, String)>,
    /// A model that the run starts from: its folder, or that of a network that was kept.
    pub from: Option<PathBuf>,
    pub text: Text,
    /// The folder of its files: chain, buckets, and a folder per node.
    pub folder: PathBuf,
    /// One per node, miners first; the last one applies to all remaining nodes.
    pub engines: Vec<Engine>,
    /// How long its validators serve contributions.
    pub retention: Retention,
}

/// What a network reports to whoever started it.
#[derive(Debug)]
pub enum News<'a> {
    /// Long work before the network is set up.
    Starting(Work),
    /// A network that was killed resumes after this many windows, some of which are validated too.
    Resumed {
        windows: u64,
        measured: u64,
    },
    /// Chain and buckets are served, and the nodes start to train this run.
    Stands {
        spec: &'a RunSpec,
        nodes: usize,
        /// Miners, those that guests may start included.
        miners: usize,
    },
    /// A node on another machine may join.
    Invited(&'a Invitation),
    Event(&'a NodeEvent, &'a Recorder),
    /// The chain waits with the first window until these nodes are listed.
    Awaited {
        nodes: &'a [String],
    },
    /// The first window begins without these nodes, whose buckets are not on the chain.
    NotListed {
        nodes: &'a [String],
    },
    /// How far the network is, every second.
    Moment(Moment),
    /// A paced block stopped waiting for this node, in this window.
    Late {
        node: &'a str,
        block: u64,
        window: Option<u64>,
    },
}

/// Long work before a network is set up, and how much of it is done.
#[derive(Clone, Copy, Debug)]
pub enum Work {
    Text(Progress),
    /// The root of θ₀.
    Theta0 {
        done_parameters: u64,
        parameters: u64,
    },
}

/// How far a network is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Moment {
    pub block: u64,
    /// None before the first window.
    pub window: Option<u64>,
    pub phase: Phase,
    /// Share of the window that has passed, 0 to 1.
    pub share: f64,
    /// Inner steps that the miners of this process have done in this window, and all that they have to do.
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

/// The result of a network.
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

/// A node that ended, and is not restarted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("node {name} ended: {reason}")]
pub struct NodeFailure {
    pub name: String,
    pub reason: String,
}

/// The text to train on.
#[derive(Clone, Debug)]
pub enum Text {
    /// The built-in corpus, whose entropy is known.
    BuiltIn,
    /// Files and folders.
    Paths { sources: Vec<PathBuf>, tokenizer: Option<PathBuf>, end_of_text: Option<String> },
    /// The folder of a prepared dataset. Its samples are as long as the model's sequences.
    Prepared(PathBuf),
}

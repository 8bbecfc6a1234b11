//! What a local network is made of, what its starter gets to hear, and what comes of it.

use std::path::{Path, PathBuf};

use templar_chain::ChainError;
use templar_data::{OpenError, PrepareError, Progress};
use templar_host::engine::Engine;
use templar_node::frame::dataset::DatasetError;
use templar_protocol::run::{CodecKind, RunSpec, RunSpecError};
use templar_record::event::NodeEvent;
use templar_record::recorder::Recorder;
use templar_record::report::Report;
use templar_store::{ServerError, StoreError};

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
    Preparing(Progress),
    /// A node on another machine may join.
    Invited(&'a Invitation),
    Event(&'a NodeEvent, &'a Recorder),
}

/// What came of it.
#[derive(Debug)]
pub struct Outcome {
    pub report: Report,
    pub spec: RunSpec,
    /// θ after the last window, as the first validator has it.
    pub theta: Option<Vec<f32>>,
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

/// Why a local network did not start or run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NetworkError {
    #[error("the text cannot be prepared: {0}")]
    Prepare(#[from] PrepareError),
    #[error("the prepared dataset cannot be opened: {0}")]
    Open(#[from] OpenError),
    #[error("the dataset cannot be published: {0}")]
    Dataset(#[from] DatasetError),
    #[error("the S3 server: {0}")]
    Server(#[from] ServerError),
    #[error("storage: {0}")]
    Store(#[from] StoreError),
    #[error("the development chain: {0}")]
    Chain(#[from] ChainError),
    #[error("this network's settings do not make a valid run: {0}")]
    Spec(#[from] RunSpecError),
    #[error("{path}: {source}; check free space and permissions")]
    Io { path: String, source: std::io::Error },
    #[error("the development chain makes no more blocks: {0}")]
    Blocks(ChainError),
}

impl NetworkError {
    pub(crate) fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Self + '_ {
        move |source| Self::Io { path: path.display().to_string(), source }
    }
}

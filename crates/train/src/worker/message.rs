//! The messages of `docs/spec/worker.md`: one JSON object per line, with its kind in `type`.

use serde::{Deserialize, Serialize};
use templar_protocol::layout::ModelSpec;
use templar_protocol::run::InnerSpec;

use crate::trainer::Moments;

/// Version of the protocol; a worker with another one is refused.
pub const PROTOCOL: u64 = 2;
/// Longest line, with its end, that either side reads.
pub const LINE_BYTES_MAX: usize = 1 << 16;

/// From the node to the worker.
#[derive(Debug, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(super) enum Request<'a> {
    Hello {
        protocol: u64,
    },
    Configure {
        folder: &'a str,
        model: &'a ModelSpec,
        inner: &'a InnerSpec,
        options: Options<'a>,
    },
    /// θ is loaded again only if its version is not the one that was loaded last.
    Train {
        theta_version: u64,
        first_step: u64,
        moments: Moments,
    },
    /// After a step: go on.
    Continue,
    /// After a step: what was done is the outcome.
    Stop,
    Evaluate {
        theta_version: u64,
    },
    ExportState,
    ImportState,
    Shutdown,
}

/// How to compute, which may differ from machine to machine.
#[derive(Debug, Serialize)]
pub(super) struct Options<'a> {
    pub(super) device: &'a str,
    pub(super) threads: Option<u32>,
    pub(super) offload_optimiser: bool,
    pub(super) deterministic: bool,
}

/// From the worker to the node. Fields that a later worker adds are ignored.
#[derive(Debug, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(super) enum Reply {
    Hello {
        protocol: u64,
    },
    Configured {
        parameters: u64,
    },
    Step {
        step: u64,
        loss: f64,
        grad_norm: f64,
        lr: f64,
        tokens: u64,
    },
    /// What `engine` says is for people; the job counts whatever it is.
    Trained {
        steps: u64,
        #[serde(default)]
        engine: serde_json::Value,
    },
    Evaluated,
    Exported,
    Imported,
    Failed(Failure),
}

impl Reply {
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Hello { .. } => "hello",
            Self::Configured { .. } => "configured",
            Self::Step { .. } => "step",
            Self::Trained { .. } => "trained",
            Self::Evaluated => "evaluated",
            Self::Exported => "exported",
            Self::Imported => "imported",
            Self::Failed(_) => "failed",
        }
    }
}

/// Why a job has no result.
#[derive(Debug, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub(super) enum Failure {
    /// Training diverged; the moments are those before this step.
    NonFiniteStep {
        step: u64,
        what: String,
    },
    NonFiniteLoss {
        sequence: usize,
    },
    /// Anything else. The worker ends.
    Internal {
        why: String,
    },
}

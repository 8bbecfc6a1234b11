//! `templar adversary`: a node that misbehaves, for local networks.

use clap::Args;
use color_eyre::eyre::Result;
use templar_node::pretrain::validator::ValidatorOptions;
use templar_sim::zoo::kind::{Adversary as Node, Kind, Part};

use crate::commands::node::{NodeArgs, run};
use crate::end::End;

/// For rehearsals only: a miner or a validator that misbehaves.
#[derive(Debug, Args)]
pub(crate) struct Adversary {
    /// How it misbehaves; a kind is one of a miner or of a validator.
    #[arg(value_name = "KIND")]
    kind: Kind,
    /// Which one of all nodes of its kind it is, counted from 0.
    #[arg(long, value_name = "N", default_value_t = 0)]
    nth: usize,
    /// How many nodes of its kind there are.
    #[arg(long, value_name = "NODES", default_value_t = 1)]
    of: usize,
    #[command(flatten)]
    node: NodeArgs,
    /// Samples of held-out text on which the model is validated after each window; 0 for none.
    #[arg(long, env = "TEMPLAR_VALIDATION_SAMPLES", default_value_t = 0)]
    validation_samples: u64,
}

impl Adversary {
    pub(crate) fn run(self) -> Result<End> {
        let Self { kind, nth, of, node, validation_samples } = self;
        let adversary = Node { kind, part: Part { nth, of } };
        run(node, kind.role, ValidatorOptions { validation_samples, ..ValidatorOptions::default() }, |setup| {
            adversary.wrap(setup)
        })
    }
}

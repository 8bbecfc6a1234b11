//! `templar adversary`: a miner that misbehaves, for local networks.

use clap::Args;
use color_eyre::eyre::Result;
use templar_node::pretrain::validator::ValidatorOptions;
use templar_record::event::Role;
use templar_sim::plan::Behaviour;
use templar_sim::zoo;

use crate::commands::node::{NodeArgs, run};
use crate::end::End;

/// For rehearsals only: a miner that misbehaves.
#[derive(Debug, Args)]
pub(crate) struct Adversary {
    #[command(flatten)]
    node: NodeArgs,
    /// How it behaves: noise or withhold.
    #[arg(long, env = "TEMPLAR_BEHAVIOUR")]
    behaviour: Behaviour,
}

impl Adversary {
    pub(crate) fn run(self) -> Result<End> {
        let behaviour = self.behaviour;
        run(self.node, Role::Miner, ValidatorOptions::default(), |setup| zoo::misbehave(behaviour, setup))
    }
}

//! `templar sim`

use clap::Args;
use color_eyre::eyre::{Context, Result, eyre};
use templar_protocol::run::CodecKind;
use templar_sim::r#virtual::scenario::{Scenario, tiny_preset};

use crate::commands::network::RehearsalArgs;
use crate::end::End;
use crate::failure::coded;
use crate::output::{self, is_json, say};
use crate::show::{self, Loss};
use crate::stop;
use crate::watch::Watcher;

/// The real node code on a virtual clock, an in-memory cloud and chain, and a synthetic trainer.
#[derive(Debug, Args)]
pub(crate) struct Sim {
    #[command(flatten)]
    rehearsal: RehearsalArgs,
}

impl Sim {
    pub(crate) fn run(self) -> Result<End> {
        self.rehearsal.report.check(None)?;
        let folder = tempfile::tempdir().wrap_err("no temporary folder can be made")?;
        stop::remove_if_ended(folder.path());
        let plan = self.rehearsal.plan(tiny_preset())?;
        let mut scenario = Scenario::new(plan.miners, plan.validators, plan.windows, plan.seed);
        scenario.plan = plan;
        scenario.adjust = match self.rehearsal.codec {
            CodecKind::TopkSign => |spec| spec.codec.kind = CodecKind::TopkSign,
            CodecKind::TopkTwoBit => |spec| spec.codec.kind = CodecKind::TopkTwoBit,
            CodecKind::DenseF32 => |spec| spec.codec.kind = CodecKind::DenseF32,
        };
        let watcher = Watcher::new(scenario.plan.windows, Loss::Synthetic);
        watcher.set_miners(scenario.plan.miners, scenario.plan.seats());
        if !is_json() {
            say!(
                "{} and {} under a virtual clock, {}; the trainer is a synthetic one",
                show::count(scenario.plan.miners, "miner"),
                show::count(scenario.plan.validators, "validator"),
                show::count(scenario.plan.windows as usize, "window")
            );
        }
        scenario.on_event = Some(Box::new(move |event, recorder| watcher.on_event(event, recorder)));
        // Whoever read the lines has gone away: nobody wants the rest.
        scenario.stop = Some(output::failed());
        let outcome = scenario.run(folder.path());
        self.rehearsal.finish(&outcome.report, Loss::Synthetic)?;
        if !outcome.failures.is_empty() {
            let failures = outcome.failures.iter().map(|(name, error)| format!("node {name} ended: {error}"));
            return Err(coded("network")(eyre!("{}", failures.collect::<Vec<_>>().join("\n  "))));
        }
        Ok(End::Done)
    }
}

//! `templar sim`

use clap::Args;
use color_eyre::eyre::{Context, Result, eyre};
use serde_json::json;
use templar_protocol::run::CodecKind;
use templar_sim::r#virtual::case::Case;
use templar_sim::r#virtual::engine::Engine;
use templar_sim::r#virtual::scenario::{NODES_MAX, Outcome, Scenario};
use templar_sim::r#virtual::weather::{Faults, Weather};

use crate::commands::campaign::CampaignArgs;
use crate::commands::network::RehearsalArgs;
use crate::commands::table::TableArgs;
use crate::end::End;
use crate::failure::coded;
use crate::numbers::whole;
use crate::output::{self, is_json, say};
use crate::show::{self, Loss};
use crate::stop;
use crate::watch::Watcher;

/// The real node code on a virtual clock, an in-memory cloud and chain; what must hold is checked after every block.
#[derive(Debug, Args)]
pub(crate) struct Sim {
    #[command(flatten)]
    rehearsal: RehearsalArgs,
    /// What the nodes train with: surrogate, a cheap convex problem, or real, the built-in engine with 0.1 M parameters.
    #[arg(long, env = "TEMPLAR_TRAINER", default_value_t)]
    trainer: Engine,
    /// Failures of machines, links and services, drawn by seed: none, light or heavy; in a campaign by seed if not given.
    #[arg(long, env = "TEMPLAR_FAULTS", value_name = "LEVEL")]
    faults: Option<Faults>,
    /// Contributions that count in a window; half as many again are in reserve.
    #[arg(long, env = "TEMPLAR_SEATS", value_parser = whole::<u32>(1..=170))]
    seats: Option<u32>,
    /// Train the next window while one is judged.
    #[arg(long, env = "TEMPLAR_OVERLAP")]
    overlap: bool,
    #[command(flatten)]
    campaign: CampaignArgs,
    #[command(flatten)]
    table: TableArgs,
}

impl Sim {
    pub(crate) fn run(self) -> Result<End> {
        self.rehearsal.report.check(None)?;
        let folder = tempfile::tempdir().wrap_err("no temporary folder can be made")?;
        stop::remove_if_ended(folder.path());
        if let Some(seeds) = self.campaign.seeds() {
            return self.campaign.run(seeds, self.rehearsal.seed, self.faults, self.trainer, folder.path());
        }
        if let Some(file) = self.table.file() {
            return self.table.run(file, self.rehearsal.seed, self.trainer, self.campaign.jobs(), folder.path());
        }
        let (mut scenario, weather) = self.scenario()?;
        let loss = match self.trainer {
            Engine::Surrogate => Loss::Synthetic,
            Engine::Real => Loss::Text,
        };
        self.introduce(&scenario, &weather);
        let watcher = Watcher::simulation(scenario.plan.windows, loss);
        watcher.set_miners(scenario.plan.miners, self.seats.unwrap_or(scenario.plan.seats()));
        scenario.on_event = Some(Box::new(move |event, recorder| watcher.on_event(event, recorder)));
        // Whoever read the lines has gone away: nobody wants the rest.
        scenario.stop = Some(output::failed());
        let outcome = scenario.run(folder.path());
        self.rehearsal.finish(&outcome.report, loss)?;
        conclude(&outcome)
    }

    fn scenario(&self) -> Result<(Scenario, Weather)> {
        self.rehearsal.check_size(NODES_MAX)?;
        let plan = self.rehearsal.plan(self.trainer.preset())?;
        let case = Case {
            seed: plan.seed,
            miners: plan.miners,
            validators: plan.validators,
            windows: plan.windows,
            adversaries: plan.adversaries,
            faults: self.faults.unwrap_or_default(),
            engine: self.trainer,
            seats: self.seats,
            overlaps: self.overlap,
        };
        let (mut scenario, weather) = case.scenario();
        scenario.codec = match self.rehearsal.codec {
            CodecKind::TopkSign => None,
            other => Some(other),
        };
        Ok((scenario, weather))
    }

    fn introduce(&self, scenario: &Scenario, weather: &Weather) {
        let plan = &scenario.plan;
        if is_json() {
            weather.spells.iter().for_each(|spell| say!("{}", json!({ "event": "injected", "failure": spell })));
            return;
        }
        let trainer = match self.trainer {
            Engine::Surrogate => "a surrogate".to_owned(),
            Engine::Real => format!("the built-in engine, with the model {}", plan.preset.name),
        };
        say!(
            "{} and {} under a virtual clock, {}; the trainer is {trainer}",
            show::count(plan.miners, "miner"),
            show::count(plan.validators, "validator"),
            show::count(plan.windows as usize, "window")
        );
        weather.spells.iter().for_each(|spell| say!("  injected: {spell}"));
    }
}

/// Says what did not hold. It weighs more than nodes that ended.
fn conclude(outcome: &Outcome) -> Result<End> {
    if !outcome.violations.is_empty() {
        let violations: Vec<String> = outcome.violations.iter().map(ToString::to_string).collect();
        return Err(coded("invariant")(eyre!("{}", violations.join("\n  "))));
    }
    if !outcome.failures.is_empty() {
        let failures = outcome.failures.iter().map(|(name, error)| format!("node {name} ended: {error}"));
        return Err(coded("network")(eyre!("{}", failures.collect::<Vec<_>>().join("\n  "))));
    }
    Ok(End::Done)
}

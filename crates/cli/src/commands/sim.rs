//! `templar sim`

use std::path::PathBuf;

use clap::Args;
use color_eyre::eyre::{Context, Result, ensure};
use templar_sim::plan::Behaviour;
use templar_sim::simulation::Scenario;

use crate::commands::network::write_report;
use crate::{End, show};

/// The real node code on a virtual clock, an in-memory cloud and chain, and a synthetic trainer.
#[derive(Debug, Args)]
pub(crate) struct Sim {
    #[arg(long, env = "TEMPLAR_WINDOWS", default_value_t = 12, value_parser = clap::value_parser!(u64).range(1..=100_000))]
    windows: u64,
    #[arg(long, env = "TEMPLAR_MINERS", default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=128))]
    miners: u16,
    #[arg(long, env = "TEMPLAR_VALIDATORS", default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=32))]
    validators: u16,
    /// The same seed gives the same event log.
    #[arg(long, env = "TEMPLAR_SEED", default_value_t = 0, value_parser = clap::value_parser!(u64).range(0..=i64::MAX as u64))]
    seed: u64,
    /// How the last miners behave, one each: noise or withhold.
    #[arg(long, env = "TEMPLAR_ADVERSARY", num_args = 1.., value_delimiter = ',', value_name = "BEHAVIOUR")]
    adversary: Vec<Behaviour>,
    /// Write the run's report to this file, as JSON.
    #[arg(long, env = "TEMPLAR_REPORT", value_name = "FILE")]
    report: Option<PathBuf>,
    /// Print the event log as JSON lines, and the report last.
    #[arg(long, env = "TEMPLAR_JSON")]
    json: bool,
}

impl Sim {
    pub(crate) fn run(self) -> Result<End> {
        ensure!(self.adversary.len() < usize::from(self.miners), "at least one miner must be honest");
        let folder = tempfile::tempdir().wrap_err("no temporary folder can be made")?;
        let mut scenario = Scenario::new(self.miners.into(), self.validators.into(), self.windows, self.seed);
        scenario.plan.adversaries = self.adversary;
        let outcome = scenario.run(folder.path());
        if self.json {
            for event in &outcome.log {
                println!("{}", serde_json::to_string(event)?);
            }
            println!("{}", serde_json::to_string(&outcome.report)?);
        } else {
            for window in &outcome.report.windows {
                println!("{}", show::window(window));
            }
            print!("{}", show::summary(&outcome.report));
        }
        if let Some(path) = &self.report {
            write_report(path, &outcome.report)?;
        }
        Ok(End::Done)
    }
}

//! `templar sim --campaign`

use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::Args;
use color_eyre::eyre::{Report, Result, eyre};
use serde_json::json;
use templar_sim::r#virtual::campaign::{Campaign, Done};
use templar_sim::r#virtual::engine::Engine;
use templar_sim::r#virtual::weather::Faults;

use crate::end::End;
use crate::failure::coded;
use crate::numbers::whole;
use crate::output::{self, is_json, say};

/// Seeds between two lines of progress.
const LINE_EVERY: usize = 20;

/// Options of a campaign.
#[derive(Debug, Args)]
pub(crate) struct CampaignArgs {
    /// Simulate so many seeds, from --seed on: each a network of its own size, weather and adversaries.
    #[arg(long, env = "TEMPLAR_CAMPAIGN", value_name = "SEEDS", value_parser = whole::<u64>(1..=1_000_000))]
    campaign: Option<u64>,
    /// Seeds that are simulated at once; one per core if not given.
    #[arg(long, env = "TEMPLAR_JOBS", value_parser = whole::<u64>(1..=1024))]
    jobs: Option<u64>,
    /// Note finished seeds in this file, and leave out those in it.
    #[arg(long, env = "TEMPLAR_CAMPAIGN_FILE", value_name = "FILE")]
    campaign_file: Option<PathBuf>,
}

impl CampaignArgs {
    /// How many seeds, if a campaign was asked for.
    pub(crate) fn seeds(&self) -> Option<u64> {
        self.campaign
    }

    /// Simulations at once.
    pub(crate) fn jobs(&self) -> usize {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        self.jobs.map_or(cores, |jobs| jobs as usize)
    }

    pub(crate) fn run(
        &self,
        seeds: u64,
        first_seed: u64,
        faults: Option<Faults>,
        trainer: Engine,
        folder: &Path,
    ) -> Result<End> {
        let campaign = Campaign {
            faults,
            is_real: trainer == Engine::Real,
            first_seed,
            seeds,
            jobs: self.jobs(),
            file: self.campaign_file.clone(),
        };
        let (begin, is_stopped) = (Instant::now(), output::failed());
        let done = campaign
            .run(folder, &|done, seed| tell(done, seed, seeds, begin), &|| *is_stopped.borrow())
            .map_err(|error| coded("io")(Report::new(error)))?;
        if done.failed.is_empty() {
            if !is_json() {
                say!("all {} seeds passed", done.passed.len());
            }
            return Ok(End::Done);
        }
        let failed = done.failed.values();
        let lines = failed.map(|failed| format!("{}\n    {}\n    {}", failed.seen, failed.command, failed.shortest));
        let lines: Vec<String> = lines.collect();
        let (count, passed) = (lines.len(), done.passed.len());
        Err(coded("invariant")(eyre!("{count} of {} seeds failed:\n  {}", count + passed, lines.join("\n  "))))
    }
}

fn tell(done: &Done, seed: u64, seeds: u64, begin: Instant) {
    let failed = done.failed.get(&seed);
    if is_json() {
        say!("{}", json!({ "event": "seed", "seed": seed, "failed": failed }));
        return;
    }
    if let Some(failed) = failed {
        say!("{}\n  again:    {}\n  shortest: {}", failed.seen, failed.command, failed.shortest);
    }
    let count = done.passed.len() + done.failed.len();
    if count.is_multiple_of(LINE_EVERY) {
        let seconds = begin.elapsed().as_secs_f64();
        say!("{count} of {seeds} seeds, {} failed, {seconds:.0} s", done.failed.len());
    }
}

//! `templar sim --table`

use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::Args;
use color_eyre::eyre::{Report, Result, WrapErr as _};
use serde_json::json;
use templar_sim::r#virtual::engine::Engine;
use templar_sim::r#virtual::table::Table;
use templar_sim::zoo::attack::KINDS;
use templar_sim::zoo::kind::Kind;

use crate::end::End;
use crate::failure::coded;
use crate::numbers::whole;
use crate::output::{self, is_json, say};

/// Options of the table of adversaries.
#[derive(Debug, Args)]
pub(crate) struct TableArgs {
    /// Simulate every kind of adversary at several shares, and write what it gains and costs to this page.
    #[arg(long, env = "TEMPLAR_TABLE", value_name = "FILE", conflicts_with = "campaign")]
    table: Option<PathBuf>,
    /// Only these kinds of adversaries; the others keep the cells that they have.
    #[arg(long, env = "TEMPLAR_KINDS", value_name = "KIND", num_args = 1.., value_delimiter = ',')]
    kinds: Vec<Kind>,
    /// Seeds of each cell of the table.
    #[arg(long, env = "TEMPLAR_SEEDS", default_value_t = 3, value_parser = whole::<u64>(1..=1000))]
    seeds: u64,
}

impl TableArgs {
    /// Where the page goes, if one was asked for.
    pub(crate) fn file(&self) -> Option<&Path> {
        self.table.as_deref()
    }

    pub(crate) fn run(&self, page: &Path, first_seed: u64, engine: Engine, jobs: usize, folder: &Path) -> Result<End> {
        let kinds = if self.kinds.is_empty() { KINDS.to_vec() } else { self.kinds.clone() };
        let mut table = Table { engine, kinds, first_seed, seeds: self.seeds, jobs };
        let (begin, is_stopped) = (Instant::now(), output::failed());
        let cells = table
            .run(&page.with_extension("json"), folder, &|progress| tell(progress, begin), &|| *is_stopped.borrow())
            .map_err(|error| coded("io")(Report::new(error)))?;
        table.kinds = KINDS.to_vec();
        std::fs::write(page, table.page(&cells))
            .wrap_err_with(|| format!("the table cannot be written to {}", page.display()))
            .map_err(coded("io"))?;
        if !is_json() {
            say!("written: {}", page.display());
        }
        Ok(End::Done)
    }
}

fn tell(progress: templar_sim::r#virtual::table::Progress, begin: Instant) {
    let (left, seconds) = (progress.all - progress.known - progress.new, begin.elapsed().as_secs_f64());
    if is_json() {
        say!("{}", json!({ "event": "cell", "done": progress.known + progress.new, "of": progress.all }));
        return;
    }
    if progress.new.is_multiple_of(10) || left == 0 {
        let minutes = seconds / progress.new as f64 * left as f64 / 60.0;
        say!("{} of {} cells, about {minutes:.0} min left", progress.known + progress.new, progress.all);
    }
}

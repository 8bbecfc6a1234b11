//! `templar bench strategies`.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::Args;
use color_eyre::eyre::{Report, Result, WrapErr, ensure, eyre};
use serde_json::json;
use templar_bench::peers::{TEXT_BYTES_MIN, Text};
use templar_bench::quality::plot;
use templar_bench::strategies::{Campaign, Family, Outcome, Progress, Row, Settings, curves, families, rows};

use crate::end::End;
use crate::failure::coded;
use crate::numbers::whole;
use crate::output::{self, is_json, say};

#[derive(Debug, Args)]
pub(crate) struct Strategies {
    /// Only these families of arms, or groups of them (methods, resets, outer, bytes).
    #[arg(long, value_name = "NAME", num_args = 1.., value_delimiter = ',')]
    arms: Vec<String>,
    /// A UTF-8 text to train on; without it, the built-in corpus.
    #[arg(long, value_name = "FILE")]
    data: Option<PathBuf>,
    /// Keep finished runs in this JSON file, and leave out those in it.
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// A folder for the curves (SVG).
    #[arg(long, value_name = "DIR")]
    plots: Option<PathBuf>,
    /// Runs at once; one per core if not given.
    #[arg(long, value_parser = whole::<u64>(1..=1024))]
    jobs: Option<u64>,
    /// Two peers and a few steps: it shows that everything works, and says nothing about any method.
    #[arg(long)]
    short: bool,
    /// Run nothing: show what the file has.
    #[arg(long, requires = "file")]
    show: bool,
}

impl Strategies {
    pub(crate) fn run(self) -> Result<End> {
        let families = self.families()?;
        let text = self.text()?;
        let settings = if self.short { Settings::short() } else { Settings::standard() };
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let campaign = Campaign {
            settings: &settings,
            families: &families,
            text: &text,
            jobs: self.jobs.map_or(cores, |jobs| jobs as usize),
            file: self.file.clone(),
        };
        let (begin, is_stopped) = (Instant::now(), output::failed());
        let before = campaign.load().map_err(|error| coded("io")(Report::new(error)))?;
        let done = if self.show {
            before
        } else {
            campaign
                .run(&|progress| tell(&progress, begin), &|| *is_stopped.borrow())
                .map_err(|error| coded("io")(Report::new(error)))?
        };
        let rows = rows(&families, &settings.seeds, &done);
        if is_json() {
            say!("{}", json!({ "event": "table", "of": done.of, "rows": rows }));
        } else {
            print(&rows, &done.of);
        }
        if let Some(folder) = &self.plots {
            draw(folder, &families, &settings, &done)?;
        }
        Ok(End::Done)
    }

    fn families(&self) -> Result<Vec<Family>> {
        let all = families();
        if let Some(wrong) = self.arms.iter().find(|name| !all.iter().any(|family| is_named(family, name))) {
            let names: Vec<&str> = all.iter().map(|family| &*family.name).collect();
            return Err(eyre!(
                "there are no arms {wrong:?}; choose among methods, resets, outer, bytes, {}",
                names.join(", ")
            ));
        }
        let is_wanted = |family: &Family| self.arms.is_empty() || self.arms.iter().any(|name| is_named(family, name));
        Ok(all.into_iter().filter(is_wanted).collect())
    }

    fn text(&self) -> Result<Text> {
        let Some(path) = &self.data else { return Ok(Text::built_in(4 << 20)) };
        let text = fs::read_to_string(path).wrap_err_with(|| format!("reading {}", path.display()))?;
        ensure!(
            text.len() >= TEXT_BYTES_MIN,
            "{} has {} bytes, too few to learn from: name a text of at least {TEXT_BYTES_MIN}",
            path.display(),
            text.len()
        );
        Ok(Text::new(&text))
    }
}

fn is_named(family: &Family, name: &str) -> bool {
    family.name == name || family.group == name
}

/// One line per run, with an estimate of what is left.
fn tell(progress: &Progress<'_>, begin: Instant) {
    let Progress { cell, outcome, done, ran, total } = progress;
    if is_json() {
        say!(
            "{}",
            json!({ "event": "run", "arm": cell.arm, "seed": cell.seed, "outcome": outcome, "done": done, "total": total })
        );
        return;
    }
    let minutes = begin.elapsed().as_secs_f64() / 60.0;
    let left = minutes / (*ran).max(1) as f64 * total.saturating_sub(*done) as f64;
    let result = match outcome {
        Outcome::Finished(figures) => format!("{:.4}", figures.loss),
        Outcome::Failed { why } => format!("diverged ({why})"),
    };
    say!("run {done} of {total}, about {left:.0} min left: {result}  {}, seed {}", cell.arm, cell.seed);
}

fn print(rows: &[Row], of: &str) {
    say!("\nHeld-out loss in nats per token after equal tokens; {of}.");
    let mut group = "";
    for row in rows {
        if row.group != group {
            group = row.group;
            say!(
                "\n## {group}\n\n| arms | loss | spread | seeds | averaged θ | bytes per step | best |\n|---|---|---|---|---|---|---|"
            );
        }
        let number =
            |value: Option<f64>, places: usize| value.map_or("–".to_owned(), |value| format!("{value:.places$}"));
        let edges = if row.edges.is_empty() {
            String::new()
        } else {
            format!(" (at the end of its range: {})", row.edges.join(", "))
        };
        let open = if row.is_complete { "" } else { " (not finished)" };
        say!(
            "| {}{open} | {} | {} | {} | {} | {} | {}{edges} |",
            row.family,
            number(row.loss, 4),
            number(row.spread, 4),
            row.seeds,
            number(row.averaged_loss, 4),
            number(row.bytes_per_step, 0),
            row.arm,
        );
    }
}

/// One plot per group.
fn draw(folder: &Path, families: &[Family], settings: &Settings, done: &templar_bench::strategies::Done) -> Result<()> {
    fs::create_dir_all(folder).wrap_err_with(|| format!("making {}", folder.display()))?;
    let mut groups: BTreeMap<&str, Vec<Family>> = BTreeMap::new();
    for family in families {
        groups.entry(family.group).or_default().push(family.clone());
    }
    for (group, families) in groups {
        let lines = curves(&families, &settings.seeds, done);
        if !lines.is_empty() {
            plot(&folder.join(format!("strategies-{group}.svg")), group, "inner steps", &lines)?;
        }
    }
    Ok(())
}

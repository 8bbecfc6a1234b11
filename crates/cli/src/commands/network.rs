//! What `demo` and `localnet` have in common: the plan, the folder, and what is left in the end.

use std::path::{Path, PathBuf};

use clap::Args;
use color_eyre::eyre::{Context, ContextCompat, Result, ensure};
use templar_data::Dataset;
use templar_model::{hf, presets};
use templar_sim::demo::Outcome;
use templar_sim::engine::{Engine, EngineName};
use templar_sim::plan::{Behaviour, Plan};
use templar_sim::report::Report;
use templar_sim::world::Text;

use crate::End;
use crate::commands::engine::TorchArgs;
use crate::show;

/// Options of a local network.
#[derive(Debug, Args)]
pub(crate) struct NetworkArgs {
    /// Windows to train.
    #[arg(long, env = "TEMPLAR_WINDOWS", default_value_t = 12, value_parser = clap::value_parser!(u64).range(1..=100_000))]
    windows: u64,
    /// Miners.
    #[arg(long, env = "TEMPLAR_MINERS", default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=64))]
    miners: u16,
    /// Validators.
    #[arg(long, env = "TEMPLAR_VALIDATORS", default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=16))]
    validators: u16,
    /// Everything that is drawn follows from it: keys, data, θ₀, blocks.
    #[arg(long, env = "TEMPLAR_SEED", default_value_t = 0, value_parser = clap::value_parser!(u64).range(0..=i64::MAX as u64))]
    seed: u64,
    /// Size of the model: nano, micro, 150m, 1b, 7b, 8b or 72b.
    #[arg(long, env = "TEMPLAR_PRESET", default_value = "nano")]
    preset: String,
    /// Files or folders of UTF-8 text or JSON Lines to train on, in place of the built-in corpus.
    #[arg(long, env = "TEMPLAR_DATA", num_args = 1.., value_name = "PATH")]
    data: Vec<PathBuf>,
    /// How the last miners behave, one each: noise or withhold.
    #[arg(long, env = "TEMPLAR_ADVERSARY", num_args = 1.., value_delimiter = ',', value_name = "BEHAVIOUR")]
    adversary: Vec<Behaviour>,
    /// Engines of the nodes, miners first; the last one is for all further nodes: builtin or torch.
    #[arg(long, env = "TEMPLAR_ENGINE", num_args = 1.., default_value = "builtin", value_delimiter = ',')]
    engine: Vec<EngineName>,
    /// Write the run's report to this file, as JSON.
    #[arg(long, env = "TEMPLAR_REPORT", value_name = "FILE")]
    report: Option<PathBuf>,
    /// Write the final model to this folder, in the Hugging Face layout.
    #[arg(long, env = "TEMPLAR_OUT", value_name = "DIR")]
    out: Option<PathBuf>,
    /// Keep the network's files (chain, buckets, nodes) in this folder, which must be empty or absent.
    #[arg(long, env = "TEMPLAR_FOLDER", value_name = "DIR")]
    folder: Option<PathBuf>,
    /// Print events as JSON lines, and the report last, instead of text for people.
    #[arg(long, env = "TEMPLAR_JSON")]
    pub(crate) json: bool,
    #[command(flatten)]
    torch: TorchArgs,
}

/// A folder for the network's files, removed at the end unless the user named it.
#[derive(Debug)]
pub(crate) enum Folder {
    Kept(PathBuf),
    Temporary(tempfile::TempDir),
}

impl Folder {
    pub(crate) fn path(&self) -> &Path {
        match self {
            Self::Kept(path) => path,
            Self::Temporary(folder) => folder.path(),
        }
    }

    /// Leaves the folder where it is, for somebody to look into.
    pub(crate) fn keep(self) -> PathBuf {
        match self {
            Self::Kept(path) => path,
            Self::Temporary(folder) => folder.keep(),
        }
    }
}

impl NetworkArgs {
    pub(crate) fn plan(&self) -> Result<Plan> {
        let preset = presets::preset(&self.preset);
        let preset = preset.with_context(|| {
            format!("there is no preset {:?}; there are {}", self.preset, presets::names().join(", "))
        })?;
        ensure!(
            self.adversary.len() < usize::from(self.miners),
            "{} of {} miners would misbehave; at least one must be honest",
            self.adversary.len(),
            self.miners
        );
        Ok(Plan {
            miners: usize::from(self.miners),
            validators: usize::from(self.validators),
            windows: self.windows,
            seed: self.seed,
            preset,
            adversaries: self.adversary.clone(),
        })
    }

    pub(crate) fn text(&self) -> Text {
        if self.data.is_empty() { Text::BuiltIn } else { Text::Paths(self.data.clone()) }
    }

    /// Nodes on this machine share its cores.
    pub(crate) fn engines(&self) -> Vec<Engine> {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let nodes = usize::from(self.miners) + usize::from(self.validators);
        let threads = u32::try_from((cores / nodes).max(1)).ok();
        self.engine.iter().map(|&name| self.torch.engine(name, threads)).collect()
    }

    pub(crate) fn windows(&self) -> u64 {
        self.windows
    }

    pub(crate) fn folder(&self) -> Result<Folder> {
        let Some(path) = &self.folder else {
            let folder = tempfile::Builder::new().prefix("templar-").tempdir();
            return Ok(Folder::Temporary(folder.wrap_err("no temporary folder can be made; name one with --folder")?));
        };
        std::fs::create_dir_all(path).wrap_err_with(|| format!("{} cannot be made", path.display()))?;
        let is_empty = std::fs::read_dir(path).wrap_err_with(|| path.display().to_string())?.next().is_none();
        ensure!(is_empty, "{} is not empty: name another folder, or remove what is in it", path.display());
        Ok(Folder::Kept(path.clone()))
    }

    /// Shows the result and writes what was asked for.
    pub(crate) fn finish(&self, outcome: &Outcome, folder: &Path) -> Result<End> {
        if self.json {
            println!("{}", serde_json::to_string(&outcome.report)?);
        } else {
            print!("{}", show::summary(&outcome.report));
        }
        if let Some(path) = &self.report {
            write_report(path, &outcome.report)?;
        }
        if let Some(out) = &self.out {
            self.export(out, outcome, &folder.join("dataset"))?;
        }
        Ok(if outcome.stopped { End::Stopped } else { End::Done })
    }

    fn export(&self, out: &Path, outcome: &Outcome, dataset: &Path) -> Result<()> {
        let theta = outcome.theta.as_ref().wrap_err("no validator has a state to export: no window was settled")?;
        let dataset = Dataset::open(dataset)?;
        let model = &outcome.spec.model;
        hf::export(out, model, theta, Some(dataset.manifest().end_of_text))
            .wrap_err_with(|| format!("the model cannot be written to {}", out.display()))?;
        let sample = dataset.sample(templar_data::Split::HeldOut, 0)?;
        let tokens = &sample[..sample.len().min(64)];
        hf::export_logits(out, model, theta, tokens, 1)?;
        if !self.json {
            println!("model written to {}", out.display());
        }
        Ok(())
    }
}

/// Writes a report as indented JSON.
pub(crate) fn write_report(path: &Path, report: &Report) -> Result<()> {
    let text = serde_json::to_string_pretty(report)?;
    std::fs::write(path, text + "\n").wrap_err_with(|| format!("the report cannot be written to {}", path.display()))
}

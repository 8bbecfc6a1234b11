//! What rehearsals have in common: who takes part, the folder, and what is left in the end.

use std::path::{Path, PathBuf};

use clap::Args;
use color_eyre::eyre::{Context, ContextCompat, Result, bail, ensure};
use serde_json::{Value, from_value};
use templar_data::Dataset;
use templar_host::engine::EngineName;
use templar_model::hf;
use templar_model::presets::{self, Preset};
use templar_protocol::run::CodecKind;
use templar_record::report::Report;
use templar_sim::local::network::NetworkError;
use templar_sim::local::network::{Network, Outcome};
use templar_sim::plan::{Behaviour, Plan};

use crate::commands::corpus::CorpusArgs;
use crate::commands::engine::TorchArgs;
use crate::commands::model_folder;
use crate::end::End;
use crate::metrics::MetricsArgs;
use crate::output::{is_json, say};
use crate::show;

/// Options of every rehearsal, with real parts or simulated ones.
#[derive(Debug, Args)]
pub(crate) struct RehearsalArgs {
    /// Windows to train.
    #[arg(long, env = "TEMPLAR_WINDOWS", default_value_t = 12, value_parser = clap::value_parser!(u64).range(1..=100_000))]
    pub(crate) windows: u64,
    /// Miners.
    #[arg(long, env = "TEMPLAR_MINERS", default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=128))]
    miners: u16,
    /// Validators.
    #[arg(long, env = "TEMPLAR_VALIDATORS", default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=32))]
    validators: u16,
    /// Everything that is drawn follows from it: keys, data, θ₀, blocks.
    #[arg(long, env = "TEMPLAR_SEED", default_value_t = 0, value_parser = clap::value_parser!(u64).range(0..=i64::MAX as u64))]
    seed: u64,
    /// How contributions become bytes: topk-sign, topk-2bit or dense-f32.
    #[arg(long, env = "TEMPLAR_CODEC", default_value = "topk-sign", value_parser = codec)]
    pub(crate) codec: CodecKind,
    /// How the last miners behave, one each: noise or withhold.
    #[arg(long, env = "TEMPLAR_ADVERSARY", num_args = 1.., value_delimiter = ',', value_name = "BEHAVIOUR")]
    adversary: Vec<Behaviour>,
    /// Write the run's report to this file, as JSON.
    #[arg(long, env = "TEMPLAR_REPORT", value_name = "FILE")]
    report: Option<PathBuf>,
}

impl RehearsalArgs {
    pub(crate) fn plan(&self, preset: Preset) -> Result<Plan> {
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

    /// Shows the report, and writes it if that was asked for.
    pub(crate) fn finish(&self, report: &Report) -> Result<()> {
        if is_json() {
            say!("{}", serde_json::to_string(report)?);
        } else {
            say!("{}", show::summary(report).trim_end());
        }
        let Some(path) = &self.report else { return Ok(()) };
        let text = serde_json::to_string_pretty(report)?;
        std::fs::write(path, text + "\n")
            .wrap_err_with(|| format!("the report cannot be written to {}", path.display()))
    }
}

/// A codec by its name in `run.toml`.
pub(crate) fn codec(name: &str) -> Result<CodecKind, serde_json::Error> {
    from_value(Value::from(name))
}

/// A preset by its name.
pub(crate) fn preset(name: &str) -> Result<Preset> {
    presets::preset(name)
        .with_context(|| format!("there is no preset {name:?}; there are {}", presets::names().join(", ")))
}

/// Options of a network of real parts.
#[derive(Debug, Args)]
pub(crate) struct NetworkArgs {
    #[command(flatten)]
    pub(crate) rehearsal: RehearsalArgs,
    /// Size of the model: nano, micro, 150m, 1b, 7b, 8b or 72b.
    #[arg(long, env = "TEMPLAR_PRESET", default_value = "nano")]
    preset: String,
    #[command(flatten)]
    corpus: CorpusArgs,
    /// Engines of the nodes, miners first; the last one is for all further nodes: builtin or torch.
    #[arg(long, env = "TEMPLAR_ENGINES", value_name = "ENGINE", num_args = 1.., default_value = "builtin", value_delimiter = ',')]
    engine: Vec<EngineName>,
    /// Write the final model to this folder, in the Hugging Face layout.
    #[arg(long, env = "TEMPLAR_OUT", value_name = "DIR")]
    out: Option<PathBuf>,
    /// Keep the network's files (chain, buckets, nodes) in this folder, which must be empty or absent.
    #[arg(long, env = "TEMPLAR_FOLDER", value_name = "DIR")]
    folder: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) metrics: MetricsArgs,
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
    /// The network that was asked for, in `folder`.
    pub(crate) fn network(&self, folder: &Folder) -> Result<Network> {
        let mut preset = preset(&self.preset)?;
        let text = self.corpus.text(&mut preset)?;
        let plan = self.rehearsal.plan(preset)?;
        // Nodes on this machine share its cores.
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let threads = u32::try_from((cores / (plan.miners + plan.validators)).max(1)).ok();
        Ok(Network {
            plan,
            codec: self.rehearsal.codec,
            text,
            folder: folder.path().to_path_buf(),
            engines: self.torch.engines(&self.engine, threads)?,
        })
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

    /// Shows the result and writes what was asked for. If something failed, the network's files stay.
    pub(crate) fn finish(&self, outcome: Result<Option<Outcome>, NetworkError>, folder: Folder) -> Result<End> {
        if let Err(NetworkError::Prepare(error)) = outcome {
            // Nothing has run, and there is nothing to look into.
            return Err(error.into());
        }
        let end = outcome.map_err(Into::into).and_then(|outcome| match outcome {
            Some(outcome) => self.conclude(&outcome, folder.path()),
            None => Ok(End::Stopped),
        });
        end.map_err(|report| {
            report.wrap_err(format!("the network failed; its files are left in {}", folder.keep().display()))
        })
    }

    fn conclude(&self, outcome: &Outcome, folder: &Path) -> Result<End> {
        self.rehearsal.finish(&outcome.report)?;
        if !outcome.failures.is_empty() {
            let failures: Vec<String> = outcome.failures.iter().map(ToString::to_string).collect();
            bail!("{}", failures.join("\n  "));
        }
        if let Some(out) = &self.out {
            Self::export(out, outcome, &folder.join("dataset"))?;
        }
        Ok(if outcome.stopped { End::Stopped } else { End::Done })
    }

    fn export(out: &Path, outcome: &Outcome, folder: &Path) -> Result<()> {
        let theta = outcome.theta.as_ref().wrap_err("no validator has a state to export: no window was settled")?;
        let dataset = Dataset::open(folder)?;
        let model = &outcome.spec.model;
        hf::export(out, model, theta, Some(dataset.manifest().end_of_text))
            .wrap_err_with(|| format!("the model cannot be written to {}", out.display()))?;
        model_folder::export_tokenizer(out, model, folder, dataset.manifest())?;
        let sample = dataset.sample(templar_data::Split::HeldOut, 0)?;
        let tokens = &sample[..sample.len().min(64)];
        hf::export_logits(out, model, theta, tokens, 1)?;
        if !is_json() {
            say!("model written to {}", out.display());
        }
        Ok(())
    }
}

//! `templar run init|show|verify|publish`

mod audit;
mod publish;
mod weights;

use std::convert::Infallible;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use color_eyre::eyre::{Context, ContextCompat as _, Result, ensure};
use serde_json::json;
use templar_data::{Dataset, Split};
use templar_host::defaults::{budget_tokens, mainnet_windows, run_defaults};
use templar_model::presets::Preset;
use templar_node::frame::dataset;
use templar_node::frame::weights::Weights;
use templar_protocol::hash::Hash32;
use templar_protocol::layout::{Layout, ModelSpec};
use templar_protocol::run::{ChainSpec, CodecKind, DataSpec, RunSpec, Theta0Source};
use templar_sim::local::initial;

use crate::commands::network::{DERIVED, assignment, codec, preset};
use crate::end::End;
use crate::failure::coded;
use crate::files::read_run;
use crate::numbers::whole;
use crate::output::{is_json, say};
use crate::progress::{Progress, Unit};

#[derive(Debug, Subcommand)]
pub(crate) enum Run {
    /// Write a new run.toml with this project's defaults.
    Init(Init),
    /// Describe a run and print its id.
    Show(Show),
    /// Check a run.toml: every value, θ₀'s root, and the dataset if one is given; or all of the run's history.
    Verify(Verify),
    /// Put a run's dataset, and the weights that it starts from, into a bucket from which its nodes fetch them.
    Publish(publish::Publish),
}

#[derive(Debug, Args)]
pub(crate) struct Init {
    /// A name for people.
    #[arg(long, env = "TEMPLAR_RUN_NAME")]
    name: String,
    /// Size of the model.
    #[arg(long, env = "TEMPLAR_PRESET", default_value = "nano")]
    preset: String,
    /// How contributions become bytes: topk-sign, topk-2bit or dense-f32.
    #[arg(long, env = "TEMPLAR_CODEC", default_value = "topk-sign", value_parser = codec)]
    codec: CodecKind,
    /// Hash of the chain's block 0, in hexadecimal.
    #[arg(long, env = "TEMPLAR_GENESIS", value_name = "HASH")]
    genesis: Hash32,
    /// The subnet.
    #[arg(long, env = "TEMPLAR_NETUID", value_parser = whole::<u16>(0..=u64::from(u16::MAX)))]
    netuid: u16,
    /// First block of window 0.
    #[arg(long, env = "TEMPLAR_START_BLOCK", value_name = "BLOCK", value_parser = whole::<u64>(0..=u64::MAX))]
    start_block: u64,
    /// Folder of the prepared dataset.
    #[arg(long, alias = "data", env = "TEMPLAR_DATASET", value_name = "DIR")]
    dataset: PathBuf,
    /// Start from this model's weights, in its shape: a folder in Hugging Face's layout, or the folder of a network that
    /// `demo` or `localnet` kept.
    #[arg(long, env = "TEMPLAR_FROM", value_name = "DIR", conflicts_with = "preset")]
    from: Option<PathBuf>,
    /// With --from: where the weights are written for `run publish`; without it, beside the run's file, in `weights`.
    #[arg(long, env = "TEMPLAR_WEIGHTS", value_name = "DIR", requires = "from")]
    weights: Option<PathBuf>,
    /// Seed of θ₀ and of the order of the data.
    #[arg(long, env = "TEMPLAR_SEED", default_value_t = 0, value_parser = whole::<u64>(0..=i64::MAX as u64))]
    seed: u64,
    /// Override a key's default value, such as outer.rate=0.65 (several allowed; docs/run-keys.md has all).
    #[arg(long, value_name = "KEY=VALUE", value_parser = assignment)]
    set: Vec<(String, String)>,
    /// Where to write it.
    #[arg(long, env = "TEMPLAR_RUN", default_value = "run.toml", value_name = "FILE")]
    out: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct Show {
    /// The run's file.
    #[arg(default_value = "run.toml")]
    file: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct Verify {
    /// The run's file.
    #[arg(default_value = "run.toml")]
    file: PathBuf,
    /// Folder of the dataset to check against the run.
    #[arg(long, alias = "data", env = "TEMPLAR_DATASET", value_name = "DIR")]
    dataset: Option<PathBuf>,
    /// For a run that starts from weights: the folder that `run init --from` wrote.
    #[arg(long, env = "TEMPLAR_WEIGHTS", value_name = "DIR")]
    weights: Option<PathBuf>,
    /// Recompute every certificate and state of the run, from what its validators have archived. With --chain or
    /// --folder; exit code 3 if the history does not check out.
    #[arg(long, env = "TEMPLAR_FROM_GENESIS")]
    from_genesis: bool,
    /// With --from-genesis: the chain that the run is on.
    #[arg(long, env = "TEMPLAR_CHAIN", value_name = "URL")]
    chain: Option<String>,
    /// With --from-genesis: the folder of a network that `demo` or `localnet` kept, which has its own run.toml.
    #[arg(long, env = "TEMPLAR_FOLDER", value_name = "DIR")]
    folder: Option<PathBuf>,
}

impl Run {
    pub(crate) fn run(self) -> Result<End> {
        match self {
            Self::Init(init) => init.run().map(|()| End::Done),
            Self::Show(show) => show.run().map(|()| End::Done),
            Self::Verify(verify) => verify.run(),
            Self::Publish(publish) => publish.run().map(|()| End::Done),
        }
    }
}

impl Init {
    fn run(self) -> Result<()> {
        let mut preset = preset(&self.preset)?;
        ensure!(!self.out.exists(), "{} exists already; a run is never changed: name another file", self.out.display());
        let dataset =
            Dataset::open(&self.dataset).wrap_err_with(|| format!("dataset in {}", self.dataset.display()))?;
        let manifest = dataset.manifest();
        match &self.from {
            None => preset.fit(manifest.seq_len, manifest.vocab_size),
            Some(from) => {
                let model = ModelSpec { seq_len: manifest.seq_len, ..initial::shape(from)? };
                preset = Preset { name: "its shape", model, ..preset };
            }
        }
        let layout = Layout::llama(&preset.model);
        let chain = ChainSpec { genesis: self.genesis, netuid: self.netuid, start_block: self.start_block };
        let data = DataSpec { manifest: manifest.hash(), seed: self.seed };
        let mut spec = run_defaults(&self.name, &preset, chain, data, self.seed, mainnet_windows());
        spec.codec.kind = self.codec;
        for (key, value) in &self.set {
            ensure!(
                !DERIVED.contains(&key.as_str()),
                "`{key}` cannot be set: it follows from the dataset, from `model` and `theta0.seed`, or from --from"
            );
            spec.set(key, value).wrap_err_with(|| format!("--set {key}={value}"))?;
        }
        if !self.set.iter().any(|(key, _)| key == "scoring.budget_tokens") {
            spec.scoring.budget_tokens = budget_tokens(&spec);
        }
        spec.validate()?;
        dataset::check(&spec, manifest)?;
        match &self.from {
            None => spec.theta0.root = theta0_root(&spec),
            Some(from) => self.start_from(from, &layout, &mut spec)?,
        }
        std::fs::write(&self.out, spec.to_toml())
            .wrap_err_with(|| format!("{} cannot be written", self.out.display()))?;
        if is_json() {
            say!("{}", json!({ "run_id": spec.id(), "out": self.out }));
        } else {
            say!("run {} written to {}", spec.id(), self.out.display());
        }
        Ok(())
    }
}

impl Init {
    /// Writes the weights for `run publish`, and their root into the run.
    fn start_from(&self, from: &Path, layout: &Layout, spec: &mut RunSpec) -> Result<()> {
        ensure!(
            spec.layout() == *layout,
            "--set changes the shape of the model in {}: its tensors would not fit the run",
            from.display()
        );
        let folder = self.weights.clone().unwrap_or_else(|| self.out.with_file_name("weights"));
        ensure!(Weights::may_be_in(&folder), "{} is not empty: name another folder with --weights", folder.display());
        let (_, theta) = initial::model(from)?;
        spec.theta0.source = Theta0Source::Weights;
        spec.theta0.root = Weights::write(&folder, layout, &theta)?.root();
        eprintln!(
            "the weights that the run starts from are in {}; `templar run publish` uploads them",
            folder.display()
        );
        Ok(())
    }
}

impl Show {
    fn run(self) -> Result<()> {
        let spec = read_run(&self.file)?;
        let parameters = spec.layout().len();
        let window_tokens = spec.slice_tokens(0);
        if is_json() {
            let value = json!({ "run_id": spec.id(), "parameters": parameters, "tokens_per_miner_and_window": window_tokens, "spec": spec });
            say!("{value}");
            return Ok(());
        }
        say!("run       {}", spec.id());
        say!("name      {}", spec.name);
        say!(
            "chain     genesis {}, subnet {}, from block {}",
            spec.chain.genesis,
            spec.chain.netuid,
            spec.chain.start_block
        );
        say!(
            "model     {parameters} parameters: {} layers, width {}, vocabulary {}",
            spec.model.layers,
            spec.model.hidden_size,
            spec.model.vocab_size
        );
        let start = match spec.theta0.source {
            Theta0Source::Seed => format!("seed {}", spec.theta0.seed),
            Theta0Source::Weights => format!("weights with root {}", spec.theta0.root),
        };
        say!("start     {start}");
        say!("data      manifest {}", spec.data.manifest);
        say!(
            "window    {} blocks: put by block {}, vote by block {}, a delay of {} {}",
            spec.windows.blocks,
            spec.windows.put_block,
            spec.windows.vote_block,
            spec.windows.delay_windows,
            if spec.windows.delay_windows == 1 { "window" } else { "windows" }
        );
        say!(
            "training  {} inner steps of {} sequences: {window_tokens} tokens per miner and window",
            spec.inner.steps_of(0),
            spec.inner.batch_sequences
        );
        if let Some(anneal) = anneal(&spec) {
            say!("anneal    {anneal}");
        }
        Ok(())
    }
}

/// The end of a run in words, if it is planned.
fn anneal(spec: &RunSpec) -> Option<String> {
    let inner = &spec.inner;
    let first = Some(inner.anneal_from_window).filter(|window| *window > 0)?;
    let (last, steps, tokens) = (first + inner.anneal_windows - 1, inner.steps_of(first), spec.slice_tokens(first));
    Some(format!(
        "windows {first} to {last}: the learning rate falls to 0 over windows of {steps} inner steps, {tokens} tokens per miner"
    ))
}

impl Verify {
    fn run(self) -> Result<End> {
        if self.from_genesis
            && let Some(folder) = &self.folder
        {
            return audit::of_folder(folder);
        }
        let spec = read_run(&self.file)?;
        let weights = weights::open(&spec, self.weights.as_deref())?;
        match &weights {
            Some(weights) => weights::check(weights, &spec.layout())?,
            None if spec.theta0.source == Theta0Source::Weights && self.from_genesis => {}
            None => check_theta0(&spec)?,
        }
        let mut samples = None;
        if let Some(folder) = &self.dataset {
            let dataset = Dataset::open(folder).wrap_err_with(|| format!("dataset in {}", folder.display()))?;
            dataset::check(&spec, dataset.manifest())?;
            samples = Some(dataset.samples(Split::Train));
        }
        if self.from_genesis {
            let chain = self.chain.wrap_err("--from-genesis needs --chain URL, or --folder DIR of a kept network");
            return audit::of_chain(spec, &chain.map_err(coded("usage"))?, samples, weights);
        }
        if is_json() {
            say!("{}", json!({ "run_id": spec.id(), "ok": true }));
        } else {
            say!("run {} is valid", spec.id());
        }
        Ok(End::Done)
    }
}

/// Compares θ₀ with the root in the run.
fn check_theta0(spec: &RunSpec) -> Result<()> {
    ensure!(
        spec.theta0.source == Theta0Source::Seed,
        "the run starts from weights with root {}: name their folder with --weights, so that they can be checked",
        spec.theta0.root
    );
    let root = theta0_root(spec);
    ensure!(
        root == spec.theta0.root,
        "`theta0.root` is {}, but seed {} gives {root}: the file was changed by hand, or belongs to another protocol version",
        spec.theta0.root,
        spec.theta0.seed
    );
    Ok(())
}

/// The root of θ₀, with progress on standard error if it takes long.
fn theta0_root(spec: &RunSpec) -> Hash32 {
    let layout = spec.layout();
    let (mut progress, all) = (Progress::new("making the initial parameters", Unit::Parameters), layout.len() as u64);
    let watch = |done| {
        progress.show(done, all);
        ControlFlow::<Infallible>::Continue(())
    };
    let ControlFlow::Continue(root) = layout.theta0_root_watched(&spec.model, spec.theta0.seed, watch);
    progress.finish();
    root
}

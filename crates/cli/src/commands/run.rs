//! `templar run init|show|verify`

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use color_eyre::eyre::{Context, Result, ensure};
use serde_json::json;
use templar_data::Dataset;
use templar_host::defaults::{mainnet_windows, run_spec};
use templar_node::frame::dataset;
use templar_protocol::hash::Hash32;
use templar_protocol::run::{ChainSpec, CodecKind, DataSpec, RunSpec};

use crate::End;
use crate::commands::network::{codec, preset};
use crate::commands::node::read_small;

#[derive(Debug, Subcommand)]
pub(crate) enum Run {
    /// Write a new run.toml with this project's defaults.
    Init(Init),
    /// Say what a run is, and its id.
    Show(Show),
    /// Check a run.toml: every value, θ₀'s root, and the dataset if one is given.
    Verify(Verify),
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
    #[arg(long, env = "TEMPLAR_NETUID")]
    netuid: u16,
    /// First block of window 0.
    #[arg(long, env = "TEMPLAR_START_BLOCK", value_name = "BLOCK")]
    start_block: u64,
    /// Folder of the prepared dataset.
    #[arg(long, env = "TEMPLAR_DATA", value_name = "DIR")]
    data: PathBuf,
    /// Seed of θ₀ and of the order of the data.
    #[arg(long, env = "TEMPLAR_SEED", default_value_t = 0)]
    seed: u64,
    /// Where to write it.
    #[arg(long, env = "TEMPLAR_OUT", default_value = "run.toml", value_name = "FILE")]
    out: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct Show {
    /// The run's file.
    #[arg(default_value = "run.toml")]
    file: PathBuf,
    #[arg(long, env = "TEMPLAR_JSON")]
    json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Verify {
    /// The run's file.
    #[arg(default_value = "run.toml")]
    file: PathBuf,
    /// Folder of the dataset to check against the run.
    #[arg(long, env = "TEMPLAR_DATA", value_name = "DIR")]
    data: Option<PathBuf>,
    #[arg(long, env = "TEMPLAR_JSON")]
    json: bool,
}

impl Run {
    pub(crate) fn run(self) -> Result<End> {
        match self {
            Self::Init(init) => init.run(),
            Self::Show(show) => show.run(),
            Self::Verify(verify) => verify.run(),
        }?;
        Ok(End::Done)
    }
}

impl Init {
    fn run(self) -> Result<()> {
        let mut preset = preset(&self.preset)?;
        ensure!(!self.out.exists(), "{} exists already; a run is never changed: name another file", self.out.display());
        let dataset = Dataset::open(&self.data).wrap_err_with(|| format!("dataset in {}", self.data.display()))?;
        let manifest = dataset.manifest();
        preset.fit(manifest.seq_len, manifest.vocab_size);
        let chain = ChainSpec { genesis: self.genesis, netuid: self.netuid, start_block: self.start_block };
        let data = DataSpec { manifest: manifest.hash(), seed: self.seed };
        let mut spec = run_spec(&self.name, &preset, chain, data, self.seed, mainnet_windows());
        spec.codec.kind = self.codec;
        spec.validate()?;
        std::fs::write(&self.out, spec.to_toml()).wrap_err_with(|| self.out.display().to_string())?;
        println!("run {} written to {}", spec.id(), self.out.display());
        Ok(())
    }
}

impl Show {
    fn run(self) -> Result<()> {
        let spec = load(&self.file)?;
        let parameters = spec.layout().len();
        let window_tokens = spec.slice_samples() * u64::from(spec.model.seq_len);
        if self.json {
            let value = json!({ "run_id": spec.id(), "parameters": parameters, "tokens_per_miner_and_window": window_tokens, "spec": spec });
            println!("{value}");
            return Ok(());
        }
        println!("run       {}", spec.id());
        println!("name      {}", spec.name);
        println!(
            "chain     genesis {}, subnet {}, from block {}",
            spec.chain.genesis, spec.chain.netuid, spec.chain.start_block
        );
        println!(
            "model     {parameters} parameters: {} layers, width {}, vocabulary {}",
            spec.model.layers, spec.model.hidden_size, spec.model.vocab_size
        );
        println!("data      manifest {}", spec.data.manifest);
        println!(
            "window    {} blocks: put by block {}, vote by block {}, {} windows' delay",
            spec.windows.blocks, spec.windows.put_block, spec.windows.vote_block, spec.windows.delay_windows
        );
        println!(
            "training  {} inner steps of {} sequences: {window_tokens} tokens a miner and window",
            spec.inner.steps, spec.inner.batch_sequences
        );
        Ok(())
    }
}

impl Verify {
    fn run(self) -> Result<()> {
        let spec = load(&self.file)?;
        let layout = spec.layout();
        let root = layout.theta0_root(&spec.model, spec.theta0.seed);
        ensure!(
            root == spec.theta0.root,
            "`theta0.root` is {}, but seed {} gives {root}: the file was changed by hand, or is of another protocol",
            spec.theta0.root,
            spec.theta0.seed
        );
        if let Some(folder) = &self.data {
            let dataset = Dataset::open(folder).wrap_err_with(|| format!("dataset in {}", folder.display()))?;
            dataset::check(&spec, dataset.manifest())?;
        }
        if self.json {
            println!("{}", json!({ "run_id": spec.id(), "ok": true }));
        } else {
            println!("run {} is in order", spec.id());
        }
        Ok(())
    }
}

/// A run from its file.
pub(crate) fn load(path: &Path) -> Result<RunSpec> {
    let text = read_small(path)?;
    RunSpec::from_toml(&text).wrap_err_with(|| format!("{} is no run", path.display()))
}

//! `templar data prepare|inspect|verify`

use std::path::PathBuf;

use clap::{Args, Subcommand};
use color_eyre::eyre::{Context, Report, Result, eyre};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;
use templar_data::{Dataset, PrepareError, PrepareOptions, Split, prepare};

use crate::end::End;
use crate::output::{is_json, say};

#[derive(Debug, Subcommand)]
pub(crate) enum Data {
    /// Turn text and JSON Lines into token shards and a manifest.
    Prepare(Prepare),
    /// Say what is in a dataset.
    Inspect(Inspect),
    /// Check every hash of a dataset.
    Verify(Verify),
}

#[derive(Debug, Args)]
pub(crate) struct Prepare {
    /// Files or folders of UTF-8 text (.txt) or JSON Lines (.jsonl, field "text").
    #[arg(required = true)]
    sources: Vec<PathBuf>,
    /// Where to write the dataset.
    #[arg(long, env = "TEMPLAR_DATASET", value_name = "DIR")]
    out: PathBuf,
    /// A Hugging Face tokenizer.json; without one, tokens are bytes.
    #[arg(long, env = "TEMPLAR_TOKENIZER", value_name = "FILE")]
    tokenizer: Option<PathBuf>,
    /// Tokens in a sample.
    #[arg(long, env = "TEMPLAR_SEQ_LEN", default_value_t = PrepareOptions::default().seq_len)]
    seq_len: u32,
    /// Part of the text that is never trained on.
    #[arg(long, env = "TEMPLAR_HELD_OUT", default_value_t = PrepareOptions::default().held_out_fraction)]
    held_out: f64,
    /// Samples in a shard.
    #[arg(long, env = "TEMPLAR_SHARD_SAMPLES", default_value_t = PrepareOptions::default().shard_samples)]
    shard_samples: u64,
    /// Which parts of the text are held out.
    #[arg(long, env = "TEMPLAR_SEED", default_value_t = 0)]
    seed: u64,
}

#[derive(Debug, Args)]
pub(crate) struct Inspect {
    /// The dataset's folder.
    folder: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct Verify {
    /// The dataset's folder.
    folder: PathBuf,
}

impl Data {
    pub(crate) fn run(self) -> Result<End> {
        match self {
            Self::Prepare(prepare) => prepare.run(),
            Self::Inspect(inspect) => inspect.run(),
            Self::Verify(verify) => verify.run(),
        }?;
        Ok(End::Done)
    }
}

fn bar(bytes: u64, what: &'static str) -> ProgressBar {
    let style = ProgressStyle::with_template("{msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}");
    ProgressBar::new(bytes).with_style(style.expect("a constant template")).with_message(what)
}

impl Prepare {
    fn run(self) -> Result<()> {
        let options = PrepareOptions {
            seq_len: self.seq_len,
            tokenizer: self.tokenizer,
            held_out_fraction: self.held_out,
            shard_samples: self.shard_samples,
            seed: self.seed,
        };
        let bar = bar(0, "preparing");
        let manifest = prepare(&self.sources, &self.out, &options, &mut |progress| {
            bar.set_length(progress.source_bytes.unwrap_or(0));
            bar.set_position(progress.text_bytes);
        });
        let manifest = manifest.map_err(by_flag)?;
        bar.finish_and_clear();
        if is_json() {
            say!(
                "{}",
                json!({ "manifest": manifest.hash(), "train_samples": manifest.train.samples, "held_out_samples": manifest.held_out.samples })
            );
        } else {
            say!("manifest {}", manifest.hash());
            say!(
                "{} samples to train on and {} held out, in {}",
                manifest.train.samples,
                manifest.held_out.samples,
                self.out.display()
            );
        }
        Ok(())
    }
}

/// What the library says of its options, in the words of the command line.
fn by_flag(error: PrepareError) -> Report {
    match error {
        PrepareError::Option { option, found, allowed } => {
            let flag = if option == "held_out_fraction" { "held-out".to_owned() } else { option.replace('_', "-") };
            eyre!("--{flag} is {found}; it must be {allowed}")
        }
        PrepareError::TooShort { .. } => eyre!("{error}: see --seq-len and --held-out"),
        error => error.into(),
    }
}

impl Inspect {
    fn run(self) -> Result<()> {
        let dataset = Dataset::open(&self.folder).wrap_err_with(|| self.folder.display().to_string())?;
        let manifest = dataset.manifest();
        if is_json() {
            say!("{}", json!({ "hash": manifest.hash(), "manifest": manifest }));
            return Ok(());
        }
        say!("manifest    {}", manifest.hash());
        say!("tokenizer   {:?}, vocabulary {}", manifest.tokenizer, manifest.vocab_size);
        for (name, split) in [("train", Split::Train), ("held out", Split::HeldOut)] {
            let part = manifest.split(split);
            say!(
                "{name:<11} {} samples of {} tokens in {} shards, from {} bytes of text ({:.3} bytes a token)",
                part.samples,
                manifest.seq_len,
                part.shards.len(),
                part.text_bytes,
                manifest.bytes_per_token(split)
            );
        }
        let tokenizer = dataset.tokenizer()?;
        let sample = dataset.sample(Split::Train, 0)?;
        say!("first sample: {:?}", tokenizer.decode(&sample));
        Ok(())
    }
}

impl Verify {
    fn run(self) -> Result<()> {
        let dataset = Dataset::open(&self.folder).wrap_err_with(|| self.folder.display().to_string())?;
        let bar = bar(dataset.shard_bytes(), "verifying");
        dataset.verify(&mut |bytes| bar.inc(bytes))?;
        bar.finish_and_clear();
        let hash = dataset.manifest().hash();
        if is_json() {
            say!("{}", json!({ "manifest": hash, "ok": true }));
        } else {
            say!("dataset {hash} is in order");
        }
        Ok(())
    }
}

//! `templar data prepare|inspect|verify`

use std::ops::RangeInclusive;
use std::path::PathBuf;

use clap::{Args, Subcommand};
use color_eyre::eyre::{Context, Report, Result, eyre};
use serde_json::json;
use templar_data::manifest::{SEQ_LEN_MAX, SHARD_BYTES_MAX};
use templar_data::{Dataset, Existing, PrepareError, PrepareOptions, Split, TokenizerId, prepare};

use crate::end::End;
use crate::numbers::{real, whole};
use crate::output::{is_json, say};
use crate::progress::{Progress, Unit};

/// What the options accept; how many samples fit into a shard depends on their length.
const SEQ_LEN: RangeInclusive<u64> = 2..=SEQ_LEN_MAX as u64;
const HELD_OUT: RangeInclusive<f64> = 0.001..=0.5;
const SHARD_SAMPLES: RangeInclusive<u64> = 1..=SHARD_BYTES_MAX;

/// Strays listed by name; the others are counted.
const NAMED_STRAYS_MAX: usize = 10;

#[derive(Debug, Subcommand)]
pub(crate) enum Data {
    /// Turn text and JSON Lines into token shards and a manifest.
    Prepare(Prepare),
    /// Describe a dataset.
    Inspect(Inspect),
    /// Check every hash of a dataset.
    Verify(Verify),
}

#[derive(Debug, Args)]
pub(crate) struct Prepare {
    /// Files or folders of UTF-8 text (.txt) or JSON Lines (.jsonl, field "text").
    #[arg(required = true)]
    sources: Vec<PathBuf>,
    /// Where to write the dataset: a folder that is empty or absent, unless --replace is given.
    #[arg(long, env = "TEMPLAR_DATASET", value_name = "DIR")]
    out: PathBuf,
    /// Replace the dataset that is already there, once the new one is complete; other files stay.
    #[arg(long, env = "TEMPLAR_REPLACE")]
    replace: bool,
    /// A Hugging Face tokenizer.json; without one, tokens are bytes.
    #[arg(long, env = "TEMPLAR_TOKENIZER", value_name = "FILE")]
    tokenizer: Option<PathBuf>,
    /// The tokenizer's token that ends a text, if its name is not one of the usual ones, such as <|endoftext|>.
    #[arg(long, env = "TEMPLAR_END_OF_TEXT", value_name = "TOKEN", requires = "tokenizer")]
    end_of_text: Option<String>,
    /// Tokens per sample.
    #[arg(long, env = "TEMPLAR_SEQ_LEN", default_value_t = PrepareOptions::default().seq_len, value_parser = whole::<u32>(SEQ_LEN))]
    seq_len: u32,
    /// Fraction of the text that is never trained on.
    #[arg(long, env = "TEMPLAR_HELD_OUT", default_value_t = PrepareOptions::default().held_out_fraction, value_parser = real(HELD_OUT))]
    held_out: f64,
    /// Samples per shard.
    #[arg(long, env = "TEMPLAR_SHARD_SAMPLES", default_value_t = PrepareOptions::default().shard_samples, value_parser = whole::<u64>(SHARD_SAMPLES))]
    shard_samples: u64,
    /// Seed of the choice of what is held out.
    #[arg(long, env = "TEMPLAR_SEED", default_value_t = 0, value_parser = whole::<u64>(0..=u64::MAX))]
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

fn strays(dataset: &Dataset) -> Result<Vec<String>> {
    dataset.strays().wrap_err_with(|| format!("{} cannot be listed", dataset.dir().display()))
}

fn print_strays(strays: &[String]) {
    if strays.is_empty() {
        return;
    }
    if strays.len() == 1 {
        say!("1 entry does not belong to the dataset and is ignored; remove it unless you need it:");
    } else {
        say!(
            "{} entries do not belong to the dataset and are ignored; remove them unless you need them:",
            strays.len()
        );
    }
    for name in strays.iter().take(NAMED_STRAYS_MAX) {
        say!("  {name}");
    }
    if strays.len() > NAMED_STRAYS_MAX {
        say!("  … and {} more", strays.len() - NAMED_STRAYS_MAX);
    }
}

impl Prepare {
    fn run(self) -> Result<()> {
        let options = PrepareOptions {
            seq_len: self.seq_len,
            tokenizer: self.tokenizer,
            held_out_fraction: self.held_out,
            shard_samples: self.shard_samples,
            seed: self.seed,
            end_of_text: self.end_of_text,
            existing: if self.replace { Existing::Replace } else { Existing::Refuse },
        };
        let mut shown = Progress::new("preparing", Unit::Bytes);
        let manifest = prepare(&self.sources, &self.out, &options, &mut |progress| {
            shown.show(progress.read_bytes, progress.source_bytes.unwrap_or(0));
        });
        shown.finish();
        let manifest = manifest.map_err(by_flag)?;
        let strays = strays(&Dataset::open(&self.out)?)?;
        if is_json() {
            say!(
                "{}",
                json!({
                    "manifest": manifest.hash(),
                    "train_samples": manifest.train.samples,
                    "held_out_samples": manifest.held_out.samples,
                    "strays": strays,
                })
            );
        } else {
            say!("manifest {}", manifest.hash());
            say!(
                "{} samples to train on and {} held out, in {}",
                manifest.train.samples,
                manifest.held_out.samples,
                self.out.display()
            );
            print_strays(&strays);
        }
        Ok(())
    }
}

/// The library's error about an option, in the words of the command line.
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
        let dataset = Dataset::open(&self.folder)
            .wrap_err_with(|| format!("the dataset in {} cannot be opened", self.folder.display()))?;
        let manifest = dataset.manifest();
        if is_json() {
            say!("{}", json!({ "hash": manifest.hash(), "manifest": manifest }));
            return Ok(());
        }
        say!("manifest    {}", manifest.hash());
        let tokenizer = match &manifest.tokenizer {
            TokenizerId::Bytes => "bytes".to_owned(),
            TokenizerId::Json { hash } => format!("tokenizer.json {hash}"),
        };
        say!("tokenizer   {tokenizer}, vocabulary {}, end of text {}", manifest.vocab_size, manifest.end_of_text);
        for (name, split) in [("train", Split::Train), ("held out", Split::HeldOut)] {
            let part = manifest.split(split);
            say!(
                "{name:<11} {} samples of {} tokens in {} shards, from {} bytes of text ({:.3} bytes per token)",
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
        let dataset = Dataset::open(&self.folder)
            .wrap_err_with(|| format!("the dataset in {} cannot be opened", self.folder.display()))?;
        let (mut shown, mut done, all) = (Progress::new("verifying", Unit::Bytes), 0, dataset.shard_bytes());
        let verified = dataset.verify(&mut |bytes| {
            done += bytes;
            shown.show(done, all);
        });
        shown.finish();
        verified?;
        let (hash, strays) = (dataset.manifest().hash(), strays(&dataset)?);
        if is_json() {
            say!("{}", json!({ "manifest": hash, "ok": true, "strays": strays }));
        } else {
            say!("dataset {hash} is valid");
            print_strays(&strays);
        }
        Ok(())
    }
}

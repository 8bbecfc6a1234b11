//! `templar bench data`.

use std::path::PathBuf;

use clap::Args;
use color_eyre::eyre::{Result, WrapErr};
use templar_bench::data::{Options, measure};

use crate::End;
use crate::numbers::whole;
use crate::output::{is_json, say};

#[derive(Debug, Args)]
pub(crate) struct Data {
    /// A UTF-8 text to measure with; without one, the built-in corpus.
    #[arg(long = "data", value_name = "FILE")]
    text: Option<PathBuf>,
    /// Megabytes of text for byte tokens.
    #[arg(long, default_value_t = 64, value_parser = whole::<u32>(1..=4096))]
    bytes_mb: u32,
    /// Megabytes of text for the tokenizer.
    #[arg(long, default_value_t = 8, value_parser = whole::<u32>(1..=4096))]
    tokenizer_mb: u32,
    /// Rounds; the medians count.
    #[arg(long, default_value_t = 5, value_parser = whole::<u16>(1..=100))]
    repeats: u16,
}

impl Data {
    pub(crate) fn run(self) -> Result<End> {
        let text = self.text.as_deref().map(|path| {
            std::fs::read_to_string(path).wrap_err_with(|| format!("{} cannot be read as text", path.display()))
        });
        let report = measure(&Options {
            text: text.transpose()?,
            bytes_text_bytes: self.bytes_mb as usize * 1_000_000,
            tokenizer_text_bytes: self.tokenizer_mb as usize * 1_000_000,
            repeats: usize::from(self.repeats),
        })?;
        if is_json() {
            say!("{}", serde_json::to_string(&report)?);
            return Ok(End::Done);
        }
        say!("| what | cores | MB/s |");
        say!("|---|---|---|");
        say!("| text to byte tokens | 1 | {:.1} |", report.bytes_mb_per_s);
        say!("| shards verified | 1 | {:.1} |", report.verify_mb_per_s);
        let cores = report.threads;
        say!("| text to a tokenizer's tokens | {cores} | {:.2} |", report.tokenizer_mb_per_s);
        say!("| `encode_batch_fast` of the tokenizers crate | {cores} | {:.2} |", report.encode_batch_fast_mb_per_s);
        say!("| `encode_batch` of the tokenizers crate | {cores} | {:.2} |", report.encode_batch_mb_per_s);
        say!("\nours to encode_batch_fast: {:.2}", report.ratio);
        Ok(End::Done)
    }
}

//! `templar bench train`.

use clap::{Args, ValueEnum};
use color_eyre::eyre::{OptionExt, Result, ensure};
use templar_bench::train::{Options, Report, measure};
use templar_model::presets;
use templar_protocol::layout::ModelSpec;
use templar_protocol::run::{InnerSpec, Optimiser};

use crate::end::End;
use crate::numbers::{real, whole};
use crate::output::{is_json, say};

/// The default shape has 4.6 million parameters; the batch is 8 × 256 tokens.
#[derive(Debug, Args)]
pub(crate) struct Train {
    /// A preset's shape and batch, instead of the numbers below.
    #[arg(long, conflicts_with_all = ["layers", "width", "heads", "kv_heads", "ffn", "vocab", "seq"])]
    preset: Option<String>,
    #[arg(long, default_value_t = 6, value_parser = whole::<u32>(1..=1024))]
    layers: u32,
    #[arg(long, default_value_t = 256, value_parser = whole::<u32>(2..=65536))]
    width: u32,
    #[arg(long, default_value_t = 8, value_parser = whole::<u32>(1..=1024))]
    heads: u32,
    #[arg(long, default_value_t = 4, value_parser = whole::<u32>(1..=1024))]
    kv_heads: u32,
    #[arg(long, default_value_t = 688, value_parser = whole::<u32>(1..=1_048_576))]
    ffn: u32,
    #[arg(long, default_value_t = 512, value_parser = whole::<u32>(2..=1_048_576))]
    vocab: u32,
    /// Tokens per sequence.
    #[arg(long, default_value_t = 256, value_parser = whole::<u32>(2..=65536))]
    seq: u32,
    /// Sequences per batch: 8, or the preset's number.
    #[arg(long, value_parser = whole::<u32>(1..=65536))]
    batch: Option<u32>,
    /// Threads; by default as many as there are cores.
    #[arg(long, value_parser = whole::<u16>(1..=1024))]
    threads: Option<u16>,
    /// How gradients become steps. With muon, steps with AdamW take turns, and the ratio is shown.
    #[arg(long, value_enum, default_value_t = By::Adamw)]
    optimiser: By,
    /// Seconds of training; evaluation takes half as long.
    #[arg(long, default_value_t = 5.0, value_parser = real(0.0..=3600.0))]
    seconds: f64,
}

/// `inner.optimiser`.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum By {
    Adamw,
    Muon,
}

impl Train {
    pub(crate) fn run(self) -> Result<End> {
        let (model, mut inner) = self.shape()?;
        inner.optimiser = match self.optimiser {
            By::Adamw => Optimiser::Adamw,
            By::Muon => Optimiser::Muon,
        };
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let threads = self.threads.map_or(cores, usize::from);
        let report = measure(&Options { model, inner, threads, seconds: self.seconds })?;
        if is_json() {
            say!("{}", serde_json::to_string(&report)?);
        } else {
            print(&report);
        }
        Ok(End::Done)
    }

    fn shape(&self) -> Result<(ModelSpec, InnerSpec)> {
        let name = self.preset.as_deref().unwrap_or("micro");
        let presets::Preset { model, mut inner, .. } = presets::preset(name)
            .ok_or_eyre(format!("there is no preset {name:?}; there are {}", presets::names().join(", ")))?;
        if self.preset.is_some() {
            inner.batch_sequences = self.batch.unwrap_or(inner.batch_sequences);
            inner.micro_batch_sequences = inner.micro_batch_sequences.min(inner.batch_sequences);
            return Ok((model, inner));
        }
        ensure!(
            self.width.is_multiple_of(2 * self.heads) && self.heads.is_multiple_of(self.kv_heads),
            "the width must be a multiple of twice the heads, and the heads one of the key-value heads"
        );
        let model = ModelSpec {
            layers: self.layers,
            hidden_size: self.width,
            heads: self.heads,
            kv_heads: self.kv_heads,
            ffn_size: self.ffn,
            vocab_size: self.vocab,
            seq_len: self.seq,
            ..model
        };
        inner.batch_sequences = self.batch.unwrap_or(8);
        inner.micro_batch_sequences = inner.batch_sequences;
        Ok((model, inner))
    }
}

fn print(report: &Report) {
    let Report { threads, parameters, train_tokens_per_s, eval_tokens_per_s, achieved_gflops, peak_gflops, .. } =
        report;
    say!("{parameters} parameters, {threads} threads");
    say!("train    {train_tokens_per_s:>9.0} tokens/s, {achieved_gflops:.0} of {peak_gflops:.0} GFLOP/s");
    if let Some(ratio) = report.step_over_adamw {
        say!("step     {ratio:>9.2} times as long as with AdamW");
    }
    say!("evaluate {eval_tokens_per_s:>9.0} tokens/s");
    say!("memory   {:>9} MiB at most", report.peak_memory_bytes >> 20);
    let shares = &report.breakdown;
    let parts = [
        ("products", shares.products),
        ("attention", shares.attention),
        ("elementwise", shares.elementwise),
        ("optimiser", shares.optimiser),
        ("other", shares.other),
    ];
    for (name, share) in parts {
        say!("{name:<12} {:>5.1} %", 100.0 * share);
    }
}

//! Miners in miniature: each starts from the same θ and has its own data and optimiser; Δ comes after H inner steps.
//! There is no protocol around them.

use std::ops::ControlFlow;

use rayon::prelude::*;
use templar_data::grammar::Grammar;
use templar_model::presets::Preset;
use templar_protocol::hash::{Hash32, Hasher, Stream};
use templar_protocol::layout::Layout;
use templar_train::{CpuTrainer, Moments, TokenBatch, TrainError, TrainJob, Trainer};

/// The text that all peers train on, as bytes; the last tenth is held out.
#[derive(Debug, Clone)]
pub struct Text {
    train: Vec<u32>,
    held_out: Vec<u32>,
    hash: Hash32,
}

/// A shorter text is nothing to learn from.
pub const TEXT_BYTES_MIN: usize = 10_000;

impl Text {
    /// Any text.
    ///
    /// # Panics
    /// If the text is shorter than [`TEXT_BYTES_MIN`].
    pub fn new(text: &str) -> Self {
        let tokens: Vec<u32> = text.bytes().map(u32::from).collect();
        assert!(tokens.len() >= TEXT_BYTES_MIN, "a text of {} bytes is too short to learn from", tokens.len());
        let (train, held_out) = tokens.split_at(tokens.len() / 10 * 9);
        Self { train: train.to_vec(), held_out: held_out.to_vec(), hash: Hash32::of(text.as_bytes()) }
    }

    /// BLAKE3 of the whole text.
    pub fn hash(&self) -> Hash32 {
        self.hash
    }

    /// The built-in corpus.
    pub fn built_in(bytes: u64) -> Self {
        Self::new(&Grammar::new(1).documents(1, bytes).collect::<String>())
    }
}

/// Miners that train one model.
pub struct Peers {
    preset: Preset,
    text: Text,
    trainers: Vec<Box<dyn Trainer>>,
    streams: Vec<Stream>,
    windows_done: u64,
}

impl std::fmt::Debug for Peers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Peers")
            .field("count", &self.trainers.len())
            .field("windows_done", &self.windows_done)
            .finish_non_exhaustive()
    }
}

impl Peers {
    pub fn new(preset: &Preset, text: &Text, count: usize, seed: u64) -> Self {
        let trainers = (0..count).map(|_| Box::new(CpuTrainer::new(&preset.model, &preset.inner)) as Box<dyn Trainer>);
        let stream = |peer: usize| {
            let mut hasher = Hasher::new("templar bench data of a peer");
            hasher.update_value(&(seed, peer as u64)).clone().into_stream()
        };
        Self {
            preset: preset.clone(),
            text: text.clone(),
            trainers: trainers.collect(),
            streams: (0..count).map(stream).collect(),
            windows_done: 0,
        }
    }

    pub fn layout(&self) -> Layout {
        Layout::llama(&self.preset.model)
    }

    /// θ₀ of this seed.
    pub fn theta0(&self, seed: u64) -> Vec<f32> {
        self.layout().theta0(&self.preset.model, seed)
    }

    /// One window: each peer's Δ after the preset's inner steps from `theta`. Moments are forgotten and rates fall as in a
    /// run without null windows.
    pub fn window(&mut self, theta: &[f32]) -> Result<Vec<Vec<f32>>, TrainError> {
        let (inner, seq_len) = (&self.preset.inner, self.preset.model.seq_len as usize);
        let (text, window) = (&self.text, self.windows_done);
        self.windows_done += 1;
        let (first_step, moments) = (inner.first_step(window, window), Moments::before(inner, window));
        let work = |(trainer, stream): (&mut Box<dyn Trainer>, &mut Stream)| {
            let batches = (0..inner.steps_of(window))
                .map(|_| draw(&text.train, stream, inner.batch_sequences as usize, seq_len))
                .collect::<Vec<_>>();
            let job = TrainJob { theta, batches: &batches, first_step, moments };
            Ok(trainer.train(&job, &mut |_| ControlFlow::Continue(()))?.delta)
        };
        self.trainers.par_iter_mut().zip(&mut self.streams).map(work).collect()
    }

    /// One window of data-parallel training: the first peer's optimiser steps along the mean gradient of the batches that
    /// [`Peers::window`] would have dealt to all of them. Returns the new θ.
    pub fn window_together(&mut self, theta: &[f32]) -> Result<Vec<f32>, TrainError> {
        let (inner, seq_len) = (&self.preset.inner, self.preset.model.seq_len as usize);
        let sequences = inner.batch_sequences as usize;
        let (window, steps) = (self.windows_done, inner.steps_of(self.windows_done));
        self.windows_done += 1;
        let mut dealt = |stream: &mut Stream| -> Vec<TokenBatch> {
            (0..steps).map(|_| draw(&self.text.train, stream, sequences, seq_len)).collect()
        };
        let dealt: Vec<Vec<TokenBatch>> = self.streams.iter_mut().map(&mut dealt).collect();
        let batches: Vec<TokenBatch> = (0..steps as usize)
            .map(|step| {
                let tokens = dealt.iter().flat_map(|batches| batches[step].tokens.iter().copied()).collect();
                TokenBatch::new(sequences * dealt.len(), seq_len, tokens).expect("a rectangle by construction")
            })
            .collect();
        let first_step = inner.first_step(window, window);
        let job = TrainJob { theta, batches: &batches, first_step, moments: Moments::Carried };
        let delta = self.trainers[0].train(&job, &mut |_| ControlFlow::Continue(()))?.delta;
        Ok(theta.iter().zip(delta).map(|(theta, delta)| theta - delta).collect())
    }

    /// H before an anneal.
    pub fn steps_per_window(&self) -> u64 {
        self.preset.inner.steps.into()
    }

    /// Mean loss on held-out text in nats per token, over `sequences` sequences that are the same in every call.
    pub fn held_out_loss(&mut self, theta: &[f32], sequences: usize) -> Result<f64, TrainError> {
        let mut stream = Hasher::new("templar bench held-out text").into_stream();
        let batch = draw(&self.text.held_out, &mut stream, sequences, self.preset.model.seq_len as usize);
        let losses = self.trainers[0].evaluate(theta, &batch)?;
        Ok(losses.iter().sum::<f64>() / losses.len() as f64)
    }
}

/// Random windows of a text.
fn draw(tokens: &[u32], stream: &mut Stream, sequences: usize, seq_len: usize) -> TokenBatch {
    let starts = tokens.len() - seq_len;
    let tokens = (0..sequences).flat_map(|_| {
        let start = stream.below(starts as u64) as usize;
        tokens[start..start + seq_len].iter().copied()
    });
    TokenBatch::new(sequences, seq_len, tokens.collect()).expect("a rectangle by construction")
}

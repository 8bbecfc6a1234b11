//! One run: sixteen peers in miniature, one way to train, one seed.

use std::sync::Arc;
use std::time::Instant;

use templar_codec::{Codec, outer_step};
use templar_model::presets::Preset;
use templar_protocol::layout::Layout;
use templar_protocol::run::{CodecSpec, OuterSpec};

use crate::peers::{Peers, Text};
use crate::quality::RunError;
use crate::strategies::arm::{Arm, Denser, Exchange, Outer, Sparse};
use crate::strategies::done::Figures;

/// Sequences of an evaluation on the way, and of the one at the end.
const ON_THE_WAY: usize = 128;
const AT_THE_END: usize = 1024;
/// Evaluations of a run.
const EVALUATIONS: u64 = 16;
/// The share of a run over which θ is averaged at its end.
const AVERAGED_SHARE: f64 = 0.1;
/// Largest magnitude that is sent, as in new runs.
const MAX_ABS: f64 = 1.0;

/// What all runs have in common.
#[derive(Debug, Clone)]
pub struct Settings {
    pub preset: Preset,
    pub peers: usize,
    /// Inner steps of every run, whatever its H; the learning rate's cosine ends with them.
    pub steps: u64,
    pub seeds: Vec<u64>,
}

impl Settings {
    /// A model of 134,464 parameters and sixteen peers, 200 windows of eight steps: 25 % of the coordinates move.
    pub fn standard() -> Self {
        let mut preset = crate::quality::pico();
        (preset.inner.batch_sequences, preset.inner.micro_batch_sequences) = (2, 2);
        Self { preset, peers: 16, steps: 1600, seeds: vec![1, 2, 3] }
    }

    /// A few seconds in all, which says nothing about any method.
    pub fn short() -> Self {
        let mut settings = Self { peers: 2, steps: 32, seeds: vec![1, 2], ..Self::standard() };
        (settings.preset.model.layers, settings.preset.model.hidden_size) = (1, 16);
        settings.preset.model.ffn_size = 32;
        settings
    }

    /// One run. Its result depends on arm, text and seed alone.
    pub fn run(&self, arm: &Arm, text: &Text, seed: u64) -> Result<Figures, RunError> {
        let mut preset = self.preset.clone();
        preset.inner = arm.inner_spec(&preset.inner);
        let warmup = self.steps / 40;
        (preset.inner.warmup_steps, preset.inner.decay_steps) = (warmup, (self.steps - warmup).max(1));
        let start = Instant::now();
        let mut run = Run::new(&preset, arm, text, self.peers, seed);
        let windows = self.steps / u64::from(arm.inner.steps);
        let averaged_windows = (windows as f64 * AVERAGED_SHARE).ceil() as u64;
        let mut curve = Vec::new();
        let (mut averaged, mut of) = (vec![0.0_f64; run.theta.len()], 0.0);
        for window in 0..windows {
            run.window(window)?;
            if windows - window <= averaged_windows {
                averaged.iter_mut().zip(&run.theta).for_each(|(sum, &theta)| *sum += f64::from(theta));
                of += 1.0;
            }
            if (window + 1) * EVALUATIONS / windows > window * EVALUATIONS / windows {
                let steps = (window + 1) * u64::from(arm.inner.steps);
                curve.push((steps, run.peers.held_out_loss(&run.theta, ON_THE_WAY)?));
            }
        }
        let averaged: Vec<f32> = averaged.iter().map(|sum| (sum / of) as f32).collect();
        Ok(Figures {
            loss: run.peers.held_out_loss(&run.theta, AT_THE_END)?,
            averaged_loss: run.peers.held_out_loss(&averaged, AT_THE_END)?,
            curve,
            bytes_per_step: run.sent_bytes as f64 / (windows * u64::from(arm.inner.steps)) as f64,
            wall_s: start.elapsed().as_secs_f64(),
        })
    }
}

/// A run under way.
struct Run {
    peers: Peers,
    layout: Layout,
    exchange: Exchange,
    theta: Vec<f32>,
    /// Outer momentum, where the arm has it.
    momentum: Vec<f32>,
    /// Error feedback of every peer, where the arm has it.
    feedback: Vec<Vec<f32>>,
    /// What one peer has sent.
    sent_bytes: u64,
}

impl Run {
    fn new(preset: &Preset, arm: &Arm, text: &Text, count: usize, seed: u64) -> Self {
        let peers = Peers::new(preset, text, count, seed);
        let (layout, theta) = (peers.layout(), peers.theta0(seed));
        let zeros = || vec![0.0; layout.len()];
        let (momentum, feedback) = match arm.exchange {
            Exchange::EveryStep | Exchange::Dense(Outer::Plain { .. }) => (vec![], vec![]),
            Exchange::Dense(Outer::Nesterov { .. }) => (zeros(), vec![]),
            Exchange::Sparse(_) => (vec![], (0..count).map(|_| zeros()).collect()),
        };
        Self { peers, layout, exchange: arm.exchange, theta, momentum, feedback, sent_bytes: 0 }
    }

    fn window(&mut self, window: u64) -> Result<(), RunError> {
        match self.exchange {
            Exchange::EveryStep => {
                self.theta = self.peers.window_together(&self.theta)?;
                self.sent_bytes += 4 * self.layout.len() as u64 * self.peers.steps_per_window();
            }
            Exchange::Dense(outer) => {
                let deltas = self.peers.window(&self.theta)?;
                self.sent_bytes += 4 * self.layout.len() as u64;
                self.dense_step(outer, &deltas);
            }
            Exchange::Sparse(sparse) => self.sparse_window(&sparse, window)?,
        }
        Ok(())
    }

    fn dense_step(&mut self, outer: Outer, deltas: &[Vec<f32>]) {
        let mean = |at: usize| deltas.iter().map(|delta| f64::from(delta[at])).sum::<f64>() / deltas.len() as f64;
        for (at, theta) in self.theta.iter_mut().enumerate() {
            *theta -= match outer {
                Outer::Plain { rate } => (rate * mean(at)) as f32,
                Outer::Nesterov { rate, momentum } => {
                    let m = momentum * f64::from(self.momentum[at]) + mean(at);
                    self.momentum[at] = m as f32;
                    (rate * (mean(at) + momentum * m)) as f32
                }
            };
        }
    }

    fn sparse_window(&mut self, sparse: &Sparse, window: u64) -> Result<(), RunError> {
        let Sparse { kind, transform, error_decay, mean_over, min_senders, rate, .. } = *sparse;
        let is_denser = |denser: &Denser| (window + 1).is_multiple_of(denser.every_windows);
        let k = sparse.denser.filter(is_denser).map_or(sparse.k, |denser| denser.k);
        let spec = CodecSpec { kind, transform, k, error_decay, max_abs: MAX_ABS, ..crate::codec::spec(kind) };
        let codec = Codec::new(Arc::new(self.layout.clone()), &spec);
        let deltas = self.peers.window(&self.theta)?;
        let mut contributions = Vec::with_capacity(deltas.len());
        for (feedback, delta) in self.feedback.iter_mut().zip(&deltas) {
            let payload = codec.encode(feedback, delta)?;
            if contributions.is_empty() {
                self.sent_bytes += payload.len() as u64;
            }
            contributions.push(codec.decode(payload).expect("own payload"));
        }
        let outer = OuterSpec { rate, mean_over, min_senders };
        outer_step(&self.layout, &mut self.theta, &contributions.iter().collect::<Vec<_>>(), &outer);
        Ok(())
    }
}

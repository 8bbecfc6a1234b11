//! The built-in engine behind the seam: losses and gradients by [`Engine`], AdamW on flat parameters.

use std::{ops::ControlFlow, time::Instant};

use templar_engine::Engine;
use templar_protocol::{
    layout::{Layout, ModelSpec},
    run::InnerSpec,
};

use crate::{
    adamw::{AdamW, global_norm},
    batch::TokenBatch,
    schedule::learning_rate,
    trainer::{StepStats, TrainError, TrainJob, TrainOutcome, Trainer, check_inputs, finite_losses},
};

/// Trains on this machine's processor.
#[derive(Debug)]
pub struct CpuTrainer {
    inner: InnerSpec,
    engine: Engine,
    optimiser: AdamW,
    /// Of the step that is being made, kept for the next one.
    gradient: Vec<f32>,
    optimiser_s: f64,
}

impl CpuTrainer {
    /// An engine with fresh moments.
    pub fn new(model: &ModelSpec, inner: &InnerSpec) -> Self {
        let optimiser = AdamW::new(&Layout::llama(model), inner);
        Self { inner: inner.clone(), engine: Engine::new(model), optimiser, gradient: vec![], optimiser_s: 0.0 }
    }

    /// The engine, for measurements.
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// Seconds that went into norms of gradients and updates so far.
    pub fn optimiser_s(&self) -> f64 {
        self.optimiser_s
    }

    /// One update of `theta`.
    fn step(&mut self, theta: &mut [f32], batch: &TokenBatch, step: u64) -> Result<StepStats, TrainError> {
        let losses = self.batch_gradient(theta, batch);
        let loss = losses.iter().sum::<f64>() / losses.len() as f64;
        if !loss.is_finite() {
            return Err(TrainError::NonFiniteStep { step, what: "loss" });
        }
        let start = Instant::now();
        let grad_norm = global_norm(&self.gradient);
        if !grad_norm.is_finite() {
            return Err(TrainError::NonFiniteStep { step, what: "gradient" });
        }
        let clip = if grad_norm > self.inner.clip_norm { self.inner.clip_norm / grad_norm } else { 1.0 };
        let lr = learning_rate(&self.inner, step);
        self.optimiser.step(theta, &self.gradient, clip, lr);
        self.optimiser_s += start.elapsed().as_secs_f64();
        Ok(StepStats { step, loss, grad_norm, lr, tokens: batch.tokens.len() as u64 })
    }

    /// Every sequence's loss; the gradient of their mean is accumulated over micro-batches in their order.
    fn batch_gradient(&mut self, theta: &[f32], batch: &TokenBatch) -> Vec<f64> {
        self.gradient.resize(theta.len(), 0.0);
        let mut losses = Vec::with_capacity(batch.sequences);
        for (tokens, sequences) in micro_batches(&self.inner, batch) {
            let share = sequences as f32 / batch.sequences as f32;
            let accumulate = !losses.is_empty();
            losses.extend(self.engine.gradient(theta, tokens, sequences, share, &mut self.gradient, accumulate));
        }
        losses
    }
}

/// Tokens and sequences of each part of a batch that goes through the model at once.
fn micro_batches<'a>(inner: &InnerSpec, batch: &'a TokenBatch) -> impl Iterator<Item = (&'a [u32], usize)> {
    let parts = batch.tokens.chunks(inner.micro_batch_sequences.max(1) as usize * batch.seq_len);
    parts.map(|tokens| (tokens, tokens.len() / batch.seq_len))
}

impl Trainer for CpuTrainer {
    fn train(
        &mut self,
        job: &TrainJob<'_>,
        on_step: &mut dyn FnMut(&StepStats) -> ControlFlow<()>,
    ) -> Result<TrainOutcome, TrainError> {
        check_inputs(self.engine.spec(), self.engine.parameters(), job.theta, job.batches)?;
        let mut theta = job.theta.to_vec();
        let mut steps = Vec::with_capacity(job.batches.len());
        for (step, batch) in (job.first_step..).zip(job.batches) {
            let stats = self.step(&mut theta, batch, step)?;
            steps.push(stats);
            if on_step(&stats).is_break() {
                break;
            }
        }
        TrainOutcome::new(job.theta, theta, steps)
    }

    fn evaluate(&mut self, theta: &[f32], batch: &TokenBatch) -> Result<Vec<f64>, TrainError> {
        check_inputs(self.engine.spec(), self.engine.parameters(), theta, std::slice::from_ref(batch))?;
        let mut losses = Vec::with_capacity(batch.sequences);
        for (tokens, sequences) in micro_batches(&self.inner, batch) {
            losses.extend(self.engine.losses(theta, tokens, sequences));
        }
        finite_losses(losses)
    }

    fn export_state(&self) -> Vec<u8> {
        self.optimiser.export()
    }

    fn import_state(&mut self, bytes: &[u8]) -> Result<(), TrainError> {
        self.optimiser.import(bytes)
    }
}

//! The built-in engine behind the seam: losses and gradients by [`Engine`], updates by [`Optimiser`].

use std::ops::ControlFlow;
use std::time::Instant;

use templar_cpu::{Engine, product_flops_per_s};
use templar_protocol::layout::{Layout, ModelSpec};
use templar_protocol::run::InnerSpec;
use templar_record::engine::EngineStats;

use crate::adamw::global_norm;
use crate::batch::TokenBatch;
use crate::optimiser::Optimiser;
use crate::schedule::Rates;
use crate::speed::{flops_per_token, peak_memory_bytes};
use crate::trainer::{Moments, StepStats, TrainError, TrainJob, TrainOutcome, Trainer, check_inputs, finite_losses};

/// How long the machine's matrix products are measured, once per trainer.
const PRODUCTS_S: f64 = 0.05;

/// Trains on this machine's processor.
#[derive(Debug)]
pub struct CpuTrainer {
    inner: InnerSpec,
    engine: Engine,
    optimiser: Optimiser,
    /// The gradient of the current step; its memory is kept for the next one.
    gradient: Vec<f32>,
    optimiser_s: f64,
    /// Speed of plain matrix products, measured after the first job.
    product_flops_per_s: Option<f64>,
    stats: Option<EngineStats>,
}

impl CpuTrainer {
    /// An engine with fresh moments.
    pub fn new(model: &ModelSpec, inner: &InnerSpec) -> Self {
        let optimiser = Optimiser::new(&Layout::llama(model), inner);
        Self {
            inner: inner.clone(),
            engine: Engine::new(model).with_z_loss(inner.z_loss),
            optimiser,
            gradient: vec![],
            optimiser_s: 0.0,
            product_flops_per_s: None,
            stats: None,
        }
    }

    /// The engine, for measurements.
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// Seconds spent on norms of gradients and on updates so far.
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
        let rates = Rates::new(&self.inner, step, self.optimiser.steps());
        self.optimiser.step(theta, &self.gradient, clip, rates);
        self.optimiser_s += start.elapsed().as_secs_f64();
        Ok(StepStats { step, loss, grad_norm, lr: rates.lr, tokens: batch.tokens.len() as u64 })
    }

    /// Records how fast the steps with these batches were. No data sheet states a CPU's peak.
    fn measure(&mut self, batches: &[TokenBatch], seconds: f64) {
        if batches.is_empty() {
            return;
        }
        let (seconds, threads) = (seconds.max(1e-9), rayon::current_num_threads());
        let flops = |batch: &TokenBatch| batch.tokens.len() as f64 * flops_per_token(self.engine.spec(), batch.seq_len);
        self.stats = Some(EngineStats {
            device: format!("cpu ({threads} thread{})", if threads == 1 { "" } else { "s" }),
            tokens_per_s: batches.iter().map(|batch| batch.tokens.len() as f64).sum::<f64>() / seconds,
            model_flops_per_s: batches.iter().map(flops).sum::<f64>() / seconds,
            matmul_flops_per_s: *self.product_flops_per_s.get_or_insert_with(|| product_flops_per_s(PRODUCTS_S)),
            peak_flops_per_s: None,
            peak_memory_bytes: peak_memory_bytes(),
        });
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
        self.stats = None;
        check_inputs(self.engine.spec(), self.engine.parameters(), job.theta, job.batches)?;
        if job.moments == Moments::Fresh {
            self.optimiser.reset();
        }
        let mut theta = job.theta.to_vec();
        let mut steps = Vec::with_capacity(job.batches.len());
        let mut seconds = 0.0;
        for (step, batch) in (job.first_step..).zip(job.batches) {
            let start = Instant::now();
            let stats = self.step(&mut theta, batch, step)?;
            seconds += start.elapsed().as_secs_f64();
            steps.push(stats);
            if on_step(&stats).is_break() {
                break;
            }
        }
        self.measure(&job.batches[..steps.len()], seconds);
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

    fn stats(&self) -> Option<EngineStats> {
        self.stats.clone()
    }
}

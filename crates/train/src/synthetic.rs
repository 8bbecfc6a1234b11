//! A problem that behaves like training and costs microseconds, for simulations of the protocol. It is not a language
//! model.
//!
//! Every sequence s has a target: a point shared by all data, plus a deviation that its tokens alone decide. With n
//! parameters, loss(s, θ) = Σᵢ (θᵢ − targetᵢ(s))² / n. A miner that follows its true gradient lowers the loss of its
//! own sequences most and that of all others too; noise, or the gradient of other data, does not. Scoring needs no
//! more.

use std::ops::ControlFlow;

use templar_protocol::hash::{Hasher, Stream};
use templar_protocol::layout::{Layout, ModelSpec};
use templar_protocol::run::InnerSpec;

use crate::adamw::global_norm;
use crate::batch::TokenBatch;
use crate::schedule::learning_rate;
use crate::trainer::{StepStats, TrainError, TrainJob, TrainOutcome, Trainer, check_inputs, finite_losses};

/// Distance of the shared point from 0, in every coordinate.
const SHARED: f32 = 0.5;
/// Distance of a sequence's target from the shared point, in every coordinate: the root of the lowest loss on unseen data.
const OWN: f32 = 0.25;
/// Factor on the learning rate of a language model, so that a window of ten steps has an effect.
const RATE: f64 = 16.0;

/// Gradient descent with momentum (β₁) on the synthetic loss.
#[derive(Debug)]
pub struct SyntheticTrainer {
    model: ModelSpec,
    inner: InnerSpec,
    /// The point shared by all data.
    shared: Vec<f32>,
    /// Moving average of θ − target.
    momentum: Vec<f32>,
}

impl SyntheticTrainer {
    /// As many parameters as the model has; its vocabulary and sequence length bound the batches.
    pub fn new(model: &ModelSpec, inner: &InnerSpec) -> Self {
        let parameters = Layout::llama(model).len();
        let mut shared = vec![0.0; parameters];
        add_signs(&mut shared, SHARED, &mut Hasher::new("templar synthetic shared target").into_stream());
        Self { model: model.clone(), inner: inner.clone(), shared, momentum: vec![0.0; parameters] }
    }

    fn target(&self, sequence: &[u32]) -> Vec<f32> {
        let mut hasher = Hasher::new("templar synthetic own target");
        let mut target = self.shared.clone();
        add_signs(&mut target, OWN, &mut hasher.update_value(sequence).clone().into_stream());
        target
    }

    /// Mean loss of the batch at `theta`, and the mean of θ − target: the gradient but for the factor 2 / n.
    fn pull(&self, theta: &[f32], batch: &TokenBatch) -> (f64, Vec<f32>) {
        let (mut loss, mut pull) = (0.0, vec![0.0; theta.len()]);
        let share = 1.0 / batch.sequences as f32;
        for sequence in batch.tokens.chunks_exact(batch.seq_len) {
            let target = self.target(sequence);
            loss += f64::from(share) * loss_at(theta, &target);
            for ((pull, theta), target) in pull.iter_mut().zip(theta).zip(&target) {
                *pull += share * (theta - target);
            }
        }
        (loss, pull)
    }

    fn step(&mut self, theta: &mut [f32], batch: &TokenBatch, step: u64) -> Result<StepStats, TrainError> {
        let (loss, pull) = self.pull(theta, batch);
        let grad_norm = global_norm(&pull);
        if !loss.is_finite() || !grad_norm.is_finite() {
            return Err(TrainError::NonFiniteStep { step, what: "loss" });
        }
        let lr = learning_rate(&self.inner, step);
        let (rate, keep) = ((RATE * lr).min(1.0) as f32, self.inner.beta1 as f32);
        for ((theta, momentum), pull) in theta.iter_mut().zip(&mut self.momentum).zip(&pull) {
            *momentum = keep * *momentum + (1.0 - keep) * pull;
            *theta -= rate * *momentum;
        }
        Ok(StepStats { step, loss, grad_norm, lr, tokens: batch.tokens.len() as u64 })
    }
}

impl Trainer for SyntheticTrainer {
    fn train(
        &mut self,
        job: &TrainJob<'_>,
        on_step: &mut dyn FnMut(&StepStats) -> ControlFlow<()>,
    ) -> Result<TrainOutcome, TrainError> {
        check_inputs(&self.model, self.shared.len(), job.theta, job.batches)?;
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
        check_inputs(&self.model, self.shared.len(), theta, std::slice::from_ref(batch))?;
        let sequences = batch.tokens.chunks_exact(batch.seq_len);
        finite_losses(sequences.map(|sequence| loss_at(theta, &self.target(sequence))).collect())
    }

    fn export_state(&self) -> Vec<u8> {
        self.momentum.iter().flat_map(|value| value.to_le_bytes()).collect()
    }

    fn import_state(&mut self, bytes: &[u8]) -> Result<(), TrainError> {
        if bytes.len() != 4 * self.momentum.len() {
            let why = format!("it has {} bytes, but this problem's takes {}", bytes.len(), 4 * self.momentum.len());
            return Err(TrainError::State { why });
        }
        let momentum: Vec<f32> = bytes.as_chunks().0.iter().map(|&value| f32::from_le_bytes(value)).collect();
        if !momentum.iter().all(|value| value.is_finite()) {
            return Err(TrainError::State { why: "it has moments that are not finite".to_owned() });
        }
        self.momentum = momentum;
        Ok(())
    }
}

/// Adds or subtracts `size` by one bit of the stream for each value.
fn add_signs(values: &mut [f32], size: f32, stream: &mut Stream) {
    for block in values.chunks_mut(64) {
        let bits = stream.next_u64();
        for (at, value) in block.iter_mut().enumerate() {
            *value += if bits >> at & 1 == 1 { size } else { -size };
        }
    }
}

fn loss_at(theta: &[f32], target: &[f32]) -> f64 {
    let squares = theta.iter().zip(target).map(|(theta, target)| f64::from(theta - target).powi(2));
    squares.sum::<f64>() / theta.len() as f64
}

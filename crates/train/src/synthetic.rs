//! A surrogate for training: a convex problem that costs microseconds, for simulations of the protocol. It is not a
//! language model, and knows nothing of what tokens mean.
//!
//! With n parameters, loss(s, θ) = Σᵢ cᵢ (θᵢ − targetᵢ(s))² / n. The target of a sequence s is a point shared by all data, plus
//! a deviation that its topic decides (one of sixteen, by its tokens), plus one that its tokens alone decide. What a step
//! sees is moved by noise besides, another for each batch and step. So rules have something to measure:
//!
//! - **own and unseen**: whoever follows its true gradient lowers the loss of its own sequences most and that of all others
//!   too; noise, or another's gradient, does not. Data of one topic helps this topic more than the rest.
//! - **diminishing returns**: the curvatures c span a factor of eight, so steep directions are learnt first and flat ones late.
//! - **skill**: there is no dial for it. Who takes fewer steps or repeats fewer sequences learns less and hears more noise.
//!
//! What it cannot show: tokens that no text uses have no rows here that stay untouched, tensors do not depend on each other,
//! learning never diverges into a worse basin, and its loss has no unit. Whether an attack pays in bits per byte, only a
//! language model says.

use std::ops::ControlFlow;

use templar_protocol::hash::{Hasher, Stream};
use templar_protocol::layout::{Layout, ModelSpec};
use templar_protocol::run::InnerSpec;

use crate::adamw::global_norm;
use crate::batch::TokenBatch;
use crate::schedule::Rates;
use crate::trainer::{Moments, StepStats, TrainError, TrainJob, TrainOutcome, Trainer, check_inputs, finite_losses};

/// Distance of the shared point from 0, in every coordinate.
const SHARED: f32 = 0.5;
/// Distance that a sequence's topic adds, in every coordinate.
const TOPIC: f32 = 0.1;
/// Distance that a sequence's tokens add. Squared, both together are the lowest loss on unseen data.
const OWN: f32 = 0.25;
/// Distance by which the noise of a step moves what it sees, in every coordinate.
const NOISE: f32 = 0.25;
const TOPICS: u64 = 16;
/// Curvatures of neighbouring coordinates, again and again; their mean is 1.
const CURVATURES: [f32; 4] = [32.0 / 15.0, 16.0 / 15.0, 8.0 / 15.0, 4.0 / 15.0];
/// Factor on the learning rate of a language model, so that a window of ten steps has an effect.
const RATE: f64 = 16.0;

/// Gradient descent with momentum (β₁) on the surrogate's loss.
#[derive(Debug)]
pub struct SyntheticTrainer {
    model: ModelSpec,
    inner: InnerSpec,
    /// The point shared by all data.
    shared: Vec<f32>,
    /// The directions of each topic's deviation, a bit per parameter.
    topics: Vec<Signs>,
    /// Moving average of the gradient.
    momentum: Vec<f32>,
    /// Steps that it has seen.
    steps_seen: u64,
}

/// A direction in every coordinate, a bit each.
#[derive(Debug)]
struct Signs(Vec<u64>);

impl Signs {
    fn draw(parameters: usize, stream: &mut Stream) -> Self {
        Self((0..parameters.div_ceil(64)).map(|_| stream.next_u64()).collect())
    }
}

/// `size` or −`size`, by a bit.
fn signed(bits: u64, at: usize, size: f32) -> f32 {
    if bits >> at & 1 == 1 { size } else { -size }
}

impl SyntheticTrainer {
    /// As many parameters as the model has; its vocabulary and sequence length bound the batches.
    pub fn new(model: &ModelSpec, inner: &InnerSpec) -> Self {
        let parameters = Layout::llama(model).len();
        let mut stream = Hasher::new("templar synthetic shared target").into_stream();
        let shared = Signs::draw(parameters, &mut stream);
        let shared = (0..parameters).map(|at| signed(shared.0[at / 64], at % 64, SHARED)).collect();
        let mut stream = Hasher::new("templar synthetic topics").into_stream();
        let topics = (0..TOPICS).map(|_| Signs::draw(parameters, &mut stream)).collect();
        Self {
            model: model.clone(),
            inner: inner.clone(),
            shared,
            topics,
            momentum: vec![0.0; parameters],
            steps_seen: 0,
        }
    }

    /// The loss of one sequence at `theta`; `on_pull` gets θ − target for each coordinate.
    fn visit(&self, theta: &[f32], sequence: &[u32], mut on_pull: impl FnMut(usize, f32)) -> f64 {
        let mut stream = Hasher::new("templar synthetic own target").update_value(sequence).clone().into_stream();
        let topic = &self.topics[stream.below(TOPICS) as usize];
        let mut loss = 0.0;
        for (block, (theta, shared)) in theta.chunks(64).zip(self.shared.chunks(64)).enumerate() {
            let (own, topic) = (stream.next_u64(), topic.0[block]);
            for (at, (theta, shared)) in theta.iter().zip(shared).enumerate() {
                let pull = theta - (shared + signed(topic, at, TOPIC) + signed(own, at, OWN));
                loss += f64::from(CURVATURES[at % 4]) * f64::from(pull) * f64::from(pull);
                on_pull(64 * block + at, pull);
            }
        }
        loss / theta.len() as f64
    }

    fn loss_at(&self, theta: &[f32], sequence: &[u32]) -> f64 {
        self.visit(theta, sequence, |_, _| {})
    }

    /// Mean loss of the batch at `theta`, and its gradient but for the factor 2 / n.
    fn gradient(&self, theta: &[f32], batch: &TokenBatch, step: u64) -> (f64, Vec<f32>) {
        let mut noise =
            Hasher::new("templar synthetic noise").update_value(&(&batch.tokens, step)).clone().into_stream();
        let noise = Signs::draw(theta.len(), &mut noise);
        let (mut loss, mut gradient) = (0.0, vec![0.0; theta.len()]);
        let share = 1.0 / batch.sequences as f32;
        for sequence in batch.tokens.chunks_exact(batch.seq_len) {
            loss += f64::from(share) * self.visit(theta, sequence, |at, pull| gradient[at] += share * pull);
        }
        for (at, value) in gradient.iter_mut().enumerate() {
            *value = CURVATURES[at % 4] * (*value + signed(noise.0[at / 64], at % 64, NOISE));
        }
        (loss, gradient)
    }

    fn step(&mut self, theta: &mut [f32], batch: &TokenBatch, step: u64) -> Result<StepStats, TrainError> {
        let (loss, gradient) = self.gradient(theta, batch, step);
        let grad_norm = global_norm(&gradient);
        if !loss.is_finite() || !grad_norm.is_finite() {
            return Err(TrainError::NonFiniteStep { step, what: "loss" });
        }
        let lr = Rates::new(&self.inner, step, self.steps_seen).lr;
        self.steps_seen += 1;
        let (rate, keep) = ((RATE * lr).min(0.5) as f32, self.inner.beta1 as f32);
        for ((theta, momentum), gradient) in theta.iter_mut().zip(&mut self.momentum).zip(&gradient) {
            *momentum = keep * *momentum + (1.0 - keep) * gradient;
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
        if job.moments == Moments::Fresh {
            self.momentum.fill(0.0);
            self.steps_seen = 0;
        }
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
        finite_losses(sequences.map(|sequence| self.loss_at(theta, sequence)).collect())
    }

    fn export_state(&self) -> Vec<u8> {
        let momentum = self.momentum.iter().flat_map(|value| value.to_le_bytes());
        self.steps_seen.to_le_bytes().into_iter().chain(momentum).collect()
    }

    fn import_state(&mut self, bytes: &[u8]) -> Result<(), TrainError> {
        let Some((steps, values)) = bytes.split_first_chunk().filter(|(_, rest)| rest.len() == 4 * self.momentum.len())
        else {
            let why = format!("it has {} bytes, but this problem's takes {}", bytes.len(), 8 + 4 * self.momentum.len());
            return Err(TrainError::State { why });
        };
        let momentum: Vec<f32> = values.as_chunks().0.iter().map(|&value| f32::from_le_bytes(value)).collect();
        if !momentum.iter().all(|value| value.is_finite()) {
            return Err(TrainError::State { why: "it has moments that are not finite".to_owned() });
        }
        (self.momentum, self.steps_seen) = (momentum, u64::from_le_bytes(*steps));
        Ok(())
    }
}

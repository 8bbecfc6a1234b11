//! The built-in engine: the model on Burn, gradients by its automatic differentiation, AdamW on flat parameters.

use std::{ops::ControlFlow, thread};

use templar_model::{Device, Llama, LossGradient};
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

/// Up to this size a model is trained by several micro-batches at once on the CPU: its tensors are too small for threads to
/// help inside one operation, and as many copies of gradients and activations as there are cores still fit into memory.
const PARALLEL_PARAMETERS: usize = 32 << 20;

/// Trains a [`Llama`] on one device.
#[derive(Debug)]
pub struct BurnTrainer {
    model: ModelSpec,
    inner: InnerSpec,
    device: Device,
    parameters: usize,
    optimiser: AdamW,
}

impl BurnTrainer {
    /// An engine with fresh moments.
    pub fn new(model: &ModelSpec, inner: &InnerSpec, device: &Device) -> Self {
        let layout = Layout::llama(model);
        let optimiser = AdamW::new(&layout, inner);
        Self { model: model.clone(), inner: inner.clone(), device: *device, parameters: layout.len(), optimiser }
    }

    /// One update of `theta`.
    fn step(&mut self, theta: &mut [f32], batch: &TokenBatch, step: u64) -> Result<StepStats, TrainError> {
        let LossGradient { losses, gradient } = self.batch_gradient(theta, batch);
        let loss = losses.iter().sum::<f64>() / losses.len() as f64;
        if !loss.is_finite() {
            return Err(TrainError::NonFiniteStep { step, what: "loss" });
        }
        let grad_norm = global_norm(&gradient);
        if !grad_norm.is_finite() {
            return Err(TrainError::NonFiniteStep { step, what: "gradient" });
        }
        let clip = if grad_norm > self.inner.clip_norm { self.inner.clip_norm / grad_norm } else { 1.0 };
        let lr = learning_rate(&self.inner, step);
        self.optimiser.step(theta, &gradient, clip, lr);
        Ok(StepStats { step, loss, grad_norm, lr, tokens: batch.tokens.len() as u64 })
    }

    /// Mean gradient over the whole batch, accumulated over micro-batches in their order, however many run at once.
    fn batch_gradient(&self, theta: &[f32], batch: &TokenBatch) -> LossGradient {
        let mut sum = LossGradient { losses: vec![], gradient: vec![0.0; self.parameters] };
        self.in_micro_batches(
            batch,
            |tokens, sequences| {
                Llama::differentiable(&self.model, theta, &self.device).loss_gradient(tokens, sequences)
            },
            |part| {
                let share = part.losses.len() as f32 / batch.sequences as f32;
                sum.gradient.iter_mut().zip(&part.gradient).for_each(|(sum, part)| *sum += share * part);
                sum.losses.extend(part.losses);
            },
        );
        sum
    }

    /// Runs `work` on each micro-batch (tokens, sequences) and gives the results to `take` in order.
    ///
    /// Own threads rather than a shared pool: the engine locks its graph while it waits for the pool, and a waiting
    /// thread of the pool would take up the next micro-batch in the meantime.
    fn in_micro_batches<T: Send>(
        &self,
        batch: &TokenBatch,
        work: impl Fn(&[u32], usize) -> T + Sync,
        mut take: impl FnMut(T),
    ) {
        let run = |tokens: &[u32]| work(tokens, tokens.len() / batch.seq_len);
        let parts: Vec<&[u32]> =
            batch.tokens.chunks(self.inner.micro_batch_sequences.max(1) as usize * batch.seq_len).collect();
        for group in parts.chunks(self.micro_batches_at_once()) {
            if let [part] = group {
                take(run(part));
                continue;
            }
            thread::scope(|scope| {
                let running: Vec<_> = group.iter().map(|part| scope.spawn(|| run(part))).collect();
                for thread in running {
                    take(thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
                }
            });
        }
    }

    fn micro_batches_at_once(&self) -> usize {
        match self.device {
            Device::Cpu if self.parameters <= PARALLEL_PARAMETERS => rayon::current_num_threads(),
            _ => 1,
        }
    }
}

impl Trainer for BurnTrainer {
    fn train(
        &mut self,
        job: &TrainJob<'_>,
        on_step: &mut dyn FnMut(&StepStats) -> ControlFlow<()>,
    ) -> Result<TrainOutcome, TrainError> {
        check_inputs(&self.model, self.parameters, job.theta, job.batches)?;
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
        check_inputs(&self.model, self.parameters, theta, std::slice::from_ref(batch))?;
        let model = Llama::new(&self.model, theta, &self.device);
        let mut losses = Vec::with_capacity(batch.sequences);
        self.in_micro_batches(batch, |tokens, sequences| model.losses(tokens, sequences), |part| losses.extend(part));
        finite_losses(losses)
    }

    fn export_state(&self) -> Vec<u8> {
        self.optimiser.export()
    }

    fn import_state(&mut self, bytes: &[u8]) -> Result<(), TrainError> {
        self.optimiser.import(bytes)
    }
}

//! Measures the built-in engine's speed: repeated inner steps and evaluations of one batch.

use std::ops::ControlFlow;
use std::slice;
use std::time::Instant;

use serde::Serialize;
use templar_cpu::{Work, product_flops_per_s};
use templar_protocol::layout::{Layout, ModelSpec};
use templar_protocol::run::{InnerSpec, Optimiser};
use templar_train::speed::{flops_per_token, peak_memory_bytes};
use templar_train::{CpuTrainer, Moments, TokenBatch, TrainError, TrainJob, Trainer, conformance};

use crate::timing::median;

/// Share of the run's seconds spent on measuring the machine's matrix products.
const PEAK_SHARE: f64 = 0.2;
const STEPS_MIN: usize = 3;

/// What to measure, and for how long.
#[derive(Debug, Clone)]
pub struct Options {
    pub model: ModelSpec,
    /// Gives the batch and micro-batch sizes; its learning rates do not matter.
    pub inner: InnerSpec,
    pub threads: usize,
    /// For training; evaluation takes half as long. At least three steps are measured, however long they take.
    pub seconds: f64,
}

/// The measurements. Rates are those of the median step.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    pub engine: String,
    pub threads: usize,
    pub parameters: usize,
    pub optimiser: Optimiser,
    /// A step's time with this optimiser as a multiple of one with AdamW, measured alternately in this run.
    pub step_over_adamw: Option<f64>,
    /// Forward, backward, clipping, update.
    pub train_tokens_per_s: f64,
    /// Forward only.
    pub eval_tokens_per_s: f64,
    /// (6·(P − P of the embedding) + 6·L·d·s) · tokens/s of training, for L layers of width d and sequences of s tokens.
    pub achieved_gflops: f64,
    /// Plain matrix products on the same number of threads, in the same run.
    pub peak_gflops: f64,
    /// The process's largest resident memory; 0 if the system does not report it.
    pub peak_memory_bytes: u64,
    /// Shares of training's time, all threads together.
    pub breakdown: Breakdown,
}

#[derive(Debug, Clone, Serialize)]
pub struct Breakdown {
    pub products: f64,
    pub attention: f64,
    pub elementwise: f64,
    pub optimiser: f64,
    /// The rest: waiting threads, and everything that is not measured.
    pub other: f64,
}

/// Measures on its own threads.
///
/// # Errors
/// If the shape makes training diverge.
///
/// # Panics
/// If no threads can be started.
pub fn measure(options: &Options) -> Result<Report, TrainError> {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(options.threads).build().expect("the system has threads");
    pool.install(|| measure_here(options))
}

/// A model in training, and the seconds of its steps.
struct Runner {
    trainer: CpuTrainer,
    theta: Vec<f32>,
    times: Vec<f64>,
}

impl Runner {
    fn new(model: &ModelSpec, inner: &InnerSpec) -> Self {
        let theta = Layout::llama(model).theta0(model, 1);
        Self { trainer: CpuTrainer::new(model, inner), theta, times: vec![] }
    }

    /// One step in a job of its own. Its time includes the job's copy of θ, which a window's steps share in real runs, but
    /// not its Δ.
    fn step(&mut self, batch: &TokenBatch) -> Result<(), TrainError> {
        let first_step = self.times.len() as u64;
        let job =
            TrainJob { theta: &self.theta, batches: slice::from_ref(batch), first_step, moments: Moments::Carried };
        let (step, mut step_s) = (Instant::now(), 0.0);
        let outcome = self.trainer.train(&job, &mut |_| {
            step_s = step.elapsed().as_secs_f64();
            ControlFlow::Continue(())
        })?;
        self.theta.iter_mut().zip(&outcome.delta).for_each(|(theta, delta)| *theta -= delta);
        self.times.push(step_s);
        Ok(())
    }
}

fn measure_here(options: &Options) -> Result<Report, TrainError> {
    let Options { model, inner, .. } = options;
    let layout = Layout::llama(model);
    let sequences = inner.batch_sequences as usize;
    let batch = conformance::batches(model, 1, sequences, "bench").remove(0);
    let mut runner = Runner::new(model, inner);
    let adamw = InnerSpec { optimiser: Optimiser::Adamw, ..inner.clone() };
    let mut other = (inner.optimiser != Optimiser::Adamw).then(|| Runner::new(model, &adamw));
    let busy = |trainer: &CpuTrainer| {
        [Work::Products, Work::Attention, Work::Elementwise].map(|work| trainer.engine().seconds(work))
    };

    let (mut before, mut optimiser_s) = ([0.0; 3], 0.0);
    let start = Instant::now();
    while runner.times.len() <= STEPS_MIN || start.elapsed().as_secs_f64() < options.seconds {
        runner.step(&batch)?;
        if let Some(other) = &mut other {
            other.step(&batch)?;
        }
        if runner.times.len() == 1 {
            (before, optimiser_s) = (busy(&runner.trainer), runner.trainer.optimiser_s());
        }
    }
    let ratio = |other: &Runner| {
        let ratios = runner.times[1..].iter().zip(&other.times[1..]).map(|(own, other)| own / other);
        median(&mut ratios.collect::<Vec<_>>())
    };
    let step_over_adamw = other.as_ref().map(ratio);
    let Runner { mut trainer, theta, mut times } = runner;
    // The first step allocates everything.
    let times = &mut times[1..];
    let wall_s: f64 = times.iter().sum();
    let [products, attention, elementwise] = {
        let after = busy(&trainer);
        std::array::from_fn(|at| (after[at] - before[at]) / wall_s / options.threads as f64)
    };
    let optimiser = (trainer.optimiser_s() - optimiser_s) / wall_s;
    let other = (1.0 - products - attention - elementwise - optimiser).max(0.0);

    let mut eval_times = vec![];
    let start = Instant::now();
    while eval_times.len() < STEPS_MIN || start.elapsed().as_secs_f64() < options.seconds / 2.0 {
        let start = Instant::now();
        trainer.evaluate(&theta, &batch)?;
        eval_times.push(start.elapsed().as_secs_f64());
    }
    let tokens = batch.tokens.len() as f64;
    let train_tokens_per_s = tokens / median(times);
    Ok(Report {
        engine: "built-in".to_owned(),
        threads: options.threads,
        parameters: layout.len(),
        optimiser: inner.optimiser,
        step_over_adamw,
        train_tokens_per_s,
        eval_tokens_per_s: tokens / median(&mut eval_times),
        achieved_gflops: flops_per_token(model, batch.seq_len) * train_tokens_per_s / 1e9,
        peak_gflops: product_flops_per_s(options.seconds * PEAK_SHARE) / 1e9,
        peak_memory_bytes: peak_memory_bytes(),
        breakdown: Breakdown { products, attention, elementwise, optimiser, other },
    })
}

//! The PyTorch engine, or any other that speaks `docs/spec/worker.md`: a process that this trainer starts and supervises.
//!
//! Control messages are lines of JSON; tensors go through files in memory. Nothing that a worker says is trusted. Any
//! misbehaviour is a [`WorkerError`]: the worker is ended, and the next job starts another one with the moments of the
//! last finished job. So a worker that dies, hangs or lies costs the current job and nothing else.

mod error;
mod exchange;
mod folder;
mod message;
mod process;

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::time::Duration;

use templar_protocol::layout::{Layout, ModelSpec};
use templar_protocol::run::InnerSpec;
use templar_record::engine::EngineStats;

pub use error::WorkerError;
pub use message::{LINE_BYTES_MAX, PROTOCOL};

use crate::batch::TokenBatch;
use crate::schedule::Rates;
use crate::state::{self, StateShape};
use crate::trainer::{Moments, StepStats, TrainError, TrainJob, TrainOutcome, Trainer, check_inputs};
use crate::worker::exchange::Exchange;
use crate::worker::message::{Failure, Options, Reply, Request};
use crate::worker::process::{Launch, Process};

/// Longest name of a device that is passed on.
const DEVICE_CHARS_MAX: usize = 100;

/// How to run a worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TorchOptions {
    /// The Python interpreter that has `templar_torch`.
    pub python: PathBuf,
    /// Processes, one per GPU; more than 1 are started through torchrun.
    pub ranks: u16,
    /// A device as PyTorch names it, such as `cuda:0`, or `auto`.
    pub device: String,
    /// Threads of a rank on the CPU; `None` leaves it to PyTorch.
    pub threads: Option<u32>,
    /// Whether the optimiser's moments wait in host memory between jobs.
    pub offload_optimiser: bool,
    /// Whether the same job must give the same bits, which costs speed on GPUs.
    pub deterministic: bool,
    /// Added to the environment of the worker.
    pub environment: Vec<(String, String)>,
    pub timeouts: Timeouts,
}

impl Default for TorchOptions {
    fn default() -> Self {
        Self {
            python: PathBuf::from("python3"),
            ranks: 1,
            device: "auto".to_owned(),
            threads: None,
            offload_optimiser: false,
            deterministic: false,
            environment: Vec::new(),
            timeouts: Timeouts::default(),
        }
    }
}

/// How long each phase may take before the worker counts as hanging.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// From the start of the process to its first message, and from there to the end of its configuration.
    pub start: Duration,
    /// The first step and the first evaluation of a process: each compiles.
    pub first: Duration,
    /// Every other step or evaluation.
    pub step: Duration,
    /// Passing parameters or moments, either way.
    pub transfer: Duration,
}

impl Timeouts {
    /// The limit of a step or an evaluation. `was_done` says whether there was one before, and is set.
    fn of(self, was_done: &mut bool) -> Duration {
        if std::mem::replace(was_done, true) { self.step } else { self.first }
    }
}

impl Default for Timeouts {
    fn default() -> Self {
        let [start, first, step, transfer] = [300, 1200, 300, 600].map(Duration::from_secs);
        Self { start, first, step, transfer }
    }
}

/// Trains in a worker.
#[derive(Debug)]
pub struct TorchTrainer {
    model: ModelSpec,
    inner: InnerSpec,
    layout: Layout,
    options: TorchOptions,
    worker: Option<Worker>,
    /// The moments after the last finished job, as [`crate::optimiser::Optimiser`] exports them; `None`: fresh ones.
    state: Option<Vec<u8>>,
    stats: Option<EngineStats>,
}

/// A worker that is configured.
#[derive(Debug)]
struct Worker {
    process: Process,
    exchange: Exchange,
    /// Whether it has the moments that the trainer has.
    has_state: bool,
    /// Whether it has done a step, and has therefore compiled what training needs.
    has_trained: bool,
    /// The same for an evaluation, which compiles its own.
    has_evaluated: bool,
}

impl TorchTrainer {
    /// An engine with fresh moments. Its worker starts with [`TorchTrainer::start`] or the first job.
    pub fn new(model: &ModelSpec, inner: &InnerSpec, options: TorchOptions) -> Self {
        let (model, inner, layout) = (model.clone(), inner.clone(), Layout::llama(model));
        Self { model, inner, layout, options, worker: None, state: None, stats: None }
    }

    /// Starts the worker if none runs, so that its problems show before the first job. This may take a minute.
    pub fn start(&mut self) -> Result<(), TrainError> {
        if self.worker.as_mut().is_none_or(|worker| !worker.process.is_running()) {
            self.worker = None;
            self.worker = Some(Worker::start(&self.model, &self.inner, &self.layout, &self.options)?);
        }
        Ok(())
    }

    /// Runs `job` in a worker with the trainer's moments, and ends a worker that fails.
    fn in_worker<T>(
        &mut self,
        job: impl FnOnce(&mut Worker, &InnerSpec, Timeouts, &mut Option<Vec<u8>>) -> Result<T, TrainError>,
    ) -> Result<T, TrainError> {
        self.start()?;
        let worker = self.worker.as_mut().expect("it was started");
        let result = job(worker, &self.inner, self.options.timeouts, &mut self.state);
        if matches!(result, Err(TrainError::Engine(_))) {
            self.worker = None;
        }
        result
    }
}

impl Drop for TorchTrainer {
    fn drop(&mut self) {
        if let Some(worker) = self.worker.take() {
            worker.process.end();
        }
    }
}

impl Trainer for TorchTrainer {
    fn train(
        &mut self,
        job: &TrainJob<'_>,
        on_step: &mut dyn FnMut(&StepStats) -> ControlFlow<()>,
    ) -> Result<TrainOutcome, TrainError> {
        self.stats = None;
        check_inputs(&self.model, self.layout.len(), job.theta, job.batches)?;
        if job.moments == Moments::Fresh {
            self.state = None;
        }
        let (outcome, stats) = self.in_worker(|worker, inner, limits, state| {
            let result = worker.train(inner, limits, state.as_deref(), job, on_step);
            // Moments that only the worker has would be lost with it. After divergence, too, they hold the steps
            // before.
            if matches!(result, Ok(_) | Err(TrainError::NonFiniteStep { .. })) {
                *state = Some(worker.export_state(limits)?);
            }
            result
        })?;
        self.stats = stats;
        Ok(outcome)
    }

    fn evaluate(&mut self, theta: &[f32], batch: &TokenBatch) -> Result<Vec<f64>, TrainError> {
        check_inputs(&self.model, self.layout.len(), theta, std::slice::from_ref(batch))?;
        self.in_worker(|worker, _, limits, _| worker.evaluate(limits, theta, batch))
    }

    fn export_state(&self) -> Vec<u8> {
        self.state.clone().unwrap_or_else(|| StateShape::new(&self.layout, &self.inner).fresh())
    }

    fn import_state(&mut self, bytes: &[u8]) -> Result<(), TrainError> {
        StateShape::new(&self.layout, &self.inner).check(bytes)?;
        self.state = Some(bytes.to_vec());
        if let Some(worker) = &mut self.worker {
            worker.has_state = false;
        }
        Ok(())
    }

    fn stats(&self) -> Option<EngineStats> {
        self.stats.clone()
    }
}

impl Worker {
    fn start(
        model: &ModelSpec,
        inner: &InnerSpec,
        layout: &Layout,
        options: &TorchOptions,
    ) -> Result<Self, WorkerError> {
        let TorchOptions { python, ranks, environment, timeouts, .. } = options.clone();
        let exchange = Exchange::new(layout, inner)?;
        let mut process = Process::start(&Launch { python, ranks, environment })?;
        process.send("start", &Request::Hello { protocol: PROTOCOL })?;
        match process.receive("start", timeouts.start)? {
            Reply::Hello { protocol: PROTOCOL } => {}
            Reply::Hello { protocol: found } => return Err(WorkerError::Version { found, expected: PROTOCOL }),
            other => return Err(unexpected("start", &other)),
        }
        let folder = exchange.folder().to_string_lossy().into_owned();
        let TorchOptions { device, threads, offload_optimiser, deterministic, .. } = options;
        let chosen =
            Options { device, threads: *threads, offload_optimiser: *offload_optimiser, deterministic: *deterministic };
        process
            .send("accept its configuration", &Request::Configure { folder: &folder, model, inner, options: chosen })?;
        match process.receive("accept its configuration", timeouts.start)? {
            Reply::Configured { parameters } if parameters == layout.len() as u64 => {}
            other => return Err(unexpected("accept its configuration", &other)),
        }
        Ok(Self { process, exchange, has_state: false, has_trained: false, has_evaluated: false })
    }

    fn train(
        &mut self,
        inner: &InnerSpec,
        limits: Timeouts,
        state: Option<&[u8]>,
        job: &TrainJob<'_>,
        on_step: &mut dyn FnMut(&StepStats) -> ControlFlow<()>,
    ) -> Result<(TrainOutcome, Option<EngineStats>), TrainError> {
        self.import_state(limits, state)?;
        let theta_version = self.exchange.put_theta(job.theta)?;
        self.exchange.put_batches(job.batches)?;
        self.exchange.remove("delta");
        self.has_state = false;
        let moments = if state.is_some() { Moments::Carried } else { Moments::Fresh };
        self.process.send("train", &Request::Train { theta_version, first_step: job.first_step, moments })?;
        let mut steps = Vec::with_capacity(job.batches.len());
        let seen = state.map_or(0, |state| state::split(state).0);
        for ((step, seen), batch) in (job.first_step..).zip(seen..).zip(job.batches) {
            let rates = Rates::new(inner, step, seen);
            let stats = self.step(rates, limits, step, batch.tokens.len() as u64)?;
            steps.push(stats);
            let flow = on_step(&stats);
            self.process.send("train", if flow.is_break() { &Request::Stop } else { &Request::Continue })?;
            if flow.is_break() {
                break;
            }
        }
        let engine = match self.process.receive("finish its job", limits.transfer)? {
            Reply::Trained { steps: done, engine } if done == steps.len() as u64 => engine,
            other => return Err(unexpected("finish its job", &other).into()),
        };
        let delta = match (self.exchange.delta(), steps.last()) {
            (Err(WorkerError::NotFinite { .. }), Some(last)) => {
                return Err(TrainError::NonFiniteStep { step: last.step, what: "update" });
            }
            (delta, _) => delta?,
        };
        self.exchange.remove("delta");
        let tokens = steps.iter().map(|step| step.tokens).sum();
        Ok((TrainOutcome { delta, steps, tokens }, plausible(engine)))
    }

    /// Waits for one step, and checks that it is the expected one.
    fn step(&mut self, rates: Rates, limits: Timeouts, step: u64, tokens: u64) -> Result<StepStats, TrainError> {
        const PHASE: &str = "do an inner step";
        let (expected, limit) = (rates.lr, limits.of(&mut self.has_trained));
        match self.process.receive(PHASE, limit)? {
            Reply::Step { step: done, loss, grad_norm, lr, tokens: of }
                if done == step
                    && of == tokens
                    && (lr - expected).abs() <= 1e-6 * expected
                    && loss.is_finite()
                    && (0.0..f64::INFINITY).contains(&grad_norm) =>
            {
                Ok(StepStats { step, loss, grad_norm, lr: expected, tokens })
            }
            Reply::Failed(Failure::NonFiniteStep { step: failed, what }) if failed == step => {
                let what = if what == "gradient" { "gradient" } else { "loss" };
                Err(TrainError::NonFiniteStep { step, what })
            }
            other => Err(unexpected(PHASE, &other).into()),
        }
    }

    fn evaluate(&mut self, limits: Timeouts, theta: &[f32], batch: &TokenBatch) -> Result<Vec<f64>, TrainError> {
        let theta_version = self.exchange.put_theta(theta)?;
        self.exchange.put_batches(std::slice::from_ref(batch))?;
        self.exchange.remove("losses");
        self.process.send("evaluate", &Request::Evaluate { theta_version })?;
        match self.process.receive("evaluate", limits.of(&mut self.has_evaluated))? {
            Reply::Evaluated => Ok(self.exchange.losses(batch.sequences)?),
            Reply::Failed(Failure::NonFiniteLoss { sequence }) if sequence < batch.sequences => {
                Err(TrainError::NonFiniteLoss { sequence })
            }
            other => Err(unexpected("evaluate", &other).into()),
        }
    }

    /// Passes the trainer's moments to a worker that lacks them. Fresh ones need not be passed.
    fn import_state(&mut self, limits: Timeouts, state: Option<&[u8]>) -> Result<(), WorkerError> {
        let Some(state) = state.filter(|_| !self.has_state) else { return Ok(()) };
        let (steps, moments) = state::split(state);
        self.exchange.put_state(steps, moments)?;
        self.process.send("import its moments", &Request::ImportState)?;
        match self.process.receive("import its moments", limits.transfer)? {
            Reply::Imported => {
                self.exchange.remove("state");
                Ok(())
            }
            other => Err(unexpected("import its moments", &other)),
        }
    }

    fn export_state(&mut self, limits: Timeouts) -> Result<Vec<u8>, WorkerError> {
        self.exchange.remove("state");
        self.process.send("export its moments", &Request::ExportState)?;
        match self.process.receive("export its moments", limits.transfer)? {
            Reply::Exported => {}
            other => return Err(unexpected("export its moments", &other)),
        }
        let state = self.exchange.state()?;
        self.exchange.remove("state");
        self.has_state = true;
        Ok(state)
    }
}

fn unexpected(phase: &'static str, reply: &Reply) -> WorkerError {
    WorkerError::Protocol { phase, why: format!("its answer {:?} was not expected: {reply:?}", reply.kind()) }
}

/// Statistics are for people, so implausible ones are dropped rather than held against the worker.
fn plausible(stats: serde_json::Value) -> Option<EngineStats> {
    let mut stats: EngineStats = serde_json::from_value(stats).ok()?;
    stats.device = stats.device.chars().filter(|char| !char.is_control()).take(DEVICE_CHARS_MAX).collect();
    let rates = [stats.tokens_per_s, stats.model_flops_per_s, stats.matmul_flops_per_s];
    let mut rates = rates.into_iter().chain(stats.peak_flops_per_s);
    rates.all(|rate| (0.0..f64::INFINITY).contains(&rate)).then_some(stats)
}

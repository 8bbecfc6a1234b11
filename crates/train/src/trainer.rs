//! The one seam for training: θ and batches in, Δ and statistics out.

use std::error::Error;
use std::ops::ControlFlow;

use serde::Serialize;
use templar_protocol::layout::ModelSpec;
use templar_protocol::run::InnerSpec;
use templar_record::engine::EngineStats;

use crate::batch::{BatchError, TokenBatch};

/// What one node trains in one window.
#[derive(Debug, Clone, Copy)]
pub struct TrainJob<'a> {
    /// The certified parameters, flat, in the order of the model's layout.
    pub theta: &'a [f32],
    /// One batch for each inner step.
    pub batches: &'a [TokenBatch],
    /// Global number of the first inner step, for the schedule: outer steps so far · H.
    pub first_step: u64,
    pub moments: Moments,
}

/// Which moments of the optimiser a job starts from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Moments {
    /// Those that the last job left.
    Carried,
    /// None, as in a new trainer: whoever has θ and the batches can repeat the job bit for bit.
    Fresh,
}

impl Moments {
    /// What a window of a run starts from.
    pub fn before(inner: &InnerSpec, window: u64) -> Self {
        if inner.resets_before(window) { Self::Fresh } else { Self::Carried }
    }
}

/// One inner step as it was done.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepStats {
    /// Global number of the step.
    pub step: u64,
    /// Mean loss of the batch before the update, nats per target token.
    pub loss: f64,
    /// Global norm of the gradient before clipping.
    pub grad_norm: f64,
    pub lr: f64,
    /// Tokens of the batch.
    pub tokens: u64,
}

/// What came out of a job.
#[derive(Debug, Clone, PartialEq)]
pub struct TrainOutcome {
    /// The pseudo-gradient θ_start − θ_end, flat.
    pub delta: Vec<f32>,
    pub steps: Vec<StepStats>,
    /// Tokens of all steps.
    pub tokens: u64,
}

impl TrainOutcome {
    /// The outcome of a job that moved θ from `start` to `end`, if Δ is finite.
    pub(crate) fn new(start: &[f32], end: Vec<f32>, steps: Vec<StepStats>) -> Result<Self, TrainError> {
        let mut delta = end;
        delta.iter_mut().zip(start).for_each(|(end, start)| *end = start - *end);
        if !delta.iter().all(|value| value.is_finite()) {
            return Err(TrainError::NonFiniteStep { step: steps.last().map_or(0, |last| last.step), what: "update" });
        }
        let tokens = steps.iter().map(|step| step.tokens).sum();
        Ok(Self { delta, steps, tokens })
    }
}

/// An engine with an inner optimiser. Calls block; the node gives each trainer a thread of its own.
///
/// The same parameters, batches and state give the same bits, run after run on the same machine.
pub trait Trainer: Send {
    /// H inner steps from θ. `on_step` may stop early (deadline, Ctrl-C): what was done until then is the outcome.
    ///
    /// The optimiser's moments survive into the next job, unless that one starts from fresh ones. After an error they hold
    /// the steps before the failed one.
    fn train(
        &mut self,
        job: &TrainJob<'_>,
        on_step: &mut dyn FnMut(&StepStats) -> ControlFlow<()>,
    ) -> Result<TrainOutcome, TrainError>;

    /// Mean loss of each sequence at θ in nats per target token, forward only; changes no state.
    fn evaluate(&mut self, theta: &[f32], batch: &TokenBatch) -> Result<Vec<f64>, TrainError>;

    /// The optimiser's state, for a restart of the node.
    fn export_state(&self) -> Vec<u8>;

    /// Adopts an exported state. An error leaves the state unchanged.
    fn import_state(&mut self, bytes: &[u8]) -> Result<(), TrainError>;

    /// How fast the last training job was, if the engine measures that.
    fn stats(&self) -> Option<EngineStats> {
        None
    }
}

/// Why nothing was trained or evaluated.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrainError {
    #[error("the model has {expected} parameters, but {found} were given; check that they belong to this run")]
    ParameterCount { expected: usize, found: usize },
    #[error("parameter {index} is not finite; load the parameters from a certified checkpoint again")]
    NonFiniteParameter { index: usize },
    #[error("batch {batch}: {source}")]
    Batch { batch: usize, source: BatchError },
    #[error(
        "batch {batch} has sequences of {found} tokens, but the model takes at most {longest}; shorten the samples"
    )]
    SequenceTooLong { batch: usize, found: usize, longest: u32 },
    #[error("batch {batch} has token {token}, but the vocabulary has {vocabulary}; use the run's tokenizer and data")]
    TokenOutsideVocabulary { batch: usize, token: u32, vocabulary: u32 },
    #[error(
        "the {what} of inner step {step} is not finite, so training diverged; lower `inner.lr` or `inner.clip_norm`"
    )]
    NonFiniteStep { step: u64, what: &'static str },
    #[error("the loss of sequence {sequence} is not finite; evaluate other parameters")]
    NonFiniteLoss { sequence: usize },
    #[error("the optimiser's state cannot be imported: {why}; delete it to start with fresh moments")]
    State { why: String },
    /// What went wrong inside the engine, in its own words.
    #[error(transparent)]
    Engine(Box<dyn Error + Send + Sync>),
}

/// Checks parameters and batches before an engine sees them.
pub(crate) fn check_inputs(
    model: &ModelSpec,
    parameters: usize,
    theta: &[f32],
    batches: &[TokenBatch],
) -> Result<(), TrainError> {
    if theta.len() != parameters {
        return Err(TrainError::ParameterCount { expected: parameters, found: theta.len() });
    }
    if let Some(index) = theta.iter().position(|value| !value.is_finite()) {
        return Err(TrainError::NonFiniteParameter { index });
    }
    for (at, batch) in batches.iter().enumerate() {
        batch.check().map_err(|source| TrainError::Batch { batch: at, source })?;
        if batch.seq_len > model.seq_len as usize {
            return Err(TrainError::SequenceTooLong { batch: at, found: batch.seq_len, longest: model.seq_len });
        }
        let vocabulary = model.vocab_size;
        if let Some(&token) = batch.tokens.iter().find(|&&token| token >= vocabulary) {
            return Err(TrainError::TokenOutsideVocabulary { batch: at, token, vocabulary });
        }
    }
    Ok(())
}

/// Losses of an evaluation, if all of them are finite.
pub(crate) fn finite_losses(losses: Vec<f64>) -> Result<Vec<f64>, TrainError> {
    match losses.iter().position(|loss| !loss.is_finite()) {
        Some(sequence) => Err(TrainError::NonFiniteLoss { sequence }),
        None => Ok(losses),
    }
}

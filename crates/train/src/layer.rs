//! A trainer over another trainer. What it does not say otherwise goes through to the one below.

use std::ops::ControlFlow;

use templar_record::engine::EngineStats;

use crate::batch::TokenBatch;
use crate::trainer::{StepStats, TrainError, TrainJob, TrainOutcome, Trainer};

/// A [`Trainer`] that overrides what it changes and nothing else: every other method is that of [`TrainerLayer::inner`].
/// Whatever implements this is a [`Trainer`].
///
/// ```
/// use templar_train::{TokenBatch, TrainError, Trainer, TrainerLayer};
///
/// /// Finds every sequence equally hard.
/// struct Indifferent(Box<dyn Trainer>);
///
/// impl TrainerLayer for Indifferent {
///     fn inner(&self) -> &dyn Trainer {
///         &*self.0
///     }
///
///     fn inner_mut(&mut self) -> &mut dyn Trainer {
///         &mut *self.0
///     }
///
///     fn evaluate(&mut self, _: &[f32], batch: &TokenBatch) -> Result<Vec<f64>, TrainError> {
///         Ok(vec![1.0; batch.sequences])
///     }
/// }
///
/// fn indifferent(trainer: Box<dyn Trainer>) -> Box<dyn Trainer> {
///     Box::new(Indifferent(trainer))
/// }
/// ```
pub trait TrainerLayer: Send {
    /// The trainer below.
    fn inner(&self) -> &dyn Trainer;

    /// The trainer below, to work with.
    fn inner_mut(&mut self) -> &mut dyn Trainer;

    fn train(
        &mut self,
        job: &TrainJob<'_>,
        on_step: &mut dyn FnMut(&StepStats) -> ControlFlow<()>,
    ) -> Result<TrainOutcome, TrainError> {
        self.inner_mut().train(job, on_step)
    }

    fn evaluate(&mut self, theta: &[f32], batch: &TokenBatch) -> Result<Vec<f64>, TrainError> {
        self.inner_mut().evaluate(theta, batch)
    }

    fn export_state(&self) -> Vec<u8> {
        self.inner().export_state()
    }

    fn import_state(&mut self, bytes: &[u8]) -> Result<(), TrainError> {
        self.inner_mut().import_state(bytes)
    }

    fn stats(&self) -> Option<EngineStats> {
        self.inner().stats()
    }
}

impl<T: TrainerLayer> Trainer for T {
    fn train(
        &mut self,
        job: &TrainJob<'_>,
        on_step: &mut dyn FnMut(&StepStats) -> ControlFlow<()>,
    ) -> Result<TrainOutcome, TrainError> {
        TrainerLayer::train(self, job, on_step)
    }

    fn evaluate(&mut self, theta: &[f32], batch: &TokenBatch) -> Result<Vec<f64>, TrainError> {
        TrainerLayer::evaluate(self, theta, batch)
    }

    fn export_state(&self) -> Vec<u8> {
        TrainerLayer::export_state(self)
    }

    fn import_state(&mut self, bytes: &[u8]) -> Result<(), TrainError> {
        TrainerLayer::import_state(self, bytes)
    }

    fn stats(&self) -> Option<EngineStats> {
        TrainerLayer::stats(self)
    }
}

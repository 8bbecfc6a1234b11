//! How far the miners of this process are with their inner steps, to show to people.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use templar_node::pretrain::setup::Setup;
use templar_record::engine::EngineStats;
use templar_train::{StepStats, TokenBatch, TrainError, TrainJob, TrainOutcome, Trainer};

/// Inner steps that one miner has done in its newest window.
pub(crate) type Steps = Arc<AtomicU64>;

/// A node whose steps are counted.
pub(crate) fn counted(setup: Setup, steps: Steps) -> Setup {
    Setup { trainer: Box::new(CountingTrainer { inner: setup.trainer, steps }), ..setup }
}

struct CountingTrainer {
    inner: Box<dyn Trainer>,
    steps: Steps,
}

impl Trainer for CountingTrainer {
    fn train(
        &mut self,
        job: &TrainJob<'_>,
        on_step: &mut dyn FnMut(&StepStats) -> ControlFlow<()>,
    ) -> Result<TrainOutcome, TrainError> {
        self.steps.store(0, Ordering::Relaxed);
        self.inner.train(job, &mut |step| {
            self.steps.fetch_add(1, Ordering::Relaxed);
            on_step(step)
        })
    }

    fn evaluate(&mut self, theta: &[f32], batch: &TokenBatch) -> Result<Vec<f64>, TrainError> {
        self.inner.evaluate(theta, batch)
    }

    fn export_state(&self) -> Vec<u8> {
        self.inner.export_state()
    }

    fn import_state(&mut self, bytes: &[u8]) -> Result<(), TrainError> {
        self.inner.import_state(bytes)
    }

    fn stats(&self) -> Option<EngineStats> {
        self.inner.stats()
    }
}

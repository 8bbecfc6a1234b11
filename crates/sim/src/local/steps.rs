//! How far the miners of this process are with their inner steps, to show to people.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use templar_node::pretrain::setup::Setup;
use templar_train::{StepStats, TrainError, TrainJob, TrainOutcome, Trainer, TrainerLayer};

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

impl TrainerLayer for CountingTrainer {
    fn inner(&self) -> &dyn Trainer {
        &*self.inner
    }

    fn inner_mut(&mut self) -> &mut dyn Trainer {
        &mut *self.inner
    }

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
}

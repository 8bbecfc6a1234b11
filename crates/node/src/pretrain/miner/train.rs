//! From a window to a pseudo-gradient.

use std::ops::ControlFlow;

use templar_record::event::Event;
use templar_record::outcome::Miss;
use templar_train::{Moments, TrainJob, Trainer};
use tokio::time::Instant;

use crate::frame::error::NodeError;
use crate::pretrain::batches::batches;
use crate::pretrain::miner::job::{Finished, Job};
use crate::pretrain::miner::{Miner, Work};
use crate::pretrain::state::State;

impl Miner {
    /// When training must end to leave time for the upload and the commitment.
    pub(super) fn stop_block(&self, window: u64) -> u64 {
        let margin = (self.ctx.spec.windows.put_block / 5).max(1);
        self.ctx.schedule.put_deadline(window) - margin
    }

    pub(super) async fn start_training(&mut self, head: u64) -> Result<Option<Job>, NodeError> {
        // Earlier steps may have taken blocks.
        let head = head.max(self.signals.head());
        let Some(number) = self.ctx.schedule.window_at(head) else { return Ok(None) };
        if number < self.next_window || !matches!(self.work, Work::Idle) {
            return Ok(None);
        }
        if self.ctx.spec.inner.has_ended(number) {
            self.next_window = number + 1;
            self.outcomes.miss(number, Miss::RunEnded);
            return Ok(None);
        }
        if head >= self.stop_block(number) {
            self.next_window = number + 1;
            if self.outcomes.missed(number).is_none() {
                self.outcomes.miss(number, Miss::NoTimeLeft);
            }
            return Ok(None);
        }
        let Some(base) = self.seat.replica.base(&self.ctx, number).cloned() else {
            // The state may still arrive.
            self.outcomes.miss(number, Miss::NoBase);
            return Ok(None);
        };
        let window = self.seat.replica.window(&self.ctx, number).await?;
        let samples = window.assignment.slice(&self.seat.entry);
        self.next_window = number + 1;
        if samples.is_empty() {
            // A miner that is no candidate has no slice.
            self.outcomes.miss(number, Miss::NoStep);
            return Ok(None);
        }
        let Some(trainer) = self.trainer.take() else { return Ok(None) };
        self.outcomes.retract(number);
        self.work = Work::Training(window);
        Ok(Some(self.training_job(trainer, number, base, samples)))
    }

    fn training_job(&self, mut trainer: Box<dyn Trainer>, number: u64, base: State, samples: Vec<u64>) -> Job {
        let (ctx, signals, started) = (self.ctx.clone(), self.signals.clone(), Instant::now());
        let stop_block = self.stop_block(number);
        let work = move || {
            let mut on_step = |_: &_| {
                if signals.head() >= stop_block || signals.stopped() {
                    ControlFlow::Break(())
                } else {
                    ControlFlow::Continue(())
                }
            };
            let inner = &ctx.spec.inner;
            let outcome = batches(&ctx, number, &samples).and_then(|batches| {
                let job = TrainJob {
                    theta: &base.theta,
                    batches: &batches,
                    first_step: inner.first_step(number, base.run.outer_steps),
                    moments: Moments::before(inner, number),
                };
                Ok(trainer.train(&job, &mut on_step)?)
            });
            (trainer, outcome)
        };
        let done = self.ctx.compute.run(work);
        Box::pin(async move {
            let (trainer, outcome) = done.await;
            Finished { trainer, outcome, compute_s: started.elapsed().as_secs_f64() }
        })
    }

    /// The trainer is back.
    pub(super) async fn take_trained(&mut self, finished: Finished) -> Result<(), NodeError> {
        let Finished { trainer, outcome, compute_s } = finished;
        let engine = trainer.stats();
        self.trainer = Some(trainer);
        let Work::Training(window) = std::mem::take(&mut self.work) else { return Ok(()) };
        let outcome = match outcome {
            Ok(outcome) if outcome.tokens > 0 => outcome,
            Ok(_) => {
                self.outcomes.miss(window.number, Miss::NoStep);
                return Ok(());
            }
            Err(error) => {
                self.outcomes.miss(window.number, Miss::TrainingFailed { cause: error.to_string() });
                return Ok(());
            }
        };
        let mean = outcome.steps.iter().map(|step| step.loss).sum::<f64>() / outcome.steps.len() as f64;
        let trained = Event::Trained {
            window: window.number,
            steps: outcome.steps.len() as u64,
            tokens: outcome.tokens,
            train_loss: mean,
            compute_s,
            engine,
        };
        self.ctx.emit(trained).await;
        self.work = Work::Trained(window, outcome);
        self.seal_if_ready(self.signals.head()).await
    }
}

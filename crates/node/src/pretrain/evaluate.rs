//! Measures what drawn miners' contributions did to the loss, on its own thread.

use std::sync::Arc;

use futures::future::BoxFuture;
use templar_data::Split;
use templar_incentive::score::{draw, draws};
use templar_protocol::assignment::Assignment;
use templar_protocol::fault::FaultKind;
use templar_protocol::hash::{Hash32, Stream};
use templar_protocol::roster::EntryId;
use templar_record::observation::{Evaluation, Observation};
use templar_train::{TokenBatch, TrainError, Trainer};

use crate::frame::context::Context;
use crate::frame::error::NodeError;
use crate::frame::signals::Signals;
use crate::pretrain::batches::batch;
use crate::pretrain::fetch::Opened;
use crate::pretrain::intake::Intake;
use crate::pretrain::window::Window;

/// One window's evaluation, ready to run.
#[derive(Debug)]
pub struct Task {
    pub window: u64,
    base: Arc<Vec<f32>>,
    miners: Vec<Drawn>,
    unseen: Unseen,
    /// θ to validate on held-out text, and on how many of its samples.
    validation: Option<(Arc<Vec<f32>>, u64)>,
}

/// A miner to evaluate: its contribution, and some of its assigned samples.
#[derive(Debug)]
struct Drawn {
    entry: EntryId,
    verdict: Result<Arc<Opened>, FaultKind>,
    samples: Vec<u64>,
}

/// Samples that nobody trains on in the window.
#[derive(Debug)]
struct Unseen {
    split: Split,
    samples: Vec<u64>,
}

/// What an evaluation found.
#[derive(Debug, Default)]
pub struct Report {
    pub observations: Vec<(EntryId, Observation)>,
    /// Mean loss on held-out text, in nats per token.
    pub held_out_loss: Option<f64>,
}

/// A trainer and its result.
#[expect(missing_debug_implementations, reason = "a trainer has nothing to show")]
pub struct Evaluated {
    pub window: u64,
    pub trainer: Box<dyn Trainer>,
    pub report: Result<Report, NodeError>,
}

impl Task {
    /// Draws the miners and the samples from the block at the put deadline, which no miner could know when it
    /// committed.
    pub fn new(
        ctx: &Context,
        own: &EntryId,
        intake: &Intake,
        put_hash: &Hash32,
        base: Arc<Vec<f32>>,
        validation: Option<(Arc<Vec<f32>>, u64)>,
    ) -> Self {
        let (drawn, mut stream) = drawn_miners(ctx, own, &intake.window, put_hash);
        let stream = &mut stream;
        let count = ctx.spec.scoring.sequences as usize;
        let assignment = &intake.window.assignment;
        let unseen = Unseen::draw(ctx, assignment, stream, count);
        let miners = intake
            .verdicts()
            .filter(|(entry, _)| drawn.contains(entry))
            .map(|(entry, verdict)| Drawn {
                entry: *entry,
                verdict: verdict.cloned(),
                samples: draw(stream, &assignment.slice(entry), count),
            })
            .collect();
        Self { window: intake.window.number, base, miners, unseen, validation }
    }

    /// Ends early, with [`NodeError::Stopped`], once `signals` say so.
    pub fn run(self, ctx: Arc<Context>, signals: Signals, trainer: Box<dyn Trainer>) -> BoxFuture<'static, Evaluated> {
        let compute = ctx.compute;
        let mut trainer = trainer;
        compute.run(move || {
            let report = self.evaluate(&ctx, &signals, trainer.as_mut());
            Evaluated { window: self.window, trainer, report }
        })
    }

    fn evaluate(&self, ctx: &Context, signals: &Signals, trainer: &mut dyn Trainer) -> Result<Report, NodeError> {
        let mut report = Report::default();
        let step = -ctx.spec.scoring.step_fraction * ctx.spec.outer.rate;
        let unseen = batch(ctx, self.unseen.split, &self.unseen.samples)?;
        let unseen_before = mean(&trainer.evaluate(&self.base, &unseen)?);
        for Drawn { entry, verdict, samples } in &self.miners {
            signals.check()?;
            let observation = match verdict {
                Err(fault) => Observation::Faulted(*fault),
                Ok(opened) => {
                    // A damaged sample is this validator's own fault, which the intake has reported.
                    let Ok(own) = batch(ctx, Split::Train, samples) else { continue };
                    let mut theta = self.base.as_ref().clone();
                    opened.contribution.add_scaled(&mut theta, step);
                    Observation::Evaluated(Evaluation {
                        own_before: mean(&trainer.evaluate(&self.base, &own)?),
                        own_after: loss_after(trainer, &theta, &own)?,
                        unseen_before,
                        unseen_after: loss_after(trainer, &theta, &unseen)?,
                    })
                }
            };
            report.observations.push((*entry, observation));
        }
        report.held_out_loss = self.validate(ctx, signals, trainer)?;
        Ok(report)
    }

    fn validate(&self, ctx: &Context, signals: &Signals, trainer: &mut dyn Trainer) -> Result<Option<f64>, NodeError> {
        let Some((theta, samples)) = &self.validation else { return Ok(None) };
        let available = ctx.dataset.samples(Split::HeldOut);
        // Evenly spread over the held-out text, the same ones in every window.
        let count = (*samples).min(available).max(1);
        let picked: Vec<u64> = (0..count).map(|nth| nth * available / count).collect();
        let mut losses = Vec::new();
        for group in picked.chunks(16) {
            signals.check()?;
            losses.extend(trainer.evaluate(theta, &batch(ctx, Split::HeldOut, group)?)?);
        }
        Ok(Some(mean(&losses)))
    }
}

impl Unseen {
    /// Drawn anew in each window, so that nobody can know them. A dataset so small that the window used all of it leaves
    /// held-out text as the only unseen one.
    fn draw(ctx: &Context, assignment: &Assignment, stream: &mut Stream, count: usize) -> Self {
        let samples = assignment.draw_unassigned(stream, count);
        if !samples.is_empty() {
            return Self { split: Split::Train, samples };
        }
        let held_out: Vec<u64> = (0..ctx.dataset.samples(Split::HeldOut)).collect();
        Self { split: Split::HeldOut, samples: draw(stream, &held_out, count) }
    }
}

/// A contribution that drives the loss to infinity is a bad contribution, not an error of the validator's.
fn loss_after(trainer: &mut dyn Trainer, theta: &[f32], batch: &TokenBatch) -> Result<f64, NodeError> {
    match trainer.evaluate(theta, batch) {
        Ok(losses) => Ok(mean(&losses)),
        Err(TrainError::NonFiniteLoss { .. } | TrainError::NonFiniteParameter { .. }) => Ok(f64::MAX),
        Err(error) => Err(error.into()),
    }
}

fn mean(losses: &[f64]) -> f64 {
    losses.iter().sum::<f64>() / losses.len().max(1) as f64
}

/// The candidates that this validator evaluates in a window, and the stream for further draws.
pub fn drawn_miners(ctx: &Context, own: &EntryId, window: &Window, put_hash: &Hash32) -> (Vec<EntryId>, Stream) {
    let candidates: Vec<EntryId> = window.candidates.iter().map(|candidate| candidate.entry).collect();
    let mut stream = draws(put_hash, own);
    (draw(&mut stream, &candidates, ctx.spec.scoring.draws as usize), stream)
}

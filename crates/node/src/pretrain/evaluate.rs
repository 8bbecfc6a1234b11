//! Measures what drawn miners' contributions did to the loss, on its own thread.

use std::sync::Arc;

use futures::future::BoxFuture;
use templar_data::Split;
use templar_incentive::draw::{draw, draw_miners, draws};
use templar_protocol::hash::{Hash32, Stream};
use templar_protocol::roster::EntryId;
use templar_record::judgement::Evaluation;
use templar_train::{TokenBatch, TrainError, Trainer};

use crate::frame::context::Context;
use crate::frame::error::NodeError;
use crate::frame::signals::Signals;
use crate::pretrain::batches::batch;
use crate::pretrain::fetch::Opened;
use crate::pretrain::window::Window;

/// What a loss that is not finite counts as, in nats per token: far above any that a model has.
const LOSS_MAX: f64 = 1e6;

/// One window's evaluation, ready to run.
#[derive(Debug)]
pub struct Task {
    pub window: u64,
    base: Arc<Vec<f32>>,
    miners: Vec<Drawn>,
    /// θ to validate on held-out text, and on how many of its samples.
    validation: Option<(Arc<Vec<f32>>, u64)>,
}

/// A miner to evaluate: its contribution, some of its assigned samples, and some that it was not assigned.
#[derive(Debug)]
struct Drawn {
    entry: EntryId,
    opened: Arc<Opened>,
    own: Vec<u64>,
    unseen: (Split, Vec<u64>),
}

/// What an evaluation found.
#[derive(Debug, Default)]
pub struct Report {
    pub evaluations: Vec<Evaluation>,
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
    /// Draws miners among those with a contribution, and samples, from the block at the put deadline, which no miner could
    /// know when it committed. Miners for which `is_new` is true come first.
    pub fn new(
        ctx: &Context,
        own: &EntryId,
        window: &Window,
        put_hash: &Hash32,
        base: Arc<Vec<f32>>,
        contributions: &[(EntryId, Arc<Opened>)],
        is_new: impl Fn(&EntryId) -> bool,
    ) -> Self {
        let (spec, mut stream) = (&ctx.spec.scoring, draws(put_hash, own));
        let candidates: Vec<EntryId> = window.candidates.iter().map(|candidate| candidate.entry).collect();
        let is_here = |entry: &EntryId| contributions.iter().any(|(of, _)| of == entry);
        let drawn = draw_miners(&mut stream, &candidates, is_here, is_new, spec.draws as usize);
        let unseen = Unseen::draw(ctx, window, &mut stream);
        let drawn = contributions.iter().filter(|(entry, _)| drawn.contains(entry));
        let miners = drawn.map(|(entry, opened)| Drawn {
            entry: *entry,
            opened: opened.clone(),
            own: draw(&mut stream, &window.assignment.slice(entry), spec.sequences as usize),
            unseen: unseen.of(ctx, window, entry),
        });
        Self { window: window.number, base, miners: miners.collect(), validation: None }
    }

    /// Measures `theta` on so many samples of held-out text, too.
    pub fn validate_on(&mut self, theta: Arc<Vec<f32>>, samples: u64) {
        self.validation = (samples > 0).then_some((theta, samples));
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
        // Most often all miners have the same unseen samples.
        let mut unseen_before: Option<(&(Split, Vec<u64>), f64)> = None;
        for Drawn { entry, opened, own, unseen } in &self.miners {
            signals.check()?;
            // A damaged sample is this validator's own fault, which the intake has reported.
            let (Ok(own), Ok(of_others)) = (batch(ctx, Split::Train, own), batch(ctx, unseen.0, &unseen.1)) else {
                continue;
            };
            let before = match unseen_before {
                Some((samples, loss)) if samples == unseen => loss,
                _ => loss_at(trainer, &self.base, &of_others)?,
            };
            unseen_before = Some((unseen, before));
            let mut theta = self.base.as_ref().clone();
            opened.contribution.add_scaled(&mut theta, step);
            report.evaluations.push(Evaluation {
                entry: *entry,
                own_before: loss_at(trainer, &self.base, &own)?,
                own_after: loss_at(trainer, &theta, &own)?,
                unseen_before: before,
                unseen_after: loss_at(trainer, &theta, &of_others)?,
            });
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
            let batch = batch(ctx, Split::HeldOut, group)?;
            losses.extend(losses_at(trainer, theta, &batch)?);
        }
        Ok(Some(mean(&losses)))
    }
}

/// Samples on which a miner did not train.
enum Unseen {
    /// Nobody trains on them in this window.
    Unassigned(Vec<u64>),
    /// The window uses all of a small dataset. The samples of others follow for each miner from this stream.
    Others(Stream),
}

impl Unseen {
    /// Drawn anew in each window, so that nobody can know them.
    fn draw(ctx: &Context, window: &Window, stream: &mut Stream) -> Self {
        let samples = window.assignment.draw_unassigned(stream, ctx.spec.scoring.sequences as usize);
        if samples.is_empty() { Self::Others(stream.clone()) } else { Self::Unassigned(samples) }
    }

    fn of(&self, ctx: &Context, window: &Window, entry: &EntryId) -> (Split, Vec<u64>) {
        let count = ctx.spec.scoring.sequences as usize;
        match self {
            Self::Unassigned(samples) => (Split::Train, samples.clone()),
            Self::Others(stream) => {
                let others = window.candidates.iter().filter(|other| other.entry != *entry);
                let slices: Vec<u64> = others.flat_map(|other| window.assignment.slice(&other.entry)).collect();
                if slices.is_empty() {
                    let held_out: Vec<u64> = (0..ctx.dataset.samples(Split::HeldOut)).collect();
                    return (Split::HeldOut, draw(&mut stream.clone(), &held_out, count));
                }
                (Split::Train, draw(&mut stream.clone(), &slices, count))
            }
        }
    }
}

/// Mean loss in nats per token. Parameters that drive it to infinity are bad ones, not an error of the validator's: so
/// evaluation goes on whatever state the network is in.
fn loss_at(trainer: &mut dyn Trainer, theta: &[f32], batch: &TokenBatch) -> Result<f64, NodeError> {
    Ok(mean(&losses_at(trainer, theta, batch)?))
}

fn losses_at(trainer: &mut dyn Trainer, theta: &[f32], batch: &TokenBatch) -> Result<Vec<f64>, NodeError> {
    match trainer.evaluate(theta, batch) {
        Ok(losses) => Ok(losses),
        Err(TrainError::NonFiniteLoss { .. } | TrainError::NonFiniteParameter { .. }) => {
            Ok(vec![LOSS_MAX; batch.sequences])
        }
        Err(error) => Err(error.into()),
    }
}

fn mean(losses: &[f64]) -> f64 {
    losses.iter().sum::<f64>() / losses.len().max(1) as f64
}

//! One training under several names.

use std::sync::PoisonError;

use templar_node::pretrain::setup::Setup;
use templar_protocol::layout::Layout;
use templar_record::event::Role;
use templar_train::TrainOutcome;

use crate::zoo::in_common::in_common;
use crate::zoo::kind::{Kind, Part};
use crate::zoo::layers::{claim_all, retrain};

pub const SPLITTER: Kind = Kind {
    name: "splitter",
    role: Role::Miner,
    tries: "The first node of this kind trains; its positions are dealt out to all of them and scaled up, to be paid as if each had trained. In processes of their own, each deals out its own training.",
    stopped_by: "Open: nothing in a header needs training, and pieces that are scaled up are worth as much as whole contributions.",
    wrap: |setup, part| train_once(setup, SPLITTER.name, part, deal),
};

pub const CLONES: Kind = Kind {
    name: "clones",
    tries: "All nodes of this kind send what the first one trained, each with one value of its own, so that no payload is another's copy. In processes of their own, each alters its own training.",
    stopped_by: "Open: only exact copies are found. Each clone is paid as if it had trained, but for what its own samples show.",
    wrap: |setup, part| train_once(setup, CLONES.name, part, mark),
    ..SPLITTER
};

/// What the first of a gang trained last: the step at which it began, and the outcome.
type Trained = Option<(u64, TrainOutcome)>;

/// A miner that takes its training from whoever of its kind trains first in a window, and `makes` its part of it.
fn train_once(setup: Setup, kind: &'static str, part: Part, make: fn(&mut [f32], Part, &Layout)) -> Setup {
    let (trained, layout) = (in_common::<Trained>(&setup, kind), setup.spec.layout());
    retrain(setup, move |honest, job, on_step| {
        // Locked while it trains: the others wait for it.
        let mut trained = trained.lock().unwrap_or_else(PoisonError::into_inner);
        let mut outcome = match &*trained {
            Some((step, outcome)) if *step == job.first_step => outcome.clone(),
            _ => {
                let outcome = honest.train(job, on_step)?;
                *trained = Some((job.first_step, outcome.clone()));
                outcome
            }
        };
        drop(trained);
        make(&mut outcome.delta, part, &layout);
        if let Some(&last) = outcome.steps.last() {
            outcome.steps.clear();
            claim_all(job, last, &mut outcome);
        }
        Ok(outcome)
    })
}

/// Every so many-th position, scaled up to the norm of the whole.
fn deal(delta: &mut [f32], part: Part, _: &Layout) {
    let factor = (part.of as f32).sqrt();
    for (nth, value) in delta.iter_mut().enumerate() {
        *value = if nth % part.of == part.nth { *value * factor } else { 0.0 };
    }
}

/// The same, but for one value of the smallest tensor, another for each node, which outgrows what error feedback holds there.
fn mark(delta: &mut [f32], part: Part, layout: &Layout) {
    let Some(smallest) = layout.tensors().iter().min_by_key(|tensor| tensor.len()) else { return };
    let values = &mut delta[smallest.range()];
    let largest = values.iter().fold(f32::MIN_POSITIVE, |largest, value| largest.max(value.abs()));
    let value = &mut values[part.nth % smallest.len()];
    *value = (OUTGROWN * largest).copysign(*value);
}

/// How many windows' values may wait in error feedback for their turn, about.
const OUTGROWN: f32 = 16.0;

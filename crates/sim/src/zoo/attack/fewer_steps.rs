//! Trainings that end early.

use templar_node::pretrain::setup::Setup;
use templar_record::event::Role;
use templar_train::TrainJob;

use crate::zoo::kind::Kind;
use crate::zoo::layers::{claim_all, retrain};

const STOPPED_BY: &str = "Value: less than a quarter of the median's is not paid. Open: nobody checks the steps that a header claims, and three quarters of the median's value are paid like all of it.";

pub const ONE_STEP: Kind = Kind {
    name: "one-step",
    role: Role::Miner,
    tries: "It stops after one inner step and claims all of them.",
    stopped_by: STOPPED_BY,
    wrap: |setup, _| wrap(setup, |_| 1),
};

pub const TWO_STEPS: Kind = Kind {
    name: "two-steps",
    tries: "It stops after two inner steps and claims all of them.",
    wrap: |setup, _| wrap(setup, |_| 2),
    ..ONE_STEP
};

pub const TENTH: Kind = Kind {
    name: "tenth",
    tries: "It stops after a tenth of the inner steps and claims all of them.",
    wrap: |setup, _| wrap(setup, |steps| steps / 10),
    ..ONE_STEP
};

pub const HALF_STEPS: Kind = Kind {
    name: "half-steps",
    tries: "It stops after half of the inner steps and claims all of them.",
    wrap: |setup, _| wrap(setup, |steps| steps / 2),
    ..ONE_STEP
};

/// A miner that takes as many steps as `taken` says of all steps of a window, at least one.
fn wrap(setup: Setup, taken: fn(usize) -> usize) -> Setup {
    retrain(setup, move |honest, job, on_step| {
        let taken = taken(job.batches.len()).clamp(1, job.batches.len());
        let mut outcome = honest.train(&TrainJob { batches: &job.batches[..taken], ..*job }, on_step)?;
        if let Some(&last) = outcome.steps.last() {
            claim_all(job, last, &mut outcome);
        }
        Ok(outcome)
    })
}

//! Miners that take up room and do not work, or not always.

use templar_node::pretrain::setup::Setup;
use templar_record::event::Role;
use templar_train::{TrainJob, TrainOutcome};

use crate::zoo::kind::Kind;
use crate::zoo::layers::{outer_steps, retrain};

/// Outer steps through which a kind that turns bad is honest.
pub const HONEST_STEPS: u64 = 6;

pub const IDLE: Kind = Kind {
    name: "idle",
    role: Role::Miner,
    tries: "It registers, publishes its bucket, and never works: it takes seats and data from those who would.",
    stopped_by: "Presence: a seat left unused puts it behind everybody who used theirs, and what never contributed is never paid.",
    wrap: |setup, _| wrap(setup, |_| false),
};

pub const QUITTER: Kind = Kind {
    name: "quitter",
    tries: "It is honest through the first outer steps, then only stays listed, and lives on its record.",
    stopped_by: "Presence: three missed seats in a row make its incentive count for nothing when seats are dealt. Windows without a contribution age its record, drawn or not.",
    wrap: |setup, _| wrap(setup, |job| outer_steps(job) < HONEST_STEPS),
    ..IDLE
};

pub const EVERY_THIRD: Kind = Kind {
    name: "every-third",
    tries: "It trains in every third window of those in which it has a seat, and is away in the others.",
    stopped_by: "Nothing excludes it, and nothing need: what it does counts, and the tokens of other windows are not paid.",
    wrap: |setup, _| {
        let mut seats = 0_u64;
        wrap(setup, move |_| {
            seats += 1;
            seats % 3 == 1
        })
    },
    ..IDLE
};

/// A miner that trains where `works` is true, and sends nothing elsewhere.
pub(super) fn wrap(setup: Setup, mut works: impl FnMut(&TrainJob<'_>) -> bool + Send + 'static) -> Setup {
    retrain(setup, move |honest, job, on_step| {
        if works(job) {
            return honest.train(job, on_step);
        }
        Ok(TrainOutcome { delta: vec![0.0; job.theta.len()], steps: Vec::new(), tokens: 0 })
    })
}

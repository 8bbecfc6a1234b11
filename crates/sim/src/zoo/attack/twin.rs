//! One contribution under several names.

use templar_record::event::Role;
use templar_train::{TrainJob, TrainOutcome};

use crate::zoo::kind::Kind;
use crate::zoo::layers::alter_training;

pub const KIND: Kind = Kind {
    name: "twin",
    role: Role::Miner,
    tries: "All nodes of this kind publish the same, whatever they are given, to be paid for it more than once.",
    stopped_by: "The fault Duplicate: a payload that is an earlier one's, byte for byte, does not count. A single twin is just useless.",
    wrap: |setup, _| alter_training(setup, learn_the_same),
};

fn learn_the_same(_: &TrainJob<'_>, outcome: &mut TrainOutcome) {
    let value = |nth: usize| (nth * 7919 % 1009) as f32 * 1e-6;
    outcome.delta.iter_mut().enumerate().for_each(|(nth, delta)| *delta = value(nth));
}

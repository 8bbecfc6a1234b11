//! Noise of an honest contribution's size.

use templar_protocol::hash::Hasher;
use templar_record::event::Role;
use templar_train::{TrainJob, TrainOutcome};

use crate::zoo::kind::Kind;
use crate::zoo::layers::alter_training;

pub const KIND: Kind = Kind {
    name: "noise",
    role: Role::Miner,
    tries: "It publishes noise of an honest contribution's size instead of what it learned, and hopes to be paid.",
    stopped_by: "Scores: noise does not lower the loss, so it earns less than a tenth of an honest miner's weight.",
    wrap: |setup, _| alter_training(setup, shuffle),
};

/// The same values at other positions, with other signs.
fn shuffle(job: &TrainJob<'_>, outcome: &mut TrainOutcome) {
    let mut hasher = Hasher::new("templar adversary noise");
    let mut stream = hasher.update_value(&job.first_step).clone().into_stream();
    stream.shuffle(&mut outcome.delta);
    for value in &mut outcome.delta {
        *value *= if stream.next_u64() & 1 == 0 { 1.0 } else { -1.0 };
    }
}

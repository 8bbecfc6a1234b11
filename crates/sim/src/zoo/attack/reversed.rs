//! The opposite of what was learned.

use templar_record::event::Role;

use crate::zoo::attack::absence::HONEST_STEPS;
use crate::zoo::kind::Kind;
use crate::zoo::layers::{alter_training, outer_steps};

pub const REVERSED: Kind = Kind {
    name: "reversed",
    role: Role::Miner,
    tries: "It publishes the opposite of what it learned, to undo what the others did.",
    stopped_by: "Scores: it raises the loss, so it earns nothing. Open: it counts like any other contribution, because no loss enters acceptance.",
    wrap: |setup, _| alter_training(setup, |_, outcome| negate(&mut outcome.delta)),
};

pub const SLEEPER: Kind = Kind {
    name: "sleeper",
    tries: "It is honest through the first outer steps, then publishes the opposite of what it learned, paid by its record.",
    stopped_by: "Value: it falls with every evaluation. Open: until then it is paid, and what it sends counts, because no loss enters acceptance.",
    wrap: |setup, _| {
        alter_training(setup, |job, outcome| {
            if outer_steps(job) >= HONEST_STEPS {
                negate(&mut outcome.delta);
            }
        })
    },
    ..REVERSED
};

pub const TENSOR_REVERSER: Kind = Kind {
    name: "tensor-reverser",
    tries: "It boosts what it learned of every other tensor and reverses the rest: harm that hides behind a gain.",
    stopped_by: "The clip cuts what is boosted back to the median of all. Open: value is measured before the clip, so the boost pays, and the reversed tensors count.",
    wrap: |setup, _| {
        let layout = setup.spec.layout();
        alter_training(setup, move |_, outcome| {
            for (nth, tensor) in layout.tensors().iter().enumerate() {
                let factor = if nth % 2 == 0 { BOOST } else { -1.0 };
                outcome.delta[tensor.range()].iter_mut().for_each(|value| *value *= factor);
            }
        })
    },
    ..REVERSED
};

/// By how much the good half is boosted.
const BOOST: f32 = 4.0;

fn negate(delta: &mut [f32]) {
    for value in delta {
        *value = -*value;
    }
}

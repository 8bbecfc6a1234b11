//! The right direction in the wrong size.

use templar_node::pretrain::setup::Setup;
use templar_record::event::Role;

use crate::zoo::kind::Kind;
use crate::zoo::layers::alter_training;

pub const SCALER: Kind = Kind {
    name: "scaler",
    role: Role::Miner,
    tries: "It sends what it learned × 2, 3, 4 or ¼, by another factor in each tensor, or as large as the bytes allow; each node of this kind in its way.",
    stopped_by: "The clip cuts norms back to the median when the step is taken, and more value than the median's is not paid more.",
    wrap: |setup, part| scale(setup, Size::ALL[part.nth % Size::ALL.len()]),
};

pub const DILUTER: Kind = Kind {
    name: "diluter",
    tries: "It sends tiny values at the positions that everybody sends, so that the mean over a position's senders shrinks.",
    stopped_by: "Scores: it lowers the loss too little to be paid. Open: what it takes from the others is counted against nobody, and with half of the seats the median of norms is tiny, too.",
    wrap: |setup, _| scale(setup, Size::Times(TINY)),
    ..SCALER
};

pub const MEDIAN_PULLER: Kind = Kind {
    name: "median-puller",
    tries: "It sends one value per tensor: a tiny one, so that the median of norms falls and everybody else is clipped to it, or a huge one, to lift the clip; each node of this kind in its way.",
    stopped_by: "The median of norms: with fewer than half of the seats it moves to another honest miner's norm at most, and scores pay nothing for it. Open with half of them.",
    wrap: |setup, part| pull(setup, part.nth % 2 == 1),
    ..SCALER
};

const TINY: f32 = 1.0 / 1024.0;

/// What becomes of a pseudo-gradient's size.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Size {
    Times(f32),
    /// By one factor after the other, tensor by tensor.
    PerTensor([f32; 3]),
    /// The largest value becomes the largest that the run's bytes can say: the clip leaves the median's norm of it.
    Largest,
}

impl Size {
    const ALL: [Self; 6] = [
        Self::Times(2.0),
        Self::Times(3.0),
        Self::Times(4.0),
        Self::Times(0.25),
        Self::PerTensor([4.0, 1.0, 0.25]),
        Self::Largest,
    ];
}

fn scale(setup: Setup, size: Size) -> Setup {
    let (layout, max_abs) = (setup.spec.layout(), setup.spec.codec.max_abs as f32);
    alter_training(setup, move |_, outcome| {
        let largest = outcome.delta.iter().fold(f32::MIN_POSITIVE, |largest, value| largest.max(value.abs()));
        for (nth, tensor) in layout.tensors().iter().enumerate() {
            let factor = match size {
                Size::Times(factor) => factor,
                Size::PerTensor(factors) => factors[nth % factors.len()],
                Size::Largest => max_abs / largest,
            };
            outcome.delta[tensor.range()].iter_mut().for_each(|value| *value *= factor);
        }
    })
}

/// Leaves the first value of each tensor, in a size far from everybody's.
fn pull(setup: Setup, is_up: bool) -> Setup {
    let (layout, max_abs) = (setup.spec.layout(), setup.spec.codec.max_abs as f32);
    alter_training(setup, move |_, outcome| {
        for tensor in layout.tensors() {
            let values = &mut outcome.delta[tensor.range()];
            let norm = values.iter().map(|value| value * value).sum::<f32>().sqrt();
            values.fill(0.0);
            values[0] = if is_up { max_abs / 2.0 } else { norm * TINY };
        }
    })
}

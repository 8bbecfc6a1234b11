//! What others learned before, once more.

use templar_record::event::Role;

use crate::zoo::kind::Kind;
use crate::zoo::layers::skip_training;

pub const ECHO: Kind = Kind {
    name: "echo",
    role: Role::Miner,
    tries: "It never trains: it sends what θ moved by since its last contribution, in the hope that the same again still helps.",
    stopped_by: "Value: a step that is taken again overshoots, so it earns next to nothing. Open: it counts all the same, because no loss enters acceptance.",
    wrap: |setup, _| {
        let mut movement = Movement::default();
        skip_training(setup, move |job| movement.to(job.theta))
    },
};

pub const MOMENTUM: Kind = Kind {
    name: "momentum",
    tries: "It never trains: it sends the moving average of past outer steps.",
    wrap: |setup, _| {
        let (mut movement, mut momentum) = (Movement::default(), Vec::new());
        skip_training(setup, move |job| {
            momentum.resize(job.theta.len(), 0.0);
            for (momentum, moved) in momentum.iter_mut().zip(movement.to(job.theta)) {
                *momentum = KEPT * *momentum + (1.0 - KEPT) * moved;
            }
            momentum.clone()
        })
    },
    ..ECHO
};

/// What the moving average keeps from one outer step to the next.
const KEPT: f32 = 0.9;

/// θ as it was when it was last seen.
#[derive(Default)]
struct Movement(Option<Vec<f32>>);

impl Movement {
    /// The difference to `theta` as a pseudo-gradient; zeros the first time.
    fn to(&mut self, theta: &[f32]) -> Vec<f32> {
        let before = self.0.replace(theta.to_vec()).unwrap_or_else(|| theta.to_vec());
        before.iter().zip(theta).map(|(before, now)| before - now).collect()
    }
}

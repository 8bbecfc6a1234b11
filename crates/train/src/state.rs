//! The optimiser's state as bytes. They are the same for every engine, so that a node can change its engine and keep its
//! moments.
//!
//! 16 bytes of magic, the number of steps as u64, then f32, little-endian: the momentum of all tensors that Muon updates
//! (none with AdamW), the first moments of all others, and their second moments.

use templar_protocol::layout::{Layout, TensorSpec};
use templar_protocol::run::{InnerSpec, Optimiser};

use crate::muon::takes_muon;
use crate::trainer::TrainError;

const MAGIC_BYTES: usize = 16;
const HEAD_BYTES: usize = MAGIC_BYTES + 8;
/// Steps that a state may have seen: more than any run takes, and few enough to count on from.
pub(crate) const STEPS_MAX: u64 = 1 << 53;
const OPTIMISERS: [Optimiser; 2] = [Optimiser::Adamw, Optimiser::Muon];

const fn magic(optimiser: Optimiser) -> &'static [u8; MAGIC_BYTES] {
    match optimiser {
        Optimiser::Adamw => b"templar adamw 1\n",
        Optimiser::Muon => b"templar muon 1 \n",
    }
}

const fn name(optimiser: Optimiser) -> &'static str {
    match optimiser {
        Optimiser::Adamw => "AdamW",
        Optimiser::Muon => "Muon",
    }
}

/// What the states of a run hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct StateShape {
    optimiser: Optimiser,
    /// Values with a momentum.
    momentum: usize,
    /// Values with a first and a second moment.
    moments: usize,
}

impl StateShape {
    pub(crate) fn new(layout: &Layout, inner: &InnerSpec) -> Self {
        let taken = layout.tensors().iter().filter(|tensor| takes_muon(inner, tensor));
        let momentum = taken.map(TensorSpec::len).sum();
        Self { optimiser: inner.optimiser, momentum, moments: layout.len() - momentum }
    }

    fn bytes(&self) -> usize {
        HEAD_BYTES + 4 * self.momentum + 8 * self.moments
    }

    /// The head of a state after that many steps; the caller appends the values.
    pub(crate) fn begin(&self, steps: u64) -> Vec<u8> {
        let mut state = Vec::with_capacity(self.bytes());
        state.extend(magic(self.optimiser));
        state.extend(steps.to_le_bytes());
        state
    }

    /// A state before the first step.
    pub(crate) fn fresh(&self) -> Vec<u8> {
        let mut state = self.begin(0);
        state.resize(self.bytes(), 0);
        state
    }

    /// Refuses anything but a state of this shape with sound values.
    pub(crate) fn check(&self, state: &[u8]) -> Result<(), TrainError> {
        let refuse = |why: String| Err(TrainError::State { why });
        let found = OPTIMISERS.into_iter().find(|&known| state.starts_with(magic(known)));
        if let Some(found) = found.filter(|&found| found != self.optimiser) {
            let (found, own) = (name(found), name(self.optimiser));
            return refuse(format!("it is of {found}, but `inner.optimiser` of this run is {own}"));
        }
        if state.len() != self.bytes() {
            return refuse(format!("it has {} bytes, but this model's takes {}", state.len(), self.bytes()));
        }
        if found.is_none() {
            return refuse("it belongs to another optimiser or version".to_owned());
        }
        let (steps, values) = split(state);
        if steps > STEPS_MAX {
            return refuse(format!("it has seen {steps} steps, and at most {STEPS_MAX} are possible"));
        }
        if !self.is_sound(values) {
            return refuse("it has moments that are not finite, or a negative mean of squares".to_owned());
        }
        Ok(())
    }

    /// Whether all values are finite and no mean of squares is negative.
    pub(crate) fn is_sound(&self, values: &[u8]) -> bool {
        let (others, second) = values.split_at(values.len() - 4 * self.moments);
        let all = |bytes: &[u8], is_sound: fn(f32) -> bool| {
            bytes.as_chunks().0.iter().all(|&value| is_sound(f32::from_le_bytes(value)))
        };
        all(others, f32::is_finite) && all(second, |value| value.is_finite() && value >= 0.0)
    }
}

/// Number of steps, and the values' bytes.
pub(crate) fn split(state: &[u8]) -> (u64, &[u8]) {
    let (head, values) = state.split_at(HEAD_BYTES);
    let steps = head[MAGIC_BYTES..].iter().rev().fold(0, |number, &byte| number << 8 | u64::from(byte));
    (steps, values)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_is_checked_as_a_whole() {
        let shape = StateShape { optimiser: Optimiser::Adamw, momentum: 0, moments: 2 };
        let state = shape.fresh();
        for (at, value) in [(24, f32::NAN), (32, -1.0), (36, f32::INFINITY)] {
            let mut damaged = state.clone();
            damaged[at..at + 4].copy_from_slice(&value.to_le_bytes());
            assert!(shape.check(&damaged).is_err());
        }
        let mut endless = state.clone();
        endless[16..24].copy_from_slice(&u64::MAX.to_le_bytes());
        assert!(shape.check(&endless).unwrap_err().to_string().contains("18446744073709551615 steps"));
        let mut other = state.clone();
        other[0] ^= 1;
        let longer = StateShape { moments: 3, ..shape };
        assert!(shape.check(&other).is_err() && longer.check(&state).is_err() && shape.check(&state).is_ok());
        assert_eq!(split(&shape.begin(1 << 40)), (1 << 40, &[][..]));
    }

    /// Both have 16 bytes of values here, so that only the magic tells them apart.
    #[test]
    fn a_state_of_the_other_optimiser_is_named() {
        let adamw = StateShape { optimiser: Optimiser::Adamw, momentum: 0, moments: 2 };
        let muon = StateShape { optimiser: Optimiser::Muon, momentum: 2, moments: 1 };
        let why = |result: Result<(), TrainError>| result.unwrap_err().to_string();
        assert_eq!(
            why(muon.check(&adamw.fresh())),
            "the optimiser's state cannot be imported: it is of AdamW, but `inner.optimiser` of this run is Muon; delete it \
             to start with fresh moments"
        );
        assert!(why(adamw.check(&muon.fresh())).contains("it is of Muon"));
        muon.check(&muon.fresh()).unwrap();
    }
}

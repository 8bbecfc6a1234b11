//! The inner optimiser of a run: which tensor gets Muon and which AdamW, and the state of both.

use templar_protocol::layout::Layout;
use templar_protocol::run::InnerSpec;

use crate::adamw::AdamW;
use crate::muon::{Muon, takes_muon};
use crate::schedule::Rates;
use crate::state::{self, StateShape};
use crate::trainer::TrainError;

/// AdamW for all tensors, or Muon for the matrices of the layers and AdamW for the rest.
#[derive(Debug)]
pub struct Optimiser {
    shape: StateShape,
    /// Of no tensor in a run with AdamW.
    muon: Muon,
    adamw: AdamW,
}

impl Optimiser {
    /// The optimiser of a run with fresh moments.
    pub fn new(layout: &Layout, inner: &InnerSpec) -> Self {
        let (matrices, others): (Vec<_>, Vec<_>) =
            layout.tensors().iter().partition(|tensor| takes_muon(inner, tensor));
        Self {
            shape: StateShape::new(layout, inner),
            muon: Muon::new(matrices, inner),
            adamw: AdamW::new(others, inner),
        }
    }

    /// One step on `theta` with the gradient `scale · gradient`.
    ///
    /// # Panics
    /// If `theta` or `gradient` are too short for the layout.
    pub fn step(&mut self, theta: &mut [f32], gradient: &[f32], scale: f64, rates: Rates) {
        self.muon.step(theta, gradient, scale, rates.muon);
        self.adamw.step(theta, gradient, scale, rates.lr);
    }

    /// Steps since the moments were fresh.
    pub fn steps(&self) -> u64 {
        self.adamw.steps()
    }

    /// Makes all moments fresh.
    pub fn reset(&mut self) {
        self.muon.reset();
        self.adamw.reset();
    }

    /// Moments and step count as bytes.
    pub fn export(&self) -> Vec<u8> {
        let mut bytes = self.shape.begin(self.steps());
        let [first, second] = self.adamw.moments();
        for values in [self.muon.momentum(), first, second] {
            bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
        }
        bytes
    }

    /// Adopts exported moments; an error changes nothing.
    pub fn import(&mut self, bytes: &[u8]) -> Result<(), TrainError> {
        self.shape.check(bytes)?;
        let (stored_steps, values) = state::split(bytes);
        let (steps, moments) = self.adamw.state_mut();
        *steps = stored_steps;
        let own = self.muon.momentum_mut().iter_mut().chain(moments.into_iter().flatten());
        own.zip(values.as_chunks().0).for_each(|(own, &value)| *own = f32::from_le_bytes(value));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use templar_protocol::run::Optimiser as Kind;

    use super::*;

    fn layout() -> Layout {
        let shapes =
            [("model.embed_tokens.weight", vec![3, 2]), ("model.layers.0.x.weight", vec![2, 2]), ("norm", vec![2])];
        Layout::new(shapes.map(|(name, shape)| (name.to_owned(), shape)))
    }

    fn optimiser(kind: Kind) -> Optimiser {
        let inner = templar_model::presets::preset("nano").unwrap().inner;
        Optimiser::new(&layout(), &InnerSpec { optimiser: kind, ..inner })
    }

    #[test]
    fn state_is_validated_as_a_whole() {
        for (kind, values) in [(Kind::Adamw, 24), (Kind::Muon, 20)] {
            let mut one = optimiser(kind);
            let fresh = one.export();
            assert_eq!((fresh.len(), &fresh), (24 + 4 * values, &one.shape.fresh()));
            one.step(&mut [1.0; 12], &[0.1; 12], 1.0, Rates { lr: 0.01, muon: 0.02 });
            let bytes = one.export();
            let mut edits: Vec<Vec<u8>> = vec![vec![], bytes[1..].to_vec(), [&bytes[..], &[0]].concat(), bytes.clone()];
            edits[3][0] ^= 1;
            for (offset, value) in [(24, f32::NAN), (bytes.len() - 8, -1.0), (bytes.len() - 4, f32::INFINITY)] {
                let mut edited = bytes.clone();
                edited[offset..offset + 4].copy_from_slice(&value.to_le_bytes());
                edits.push(edited);
            }
            for edited in edits {
                assert!(matches!(one.import(&edited), Err(TrainError::State { .. })));
                assert_eq!(one.export(), bytes);
            }
            let mut other = optimiser(kind);
            other.import(&bytes).unwrap();
            assert_eq!(other.export(), bytes);
            one.reset();
            assert_eq!(one.export(), fresh);
        }
    }

    /// With the same gradient everywhere, AdamW moves by its rate and Muon by a share of its own.
    #[test]
    fn only_matrices_of_layers_get_muon() {
        let mut theta = [0.0; 12];
        optimiser(Kind::Muon).step(&mut theta, &[0.1; 12], 1.0, Rates { lr: 0.01, muon: 0.0 });
        let moved = theta.map(|value| value != 0.0);
        assert_eq!(moved, [true, true, true, true, true, true, false, false, false, false, true, true]);
    }
}

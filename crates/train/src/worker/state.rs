//! The optimiser's state as bytes: exactly those of [`crate::adamw::AdamW`], so that a node can change its engine and
//! keep its moments.
//!
//! 16 bytes of magic, the number of steps as u64, all first moments and all second moments as f32, little-endian.

use super::error::WorkerError;

const MAGIC: &[u8; 16] = b"templar adamw 1\n";
const HEAD_BYTES: usize = MAGIC.len() + 8;

/// Moments before the first step.
pub(super) fn fresh(parameters: usize) -> Vec<u8> {
    let mut state = MAGIC.to_vec();
    state.resize(HEAD_BYTES + 8 * parameters, 0);
    state
}

/// What is wrong with a state, if anything.
pub(super) fn check(state: &[u8], parameters: usize) -> Result<(), String> {
    let expected = HEAD_BYTES + 8 * parameters;
    if state.len() != expected {
        return Err(format!("it has {} bytes, this model's takes {expected}", state.len()));
    }
    if state[..MAGIC.len()] != MAGIC[..] {
        return Err("it is not of this optimiser and version".to_owned());
    }
    if !are_sound(split(state).1) {
        return Err("it has moments that are not finite, or a negative mean of squares".to_owned());
    }
    Ok(())
}

/// Number of steps, and the moments' bytes.
pub(super) fn split(state: &[u8]) -> (u64, &[u8]) {
    let (head, moments) = state.split_at(HEAD_BYTES);
    let steps = head[MAGIC.len()..].iter().rev().fold(0, |number, &byte| number << 8 | u64::from(byte));
    (steps, moments)
}

/// A state whose moments `read` appends, returning the number of steps.
pub(super) fn assemble(read: impl FnOnce(&mut Vec<u8>) -> Result<u64, WorkerError>) -> Result<Vec<u8>, WorkerError> {
    let mut state = fresh(0);
    let steps = read(&mut state)?;
    state[MAGIC.len()..HEAD_BYTES].copy_from_slice(&steps.to_le_bytes());
    if are_sound(split(&state).1) { Ok(state) } else { Err(WorkerError::NotFinite { file: "state" }) }
}

/// Moments are finite, and means of squares are not negative.
fn are_sound(moments: &[u8]) -> bool {
    let (first, second) = moments.split_at(moments.len() / 2);
    let all = |bytes: &[u8], is_sound: fn(f32) -> bool| {
        bytes.as_chunks().0.iter().all(|&value| is_sound(f32::from_le_bytes(value)))
    };
    all(first, f32::is_finite) && all(second, |value| value.is_finite() && value >= 0.0)
}

#[cfg(test)]
mod tests {
    use templar_protocol::layout::Layout;

    use super::*;
    use crate::adamw::AdamW;

    /// A miner that changes its engine keeps its moments.
    #[test]
    fn bytes_are_those_of_the_built_in_optimiser() {
        let preset = templar_model::presets::preset("nano").unwrap();
        let layout = Layout::new([("matrix".to_owned(), vec![2, 2]), ("vector".to_owned(), vec![2])]);
        let mut adamw = AdamW::new(&layout, &preset.inner);
        assert_eq!(adamw.export(), fresh(6));
        adamw.step(&mut [1.0; 6], &[0.1; 6], 1.0, 0.01);
        let state = adamw.export();
        check(&state, 6).unwrap();
        let (steps, moments) = split(&state);
        let again = assemble(|bytes| {
            bytes.extend_from_slice(moments);
            Ok(steps)
        });
        assert_eq!((steps, again.as_ref()), (1, Ok(&state)));
        adamw.import(&again.unwrap()).unwrap();
    }

    #[test]
    fn a_state_is_checked_as_a_whole() {
        let state = fresh(2);
        for (at, value) in [(24, f32::NAN), (32, -1.0), (36, f32::INFINITY)] {
            let mut damaged = state.clone();
            damaged[at..at + 4].copy_from_slice(&value.to_le_bytes());
            assert!(check(&damaged, 2).is_err());
        }
        let mut other = state.clone();
        other[0] ^= 1;
        assert!(check(&other, 2).is_err() && check(&state, 3).is_err() && check(&state, 2).is_ok());
    }
}

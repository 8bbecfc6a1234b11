//! The optimiser's state as bytes. They are the same for every engine with AdamW, so that a node can change its engine
//! and keep its moments.
//!
//! 16 bytes of magic, the number of steps as u64, all first moments and all second moments as f32, little-endian.

use crate::trainer::TrainError;

const MAGIC: &[u8; 16] = b"templar adamw 1\n";
const HEAD_BYTES: usize = MAGIC.len() + 8;

/// The head of a state after that many steps; the caller appends the moments, 8 bytes per parameter.
pub(crate) fn begin(steps: u64, parameters: usize) -> Vec<u8> {
    let mut state = Vec::with_capacity(HEAD_BYTES + 8 * parameters);
    state.extend(MAGIC);
    state.extend(steps.to_le_bytes());
    state
}

/// Moments before the first step.
pub(crate) fn fresh(parameters: usize) -> Vec<u8> {
    let mut state = begin(0, parameters);
    state.resize(HEAD_BYTES + 8 * parameters, 0);
    state
}

/// Refuses anything but a state of a model with that many parameters.
pub(crate) fn check(state: &[u8], parameters: usize) -> Result<(), TrainError> {
    let refuse = |why: String| Err(TrainError::State { why });
    let expected = HEAD_BYTES + 8 * parameters;
    if state.len() != expected {
        return refuse(format!("it has {} bytes, but this model's takes {expected}", state.len()));
    }
    if state[..MAGIC.len()] != MAGIC[..] {
        return refuse("it belongs to another optimiser or version".to_owned());
    }
    if !are_sound(split(state).1) {
        return refuse("it has moments that are not finite, or a negative mean of squares".to_owned());
    }
    Ok(())
}

/// Number of steps, and the moments' bytes.
pub(crate) fn split(state: &[u8]) -> (u64, &[u8]) {
    let (head, moments) = state.split_at(HEAD_BYTES);
    let steps = head[MAGIC.len()..].iter().rev().fold(0, |number, &byte| number << 8 | u64::from(byte));
    (steps, moments)
}

/// Whether all moments are finite and no mean of squares is negative.
pub(crate) fn are_sound(moments: &[u8]) -> bool {
    let (first, second) = moments.split_at(moments.len() / 2);
    let all = |bytes: &[u8], is_sound: fn(f32) -> bool| {
        bytes.as_chunks().0.iter().all(|&value| is_sound(f32::from_le_bytes(value)))
    };
    all(first, f32::is_finite) && all(second, |value| value.is_finite() && value >= 0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

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
        assert_eq!(split(&begin(1 << 40, 0)), (1 << 40, &[][..]));
    }
}

//! Error feedback: what was not sent is not lost.

use rayon::prelude::*;

/// Values in one unit of parallel work.
const BLOCK: usize = 1 << 16;

/// e ← β·e + Δ (SparseLoCo, eq. 2), in place.
///
/// Each value is f32(f64(β·f64(e)) + f64(Δ)): the product and the sum in f64, rounded to f32 once, at the end. Values
/// that are not finite stay so, and [`Codec::encode`](crate::Codec::encode) names them.
///
/// # Panics
/// If `e` and `delta` do not have the same length.
pub fn accumulate(e: &mut [f32], delta: &[f32], error_decay: f64) {
    assert_eq!(e.len(), delta.len(), "error feedback and Δ must have the same length");
    e.par_chunks_mut(BLOCK).zip(delta.par_chunks(BLOCK)).for_each(|(e, delta)| {
        for (e, &delta) in e.iter_mut().zip(delta) {
            *e = (error_decay * f64::from(*e) + f64::from(delta)) as f32;
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_once_at_the_end() {
        // In f32, 0.1 · 3 would be rounded before the sum: the difference below would be 0 or 2^-25.
        let mut e = vec![3.0f32, 1.0, f32::MAX, 0.0];
        accumulate(&mut e, &[-0.3, 0.5, f32::MAX, -0.0], 0.1);
        let exact = 0.1 * 3.0 - f64::from(0.3f32);
        assert_eq!(e[0], exact as f32);
        assert_ne!(e[0], 0.1f32 * 3.0 - 0.3f32);
        assert_eq!(e[1], 0.6);
        assert_eq!(e[2], f32::INFINITY);
        assert_eq!(e[3].to_bits(), 0);
    }
}

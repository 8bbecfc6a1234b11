//! Numbers as integers, in units of 2^-40.

/// 2^40: one in the fixed-point numbers in which contributions are added.
pub(crate) const ONE: f64 = (1u64 << 40) as f64;

/// q of [`crate::aggregate`]. Rounding is symmetric, so that only magnitudes are rounded.
#[inline(always)]
pub(crate) fn quantise(value: f64, clip: f64, rate: f64, divisor: f64) -> i64 {
    let magnitude = round_to_i64(value.abs() * clip * rate / divisor * ONE);
    if value < 0.0 { magnitude.wrapping_neg() } else { magnitude }
}

/// Rounds 0 ≤ `x` ≤ 2^54 to an integer, ties to even: as `f64::round_ties_even`, in steps that every processor has for vectors.
#[inline(always)]
fn round_to_i64(x: f64) -> i64 {
    /// From here on every f64 is an integer, and adding this to a smaller one rounds it to an integer.
    const INTEGERS: f64 = (1u64 << 52) as f64;
    /// The sum of this and an integer of magnitude up to 2^51 has that integer in its lowest bits.
    const MIDDLE: f64 = 1.5 * INTEGERS;
    const LOW: u32 = 27;
    let whole = if x < INTEGERS { (x + INTEGERS) - INTEGERS } else { x };
    let high = (whole / (1u64 << LOW) as f64 + MIDDLE) - MIDDLE;
    let low = whole - high * (1u64 << LOW) as f64;
    let integer = |x: f64| ((x + MIDDLE).to_bits() as i64).wrapping_sub(MIDDLE.to_bits() as i64);
    (integer(high) << LOW).wrapping_add(integer(low))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_as_the_standard_library_does() {
        let near = |x: f64| [x.next_down(), x, x.next_up()];
        let cases = [0.0, 0.5, 1.5, 2.5, 1e6 + 0.5, 2f64.powi(51) + 0.5, 2f64.powi(52), 2f64.powi(53), 2f64.powi(54)];
        for x in cases.into_iter().flat_map(near).filter(|&x| x >= 0.0) {
            assert_eq!(round_to_i64(x), x.round_ties_even() as i64, "{x}");
        }
    }

    #[test]
    fn dividing_by_a_power_of_two_is_multiplying_by_its_inverse() {
        for sum in [1i64, -1, (1 << 62) - 1, 3 << 40] {
            assert_eq!((sum as f64 / ONE).to_bits(), (sum as f64 * (-40f64).exp2()).to_bits());
        }
    }
}

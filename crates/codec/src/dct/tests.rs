//! The transform against its formulas.

use std::f64::consts::{PI, SQRT_2};

use proptest::prelude::*;
use templar_protocol::hash::{Hasher, Stream};

use super::*;

/// The largest magnitude that [`inverse`] is made for.
const MOST: i64 = (1 << 54) + 256;

fn stream(seed: u64) -> Stream {
    let mut hasher = Hasher::new("templar codec dct");
    hasher.update_value(&seed);
    hasher.into_stream()
}

/// A, entry by entry, from the specification.
fn entry(k: usize, n: usize) -> i128 {
    if k == 0 {
        return 1 << 26;
    }
    let angle = ((2 * n + 1) * k % 256) as f64;
    (f64::from(1 << 26) * SQRT_2 * (angle * PI / 128.0).cos()).round() as i128
}

/// The specification, as plainly as possible.
fn plain(values: &[i64]) -> Vec<i64> {
    let rounded = |sum: i128| (sum + (1 << 28)).div_euclid(1 << 29);
    let mut rows = vec![0; SQUARE];
    for (i, n) in (0..SQUARE).map(|at| (at / SIDE, at % SIDE)) {
        rows[i * SIDE + n] = rounded((0..SIDE).map(|c| i128::from(values[i * SIDE + c]) * entry(c, n)).sum());
    }
    let column = |m: usize, n: usize| rounded((0..SIDE).map(|i| entry(i, m) * rows[i * SIDE + n]).sum());
    (0..SQUARE).map(|at| column(at / SIDE, at % SIDE) as i64).collect()
}

fn back(values: &[i64]) -> Vec<i64> {
    let mut values = values.to_vec();
    inverse(&mut values, &mut Scratch::default());
    values
}

fn integers(seed: u64, most: i64, share: u64) -> Vec<i64> {
    let mut stream = stream(seed);
    let mut value = || stream.below(2 * most as u64 + 1) as i64 - most;
    let values: Vec<i64> = (0..SQUARE).map(|_| value()).collect();
    values.into_iter().map(|value| if value.unsigned_abs() % 100 < share { value } else { 0 }).collect()
}

#[test]
fn the_constants_are_rounded_cosines() {
    for (k, row) in MATRIX.iter().enumerate() {
        for (n, &rounded) in row.iter().enumerate() {
            assert_eq!(i128::from(rounded), entry(k, n), "{k} {n}");
            assert_eq!(entry(k, SIDE - 1 - n), entry(k, n) * if k % 2 == 0 { 1 } else { -1 });
            let exact =
                if k == 0 { 0.125 } else { (0.125 * SQRT_2) * ((2 * n + 1) as f64 * k as f64 * PI / 128.0).cos() };
            assert!((f64::from(rounded) / 2f64.powi(29) - exact).abs() <= 2f64.powi(-30));
        }
    }
    for n in 0..SIDE {
        let sum: i128 = (0..SIDE).map(|k| entry(k, n).abs()).sum();
        assert!(sum < 73 * (1 << 29) / 10, "{sum}");
    }
}

/// The signs of a column of A, and of a row's and a column's product, drive sums as far as they go.
#[test]
fn the_largest_values_do_not_overflow() {
    for at in [0, 31, 32, 63, 5 * SIDE + 40, SQUARE - 1] {
        let (m, n) = (at / SIDE, at % SIDE);
        let worst: Vec<i64> =
            (0..SQUARE).map(|q| MOST * (entry(q / SIDE, m) * entry(q % SIDE, n)).signum() as i64).collect();
        let found = back(&worst);
        assert_eq!(found, plain(&worst));
        assert!(found[at] > 1 << 59 && found.iter().all(|value| value.abs() < 1 << 60), "{}", found[at]);
    }
    let all = vec![-MOST; SQUARE];
    assert_eq!(back(&all), plain(&all));
}

#[test]
fn splitting_is_exact() {
    for value in [0, 1, -1, 1 << 27, (1 << 27) - 1, -(1 << 27), -(1 << 27) - 1, 1 << 57, -(1 << 57), MOST, -MOST] {
        let (high, low) = split(value);
        assert_eq!((i64::from(high) << LOW_BITS) + i64::from(low), value);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn agrees_with_the_plain_product(seed: u64, bits in 1u32..=54, share in 0u64..=100) {
        let values = integers(seed, 1 << bits, share);
        prop_assert_eq!(back(&values), plain(&values));
    }

    /// Sums are exact, so only the roundings of three transforms are in between.
    #[test]
    fn is_linear_but_for_rounding(seed: u64, bits in 1u32..=53) {
        let (a, b) = (integers(seed, 1 << bits, 100), integers(!seed, 1 << bits, 30));
        let sum: Vec<i64> = a.iter().zip(&b).map(|(a, b)| a + b).collect();
        for ((sum, a), b) in back(&sum).into_iter().zip(back(&a)).zip(back(&b)) {
            prop_assert!((sum - a - b).abs() <= 12, "{sum} {a} {b}");
        }
    }

    #[test]
    fn back_and_forth_is_where_it_started(seed: u64, exponent in -20i32..=9) {
        let scale = 2f64.powi(exponent);
        let chunk: Vec<f32> =
            integers(seed, 1 << 20, 100).iter().map(|&value| (value as f64 / f64::from(1 << 20) * scale) as f32).collect();
        let mut scratch = Scratch::default();
        let coefficients = forward(&chunk, &mut scratch).to_vec();
        let energy = |values: &[f32]| values.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>();
        prop_assert!((energy(&coefficients) / energy(&chunk) - 1.0).abs() < 1e-6);
        let unit = (1u64 << 40) as f64;
        let fixed: Vec<i64> = coefficients.iter().map(|&value| (f64::from(value) * unit).round() as i64).collect();
        for (found, value) in back(&fixed).into_iter().zip(&chunk) {
            // The module's documentation, and half a unit of each coefficient and of f32.
            let bound = (4.2 + 64.0) / unit + scale * 64.0 * 2f64.powi(-27);
            prop_assert!((found as f64 / unit - f64::from(*value)).abs() <= bound, "{found} {value}");
        }
    }
}

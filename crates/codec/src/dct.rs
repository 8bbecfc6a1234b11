//! The cosine transform: 4096 values of a chunk, as a square of 64 rows of 64, to coefficients and back.
//!
//! With c(j) = round(2^26 · √2 · cos(j·π / 128)), the integer matrix A has the rows (k) and columns (n)
//!
//! > A\[0\]\[n\] = 2^26, A\[k\]\[n\] = c((2n + 1) · k)
//!
//! A · 2^-29 is the DCT-II of length 64, orthonormal but for the rounding of c: no entry is further off than 2^-30.
//!
//! *To coefficients* (miners): F = A X Aᵀ · 2^-58, in f64 and in a fixed order, so that whoever trains a slice again gets
//! the same error feedback. *Back* (everybody, to the bit): in integers, along the rows of Q and then along the columns,
//!
//! > Y = ⌊(Q A + 2^28) / 2^29⌋, X = ⌊(Aᵀ Y + 2^28) / 2^29⌋
//!
//! where the sums are exact and each of the two steps rounds once, halves upwards. Integer sums have no order, so this
//! code may use that A\[k\]\[63 − n\] = (−1)^k · A\[k\]\[n\] and multiply half as often.
//!
//! *No overflow.* Magnitudes in a column of A add up to less than 7.3 · 2^29. So from |Q| ≤ 2^54 + 256 (see
//! [`crate::aggregate`]) follow |Y| < 2^57 and |X| < 2^60. A product of Y with an entry of A does not fit an i64. Therefore
//! a value is split into v = h · 2^28 + l with −2^27 ≤ l < 2^27 and |h| ≤ 2^29, and with sums H of h and L of l,
//! ⌊(H · 2^28 + L + 2^28) / 2^29⌋ = ⌊(H + 1 + ⌊L / 2^28⌋) / 2⌋; |H| < 2^61 and |L| < 2^59, and so are all partial sums.
//!
//! *Error.* The first rounding is off by at most a half and grows at most 7.3-fold, the second adds a half: X is within
//! 4.2 of what A without rounding gives, in units of 2^-40. A itself shifts X by less than 2^-21 of the largest |Q|.

use templar_protocol::run::TRANSFORM_CHUNK;

/// Values of a transformed chunk.
pub(crate) const SQUARE: usize = TRANSFORM_CHUNK as usize;
/// Rows of a square, and values of a row.
const SIDE: usize = 64;
/// Columns of A that say the others.
const HALF: usize = SIDE / 2;
/// Rows that are transformed at once, in the lanes of vectors.
const LANES: usize = 8;
/// Bits of a value's low part.
const LOW_BITS: u32 = 28;

/// c of the module's documentation; c(64) is 0, and c(128 − j) = −c(j).
#[rustfmt::skip]
static COSINES: [i32; SIDE] = [
    94_906_266, 94_877_682, 94_791_947, 94_649_113, 94_449_266, 94_192_526, 93_879_049, 93_509_022,
    93_082_668, 92_600_246, 92_062_044, 91_468_387, 90_819_634, 90_116_174, 89_358_431, 88_546_862,
    87_681_956, 86_764_234, 85_794_248, 84_772_583, 83_699_854, 82_576_707, 81_403_819, 80_181_897,
    78_911_676, 77_593_921, 76_229_427, 74_819_015, 73_363_535, 71_863_864, 70_320_904, 68_735_586,
    67_108_864, 65_441_718, 63_735_153, 61_990_195, 60_207_898, 58_389_333, 56_535_596, 54_647_805,
    52_727_096, 50_774_626, 48_791_572, 46_779_127, 44_738_504, 42_670_932, 40_577_657, 38_459_940,
    36_319_055, 34_156_294, 31_972_958, 29_770_363, 27_549_835, 25_312_712, 23_060_341, 20_794_080,
    18_515_294, 16_225_354, 13_925_641, 11_617_540, 9_302_441, 6_981_738, 4_656_830, 2_329_116,
];

/// The left half of A.
static MATRIX: [[i32; HALF]; SIDE] = matrix();
/// The same as f64.
static MATRIX_F64: [[f64; HALF]; SIDE] = matrix_f64();

const fn matrix() -> [[i32; HALF]; SIDE] {
    let mut rows = [[COSINES[HALF]; HALF]; SIDE];
    let mut k = 1;
    while k < SIDE {
        let mut n = 0;
        while n < HALF {
            let angle = (2 * n + 1) * k % (4 * SIDE);
            let angle = if angle > 2 * SIDE { 4 * SIDE - angle } else { angle };
            rows[k][n] = match angle {
                0..SIDE => COSINES[angle],
                SIDE => 0,
                _ => -COSINES[2 * SIDE - angle],
            };
            n += 1;
        }
        k += 1;
    }
    rows
}

const fn matrix_f64() -> [[f64; HALF]; SIDE] {
    let (integers, mut rows) = (matrix(), [[0.0; HALF]; SIDE]);
    let mut k = 0;
    while k < SIDE {
        let mut n = 0;
        while n < HALF {
            rows[k][n] = integers[k][n] as f64;
            n += 1;
        }
        k += 1;
    }
    rows
}

/// One thread's working memory: 48 KiB for the way there, 32 KiB for the way back.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    floats: Vec<f64>,
    /// h and l of Y.
    high: Vec<[i32; SIDE]>,
    low: Vec<[i32; SIDE]>,
    /// The coefficients of [`forward`].
    coefficients: Vec<f32>,
}

/// The coefficients of a chunk, each rounded to f32 once.
///
/// Along the rows and then along the columns, the values v of a line become the sums over n = 0 … 31 of A\[k\]\[n\] ·
/// (v\[n\] + v\[63 − n\]) for even k, and of A\[k\]\[n\] · (v\[n\] − v\[63 − n\]) for odd k: from 0, in this order, in f64.
#[inline(always)]
pub(crate) fn forward<'a>(chunk: &[f32], scratch: &'a mut Scratch) -> &'a [f32] {
    let Scratch { floats, coefficients, .. } = scratch;
    floats.resize(SQUARE, 0.0);
    coefficients.resize(SQUARE, 0.0);
    forward_rows(chunk, floats, f64::from, |sum| sum);
    // A power of two: exact.
    forward_rows(floats, coefficients, |value| value, |sum| (sum / (1u64 << 58) as f64) as f32);
    coefficients
}

/// Transforms the rows of `from` into the columns of `to`.
#[inline(always)]
fn forward_rows<F: Copy, T>(from: &[F], to: &mut [T], load: impl Fn(F) -> f64, store: impl Fn(f64) -> T) {
    for first in (0..SIDE).step_by(LANES) {
        // Sums and differences, for even and odd k.
        let mut folded = [[[0.0; LANES]; HALF]; 2];
        for lane in 0..LANES {
            let row = &from[(first + lane) * SIDE..][..SIDE];
            for n in 0..HALF {
                let (value, mirrored) = (load(row[n]), load(row[SIDE - 1 - n]));
                folded[0][n][lane] = value + mirrored;
                folded[1][n][lane] = value - mirrored;
            }
        }
        for (k, entries) in MATRIX_F64.iter().enumerate() {
            let mut sums = [0.0; LANES];
            for (&entry, values) in entries.iter().zip(&folded[k % 2]) {
                for lane in 0..LANES {
                    sums[lane] += entry * values[lane];
                }
            }
            for (to, sum) in to[k * SIDE + first..][..LANES].iter_mut().zip(sums) {
                *to = store(sum);
            }
        }
    }
}

/// What coefficients as fixed-point integers of magnitude up to 2^54 + 256 are in parameters, in place: the integer
/// transform of the module's documentation.
#[inline(always)]
pub(crate) fn inverse(values: &mut [i64], scratch: &mut Scratch) {
    let Scratch { high, low, .. } = scratch;
    high.resize(SIDE, [0; SIDE]);
    low.resize(SIDE, [0; SIDE]);
    let (rows, _) = values.as_chunks_mut();
    for ((row, high), low) in rows.iter().zip(&mut *high).zip(&mut *low) {
        inverse_row(row, high, low);
    }
    for m in 0..HALF {
        // Of products with h and then with l, each for even k and for odd k.
        let mut sums = [[0; SIDE]; 4];
        for k in 0..SIDE {
            add_products(&mut sums[k % 2], MATRIX[k][m], &high[k]);
            add_products(&mut sums[2 + k % 2], MATRIX[k][m], &low[k]);
        }
        for column in 0..SIDE {
            (rows[m][column], rows[SIDE - 1 - m][column]) = joined(sums.each_ref().map(|sums| sums[column]));
        }
    }
}

/// Transforms a row of coefficients back, and splits the result. Most coefficients are 0: nobody sent them.
#[inline(always)]
fn inverse_row(row: &[i64; SIDE], high: &mut [i32; SIDE], low: &mut [i32; SIDE]) {
    let mut sums = [[0; HALF]; 4];
    for (k, &value) in row.iter().enumerate() {
        if value != 0 {
            let (of_high, of_low) = split(value);
            add_products(&mut sums[k % 2], of_high, &MATRIX[k]);
            add_products(&mut sums[2 + k % 2], of_low, &MATRIX[k]);
        }
    }
    for n in 0..HALF {
        let (value, mirrored) = joined(sums.each_ref().map(|sums| sums[n]));
        (high[n], low[n]) = split(value);
        (high[SIDE - 1 - n], low[SIDE - 1 - n]) = split(mirrored);
    }
}

/// Adds a multiple of `values` to `sums`. Checked arithmetic would not be vectorised; nothing overflows.
#[inline(always)]
fn add_products<const N: usize>(sums: &mut [i64; N], factor: i32, values: &[i32; N]) {
    for (sum, &value) in sums.iter_mut().zip(values) {
        *sum = sum.wrapping_add(i64::from(factor).wrapping_mul(i64::from(value)));
    }
}

/// The rounded quotients of the sums over all k, at n and at 63 − n.
#[inline(always)]
fn joined([even_high, odd_high, even_low, odd_low]: [i64; 4]) -> (i64, i64) {
    let rounded = |high: i64, low: i64| high.wrapping_add(1).wrapping_add(low >> LOW_BITS) >> 1;
    (
        rounded(even_high.wrapping_add(odd_high), even_low.wrapping_add(odd_low)),
        rounded(even_high.wrapping_sub(odd_high), even_low.wrapping_sub(odd_low)),
    )
}

/// h and l of the module's documentation.
#[inline(always)]
fn split(value: i64) -> (i32, i32) {
    let low = value << (64 - LOW_BITS) >> (64 - LOW_BITS);
    ((value.wrapping_sub(low) >> LOW_BITS) as i32, low as i32)
}

#[cfg(test)]
mod tests;

//! Elementwise kernels and reductions over rows, written so that the compiler turns them into vector instructions.
//!
//! [`simd`] compiles its argument once for each instruction set and picks one at run time, so that a binary for any
//! x86-64 uses AVX2 or AVX-512 where the processor has them. Sums go into sixteen lanes whatever the vectors' width, so
//! that every instruction set gives the same bits.

use std::f32::consts::LOG2_E;

use crate::arch::simd;

/// Lanes of a sum: one AVX-512 register.
const LANES: usize = 16;

/// eˣ to about one unit in the last place; 0 below −87.7, and as at 88 above. Keeps NaN.
///
/// x = n·ln 2 + r with |r| ≤ ln 2 / 2; a polynomial gives eʳ, and n goes straight into the exponent's bits, where −127 is 0.
/// The polynomial is cut into pairs of terms (Estrin), which do not wait for each other, and every product is fused with its sum.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    /// 1.5 · 2²³: a sum with it rounds to an integer, and holds that integer in its lowest bits.
    const ROUND: f32 = 12_582_912.0;
    /// ln 2 in two parts; the first has so few bits that its product with n is exact.
    const LN_2: [f32; 2] = [0.693_359_4, -2.121_944_4e-4];
    let bounded = if x > 88.0 { 88.0 } else { x };
    let bounded = if bounded < -88.0 { -88.0 } else { bounded };
    let shifted = bounded.mul_add(LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = n.mul_add(-LN_2[1], n.mul_add(-LN_2[0], bounded));
    let (r2, high) = (r * r, r.mul_add(1.0 / 5040.0, 1.0 / 720.0));
    let (middle, low) = (r.mul_add(1.0 / 120.0, 1.0 / 24.0), r.mul_add(1.0 / 6.0, 0.5));
    let fraction = high.mul_add(r2, middle).mul_add(r2, low).mul_add(r2, 1.0 + r);
    let power = f32::from_bits((shifted.to_bits() << 23).wrapping_add(1.0f32.to_bits()));
    fraction * power
}

/// Replaces elements of `x`, sixteen at a time: all are read before one is written, so that the compiler can use
/// vectors without a proof that slices do not overlap.
#[inline(always)]
#[expect(clippy::inline_always, reason = "a call would leave the vector loop")]
pub(crate) fn update<const N: usize>(x: [&mut [f32]; N], new: impl Fn([f32; N]) -> [f32; N]) {
    let mut parts = x.map(|x| x.as_chunks_mut::<LANES>());
    let chunks = parts.iter().map(|(chunks, _)| chunks.len()).min().unwrap_or(0);
    for at in 0..chunks {
        let mut block: [[f32; LANES]; N] = std::array::from_fn(|n| parts[n].0[at]);
        for lane in 0..LANES {
            let result = new(std::array::from_fn(|n| block[n][lane]));
            block.iter_mut().zip(result).for_each(|(values, result)| values[lane] = result);
        }
        for (part, block) in parts.iter_mut().zip(block) {
            part.0[at] = block;
        }
    }
    let rest = parts.iter().map(|(_, rest)| rest.len()).min().unwrap_or(0);
    for at in 0..rest {
        let result = new(std::array::from_fn(|n| parts[n].1[at]));
        for (part, result) in parts.iter_mut().zip(result) {
            part.1[at] = result;
        }
    }
}

/// Σ term(x) in sixteen lanes.
#[inline(always)]
#[expect(clippy::inline_always, reason = "a call would leave the vector loop")]
fn sum(x: &[f32], term: impl Fn(f32) -> f32) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let (chunks, rest) = x.as_chunks::<LANES>();
    for chunk in chunks {
        for (lane, &x) in lanes.iter_mut().zip(chunk) {
            *lane += term(x);
        }
    }
    for (lane, &x) in lanes.iter_mut().zip(rest) {
        *lane += term(x);
    }
    folded(lanes)
}

/// Σ term(x, y) in sixteen lanes.
#[inline(always)]
#[expect(clippy::inline_always, reason = "a call would leave the vector loop")]
fn sum_pairs(x: &[f32], y: &[f32], term: impl Fn(f32, f32) -> f32) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let (xs, ys) = (x.as_chunks::<LANES>(), y.as_chunks::<LANES>());
    for (x, y) in xs.0.iter().zip(ys.0) {
        for ((lane, &x), &y) in lanes.iter_mut().zip(x).zip(y) {
            *lane += term(x, y);
        }
    }
    for ((lane, &x), &y) in lanes.iter_mut().zip(xs.1).zip(ys.1) {
        *lane += term(x, y);
    }
    folded(lanes)
}

#[inline(always)]
#[expect(clippy::inline_always, reason = "a call would leave the vector loop")]
fn folded(lanes: [f32; LANES]) -> f32 {
    let mut lanes = lanes;
    for half in [8, 4, 2, 1] {
        for at in 0..half {
            lanes[at] += lanes[at + half];
        }
    }
    lanes[0]
}

#[inline(always)]
#[expect(clippy::inline_always, reason = "a call would leave the vector loop")]
fn largest(x: &[f32]) -> f32 {
    let mut lanes = [f32::MIN; LANES];
    let (chunks, rest) = x.as_chunks::<LANES>();
    for chunk in chunks {
        for (lane, &x) in lanes.iter_mut().zip(chunk) {
            *lane = if x > *lane { x } else { *lane };
        }
    }
    lanes.iter().chain(rest).fold(f32::MIN, |largest, &x| if x > largest { x } else { largest })
}

/// 1 / √(mean square + ε) of a row.
#[inline(always)]
#[expect(clippy::inline_always, reason = "a call would leave the vector loop")]
fn inverse_root(x: &[f32], epsilon: f32) -> f32 {
    1.0 / (sum(x, |x| x * x) / x.len() as f32 + epsilon).sqrt()
}

/// RMSNorm of every row of `x`: x · w / √(mean square + ε).
pub(crate) fn rms_norm(out: &mut [f32], x: &[f32], weight: &[f32], epsilon: f32) {
    let width = weight.len();
    simd(
        #[inline(always)]
        || {
            for (out, x) in out.chunks_exact_mut(width).zip(x.chunks_exact(width)) {
                norm_row(out, x, weight, epsilon);
            }
        },
    );
}

/// RMS norm of one row.
#[inline(always)]
#[expect(clippy::inline_always, reason = "it is part of a vector kernel")]
pub(crate) fn norm_row(out: &mut [f32], x: &[f32], weight: &[f32], epsilon: f32) {
    let inverse = inverse_root(x, epsilon);
    for ((out, x), weight) in out.iter_mut().zip(x).zip(weight) {
        *out = x * inverse * weight;
    }
}

/// Backward of [`norm_row`], in place: `d`, the gradient of its output, becomes that of its input, and the weight's is added
/// to `d_weight`. The formula is that of [`rms_norm_backward`].
#[inline(always)]
#[expect(clippy::inline_always, reason = "it is part of a vector kernel")]
pub(crate) fn norm_row_backward(d: &mut [f32], d_weight: &mut [f32], x: &[f32], weight: &[f32], epsilon: f32) {
    let inverse = inverse_root(x, epsilon);
    for ((d, d_weight), (x, weight)) in d.iter_mut().zip(d_weight).zip(x.iter().zip(weight)) {
        *d_weight += x * inverse * *d;
        *d *= inverse * weight;
    }
    let pull = inverse * inverse * (dot(d, x) / x.len() as f32);
    for (d, x) in d.iter_mut().zip(x) {
        *d -= pull * x;
    }
}

/// Backward of [`rms_norm`], which is repeated into `normed`: adds what follows from `dy`, the gradient of its output,
/// to `dx`, the gradient of its input, and sets `d_weight`.
///
/// With i = 1/√(mean square + ε) and g = w · dy: dx = i · g − x · i³ · mean(g · x).
pub(crate) fn rms_norm_backward(
    dx: &mut [f32],
    d_weight: &mut [f32],
    normed: &mut [f32],
    dy: &[f32],
    x: &[f32],
    weight: &[f32],
    epsilon: f32,
) {
    let width = weight.len();
    d_weight.fill(0.0);
    simd(
        #[inline(always)]
        || {
            let rows = dx.chunks_exact_mut(width).zip(normed.chunks_exact_mut(width));
            for (((dx, normed), dy), x) in rows.zip(dy.chunks_exact(width)).zip(x.chunks_exact(width)) {
                let inverse = inverse_root(x, epsilon);
                for ((normed, d_weight), (dy, x)) in normed.iter_mut().zip(&mut *d_weight).zip(dy.iter().zip(x)) {
                    *normed = x * inverse;
                    *d_weight += *normed * dy;
                }
                for (normed, weight) in normed.iter_mut().zip(weight) {
                    *normed *= weight;
                }
                // normed · dy = i · x · g.
                let mean = sum_pairs(normed, dy, |normed, dy| normed * dy) / width as f32;
                let pull = inverse * inverse * mean;
                for ((dx, dy), (x, weight)) in dx.iter_mut().zip(dy).zip(x.iter().zip(weight)) {
                    *dx += inverse * weight * dy - pull * x;
                }
            }
        },
    );
}

/// SwiGLU: `out` ← silu(gate) · up, from rows of `[gate, up]`, each as wide as a row of `out`.
pub(crate) fn swiglu(out: &mut [f32], gate_up: &[f32], width: usize) {
    simd(
        #[inline(always)]
        || {
            for (out, gate_up) in out.chunks_exact_mut(width).zip(gate_up.chunks_exact(2 * width)) {
                let (gate, up) = gate_up.split_at(width);
                for ((out, gate), up) in out.iter_mut().zip(gate).zip(up) {
                    *out = gate / (1.0 + exp(-gate)) * up;
                }
            }
        },
    );
}

/// Backward of [`swiglu`]: `out` holds the gradient of the output and becomes that output; `gate_up` becomes its
/// gradient.
pub(crate) fn swiglu_backward(out: &mut [f32], gate_up: &mut [f32], width: usize) {
    simd(
        #[inline(always)]
        || {
            for (out, gate_up) in out.chunks_exact_mut(width).zip(gate_up.chunks_exact_mut(2 * width)) {
                let (gate, up) = gate_up.split_at_mut(width);
                update([out, gate, up], |[d, gate, up]| {
                    let sigmoid = 1.0 / (1.0 + exp(-gate));
                    let silu = gate * sigmoid;
                    [silu * up, d * up * (sigmoid + silu * (1.0 - sigmoid)), d * silu]
                });
            }
        },
    );
}

/// Softmax without its division, for causal scores: in row r the first `first + r` values become e^(score − largest),
/// the rest 0. Passes row, largest and sum to `take`.
pub(crate) fn causal_softmax(scores: &mut [f32], width: usize, first: usize, mut take: impl FnMut(usize, f32, f32)) {
    simd(
        #[inline(always)]
        || {
            for (at, row) in scores.chunks_exact_mut(width).enumerate() {
                let (seen, later) = row.split_at_mut(first + at);
                let largest = largest(seen);
                update([&mut *seen], |[score]| [exp(score - largest)]);
                later.fill(0.0);
                take(at, largest, sum(seen, |x| x));
            }
        },
    );
}

/// Backward of causal softmax. `scores` become the weights P = e^(score − `log_sum`), `d_weights` (dP) the gradient of the
/// scores: P · (dP − Σ P · dP), where the sum is given as `pull`.
pub(crate) fn causal_softmax_backward(
    scores: &mut [f32],
    d_weights: &mut [f32],
    width: usize,
    first: usize,
    log_sum: &[f32],
    pull: &[f32],
) {
    simd(
        #[inline(always)]
        || {
            let rows = scores.chunks_exact_mut(width).zip(d_weights.chunks_exact_mut(width));
            for (at, ((scores, d_weights), (log_sum, pull))) in rows.zip(log_sum.iter().zip(pull)).enumerate() {
                let (seen, later) = scores.split_at_mut(first + at);
                let (d_seen, d_later) = d_weights.split_at_mut(first + at);
                update([seen, d_seen], |[score, d]| {
                    let weight = exp(score - log_sum);
                    [weight, weight * (d - pull)]
                });
                later.fill(0.0);
                d_later.fill(0.0);
            }
        },
    );
}

/// Σ x · y of two rows.
#[inline(always)]
#[expect(clippy::inline_always, reason = "a call would leave the vector loop")]
pub(crate) fn dot(x: &[f32], y: &[f32]) -> f32 {
    sum_pairs(x, y, |x, y| x * y)
}

/// For a block of logits, `[tokens of the vocabulary, rows]`: every column's largest value, and the sum of e^(logit − largest),
/// which the logits become.
pub(crate) fn column_softmax(logits: &mut [f32], largest: &mut [f32], total: &mut [f32]) {
    let width = largest.len();
    largest.fill(f32::MIN);
    total.fill(0.0);
    simd(
        #[inline(always)]
        || {
            for row in logits.chunks_exact(width) {
                for (largest, &logit) in largest.iter_mut().zip(row) {
                    *largest = if logit > *largest { logit } else { *largest };
                }
            }
            for row in logits.chunks_exact_mut(width) {
                for ((logit, largest), total) in row.iter_mut().zip(&*largest).zip(&mut *total) {
                    *logit = exp(*logit - largest);
                    *total += *logit;
                }
            }
        },
    );
}

/// Every row times `factors`, element by element.
pub(crate) fn scale_columns(values: &mut [f32], factors: &[f32]) {
    simd(
        #[inline(always)]
        || {
            for row in values.chunks_exact_mut(factors.len()) {
                for (value, factor) in row.iter_mut().zip(factors) {
                    *value *= factor;
                }
            }
        },
    );
}

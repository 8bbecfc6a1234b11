//! Every instruction set gives the same bits: each one that this processor has runs all vector kernels.
//!
//! For matrix products this holds among the sets that fuse multiplication and addition, which all but very old
//! processors have; the others round each product before they add it.

use proptest::prelude::*;
use pulp::Arch;
use templar_protocol::hash::{Hasher, Stream};
use templar_protocol::layout::ModelSpec;

use crate::arch::{FORCED, simd};
use crate::kernels::{
    causal_softmax, causal_softmax_backward, column_softmax, dot, exp, norm_row, norm_row_backward, rms_norm,
    rms_norm_backward, scale_columns, swiglu, swiglu_backward, update,
};
use crate::product::{Matrix, Onto, Panels, product};
use crate::rope::Rotation;

fn archs() -> Vec<Arch> {
    #[cfg(target_arch = "x86_64")]
    let wider = [pulp::x86::V3::try_new().map(Arch::V3), pulp::x86::V4::try_new().map(Arch::V4)];
    #[cfg(not(target_arch = "x86_64"))]
    let wider = [Some(Arch::new())];
    [Arch::Scalar].into_iter().chain(wider.into_iter().flatten()).collect()
}

/// Values of very different sizes, some of which are not finite.
fn values(count: usize, stream: &mut Stream) -> Vec<f32> {
    let mut value = || match stream.next_u64() {
        bits if bits % 997 == 0 => [f32::INFINITY, f32::NEG_INFINITY, f32::NAN][(bits >> 32) as usize % 3],
        bits => (bits as i32) as f32 * 2f32.powi(-29 - (bits >> 60) as i32),
    };
    (0..count).map(|_| value()).collect()
}

/// Results of all kernels for `rows` rows of `width` values. NaNs count as one value: their sign and payload do not
/// matter.
fn everything(seed: u64, rows: usize, width: usize) -> Vec<u32> {
    let mut stream = Hasher::new("templar engine paths").update_value(&seed).clone().into_stream();
    let epsilon = 1e-5;
    let size = rows * width;
    let (x, dy, weight) = (values(size, &mut stream), values(size, &mut stream), values(width, &mut stream));
    let mut results: Vec<f32> = vec![];

    let mut normed = vec![0.0; size];
    rms_norm(&mut normed, &x, &weight, epsilon);
    results.append(&mut normed);
    let (mut dx, mut d_weight, mut normed) = (dy.clone(), vec![0.0; width], vec![0.0; size]);
    rms_norm_backward(&mut dx, &mut d_weight, &mut normed, &dy, &x, &weight, epsilon);
    results.extend([dx, d_weight, normed].concat());

    let (mut d, mut d_weight) = (dy.clone(), vec![0.0; width]);
    simd(
        #[inline(always)]
        || {
            for (d, x) in d.chunks_exact_mut(width).zip(x.chunks_exact(width)) {
                norm_row_backward(d, &mut d_weight, x, &weight, epsilon);
            }
        },
    );
    results.extend([d, d_weight].concat());

    let (mut gated, mut gate_up) = (vec![0.0; size], [&x[..], &dy].concat());
    swiglu(&mut gated, &gate_up, width);
    results.extend_from_slice(&gated);
    swiglu_backward(&mut gated, &mut gate_up, width);
    results.extend(gated.into_iter().chain(gate_up));

    // Each row of attention sees one value more than the row before, until it sees all.
    let causal = rows.min(width);
    let first = width + 1 - causal;
    let (mut scores, mut d) = (x[..causal * width].to_vec(), dy[..causal * width].to_vec());
    let mut taken = vec![];
    causal_softmax(&mut scores, width, first, |_, largest, total| taken.extend([largest, total]));
    results.extend(scores.drain(..).chain(taken));
    scores.extend_from_slice(&x[..causal * width]);
    let (log_sum, pull) = (values(causal, &mut stream), values(causal, &mut stream));
    causal_softmax_backward(&mut scores, &mut d, width, first, &log_sum, &pull);
    results.extend(scores.into_iter().chain(d));

    let (mut logits, mut largest, mut total) = (x.clone(), vec![0.0; width], vec![0.0; width]);
    column_softmax(&mut logits, &mut largest, &mut total);
    scale_columns(&mut logits, &weight);
    results.extend([logits, largest, total].concat());

    let mut powers = x.clone();
    simd(
        #[inline(always)]
        || update([&mut powers], |[x]| [exp(x)]),
    );
    results.append(&mut powers);
    results.push(simd(
        #[inline(always)]
        || dot(&x, &dy),
    ));
    results.append(&mut rotated(&x, &weight, rows, width));
    results.into_iter().map(|x| if x.is_nan() { f32::NAN.to_bits() } else { x.to_bits() }).collect()
}

/// A product onto something, of either order of its first factor.
fn products(seed: u64, (m, n, k): (usize, usize, usize)) -> Vec<u32> {
    let mut stream = Hasher::new("templar engine products").update_value(&seed).clone().into_stream();
    let (a, b, mut out) = (values(m * k, &mut stream), values(k * n, &mut stream), values(m * n, &mut stream));
    let mut room = vec![0.0; Panels::room(k, n)];
    let b = Panels::pack(&mut room, Matrix::new(&b, k, n));
    product(&mut out, Matrix::new(&a, m, k), b, Onto::Add);
    let mut turned = vec![0.0; m * n];
    product(&mut turned, Matrix::new(&a, k, m).transposed(), b, Onto::Replace);
    out.into_iter().chain(turned).map(|x| if x.is_nan() { f32::NAN.to_bits() } else { x.to_bits() }).collect()
}

/// Rows of an even width turned, with a norm before and without, and turned back.
fn rotated(x: &[f32], weight: &[f32], rows: usize, width: usize) -> Vec<f32> {
    let dim = width / 2 * 2;
    if dim == 0 {
        return vec![];
    }
    let spec = ModelSpec {
        vocab_size: 2,
        hidden_size: dim as u32,
        layers: 0,
        heads: 1,
        kv_heads: 1,
        ffn_size: 1,
        seq_len: rows as u32,
        rope_theta: 50.0,
        norm_eps: 1e-5,
        tied_embeddings: true,
        qk_norm: false,
    };
    let rotation = Rotation::new(&spec, rows);
    let [mut there, mut normed] = [(); 2].map(|()| vec![0.0; rows * dim]);
    let mut back = x[..rows * dim].to_vec();
    simd(
        #[inline(always)]
        || {
            rotation.forward(&mut there, x, width, 0.3, <[f32]>::copy_from_slice);
            rotation.forward(&mut normed, x, width, 0.3, |out, x| norm_row(out, x, weight, 1e-5));
            rotation.backward(&mut back, 0.3);
        },
    );
    [there, normed, back].concat()
}

fn with_each<R>(archs: Vec<Arch>, work: impl Fn() -> R) -> Vec<R> {
    let forced = |arch| {
        FORCED.set(Some(arch));
        let result = work();
        FORCED.set(None);
        result
    };
    archs.into_iter().map(forced).collect()
}

proptest! {
    #[test]
    fn every_instruction_set_gives_the_same_bits(seed: u64, rows in 1usize..9, width in 1usize..100) {
        let results = with_each(archs(), || everything(seed, rows, width));
        prop_assert!(results.iter().all(|other| *other == results[0]));
    }

    #[test]
    fn products_with_fused_instructions_give_the_same_bits(seed: u64, m in 1usize..70, n in 1usize..100, k in 1usize..900) {
        let fused = archs().into_iter().filter(|arch| !matches!(arch, Arch::Scalar)).collect();
        let results = with_each(fused, || products(seed, (m, n, k)));
        prop_assert!(results.iter().all(|other| *other == results[0]));
    }
}

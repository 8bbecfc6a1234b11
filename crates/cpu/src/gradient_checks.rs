//! Every fused operator's backward pass against finite differences of the plain operator in f64.

use templar_protocol::hash::{Hasher, Stream};
use templar_protocol::layout::ModelSpec;

use crate::arch::simd;
use crate::attention::{Attention, HeadNorms, Projections};
use crate::buffers::LossBuffers;
use crate::forward::Context;
use crate::kernels::{exp, rms_norm_backward, swiglu_backward};
use crate::loss::{HeadGradient, cross_entropy};
use crate::meter::Meter;
use crate::oracle::{self, Matrix};
use crate::product::Onto;
use crate::rope::Rotation;
use crate::shape::{Batch, Shape};

fn uniform(count: usize, stream: &mut Stream) -> Vec<f32> {
    (0..count).map(|_| stream.below(1 << 20) as f32 / (1 << 18) as f32 - 2.0).collect()
}

fn matrix(values: &[f64], width: usize) -> Matrix {
    values.chunks_exact(width).map(<[f64]>::to_vec).collect()
}

fn dot(values: &Matrix, weights: &[f32]) -> f64 {
    values.iter().flatten().zip(weights).map(|(value, weight)| value * f64::from(*weight)).sum()
}

/// Checks that `found` is the gradient of `loss` at `at`, in every element or in 200 of them.
fn check(found: &[f32], at: &[f32], stream: &mut Stream, loss: impl Fn(&[f64]) -> f64) {
    const STEP: f64 = 1e-4;
    assert_eq!(found.len(), at.len());
    let mut wide: Vec<f64> = at.iter().map(|&x| f64::from(x)).collect();
    let all = at.len() <= 200;
    for place in 0..at.len().min(200) {
        let place = if all { place } else { stream.below(at.len() as u64) as usize };
        let mut moved = |step| {
            wide[place] = f64::from(at[place]) + step;
            loss(&wide)
        };
        let expected = (moved(STEP) - moved(-STEP)) / (2.0 * STEP);
        wide[place] = f64::from(at[place]);
        let error = (f64::from(found[place]) - expected).abs();
        assert!(error < 2e-5 * (1.0 + expected.abs()), "{place}: {} {expected}", found[place]);
    }
}

#[test]
fn rms_norm() {
    let mut stream = Hasher::new("rms norm").into_stream();
    let (rows, width, epsilon) = (5, 37, 1e-2);
    let (x, dy) = (uniform(rows * width, &mut stream), uniform(rows * width, &mut stream));
    let weight = uniform(width, &mut stream);
    let (mut dx, mut d_weight, mut normed) = (vec![0.0; x.len()], vec![9.0; width], vec![9.0; x.len()]);
    rms_norm_backward(&mut dx, &mut d_weight, &mut normed, &dy, &x, &weight, epsilon as f32);
    let wide = |values: &[f32]| values.iter().map(|&x| f64::from(x)).collect::<Vec<_>>();
    let loss = |x: &[f64], weight: &[f64]| dot(&oracle::rms_norm(&matrix(x, width), weight, epsilon), &dy);
    check(&dx, &x, &mut stream, |x| loss(x, &wide(&weight)));
    check(&d_weight, &weight, &mut stream, |weight| loss(&wide(&x), weight));
    let expected = oracle::rms_norm(&matrix(&wide(&x), width), &wide(&weight), epsilon);
    assert!(normed.iter().zip(expected.iter().flatten()).all(|(found, x)| (f64::from(*found) - x).abs() < 1e-5));
}

#[test]
fn swiglu() {
    let mut stream = Hasher::new("swiglu").into_stream();
    let (rows, width) = (3, 21);
    let (d, mut gate_up) = (uniform(rows * width, &mut stream), uniform(2 * rows * width, &mut stream));
    gate_up.iter_mut().step_by(3).for_each(|x| *x *= 4.0);
    let (mut out, mut gradient) = (d.clone(), gate_up.clone());
    swiglu_backward(&mut out, &mut gradient, width);
    let forward = |gate_up: &[f64]| {
        let rows = gate_up.chunks_exact(2 * width).map(|row| row.split_at(width));
        let (gate, up): (Matrix, Matrix) = rows.map(|(gate, up)| (gate.to_vec(), up.to_vec())).unzip();
        oracle::swiglu(&gate, &up)
    };
    check(&gradient, &gate_up, &mut stream, |gate_up| dot(&forward(gate_up), &d));
    let expected = forward(&gate_up.iter().map(|&x| f64::from(x)).collect::<Vec<_>>());
    assert!(out.iter().zip(expected.iter().flatten()).all(|(found, x)| (f64::from(*found) - x).abs() < 1e-5));
}

fn spec(heads: u32, kv_heads: u32) -> ModelSpec {
    ModelSpec {
        vocab_size: 75,
        hidden_size: heads * 6,
        layers: 0,
        heads,
        kv_heads,
        ffn_size: 8,
        seq_len: 70,
        rope_theta: 50.0,
        norm_eps: 1e-5,
        tied_embeddings: false,
        qk_norm: false,
    }
}

/// Two queries share one key and value; there are more positions than a block has.
#[test]
fn attention() {
    check_attention(None);
}

/// The same with an ε that is not small beside the mean square of a head, and with the gradients of both norms.
#[test]
fn attention_with_norms_of_queries_and_keys() {
    check_attention(Some(0.5));
}

/// `epsilon` is that of the norms of queries and keys, if there are any.
fn check_attention(epsilon: Option<f64>) {
    let mut stream = Hasher::new("attention").into_stream();
    let (spec, positions, dim) = (spec(2, 1), 70, 6);
    let stride = 4 * dim;
    let qkv = uniform(positions * stride, &mut stream);
    let d_mixed = uniform(positions * 2 * dim, &mut stream);
    let rotation = Rotation::new(&spec, positions);
    let weights = uniform(2 * dim, &mut stream);
    let norms =
        epsilon.map(|epsilon| HeadNorms { query: &weights[..dim], key: &weights[dim..], epsilon: epsilon as f32 });
    let attention = Attention { rotation: &rotation, norms, positions, dim, group: 2, stride };
    let projections = Projections { queries: &qkv, key: &qkv[2 * dim..], value: &qkv[3 * dim..] };
    let (mut by_head, mut log_sums) = (vec![0.0; positions * 2 * dim], vec![0.0; 2 * positions]);
    attention.forward(&mut by_head, &mut log_sums, projections);
    let at = |head: usize, position: usize, i: usize| (head * positions + position) * dim + i;
    let mixed: Vec<f32> = (0..positions * 2 * dim).map(|n| by_head[at(n / dim % 2, n / (2 * dim), n % dim)]).collect();
    let mut d_heads = vec![9.0; positions * stride];
    let mut d_norms = vec![9.0; if epsilon.is_some() { 2 * dim } else { 0 }];
    attention.backward((&mut d_heads, &mut d_norms), projections, (&mixed, &d_mixed, 2 * dim), &log_sums);
    let d: Vec<f32> = (0..positions * stride).map(|n| d_heads[at(n / dim % 4, n / stride, n % dim)]).collect();

    let forward = |qkv: &[f64], weights: &[f64]| {
        let part = |from: usize, to: usize| {
            qkv.chunks_exact(stride).map(|row| row[from * dim..to * dim].to_vec()).collect::<Matrix>()
        };
        let normed = |x: Matrix, weight: &[f64]| match epsilon {
            Some(epsilon) => oracle::rms_norm_by_head(&x, weight, epsilon),
            None => x,
        };
        let (query, key) = (normed(part(0, 2), &weights[..dim]), normed(part(2, 3), &weights[dim..]));
        oracle::attention(&spec, &query, &key, &part(3, 4))
    };
    let wide = |values: &[f32]| values.iter().map(|&x| f64::from(x)).collect::<Vec<_>>();
    let expected = forward(&wide(&qkv), &wide(&weights));
    assert!(mixed.iter().zip(expected.iter().flatten()).all(|(found, x)| (f64::from(*found) - x).abs() < 1e-5));
    check(&d, &qkv, &mut stream, |qkv| dot(&forward(qkv, &wide(&weights)), &d_mixed));
    if epsilon.is_some() {
        check(&d_norms, &weights, &mut stream, |weights| dot(&forward(&wide(&qkv), weights), &d_mixed));
    }
}

/// 140 targets in chunks of 64, the last one smaller, and a vocabulary of two blocks; the loss is half of the targets' sum, with
/// a penalty on log Z in the gradient.
#[test]
fn softmax_cross_entropy() {
    let mut stream = Hasher::new("cross-entropy").into_stream();
    let spec = ModelSpec { vocab_size: 1100, ..spec(2, 1) };
    let (shape, rows, hidden) = (Shape::new(&spec), 140, 12);
    let normed = uniform(rows * hidden, &mut stream);
    let theta = uniform(shape.parameters, &mut stream);
    let targets: Vec<u32> = (0..rows).map(|_| stream.below(1100) as u32).collect();
    let (rotation, meter) = (Rotation::new(&spec, 1), Meter::default());
    let batch = Batch { sequences: 2, positions: 70 };
    let context = Context { shape: &shape, theta: &theta, batch, rotation: &rotation, meter: &meter };
    let (mut d_head, mut d_normed) = (vec![9.0; 1100 * hidden], vec![9.0; rows * hidden]);
    let z_loss = 0.03;
    let gradient =
        HeadGradient { scale: 0.5, z_loss, d_head: &mut d_head, onto: Onto::Replace, d_normed: &mut d_normed };
    let losses = cross_entropy(context, &mut LossBuffers::default(), &normed, &targets, 64, Some(gradient));

    let head = &theta[shape.head.clone()];
    let wide = |values: &[f32]| values.iter().map(|&x| f64::from(x)).collect::<Vec<_>>();
    let loss_with = |z_loss: f64, normed: &[f64], head: &[f64]| {
        let logits = oracle::linear(&matrix(normed, hidden), head);
        let [loss, penalty] = oracle::cross_entropy(&logits, &targets, z_loss).0;
        0.5 * rows as f64 * (loss + penalty)
    };
    let loss = |normed: &[f64], head: &[f64]| loss_with(z_loss, normed, head);
    let sum = losses.iter().sum::<f64>();
    assert!((0.5 * sum - loss_with(0.0, &wide(&normed), &wide(head))).abs() < 1e-6 * sum);
    assert!(loss(&wide(&normed), &wide(head)) > 0.51 * sum, "the penalty is part of the test");
    check(&d_normed, &normed, &mut stream, |normed| loss(normed, &wide(head)));
    check(&d_head, head, &mut stream, |head| loss(&wide(&normed), head));
}

#[test]
fn exponential_is_accurate_and_bounded() {
    let x: Vec<f32> = (-870_000..880_000).map(|x| x as f32 * 1e-4).collect();
    let mut y = x.clone();
    simd(
        #[inline(always)]
        || y.iter_mut().for_each(|y| *y = exp(*y)),
    );
    let error = |(x, y): (&f32, &f32)| (f64::from(*y) / f64::from(*x).exp() - 1.0).abs();
    let worst = x.iter().zip(&y).map(error).fold(0.0, f64::max);
    assert!(worst < 2e-7, "{worst}");
    let bits = [-88.0, -1e30, f32::NEG_INFINITY, 0.0].map(|x| exp(x).to_bits());
    assert_eq!(bits, [0, 0, 0, 1.0f32.to_bits()]);
    assert!(exp(f32::NAN).is_nan() && exp(f32::INFINITY).is_finite() && exp(1e30) > 1e38);
}

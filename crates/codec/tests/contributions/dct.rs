//! Contributions as coefficients of the cosine transform: what is sent, owed and applied.

use proptest::prelude::*;
use templar_codec::{Codec, Contribution, EncodeError, outer_step};
use templar_protocol::run::{CodecKind, MeanOver, OuterSpec};

use crate::samples::{codec, dct, encode, transformed, values};

const OUTER: OuterSpec = OuterSpec { rate: 1.0, mean_over: MeanOver::Peers, min_senders: 1 };

fn contribution(codec: &Codec, delta: &[f32]) -> Contribution {
    codec.decode(encode(codec, delta).unwrap()).unwrap()
}

fn energy(values: &[f32]) -> f64 {
    values.iter().map(|&value| f64::from(value).powi(2)).sum()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// What is left and what is sent are coefficients, which add up to those of Δ.
    #[test]
    fn what_is_owed_and_what_is_sent_is_all((_, codec) in transformed(), seed: u64) {
        let delta = values(seed, codec.layout().len());
        let mut all = vec![0.0; delta.len()];
        codec.accumulate(&mut all, &delta);
        let mut left = vec![0.0; delta.len()];
        let contribution = codec.decode(codec.encode(&mut left, &delta).unwrap()).unwrap();
        prop_assert!((energy(&all) / energy(&delta).max(1e-9) - 1.0).abs() < 1e-6 || energy(&delta) == 0.0);
        prop_assert!(energy(&left) <= energy(&all));
        contribution.give_back(&mut left);
        for (back, all) in left.iter().zip(&all) {
            prop_assert!((back - all).abs() <= 4.0 * f32::EPSILON * all.abs().max(4.0), "{back} {all}");
        }
    }

    /// A validator evaluates what one peer's outer step would do, and norms are those of parameters.
    #[test]
    fn evaluation_sees_what_the_outer_step_does((_, codec) in transformed(), seed: u64) {
        let contribution = contribution(&codec, &values(seed, codec.layout().len()));
        let (mut moved, mut evaluated) = (vec![0.0; codec.layout().len()], vec![0.0; codec.layout().len()]);
        outer_step(codec.layout(), &mut moved, &[&contribution], &OUTER);
        contribution.add_scaled(&mut evaluated, 1.0);
        for (tensor, &norm) in codec.layout().tensors().iter().zip(contribution.norms()) {
            prop_assert!((energy(&evaluated[tensor.range()]).sqrt() - norm).abs() <= 1e-6 * norm);
        }
        prop_assert!(moved.iter().zip(&evaluated).all(|(moved, evaluated)| *moved == -*evaluated));
        contribution.add_scaled(&mut evaluated, -1.0);
        // One rounding to f32; and those of the transform may fall on different sides.
        let is_near = |(left, moved): (&f32, &f32)| left.abs() <= moved.abs() * f32::EPSILON + 10.0 * 2f32.powi(-40);
        prop_assert!(evaluated.iter().zip(&moved).all(is_near));
    }
}

#[test]
fn a_constant_is_one_coefficient() {
    let codec = dct(&[4096], 1);
    let contribution = contribution(&codec, &[0.03125; 4096]);
    let mut coefficients = vec![0.0; 4096];
    contribution.give_back(&mut coefficients);
    assert_eq!((coefficients[0], energy(&coefficients)), (2.0, 4.0));
    let mut theta = vec![1.0; 4096];
    outer_step(codec.layout(), &mut theta, &[&contribution], &OUTER);
    assert_eq!(theta, vec![1.0 - 0.03125; 4096]);
}

/// Frequencies of rows and of columns have their places: rows come first, as in memory.
#[test]
fn a_wave_along_a_row_is_a_coefficient_of_the_first_row() {
    let codec = dct(&[4096], 1);
    let wave = |n: usize| ((2 * n + 1) as f32 * 5.0 * std::f32::consts::PI / 128.0).cos();
    let along_rows: Vec<f32> = (0..4096).map(|at| wave(at % 64)).collect();
    let along_columns: Vec<f32> = (0..4096).map(|at| wave(at / 64)).collect();
    for (delta, place) in [(along_rows, 5), (along_columns, 5 * 64)] {
        let mut coefficients = vec![0.0; 4096];
        contribution(&codec, &delta).give_back(&mut coefficients);
        assert!((0..4096).all(|at| (coefficients[at] != 0.0) == (at == place)));
    }
}

#[test]
fn chunks_that_are_not_full_are_not_transformed() {
    let lengths = [700, 4095, 64];
    let plain = codec(CodecKind::TopkSign, &lengths, 4096, 64, 4.0);
    let delta = values(8, plain.layout().len());
    assert_eq!(encode(&dct(&lengths, 64), &delta).unwrap(), encode(&plain, &delta).unwrap());
}

#[test]
fn opposite_contributions_leave_every_bit() {
    let codec = dct(&[4096, 4100], 64);
    let delta = values(4, codec.layout().len());
    let opposite: Vec<f32> = delta.iter().map(|value| -value).collect();
    let (plus, minus) = (contribution(&codec, &delta), contribution(&codec, &opposite));
    let theta: Vec<f32> = delta.iter().map(|value| if *value == 0.0 { -0.0 } else { value * 1e-3 }).collect();
    let mut moved = theta.clone();
    outer_step(codec.layout(), &mut moved, &[&plus, &minus], &OUTER);
    assert!(theta.iter().zip(&moved).all(|(a, b)| a.to_bits() == b.to_bits()));
}

/// The largest scale of everybody, at every coefficient, at the largest rate.
#[test]
fn the_largest_coefficients_do_not_overflow() {
    let codec = dct(&[4096], 4096);
    let mut e: Vec<f32> = values(6, 4096).into_iter().map(|value| 1e6f32.copysign(value)).collect();
    let mut unused = vec![0.0; 4096];
    // Error feedback of coefficients, all of them large.
    let payload = codec.encode(&mut e, &unused).unwrap();
    let loud = codec.decode(payload).unwrap();
    let outer = OuterSpec { rate: 16.0, mean_over: MeanOver::Senders, min_senders: 1 };
    outer_step(codec.layout(), &mut unused, &vec![&loud; 256], &outer);
    assert!(unused.iter().all(|value| value.is_finite()) && energy(&unused) > 0.0);
    loud.add_scaled(&mut unused, 16.0);
    assert!(energy(&unused) < 1e-6 * 4096.0);
}

#[test]
fn a_value_without_finite_coefficients_is_named() {
    let codec = dct(&[64, 2 * 4096], 64);
    for bad in [f32::NAN, f32::INFINITY, f32::MAX] {
        let mut delta = vec![1.0; codec.layout().len()];
        delta[64 + 4096..].fill(bad);
        let error = encode(&codec, &delta).unwrap_err();
        assert_eq!(error, EncodeError::NotFinite { tensor: "tensor1".to_owned(), index: 4096 });
    }
}

#[test]
fn threads_do_not_change_a_bit() {
    let codec = dct(&[300_000, 5000], 64);
    let delta = values(11, codec.layout().len());
    let mut results = Vec::new();
    for threads in [1, 2, 4] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        results.push(pool.install(|| {
            let mut e = delta.clone();
            let payload = codec.encode(&mut e, &delta).unwrap();
            let mut theta = delta.clone();
            codec.decode(payload.clone()).unwrap().add_scaled(&mut theta, -0.3);
            let bits = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
            (payload, codec.feedback_root(&e), bits(&theta))
        }));
    }
    assert!(results.iter().all(|result| *result == results[0]));
}

//! The outer step against an oracle that is as plain as the rule and slow, and against itself in any order.

use std::sync::Arc;

use proptest::prelude::*;
use templar_codec::{Codec, Contribution, clip_factors, outer_step};
use templar_protocol::layout::Layout;
use templar_protocol::run::{CodecKind, CodecSpec, MeanOver, OuterSpec, Transform};

use crate::plain;
use crate::samples::{codec, codecs, dct, encode, layout, stream, transformed, values};

/// Contributions of `count` peers; the later ones louder, so that some are clipped.
fn contributions(codec: &Codec, seed: u64, count: u64) -> Vec<Contribution> {
    (0..count)
        .map(|peer| {
            let mut e = values(seed.wrapping_mul(1000).wrapping_add(peer), codec.layout().len());
            for value in &mut e {
                *value *= (1 + peer) as f32 / 8.0;
            }
            codec.decode(encode(codec, &e).unwrap()).unwrap()
        })
        .collect()
}

/// Value by value, in the codec's coordinates: `None` where the contribution did not send it.
fn sparse(codec: &Codec, contribution: &Contribution, dense: bool) -> Vec<Option<f32>> {
    let mut values = vec![0.0; codec.layout().len()];
    contribution.give_back(&mut values);
    values.into_iter().map(|value| (dense || value != 0.0).then_some(value)).collect()
}

/// θ after one outer step.
fn step(layout: &Layout, theta: &[f32], contributions: &[&Contribution], outer: &OuterSpec) -> Vec<f32> {
    let mut next = theta.to_vec();
    outer_step(layout, &mut next, contributions, outer);
    next
}

/// The rule of the module `aggregate`, parameter by parameter.
fn oracle(theta: &[f32], sent: &[Vec<Option<f32>>], codec: &Codec, spec: &CodecSpec, outer: &OuterSpec) -> Vec<f32> {
    let (layout, mut sums) = (codec.layout(), vec![0i128; theta.len()]);
    for tensor in layout.tensors() {
        let norms: Vec<f64> = sent
            .iter()
            .map(|values| values[tensor.range()].iter().flatten().map(|&v| f64::from(v).powi(2)).sum::<f64>().sqrt())
            .collect();
        let mut sorted = norms.clone();
        sorted.sort_by(f64::total_cmp);
        let median = sorted.get(sorted.len().saturating_sub(1) / 2).copied().unwrap_or(0.0);
        for index in tensor.range() {
            let senders = sent.iter().filter(|values| values[index].is_some()).count();
            let r = match outer.mean_over {
                MeanOver::Peers => sent.len(),
                MeanOver::Senders => senders.max(outer.min_senders as usize),
            };
            for (values, &norm) in sent.iter().zip(&norms) {
                let clip = if norm == 0.0 { 1.0 } else { (median / norm).min(1.0) };
                if let Some(value) = values[index] {
                    let exact = f64::from(value) * clip * outer.rate / r as f64 * 2f64.powi(40);
                    sums[index] += exact.round_ties_even() as i128;
                }
            }
        }
    }
    if spec.transform == Transform::Dct {
        plain::inverse_dct(layout, &mut sums);
    }
    let moved = |theta: f32, sum: i128| (f64::from(theta) - sum as f64 * 2f64.powi(-40)) as f32;
    theta.iter().zip(sums).map(|(&theta, sum)| if sum == 0 { theta } else { moved(theta, sum) }).collect()
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

fn outers() -> impl Strategy<Value = OuterSpec> {
    let mean_over = prop_oneof![Just(MeanOver::Peers), Just(MeanOver::Senders)];
    (0.01..4.0f64, mean_over, 1u32..6).prop_map(|(rate, mean_over, min_senders)| OuterSpec {
        rate,
        mean_over,
        min_senders,
    })
}

proptest! {
    #[test]
    fn agrees_with_the_oracle((spec, codec) in codecs(), seed: u64, count in 0u64..8, outer in outers()) {
        let layout = codec.layout();
        let theta = values(!seed, layout.len());
        let contributions = contributions(&codec, seed, count);
        let dense = spec.kind == CodecKind::DenseF32;
        let sent: Vec<_> = contributions.iter().map(|c| sparse(&codec, c, dense)).collect();
        let found = step(layout, &theta, &contributions.iter().collect::<Vec<_>>(), &outer);
        let expected = oracle(&theta, &sent, &codec, &spec, &outer);
        prop_assert_eq!(bits(&found), bits(&expected));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn agrees_with_the_oracle_in_coefficients((spec, codec) in transformed(), seed: u64, count in 1u64..5, outer in outers()) {
        let layout = codec.layout();
        let theta = values(!seed, layout.len());
        let contributions = contributions(&codec, seed, count);
        let sent: Vec<_> = contributions.iter().map(|c| sparse(&codec, c, false)).collect();
        let found = step(layout, &theta, &contributions.iter().collect::<Vec<_>>(), &outer);
        let expected = oracle(&theta, &sent, &codec, &spec, &outer);
        prop_assert_eq!(bits(&found), bits(&expected));
    }
}

/// A model of several segments, with tails; twenty peers; both rules.
fn fixed_case(transform: Transform) -> (Arc<Layout>, Vec<f32>, Vec<Contribution>) {
    let lengths = [70_000, 256, 4096, 5000, 1];
    let codec = match transform {
        Transform::None => codec(CodecKind::TopkSign, &lengths, 1024, 32, 2.0),
        Transform::Dct => dct(&lengths, 128),
    };
    let layout = layout(&lengths);
    let theta = values(77, layout.len());
    let contributions = contributions(&codec, 42, 20);
    (layout, theta, contributions)
}

#[test]
fn threads_and_order_do_not_change_a_bit() {
    let goldens = [
        (Transform::None, MeanOver::Peers, GOLDEN_PEERS),
        (Transform::None, MeanOver::Senders, GOLDEN_SENDERS),
        (Transform::Dct, MeanOver::Peers, GOLDEN_DCT_PEERS),
        (Transform::Dct, MeanOver::Senders, GOLDEN_DCT_SENDERS),
    ];
    let mut random = stream(3);
    for (transform, mean_over, golden) in goldens {
        let (layout, theta, contributions) = fixed_case(transform);
        let mut refs: Vec<&Contribution> = contributions.iter().collect();
        let outer = OuterSpec { rate: 0.7, mean_over, min_senders: 3 };
        for threads in [1, 2, 4] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            for _ in 0..3 {
                random.shuffle(&mut refs);
                let next = pool.install(|| step(&layout, &theta, &refs, &outer));
                let root = layout.state_root(&next).to_string();
                assert_eq!(root, golden, "{transform:?}, {mean_over:?}, {threads} threads");
            }
        }
    }
}

/// State roots of the fixed case: a change here is a change of the protocol.
const GOLDEN_PEERS: &str = "d4025aac260feb76ed7b04844c1be90d4ee935826bc12fa20a417357256b1dbb";
const GOLDEN_SENDERS: &str = "4995f7d0341ea5601122ab49c113d6e8429c65ebbef5a9b0b7abcbf0daa2c851";
const GOLDEN_DCT_PEERS: &str = "a45a442f63a79476941c50345c5abb051310b3ebd7e559b27db01911e429eae4";
const GOLDEN_DCT_SENDERS: &str = "c343ca797e89db2f754a316210f7f7da3d20512084ca83bf2965dc230c9ad91a";

#[test]
fn untouched_parameters_keep_their_bits() {
    let codec = codec(CodecKind::TopkSign, &[64], 64, 2, 4.0);
    let mut theta = vec![-0.0f32; 64];
    (theta[5], theta[6]) = (1e-42, f32::MAX);
    let outer = OuterSpec { rate: 1.0, mean_over: MeanOver::Peers, min_senders: 1 };
    assert_eq!(bits(&step(codec.layout(), &theta, &[], &outer)), bits(&theta));
    // Opposite contributions cancel exactly; one that is too small for 2^-40 changes nothing.
    let mut e = vec![0.0f32; 64];
    (e[0], e[5]) = (0.3, 0.3);
    let plus = codec.decode(encode(&codec, &e).unwrap()).unwrap();
    for value in &mut e {
        *value = -*value;
    }
    let minus = codec.decode(encode(&codec, &e).unwrap()).unwrap();
    for value in &mut e {
        *value *= 1e-13;
    }
    let tiny = codec.decode(encode(&codec, &e).unwrap()).unwrap();
    for none in [vec![&plus, &minus], vec![&tiny], vec![&tiny, &plus, &minus]] {
        let found = step(codec.layout(), &theta, &none, &outer);
        assert_eq!(bits(&found), bits(&theta));
    }
}

#[test]
fn the_largest_numbers_that_a_run_allows_do_not_overflow() {
    let spec = CodecSpec {
        kind: CodecKind::DenseF32,
        chunk: 16,
        k: 16,
        error_decay: 1.0,
        max_abs: 1024.0,
        transform: Transform::None,
    };
    let codec = Codec::new(layout(&[16]), &spec);
    let loud = codec.decode(encode(&codec, &[f32::MAX; 16]).unwrap()).unwrap();
    for mean_over in [MeanOver::Peers, MeanOver::Senders] {
        let outer = OuterSpec { rate: 16.0, mean_over, min_senders: 1 };
        let next = step(codec.layout(), &[1.0; 16], &vec![&loud; 256], &outer);
        assert_eq!(next, [-16_383.0; 16]);
    }
}

#[test]
fn loud_peers_are_clipped_to_the_lower_median() {
    let codec = codec(CodecKind::DenseF32, &[2, 2], 16, 1, 4.0);
    let peer = |first: f32, second: f32| codec.decode(encode(&codec, &[first, 0.0, 0.0, second]).unwrap()).unwrap();
    let peers = [peer(4.0, 0.0), peer(1.0, 0.0), peer(2.0, 0.0), peer(0.5, 1.0)];
    // Norms 0.5, 1, 2, 4: the lower median is 1. In the second tensor it is 0, so that a lone sender is silenced.
    let factors = clip_factors(&peers.iter().collect::<Vec<_>>());
    assert_eq!(factors, [[0.25, 1.0], [1.0, 1.0], [0.5, 1.0], [1.0, 0.0]]);
    assert!(clip_factors(&[]).is_empty());
}

/// One peer of twenty: a twentieth under the mean over peers, an m-th under the mean over senders.
#[test]
fn a_lone_sender_is_divided_by_the_run_s_rule() {
    let codec = codec(CodecKind::DenseF32, &[1], 16, 1, 4.0);
    let sparse = crate::samples::codec(CodecKind::TopkSign, &[32], 32, 1, 4.0);
    let at = |position: usize| {
        let mut e = vec![0.0; 32];
        e[position] = 1.0;
        sparse.decode(encode(&sparse, &e).unwrap()).unwrap()
    };
    let (lone, crowd) = (at(7), at(3));
    let mut peers = vec![&crowd; 19];
    peers.push(&lone);
    let moved = |mean_over, min_senders| {
        let next = step(sparse.layout(), &[0.0; 32], &peers, &OuterSpec { rate: 1.0, mean_over, min_senders });
        (next[3], next[7])
    };
    assert_eq!(moved(MeanOver::Peers, 1), (-0.95, -0.05));
    assert_eq!(moved(MeanOver::Senders, 1), (-1.0, -1.0));
    assert_eq!(moved(MeanOver::Senders, 4), (-1.0, -0.25));
    // A dense zero was sent all the same: it counts.
    let value = |value: f32| codec.decode(encode(&codec, &[value]).unwrap()).unwrap();
    let (one, also_one, zero) = (value(1.0), value(1.0), value(0.0));
    let outer = OuterSpec { rate: 1.0, mean_over: MeanOver::Senders, min_senders: 1 };
    let next = step(codec.layout(), &[0.0], &[&one, &zero, &also_one], &outer);
    assert_eq!(next, [(-2.0f64 / 3.0) as f32]);
}

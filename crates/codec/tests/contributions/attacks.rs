//! Attacks on the bytes of contributions that are known from another network, with their numbers there: what that
//! network left open must hold here. Attacks 4, 5 and 12 need a network, so they are among the simulations.

use proptest::prelude::*;
use templar_codec::{ChunkError, Codec, Contribution, DecodeError, outer_step};
use templar_protocol::run::{CodecKind, MeanOver, OuterSpec};

use crate::samples::{codec, codecs, crafted, encode, values};

/// The magnitude of a scale above 0, from the specification.
fn high(scale: u64) -> f64 {
    2f64.powi((scale / 8) as i32 - 28) * (1.0 + (scale % 8) as f64 / 8.0)
}

/// The low level of a scale and a ratio, from the specification.
fn low(scale: u64, ratio: u64) -> f64 {
    high(scale) * (2 * ratio + 1) as f64 / 32.0
}

/// What the contribution adds to zeros.
fn dense(codec: &Codec, contribution: &Contribution) -> Vec<f32> {
    let mut values = vec![0.0; codec.layout().len()];
    contribution.add_scaled(&mut values, 1.0);
    values
}

fn outer(mean_over: MeanOver, rate: f64) -> OuterSpec {
    OuterSpec { rate, mean_over, min_senders: 2 }
}

fn in_chunk(source: ChunkError) -> DecodeError {
    DecodeError::Chunk { tensor: "tensor0".to_owned(), chunk: 0, source }
}

/// Value codes that no value belongs to: here every code of a chunk has a value, or the payload has an error.
#[test]
fn attack_1_every_code_has_a_value_or_an_error() {
    let mut accepted = 0;
    // 1.0, the largest magnitude of the run, is scale 224.
    for scale in [0, 1, 7, 8, 100, 223, 224, 225, 255] {
        for nth in 0..16 * 8 * 8 {
            accepted += u32::from(check_codes(scale, nth % 16, nth / 16 % 8, nth / 16 / 8));
        }
    }
    // Six scales times eight sets of signs times (six mixed sets of levels with any ratio, or all high with ratio 0).
    assert_eq!(accepted, 6 * 8 * (6 * 16 + 1));
}

/// Three values of a chunk of 11, at 0, 2 and 4: whether a payload with these codes is accepted. If so, it must send
/// what the specification says, and move θ by that.
fn check_codes(scale: u64, ratio: u64, signs: u64, levels: u64) -> bool {
    let codec = codec(CodecKind::TopkTwoBit, &[11], 16, 4, 1.0);
    let fields = [(scale, 8), (ratio, 4), (signs, 3), (levels, 3), (0b110, 3), (0b111, 3)];
    let found = codec.decode(crafted(CodecKind::TopkTwoBit, true, &fields));
    let error = match (scale, levels) {
        (225.., _) => Some(ChunkError::ScaleTooLarge { code: scale as u8 }),
        // Its gaps are never 0 here.
        (0, _) => Some(ChunkError::EmptyNotCanonical),
        (_, 0) => Some(ChunkError::LevelsNotCanonical),
        (_, 0b111) if ratio > 0 => Some(ChunkError::LevelsNotCanonical),
        _ => None,
    };
    if let Some(error) = error {
        assert_eq!(found, Err(in_chunk(error)));
        return false;
    }
    let contribution = found.unwrap();
    let value = |nth: u64| {
        let magnitude = if levels >> nth & 1 == 1 { high(scale) } else { low(scale, ratio) };
        if signs >> nth & 1 == 1 { -magnitude } else { magnitude }
    };
    let mut expected = [0.0; 11];
    (expected[0], expected[2], expected[4]) = (value(0), value(1), value(2));
    let sent: Vec<f64> = dense(&codec, &contribution).into_iter().map(f64::from).collect();
    assert_eq!(sent, expected);
    let mut theta = [0.0; 11];
    outer_step(codec.layout(), &mut theta, &[&contribution], &outer(MeanOver::Peers, 1.0));
    let is_near = |(&theta, sent): (&f32, f64)| (f64::from(theta) + sent).abs() <= 2f64.powi(-41);
    assert!(theta.iter().zip(expected).all(is_near), "{theta:?} {expected:?}");
    true
}

/// Scales so large that the sum of many is not finite: here θ moves by what the run allows, or the payload has an
/// error.
#[test]
fn attack_2_the_largest_scales_of_the_most_peers_leave_theta_finite() {
    for (max_abs, most) in [(1024.0, 255), (1.0, 224)] {
        let codec = codec(CodecKind::TopkTwoBit, &[4], 4, 2, max_abs);
        for (scale, ratio) in (0..256).flat_map(|scale| (0..16).map(move |ratio| (scale, ratio))) {
            // A high value at 0 and a low one at 1, which is negative.
            let fields = [(scale, 8), (ratio, 4), (0b10, 2), (0b01, 2), (0b11, 2)];
            let found = codec.decode(crafted(CodecKind::TopkTwoBit, false, &fields));
            if scale == 0 || scale > most {
                let too_large = ChunkError::ScaleTooLarge { code: scale as u8 };
                let error = if scale == 0 { ChunkError::EmptyNotCanonical } else { too_large };
                assert_eq!(found, Err(in_chunk(error)));
                continue;
            }
            let hostile = found.unwrap();
            // Most peers with one ratio of each scale.
            let most_peers = if ratio == scale % 16 { 256 } else { 2 };
            for (peers, rule) in
                [(1, MeanOver::Senders), (most_peers, MeanOver::Senders), (most_peers, MeanOver::Peers)]
            {
                let mut theta = [1.0, f32::MAX, f32::MIN, -0.0];
                outer_step(codec.layout(), &mut theta, &vec![&hostile; peers], &outer(rule, 16.0));
                // A lone sender is halved by the mean over senders, of whom there must be two.
                let share = if peers == 1 && rule == MeanOver::Senders { 8.0 } else { 16.0 };
                let moved = (1.0 - share * high(scale)) as f32;
                assert_eq!(theta.map(f32::to_bits), [moved, f32::MAX, f32::MIN, -0.0].map(f32::to_bits));
            }
        }
    }
    let dense = codec(CodecKind::DenseF32, &[2], 4, 1, 1024.0);
    for value in [3e38f32, -3e38, f32::INFINITY, f32::NEG_INFINITY, f32::NAN] {
        let found = dense.decode(crafted(CodecKind::DenseF32, false, &[(0, 32), (value.to_bits().into(), 32)]));
        let (position, bits) = (1, value.to_bits());
        let too_large = ChunkError::ValueTooLarge { position, bits };
        let error = if value.is_finite() { too_large } else { ChunkError::ValueInvalid { position, bits } };
        assert_eq!(found, Err(in_chunk(error)));
    }
}

/// Gaps whose sum is more than a position can hold, which would wrap around to positions that are taken.
#[test]
fn attack_3_positions_do_not_wrap_around() {
    let codec = codec(CodecKind::TopkSign, &[65_536], 65_536, 64, 4.0);
    // b is 9: all low bits of all gaps, and as many zeros before the first one as a chunk can have.
    let mut fields = vec![(224, 8), (0, 64)];
    fields.extend([(u64::MAX, 64); 9]);
    fields.extend([(0, 64), (0, 63), (u64::MAX, 64)]);
    let found = codec.decode(crafted(CodecKind::TopkSign, true, &fields));
    let last = 127 * 512 + 64 * 511 + 63;
    assert_eq!(found, Err(in_chunk(ChunkError::PositionOutOfRange { found: last, len: 65_536 })));
}

/// A valid payload of values times `loudness`, then as many bytes of it changed as there are edits.
fn edited(codec: &Codec, seed: u64, loudness: f32, edits: &[(prop::sample::Index, u8)]) -> Vec<u8> {
    let values: Vec<f32> = values(seed, codec.layout().len()).into_iter().map(|value| value * loudness).collect();
    let mut payload = encode(codec, &values).unwrap();
    for (at, byte) in edits {
        *at.get_mut(&mut payload) = *byte;
    }
    payload
}

fn edits() -> impl Strategy<Value = Vec<(prop::sample::Index, u8)>> {
    prop::collection::vec(any::<(prop::sample::Index, u8)>(), 0..4)
}

proptest! {
    /// Repeated positions: an accepted payload sends as many values as it states, each at its own place.
    #[test]
    fn attack_3_no_position_counts_twice((spec, codec) in codecs(), seed: u64, edits in edits()) {
        let Ok(contribution) = codec.decode(edited(&codec, seed, 1.0, &edits)) else { return Ok(()) };
        if spec.kind == CodecKind::DenseF32 {
            return Ok(());
        }
        let sent = dense(&codec, &contribution);
        let (chunk, k) = (spec.chunk as usize, spec.k as usize);
        let mut values_sent = 0;
        for values in codec.layout().tensors().iter().flat_map(|tensor| sent[tensor.range()].chunks(chunk)) {
            let magnitudes: Vec<f64> = values.iter().map(|&v| f64::from(v.abs())).filter(|&v| v != 0.0).collect();
            values_sent += magnitudes.len() as u64;
            prop_assert!(magnitudes.is_empty() || magnitudes.len() == (k * values.len()).div_ceil(chunk));
            let largest = magnitudes.iter().copied().fold(0.0, f64::max);
            let scale = (1..256).find(|&scale| high(scale) == largest);
            prop_assert!(scale.is_some() || magnitudes.is_empty(), "no scale has the value {largest}");
            let Some(scale) = scale else { continue };
            let lower = magnitudes.iter().copied().find(|&magnitude| magnitude != largest).unwrap_or(largest);
            prop_assert!(magnitudes.iter().all(|&magnitude| magnitude == largest || magnitude == lower));
            let has_lower = spec.kind == CodecKind::TopkTwoBit && (0..16).any(|ratio| low(scale, ratio) == lower);
            prop_assert!(lower == largest || has_lower, "{lower} of {largest}");
        }
        prop_assert_eq!(values_sent, contribution.values_sent());
    }

    /// One of twenty moves no parameter further than its share, and reverses none that the others agree on.
    #[test]
    fn attack_3_one_of_twenty_moves_nothing_beyond_its_share(
        two_levels: bool,
        seed: u64,
        loudness in 0.1f32..100.0,
        edits in edits(),
    ) {
        let kind = if two_levels { CodecKind::TopkTwoBit } else { CodecKind::TopkSign };
        let codec = codec(kind, &[64, 5], 16, 4, 4.0);
        let Ok(hostile) = codec.decode(edited(&codec, seed, loudness, &edits)) else { return Ok(()) };
        // +1 at the first of the values of each chunk.
        let honest = codec.decode(encode(&codec, &[1.0; 69]).unwrap()).unwrap();
        let (theirs, its) = (dense(&codec, &honest), dense(&codec, &hostile));
        let mut peers = vec![&honest; 19];
        peers.push(&hostile);
        for rule in [MeanOver::Peers, MeanOver::Senders] {
            let mut theta = vec![0.0; 69];
            outer_step(codec.layout(), &mut theta, &peers, &outer(rule, 1.0));
            for tensor in codec.layout().tensors() {
                let norm = |sent: &[f32]| sent[tensor.range()].iter().map(|&v| f64::from(v).powi(2)).sum::<f64>().sqrt();
                let (median, norm) = (norm(&theirs), norm(&its));
                let clip = if norm > median { median / norm } else { 1.0 };
                for index in tensor.range() {
                    let (agreed, own) = (f64::from(theirs[index]), f64::from(its[index]));
                    let senders = 19.0 * agreed + f64::from(u8::from(own != 0.0));
                    let divisor = if rule == MeanOver::Peers { 20.0 } else { senders.max(2.0) };
                    let moved = -f64::from(theta[index]);
                    let share = own.abs() * clip / divisor;
                    prop_assert!((moved - 19.0 * agreed / divisor).abs() <= share + 1e-6, "{moved} {share}");
                    prop_assert!(agreed == 0.0 || moved >= (19.0 - median) / 20.0 - 1e-6, "{moved}");
                }
            }
        }
    }
}

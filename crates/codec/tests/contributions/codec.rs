//! Bytes: round trips, one form per contribution, and a typed error for everything else.

use proptest::prelude::*;
use templar_codec::{ChunkError, Codec, Contribution, DecodeError, EncodeError};
use templar_protocol::hash::Hash32;
use templar_protocol::run::{CodecKind, CodecSpec, Transform};

use crate::plain;
use crate::samples::{codec, codecs, crafted, encode, layout, stream, values};

/// What the contribution adds to zeros.
fn dense(codec: &Codec, contribution: &Contribution) -> Vec<f32> {
    let mut values = vec![0.0; codec.layout().len()];
    contribution.add_scaled(&mut values, 1.0);
    values
}

/// The bytes of a contribution, written anew from what it sends.
fn rewritten(codec: &Codec, spec: &CodecSpec, contribution: &Contribution) -> Vec<u8> {
    plain::write(codec.layout(), spec, &dense(codec, contribution))
}

/// What is sent of error feedback alone, and what is left of it.
fn send(codec: &Codec, e: &[f32]) -> (Contribution, Vec<f32>) {
    let mut left = vec![0.0; e.len()];
    let payload = codec.encode(&mut left, e).unwrap();
    (codec.decode(payload).unwrap(), left)
}

fn round_trip(codec: &Codec, e: &[f32]) -> Contribution {
    send(codec, e).0
}

proptest! {
    #[test]
    fn round_trip_keeps_signs_and_counts((_, codec) in codecs(), seed: u64) {
        let e = values(seed, codec.layout().len());
        let payload = encode(&codec, &e).unwrap();
        prop_assert!(payload.len() as u64 <= codec.max_payload_bytes());
        let contribution = codec.decode(payload.clone()).unwrap();
        let sent = dense(&codec, &contribution);
        for (e, sent) in e.iter().zip(&sent) {
            prop_assert!(*sent == 0.0 || *e == 0.0 || e.signum() == sent.signum(), "{e} became {sent}");
        }
        let nonzero = sent.iter().filter(|&&value| value != 0.0).count() as u64;
        prop_assert!(nonzero <= contribution.values_sent());
        // What was sent once is sent again without change: equal magnitudes have an exact mean.
        prop_assert_eq!(encode(&codec, &sent).unwrap(), payload);
        for (tensor, norm) in codec.layout().tensors().iter().zip(contribution.norms()) {
            let expected = sent[tensor.range()].iter().map(|&v| f64::from(v).powi(2)).sum::<f64>().sqrt();
            prop_assert!((norm - expected).abs() <= 1e-12 * expected, "{norm} {expected}");
        }
    }

    #[test]
    fn what_is_left_has_less_energy((_, codec) in codecs(), seed: u64) {
        let e = values(seed, codec.layout().len());
        let (_, left) = send(&codec, &e);
        let energy = |values: &[f32]| values.iter().map(|&value| f64::from(value).powi(2)).sum::<f64>();
        prop_assert!(energy(&left) <= energy(&e));
    }

    #[test]
    fn error_feedback_is_conserved((_, codec) in codecs(), seed: u64) {
        let before = values(seed, codec.layout().len());
        let (contribution, after) = send(&codec, &before);
        let sent = dense(&codec, &contribution);
        for ((before, after), sent) in before.iter().zip(&after).zip(&sent) {
            // Untouched where nothing was sent, else one rounding away.
            prop_assert!(*sent != 0.0 || before.to_bits() == after.to_bits());
            let lost = f64::from(*before) - (f64::from(*after) + f64::from(*sent));
            prop_assert!(lost.abs() <= f64::from(f32::EPSILON) * f64::from(after.abs()), "{lost}");
        }
    }

    /// Any bytes give a contribution that has exactly these bytes, or an error.
    #[test]
    fn decoding_is_total_and_canonical(
        (spec, codec) in codecs(),
        seed: u64,
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        random: bool,
    ) {
        let mut payload = encode(&codec, &values(seed, codec.layout().len())).unwrap();
        if random {
            let mut stream = stream(seed);
            for byte in &mut payload[4..] {
                *byte = stream.next_u64() as u8;
            }
        }
        for (at, byte) in &edits {
            *at.get_mut(&mut payload) = *byte;
        }
        if let Ok(contribution) = codec.decode(payload.clone()) {
            prop_assert_eq!(rewritten(&codec, &spec, &contribution), payload);
        }
    }

    #[test]
    fn arbitrary_bytes_never_panic((spec, codec) in codecs(), bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        if let Ok(contribution) = codec.decode(bytes.clone()) {
            prop_assert_eq!(rewritten(&codec, &spec, &contribution), bytes);
        }
    }
}

/// Every single-bit error in a payload is either detected or changes what the payload means.
#[test]
fn no_two_payloads_are_one_contribution() {
    for kind in [CodecKind::TopkSign, CodecKind::TopkTwoBit] {
        let codec = codec(kind, &[37, 5], 16, 3, 4.0);
        let payload = encode(&codec, &values(1, 42)).unwrap();
        let sent = dense(&codec, &codec.decode(payload.clone()).unwrap());
        let mut accepted = 0;
        for bit in 0..8 * payload.len() {
            let mut changed = payload.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            if let Ok(other) = codec.decode(changed) {
                assert_ne!(dense(&codec, &other), sent);
                accepted += 1;
            }
        }
        assert!(accepted > 0, "some bits, such as signs, do give another contribution");
    }
}

/// Two chunks by hand, as `format` specifies them.
#[test]
fn golden_bytes() {
    let mut e = vec![0.0f32; 19];
    (e[1], e[7], e[12]) = (1.0, -2.0, 3.0);
    e[17] = -0.5;
    // One level. Mean 2: exponent 1 + 28, so 29 · 8 = 232. k = 3 and L = 16, so b = 1. Signs 0, 1, 0; gaps 1, 5, 4: low
    // bits 1, 1, 0; zeros 0, 2, 2, each run with its one: 1 001 001. Mean 0.5: 27 · 8 = 216; k = 1 and L = 3, so b = 1;
    // sign 1; gap 1: low bit 1, no zeros.
    let signs = codec(CodecKind::TopkSign, &[16, 3], 16, 3, 4.0);
    let payload = [b'T', b'C', 1, 1, 232, 0b0101_1010, 0b1_0010, 216, 0b111];
    assert_eq!(encode(&signs, &e).unwrap(), payload);
    let (contribution, mut left) = send(&signs, &e);
    assert_eq!((contribution.values_sent(), contribution.norms()), (4, &[12f64.sqrt(), 0.5][..]));
    assert_eq!((left[1], left[7], left[12], left[17]), (-1.0, 0.0, 1.0, 0.0));
    contribution.add_scaled(&mut left, 1.0);
    assert_eq!(left, e);

    // Two levels: 2.5 for the two larger ones (1.25 · 2: 29 · 8 + 2 = 234), and 1 = 0.4 · 2.5, nearest (2 · 6 + 1) / 32.
    let levels = codec(CodecKind::TopkTwoBit, &[16, 3], 16, 3, 4.0);
    // 234; ratio 6, signs 0 1 0, first bit of the levels 0 | levels 1 1, low bits 1 1 0, unary 1 001 001.
    let payload = [b'T', b'C', 1, 3, 4, 0, 2, 0, 234, 0b0010_0110, 0b0010_1111, 0b1001, 216, 0b1111_0000];
    assert_eq!(encode(&levels, &e).unwrap(), payload);
    let sent = dense(&levels, &round_trip(&levels, &e));
    assert_eq!((sent[1], sent[7], sent[12], sent[17]), (2.5 * 13.0 / 32.0, -2.5, 2.5, -0.5));
}

#[test]
fn an_empty_chunk_has_one_encoding_and_sends_nothing() {
    let codec = codec(CodecKind::TopkSign, &[16], 16, 3, 4.0);
    let payload = [b'T', b'C', 1, 1, 0, 0b1100_0000, 1];
    for tiny in [0.0, -0.0, 1e-40, -1e-40, 3e-9] {
        assert_eq!(encode(&codec, &[tiny; 16]).unwrap(), payload, "{tiny}");
    }
    let contribution = codec.decode(payload.to_vec()).unwrap();
    assert_eq!((contribution.values_sent(), contribution.norms()), (0, &[0.0][..]));
    let mut e = [-0.0f32; 16];
    assert_eq!(codec.encode(&mut e, &[-0.0; 16]).unwrap(), payload);
    contribution.add_scaled(&mut e, 1.0);
    assert!(e.iter().all(|value| value.to_bits() == (-0.0f32).to_bits()));
}

#[test]
fn magnitudes_are_capped() {
    let mut e = vec![0.0f32; 16];
    (e[2], e[9], e[10]) = (f32::MAX, -f32::MAX, 1.0);
    let signs = codec(CodecKind::TopkSign, &[16], 16, 2, 0.1);
    let sent = dense(&signs, &round_trip(&signs, &e));
    assert!(sent[2] <= 0.1 && sent[2] > 0.09 && sent[9] == -sent[2] && sent[10] == 0.0, "{sent:?}");
    let all = codec(CodecKind::DenseF32, &[16], 16, 2, 0.5);
    assert_eq!(dense(&all, &round_trip(&all, &e))[..11], [0., 0., 0.5, 0., 0., 0., 0., 0., 0., -0.5, 0.5]);
}

#[test]
fn a_non_finite_value_is_named() {
    for kind in [CodecKind::TopkSign, CodecKind::TopkTwoBit, CodecKind::DenseF32] {
        let codec = codec(kind, &[40, 33], 16, 3, 4.0);
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut e = values(5, 73);
            (e[45], e[72]) = (bad, bad);
            let error = encode(&codec, &e).unwrap_err();
            assert_eq!(error, EncodeError::NotFinite { tensor: "tensor1".to_owned(), index: 5 });
        }
    }
}

#[test]
fn error_feedback_decays_and_rounds_once() {
    let codec = Codec::new(
        layout(&[4]),
        &CodecSpec {
            kind: CodecKind::TopkSign,
            chunk: 4,
            k: 1,
            error_decay: 0.1,
            max_abs: 1.0,
            transform: Transform::None,
        },
    );
    let start = [3.0f32, 1.0, f32::MAX, 0.0];
    let delta = [-0.3, 0.5, f32::MAX, -0.0];
    let (mut alone, mut encoded) = (start, start);
    codec.accumulate(&mut alone, &delta);
    // In f32, 0.1 · 3 would be rounded before the sum.
    assert_eq!(alone[0], (0.1 * 3.0 - f64::from(0.3f32)) as f32);
    assert_ne!(alone[0], 0.1f32 * 3.0 - 0.3f32);
    assert_eq!((alone[1], alone[2], alone[3].to_bits()), (0.6, f32::INFINITY, 0));
    assert!(codec.encode(&mut encoded, &delta).is_err());
    assert_eq!(alone.map(f32::to_bits), encoded.map(f32::to_bits));
}

/// The error that a payload of one chunk of 11 gives, of which 3 are sent (so that b is 1), with `max_abs` 4: the fields
/// as (value, bits), in the order of the format.
fn chunk_error(kind: CodecKind, fields: &[(u64, u32)]) -> ChunkError {
    let codec = codec(kind, &[11], 16, 4, 4.0);
    // With one level it always has 3 bytes.
    let payload = crafted(kind, kind == CodecKind::TopkTwoBit, fields);
    match codec.decode(payload).unwrap_err() {
        DecodeError::Chunk { tensor, chunk: 0, source } if tensor == "tensor0" => source,
        other => panic!("{other}"),
    }
}

#[test]
fn every_fault_in_a_chunk_has_its_error() {
    // 4.0 is scale 240. Signs 0, low bits of the gaps 0; unary.
    let error =
        |scale, signs, lows, unary| chunk_error(CodecKind::TopkSign, &[(scale, 8), (signs, 3), (lows, 3), unary]);
    assert_eq!(error(241, 0, 0, (0b111, 3)), ChunkError::ScaleTooLarge { code: 241 });
    // Gaps 8, 0, 0 make the positions 8, 9, 10; one more is too far.
    let out = |found| ChunkError::PositionOutOfRange { found, len: 11 };
    assert_eq!(error(240, 0, 0b100, (0b111_0000, 7)), out(11));
    assert_eq!(error(240, 0, 0b111, (0b111_0000, 7)), out(13));
    assert_eq!(error(240, 0, 0, (0b11, 10)), ChunkError::Truncated);
    assert_eq!(error(240, 0, 0, (0b1111, 4)), ChunkError::TrailingBits);
    assert_eq!(error(0, 1, 0, (0b111, 3)), ChunkError::EmptyNotCanonical);
    assert_eq!(error(0, 0, 1, (0b111, 3)), ChunkError::EmptyNotCanonical);
    assert_eq!(error(0, 0, 0, (0b1110, 4)), ChunkError::EmptyNotCanonical);
    let two = |scale, ratio, levels| {
        let fields = [(scale, 8), (ratio, 4), (0, 3), (levels, 3), (0, 3), (0b111, 3)];
        chunk_error(CodecKind::TopkTwoBit, &fields)
    };
    assert_eq!(two(240, 3, 0), ChunkError::LevelsNotCanonical);
    assert_eq!(two(240, 1, 0b111), ChunkError::LevelsNotCanonical);
    assert_eq!(two(0, 1, 0), ChunkError::EmptyNotCanonical);
    assert_eq!(two(0, 0, 0b100), ChunkError::EmptyNotCanonical);
}

#[test]
fn every_fault_in_a_dense_chunk_has_its_error() {
    let codec = codec(CodecKind::DenseF32, &[4, 2], 4, 1, 4.0);
    let error = |bits: u32| {
        let mut payload = encode(&codec, &[1.0; 6]).unwrap();
        payload[4 + 20..].copy_from_slice(&bits.to_le_bytes());
        codec.decode(payload).unwrap_err()
    };
    let chunk = |source| DecodeError::Chunk { tensor: "tensor1".to_owned(), chunk: 0, source };
    for bits in [0x8000_0000, 1, 0x807f_ffff, 0x7f80_0000, 0xff80_0000, 0x7fc0_0000] {
        assert_eq!(error(bits), chunk(ChunkError::ValueInvalid { position: 1, bits }));
    }
    let bits = (-4.0f32).to_bits() + 1;
    assert_eq!(error(bits), chunk(ChunkError::ValueTooLarge { position: 1, bits }));
}

#[test]
fn every_fault_in_the_frame_has_its_error() {
    let codec = codec(CodecKind::TopkSign, &[64, 64], 64, 3, 4.0);
    let payload = encode(&codec, &[1.0; 128]).unwrap();
    assert_eq!(payload.len(), 4 + 2 * 2 + 2 * 3);
    let error = |at: usize, byte: u8| {
        let mut payload = payload.clone();
        payload[at] = byte;
        codec.decode(payload).unwrap_err()
    };
    for found in [0, 3, 7, 13, 17, 100_000] {
        let expected = DecodeError::WrongLength { found: found as u64, least: 14, most: 16 };
        assert_eq!(codec.decode(vec![0; found]), Err(expected));
    }
    assert_eq!(error(1, b'X'), DecodeError::WrongMagic { found: *b"TX" });
    assert_eq!(error(2, 2), DecodeError::UnknownVersion { found: 2 });
    assert_eq!(error(3, 2), DecodeError::WrongKind { found: 2, expected: 1 });
    for found in [0, 2, 5, 255] {
        let expected = DecodeError::SegmentLength { segment: 1, found: u64::from(found), least: 3, most: 4 };
        assert_eq!(error(6, found), expected);
    }
    assert_eq!(error(4, 4), DecodeError::WrongTotal { found: 14, declared: 15 });
}

#[test]
fn bytes_and_the_first_error_are_the_same_for_any_number_of_threads() {
    let codec = codec(CodecKind::TopkSign, &[200_000, 64, 7000, 300_000], 256, 8, 4.0);
    let e = values(9, codec.layout().len());
    let mut results = Vec::new();
    for threads in [1, 2, 4] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        results.push(pool.install(|| {
            let payload = encode(&codec, &e).unwrap();
            let mut broken = payload.clone();
            // Everything from somewhere within the second segment of the first tensor on.
            let second = 4 + 2 * 11 + usize::from(u16::from_le_bytes([payload[4], payload[5]]));
            broken[second + 40 * 6..].fill(0xff);
            let mut bad = e.clone();
            (bad[123_456], bad[400_000]) = (f32::NAN, f32::NAN);
            (payload, codec.decode(broken).unwrap_err(), encode(&codec, &bad).unwrap_err())
        }));
    }
    let source = ChunkError::ScaleTooLarge { code: 255 };
    assert_eq!(results[0].1, DecodeError::Chunk { tensor: "tensor0".to_owned(), chunk: 256 + 40, source });
    assert_eq!(results[0].2, EncodeError::NotFinite { tensor: "tensor0".to_owned(), index: 123_456 });
    assert!(results.iter().all(|result| *result == results[0]));
}

#[test]
fn the_feedback_root_is_over_segments() {
    let codec = codec(CodecKind::TopkSign, &[100, 70_000], 64, 4, 4.0);
    let e: Vec<f32> = (0..70_100u32).map(|nth| nth as f32).collect();
    let segments = codec.feedback_segments(&e);
    // Chunks of 64: one and a rest of 36 in the first tensor; 1024 to a segment and 69 chunks and a rest in the second.
    let bounds = [0, 64, 100, 100 + 65_536, 100 + 1093 * 64, 70_100];
    let digest = |part: &[f32]| {
        let bytes: Vec<u8> = part.iter().flat_map(|value| value.to_le_bytes()).collect();
        Hash32::derive("templar v2 feedback segment", &bytes)
    };
    let expected: Vec<Hash32> = bounds.windows(2).map(|bound| digest(&e[bound[0]..bound[1]])).collect();
    assert_eq!(segments, expected);
    assert_eq!(codec.feedback_root(&e), templar_protocol::tree::root(&expected));
}

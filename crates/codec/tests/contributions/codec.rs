//! Bytes: round trips, one form for each contribution, and a typed error for everything else.

use proptest::prelude::*;
use templar_codec::{ChunkError, Codec, Contribution, DecodeError, EncodeError};
use templar_protocol::run::CodecKind;

use crate::samples::{codec, codecs, stream, values};

/// What the contribution adds to zeros.
fn dense(codec: &Codec, contribution: &Contribution) -> Vec<f32> {
    let mut values = vec![0.0; codec.layout().len()];
    contribution.add_scaled(&mut values, 1.0);
    values
}

fn round_trip(codec: &Codec, e: &[f32]) -> Contribution {
    codec.decode(&codec.encode(e).unwrap()).unwrap()
}

proptest! {
    #[test]
    fn round_trip_keeps_signs_and_counts(codec in codecs(), seed: u64) {
        let e = values(seed, codec.layout().len());
        let payload = codec.encode(&e).unwrap();
        prop_assert_eq!(payload.len() as u64, codec.max_payload_bytes());
        let contribution = codec.decode(&payload).unwrap();
        prop_assert_eq!(&contribution.to_payload(), &payload);
        let sent = dense(&codec, &contribution);
        for (e, sent) in e.iter().zip(&sent) {
            prop_assert!(*sent == 0.0 || *e == 0.0 || e.signum() == sent.signum(), "{e} became {sent}");
        }
        let nonzero = sent.iter().filter(|&&value| value != 0.0).count() as u64;
        prop_assert!(nonzero <= contribution.values_sent());
        // What was sent once is sent again without change: k equal magnitudes have an exact mean.
        prop_assert_eq!(codec.encode(&sent).unwrap(), payload);
        for (tensor, norm) in codec.layout().tensors().iter().zip(contribution.norms()) {
            let expected = sent[tensor.range()].iter().map(|&v| f64::from(v).powi(2)).sum::<f64>().sqrt();
            prop_assert!((norm - expected).abs() <= 1e-12 * expected, "{norm} {expected}");
        }
    }

    #[test]
    fn error_feedback_is_conserved(codec in codecs(), seed: u64) {
        let before = values(seed, codec.layout().len());
        let contribution = round_trip(&codec, &before);
        let sent = dense(&codec, &contribution);
        let mut after = before.clone();
        contribution.subtract_from(&mut after);
        for ((before, after), sent) in before.iter().zip(&after).zip(&sent) {
            // Untouched where nothing was sent, else one rounding away.
            prop_assert!(*sent != 0.0 || before.to_bits() == after.to_bits());
            let lost = f64::from(*before) - (f64::from(*after) + f64::from(*sent));
            prop_assert!(lost.abs() <= f64::from(f32::EPSILON) * f64::from(after.abs()), "{lost}");
        }
    }

    /// Whatever the bytes are: a contribution that has exactly these bytes, or an error.
    #[test]
    fn decoding_is_total_and_canonical(
        codec in codecs(),
        seed: u64,
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        random: bool,
    ) {
        let mut payload = codec.encode(&values(seed, codec.layout().len())).unwrap();
        if random {
            let mut stream = stream(seed);
            for byte in &mut payload[4..] {
                *byte = stream.next_u64() as u8;
            }
        }
        for (at, byte) in &edits {
            *at.get_mut(&mut payload) = *byte;
        }
        if let Ok(contribution) = codec.decode(&payload) {
            prop_assert_eq!(contribution.to_payload(), payload);
        }
    }

    #[test]
    fn arbitrary_bytes_never_panic(codec in codecs(), bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        if let Ok(contribution) = codec.decode(&bytes) {
            prop_assert_eq!(contribution.to_payload(), bytes);
        }
    }
}

/// Every single-bit error in a payload is either seen or changes what the payload means.
#[test]
fn no_two_payloads_are_one_contribution() {
    let codec = codec(CodecKind::TopkSign, &[37, 5], 16, 3, 4.0);
    let payload = codec.encode(&values(1, 42)).unwrap();
    let contribution = codec.decode(&payload).unwrap();
    let mut accepted = 0;
    for bit in 0..8 * payload.len() {
        let mut changed = payload.clone();
        changed[bit / 8] ^= 1 << (bit % 8);
        if let Ok(other) = codec.decode(&changed) {
            assert_ne!(other, contribution);
            accepted += 1;
        }
    }
    assert!(accepted > 0, "some bits, such as signs, do make another contribution");
}

/// Two chunks by hand, as `format` specifies them.
#[test]
fn golden_bytes() {
    let codec = codec(CodecKind::TopkSign, &[16, 3], 16, 3, 4.0);
    let mut e = vec![0.0f32; 19];
    (e[1], e[7], e[12]) = (1.0, -2.0, 3.0);
    e[17] = -0.5;
    // Mean 2 = 0x4000; positions 1, 7, 12 of 4 bits and signs 0, 1, 0: 0x71, 0b0_1_0_1100.
    // Mean 0.5 = 0x3f00; one of 3 positions: 1 of 2 bits and sign 1.
    let payload = [b'T', b'C', 1, 1, 0x00, 0x40, 0x71, 0b0010_1100, 0x00, 0x3f, 0b101];
    assert_eq!(codec.encode(&e).unwrap(), payload);
    let contribution = codec.decode(&payload).unwrap();
    assert_eq!((contribution.values_sent(), contribution.norms()), (4, vec![12f64.sqrt(), 0.5]));
    contribution.subtract_from(&mut e);
    assert_eq!((e[1], e[7], e[12], e[17]), (-1.0, 0.0, 1.0, 0.0));
}

#[test]
fn an_empty_chunk_has_one_encoding_and_sends_nothing() {
    let codec = codec(CodecKind::TopkSign, &[16], 16, 3, 4.0);
    let payload = [b'T', b'C', 1, 1, 0, 0, 0x10, 0x02];
    for tiny in [0.0, -0.0, 1e-40, -1e-40] {
        assert_eq!(codec.encode(&[tiny; 16]).unwrap(), payload, "{tiny}");
    }
    let contribution = codec.decode(&payload).unwrap();
    assert_eq!((contribution.values_sent(), contribution.norms()), (0, vec![0.0]));
    let mut e = vec![-0.0f32; 16];
    contribution.subtract_from(&mut e);
    assert!(e.iter().all(|value| value.to_bits() == (-0.0f32).to_bits()));
    assert_eq!(contribution.overlap(&contribution), 0.0);
}

#[test]
fn magnitudes_are_capped() {
    let mut e = vec![0.0f32; 16];
    (e[2], e[9], e[10]) = (f32::MAX, -f32::MAX, 1.0);
    let signs = codec(CodecKind::TopkSign, &[16], 16, 2, 0.1);
    let sent = dense(&signs, &round_trip(&signs, &e));
    assert!(sent[2] <= 0.1 && sent[2] > 0.099 && sent[9] == -sent[2] && sent[10] == 0.0, "{sent:?}");
    let all = codec(CodecKind::DenseF32, &[16], 16, 2, 0.5);
    assert_eq!(dense(&all, &round_trip(&all, &e))[..11], [0., 0., 0.5, 0., 0., 0., 0., 0., 0., -0.5, 0.5]);
}

#[test]
fn what_is_not_finite_is_named() {
    for kind in [CodecKind::TopkSign, CodecKind::DenseF32] {
        let codec = codec(kind, &[40, 33], 16, 3, 4.0);
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut e = values(5, 73);
            (e[45], e[72]) = (bad, bad);
            let error = codec.encode(&e).unwrap_err();
            assert_eq!(error, EncodeError::NotFinite { tensor: "tensor1".to_owned(), index: 5 });
        }
        assert_eq!(codec.encode(&[0.0; 9]), Err(EncodeError::WrongLength { found: 9, expected: 73 }));
    }
}

/// The error that a topk-sign payload of one chunk of 16 (k = 3, max_abs = 4) gives.
fn chunk_error(scale: u16, positions: [u16; 3], signs: u16, padding: u16) -> ChunkError {
    let codec = codec(CodecKind::TopkSign, &[11], 16, 4, 4.0);
    let bits = positions[0] | positions[1] << 4 | positions[2] << 8 | signs << 12 | padding << 15;
    let payload = [&b"TC\x01\x01"[..], &scale.to_le_bytes(), &bits.to_le_bytes()].concat();
    match codec.decode(&payload).unwrap_err() {
        DecodeError::Chunk { tensor, chunk: 0, source } if tensor == "tensor0" => source,
        other => panic!("{other}"),
    }
}

#[test]
fn every_fault_in_a_chunk_of_signs_has_its_error() {
    for bits in [0x8000, 0x8001, 0xbf80, 0x7f80, 0x7fc0, 0xff80, 0xffff, 0x0001, 0x007f] {
        assert_eq!(chunk_error(bits, [0, 1, 2], 0, 0), ChunkError::ScaleInvalid { bits });
    }
    assert_eq!(chunk_error(0x4081, [0, 1, 2], 0, 0), ChunkError::ScaleTooLarge { bits: 0x4081 });
    assert_eq!(chunk_error(0x4080, [0, 1, 11], 0, 0), ChunkError::PositionOutOfRange { found: 11, len: 11 });
    let (twice, back) = (chunk_error(0x4080, [2, 5, 5], 0, 0), chunk_error(0x4080, [2, 1, 5], 0, 0));
    assert_eq!(twice, ChunkError::PositionsNotIncreasing { previous: 5, found: 5 });
    assert_eq!(back, ChunkError::PositionsNotIncreasing { previous: 2, found: 1 });
    assert_eq!(chunk_error(0, [0, 1, 3], 0, 0), ChunkError::EmptyNotCanonical);
    assert_eq!(chunk_error(0, [0, 1, 2], 4, 0), ChunkError::EmptyNotCanonical);
    assert_eq!(chunk_error(0x4080, [0, 1, 2], 7, 1), ChunkError::PaddingNotZero);
}

#[test]
fn every_fault_in_a_dense_chunk_has_its_error() {
    let codec = codec(CodecKind::DenseF32, &[4, 2], 4, 1, 4.0);
    let error = |bits: u32| {
        let mut payload = codec.encode(&[1.0; 6]).unwrap();
        payload[4 + 20..].copy_from_slice(&bits.to_le_bytes());
        codec.decode(&payload).unwrap_err()
    };
    let chunk = |source| DecodeError::Chunk { tensor: "tensor1".to_owned(), chunk: 0, source };
    for bits in [0x8000_0000, 1, 0x807f_ffff, 0x7f80_0000, 0xff80_0000, 0x7fc0_0000] {
        assert_eq!(error(bits), chunk(ChunkError::ValueInvalid { position: 1, bits }));
    }
    let bits = (-4.0f32).to_bits() + 1;
    assert_eq!(error(bits), chunk(ChunkError::ValueTooLarge { position: 1, bits }));
}

#[test]
fn every_fault_in_the_head_has_its_error() {
    let codec = codec(CodecKind::TopkSign, &[16], 16, 3, 4.0);
    let payload = codec.encode(&[1.0; 16]).unwrap();
    let error = |at: usize, byte: u8| {
        let mut payload = payload.clone();
        payload[at] = byte;
        codec.decode(&payload).unwrap_err()
    };
    for found in [0, 3, 7, 9, 100_000] {
        let expected = DecodeError::WrongLength { found: found as u64, expected: 8 };
        assert_eq!(codec.decode(&vec![0; found]), Err(expected));
    }
    assert_eq!(error(1, b'X'), DecodeError::WrongMagic { found: *b"TX" });
    assert_eq!(error(2, 2), DecodeError::UnknownVersion { found: 2 });
    assert_eq!(error(3, 2), DecodeError::WrongKind { found: 2, expected: 1 });
}

#[test]
fn the_first_error_is_reported_and_bytes_are_the_same_for_any_number_of_threads() {
    let codec = codec(CodecKind::TopkSign, &[20_000, 64, 7000, 30_000], 256, 8, 4.0);
    let e = values(9, codec.layout().len());
    let mut results = Vec::new();
    for threads in [1, 2, 4] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        results.push(pool.install(|| {
            let payload = codec.encode(&e).unwrap();
            let mut broken = payload.clone();
            // The scales of chunk 40 of the first tensor, and of everything after it.
            broken[4 + 40 * 11..].fill(0xff);
            let mut bad = e.clone();
            (bad[12_345], bad[40_000]) = (f32::NAN, f32::NAN);
            (payload, codec.decode(&broken).unwrap_err(), codec.encode(&bad).unwrap_err())
        }));
    }
    let source = ChunkError::ScaleInvalid { bits: 0xffff };
    assert_eq!(results[0].1, DecodeError::Chunk { tensor: "tensor0".to_owned(), chunk: 40, source });
    assert_eq!(results[0].2, EncodeError::NotFinite { tensor: "tensor0".to_owned(), index: 12_345 });
    assert!(results.iter().all(|result| *result == results[0]));
}

#[test]
fn overlap_counts_common_positions() {
    let codec = codec(CodecKind::TopkSign, &[64, 32], 64, 4, 4.0);
    let contribution = |positions: &[usize]| {
        let mut e = vec![0.0; 96];
        for &position in positions {
            e[position] = 1.0;
        }
        round_trip(&codec, &e)
    };
    let a = contribution(&[1, 5, 9, 33, 64, 65]);
    let b = contribution(&[5, 9, 40, 63, 65, 95]);
    assert_eq!((a.overlap(&b), b.overlap(&a)), (0.5, 0.5));
    assert_eq!(a.overlap(&a), 1.0);
    // The second tensor of the other one is empty, so only the first counts: two of four.
    assert_eq!(a.overlap(&contribution(&[5, 9, 40, 63])), 0.5);
}

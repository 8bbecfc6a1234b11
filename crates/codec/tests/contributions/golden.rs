//! Golden vectors in `testdata/contributions`, for this and every other implementation: payloads with the values that they
//! send (under a transform also with what one of them makes of θ = 0), and in `rejects.json` payloads with the rule of the specification (section 5) that each breaks.
//!
//! `TEMPLAR_BLESS=1 cargo test -p templar-codec golden` rewrites them. A difference is a change of the protocol.

use std::fs;
use std::path::PathBuf;

use serde_json::{Value, json};
use templar_codec::{Codec, DecodeError, outer_step};
use templar_protocol::run::{CodecKind, CodecSpec, MeanOver, OuterSpec, Transform};

use crate::samples::{crafted, dct_spec, encode, layout, values};

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../testdata/contributions")
}

fn spec(kind: CodecKind, chunk: u32, k: u32) -> CodecSpec {
    CodecSpec { kind, chunk, k, error_decay: 0.95, max_abs: 4.0, transform: Transform::None }
}

/// Name, specification, and the lengths of the tensors.
fn cases() -> Vec<(&'static str, CodecSpec, Vec<u64>)> {
    vec![
        ("one-bit", spec(CodecKind::TopkSign, 4096, 64), vec![4096, 2 * 4096 + 700, 128, 1]),
        ("two-bit", spec(CodecKind::TopkTwoBit, 4096, 64), vec![4096, 2 * 4096 + 700, 128, 1]),
        ("several-segments", spec(CodecKind::TopkSign, 256, 2), vec![70_000, 300]),
        ("half-of-all", spec(CodecKind::TopkTwoBit, 100, 50), vec![1000, 33]),
        ("everything", spec(CodecKind::TopkSign, 64, 64), vec![150]),
        ("dense", spec(CodecKind::DenseF32, 16, 1), vec![40, 3]),
        ("empty-chunk", spec(CodecKind::TopkTwoBit, 16, 3), vec![48, 5]),
        ("dct", dct_spec(CodecKind::TopkTwoBit, 64), vec![4096 + 100, 64]),
    ]
}

fn vector(name: &str, spec: &CodecSpec, lengths: &[u64], seed: u64) -> Value {
    let codec = Codec::new(layout(lengths), spec);
    let mut e = values(seed, codec.layout().len());
    if name == "empty-chunk" {
        // The second chunk, and the last one, which is a segment of its own.
        e[16..32].fill(0.0);
        e[48..].fill(0.0);
    }
    let payload = encode(&codec, &e).unwrap();
    let contribution = codec.decode(payload.clone()).unwrap();
    let mut sent = vec![0.0; codec.layout().len()];
    contribution.give_back(&mut sent);
    let nonzero = || sent.iter().enumerate().filter(|(_, value)| **value != 0.0);
    let mut vector = json!({
        "name": name,
        "codec": codec_json(spec),
        "tensor_lengths": lengths,
        "payload_hex": hex::encode(payload),
        "positions": nonzero().map(|(position, _)| position).collect::<Vec<_>>(),
        "value_bits": nonzero().map(|(_, value)| value.to_bits()).collect::<Vec<_>>(),
    });
    if spec.transform == Transform::Dct {
        let mut theta = vec![0.0; codec.layout().len()];
        let outer = OuterSpec { rate: 1.0, mean_over: MeanOver::Peers, min_senders: 1 };
        outer_step(codec.layout(), &mut theta, &[&contribution], &outer);
        vector["codec"]["transform"] = json!(spec.transform);
        vector["theta_bits"] = theta.iter().map(|value| value.to_bits()).collect();
    }
    vector
}

fn codec_json(spec: &CodecSpec) -> Value {
    json!({ "kind": spec.kind, "chunk": spec.chunk, "k": spec.k, "max_abs": spec.max_abs })
}

/// Compares `found` with the stored vector; with `TEMPLAR_BLESS`, stores it first.
fn assert_golden(name: &str, found: &Value) {
    let path = folder().join(format!("{name}.json"));
    if std::env::var_os("TEMPLAR_BLESS").is_some() {
        fs::create_dir_all(folder()).unwrap();
        fs::write(&path, format!("{found}\n")).unwrap();
    }
    let expected: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    assert!(*found == expected, "{name} has changed: see the module's documentation");
}

#[test]
fn golden_vectors_hold() {
    for (seed, (name, spec, lengths)) in (1..).zip(cases()) {
        let found = vector(name, &spec, &lengths, seed);
        assert_golden(name, &found);
        assert!(found["positions"].as_array().unwrap().len() > 2, "{name} sends something");
    }
}

/// A rule of section 5, and a payload that breaks it. One chunk of 11 sends 3 values, with b = 1; dense-f32 two times 2.
type Reject = (u32, CodecKind, Vec<u8>);

fn frame_rejects() -> Vec<Reject> {
    let valid = crafted(CodecKind::TopkTwoBit, true, &[(240, 8), (3, 4), (0, 3), (1, 3), (0, 3), (0b111, 3)]);
    assert!(Codec::new(layout(&[11]), &spec(CodecKind::TopkTwoBit, 16, 4)).decode(valid.clone()).is_ok());
    let changed = |at: usize, byte: u8| {
        let mut payload = valid.clone();
        payload[at] = byte;
        payload
    };
    let shorter = valid[..valid.len() - 1].to_vec();
    let longer = [&valid[..], &[0, 0]].concat();
    // Its head, then its length: three or four bytes, of which there are three.
    let edited = [(0, b'X'), (1, b'X'), (2, 2), (3, 1), (4, 2), (4, 5), (4, 4)].map(|(at, byte)| changed(at, byte));
    [shorter, longer].into_iter().chain(edited).map(|payload| (1, CodecKind::TopkTwoBit, payload)).collect()
}

fn chunk_rejects() -> Vec<Reject> {
    // Scale, signs, low bits, unary part: always three bytes. 4.0, which is `max_abs`, is scale 240.
    let sign = |rule, scale, signs, lows, unary| {
        let fields = [(scale, 8), (signs, 3), (lows, 3), unary];
        (rule, CodecKind::TopkSign, crafted(CodecKind::TopkSign, false, &fields))
    };
    // The same with ratio and levels, all gaps 0, and what follows.
    let two_bit = |rule, scale, ratio, levels, after| {
        let fields = [(scale, 8), (ratio, 4), (0, 3), (levels, 3), (0, 3), (0b111, 3), after];
        (rule, CodecKind::TopkTwoBit, crafted(CodecKind::TopkTwoBit, true, &fields))
    };
    vec![
        sign(2, 241, 0, 0, (0b111, 3)),
        two_bit(2, 255, 0, 1, (0, 0)),
        // Positions 8, 9 and 10 are the last; here the last one is 11, then 13.
        sign(3, 240, 0, 0b100, (0b111_0000, 7)),
        sign(3, 240, 0, 0b111, (0b111_0000, 7)),
        sign(4, 0, 1, 0, (0b111, 3)),
        sign(4, 0, 0, 1, (0b111, 3)),
        sign(4, 0, 0, 0, (0b1110, 4)),
        two_bit(4, 0, 1, 0, (0, 0)),
        two_bit(4, 0, 0, 0b100, (0, 0)),
        two_bit(5, 240, 0, 0, (0, 0)),
        two_bit(5, 240, 3, 0, (0, 0)),
        two_bit(5, 240, 1, 0b111, (0, 0)),
        sign(6, 240, 0, 0, (0b11, 10)),
        sign(6, 240, 0, 0, (0b1111, 4)),
        two_bit(6, 240, 0, 1, (0, 8)),
        two_bit(6, 240, 0, 1, (0b1000_0000, 8)),
    ]
}

fn dense_rejects() -> Vec<Reject> {
    let above = 4f32.to_bits() + 1;
    let bits = [0x8000_0000, 1, 0x807f_ffff, 0x7f80_0000, 0xff80_0000, 0x7fc0_0000, above, above | 0x8000_0000];
    let one = (u64::from(1f32.to_bits()), 32);
    let payload = |bits: u32| crafted(CodecKind::DenseF32, false, &[one, one, one, (bits.into(), 32)]);
    bits.into_iter().map(|bits| (7, CodecKind::DenseF32, payload(bits))).collect()
}

/// What the error is called in the code.
fn error_name(error: DecodeError) -> String {
    let shown = match error {
        DecodeError::Chunk { source, .. } => format!("{source:?}"),
        other => format!("{other:?}"),
    };
    shown.split(' ').next().unwrap().to_owned()
}

#[test]
fn golden_rejects_hold() {
    let case = |(rule, kind, payload): Reject| {
        let (spec, lengths) = match kind {
            CodecKind::DenseF32 => (spec(kind, 16, 1), &[2, 2][..]),
            _ => (spec(kind, 16, 4), &[11][..]),
        };
        let error = Codec::new(layout(lengths), &spec).decode(payload.clone()).unwrap_err();
        json!({
            "rule": rule,
            "error": error_name(error),
            "codec": codec_json(&spec),
            "tensor_lengths": lengths,
            "payload_hex": hex::encode(payload),
        })
    };
    let all = [frame_rejects(), chunk_rejects(), dense_rejects()].concat();
    let rejects: Vec<Value> = all.into_iter().map(case).collect();
    assert_golden("rejects", &json!({ "rejects": rejects }));
}

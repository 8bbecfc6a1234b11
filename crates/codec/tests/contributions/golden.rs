//! Golden vectors in `testdata/contributions`, for this and every other implementation.
//!
//! `TEMPLAR_BLESS=1 cargo test -p templar-codec golden` writes them anew. A difference is a change of the protocol.

use std::{fs, path::PathBuf};

use serde_json::{Value, json};
use templar_codec::Codec;
use templar_protocol::run::{CodecKind, CodecSpec};

use crate::samples::{encode, layout, values};

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../testdata/contributions")
}

/// Name, specification, and the lengths of the tensors.
fn cases() -> Vec<(&'static str, CodecSpec, Vec<u64>)> {
    let spec = |kind, chunk, k| CodecSpec { kind, chunk, k, error_decay: 0.95, max_abs: 4.0 };
    vec![
        ("one-bit", spec(CodecKind::TopkSign, 4096, 64), vec![4096, 2 * 4096 + 700, 128, 1]),
        ("two-bit", spec(CodecKind::TopkTwoBit, 4096, 64), vec![4096, 2 * 4096 + 700, 128, 1]),
        ("several-segments", spec(CodecKind::TopkSign, 256, 2), vec![70_000, 300]),
        ("half-of-all", spec(CodecKind::TopkTwoBit, 100, 50), vec![1000, 33]),
        ("everything", spec(CodecKind::TopkSign, 64, 64), vec![150]),
        ("dense", spec(CodecKind::DenseF32, 16, 1), vec![40, 3]),
    ]
}

fn vector(name: &str, spec: &CodecSpec, lengths: &[u64], seed: u64) -> Value {
    let codec = Codec::new(layout(lengths), spec);
    let payload = encode(&codec, &values(seed, codec.layout().len())).unwrap();
    let mut sent = vec![0.0; codec.layout().len()];
    codec.decode(payload.clone()).unwrap().add_scaled(&mut sent, 1.0);
    let nonzero = || sent.iter().enumerate().filter(|(_, value)| **value != 0.0);
    json!({
        "name": name,
        "codec": { "kind": spec.kind, "chunk": spec.chunk, "k": spec.k, "max_abs": spec.max_abs },
        "tensor_lengths": lengths,
        "payload_hex": hex::encode(payload),
        "positions": nonzero().map(|(position, _)| position).collect::<Vec<_>>(),
        "value_bits": nonzero().map(|(_, value)| value.to_bits()).collect::<Vec<_>>(),
    })
}

#[test]
fn golden_vectors_hold() {
    let bless = std::env::var_os("TEMPLAR_BLESS").is_some();
    for (seed, (name, spec, lengths)) in (1..).zip(cases()) {
        let path = folder().join(format!("{name}.json"));
        let found = vector(name, &spec, &lengths, seed);
        if bless {
            fs::create_dir_all(folder()).unwrap();
            fs::write(&path, format!("{found}\n")).unwrap();
        }
        let expected: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
        assert!(found == expected, "{name} has changed: see the module's documentation");
        assert!(found["positions"].as_array().unwrap().len() > 2, "{name} sends something");
    }
}

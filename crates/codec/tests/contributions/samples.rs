//! Small models and pseudo-gradients for the tests.

use std::sync::Arc;

use proptest::prelude::*;
use templar_codec::{Codec, EncodeError};
use templar_protocol::hash::{Hasher, Stream};
use templar_protocol::layout::Layout;
use templar_protocol::run::{CodecKind, CodecSpec, Transform};

pub(crate) fn layout(lengths: &[u64]) -> Arc<Layout> {
    Arc::new(Layout::new(lengths.iter().enumerate().map(|(index, &len)| (format!("tensor{index}"), vec![len]))))
}

pub(crate) fn codec(kind: CodecKind, lengths: &[u64], chunk: u32, k: u32, max_abs: f64) -> Codec {
    Codec::new(layout(lengths), &CodecSpec { kind, chunk, k, error_decay: 0.95, max_abs, transform: Transform::None })
}

/// Codecs of all kinds over a few tensors, with full chunks, tails, and tensors shorter than a chunk.
pub(crate) fn codecs() -> impl Strategy<Value = (CodecSpec, Codec)> {
    let kinds = [(3, CodecKind::TopkSign), (3, CodecKind::TopkTwoBit), (1, CodecKind::DenseF32)];
    let kind = prop::strategy::Union::new_weighted(kinds.map(|(weight, kind)| (weight, Just(kind))).to_vec());
    (kind, prop::collection::vec(0u64..200, 1..5), 1u32..=70, 0.0..1.0f64).prop_map(|(kind, lengths, chunk, share)| {
        let k = 1 + (share * f64::from(chunk - 1)) as u32;
        let spec = CodecSpec { kind, chunk, k, error_decay: 0.95, max_abs: 4.0, transform: Transform::None };
        (spec.clone(), Codec::new(layout(&lengths), &spec))
    })
}

/// topk-sign of the cosine transform.
pub(crate) fn dct(lengths: &[u64], k: u32) -> Codec {
    Codec::new(layout(lengths), &dct_spec(CodecKind::TopkSign, k))
}

pub(crate) fn dct_spec(kind: CodecKind, k: u32) -> CodecSpec {
    CodecSpec { kind, chunk: 4096, k, error_decay: 0.95, max_abs: 4.0, transform: Transform::Dct }
}

/// Codecs under the cosine transform over a few tensors, with full chunks, tails, and tensors shorter than a chunk.
pub(crate) fn transformed() -> impl Strategy<Value = (CodecSpec, Codec)> {
    let kind = prop_oneof![Just(CodecKind::TopkSign), Just(CodecKind::TopkTwoBit)];
    let lengths = prop::collection::vec(prop_oneof![Just(4096u64), 0u64..9000], 1..3);
    (kind, lengths, 1u32..=4096).prop_map(|(kind, lengths, k)| {
        let spec = dct_spec(kind, k);
        (spec.clone(), Codec::new(layout(&lengths), &spec))
    })
}

pub(crate) fn stream(seed: u64) -> Stream {
    let mut hasher = Hasher::new("templar codec test values");
    hasher.update_value(&seed);
    hasher.into_stream()
}

/// A made-up pseudo-gradient: values of many magnitudes, both signs, zeros and ties among them; some chunks empty.
pub(crate) fn values(seed: u64, len: usize) -> Vec<f32> {
    let mut stream = stream(seed);
    let mut values: Vec<f32> = (0..len)
        .map(|_| {
            let exponent = -(stream.below(12) as i32);
            (stream.below(33) as f32 - 16.0) * (exponent as f32).exp2() / 16.0
        })
        .collect();
    for block in values.chunks_mut(61) {
        if stream.below(6) == 0 {
            block.fill(0.0);
        }
    }
    values
}

/// The payload of error feedback alone.
pub(crate) fn encode(codec: &Codec, e: &[f32]) -> Result<Vec<u8>, EncodeError> {
    codec.encode(&mut vec![0.0; e.len()], e)
}

/// Integers of a few bits (value, bits) as the format packs them: least significant bit first, zeros up to a whole byte.
pub(crate) fn pack(fields: &[(u64, u32)]) -> Vec<u8> {
    let bits = fields.iter().flat_map(|&(value, count)| (0..count).map(move |bit| value >> bit & 1 == 1));
    let bits: Vec<bool> = bits.collect();
    bits.chunks(8).map(|byte| byte.iter().rev().fold(0, |byte, &bit| byte << 1 | u8::from(bit))).collect()
}

/// A payload of one segment, made of integers of a few bits. `states_length`: whether it can have another length.
pub(crate) fn crafted(kind: CodecKind, states_length: bool, fields: &[(u64, u32)]) -> Vec<u8> {
    let body = pack(fields);
    let length = (body.len() as u16).to_le_bytes();
    [&b"TC\x01"[..], &[kind as u8], if states_length { &length } else { &[] }, &body].concat()
}

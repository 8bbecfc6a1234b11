//! Payloads give an error, or a contribution that encodes to exactly these bytes and that a node can add.
//!
//! The first byte chooses the run. If its highest bit is set, the rest are edits of a valid payload (position, 2 bytes;
//! value, 1 byte), else the payload itself.
#![no_main]

use std::sync::{Arc, LazyLock};

use libfuzzer_sys::fuzz_target;
use templar_codec::{Codec, Contribution, outer_step};
use templar_protocol::layout::Layout;
use templar_protocol::run::{CodecKind, CodecSpec, MeanOver, OuterSpec, Transform};

#[path = "../../crates/codec/tests/contributions/plain.rs"]
mod plain;

struct Run {
    spec: CodecSpec,
    codec: Codec,
    valid: Vec<u8>,
}

static RUNS: LazyLock<Vec<Run>> = LazyLock::new(|| {
    let shapes = [(64, 4, vec![64, 100, 3]), (16, 16, vec![40]), (4096, 64, vec![4096]), (7, 2, vec![50, 1])];
    let kinds = [CodecKind::TopkSign, CodecKind::TopkTwoBit, CodecKind::DenseF32];
    let direct = kinds
        .into_iter()
        .flat_map(|kind| shapes.each_ref().map(|(chunk, k, lengths)| run(kind, *chunk, *k, lengths, Transform::None)));
    let transformed = [CodecKind::TopkSign, CodecKind::TopkTwoBit];
    direct.chain(transformed.map(|kind| run(kind, 4096, 64, &[4096, 5], Transform::Dct))).collect()
});

fn run(kind: CodecKind, chunk: u32, k: u32, lengths: &[u64], transform: Transform) -> Run {
    let layout = Layout::new(lengths.iter().map(|&length| (format!("t{length}"), vec![length])));
    let spec = CodecSpec { kind, chunk, k, error_decay: 0.9, max_abs: 4.0, transform };
    let codec = Codec::new(Arc::new(layout), &spec);
    let delta: Vec<f32> = (0..codec.layout().len()).map(|nth| (nth * 7919 % 1009) as f32 / 250.0 - 2.0).collect();
    let valid = codec.encode(&mut vec![0.0; delta.len()], &delta).expect("finite");
    Run { spec, codec, valid }
}

fuzz_target!(|bytes: &[u8]| {
    let Some((&choice, rest)) = bytes.split_first() else { return };
    let Run { spec, codec, valid } = &RUNS[usize::from(choice & 0x7f) % RUNS.len()];
    let mut payload = rest.to_vec();
    if choice & 0x80 != 0 {
        payload.clone_from(valid);
        for edit in rest.chunks_exact(3) {
            let at = usize::from(u16::from_le_bytes([edit[0], edit[1]])) % payload.len();
            payload[at] = edit[2];
        }
    }
    let Ok(contribution) = codec.decode(payload.clone()) else { return };
    assert!(contribution.norms().iter().all(|norm| norm.is_finite()));
    let mut sent = vec![0.0; codec.layout().len()];
    contribution.give_back(&mut sent);
    assert!(sent.iter().all(|value| value.abs() <= 4.0));
    assert_eq!(plain::write(codec.layout(), spec, &sent), payload, "a second encoding");
    assert_eq!(moved_alone(codec, &contribution), plain_moved(codec, spec, &sent));
    let honest = codec.decode(valid.clone()).expect("valid");
    let mut theta = vec![1.0; sent.len()];
    let outer = OuterSpec { rate: 1.0, mean_over: MeanOver::Senders, min_senders: 2 };
    outer_step(codec.layout(), &mut theta, &[&contribution, &honest, &contribution], &outer);
    assert!(theta.iter().all(|value| value.is_finite()));
});

/// θ after the outer step that takes this contribution alone from 0.
fn moved_alone(codec: &Codec, contribution: &Contribution) -> Vec<f32> {
    let mut theta = vec![0.0; codec.layout().len()];
    let outer = OuterSpec { rate: 1.0, mean_over: MeanOver::Peers, min_senders: 1 };
    outer_step(codec.layout(), &mut theta, &[contribution], &outer);
    theta
}

/// The same from its specification.
fn plain_moved(codec: &Codec, spec: &CodecSpec, sent: &[f32]) -> Vec<f32> {
    let unit = 2f64.powi(40);
    let mut sums: Vec<i128> = sent.iter().map(|&v| (f64::from(v) * unit).round_ties_even() as i128).collect();
    if spec.transform == Transform::Dct {
        plain::inverse_dct(codec.layout(), &mut sums);
    }
    sums.into_iter().map(|sum| (0.0 - sum as f64 / unit) as f32).collect()
}

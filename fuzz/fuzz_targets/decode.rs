//! Payloads: an error, or a contribution whose bytes a node can add. The first byte chooses the run.
#![no_main]

use std::sync::{Arc, LazyLock};

use libfuzzer_sys::fuzz_target;
use templar_codec::{Codec, outer_step};
use templar_protocol::{
    layout::Layout,
    run::{CodecKind, CodecSpec, MeanOver, OuterSpec},
};

static CODECS: LazyLock<Vec<Codec>> = LazyLock::new(|| {
    let shapes = [(64, 4, vec![64, 100, 3]), (16, 16, vec![40]), (4096, 64, vec![4096]), (7, 2, vec![50, 1])];
    let kinds = [CodecKind::TopkSign, CodecKind::TopkTwoBit, CodecKind::DenseF32];
    let codec = |kind, (chunk, k, lengths): &(u32, u32, Vec<u64>)| {
        let layout = Layout::new(lengths.iter().map(|&length| (format!("t{length}"), vec![length])));
        Codec::new(Arc::new(layout), &CodecSpec { kind, chunk: *chunk, k: *k, error_decay: 0.9, max_abs: 4.0 })
    };
    kinds.into_iter().flat_map(|kind| shapes.iter().map(move |shape| codec(kind, shape)).collect::<Vec<_>>()).collect()
});

fuzz_target!(|bytes: &[u8]| {
    let Some((&choice, payload)) = bytes.split_first() else { return };
    let codec = &CODECS[usize::from(choice) % CODECS.len()];
    let Ok(contribution) = codec.decode(payload.to_vec()) else { return };
    assert!(contribution.norms().iter().all(|norm| norm.is_finite()));
    let mut sent = vec![0.0; codec.layout().len()];
    contribution.add_scaled(&mut sent, 1.0);
    assert!(sent.iter().all(|value| value.abs() <= 4.0));
    let mut theta = vec![1.0; sent.len()];
    let outer = OuterSpec { rate: 1.0, mean_over: MeanOver::Senders, min_senders: 2 };
    outer_step(codec.layout(), &mut theta, &[&contribution, &contribution], &outer);
    assert!(theta.iter().all(|value| value.is_finite()));
});

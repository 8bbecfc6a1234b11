//! Every instruction set gives the same bits: each one that this processor has computes whole windows.

use std::sync::Arc;

use proptest::prelude::*;
use pulp::Arch;
use templar_protocol::hash::Hasher;
use templar_protocol::layout::Layout;
use templar_protocol::run::{CodecKind, CodecSpec, MeanOver, OuterSpec, Transform};

use crate::{Codec, Contribution, outer_step};

fn archs() -> Vec<Arch> {
    #[cfg(target_arch = "x86_64")]
    let wider = [pulp::x86::V3::try_new().map(Arch::V3), pulp::x86::V4::try_new().map(Arch::V4)];
    #[cfg(not(target_arch = "x86_64"))]
    let wider = [Some(Arch::new())];
    [Arch::Scalar].into_iter().chain(wider.into_iter().flatten()).collect()
}

/// Payloads, error feedback, norms and θ of one window with three peers, all as bits.
fn window(codec: &Codec, seed: u64, outer: &OuterSpec) -> (Vec<Vec<u8>>, Vec<u32>, Vec<u64>) {
    let values = |salt: u64| -> Vec<f32> {
        let mut hasher = Hasher::new("templar codec paths");
        let mut stream = hasher.update_value(&(seed, salt)).clone().into_stream();
        let value = |bits: u64| (bits as i32) as f32 * 2f32.powi(-31 - (bits >> 60) as i32);
        (0..codec.layout().len()).map(|_| value(stream.next_u64())).collect()
    };
    let (mut payloads, mut floats, mut norms) = (Vec::new(), Vec::new(), Vec::new());
    let mut contributions: Vec<Contribution> = Vec::new();
    for peer in 0..3 {
        let mut e = values(10 + peer);
        let payload = codec.encode(&mut e, &values(20 + peer)).unwrap();
        let contribution = codec.decode(payload.clone()).unwrap();
        contribution.give_back(&mut e);
        contribution.add_scaled(&mut e, 0.5);
        codec.accumulate(&mut e, &values(30 + peer));
        payloads.push(payload);
        floats.extend(e);
        norms.extend(contribution.norms().iter().map(|norm| norm.to_bits()));
        contributions.push(contribution);
    }
    let mut theta = values(40);
    outer_step(codec.layout(), &mut theta, &contributions.iter().collect::<Vec<_>>(), outer);
    floats.extend(theta);
    (payloads, floats.into_iter().map(f32::to_bits).collect(), norms)
}

proptest! {
    #[test]
    fn every_instruction_set_gives_the_same_bits(
        seed: u64,
        kind in prop_oneof![Just(CodecKind::TopkSign), Just(CodecKind::TopkTwoBit), Just(CodecKind::DenseF32)],
        (chunk, k) in prop_oneof![Just((4096u32, 64u32)), Just((256, 4)), (1u32..300, 1u32..300)],
        lengths in prop::collection::vec(0u64..9000, 1..4),
        senders: bool,
        transformed: bool,
    ) {
        let can_be = chunk == 4096 && kind != CodecKind::DenseF32;
        let transform = if transformed && can_be { Transform::Dct } else { Transform::None };
        let layout = Arc::new(Layout::new(lengths.iter().map(|&length| ("t".to_owned(), vec![length]))));
        let spec = CodecSpec { kind, chunk, k: k.min(chunk), error_decay: 0.95, max_abs: 0.5, transform };
        let mean_over = if senders { MeanOver::Senders } else { MeanOver::Peers };
        let outer = OuterSpec { rate: 0.9, mean_over, min_senders: 2 };
        let results: Vec<_> = archs()
            .into_iter()
            .map(|arch| {
                let mut codec = Codec::new(Arc::clone(&layout), &spec);
                codec.arch = arch;
                window(&codec, seed, &outer)
            })
            .collect();
        prop_assert!(results.iter().all(|result| *result == results[0]));
    }
}

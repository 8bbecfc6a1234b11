//! The codec's speed and bytes on pseudo-gradients of a real training run.

use std::sync::Arc;

use bytes::Bytes;
use serde::Serialize;
use templar_codec::{Codec, Contribution, outer_step};
use templar_model::presets::Preset;
use templar_protocol::{
    layout::Layout,
    run::{CodecKind, CodecSpec, MeanOver, OuterSpec},
};
use templar_train::TrainError;

use crate::{
    median_s,
    peers::{Peers, Text},
};

/// Peers whose contributions are aggregated.
const PEERS: usize = 20;
/// Parameters of the copy that measures the machine: 256 MiB, more than any cache.
const COPY_PARAMS: usize = 64 << 20;
/// Bytes of error feedback and Δ that any encoder must move for each parameter: two f32 in, one out.
const ENCODE_BYTES: f64 = 12.0;

/// What to measure.
#[derive(Debug, Clone)]
pub struct Options {
    pub params: usize,
    pub threads: usize,
    pub repeats: usize,
}

/// What was measured of one format.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    pub format: CodecKind,
    pub params: usize,
    pub threads: usize,
    /// Bits of the whole payload for each value that it sends.
    pub bits_per_value: f64,
    /// How many times smaller than f32 the payload is.
    pub ratio_f32: f64,
    /// Share of the payload that one-dimensional tensors (the norms) take.
    pub one_dimensional_share: f64,
    /// Error feedback, top-k, quantise, code, and the residual.
    pub encode_params_per_s: f64,
    /// Decode, clip and aggregate 20 payloads, divided by the senders but by 2 at least, and move θ.
    pub decode20_params_per_s: f64,
    /// Bytes read and written by a large copy with as many threads.
    pub copy_gb_per_s: f64,
    pub encode_gb_per_s: f64,
    /// `encode_gb_per_s` against `copy_gb_per_s`.
    pub encode_fraction_of_copy: f64,
}

/// Pseudo-gradients of 20 peers after a few windows of training, and error feedback to go with them.
#[derive(Debug)]
pub struct Sample {
    layout: Layout,
    theta: Vec<f32>,
    deltas: Vec<Vec<f32>>,
}

impl Sample {
    /// Trains `preset` on the built-in corpus for two windows; the second one's Δ are the sample.
    pub fn train(preset: &Preset) -> Result<Self, TrainError> {
        let mut peers = Peers::new(preset, &Text::built_in(1 << 20), PEERS, 1);
        let mut theta = peers.theta0(1);
        for delta in peers.window(&theta.clone())? {
            theta.iter_mut().zip(&delta).for_each(|(theta, delta)| *theta -= delta / PEERS as f32);
        }
        Ok(Self { layout: peers.layout(), deltas: peers.window(&theta)?, theta })
    }

    /// As many copies of the model side by side as make up `params`, one at least.
    fn copies(&self, params: usize) -> (Arc<Layout>, usize) {
        let copies = (params / self.layout.len()).max(1);
        let tensors = (0..copies).flat_map(|copy| {
            self.layout.tensors().iter().map(move |tensor| (format!("{copy}.{}", tensor.name), tensor.shape.clone()))
        });
        (Arc::new(Layout::new(tensors)), copies)
    }
}

/// Measures every format on one sample. Blocks for minutes on large models.
///
/// # Panics
/// If no thread can be started.
pub fn measure(sample: &Sample, options: &Options) -> Vec<Row> {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(options.threads).build().expect("threads can be started");
    let copy_gb_per_s = pool.install(|| copy_gb_per_s(options));
    let kinds = [CodecKind::TopkSign, CodecKind::TopkTwoBit, CodecKind::DenseF32];
    pool.install(|| kinds.map(|kind| measure_format(kind, sample, options, copy_gb_per_s)).to_vec())
}

/// The codec's defaults, for one kind.
pub fn spec(kind: CodecKind) -> CodecSpec {
    CodecSpec { kind, chunk: 4096, k: 64, error_decay: 0.95, max_abs: 8.0 }
}

fn measure_format(kind: CodecKind, sample: &Sample, options: &Options, copy_gb_per_s: f64) -> Row {
    let (layout, copies) = sample.copies(options.params);
    let codec = Codec::new(Arc::clone(&layout), &spec(kind));
    let mut e = vec![0.0; layout.len()];
    let delta = sample.deltas[0].repeat(copies);
    let encode_s = median_s(options.repeats, || {
        codec.encode(&mut e, &delta).expect("trained values are finite");
    });

    let mut payloads: Vec<Bytes> = Vec::new();
    for delta in &sample.deltas {
        e.fill(0.0);
        payloads.push(codec.encode(&mut e, &delta.repeat(copies)).expect("trained values are finite").into());
    }
    let mut theta = sample.theta.repeat(copies);
    let outer = OuterSpec { rate: 1.0, mean_over: MeanOver::Senders, min_senders: 2 };
    let decode_s = median_s(options.repeats, || {
        let contributions: Vec<Contribution> =
            payloads.iter().map(|payload| codec.decode(payload.clone()).expect("own payload")).collect();
        outer_step(&layout, &mut theta, &contributions.iter().collect::<Vec<_>>(), &outer);
    });

    let contribution = codec.decode(payloads[0].clone()).expect("own payload");
    let (params, bits) = (layout.len() as f64, 8.0 * payloads[0].len() as f64);
    let encode_gb_per_s = ENCODE_BYTES * params / encode_s / 1e9;
    Row {
        format: kind,
        params: layout.len(),
        threads: options.threads,
        bits_per_value: bits / contribution.values_sent() as f64,
        ratio_f32: 32.0 * params / bits,
        one_dimensional_share: contribution.one_dimensional_share(),
        encode_params_per_s: params / encode_s,
        decode20_params_per_s: params / decode_s,
        copy_gb_per_s,
        encode_gb_per_s,
        encode_fraction_of_copy: encode_gb_per_s / copy_gb_per_s,
    }
}

fn copy_gb_per_s(options: &Options) -> f64 {
    use rayon::prelude::*;
    let from = vec![1.0f32; COPY_PARAMS];
    let mut to = vec![0.0f32; COPY_PARAMS];
    let share = COPY_PARAMS.div_ceil(options.threads);
    let copy_s = median_s(options.repeats, || {
        to.par_chunks_mut(share).zip(from.par_chunks(share)).for_each(|(to, from)| to.copy_from_slice(from));
    });
    8.0 * COPY_PARAMS as f64 / copy_s / 1e9
}

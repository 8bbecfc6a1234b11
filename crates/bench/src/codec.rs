//! The codec's speed and bytes on pseudo-gradients of a real training run.

use std::sync::Arc;

use bytes::Bytes;
use serde::Serialize;
use templar_codec::{Codec, Contribution, outer_step};
use templar_model::presets::Preset;
use templar_protocol::layout::{Layout, TensorSpec};
use templar_protocol::run::{CodecKind, CodecSpec, MeanOver, OuterSpec, Transform};
use templar_train::TrainError;

use crate::peers::{Peers, Text};
use crate::timing::median_s;

/// Peers whose contributions are aggregated.
const PEERS: usize = 20;
/// Parameters of the copy that measures the machine: 256 MiB, more than any cache.
const COPY_PARAMS: usize = 64 << 20;
/// Bytes of error feedback and Δ that any encoder must move per parameter: two f32 in, one out.
const ENCODE_BYTES: f64 = 12.0;

/// What to measure.
#[derive(Debug, Clone)]
pub struct Options {
    pub params: usize,
    pub threads: usize,
    pub repeats: usize,
}

/// The measurements of one format.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    pub format: CodecKind,
    pub transform: Transform,
    pub params: usize,
    pub threads: usize,
    /// Bits of the whole payload per value that it sends.
    pub bits_per_value: f64,
    /// How many times smaller than f32 the payload is.
    pub ratio_f32: f64,
    /// Share of the payload, framing included, that one-dimensional tensors (the norms) take.
    pub one_dimensional_share: f64,
    /// The same for all tensors with fewer values than a chunk, of any dimension.
    pub small_tensor_share: f64,
    /// Those tensors' share of the parameters, to which `small_tensor_share` must stay close.
    pub small_tensor_params_share: f64,
    /// Error feedback, top-k, quantise, code, and the residual.
    pub encode_params_per_s: f64,
    /// Decode, clip and aggregate 20 payloads, divided by the senders but by at least 2, and update θ.
    pub decode20_params_per_s: f64,
    /// Bytes read and written by a large copy with the same number of threads.
    pub copy_gb_per_s: f64,
    pub encode_gb_per_s: f64,
    /// `encode_gb_per_s` against `copy_gb_per_s`.
    pub encode_fraction_of_copy: f64,
}

/// Pseudo-gradients of 20 peers after a few windows of training.
#[derive(Debug)]
pub struct Sample {
    layout: Layout,
    theta: Vec<f32>,
    deltas: Vec<Vec<f32>>,
}

impl Sample {
    /// Trains `preset` on the built-in corpus for two windows; the Δ of the second are the sample.
    pub fn train(preset: &Preset) -> Result<Self, TrainError> {
        let mut peers = Peers::new(preset, &Text::built_in(1 << 20), PEERS, 1);
        let mut theta = peers.theta0(1);
        for delta in peers.window(&theta.clone())? {
            theta.iter_mut().zip(&delta).for_each(|(theta, delta)| *theta -= delta / PEERS as f32);
        }
        Ok(Self { layout: peers.layout(), deltas: peers.window(&theta)?, theta })
    }

    /// A layout of as many copies of the model as make up `params`, and their number; at least one.
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
    let kinds = [
        spec(CodecKind::TopkSign),
        CodecSpec { transform: Transform::Dct, ..spec(CodecKind::TopkSign) },
        spec(CodecKind::TopkTwoBit),
        spec(CodecKind::DenseF32),
    ];
    pool.install(|| kinds.map(|spec| measure_format(&spec, sample, options, copy_gb_per_s)).to_vec())
}

/// The codec of new runs (`templar_host::defaults::run_spec`, which `templar bench` compares it with), for one kind.
pub fn spec(kind: CodecKind) -> CodecSpec {
    CodecSpec { kind, chunk: 4096, k: 64, error_decay: 0.95, max_abs: 16.0, transform: Transform::None }
}

/// The outer step of new runs.
pub fn outer() -> OuterSpec {
    OuterSpec { rate: 1.0, mean_over: MeanOver::Senders, min_senders: 2 }
}

fn measure_format(spec: &CodecSpec, sample: &Sample, options: &Options, copy_gb_per_s: f64) -> Row {
    let (layout, copies) = sample.copies(options.params);
    let codec = Codec::new(Arc::clone(&layout), spec);
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
    let decode_s = median_s(options.repeats, || {
        let contributions: Vec<Contribution> =
            payloads.iter().map(|payload| codec.decode(payload.clone()).expect("own payload")).collect();
        outer_step(&layout, &mut theta, &contributions.iter().collect::<Vec<_>>(), &outer());
    });

    let contribution = codec.decode(payloads[0].clone()).expect("own payload");
    let (params, bits) = (layout.len() as f64, 8.0 * payloads[0].len() as f64);
    let (small, of_one) = (is_small(spec), (&sample.layout, &sample.deltas[0][..]));
    let encode_gb_per_s = ENCODE_BYTES * params / encode_s / 1e9;
    Row {
        format: spec.kind,
        transform: spec.transform,
        params: layout.len(),
        threads: options.threads,
        bits_per_value: bits / contribution.values_sent() as f64,
        ratio_f32: 32.0 * params / bits,
        one_dimensional_share: payload_share(spec, of_one, |tensor| tensor.shape.len() == 1),
        small_tensor_share: payload_share(spec, of_one, &small),
        small_tensor_params_share: params_share(&sample.layout, &small),
        encode_params_per_s: params / encode_s,
        decode20_params_per_s: params / decode_s,
        copy_gb_per_s,
        encode_gb_per_s,
        encode_fraction_of_copy: encode_gb_per_s / copy_gb_per_s,
    }
}

/// Whether a tensor has fewer values than a chunk.
fn is_small(spec: &CodecSpec) -> impl Fn(&TensorSpec) -> bool {
    let chunk = spec.chunk as usize;
    move |tensor| tensor.range().len() < chunk
}

fn params_share(layout: &Layout, which: impl Fn(&TensorSpec) -> bool) -> f64 {
    let params: usize = layout.tensors().iter().filter(|tensor| which(tensor)).map(|tensor| tensor.range().len()).sum();
    params as f64 / layout.len() as f64
}

/// Share of the bytes of Δ's payload that some tensors take: how much shorter it is without them.
fn payload_share(spec: &CodecSpec, (layout, delta): (&Layout, &[f32]), which: impl Fn(&TensorSpec) -> bool) -> f64 {
    let payload_bytes = |keep: &dyn Fn(&TensorSpec) -> bool| {
        let kept: Vec<&TensorSpec> = layout.tensors().iter().filter(|tensor| keep(tensor)).collect();
        let delta: Vec<f32> = kept.iter().flat_map(|tensor| &delta[tensor.range()]).copied().collect();
        let layout = Layout::new(kept.iter().map(|tensor| (tensor.name.clone(), tensor.shape.clone())));
        let codec = Codec::new(Arc::new(layout), spec);
        codec.encode(&mut vec![0.0; delta.len()], &delta).expect("trained values are finite").len() as f64
    };
    1.0 - payload_bytes(&|tensor| !which(tensor)) / payload_bytes(&|_| true)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_matrices_are_not_dense() {
        // Pico's key and value projections have 2048 values each.
        let layout = Layout::llama(&crate::quality::pico().model);
        let delta: Vec<f32> = (0..layout.len()).map(|at| ((at * 7919 % 10_007) as f32 - 5003.0) * 1e-6).collect();
        let sign = spec(CodecKind::TopkSign);
        let dense = spec(CodecKind::DenseF32);
        let matrices = |tensor: &TensorSpec| is_small(&sign)(tensor) && tensor.shape.len() == 2;
        let of_params = params_share(&layout, matrices);
        let of_bytes = payload_share(&sign, (&layout, &delta), matrices);
        assert!(of_params > 0.05 && (0.9..1.1).contains(&(of_bytes / of_params)), "{of_bytes} of {of_params}");
        // All but the header of four bytes.
        assert!(payload_share(&dense, (&layout, &delta), |_| true) > 0.9999);
    }
}

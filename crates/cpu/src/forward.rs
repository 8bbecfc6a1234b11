//! The forward pass: row-wise work in blocks of rows, attention by sequence and key-value head, in turns.

use std::mem;
use std::ops::Range;

use crate::aligned::Aligned;
use crate::attention::{Attention, HeadNorms, Projections};
use crate::buffers::{Buffers, Layer, Packed};
use crate::jobs::{Job, run};
use crate::kernels::{rms_norm, swiglu};
use crate::meter::{Meter, Work};
use crate::product::{Matrix, Onto, Panels, product};
use crate::rope::Rotation;
use crate::shape::{Batch, LayerRanges, Shape};

/// Columns that one task brings into panels.
const PACKED_COLUMNS: usize = 128;

/// What both passes read.
#[derive(Clone, Copy)]
pub(crate) struct Context<'a> {
    pub(crate) shape: &'a Shape,
    pub(crate) theta: &'a [f32],
    pub(crate) batch: Batch,
    pub(crate) rotation: &'a Rotation,
    pub(crate) meter: &'a Meter,
}

impl Context<'_> {
    /// The attention of a layer.
    pub(crate) fn attention(&self, layer: usize) -> Attention<'_> {
        let Shape { dim, epsilon, .. } = *self.shape;
        let (positions, group) = (self.batch.positions, self.shape.group());
        let weights = &self.theta[self.shape.layers[layer].qk_norm.clone()];
        let norms = weights.split_at_checked(dim).map(|(query, key)| HeadNorms { query, key, epsilon });
        Attention { rotation: self.rotation, norms, positions, dim, group, stride: self.shape.qkv() }
    }

    /// The projections of one sequence, from `[rows, qkv]`, as seen from one key-value head.
    pub(crate) fn projections<'a>(&self, qkv: &'a [f32], sequence: usize, kv_head: usize) -> Projections<'a> {
        let Shape { heads, kv_heads, dim, .. } = *self.shape;
        let rows = self.batch.positions * self.shape.qkv();
        let from = |head: usize| &qkv[sequence * rows..][..rows][head * dim..];
        Projections {
            queries: from(kv_head * self.shape.group()),
            key: from(heads + kv_head),
            value: from(heads + kv_heads + kv_head),
        }
    }
}

/// From tokens to `buffers.out`, the residual stream after the last layer.
///
/// `kept` is the number of layers that have a buffer: all, or two that take turns.
pub(crate) fn forward(context: Context<'_>, buffers: &mut Buffers, inputs: &[u32], kept: usize) {
    let Context { shape, theta, .. } = context;
    let depth = shape.layers.len();
    let first = if depth == 0 { &mut buffers.out } else { &mut buffers.layers[0].x };
    let embedding = &theta[shape.embedding.clone()];
    for (x, &token) in first.chunks_exact_mut(shape.hidden).zip(inputs) {
        x.copy_from_slice(&embedding[token as usize * shape.hidden..][..shape.hidden]);
    }
    let mut jobs = vec![];
    pack_weights(&mut jobs, context, &mut buffers.packed, 0, Matrix::transposed);
    run(jobs);
    for at in 0..=depth {
        let mut done = (at > 0).then(|| mem::take(&mut buffers.layers[(at - 1) % kept]));
        let mut next = (at < depth).then(|| mem::take(&mut buffers.layers[at % kept]));
        rows(context, buffers, at, done.as_mut(), next.as_mut());
        if let Some(layer) = &mut next {
            mix(context, buffers, at, layer);
        }
        if let Some(layer) = done {
            buffers.layers[(at - 1) % kept] = layer;
        }
        if let Some(layer) = next {
            buffers.layers[at % kept] = layer;
        }
    }
}

/// One block of rows: the end of the layer before and the beginning of the next.
struct Block<'a> {
    /// Slices of the layer before, if there is one: the mixed values, and what follows from them.
    done: Option<Done<'a>>,
    /// Where the residual stream comes in (and goes to, after `done`).
    x: &'a mut [f32],
    qkv: Option<&'a mut [f32]>,
    normed: &'a mut [f32],
}

struct Done<'a> {
    x: &'a [f32],
    mixed: &'a mut [f32],
    middle: &'a mut [f32],
    gate_up: &'a mut [f32],
    gated: &'a mut [f32],
}

/// Finishes layer `at − 1` and projects for layer `at`, block by block.
fn rows(context: Context<'_>, buffers: &mut Buffers, at: usize, done: Option<&mut Layer>, next: Option<&mut Layer>) {
    let Context { shape, batch, .. } = context;
    let (block, hidden) = (batch.block(), shape.hidden);
    let (x, qkv) = match next {
        Some(layer) => (&mut layer.x, Some(&mut layer.qkv)),
        None => (&mut buffers.out, None),
    };
    let mut x = x.chunks_mut(block * hidden);
    let mut qkv = qkv.map(|qkv| qkv.chunks_mut(block * shape.qkv()));
    let mut normed = buffers.normed.chunks_mut(block * hidden);
    let mut done = done.map(|layer| {
        let gated = buffers.gated.chunks_mut(block * shape.ffn);
        let wide = layer.gate_up.chunks_mut(block * 2 * shape.ffn).zip(gated);
        let narrow = layer.x.chunks(block * hidden).zip(layer.mixed.chunks_mut(block * hidden));
        narrow.zip(layer.middle.chunks_mut(block * hidden)).zip(wide)
    });
    let (heads, packed) = (&buffers.heads, &buffers.packed);
    let mut jobs: Vec<Job<'_>> = vec![];
    for number in 0..batch.blocks() {
        let block = Block {
            done: done.as_mut().map(|parts| {
                let (((x, mixed), middle), (gate_up, gated)) = parts.next().expect("one per block");
                Done { x, mixed, middle, gate_up, gated }
            }),
            x: x.next().expect("one per block"),
            qkv: qkv.as_mut().map(|parts| parts.next().expect("one per block")),
            normed: normed.next().expect("one per block"),
        };
        jobs.push(Box::new(move || block.run(context, at, number, heads, packed)));
    }
    run(jobs);
}

impl Block<'_> {
    fn run(self, context: Context<'_>, at: usize, number: usize, heads: &[f32], packed: &Packed) {
        let Context { shape, theta, meter, .. } = context;
        let Shape { hidden, epsilon, .. } = *shape;
        let Self { done, x, qkv, normed } = self;
        let rows = x.len() / hidden;
        if let Some(done) = done {
            let weights = &shape.layers[at - 1];
            meter.time(Work::Elementwise, || gather(context, done.mixed, heads, number * context.batch.block()));
            done.run(context, weights, x, normed, packed);
        }
        if let Some(qkv) = qkv {
            let weights = &shape.layers[at];
            meter.time(Work::Elementwise, || rms_norm(normed, x, &theta[weights.input_norm.clone()], epsilon));
            let weight = Panels::new(&packed.qkv, hidden, shape.qkv());
            meter.time(Work::Products, || product(qkv, Matrix::new(normed, rows, hidden), weight, Onto::Replace));
        }
    }
}

impl Done<'_> {
    /// From what attention mixed to the residual stream after the layer.
    fn run(self, context: Context<'_>, weights: &LayerRanges, x: &mut [f32], normed: &mut [f32], packed: &Packed) {
        let Context { shape, theta, meter, .. } = context;
        let Shape { hidden, ffn, epsilon, .. } = *shape;
        let rows = x.len() / hidden;
        let products = |out: &mut [f32], a: Matrix<'_>, b: Panels<'_>, onto| {
            meter.time(Work::Products, || product(out, a, b, onto));
        };
        self.middle.copy_from_slice(self.x);
        let o = Panels::new(&packed.o, hidden, hidden);
        products(self.middle, Matrix::new(self.mixed, rows, hidden), o, Onto::Add);
        meter.time(Work::Elementwise, || rms_norm(normed, self.middle, &theta[weights.post_norm.clone()], epsilon));
        let gate_up = Panels::new(&packed.gate_up, hidden, 2 * ffn);
        products(self.gate_up, Matrix::new(normed, rows, hidden), gate_up, Onto::Replace);
        meter.time(Work::Elementwise, || swiglu(self.gated, self.gate_up, ffn));
        x.copy_from_slice(self.middle);
        products(x, Matrix::new(self.gated, rows, ffn), Panels::new(&packed.down, ffn, hidden), Onto::Add);
    }
}

/// Copies rows from `first` on, as many as `out` has, from `[sequences, heads, positions, dim]` to `[rows, heads · dim]`.
fn gather(context: Context<'_>, out: &mut [f32], heads: &[f32], first: usize) {
    let Shape { dim, hidden, .. } = *context.shape;
    let positions = context.batch.positions;
    for (row, out) in (first..).zip(out.chunks_exact_mut(hidden)) {
        let sequence = &heads[row / positions * positions * hidden..];
        for (head, out) in out.chunks_exact_mut(dim).enumerate() {
            out.copy_from_slice(&sequence[(head * positions + row % positions) * dim..][..dim]);
        }
    }
}

/// Attention of layer `at`; beside it, the weights for the next blocks of rows are brought into panels.
fn mix(context: Context<'_>, buffers: &mut Buffers, at: usize, layer: &mut Layer) {
    let Context { shape, batch, meter, .. } = context;
    let mut jobs: Vec<Job<'_>> = vec![];
    let size = shape.group() * batch.positions;
    let parts = buffers.heads.chunks_mut(size * shape.dim).zip(layer.log_sums.chunks_mut(size));
    for (number, (out, log_sums)) in parts.enumerate() {
        let projections = context.projections(&layer.qkv, number / shape.kv_heads, number % shape.kv_heads);
        jobs.push(Box::new(move || {
            meter.time(Work::Attention, || context.attention(at).forward(out, log_sums, projections));
        }));
    }
    pack_weights(&mut jobs, context, &mut buffers.packed, at + 1, Matrix::transposed);
    run(jobs);
}

/// Tasks that bring into panels the weights that blocks of rows between layers `at − 1` and `at` multiply with.
/// `turned` may transpose them from `[out, in]`.
pub(crate) fn pack_weights<'a>(
    jobs: &mut Vec<Job<'a>>,
    context: Context<'a>,
    packed: &'a mut Packed,
    at: usize,
    turned: fn(Matrix<'a>) -> Matrix<'a>,
) {
    let Context { shape, theta, meter, .. } = context;
    let Packed { qkv, o, gate_up, down } = packed;
    let mut pack = |out: &'a mut Aligned, weight: Range<usize>, inputs: usize| {
        let weight = &theta[weight];
        pack_jobs(jobs, meter, out, turned(Matrix::new(weight, weight.len() / inputs, inputs)));
    };
    if let Some(before) = at.checked_sub(1) {
        let weights = &shape.layers[before];
        pack(o, weights.o.clone(), shape.hidden);
        pack(gate_up, weights.gate_up.clone(), shape.hidden);
        pack(down, weights.down.clone(), shape.ffn);
    }
    if let Some(weights) = shape.layers.get(at) {
        pack(qkv, weights.qkv.clone(), shape.hidden);
    }
}

/// Tasks that bring a matrix into panels.
pub(crate) fn pack_jobs<'a>(jobs: &mut Vec<Job<'a>>, meter: &'a Meter, out: &'a mut [f32], matrix: Matrix<'a>) {
    let (rows, columns) = matrix.shape();
    let out = &mut out[..Panels::room(rows, columns)];
    for (number, out) in out.chunks_mut((rows * PACKED_COLUMNS).max(1)).enumerate() {
        let pack = move || Panels::pack_columns(out, matrix, number * PACKED_COLUMNS);
        jobs.push(Box::new(move || meter.time(Work::Elementwise, pack)));
    }
}

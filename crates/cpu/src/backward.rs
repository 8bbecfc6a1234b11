//! The backward pass. As in the forward pass, row-wise work in blocks of rows and attention take turns; the gradients of
//! weights, which need all rows, are computed beside attention.

use crate::buffers::{Buffers, Layer, Packed};
use crate::forward::{Context, pack_weights};
use crate::jobs::{Job, run};
use crate::kernels::{rms_norm_backward, swiglu_backward};
use crate::meter::Work;
use crate::product::{Matrix, Onto, Panels, product};
use crate::shape::Shape;

/// Rows of a weight's gradient that one task computes.
const WEIGHT_ROWS: usize = 256;

/// From the gradient of the final norm's output, in `buffers.gradients.d_normed`, to that of every parameter but the output
/// projection. It overwrites what the forward pass left in the layers' buffers.
pub(crate) fn backward(context: Context<'_>, buffers: &mut Buffers, inputs: &[u32], gradient: &mut [f32], onto: Onto) {
    let shape = context.shape;
    let depth = shape.layers.len();
    let mut jobs = vec![];
    pack_weights(&mut jobs, context, &mut buffers.packed, depth, |weight| weight);
    run(jobs);
    for at in (0..=depth).rev() {
        rows(context, buffers, at);
        let weight = if at == depth { shape.norm.clone() } else { shape.layers[at].input_norm.clone() };
        add_norm(&mut gradient[weight], &buffers.gradients.d_input_norm, onto);
        if at > 0 {
            let weight = shape.layers[at - 1].post_norm.clone();
            add_norm(&mut gradient[weight], &buffers.gradients.d_post_norm, onto);
        }
        weights_and_attention(context, buffers, at, gradient, onto);
    }
    let d_embedding = &mut gradient[shape.embedding.clone()];
    if onto == Onto::Replace && shape.head != shape.embedding {
        d_embedding.fill(0.0);
    }
    for (&token, d_x) in inputs.iter().zip(buffers.gradients.d_x.chunks_exact(shape.hidden)) {
        let row = &mut d_embedding[token as usize * shape.hidden..][..shape.hidden];
        row.iter_mut().zip(d_x).for_each(|(sum, d_x)| *sum += d_x);
    }
}

/// Adds up the parts of a norm's gradient in their order.
fn add_norm(gradient: &mut [f32], parts: &[f32], onto: Onto) {
    if onto == Onto::Replace {
        gradient.fill(0.0);
    }
    for part in parts.chunks_exact(gradient.len()) {
        gradient.iter_mut().zip(part).for_each(|(sum, part)| *sum += part);
    }
}

/// One block of rows: back through the projections of a layer, and through the feed-forward part of the layer before.
struct Block<'a> {
    d_x: &'a mut [f32],
    d_middle: &'a mut [f32],
    d_normed: &'a mut [f32],
    normed: &'a mut [f32],
    normed_panels: &'a mut [f32],
    d_qkv: &'a mut [f32],
    d_input_norm: &'a mut [f32],
    before: Option<Before<'a>>,
}

/// The feed-forward part of the layer before.
struct Before<'a> {
    middle: &'a [f32],
    gate_up: &'a mut [f32],
    gated: &'a mut [f32],
    gated_panels: &'a mut [f32],
    post_normed: &'a mut [f32],
    post_normed_panels: &'a mut [f32],
    mixed: &'a [f32],
    mixed_panels: &'a mut [f32],
    d_mixed: &'a mut [f32],
    d_post_norm: &'a mut [f32],
}

/// Back through the projections of layer `at` (or the final norm, after the last) and the feed-forward part of `at − 1`.
fn rows(context: Context<'_>, buffers: &mut Buffers, at: usize) {
    let Context { shape, batch, .. } = context;
    let (rows, hidden) = (batch.block(), shape.hidden);
    let narrow = rows * hidden;
    let gradients = &mut buffers.gradients;
    let (before, after) = buffers.layers.split_at_mut(at);
    let x: &[f32] = after.first().map_or(&buffers.out, |layer| &layer.x);
    let mut d_x = gradients.d_x.chunks_mut(narrow);
    let mut d_middle = gradients.d_middle.chunks_mut(narrow);
    let mut d_normed = gradients.d_normed.chunks_mut(narrow);
    let mut normed = buffers.normed.chunks_mut(narrow);
    let mut d_qkv = gradients.d_qkv.chunks_mut(rows * shape.qkv());
    let mut d_input_norm = gradients.d_input_norm.chunks_mut(hidden);
    let mut gated = buffers.gated.chunks_mut(rows * shape.ffn);
    let mut post_normed = buffers.post_normed.chunks_mut(narrow);
    let mut d_mixed = gradients.d_mixed.chunks_mut(narrow);
    let mut d_post_norm = gradients.d_post_norm.chunks_mut(hidden);
    let room = Panels::room(rows, hidden);
    let mut normed_panels = gradients.normed.chunks_mut(room);
    let mut post_normed_panels = gradients.post_normed.chunks_mut(room);
    let mut mixed_panels = gradients.mixed.chunks_mut(room);
    let mut gated_panels = gradients.gated.chunks_mut(Panels::room(rows, shape.ffn));
    let mut layer = before.last_mut().map(|Layer { middle, mixed, gate_up, .. }| {
        middle.chunks(narrow).zip(mixed.chunks(narrow)).zip(gate_up.chunks_mut(rows * 2 * shape.ffn))
    });
    let (d_heads, packed) = (&gradients.d_heads, &buffers.packed);
    let mut jobs: Vec<Job<'_>> = vec![];
    for number in 0..batch.blocks() {
        let one = "one per block";
        let block = Block {
            d_x: d_x.next().expect(one),
            d_middle: d_middle.next().expect(one),
            d_normed: d_normed.next().expect(one),
            normed: normed.next().expect(one),
            normed_panels: normed_panels.next().expect(one),
            d_qkv: d_qkv.next().expect(one),
            d_input_norm: d_input_norm.next().expect(one),
            before: layer.as_mut().map(|parts| {
                let ((middle, mixed), gate_up) = parts.next().expect(one);
                Before {
                    middle,
                    gate_up,
                    gated: gated.next().expect(one),
                    gated_panels: gated_panels.next().expect(one),
                    post_normed: post_normed.next().expect(one),
                    post_normed_panels: post_normed_panels.next().expect(one),
                    mixed,
                    mixed_panels: mixed_panels.next().expect(one),
                    d_mixed: d_mixed.next().expect(one),
                    d_post_norm: d_post_norm.next().expect(one),
                }
            }),
        };
        let first = number * rows;
        let x = &x[first * hidden..][..block.d_x.len()];
        jobs.push(Box::new(move || block.run(context, at, first, x, d_heads, packed)));
    }
    run(jobs);
}

impl Block<'_> {
    fn run(self, context: Context<'_>, at: usize, first: usize, x: &[f32], d_heads: &[f32], packed: &Packed) {
        let Context { shape, theta, meter, .. } = context;
        let Shape { hidden, epsilon, .. } = *shape;
        let rows = self.d_x.len() / hidden;
        let weight = if let Some(weights) = shape.layers.get(at) {
            meter.time(Work::Elementwise, || gather(context, self.d_qkv, d_heads, first));
            let d_qkv = Matrix::new(self.d_qkv, rows, shape.qkv());
            let weight = Panels::new(&packed.qkv, shape.qkv(), hidden);
            meter.time(Work::Products, || product(self.d_normed, d_qkv, weight, Onto::Replace));
            self.d_x.copy_from_slice(self.d_middle);
            &theta[weights.input_norm.clone()]
        } else {
            self.d_x.fill(0.0);
            &theta[shape.norm.clone()]
        };
        meter.time(Work::Elementwise, || {
            rms_norm_backward(self.d_x, self.d_input_norm, self.normed, self.d_normed, x, weight, epsilon);
            Panels::pack(self.normed_panels, Matrix::new(self.normed, rows, hidden));
        });
        if let Some(before) = self.before {
            before.run(context, at - 1, self.d_x, (self.d_middle, self.d_normed), packed);
        }
    }
}

impl Before<'_> {
    /// From `d_x`, the gradient behind layer `at`, to `d_middle` and `d_mixed`.
    fn run(
        self,
        context: Context<'_>,
        at: usize,
        d_x: &[f32],
        (d_middle, d_normed): (&mut [f32], &mut [f32]),
        packed: &Packed,
    ) {
        let Context { shape, theta, meter, .. } = context;
        let Shape { hidden, ffn, epsilon, .. } = *shape;
        let weights = &shape.layers[at];
        let rows = d_x.len() / hidden;
        let products = |out: &mut [f32], a: Matrix<'_>, b: Panels<'_>| {
            meter.time(Work::Products, || product(out, a, b, Onto::Replace));
        };
        products(self.gated, Matrix::new(d_x, rows, hidden), Panels::new(&packed.down, hidden, ffn));
        meter.time(Work::Elementwise, || {
            swiglu_backward(self.gated, self.gate_up, ffn);
            Panels::pack(self.gated_panels, Matrix::new(self.gated, rows, ffn));
            Panels::pack(self.mixed_panels, Matrix::new(self.mixed, rows, hidden));
        });
        let gate_up = Panels::new(&packed.gate_up, 2 * ffn, hidden);
        products(d_normed, Matrix::new(self.gate_up, rows, 2 * ffn), gate_up);
        meter.time(Work::Elementwise, || {
            d_middle.copy_from_slice(d_x);
            let weight = &theta[weights.post_norm.clone()];
            let (part, normed) = (self.d_post_norm, self.post_normed);
            rms_norm_backward(d_middle, part, normed, d_normed, self.middle, weight, epsilon);
            Panels::pack(self.post_normed_panels, Matrix::new(normed, rows, hidden));
        });
        products(self.d_mixed, Matrix::new(d_middle, rows, hidden), Panels::new(&packed.o, hidden, hidden));
    }
}

/// Copies rows from `first` on, as many as `out` has, from gradients by key-value heads to `[rows, qkv]`.
fn gather(context: Context<'_>, out: &mut [f32], d_heads: &[f32], first: usize) {
    let Shape { dim, heads, kv_heads, .. } = *context.shape;
    let (positions, group, width) = (context.batch.positions, context.shape.group(), context.shape.qkv());
    for (row, out) in (first..).zip(out.chunks_exact_mut(width)) {
        let (sequence, position) = (row / positions * positions * width, row % positions);
        for (head, out) in out.chunks_exact_mut(dim).enumerate() {
            // Queries of all heads, then keys, then values; a group's queries lie before its key and value.
            let (kv_head, part) = match head.checked_sub(heads) {
                None => (head / group, head % group),
                Some(key_or_value) => (key_or_value % kv_heads, group + key_or_value / kv_heads),
            };
            let from = sequence + ((kv_head * (group + 2) + part) * positions + position) * dim;
            out.copy_from_slice(&d_heads[from..from + dim]);
        }
    }
}

/// Gradients of the projections' weights of layer `at` and of the other weights of layer `at − 1`, beside the backward
/// attention of layer `at − 1`.
fn weights_and_attention(context: Context<'_>, buffers: &mut Buffers, at: usize, gradient: &mut [f32], onto: Onto) {
    let Context { shape, batch, meter, .. } = context;
    let Shape { hidden, ffn, heads, kv_heads, dim, .. } = *shape;
    let gradients = &mut buffers.gradients;
    let qkv = shape.layers.get(at).map_or(0..0, |weights| weights.qkv.clone());
    let mut jobs: Vec<Job<'_>> = vec![];
    let Some(before) = at.checked_sub(1) else {
        weight_jobs(&mut jobs, context, &mut gradient[qkv], (&gradients.d_qkv, &gradients.normed, hidden), onto);
        return run(jobs);
    };
    let (weights, layer) = (&shape.layers[before], &buffers.layers[before]);
    let ranges = [qkv, weights.gate_up.clone(), weights.down.clone(), weights.o.clone()];
    let [qkv, gate_up, down, o] = gradient.get_disjoint_mut(ranges).expect("tensors do not overlap");
    let size = batch.positions * dim;
    let group = shape.group();
    let d_mixed: &[f32] = &gradients.d_mixed;
    let mut d_norms = gradients.d_qk_norm.chunks_mut(2 * dim);
    for (number, d) in gradients.d_heads.chunks_mut((group + 2) * size).enumerate() {
        let d_norms = d_norms.next().unwrap_or_default();
        let (sequence, kv_head) = (number / kv_heads, number % kv_heads);
        let projections = context.projections(&layer.qkv, sequence, kv_head);
        let log_sums = &layer.log_sums[number * group * batch.positions..][..group * batch.positions];
        jobs.push(Box::new(move || {
            let rows = |values: &'_ [f32]| -> std::ops::Range<usize> {
                let from = sequence * heads * size + kv_head * group * dim;
                from..((sequence + 1) * heads * size).min(values.len())
            };
            let (mixed, d_mixed) = (&layer.mixed[rows(&layer.mixed)], &d_mixed[rows(d_mixed)]);
            meter.time(Work::Attention, || {
                context.attention(before).backward((d, d_norms), projections, (mixed, d_mixed, hidden), log_sums);
            });
        }));
    }
    weight_jobs(&mut jobs, context, gate_up, (&layer.gate_up, &gradients.post_normed, hidden), onto);
    weight_jobs(&mut jobs, context, down, (&gradients.d_x, &gradients.gated, ffn), onto);
    weight_jobs(&mut jobs, context, qkv, (&gradients.d_qkv, &gradients.normed, hidden), onto);
    weight_jobs(&mut jobs, context, o, (&gradients.d_middle, &gradients.mixed, hidden), onto);
    pack_weights(&mut jobs, context, &mut buffers.packed, before, |weight| weight);
    run(jobs);
    if !weights.qk_norm.is_empty() {
        add_norm(&mut gradient[weights.qk_norm.clone()], &gradients.d_qk_norm, onto);
    }
}

/// Tasks for the gradient dyᵀ · x of a weight, `[out, in]`, from `(dy, x in panels, in)`.
fn weight_jobs<'a>(
    jobs: &mut Vec<Job<'a>>,
    context: Context<'a>,
    gradient: &'a mut [f32],
    (dy, x, width): (&'a [f32], &'a [f32], usize),
    onto: Onto,
) {
    let Context { batch, meter, .. } = context;
    let outputs = gradient.len() / width;
    for (number, gradient) in gradient.chunks_mut(WEIGHT_ROWS * width).enumerate() {
        jobs.push(Box::new(move || {
            let dy = dy.chunks(batch.block() * outputs);
            for (block, (dy, x)) in dy.zip(x.chunks(Panels::room(batch.block(), width))).enumerate() {
                let rows = dy.len() / outputs;
                let dy = Matrix::strided(&dy[number * WEIGHT_ROWS..], rows, gradient.len() / width, outputs);
                let onto = if block == 0 { onto } else { Onto::Add };
                let x = Panels::new(x, rows, width);
                meter.time(Work::Products, || product(gradient, dy.transposed(), x, onto));
            }
        }));
    }
}

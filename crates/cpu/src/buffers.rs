//! Memory of a pass, kept from pass to pass. Contents are undefined between passes unless said otherwise.

use crate::aligned::Aligned;
use crate::product::Panels;
use crate::shape::{Batch, Shape};

/// What one layer's backward pass needs of its forward pass. Every buffer has one row per position of the batch.
#[derive(Debug, Default)]
pub(crate) struct Layer {
    /// The residual stream as it comes in, `[rows, hidden]`.
    pub(crate) x: Aligned,
    /// Projections before rotation, `[rows, qkv]`.
    pub(crate) qkv: Aligned,
    /// What attention mixed, `[rows, hidden]`.
    pub(crate) mixed: Aligned,
    /// Logarithms of the softmax's sums, `[sequences, heads, positions]`.
    pub(crate) log_sums: Aligned,
    /// The residual stream after attention, `[rows, hidden]`.
    pub(crate) middle: Aligned,
    /// `[rows, 2 · ffn]`; the backward pass turns it into its gradient.
    pub(crate) gate_up: Aligned,
}

/// The weights of one step of a pass in panels: of x · Wᵀ forward, of dy · W backward.
#[derive(Debug, Default)]
pub(crate) struct Packed {
    pub(crate) qkv: Aligned,
    pub(crate) o: Aligned,
    pub(crate) gate_up: Aligned,
    pub(crate) down: Aligned,
}

#[derive(Debug, Default)]
pub(crate) struct Buffers {
    /// All layers for training; without gradients, two that take turns suffice.
    pub(crate) layers: Vec<Layer>,
    pub(crate) packed: Packed,
    /// The residual stream after the last layer, `[rows, hidden]`.
    pub(crate) out: Aligned,
    /// Output of a norm, `[rows, hidden]`, and of the other norm of a layer.
    pub(crate) normed: Aligned,
    pub(crate) post_normed: Aligned,
    /// SwiGLU's output, `[rows, ffn]`.
    pub(crate) gated: Aligned,
    /// Attention's output by heads, `[sequences, heads, positions, dim]`.
    pub(crate) heads: Aligned,
    pub(crate) loss: LossBuffers,
    pub(crate) gradients: GradientBuffers,
}

/// Memory of the output projection and the cross-entropy.
#[derive(Debug, Default)]
pub(crate) struct LossBuffers {
    /// Logits of a chunk of rows, transposed: `[vocabulary, chunk]`.
    pub(crate) logits: Aligned,
    /// The chunk's rows of `normed` in panels: transposed for the logits, and unchanged for the weights' gradient.
    pub(crate) normed_t: Aligned,
    pub(crate) normed: Aligned,
    /// Some tokens' rows of the projection in panels.
    pub(crate) head: Aligned,
    /// For each block of the vocabulary: `[largest, sum, target's logit][chunk]`.
    pub(crate) blocks: Aligned,
}

/// Memory of the backward pass. `d_` is the gradient of what follows.
#[derive(Debug, Default)]
pub(crate) struct GradientBuffers {
    /// Residual stream, `[rows, hidden]`: after the layer (and before it, when done), and between its parts.
    pub(crate) d_x: Aligned,
    pub(crate) d_middle: Aligned,
    /// Output of a norm, `[rows, hidden]`.
    pub(crate) d_normed: Aligned,
    pub(crate) d_mixed: Aligned,
    /// Projections by key-value heads, `[sequences, kv heads][group queries, key, value][positions, dim]`.
    pub(crate) d_heads: Aligned,
    /// `[rows, qkv]`.
    pub(crate) d_qkv: Aligned,
    /// What the weights' gradients are products with, in panels, block of rows by block of rows.
    pub(crate) normed: Aligned,
    pub(crate) mixed: Aligned,
    pub(crate) post_normed: Aligned,
    pub(crate) gated: Aligned,
    /// Parts of the norms' gradients, one per block of rows: `[blocks, hidden]`.
    pub(crate) d_input_norm: Aligned,
    pub(crate) d_post_norm: Aligned,
    /// Parts of the gradients of a layer's norms of queries and keys, one per call of attention:
    /// `[sequences, kv heads][query, key][dim]`.
    pub(crate) d_qk_norm: Aligned,
}

impl Buffers {
    /// Makes room for a batch and, with `training`, for all that a backward pass needs. Returns the number of layers
    /// that have a buffer.
    pub(crate) fn fit(&mut self, shape: &Shape, batch: Batch, training: bool) -> usize {
        let (rows, hidden, ffn) = (batch.rows(), shape.hidden, shape.ffn);
        let kept = if training { shape.layers.len() } else { shape.layers.len().min(2) };
        if self.layers.len() < kept {
            self.layers.resize_with(kept, Layer::default);
        }
        for layer in &mut self.layers[..kept] {
            for stream in [&mut layer.x, &mut layer.mixed, &mut layer.middle] {
                stream.resize(rows * hidden);
            }
            layer.qkv.resize(rows * shape.qkv());
            layer.log_sums.resize(rows * shape.heads);
            layer.gate_up.resize(rows * 2 * ffn);
        }
        let Packed { qkv, o, gate_up, down } = &mut self.packed;
        for (packed, (outputs, inputs)) in
            [(qkv, (shape.qkv(), hidden)), (o, (hidden, hidden)), (gate_up, (2 * ffn, hidden)), (down, (hidden, ffn))]
        {
            packed.resize(Panels::room(inputs, outputs).max(Panels::room(outputs, inputs)));
        }
        for buffer in [&mut self.out, &mut self.normed, &mut self.heads] {
            buffer.resize(rows * hidden);
        }
        self.gated.resize(rows * ffn);
        if training {
            let gradients = &mut self.gradients;
            let streams =
                [&mut gradients.d_x, &mut gradients.d_middle, &mut gradients.d_normed, &mut gradients.d_mixed];
            streams.into_iter().chain([&mut self.post_normed]).for_each(|buffer| buffer.resize(rows * hidden));
            gradients.d_heads.resize(rows * shape.qkv());
            gradients.d_qkv.resize(rows * shape.qkv());
            for panels in [&mut gradients.normed, &mut gradients.mixed, &mut gradients.post_normed] {
                panels.resize(Panels::room(rows, hidden));
            }
            gradients.gated.resize(Panels::room(rows, ffn));
            gradients.d_input_norm.resize(batch.blocks() * hidden);
            gradients.d_post_norm.resize(batch.blocks() * hidden);
            let norms = shape.layers.first().map_or(0, |layer| layer.qk_norm.len());
            gradients.d_qk_norm.resize(batch.sequences * shape.kv_heads * norms);
        }
        kept
    }
}

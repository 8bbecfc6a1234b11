//! Memory of a pass, kept from pass to pass. Contents are undefined between passes unless said otherwise.

use crate::shape::{Batch, Shape};

/// What one layer's backward pass needs of its forward pass. Every buffer has one row a position of the batch.
#[derive(Debug, Default)]
pub(crate) struct Layer {
    /// The residual stream as it comes in, `[rows, hidden]`.
    pub(crate) x: Vec<f32>,
    /// Projections before rotation, `[rows, qkv]`.
    pub(crate) qkv: Vec<f32>,
    /// What attention mixed, `[rows, hidden]`.
    pub(crate) mixed: Vec<f32>,
    /// Logarithms of the softmax's sums, `[sequences, heads, positions]`.
    pub(crate) log_sums: Vec<f32>,
    /// The residual stream after attention, `[rows, hidden]`.
    pub(crate) middle: Vec<f32>,
    /// `[rows, 2 · ffn]`; the backward pass turns it into its gradient.
    pub(crate) gate_up: Vec<f32>,
}

/// One layer's weights transposed, `[in, out]`: the order in which the forward products read them fastest.
#[derive(Debug, Default)]
pub(crate) struct Transposed {
    pub(crate) qkv: Vec<f32>,
    pub(crate) o: Vec<f32>,
    pub(crate) gate_up: Vec<f32>,
    pub(crate) down: Vec<f32>,
}

#[derive(Debug, Default)]
pub(crate) struct Buffers {
    /// All layers for training; without gradients two suffice, in turns.
    pub(crate) layers: Vec<Layer>,
    pub(crate) transposed: Transposed,
    /// The residual stream after the last layer, `[rows, hidden]`.
    pub(crate) out: Vec<f32>,
    /// Output of a norm, `[rows, hidden]`; and of the other norm of a layer.
    pub(crate) normed: Vec<f32>,
    pub(crate) post_normed: Vec<f32>,
    /// SwiGLU's output, `[rows, ffn]`.
    pub(crate) gated: Vec<f32>,
    /// Attention's output by heads, `[sequences, heads, positions, dim]`.
    pub(crate) heads: Vec<f32>,
    pub(crate) loss: LossBuffers,
    pub(crate) gradients: GradientBuffers,
}

/// Memory of the output projection and the cross-entropy.
#[derive(Debug, Default)]
pub(crate) struct LossBuffers {
    /// Logits of a chunk of rows, transposed: `[vocabulary, chunk]`.
    pub(crate) logits: Vec<f32>,
    /// The chunk's rows of `normed`, transposed: `[hidden, chunk]`.
    pub(crate) normed: Vec<f32>,
    /// For each block of the vocabulary `[largest, sum, target's logit][chunk]`.
    pub(crate) blocks: Vec<f32>,
}

/// Memory of the backward pass. `d_` is the gradient of what follows.
#[derive(Debug, Default)]
#[expect(clippy::struct_field_names, reason = "gradients are written so everywhere")]
pub(crate) struct GradientBuffers {
    /// Residual stream, `[rows, hidden]`: after the layer (and before it, when done), and between its parts.
    pub(crate) d_x: Vec<f32>,
    pub(crate) d_middle: Vec<f32>,
    /// Output of a norm, `[rows, hidden]`.
    pub(crate) d_normed: Vec<f32>,
    pub(crate) d_mixed: Vec<f32>,
    /// Projections by key-value heads, `[sequences, kv heads][group queries, key, value][positions, dim]`.
    pub(crate) d_heads: Vec<f32>,
    /// `[rows, qkv]`.
    pub(crate) d_qkv: Vec<f32>,
    /// Parts of the norms' gradients, one a block of rows: `[blocks, hidden]`.
    pub(crate) d_input_norm: Vec<f32>,
    pub(crate) d_post_norm: Vec<f32>,
}

impl Buffers {
    /// Makes room for a batch; `training` for all that a backward pass needs. Returns for how many layers.
    pub(crate) fn fit(&mut self, shape: &Shape, batch: Batch, training: bool) -> usize {
        let (rows, hidden, ffn) = (batch.rows(), shape.hidden, shape.ffn);
        let kept = if training { shape.layers.len() } else { shape.layers.len().min(2) };
        if self.layers.len() < kept {
            self.layers.resize_with(kept, Layer::default);
        }
        for layer in &mut self.layers[..kept] {
            for stream in [&mut layer.x, &mut layer.mixed, &mut layer.middle] {
                resize(stream, rows * hidden);
            }
            resize(&mut layer.qkv, rows * shape.qkv());
            resize(&mut layer.log_sums, rows * shape.heads);
            resize(&mut layer.gate_up, rows * 2 * ffn);
        }
        resize(&mut self.transposed.qkv, shape.qkv() * hidden);
        resize(&mut self.transposed.o, hidden * hidden);
        resize(&mut self.transposed.gate_up, 2 * ffn * hidden);
        resize(&mut self.transposed.down, ffn * hidden);
        for buffer in [&mut self.out, &mut self.normed, &mut self.heads] {
            resize(buffer, rows * hidden);
        }
        resize(&mut self.gated, rows * ffn);
        if training {
            let gradients = &mut self.gradients;
            let streams =
                [&mut gradients.d_x, &mut gradients.d_middle, &mut gradients.d_normed, &mut gradients.d_mixed];
            streams.into_iter().chain([&mut self.post_normed]).for_each(|buffer| resize(buffer, rows * hidden));
            resize(&mut gradients.d_heads, rows * shape.qkv());
            resize(&mut gradients.d_qkv, rows * shape.qkv());
            resize(&mut gradients.d_input_norm, batch.blocks() * hidden);
            resize(&mut gradients.d_post_norm, batch.blocks() * hidden);
        }
        kept
    }
}

/// Exactly as long as asked, without giving memory back.
pub(crate) fn resize(buffer: &mut Vec<f32>, len: usize) {
    if buffer.capacity() < len {
        *buffer = vec![0.0; len];
    }
    buffer.resize(len, 0.0);
}

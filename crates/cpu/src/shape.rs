//! Sizes and places: what follows from the model's shape and from a batch's.

use std::ops::Range;

use templar_protocol::layout::{Layout, ModelSpec};

/// Rows that one task takes through the layers' row-wise parts. The number is fixed, so that threads do not matter.
const BLOCK_ROWS: usize = 256;

/// Sizes of the model, and where its tensors lie in the flat parameters.
#[derive(Debug, Clone)]
pub(crate) struct Shape {
    pub(crate) hidden: usize,
    pub(crate) heads: usize,
    pub(crate) kv_heads: usize,
    /// Elements of a head.
    pub(crate) dim: usize,
    pub(crate) ffn: usize,
    pub(crate) vocabulary: usize,
    pub(crate) epsilon: f32,
    pub(crate) parameters: usize,
    pub(crate) embedding: Range<usize>,
    pub(crate) layers: Vec<LayerRanges>,
    pub(crate) norm: Range<usize>,
    /// The output projection; the embedding's range if embeddings are tied.
    pub(crate) head: Range<usize>,
}

/// A layer's tensors. Those that lie side by side and take the same input are one matrix here.
#[derive(Debug, Clone)]
pub(crate) struct LayerRanges {
    pub(crate) input_norm: Range<usize>,
    /// Queries, keys and values, `[hidden + 2 · kv, hidden]`.
    pub(crate) qkv: Range<usize>,
    pub(crate) o: Range<usize>,
    /// Norms of queries and of keys, `[2 · dim]`; empty in a model without them.
    pub(crate) qk_norm: Range<usize>,
    pub(crate) post_norm: Range<usize>,
    /// `[2 · ffn, hidden]`.
    pub(crate) gate_up: Range<usize>,
    pub(crate) down: Range<usize>,
}

impl Shape {
    pub(crate) fn new(spec: &ModelSpec) -> Self {
        let layout = Layout::llama(spec);
        let range = |at: usize| layout.tensors()[at].range();
        let norms = if spec.qk_norm { 2 } else { 0 };
        let layers = (0..spec.layers as usize).map(|layer| 1 + (9 + norms) * layer).map(|at| {
            let after = at + 5 + norms;
            LayerRanges {
                input_norm: range(at),
                qkv: range(at + 1).start..range(at + 3).end,
                o: range(at + 4),
                qk_norm: range(at + 4).end..range(after).start,
                post_norm: range(after),
                gate_up: range(after + 1).start..range(after + 2).end,
                down: range(after + 3),
            }
        });
        let norm = 1 + (9 + norms) * spec.layers as usize;
        Self {
            hidden: spec.hidden_size as usize,
            heads: spec.heads as usize,
            kv_heads: spec.kv_heads as usize,
            dim: spec.head_dim() as usize,
            ffn: spec.ffn_size as usize,
            vocabulary: spec.vocab_size as usize,
            epsilon: spec.norm_eps as f32,
            parameters: layout.len(),
            embedding: range(0),
            layers: layers.collect(),
            norm: range(norm),
            head: if spec.tied_embeddings { range(0) } else { range(norm + 1) },
        }
    }

    /// Query heads that share a key-value head.
    pub(crate) fn group(&self) -> usize {
        self.heads / self.kv_heads
    }

    /// Width of queries, keys and values together.
    pub(crate) fn qkv(&self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.dim
    }
}

/// Sizes of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Batch {
    pub(crate) sequences: usize,
    /// Positions of a sequence that the model sees.
    pub(crate) positions: usize,
}

impl Batch {
    pub(crate) fn rows(&self) -> usize {
        self.sequences * self.positions
    }

    /// Rows of a task; the last one may have fewer.
    pub(crate) fn block(&self) -> usize {
        self.rows().div_ceil(self.blocks())
    }

    pub(crate) fn blocks(&self) -> usize {
        self.rows().div_ceil(BLOCK_ROWS)
    }
}

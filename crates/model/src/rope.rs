//! Constants of attention: rotary position embedding by rotated halves, and the causal mask.

use burn::tensor::{Device, Tensor, TensorData};
use templar_protocol::layout::ModelSpec;

/// Added to the scores of later positions; its exponential is 0, and unlike −∞ it survives fast-math on GPUs.
const MASKED: f32 = -1e9;

/// Tables for sequences of `positions` tokens.
#[derive(Clone)]
pub(crate) struct Attention {
    /// cos and sin of `[1, positions, heads · head_dim]`, scaled by 1/√head_dim, so that scores come out scaled.
    query: [Tensor<3>; 2],
    /// cos and sin of `[1, positions, kv_heads · head_dim]`.
    key: [Tensor<3>; 2],
    /// `[head_dim, head_dim]`, takes (a, b) to (−b, a) for halves a and b. One product instead of slicing and
    /// concatenating, whose derivatives would fill and copy whole tensors.
    rotate: Tensor<2>,
    /// `[1, 1, positions, positions]`.
    pub(crate) mask: Tensor<4>,
}

impl Attention {
    pub(crate) fn new(spec: &ModelSpec, positions: usize, device: &Device) -> Self {
        let head_dim = spec.head_dim() as usize;
        let half = head_dim / 2;
        let angle = |position: usize, i: usize| {
            position as f64 * spec.rope_theta.powf(-2.0 * (i % half) as f64 / head_dim as f64)
        };
        let table = |heads: u32, scale: f64, function: fn(f64) -> f64| {
            let width = heads as usize * head_dim;
            let values = (0..positions * width)
                .map(|at| (scale * function(angle(at / width, at % width % head_dim))) as f32)
                .collect();
            Tensor::from_data(TensorData::new(values, [1, positions, width]), device)
        };
        let scale = 1.0 / (head_dim as f64).sqrt();
        let rotate = (0..head_dim * head_dim).map(|at| match (at / head_dim, at % head_dim) {
            (from, to) if from == to + half => -1.0f32,
            (from, to) if from + half == to => 1.0,
            _ => 0.0,
        });
        let mask = (0..positions * positions).map(|at| if at % positions > at / positions { MASKED } else { 0.0 });
        Self {
            query: [table(spec.heads, scale, f64::cos), table(spec.heads, scale, f64::sin)],
            key: [table(spec.kv_heads, 1.0, f64::cos), table(spec.kv_heads, 1.0, f64::sin)],
            rotate: Tensor::from_data(TensorData::new(rotate.collect::<Vec<_>>(), [head_dim, head_dim]), device),
            mask: Tensor::from_data(TensorData::new(mask.collect::<Vec<_>>(), [1, 1, positions, positions]), device),
        }
    }

    /// Rotates queries `[sequences · positions, heads · head_dim]` and scales them; returns
    /// `[sequences, positions, heads, head_dim]`.
    pub(crate) fn rotate_query(&self, x: Tensor<2>, sequences: usize) -> Tensor<4> {
        self.apply(&self.query, x, sequences)
    }

    /// Rotates keys; shapes as in [`Attention::rotate_query`].
    pub(crate) fn rotate_key(&self, x: Tensor<2>, sequences: usize) -> Tensor<4> {
        self.apply(&self.key, x, sequences)
    }

    fn apply(&self, [cos, sin]: &[Tensor<3>; 2], x: Tensor<2>, sequences: usize) -> Tensor<4> {
        let [rows, width] = x.dims();
        let (positions, [head_dim, _]) = (rows / sequences, self.rotate.dims());
        let heads = width / head_dim;
        let turned = x.clone().reshape([rows * heads, head_dim]).matmul(self.rotate.clone());
        let turned = turned.reshape([sequences, positions, width]) * sin.clone();
        (x.reshape([sequences, positions, width]) * cos.clone() + turned)
            .reshape([sequences, positions, heads, head_dim])
    }
}

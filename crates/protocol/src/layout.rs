//! The canonical order of the model's parameters, and the root that names a state of them.
//!
//! Parameters are one flat slice of f32: the tensors of a [`Layout`] one after the other, each in row-major order.
//! Names and shapes are Hugging Face's (`[out, in]` for a projection), whatever the engine does inside.

use std::ops::Range;

use borsh::{BorshDeserialize, BorshSerialize};
use serde::{Deserialize, Serialize};

use crate::hash::{Hash32, Hasher, Stream};

/// Shape of a Llama-family decoder.
#[derive(Clone, Debug, PartialEq, BorshSerialize, BorshDeserialize, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelSpec {
    pub vocab_size: u32,
    pub hidden_size: u32,
    pub layers: u32,
    pub heads: u32,
    pub kv_heads: u32,
    pub ffn_size: u32,
    /// Longest sequence, in tokens.
    pub seq_len: u32,
    /// Base of the rotary position embedding.
    pub rope_theta: f64,
    pub norm_eps: f64,
    /// Whether the output projection is the embedding itself.
    pub tied_embeddings: bool,
}

impl ModelSpec {
    pub fn head_dim(&self) -> u32 {
        self.hidden_size / self.heads
    }
}

/// One tensor of the model: its Hugging Face name, shape, and place in the flat parameters.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize, Serialize, Deserialize)]
pub struct TensorSpec {
    pub name: String,
    pub shape: Vec<u64>,
    /// Index of its first element in the flat parameters.
    pub offset: u64,
}

impl TensorSpec {
    pub fn len(&self) -> usize {
        self.shape.iter().product::<u64>() as usize
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Where its elements lie in the flat parameters.
    pub fn range(&self) -> Range<usize> {
        self.offset as usize..self.offset as usize + self.len()
    }
}

/// All tensors of a model in canonical order.
#[derive(Clone, Debug, PartialEq, Eq, Default, BorshSerialize, BorshDeserialize, Serialize, Deserialize)]
pub struct Layout {
    tensors: Vec<TensorSpec>,
}

impl Layout {
    /// From names and shapes; offsets follow from the order.
    pub fn new(tensors: impl IntoIterator<Item = (String, Vec<u64>)>) -> Self {
        let mut offset = 0;
        let tensors = tensors
            .into_iter()
            .map(|(name, shape)| {
                let tensor = TensorSpec { name, shape, offset };
                offset += tensor.len() as u64;
                tensor
            })
            .collect();
        Self { tensors }
    }

    /// The tensors of Hugging Face's `LlamaForCausalLM`, embedding first, layer by layer.
    pub fn llama(model: &ModelSpec) -> Self {
        let (d, ffn) = (u64::from(model.hidden_size), u64::from(model.ffn_size));
        let kv = u64::from(model.kv_heads) * u64::from(model.head_dim());
        let vocab = u64::from(model.vocab_size);
        let mut tensors = vec![("model.embed_tokens.weight".to_owned(), vec![vocab, d])];
        for layer in 0..model.layers {
            let mut add = |part: &str, shape: &[u64]| {
                tensors.push((format!("model.layers.{layer}.{part}.weight"), shape.to_vec()));
            };
            add("input_layernorm", &[d]);
            add("self_attn.q_proj", &[d, d]);
            add("self_attn.k_proj", &[kv, d]);
            add("self_attn.v_proj", &[kv, d]);
            add("self_attn.o_proj", &[d, d]);
            add("post_attention_layernorm", &[d]);
            add("mlp.gate_proj", &[ffn, d]);
            add("mlp.up_proj", &[ffn, d]);
            add("mlp.down_proj", &[d, ffn]);
        }
        tensors.push(("model.norm.weight".to_owned(), vec![d]));
        if !model.tied_embeddings {
            tensors.push(("lm_head.weight".to_owned(), vec![vocab, d]));
        }
        Self::new(tensors)
    }

    pub fn tensors(&self) -> &[TensorSpec] {
        &self.tensors
    }

    /// Number of parameters.
    pub fn len(&self) -> usize {
        self.tensors.last().map_or(0, |tensor| tensor.range().end)
    }

    pub fn is_empty(&self) -> bool {
        self.tensors.is_empty()
    }

    /// BLAKE3 over (name, shape, little-endian bytes) of every tensor in canonical order.
    ///
    /// # Panics
    /// If `theta` does not have [`Layout::len`] elements.
    pub fn state_root(&self, theta: &[f32]) -> Hash32 {
        assert_eq!(theta.len(), self.len(), "parameters do not fit the layout");
        let mut hasher = Hasher::new("templar v1 state root");
        let mut bytes = Vec::with_capacity(4 * 16_384);
        for tensor in &self.tensors {
            hasher.update_value(&tensor.name).update_value(&tensor.shape);
            for block in theta[tensor.range()].chunks(16_384) {
                bytes.clear();
                bytes.extend(block.iter().flat_map(|value| value.to_le_bytes()));
                hasher.update(&bytes);
            }
        }
        hasher.finish()
    }

    /// The initial parameters θ₀, from integers and + − × only, so that every platform makes the same bits.
    ///
    /// Norm weights are 1. Every other element is the centred sum of eight uniform 16-bit integers, scaled to a
    /// standard deviation of 0.02; projections that write into the residual stream (`o_proj`, `down_proj`) are
    /// divided by √(2·layers), as GPT-2 does.
    pub fn theta0(&self, model: &ModelSpec, seed: u64) -> Vec<f32> {
        let mut theta = Vec::with_capacity(self.len());
        for tensor in &self.tensors {
            theta.extend(theta0_values(model, seed, tensor));
        }
        theta
    }

    /// [`Layout::state_root`] of [`Layout::theta0`], a few values at a time: for models larger than memory.
    pub fn theta0_root(&self, model: &ModelSpec, seed: u64) -> Hash32 {
        let mut hasher = Hasher::new("templar v1 state root");
        let mut bytes = Vec::with_capacity(4 * 16_384);
        for tensor in &self.tensors {
            hasher.update_value(&tensor.name).update_value(&tensor.shape);
            let mut values = theta0_values(model, seed, tensor).peekable();
            while values.peek().is_some() {
                bytes.clear();
                bytes.extend(values.by_ref().take(16_384).flat_map(f32::to_le_bytes));
                hasher.update(&bytes);
            }
        }
        hasher.finish()
    }
}

/// The elements of one tensor of θ₀.
fn theta0_values(model: &ModelSpec, seed: u64, tensor: &TensorSpec) -> impl Iterator<Item = f32> {
    // Variance of a uniform 16-bit integer: (2^32 − 1) / 12; eight of them add up.
    let unit = (8.0 * (4_294_967_296.0 - 1.0) / 12.0_f64).sqrt();
    let residual = (2.0 * f64::from(model.layers)).sqrt();
    let is_norm = tensor.shape.len() == 1;
    let writes_residual = tensor.name.ends_with("o_proj.weight") || tensor.name.ends_with("down_proj.weight");
    let scale = 0.02 / unit / if writes_residual { residual } else { 1.0 };
    let mut hasher = Hasher::new("templar v1 theta0");
    let mut stream = hasher.update_value(&seed).update_value(&tensor.name).clone().into_stream();
    (0..tensor.len()).map(move |_| if is_norm { 1.0 } else { (centred_sum(&mut stream) as f64 * scale) as f32 })
}

/// Sum of eight uniform 16-bit integers less its mean (8 · 65535 / 2, an integer): exact in f64.
fn centred_sum(stream: &mut Stream) -> i64 {
    let (a, b) = (stream.next_u64(), stream.next_u64());
    let lanes = |word: u64| (0..4).map(move |lane| ((word >> (16 * lane)) & 0xffff) as i64);
    lanes(a).chain(lanes(b)).sum::<i64>() - 8 * 65_535 / 2
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tiny() -> ModelSpec {
        ModelSpec {
            vocab_size: 32,
            hidden_size: 16,
            layers: 2,
            heads: 4,
            kv_heads: 2,
            ffn_size: 24,
            seq_len: 8,
            rope_theta: 10_000.0,
            norm_eps: 1e-5,
            tied_embeddings: false,
        }
    }

    #[test]
    fn layout_tiles_the_flat_parameters() {
        let layout = Layout::llama(&tiny());
        let mut next = 0;
        for tensor in layout.tensors() {
            assert_eq!(tensor.range().start, next);
            next = tensor.range().end;
        }
        assert_eq!(next, layout.len());
        assert_eq!(layout.tensors().len(), 2 + 9 * 2 + 1);
    }

    #[test]
    fn theta0_has_its_golden_root_and_spread() {
        let (model, layout) = (tiny(), Layout::llama(&tiny()));
        let theta = layout.theta0(&model, 7);
        let embedding = &theta[layout.tensors()[0].range()];
        let mean = embedding.iter().map(|&x| f64::from(x)).sum::<f64>() / embedding.len() as f64;
        let deviation = (embedding.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / embedding.len() as f64).sqrt();
        assert!(mean.abs() < 0.003 && (deviation - 0.02).abs() < 0.002, "{mean} {deviation}");
        assert_ne!(layout.theta0(&model, 8), theta);
        let root = layout.state_root(&theta).to_string();
        assert_eq!(root, "0dea1b10e509a7e75ef9f7e8a18a1425a10991d55b1492adf707bfeea5dbbdfc");
        assert_eq!(layout.theta0_root(&model, 7).to_string(), root);
    }

    #[test]
    fn root_sees_one_bit() {
        let (model, layout) = (tiny(), Layout::llama(&tiny()));
        let mut theta = layout.theta0(&model, 7);
        let root = layout.state_root(&theta);
        theta[100] = f32::from_bits(theta[100].to_bits() ^ 1);
        assert_ne!(layout.state_root(&theta), root);
    }
}

//! The canonical order of the model's parameters, and the root that names a state of them.
//!
//! Parameters are one flat slice of f32: the tensors of a [`Layout`] one after the other, each in row-major order.
//! Names and shapes are Hugging Face's (`[out, in]` for a projection), whatever the engine does inside.

use std::ops::Range;

use borsh::{BorshDeserialize, BorshSerialize};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::hash::{Hash32, Hasher};

/// Elements that are hashed at once: 4 MiB, which cores share in their common cache.
const HASHED_VALUES: usize = 1 << 20;
/// With fewer elements, copying is not worth a thread of its own.
const COPIED_VALUES_MIN: usize = 1 << 16;

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

    /// Absorbs what precedes its elements in a state root.
    pub(crate) fn absorb_head(&self, hasher: &mut Hasher) {
        hasher.update_value(&self.name).update_value(&self.shape);
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
    /// A layout of these names and shapes; offsets follow from the order.
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

    /// BLAKE3 over (name, shape, little-endian bytes) of every tensor in canonical order, on all cores.
    ///
    /// # Panics
    /// If `theta` does not have [`Layout::len`] elements.
    pub fn state_root(&self, theta: &[f32]) -> Hash32 {
        assert_eq!(theta.len(), self.len(), "parameters do not fit the layout");
        let mut hasher = Self::root_hasher();
        let longest = self.tensors.iter().map(TensorSpec::len).max().unwrap_or(0);
        let mut bytes = vec![[0; 4]; longest.min(HASHED_VALUES)];
        for tensor in &self.tensors {
            tensor.absorb_head(&mut hasher);
            for block in theta[tensor.range()].chunks(HASHED_VALUES) {
                let bytes = &mut bytes[..block.len()];
                let pairs = bytes.par_iter_mut().zip(block).with_min_len(COPIED_VALUES_MIN);
                pairs.for_each(|(bytes, value)| *bytes = value.to_le_bytes());
                hasher.update_parallel(bytes.as_flattened());
            }
        }
        hasher.finish()
    }

    /// What every state root starts from; see [`Layout::state_root`].
    pub(crate) fn root_hasher() -> Hasher {
        Hasher::new("templar v1 state root")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::tiny_model;

    #[test]
    fn layout_tiles_the_flat_parameters() {
        let layout = Layout::llama(&tiny_model());
        let mut next = 0;
        for tensor in layout.tensors() {
            assert_eq!(tensor.range().start, next);
            next = tensor.range().end;
        }
        assert_eq!(next, layout.len());
        assert_eq!(layout.tensors().len(), 2 + 9 * 2 + 1);
    }

    #[test]
    fn one_bit_changes_the_root() {
        let (model, layout) = (tiny_model(), Layout::llama(&tiny_model()));
        let mut theta = layout.theta0(&model, 7);
        let root = layout.state_root(&theta);
        theta[100] = f32::from_bits(theta[100].to_bits() ^ 1);
        assert_ne!(layout.state_root(&theta), root);
    }
}

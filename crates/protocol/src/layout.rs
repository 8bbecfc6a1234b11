//! The canonical order of the model's parameters, and the root that names a state of them.
//!
//! Parameters are one flat slice of f32: the tensors of a [`Layout`] one after the other, each in row-major order.
//! Names and shapes are Hugging Face's (`[out, in]` for a projection), whatever the engine does inside.

use std::ops::Range;

use borsh::{BorshDeserialize, BorshSerialize};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::hash::{Hash32, Hasher};
use crate::tree;

/// Elements in one part of θ, the last one excepted: 64 MiB. A part is what a checkpoint is served in, and what the
/// root lets a reader check alone.
pub const PART_VALUES: usize = 16 << 20;
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
    /// Whether the elements of every query and every key pass an RMS norm of their own before they are rotated.
    #[serde(default)]
    pub qk_norm: bool,
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

    /// The tensors of Hugging Face's `LlamaForCausalLM` or, with `qk_norm`, of its `Qwen3ForCausalLM`: embedding first, layer
    /// by layer.
    pub fn llama(model: &ModelSpec) -> Self {
        let (d, ffn) = (u64::from(model.hidden_size), u64::from(model.ffn_size));
        let head = u64::from(model.head_dim());
        let kv = u64::from(model.kv_heads) * head;
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
            if model.qk_norm {
                // One weight per element of a head, which all heads share.
                add("self_attn.q_norm", &[head]);
                add("self_attn.k_norm", &[head]);
            }
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

    /// The root that names `theta`: over names and shapes of all tensors, and over the parts of θ, on all cores.
    ///
    /// # Panics
    /// If `theta` does not have [`Layout::len`] elements.
    pub fn state_root(&self, theta: &[f32]) -> Hash32 {
        self.root_of_parts(&self.part_hashes(theta))
    }

    /// The digest of every part of θ, [`PART_VALUES`] elements each.
    ///
    /// # Panics
    /// If `theta` does not have [`Layout::len`] elements.
    pub fn part_hashes(&self, theta: &[f32]) -> Vec<Hash32> {
        assert_eq!(theta.len(), self.len(), "parameters do not fit the layout");
        let mut bytes = vec![[0; 4]; theta.len().min(HASHED_VALUES)];
        let mut parts = PartHasher::default();
        for block in theta.chunks(HASHED_VALUES) {
            let bytes = &mut bytes[..block.len()];
            let pairs = bytes.par_iter_mut().zip(block).with_min_len(COPIED_VALUES_MIN);
            pairs.for_each(|(bytes, value)| *bytes = value.to_le_bytes());
            parts.update(bytes);
        }
        parts.finish()
    }

    /// Number of parts of θ.
    pub fn parts(&self) -> usize {
        self.len().div_ceil(PART_VALUES)
    }

    /// The root over the digests of all parts.
    pub fn root_of_parts(&self, parts: &[Hash32]) -> Hash32 {
        let heads: Vec<(&str, &[u64])> = self.tensors.iter().map(|t| (t.name.as_str(), t.shape.as_slice())).collect();
        Hash32::of_value("templar v2 state root", &(heads, tree::root(parts)))
    }
}

/// The digest of one part of θ, from its little-endian bytes.
pub fn part_hash(bytes: &[u8]) -> Hash32 {
    let mut hasher = Hasher::new(PART_CONTEXT);
    hasher.update_parallel(bytes);
    hasher.finish()
}

const PART_CONTEXT: &str = "templar v2 theta part";

/// Digests of the parts of θ, whose elements come in order, in blocks of any length.
pub(crate) struct PartHasher {
    present: Hasher,
    /// Elements of the present part so far.
    values: usize,
    done: Vec<Hash32>,
}

impl Default for PartHasher {
    fn default() -> Self {
        Self { present: Hasher::new(PART_CONTEXT), values: 0, done: Vec::new() }
    }
}

impl PartHasher {
    pub(crate) fn update(&mut self, mut block: &[[u8; 4]]) {
        while !block.is_empty() {
            let (now, later) = block.split_at(block.len().min(PART_VALUES - self.values));
            self.present.update_parallel(now.as_flattened());
            self.values += now.len();
            if self.values == PART_VALUES {
                self.end_part();
            }
            block = later;
        }
    }

    fn end_part(&mut self) {
        self.done.push(self.present.finish());
        (self.present, self.values) = (Hasher::new(PART_CONTEXT), 0);
    }

    pub(crate) fn finish(mut self) -> Vec<Hash32> {
        if self.values > 0 {
            self.end_part();
        }
        self.done
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
    fn norms_of_queries_and_keys_follow_the_projections() {
        let (without, with) = (tiny_model(), ModelSpec { qk_norm: true, ..tiny_model() });
        let (plain, layout) = (Layout::llama(&without), Layout::llama(&with));
        assert_eq!(layout.len(), plain.len() + 2 * 2 * 4);
        let (at, theta) = (6, layout.theta0(&with, 7));
        for (nth, name) in ["q_norm", "k_norm"].iter().enumerate() {
            let tensor = &layout.tensors()[at + nth];
            assert_eq!(tensor.name, format!("model.layers.0.self_attn.{name}.weight"));
            assert_eq!((&tensor.shape[..], &theta[tensor.range()]), (&[4][..], &[1.0; 4][..]));
        }
        // All other tensors are as without them, and in the same order.
        let (others, plain_theta) = (|name: &str| !name.contains("_norm.weight"), plain.theta0(&without, 7));
        let kept = layout.tensors().iter().filter(|tensor| others(&tensor.name));
        for (tensor, plain) in kept.zip(plain.tensors()) {
            assert_eq!((&tensor.name, &tensor.shape), (&plain.name, &plain.shape));
            assert_eq!(theta[tensor.range()], plain_theta[plain.range()]);
        }
        let root = layout.state_root(&theta);
        assert_eq!(layout.theta0_root(&with, 7), root);
        assert_eq!(root.to_string(), "0accf58d74e92e572cf52f82896ca7e782afe61b84c22c73fad285d09c6b330e");
    }

    #[test]
    fn one_bit_changes_the_root() {
        let (model, layout) = (tiny_model(), Layout::llama(&tiny_model()));
        let mut theta = layout.theta0(&model, 7);
        let root = layout.state_root(&theta);
        theta[100] = f32::from_bits(theta[100].to_bits() ^ 1);
        assert_ne!(layout.state_root(&theta), root);
    }

    #[test]
    fn names_and_shapes_are_part_of_the_root() {
        let layout = |name: &str, shape: [u64; 2]| Layout::new([(name.to_owned(), shape.to_vec())]);
        let root = |layout: Layout| layout.state_root(&[0.5; 6]);
        let expected = root(layout("a", [2, 3]));
        assert_ne!(root(layout("b", [2, 3])), expected);
        assert_ne!(root(layout("a", [3, 2])), expected);
    }

    #[test]
    fn each_part_can_be_checked_alone() {
        let layout = Layout::new([("a".to_owned(), vec![PART_VALUES as u64 + 5]), ("b".to_owned(), vec![3])]);
        let theta: Vec<f32> = (0..layout.len()).map(|nth| nth as f32).collect();
        let parts = layout.part_hashes(&theta);
        let bytes = |values: &[f32]| values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>();
        let expected: Vec<Hash32> = theta.chunks(PART_VALUES).map(|part| part_hash(&bytes(part))).collect();
        assert_eq!((parts.len(), &parts), (layout.parts(), &expected));
        assert_eq!(layout.root_of_parts(&parts), layout.state_root(&theta));
    }
}

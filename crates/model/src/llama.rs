//! The decoder: token embedding, pre-norm blocks of grouped-query attention and SwiGLU, final norm, output projection.
//!
//! As Hugging Face's `LlamaForCausalLM` computes it: RMSNorm, rotary embedding by rotated halves, no biases, optionally
//! the embedding as output projection. Shapes in names: B sequences, T positions, N = B·T rows, D hidden, H heads,
//! K key-value heads, V vocabulary.

use burn::tensor::{Device as BurnDevice, Gradients, Int, Tensor, TensorData, activation};
use templar_protocol::layout::{Layout, ModelSpec};

use crate::{device::Device, rope::Attention};

/// A decoder with its parameters on a device.
#[derive(Clone)]
pub struct Llama {
    spec: ModelSpec,
    device: BurnDevice,
    embedding_vd: Tensor<2>,
    blocks: Vec<Block>,
    norm_d: Tensor<1>,
    /// Absent when the embedding is the output projection.
    head_vd: Option<Tensor<2>>,
}

#[derive(Clone)]
struct Block {
    input_norm: Tensor<1>,
    q: Tensor<2>,
    k: Tensor<2>,
    v: Tensor<2>,
    o: Tensor<2>,
    post_norm: Tensor<1>,
    gate: Tensor<2>,
    up: Tensor<2>,
    down: Tensor<2>,
}

/// The loss of some sequences and its gradient.
#[derive(Debug, Clone, PartialEq)]
pub struct LossGradient {
    /// Mean loss of each sequence, nats per target token.
    pub losses: Vec<f64>,
    /// Gradient of the mean of `losses`, in the order of the flat parameters.
    pub gradient: Vec<f32>,
}

impl std::fmt::Debug for Llama {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Llama").field("spec", &self.spec).field("device", &self.device).finish_non_exhaustive()
    }
}

/// Hands out the tensors of a layout one after the other, in canonical order.
struct Loader<'a> {
    layout: &'a Layout,
    theta: &'a [f32],
    next: usize,
    device: &'a BurnDevice,
}

impl Loader<'_> {
    fn tensor<const D: usize>(&mut self) -> Tensor<D> {
        let spec = &self.layout.tensors()[self.next];
        self.next += 1;
        let shape: Vec<usize> = spec.shape.iter().map(|&size| size as usize).collect();
        let tensor = Tensor::from_data(TensorData::new(self.theta[spec.range()].to_vec(), shape), self.device);
        if self.device.is_autodiff() { tensor.require_grad() } else { tensor }
    }
}

impl Llama {
    /// Puts the flat parameters on a device, for [`Llama::logits`] and [`Llama::losses`].
    ///
    /// # Panics
    /// If `theta` does not have as many elements as the model has parameters.
    pub fn new(spec: &ModelSpec, theta: &[f32], device: &Device) -> Self {
        Self::load(spec, theta, device.to_burn())
    }

    /// As [`Llama::new`], and ready for one [`Llama::loss_gradient`].
    ///
    /// # Panics
    /// If `theta` does not have as many elements as the model has parameters.
    pub fn differentiable(spec: &ModelSpec, theta: &[f32], device: &Device) -> Self {
        Self::load(spec, theta, device.to_burn().autodiff())
    }

    fn load(spec: &ModelSpec, theta: &[f32], device: BurnDevice) -> Self {
        let layout = Layout::llama(spec);
        assert_eq!(theta.len(), layout.len(), "parameters do not fit the model");
        let mut load = Loader { layout: &layout, theta, next: 0, device: &device };
        let embedding_vd = load.tensor();
        let blocks = (0..spec.layers)
            .map(|_| Block {
                input_norm: load.tensor(),
                q: load.tensor(),
                k: load.tensor(),
                v: load.tensor(),
                o: load.tensor(),
                post_norm: load.tensor(),
                gate: load.tensor(),
                up: load.tensor(),
                down: load.tensor(),
            })
            .collect();
        let norm_d = load.tensor();
        let head_vd = (!spec.tied_embeddings).then(|| load.tensor());
        Self { spec: spec.clone(), device, embedding_vd, blocks, norm_d, head_vd }
    }

    pub fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    /// Logits of every position: flat `[sequences, positions, vocabulary]`.
    ///
    /// # Panics
    /// If `tokens` is not `sequences` rows of equal, non-zero length, or a token is outside the vocabulary.
    pub fn logits(&self, tokens: &[u32], sequences: usize) -> Vec<f32> {
        into_vec(self.logits_nv(tokens, sequences))
    }

    /// Mean loss of each sequence in nats per target token: cross-entropy of predicting each token but the first.
    ///
    /// # Panics
    /// If `tokens` is not `sequences` rows of equal length of at least 2, or a token is outside the vocabulary.
    pub fn losses(&self, tokens: &[u32], sequences: usize) -> Vec<f64> {
        mean_losses(&into_vec(self.token_losses(tokens, sequences)), sequences)
    }

    /// Losses of all sequences, and the gradient of their mean. Needs a model from [`Llama::differentiable`].
    ///
    /// # Panics
    /// As [`Llama::losses`], and if the model is not differentiable.
    pub fn loss_gradient(&self, tokens: &[u32], sequences: usize) -> LossGradient {
        let losses_n = self.token_losses(tokens, sequences);
        let mut gradients = losses_n.clone().mean().backward();
        let losses = mean_losses(&into_vec(losses_n.inner()), sequences);
        LossGradient { losses, gradient: self.flat_gradient(&mut gradients) }
    }

    /// Cross-entropy of each target, `[sequences · (length − 1)]`.
    fn token_losses(&self, tokens: &[u32], sequences: usize) -> Tensor<1> {
        let length = row_length(tokens, sequences);
        assert!(length >= 2, "a sequence of one token has no target");
        let inputs: Vec<u32> = tokens.chunks_exact(length).flat_map(|row| &row[..length - 1]).copied().collect();
        let targets: Vec<i32> = tokens.chunks_exact(length).flat_map(|row| &row[1..]).map(|&t| t as i32).collect();
        let rows = targets.len();
        assert!(tokens.iter().all(|&token| token < self.spec.vocab_size), "a token is outside the vocabulary");
        let targets = Tensor::<2, Int>::from_data(TensorData::new(targets, [rows, 1]), &self.device);
        let log_probabilities_nv = activation::log_softmax(self.logits_nv(&inputs, sequences), 1);
        log_probabilities_nv.gather(1, targets).reshape([rows]).neg()
    }

    fn logits_nv(&self, tokens: &[u32], sequences: usize) -> Tensor<2> {
        let positions = row_length(tokens, sequences);
        assert!(tokens.iter().all(|&token| token < self.spec.vocab_size), "a token is outside the vocabulary");
        let ids: Vec<i32> = tokens.iter().map(|&token| token as i32).collect();
        let ids = Tensor::<1, Int>::from_data(TensorData::new(ids, [tokens.len()]), &self.device);
        let attention = Attention::new(&self.spec, positions, &self.device);
        let mut x_nd = self.embedding_vd.clone().select(0, ids);
        for block in &self.blocks {
            x_nd = block.forward(x_nd, sequences, &self.spec, &attention);
        }
        let head_vd = self.head_vd.as_ref().unwrap_or(&self.embedding_vd);
        linear(rms_norm(x_nd, &self.norm_d, self.spec.norm_eps), head_vd)
    }

    /// Collects the gradient of every parameter in canonical order.
    fn flat_gradient(&self, gradients: &mut Gradients) -> Vec<f32> {
        let mut flat = Vec::with_capacity(Layout::llama(&self.spec).len());
        append(&mut flat, &self.embedding_vd, gradients);
        for block in &self.blocks {
            append(&mut flat, &block.input_norm, gradients);
            for projection in [&block.q, &block.k, &block.v, &block.o] {
                append(&mut flat, projection, gradients);
            }
            append(&mut flat, &block.post_norm, gradients);
            for projection in [&block.gate, &block.up, &block.down] {
                append(&mut flat, projection, gradients);
            }
        }
        append(&mut flat, &self.norm_d, gradients);
        if let Some(head_vd) = &self.head_vd {
            append(&mut flat, head_vd, gradients);
        }
        flat
    }
}

impl Block {
    fn forward(&self, x_nd: Tensor<2>, sequences: usize, spec: &ModelSpec, attention: &Attention) -> Tensor<2> {
        let normed = rms_norm(x_nd.clone(), &self.input_norm, spec.norm_eps);
        let x_nd = x_nd + self.attend(normed, sequences, spec, attention);
        let normed = rms_norm(x_nd.clone(), &self.post_norm, spec.norm_eps);
        let gated = activation::silu(linear(normed.clone(), &self.gate)) * linear(normed, &self.up);
        x_nd + linear(gated, &self.down)
    }

    /// Causal grouped-query attention. The queries of the heads that share a key are stacked, so that one batched
    /// product serves them all and no key is repeated.
    fn attend(&self, x_nd: Tensor<2>, b: usize, spec: &ModelSpec, attention: &Attention) -> Tensor<2> {
        let [n, _] = x_nd.dims();
        let (t, dim) = (n / b, spec.head_dim() as usize);
        let (heads, kv_heads) = (spec.heads as usize, spec.kv_heads as usize);
        let grouped = heads / kv_heads * t;

        let query = attention.rotate_query(linear(x_nd.clone(), &self.q), b);
        let key = attention.rotate_key(linear(x_nd.clone(), &self.k), b);
        let value = linear(x_nd, &self.v).reshape([b, t, kv_heads, dim]);

        let query = query.swap_dims(1, 2).reshape([b, kv_heads, grouped, dim]);
        let scores = query.matmul(key.permute([0, 2, 3, 1])).reshape([b, heads, t, t]) + attention.mask.clone();
        // Softmax whose division comes after the product with the values, where there is less to divide.
        let largest = scores.clone().detach().max_dim(3);
        let weights = (scores - largest).exp();
        let total = weights.clone().sum_dim(3);
        let mixed = weights.reshape([b, kv_heads, grouped, t]).matmul(value.swap_dims(1, 2));
        let mixed = mixed.reshape([b, heads, t, dim]) / total;
        linear(mixed.swap_dims(1, 2).reshape([n, heads * dim]), &self.o)
    }
}

/// x Wᵀ for a weight of shape `[out, in]`.
fn linear(x: Tensor<2>, weight: &Tensor<2>) -> Tensor<2> {
    x.matmul(weight.clone().transpose())
}

fn rms_norm(x_nd: Tensor<2>, weight_d: &Tensor<1>, epsilon: f64) -> Tensor<2> {
    let mean_square = x_nd.clone().square().mean_dim(1);
    x_nd / (mean_square + epsilon).sqrt() * weight_d.clone().unsqueeze()
}

/// Appends a parameter's gradient; one that the loss does not depend on is 0.
fn append<const D: usize>(flat: &mut Vec<f32>, parameter: &Tensor<D>, gradients: &mut Gradients) {
    match parameter.grad_remove(gradients) {
        Some(gradient) => flat.extend(into_vec(gradient)),
        None => flat.resize(flat.len() + parameter.shape().num_elements(), 0.0),
    }
}

fn into_vec<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data().try_into_vec().expect("every tensor of the model is f32")
}

fn mean_losses(token_losses: &[f32], sequences: usize) -> Vec<f64> {
    let targets = token_losses.len() / sequences;
    token_losses
        .chunks_exact(targets)
        .map(|row| row.iter().map(|&x| f64::from(x)).sum::<f64>() / targets as f64)
        .collect()
}

fn row_length(tokens: &[u32], sequences: usize) -> usize {
    assert!(sequences > 0 && !tokens.is_empty() && tokens.len().is_multiple_of(sequences), "tokens are no rectangle");
    tokens.len() / sequences
}

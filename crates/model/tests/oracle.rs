//! A second, naive decoder in f64, written from the formulas with plain loops: our logits and gradients against it.

use proptest::prelude::*;
use templar_model::{Device, Llama};
use templar_protocol::{
    hash::{Hasher, Stream},
    layout::{Layout, ModelSpec},
};

type Matrix = Vec<Vec<f64>>;

struct Oracle<'a> {
    spec: &'a ModelSpec,
    layout: &'a Layout,
    theta: &'a [f64],
}

impl Oracle<'_> {
    fn tensor(&self, name: &str) -> &[f64] {
        let tensor = self.layout.tensors().iter().find(|tensor| tensor.name == name).expect("a tensor");
        &self.theta[tensor.range()]
    }

    fn layer(&self, layer: u32, part: &str) -> &[f64] {
        self.tensor(&format!("model.layers.{layer}.{part}.weight"))
    }

    /// Logits of one sequence, one row a position.
    fn logits(&self, tokens: &[u32]) -> Matrix {
        let hidden = self.spec.hidden_size as usize;
        let embedding = self.tensor("model.embed_tokens.weight");
        let mut x: Matrix = tokens.iter().map(|&t| embedding[t as usize * hidden..][..hidden].to_vec()).collect();
        for layer in 0..self.spec.layers {
            let normed = self.norm(&x, self.layer(layer, "input_layernorm"));
            let mixed = project(&self.attention(layer, &normed), self.layer(layer, "self_attn.o_proj"));
            add(&mut x, &mixed);
            let normed = self.norm(&x, self.layer(layer, "post_attention_layernorm"));
            let gate = project(&normed, self.layer(layer, "mlp.gate_proj"));
            let mut gated = project(&normed, self.layer(layer, "mlp.up_proj"));
            for (up, gate) in gated.iter_mut().flatten().zip(gate.iter().flatten()) {
                *up *= gate / (1.0 + (-gate).exp());
            }
            add(&mut x, &project(&gated, self.layer(layer, "mlp.down_proj")));
        }
        let head = if self.spec.tied_embeddings { embedding } else { self.tensor("lm_head.weight") };
        project(&self.norm(&x, self.tensor("model.norm.weight")), head)
    }

    fn norm(&self, x: &Matrix, weight: &[f64]) -> Matrix {
        let row = |row: &Vec<f64>| {
            let mean_square = row.iter().map(|x| x * x).sum::<f64>() / row.len() as f64;
            let root = (mean_square + self.spec.norm_eps).sqrt();
            row.iter().zip(weight).map(|(x, w)| x / root * w).collect()
        };
        x.iter().map(row).collect()
    }

    fn attention(&self, layer: u32, x: &Matrix) -> Matrix {
        let dim = self.spec.head_dim() as usize;
        let query = project(x, self.layer(layer, "self_attn.q_proj"));
        let key = project(x, self.layer(layer, "self_attn.k_proj"));
        let value = project(x, self.layer(layer, "self_attn.v_proj"));
        let mut out = vec![vec![0.0; self.spec.hidden_size as usize]; x.len()];
        for head in 0..self.spec.heads as usize {
            let shared = head / (self.spec.heads / self.spec.kv_heads) as usize;
            for now in 0..x.len() {
                let q = self.rotated(&query[now][head * dim..][..dim], now);
                let scores: Vec<f64> = (0..=now)
                    .map(|then| dot(&q, &self.rotated(&key[then][shared * dim..][..dim], then)) / (dim as f64).sqrt())
                    .collect();
                let largest = scores.iter().copied().fold(f64::MIN, f64::max);
                let weights: Vec<f64> = scores.iter().map(|score| (score - largest).exp()).collect();
                let total: f64 = weights.iter().sum();
                for (weight, value) in weights.iter().zip(&value) {
                    for i in 0..dim {
                        out[now][head * dim + i] += weight / total * value[shared * dim + i];
                    }
                }
            }
        }
        out
    }

    /// Hugging Face's convention: element i turns with element i + dim/2, by the angle position · base^(−2i/dim).
    fn rotated(&self, x: &[f64], position: usize) -> Vec<f64> {
        let half = x.len() / 2;
        let mut out = vec![0.0; x.len()];
        for i in 0..half {
            let angle = position as f64 / self.spec.rope_theta.powf(2.0 * i as f64 / x.len() as f64);
            out[i] = x[i] * angle.cos() - x[i + half] * angle.sin();
            out[i + half] = x[i + half] * angle.cos() + x[i] * angle.sin();
        }
        out
    }

    /// Mean cross-entropy of one sequence.
    fn loss(&self, tokens: &[u32]) -> f64 {
        let logits = self.logits(&tokens[..tokens.len() - 1]);
        let losses = logits.iter().zip(&tokens[1..]).map(|(row, &target)| {
            let largest = row.iter().copied().fold(f64::MIN, f64::max);
            largest + row.iter().map(|x| (x - largest).exp()).sum::<f64>().ln() - row[target as usize]
        });
        losses.sum::<f64>() / (tokens.len() - 1) as f64
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// Each row times the transpose of a weight of shape `[out, in]`.
fn project(x: &Matrix, weight: &[f64]) -> Matrix {
    x.iter().map(|row| weight.chunks_exact(row.len()).map(|weights| dot(row, weights)).collect()).collect()
}

fn add(x: &mut Matrix, y: &Matrix) {
    x.iter_mut().flatten().zip(y.iter().flatten()).for_each(|(x, y)| *x += y);
}

fn spec(heads: u32, kv_heads: u32, tied_embeddings: bool) -> ModelSpec {
    ModelSpec {
        vocab_size: 19,
        hidden_size: heads * 6,
        layers: 2,
        heads,
        kv_heads,
        ffn_size: 20,
        seq_len: 16,
        rope_theta: 50.0,
        norm_eps: 1e-3,
        tied_embeddings,
    }
}

/// Parameters far larger than θ₀'s, so that attention and gates are far from linear.
fn lively_theta(layout: &Layout, stream: &mut Stream) -> Vec<f32> {
    let mut uniform = || stream.below(1 << 20) as f32 / (1 << 19) as f32 - 1.0;
    let scale = |one_dimensional| if one_dimensional { (1.0, 0.5) } else { (0.0, 0.4) };
    let tensors = layout.tensors().iter().map(|tensor| (tensor.len(), scale(tensor.shape.len() == 1)));
    tensors.flat_map(|(len, scale)| vec![scale; len]).map(|(centre, spread)| centre + spread * uniform()).collect()
}

fn tokens(spec: &ModelSpec, count: usize, stream: &mut Stream) -> Vec<u32> {
    (0..count).map(|_| stream.below(u64::from(spec.vocab_size)) as u32).collect()
}

fn widened(theta: &[f32]) -> Vec<f64> {
    theta.iter().map(|&x| f64::from(x)).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn logits_and_losses_agree(
        seed in any::<u64>(),
        (heads, kv_heads) in prop::sample::select(vec![(1, 1), (4, 1), (4, 2), (3, 3)]),
        tied in any::<bool>(),
        sequences in 1usize..4,
        length in 2usize..17,
    ) {
        let spec = spec(heads, kv_heads, tied);
        let layout = Layout::llama(&spec);
        let mut stream = Hasher::new("oracle").update_value(&seed).clone().into_stream();
        let theta = lively_theta(&layout, &mut stream);
        let tokens = tokens(&spec, sequences * length, &mut stream);
        let oracle = Oracle { spec: &spec, layout: &layout, theta: &widened(&theta) };
        let model = Llama::new(&spec, &theta, &Device::Cpu);

        let expected = tokens.chunks_exact(length).flat_map(|row| oracle.logits(row)).flatten();
        for (found, expected) in model.logits(&tokens, sequences).iter().zip(expected) {
            prop_assert!((f64::from(*found) - expected).abs() < 2e-5 * (1.0 + expected.abs()), "{found} {expected}");
        }
        let losses = model.losses(&tokens, sequences);
        prop_assert_eq!(losses.len(), sequences);
        for (found, row) in losses.iter().zip(tokens.chunks_exact(length)) {
            prop_assert!((found - oracle.loss(row)).abs() < 1e-5, "{found} {}", oracle.loss(row));
        }
    }
}

/// Five parameters of every kind of tensor, by central differences of the oracle's loss: in f64 a step of 1e-5 leaves an
/// error of about 1e-10, so the tolerance is all for the f32 of the model.
#[test]
fn gradient_agrees_with_finite_differences() {
    for tied in [false, true] {
        let spec = spec(4, 2, tied);
        let layout = Layout::llama(&spec);
        let mut stream = Hasher::new("oracle gradient").into_stream();
        let theta = lively_theta(&layout, &mut stream);
        let (sequences, length) = (3, 9);
        let tokens = tokens(&spec, sequences * length, &mut stream);
        let found = Llama::differentiable(&spec, &theta, &Device::Cpu).loss_gradient(&tokens, sequences);
        assert_eq!(found.gradient.len(), theta.len());
        assert_eq!(found.losses, Llama::new(&spec, &theta, &Device::Cpu).losses(&tokens, sequences));

        let mut wide = widened(&theta);
        let mut loss_at = |at: usize, value: f64| {
            let before = std::mem::replace(&mut wide[at], value);
            let oracle = Oracle { spec: &spec, layout: &layout, theta: &wide };
            let loss = tokens.chunks_exact(length).map(|row| oracle.loss(row)).sum::<f64>() / sequences as f64;
            wide[at] = before;
            loss
        };
        // The first layer stands for both; a gradient that is right there passed through the second.
        let kinds = layout.tensors().iter().filter(|tensor| !tensor.name.contains("layers.1."));
        for tensor in kinds {
            for _ in 0..5 {
                let at = tensor.range().start + stream.below(tensor.len() as u64) as usize;
                let centre = f64::from(theta[at]);
                let expected = (loss_at(at, centre + 1e-5) - loss_at(at, centre - 1e-5)) / 2e-5;
                let error = (f64::from(found.gradient[at]) - expected).abs();
                assert!(error < 1e-5 + 1e-4 * expected.abs(), "{}: {} {expected}", tensor.name, found.gradient[at]);
            }
        }
    }
}

#[test]
fn hostile_tokens_are_refused_before_the_device_sees_them() {
    let spec = spec(2, 1, false);
    let theta = Layout::llama(&spec).theta0(&spec, 1);
    let model = Llama::new(&spec, &theta, &Device::Cpu);
    for (tokens, sequences) in [(vec![19, 0], 1), (vec![0, 0, 0], 2), (vec![], 1), (vec![0], 0)] {
        let result = std::panic::catch_unwind(|| model.logits(&tokens, sequences));
        assert!(result.is_err(), "{tokens:?} in {sequences} sequences");
    }
}

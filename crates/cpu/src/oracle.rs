//! The reference: the same decoder, its gradient and its optimiser from the formulas, in f64 and plain loops.
//!
//! It is slow and meant to be read. Every engine's losses, gradients and updates are compared with it; nothing else
//! uses it. Each operator stands beside its backward pass, and the tests compare both with finite differences.

mod operators;

use templar_protocol::layout::{Layout, ModelSpec};
use templar_protocol::run::{InnerSpec, Optimiser};

pub use operators::{
    Matrix, attention, attention_backward, cross_entropy, linear, rms_norm, rms_norm_backward, rms_norm_by_head,
    swiglu, swiglu_backward,
};
use operators::{dot, heads_of, map, sum};

/// A model's shape with parameters for it, flat.
#[derive(Debug)]
pub struct Oracle<'a> {
    pub spec: &'a ModelSpec,
    pub layout: &'a Layout,
    pub theta: &'a [f64],
    /// ζ, of which gradients take account and losses do not.
    pub z_loss: f64,
}

/// What a layer's backward pass needs of its forward pass.
struct Seen {
    x: Matrix,
    normed: Matrix,
    q: Matrix,
    k: Matrix,
    v: Matrix,
    /// Queries and keys after their norms, if the model has norms.
    q_normed: Matrix,
    k_normed: Matrix,
    mixed: Matrix,
    middle: Matrix,
    post_normed: Matrix,
    gate: Matrix,
    up: Matrix,
    gated: Matrix,
}

impl Oracle<'_> {
    /// Logits of one sequence, one row per position.
    pub fn logits(&self, tokens: &[u32]) -> Matrix {
        self.forward(tokens).2
    }

    /// Mean cross-entropy of one sequence.
    pub fn loss(&self, tokens: &[u32]) -> f64 {
        cross_entropy(&self.logits(&tokens[..tokens.len() - 1]), &tokens[1..], 0.0).0[0]
    }

    /// Mean cross-entropy of one sequence, and the gradient of that and the penalty on log Z.
    pub fn loss_gradient(&self, tokens: &[u32]) -> (f64, Vec<f64>) {
        let (inputs, targets) = (&tokens[..tokens.len() - 1], &tokens[1..]);
        let (seen, x, logits) = self.forward(inputs);
        let ([loss, _], d_logits) = cross_entropy(&logits, targets, self.z_loss);
        let mut gradient = vec![0.0; self.theta.len()];
        let normed = rms_norm(&x, self.tensor("model.norm.weight"), self.spec.norm_eps);
        let d_normed = self.linear_backward(self.head(), &d_logits, &normed, &mut gradient);
        let mut dx = self.norm_backward("model.norm.weight", &d_normed, &x, &mut gradient);
        for (layer, seen) in seen.iter().enumerate().rev() {
            dx = self.layer_backward(layer, seen, &dx, &mut gradient);
        }
        let embedding = &mut gradient[self.range("model.embed_tokens.weight")];
        for (&token, dx) in inputs.iter().zip(&dx) {
            embedding[token as usize * dx.len()..].iter_mut().zip(dx).for_each(|(sum, dx)| *sum += dx);
        }
        (loss, gradient)
    }

    fn forward(&self, tokens: &[u32]) -> (Vec<Seen>, Matrix, Matrix) {
        let hidden = self.spec.hidden_size as usize;
        let embedding = self.tensor("model.embed_tokens.weight");
        let mut x: Matrix = tokens.iter().map(|&t| embedding[t as usize * hidden..][..hidden].to_vec()).collect();
        let mut seen = vec![];
        for layer in 0..self.spec.layers as usize {
            let weight = |part: &str| self.tensor(&name(layer, part));
            let normed = rms_norm(&x, weight("input_layernorm"), self.spec.norm_eps);
            let [q, k, v] = ["q", "k", "v"].map(|part| linear(&normed, weight(&format!("self_attn.{part}_proj"))));
            let (q_normed, k_normed) =
                (self.head_norm(&name(layer, Q_NORM), &q), self.head_norm(&name(layer, K_NORM), &k));
            let mixed = attention(self.spec, &q_normed, &k_normed, &v);
            let middle = sum(&x, &linear(&mixed, weight("self_attn.o_proj")));
            let post_normed = rms_norm(&middle, weight("post_attention_layernorm"), self.spec.norm_eps);
            let [gate, up] = ["gate", "up"].map(|part| linear(&post_normed, weight(&format!("mlp.{part}_proj"))));
            let gated = swiglu(&gate, &up);
            let out = sum(&middle, &linear(&gated, weight("mlp.down_proj")));
            seen.push(Seen { x, normed, q, k, v, q_normed, k_normed, mixed, middle, post_normed, gate, up, gated });
            x = out;
        }
        let normed = rms_norm(&x, self.tensor("model.norm.weight"), self.spec.norm_eps);
        let logits = linear(&normed, self.tensor(self.head()));
        (seen, x, logits)
    }

    fn layer_backward(&self, layer: usize, seen: &Seen, dx: &Matrix, gradient: &mut [f64]) -> Matrix {
        let name = |part: &str| name(layer, part);
        let d_gated = self.linear_backward(&name("mlp.down_proj"), dx, &seen.gated, gradient);
        let (d_gate, d_up) = swiglu_backward(&d_gated, &seen.gate, &seen.up);
        let from_gate = self.linear_backward(&name("mlp.gate_proj"), &d_gate, &seen.post_normed, gradient);
        let from_up = self.linear_backward(&name("mlp.up_proj"), &d_up, &seen.post_normed, gradient);
        let d_normed = sum(&from_gate, &from_up);
        let d_middle =
            sum(dx, &self.norm_backward(&name("post_attention_layernorm"), &d_normed, &seen.middle, gradient));
        let d_mixed = self.linear_backward(&name("self_attn.o_proj"), &d_middle, &seen.mixed, gradient);
        let [d_q, d_k, d_v] = attention_backward(self.spec, &d_mixed, &seen.q_normed, &seen.k_normed, &seen.v);
        let d_q = self.head_norm_backward(&name(Q_NORM), &d_q, &seen.q, gradient);
        let d_k = self.head_norm_backward(&name(K_NORM), &d_k, &seen.k, gradient);
        let mut d_normed = vec![vec![0.0; dx[0].len()]; dx.len()];
        for (part, d) in [("q", &d_q), ("k", &d_k), ("v", &d_v)] {
            let part = name(&format!("self_attn.{part}_proj"));
            d_normed = sum(&d_normed, &self.linear_backward(&part, d, &seen.normed, gradient));
        }
        sum(&d_middle, &self.norm_backward(&name("input_layernorm"), &d_normed, &seen.x, gradient))
    }

    /// Adds to the gradient of the weight `name`; returns that of `x`.
    fn linear_backward(&self, name: &str, dy: &Matrix, x: &Matrix, gradient: &mut [f64]) -> Matrix {
        let (width, weight, d_weight) = (x[0].len(), self.tensor(name), &mut gradient[self.range(name)]);
        let mut dx = vec![vec![0.0; width]; x.len()];
        for ((dx, dy), x) in dx.iter_mut().zip(dy).zip(x) {
            for (out, dy) in dy.iter().enumerate() {
                for at in 0..width {
                    dx[at] += dy * weight[out * width + at];
                    d_weight[out * width + at] += dy * x[at];
                }
            }
        }
        dx
    }

    fn norm_backward(&self, name: &str, dy: &Matrix, x: &Matrix, gradient: &mut [f64]) -> Matrix {
        rms_norm_backward(dy, x, self.tensor(name), self.spec.norm_eps, &mut gradient[self.range(name)])
    }

    /// What attention takes: queries or keys as they are, or normed head by head.
    fn head_norm(&self, name: &str, x: &Matrix) -> Matrix {
        if self.spec.qk_norm { rms_norm_by_head(x, self.tensor(name), self.spec.norm_eps) } else { x.clone() }
    }

    fn head_norm_backward(&self, name: &str, dy: &Matrix, x: &Matrix, gradient: &mut [f64]) -> Matrix {
        if !self.spec.qk_norm {
            return dy.clone();
        }
        let dim = self.spec.head_dim() as usize;
        let rows = dy.iter().zip(x);
        rows.map(|(dy, x)| self.norm_backward(name, &heads_of(dy, dim), &heads_of(x, dim), gradient).concat()).collect()
    }

    fn head(&self) -> &'static str {
        if self.spec.tied_embeddings { "model.embed_tokens.weight" } else { "lm_head.weight" }
    }

    fn range(&self, name: &str) -> std::ops::Range<usize> {
        self.layout.tensors().iter().find(|tensor| tensor.name == name).expect("a tensor of the layout").range()
    }

    fn tensor(&self, name: &str) -> &[f64] {
        &self.theta[self.range(name)]
    }
}

const Q_NORM: &str = "self_attn.q_norm";
const K_NORM: &str = "self_attn.k_norm";

fn name(layer: usize, part: &str) -> String {
    format!("model.layers.{layer}.{part}.weight")
}

/// Inner steps with AdamW ("Decoupled Weight Decay Regularization", algorithm 2) on batches of sequences, with the learning
/// rate of each step: the global norm of the gradient is clipped, one-dimensional tensors do not decay. In a run with Muon,
/// that updates the matrices of the layers, with its rate in proportion. Returns every batch's mean loss, and
/// Δ = θ before − θ after.
pub fn train(
    spec: &ModelSpec,
    inner: &InnerSpec,
    theta: &[f32],
    batches: &[Vec<&[u32]>],
    rates: &[f64],
) -> (Vec<f64>, Vec<f64>) {
    let layout = Layout::llama(spec);
    let start: Vec<f64> = theta.iter().map(|&x| f64::from(x)).collect();
    let (mut theta, mut losses) = (start.clone(), vec![]);
    let (mut m, mut v) = (vec![0.0; theta.len()], vec![0.0; theta.len()]);
    for (step, (batch, rate)) in (1..).zip(batches.iter().zip(rates)) {
        let (mut loss, mut gradient) = (0.0, vec![0.0; theta.len()]);
        for sequence in batch {
            let oracle = Oracle { spec, layout: &layout, theta: &theta, z_loss: inner.z_loss };
            let (own, part) = oracle.loss_gradient(sequence);
            loss += own / batch.len() as f64;
            gradient.iter_mut().zip(part).for_each(|(sum, part)| *sum += part / batch.len() as f64);
        }
        losses.push(loss);
        let clip = (inner.clip_norm / dot(&gradient, &gradient).sqrt()).min(1.0);
        for tensor in layout.tensors() {
            let of_layer = tensor.shape.len() == 2 && tensor.name.starts_with("model.layers.");
            if inner.optimiser == Optimiser::Muon && of_layer {
                let (range, columns) = (tensor.range(), tensor.shape[1] as usize);
                let own: Vec<f64> = gradient[range.clone()].iter().map(|gradient| clip * gradient).collect();
                let rate = rate * inner.muon_lr / inner.lr;
                muon(inner, &mut theta[range.clone()], &mut m[range], &own, columns, rate);
                continue;
            }
            let decay = if tensor.shape.len() > 1 { inner.weight_decay } else { 0.0 };
            for at in tensor.range() {
                let g = clip * gradient[at];
                m[at] = inner.beta1 * m[at] + (1.0 - inner.beta1) * g;
                v[at] = inner.beta2 * v[at] + (1.0 - inner.beta2) * g * g;
                let (m_hat, v_hat) = (m[at] / (1.0 - inner.beta1.powi(step)), v[at] / (1.0 - inner.beta2.powi(step)));
                theta[at] -= rate * (m_hat / (v_hat.sqrt() + inner.epsilon) + decay * theta[at]);
            }
        }
    }
    (losses, start.iter().zip(theta).map(|(start, end)| start - end).collect())
}

/// One step of Muon on a matrix with rows of `columns`.
fn muon(inner: &InnerSpec, theta: &mut [f64], m: &mut [f64], gradient: &[f64], columns: usize, rate: f64) {
    let keep = inner.muon_momentum;
    m.iter_mut().zip(gradient).for_each(|(m, g)| *m = keep * *m + (1.0 - keep) * g);
    let ahead: Vec<f64> = m.iter().zip(gradient).map(|(m, g)| keep * m + (1.0 - keep) * g).collect();
    let length = dot(&ahead, &ahead).sqrt();
    let mut x: Matrix = ahead.chunks(columns).map(|row| row.iter().map(|x| x / length).collect()).collect();
    for _ in 0..5 {
        // a·X + b·(XXᵀ)X + c·(XXᵀ)²X; `linear` multiplies with a transpose.
        let gram = linear(&x, &x.concat());
        let once = linear(&gram, &turned(&x).concat());
        let twice = linear(&gram, &turned(&once).concat());
        let cubic = map(&x, &once, |x, once| 3.4445 * x - 4.7750 * once);
        x = map(&cubic, &twice, |cubic, twice| cubic + 2.0315 * twice);
    }
    let reach = rate * (x.len() as f64 / columns as f64).max(1.0).sqrt();
    for (theta, update) in theta.iter_mut().zip(x.concat()) {
        *theta = (1.0 - rate * inner.muon_weight_decay) * *theta - reach * update;
    }
}

fn turned(x: &Matrix) -> Matrix {
    (0..x[0].len()).map(|column| x.iter().map(|row| row[column]).collect()).collect()
}

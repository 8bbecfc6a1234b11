//! The reference: the same decoder, its gradient and its optimiser from the formulas, in f64 and plain loops.
//!
//! It is slow and meant to be read. Every engine's losses, gradients and updates are compared with it; nothing else
//! uses it. Each operator stands beside its backward pass, and the tests compare both with finite differences.

use templar_protocol::layout::{Layout, ModelSpec};
use templar_protocol::run::{InnerSpec, Optimiser};

/// Rows of equal length.
pub type Matrix = Vec<Vec<f64>>;

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

/// Each row times the transpose of a weight of shape `[out, in]`.
pub fn linear(x: &Matrix, weight: &[f64]) -> Matrix {
    x.iter().map(|row| weight.chunks_exact(row.len()).map(|weights| dot(row, weights)).collect()).collect()
}

/// x · w / √(mean square + ε).
pub fn rms_norm(x: &Matrix, weight: &[f64], epsilon: f64) -> Matrix {
    let row = |x: &Vec<f64>| {
        let root = (dot(x, x) / x.len() as f64 + epsilon).sqrt();
        x.iter().zip(weight).map(|(x, w)| x / root * w).collect()
    };
    x.iter().map(row).collect()
}

/// [`rms_norm`] of each head of each row, with one weight per element of a head.
pub fn rms_norm_by_head(x: &Matrix, weight: &[f64], epsilon: f64) -> Matrix {
    x.iter().map(|row| rms_norm(&heads_of(row, weight.len()), weight, epsilon).concat()).collect()
}

fn heads_of(row: &[f64], dim: usize) -> Matrix {
    row.chunks(dim).map(<[f64]>::to_vec).collect()
}

/// With r the root and g = w · dy: dx = g/r − x · Σ(g · x) / (n · r³).
pub fn rms_norm_backward(dy: &Matrix, x: &Matrix, weight: &[f64], epsilon: f64, d_weight: &mut [f64]) -> Matrix {
    let mut out = vec![];
    for (dy, x) in dy.iter().zip(x) {
        let n = x.len() as f64;
        let root = (dot(x, x) / n + epsilon).sqrt();
        let g: Vec<f64> = dy.iter().zip(weight).map(|(dy, w)| dy * w).collect();
        let pull = dot(&g, x) / (n * root.powi(3));
        out.push(g.iter().zip(x).map(|(g, x)| g / root - x * pull).collect());
        for ((d_weight, dy), x) in d_weight.iter_mut().zip(dy).zip(x) {
            *d_weight += dy * x / root;
        }
    }
    out
}

/// Hugging Face's convention: element i turns with element i + dim/2, by the angle position · base^(−2i/dim), here times
/// `direction`.
fn rotated(spec: &ModelSpec, x: &[f64], position: usize, direction: f64) -> Vec<f64> {
    let half = x.len() / 2;
    let mut out = vec![0.0; x.len()];
    for i in 0..half {
        let angle = direction * position as f64 / spec.rope_theta.powf(2.0 * i as f64 / x.len() as f64);
        out[i] = x[i] * angle.cos() - x[i + half] * angle.sin();
        out[i + half] = x[i + half] * angle.cos() + x[i] * angle.sin();
    }
    out
}

/// Softmax of the scores of one query against the keys up to its own position.
fn weights(spec: &ModelSpec, query: &[f64], keys: &[Vec<f64>]) -> Vec<f64> {
    let scale = f64::from(spec.head_dim()).sqrt();
    let scores: Vec<f64> = keys.iter().map(|key| dot(query, key) / scale).collect();
    let largest = scores.iter().copied().fold(f64::MIN, f64::max);
    let exps: Vec<f64> = scores.iter().map(|score| (score - largest).exp()).collect();
    let total: f64 = exps.iter().sum();
    exps.iter().map(|exp| exp / total).collect()
}

/// One head's part of each row.
fn head_of(x: &Matrix, head: usize, dim: usize) -> Matrix {
    x.iter().map(|row| row[head * dim..][..dim].to_vec()).collect()
}

fn rotated_head(spec: &ModelSpec, x: &Matrix, head: usize) -> Matrix {
    let rows = head_of(x, head, spec.head_dim() as usize);
    rows.iter().enumerate().map(|(position, row)| rotated(spec, row, position, 1.0)).collect()
}

/// Causal attention of one sequence; `heads / kv_heads` queries share a key and a value.
pub fn attention(spec: &ModelSpec, q: &Matrix, k: &Matrix, v: &Matrix) -> Matrix {
    let dim = spec.head_dim() as usize;
    let mut out = vec![vec![0.0; spec.hidden_size as usize]; q.len()];
    for head in 0..spec.heads as usize {
        let shared = head / (spec.heads / spec.kv_heads) as usize;
        let (query, key) = (rotated_head(spec, q, head), rotated_head(spec, k, shared));
        for now in 0..q.len() {
            for (weight, value) in weights(spec, &query[now], &key[..=now]).iter().zip(v) {
                for i in 0..dim {
                    out[now][head * dim + i] += weight * value[shared * dim + i];
                }
            }
        }
    }
    out
}

/// Gradients of queries, keys and values.
pub fn attention_backward(spec: &ModelSpec, d_out: &Matrix, q: &Matrix, k: &Matrix, v: &Matrix) -> [Matrix; 3] {
    let dim = spec.head_dim() as usize;
    let zero = |like: &Matrix| vec![vec![0.0; like[0].len()]; like.len()];
    let (mut dq, mut dk, mut dv) = (zero(q), zero(k), zero(v));
    for head in 0..spec.heads as usize {
        let shared = head / (spec.heads / spec.kv_heads) as usize;
        let (query, key) = (rotated_head(spec, q, head), rotated_head(spec, k, shared));
        for now in 0..q.len() {
            let d = &d_out[now][head * dim..][..dim];
            let weights = weights(spec, &query[now], &key[..=now]);
            let d_weights: Vec<f64> = (0..=now).map(|then| dot(d, &v[then][shared * dim..][..dim])).collect();
            let mean = dot(&weights, &d_weights);
            let mut d_query = vec![0.0; dim];
            for then in 0..=now {
                let d_score = weights[then] * (d_weights[then] - mean) / (dim as f64).sqrt();
                let d_key: Vec<f64> = query[now].iter().map(|query| d_score * query).collect();
                let d_key = rotated(spec, &d_key, then, -1.0);
                for i in 0..dim {
                    d_query[i] += d_score * key[then][i];
                    dk[then][shared * dim + i] += d_key[i];
                    dv[then][shared * dim + i] += weights[then] * d[i];
                }
            }
            dq[now][head * dim..][..dim].copy_from_slice(&rotated(spec, &d_query, now, -1.0));
        }
    }
    [dq, dk, dv]
}

/// silu(gate) · up.
pub fn swiglu(gate: &Matrix, up: &Matrix) -> Matrix {
    map(gate, up, |gate, up| gate / (1.0 + (-gate).exp()) * up)
}

/// Gradients of gate and up.
pub fn swiglu_backward(d: &Matrix, gate: &Matrix, up: &Matrix) -> (Matrix, Matrix) {
    let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
    let slope = |x: f64| sigmoid(x) * (1.0 + x * (1.0 - sigmoid(x)));
    (
        map(d, &map(gate, up, |gate, up| slope(gate) * up), |d, s| d * s),
        map(d, gate, |d, gate| d * gate * sigmoid(gate)),
    )
}

/// Mean cross-entropy and mean penalty ζ·(log Z)² of the targets, and the gradient of their sum.
pub fn cross_entropy(logits: &Matrix, targets: &[u32], z_loss: f64) -> ([f64; 2], Matrix) {
    let n = targets.len() as f64;
    let (mut loss, mut penalty, mut gradient) = (0.0, 0.0, vec![]);
    for (row, &target) in logits.iter().zip(targets) {
        let largest = row.iter().copied().fold(f64::MIN, f64::max);
        let log_sum = largest + row.iter().map(|x| (x - largest).exp()).sum::<f64>().ln();
        loss += (log_sum - row[target as usize]) / n;
        penalty += z_loss * log_sum * log_sum / n;
        let share = (1.0 + 2.0 * z_loss * log_sum) / n;
        let mut d: Vec<f64> = row.iter().map(|x| (x - log_sum).exp() * share).collect();
        d[target as usize] -= 1.0 / n;
        gradient.push(d);
    }
    ([loss, penalty], gradient)
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

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn sum(a: &Matrix, b: &Matrix) -> Matrix {
    map(a, b, |a, b| a + b)
}

fn map(a: &Matrix, b: &Matrix, f: impl Fn(f64, f64) -> f64) -> Matrix {
    a.iter().zip(b).map(|(a, b)| a.iter().zip(b).map(|(a, b)| f(*a, *b)).collect()).collect()
}

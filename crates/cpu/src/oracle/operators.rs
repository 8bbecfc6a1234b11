//! The operators of the reference: each one beside its backward pass.

use templar_protocol::layout::ModelSpec;

/// Rows of equal length.
pub type Matrix = Vec<Vec<f64>>;

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

pub(super) fn heads_of(row: &[f64], dim: usize) -> Matrix {
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

pub(super) fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

pub(super) fn sum(a: &Matrix, b: &Matrix) -> Matrix {
    map(a, b, |a, b| a + b)
}

pub(super) fn map(a: &Matrix, b: &Matrix, f: impl Fn(f64, f64) -> f64) -> Matrix {
    a.iter().zip(b).map(|(a, b)| a.iter().zip(b).map(|(a, b)| f(*a, *b)).collect()).collect()
}

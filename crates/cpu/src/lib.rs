//! The built-in engine: losses, logits and gradients of a Llama-family decoder on CPUs.
//!
//! | what | module |
//! |---|---|
//! | sizes, places of tensors, how rows are cut into blocks | `shape` |
//! | memory that passes keep | `buffers`, `aligned` |
//! | from tokens to the residual stream | `forward` |
//! | output projection and cross-entropy | `loss` |
//! | from the loss to every gradient | `backward` |
//! | one head's attention, both ways | `attention`, `rope` |
//! | which vector instructions a processor has | `arch` |
//! | vector kernels for everything elementwise | `kernels` |
//! | matrix products | `product` |
//! | singular values brought close to 1 | `newton_schulz` |
//! | the same straight from the formulas, slowly | [`oracle`] |
//!
//! The model is Hugging Face's `LlamaForCausalLM`: RMSNorm, rotary embedding by rotated halves, grouped-query attention,
//! SwiGLU, no biases; with norms of queries and keys it is `Qwen3ForCausalLM`. There is no graph and no tensor type:
//! parameters are one flat slice in the order of [`Layout::llama`](templar_protocol::layout::Layout::llama), and every
//! operator has its backward pass written beside it.
//!
//! The same inputs give the same bits whatever the number of threads: work is cut by shapes alone, and contributions of
//! several tasks are summed in a fixed order.
//!
//! ```
//! use templar_cpu::Engine;
//! use templar_protocol::layout::{Layout, ModelSpec};
//!
//! let spec = ModelSpec {
//!     vocab_size: 32, hidden_size: 16, layers: 2, heads: 4, kv_heads: 2, ffn_size: 24, seq_len: 8,
//!     rope_theta: 10_000.0, norm_eps: 1e-5, tied_embeddings: false, qk_norm: false,
//! };
//! let mut theta = Layout::llama(&spec).theta0(&spec, 7);
//! let (mut engine, mut gradient) = (Engine::new(&spec), vec![0.0; theta.len()]);
//! let tokens = [1, 2, 3, 4, 1, 2, 3, 4];
//! let before = engine.gradient(&theta, &tokens, 2, 1.0, &mut gradient, false);
//! theta.iter_mut().zip(&gradient).for_each(|(theta, gradient)| *theta -= 0.1 * gradient);
//! assert!(engine.losses(&theta, &tokens, 2)[0] < before[0]);
//! ```

mod aligned;
mod arch;
mod attention;
mod backward;
mod buffers;
mod forward;
#[cfg(test)]
mod gradient_checks;
mod jobs;
mod kernels;
mod loss;
mod meter;
mod newton_schulz;
pub mod oracle;
#[cfg(test)]
mod paths;
mod product;
mod rope;
mod shape;

use std::time::Instant;

use templar_protocol::layout::ModelSpec;

use crate::aligned::Aligned;
use crate::buffers::Buffers;
use crate::forward::Context;
use crate::jobs::Job;
use crate::loss::HeadGradient;
use crate::meter::Meter;
use crate::product::{Matrix, Onto, Panels};
use crate::rope::Rotation;
use crate::shape::{Batch, Shape};

pub use arch::simd;
pub use meter::Work;
pub use newton_schulz::NewtonSchulz;

/// A model's shape and the memory that passes over it keep. Parameters stay with the caller.
pub struct Engine {
    spec: ModelSpec,
    shape: Shape,
    rotation: Rotation,
    buffers: Buffers,
    meter: Meter,
    z_loss: f64,
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine").field("spec", &self.spec).finish_non_exhaustive()
    }
}

impl Engine {
    /// An engine for models of this shape; memory is allocated with the first batch.
    pub fn new(spec: &ModelSpec) -> Self {
        Self {
            spec: spec.clone(),
            shape: Shape::new(spec),
            rotation: Rotation::new(spec, 1),
            buffers: Buffers::default(),
            meter: Meter::default(),
            z_loss: 0.0,
        }
    }

    /// The same with gradients of loss + ζ·(log Z)² of every target, where Z is the sum of the exponentiated logits. Losses
    /// are those without it.
    #[must_use]
    pub fn with_z_loss(self, z_loss: f64) -> Self {
        Self { z_loss, ..self }
    }

    pub fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    /// Number of parameters.
    pub fn parameters(&self) -> usize {
        self.shape.parameters
    }

    /// Seconds spent on a kind of work since the engine was made, summed over threads.
    pub fn seconds(&self, work: Work) -> f64 {
        self.meter.seconds(work)
    }

    /// Mean loss of each sequence in nats per target token: the cross-entropy of predicting each token but the first.
    ///
    /// # Panics
    /// If `theta` does not fit the model, `tokens` is not `sequences` rows of equal length of at least 2, or a token is
    /// outside the vocabulary.
    pub fn losses(&mut self, theta: &[f32], tokens: &[u32], sequences: usize) -> Vec<f64> {
        let (inputs, targets) = self.split(tokens, sequences);
        let batch = self.forward(theta, &inputs, sequences, false);
        let (context, buffers) = self.parts(theta, batch);
        let chunk = loss::chunk_rows(targets.len(), context.shape.vocabulary);
        means(&loss::cross_entropy(context, &mut buffers.loss, &buffers.normed, &targets, chunk, None), sequences)
    }

    /// Mean loss of each sequence; `gradient` becomes `share` times the gradient of their mean or, with `accumulate`,
    /// has that added to it.
    ///
    /// # Panics
    /// As [`Engine::losses`], and if `gradient` does not have one element per parameter.
    pub fn gradient(
        &mut self,
        theta: &[f32],
        tokens: &[u32],
        sequences: usize,
        share: f32,
        gradient: &mut [f32],
        accumulate: bool,
    ) -> Vec<f64> {
        assert_eq!(gradient.len(), self.shape.parameters, "the gradient has one element per parameter");
        let onto = if accumulate { Onto::Add } else { Onto::Replace };
        let (inputs, targets) = self.split(tokens, sequences);
        let batch = self.forward(theta, &inputs, sequences, true);
        let z_loss = self.z_loss;
        let (context, buffers) = self.parts(theta, batch);
        let head = HeadGradient {
            scale: share / targets.len() as f32,
            z_loss,
            d_head: &mut gradient[context.shape.head.clone()],
            onto,
            d_normed: &mut buffers.gradients.d_normed,
        };
        let chunk = loss::chunk_rows(targets.len(), context.shape.vocabulary);
        let losses = loss::cross_entropy(context, &mut buffers.loss, &buffers.normed, &targets, chunk, Some(head));
        backward::backward(context, buffers, &inputs, gradient, onto);
        means(&losses, sequences)
    }

    /// Logits of every position: flat `[sequences, positions, vocabulary]`.
    ///
    /// # Panics
    /// As [`Engine::losses`], but a sequence may have one token only.
    pub fn logits(&mut self, theta: &[f32], tokens: &[u32], sequences: usize) -> Vec<f32> {
        self.forward(theta, tokens, sequences, false);
        self.project(theta, 0)
    }

    /// Logits of the token after one sequence.
    ///
    /// # Panics
    /// As [`Engine::logits`].
    pub fn next_logits(&mut self, theta: &[f32], tokens: &[u32]) -> Vec<f32> {
        let batch = self.forward(theta, tokens, 1, false);
        self.project(theta, batch.rows() - 1)
    }

    /// Checks the input, and computes the final norm's output for every position.
    fn forward(&mut self, theta: &[f32], inputs: &[u32], sequences: usize, training: bool) -> Batch {
        assert_eq!(theta.len(), self.shape.parameters, "parameters do not fit the model");
        let positions = row_length(inputs, sequences);
        assert!(inputs.iter().all(|&token| token < self.spec.vocab_size), "a token is outside the vocabulary");
        if self.rotation.positions() < positions {
            self.rotation = Rotation::new(&self.spec, positions);
        }
        let batch = Batch { sequences, positions };
        let kept = self.buffers.fit(&self.shape, batch, training);
        let (context, buffers) = self.parts(theta, batch);
        forward::forward(context, buffers, inputs, kept);
        let (shape, size) = (context.shape, batch.block() * context.shape.hidden);
        let mut jobs: Vec<Job<'_>> = vec![];
        for (normed, x) in buffers.normed.chunks_mut(size).zip(buffers.out.chunks(size)) {
            let norm = || kernels::rms_norm(normed, x, &theta[shape.norm.clone()], shape.epsilon);
            jobs.push(Box::new(move || context.meter.time(Work::Elementwise, norm)));
        }
        jobs::run(jobs);
        batch
    }

    /// Logits of the rows from `first` on.
    fn project(&self, theta: &[f32], first: usize) -> Vec<f32> {
        let Shape { hidden, vocabulary, .. } = self.shape;
        let normed = &self.buffers.normed[first * hidden..];
        let rows = normed.len() / hidden;
        let mut room = vec![0.0; Panels::room(hidden, rows)];
        let normed = Panels::pack(&mut room, Matrix::new(normed, rows, hidden).transposed());
        let mut by_token = vec![0.0; vocabulary * rows];
        let mut jobs: Vec<Job<'_>> = vec![];
        let head = theta[self.shape.head.clone()].chunks(256 * hidden);
        for (logits, head) in by_token.chunks_mut(256 * rows).zip(head) {
            let head = Matrix::new(head, head.len() / hidden, hidden);
            jobs.push(Box::new(move || product::product(logits, head, normed, Onto::Replace)));
        }
        jobs::run(jobs);
        (0..rows).flat_map(|row| by_token[row..].iter().step_by(rows)).copied().collect()
    }

    fn parts<'a>(&'a mut self, theta: &'a [f32], batch: Batch) -> (Context<'a>, &'a mut Buffers) {
        let Self { shape, rotation, buffers, meter, .. } = self;
        (Context { shape, theta, batch, rotation, meter }, buffers)
    }

    /// The tokens that the model sees, and those that it should predict.
    fn split(&self, tokens: &[u32], sequences: usize) -> (Vec<u32>, Vec<u32>) {
        let length = row_length(tokens, sequences);
        assert!(length >= 2, "a sequence of one token has no target");
        assert!(tokens.iter().all(|&token| token < self.spec.vocab_size), "a token is outside the vocabulary");
        let rows = || tokens.chunks_exact(length);
        let inputs = rows().flat_map(|row| &row[..length - 1]).copied().collect();
        (inputs, rows().flat_map(|row| &row[1..]).copied().collect())
    }
}

/// Floating-point operations per second of plain matrix products on all threads, measured for at least `seconds`: the
/// most that this machine can deliver. Every thread multiplies its own matrices, which stay in its second-level cache.
pub fn product_flops_per_s(seconds: f64) -> f64 {
    const ROWS: usize = 240;
    const COLUMNS: usize = 512;
    const STEPS: usize = 256;
    const TIMES: usize = 8;
    let threads = rayon::current_num_threads();
    let [mut a, mut b, mut room, mut out] = std::array::from_fn(|_| Aligned::default());
    for (buffer, len) in [(&mut a, ROWS * STEPS), (&mut b, STEPS * COLUMNS), (&mut out, threads * ROWS * COLUMNS)] {
        buffer.resize(len);
        buffer.fill(0.5);
    }
    room.resize(Panels::room(STEPS, COLUMNS));
    let (a, b) = (Matrix::new(&a, ROWS, STEPS), Panels::pack(&mut room, Matrix::new(&b, STEPS, COLUMNS)));
    let (start, mut best) = (Instant::now(), 0.0f64);
    while best == 0.0 || start.elapsed().as_secs_f64() < seconds {
        let start = Instant::now();
        let mut jobs: Vec<Job<'_>> = vec![];
        for out in out.chunks_mut(ROWS * COLUMNS) {
            jobs.push(Box::new(move || (0..TIMES).for_each(|_| product::product(out, a, b, Onto::Replace))));
        }
        jobs::run(jobs);
        let flops = 2 * TIMES * threads * ROWS * COLUMNS * STEPS;
        best = best.max(flops as f64 / start.elapsed().as_secs_f64());
    }
    best
}

fn means(losses: &[f64], sequences: usize) -> Vec<f64> {
    let targets = losses.len() / sequences;
    losses.chunks_exact(targets).map(|row| row.iter().sum::<f64>() / targets as f64).collect()
}

fn row_length(tokens: &[u32], sequences: usize) -> usize {
    assert!(
        sequences > 0 && !tokens.is_empty() && tokens.len().is_multiple_of(sequences),
        "tokens do not form rows of equal length"
    );
    tokens.len() / sequences
}

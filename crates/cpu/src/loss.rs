//! The output projection and the cross-entropy, in chunks of rows, so that a large vocabulary does not exhaust memory.
//!
//! Logits are kept transposed, `[vocabulary, chunk]`: blocks of the vocabulary are then contiguous and independent. Each block
//! finds its own softmax per column, the blocks' sums are combined, and the logits become their gradient where they lie.

use crate::buffers::LossBuffers;
use crate::forward::{Context, pack_jobs};
use crate::jobs::{Job, run};
use crate::kernels::{column_softmax, scale_columns};
use crate::meter::{Meter, Work};
use crate::product::{Matrix, Onto, Panels, product};

/// Most logits that are kept at once, unless a chunk would have too few rows to be worth it.
const LOGITS_MAX: usize = 16 << 20;
const ROWS_MIN: usize = 128;
/// Rows of a task of the backward product.
const TASK_ROWS: usize = 128;
/// Tokens whose rows of the projection are brought into panels at once for the backward product.
const PACKED_TOKENS: usize = 4096;
/// Logits of a block of the vocabulary: as many as stay in a core's second-level cache.
const BLOCK_LOGITS: usize = 128 << 10;

/// Where the gradient goes.
pub(crate) struct HeadGradient<'a> {
    /// What every target's loss is multiplied by in the loss whose gradient this is.
    pub(crate) scale: f32,
    /// ζ: what the square of a target's log Z counts for, beside its loss.
    pub(crate) z_loss: f64,
    /// `[vocabulary, hidden]`.
    pub(crate) d_head: &'a mut [f32],
    pub(crate) onto: Onto,
    /// Of the normed rows, `[rows, hidden]`.
    pub(crate) d_normed: &'a mut [f32],
}

/// Rows per chunk of `targets` rows. Chunks are of about equal size; there is no small last one.
pub(crate) fn chunk_rows(targets: usize, vocabulary: usize) -> usize {
    let most = (LOGITS_MAX / vocabulary).max(ROWS_MIN);
    targets.div_ceil(targets.div_ceil(most))
}

/// The loss of every target, in nats, in chunks of `chunk` rows; with `gradient`, also its gradient.
pub(crate) fn cross_entropy(
    context: Context<'_>,
    buffers: &mut LossBuffers,
    normed: &[f32],
    targets: &[u32],
    chunk: usize,
    mut gradient: Option<HeadGradient<'_>>,
) -> Vec<f64> {
    let hidden = context.shape.hidden;
    let mut losses = Vec::with_capacity(targets.len());
    for (at, (targets, normed)) in targets.chunks(chunk).zip(normed.chunks(chunk * hidden)).enumerate() {
        let mut chunk = Chunk::new(context, buffers, normed, targets);
        chunk.project();
        let factors = gradient.as_ref().map(|gradient| (gradient.scale, gradient.z_loss));
        losses.extend(chunk.combine(factors));
        if let Some(gradient) = &mut gradient {
            let onto = if at == 0 { gradient.onto } else { Onto::Add };
            chunk.weight_gradient(gradient.d_head, gradient.scale, onto);
            let from = losses.len() - targets.len();
            chunk.input_gradient(&mut gradient.d_normed[from * hidden..][..normed.len()]);
        }
    }
    losses
}

/// Some rows' logits.
struct Chunk<'a> {
    meter: &'a Meter,
    hidden: usize,
    /// `[vocabulary, hidden]`.
    head: &'a [f32],
    targets: &'a [u32],
    /// Tokens in a block of the vocabulary.
    block: usize,
    /// `[vocabulary, rows]`.
    logits: &'a mut [f32],
    /// `[hidden, rows]` and `[rows, hidden]`.
    normed_t: Panels<'a>,
    normed: Panels<'a>,
    /// Room for some rows of `head`.
    packed_head: &'a mut [f32],
    /// `[largest, sum, target's logit][rows]` for each block.
    blocks: &'a mut [f32],
}

impl<'a> Chunk<'a> {
    fn new(context: Context<'a>, buffers: &'a mut LossBuffers, normed: &[f32], targets: &'a [u32]) -> Self {
        let (rows, vocabulary, hidden) = (targets.len(), context.shape.vocabulary, context.shape.hidden);
        let matrix = Matrix::new(normed, rows, hidden);
        let block = (BLOCK_LOGITS / rows).clamp(32, 1024).next_multiple_of(16);
        let LossBuffers { logits, normed_t, normed: packed, head, blocks } = buffers;
        logits.resize(vocabulary * rows);
        blocks.resize(3 * rows * vocabulary.div_ceil(block));
        head.resize(Panels::room(PACKED_TOKENS.min(vocabulary), hidden));
        let mut jobs = vec![];
        for (panels, matrix) in [(&mut *normed_t, matrix.transposed()), (&mut *packed, matrix)] {
            let (rows, columns) = matrix.shape();
            panels.resize(Panels::room(rows, columns));
            pack_jobs(&mut jobs, context.meter, panels, matrix);
        }
        run(jobs);
        Self {
            meter: context.meter,
            hidden,
            head: &context.theta[context.shape.head.clone()],
            targets,
            block,
            logits,
            normed_t: Panels::new(normed_t, hidden, rows),
            normed: Panels::new(packed, rows, hidden),
            packed_head: head,
            blocks,
        }
    }

    /// Logits, and each block's share of the softmax, which they become.
    fn project(&mut self) {
        let Self { hidden, meter, targets, block: size, normed_t, .. } = *self;
        let rows = targets.len();
        let mut jobs: Vec<Job<'_>> = vec![];
        let parts = self.logits.chunks_mut(size * rows).zip(self.head.chunks(size * hidden));
        for (number, ((logits, head), stats)) in parts.zip(self.blocks.chunks_mut(3 * rows)).enumerate() {
            jobs.push(Box::new(move || {
                let head = Matrix::new(head, head.len() / hidden, hidden);
                meter.time(Work::Products, || product(logits, head, normed_t, Onto::Replace));
                meter.time(Work::Elementwise, || {
                    let (largest, rest) = stats.split_at_mut(rows);
                    let (total, target) = rest.split_at_mut(rows);
                    for (at, row) in own_targets(targets, number * size, logits.len() / rows) {
                        target[at] = logits[row * rows + at];
                    }
                    column_softmax(logits, largest, total);
                });
            }));
        }
        run(jobs);
    }

    /// Every target's loss. With scale and ζ, each block's `largest` becomes what its values must be multiplied by: ζ·(log Z)²
    /// has the gradient of the softmax times 2ζ·log Z.
    fn combine(&mut self, factors: Option<(f32, f64)>) -> Vec<f64> {
        let rows = self.targets.len();
        let stride = 3 * rows;
        let loss = |(at, target): (usize, &u32)| {
            let parts =
                || self.blocks.chunks_exact(stride).map(|stats| (f64::from(stats[at]), f64::from(stats[rows + at])));
            let largest = parts().map(|(largest, _)| largest).fold(f64::MIN, f64::max);
            let total: f64 = parts().map(|(own, total)| total * (own - largest).exp()).sum();
            let log_sum = largest + total.ln();
            let target = self.blocks[*target as usize / self.block * stride + 2 * rows + at];
            if let Some((scale, z_loss)) = factors {
                let scale = f64::from(scale) * (1.0 + 2.0 * z_loss * log_sum);
                for stats in self.blocks.chunks_exact_mut(stride) {
                    stats[at] = ((f64::from(stats[at]) - log_sum).exp() * scale) as f32;
                }
            }
            log_sum - f64::from(target)
        };
        self.targets.iter().enumerate().map(loss).collect()
    }

    /// Turns the logits into their gradient, and that into the projection's.
    fn weight_gradient(&mut self, d_head: &mut [f32], scale: f32, onto: Onto) {
        let Self { hidden, meter, targets, block: size, normed, .. } = *self;
        let rows = targets.len();
        let mut jobs: Vec<Job<'_>> = vec![];
        let parts = self.logits.chunks_mut(size * rows).zip(d_head.chunks_mut(size * hidden));
        for (number, ((logits, d_head), stats)) in parts.zip(self.blocks.chunks(3 * rows)).enumerate() {
            jobs.push(Box::new(move || {
                let tokens = logits.len() / rows;
                meter.time(Work::Elementwise, || {
                    scale_columns(logits, &stats[..rows]);
                    for (at, row) in own_targets(targets, number * size, tokens) {
                        logits[row * rows + at] -= scale;
                    }
                });
                let logits = Matrix::new(logits, tokens, rows);
                meter.time(Work::Products, || product(d_head, logits, normed, onto));
            }));
        }
        run(jobs);
    }

    /// The gradient of the projection's input.
    fn input_gradient(&mut self, d_normed: &mut [f32]) {
        let Self { hidden, meter, head, .. } = *self;
        let rows = self.targets.len();
        let tokens = head.chunks(PACKED_TOKENS * hidden).zip(self.logits.chunks(PACKED_TOKENS * rows));
        for (number, (head, d_logits)) in tokens.enumerate() {
            let tokens = head.len() / hidden;
            let mut jobs = vec![];
            pack_jobs(&mut jobs, meter, self.packed_head, Matrix::new(head, tokens, hidden));
            run(jobs);
            let head = Panels::new(self.packed_head, tokens, hidden);
            let onto = if number == 0 { Onto::Replace } else { Onto::Add };
            let mut jobs: Vec<Job<'_>> = vec![];
            for (number, d_normed) in d_normed.chunks_mut(TASK_ROWS * hidden).enumerate() {
                let d_logits = &d_logits[number * TASK_ROWS..];
                let d_logits = Matrix::strided(d_logits, tokens, d_normed.len() / hidden, rows).transposed();
                jobs.push(Box::new(move || meter.time(Work::Products, || product(d_normed, d_logits, head, onto))));
            }
            run(jobs);
        }
    }
}

/// The targets that lie among `tokens` tokens from `first` on: their row of the chunk, and their place in the block.
fn own_targets(targets: &[u32], first: usize, tokens: usize) -> impl Iterator<Item = (usize, usize)> {
    let own = move |(at, &target): (usize, &u32)| {
        let place = (target as usize).checked_sub(first)?;
        (place < tokens).then_some((at, place))
    };
    targets.iter().enumerate().filter_map(own)
}

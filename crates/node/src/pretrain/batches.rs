//! Samples of the dataset as batches of tokens.

use templar_data::Split;
use templar_train::{TokenBatch, TrainError};

use crate::frame::context::Context;
use crate::frame::error::NodeError;

/// One batch per inner step of a window; a slice shorter than that is repeated.
pub fn batches(ctx: &Context, window: u64, samples: &[u64]) -> Result<Vec<TokenBatch>, NodeError> {
    let (steps, sequences) = (ctx.spec.inner.steps_of(window) as usize, ctx.spec.inner.batch_sequences as usize);
    let mut order = samples.iter().cycle();
    (0..steps).map(|_| batch(ctx, Split::Train, &order.by_ref().take(sequences).copied().collect::<Vec<_>>())).collect()
}

/// The tokens of samples as one batch.
pub fn batch(ctx: &Context, split: Split, samples: &[u64]) -> Result<TokenBatch, NodeError> {
    let seq_len = ctx.spec.model.seq_len as usize;
    let mut tokens = Vec::with_capacity(samples.len() * seq_len);
    for &sample in samples {
        tokens.extend(ctx.dataset.sample(split, sample)?);
    }
    Ok(TokenBatch::new(samples.len(), seq_len, tokens).map_err(|source| TrainError::Batch { batch: 0, source })?)
}

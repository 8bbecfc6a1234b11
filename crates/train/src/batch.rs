//! Tokens of one inner step, or of one evaluation.

/// A rectangle of tokens, row by row: `sequences` rows of `seq_len`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenBatch {
    pub sequences: usize,
    /// Tokens in a sequence, which has one target fewer.
    pub seq_len: usize,
    pub tokens: Vec<u32>,
}

/// Why tokens do not form a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BatchError {
    #[error("a batch has {sequences} sequences of {seq_len} tokens; it needs at least 1 sequence of at least 2 tokens")]
    Empty { sequences: usize, seq_len: usize },
    #[error("{sequences} sequences of {seq_len} tokens were announced, but {found} tokens were given")]
    NotRectangular { sequences: usize, seq_len: usize, found: usize },
}

impl TokenBatch {
    /// A batch of the given shape.
    pub fn new(sequences: usize, seq_len: usize, tokens: Vec<u32>) -> Result<Self, BatchError> {
        let batch = Self { sequences, seq_len, tokens };
        batch.check()?;
        Ok(batch)
    }

    /// Checks the shape again, because the fields are public.
    pub(crate) fn check(&self) -> Result<(), BatchError> {
        let Self { sequences, seq_len, .. } = *self;
        if sequences == 0 || seq_len < 2 {
            return Err(BatchError::Empty { sequences, seq_len });
        }
        if sequences.checked_mul(seq_len) != Some(self.tokens.len()) {
            return Err(BatchError::NotRectangular { sequences, seq_len, found: self.tokens.len() });
        }
        Ok(())
    }
}

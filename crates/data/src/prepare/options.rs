//! Options of a preparation, and the progress that it reports.

use std::path::PathBuf;

/// How to prepare a text.
#[derive(Debug, Clone, PartialEq)]
pub struct PrepareOptions {
    /// Tokens per sample.
    pub seq_len: u32,
    /// A Hugging Face `tokenizer.json`; without one, tokens are bytes.
    pub tokenizer: Option<PathBuf>,
    /// The tokenizer's end-of-text token by name; without it, the first of
    /// [`END_OF_TEXT_NAMES`](crate::tokenizer::END_OF_TEXT_NAMES) that the tokenizer knows.
    pub end_of_text: Option<String>,
    /// Fraction of the segments to hold out, 0.001 to 0.5; rounded to millionths.
    pub held_out_fraction: f64,
    /// Samples per shard at most.
    pub shard_samples: u64,
    /// Decides which segments are held out.
    pub seed: u64,
    /// What to do if the folder is not empty.
    pub existing: Existing,
}

impl Default for PrepareOptions {
    fn default() -> Self {
        Self {
            seq_len: 128,
            tokenizer: None,
            end_of_text: None,
            held_out_fraction: 0.05,
            shard_samples: 4096,
            seed: 0,
            existing: Existing::Refuse,
        }
    }
}

/// What to do with a folder that is not empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Existing {
    /// The preparation fails before it reads any text.
    #[default]
    Refuse,
    /// The new dataset replaces the files of an earlier preparation once it is complete. Until then they stay as they
    /// are, so the disk needs room for both. Files that do not belong to a dataset stay.
    Replace,
}

/// How far a preparation has got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Bytes of text in segments so far.
    pub text_bytes: u64,
    /// Bytes read from the sources so far; compare with `source_bytes`. JSON Lines have more bytes than text.
    pub read_bytes: u64,
    /// Bytes of all source files, if they are files.
    pub source_bytes: Option<u64>,
    /// Tokens so far, of both splits.
    pub tokens: u64,
}

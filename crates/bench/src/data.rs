//! Measures how fast text becomes a dataset, and how fast a dataset is checked.
//!
//! Byte tokens are measured on one core. A Hugging Face tokenizer is measured on all cores against the `tokenizers`
//! crate's own batch encoding of the same documents. Reading, drawing, hashing and writing should add little.

use std::io;
use std::path::Path;
use std::time::Instant;

use serde::Serialize;
use templar_data::{Dataset, Grammar, OpenError, PrepareError, PrepareOptions, VerifyError, prepare, prepare_text};
use tokenizers::AddedToken;
use tokenizers::models::TrainerWrapper;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;

/// Length of the documents into which the user's text is cut; the built-in corpus has its own documents.
const DOCUMENT_BYTES: usize = 4 << 10;
/// Length of the text that the tokenizer is trained on.
const TRAINING_BYTES: usize = 2 << 20;
const VOCAB: usize = 8192;

/// What to measure.
#[derive(Debug, Clone)]
pub struct Options {
    /// A text, repeated to the lengths below; without one, the built-in corpus.
    pub text: Option<String>,
    /// Bytes of text for byte tokens.
    pub bytes_text_bytes: usize,
    /// Bytes of text for the tokenizer.
    pub tokenizer_text_bytes: usize,
    /// Rounds, over which medians are taken.
    pub repeats: usize,
}

/// Medians; speeds in megabytes (10⁶) of text per second.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    pub threads: usize,
    /// Preparing a dataset of byte tokens from a file, on one core.
    pub bytes_mb_per_s: f64,
    /// Verifying every hash of that dataset, on one core, in megabytes of shards per second.
    pub verify_mb_per_s: f64,
    /// Preparing a dataset from documents with a tokenizer of 8192 tokens, on all cores.
    pub tokenizer_mb_per_s: f64,
    /// `encode_batch` of the `tokenizers` crate on the same documents and cores.
    pub encode_batch_mb_per_s: f64,
    /// The same without offsets: `encode_batch_fast`.
    pub encode_batch_fast_mb_per_s: f64,
    /// Our speed over `encode_batch_fast`'s: median of the rounds' ratios.
    pub ratio: f64,
}

/// Why nothing was measured.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DataBenchError {
    #[error("the text cannot be prepared: {0}")]
    Prepare(#[from] PrepareError),
    #[error("the dataset cannot be opened: {0}")]
    Open(#[from] OpenError),
    #[error("the dataset is not what was written: {0}")]
    Verify(#[from] VerifyError),
    #[error("cannot train the tokenizer for the measurement: {0}")]
    Tokenizer(#[from] tokenizers::Error),
    #[error("the text has {bytes} bytes; give one of at least 1000")]
    TooShort { bytes: usize },
    #[error("cannot use temporary files: {0}; check free space and permissions")]
    Io(#[from] io::Error),
}

/// Measures in a temporary folder.
pub fn measure(options: &Options) -> Result<Report, DataBenchError> {
    let folder = tempfile::tempdir()?;
    let (bytes_mb_per_s, verify_mb_per_s) = measure_bytes(folder.path(), options)?;
    let documents = documents(options.text.as_deref(), options.tokenizer_text_bytes)?;
    let tokenizer = train(&documents)?;
    let file = folder.path().join("tokenizer.json");
    tokenizer.save(&file, false)?;
    let prepare_options = PrepareOptions { tokenizer: Some(file), seq_len: 2048, ..PrepareOptions::default() };
    let text_mb = documents.iter().map(String::len).sum::<usize>() as f64 / 1e6;
    let (mut ours, mut batch, mut fast, mut ratios) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    // All three run in each round, so that a neighbour's load affects them alike.
    for round in 0..options.repeats.max(1) {
        let out = folder.path().join(format!("round-{round}"));
        let start = Instant::now();
        prepare_text(documents.iter().cloned(), &out, &prepare_options, &mut |_| ())?;
        ours.push(text_mb / start.elapsed().as_secs_f64());
        let inputs: Vec<&str> = documents.iter().map(String::as_str).collect();
        let start = Instant::now();
        let tokens = tokenizer.encode_batch_fast(inputs.clone(), false)?;
        fast.push(text_mb / start.elapsed().as_secs_f64());
        drop(tokens);
        let start = Instant::now();
        let tokens = tokenizer.encode_batch(inputs, false)?;
        batch.push(text_mb / start.elapsed().as_secs_f64());
        drop(tokens);
        ratios.push(ours[round] / fast[round]);
    }
    Ok(Report {
        threads: rayon::current_num_threads(),
        bytes_mb_per_s,
        verify_mb_per_s,
        tokenizer_mb_per_s: median(ours),
        encode_batch_mb_per_s: median(batch),
        encode_batch_fast_mb_per_s: median(fast),
        ratio: median(ratios),
    })
}

/// Speeds of preparing and of verifying a dataset of byte tokens.
fn measure_bytes(folder: &Path, options: &Options) -> Result<(f64, f64), DataBenchError> {
    let source = folder.join("text.txt");
    std::fs::write(&source, documents(options.text.as_deref(), options.bytes_text_bytes)?.concat())?;
    let text_mb = std::fs::metadata(&source)?.len() as f64 / 1e6;
    let (mut made, mut checked) = (Vec::new(), Vec::new());
    for round in 0..options.repeats.max(1) {
        let out = folder.join(format!("bytes-{round}"));
        let start = Instant::now();
        prepare(std::slice::from_ref(&source), &out, &PrepareOptions::default(), &mut |_| ())?;
        made.push(text_mb / start.elapsed().as_secs_f64());
        let dataset = Dataset::open(&out)?;
        let start = Instant::now();
        dataset.verify(&mut |_| ())?;
        checked.push(dataset.shard_bytes() as f64 / 1e6 / start.elapsed().as_secs_f64());
        drop(dataset);
        std::fs::remove_dir_all(out)?;
    }
    Ok((median(made), median(checked)))
}

/// Documents of at least `bytes` bytes in all.
fn documents(text: Option<&str>, bytes: usize) -> Result<Vec<String>, DataBenchError> {
    let Some(text) = text else { return Ok(Grammar::new(1).documents(1, bytes as u64).collect()) };
    if text.len() < 1000 {
        return Err(DataBenchError::TooShort { bytes: text.len() });
    }
    let mut parts = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let (part, after) = rest.split_at(rest.floor_char_boundary(DOCUMENT_BYTES.min(rest.len())));
        parts.push(part.to_owned());
        rest = after;
    }
    Ok(parts.iter().cycle().take(parts.len() * bytes.div_ceil(text.len())).cloned().collect())
}

/// A byte-level tokenizer of the usual kind.
fn train(documents: &[String]) -> Result<tokenizers::Tokenizer, DataBenchError> {
    let mut tokenizer = tokenizers::Tokenizer::new(BPE::default());
    tokenizer.with_pre_tokenizer(Some(ByteLevel::new(false, true, true)));
    tokenizer.with_decoder(Some(ByteLevel::new(false, true, true)));
    let trainer = BpeTrainer::builder()
        .show_progress(false)
        .vocab_size(VOCAB)
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .special_tokens(vec![AddedToken::from("<|endoftext|>", true)])
        .build();
    let mut left = TRAINING_BYTES;
    let sample = documents.iter().take_while(|text| {
        let goes_on = left > 0;
        left = left.saturating_sub(text.len());
        goes_on
    });
    let sample: Vec<&String> = sample.collect();
    tokenizer.train(&mut TrainerWrapper::from(trainer), sample.into_iter())?;
    Ok(tokenizer)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_measurement_has_all_figures() {
        let text: String = Grammar::new(2).documents(2, 300_000).collect();
        let options =
            Options { text: Some(text), bytes_text_bytes: 1_000_000, tokenizer_text_bytes: 100_000, repeats: 1 };
        let report = measure(&options).unwrap();
        let figures = [
            report.bytes_mb_per_s,
            report.verify_mb_per_s,
            report.tokenizer_mb_per_s,
            report.encode_batch_mb_per_s,
            report.encode_batch_fast_mb_per_s,
            report.ratio,
        ];
        assert!(figures.iter().all(|figure| figure.is_finite() && *figure > 0.0), "{report:?}");
        let short = Options { text: Some("short".to_owned()), ..options };
        assert!(matches!(measure(&short), Err(DataBenchError::TooShort { bytes: 5 })));
    }
}

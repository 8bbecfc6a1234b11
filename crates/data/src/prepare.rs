//! Text to a dataset: documents → segments → tokens → samples → shards, in one pass and bounded memory.
//!
//! The same text, options and tokenizer give the same bytes on every platform. Every file gets its name when it is
//! complete, the manifest last: a folder with a manifest is a whole dataset. What fails leaves no file behind.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
};

use crate::{
    manifest::{
        MANIFEST_FILE, MANIFEST_VERSION, Manifest, ManifestError, SEQ_LEN_MAX, SHARD_BYTES_MAX, Split, SplitManifest,
        token_bytes,
    },
    object::write_whole,
    segment::{Lottery, SEGMENT_BYTES_MAX, SEGMENTS, Segmenter, segment_bytes},
    shard::{ShardShape, SplitWriter},
    source::{self, Piece, SourceError},
    tokenizer::{TOKENIZER_FILE, Tokenizer, TokenizerError, read_bounded},
};

/// How to prepare a text.
#[derive(Debug, Clone, PartialEq)]
pub struct PrepareOptions {
    /// Tokens in a sample.
    pub seq_len: u32,
    /// A Hugging Face `tokenizer.json`; without one, tokens are bytes.
    pub tokenizer: Option<PathBuf>,
    /// Part of the segments to hold out, 0.001 to 0.5; rounded to millionths.
    pub held_out_fraction: f64,
    /// Most samples in a shard.
    pub shard_samples: u64,
    /// Which segments are held out.
    pub seed: u64,
}

impl Default for PrepareOptions {
    fn default() -> Self {
        Self { seq_len: 128, tokenizer: None, held_out_fraction: 0.05, shard_samples: 4096, seed: 0 }
    }
}

/// How far a preparation is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Bytes of text in segments so far.
    pub text_bytes: u64,
    /// Bytes of all source files, if they are files. JSON Lines have more bytes than text.
    pub source_bytes: Option<u64>,
    /// Tokens so far, of both splits.
    pub tokens: u64,
}

/// Why no dataset was made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PrepareError {
    #[error("{option} is {found}; it must be {allowed}")]
    Option { option: &'static str, found: String, allowed: String },
    #[error(transparent)]
    Source(#[from] SourceError),
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    #[error("cannot write to {path}: {source}; check free space and permissions", path = path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error("{path} is a file; name a folder for the dataset", path = path.display())]
    OutIsFile { path: PathBuf },
    #[error(
        "the text is too short: its {split:?} split has {tokens} tokens, a sample takes {seq_len}; give more text, make \
         samples shorter, or hold out a part nearer to 0.5"
    )]
    TooShort { split: Split, tokens: u64, seq_len: u32 },
    #[error("the result is no valid dataset: {0}")]
    Manifest(#[from] ManifestError),
}

/// Makes a dataset in the folder `out` from files and folders; [`source`] says which files count and
/// [`segment`](crate::segment) what is held out. `progress` is called after each segment.
pub fn prepare(
    sources: &[PathBuf],
    out: &Path,
    options: &PrepareOptions,
    progress: &mut dyn FnMut(Progress),
) -> Result<Manifest, PrepareError> {
    let files = source::list(sources)?;
    let source_bytes = files.iter().map(|file| file.file_bytes).sum();
    let pieces = files.into_iter().flat_map(source::SourceFile::pieces);
    prepare_pieces(pieces, Some(source_bytes), out, options, progress)
}

/// Makes a dataset in the folder `out` from documents in memory.
pub fn prepare_text(
    documents: impl Iterator<Item = String>,
    out: &Path,
    options: &PrepareOptions,
    progress: &mut dyn FnMut(Progress),
) -> Result<Manifest, PrepareError> {
    let pieces = documents.map(|text| Ok(Piece { text, ends_document: true }));
    prepare_pieces(pieces, None, out, options, progress)
}

fn prepare_pieces(
    pieces: impl Iterator<Item = Result<Piece, SourceError>>,
    source_bytes: Option<u64>,
    out: &Path,
    options: &PrepareOptions,
    progress: &mut dyn FnMut(Progress),
) -> Result<Manifest, PrepareError> {
    if out.is_file() {
        return Err(PrepareError::OutIsFile { path: out.to_owned() });
    }
    let (is_new, before) = (!out.exists(), files(out));
    let prepared = write_pieces(pieces, source_bytes, out, options, progress);
    if prepared.is_err() {
        for file in files(out).difference(&before) {
            let _ = fs::remove_file(file);
        }
        if is_new {
            // It stays if anybody else has put something into it.
            let _ = fs::remove_dir(out);
        }
    }
    prepared
}

/// The files of datasets in a folder; none if it is not there.
fn files(folder: &Path) -> BTreeSet<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten();
    let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
    let is_ours = |path: &PathBuf| {
        path.extension().is_some_and(|extension| extension == "tokens") || path.ends_with(TOKENIZER_FILE)
    };
    paths.filter(is_ours).collect()
}

fn write_pieces(
    pieces: impl Iterator<Item = Result<Piece, SourceError>>,
    source_bytes: Option<u64>,
    out: &Path,
    options: &PrepareOptions,
    progress: &mut dyn FnMut(Progress),
) -> Result<Manifest, PrepareError> {
    let held_out_ppm = check(options)?;
    let json = options.tokenizer.as_deref().map(read_bounded).transpose()?;
    let tokenizer = json.as_deref().map_or(Ok(Tokenizer::Bytes), Tokenizer::from_json)?;
    let token_bytes = token_bytes(tokenizer.vocab_size());
    let most = SHARD_BYTES_MAX / (u64::from(options.seq_len) * u64::from(token_bytes));
    within("shard_samples", options.shard_samples, 1, most)?;
    fs::create_dir_all(out).map_err(|source| PrepareError::Write { path: out.to_owned(), source })?;

    let shape = ShardShape { seq_len: options.seq_len as usize, token_bytes, shard_samples: options.shard_samples };
    let mut preparation = Preparation {
        out,
        tokenizer: &tokenizer,
        lottery: Lottery::new(options.seed, held_out_ppm),
        train: SplitWriter::new(out, shape),
        held_out: SplitWriter::new(out, shape),
        last: None,
        state: Progress { text_bytes: 0, source_bytes, tokens: 0 },
        progress,
    };
    preparation.read(pieces)?;

    let manifest = Manifest {
        version: MANIFEST_VERSION,
        tokenizer: tokenizer.id(),
        vocab_size: tokenizer.vocab_size(),
        seq_len: options.seq_len,
        token_bytes,
        end_of_text: tokenizer.end_of_text(),
        train: finish(preparation.train, Split::Train, out, options)?,
        held_out: finish(preparation.held_out, Split::HeldOut, out, options)?,
    };
    let bytes = manifest.to_bytes();
    Manifest::from_bytes(&bytes)?;
    let write = |name: &str, bytes: &[u8]| {
        write_whole(out, name, bytes).map_err(|source| PrepareError::Write { path: out.join(name), source })
    };
    if let Some(json) = json {
        write(TOKENIZER_FILE, &json)?;
    }
    write(MANIFEST_FILE, &bytes)?;
    Ok(manifest)
}

/// Millionths to hold out.
fn check(options: &PrepareOptions) -> Result<u32, PrepareError> {
    within("seq_len", u64::from(options.seq_len), 2, u64::from(SEQ_LEN_MAX))?;
    if !(0.001..=0.5).contains(&options.held_out_fraction) {
        let (found, allowed) = (options.held_out_fraction.to_string(), "0.001 to 0.5".to_owned());
        return Err(PrepareError::Option { option: "held_out_fraction", found, allowed });
    }
    Ok((options.held_out_fraction * 1e6).round() as u32)
}

fn within(option: &'static str, value: u64, least: u64, most: u64) -> Result<(), PrepareError> {
    if (least..=most).contains(&value) {
        return Ok(());
    }
    Err(PrepareError::Option { option, found: value.to_string(), allowed: format!("{least} to {most}") })
}

fn finish(
    writer: SplitWriter,
    split: Split,
    out: &Path,
    options: &PrepareOptions,
) -> Result<SplitManifest, PrepareError> {
    let manifest = writer.finish().map_err(|source| PrepareError::Write { path: out.to_owned(), source })?;
    if manifest.samples == 0 {
        return Err(PrepareError::TooShort { split, tokens: manifest.tokens, seq_len: options.seq_len });
    }
    Ok(manifest)
}

struct Preparation<'a> {
    out: &'a Path,
    tokenizer: &'a Tokenizer,
    lottery: Lottery,
    train: SplitWriter,
    held_out: SplitWriter,
    /// Where the document's last segment went.
    last: Option<Split>,
    state: Progress,
    progress: &'a mut dyn FnMut(Progress),
}

impl Preparation<'_> {
    fn read(&mut self, pieces: impl Iterator<Item = Result<Piece, SourceError>>) -> Result<(), PrepareError> {
        let mut pieces = pieces.fuse();
        // How to cut depends on how much text there is, if that is little.
        let mut ahead = Vec::new();
        let mut ahead_bytes = 0;
        while ahead_bytes < SEGMENTS * SEGMENT_BYTES_MAX {
            let Some(piece) = pieces.next().transpose()? else { break };
            // A piece counts as a byte at least, so that empty documents cannot fill the memory.
            ahead_bytes += piece.text.len().max(1);
            ahead.push(piece);
        }
        let mut segmenter = Segmenter::new(segment_bytes(ahead_bytes));
        for piece in ahead.into_iter().map(Ok).chain(pieces) {
            let piece = piece?;
            segmenter.push(&piece.text, |segment| self.segment(segment))?;
            if piece.ends_document {
                if let Some(segment) = segmenter.finish() {
                    self.segment(&segment)?;
                }
                self.end_text()?;
            }
        }
        Ok(())
    }

    fn segment(&mut self, text: &str) -> Result<(), PrepareError> {
        let split = self.lottery.next_split();
        if self.last != Some(split) {
            // What follows in the other split does not continue this text.
            self.end_text()?;
            self.last = Some(split);
        }
        let tokens = self.tokenizer.encode(text)?;
        self.push(split, &tokens, text.len() as u64)?;
        (self.progress)(self.state);
        Ok(())
    }

    /// Ends the text of the split that got the last segment, if there was one.
    fn end_text(&mut self) -> Result<(), PrepareError> {
        match self.last.take() {
            Some(split) => self.push(split, &[self.tokenizer.end_of_text()], 0),
            None => Ok(()),
        }
    }

    fn push(&mut self, split: Split, tokens: &[u32], text_bytes: u64) -> Result<(), PrepareError> {
        let writer = match split {
            Split::Train => &mut self.train,
            Split::HeldOut => &mut self.held_out,
        };
        self.state.text_bytes += text_bytes;
        self.state.tokens += tokens.len() as u64;
        writer.push(tokens, text_bytes).map_err(|source| PrepareError::Write { path: self.out.to_owned(), source })
    }
}

//! Turns text into a dataset: documents → segments → tokens → samples → shards, in one pass and bounded memory.
//!
//! The same text, options and tokenizer give the same bytes on every platform, however many threads encode them. A file
//! gets its name only when it is complete, and the manifest comes last, so a folder with a manifest is a whole dataset.
//! A preparation that fails leaves no file behind and does not touch the dataset that it was to replace.

mod error;
mod options;
mod splits;
mod staging;

use std::fs::File;
use std::path::{Path, PathBuf};

use crate::manifest::{
    MANIFEST_FILE, MANIFEST_VERSION, Manifest, SEQ_LEN_MAX, SHARD_BYTES_MAX, Split, SplitManifest, shard_files,
    token_bytes,
};
use crate::object::write_whole;
use crate::prepare::splits::Splits;
use crate::prepare::staging::Staging;
use crate::segment::Lottery;
use crate::shard::{ShardShape, SplitWriter};
use crate::source::{self, Piece, SourceError};
use crate::tokenizer::{EndOfText, TOKENIZER_FILE, Tokenizer, read_bounded};

pub use crate::prepare::error::{Holds, PrepareError};
pub use crate::prepare::options::{Existing, PrepareOptions, Progress};

/// Creates a dataset in the folder `out` from files and folders. [`source`] says which files count, and
/// [`segment`](crate::segment) what is held out. `progress` is called after each segment, on the caller's thread.
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

/// Creates a dataset in the folder `out` from documents in memory.
pub fn prepare_text(
    documents: impl Iterator<Item = String>,
    out: &Path,
    options: &PrepareOptions,
    progress: &mut dyn FnMut(Progress),
) -> Result<Manifest, PrepareError> {
    let pieces = documents.map(|text| {
        let source_bytes = text.len() as u64;
        Ok(Piece { text, ends_document: true, source_bytes })
    });
    prepare_pieces(pieces, None, out, options, progress)
}

fn prepare_pieces(
    pieces: impl Iterator<Item = Result<Piece, SourceError>>,
    source_bytes: Option<u64>,
    out: &Path,
    options: &PrepareOptions,
    progress: &mut dyn FnMut(Progress),
) -> Result<Manifest, PrepareError> {
    let held_out_ppm = check(options)?;
    let json = options.tokenizer.as_deref().map(read_bounded).transpose()?;
    let tokenizer = tokenizer(json.as_deref(), options.end_of_text.as_deref())?;
    let token_bytes = token_bytes(tokenizer.vocab_size());
    let most = SHARD_BYTES_MAX / (u64::from(options.seq_len) * u64::from(token_bytes));
    within("shard_samples", options.shard_samples, 1, most)?;
    let staging = Staging::open(out, options.existing, json.is_some())?;

    let dir = staging.dir();
    let shape = ShardShape { seq_len: options.seq_len as usize, token_bytes, shard_samples: options.shard_samples };
    let writer = || SplitWriter::new(dir, shape);
    let lottery = Lottery::new(options.seed, held_out_ppm);
    let mut splits = Splits::new(dir, &tokenizer, lottery, writer(), writer(), source_bytes, progress);
    splits.read(pieces)?;
    let (train, held_out) = splits.into_writers();
    let manifest = Manifest {
        version: MANIFEST_VERSION,
        tokenizer: tokenizer.id(),
        vocab_size: tokenizer.vocab_size(),
        seq_len: options.seq_len,
        token_bytes,
        end_of_text: tokenizer.end_of_text(),
        train: finish(train, Split::Train, dir, options)?,
        held_out: finish(held_out, Split::HeldOut, dir, options)?,
    };
    write_rest(dir, &manifest, json.as_deref())?;
    staging.commit(&manifest)?;
    Ok(manifest)
}

fn tokenizer(json: Option<&[u8]>, end_of_text: Option<&str>) -> Result<Tokenizer, PrepareError> {
    match (json, end_of_text) {
        (None, None) => Ok(Tokenizer::Bytes),
        (None, Some(_)) => Err(PrepareError::EndOfTextOfBytes),
        (Some(json), None) => Ok(Tokenizer::from_json(json, EndOfText::Known)?),
        (Some(json), Some(name)) => Ok(Tokenizer::from_json(json, EndOfText::Named(name))?),
    }
}

/// Syncs the shards to disk and writes the other files, the manifest last.
fn write_rest(dir: &Path, manifest: &Manifest, tokenizer: Option<&[u8]>) -> Result<(), PrepareError> {
    let bytes = manifest.to_bytes();
    Manifest::from_bytes(&bytes)?;
    // All shards are synced here rather than each when it is complete, because the system has written most of them by
    // now.
    for (name, ..) in shard_files(manifest) {
        let path = dir.join(name);
        File::open(&path).and_then(|file| file.sync_all()).map_err(PrepareError::write(&path))?;
    }
    for (name, bytes) in tokenizer.map(|json| (TOKENIZER_FILE, json)).into_iter().chain([(MANIFEST_FILE, &bytes[..])]) {
        write_whole(dir, name, bytes).map_err(PrepareError::write(&dir.join(name)))?;
    }
    Ok(())
}

/// Checks the options; returns the fraction to hold out, in millionths.
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
    dir: &Path,
    options: &PrepareOptions,
) -> Result<SplitManifest, PrepareError> {
    let manifest = writer.finish().map_err(PrepareError::write(dir))?;
    if manifest.samples == 0 {
        return Err(PrepareError::TooShort { split, tokens: manifest.tokens, seq_len: options.seq_len });
    }
    Ok(manifest)
}

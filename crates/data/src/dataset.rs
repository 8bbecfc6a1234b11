//! Reads a prepared dataset: samples by index, straight from memory-mapped shards.

use std::fmt;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use memmap2::Mmap;
use templar_protocol::hash::Hash32;

use crate::folder::{has_shards, names, read_manifest, strays};
use crate::manifest::{MANIFEST_FILE, Manifest, ManifestError, Split, shard_name};
use crate::shard::{decode_tokens, sample_hash};
use crate::tokenizer::{Tokenizer, TokenizerError};

/// A prepared dataset, open for reading from any number of threads.
pub struct Dataset {
    dir: PathBuf,
    manifest: Manifest,
    train: Vec<MappedShard>,
    held_out: Vec<MappedShard>,
}

struct MappedShard {
    /// Index of its first sample in the split.
    first: u64,
    bytes: Mmap,
}

/// Why a folder cannot be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    #[error("cannot read {path}: {source}; fetch the file or run `templar data prepare`", path = path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("{path}: {source}", path = path.display())]
    Manifest { path: PathBuf, source: ManifestError },
    #[error("{path} has {found} bytes instead of {expected}; fetch it again", path = path.display())]
    Size { path: PathBuf, expected: u64, found: u64 },
}

/// Why a sample cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    #[error("sample {index} of the {split} split does not exist, only {samples} do; check the assignment's range")]
    OutOfRange { split: Split, index: u64, samples: u64 },
    #[error(
        "sample {index} of the {split} split holds token {token}, but the vocabulary has only {vocab_size}; the shard \
         is damaged: run `templar data verify`"
    )]
    Token { split: Split, index: u64, token: u32, vocab_size: u32 },
}

impl Dataset {
    /// Reads the manifest and maps the shards. It checks the shards' sizes but not their hashes, which
    /// [`Dataset::verify`] checks. A caller that wants one particular dataset compares [`Manifest::hash`].
    pub fn open(dir: &Path) -> Result<Self, OpenError> {
        let path = dir.join(MANIFEST_FILE);
        let manifest = read_manifest(dir).map_err(|source| OpenError::Io { path: path.clone(), source })?;
        let missing = || OpenError::Io {
            path: path.clone(),
            source: io::Error::new(io::ErrorKind::NotFound, "there is no such file"),
        };
        let manifest = manifest.ok_or_else(missing)?.map_err(|source| OpenError::Manifest { path, source })?;
        let map = |split| map_split(dir, &manifest, split);
        let (train, held_out) = (map(Split::Train)?, map(Split::HeldOut)?);
        Ok(Self { dir: dir.to_owned(), manifest, train, held_out })
    }

    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The tokenizer that produced the tokens; its hash is checked.
    pub fn tokenizer(&self) -> Result<Tokenizer, TokenizerError> {
        Tokenizer::open_for(&self.dir, &self.manifest)
    }

    /// Samples in a split.
    pub fn samples(&self, split: Split) -> u64 {
        self.manifest.split(split).samples
    }

    /// The `seq_len` tokens of a sample, each below `vocab_size`.
    pub fn sample(&self, split: Split, index: u64) -> Result<Vec<u32>, ReadError> {
        let samples = self.samples(split);
        if index >= samples {
            return Err(ReadError::OutOfRange { split, index, samples });
        }
        let shards = self.shards(split);
        let shard = &shards[shards.partition_point(|shard| shard.first <= index) - 1];
        let sample_bytes = self.manifest.sample_bytes() as usize;
        let start = (index - shard.first) as usize * sample_bytes;
        decode_sample(&self.manifest, split, index, &shard.bytes[start..start + sample_bytes])
    }

    /// The content address of a sample, from its tokens.
    pub fn sample_hash(&self, split: Split, index: u64) -> Result<Hash32, ReadError> {
        Ok(sample_hash(&self.sample(split, index)?))
    }

    /// Names of the entries in the folder that do not belong to the dataset, sorted. They include shards that its
    /// manifest does not name.
    pub fn strays(&self) -> io::Result<Vec<String>> {
        strays(&self.dir, &self.manifest)
    }

    /// Links the dataset's files into the folder `dir`, the manifest last, or copies them where the file system has no
    /// links. `dir` is created if needed.
    pub fn link_to(&self, dir: &Path) -> io::Result<()> {
        fs::create_dir_all(dir)?;
        let mut names: Vec<_> = names(&self.manifest).into_iter().collect();
        names.sort_unstable_by_key(|name| name == MANIFEST_FILE);
        for name in names {
            let (from, to) = (self.dir.join(&name), dir.join(&name));
            if fs::hard_link(&from, &to).is_err() {
                fs::copy(&from, &to)?;
            }
        }
        Ok(())
    }

    /// Bytes of the shards of both splits.
    pub fn shard_bytes(&self) -> u64 {
        (self.manifest.train.samples + self.manifest.held_out.samples) * self.manifest.sample_bytes()
    }

    fn shards(&self, split: Split) -> &[MappedShard] {
        match split {
            Split::Train => &self.train,
            Split::HeldOut => &self.held_out,
        }
    }
}

impl fmt::Debug for Dataset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dataset")
            .field("dir", &self.dir)
            .field("manifest", &self.manifest.hash())
            .field("train_samples", &self.manifest.train.samples)
            .field("held_out_samples", &self.manifest.held_out.samples)
            .finish_non_exhaustive()
    }
}

/// The tokens of a stored sample, each below `vocab_size`.
pub(crate) fn decode_sample(
    manifest: &Manifest,
    split: Split,
    index: u64,
    bytes: &[u8],
) -> Result<Vec<u32>, ReadError> {
    let tokens = decode_tokens(bytes, manifest.token_bytes);
    let vocab_size = manifest.vocab_size;
    match tokens.iter().find(|&&token| token >= vocab_size) {
        Some(&token) => Err(ReadError::Token { split, index, token, vocab_size }),
        None => Ok(tokens),
    }
}

/// Returns the manifest of the dataset in `dir`, or `None` if `dir` is a file or a folder of text.
///
/// A folder of text may hold a file that happens to be called `manifest`. Beside shards, a `manifest` that cannot be
/// decoded counts as damaged, which is an error.
pub fn prepared_dataset(dir: &Path) -> Result<Option<Manifest>, OpenError> {
    let path = dir.join(MANIFEST_FILE);
    let io = |source| OpenError::Io { path: path.clone(), source };
    match read_manifest(dir).map_err(io)? {
        Some(Ok(manifest)) => Ok(Some(manifest)),
        Some(Err(source)) if has_shards(dir).map_err(io)? => Err(OpenError::Manifest { path, source }),
        None | Some(Err(_)) => Ok(None),
    }
}

fn map_split(dir: &Path, manifest: &Manifest, split: Split) -> Result<Vec<MappedShard>, OpenError> {
    let mut first = 0;
    let mut shards = Vec::new();
    for entry in &manifest.split(split).shards {
        let path = dir.join(shard_name(&entry.hash));
        let bytes = map_file(&path).map_err(|source| OpenError::Io { path: path.clone(), source })?;
        let (expected, found) = (entry.samples * manifest.sample_bytes(), bytes.len() as u64);
        if found != expected {
            return Err(OpenError::Size { path, expected, found });
        }
        shards.push(MappedShard { first, bytes });
        first += entry.samples;
    }
    Ok(shards)
}

fn map_file(path: &Path) -> io::Result<Mmap> {
    let file = File::open(path)?;
    // SAFETY: a map is sound while nobody changes or shortens the file beneath it. This crate gives a shard its name
    // only when it is complete and never opens one for writing; a rename or removal leaves the mapped file as it is.
    // Another program that truncates a shard in place can end this process with SIGBUS, as with any mapped file.
    #[expect(unsafe_code, reason = "mapping a file has no safe form; samples are read at random from terabytes")]
    unsafe {
        Mmap::map(&file)
    }
}

//! A prepared folder: samples by index, straight from memory-mapped shards.

use std::{
    fmt,
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
};

use memmap2::Mmap;
use templar_protocol::hash::Hash32;

use crate::{
    manifest::{MANIFEST_BYTES_MAX, MANIFEST_FILE, Manifest, ManifestError, ShardEntry, Split, shard_name},
    shard::{decode_tokens, root_hasher, sample_hash},
    tokenizer::{Tokenizer, TokenizerError},
};

const VERIFY_STEP_BYTES: usize = 1 << 20;

/// A prepared folder, open for reading from any number of threads.
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
    #[error("sample {index} of the {split:?} split does not exist, there are {samples}; check the assignment's range")]
    OutOfRange { split: Split, index: u64, samples: u64 },
    #[error(
        "sample {index} of the {split:?} split holds token {token}, the vocabulary has {vocab_size}; the shard is \
         damaged, run `templar data verify`"
    )]
    Token { split: Split, index: u64, token: u32, vocab_size: u32 },
}

/// What is wrong with the content of a folder.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VerifyError {
    #[error("{path} has the BLAKE3 {found}, unlike its name; fetch it again", path = path.display())]
    Shard { path: PathBuf, found: Hash32 },
    #[error("the samples of {path} have the root {found}, the manifest says {expected}; the manifest is wrong", path = path.display())]
    Root { path: PathBuf, expected: Hash32, found: Hash32 },
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
}

impl Dataset {
    /// Reads the manifest and maps the shards. The shards' sizes are checked, their hashes are not:
    /// [`Dataset::verify`] does that, and whoever knows which dataset it wants compares [`Manifest::hash`].
    pub fn open(dir: &Path) -> Result<Self, OpenError> {
        let path = dir.join(MANIFEST_FILE);
        let bytes = read_bounded(&path).map_err(|source| OpenError::Io { path: path.clone(), source })?;
        let manifest = Manifest::from_bytes(&bytes).map_err(|source| OpenError::Manifest { path, source })?;
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

    /// The tokenizer that made the tokens; its hash is checked.
    pub fn tokenizer(&self) -> Result<Tokenizer, TokenizerError> {
        Tokenizer::open_for(&self.dir, &self.manifest.tokenizer)
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
        let tokens = decode_tokens(&shard.bytes[start..start + sample_bytes], self.manifest.token_bytes);
        let vocab_size = self.manifest.vocab_size;
        match tokens.iter().find(|&&token| token >= vocab_size) {
            Some(&token) => Err(ReadError::Token { split, index, token, vocab_size }),
            None => Ok(tokens),
        }
    }

    /// The content address of a sample, from its tokens.
    pub fn sample_hash(&self, split: Split, index: u64) -> Result<Hash32, ReadError> {
        Ok(sample_hash(&self.sample(split, index)?))
    }

    /// Checks everything below the manifest: the tokenizer's hash, each shard's hash, each token, each root of samples.
    /// `progress` gets the bytes checked since it was last called; their sum is [`Dataset::shard_bytes`].
    pub fn verify(&self, progress: &mut dyn FnMut(u64)) -> Result<(), VerifyError> {
        self.tokenizer()?;
        for split in [Split::Train, Split::HeldOut] {
            for (shard, entry) in self.shards(split).iter().zip(&self.manifest.split(split).shards) {
                self.verify_shard(split, shard, entry, progress)?;
            }
        }
        Ok(())
    }

    /// Bytes of the shards of both splits.
    pub fn shard_bytes(&self) -> u64 {
        (self.manifest.train.samples + self.manifest.held_out.samples) * self.manifest.sample_bytes()
    }

    fn verify_shard(
        &self,
        split: Split,
        shard: &MappedShard,
        entry: &ShardEntry,
        progress: &mut dyn FnMut(u64),
    ) -> Result<(), VerifyError> {
        let path = self.dir.join(shard_name(&entry.hash));
        let mut content = blake3::Hasher::new();
        for step in shard.bytes.chunks(VERIFY_STEP_BYTES) {
            content.update(step);
            progress(step.len() as u64);
        }
        let found = Hash32(*content.finalize().as_bytes());
        if found != entry.hash {
            return Err(VerifyError::Shard { path, found });
        }
        let mut root = root_hasher();
        for index in shard.first..shard.first + entry.samples {
            root.update(self.sample_hash(split, index)?.as_bytes());
        }
        let found = root.finish();
        if found != entry.root {
            return Err(VerifyError::Root { path, expected: entry.root, found });
        }
        Ok(())
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
    // SAFETY: a map is sound while nobody changes or shortens the file below it. This crate gives a shard its name only
    // when it is complete and never opens one for writing; a rename or removal leaves the mapped file as it is. Another
    // program that truncates a shard in place can end this process with SIGBUS, as with any mapped file.
    #[expect(unsafe_code, reason = "mapping a file has no safe form; samples are read at random from terabytes")]
    unsafe {
        Mmap::map(&file)
    }
}

/// The manifest's bytes; one byte more than allowed is enough to be refused.
fn read_bounded(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(MANIFEST_BYTES_MAX as u64 + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

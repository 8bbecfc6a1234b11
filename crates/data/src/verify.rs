//! Checks every hash of a dataset by reading its files from their beginnings, a little at a time, so that the check
//! takes a few megabytes of memory whatever the size of the dataset.

use std::fs::File;
use std::io::{self, Read};
use std::path::PathBuf;

use templar_protocol::hash::Hash32;

use crate::dataset::{Dataset, ReadError, decode_sample};
use crate::manifest::{ShardEntry, Split, shard_name};
use crate::shard::{root_hasher, sample_hash};
use crate::tokenizer::TokenizerError;

/// Bytes read at once; at least one sample is read.
const STEP_BYTES: usize = 1 << 20;

/// What is wrong with the content of a folder.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VerifyError {
    #[error("cannot read {path}: {source}; fetch the file again", path = path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("{path} has the BLAKE3 {found}, which is not its name; fetch it again", path = path.display())]
    Shard { path: PathBuf, found: Hash32 },
    #[error("the samples of {path} have the root {found}, but the manifest names {expected}; prepare the dataset again", path = path.display())]
    Root { path: PathBuf, expected: Hash32, found: Hash32 },
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
}

impl Dataset {
    /// Checks everything below the manifest: the tokenizer's hash, each shard's hash, each token, each root of samples.
    /// `progress` gets the bytes checked since its last call; their sum is [`Dataset::shard_bytes`].
    pub fn verify(&self, progress: &mut dyn FnMut(u64)) -> Result<(), VerifyError> {
        self.tokenizer()?;
        let mut buffer = vec![0; STEP_BYTES.next_multiple_of(self.manifest().sample_bytes() as usize)];
        for split in [Split::Train, Split::HeldOut] {
            let mut first = 0;
            for entry in &self.manifest().split(split).shards {
                self.verify_shard(split, first, entry, &mut buffer, progress)?;
                first += entry.samples;
            }
        }
        Ok(())
    }

    /// `first`: index of the shard's first sample. `buffer`: a whole number of samples.
    fn verify_shard(
        &self,
        split: Split,
        first: u64,
        entry: &ShardEntry,
        buffer: &mut [u8],
        progress: &mut dyn FnMut(u64),
    ) -> Result<(), VerifyError> {
        let manifest = self.manifest();
        let path = self.dir().join(shard_name(&entry.hash));
        let io = |source| VerifyError::Io { path: path.clone(), source };
        let mut file = File::open(&path).map_err(io)?;
        let (mut content, mut root) = (blake3::Hasher::new(), root_hasher());
        let mut index = first;
        // A wrong hash of the file explains more than a wrong token in it, but is known only at the end.
        let mut bad_token = None;
        loop {
            let read = read_full(&mut file, buffer).map_err(io)?;
            content.update(&buffer[..read]);
            for sample in buffer[..read].chunks_exact(manifest.sample_bytes() as usize) {
                match decode_sample(manifest, split, index, sample) {
                    Ok(tokens) => _ = root.update(sample_hash(&tokens).as_bytes()),
                    Err(error) => _ = bad_token.get_or_insert(error),
                }
                index += 1;
            }
            progress(read as u64);
            // A file that grows meanwhile is read up to its expected end and one step beyond.
            if read < buffer.len() || index > first + entry.samples {
                break;
            }
        }
        let found = Hash32(*content.finalize().as_bytes());
        if found != entry.hash {
            return Err(VerifyError::Shard { path, found });
        }
        if let Some(error) = bad_token {
            return Err(error.into());
        }
        let found = root.finish();
        if found != entry.root {
            return Err(VerifyError::Root { path, expected: entry.root, found });
        }
        Ok(())
    }
}

/// Fills the buffer, or as much of it as there is.
fn read_full(file: &mut File, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

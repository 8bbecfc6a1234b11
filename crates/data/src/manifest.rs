//! The manifest: what a dataset consists of, in one canonical encoding whose BLAKE3 names the dataset.

use std::collections::HashSet;
use std::fmt;

use borsh::{BorshDeserialize, BorshSerialize};
use serde::{Deserialize, Serialize};
use templar_protocol::hash::Hash32;

/// Name of the manifest's file in a data folder and in a bucket.
pub const MANIFEST_FILE: &str = "manifest";
/// The only version so far.
pub const MANIFEST_VERSION: u16 = 1;
/// Longest accepted encoding, in bytes: 200 000 shards, or 200 TB at one GiB each.
pub const MANIFEST_BYTES_MAX: usize = 16 << 20;
/// Largest accepted vocabulary, in tokens. Reading a sample allocates nothing that depends on it, but models do.
pub const VOCAB_MAX: u32 = 1 << 22;
/// Longest accepted sample, in tokens.
pub const SEQ_LEN_MAX: u32 = 1 << 20;
/// Largest accepted shard file, in bytes: a shard is fetched in one piece.
pub const SHARD_BYTES_MAX: u64 = 1 << 30;

/// A part of a dataset.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Split {
    /// Miners are assigned its samples.
    Train,
    /// Nobody trains on it; the validation loss comes from it.
    HeldOut,
}

impl fmt::Display for Split {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Train => "train",
            Self::HeldOut => "held-out",
        })
    }
}

/// What turned text into tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, BorshSerialize, BorshDeserialize, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TokenizerId {
    /// One token per byte, and 256 for the end of text.
    Bytes,
    /// A Hugging Face `tokenizer.json` with this BLAKE3.
    Json { hash: Hash32 },
}

/// One shard file.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShardEntry {
    /// Plain BLAKE3 of the file; also its name.
    pub hash: Hash32,
    /// Samples in the file.
    pub samples: u64,
    /// `derive("templar v1 shard samples", concatenated sample hashes)`: does not depend on how tokens are stored.
    pub root: Hash32,
}

/// One split: its shards in order, and the counts that turn a loss per token into bits per byte.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SplitManifest {
    pub shards: Vec<ShardEntry>,
    /// Sum over the shards.
    pub samples: u64,
    /// UTF-8 bytes of all text in the split, including the end that does not fill a sample.
    pub text_bytes: u64,
    /// Tokens of the same text, including one end-of-text token per document.
    pub tokens: u64,
}

/// What a dataset consists of. Decoding validates a manifest; call [`Manifest::validate`] on one built by hand.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// [`MANIFEST_VERSION`].
    pub version: u16,
    pub tokenizer: TokenizerId,
    /// Every token is below this.
    pub vocab_size: u32,
    /// Tokens per sample.
    pub seq_len: u32,
    /// Bytes per stored token, little-endian: 2 for vocabularies up to 65 536, else 4.
    pub token_bytes: u8,
    /// The token that follows each document.
    pub end_of_text: u32,
    pub train: SplitManifest,
    pub held_out: SplitManifest,
}

/// Why bytes are not a manifest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ManifestError {
    #[error("the manifest has {found} bytes, more than the {MANIFEST_BYTES_MAX} allowed; use larger shards")]
    TooLong { found: usize },
    #[error("the manifest does not decode ({reason}); fetch it again or run `templar data prepare`")]
    Malformed { reason: String },
    #[error(
        "the manifest has version {found}, but this release reads version {MANIFEST_VERSION}; use the release that \
         wrote it"
    )]
    Version { found: u16 },
    #[error("the manifest is inconsistent: {what}; fetch it again or run `templar data prepare`")]
    Inconsistent { what: String },
}

impl Manifest {
    /// Plain BLAKE3 of the canonical encoding: the dataset's name in `run.toml`.
    pub fn hash(&self) -> Hash32 {
        Hash32::of(&self.to_bytes())
    }

    /// The canonical (Borsh) encoding.
    pub fn to_bytes(&self) -> Vec<u8> {
        borsh::to_vec(self).expect("writing to memory cannot fail")
    }

    /// Decodes any bytes to a consistent manifest or an error, in memory proportional to their length.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, ManifestError> {
        if bytes.len() > MANIFEST_BYTES_MAX {
            return Err(ManifestError::TooLong { found: bytes.len() });
        }
        // The version is checked first, so that a later format is not mistaken for damage.
        if let Some(&version) = bytes.first_chunk::<2>() {
            let found = u16::from_le_bytes(version);
            if found != MANIFEST_VERSION {
                return Err(ManifestError::Version { found });
            }
        }
        let manifest: Self =
            borsh::from_slice(bytes).map_err(|error| ManifestError::Malformed { reason: error.to_string() })?;
        manifest.validate()?;
        Ok(manifest)
    }

    /// Checks everything that can be checked without the shards.
    pub fn validate(&self) -> Result<(), ManifestError> {
        if self.version != MANIFEST_VERSION {
            return Err(ManifestError::Version { found: self.version });
        }
        check((2..=VOCAB_MAX).contains(&self.vocab_size), || {
            format!("vocab_size {} is not in 2..={VOCAB_MAX}", self.vocab_size)
        })?;
        check((2..=SEQ_LEN_MAX).contains(&self.seq_len), || {
            format!("seq_len {} is not in 2..={SEQ_LEN_MAX}", self.seq_len)
        })?;
        check(self.token_bytes == token_bytes(self.vocab_size), || {
            format!("{} bytes per token do not fit a vocabulary of {}", self.token_bytes, self.vocab_size)
        })?;
        check(self.end_of_text < self.vocab_size, || {
            format!("end_of_text {} is not below vocab_size {}", self.end_of_text, self.vocab_size)
        })?;
        let is_bytes = (self.vocab_size, self.end_of_text) == (257, 256);
        check(self.tokenizer != TokenizerId::Bytes || is_bytes, || {
            "byte tokens need vocab_size 257 and end_of_text 256".to_owned()
        })?;
        self.validate_split("train", &self.train)?;
        self.validate_split("held_out", &self.held_out)?;
        let trained: HashSet<_> = self.train.shards.iter().map(|shard| shard.hash).collect();
        check(self.held_out.shards.iter().all(|shard| !trained.contains(&shard.hash)), || {
            "a held_out shard is a train shard too; remove duplicates from the text".to_owned()
        })
    }

    fn validate_split(&self, name: &str, split: &SplitManifest) -> Result<(), ManifestError> {
        let mut samples = 0u64;
        for (index, shard) in split.shards.iter().enumerate() {
            // Both bounds keep every later product within u64.
            let most = SHARD_BYTES_MAX / self.sample_bytes();
            check((1..=most).contains(&shard.samples), || {
                format!("{name} shard {index} has {} samples, not 1..={most}", shard.samples)
            })?;
            samples += shard.samples;
        }
        check(samples == split.samples && samples > 0, || {
            format!("{name} shards hold {samples} samples, but the split claims {}", split.samples)
        })?;
        let used = samples * u64::from(self.seq_len);
        check((used..used + u64::from(self.seq_len)).contains(&split.tokens), || {
            format!("{name} claims {} tokens, which do not make {samples} samples", split.tokens)
        })?;
        check(split.text_bytes > 0, || format!("{name} claims no text"))
    }

    pub fn split(&self, split: Split) -> &SplitManifest {
        match split {
            Split::Train => &self.train,
            Split::HeldOut => &self.held_out,
        }
    }

    /// Stored bytes of one sample.
    pub fn sample_bytes(&self) -> u64 {
        u64::from(self.seq_len) * u64::from(self.token_bytes)
    }

    /// Text bytes per token of a split, end-of-text tokens counted: bits per byte = bits per token ÷ this.
    pub fn bytes_per_token(&self, split: Split) -> f64 {
        let split = self.split(split);
        split.text_bytes as f64 / split.tokens as f64
    }
}

/// Every shard file of a dataset: name, BLAKE3 and length in bytes; a file that occurs twice is listed once. A folder
/// with these, the `manifest` and, unless tokens are bytes, `tokenizer.json` is the whole dataset.
pub fn shard_files(manifest: &Manifest) -> Vec<(String, Hash32, u64)> {
    let mut seen = HashSet::new();
    let shards = manifest.train.shards.iter().chain(&manifest.held_out.shards);
    shards
        .filter(|shard| seen.insert(shard.hash))
        .map(|shard| (shard_name(&shard.hash), shard.hash, shard.samples * manifest.sample_bytes()))
        .collect()
}

/// File name of the shard with this hash.
pub fn shard_name(hash: &Hash32) -> String {
    format!("{hash}.tokens")
}

/// Bytes of a stored token for a vocabulary.
pub(crate) fn token_bytes(vocab_size: u32) -> u8 {
    if vocab_size <= 1 << 16 { 2 } else { 4 }
}

fn check(holds: bool, what: impl FnOnce() -> String) -> Result<(), ManifestError> {
    if holds { Ok(()) } else { Err(ManifestError::Inconsistent { what: what() }) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn split(byte: u8, samples: &[u64]) -> SplitManifest {
        let shards: Vec<_> = samples
            .iter()
            .enumerate()
            .map(|(at, &samples)| ShardEntry {
                hash: Hash32([byte + at as u8; 32]),
                samples,
                root: Hash32([byte + 100; 32]),
            })
            .collect();
        let samples = samples.iter().sum();
        SplitManifest { shards, samples, text_bytes: samples * 10, tokens: samples * 16 + 3 }
    }

    fn manifest() -> Manifest {
        Manifest {
            version: 1,
            tokenizer: TokenizerId::Json { hash: Hash32([9; 32]) },
            vocab_size: 70_000,
            seq_len: 16,
            token_bytes: 4,
            end_of_text: 5,
            train: split(1, &[4, 4, 1]),
            held_out: split(50, &[2]),
        }
    }

    #[test]
    fn every_inconsistency_has_its_own_message() {
        type Damage = fn(&mut Manifest);
        assert_eq!(manifest().validate(), Ok(()));
        let cases: [(&str, Damage); 9] = [
            ("vocab_size", |m| m.vocab_size = u32::MAX),
            ("seq_len", |m| m.seq_len = 0),
            ("bytes per token", |m| m.token_bytes = 2),
            ("end_of_text", |m| m.end_of_text = 70_000),
            ("byte tokens", |m| m.tokenizer = TokenizerId::Bytes),
            ("train shard 2", |m| m.train.shards[2].samples = u64::MAX),
            ("held_out shards", |m| m.held_out.shards.clear()),
            ("tokens", |m| m.train.tokens += 16),
            ("train shard too", |m| m.held_out.shards[0].hash = m.train.shards[1].hash),
        ];
        for (words, damage) in cases {
            let mut damaged = manifest();
            damage(&mut damaged);
            let error = Manifest::from_bytes(&damaged.to_bytes()).unwrap_err().to_string();
            assert!(error.contains(words), "{words}: {error}");
        }
        let mut later = manifest();
        later.version = 2;
        assert_eq!(Manifest::from_bytes(&later.to_bytes()), Err(ManifestError::Version { found: 2 }));
    }

    #[test]
    fn a_shard_listed_twice_is_one_file() {
        let mut twice = manifest();
        twice.train.shards[1].hash = twice.train.shards[0].hash;
        let files = shard_files(&twice);
        assert_eq!(files.len(), 3);
        assert_eq!(files[0], (format!("{}.tokens", "01".repeat(32)), Hash32([1; 32]), 4 * 16 * 4));
    }

    proptest! {
        /// Bytes that decode are the canonical encoding of the result; nothing panics.
        #[test]
        fn decoding_is_total_and_canonical(at in 0usize..400, value: u8, cut in 0usize..400) {
            let mut bytes = manifest().to_bytes();
            let at = at % bytes.len();
            bytes[at] = value;
            bytes.truncate(bytes.len().saturating_sub(cut.saturating_sub(200)));
            if let Ok(decoded) = Manifest::from_bytes(&bytes) {
                prop_assert_eq!(decoded.to_bytes(), bytes.clone());
                bytes.push(0);
                prop_assert!(Manifest::from_bytes(&bytes).is_err());
            }
        }
    }
}

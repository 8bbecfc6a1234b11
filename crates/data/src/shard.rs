//! Turns tokens into samples and writes them to shard files.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use tempfile::NamedTempFile;
use templar_protocol::hash::{Hash32, Hasher};

use crate::manifest::{ShardEntry, SplitManifest, shard_name};
use crate::object::temporary;

/// Context of a sample's hash.
const SAMPLE_CONTEXT: &str = "templar v1 sample";
/// Bytes of a shard that are hashed and written together: BLAKE3 is several times as fast on long inputs.
const WRITE_STEP_BYTES: usize = 256 << 10;
/// Context of the hash over a shard's sample hashes.
const ROOT_CONTEXT: &str = "templar v1 shard samples";

/// The content address of a sample: over its tokens as little-endian u32, however they are stored.
pub fn sample_hash(tokens: &[u32]) -> Hash32 {
    // Deriving the key from the context costs about a third of what hashing a sample of 128 tokens does.
    static KEYED: LazyLock<Hasher> = LazyLock::new(|| Hasher::new(SAMPLE_CONTEXT));
    let mut hasher = KEYED.clone();
    let mut block = [0u8; 1024];
    for part in tokens.chunks(block.len() / 4) {
        for (bytes, token) in block.chunks_exact_mut(4).zip(part) {
            bytes.copy_from_slice(&token.to_le_bytes());
        }
        hasher.update(&block[..part.len() * 4]);
    }
    hasher.finish()
}

/// An incremental shard root.
pub(crate) fn root_hasher() -> Hasher {
    Hasher::new(ROOT_CONTEXT)
}

/// The tokens of one stored sample; `token_bytes` is 2 or 4.
pub(crate) fn decode_tokens(bytes: &[u8], token_bytes: u8) -> Vec<u32> {
    if token_bytes == 2 {
        bytes.as_chunks().0.iter().map(|&token| u32::from(u16::from_le_bytes(token))).collect()
    } else {
        bytes.as_chunks().0.iter().map(|&token| u32::from_le_bytes(token)).collect()
    }
}

/// Format of a split's shards.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ShardShape {
    pub(crate) seq_len: usize,
    pub(crate) token_bytes: u8,
    pub(crate) shard_samples: u64,
}

/// Writes the shards of one split. It holds one sample and the unwritten end of a shard in memory.
#[derive(Debug)]
pub(crate) struct SplitWriter {
    dir: PathBuf,
    shape: ShardShape,
    sample: Vec<u32>,
    open: Option<OpenShard>,
    split: SplitManifest,
}

#[derive(Debug)]
struct OpenShard {
    file: NamedTempFile<File>,
    /// The shard's last bytes, neither hashed nor written yet.
    pending: Vec<u8>,
    content: blake3::Hasher,
    root: Hasher,
    samples: u64,
}

impl OpenShard {
    fn write(&mut self) -> io::Result<()> {
        self.content.update(&self.pending);
        self.file.write_all(&self.pending)?;
        self.pending.clear();
        Ok(())
    }
}

impl SplitWriter {
    pub(crate) fn new(dir: &Path, shape: ShardShape) -> Self {
        let split = SplitManifest { shards: Vec::new(), samples: 0, text_bytes: 0, tokens: 0 };
        Self { dir: dir.to_owned(), shape, sample: Vec::with_capacity(shape.seq_len), open: None, split }
    }

    /// Appends tokens that stand for `text_bytes` bytes of text.
    pub(crate) fn push(&mut self, tokens: &[u32], text_bytes: u64) -> io::Result<()> {
        self.split.text_bytes += text_bytes;
        self.split.tokens += tokens.len() as u64;
        let mut rest = tokens;
        while !rest.is_empty() {
            let (now, later) = rest.split_at(rest.len().min(self.shape.seq_len - self.sample.len()));
            self.sample.extend_from_slice(now);
            rest = later;
            if self.sample.len() == self.shape.seq_len {
                self.write_sample()?;
            }
        }
        Ok(())
    }

    fn write_sample(&mut self) -> io::Result<()> {
        let mut shard = match self.open.take() {
            Some(shard) => shard,
            None => OpenShard {
                file: temporary(&self.dir)?,
                pending: Vec::with_capacity(WRITE_STEP_BYTES),
                content: blake3::Hasher::new(),
                root: root_hasher(),
                samples: 0,
            },
        };
        if self.shape.token_bytes == 2 {
            shard.pending.extend(self.sample.iter().flat_map(|&token| (token as u16).to_le_bytes()));
        } else {
            shard.pending.extend(self.sample.iter().flat_map(|token| token.to_le_bytes()));
        }
        if shard.pending.len() >= WRITE_STEP_BYTES {
            shard.write()?;
        }
        shard.root.update(sample_hash(&self.sample).as_bytes());
        shard.samples += 1;
        self.sample.clear();
        if shard.samples == self.shape.shard_samples {
            return self.close(shard);
        }
        self.open = Some(shard);
        Ok(())
    }

    /// Gives a complete shard its name. The caller syncs it to disk before it writes the manifest.
    fn close(&mut self, mut shard: OpenShard) -> io::Result<()> {
        shard.write()?;
        let hash = Hash32(*shard.content.finalize().as_bytes());
        shard.file.persist(self.dir.join(shard_name(&hash)))?;
        self.split.samples += shard.samples;
        self.split.shards.push(ShardEntry { hash, samples: shard.samples, root: shard.root.finish() });
        Ok(())
    }

    /// Returns the split as written. Tokens that do not fill a sample are counted but not stored.
    pub(crate) fn finish(mut self) -> io::Result<SplitManifest> {
        if let Some(shard) = self.open.take() {
            self.close(shard)?;
        }
        Ok(self.split)
    }
}

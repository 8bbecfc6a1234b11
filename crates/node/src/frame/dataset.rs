//! Fetches the run's dataset by hash, from a bucket that anybody may serve.

use std::path::{Path, PathBuf};

use bytes::Bytes;
use templar_data::folder::VERIFIED_FILE;
use templar_data::manifest::{MANIFEST_BYTES_MAX, MANIFEST_FILE};
use templar_data::tokenizer::{TOKENIZER_BYTES_MAX, TOKENIZER_FILE};
use templar_data::{Dataset, Manifest, TokenizerId, file_has_hash, shard_files, store_object};
use templar_protocol::bucket::BucketLocator;
use templar_protocol::hash::Hash32;
use templar_protocol::run::RunSpec;
use templar_store::{Store, StoreError, keys};

use crate::frame::error::NodeError;

/// Why a dataset could not be fetched or published.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DatasetError {
    #[error("the dataset cannot be read from or written to its bucket: {0}")]
    Store(#[from] StoreError),
    #[error("the object served as the dataset's manifest is not a manifest: {0}")]
    Manifest(#[from] templar_data::ManifestError),
    #[error("the bucket serves {found} as the dataset's manifest {expected}; fetch the dataset from another bucket")]
    WrongManifest { found: Hash32, expected: Hash32 },
    #[error("an object of the dataset cannot be kept: {0}")]
    Keep(#[from] templar_data::StoreError),
    #[error("the dataset cannot be opened: {0}")]
    Open(#[from] templar_data::OpenError),
    #[error("{path}: {source}; check that the dataset's folder is complete")]
    Read { path: String, source: std::io::Error },
}

/// Checks that a dataset is the run's, and has the shape that its model needs. Otherwise no node of the run starts.
pub fn check(spec: &RunSpec, manifest: &Manifest) -> Result<(), NodeError> {
    let (found, expected) = (manifest.hash(), spec.data.manifest);
    if found != expected {
        return Err(NodeError::WrongDataset { found, expected });
    }
    let (seq_len, vocab_size) = (manifest.seq_len, manifest.vocab_size);
    let (model_seq_len, model_vocab_size) = (spec.model.seq_len, spec.model.vocab_size);
    if seq_len != model_seq_len || vocab_size > model_vocab_size {
        return Err(NodeError::DatasetDoesNotFitModel { seq_len, vocab_size, model_seq_len, model_vocab_size });
    }
    Ok(())
}

/// All objects of a dataset: file name, hash and largest size.
fn objects(manifest: &Manifest) -> Vec<(String, Hash32, u64)> {
    let mut objects = shard_files(manifest);
    if let TokenizerId::Json { hash } = &manifest.tokenizer {
        objects.push((TOKENIZER_FILE.to_owned(), *hash, TOKENIZER_BYTES_MAX));
    }
    objects
}

/// Opens the dataset in `folder`, after fetching from `bucket` what is missing or damaged. `progress` gets the bytes
/// fetched.
///
/// The manifest is compared with the run's before anything that it names is asked for, so a hostile bucket cannot send
/// more bytes than the run's dataset has. Every file is hashed once per folder: a flipped bit in a validator's shard
/// would make honest miners look guilty.
pub async fn fetch(
    store: &dyn Store,
    bucket: &BucketLocator,
    manifest: &Hash32,
    folder: &Path,
    mut progress: impl FnMut(u64),
) -> Result<Dataset, DatasetError> {
    let marker = folder.join(VERIFIED_FILE);
    let is_verified = std::fs::read_to_string(&marker).is_ok_and(|text| text.trim() == manifest.to_string());
    if is_verified
        && let Ok(dataset) = Dataset::open(folder)
        && dataset.manifest().hash() == *manifest
    {
        return Ok(dataset);
    }
    let bytes = match std::fs::read(folder.join(MANIFEST_FILE)) {
        Ok(bytes) if Hash32::of(&bytes) == *manifest => Bytes::from(bytes),
        _ => store.get(bucket, &keys::data(manifest), MANIFEST_BYTES_MAX as u64).await?,
    };
    let found = Hash32::of(&bytes);
    if found != *manifest {
        return Err(DatasetError::WrongManifest { found, expected: *manifest });
    }
    let parsed = Manifest::from_bytes(&bytes)?;
    for (name, hash, bytes_max) in objects(&parsed) {
        if is_intact(folder.join(&name), hash).await {
            continue;
        }
        let object = store.get(bucket, &keys::data(&hash), bytes_max).await?;
        progress(object.len() as u64);
        store_object(folder, &hash, &name, &object)?;
    }
    // The manifest comes last: whoever finds it finds the whole dataset.
    store_object(folder, manifest, MANIFEST_FILE, &bytes)?;
    let dataset = Dataset::open(folder)?;
    if let Err(error) = std::fs::write(&marker, format!("{manifest}\n")) {
        tracing::warn!(path = %marker.display(), %error, "the dataset will be checked again at the next start");
    }
    Ok(dataset)
}

/// Whether a file is there and has this hash.
async fn is_intact(path: PathBuf, hash: Hash32) -> bool {
    let check = move || file_has_hash(&path, &hash).unwrap_or(false);
    tokio::task::spawn_blocking(check).await.unwrap_or(false)
}

/// Uploads a dataset into the bucket of `store`.
pub async fn publish(store: &dyn Store, dataset: &Dataset) -> Result<(), DatasetError> {
    let manifest = dataset.manifest();
    for (name, hash, _) in objects(manifest) {
        let path = dataset.dir().join(&name);
        let bytes = tokio::fs::read(&path).await;
        let bytes = bytes.map_err(|source| DatasetError::Read { path: path.display().to_string(), source })?;
        store.put(&keys::data(&hash), Bytes::from(bytes)).await?;
    }
    Ok(store.put(&keys::data(&manifest.hash()), Bytes::from(manifest.to_bytes())).await?)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    use templar_data::{Grammar, PrepareOptions, Split, prepare_text};
    use templar_store::{MemoryCloud, MemoryStore};

    use super::*;

    fn published(folder: &Path, seed: u64, cloud: &Arc<MemoryCloud>) -> (MemoryStore, Dataset) {
        let options = PrepareOptions { seq_len: 32, ..PrepareOptions::default() };
        prepare_text(Grammar::new(seed).documents(seed, 50_000), folder, &options, &mut |_| ()).unwrap();
        (cloud.store(cloud.create_bucket("data")), Dataset::open(folder).unwrap())
    }

    #[tokio::test]
    async fn a_damaged_copy_is_repaired_and_checked_once() {
        let (folder, cloud) = (tempfile::tempdir().unwrap(), MemoryCloud::new());
        let (store, dataset) = published(&folder.path().join("a"), 1, &cloud);
        publish(&store, &dataset).await.unwrap();
        let (manifest, copy) = (dataset.manifest().hash(), folder.path().join("b"));
        let fetched = AtomicU64::new(0);
        let again = async || {
            fetched.store(0, Ordering::Relaxed);
            let count = |bytes| {
                fetched.fetch_add(bytes, Ordering::Relaxed);
            };
            let copied = fetch(&store, store.own(), &manifest, &copy, count).await.unwrap();
            assert_eq!(copied.sample(Split::Train, 3).unwrap(), dataset.sample(Split::Train, 3).unwrap());
            fetched.load(Ordering::Relaxed)
        };
        assert_eq!(again().await, dataset.shard_bytes());
        assert_eq!(again().await, 0);

        // A flipped bit, a cut file and a missing one in a folder that nobody has checked yet.
        let shard = copy.join(&shard_files(dataset.manifest())[0].0);
        let good = std::fs::read(&shard).unwrap();
        let mut flipped = good.clone();
        flipped[6] ^= 1;
        for bad in [Some(flipped), Some(good[1..].to_vec()), None] {
            std::fs::remove_file(copy.join(VERIFIED_FILE)).unwrap();
            std::fs::remove_file(&shard).unwrap();
            if let Some(bad) = bad {
                std::fs::write(&shard, bad).unwrap();
            }
            assert_eq!(again().await, good.len() as u64);
            assert_eq!(std::fs::read(&shard).unwrap(), good);
        }
    }

    #[tokio::test]
    async fn nothing_is_fetched_at_the_word_of_another_manifest() {
        let (folder, cloud) = (tempfile::tempdir().unwrap(), MemoryCloud::new());
        let (store, hostile) = published(&folder.path().join("a"), 2, &cloud);
        publish(&store, &hostile).await.unwrap();
        let wanted = Hash32::of(b"the run's manifest");
        store.put(&keys::data(&wanted), Bytes::from(hostile.manifest().to_bytes())).await.unwrap();
        let copy = folder.path().join("b");
        let found = fetch(&store, store.own(), &wanted, &copy, |_| panic!("it fetched a shard")).await;
        assert!(matches!(found, Err(DatasetError::WrongManifest { expected, .. }) if expected == wanted), "{found:?}");
        assert!(!copy.exists());
    }
}

//! The run's dataset, by hash, from a bucket that anybody may serve it from.

use std::path::Path;

use bytes::Bytes;
use templar_data::{Dataset, Manifest, TokenizerId, shard_files, store_object};
use templar_protocol::bucket::BucketLocator;
use templar_protocol::hash::Hash32;
use templar_store::{Store, StoreError, keys};

/// Largest manifest and largest tokenizer.
const SMALL_OBJECT_BYTES_MAX: u64 = 64 << 20;

/// Why a dataset could not be fetched or published.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DatasetError {
    #[error("the dataset cannot be read from or written to its bucket: {0}")]
    Store(#[from] StoreError),
    #[error("the manifest served for the dataset is not one: {0}")]
    Manifest(#[from] templar_data::ManifestError),
    #[error("an object of the dataset cannot be kept: {0}")]
    Keep(#[from] templar_data::StoreError),
    #[error("the dataset cannot be opened: {0}")]
    Open(#[from] templar_data::OpenError),
    #[error("{path}: {source}; check that the dataset's folder is complete")]
    Read { path: String, source: std::io::Error },
}

/// All objects of a dataset: file name, hash and largest size.
fn objects(manifest: &Manifest) -> Vec<(String, Hash32, u64)> {
    let mut objects = shard_files(manifest);
    if let TokenizerId::Json { hash } = &manifest.tokenizer {
        objects.push(("tokenizer.json".to_owned(), *hash, SMALL_OBJECT_BYTES_MAX));
    }
    objects
}

/// Opens the dataset in `folder`, after fetching what is missing from `bucket`. `progress` gets the bytes fetched.
pub async fn fetch(
    store: &dyn Store,
    bucket: &BucketLocator,
    manifest: &Hash32,
    folder: &Path,
    mut progress: impl FnMut(u64),
) -> Result<Dataset, DatasetError> {
    if let Ok(dataset) = Dataset::open(folder)
        && dataset.manifest().hash() == *manifest
    {
        return Ok(dataset);
    }
    let bytes = store.get(bucket, &keys::data(manifest), SMALL_OBJECT_BYTES_MAX).await?;
    let parsed = Manifest::from_bytes(&bytes)?;
    for (name, hash, bytes_max) in objects(&parsed) {
        if folder.join(&name).exists() {
            continue;
        }
        let object = store.get(bucket, &keys::data(&hash), bytes_max).await?;
        progress(object.len() as u64);
        store_object(folder, &hash, &name, &object)?;
    }
    // The manifest last: whoever finds it finds a whole dataset.
    store_object(folder, manifest, "manifest", &bytes)?;
    Ok(Dataset::open(folder)?)
}

/// Uploads a dataset into the own bucket of `store`.
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

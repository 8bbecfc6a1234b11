//! θ₀ of a run that starts from weights: parts of at most 64 MiB, in a folder and in a bucket, named by the root that
//! the run says. One part is in memory at a time but for θ itself.
//!
//! In the folder, `parts` has the digests of all parts one after the other, and `00000` and so on are the parts.

use std::fs;
use std::io;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use templar_protocol::bucket::BucketLocator;
use templar_protocol::hash::Hash32;
use templar_protocol::layout::{Layout, PART_VALUES, part_hash};
use templar_store::{Store, StoreError, keys};

use crate::frame::floats::{from_bytes, to_bytes};

/// Name of the list in the folder.
const PARTS: &str = "parts";
/// Ending of a part that is being written.
const TEMPORARY: &str = "new";

/// Why weights cannot be read, written, fetched or published.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WeightsError {
    #[error("the run's weights cannot be read from or written to their bucket: {0}")]
    Store(#[from] StoreError),
    #[error("{path}: {source}; check the folder of the run's weights, and its disk")]
    Io { path: String, source: io::Error },
    #[error(
        "{at} does not have the weights with root {expected}, which the run starts from: `run init --from` makes them, and \
         `run publish` puts them into a bucket"
    )]
    WrongRoot { at: String, expected: Hash32 },
    #[error(
        "{at}: part {part} of the weights is not the one that the run starts from; take another copy (a node fetches again what is removed from its folder)"
    )]
    WrongPart { at: String, part: usize },
}

/// A folder with θ₀. Its list of parts has the run's root; the parts are checked when they are read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Weights {
    folder: PathBuf,
    root: Hash32,
    parts: Vec<Hash32>,
}

impl Weights {
    /// Writes θ₀ into `folder`.
    pub fn write(folder: &Path, layout: &Layout, theta: &[f32]) -> Result<Self, WeightsError> {
        let parts = layout.part_hashes(theta);
        let weights = Self { folder: folder.to_path_buf(), root: layout.root_of_parts(&parts), parts };
        fs::create_dir_all(folder).map_err(failed(folder))?;
        for (nth, values) in theta.chunks(PART_VALUES).enumerate() {
            weights.keep(&part_name(nth), &to_bytes(values))?;
        }
        weights.keep(PARTS, &weights.list())?;
        Ok(weights)
    }

    /// Opens a folder that has the weights with this root.
    pub fn open(folder: &Path, layout: &Layout, root: Hash32) -> Result<Self, WeightsError> {
        let path = folder.join(PARTS);
        let list = fs::read(&path).map_err(failed(&path))?;
        Self::listed(folder, layout, root, &list)
            .ok_or_else(|| WeightsError::WrongRoot { at: folder.display().to_string(), expected: root })
    }

    /// None if `list` does not lead to the root.
    fn listed(folder: &Path, layout: &Layout, root: Hash32, list: &[u8]) -> Option<Self> {
        let (hashes, rest) = list.as_chunks::<32>();
        let parts: Vec<Hash32> = hashes.iter().map(|hash| Hash32(*hash)).collect();
        let fits = rest.is_empty() && parts.len() == layout.parts() && layout.root_of_parts(&parts) == root;
        fits.then(|| Self { folder: folder.to_path_buf(), root, parts })
    }

    pub fn root(&self) -> Hash32 {
        self.root
    }

    /// θ₀, each part checked; `watch` is told how many parameters are read, and ends the work early.
    pub fn read<B>(
        &self,
        layout: &Layout,
        mut watch: impl FnMut(u64) -> ControlFlow<B>,
    ) -> ControlFlow<B, Result<Vec<f32>, WeightsError>> {
        let mut theta = Vec::with_capacity(layout.len());
        for nth in 0..self.parts.len() {
            match self.part(layout, nth) {
                Ok(bytes) => theta.extend(from_bytes(&bytes)),
                Err(error) => return ControlFlow::Continue(Err(error)),
            }
            watch(theta.len() as u64)?;
        }
        ControlFlow::Continue(Ok(theta))
    }

    /// Uploads the weights into the bucket of `store`. `progress` is told the bytes of each part.
    pub async fn publish(
        &self,
        store: &dyn Store,
        layout: &Layout,
        mut progress: impl FnMut(u64),
    ) -> Result<(), WeightsError> {
        for nth in 0..self.parts.len() {
            let bytes = self.part(layout, nth)?;
            let length = bytes.len() as u64;
            store.put(&keys::weights_part(&self.root, nth as u32), Bytes::from(bytes)).await?;
            progress(length);
        }
        Ok(store.put(&keys::weights_parts(&self.root), Bytes::from(self.list())).await?)
    }

    /// A part from the folder, checked.
    fn part(&self, layout: &Layout, nth: usize) -> Result<Vec<u8>, WeightsError> {
        let path = self.folder.join(part_name(nth));
        let is_long = fs::metadata(&path).map_err(failed(&path))?.len() == part_bytes(layout, nth);
        let bytes = if is_long { fs::read(&path).map_err(failed(&path))? } else { Vec::new() };
        if part_hash(&bytes) == self.parts[nth] {
            return Ok(bytes);
        }
        Err(WeightsError::WrongPart { at: path.display().to_string(), part: nth })
    }

    fn list(&self) -> Vec<u8> {
        self.parts.iter().flat_map(|hash| *hash.as_bytes()).collect()
    }

    /// Writes a file whole or not at all.
    fn keep(&self, name: &str, bytes: &[u8]) -> Result<(), WeightsError> {
        let path = self.folder.join(name);
        let temporary = path.with_extension(TEMPORARY);
        let written = fs::write(&temporary, bytes).and_then(|()| fs::rename(&temporary, &path));
        written.map_err(failed(&path))
    }
}

/// Opens the weights in `folder`, after fetching from `bucket` what is missing or of another length. `progress` is told
/// the bytes that arrive.
///
/// The list of parts is compared with the root before any of them is asked for, so a hostile bucket cannot send more bytes
/// than the run's θ₀ has.
pub async fn fetch(
    store: &dyn Store,
    bucket: &BucketLocator,
    layout: &Layout,
    root: Hash32,
    folder: &Path,
    mut progress: impl FnMut(u64),
) -> Result<Weights, WeightsError> {
    let is_whole = |weights: &Weights| {
        let is_there = |nth: usize| {
            fs::metadata(weights.folder.join(part_name(nth))).is_ok_and(|file| file.len() == part_bytes(layout, nth))
        };
        (0..weights.parts.len()).all(is_there)
    };
    if let Ok(weights) = Weights::open(folder, layout, root)
        && is_whole(&weights)
    {
        return Ok(weights);
    }
    let at = || bucket.bucket.clone();
    let list = store.get(bucket, &keys::weights_parts(&root), 32 * layout.parts() as u64).await?;
    let weights = Weights::listed(folder, layout, root, &list)
        .ok_or_else(|| WeightsError::WrongRoot { at: at(), expected: root })?;
    fs::create_dir_all(folder).map_err(failed(folder))?;
    for (nth, expected) in weights.parts.iter().enumerate() {
        if weights.part(layout, nth).is_ok() {
            continue;
        }
        let bytes = store.get(bucket, &keys::weights_part(&root, nth as u32), part_bytes(layout, nth)).await?;
        if part_hash(&bytes) != *expected {
            return Err(WeightsError::WrongPart { at: at(), part: nth });
        }
        progress(bytes.len() as u64);
        weights.keep(&part_name(nth), &bytes)?;
    }
    // The list comes last: whoever finds it finds the whole of θ₀.
    weights.keep(PARTS, &list)?;
    Ok(weights)
}

fn part_name(nth: usize) -> String {
    format!("{nth:05}")
}

fn part_bytes(layout: &Layout, nth: usize) -> u64 {
    4 * PART_VALUES.min(layout.len() - nth * PART_VALUES) as u64
}

fn failed(path: &Path) -> impl Fn(io::Error) -> WeightsError {
    let path = path.display().to_string();
    move |source| WeightsError::Io { path: path.clone(), source }
}

#[cfg(test)]
mod tests {
    use templar_protocol::testing::tiny_model;
    use templar_store::MemoryCloud;

    use super::*;

    fn read(weights: &Weights, layout: &Layout) -> Result<Vec<f32>, WeightsError> {
        let watch = |_| ControlFlow::<std::convert::Infallible>::Continue(());
        let ControlFlow::Continue(theta) = weights.read(layout, watch);
        theta
    }

    #[tokio::test]
    async fn weights_travel_through_a_bucket_and_a_wrong_bit_is_named() {
        let (folder, cloud, model) = (tempfile::tempdir().unwrap(), MemoryCloud::new(), tiny_model());
        let layout = Layout::llama(&model);
        let theta = layout.theta0(&model, 5);
        let (own, copy) = (folder.path().join("own"), folder.path().join("copy"));
        let weights = Weights::write(&own, &layout, &theta).unwrap();
        assert_eq!(weights.root(), layout.state_root(&theta));
        assert_eq!(Weights::open(&own, &layout, weights.root()).unwrap(), weights);

        let store = cloud.store(cloud.create_bucket("data"));
        let root = weights.root();
        let fetch_root = |root| fetch(&store, store.own(), &layout, root, &copy, |_| ());
        assert!(matches!(fetch_root(root).await, Err(WeightsError::Store(StoreError::NotFound { .. }))));
        weights.publish(&store, &layout, |_| ()).await.unwrap();
        let mut told = 0;
        let there = fetch(&store, store.own(), &layout, root, &copy, |bytes| told += bytes).await.unwrap();
        assert_eq!((read(&there, &layout).unwrap(), told), (theta.clone(), 4 * theta.len() as u64));
        // What is there is not fetched again.
        assert_eq!(fetch(&store, store.own(), &layout, root, &copy, |_| panic!("a part")).await.unwrap(), there);

        let part = copy.join("00000");
        let mut bytes = fs::read(&part).unwrap();
        bytes[7] ^= 1;
        fs::write(&part, &bytes).unwrap();
        assert!(matches!(read(&there, &layout), Err(WeightsError::WrongPart { part: 0, .. })));
        store.put(&keys::weights_part(&root, 0), Bytes::from(bytes)).await.unwrap();
        fs::remove_file(copy.join(PARTS)).unwrap();
        assert!(matches!(fetch_root(root).await, Err(WeightsError::WrongPart { part: 0, .. })));
        store.put(&keys::weights_parts(&root), Bytes::from(vec![0; 32 * layout.parts()])).await.unwrap();
        assert!(matches!(fetch_root(root).await, Err(WeightsError::WrongRoot { .. })));
        assert!(matches!(Weights::open(&own, &layout, Hash32::default()), Err(WeightsError::WrongRoot { .. })));
    }
}

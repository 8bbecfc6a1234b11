//! Where a node finds the weights that its run starts from: a folder of its own, and a bucket for what that lacks.

use std::io::ErrorKind;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use templar_protocol::bucket::BucketLocator;
use templar_protocol::hash::Hash32;
use templar_protocol::layout::Layout;
use templar_store::{Store, StoreError, keys};

use crate::frame::floats::from_bytes;
use crate::frame::waiting::{Pauses, heals};
use crate::frame::weights::{PARTS, Weights, WeightsError, part_bytes};

/// A folder and a bucket with θ₀. Nodes of one run may share the folder.
#[derive(Clone, Debug)]
pub struct Origin {
    pub folder: PathBuf,
    pub bucket: BucketLocator,
}

impl Origin {
    /// θ₀. A part that the folder lacks, or has wrong, is fetched from the bucket and kept; this waits for a bucket that
    /// does not answer.
    ///
    /// The list of parts is compared with the root before any of them is asked for, so a hostile bucket cannot send more
    /// bytes than the run's θ₀ has. One part is in memory at a time but for θ itself.
    pub async fn theta0(
        &self,
        store: &dyn Store,
        layout: &Arc<Layout>,
        root: Hash32,
    ) -> Result<Vec<f32>, WeightsError> {
        let weights = Arc::new(self.list(store, layout, root).await?);
        let mut theta = Vec::with_capacity(layout.len());
        for nth in 0..layout.parts() {
            let bytes = match kept(&weights, layout, nth).await? {
                Some(bytes) => bytes,
                None => self.fetch(store, &weights, layout, nth).await?,
            };
            theta.extend(from_bytes(&bytes));
        }
        Ok(theta)
    }

    /// The list of the parts, which has the root.
    async fn list(&self, store: &dyn Store, layout: &Layout, root: Hash32) -> Result<Weights, WeightsError> {
        if let Ok(weights) = Weights::open(&self.folder, layout, root) {
            return Ok(weights);
        }
        let list = self.get(store, &keys::weights_parts(&root), 32 * layout.parts() as u64).await?;
        let at = || format!("the bucket {}", self.bucket.bucket);
        let weights = Weights::listed(&self.folder, layout, root, &list)
            .ok_or_else(|| WeightsError::WrongRoot { at: at(), expected: root })?;
        weights.keep(PARTS, &list)?;
        Ok(weights)
    }

    /// A part from the bucket, checked and kept.
    async fn fetch(
        &self,
        store: &dyn Store,
        weights: &Arc<Weights>,
        layout: &Arc<Layout>,
        nth: usize,
    ) -> Result<Vec<u8>, WeightsError> {
        let key = keys::weights_part(&weights.root(), nth as u32);
        let bytes = self.get(store, &key, part_bytes(layout, nth)).await?;
        tracing::info!(bytes = bytes.len(), "a part of the weights that the run starts from has arrived");
        let (weights, layout, bucket) = (weights.clone(), layout.clone(), self.bucket.bucket.clone());
        let keep = move || {
            let bytes = Vec::from(bytes);
            if !weights.is_part(&layout, nth, &bytes)? {
                return Err(WeightsError::WrongServed { bucket, part: nth });
            }
            weights.keep_part(nth, &bytes)?;
            Ok(bytes)
        };
        beside(keep).await
    }

    async fn get(&self, store: &dyn Store, key: &str, bytes_max: u64) -> Result<Bytes, StoreError> {
        let mut pauses = Pauses::new("weights");
        loop {
            match store.get(&self.bucket, key, bytes_max).await {
                Err(error) if heals(&error) => pauses.wait(&error).await,
                got => return got,
            }
        }
    }
}

/// A part from the folder; none if it is to be fetched.
async fn kept(weights: &Arc<Weights>, layout: &Arc<Layout>, nth: usize) -> Result<Option<Vec<u8>>, WeightsError> {
    let (weights, layout) = (weights.clone(), layout.clone());
    match beside(move || weights.part(&layout, nth)).await {
        Ok(bytes) => Ok(Some(bytes)),
        // No other copy would be better.
        Err(error @ WeightsError::NotFinite { .. }) => Err(error),
        Err(WeightsError::Io { source, .. }) if source.kind() == ErrorKind::NotFound => Ok(None),
        Err(damage) => {
            tracing::warn!("{damage}: the node fetches this part again");
            Ok(None)
        }
    }
}

/// Hashing a part takes a while, and so does a disk: the node goes on meanwhile.
async fn beside<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::sync::atomic::{AtomicU32, Ordering};

    use async_trait::async_trait;
    use templar_protocol::testing::tiny_model;
    use templar_store::{MemoryCloud, StoreLayer};

    use super::*;

    /// Counts reads, and fails the first of them for a while.
    struct Counted {
        below: Arc<dyn Store>,
        reads: AtomicU32,
    }

    #[async_trait]
    impl StoreLayer for Counted {
        fn inner(&self) -> &dyn Store {
            &*self.below
        }

        async fn get(&self, from: &BucketLocator, key: &str, bytes_max: u64) -> Result<Bytes, StoreError> {
            if self.reads.fetch_add(1, Ordering::Relaxed) < 3 {
                return Err(StoreError::ClockSkew { bucket: from.bucket.clone(), ahead_s: None });
            }
            self.below.get(from, key, bytes_max).await
        }
    }

    /// A bucket with the weights of a tiny model; their θ₀ and root.
    async fn published(folder: &std::path::Path) -> (Counted, Arc<Layout>, Vec<f32>, Hash32) {
        let (model, cloud) = (tiny_model(), MemoryCloud::new());
        let layout = Arc::new(Layout::llama(&model));
        let theta = layout.theta0(&model, 5);
        let below: Arc<dyn Store> = Arc::new(cloud.store(cloud.create_bucket("data")));
        let weights = Weights::write(folder, &layout, &theta).unwrap();
        weights.publish(&*below, &layout, |_| ()).await.unwrap();
        (Counted { below, reads: AtomicU32::new(0) }, layout, theta, weights.root())
    }

    #[tokio::test(start_paused = true)]
    async fn a_wrong_part_is_fetched_again_and_a_right_one_once() {
        let folder = tempfile::tempdir().unwrap();
        let (store, layout, theta, root) = published(&folder.path().join("own")).await;
        let origin = Origin { folder: folder.path().join("copy"), bucket: store.below.own().clone() };
        let reads = |since: u32| store.reads.load(Ordering::Relaxed) - since;
        assert_eq!(origin.theta0(&store, &layout, root).await.unwrap(), theta);
        assert_eq!(reads(0), 3 + 2, "three that failed, the list and the part");
        assert_eq!(origin.theta0(&store, &layout, root).await.unwrap(), theta);
        assert_eq!(reads(0), 5, "all of it is there");

        let part = origin.folder.join("00000");
        let good = fs::read(&part).unwrap();
        let mut flipped = good.clone();
        flipped[7] ^= 1;
        for bad in [Some(flipped.clone()), Some(good[1..].to_vec()), None] {
            let before = reads(0);
            fs::remove_file(&part).unwrap();
            if let Some(bad) = bad {
                fs::write(&part, bad).unwrap();
            }
            assert_eq!(origin.theta0(&store, &layout, root).await.unwrap(), theta);
            assert_eq!((reads(before), &fs::read(&part).unwrap()), (1, &good));
        }
        assert_eq!(fs::read_dir(&origin.folder).unwrap().count(), 2, "nothing else is left there");

        // If the bucket lies, the bucket is named.
        fs::write(&part, &flipped).unwrap();
        store.below.put(&keys::weights_part(&root, 0), Bytes::from(flipped)).await.unwrap();
        let lied = origin.theta0(&store, &layout, root).await.unwrap_err();
        assert!(matches!(&lied, WeightsError::WrongServed { bucket, part: 0 } if bucket == "data"), "{lied}");
        let elsewhere = Origin { folder: folder.path().join("none"), ..origin };
        store.below.put(&keys::weights_parts(&root), Bytes::from(vec![0; 32 * layout.parts()])).await.unwrap();
        let lied = elsewhere.theta0(&store, &layout, root).await.unwrap_err();
        assert!(matches!(lied, WeightsError::WrongRoot { .. }) && lied.to_string().starts_with("the bucket data"));
    }

    /// They come by the same parts at the same time, and each may find the other in the middle of it.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn nodes_may_share_a_folder() {
        let folder = tempfile::tempdir().unwrap();
        let (store, layout, theta, root) = published(&folder.path().join("own")).await;
        store.reads.store(3, Ordering::Relaxed);
        let origin = Origin { folder: folder.path().join("shared"), bucket: store.below.own().clone() };
        for _ in 0..20 {
            let _ = fs::remove_dir_all(&origin.folder);
            let nodes = [0; 6].map(|_| origin.theta0(&store, &layout, root));
            for found in futures::future::join_all(nodes).await {
                assert_eq!(found.unwrap(), theta);
            }
        }
    }
}

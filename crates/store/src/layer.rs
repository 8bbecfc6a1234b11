//! A store over another store. What it does not say otherwise goes through to the one below.

use async_trait::async_trait;
use bytes::Bytes;
use templar_protocol::bucket::BucketLocator;

use crate::error::StoreError;
use crate::store::{ObjectInfo, Store, Stranger};

/// A [`Store`] that overrides what it changes and nothing else: every other method is that of [`StoreLayer::inner`].
/// Whatever implements this is a [`Store`].
///
/// ```
/// use std::sync::Arc;
/// use bytes::Bytes;
/// use templar_store::{Store, StoreError, StoreLayer};
///
/// /// Loses every upload.
/// struct Leaking(Arc<dyn Store>);
///
/// #[async_trait::async_trait]
/// impl StoreLayer for Leaking {
///     fn inner(&self) -> &dyn Store {
///         &*self.0
///     }
///
///     async fn put(&self, _: &str, _: Bytes) -> Result<(), StoreError> {
///         Ok(())
///     }
/// }
///
/// fn leaking(store: Arc<dyn Store>) -> Arc<dyn Store> {
///     Arc::new(Leaking(store))
/// }
/// ```
#[async_trait]
pub trait StoreLayer: Send + Sync {
    /// The store below.
    fn inner(&self) -> &dyn Store;

    fn own(&self) -> &BucketLocator {
        self.inner().own()
    }

    async fn put(&self, key: &str, bytes: Bytes) -> Result<(), StoreError> {
        self.inner().put(key, bytes).await
    }

    async fn put_as(&self, who: Stranger, key: &str, bytes: Bytes) -> Result<(), StoreError> {
        self.inner().put_as(who, key, bytes).await
    }

    async fn delete(&self, key: &str) -> Result<(), StoreError> {
        self.inner().delete(key).await
    }

    async fn list(&self, prefix: &str, max: usize) -> Result<Vec<ObjectInfo>, StoreError> {
        self.inner().list(prefix, max).await
    }

    async fn get(&self, from: &BucketLocator, key: &str, max_bytes: u64) -> Result<Bytes, StoreError> {
        self.inner().get(from, key, max_bytes).await
    }
}

#[async_trait]
impl<T: StoreLayer> Store for T {
    fn own(&self) -> &BucketLocator {
        StoreLayer::own(self)
    }

    async fn put(&self, key: &str, bytes: Bytes) -> Result<(), StoreError> {
        StoreLayer::put(self, key, bytes).await
    }

    async fn put_as(&self, who: Stranger, key: &str, bytes: Bytes) -> Result<(), StoreError> {
        StoreLayer::put_as(self, who, key, bytes).await
    }

    async fn delete(&self, key: &str) -> Result<(), StoreError> {
        StoreLayer::delete(self, key).await
    }

    async fn list(&self, prefix: &str, max: usize) -> Result<Vec<ObjectInfo>, StoreError> {
        StoreLayer::list(self, prefix, max).await
    }

    async fn get(&self, from: &BucketLocator, key: &str, max_bytes: u64) -> Result<Bytes, StoreError> {
        StoreLayer::get(self, from, key, max_bytes).await
    }
}

//! The seam for storage.

use async_trait::async_trait;
use bytes::Bytes;
use templar_protocol::bucket::BucketLocator;

use crate::error::StoreError;

/// An object in a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectInfo {
    pub key: String,
    /// Its size.
    pub bytes: u64,
}

/// With what a stranger could try to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stranger {
    /// With the credential that the bucket's owner publishes.
    Published,
    /// Without any.
    Nobody,
}

/// A node's view of all storage.
///
/// An operation is given up by dropping its future: nothing of it goes on in the background, except that an upload in
/// parts is withdrawn, which may take some seconds. Parts that a process leaves behind which ends half-way are for a
/// rule of the bucket to expire; nobody can read them. Whoever has a deadline puts it around the operation.
///
/// Keys are checked by [`crate::keys::check`] before anything is sent.
#[async_trait]
pub trait Store: Send + Sync {
    /// Where this node's bucket is, with its public read credential.
    fn own(&self) -> &BucketLocator;

    /// Writes an object into this node's bucket, replacing what is there; readers see the old or the new, never a
    /// mixture.
    async fn put(&self, key: &str, bytes: Bytes) -> Result<(), StoreError>;

    /// Tries to write an object into this node's own bucket as a stranger could. `Ok` means that the bucket took it, which
    /// no bucket should; [`StoreError::Denied`] is what its owner wants to see.
    async fn put_as(&self, who: Stranger, key: &str, bytes: Bytes) -> Result<(), StoreError>;

    /// Deletes an object of this node's bucket. Deleting an object that does not exist succeeds.
    async fn delete(&self, key: &str) -> Result<(), StoreError>;

    /// The first `max` objects of this node's bucket, in the order of their keys, in the folder `prefix`
    /// (`v1/ab` holds `v1/ab/x` but not `v1/abc`); an empty prefix is the whole bucket.
    async fn list(&self, prefix: &str, max: usize) -> Result<Vec<ObjectInfo>, StoreError>;

    /// Reads an object of any bucket, with the read credential that its owner published.
    ///
    /// The size is known and checked against `max_bytes` before the body is read, and a body that exceeds its announced
    /// size is cut off. Services that hide what a reader may not list answer [`StoreError::Denied`] for an object that
    /// is not there: for a reader both mean that the object is not available.
    async fn get(&self, from: &BucketLocator, key: &str, max_bytes: u64) -> Result<Bytes, StoreError>;
}

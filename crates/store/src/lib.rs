//! Object storage as a Templar node sees it: one bucket of its own to write, everybody's buckets to read.
//!
//! The store only carries bytes. What is agreed on stands on the chain; nothing here is trusted, and no timestamp of a
//! store is ever read. [`Store`] is the seam, with two implementations that pass one suite ([`conformance`]):
//!
//! - [`S3Store`]: any S3-compatible service. Buckets of strangers are contacted only as the endpoint policy of
//!   [`S3Options`] allows, because their addresses are hostile input.
//! - [`MemoryStore`] in a [`MemoryCloud`]: for simulation, with the same rights and with injected faults.
//!
//! [`S3Server`] is the embedded S3 server of local networks. [`keys`] names every object.
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), templar_store::StoreError> {
//! use templar_store::{MemoryCloud, Store};
//!
//! let cloud = MemoryCloud::new();
//! let alice = cloud.store(cloud.create_bucket("alice"));
//! let bob = cloud.store(cloud.create_bucket("bob"));
//! alice.put("v1/greeting", "hello".into()).await?;
//!
//! // Bob knows where Alice's bucket is and how to read it, because she published its locator.
//! let greeting = bob.get(alice.own(), "v1/greeting", 100).await?;
//! assert_eq!(&greeting[..], b"hello");
//! # Ok(())
//! # }
//! ```

mod bucket;
pub mod conformance;
mod error;
pub mod keys;
mod memory;
mod s3;
mod server;

use async_trait::async_trait;
pub use bucket::{Credential, OwnBucket, dev_credentials};
use bytes::Bytes;
pub use error::StoreError;
pub use memory::{Fault, MemoryCloud, MemoryStore, Op, OpKind};
pub use s3::{S3Options, S3Store, is_loopback};
pub use server::{BucketSpec, OBJECT_BYTES_MAX, S3Server, ServerError};
use templar_protocol::bucket::BucketLocator;

/// An object in a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectInfo {
    pub key: String,
    /// Its size.
    pub bytes: u64,
}

/// A node's view of all storage. Keys are checked by [`keys::check`] before anything is sent.
#[async_trait]
pub trait Store: Send + Sync {
    /// Where this node's bucket is, with its public read credential.
    fn own(&self) -> &BucketLocator;

    /// Writes an object into the own bucket, replacing what is there; readers see the old or the new, never a mixture.
    async fn put(&self, key: &str, bytes: Bytes) -> Result<(), StoreError>;

    /// Deletes an object of the own bucket. Deleting what is not there is no error.
    async fn delete(&self, key: &str) -> Result<(), StoreError>;

    /// The first `max` objects of the own bucket, in the order of their keys, that lie in the folder `prefix`
    /// (`v1/ab` holds `v1/ab/x` but not `v1/abc`); an empty prefix is the whole bucket.
    async fn list(&self, prefix: &str, max: usize) -> Result<Vec<ObjectInfo>, StoreError>;

    /// Reads an object of any bucket, with the read credential that its owner published.
    ///
    /// The size is known and checked against `max_bytes` before the body is read, and a body that belies its size is
    /// cut off. Services that hide what a reader may not list answer [`StoreError::Denied`] for an object that is not
    /// there: to a reader both mean that the object cannot be had.
    async fn get(&self, from: &BucketLocator, key: &str, max_bytes: u64) -> Result<Bytes, StoreError>;
}

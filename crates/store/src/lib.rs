//! Object storage as a Templar node sees it: one bucket of its own to write, everybody's buckets to read.
//!
//! The store only carries bytes. What is agreed on is on the chain; nothing here is trusted, and no timestamp of a
//! store is ever read. [`Store`] is the seam, with two implementations that pass one suite ([`conformance`]):
//!
//! - [`S3Store`]: any S3-compatible service. Buckets of strangers are contacted only as the endpoint policy of
//!   [`S3Options`] allows, because their addresses are hostile input.
//! - [`MemoryStore`] in a [`MemoryCloud`]: for simulation, with the same rights and with injected faults.
//!
//! [`S3Server`] is the embedded S3 server of local networks. [`StoreLayer`] makes a store over another store that changes one
//! thing. [`keys`] names every object.
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
pub mod layer;
mod memory;
mod s3;
mod server;
mod store;

pub use bucket::{Credential, OwnBucket, dev_credentials};
pub use error::StoreError;
pub use layer::StoreLayer;
pub use memory::{Fault, MemoryCloud, MemoryStore, Op, OpKind};
pub use s3::{S3Options, S3Store, bucket_name_fault, endpoint_fault, is_loopback};
pub use server::{BucketSpec, OBJECT_BYTES_MAX, S3Server, ServerError};
pub use store::{ObjectInfo, Store, Stranger};

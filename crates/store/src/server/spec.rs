//! What a server keeps, and why one does not start.

use std::net::SocketAddr;
use std::path::PathBuf;

use crate::bucket::Credential;

/// A bucket that the server keeps.
#[derive(Clone, Debug)]
pub struct BucketSpec {
    pub name: String,
    /// May do everything with this bucket, and nothing with others.
    pub write: Credential,
    /// May only get objects of this bucket. It is published.
    pub read: Credential,
}

/// Why the server did not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServerError {
    #[error("{address} is not on loopback: the S3 server speaks plain HTTP; bind 127.0.0.1, or expose it explicitly")]
    NotLoopback { address: SocketAddr },
    #[error("{address} stands for all addresses of this machine: name the one under which the others reach it")]
    NoAddress { address: SocketAddr },
    #[error(
        "{name:?} is not a valid bucket name: 3 to 63 of a-z, 0-9, '.' and '-', with a letter or digit at both ends"
    )]
    BadBucketName { name: String },
    #[error("bucket {name:?} is given twice: name every bucket once")]
    DuplicateBucket { name: String },
    #[error("access key {access_key_id:?} opens more than one bucket or right: give every right its own key")]
    DuplicateAccessKey { access_key_id: String },
    #[error("another server keeps its objects in {}: stop it, or choose another folder", root.display())]
    InUse { root: PathBuf },
    #[error("cannot use the folder {} for objects: check that it can be written", root.display())]
    Root { root: PathBuf, source: std::io::Error },
    #[error("cannot listen on {address}: choose another port, or 0 for a free one")]
    Listen { address: SocketAddr, source: std::io::Error },
}

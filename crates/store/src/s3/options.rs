//! How an S3 store deals with the network.

use std::time::Duration;

/// How an [`S3Store`](super::S3Store) deals with the network.
#[derive(Clone, Debug)]
pub struct S3Options {
    /// Whether buckets on this machine's loopback, over `http` too, are contacted: in local networks only.
    pub allow_http_loopback: bool,
    /// Endpoints, as written in locators, that are contacted wherever they lead, such as a server in the operator's own
    /// network. The endpoint of this node's bucket is always one. All others must be `https` at a public address.
    pub vouched_endpoints: Vec<String>,
    /// The longest that one operation may take, retries included.
    pub request_timeout: Duration,
    /// How often a request is repeated after a temporary failure.
    pub retries: usize,
    /// How many buckets have a client at once; the least recently used one is dropped first.
    pub clients_max: usize,
}

impl Default for S3Options {
    /// For a public network.
    fn default() -> Self {
        Self {
            allow_http_loopback: false,
            vouched_endpoints: Vec::new(),
            request_timeout: Duration::from_mins(5),
            retries: 4,
            clients_max: 512,
        }
    }
}

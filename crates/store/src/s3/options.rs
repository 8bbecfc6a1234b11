//! How an S3 store deals with the network.

use std::time::Duration;

/// How an [`S3Store`](super::S3Store) deals with the network.
#[derive(Clone, Debug)]
pub struct S3Options {
    /// Whether buckets on this machine's loopback, over `http` too, are contacted: in local networks only.
    pub allow_http_loopback: bool,
    /// Endpoints, as written in locators, that are contacted wherever they lead (a server in the operator's own
    /// network, say). The own bucket's endpoint is always one. All others must be `https` at a public address.
    pub vouched_endpoints: Vec<String>,
    /// The longest that one operation may take, retries included.
    pub request_timeout: Duration,
    /// How often a request is repeated after a failure that may pass.
    pub retries: usize,
    /// For how many buckets clients are kept; the least recently used one goes first.
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

//! What only the connection to a dev chain knows of its failures. It reaches callers of the seam behind
//! [`ChainError::Adapter`].

use templar_protocol::hash::Hash32;

use crate::error::{ChainError, Retry};

/// Why a chain cannot be reached, understood or served over JSON-RPC.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RpcError {
    #[error("{url} is not the address of a chain; give it as ws://HOST:PORT")]
    InvalidUrl { url: String },
    #[error("no chain answers at {url} ({reason}); check that it runs and can be reached")]
    Connection { url: String, reason: String },
    #[error("{url} did not answer {method} in {waited_s} s; check the load of the chain's machine")]
    Timeout { url: String, method: String, waited_s: u64 },
    #[error("{url} answered {method} with something unexpected ({reason}); check its version")]
    Protocol { url: String, method: String, reason: String },
    #[error("{url} now serves another chain ({found} instead of {expected}); check the address and restart")]
    OtherChain { url: String, expected: Hash32, found: Hash32 },
    #[error("cannot serve the chain at {address}: {reason}; choose another address")]
    Bind { address: String, reason: String },
}

impl From<RpcError> for ChainError {
    fn from(error: RpcError) -> Self {
        let retry = match error {
            RpcError::Connection { .. } | RpcError::Timeout { .. } => Retry::Later,
            _ => Retry::Useless,
        };
        Self::adapter(retry, error)
    }
}

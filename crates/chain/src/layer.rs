//! A chain over another chain. Calls that it does not override go to the one below.

use async_trait::async_trait;
use futures::stream::BoxStream;
use templar_protocol::{
    hash::Hash32,
    keys::Keypair,
    roster::{Snapshot, Uid},
};

use crate::{
    chain::{Chain, Head, Hyperparams},
    error::ChainError,
};

/// A [`Chain`] that overrides only what it changes: every other method is that of [`ChainLayer::inner`].
/// Every type that implements this trait is a [`Chain`].
///
/// ```
/// use std::sync::Arc;
/// use templar_chain::{Chain, ChainError, ChainLayer};
/// use templar_protocol::keys::Keypair;
///
/// /// Loses every commitment.
/// struct Silent(Arc<dyn Chain>);
///
/// #[async_trait::async_trait]
/// impl ChainLayer for Silent {
///     fn inner(&self) -> &dyn Chain {
///         &*self.0
///     }
///
///     async fn submit_commitment(&self, _: &Keypair, _: u16, _: Vec<Vec<u8>>) -> Result<(), ChainError> {
///         Ok(())
///     }
/// }
///
/// fn silent(chain: Arc<dyn Chain>) -> Arc<dyn Chain> {
///     Arc::new(Silent(chain))
/// }
/// ```
#[async_trait]
pub trait ChainLayer: Send + Sync {
    /// The chain below.
    fn inner(&self) -> &dyn Chain;

    async fn genesis(&self) -> Result<Hash32, ChainError> {
        self.inner().genesis().await
    }

    async fn head(&self) -> Result<Head, ChainError> {
        self.inner().head().await
    }

    async fn heads(&self) -> Result<BoxStream<'static, Head>, ChainError> {
        self.inner().heads().await
    }

    async fn block_hash(&self, number: u64) -> Result<Hash32, ChainError> {
        self.inner().block_hash(number).await
    }

    async fn snapshot(&self, netuid: u16, block: u64) -> Result<Snapshot, ChainError> {
        self.inner().snapshot(netuid, block).await
    }

    async fn hyperparams(&self, netuid: u16) -> Result<Hyperparams, ChainError> {
        self.inner().hyperparams(netuid).await
    }

    async fn submit_commitment(&self, key: &Keypair, netuid: u16, fields: Vec<Vec<u8>>) -> Result<(), ChainError> {
        self.inner().submit_commitment(key, netuid, fields).await
    }

    async fn submit_weights(
        &self,
        key: &Keypair,
        netuid: u16,
        weights: Vec<(Uid, u16)>,
        version_key: u64,
    ) -> Result<(), ChainError> {
        self.inner().submit_weights(key, netuid, weights, version_key).await
    }
}

#[async_trait]
impl<T: ChainLayer> Chain for T {
    async fn genesis(&self) -> Result<Hash32, ChainError> {
        ChainLayer::genesis(self).await
    }

    async fn head(&self) -> Result<Head, ChainError> {
        ChainLayer::head(self).await
    }

    async fn heads(&self) -> Result<BoxStream<'static, Head>, ChainError> {
        ChainLayer::heads(self).await
    }

    async fn block_hash(&self, number: u64) -> Result<Hash32, ChainError> {
        ChainLayer::block_hash(self, number).await
    }

    async fn snapshot(&self, netuid: u16, block: u64) -> Result<Snapshot, ChainError> {
        ChainLayer::snapshot(self, netuid, block).await
    }

    async fn hyperparams(&self, netuid: u16) -> Result<Hyperparams, ChainError> {
        ChainLayer::hyperparams(self, netuid).await
    }

    async fn submit_commitment(&self, key: &Keypair, netuid: u16, fields: Vec<Vec<u8>>) -> Result<(), ChainError> {
        ChainLayer::submit_commitment(self, key, netuid, fields).await
    }

    async fn submit_weights(
        &self,
        key: &Keypair,
        netuid: u16,
        weights: Vec<(Uid, u16)>,
        version_key: u64,
    ) -> Result<(), ChainError> {
        ChainLayer::submit_weights(self, key, netuid, weights, version_key).await
    }
}

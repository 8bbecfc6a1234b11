//! A node without its chain.

use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt;
use futures::stream::BoxStream;
use templar_chain::{Chain, ChainError, ChainLayer, Head, Hyperparams, Retry};
use templar_node::pretrain::setup::Setup;
use templar_protocol::hash::Hash32;
use templar_protocol::keys::Keypair;
use templar_protocol::roster::{Snapshot, Uid};
use tokio::time::Instant;

/// Time since a beginning, and when the chain cannot be reached.
#[derive(Clone)]
struct Cut {
    began: Instant,
    span: Range<Duration>,
}

impl Cut {
    fn is_on(&self) -> bool {
        self.span.contains(&self.began.elapsed())
    }

    fn check(&self) -> Result<(), ChainError> {
        let refused = || io::Error::new(io::ErrorKind::NotConnected, "injected fault: the chain does not answer");
        if self.is_on() { Err(ChainError::adapter(Retry::Later, refused())) } else { Ok(()) }
    }
}

struct CutOff {
    honest: Arc<dyn Chain>,
    cut: Cut,
}

#[async_trait]
impl ChainLayer for CutOff {
    fn inner(&self) -> &dyn Chain {
        &*self.honest
    }

    async fn head(&self) -> Result<Head, ChainError> {
        self.cut.check()?;
        self.honest.head().await
    }

    async fn heads(&self) -> Result<BoxStream<'static, Head>, ChainError> {
        self.cut.check()?;
        let cut = self.cut.clone();
        let heads = self.honest.heads().await?;
        Ok(heads.filter(move |_| std::future::ready(!cut.is_on())).boxed())
    }

    async fn block_hash(&self, number: u64) -> Result<Hash32, ChainError> {
        self.cut.check()?;
        self.honest.block_hash(number).await
    }

    async fn snapshot(&self, netuid: u16, block: u64) -> Result<Snapshot, ChainError> {
        self.cut.check()?;
        self.honest.snapshot(netuid, block).await
    }

    async fn hyperparams(&self, netuid: u16) -> Result<Hyperparams, ChainError> {
        self.cut.check()?;
        self.honest.hyperparams(netuid).await
    }

    async fn submit_commitment(&self, key: &Keypair, netuid: u16, fields: Vec<Vec<u8>>) -> Result<(), ChainError> {
        self.cut.check()?;
        self.honest.submit_commitment(key, netuid, fields).await
    }

    async fn submit_weights(
        &self,
        key: &Keypair,
        netuid: u16,
        weights: Vec<(Uid, u16)>,
        version_key: u64,
    ) -> Result<(), ChainError> {
        self.cut.check()?;
        self.honest.submit_weights(key, netuid, weights, version_key).await
    }
}

/// The node hears nothing of the chain for a while, counted from `began`, and the chain nothing of it. It waits, and
/// follows again when it is back.
pub fn wrap(setup: Setup, began: Instant, span: Range<Duration>) -> Setup {
    Setup { chain: Arc::new(CutOff { honest: setup.chain, cut: Cut { began, span } }), ..setup }
}

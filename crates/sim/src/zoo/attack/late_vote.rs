//! Votes that come when all is decided.

use std::sync::Arc;

use async_trait::async_trait;
use futures::StreamExt;
use templar_chain::{Chain, ChainError, ChainLayer};
use templar_node::pretrain::setup::Setup;
use templar_protocol::keys::Keypair;
use templar_record::event::Role;

use crate::zoo::kind::Kind;
use crate::zoo::layers::window_of;

/// Long enough to be late in the shortest window, in blocks.
const DELAY_BLOCKS: u64 = 8;

pub const KIND: Kind = Kind {
    name: "late-vote",
    role: Role::Validator,
    tries: "It votes after the votes were counted, when it can see what the others want.",
    stopped_by: "Votes are read as of the vote block: a later one changes no certificate.",
    wrap: |setup, _| wrap(setup, |_| true),
};

/// Hands votes over late.
struct Late<F> {
    honest: Arc<dyn Chain>,
    is_late: F,
}

#[async_trait]
impl<F: Fn(u64) -> bool + Send + Sync> ChainLayer for Late<F> {
    fn inner(&self) -> &dyn Chain {
        &*self.honest
    }

    async fn submit_commitment(&self, key: &Keypair, netuid: u16, fields: Vec<Vec<u8>>) -> Result<(), ChainError> {
        let window = fields.get(2).and_then(|vote| window_of(vote));
        if !window.is_some_and(&self.is_late) {
            return self.honest.submit_commitment(key, netuid, fields).await;
        }
        let (chain, key) = (self.honest.clone(), key.clone());
        let until = chain.head().await?.number + DELAY_BLOCKS;
        let mut heads = chain.heads().await?;
        tokio::spawn(async move {
            while heads.next().await.is_some_and(|head| head.number < until) {}
            chain.submit_commitment(&key, netuid, fields).await
        });
        Ok(())
    }
}

/// A validator whose votes on the windows for which `is_late` is true come too late.
pub fn wrap(setup: Setup, is_late: impl Fn(u64) -> bool + Send + Sync + 'static) -> Setup {
    Setup { chain: Arc::new(Late { honest: setup.chain, is_late }), ..setup }
}

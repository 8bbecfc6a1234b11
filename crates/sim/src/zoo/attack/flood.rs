//! Requests without a purpose.

use std::sync::Arc;

use async_trait::async_trait;
use templar_chain::{Chain, ChainError, ChainLayer};
use templar_node::pretrain::setup::Setup;
use templar_protocol::keys::Keypair;
use templar_protocol::run::RunId;
use templar_record::event::Role;
use templar_store::{Store, keys};

use crate::zoo::kind::Kind;
use crate::zoo::layers::{listed_miners, window_of};

pub const KIND: Kind = Kind {
    name: "flood",
    role: Role::Miner,
    tries: "It works honestly, and with every commitment asks the bucket of the first other miner for its payload 256 times.",
    stopped_by: "Read credentials let nobody do more than read, and validators have copies. What a provider does about rates and bills is not simulated: open.",
    wrap: |setup, _| {
        let (store, run) = (setup.store.clone(), setup.spec.id());
        Setup { chain: Arc::new(Flooding { honest: setup.chain, store, run }), ..setup }
    },
};

/// Requests to one bucket in one window.
pub const REQUESTS: usize = 256;
/// More than a payload of the models that rehearsals train, and no more than a rehearsal can bear.
const BYTES_MAX: u64 = 64 << 20;

struct Flooding {
    honest: Arc<dyn Chain>,
    store: Arc<dyn Store>,
    run: RunId,
}

#[async_trait]
impl ChainLayer for Flooding {
    fn inner(&self) -> &dyn Chain {
        &*self.honest
    }

    async fn submit_commitment(&self, key: &Keypair, netuid: u16, fields: Vec<Vec<u8>>) -> Result<(), ChainError> {
        if let Some(window) = fields.get(1).and_then(|word| window_of(word)) {
            let now = self.honest.snapshot(netuid, self.honest.head().await?.number).await?;
            if let Some((_, bucket)) = listed_miners(&now).find(|(entry, _)| entry.hotkey != key.hotkey()) {
                let (store, payload) = (self.store.clone(), keys::window_payload(self.run, window));
                tokio::spawn(async move {
                    for _ in 0..REQUESTS {
                        let _ = store.get(&bucket, &payload, BYTES_MAX).await;
                    }
                });
            }
        }
        self.honest.submit_commitment(key, netuid, fields).await
    }
}

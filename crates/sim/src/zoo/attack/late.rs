//! Objects that come seconds too late.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use templar_chain::Chain;
use templar_node::pretrain::setup::Setup;
use templar_protocol::clock::Schedule;
use templar_record::event::Role;
use templar_store::{Store, StoreError, StoreLayer};

use crate::zoo::kind::Kind;
use crate::zoo::layers::published;

pub const KIND: Kind = Kind {
    name: "late",
    role: Role::Miner,
    tries: "It uploads its key just after validators stopped waiting for keys, or its payload just after the put block, so that some may count it and others not; each node of this kind in its way.",
    stopped_by: "Deadlines in blocks, and the fault NotOpened: what most of the stake did not have in time does not count.",
    wrap: |setup, part| wrap(setup, if part.nth % 2 == 0 { "key" } else { "payload" }),
};

/// A bucket into which one kind of object comes late.
struct Late {
    honest: Arc<dyn Store>,
    chain: Arc<dyn Chain>,
    schedule: Schedule,
    object: &'static str,
}

impl Late {
    /// The block after which an object of `window` is of no use.
    fn due(&self, window: u64) -> u64 {
        let (put, vote) = (self.schedule.put_deadline(window), self.schedule.vote_deadline(window));
        // Validators wait for keys up to this block, and need the rest of the time for their votes.
        if self.object == "key" { vote - ((vote - put) / 3).max(1) } else { put }
    }
}

#[async_trait]
impl StoreLayer for Late {
    fn inner(&self) -> &dyn Store {
        &*self.honest
    }

    async fn put(&self, key: &str, bytes: Bytes) -> Result<(), StoreError> {
        if let Some((window, object)) = published(key)
            && object == self.object
            && let Ok(mut heads) = self.chain.heads().await
        {
            while heads.next().await.is_some_and(|head| head.number <= self.due(window)) {}
        }
        self.honest.put(key, bytes).await
    }
}

fn wrap(setup: Setup, object: &'static str) -> Setup {
    let (chain, schedule) = (setup.chain.clone(), Schedule::new(&setup.spec));
    Setup { store: Arc::new(Late { honest: setup.store, chain, schedule, object }), ..setup }
}

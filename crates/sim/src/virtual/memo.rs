//! What all nodes of a simulation would read from the chain alike, read once. Only a simulation may share it: its blocks are
//! final at once, and its nodes are in one process.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use templar_chain::{Chain, ChainError, ChainLayer};
use templar_protocol::roster::Snapshot;

/// Snapshots that are kept: those of a few windows.
const SNAPSHOTS_MAX: usize = 256;

/// Snapshots by block. Clones share them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Memo(Arc<Mutex<BTreeMap<(u16, u64), Snapshot>>>);

struct Remembering {
    chain: Arc<dyn Chain>,
    memo: Memo,
}

impl Memo {
    /// The chain, whose snapshots come from here once somebody has read them.
    pub(crate) fn over(&self, chain: Arc<dyn Chain>) -> Arc<dyn Chain> {
        Arc::new(Remembering { chain, memo: self.clone() })
    }

    fn known(&self, netuid: u16, block: u64) -> Option<Snapshot> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&(netuid, block)).cloned()
    }

    fn keep(&self, netuid: u16, snapshot: &Snapshot) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.insert((netuid, snapshot.block), snapshot.clone());
        while known.len() > SNAPSHOTS_MAX {
            known.pop_first();
        }
    }
}

#[async_trait]
impl ChainLayer for Remembering {
    fn inner(&self) -> &dyn Chain {
        &*self.chain
    }

    async fn snapshot(&self, netuid: u16, block: u64) -> Result<Snapshot, ChainError> {
        if let Some(known) = self.memo.known(netuid, block) {
            return Ok(known);
        }
        let snapshot = self.chain.snapshot(netuid, block).await?;
        self.memo.keep(netuid, &snapshot);
        Ok(snapshot)
    }
}

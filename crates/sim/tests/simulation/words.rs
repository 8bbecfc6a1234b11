//! Words on chain that are malformed or stale: each is named, counted by everybody who reads it, and moves nothing.

use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use templar_chain::{Chain, ChainError, Head, Hyperparams};
use templar_node::events::{Cause, FaultCount, VoteFault};
use templar_protocol::bucket::BucketLocator;
use templar_protocol::fault::FaultKind;
use templar_protocol::hash::Hash32;
use templar_protocol::keys::Keypair;
use templar_protocol::roster::{Snapshot, Uid};
use templar_sim::simulation::Scenario;
use templar_store::{ObjectInfo, Store, StoreError};

use crate::{assert_one_history, certified, faults_of, run};

type Rewrite = Box<dyn FnMut(&mut [Vec<u8>]) + Send>;

/// A chain that gets its node's commitments rewritten.
struct Rewriting {
    honest: Arc<dyn Chain>,
    rewrite: Mutex<Rewrite>,
}

pub(crate) fn rewriting(
    honest: Arc<dyn Chain>,
    rewrite: impl FnMut(&mut [Vec<u8>]) + Send + 'static,
) -> Arc<dyn Chain> {
    Arc::new(Rewriting { honest, rewrite: Mutex::new(Box::new(rewrite)) })
}

#[async_trait]
impl Chain for Rewriting {
    async fn genesis(&self) -> Result<Hash32, ChainError> {
        self.honest.genesis().await
    }

    async fn head(&self) -> Result<Head, ChainError> {
        self.honest.head().await
    }

    async fn heads(&self) -> Result<BoxStream<'static, Head>, ChainError> {
        self.honest.heads().await
    }

    async fn block_hash(&self, block: u64) -> Result<Hash32, ChainError> {
        self.honest.block_hash(block).await
    }

    async fn snapshot(&self, netuid: u16, block: u64) -> Result<Snapshot, ChainError> {
        self.honest.snapshot(netuid, block).await
    }

    async fn hyperparams(&self, netuid: u16) -> Result<Hyperparams, ChainError> {
        self.honest.hyperparams(netuid).await
    }

    async fn submit_commitment(&self, key: &Keypair, netuid: u16, mut fields: Vec<Vec<u8>>) -> Result<(), ChainError> {
        (self.rewrite.lock().unwrap())(&mut fields);
        self.honest.submit_commitment(key, netuid, fields).await
    }

    async fn submit_weights(
        &self,
        key: &Keypair,
        netuid: u16,
        weights: Vec<(Uid, u16)>,
        version_key: u64,
    ) -> Result<(), ChainError> {
        self.honest.submit_weights(key, netuid, weights, version_key).await
    }
}

/// Whether a word, a header's or a vote, speaks of `window`.
fn is_of(word: &[u8], window: u8) -> bool {
    word.get(1..5) == Some(&[window, 0, 0, 0])
}

/// validator-1's vote on window 1 goes through this.
macro_rules! voting {
    ($change:expr) => {
        |node, chain| {
            let change: fn(&mut Vec<u8>) = $change;
            let rewrite = move |fields: &mut [Vec<u8>]| {
                if let Some(vote) = fields.get_mut(2).filter(|vote| is_of(vote, 1)) {
                    change(vote);
                }
            };
            if node == "validator-1" { rewriting(chain, rewrite) } else { chain }
        }
    };
}

#[test]
fn a_malformed_vote_is_no_vote() {
    type Seam = fn(&str, Arc<dyn Chain>) -> Arc<dyn Chain>;
    // A vote on three candidates: tag, window, root, and a byte for each of its two bitmaps.
    let cases: [(Seam, VoteFault); 4] = [
        (voting!(|vote| vote.push(0)), VoteFault::Length),
        (voting!(|vote| vote.truncate(37)), VoteFault::Length),
        (voting!(|vote| vote[37] |= 0x80), VoteFault::Padding),
        (voting!(|vote| vote[0] = 9), VoteFault::Tag),
    ];
    for (chain, fault) in cases {
        let mut scenario = Scenario::new(3, 2, 3, 63);
        scenario.seams.chain = chain;
        let outcome = run(scenario);
        assert_one_history(&outcome);
        assert_eq!(certified(&outcome), [true; 3], "{fault:?}");
        let misvoters = |window: usize| -> Vec<Uid> {
            outcome.report.windows[window].misvotes.iter().map(|misvote| misvote.uid).collect()
        };
        assert_eq!((misvoters(0), misvoters(1), misvoters(2)), (vec![], vec![Uid(4)], vec![]), "{fault:?}");
        assert_eq!(outcome.report.windows[1].accepted.len(), 3, "the other validator's vote decides");
        for node in &outcome.report.nodes {
            assert_eq!(node.faults, [FaultCount { cause: Cause::Vote(fault), count: 1 }], "{}", node.name);
        }
    }
}

/// A bucket whose header of window 2 is that of window 1.
struct StaleHeader {
    honest: Arc<dyn Store>,
    old: Mutex<Option<Bytes>>,
}

#[async_trait]
impl Store for StaleHeader {
    fn own(&self) -> &BucketLocator {
        self.honest.own()
    }

    async fn put(&self, key: &str, bytes: Bytes) -> Result<(), StoreError> {
        if key.ends_with("/00000001/header") {
            *self.old.lock().unwrap() = Some(bytes.clone());
        }
        let old = self.old.lock().unwrap().clone().filter(|_| key.ends_with("/00000002/header"));
        self.honest.put(key, old.unwrap_or(bytes)).await
    }

    async fn delete(&self, key: &str) -> Result<(), StoreError> {
        self.honest.delete(key).await
    }

    async fn list(&self, prefix: &str, max: usize) -> Result<Vec<ObjectInfo>, StoreError> {
        self.honest.list(prefix, max).await
    }

    async fn get(&self, from: &BucketLocator, key: &str, max_bytes: u64) -> Result<Bytes, StoreError> {
        self.honest.get(from, key, max_bytes).await
    }
}

#[test]
fn a_header_of_an_older_window_that_is_committed_again_is_stale() {
    let mut scenario = Scenario::new(3, 2, 4, 64);
    scenario.seams.store = |node, honest| {
        if node == "miner-1" { Arc::new(StaleHeader { honest, old: Mutex::new(None) }) } else { honest }
    };
    scenario.seams.chain = |node, chain| {
        let mut old = None;
        let again = move |fields: &mut [Vec<u8>]| match (fields.get_mut(1), &old) {
            (Some(word), _) if is_of(word, 1) => old = Some(word[5..].to_vec()),
            (Some(word), Some(old)) if is_of(word, 2) => word[5..].copy_from_slice(old),
            _ => {}
        };
        if node == "miner-1" { rewriting(chain, again) } else { chain }
    };
    let outcome = run(scenario);
    assert_one_history(&outcome);
    assert_eq!(certified(&outcome), [true; 4]);
    let windows = &outcome.report.windows;
    assert!(windows[1].accepted.contains(&Uid(1)), "its header was good once");
    // Hash and signature are in order: only what the header says gives it away.
    assert_eq!(faults_of(&windows[2], 1), [FaultKind::WrongWindow]);
    assert!(!windows[2].accepted.contains(&Uid(1)) && !windows[3].accepted.contains(&Uid(1)));
    for validator in &outcome.report.nodes[3..] {
        let stale = FaultCount { cause: Cause::Contribution(FaultKind::WrongWindow), count: 1 };
        assert!(validator.faults.contains(&stale), "{:?}", validator.faults);
    }
}

//! What every adapter of [`Chain`] must do, as one suite that each adapter's tests run against a fresh subnet.
//!
//! The suite panics at the first thing that is wrong. It needs an [`Operator`], which registers neurons and makes
//! blocks on the chain behind the adapter.

use async_trait::async_trait;
use futures::StreamExt;
use templar_protocol::{
    keys::{Hotkey, Keypair},
    roster::{Neuron, Snapshot, Uid},
};

use crate::{
    chain::{Chain, Head, Hyperparams},
    dev::{DevChain, DevConfig, Timestamps},
    error::ChainError,
};

/// Whoever operates the chain behind the adapter.
#[async_trait]
pub trait Operator: Sync {
    /// Registers a hotkey with a stake; it is on chain with the next block.
    async fn register(&self, hotkey: Hotkey, stake_rao: u64) -> Result<(), ChainError>;
    /// Makes and finalises one block, with everything that is in the pool.
    async fn produce_block(&self) -> Result<Head, ChainError>;
}

#[async_trait]
impl Operator for DevChain {
    async fn register(&self, hotkey: Hotkey, stake_rao: u64) -> Result<(), ChainError> {
        DevChain::register(self, hotkey, stake_rao).map(drop)
    }

    async fn produce_block(&self) -> Result<Head, ChainError> {
        DevChain::produce_block(self)
    }
}

/// Settings with which the suite is fast. Others work too, if at most two neurons get permits and the tempo is
/// longer than the rate limit.
pub fn dev_config() -> DevConfig {
    DevConfig {
        seed: 7,
        tempo_blocks: 20,
        weights_rate_limit_blocks: 3,
        commitment_quota_bytes: 700,
        max_validators: 2,
        timestamps: Timestamps::Stepped { genesis_ms: 1_000, step_ms: 12_000 },
        ..DevConfig::default()
    }
}

/// Runs the whole suite on the fresh subnet `netuid`.
pub async fn check_chain(chain: &dyn Chain, operator: &dyn Operator, netuid: u16) {
    let suite = Suite { chain, operator, netuid, hyperparams: must(chain.hyperparams(netuid).await) };
    let keys: Vec<Keypair> = (0..4).map(|n| Keypair::insecure_dev(99, &format!("conformance {n}"))).collect();
    for (key, stake_rao) in keys.iter().zip([2_000_000, 1_000_000, 500_000, 0]) {
        must(operator.register(key.hotkey(), stake_rao).await);
    }
    let registered = must(operator.produce_block().await);

    suite.heads_and_hashes(registered).await;
    suite.permits(&keys, registered.number).await;
    suite.commitments_and_history(&keys[3]).await;
    suite.commitment_limits(&keys[3]).await;
    suite.weights(&keys).await;
    suite.strangers().await;
}

struct Suite<'a> {
    chain: &'a dyn Chain,
    operator: &'a dyn Operator,
    netuid: u16,
    hyperparams: Hyperparams,
}

impl Suite<'_> {
    async fn heads_and_hashes(&self, head: Head) {
        assert_eq!(must(self.chain.head().await), head, "the head is the newest block");
        assert_eq!(must(self.chain.block_hash(head.number).await), head.hash);
        assert_eq!(must(self.chain.block_hash(0).await), must(self.chain.genesis().await));
        let future = head.number + 1;
        let refused = self.chain.block_hash(future).await;
        assert!(matches!(refused, Err(ChainError::NotFinalised { block, .. }) if block == future), "{refused:?}");
        let refused = self.chain.snapshot(self.netuid, future).await;
        assert!(matches!(refused, Err(ChainError::NotFinalised { .. })), "{refused:?}");
        let refused = self.chain.hyperparams(self.netuid + 1).await;
        assert!(matches!(refused, Err(ChainError::UnknownSubnet { .. })), "{refused:?}");

        let mut heads = must(self.chain.heads().await);
        assert_eq!(heads.next().await, Some(head), "the stream starts with the current head");
        let next = must(self.operator.produce_block().await);
        assert_eq!(heads.next().await, Some(next));
        assert!(next.number == head.number + 1 && next.timestamp_ms > head.timestamp_ms);
        // Who does not read sees the newest, after at most one that was already under way.
        let mut newest = next;
        for _ in 0..3 {
            newest = must(self.operator.produce_block().await);
        }
        let mut seen = heads.next().await.expect("the connection holds");
        while seen != newest {
            assert!(next.number < seen.number && seen.number < newest.number, "heads only go forward");
            seen = heads.next().await.expect("the connection holds");
        }
    }

    async fn permits(&self, keys: &[Keypair], registered: u64) {
        let snapshot = self.snapshot(registered).await;
        assert_eq!(snapshot.block_hash, must(self.chain.block_hash(registered).await));
        let uids: Vec<Uid> = snapshot.neurons.iter().map(|neuron| neuron.entry.uid).collect();
        assert!(uids.is_sorted(), "neurons come in the order of uids");
        let snapshot = self.newest().await;
        let permits: Vec<bool> = keys.iter().map(|key| find(&snapshot, key).permit).collect();
        assert_eq!(permits, [true, true, false, false], "permits go to the highest stakes");
        assert!(self.snapshot(0).await.neurons.is_empty(), "nobody was there at genesis");
    }

    async fn commitments_and_history(&self, key: &Keypair) {
        let first = vec![vec![1; 128], vec![], vec![3]];
        self.commit(key, first.clone()).await.expect("a commitment of the full shape is taken");
        let before = must(self.chain.head().await).number;
        assert_eq!(find(&self.snapshot(before).await, key).commitment, None, "in the pool is not on chain");
        let included = must(self.operator.produce_block().await).number;
        let second = vec![vec![2]];
        self.commit(key, vec![vec![9]]).await.expect("the older one in the pool");
        self.commit(key, second.clone()).await.expect("the newer one takes its place");
        let replaced = must(self.operator.produce_block().await).number;
        must(self.operator.produce_block().await);

        for (block, wanted) in
            [(before, None), (included, Some(first)), (replaced, Some(second.clone())), (replaced + 1, Some(second))]
        {
            let commitment = find(&self.snapshot(block).await, key).commitment.clone();
            assert_eq!(commitment.as_ref().map(|known| known.fields.clone()), wanted, "as of block {block}");
            let changed_at = if block >= replaced { replaced } else { included };
            assert!(commitment.is_none_or(|known| known.block == changed_at));
        }
    }

    async fn commitment_limits(&self, key: &Keypair) {
        for shape in [vec![], vec![vec![1]; 4], vec![vec![1; 129]]] {
            let refused = self.commit(key, shape).await;
            assert!(matches!(refused, Err(ChainError::CommitmentShape { .. })), "{refused:?}");
        }
        // From the start of an epoch: as many of the cheapest as the quota has room for, and none more.
        let tempo = self.hyperparams.tempo_blocks;
        while !(must(self.chain.head().await).number + 1).is_multiple_of(tempo) {
            must(self.operator.produce_block().await);
        }
        let room = self.hyperparams.commitment_quota_bytes / self.hyperparams.commitment_min_cost_bytes;
        for n in 0..room {
            self.commit(key, vec![vec![n as u8]]).await.expect("there is room in the quota");
            must(self.operator.produce_block().await);
        }
        let refused = self.commit(key, vec![vec![0]]).await;
        assert!(matches!(refused, Err(ChainError::QuotaExceeded { .. })), "{refused:?}");
        while !(must(self.chain.head().await).number + 1).is_multiple_of(tempo) {
            must(self.operator.produce_block().await);
        }
        self.commit(key, vec![vec![0]]).await.expect("the next epoch has a quota of its own");
    }

    async fn weights(&self, keys: &[Keypair]) {
        let newest = self.newest().await;
        let [good, poor] = [2, 3].map(|n| find(&newest, &keys[n]).entry.uid);
        let unknown = Uid(newest.neurons.len() as u16);
        let (validator, miner) = (&keys[0], &keys[3]);
        let refused = self.set_weights(miner, vec![(good, 1)]).await;
        assert!(matches!(refused, Err(ChainError::NoPermit { .. })), "{refused:?}");
        let refused = self.set_weights(validator, vec![(good, 1), (good, 2)]).await;
        assert!(matches!(refused, Err(ChainError::DuplicateUid { uid }) if uid == good), "{refused:?}");
        let refused = self.set_weights(validator, vec![(unknown, 1)]).await;
        assert!(matches!(refused, Err(ChainError::UnknownUid { uid }) if uid == unknown), "{refused:?}");
        let refused = self.set_weights(validator, vec![(good, 1); newest.neurons.len() + 1]).await;
        assert!(matches!(refused, Err(ChainError::TooManyWeights { .. })), "{refused:?}");

        for key in &keys[..2] {
            self.set_weights(key, vec![(good, 3), (poor, 1)]).await.expect("a validator may set weights");
        }
        let set_at = must(self.operator.produce_block().await).number;
        let limit = self.hyperparams.weights_rate_limit_blocks;
        while must(self.chain.head().await).number + 1 < set_at + limit {
            let refused = self.set_weights(validator, vec![(good, 1)]).await;
            assert!(matches!(refused, Err(ChainError::RateLimited { .. })), "{refused:?}");
            must(self.operator.produce_block().await);
        }
        self.set_weights(validator, vec![(good, 3), (poor, 1)]).await.expect("the rate limit has passed");

        // Within an epoch both validators' view becomes incentive, 3 to 1.
        for _ in 0..=self.hyperparams.tempo_blocks {
            must(self.operator.produce_block().await);
        }
        let newest = self.newest().await;
        let [good, poor] = [2, 3].map(|n| f64::from(find(&newest, &keys[n]).incentive));
        assert!((good / poor - 3.0).abs() < 0.01, "incentive follows the weights: {good} to {poor}");
    }

    async fn strangers(&self) {
        let stranger = Keypair::insecure_dev(99, "stranger");
        let refused = self.commit(&stranger, vec![vec![1]]).await;
        assert!(matches!(refused, Err(ChainError::NotRegistered { .. })), "{refused:?}");
        let refused = self.set_weights(&stranger, vec![(Uid(0), 1)]).await;
        assert!(matches!(refused, Err(ChainError::NotRegistered { .. })), "{refused:?}");
    }

    async fn commit(&self, key: &Keypair, fields: Vec<Vec<u8>>) -> Result<(), ChainError> {
        self.chain.submit_commitment(key, self.netuid, fields).await
    }

    async fn set_weights(&self, key: &Keypair, weights: Vec<(Uid, u16)>) -> Result<(), ChainError> {
        self.chain.submit_weights(key, self.netuid, weights, self.hyperparams.weights_version_key).await
    }

    async fn snapshot(&self, block: u64) -> Snapshot {
        must(self.chain.snapshot(self.netuid, block).await)
    }

    async fn newest(&self) -> Snapshot {
        self.snapshot(must(self.chain.head().await).number).await
    }
}

fn find<'a>(snapshot: &'a Snapshot, key: &Keypair) -> &'a Neuron {
    let neuron = snapshot.neurons.iter().find(|neuron| neuron.entry.hotkey == key.hotkey());
    neuron.expect("the suite's neurons are registered")
}

fn must<T>(result: Result<T, ChainError>) -> T {
    match result {
        Ok(value) => value,
        Err(error) => panic!("the chain refused what it must do: {error}"),
    }
}

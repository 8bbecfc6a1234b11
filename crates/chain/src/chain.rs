//! The seam between nodes and a chain. It offers what a Substrate chain with subtensor's pallets offers, no more.

use async_trait::async_trait;
use futures::stream::BoxStream;
use serde::{Deserialize, Serialize};
use templar_protocol::{
    hash::Hash32,
    keys::Keypair,
    roster::{Snapshot, Uid},
};

use crate::error::ChainError;

/// A finalised block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    pub number: u64,
    pub hash: Hash32,
    /// Milliseconds since 1970, as the block's author says. It is for people; no rule reads it.
    pub timestamp_ms: u64,
}

/// What a subnet demands of its neurons.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hyperparams {
    /// Blocks from one epoch (permits, incentive, emission) to the next.
    pub tempo_blocks: u64,
    /// Fewest blocks between two weight settings of one validator.
    pub weights_rate_limit_blocks: u64,
    /// Bytes of commitments that one hotkey may publish in an epoch.
    pub commitment_quota_bytes: u64,
    /// Fewest bytes that one commitment counts against the quota, however short it is.
    pub commitment_min_cost_bytes: u64,
    /// Fields of one commitment.
    pub commitment_max_fields: u32,
    /// Bytes of one field.
    pub commitment_max_field_bytes: u32,
    /// Permits to set weights, given to the highest stakes.
    pub max_validators: u16,
    /// Neurons of the subnet; beyond it a registration replaces somebody.
    pub max_uids: u16,
    /// Blocks after its registration in which a neuron cannot be replaced.
    pub immunity_blocks: u64,
    /// Weights set with a lower version key are refused; 0 accepts all.
    pub weights_version_key: u64,
    /// Fewest weights in one setting.
    pub min_allowed_weights: u16,
    /// Least stake that may set weights.
    pub weights_min_stake_rao: u64,
}

/// A chain as nodes see it. Everything read is finalised.
///
/// Every operation may be cancelled by dropping its future. A read leaves nothing behind. A submission that was dropped
/// may still reach the pool; whether it did is read from a later snapshot, as after any other.
#[async_trait]
pub trait Chain: Send + Sync {
    /// The hash of block 0: which chain this is.
    async fn genesis(&self) -> Result<Hash32, ChainError>;

    /// The newest finalised block.
    async fn head(&self) -> Result<Head, ChainError>;

    /// Newest finalised heads as they come, starting with the current one. A slow reader sees the newest, not all:
    /// heads between may be skipped. Ends when the connection is lost; then ask again.
    async fn heads(&self) -> Result<BoxStream<'static, Head>, ChainError>;

    /// The hash of a finalised block; [`ChainError::NotFinalised`] if it is not one yet.
    async fn block_hash(&self, number: u64) -> Result<Hash32, ChainError>;

    /// The subnet as of the end of a finalised block: neurons in the order of their uids, commitments included.
    async fn snapshot(&self, netuid: u16, block: u64) -> Result<Snapshot, ChainError>;

    async fn hyperparams(&self, netuid: u16) -> Result<Hyperparams, ChainError>;

    /// Hands a commitment (1 ..= 3 fields of up to 128 bytes, replacing all fields of this hotkey) to the pool.
    ///
    /// `Ok` means accepted by the pool, *not* included: inclusion is read from a later snapshot. (On Substrate:
    /// `author_submitExtrinsic`.) After a lost connection a call may be included twice; that changes nothing but the
    /// quota.
    async fn submit_commitment(&self, key: &Keypair, netuid: u16, fields: Vec<Vec<u8>>) -> Result<(), ChainError>;

    /// Hands weights to the pool. The chain scales them so that the largest becomes 65535. `Ok` as with commitments.
    async fn submit_weights(
        &self,
        key: &Keypair,
        netuid: u16,
        weights: Vec<(Uid, u16)>,
        version_key: u64,
    ) -> Result<(), ChainError>;
}

//! What a chain refuses, whatever the chain: one enum for the whole seam, because every adapter reports the same rules.
//! What only one adapter can know (its database, its connection) is behind [`ChainError::Adapter`].

use std::error::Error;

use serde::{Deserialize, Serialize};
use templar_protocol::{keys::Hotkey, roster::Uid};

/// Why a chain refused or failed. Rules can be serialised, so that they reach a remote caller as the same value.
#[derive(Debug, thiserror::Error, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
#[non_exhaustive]
pub enum ChainError {
    // What was asked for does not exist.
    #[error("block {block} is not finalised yet (the newest is {head}); wait for it and ask again")]
    NotFinalised { block: u64, head: u64 },
    #[error("this chain has no subnet {netuid}, only {known}; check netuid in the run file")]
    UnknownSubnet { netuid: u16, known: u16 },

    // The caller.
    #[error("{hotkey} is not registered on the subnet; register it, or wait for the block that does")]
    NotRegistered { hotkey: Hotkey },
    #[error("the signature is not by {hotkey} over this call on this chain; check the key file and the chain")]
    BadSignature { hotkey: Hotkey },
    #[error("nonce {nonce} of {hotkey} was used before; sign the call again with nonce {next} or higher")]
    StaleNonce { hotkey: Hotkey, nonce: u64, next: u64 },

    // Commitments.
    #[error(
        "a commitment has 1 to 3 fields of up to 128 bytes, this one has {fields}, the longest of {longest_bytes} bytes"
    )]
    CommitmentShape { fields: u64, longest_bytes: u64 },
    #[error(
        "a commitment of {cost_bytes} bytes exceeds the quota: {used_bytes} of {quota_bytes} are used; wait for block {resets_at_block}"
    )]
    QuotaExceeded { cost_bytes: u64, used_bytes: u64, quota_bytes: u64, resets_at_block: u64 },

    // Weights, in the order in which they are checked.
    #[error("{weights} weights for {neurons} neurons; send at most one per neuron")]
    TooManyWeights { weights: u64, neurons: u64 },
    #[error("setting weights takes a stake of {needed_rao} rao, {hotkey} has {stake_rao}; add stake")]
    StakeTooLow { hotkey: Hotkey, stake_rao: u64, needed_rao: u64 },
    #[error("weights of version key {version_key} are refused, the subnet demands {needed}; update this node")]
    VersionKeyTooOld { version_key: u64, needed: u64 },
    #[error("weights were set too recently; set them again from block {allowed_at_block} on")]
    RateLimited { allowed_at_block: u64 },
    #[error("{hotkey} has no validator permit; permits go to the highest stakes at the next epoch")]
    NoPermit { hotkey: Hotkey },
    #[error("{uid} is weighted twice; send one weight per neuron")]
    DuplicateUid { uid: Uid },
    #[error("{uid} does not exist; weigh neurons of a recent snapshot")]
    UnknownUid { uid: Uid },
    #[error("{weights} weights are fewer than the {needed} that the subnet demands")]
    TooFewWeights { weights: u64, needed: u64 },

    // What only the adapter knows.
    #[error("{source}")]
    #[serde(skip)]
    Adapter {
        retry: Retry,
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
}

/// Whether a failure may be temporary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    /// The same request may succeed in a moment without anybody changing anything.
    Later,
    /// Somebody has to change something first.
    Useless,
}

impl ChainError {
    /// A failure that only an adapter knows; its message says what to do next.
    pub fn adapter(retry: Retry, source: impl Error + Send + Sync + 'static) -> Self {
        Self::Adapter { retry, source: Box::new(source) }
    }

    /// The adapter's own error, for those who know which adapter they use.
    pub fn adapter_error<E: Error + 'static>(&self) -> Option<&E> {
        match self {
            Self::Adapter { source, .. } => source.downcast_ref(),
            _ => None,
        }
    }

    /// Whether the same request may succeed in a moment without anybody changing anything.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::NotFinalised { .. } | Self::StaleNonce { .. } => true,
            Self::Adapter { retry, .. } => *retry == Retry::Later,
            _ => false,
        }
    }
}

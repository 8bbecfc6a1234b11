//! What can go wrong with a chain. One enum for the whole seam, because every adapter reports the same refusals; it
//! is serialisable, so that a refusal reaches a remote caller as the same value that it was on the server.

use jsonrpsee::types::ErrorObjectOwned;
use serde::{Deserialize, Serialize};
use templar_protocol::{hash::Hash32, keys::Hotkey, roster::Uid};

/// Why a chain refused or failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
#[non_exhaustive]
pub enum ChainError {
    // What was asked for is not there.
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
    #[error("the call of {bytes} bytes is not a signed call in canonical encoding ({reason}); check the versions")]
    MalformedCall { bytes: u64, reason: String },

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
    #[error("{weights} weights for {neurons} neurons; send at most one each")]
    TooManyWeights { weights: u64, neurons: u64 },
    #[error("setting weights takes a stake of {needed_rao} rao, {hotkey} has {stake_rao}; add stake")]
    StakeTooLow { hotkey: Hotkey, stake_rao: u64, needed_rao: u64 },
    #[error("weights of version key {version_key} are refused, the subnet demands {needed}; update this node")]
    VersionKeyTooOld { version_key: u64, needed: u64 },
    #[error("weights were set too recently; set them again from block {allowed_at_block} on")]
    RateLimited { allowed_at_block: u64 },
    #[error("{hotkey} has no validator permit; permits go to the highest stakes at the next epoch")]
    NoPermit { hotkey: Hotkey },
    #[error("{uid} is weighted twice; send one weight a neuron")]
    DuplicateUid { uid: Uid },
    #[error("{uid} does not exist; weigh neurons of a recent snapshot")]
    UnknownUid { uid: Uid },
    #[error("{weights} weights are fewer than the {needed} that the subnet demands")]
    TooFewWeights { weights: u64, needed: u64 },

    // Registration.
    #[error("all {uids} places of the subnet are taken by validators or neurons too young to be replaced; try later")]
    SubnetFull { uids: u64 },
    #[error("a stake of {stake_rao} rao is more than there can be ({max_rao})")]
    StakeTooHigh { stake_rao: u64, max_rao: u64 },

    // The dev chain itself.
    #[error("dev chain setting {setting} is {found}, allowed is {allowed}")]
    InvalidConfig { setting: String, found: String, allowed: String },
    #[error("{path} holds a dev chain with other settings ({differing}); use the same settings, or another file")]
    OtherConfig { path: String, differing: String },
    #[error("{path} is no dev chain of this version ({reason}); move it away to start a new chain")]
    NotADevChain { path: String, reason: String },
    #[error(
        "the dev chain's database failed while it {doing}: {reason}; check the disk, and that no other process uses the file"
    )]
    Storage { doing: String, reason: String },
    #[error("the dev chain already keeps the pace of {participants} hotkeys and takes no more unregistered ones")]
    TooManyParticipants { participants: u64 },

    // The way to it.
    #[error("{url} is no address of a chain; give it as ws://HOST:PORT")]
    InvalidUrl { url: String },
    #[error("no chain answers at {url} ({reason}); check that it runs and can be reached")]
    Connection { url: String, reason: String },
    #[error("{url} did not answer {method} in {waited_s} s; check the load of the chain's machine")]
    Timeout { url: String, method: String, waited_s: u64 },
    #[error("{url} answered {method} with something else than promised ({reason}); check its version")]
    Protocol { url: String, method: String, reason: String },
    #[error("{url} now serves another chain ({found} instead of {expected}); check the address and restart")]
    OtherChain { url: String, expected: Hash32, found: Hash32 },
    #[error("cannot serve the chain at {address}: {reason}; choose another address")]
    Bind { address: String, reason: String },
}

impl ChainError {
    /// Whether the same request may succeed in a moment without anybody changing anything.
    pub fn is_transient(&self) -> bool {
        matches!(
            self,
            Self::NotFinalised { .. } | Self::StaleNonce { .. } | Self::Connection { .. } | Self::Timeout { .. }
        )
    }

    /// The JSON-RPC error code of this kind, in the range that JSON-RPC leaves to servers' own use. Codes are never
    /// reused; the value itself travels in the error's data.
    fn code(&self) -> i32 {
        match self {
            Self::NotFinalised { .. } => 1001,
            Self::UnknownSubnet { .. } => 1002,
            Self::NotRegistered { .. } => 1101,
            Self::BadSignature { .. } => 1102,
            Self::StaleNonce { .. } => 1103,
            Self::MalformedCall { .. } => 1104,
            Self::CommitmentShape { .. } => 1201,
            Self::QuotaExceeded { .. } => 1202,
            Self::TooManyWeights { .. } => 1301,
            Self::StakeTooLow { .. } => 1302,
            Self::VersionKeyTooOld { .. } => 1303,
            Self::RateLimited { .. } => 1304,
            Self::NoPermit { .. } => 1305,
            Self::DuplicateUid { .. } => 1306,
            Self::UnknownUid { .. } => 1307,
            Self::TooFewWeights { .. } => 1308,
            Self::SubnetFull { .. } => 1401,
            Self::StakeTooHigh { .. } => 1402,
            Self::InvalidConfig { .. } => 1501,
            Self::OtherConfig { .. } => 1502,
            Self::NotADevChain { .. } => 1503,
            Self::Storage { .. } => 1504,
            Self::TooManyParticipants { .. } => 1505,
            Self::InvalidUrl { .. } => 1601,
            Self::Connection { .. } => 1602,
            Self::Timeout { .. } => 1603,
            Self::Protocol { .. } => 1604,
            Self::OtherChain { .. } => 1605,
            Self::Bind { .. } => 1606,
        }
    }

    /// The value that a server put into a JSON-RPC error, if it did and code and value agree.
    pub(crate) fn from_wire(error: &ErrorObjectOwned) -> Option<Self> {
        let value: Self = serde_json::from_str(error.data()?.get()).ok()?;
        (value.code() == error.code()).then_some(value)
    }
}

impl From<ChainError> for ErrorObjectOwned {
    fn from(error: ChainError) -> Self {
        ErrorObjectOwned::owned(error.code(), error.to_string(), Some(&error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_survives_the_wire_and_a_forged_one_does_not() {
        let refusal =
            ChainError::QuotaExceeded { cost_bytes: 100, used_bytes: 400, quota_bytes: 450, resets_at_block: 20 };
        let wire = ErrorObjectOwned::from(refusal.clone());
        let text = serde_json::to_string(&wire).unwrap();
        let received: ErrorObjectOwned = serde_json::from_str(&text).unwrap();
        assert_eq!(ChainError::from_wire(&received), Some(refusal.clone()));

        let other_code = ErrorObjectOwned::owned(1201, "quota", Some(&refusal));
        assert_eq!(ChainError::from_wire(&other_code), None);
        assert_eq!(ChainError::from_wire(&ErrorObjectOwned::owned(1202, "quota", None::<()>)), None);
    }
}

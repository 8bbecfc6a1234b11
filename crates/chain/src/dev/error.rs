//! What only the dev chain knows of its failures. It reaches callers of the seam behind [`ChainError::Adapter`].

use serde::{Deserialize, Serialize};

use crate::{
    call::MalformedCall,
    error::{ChainError, Retry},
};

/// Why the dev chain cannot be opened, or cannot do what only it does.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
#[non_exhaustive]
pub enum DevError {
    #[error("{0}")]
    MalformedCall(MalformedCall),
    #[error("all {uids} places of the subnet are taken by validators or neurons too young to be replaced; try later")]
    SubnetFull { uids: u64 },
    #[error("a stake of {stake_rao} rao is more than there can be ({max_rao})")]
    StakeTooHigh { stake_rao: u64, max_rao: u64 },
    #[error("dev chain setting {setting} is {found}, allowed is {allowed}")]
    InvalidConfig { setting: String, found: String, allowed: String },
    #[error("{path} holds a dev chain with other settings ({differing}); use the same settings, or another file")]
    OtherConfig { path: String, differing: String },
    #[error("{path} does not hold a dev chain of this version ({reason}); move it away to start a new chain")]
    NotADevChain { path: String, reason: String },
    #[error(
        "the dev chain's database failed while it {doing}: {reason}; check the disk, and that no other process uses the file"
    )]
    Storage { doing: String, reason: String },
    #[error("the dev chain already keeps the pace of {participants} hotkeys and takes no more unregistered ones")]
    TooManyParticipants { participants: u64 },
}

impl From<DevError> for ChainError {
    fn from(error: DevError) -> Self {
        Self::adapter(Retry::Useless, error)
    }
}

impl From<MalformedCall> for ChainError {
    fn from(error: MalformedCall) -> Self {
        DevError::MalformedCall(error).into()
    }
}

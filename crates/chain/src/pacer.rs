//! Who tells a paced development chain that a node has nothing to do for a while.
//!
//! Only a development chain waits for its nodes, so this is beside the seam and not in it.

use templar_protocol::keys::Hotkey;

use crate::{dev::DevChain, error::ChainError, rpc::RpcChain};

/// A development chain that a node can pace ([`crate::BlockTime::Paced`]), in this process or behind JSON-RPC.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Pacer {
    Dev(DevChain),
    Rpc(RpcChain),
}

impl Pacer {
    /// Says that this hotkey has nothing to do before block `through_block` ends. The newest call counts, so a
    /// restarted node may take it back. A chain that makes its blocks by time alone takes note and does nothing.
    pub async fn pace(&self, hotkey: &Hotkey, through_block: u64) -> Result<(), ChainError> {
        match self {
            Self::Dev(chain) => chain.pace(*hotkey, through_block),
            Self::Rpc(chain) => chain.pace(hotkey, through_block).await,
        }
    }
}

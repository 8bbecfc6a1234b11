//! One dev chain for many processes: JSON-RPC 2.0 over WebSocket (single requests also over HTTP).
//!
//! | method | parameters | result |
//! |---|---|---|
//! | `chain_genesis` | | hash of block 0 |
//! | `chain_head` | | [`crate::Head`] |
//! | `chain_blockHash` | number | hash |
//! | `chain_subscribeHeads` | | a subscription to heads, newest first of all |
//! | `subnet_snapshot` | netuid, block | a snapshot, Borsh in hexadecimal |
//! | `subnet_hyperparams` | netuid | [`crate::Hyperparams`] |
//! | `author_submit` | a signed call, Borsh in hexadecimal | null: it is in the pool |
//! | `dev_nonce` | hotkey | lowest nonce of the hotkey's next call |
//! | `dev_pace` | hotkey, block | null |
//!
//! Hashes and hotkeys are 64 hexadecimal digits. Refusals are error objects whose code names the kind and whose data
//! is the [`crate::ChainError`]. The `dev_` methods are not signed: they are for networks of one owner.
//! Nobody registers over the wire: who takes part is up to whoever holds the chain.

mod client;
mod server;

pub use client::RpcChain;
pub use server::RpcServer;

/// The longest request: a signed call in hexadecimal and its frame.
const MAX_REQUEST_BYTES: u32 = 8 * 1024;
/// The longest answer: a snapshot of 256 neurons (some 550 bytes each, in hexadecimal) with room to spare.
const MAX_RESPONSE_BYTES: u32 = 1024 * 1024;

mod method {
    pub(super) const GENESIS: &str = "chain_genesis";
    pub(super) const HEAD: &str = "chain_head";
    pub(super) const BLOCK_HASH: &str = "chain_blockHash";
    pub(super) const SUBSCRIBE_HEADS: &str = "chain_subscribeHeads";
    pub(super) const NEW_HEAD: &str = "chain_newHead";
    pub(super) const UNSUBSCRIBE_HEADS: &str = "chain_unsubscribeHeads";
    pub(super) const SNAPSHOT: &str = "subnet_snapshot";
    pub(super) const HYPERPARAMS: &str = "subnet_hyperparams";
    pub(super) const SUBMIT: &str = "author_submit";
    pub(super) const NONCE: &str = "dev_nonce";
    pub(super) const PACE: &str = "dev_pace";
}

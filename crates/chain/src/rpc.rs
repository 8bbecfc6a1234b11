//! One dev chain for many processes: JSON-RPC 2.0 over WebSocket (single requests also over HTTP).
//!
//! | method | parameters | result |
//! |---|---|---|
//! | `chain_genesis` | | hash of block 0 |
//! | `chain_head` | | [`crate::Head`] |
//! | `chain_blockHash` | number | hash |
//! | `chain_subscribeHeads` | | a subscription to heads, the newest one first |
//! | `subnet_snapshot` | netuid, block | a snapshot, Borsh in hexadecimal |
//! | `subnet_hyperparams` | netuid | [`crate::Hyperparams`] |
//! | `subnet_submit` | a signed call, Borsh in hexadecimal | null: it is in the pool |
//! | `dev_nonce` | hotkey | lowest nonce of the hotkey's next call |
//! | `dev_pace` | hotkey, block | null |
//! | `dev_neurons` | | all [`crate::NeuronInfo`]s: what neurons were paid |
//!
//! The methods are our own: no Substrate client can talk to this server, and [`RpcChain`] cannot talk to a Substrate
//! node. Hashes and hotkeys are 64 hexadecimal digits. A refusal is an error object whose code names the kind and whose
//! data is the [`crate::ChainError`] or [`crate::DevError`]. The `dev_` methods are not signed: they are for networks
//! of one owner. Nobody registers over the wire: who takes part is up to whoever holds the chain.

mod client;
mod error;
mod server;
mod wire;

pub use client::{Absent, RpcChain};
pub use error::RpcError;
pub use server::RpcServer;

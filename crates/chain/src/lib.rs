//! The chain as Templar sees it: a clock, identities, a bulletin board of 128-byte fields, and pay.
//!
//! Nodes know the [`Chain`] trait and nothing below it. It asks for no more than Bittensor offers, so a client of a
//! real Substrate node fits behind it: finalised heads, block hashes, the state of a subnet as of a block, and signed
//! calls that are handed to a pool and may or may not be included.
//!
//! | module | what it is |
//! |---|---|
//! | [`chain`] | the seam: the [`Chain`] trait and its values |
//! | [`layer`] | [`ChainLayer`]: a chain over another chain that changes one thing |
//! | [`error`] | [`ChainError`]: the rules that every chain has, and one variant for what only an adapter knows |
//! | [`call`] | what a hotkey can ask of the dev chain, and how it is signed |
//! | [`dev`] | [`DevChain`]: the embedded development chain, persisted in SQLite |
//! | [`yuma`] | the epoch: from validators' weights to incentive and dividends, as a pure function |
//! | [`pacing`] | who decides when a block is made: an interval, or the participants themselves |
//! | [`pacer`] | [`Pacer`]: tells a paced development chain that a node has nothing to do |
//! | [`rpc`] | [`RpcServer`] and [`RpcChain`]: one dev chain shared by many processes |
//! | [`conformance`] | what every adapter of [`Chain`] must do, as one suite |
//!
//! ```
//! # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
//! use templar_chain::{Chain, DevChain, DevConfig};
//! use templar_protocol::keys::Keypair;
//!
//! let config = DevConfig { netuid: 3, ..DevConfig::default() };
//! let chain = DevChain::open(None, config)?;
//! let miner = Keypair::insecure_dev(1, "miner");
//! chain.register(miner.hotkey(), 0)?;
//! chain.produce_block()?;
//!
//! // Accepted by the pool; it is on chain once a later snapshot shows it.
//! chain.submit_commitment(&miner, 3, vec![b"my bucket".to_vec()]).await?;
//! let head = chain.produce_block()?;
//! let snapshot = chain.snapshot(3, head.number).await?;
//! assert_eq!(snapshot.neurons[0].commitment.as_ref().unwrap().fields[0], b"my bucket");
//! # Ok::<(), templar_chain::ChainError>(())
//! # }).unwrap();
//! ```

pub mod call;
pub mod chain;
pub mod conformance;
pub mod dev;
pub mod error;
pub mod layer;
pub mod pacer;
pub mod pacing;
pub mod rpc;
pub mod yuma;

pub use chain::{Chain, Head, Hyperparams};
pub use dev::{DevChain, DevConfig, DevError, NeuronInfo, Timestamps};
pub use error::{ChainError, Retry};
pub use layer::ChainLayer;
pub use pacer::Pacer;
pub use pacing::{BlockTime, run_blocks};
pub use rpc::{Absent, RpcChain, RpcError, RpcServer};

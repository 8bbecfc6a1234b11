//! Miner and validator as state machines over the seams.
//!
//! A node knows the chain, its store and its trainer only as traits, so the same code runs against a virtual clock and
//! an in-memory cloud in a simulation, and against an embedded chain and a real S3 server in `templar demo`; a client
//! for Bittensor is still to come.
//!
//! [`frame`] is what every duty of a node stands on: its context, the loop over the chain's heads, its local disk and
//! its on-chain record. [`pretrain`] is the duty of miners and validators in a pre-training run. What is due follows
//! from the newest finalised block alone, so a node that was away for an hour takes the same path as one that missed a
//! block.
//!
//! A [`Setup`](pretrain::setup::Setup) is all that a node is made of. It runs until it is told to stop:
//!
//! ```
//! # use std::sync::Arc;
//! # use templar_chain::{DevChain, DevConfig};
//! # use templar_data::{Dataset, Grammar, PrepareOptions, prepare_text};
//! # use templar_node::frame::{context::Compute, files::Disk, local::Saving};
//! # use templar_node::pretrain::{setup::Setup, validator::ValidatorOptions};
//! # use templar_protocol::{keys::Keypair, testing};
//! # use templar_record::event::{Event, Role};
//! # use templar_store::MemoryCloud;
//! # use templar_train::SyntheticTrainer;
//! # use tokio::sync::{mpsc, watch};
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let folder = tempfile::tempdir()?;
//! # let mut spec = testing::spec();
//! # let options = PrepareOptions { seq_len: spec.model.seq_len, ..PrepareOptions::default() };
//! # let manifest = prepare_text(Grammar::new(1).documents(1, 100_000), &folder.path().join("data"), &options, &mut |_| ())?;
//! # let dataset = Dataset::open(&folder.path().join("data"))?;
//! let keypair = Keypair::insecure_dev(1, "miner-0");
//! let chain = DevChain::open(None, DevConfig { netuid: spec.chain.netuid, ..DevConfig::default() })?;
//! chain.register(keypair.hotkey(), 0)?;
//! chain.produce_block()?;
//! # spec.chain.genesis = chain.genesis_hash();
//! # spec.data.manifest = manifest.hash();
//! # spec.theta0.root = spec.layout().theta0_root(&spec.model, spec.theta0.seed);
//! let cloud = MemoryCloud::new();
//! let (events, mut heard) = mpsc::channel(16);
//! let setup = Setup {
//!     name: "miner-0".to_owned(),
//!     role: Role::Miner,
//!     trainer: Box::new(SyntheticTrainer::new(&spec.model, &spec.inner)),
//!     spec,
//!     keypair,
//!     chain: Arc::new(chain),
//!     pacer: None,
//!     store: Arc::new(cloud.store(cloud.create_bucket("miner-0"))),
//!     dataset: Arc::new(dataset),
//!     weights: None,
//!     state_folder: folder.path().join("state"),
//!     disk: Disk::Durable,
//!     saving: Saving::Exact,
//!     options: ValidatorOptions::default(),
//!     compute: Compute::Threads,
//!     events,
//! };
//! let (stop, stopped) = watch::channel(false);
//! let node = tokio::spawn(setup.run(stopped));
//!
//! let first = heard.recv().await.ok_or("the node reports its start")?;
//! assert!(matches!(first.event, Event::Started { role: Role::Miner, settled: 0, .. }));
//! stop.send(true)?;
//! node.await??;
//! # Ok(())
//! # }
//! ```

pub mod frame;
pub mod pretrain;

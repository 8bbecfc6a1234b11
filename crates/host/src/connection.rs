//! Connects a node to its network: what `templar miner` and `templar validator` take, and what a demo gives its nodes.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use templar_chain::{Chain, ChainError, Pacer, RpcChain};
use templar_node::frame::context::Compute;
use templar_node::frame::dataset::{self, DatasetError};
use templar_node::frame::files::Disk;
use templar_node::frame::local::Saving;
use templar_node::pretrain::setup::Setup;
use templar_node::pretrain::validator::ValidatorOptions;
use templar_protocol::bucket::BucketLocator;
use templar_protocol::hash::Hash32;
use templar_protocol::keys::Keypair;
use templar_protocol::run::RunSpec;
use templar_record::event::{NodeEvent, Role};
use templar_store::{OwnBucket, S3Options, S3Store, Store, StoreError, is_loopback};
use templar_train::{CpuTrainer, TorchTrainer, TrainError, Trainer};
use tokio::sync::mpsc;

use crate::engine::Engine;
use crate::home::{Home, replace_secret};

/// Everything that a node is configured with. It gets the rest from the chain and the buckets.
#[derive(Clone, Debug)]
pub struct Connection {
    pub name: String,
    pub role: Role,
    pub spec: RunSpec,
    pub keypair: Keypair,
    /// Endpoint of the development chain's own JSON-RPC.
    pub chain: String,
    pub bucket: OwnBucket,
    /// Where the run's dataset is served.
    pub data: BucketLocator,
    pub data_folder: PathBuf,
    pub state_folder: PathBuf,
    pub engine: Engine,
    pub options: ValidatorOptions,
}

/// Why a node could not join its network.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    #[error("the chain at {url} cannot be used: {source}")]
    Chain { url: String, source: ChainError },
    #[error("the node's bucket cannot be used: {0}")]
    Store(#[from] StoreError),
    #[error("{0}")]
    Dataset(#[from] DatasetError),
    #[error("{0}")]
    Engine(#[from] TrainError),
}

impl Connection {
    /// Writes run, key and buckets into the node's home folder, and returns the command line that starts the node.
    pub fn write(&self, folder: &Path) -> std::io::Result<Vec<String>> {
        let home = Home {
            name: &self.name,
            role: self.role,
            run: &self.spec,
            chain: &self.chain,
            bucket: &self.bucket,
            data: &self.data,
        };
        home.write(folder)?;
        replace_secret(&folder.join("key.hex"), &format!("{}\n", Hash32(*self.keypair.seed())))?;
        let mut arguments = home.arguments(folder);
        arguments.push("--json".to_owned());
        arguments.extend(self.engine.arguments());
        if self.role == Role::Validator {
            arguments.extend(["--validation-samples".to_owned(), self.options.validation_samples.to_string()]);
        }
        Ok(arguments)
    }

    /// Connects, and fetches the dataset if the folder lacks it. It waits for a chain that is down; drop the future to
    /// stop waiting.
    pub async fn open(self, events: mpsc::Sender<NodeEvent>) -> Result<Setup, ConnectError> {
        let chain = RpcChain::wait_for(&self.chain, |absent| tracing::warn!("{absent}")).await;
        let chain = chain.map_err(|source| ConnectError::Chain { url: self.chain.clone(), source })?;
        // Other nodes' buckets are on loopback only in a local network.
        let allow_http_loopback = is_loopback(&self.bucket.locator.endpoint);
        let options = S3Options { allow_http_loopback, ..S3Options::default() };
        let store: Arc<dyn Store> = Arc::new(S3Store::new(self.bucket, options)?);
        let log = |bytes| tracing::info!(bytes, "a piece of the dataset has arrived");
        let dataset = dataset::fetch(&*store, &self.data, &self.spec.data.manifest, &self.data_folder, log).await?;
        let trainer = trainer(self.engine, &self.spec).await?;
        Ok(Setup {
            name: self.name,
            role: self.role,
            spec: self.spec,
            keypair: self.keypair,
            pacer: Some(Pacer::Rpc(chain.clone())),
            chain: Arc::new(chain) as Arc<dyn Chain>,
            store,
            dataset: Arc::new(dataset),
            trainer,
            state_folder: self.state_folder,
            disk: Disk::Durable,
            saving: Saving::Exact,
            options: self.options,
            compute: Compute::Threads,
            events,
        })
    }
}

/// The engine, ready to work. A fault in it shows here, not in the first window.
async fn trainer(engine: Engine, spec: &RunSpec) -> Result<Box<dyn Trainer>, TrainError> {
    let Engine::Torch(options) = engine else {
        return Ok(Box::new(CpuTrainer::new(&spec.model, &spec.inner)));
    };
    let mut trainer = TorchTrainer::new(&spec.model, &spec.inner, options);
    let started = tokio::task::spawn_blocking(move || trainer.start().map(|()| trainer)).await;
    Ok(Box::new(started.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))?))
}

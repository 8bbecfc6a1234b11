//! Connects a node to its network: what `templar miner` and `templar validator` take, and what a demo gives its nodes.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use templar_chain::{Chain, ChainError, Pacer, RpcChain};
use templar_data::Dataset;
use templar_node::frame::context::{Compute, check_chain, registration};
use templar_node::frame::dataset::{self, DatasetError};
use templar_node::frame::error::NodeError;
use templar_node::frame::files::Disk;
use templar_node::frame::local::Saving;
use templar_node::frame::origin::Origin;
use templar_node::frame::waiting::{Pauses, heals};
use templar_node::pretrain::checkpoint::Retention;
use templar_node::pretrain::setup::Setup;
use templar_node::pretrain::validator::ValidatorOptions;
use templar_protocol::bucket::BucketLocator;
use templar_protocol::hash::Hash32;
use templar_protocol::keys::Keypair;
use templar_protocol::run::{RunSpec, Theta0Source};
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
    /// The chain is another, or does not know the hotkey.
    #[error(transparent)]
    Seat(NodeError),
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
            arguments.extend((self.options.retention == Retention::ForGood).then(|| "--archive".to_owned()));
        }
        Ok(arguments)
    }

    /// Connects, and fetches the dataset if the folder lacks it. It waits for a chain that is down; drop the future to
    /// stop waiting.
    pub async fn open(self, events: mpsc::Sender<NodeEvent>) -> Result<Setup, ConnectError> {
        let chain = RpcChain::wait_for(&self.chain, |absent| tracing::warn!("{absent}")).await;
        let chain = chain.map_err(|source| ConnectError::Chain { url: self.chain.clone(), source })?;
        // Before anything is downloaded that this node may have no use for.
        check_chain(&chain, &self.spec).await.map_err(ConnectError::Seat)?;
        registration(&chain, &self.spec, self.keypair.hotkey()).await.map_err(ConnectError::Seat)?;
        // Other nodes' buckets are on loopback only in a local network.
        let allow_http_loopback = is_loopback(&self.bucket.locator.endpoint);
        let options = S3Options { allow_http_loopback, ..S3Options::default() };
        let store: Arc<dyn Store> = Arc::new(S3Store::new(self.bucket, options)?);
        let log = |bytes| tracing::info!(bytes, "a piece of the dataset has arrived");
        let dataset = wait_for_dataset(&*store, &self.data, &self.spec.data.manifest, &self.data_folder, log).await?;
        let weights = match self.spec.theta0.source {
            Theta0Source::Seed => None,
            Theta0Source::Weights => {
                // Runs share nothing; nodes of one run may share this.
                let folder = self.state_folder.join("weights").join(self.spec.theta0.root.to_string());
                Some(Origin { folder, bucket: self.data.clone() })
            }
        };
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
            weights,
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

/// Fetches the dataset, and waits as long as it takes for what heals by itself: a bucket that does not answer, or this
/// machine's clock. Dropping the future stops the wait; what has arrived by then is kept.
async fn wait_for_dataset(
    store: &dyn Store,
    bucket: &BucketLocator,
    manifest: &Hash32,
    folder: &Path,
    mut progress: impl FnMut(u64),
) -> Result<Dataset, DatasetError> {
    let mut pauses = Pauses::new("dataset");
    loop {
        match dataset::fetch(store, bucket, manifest, folder, &mut progress).await {
            Err(DatasetError::Store(error)) if heals(&error) => pauses.wait(&error).await,
            fetched => return fetched,
        }
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

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::time::Duration;

    use async_trait::async_trait;
    use bytes::Bytes;
    use templar_chain::{DevChain, DevConfig, RpcServer};
    use templar_data::{Grammar, PrepareOptions, prepare_text};
    use templar_protocol::testing;
    use templar_store::{MemoryCloud, StoreLayer, dev_credentials};

    use super::*;

    /// Refuses the first reads as a server does whose clock differs from this machine's.
    struct WrongClock {
        below: Arc<dyn Store>,
        refusals: AtomicU32,
    }

    #[async_trait]
    impl StoreLayer for WrongClock {
        fn inner(&self) -> &dyn Store {
            &*self.below
        }

        async fn get(&self, from: &BucketLocator, key: &str, bytes_max: u64) -> Result<Bytes, StoreError> {
            let is_left = |left: u32| left.checked_sub(1);
            if self.refusals.fetch_update(Ordering::Relaxed, Ordering::Relaxed, is_left).is_ok() {
                return Err(StoreError::ClockSkew { bucket: from.bucket.clone(), ahead_s: Some(3600) });
            }
            self.below.get(from, key, bytes_max).await
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_node_waits_for_its_clock_before_it_has_the_dataset_and_not_for_an_object_that_is_missing() {
        let (folder, cloud) = (tempfile::tempdir().unwrap(), MemoryCloud::new());
        let options = PrepareOptions { seq_len: 32, ..PrepareOptions::default() };
        prepare_text(Grammar::new(1).documents(1, 50_000), folder.path(), &options, &mut |_| ()).unwrap();
        let dataset = Dataset::open(folder.path()).unwrap();
        let below: Arc<dyn Store> = Arc::new(cloud.store(cloud.create_bucket("data")));
        dataset::publish(&*below, &dataset).await.unwrap();
        let (bucket, manifest) = (below.own().clone(), dataset.manifest().hash());
        let store = WrongClock { below, refusals: AtomicU32::new(9) };
        let copy = folder.path().join("copy");
        let fetched = wait_for_dataset(&store, &bucket, &manifest, &copy, |_| ()).await.unwrap();
        assert_eq!(fetched.manifest().hash(), manifest);
        let other = wait_for_dataset(&store, &bucket, &Hash32::of(b"other"), &folder.path().join("none"), |_| ()).await;
        assert!(matches!(other, Err(DatasetError::Store(StoreError::NotFound { .. }))), "{other:?}");
    }

    /// Its data bucket does not answer: whoever asked it first would wait for ever.
    #[tokio::test]
    async fn a_node_knows_its_chain_and_its_seat_before_it_downloads_anything() {
        let chain = DevChain::open(None, DevConfig::default()).unwrap();
        let rpc = RpcServer::start(chain.clone(), (Ipv4Addr::LOCALHOST, 0).into()).await.unwrap();
        let (folder, mut spec) = (tempfile::tempdir().unwrap(), testing::spec());
        let locator = BucketLocator { endpoint: "http://127.0.0.1:9".to_owned(), ..testing::bucket() };
        let open = async |spec: &RunSpec| {
            let connection = Connection {
                name: "node".to_owned(),
                role: Role::Miner,
                spec: spec.clone(),
                keypair: Keypair::insecure_dev(1, "node"),
                chain: rpc.url(),
                bucket: OwnBucket { locator: locator.clone(), write: dev_credentials(1, "node").0 },
                data: locator.clone(),
                data_folder: folder.path().join("dataset"),
                state_folder: folder.path().join("state"),
                engine: Engine::BuiltIn,
                options: ValidatorOptions::default(),
            };
            let opened = connection.open(mpsc::channel(1).0);
            tokio::time::timeout(Duration::from_secs(30), opened).await.expect("it went to the bucket first").err()
        };
        let error = open(&spec).await;
        assert!(matches!(error, Some(ConnectError::Seat(NodeError::WrongChain { .. }))), "{error:?}");
        spec.chain.genesis = chain.genesis_hash();
        let error = open(&spec).await;
        assert!(matches!(error, Some(ConnectError::Seat(NodeError::NotRegistered { .. }))), "{error:?}");
        rpc.stop().await;
    }
}

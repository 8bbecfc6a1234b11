//! A node's way into its network: what `templar miner` and `templar validator` take, and what a demo gives its nodes.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use templar_chain::{Chain, ChainError, RpcChain};
use templar_node::core::Compute;
use templar_node::dataset::{self, DatasetError};
use templar_node::events::{NodeEvent, Role};
use templar_node::node::Setup;
use templar_node::validator::ValidatorOptions;
use templar_protocol::bucket::BucketLocator;
use templar_protocol::hash::Hash32;
use templar_protocol::keys::Keypair;
use templar_protocol::run::RunSpec;
use templar_store::{Credential, OwnBucket, S3Options, S3Store, Store, StoreError, is_loopback};
use templar_train::{CpuTrainer, TorchTrainer, TrainError, Trainer};
use tokio::sync::mpsc;

use crate::adversary;
use crate::engine::Engine;
use crate::plan::Behaviour;

/// Everything that a node is told. All else it gets from the chain and the buckets.
#[derive(Clone, Debug)]
pub struct Connection {
    pub name: String,
    pub role: Role,
    pub behaviour: Behaviour,
    pub spec: RunSpec,
    pub keypair: Keypair,
    /// JSON-RPC endpoint of the chain.
    pub chain: String,
    pub bucket: OwnBucket,
    /// Where the run's dataset is served.
    pub data: BucketLocator,
    pub data_folder: PathBuf,
    pub state_folder: PathBuf,
    pub engine: Engine,
    pub options: ValidatorOptions,
}

/// A bucket locator as text.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_debug_implementations, reason = "it holds a secret")]
pub struct LocatorFile {
    pub endpoint: String,
    pub bucket: String,
    pub region: String,
    pub access_key_id: String,
    pub secret_access_key: String,
}

/// `bucket.toml`: a node's own bucket. Holds a secret that only its owner may read.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_debug_implementations, reason = "it holds a secret")]
pub struct BucketFile {
    /// The credential that may write.
    pub write: WriteKey,
    /// What the node publishes on chain: where the bucket is, and a credential that may only read.
    pub public: LocatorFile,
}

#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_debug_implementations, reason = "it holds a secret")]
pub struct WriteKey {
    pub access_key_id: String,
    pub secret_access_key: String,
}

impl From<BucketLocator> for LocatorFile {
    fn from(locator: BucketLocator) -> Self {
        let BucketLocator { endpoint, bucket, region, access_key_id, secret_access_key } = locator;
        Self { endpoint, bucket, region, access_key_id, secret_access_key }
    }
}

impl From<LocatorFile> for BucketLocator {
    fn from(file: LocatorFile) -> Self {
        let LocatorFile { endpoint, bucket, region, access_key_id, secret_access_key } = file;
        Self { endpoint, bucket, region, access_key_id, secret_access_key }
    }
}

impl From<OwnBucket> for BucketFile {
    fn from(own: OwnBucket) -> Self {
        let Credential { access_key_id, secret_access_key } = own.write;
        Self { write: WriteKey { access_key_id, secret_access_key }, public: own.locator.into() }
    }
}

impl From<BucketFile> for OwnBucket {
    fn from(file: BucketFile) -> Self {
        let WriteKey { access_key_id, secret_access_key } = file.write;
        Self { locator: file.public.into(), write: Credential { access_key_id, secret_access_key } }
    }
}

/// Why a node did not get into its network.
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

/// What a node finds in its home folder, but for its key.
#[expect(missing_debug_implementations, reason = "it holds a secret")]
pub struct Home<'a> {
    pub name: &'a str,
    pub role: Role,
    pub run: &'a RunSpec,
    pub chain: &'a str,
    pub bucket: &'a OwnBucket,
    pub data: &'a BucketLocator,
}

impl Home<'_> {
    /// Writes the run and the credentials, for the owner's eyes only.
    pub fn write(&self, folder: &Path) -> std::io::Result<()> {
        std::fs::create_dir_all(folder)?;
        std::fs::write(folder.join("run.toml"), self.run.to_toml())?;
        write_secret(&folder.join("bucket.toml"), &to_toml(&BucketFile::from(self.bucket.clone())))?;
        write_secret(&folder.join("data.toml"), &to_toml(&LocatorFile::from(self.data.clone())))
    }

    /// The command line of the node whose home is `folder`.
    pub fn arguments(&self, folder: &Path) -> Vec<String> {
        let verb = match self.role {
            Role::Miner => "miner",
            Role::Validator => "validator",
        };
        let path = |name: &str| folder.join(name).display().to_string();
        let options = [
            ("--run", path("run.toml")),
            ("--name", self.name.to_owned()),
            ("--chain", self.chain.to_owned()),
            ("--key", path("key.hex")),
            ("--bucket", path("bucket.toml")),
            ("--data", path("data.toml")),
            ("--data-folder", path("dataset")),
            ("--state-folder", path("state")),
        ];
        let options = options.into_iter().flat_map(|(option, value)| [option.to_owned(), value]);
        std::iter::once(verb.to_owned()).chain(options).collect()
    }
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
        write_secret(&folder.join("key.hex"), &format!("{}\n", Hash32(*self.keypair.seed())))?;
        let mut arguments = home.arguments(folder);
        arguments.push("--json".to_owned());
        arguments.extend(self.engine.arguments());
        match self.role {
            Role::Miner => arguments.extend(["--behaviour".to_owned(), self.behaviour.to_string()]),
            Role::Validator => {
                arguments.extend(["--validation-samples".to_owned(), self.options.validation_samples.to_string()]);
            }
        }
        Ok(arguments)
    }

    /// Connects, and fetches the dataset if the folder lacks it.
    pub async fn open(self, events: mpsc::Sender<NodeEvent>) -> Result<Setup, ConnectError> {
        let chain = RpcChain::connect(&self.chain).await;
        let chain = chain.map_err(|source| ConnectError::Chain { url: self.chain.clone(), source })?;
        // Only in a local network are the others' buckets on loopback, too.
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
            chain: Arc::new(chain) as Arc<dyn Chain>,
            store: adversary::store(self.behaviour, store),
            dataset: Arc::new(dataset),
            trainer: adversary::trainer(self.behaviour, trainer),
            state_folder: self.state_folder,
            options: self.options,
            compute: Compute::Threads,
            events,
        })
    }
}

/// The engine, ready to work: whatever is wrong with it is found here and not in the first window.
async fn trainer(engine: Engine, spec: &RunSpec) -> Result<Box<dyn Trainer>, TrainError> {
    let Engine::Torch(options) = engine else {
        return Ok(Box::new(CpuTrainer::new(&spec.model, &spec.inner)));
    };
    let mut trainer = TorchTrainer::new(&spec.model, &spec.inner, options);
    let started = tokio::task::spawn_blocking(move || trainer.start().map(|()| trainer)).await;
    Ok(Box::new(started.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))?))
}

fn to_toml<T: Serialize>(value: &T) -> String {
    toml::to_string(value).expect("strings only")
}

/// A new file that only its owner may read.
pub fn write_secret(path: &Path, text: &str) -> std::io::Result<()> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path)?.write_all(text.as_bytes())
}

//! The real parts of a local network, on loopback: the S3 server, the dev chain behind JSON-RPC, the dataset.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use templar_chain::{BlockTime, ChainError, DevChain, RpcServer, run_blocks};
use templar_data::{Dataset, Grammar, OpenError, PrepareError, PrepareOptions, Progress, prepare, prepare_text};
use templar_node::dataset::{self, DatasetError};
use templar_node::events::Role;
use templar_node::validator::ValidatorOptions;
use templar_protocol::run::RunSpec;
use templar_store::{BucketSpec, S3Options, S3Server, S3Store, ServerError, StoreError, dev_credentials};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::connect::Connection;
use crate::engine::Engine;
use crate::plan::{Member, Plan};

/// Bytes of text of the built-in corpus.
const CORPUS_BYTES: u64 = 4_000_000;
const DATA_BUCKET: &str = "data";
/// Held-out samples on which θ is validated after each window.
const VALIDATION_SAMPLES: u64 = 64;

/// What is trained on.
#[derive(Clone, Debug)]
pub enum Text {
    /// The built-in corpus, whose entropy is known.
    BuiltIn,
    /// Files and folders.
    Paths(Vec<PathBuf>),
}

/// Why a local network did not start or run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WorldError {
    #[error("the text cannot be prepared: {0}")]
    Prepare(#[from] PrepareError),
    #[error("the prepared dataset cannot be opened: {0}")]
    Open(#[from] OpenError),
    #[error("the dataset cannot be published: {0}")]
    Dataset(#[from] DatasetError),
    #[error("the S3 server: {0}")]
    Server(#[from] ServerError),
    #[error("storage: {0}")]
    Store(#[from] StoreError),
    #[error("the development chain: {0}")]
    Chain(#[from] ChainError),
    #[error("this network's settings do not make a valid run: {0}")]
    Spec(#[from] templar_protocol::run::RunSpecError),
    #[error("{path}: {source}; check free space and permissions")]
    Io { path: String, source: std::io::Error },
    #[error("node {name} ended: {reason}")]
    Node { name: String, reason: String },
}

impl WorldError {
    pub(crate) fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Self + '_ {
        move |source| Self::Io { path: path.display().to_string(), source }
    }
}

/// A local network's surroundings. Nodes get to them over loopback only.
#[derive(Debug)]
pub struct World {
    pub folder: PathBuf,
    pub spec: RunSpec,
    pub members: Vec<Member>,
    pub chain: DevChain,
    pub rpc: RpcServer,
    pub s3: S3Server,
    /// Entropy of the text, where it is known.
    pub floor_bits_per_byte: Option<f64>,
    blocks: JoinHandle<Result<(), ChainError>>,
    stop_blocks: watch::Sender<bool>,
}

impl World {
    /// Prepares the text and starts everything but the nodes. `time` makes the blocks.
    pub async fn start(
        plan: &Plan,
        folder: &Path,
        text: &Text,
        time: impl FnOnce(&[Member]) -> BlockTime,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Self, WorldError> {
        let members = plan.members();
        let (dataset, floor_bits_per_byte) = prepare_dataset(plan, &folder.join("dataset"), text, progress)?;
        let s3 = start_s3(plan, &members, &folder.join("s3")).await?;
        let own = s3.own_bucket(DATA_BUCKET).expect("its bucket was asked for");
        let options = S3Options { allow_http_loopback: true, ..S3Options::default() };
        dataset::publish(&S3Store::new(own, options)?, &dataset).await?;
        let chain = DevChain::open(Some(&folder.join("chain.sqlite")), plan.chain_config())?;
        for member in &members {
            chain.register(member.keypair.hotkey(), member.stake_rao)?;
        }
        chain.produce_block()?;
        let spec = plan.spec(chain.genesis_hash(), dataset.manifest().hash());
        spec.validate()?;
        let path = folder.join("run.toml");
        std::fs::write(&path, spec.to_toml()).map_err(WorldError::io(&path))?;
        let rpc = RpcServer::start(chain.clone(), loopback()).await?;
        let (stop_blocks, stopped) = watch::channel(false);
        let blocks = tokio::spawn(run_blocks(chain.clone(), time(&members), stopped));
        let folder = folder.to_path_buf();
        Ok(Self { folder, spec, members, chain, rpc, s3, floor_bits_per_byte, blocks, stop_blocks })
    }

    /// What a member is told. Only the first validator validates θ, since all of them would find the same.
    pub fn connection(&self, member: &Member, engine: Engine) -> Connection {
        let bucket = |name: &str| self.s3.own_bucket(name).expect("every member and the dataset have a bucket");
        let home = self.folder.join("nodes").join(&member.name);
        let validates = self.members.iter().find(|other| other.role == Role::Validator).map(|first| &first.name);
        let validation_samples = if validates == Some(&member.name) { VALIDATION_SAMPLES } else { 0 };
        Connection {
            name: member.name.clone(),
            role: member.role,
            behaviour: member.behaviour,
            spec: self.spec.clone(),
            keypair: member.keypair.clone(),
            chain: self.rpc.url(),
            bucket: bucket(&member.name),
            data: bucket(DATA_BUCKET).locator,
            data_folder: home.join("dataset"),
            state_folder: home.join("state"),
            engine,
            options: ValidatorOptions { validation_samples },
        }
    }

    pub fn state_folder(&self, member: &Member) -> PathBuf {
        self.folder.join("nodes").join(&member.name).join("state")
    }

    /// Ends the chain and the servers.
    pub async fn shutdown(self) -> Result<(), WorldError> {
        let _ = self.stop_blocks.send(true);
        if let Ok(result) = self.blocks.await {
            result?;
        }
        self.rpc.stop().await;
        self.s3.shutdown().await;
        Ok(())
    }
}

fn loopback() -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, 0))
}

fn prepare_dataset(
    plan: &Plan,
    folder: &Path,
    text: &Text,
    progress: &mut dyn FnMut(Progress),
) -> Result<(Arc<Dataset>, Option<f64>), WorldError> {
    let options = PrepareOptions { seq_len: plan.preset.model.seq_len, seed: plan.seed, ..PrepareOptions::default() };
    let floor = match text {
        Text::BuiltIn => {
            let grammar = Grammar::new(plan.seed);
            prepare_text(grammar.documents(plan.seed, CORPUS_BYTES), folder, &options, progress)?;
            Some(grammar.entropy_bits_per_byte())
        }
        Text::Paths(paths) => {
            prepare(paths, folder, &options, progress)?;
            None
        }
    };
    Ok((Arc::new(Dataset::open(folder)?), floor))
}

async fn start_s3(plan: &Plan, members: &[Member], root: &Path) -> Result<S3Server, ServerError> {
    let names = members.iter().map(|member| member.name.as_str()).chain([DATA_BUCKET]);
    let bucket = |name: &str| {
        let (write, read) = dev_credentials(plan.seed, name);
        BucketSpec { name: name.to_owned(), write, read }
    };
    S3Server::start(root, loopback(), names.map(bucket).collect()).await
}

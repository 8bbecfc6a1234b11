//! The real parts of a local network: the S3 server, the dev chain behind JSON-RPC, the dataset. On loopback, unless
//! nodes of other machines are to join.

use std::net::{IpAddr, SocketAddr};
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};

use templar_chain::{BlockTime, ChainError, DevChain, RpcServer, run_blocks};
use templar_data::{Dataset, Grammar, PrepareOptions, Progress, prepare, prepare_text};
use templar_host::connection::Connection;
use templar_host::engine::Engine;
use templar_node::frame::dataset;
use templar_node::pretrain::validator::ValidatorOptions;
use templar_protocol::bucket::BucketLocator;
use templar_protocol::run::RunSpec;
use templar_record::event::Role;
use templar_store::{BucketSpec, OwnBucket, S3Options, S3Server, S3Store, dev_credentials};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::local::guest::Guest;
use crate::local::network::{Network, NetworkError, News, Text};
use crate::local::wait::stopped;
use crate::plan::{Member, Plan, stake_rao};

/// Bytes of text of the built-in corpus.
const CORPUS_BYTES: u64 = 4_000_000;
const DATA_BUCKET: &str = "data";
/// Held-out samples on which θ is validated after each window.
const VALIDATION_SAMPLES: u64 = 64;

/// A local network's surroundings. Nodes get to them over sockets only.
#[derive(Debug)]
pub struct Services {
    pub folder: PathBuf,
    pub spec: RunSpec,
    pub members: Vec<Member>,
    pub chain: DevChain,
    pub rpc: RpcServer,
    pub s3: S3Server,
    /// Entropy of the text, where it is known.
    pub floor_bits_per_byte: Option<f64>,
    pub(crate) blocks: JoinSet<Result<(), ChainError>>,
    stop_blocks: watch::Sender<bool>,
}

impl Services {
    /// Prepares the text and starts everything but the nodes, at `address`; none if `stop` came first. `guests` are
    /// registered after the members, and have buckets too. `time` makes the blocks.
    pub async fn start(
        network: &Network,
        address: IpAddr,
        guests: &[Guest],
        time: impl FnOnce(&[Member]) -> BlockTime,
        stop: &mut watch::Receiver<bool>,
        tell: &mut dyn FnMut(News<'_>),
    ) -> Result<Option<Self>, NetworkError> {
        let Some((dataset, floor_bits_per_byte)) = prepare_dataset(network, stop, tell).await? else {
            return Ok(None);
        };
        let open = Self::open(network, SocketAddr::new(address, 0), guests, &dataset, time);
        tokio::select! {
            biased;
            () = stopped(stop) => Ok(None),
            services = open => Ok(Some(Self { floor_bits_per_byte, ..services? })),
        }
    }

    async fn open(
        network: &Network,
        address: SocketAddr,
        guests: &[Guest],
        dataset: &Dataset,
        time: impl FnOnce(&[Member]) -> BlockTime,
    ) -> Result<Self, NetworkError> {
        let Network { plan, folder, .. } = network;
        let members = plan.members();
        let names = members.iter().map(|member| member.name.as_str()).chain(guests.iter().map(|guest| &*guest.name));
        let buckets = names.chain([DATA_BUCKET]).map(|name| bucket(plan.seed, name)).collect();
        let s3 = S3Server::start_exposed(&folder.join("s3"), address, buckets).await?;
        let own = s3.own_bucket(DATA_BUCKET).expect("its bucket was asked for");
        dataset::publish(&S3Store::new(own, S3Options::default())?, dataset).await?;
        let chain = DevChain::open(Some(&folder.join("chain.sqlite")), plan.chain_config())?;
        for member in &members {
            chain.register(member.keypair.hotkey(), member.stake_rao)?;
        }
        for guest in guests {
            chain.register(guest.hotkey, stake_rao(guest.role))?;
        }
        chain.produce_block()?;
        let mut spec = plan.spec(chain.genesis_hash(), dataset.manifest().hash());
        spec.codec.kind = network.codec;
        spec.validate()?;
        let path = folder.join("run.toml");
        std::fs::write(&path, spec.to_toml()).map_err(NetworkError::io(&path))?;
        let rpc = RpcServer::start(chain.clone(), address).await?;
        let (stop_blocks, stopped) = watch::channel(false);
        let mut blocks = JoinSet::new();
        blocks.spawn(run_blocks(chain.clone(), time(&members), stopped));
        let folder = folder.clone();
        Ok(Self { folder, spec, members, chain, rpc, s3, floor_bits_per_byte: None, blocks, stop_blocks })
    }

    /// What a member is told. Only the first validator validates θ, since all of them would find the same.
    pub fn connection(&self, member: &Member, engine: Engine) -> Connection {
        let home = self.folder.join("nodes").join(&member.name);
        let validation_samples = if self.validates(&member.name) { VALIDATION_SAMPLES } else { 0 };
        Connection {
            name: member.name.clone(),
            role: member.role,
            spec: self.spec.clone(),
            keypair: member.keypair.clone(),
            chain: self.rpc.url(),
            bucket: self.bucket(&member.name),
            data: self.data(),
            data_folder: home.join("dataset"),
            state_folder: home.join("state"),
            engine,
            options: ValidatorOptions { validation_samples },
        }
    }

    /// What the owner of a member's, a guest's or the dataset's bucket is told.
    pub(crate) fn bucket(&self, name: &str) -> OwnBucket {
        self.s3.own_bucket(name).expect("every member, every guest and the dataset have a bucket")
    }

    pub(crate) fn data(&self) -> BucketLocator {
        self.bucket(DATA_BUCKET).locator
    }

    /// Whether this member validates θ.
    pub(crate) fn validates(&self, name: &str) -> bool {
        self.members.iter().find(|member| member.role == Role::Validator).is_some_and(|first| first.name == name)
    }

    pub fn state_folder(&self, member: &Member) -> PathBuf {
        self.folder.join("nodes").join(&member.name).join("state")
    }

    /// Ends if the chain can make no more blocks: without them the network would wait for ever.
    pub(crate) async fn chain_failed(&mut self) -> NetworkError {
        loop {
            match self.blocks.join_next().await {
                Some(Ok(Err(error))) => return NetworkError::Blocks(error),
                Some(Ok(Ok(()))) => {}
                Some(Err(panic)) => resume_unwind(panic.into_panic()),
                None => std::future::pending().await,
            }
        }
    }

    /// Ends the chain and the servers.
    pub async fn shutdown(mut self) -> Result<(), NetworkError> {
        let _ = self.stop_blocks.send(true);
        let ended = self.blocks.join_next().await;
        self.rpc.stop().await;
        self.s3.shutdown().await;
        match ended {
            Some(Ok(Err(error))) => Err(NetworkError::Blocks(error)),
            _ => Ok(()),
        }
    }
}

fn bucket(seed: u64, name: &str) -> BucketSpec {
    let (write, read) = dev_credentials(seed, name);
    BucketSpec { name: name.to_owned(), write, read }
}

/// A dataset, and the entropy of its text where that is known.
type Prepared = (Dataset, Option<f64>);

/// Prepares the text on a thread of its own, so that `stop` is heard meanwhile: then nothing comes of it.
async fn prepare_dataset(
    network: &Network,
    stop: &mut watch::Receiver<bool>,
    tell: &mut dyn FnMut(News<'_>),
) -> Result<Option<Prepared>, NetworkError> {
    let (plan, text, folder) = (network.plan.clone(), network.text.clone(), network.folder.join("dataset"));
    let (sender, mut progress) = watch::channel(None);
    let mut preparing = tokio::task::spawn_blocking(move || {
        prepare_text_of(&plan, &text, &folder, &mut |progress| {
            if sender.send(Some(progress)).is_err() {
                // Nobody wants the rest, and there is no other way out of the middle of it.
                resume_unwind(Box::new("stopped"));
            }
        })
    });
    loop {
        tokio::select! {
            biased;
            () = stopped(stop) => {
                drop(progress);
                // Waited for, so that nothing is written into a folder that is removed meanwhile.
                let _ = preparing.await;
                return Ok(None);
            }
            done = &mut preparing => {
                return done.unwrap_or_else(|panic| resume_unwind(panic.into_panic())).map(Some);
            }
            Ok(()) = progress.changed() => {
                if let Some(progress) = *progress.borrow_and_update() {
                    tell(News::Preparing(progress));
                }
            }
        }
    }
}

fn prepare_text_of(
    plan: &Plan,
    text: &Text,
    folder: &Path,
    progress: &mut dyn FnMut(Progress),
) -> Result<Prepared, NetworkError> {
    let options = PrepareOptions { seq_len: plan.preset.model.seq_len, seed: plan.seed, ..PrepareOptions::default() };
    let floor = match text {
        Text::BuiltIn => {
            let grammar = Grammar::new(plan.seed);
            prepare_text(grammar.documents(plan.seed, CORPUS_BYTES), folder, &options, progress)?;
            Some(grammar.entropy_bits_per_byte())
        }
        Text::Paths { sources, tokenizer, end_of_text } => {
            let (tokenizer, end_of_text) = (tokenizer.clone(), end_of_text.clone());
            prepare(sources, folder, &PrepareOptions { tokenizer, end_of_text, ..options }, progress)?;
            None
        }
        Text::Prepared(prepared) => {
            // The network's folder is whole without the user's, and whatever becomes of that.
            Dataset::open(prepared)?.link_to(folder).map_err(NetworkError::io(folder))?;
            None
        }
    };
    Ok((Dataset::open(folder)?, floor))
}

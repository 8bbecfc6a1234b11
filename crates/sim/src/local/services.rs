//! The real parts of a local network: the S3 server, the dev chain behind JSON-RPC, the dataset. They are on loopback,
//! unless nodes of other machines are to join.

use std::net::{IpAddr, SocketAddr};
use std::ops::ControlFlow;
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};

use templar_chain::{BlockTime, ChainError, DevChain, RpcError, RpcServer, run_blocks};
use templar_data::{Dataset, Grammar, PrepareOptions, Progress, prepare, prepare_text};
use templar_host::connection::Connection;
use templar_host::engine::Engine;
use templar_node::frame::dataset;
use templar_node::frame::weights::Weights;
use templar_node::pretrain::checkpoint::Retention;
use templar_node::pretrain::validator::ValidatorOptions;
use templar_protocol::bucket::BucketLocator;
use templar_protocol::hash::Hash32;
use templar_protocol::keys::Hotkey;
use templar_protocol::run::{RunSpec, Theta0Source};
use templar_record::event::Role;
use templar_store::{BucketSpec, OwnBucket, S3Options, S3Server, S3Store, ServerError, dev_credentials};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::local::error::NetworkError;
use crate::local::final_theta::state_folder;
use crate::local::guest::Guest;
use crate::local::initial;
use crate::local::kept::{CHAIN, Definition, Kept, Ring};
use crate::local::listing::Listing;
use crate::local::network::{Network, News, Text, Work};
use crate::local::wait::stopped;
use crate::plan::{Member, Plan, stake_rao};

/// Bytes of text of the built-in corpus.
const CORPUS_BYTES: u64 = 4_000_000;
pub(crate) const DATA_BUCKET: &str = "data";
/// Folder of the weights that the run starts from, if it starts from any.
pub(crate) const WEIGHTS: &str = "weights";
/// Held-out samples on which θ is validated after each window.
const VALIDATION_SAMPLES: u64 = 64;

/// The services of a local network. Nodes reach them over sockets only.
#[derive(Debug)]
pub struct Services {
    pub folder: PathBuf,
    pub spec: RunSpec,
    pub members: Vec<Member>,
    pub chain: DevChain,
    pub rpc: RpcServer,
    pub s3: S3Server,
    /// Entropy of the text, if it is known.
    pub floor_bits_per_byte: Option<f64>,
    pub(crate) kept: Kept,
    /// While the chain waits for its nodes.
    pub(crate) listing: Option<Listing>,
    pub(crate) blocks: JoinSet<Result<(), ChainError>>,
    stop_blocks: watch::Sender<bool>,
    retention: Retention,
}

impl Services {
    /// Prepares the text and starts everything but the nodes, at `address`; none if `stop` came first. A network that
    /// stood in the folder before goes on, with the guests that it had. `guests` are registered after the members, and
    /// have buckets too. `time` makes the blocks.
    pub async fn start(
        ring: Ring,
        network: &Network,
        address: IpAddr,
        guests: &[Guest],
        time: impl FnOnce(&[Member]) -> BlockTime,
        stop: &mut watch::Receiver<bool>,
        tell: &mut dyn FnMut(News<'_>),
    ) -> Result<Option<Self>, NetworkError> {
        let kept = Kept::open(&network.folder, &Definition::new(ring, network, guests))?;
        if kept.spec.is_some() {
            let (windows, measured) = kept.progress();
            tell(News::Resumed { windows, measured });
        }
        let Some((dataset, floor_bits_per_byte)) = prepare_dataset(network, &kept, stop, tell).await? else {
            return Ok(None);
        };
        let chain = DevChain::open(Some(&network.folder.join(CHAIN)), network.plan.chain_config())?;
        let manifest = dataset.manifest().hash();
        let Some(spec) = spec(network, &kept, chain.genesis_hash(), manifest, stop, tell).await? else {
            return Ok(None);
        };
        let guests = kept.definition.guests();
        let open = Self::open(network, address, &guests, &dataset, (kept, chain, spec), time);
        tokio::select! {
            biased;
            () = stopped(stop) => Ok(None),
            services = open => Ok(Some(Self { floor_bits_per_byte, ..services? })),
        }
    }

    async fn open(
        network: &Network,
        address: IpAddr,
        guests: &[Guest],
        dataset: &Dataset,
        (mut kept, chain, spec): (Kept, DevChain, RunSpec),
        time: impl FnOnce(&[Member]) -> BlockTime,
    ) -> Result<Self, NetworkError> {
        let Network { plan, folder, .. } = network;
        let members = plan.members();
        let s3 = start_s3(network, address, guests, &members, kept.definition.buckets).await?;
        if kept.spec.is_none() {
            let own = s3.own_bucket(DATA_BUCKET).expect("its bucket was asked for");
            let store = S3Store::new(own, S3Options::default())?;
            dataset::publish(&store, dataset).await?;
            if spec.theta0.source == Theta0Source::Weights {
                let weights = Weights::open(&folder.join(WEIGHTS), &spec.layout(), spec.theta0.root)?;
                weights.publish(&store, &spec.layout(), |_| ()).await?;
            }
        }
        register(&chain, &members, plan.owner(), guests)?;
        let rpc = start_rpc(&chain, address, kept.definition.chain).await?;
        kept.stands(&spec, socket(&rpc.url()), socket(&s3.endpoint()))?;
        let listing = Listing::new(&chain, &members, &spec);
        let (stop_blocks, stopped) = watch::channel(false);
        let mut blocks = JoinSet::new();
        blocks.spawn(run_blocks(chain.clone(), time(&members), stopped));
        let folder = folder.clone();
        Ok(Self {
            folder,
            spec,
            members,
            chain,
            rpc,
            s3,
            floor_bits_per_byte: None,
            kept,
            listing,
            blocks,
            stop_blocks,
            retention: network.retention,
        })
    }

    /// A member's configuration. Only the first validator validates θ, since all of them would find the same.
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
            state_folder: state_folder(&self.folder, member),
            engine,
            options: ValidatorOptions { validation_samples, retention: self.retention },
        }
    }

    /// The owner's view of a bucket: a member's, a guest's or the dataset's.
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

    /// Ends if the chain can make no more blocks: the network would wait for ever.
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

/// Starts the S3 server at its former address if that is free, because the chain still names that address.
async fn start_s3(
    network: &Network,
    address: IpAddr,
    guests: &[Guest],
    members: &[Member],
    before: Option<SocketAddr>,
) -> Result<S3Server, ServerError> {
    let names = members.iter().map(|member| member.name.as_str()).chain(guests.iter().map(|guest| &*guest.name));
    let buckets: Vec<_> = names.chain([DATA_BUCKET]).map(|name| bucket(network.plan.seed, name)).collect();
    let root = network.folder.join("s3");
    if let Some(before) = before.filter(|before| before.ip() == address) {
        match S3Server::start_exposed(&root, before, buckets.clone()).await {
            Err(error @ ServerError::Listen { .. }) => {
                tracing::warn!(
                    "the buckets move: {error}; the nodes publish the new place, and guests need a new invitation"
                );
            }
            started => return started,
        }
    }
    S3Server::start_exposed(&root, SocketAddr::new(address, 0), buckets).await
}

/// Starts the chain's server at its former address if that is free.
async fn start_rpc(chain: &DevChain, address: IpAddr, before: Option<SocketAddr>) -> Result<RpcServer, ChainError> {
    if let Some(before) = before.filter(|before| before.ip() == address) {
        match RpcServer::start(chain.clone(), before).await {
            Err(error) if matches!(error.adapter_error(), Some(RpcError::Bind { .. })) => {
                tracing::warn!("the chain moves: {error}; guests need a new invitation");
            }
            started => return started,
        }
    }
    RpcServer::start(chain.clone(), SocketAddr::new(address, 0)).await
}

/// The address in the URL of one of our servers.
fn socket(url: &str) -> SocketAddr {
    let (_, address) = url.split_once("://").expect("servers have URLs");
    address.parse().expect("servers are named by their address")
}

/// Registers everybody, in the first block of a new chain or in the next one of a chain that resumes.
fn register(chain: &DevChain, members: &[Member], owner: Hotkey, guests: &[Guest]) -> Result<(), ChainError> {
    let known: Vec<_> = chain.emissions().into_iter().map(|neuron| neuron.hotkey).collect();
    let members = members.iter().map(|member| (member.keypair.hotkey(), member.stake_rao));
    let guests = guests.iter().map(|guest| (guest.hotkey, stake_rao(guest.role)));
    for (hotkey, stake_rao) in members.chain([(owner, 0)]).chain(guests).filter(|(hotkey, _)| !known.contains(hotkey)) {
        chain.register(hotkey, stake_rao)?;
    }
    // An extra block in the middle of a paced window would come before its nodes are ready.
    if chain.newest().number == 0 {
        chain.produce_block()?;
    }
    Ok(())
}

pub(crate) fn bucket(seed: u64, name: &str) -> BucketSpec {
    let (write, read) = dev_credentials(seed, name);
    BucketSpec { name: name.to_owned(), write, read }
}

/// The run: the former one, or a new one, whose θ₀ takes minutes if the model is large. `None` if `stop` came.
async fn spec(
    network: &Network,
    kept: &Kept,
    genesis: Hash32,
    manifest: Hash32,
    stop: &mut watch::Receiver<bool>,
    tell: &mut dyn FnMut(News<'_>),
) -> Result<Option<RunSpec>, NetworkError> {
    if let Some(spec) = &kept.spec {
        return Ok(Some(spec.clone()));
    }
    let mut spec = network.plan.spec_without_root(genesis, manifest);
    spec.codec.kind = network.codec;
    for (key, value) in &network.set {
        spec.set(key, value).map_err(|source| NetworkError::Set { key: key.clone(), source })?;
    }
    if !network.set.iter().any(|(key, _)| key == "scoring.budget_tokens") {
        spec.scoring.budget_tokens = network.plan.budget_tokens(&spec);
    }
    spec.validate()?;
    let (from, folder) = (network.from.clone(), network.folder.join(WEIGHTS));
    let work = move |tell: &dyn Fn(Work) -> ControlFlow<()>| {
        let layout = spec.layout();
        if let Some(from) = from {
            let (_, theta) = initial::model(&from)?;
            spec.theta0.source = Theta0Source::Weights;
            spec.theta0.root = Weights::write(&folder, &layout, &theta)?.root();
            return Ok(Some(spec));
        }
        let parameters = layout.len() as u64;
        let watch = |done_parameters| tell(Work::Theta0 { done_parameters, parameters });
        match layout.theta0_root_watched(&spec.model, spec.theta0.seed, watch) {
            ControlFlow::Continue(root) => spec.theta0.root = root,
            ControlFlow::Break(()) => return Ok(None),
        }
        Ok(Some(spec))
    };
    beside(work, stop, tell).await.unwrap_or(Ok(None))
}

/// Does long work on its own thread, so that `stop` is noticed meanwhile, and reports its progress. `None` if `stop`
/// came: then it waits for the work to end, so that nothing is written into a folder that is being removed.
async fn beside<T: Send + 'static>(
    work: impl FnOnce(&dyn Fn(Work) -> ControlFlow<()>) -> T + Send + 'static,
    stop: &mut watch::Receiver<bool>,
    tell: &mut dyn FnMut(News<'_>),
) -> Option<T> {
    let (sender, mut progress) = watch::channel(None);
    let mut working = tokio::task::spawn_blocking(move || {
        work(&|done| if sender.send(Some(done)).is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
    });
    loop {
        tokio::select! {
            biased;
            () = stopped(stop) => {
                // Nobody needs the rest, and the work notices that.
                drop(progress);
                let _ = working.await;
                return None;
            }
            done = &mut working => return Some(done.unwrap_or_else(|panic| resume_unwind(panic.into_panic()))),
            Ok(()) = progress.changed() => {
                if let Some(work) = *progress.borrow_and_update() {
                    tell(News::Starting(work));
                }
            }
        }
    }
}

/// A dataset, and the entropy of its text if that is known.
type Prepared = (Dataset, Option<f64>);

/// Prepares the text, unless that was done before.
async fn prepare_dataset(
    network: &Network,
    kept: &Kept,
    stop: &mut watch::Receiver<bool>,
    tell: &mut dyn FnMut(News<'_>),
) -> Result<Option<Prepared>, NetworkError> {
    let (plan, text, folder) = (network.plan.clone(), network.text.clone(), network.folder.join("dataset"));
    if kept.spec.is_some() {
        let floor = matches!(text, Text::BuiltIn).then(|| Grammar::new(plan.seed).entropy_bits_per_byte());
        return Ok(Some((Dataset::open(&folder)?, floor)));
    }
    let work = move |tell: &dyn Fn(Work) -> ControlFlow<()>| {
        prepare_text_of(&plan, &text, &folder, &mut |progress| {
            if tell(Work::Text(progress)).is_break() {
                // This is the only way to stop in the middle of it.
                resume_unwind(Box::new("stopped"));
            }
        })
    };
    beside(work, stop, tell).await.transpose()
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
            // The network's folder must be complete whatever happens to the user's.
            Dataset::open(prepared)?.link_to(folder).map_err(NetworkError::io(folder))?;
            None
        }
    };
    Ok((Dataset::open(folder)?, floor))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn long_work_before_the_start_is_told_and_can_be_stopped() {
        let (stop, mut stopped) = watch::channel(false);
        let mut told = 0;
        let endless = |tell: &dyn Fn(Work) -> ControlFlow<()>| {
            while tell(Work::Theta0 { done_parameters: 1, parameters: 2 }).is_continue() {
                std::thread::sleep(Duration::from_millis(1));
            }
        };
        let mut tell = |news: News<'_>| {
            assert!(matches!(news, News::Starting(Work::Theta0 { done_parameters: 1, parameters: 2 })));
            told += 1;
            if told == 3 {
                stop.send_replace(true);
            }
        };
        let working = beside(endless, &mut stopped, &mut tell);
        let ended = tokio::time::timeout(Duration::from_secs(30), working).await.expect("it hears nothing");
        assert_eq!((ended, told), (None, 3));
        let (_keep, mut stop) = watch::channel(false);
        assert_eq!(beside(|_| 7, &mut stop, &mut |_| {}).await, Some(7));
    }
}

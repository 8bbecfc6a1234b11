//! The nodes of a simulation and what they share: a chain, a cloud, a dataset and a folder.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use templar_chain::{BlockTime, Chain, DevChain, DevConfig, Pacer, Timestamps, run_blocks};
use templar_data::{Dataset, Grammar, PrepareOptions, prepare_text};
use templar_node::frame::context::Compute;
use templar_node::frame::error::NodeError;
use templar_node::frame::files::Disk;
use templar_node::frame::local::Saving;
use templar_node::pretrain::setup::Setup;
use templar_node::pretrain::validator::ValidatorOptions;
use templar_protocol::clock::Schedule;
use templar_protocol::keys::Hotkey;
use templar_protocol::run::RunSpec;
use templar_record::event::{NodeEvent, Role};
use templar_store::{MemoryCloud, OwnBucket};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use crate::plan::{Member, Plan};
use crate::r#virtual::engine::Engine;
use crate::r#virtual::memo::Memo;

/// Virtual time between two blocks.
pub const BLOCK: Duration = Duration::from_secs(12);

/// Something that happens before a block is made.
#[derive(Clone, Debug)]
pub struct Incident {
    pub window: u64,
    /// Counted from the window's first block.
    pub block: u64,
    pub what: What,
}

/// What happens.
#[derive(Clone, Debug)]
pub enum What {
    /// The node's process dies; its disk stays.
    Kill(String),
    /// It is started again, if it does not run.
    Start(String),
    /// Something happens to the node's disk, given as the folder of its local state. Kill it first.
    Disk(String, fn(&Path, &RunSpec, &Hotkey)),
    /// Something happens to what the nodes share.
    Shared(fn(&DevChain, &MemoryCloud, &[Member])),
}

/// The parts of a node, made from honest ones.
pub type Wrap = Box<dyn Fn(Setup) -> Setup>;

/// What a world is made from.
pub(crate) struct Plans<'a> {
    pub(crate) plan: &'a Plan,
    /// Stakes of some nodes, by name; others have that of their role.
    pub(crate) stakes_rao: &'a BTreeMap<String, u64>,
    pub(crate) engine: Engine,
    pub(crate) adjust: &'a dyn Fn(&mut RunSpec),
    pub(crate) adjust_chain: fn(&mut DevConfig),
}

pub(crate) struct World {
    pub(crate) spec: RunSpec,
    engine: Engine,
    pub(crate) chain: DevChain,
    memo: Memo,
    pub(crate) cloud: Arc<MemoryCloud>,
    dataset: Arc<Dataset>,
    folder: PathBuf,
    buckets: BTreeMap<String, OwnBucket>,
    wraps: Vec<(String, Wrap)>,
    running: BTreeMap<String, Running>,
    /// Nodes that ended with an error.
    pub(crate) failures: Vec<(String, NodeError)>,
    sender: mpsc::Sender<NodeEvent>,
    collector: JoinHandle<()>,
}

/// A node at work: how to stop it, and its end.
type Running = (watch::Sender<bool>, JoinHandle<Result<(), NodeError>>);

impl World {
    /// A world in which no node has started. `hear` gets every event of every node, in order.
    pub(crate) fn new(
        plans: &Plans<'_>,
        folder: &Path,
        wraps: Vec<(String, Wrap)>,
        mut hear: impl FnMut(NodeEvent) + Send + 'static,
    ) -> Self {
        let plan = plans.plan;
        let data = folder.join("dataset");
        let options =
            PrepareOptions { seq_len: plan.preset.model.seq_len, seed: plan.seed, ..PrepareOptions::default() };
        let text = Grammar::new(plan.seed).documents(plan.seed, 200_000);
        let manifest = prepare_text(text, &data, &options, &mut |_| {}).expect("the built-in corpus is long enough");
        let dataset = Arc::new(Dataset::open(&data).expect("just prepared"));
        let timestamps = Timestamps::Stepped { genesis_ms: 0, step_ms: BLOCK.as_millis() as u64 };
        let mut config = DevConfig { timestamps, ..plan.chain_config() };
        (plans.adjust_chain)(&mut config);
        let chain = DevChain::open(None, config).expect("an in-memory chain opens");
        let cloud = MemoryCloud::new();
        let mut buckets = BTreeMap::new();
        for member in plan.members() {
            let stake_rao = plans.stakes_rao.get(&member.name).copied().unwrap_or(member.stake_rao);
            chain.register(member.keypair.hotkey(), stake_rao).expect("there is room in the subnet");
            buckets.insert(member.name.clone(), cloud.create_bucket(&member.name));
        }
        chain.register(plan.owner(), 0).expect("there is room in the subnet");
        chain.produce_block().expect("an in-memory chain makes blocks");
        let mut spec = plan.spec(chain.genesis_hash(), manifest.hash());
        (plans.adjust)(&mut spec);
        spec.validate().expect("the scenario's run is valid");
        let (sender, mut receiver) = mpsc::channel(64);
        let collector = tokio::spawn(async move {
            while let Some(event) = receiver.recv().await {
                hear(event);
            }
        });
        let folder = folder.to_path_buf();
        let (running, failures) = (BTreeMap::new(), Vec::new());
        let engine = plans.engine;
        Self {
            spec,
            engine,
            chain,
            memo: Memo::default(),
            cloud,
            dataset,
            folder,
            buckets,
            wraps,
            running,
            failures,
            sender,
            collector,
        }
    }

    pub(crate) fn state_folder(&self, node: &str) -> PathBuf {
        self.folder.join("nodes").join(node)
    }

    pub(crate) fn start(&mut self, member: &Member) {
        let store = Arc::new(self.cloud.store(self.buckets[&member.name].clone()));
        let trainer = self.engine.trainer(&self.spec);
        let is_first_validator = member.role == Role::Validator && member.name == "validator-0";
        let setup = Setup {
            name: member.name.clone(),
            role: member.role,
            spec: self.spec.clone(),
            keypair: member.keypair.clone(),
            chain: self.memo.over(Arc::new(self.chain.clone())),
            pacer: Some(Pacer::Dev(self.chain.clone())),
            store,
            dataset: self.dataset.clone(),
            weights: None,
            trainer,
            state_folder: self.state_folder(&member.name),
            disk: Disk::Volatile,
            saving: Saving::Exact,
            options: ValidatorOptions {
                validation_samples: if is_first_validator { 8 } else { 0 },
                ..ValidatorOptions::default()
            },
            compute: Compute::Inline,
            events: self.sender.clone(),
        };
        let setup = member.adversary.into_iter().fold(setup, |setup, adversary| adversary.wrap(setup));
        let wraps = self.wraps.iter().filter(|(node, _)| *node == member.name);
        let setup = wraps.fold(setup, |setup, (_, wrap)| wrap(setup));
        let (stop, stopped) = watch::channel(false);
        self.running.insert(member.name.clone(), (stop, tokio::spawn(setup.run(stopped))));
    }

    /// Lets the nodes set the pace of the chain, as in a demo.
    pub(crate) async fn pace_until(&self, end: u64, cap: Duration, members: &[Member], is_stopped: &dyn Fn() -> bool) {
        let participants = members.iter().map(|member| member.keypair.hotkey()).collect();
        let (stop, stopped) = watch::channel(false);
        let blocks = tokio::spawn(run_blocks(self.chain.clone(), BlockTime::Paced { participants, cap }, stopped));
        let mut heads = self.chain.heads().await.expect("an in-memory chain has heads");
        while heads.next().await.is_some_and(|head| head.number < end) && !is_stopped() {}
        let _ = stop.send(true);
        let _ = blocks.await;
    }

    pub(crate) async fn happen(&mut self, incident: &Incident, block: u64, schedule: &Schedule, members: &[Member]) {
        if schedule.first_block(incident.window) + incident.block != block {
            return;
        }
        let named = |node: &str| members.iter().find(|member| member.name == node).expect("incidents name members");
        match &incident.what {
            What::Kill(node) => {
                if let Some((_, task)) = self.running.remove(node) {
                    task.abort();
                    let _ = task.await;
                }
            }
            What::Start(node) if self.running.contains_key(node) => {}
            What::Start(node) => self.start(named(node)),
            What::Disk(node, change) => {
                change(&self.state_folder(node), &self.spec, &named(node).keypair.hotkey());
            }
            What::Shared(change) => change(&self.chain, &self.cloud, members),
        }
    }

    /// Stops all nodes and waits until their last event is heard.
    pub(crate) async fn stop(&mut self) {
        for (name, (stop, task)) in std::mem::take(&mut self.running) {
            let _ = stop.send(true);
            match task.await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => self.failures.push((name, error)),
                Err(panic) => std::panic::resume_unwind(panic.into_panic()),
            }
        }
        self.sender = mpsc::channel(1).0;
        if let Err(panic) = (&mut self.collector).await {
            std::panic::resume_unwind(panic.into_panic());
        }
    }
}

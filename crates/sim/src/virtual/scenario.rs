//! The deterministic simulation: the real node code under a virtual clock, one event log per seed.
//!
//! Everything runs on one thread of a runtime whose time is paused: a block comes every twelve virtual seconds, nodes
//! train and write to SQLite inline, and everything that is due at one instant happens in a fixed order. So a seed that
//! shows a failure once shows it always.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use templar_chain::{BlockTime, Chain, DevChain, DevConfig, Pacer, Timestamps, run_blocks};
use templar_data::{Dataset, Grammar, PrepareOptions, prepare_text};
use templar_model::presets::Preset;
use templar_node::frame::context::Compute;
use templar_node::frame::error::NodeError;
use templar_node::frame::files::Disk;
use templar_node::frame::local::Saving;
use templar_node::pretrain::setup::Setup;
use templar_node::pretrain::validator::ValidatorOptions;
use templar_protocol::clock::Schedule;
use templar_protocol::keys::Hotkey;
use templar_protocol::layout::ModelSpec;
use templar_protocol::run::{InnerSpec, RunSpec};
use templar_record::event::{NodeEvent, Role};
use templar_record::recorder::Recorder;
use templar_record::report::{Final, Report};
use templar_store::{MemoryCloud, OwnBucket};
use templar_train::SyntheticTrainer;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use crate::chain_record;
use crate::plan::{Member, Plan};
use crate::zoo::attack::partial_bucket;
use crate::zoo::failure::outage::CloudFault;

/// Virtual time between two blocks.
const BLOCK: Duration = Duration::from_secs(12);

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
    /// It is started again.
    Start(String),
    /// Something happens to the node's disk, given as the folder of its local state. Kill it first.
    Disk(String, fn(&Path, &RunSpec, &Hotkey)),
    /// Something happens to what the nodes share.
    Shared(fn(&DevChain, &MemoryCloud, &[Member])),
}

/// A callback for every event as it comes, with what all events add up to so far.
pub type OnEvent = Box<dyn FnMut(&NodeEvent, &Recorder) + Send>;

/// The parts of a node, made from honest ones.
pub type Wrap = Box<dyn Fn(Setup) -> Setup>;

/// What is simulated.
#[expect(missing_debug_implementations, reason = "a hook has nothing to show")]
pub struct Scenario {
    pub plan: Plan,
    /// Changes the run before it starts.
    pub adjust: fn(&mut RunSpec),
    pub adjust_chain: fn(&mut DevConfig),
    pub incidents: Vec<Incident>,
    pub cloud_fault: Option<CloudFault>,
    /// Stakes of some nodes, by name; others have that of their role.
    pub stakes_rao: BTreeMap<String, u64>,
    /// What stands between a node and the world, by the node's name; the first is the innermost. [`Scenario::wrap`] adds one.
    pub wraps: Vec<(String, Wrap)>,
    /// With a cap, a block is made as soon as every node has done its part, or after this time; without one, every
    /// twelve seconds. Incidents need the latter.
    pub pace_cap: Option<Duration>,
    pub on_event: Option<OnEvent>,
    /// Ends it before its last window once this is true.
    pub stop: Option<watch::Receiver<bool>>,
}

/// The result of a simulation.
#[derive(Debug)]
pub struct Outcome {
    pub spec: RunSpec,
    /// Every event of every node, in order.
    pub log: Vec<NodeEvent>,
    pub report: Report,
    /// The buckets as they were left.
    pub cloud: Arc<MemoryCloud>,
    /// Nodes that ended with an error.
    pub failures: Vec<(String, NodeError)>,
}

/// A model of a few thousand parameters: enough for the protocol, and for the synthetic trainer.
pub fn tiny_preset() -> Preset {
    let model = ModelSpec {
        vocab_size: 272,
        hidden_size: 16,
        layers: 1,
        heads: 2,
        kv_heads: 1,
        ffn_size: 32,
        seq_len: 32,
        rope_theta: 10_000.0,
        norm_eps: 1e-5,
        tied_embeddings: true,
    };
    let inner = InnerSpec {
        steps: 4,
        batch_sequences: 4,
        micro_batch_sequences: 4,
        lr: 1e-3,
        beta1: 0.9,
        beta2: 0.95,
        epsilon: 1e-8,
        weight_decay: 0.0,
        clip_norm: 1.0,
        warmup_steps: 0,
        decay_steps: 1000,
        final_lr_fraction: 0.1,
    };
    Preset { name: "tiny", model, inner }
}

impl Scenario {
    /// `miners` and `validators` of the tiny model, without any disaster.
    pub fn new(miners: usize, validators: usize, windows: u64, seed: u64) -> Self {
        let plan = Plan { miners, validators, windows, seed, preset: tiny_preset(), adversaries: Vec::new() };
        Self {
            plan,
            adjust: |_| {},
            adjust_chain: |_| {},
            incidents: Vec::new(),
            cloud_fault: None,
            stakes_rao: BTreeMap::new(),
            wraps: Vec::new(),
            pace_cap: None,
            on_event: None,
            stop: None,
        }
    }

    /// Makes the parts of `node` with `wrap`, from honest ones, whenever it is started: for what only this scenario needs.
    pub fn wrap(&mut self, node: &str, wrap: impl Fn(Setup) -> Setup + 'static) {
        self.wraps.push((node.to_owned(), Box::new(wrap)));
    }

    /// Runs the simulation. The files of the nodes are below `folder`.
    pub fn run(self, folder: &Path) -> Outcome {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
        runtime.expect("a runtime needs no resource that could be missing").block_on(self.simulate(folder))
    }

    async fn simulate(mut self, folder: &Path) -> Outcome {
        let on_event = self.on_event.take();
        let wraps = std::mem::take(&mut self.wraps);
        let mut world = World::new(&self, folder, wraps, on_event);
        let members = self.plan.members();
        if let Some(fault) = partial_bucket::faults(&members, self.cloud_fault.take()) {
            world.cloud.set_fault(fault);
        }
        for (node, _) in &world.wraps {
            assert!(members.iter().any(|member| member.name == *node), "there is no {node} to wrap");
        }
        for member in &members {
            world.start(member);
        }
        let schedule = Schedule::new(&world.spec);
        let end = schedule.first_block(self.plan.windows) + world.spec.windows.put_block - 1;
        let stop = self.stop.take();
        let is_stopped = || stop.as_ref().is_some_and(|stop| *stop.borrow());
        if let Some(cap) = self.pace_cap {
            world.pace_until(end, cap, &members, &is_stopped).await;
            return world.finish(&self.plan).await;
        }
        for block in 2..=end {
            if is_stopped() {
                break;
            }
            tokio::time::sleep(BLOCK).await;
            for incident in &self.incidents {
                world.happen(incident, block, &schedule, &members).await;
            }
            world.chain.produce_block().expect("an in-memory chain makes blocks");
        }
        tokio::time::sleep(BLOCK).await;
        world.finish(&self.plan).await
    }
}

struct World {
    spec: RunSpec,
    chain: DevChain,
    cloud: Arc<MemoryCloud>,
    dataset: Arc<Dataset>,
    folder: PathBuf,
    buckets: BTreeMap<String, OwnBucket>,
    wraps: Vec<(String, Wrap)>,
    running: BTreeMap<String, Running>,
    failures: Vec<(String, NodeError)>,
    sender: mpsc::Sender<NodeEvent>,
    collector: JoinHandle<(Vec<NodeEvent>, Recorder)>,
}

/// A node at work: how to stop it, and its end.
type Running = (watch::Sender<bool>, JoinHandle<Result<(), NodeError>>);

impl World {
    fn new(scenario: &Scenario, folder: &Path, wraps: Vec<(String, Wrap)>, mut on_event: Option<OnEvent>) -> Self {
        let plan = &scenario.plan;
        let data = folder.join("dataset");
        let options =
            PrepareOptions { seq_len: plan.preset.model.seq_len, seed: plan.seed, ..PrepareOptions::default() };
        let text = Grammar::new(plan.seed).documents(plan.seed, 200_000);
        let manifest = prepare_text(text, &data, &options, &mut |_| {}).expect("the built-in corpus is long enough");
        let dataset = Arc::new(Dataset::open(&data).expect("just prepared"));
        let timestamps = Timestamps::Stepped { genesis_ms: 0, step_ms: BLOCK.as_millis() as u64 };
        let mut config = DevConfig { timestamps, ..plan.chain_config() };
        (scenario.adjust_chain)(&mut config);
        let chain = DevChain::open(None, config).expect("an in-memory chain opens");
        let cloud = MemoryCloud::new();
        let mut buckets = BTreeMap::new();
        for member in plan.members() {
            let stake_rao = scenario.stakes_rao.get(&member.name).copied().unwrap_or(member.stake_rao);
            chain.register(member.keypair.hotkey(), stake_rao).expect("there is room in the subnet");
            buckets.insert(member.name.clone(), cloud.create_bucket(&member.name));
        }
        chain.register(plan.owner(), 0).expect("there is room in the subnet");
        chain.produce_block().expect("an in-memory chain makes blocks");
        let mut spec = plan.spec(chain.genesis_hash(), manifest.hash());
        (scenario.adjust)(&mut spec);
        spec.validate().expect("the scenario's run is valid");
        let (sender, mut receiver) = mpsc::channel(64);
        let mut recorder = Recorder::new(plan.members().iter().map(Member::participant).collect());
        let collector = tokio::spawn(async move {
            let mut log = Vec::new();
            while let Some(event) = receiver.recv().await {
                recorder.record(&event);
                if let Some(hear) = &mut on_event {
                    hear(&event, &recorder);
                }
                log.push(event);
            }
            (log, recorder)
        });
        let folder = folder.to_path_buf();
        let (running, failures) = (BTreeMap::new(), Vec::new());
        Self { spec, chain, cloud, dataset, folder, buckets, wraps, running, failures, sender, collector }
    }

    fn state_folder(&self, node: &str) -> PathBuf {
        self.folder.join("nodes").join(node)
    }

    fn start(&mut self, member: &Member) {
        let store = Arc::new(self.cloud.store(self.buckets[&member.name].clone()));
        let trainer = Box::new(SyntheticTrainer::new(&self.spec.model, &self.spec.inner));
        let is_first_validator = member.role == Role::Validator && member.name == "validator-0";
        let setup = Setup {
            name: member.name.clone(),
            role: member.role,
            spec: self.spec.clone(),
            keypair: member.keypair.clone(),
            chain: Arc::new(self.chain.clone()),
            pacer: Some(Pacer::Dev(self.chain.clone())),
            store,
            dataset: self.dataset.clone(),
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
    async fn pace_until(&self, end: u64, cap: Duration, members: &[Member], is_stopped: &dyn Fn() -> bool) {
        let participants = members.iter().map(|member| member.keypair.hotkey()).collect();
        let (stop, stopped) = watch::channel(false);
        let blocks = tokio::spawn(run_blocks(self.chain.clone(), BlockTime::Paced { participants, cap }, stopped));
        let mut heads = self.chain.heads().await.expect("an in-memory chain has heads");
        while heads.next().await.is_some_and(|head| head.number < end) && !is_stopped() {}
        let _ = stop.send(true);
        let _ = blocks.await;
    }

    async fn happen(&mut self, incident: &Incident, block: u64, schedule: &Schedule, members: &[Member]) {
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
            What::Start(node) => self.start(named(node)),
            What::Disk(node, change) => {
                change(&self.state_folder(node), &self.spec, &named(node).keypair.hotkey());
            }
            What::Shared(change) => change(&self.chain, &self.cloud, members),
        }
    }

    async fn finish(mut self, plan: &Plan) -> Outcome {
        for (name, (stop, task)) in std::mem::take(&mut self.running) {
            let _ = stop.send(true);
            match task.await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => self.failures.push((name, error)),
                Err(panic) => std::panic::resume_unwind(panic.into_panic()),
            }
        }
        drop(self.sender);
        let (log, recorder) = match self.collector.await {
            Ok(collected) => collected,
            Err(panic) => std::panic::resume_unwind(panic.into_panic()),
        };
        let (neurons, late) = (chain_record::neurons(&self.chain), chain_record::late(&self.chain));
        let mut report = recorder.finish(&self.spec, plan.seed, plan.windows, &neurons, late, Final::default());
        // The synthetic trainer's loss is not about text, so bits per byte would mislead.
        report.windows.iter_mut().for_each(|window| window.val_bits_per_byte = None);
        report.last.val_bits_per_byte = None;
        Outcome { spec: self.spec, log, report, cloud: self.cloud, failures: self.failures }
    }
}

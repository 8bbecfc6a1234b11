//! The deterministic simulation: the real node code under a virtual clock, one event log per seed.
//!
//! Everything runs on one thread of a runtime whose time is paused: a block comes every twelve virtual seconds, nodes
//! train and write to SQLite inline, and everything that is due at one instant happens in a fixed order. So a seed that
//! shows a failure once shows it always.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use templar_chain::DevConfig;
use templar_chain::call::UIDS_MAX;
use templar_node::frame::error::NodeError;
use templar_node::pretrain::setup::Setup;
use templar_protocol::clock::Schedule;
use templar_protocol::run::{CodecKind, RunSpec};
use templar_record::event::NodeEvent;
use templar_record::recorder::Recorder;
use templar_record::report::{Final, Report};
use templar_store::MemoryCloud;
use tokio::sync::watch;

use crate::chain_record;
use crate::plan::{Member, Plan};
use crate::r#virtual::engine::Engine;
pub use crate::r#virtual::engine::tiny_preset;
use crate::r#virtual::invariants::{Disturbances, Invariants, Violation};
use crate::r#virtual::world::{BLOCK, Plans, World};
pub use crate::r#virtual::world::{Incident, What, Wrap};
use crate::zoo::attack::partial_bucket;
use crate::zoo::failure::outage::CloudFault;

/// Most miners and validators together: one uid of the subnet is its owner's.
pub const NODES_MAX: u16 = UIDS_MAX - 1;

/// A callback for every event as it comes, with what all events add up to so far.
pub type OnEvent = Box<dyn FnMut(&NodeEvent, &Recorder) + Send>;

/// What is simulated.
#[expect(missing_debug_implementations, reason = "a hook has nothing to show")]
pub struct Scenario {
    pub plan: Plan,
    pub engine: Engine,
    /// Contributions that count in a window, if not as many as by default; half as many again are in reserve.
    pub seats: Option<u32>,
    /// How contributions become bytes, if not as by default.
    pub codec: Option<CodecKind>,
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
    /// What is known to go wrong with nodes that mean well. With it, the invariants of [`Invariants`] are checked after
    /// every block; without it, they are not.
    pub disturbances: Option<Disturbances>,
    /// Keeps every event in [`Outcome::log`]. A long simulation has no memory for that.
    pub keep_log: bool,
    /// Ends it before its last window once this is true.
    pub stop: Option<watch::Receiver<bool>>,
}

/// The result of a simulation.
#[derive(Debug)]
pub struct Outcome {
    pub spec: RunSpec,
    /// Every event of every node, in order, if the scenario keeps them.
    pub log: Vec<NodeEvent>,
    pub report: Report,
    /// The buckets as they were left.
    pub cloud: Arc<MemoryCloud>,
    /// Nodes that ended with an error.
    pub failures: Vec<(String, NodeError)>,
    /// The invariants that did not hold, in the order in which that was seen.
    pub violations: Vec<Violation>,
}

/// What listens to the nodes.
struct Ear {
    recorder: Recorder,
    on_event: Option<OnEvent>,
    invariants: Option<Invariants>,
    log: Option<Vec<NodeEvent>>,
}

impl Ear {
    fn hear(&mut self, event: &NodeEvent) {
        self.recorder.record(event);
        if let Some(invariants) = &mut self.invariants {
            invariants.hear(event);
        }
        if let Some(on_event) = &mut self.on_event {
            on_event(event, &self.recorder);
        }
        if let Some(log) = &mut self.log {
            log.push(event.clone());
        }
    }
}

impl Scenario {
    /// `miners` and `validators` of the tiny model, without any disaster.
    pub fn new(miners: usize, validators: usize, windows: u64, seed: u64) -> Self {
        let engine = Engine::default();
        let plan = Plan { miners, validators, windows, seed, preset: engine.preset(), adversaries: Vec::new() };
        Self {
            plan,
            engine,
            seats: None,
            codec: None,
            adjust: |_| {},
            adjust_chain: |_| {},
            incidents: Vec::new(),
            cloud_fault: None,
            stakes_rao: BTreeMap::new(),
            wraps: Vec::new(),
            pace_cap: None,
            on_event: None,
            disturbances: None,
            keep_log: true,
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
        let mut members = self.plan.members();
        for member in &mut members {
            member.stake_rao = self.stakes_rao.get(&member.name).copied().unwrap_or(member.stake_rao);
        }
        let wraps = std::mem::take(&mut self.wraps);
        for (node, _) in &wraps {
            assert!(members.iter().any(|member| member.name == *node), "there is no {node} to wrap");
        }
        let ear = Arc::new(Mutex::new(Ear {
            recorder: Recorder::new(members.iter().map(Member::participant).collect()),
            on_event: self.on_event.take(),
            invariants: None,
            log: self.keep_log.then(Vec::new),
        }));
        let listener = ear.clone();
        let hear = move |event| lock(&listener).hear(&event);
        let adjust = |spec: &mut RunSpec| self.adjust_spec(spec);
        let (engine, adjust_chain) = (self.engine, self.adjust_chain);
        let stakes_rao = &self.stakes_rao;
        let plans = Plans { plan: &self.plan, stakes_rao, engine, adjust: &adjust, adjust_chain };
        let mut world = World::new(&plans, folder, wraps, hear);
        let disturbances = self.disturbances.take();
        lock(&ear).invariants = disturbances.map(|known| Invariants::new(self.plan.seed, &world.spec, &members, known));
        if let Some(fault) = partial_bucket::faults(&members, self.cloud_fault.take()) {
            world.cloud.set_fault(fault);
        }
        for member in &members {
            world.start(member);
        }
        self.make_blocks(&mut world, &members, &ear).await;
        world.stop().await;
        self.conclude(world, &members, &ear)
    }

    fn adjust_spec(&self, spec: &mut RunSpec) {
        (self.adjust)(spec);
        if let Some(seats) = self.seats {
            (spec.roster.gather, spec.roster.reserve) = (seats, seats / 2);
        }
        if let Some(codec) = self.codec {
            spec.codec.kind = codec;
        }
    }

    async fn make_blocks(&mut self, world: &mut World, members: &[Member], ear: &Mutex<Ear>) {
        let schedule = Schedule::new(&world.spec);
        let end = schedule.first_block(self.plan.windows) + world.spec.windows.put_block - 1;
        let stop = self.stop.take();
        let is_stopped = || stop.as_ref().is_some_and(|stop| *stop.borrow());
        if let Some(cap) = self.pace_cap {
            world.pace_until(end, cap, members, &is_stopped).await;
            return;
        }
        for block in 2..=end {
            if is_stopped() {
                break;
            }
            tokio::time::sleep(BLOCK).await;
            if let Some(invariants) = &mut lock(ear).invariants {
                invariants.at_block(block, &world.chain, &world.cloud);
            }
            for incident in &self.incidents {
                world.happen(incident, block, &schedule, members).await;
            }
            world.chain.produce_block().expect("an in-memory chain makes blocks");
        }
        tokio::time::sleep(BLOCK).await;
    }

    fn conclude(&self, world: World, members: &[Member], ear: &Mutex<Ear>) -> Outcome {
        let mut ear = lock(ear);
        let mut violations = Vec::new();
        if let Some(mut invariants) = ear.invariants.take() {
            for (node, error) in &world.failures {
                invariants.note_failure(node, error);
            }
            invariants.at_end(&world.chain, &|node| world.state_folder(node), members);
            violations = invariants.into_violations();
        }
        let (neurons, late) = (chain_record::neurons(&world.chain), chain_record::late(&world.chain));
        let Plan { seed, windows, .. } = self.plan;
        let mut report = ear.recorder.finish(&world.spec, seed, windows, &neurons, late, Final::default());
        if self.engine == Engine::Surrogate {
            // Its loss is not about text, so bits per byte would mislead.
            report.windows.iter_mut().for_each(|window| window.val_bits_per_byte = None);
            report.last.val_bits_per_byte = None;
        }
        let log = ear.log.take().unwrap_or_default();
        Outcome { spec: world.spec, log, report, cloud: world.cloud, failures: world.failures, violations }
    }
}

/// A panic in a hook ends the simulation, so nothing half done is ever read.
fn lock(ear: &Mutex<Ear>) -> std::sync::MutexGuard<'_, Ear> {
    ear.lock().unwrap_or_else(PoisonError::into_inner)
}

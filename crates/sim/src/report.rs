//! The document of a run: what every window and every node came to. Its schema stands in `docs/report.md`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use templar_chain::{DevChain, NeuronInfo};
use templar_node::events::{Event, FaultCount, NodeEvent, Role, Verdict};
use templar_protocol::fault::{Fault, FaultKind, Party};
use templar_protocol::hash::Hash32;
use templar_protocol::roster::Uid;
use templar_protocol::run::{RunId, RunSpec};
use templar_train::EngineStats;

use crate::plan::{Behaviour, Member};

/// Version of the schema.
pub const SCHEMA: u32 = 1;

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Report {
    pub schema: u32,
    pub run_id: RunId,
    pub seed: u64,
    pub config: RunSpec,
    /// How many windows were to be trained. One that was stopped has reached fewer.
    pub windows_planned: u64,
    /// Those that some node has reached, in their order.
    pub windows: Vec<WindowReport>,
    pub nodes: Vec<NodeReport>,
    /// Nodes for which a paced block did not wait any longer: the newest 1024.
    pub late: Vec<Late>,
    /// How often that was in all.
    pub late_total: u64,
    #[serde(rename = "final")]
    pub last: Final,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct WindowReport {
    pub window: u64,
    pub certified: bool,
    /// Root of θ after the window, by most nodes.
    pub state_root: Hash32,
    /// Whether all nodes that settled the window have that root.
    pub one_root: bool,
    /// How many nodes have settled the window.
    pub settled_by: u64,
    /// How many of them have that root.
    pub agreed_by: u64,
    pub accepted: Vec<Uid>,
    pub faults: Vec<FaultReport>,
    /// Validators whose vote did not count, and why.
    pub misvotes: Vec<Misvote>,
    pub tokens: u64,
    /// Mean over the miners of their mean loss while training, in nats per token.
    pub train_loss: Option<f64>,
    /// Loss after the window on text never trained on, in nats per token.
    pub val_loss: Option<f64>,
    pub val_bits_per_byte: Option<f64>,
    /// Mean size of a contribution on the wire.
    pub payload_bytes: u64,
    pub bits_per_value: f64,
    /// Longest training and longest upload of a miner.
    pub compute_s: f64,
    pub comm_s: f64,
    /// Model FLOPs utilisation, the mean over the miners whose device has a data sheet.
    #[serde(default)]
    pub mfu: Option<f64>,
    /// By node: what its engine says of its training. Empty for engines that do not.
    #[serde(default)]
    pub engines: BTreeMap<String, EngineStats>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FaultReport {
    pub uid: Uid,
    pub fault: FaultKind,
    pub attributed_to: Party,
}

/// A vote that did not count.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Misvote {
    pub uid: Uid,
    pub cause: String,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NodeReport {
    pub uid: Uid,
    pub name: String,
    pub role: Role,
    pub behaviour: Behaviour,
    pub final_state_root: Hash32,
    /// A miner's score, the mean over validators.
    pub score: f64,
    /// A miner's share of the chain's incentive, a validator's of its dividends; 0 to 1.
    pub weight: f64,
    pub emission: f64,
    pub restarts: u32,
    /// Things that did not work and were tried again.
    pub troubles: u64,
    /// How often this node met each fault of others.
    #[serde(default)]
    pub faults: Vec<FaultCount>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Late {
    pub block: u64,
    pub uid: Uid,
}

impl Late {
    /// For whom paced blocks did not wait, and how often that was.
    pub fn of(chain: &DevChain) -> (Vec<Self>, u64) {
        let neurons = chain.emissions();
        let uid = |hotkey| neurons.iter().find(|neuron| neuron.hotkey == hotkey).map(|neuron| neuron.uid);
        let late = chain.late().into_iter().filter_map(|(block, hotkey)| Some(Self { block, uid: uid(hotkey)? }));
        (late.collect(), chain.late_total())
    }
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Final {
    pub val_bits_per_byte: Option<f64>,
    /// Entropy of the built-in corpus; none for other text.
    pub floor_bits_per_byte: Option<f64>,
    pub tokens: u64,
    pub wall_s: f64,
}

/// Collects events into a report.
#[derive(Debug)]
pub struct Recorder {
    members: Vec<Member>,
    windows: BTreeMap<u64, Gathered>,
    nodes: BTreeMap<String, NodeState>,
}

#[derive(Debug, Default)]
struct Gathered {
    /// By node: what the window came to in its eyes.
    settled: BTreeMap<String, Settled>,
    faults: Vec<FaultReport>,
    misvotes: Vec<Misvote>,
    train_losses: BTreeMap<String, f64>,
    /// By validator: loss and bits per byte after the window.
    validated: BTreeMap<String, (f64, f64)>,
    engines: BTreeMap<String, EngineStats>,
    compute_s: f64,
    comm_s: f64,
}

#[derive(Clone, Debug)]
struct Settled {
    state_root: Hash32,
    verdict: Verdict,
    payload_bytes: u64,
    values: u64,
    tokens: u64,
}

#[derive(Debug, Default)]
struct NodeState {
    starts: u32,
    state_root: Hash32,
    troubles: u64,
    faults: Vec<FaultCount>,
    /// By miner: the newest score that this validator gave.
    scores: BTreeMap<Uid, f64>,
}

impl Recorder {
    pub fn new(members: Vec<Member>) -> Self {
        Self { members, windows: BTreeMap::new(), nodes: BTreeMap::new() }
    }

    pub fn record(&mut self, event: &NodeEvent) {
        let name = event.node.clone();
        let node = self.nodes.entry(name.clone()).or_default();
        event.event.count_faults(&mut node.faults);
        match &event.event {
            Event::Started { state_root, .. } => {
                node.starts += 1;
                node.state_root = *state_root;
            }
            Event::Adopted { state_root, .. } => node.state_root = *state_root,
            Event::Trouble { .. } => node.troubles += 1,
            Event::Observed { uid, score, .. } => {
                node.scores.insert(*uid, *score);
            }
            Event::Trained { window, train_loss, compute_s, engine, .. } => {
                let gathered = self.windows.entry(*window).or_default();
                gathered.engines.extend(engine.clone().map(|engine| (name.clone(), engine)));
                gathered.train_losses.insert(name, *train_loss);
                gathered.compute_s = gathered.compute_s.max(*compute_s);
            }
            Event::Sealed { window, comm_s, .. } => {
                let gathered = self.windows.entry(*window).or_default();
                gathered.comm_s = gathered.comm_s.max(*comm_s);
            }
            Event::Voted { window, faults, .. } => self.windows.entry(*window).or_default().add_faults(faults),
            Event::Misvoted { window, uid, cause, .. } => {
                let misvotes = &mut self.windows.entry(*window).or_default().misvotes;
                let misvote = Misvote { uid: *uid, cause: cause.clone() };
                // Every node says so.
                if !misvotes.contains(&misvote) {
                    misvotes.push(misvote);
                }
            }
            Event::Settled { window, verdict, state_root, payload_bytes, values, tokens } => {
                node.state_root = *state_root;
                let (state_root, verdict) = (*state_root, verdict.clone());
                let (payload_bytes, values, tokens) = (*payload_bytes, *values, *tokens);
                let settled = Settled { state_root, verdict, payload_bytes, values, tokens };
                self.windows.entry(*window).or_default().settled.insert(name, settled);
            }
            Event::Validated { window, loss, bits_per_byte } => {
                self.windows.entry(*window).or_default().validated.insert(name, (*loss, *bits_per_byte));
            }
            _ => {}
        }
    }

    /// How many nodes have settled `window`.
    pub fn settled(&self, window: u64) -> usize {
        self.windows.get(&window).map_or(0, |gathered| gathered.settled.len())
    }

    /// Whether θ after `window` was validated.
    pub fn validated(&self, window: u64) -> bool {
        self.windows.get(&window).is_some_and(|gathered| !gathered.validated.is_empty())
    }

    /// What is known of a window so far.
    pub fn window(&self, window: u64) -> WindowReport {
        self.windows.get(&window).unwrap_or(&Gathered::default()).report(window)
    }

    /// The whole document, with what the chain says of the nodes.
    pub fn finish(
        &self,
        spec: &RunSpec,
        seed: u64,
        windows_planned: u64,
        neurons: &[NeuronInfo],
        late: (Vec<Late>, u64),
        mut last: Final,
    ) -> Report {
        // Nodes go on for a moment after the last planned window.
        let reached = self.windows.range(..windows_planned);
        let windows: Vec<WindowReport> = reached.map(|(window, gathered)| gathered.report(*window)).collect();
        let last_window = windows_planned.saturating_sub(1);
        let nodes = self.members.iter().filter_map(|member| self.node(member, last_window, neurons)).collect();
        last.val_bits_per_byte = windows.iter().rev().find_map(|window| window.val_bits_per_byte);
        last.tokens = windows.iter().fold(0u64, |sum, window| sum.saturating_add(window.tokens));
        let (late, late_total) = late;
        Report {
            schema: SCHEMA,
            run_id: spec.id(),
            seed,
            config: spec.clone(),
            windows_planned,
            windows,
            nodes,
            late,
            late_total,
            last,
        }
    }

    fn node(&self, member: &Member, last_window: u64, neurons: &[NeuronInfo]) -> Option<NodeReport> {
        let neuron = neurons.iter().find(|neuron| neuron.hotkey == member.keypair.hotkey())?;
        let scores: Vec<f64> = self.nodes.values().filter_map(|node| node.scores.get(&neuron.uid).copied()).collect();
        let share = |of: fn(&NeuronInfo) -> u16| {
            let total: f64 = neurons.iter().map(|neuron| f64::from(of(neuron))).sum();
            if total > 0.0 { f64::from(of(neuron)) / total } else { 0.0 }
        };
        let state = self.nodes.get(&member.name);
        // A network on a clock goes on while its slowest node ends the last window.
        let last_root = self.windows.get(&last_window).and_then(|window| window.settled.get(&member.name));
        let last_root = last_root.map(|settled| settled.state_root);
        Some(NodeReport {
            uid: neuron.uid,
            name: member.name.clone(),
            role: member.role,
            behaviour: member.behaviour,
            final_state_root: last_root.or(state.map(|state| state.state_root)).unwrap_or_default(),
            score: scores.iter().sum::<f64>() / scores.len().max(1) as f64,
            weight: match member.role {
                Role::Miner => share(|neuron| neuron.incentive),
                Role::Validator => share(|neuron| neuron.dividends),
            },
            emission: neuron.emission_rao as f64 / 1e9,
            restarts: state.map_or(0, |state| state.starts.saturating_sub(1)),
            troubles: state.map_or(0, |state| state.troubles),
            faults: state.map_or_else(Vec::new, |state| state.faults.clone()),
        })
    }
}

impl Gathered {
    fn add_faults(&mut self, faults: &[Fault]) {
        for fault in faults {
            let fault = FaultReport { uid: fault.entry.uid, fault: fault.kind, attributed_to: fault.attributed_to };
            if !self.faults.contains(&fault) {
                self.faults.push(fault);
            }
        }
    }

    fn report(&self, window: u64) -> WindowReport {
        let mut counts: BTreeMap<Hash32, usize> = BTreeMap::new();
        self.settled.values().for_each(|settled| *counts.entry(settled.state_root).or_default() += 1);
        let state_root = counts.iter().max_by_key(|(_, count)| **count).map_or_else(Hash32::default, |(root, _)| *root);
        // In the eyes of those that have this root: another node's verdict belongs to another history.
        let agrees = |node: &str| self.settled.get(node).is_some_and(|settled| settled.state_root == state_root);
        let settled = self.settled.values().find(|settled| settled.state_root == state_root);
        let validated = self.validated.iter().find(|(node, _)| agrees(node.as_str())).map(|(_, validated)| *validated);
        let (payload_bytes, values) = settled.map_or((0, 0), |settled| (settled.payload_bytes, settled.values));
        let (certified, accepted) = match settled.map(|settled| &settled.verdict) {
            Some(Verdict::Certified { accepted, .. }) => (true, accepted.clone()),
            _ => (false, Vec::new()),
        };
        let utilisations: Vec<f64> = self.engines.values().filter_map(EngineStats::mfu).collect();
        let mfu = utilisations.iter().sum::<f64>() / utilisations.len() as f64;
        let losses = self.train_losses.values().sum::<f64>() / self.train_losses.len() as f64;
        WindowReport {
            window,
            certified,
            state_root,
            one_root: counts.len() == 1,
            settled_by: self.settled.len() as u64,
            agreed_by: counts.get(&state_root).copied().unwrap_or_default() as u64,
            payload_bytes: payload_bytes / accepted.len().max(1) as u64,
            bits_per_value: if values == 0 { 0.0 } else { 8.0 * payload_bytes as f64 / values as f64 },
            accepted,
            faults: self.faults.clone(),
            misvotes: self.misvotes.clone(),
            tokens: settled.map_or(0, |settled| settled.tokens),
            train_loss: (!self.train_losses.is_empty()).then_some(losses),
            val_loss: validated.map(|(loss, _)| loss),
            val_bits_per_byte: validated.map(|(_, bits)| bits),
            compute_s: self.compute_s,
            comm_s: self.comm_s,
            mfu: (!utilisations.is_empty()).then_some(mfu),
            engines: self.engines.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use templar_node::events::{Cause, VoteFault};

    use super::*;
    use crate::plan::Plan;
    use crate::simulation::tiny_preset;

    fn told(node: &str, event: Event) -> NodeEvent {
        NodeEvent { node: node.to_owned(), event }
    }

    #[test]
    fn a_diverged_node_that_comes_last_does_not_write_history() {
        let settled = |root: &[u8], accepted: Vec<Uid>, tokens| Event::Settled {
            window: 0,
            verdict: Verdict::Certified { accepted, excluded: vec![] },
            state_root: Hash32::of(root),
            payload_bytes: 10 * tokens,
            values: 1,
            tokens,
        };
        let validated = |loss| Event::Validated { window: 0, loss, bits_per_byte: loss };
        let mut recorder = Recorder::new(Vec::new());
        for event in [
            told("b", settled(b"one", vec![Uid(1)], 7)),
            told("c", settled(b"one", vec![Uid(1)], 7)),
            told("c", validated(2.0)),
            told("a", settled(b"other", vec![], 9)),
            told("a", validated(1.0)),
        ] {
            recorder.record(&event);
        }
        let window = recorder.window(0);
        assert_eq!((window.state_root, window.settled_by, window.agreed_by), (Hash32::of(b"one"), 3, 2));
        assert_eq!((window.accepted, window.tokens, window.payload_bytes), (vec![Uid(1)], 7, 70));
        assert_eq!(window.val_loss, Some(2.0));
    }

    #[test]
    fn a_window_that_nobody_has_seen_is_no_other_window() {
        let mut recorder = Recorder::new(Vec::new());
        recorder.record(&told("a", Event::Opened { window: 0 }));
        recorder.record(&told("a", Event::Sealed { window: 3, payload_bytes: 1, comm_s: 2.0 }));
        recorder.record(&told("a", Event::Sealed { window: 9, payload_bytes: 1, comm_s: 2.0 }));
        let report = recorder.finish(&spec(), 1, 9, &[], (vec![], 0), Final::default());
        let numbers: Vec<u64> = report.windows.iter().map(|window| window.window).collect();
        assert_eq!((report.windows_planned, numbers), (9, vec![3]));
        assert_eq!((recorder.window(5).window, recorder.window(5).settled_by), (5, 0));
    }

    fn spec() -> RunSpec {
        let plan =
            Plan { miners: 1, validators: 1, windows: 9, seed: 1, preset: tiny_preset(), adversaries: Vec::new() };
        plan.spec(Hash32::default(), Hash32::default())
    }

    #[test]
    fn faults_are_counted_by_cause_and_come_through_json() {
        let misvoted = |fault| Event::Misvoted { window: 0, uid: Uid(1), fault, cause: String::new() };
        let mut totals = Vec::new();
        for fault in [VoteFault::Length, VoteFault::Padding, VoteFault::Length] {
            misvoted(fault).count_faults(&mut totals);
        }
        let length = FaultCount { cause: Cause::Vote(VoteFault::Length), count: 2 };
        assert_eq!(totals, [length, FaultCount { cause: Cause::Vote(VoteFault::Padding), count: 1 }]);
        let json = r#"{"node":"a","event":"faults","totals":[{"of":"vote","fault":"length","count":2}]}"#;
        let event = told("a", Event::Faults { totals: vec![length] });
        assert_eq!(serde_json::to_string(&event).unwrap(), json);
        assert_eq!(serde_json::from_str::<NodeEvent>(json).unwrap(), event);
    }
}

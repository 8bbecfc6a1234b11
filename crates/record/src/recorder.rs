//! Folds events into the report of a run.

use std::collections::{BTreeMap, BTreeSet};

use templar_protocol::fault::Fault;
use templar_protocol::hash::Hash32;
use templar_protocol::keys::Hotkey;
use templar_protocol::roster::Uid;
use templar_protocol::run::RunSpec;

use crate::engine::EngineStats;
use crate::event::{Event, FaultCount, NodeEvent, Role, Verdict};
use crate::outcome::Outcome;
use crate::report::{FaultReport, Final, Late, Misvote, NodeReport, Report, SCHEMA, WindowReport};

/// A node that the report is about.
#[derive(Clone, Debug)]
pub struct Participant {
    pub name: String,
    pub role: Role,
    /// As in [`NodeReport::behaviour`].
    pub behaviour: String,
    pub hotkey: Hotkey,
}

/// What the chain says about a neuron at the end.
#[derive(Clone, Copy, Debug)]
pub struct Neuron {
    pub uid: Uid,
    pub hotkey: Hotkey,
    /// Shares among the subnet's miners and among its validators, which add up to 65535.
    pub incentive: u16,
    pub dividends: u16,
    /// Total paid to it so far, in rao.
    pub emission_rao: u64,
}

/// Windows that stay open behind the newest one that a node has settled.
const OPEN_WINDOWS: u64 = 64;

/// Collects events into a report.
#[derive(Debug)]
pub struct Recorder {
    participants: Vec<Participant>,
    windows: BTreeMap<u64, Gathered>,
    /// Windows of which nothing more is expected, without what each node told of them: a long run needs no more memory.
    closed: BTreeMap<u64, WindowReport>,
    nodes: BTreeMap<String, NodeState>,
}

#[derive(Debug, Default)]
struct Gathered {
    /// By node: the result of the window as that node saw it.
    settled: BTreeMap<String, Settled>,
    faults: Vec<FaultReport>,
    misvotes: Vec<Misvote>,
    /// Miners that published their key.
    opened: BTreeSet<Uid>,
    /// By node: how the window ended for it.
    outcomes: BTreeMap<String, Outcome>,
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
    uid: Option<Uid>,
    state_root: Hash32,
    troubles: u64,
    faults: Vec<FaultCount>,
    /// By miner: the newest score that this validator gave.
    scores: BTreeMap<Uid, f64>,
    /// How many closed windows ended in which way for it.
    ended: BTreeMap<String, u64>,
}

impl Recorder {
    pub fn new(participants: Vec<Participant>) -> Self {
        Self { participants, windows: BTreeMap::new(), closed: BTreeMap::new(), nodes: BTreeMap::new() }
    }

    pub fn record(&mut self, event: &NodeEvent) {
        let name = event.node.clone();
        let node = self.nodes.entry(name.clone()).or_default();
        event.event.count_faults(&mut node.faults);
        if window_of(&event.event).is_some_and(|window| self.closed.contains_key(&window)) {
            return;
        }
        match &event.event {
            Event::Started { uid, state_root, .. } => {
                node.starts += 1;
                node.uid = Some(*uid);
                node.state_root = *state_root;
            }
            Event::Registered { uid } => node.uid = Some(*uid),
            Event::Opened { window } => {
                self.windows.entry(*window).or_default().opened.extend(node.uid);
            }
            Event::Ended { window, outcome } => {
                self.windows.entry(*window).or_default().outcomes.insert(name, outcome.clone());
            }
            Event::Adopted { state_root, .. } => node.state_root = *state_root,
            Event::Trouble { .. } => node.troubles += 1,
            Event::Evaluated { scores, .. } => node.scores.extend(scores.iter().copied()),
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
                // Every node reports it.
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
                self.close_before(window.saturating_sub(OPEN_WINDOWS));
            }
            Event::Validated { window, loss, bits_per_byte } => {
                self.windows.entry(*window).or_default().validated.insert(name, (*loss, *bits_per_byte));
            }
            _ => {}
        }
    }

    fn close_before(&mut self, window: u64) {
        while let Some(first) = self.windows.first_entry()
            && *first.key() < window
        {
            let (window, gathered) = first.remove_entry();
            for (name, outcome) in &gathered.outcomes {
                *self.nodes.entry(name.clone()).or_default().ended.entry(outcome.kind().to_owned()).or_default() += 1;
            }
            self.closed.insert(window, gathered.report(window));
        }
    }

    /// How many nodes have settled `window`.
    pub fn settled(&self, window: u64) -> usize {
        let closed = self.closed.get(&window).map_or(0, |closed| closed.settled_by as usize);
        self.windows.get(&window).map_or(closed, |gathered| gathered.settled.len())
    }

    /// Whether θ after `window` was validated.
    pub fn validated(&self, window: u64) -> bool {
        let closed = self.closed.get(&window).is_some_and(|closed| closed.val_loss.is_some());
        self.windows.get(&window).map_or(closed, |gathered| !gathered.validated.is_empty())
    }

    /// How a window ended for a node, if it has reported that.
    pub fn outcome(&self, window: u64, node: &str) -> Option<&Outcome> {
        self.windows.get(&window)?.outcomes.get(node)
    }

    /// The uid that a node last had.
    pub fn uid(&self, node: &str) -> Option<Uid> {
        self.nodes.get(node)?.uid
    }

    /// What is known about a window so far.
    pub fn window(&self, window: u64) -> WindowReport {
        if let Some(closed) = self.closed.get(&window) {
            return closed.clone();
        }
        self.windows.get(&window).unwrap_or(&Gathered::default()).report(window)
    }

    /// The whole report, with what the chain says about the nodes.
    pub fn finish(
        &self,
        spec: &RunSpec,
        seed: u64,
        windows_planned: u64,
        neurons: &[Neuron],
        late: (Vec<Late>, u64),
        mut last: Final,
    ) -> Report {
        // Nodes go on for a moment after the last planned window.
        let reached = self.windows.range(..windows_planned);
        let reached = reached.map(|(window, gathered)| gathered.report(*window));
        let closed = self.closed.range(..windows_planned).map(|(_, closed)| closed.clone());
        let windows: Vec<WindowReport> = closed.chain(reached).collect();
        let last_window = windows_planned.saturating_sub(1);
        let nodes =
            self.participants.iter().filter_map(|participant| self.node(participant, last_window, neurons)).collect();
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

    fn node(&self, participant: &Participant, last_window: u64, neurons: &[Neuron]) -> Option<NodeReport> {
        let neuron = neurons.iter().find(|neuron| neuron.hotkey == participant.hotkey)?;
        let scores: Vec<f64> = self.nodes.values().filter_map(|node| node.scores.get(&neuron.uid).copied()).collect();
        let share = |of: fn(&Neuron) -> u16| {
            let total: f64 = neurons.iter().map(|neuron| f64::from(of(neuron))).sum();
            if total > 0.0 { f64::from(of(neuron)) / total } else { 0.0 }
        };
        let state = self.nodes.get(&participant.name);
        // With a fixed block time, the network goes on while its slowest node finishes the last window.
        let last_root = self.windows.get(&last_window).and_then(|window| window.settled.get(&participant.name));
        let last_root = last_root.map(|settled| settled.state_root);
        Some(NodeReport {
            uid: neuron.uid,
            name: participant.name.clone(),
            role: participant.role,
            behaviour: participant.behaviour.clone(),
            final_state_root: last_root.or(state.map(|state| state.state_root)).unwrap_or_default(),
            // An empty sum is -0.0, which no table should show.
            score: scores.iter().fold(0.0, |sum, score| sum + score) / scores.len().max(1) as f64,
            weight: match participant.role {
                Role::Miner => share(|neuron| neuron.incentive),
                Role::Validator => share(|neuron| neuron.dividends),
            },
            emission: neuron.emission_rao as f64 / 1e9,
            restarts: state.map_or(0, |state| state.starts.saturating_sub(1)),
            troubles: state.map_or(0, |state| state.troubles),
            faults: state.map_or_else(Vec::new, |state| state.faults.clone()),
            outcomes: self.outcomes(&participant.name, last_window),
        })
    }
}

impl Recorder {
    /// How many windows up to `last_window` ended in which way for `node`.
    fn outcomes(&self, node: &str, last_window: u64) -> BTreeMap<String, u64> {
        let mut counts = self.nodes.get(node).map(|node| node.ended.clone()).unwrap_or_default();
        for outcome in self.windows.range(..=last_window).filter_map(|(_, gathered)| gathered.outcomes.get(node)) {
            *counts.entry(outcome.kind().to_owned()).or_default() += 1;
        }
        counts
    }
}

/// The window that an event is about, if its part in a report is one of a window's.
fn window_of(event: &Event) -> Option<u64> {
    match event {
        Event::Opened { window }
        | Event::Ended { window, .. }
        | Event::Trained { window, .. }
        | Event::Sealed { window, .. }
        | Event::Voted { window, .. }
        | Event::Misvoted { window, .. }
        | Event::Settled { window, .. }
        | Event::Validated { window, .. } => Some(*window),
        _ => None,
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

    /// For how many nodes the window ended like this.
    fn count(&self, is: impl Fn(&Outcome) -> bool) -> u64 {
        self.outcomes.values().filter(|outcome| is(outcome)).count() as u64
    }

    fn report(&self, window: u64) -> WindowReport {
        let mut counts: BTreeMap<Hash32, usize> = BTreeMap::new();
        self.settled.values().for_each(|settled| *counts.entry(settled.state_root).or_default() += 1);
        let state_root = counts.iter().max_by_key(|(_, count)| **count).map_or_else(Hash32::default, |(root, _)| *root);
        // As seen by the nodes with this root: another node's verdict belongs to another history.
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
            opened: self
                .opened
                .iter()
                .copied()
                .chain(accepted.iter().copied())
                .collect::<BTreeSet<_>>()
                .into_iter()
                .collect(),
            no_seat: self.count(|outcome| matches!(outcome, Outcome::NoSeat { .. })),
            excluded: self.count(|outcome| *outcome == Outcome::Excluded),
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
mod tests;

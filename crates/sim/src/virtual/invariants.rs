//! What must hold whatever happens, checked while the nodes run: by every event, at every block, and at the end.
//!
//! Nodes that a scenario calls honest are held to it, and so is the network as a whole. A failure that the scenario itself
//! injected into a node ([`Disturbances`]) explains that this node falls behind; it never explains two states, an exclusion
//! or a proof against an honest node.

mod bounds;
mod disturbances;
mod violation;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use templar_chain::DevChain;
use templar_node::frame::error::NodeError;
use templar_protocol::clock::Schedule;
use templar_protocol::fault::{CheckpointFault, Fault, FaultKind, Party};
use templar_protocol::hash::Hash32;
use templar_protocol::roster::Uid;
use templar_protocol::run::RunSpec;
use templar_record::event::{Event, NodeEvent, Role, Verdict};
use templar_record::outcome::Outcome;
use templar_store::MemoryCloud;

use crate::plan::Member;

pub use self::disturbances::Disturbances;
pub use self::violation::{Invariant, Violation};

/// Settled windows of a node that may still be replaced.
const UNCONFIRMED_MAX: usize = 16;
/// Violations that are kept; one is enough to fail.
const VIOLATIONS_MAX: usize = 64;

/// A certificate as a node read it: who was accepted and who excluded, or None for a null window. A step that was withheld
/// does not say who was excluded.
type Reading = Option<(Vec<Uid>, Option<Vec<Uid>>)>;

/// What is known of a node.
#[derive(Debug)]
struct Known {
    role: Role,
    stake_rao: u64,
    /// The roots of θ after the windows that it settled, of which the next votes may still disapprove.
    roots: BTreeMap<u64, Hash32>,
    settled: u64,
    events: u64,
}

/// Checks one simulation.
#[derive(Debug)]
pub struct Invariants {
    seed: u64,
    spec: RunSpec,
    schedule: Schedule,
    disturbances: Disturbances,
    /// The honest nodes, by name.
    honest: BTreeMap<String, Known>,
    /// Their names by uid: members register in this order.
    names: BTreeMap<Uid, String>,
    nodes: usize,
    stake_rao: u64,
    /// The first node's root and reading of each window, and whose it was.
    roots: BTreeMap<u64, (String, Hash32)>,
    readings: BTreeMap<u64, (String, Reading)>,
    violations: Vec<Violation>,
    /// What is told once for each window and node.
    told: BTreeSet<(Invariant, u64, String)>,
}

impl Invariants {
    /// Nothing has happened yet. `members` are in the order of their uids.
    pub fn new(seed: u64, spec: &RunSpec, members: &[Member], disturbances: Disturbances) -> Self {
        let honest = members.iter().zip(0..).filter(|(member, _)| member.adversary.is_none());
        let known = |member: &Member| Known {
            role: member.role,
            stake_rao: member.stake_rao,
            roots: BTreeMap::new(),
            settled: 0,
            events: 0,
        };
        Self {
            seed,
            spec: spec.clone(),
            schedule: Schedule::new(spec),
            disturbances,
            names: honest.clone().map(|(member, uid)| (Uid(uid), member.name.clone())).collect(),
            honest: honest.map(|(member, _)| (member.name.clone(), known(member))).collect(),
            nodes: members.len(),
            stake_rao: members.iter().map(|member| member.stake_rao).sum(),
            roots: BTreeMap::new(),
            readings: BTreeMap::new(),
            violations: Vec::new(),
            told: BTreeSet::new(),
        }
    }

    /// Everything that did not hold, in the order in which it was seen.
    pub fn into_violations(self) -> Vec<Violation> {
        self.violations
    }

    /// Takes in what a node tells. What dishonest ones tell says nothing.
    pub fn hear(&mut self, NodeEvent { node, event }: &NodeEvent) {
        let Some(known) = self.honest.get_mut(node) else { return };
        known.events += 1;
        match event {
            Event::Settled { window, verdict, state_root, .. } => self.on_settled(node, *window, verdict, *state_root),
            Event::Diverged { .. } => known.roots.clear(),
            Event::Adopted { settled, .. } => {
                known.roots.clear();
                known.settled = known.settled.max(*settled);
            }
            Event::Ended { window, outcome } => self.on_ended(node, *window, outcome),
            Event::Voted { window, faults, .. } => {
                for fault in faults {
                    self.on_fault(node, *window, fault);
                }
            }
            Event::Misvoted { window, uid, cause, .. } => self.on_blame(node, *window, *uid, "its vote", cause),
            Event::Unlisted { window, uid, cause, .. } => self.on_blame(node, *window, *uid, "its bucket", cause),
            Event::CheckpointRefused { uid, fault, .. } if is_false(*fault) => {
                let window = self.honest[node].settled;
                self.on_blame(node, window, *uid, "its checkpoint", &fault.to_string());
            }
            _ => {}
        }
    }

    fn on_settled(&mut self, node: &str, window: u64, verdict: &Verdict, root: Hash32) {
        let reading = match verdict {
            Verdict::Certified { accepted, excluded } => Some((accepted.clone(), Some(excluded.clone()))),
            Verdict::Withheld { accepted } => Some((accepted.clone(), None)),
            Verdict::TooFewVotes | Verdict::NoMajority => None,
        };
        let Some(known) = self.honest.get_mut(node) else { return };
        known.settled = known.settled.max(window + 1);
        known.roots.insert(window, root);
        while known.roots.len() > UNCONFIRMED_MAX {
            known.roots.pop_first();
        }
        // Its votes stand on the state before it, or on the one before that.
        let base = self.schedule.settled_before(window).checked_sub(1);
        let confirmed = base.filter(|_| reading.is_some()).and_then(|base| Some((base, *known.roots.get(&base)?)));
        if let Some((base, root)) = confirmed {
            let (first, known_root) = self.roots.entry(base).or_insert_with(|| (node.to_owned(), root)).clone();
            if known_root != root {
                self.fail(Invariant::EqualRoots, base, node, || format!("{root}, but {first} has {known_root}"));
            }
        }
        if let Some((_, Some(excluded))) = &reading {
            let names: Vec<String> = excluded.iter().filter_map(|uid| self.names.get(uid).cloned()).collect();
            if !names.is_empty() && self.is_majority_honest() {
                self.fail(Invariant::NobodyExcluded, window, node, || format!("it reads that {names:?} are excluded"));
            }
        }
        if reading.is_none() && self.has_quorum(window) {
            self.fail(Invariant::Progress, window, node, || format!("it reads {verdict:?}"));
        }
        self.compare(node, window, &reading);
    }

    fn compare(&mut self, node: &str, window: u64, reading: &Reading) {
        let (first, known) = self.readings.entry(window).or_insert_with(|| (node.to_owned(), reading.clone())).clone();
        let agree = match (&known, reading) {
            (None, None) => true,
            (Some((accepted, excluded)), Some((other, others))) => {
                accepted == other && (excluded.is_none() || others.is_none() || excluded == others)
            }
            _ => false,
        };
        if !agree {
            let seen = || format!("it reads {reading:?}, but {first} reads {known:?}");
            self.fail(Invariant::OneCertificate, window, node, seen);
        }
    }

    fn on_ended(&mut self, node: &str, window: u64, outcome: &Outcome) {
        match outcome {
            Outcome::Denied | Outcome::Excluded if self.is_majority_honest() => {
                self.fail(Invariant::NobodyExcluded, window, node, || outcome.to_string());
            }
            Outcome::NotAccepted if self.disturbances.is_calm(node, window) && self.has_quorum(window) => {
                self.fail(Invariant::Heard, window, node, || outcome.to_string());
            }
            _ => {}
        }
    }

    fn on_fault(&mut self, node: &str, window: u64, fault: &Fault) {
        let Some(blamed) = self.names.get(&fault.entry.uid).cloned() else { return };
        // Who falls behind for a reason that was injected may be told so.
        let may_lapse = matches!(
            fault.kind,
            FaultKind::NotCommitted | FaultKind::NotOpened | FaultKind::WrongBase | FaultKind::Possession
        );
        // To drip a key is no cheaper than to keep it, so a validator that does not get one in time takes it for kept; its
        // own poor link looks the same. Others outvote it.
        let is_own_link = fault.kind == FaultKind::NotOpened && self.disturbances.has_poor_link(node, window);
        // Without a calm quorum, nobody may serve the state that it needs to take part.
        let is_behind = may_lapse && !(self.disturbances.is_calm(&blamed, window) && self.has_quorum(window));
        let is_explained = is_own_link || is_behind;
        if fault.attributed_to == Party::Miner && !is_explained {
            self.fail(Invariant::NobodyBlamed, window, node, || format!("it blames {blamed}: {}", fault.kind));
        }
    }

    fn on_blame(&mut self, node: &str, window: u64, uid: Uid, what: &str, cause: &str) {
        if let Some(blamed) = self.names.get(&uid).cloned() {
            self.fail(Invariant::NobodyBlamed, window, node, || format!("it blames {blamed} for {what}: {cause}"));
        }
    }

    /// Looks at what no event tells, before `block` is made.
    pub fn at_block(&mut self, block: u64, chain: &DevChain, cloud: &MemoryCloud) {
        let Some(window) = self.schedule.window_at(block) else { return };
        if self.schedule.first_block(window) != block {
            return;
        }
        self.check_emission(window, chain);
        let events_max = bounds::events_max(&self.spec, self.nodes);
        for (name, role) in self.honest_names() {
            let (objects, objects_max) = (cloud.keys(&name).len(), bounds::objects_max(&self.spec, role));
            if objects > objects_max {
                let seen = || format!("{objects} objects in its bucket, where {objects_max} are enough");
                self.fail(Invariant::Bounded, window, &name, seen);
            }
            let events = self.honest.get_mut(&name).map_or(0, |known| std::mem::take(&mut known.events));
            if events > events_max {
                let seen = || format!("{events} events in a window, where {events_max} are enough");
                self.fail(Invariant::Bounded, window, &name, seen);
            }
            self.check_pace(window, &name);
        }
    }

    /// A node without a failure follows the chain.
    fn check_pace(&mut self, window: u64, node: &str) {
        let behind = 2 + u64::from(self.spec.windows.delay_windows);
        let Some(due) = window.checked_sub(behind) else { return };
        let settled = self.honest[node].settled;
        if settled <= due && self.disturbances.is_calm(node, window) {
            let seen = || format!("it has settled {settled} windows, where {} are decided", due + 1);
            self.fail(Invariant::Progress, window, node, seen);
        }
    }

    fn check_emission(&mut self, window: u64, chain: &DevChain) {
        let config = chain.config();
        let paid_rao: u64 = chain.emissions().iter().map(|neuron| neuron.emission_rao).sum();
        let found_rao = paid_rao + chain.owner_emission_rao();
        let epochs = chain.newest().number / config.tempo_blocks;
        // Before the first regular epoch there may have been one that gave out the permits.
        if epochs == 0 {
            return;
        }
        let emitted_rao = epochs * config.tempo_blocks * config.emission_rao_per_block;
        if found_rao != emitted_rao {
            let seen = || format!("{found_rao} rao are paid or burned of {emitted_rao} emitted");
            self.fail(Invariant::EmissionConserved, window, "chain", seen);
        }
    }

    /// A node ended with an error.
    pub fn note_failure(&mut self, node: &str, error: &NodeError) {
        if let Some(settled) = self.honest.get(node).map(|known| known.settled) {
            self.fail(Invariant::NoEnd, settled, node, || error.to_string());
        }
    }

    /// Looks at what is left, in the folder of each node.
    pub fn at_end(&mut self, chain: &DevChain, folder: &dyn Fn(&str) -> PathBuf, members: &[Member]) {
        let window = self.schedule.window_at(chain.newest().number).unwrap_or(0);
        self.check_emission(window, chain);
        for member in members.iter().filter(|member| member.adversary.is_none()) {
            if let Some(seen) = bounds::too_many_files(&folder(&member.name)) {
                self.fail(Invariant::Bounded, window, &member.name, || seen);
            }
        }
    }

    fn honest_names(&self) -> Vec<(String, Role)> {
        self.honest.iter().map(|(name, known)| (name.clone(), known.role)).collect()
    }

    fn is_majority_honest(&self) -> bool {
        let honest_rao: u64 = self.honest.values().map(|known| known.stake_rao).sum();
        2 * honest_rao > self.stake_rao
    }

    /// Whether validators with more than half of all stake are honest and without a failure.
    fn has_quorum(&self, window: u64) -> bool {
        // With overlap, votes on a window are cast in the next one.
        let voted_in = window + self.spec.windows.vote_block / self.spec.windows.blocks;
        let is_calm = |name: &str| (window..=voted_in).all(|window| self.disturbances.is_calm(name, window));
        let calm_rao: u64 =
            self.honest.iter().filter(|(name, _)| is_calm(name)).map(|(_, known)| known.stake_rao).sum();
        2 * calm_rao > self.stake_rao
    }

    fn fail(&mut self, invariant: Invariant, window: u64, node: &str, seen: impl FnOnce() -> String) {
        let is_new = self.told.insert((invariant, window, node.to_owned()));
        if is_new && self.violations.len() < VIOLATIONS_MAX {
            let (seed, node) = (self.seed, node.to_owned());
            self.violations.push(Violation { seed, window, node, invariant, seen: seen() });
        }
    }
}

/// Whether a checkpoint is wrong, rather than slow or not whole yet.
fn is_false(fault: CheckpointFault) -> bool {
    matches!(
        fault,
        CheckpointFault::StateMalformed
            | CheckpointFault::StateMismatch
            | CheckpointFault::ThetaLength
            | CheckpointFault::ThetaMismatch
    )
}

#[cfg(test)]
mod tests;

//! What a table consists of: one cell per simulation.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use templar_record::event::Role;
use templar_record::report::{NodeReport, Report};

/// Windows of each simulation.
pub(super) const WINDOWS: u64 = 12;

/// A network for one role's adversaries.
pub(super) struct Network {
    pub(super) miners: usize,
    pub(super) validators: usize,
    /// How many misbehave: about 10, 30 and 45 % of the role.
    pub(super) counts: [usize; 3],
    /// Seats for everybody, and far fewer.
    pub(super) seats: [u32; 2],
}

pub(super) fn network(role: Role) -> Network {
    match role {
        Role::Miner => Network { miners: 20, validators: 3, counts: [2, 6, 9], seats: [20, 5] },
        Role::Validator => Network { miners: 8, validators: 11, counts: [1, 3, 5], seats: [8, 3] },
    }
}

/// One simulation of the table.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key {
    /// None for the network of honest nodes alone, without `count` of them, that others are compared with.
    pub(super) kind: Option<&'static str>,
    pub(super) role: &'static str,
    pub(super) count: usize,
    pub(super) seats: u32,
    pub(super) seed: u64,
}

/// What came of one simulation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Cell {
    /// Mean pay of the adversaries in units of the mean pay of the honest nodes of their role; none if nobody was paid.
    pub pay: Option<f64>,
    /// Held-out loss at the end.
    pub loss: Option<f64>,
    /// Windows in which an honest node was excluded or denied, over all honest nodes.
    pub honest_exclusions: u64,
    pub certified: u64,
    /// Why there is nothing to tell, if the simulation broke off.
    pub broke: Option<String>,
}

/// Everything that has been simulated, by the words of its key.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Cells {
    pub(super) engine: String,
    pub(super) cells: BTreeMap<String, Cell>,
}

impl Key {
    pub(super) fn words(&self) -> String {
        let Self { kind, role, count, seats, seed } = self;
        format!("{} {role} {count} {seats} {seed}", kind.unwrap_or("honest"))
    }
}

pub(super) fn role_name(role: Role) -> &'static str {
    match role {
        Role::Miner => "miner",
        Role::Validator => "validator",
    }
}

impl Cell {
    pub(super) fn of(report: &Report, role: Option<Role>) -> Self {
        let is_honest = |node: &&NodeReport| node.behaviour == "honest";
        let mean_pay = |honest: bool| {
            let nodes = report.nodes.iter().filter(|node| Some(node.role) == role && is_honest(node) == honest);
            let pays: Vec<f64> = nodes.map(|node| node.emission).collect();
            pays.iter().sum::<f64>() / pays.len().max(1) as f64
        };
        let (bad, good) = (mean_pay(false), mean_pay(true));
        let lost =
            |node: &NodeReport| ["excluded", "denied"].iter().filter_map(|kind| node.outcomes.get(*kind)).sum::<u64>();
        Self {
            pay: (good > 0.0).then(|| bad / good),
            loss: report.windows.iter().rev().find_map(|window| window.val_loss),
            honest_exclusions: report.nodes.iter().filter(is_honest).map(lost).sum(),
            certified: report.windows.iter().filter(|window| window.certified).count() as u64,
            broke: None,
        }
    }
}

impl Cells {
    pub(super) fn get(&self, key: &Key) -> Option<&Cell> {
        self.cells.get(&key.words())
    }
}

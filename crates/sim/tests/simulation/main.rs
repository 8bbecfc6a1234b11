//! The protocol under a virtual clock: what must hold whatever happens to nodes, disks and buckets.

#![allow(clippy::unwrap_used, reason = "helpers of tests panic as tests do")]

mod audit;
mod checkpoints;
mod closed;
mod crashes;
mod damage;
mod duties;
mod feedback;
mod forger;
mod ground;
mod hostile;
mod miners_ends;
mod outages;
mod own_bucket;
mod pay;
mod presence;
mod protocol;
mod published;
mod rescue;
mod schedule;
mod storage;
mod validators_ends;
mod withheld;
mod words;
mod zoo;

use std::time::Duration;

use templar_protocol::fault::FaultKind;
use templar_protocol::roster::Uid;
use templar_protocol::run::{RunSpec, Transform};
use templar_record::event::{Event, NodeEvent};
use templar_record::outcome::Outcome as End;
use templar_record::report::WindowReport;
use templar_sim::r#virtual::scenario::{Incident, Outcome, Scenario, What};

/// Virtual time from the first operation on the cloud to a block of a window.
fn time(window: u64, block: u64) -> Duration {
    Duration::from_secs(12 * (20 + 20 * window + block - 1))
}

fn run(scenario: Scenario) -> Outcome {
    let folder = tempfile::tempdir().unwrap();
    let outcome = scenario.run(folder.path());
    assert!(outcome.failures.is_empty(), "{:?}", outcome.failures);
    outcome
}

fn assert_one_history(outcome: &Outcome) {
    for window in &outcome.report.windows {
        assert!(window.one_root, "{window:?}");
    }
    let last = outcome.report.windows.last().unwrap().state_root;
    for node in &outcome.report.nodes {
        assert_eq!(node.final_state_root, last, "{}", node.name);
    }
}

/// A run whose contributions are coefficients of the cosine transform.
fn in_coefficients(spec: &mut RunSpec) {
    spec.codec.transform = Transform::Dct;
    let chunk = spec.codec.chunk as usize;
    assert!(spec.layout().tensors().iter().any(|tensor| tensor.range().len() >= chunk), "something is transformed");
}

fn certified(outcome: &Outcome) -> Vec<bool> {
    outcome.report.windows.iter().map(|window| window.certified).collect()
}

/// After the commitment and before the key: a miner that is killed here has something to lose.
const MID_WINDOW: u64 = 5;

fn at(window: u64, block: u64, what: What) -> Incident {
    Incident { window, block, what }
}

fn kill(node: &str, window: u64) -> Incident {
    at(window, MID_WINDOW, What::Kill(node.into()))
}

fn start(node: &str, window: u64) -> Incident {
    at(window, MID_WINDOW, What::Start(node.into()))
}

fn faults_of(window: &WindowReport, uid: u16) -> Vec<FaultKind> {
    window.faults.iter().filter(|fault| fault.uid == Uid(uid)).map(|fault| fault.fault).collect()
}

fn any(outcome: &Outcome, node: &str, test: impl Fn(&Event) -> bool) -> bool {
    outcome.log.iter().any(|NodeEvent { node: name, event }| name == node && test(event))
}

fn count(outcome: &Outcome, node: &str, test: impl Fn(&Event) -> bool) -> usize {
    outcome.log.iter().filter(|NodeEvent { node: name, event }| name == node && test(event)).count()
}

fn trained(outcome: &Outcome, node: &str, wanted: u64) -> bool {
    any(outcome, node, |event| matches!(event, Event::Trained { window, .. } if *window == wanted))
}

/// How each window ended for a node, as it told.
fn ends(outcome: &Outcome, node: &str) -> Vec<(u64, End)> {
    let end = |event: &Event| match event {
        Event::Ended { window, outcome } => Some((*window, outcome.clone())),
        _ => None,
    };
    outcome.log.iter().filter(|logged| logged.node == node).filter_map(|logged| end(&logged.event)).collect()
}

fn voted(outcome: &Outcome, node: &str, wanted: u64) -> bool {
    any(outcome, node, |event| matches!(event, Event::Voted { window, .. } if *window == wanted))
}

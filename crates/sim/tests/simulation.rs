//! The protocol under a virtual clock: what must hold whatever happens to nodes, disks and buckets.

#![allow(clippy::unwrap_used, reason = "helpers of tests panic as tests do")]

use std::path::Path;
use std::time::Duration;

use templar_node::events::{Event, NodeEvent, Source, Verdict};
use templar_node::local::Local;
use templar_protocol::fault::{FaultKind, Party};
use templar_protocol::roster::Uid;
use templar_protocol::run::RunSpec;
use templar_protocol::state::RunState;
use templar_sim::plan::Behaviour;
use templar_sim::report::WindowReport;
use templar_sim::simulation::{Incident, Outcome, Scenario};
use templar_store::{Fault, OpKind};

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

fn certified(outcome: &Outcome) -> Vec<bool> {
    outcome.report.windows.iter().map(|window| window.certified).collect()
}

fn kill(node: &str, window: u64) -> Incident {
    Incident::Kill { node: node.into(), window }
}

fn start(node: &str, window: u64) -> Incident {
    Incident::Start { node: node.into(), window }
}

fn faults_of(window: &WindowReport, uid: u16) -> Vec<FaultKind> {
    window.faults.iter().filter(|fault| fault.uid == Uid(uid)).map(|fault| fault.fault).collect()
}

fn any(outcome: &Outcome, node: &str, test: impl Fn(&Event) -> bool) -> bool {
    outcome.log.iter().any(|NodeEvent { node: name, event }| name == node && test(event))
}

#[test]
fn an_honest_network_certifies_every_window_and_learns() {
    let outcome = run(Scenario::new(4, 2, 6, 1));
    assert_one_history(&outcome);
    assert_eq!(certified(&outcome), [true; 6]);
    for window in &outcome.report.windows {
        assert_eq!(window.accepted.len(), 4, "{window:?}");
        assert!(window.faults.is_empty(), "{window:?}");
    }
    let loss = |nth: usize| outcome.report.windows[nth].val_loss.unwrap();
    assert!(loss(5) < loss(2) && loss(2) < loss(0), "{} {} {}", loss(0), loss(2), loss(5));
    for node in &outcome.report.nodes {
        assert!(node.weight > 0.0 && node.emission > 0.0 && node.troubles == 0, "{node:?}");
    }
}

#[test]
fn one_seed_gives_one_event_log() {
    let scenario = || {
        let mut scenario = Scenario::new(3, 2, 4, 7);
        scenario.incidents = vec![kill("miner-1", 1), start("miner-1", 2)];
        scenario
    };
    let (first, second) = (run(scenario()), run(scenario()));
    assert!(first.log.len() > 60);
    assert_eq!(first.log, second.log);
    assert_ne!(run(Scenario::new(3, 2, 4, 8)).log, first.log);
}

#[test]
fn noise_earns_less_than_a_tenth_of_honest_work() {
    let mut scenario = Scenario::new(4, 2, 8, 2);
    scenario.plan.adversaries = vec![Behaviour::Noise];
    let outcome = run(scenario);
    let weight = |uid: usize| outcome.report.nodes[uid].weight;
    assert_eq!(outcome.report.nodes[3].behaviour, Behaviour::Noise);
    for honest in 0..3 {
        assert!(weight(3) < 0.1 * weight(honest), "noise {} honest {}", weight(3), weight(honest));
    }
}

#[test]
fn what_is_committed_and_never_opened_does_not_count() {
    let mut scenario = Scenario::new(3, 2, 6, 3);
    scenario.plan.adversaries = vec![Behaviour::Withhold];
    let outcome = run(scenario);
    assert_one_history(&outcome);
    assert_eq!(faults_of(&outcome.report.windows[0], 2), [FaultKind::NotOpened]);
    let mut accepted = outcome.report.windows[0].accepted.clone();
    accepted.sort();
    assert_eq!(accepted, [Uid(0), Uid(1)]);
    assert!(outcome.report.nodes[2].weight < 1e-9);
}

#[test]
fn validators_that_saw_different_objects_end_with_one_certificate() {
    let mut scenario = Scenario::new(3, 2, 4, 4);
    // The key of miner-1 reaches validator-0 too late in window 1; validator-1 has it in time.
    scenario.cloud_fault = Some(Box::new(|op| {
        let late = op.kind == OpKind::Get && op.actor == "validator-0" && op.bucket == "miner-1";
        (late && op.key.ends_with("00000001/key")).then_some(Fault::NotFound)
    }));
    let outcome = run(scenario);
    assert_one_history(&outcome);
    assert_eq!(certified(&outcome), [true; 4]);
    let window = &outcome.report.windows[1];
    // One of two equal stakes accepted it: ties reject.
    assert!(!window.accepted.contains(&Uid(1)) && window.accepted.len() == 2, "{window:?}");
    assert_eq!(faults_of(window, 1), [FaultKind::NotOpened]);
}

#[test]
fn one_of_two_validators_absent_does_not_stop_the_run() {
    let mut scenario = Scenario::new(3, 2, 7, 5);
    scenario.incidents = vec![kill("validator-1", 1), start("validator-1", 4)];
    let outcome = run(scenario);
    assert_eq!(certified(&outcome), [true; 7]);
    assert_one_history(&outcome);
    let voted = |window: u64| {
        any(&outcome, "validator-1", |event| matches!(event, Event::Voted { window: voted, .. } if *voted == window))
    };
    assert!(voted(0) && !voted(2) && voted(6));
}

#[test]
fn without_a_quorum_theta_stays() {
    let mut scenario = Scenario::new(3, 2, 7, 6);
    scenario.incidents =
        vec![kill("validator-0", 2), kill("validator-1", 2), start("validator-0", 4), start("validator-1", 4)];
    let outcome = run(scenario);
    assert_one_history(&outcome);
    assert_eq!(certified(&outcome), [true, true, false, false, true, true, true]);
    let root = |nth: usize| outcome.report.windows[nth].state_root;
    assert!(root(1) == root(2) && root(2) == root(3) && root(3) != root(4));
    let no_quorum = |event: &Event| matches!(event, Event::Settled { verdict: Verdict::NoQuorum, window: 2, .. });
    assert!(any(&outcome, "miner-0", no_quorum));
}

/// Moves the newest state on disk to another θ, root and all: what a node with a broken memory would have.
fn diverge(folder: &Path, spec: &RunSpec) {
    let mut local = Local::open(folder, spec.id()).unwrap();
    let layout = spec.layout();
    let state = local.states(spec.id()).unwrap().remove(0);
    let mut theta = local.theta(&state, &layout).unwrap();
    theta[7] += 1.0;
    let wrong = RunState { theta_root: layout.state_root(&theta), ..state };
    local.save(&wrong, &theta, &[]).unwrap();
}

#[test]
fn a_minority_goes_back_to_the_last_quorum_root_and_replays() {
    for node in ["validator-2", "miner-0"] {
        let mut scenario = Scenario::new(3, 3, 8, 7);
        let (at, node_name) = (3, node.to_owned());
        scenario.incidents =
            vec![kill(node, at), Incident::Disk { node: node_name, window: at, change: diverge }, start(node, at)];
        let outcome = run(scenario);
        assert!(any(&outcome, node, |event| matches!(event, Event::Diverged { .. })), "{node}");
        assert!(any(&outcome, node, |event| matches!(event, Event::Adopted { .. })), "{node}");
        assert_eq!(certified(&outcome), [true; 8], "{node}");
        let last = outcome.report.windows[7].state_root;
        assert!(outcome.report.windows[7].one_root);
        assert!(outcome.report.nodes.iter().all(|other| other.final_state_root == last), "{node}");
    }
}

#[test]
fn a_payload_deleted_after_the_vote_is_served_by_those_who_voted() {
    let mut scenario = Scenario::new(3, 2, 4, 8);
    // Miners never get anything from miner-0's bucket: as if it were gone when they come for it.
    scenario.cloud_fault = Some(Box::new(|op| {
        let late = op.kind == OpKind::Get && op.actor.starts_with("miner") && op.bucket == "miner-0";
        late.then_some(Fault::NotFound)
    }));
    let outcome = run(scenario);
    assert_one_history(&outcome);
    for window in &outcome.report.windows {
        assert!(window.accepted.contains(&Uid(0)), "{window:?}");
    }
}

#[test]
fn a_killed_miner_comes_back_and_counts_again() {
    let mut scenario = Scenario::new(3, 2, 6, 9);
    scenario.incidents = vec![kill("miner-2", 2), start("miner-2", 2), kill("miner-0", 3), start("miner-0", 4)];
    let outcome = run(scenario);
    assert_one_history(&outcome);
    assert_eq!(certified(&outcome), [true; 6]);
    // miner-2 had committed before it died, and opened after it was back: nothing was lost.
    assert!(outcome.report.windows[2].accepted.contains(&Uid(2)));
    assert!(!outcome.report.windows[3].accepted.contains(&Uid(0)));
    assert_eq!(outcome.report.windows[5].accepted.len(), 3);
    assert_eq!(outcome.report.nodes[0].restarts, 1);
}

#[test]
fn a_node_without_its_disk_starts_from_a_certified_checkpoint() {
    let mut scenario = Scenario::new(3, 2, 9, 10);
    let wipe = |folder: &Path, _: &RunSpec| std::fs::remove_dir_all(folder).unwrap();
    let disk = |node: &str| Incident::Disk { node: node.into(), window: 6, change: wipe };
    scenario.incidents = vec![
        kill("validator-1", 6),
        disk("validator-1"),
        start("validator-1", 6),
        kill("miner-1", 6),
        disk("miner-1"),
        start("miner-1", 6),
    ];
    let outcome = run(scenario);
    for node in ["validator-1", "miner-1"] {
        let adopted =
            |event: &Event| matches!(event, Event::Adopted { from: Source::Checkpoint, settled, .. } if *settled >= 4);
        assert!(any(&outcome, node, adopted), "{node}");
    }
    assert_eq!(certified(&outcome), [true; 9]);
    let last = outcome.report.windows[8].state_root;
    assert!(outcome.report.nodes.iter().all(|node| node.final_state_root == last));
}

#[test]
fn windows_may_overlap_by_one() {
    let mut scenario = Scenario::new(3, 2, 7, 11);
    scenario.adjust = |spec| {
        spec.windows.delay_windows = 1;
        spec.windows.vote_block = 26;
    };
    scenario.incidents = vec![kill("miner-1", 3), start("miner-1", 4)];
    let outcome = run(scenario);
    assert_one_history(&outcome);
    assert_eq!(certified(&outcome), [true; 7]);
    assert_eq!(outcome.report.windows[6].accepted.len(), 3);
    let loss = |nth: usize| outcome.report.windows[nth].val_loss.unwrap();
    assert!(loss(6) < loss(0));
}

#[test]
fn broken_objects_are_faults_with_a_name_and_nothing_else() {
    let cases = [
        ("header", [FaultKind::HeaderMalformed, FaultKind::HeaderMismatch, FaultKind::BadSignature].as_slice()),
        ("payload", &[FaultKind::PayloadMismatch]),
        ("key", &[FaultKind::KeyMismatch]),
    ];
    for (object, expected) in cases {
        let mut scenario = Scenario::new(3, 2, 3, 12);
        scenario.cloud_fault = Some(Box::new(move |op| {
            let hit =
                op.kind == OpKind::Get && op.bucket == "miner-1" && op.key.ends_with(&format!("00000001/{object}"));
            hit.then_some(Fault::Corrupt)
        }));
        let outcome = run(scenario);
        assert_one_history(&outcome);
        assert_eq!(certified(&outcome), [true; 3], "{object}");
        let window = &outcome.report.windows[1];
        let found = faults_of(window, 1);
        assert!(found.len() == 1 && expected.contains(&found[0]), "{object}: {found:?}");
        assert!(window.faults.iter().all(|fault| fault.attributed_to == Party::Miner));
        assert_eq!(window.accepted.len(), 2);
        // Broken is worse than slow: it is no candidate for a while.
        assert!(!outcome.report.windows[2].accepted.contains(&Uid(1)), "{object}");
    }
}

#[test]
fn storage_that_is_down_is_no_fault_of_the_miner_s() {
    let mut scenario = Scenario::new(3, 2, 3, 13);
    scenario.cloud_fault = Some(Box::new(|op| {
        let hit = op.kind == OpKind::Get && op.bucket == "miner-1" && op.key.contains("w/00000001/");
        hit.then_some(Fault::Unavailable)
    }));
    let outcome = run(scenario);
    let window = &outcome.report.windows[1];
    assert_eq!(faults_of(window, 1), [FaultKind::HeaderUnavailable]);
    assert_eq!(window.faults[0].attributed_to, Party::Storage);
    assert!(outcome.report.windows[2].accepted.contains(&Uid(1)), "it may try again at once");
    assert_one_history(&outcome);
}

#[test]
fn a_miner_slower_than_the_cap_is_late_and_does_not_count() {
    let cap = Duration::from_secs(20);
    let paced = |delayed: bool| {
        let mut scenario = Scenario::new(3, 2, 4, 15);
        scenario.pace_cap = Some(cap);
        if delayed {
            // The upload of miner-1 in window 1 takes longer than all blocks to the put deadline wait together.
            scenario.cloud_fault = Some(Box::new(move |op| {
                let slow = op.kind == OpKind::Put && op.actor == "miner-1" && op.key.ends_with("00000001/payload");
                slow.then_some(Fault::Delay(cap * 5))
            }));
        }
        run(scenario)
    };
    let (on_time, delayed) = (paced(false), paced(true));
    assert_eq!(on_time.report.late, []);
    assert_one_history(&on_time);
    assert_one_history(&delayed);
    assert_eq!(certified(&delayed), [true; 4]);
    assert!(!delayed.report.late.is_empty());
    assert!(delayed.report.late.iter().all(|late| late.uid == Uid(1)), "{:?}", delayed.report.late);
    let window = &delayed.report.windows[1];
    assert_eq!(faults_of(window, 1), [FaultKind::NotCommitted]);
    assert!(!window.accepted.contains(&Uid(1)) && window.accepted.len() == 2, "{window:?}");
    let missed = |event: &Event| matches!(event, Event::Missed { window: 1, .. });
    assert!(any(&delayed, "miner-1", missed));
    assert!(delayed.report.windows[3].accepted.contains(&Uid(1)), "it counts again");
}

//! What an honest network does, and what happens when votes or time are short.

use std::time::Duration;

use templar_protocol::fault::FaultKind;
use templar_protocol::roster::Uid;
use templar_record::event::{Event, Verdict};
use templar_record::outcome::{Miss, Outcome};
use templar_sim::r#virtual::scenario::Scenario;
use templar_sim::zoo::attack::{noise, withhold};
use templar_store::{Fault, OpKind};

use crate::{any, assert_one_history, certified, faults_of, in_coefficients, kill, run, start};

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

/// One validator replays, and one miner goes on from its disk.
#[test]
fn a_network_that_sums_coefficients_certifies_every_window_and_learns() {
    let mut scenario = Scenario::new(4, 3, 7, 12);
    scenario.adjust = in_coefficients;
    let stops = [("validator-2", 1, 4), ("miner-1", 3, 4)];
    scenario.incidents = stops.iter().flat_map(|&(node, from, to)| [kill(node, from), start(node, to)]).collect();
    let outcome = run(scenario);
    assert_one_history(&outcome);
    assert_eq!(certified(&outcome), [true; 7]);
    for window in &outcome.report.windows {
        // All but the miner that was stopped before it could publish its key.
        assert!([0, 2, 3].iter().all(|&uid| window.accepted.contains(&Uid(uid))), "{window:?}");
        assert!(window.faults.iter().all(|fault| fault.uid == Uid(1)), "{window:?}");
    }
    let loss = |nth: usize| outcome.report.windows[nth].val_loss.unwrap();
    assert!(loss(6) < loss(3) && loss(3) < loss(0), "{} {} {}", loss(0), loss(3), loss(6));
    assert!(outcome.report.nodes.iter().all(|node| node.weight > 0.0));
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
    scenario.plan.adversaries = vec![noise::KIND];
    let outcome = run(scenario);
    let weight = |uid: usize| outcome.report.nodes[uid].weight;
    assert_eq!(outcome.report.nodes[3].behaviour, noise::KIND.name);
    for honest in 0..3 {
        assert!(weight(3) < 0.1 * weight(honest), "noise {} honest {}", weight(3), weight(honest));
    }
}

#[test]
fn what_is_committed_and_never_opened_does_not_count() {
    let mut scenario = Scenario::new(3, 2, 6, 3);
    scenario.plan.adversaries = vec![withhold::KIND];
    let outcome = run(scenario);
    assert_one_history(&outcome);
    assert_eq!(faults_of(&outcome.report.windows[0], 2), [FaultKind::NotOpened]);
    let mut accepted = outcome.report.windows[0].accepted.clone();
    accepted.sort();
    assert_eq!(accepted, [Uid(0), Uid(1)]);
    assert!(outcome.report.nodes[2].weight < 1e-9);
}

#[test]
fn without_half_of_the_stake_theta_stays() {
    let mut scenario = Scenario::new(3, 2, 7, 6);
    scenario.incidents =
        vec![kill("validator-0", 2), kill("validator-1", 2), start("validator-0", 4), start("validator-1", 4)];
    let outcome = run(scenario);
    assert_one_history(&outcome);
    assert_eq!(certified(&outcome), [true, true, false, false, true, true, true]);
    let root = |nth: usize| outcome.report.windows[nth].state_root;
    assert!(root(1) == root(2) && root(2) == root(3) && root(3) != root(4));
    let too_few = |event: &Event| matches!(event, Event::Settled { verdict: Verdict::TooFewVotes, window: 2, .. });
    assert!(any(&outcome, "miner-0", too_few));
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
    let missed = |event: &Event| {
        matches!(event, Event::Ended { window: 1, outcome: Outcome::Missed { why: Miss::UploadTooLate } })
    };
    assert!(any(&delayed, "miner-1", missed));
    assert!(delayed.report.windows[3].accepted.contains(&Uid(1)), "it counts again");
}

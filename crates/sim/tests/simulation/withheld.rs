//! Payloads that most validators accept and that cannot be had: the window's step is withheld, and the run goes on.

use templar_protocol::roster::Uid;
use templar_record::event::{Event, Verdict};
use templar_record::outcome::Outcome as End;
use templar_sim::r#virtual::scenario::{Outcome, Scenario};
use templar_sim::zoo::attack::accept_all;
use templar_sim::zoo::failure::outage::during;
use templar_sim::zoo::layers::{forge_uploads, published};
use templar_store::{Fault, OpKind};

use crate::{any, assert_one_history, certified, count, ends, faults_of, run, time};

fn withheld(event: &Event) -> bool {
    matches!(event, Event::Settled { window: 1, verdict: Verdict::Withheld { .. }, .. })
}

fn nodes(outcome: &Outcome) -> Vec<String> {
    outcome.report.nodes.iter().map(|node| node.name.clone()).collect()
}

#[test]
fn what_nobody_serves_is_withheld_everywhere_and_the_run_goes_on() {
    let mut scenario = Scenario::new(3, 3, 6, 130);
    // miner-1 never publishes the key of window 1, and all validators vote for its contribution.
    scenario.wrap("miner-1", |setup| {
        forge_uploads(setup, |key, bytes| {
            if published(key) == Some((1, "key")) { Vec::new() } else { vec![(key.to_owned(), bytes)] }
        })
    });
    for validator in ["validator-0", "validator-1", "validator-2"] {
        scenario.wrap(validator, |setup| accept_all::wrap(setup, 1, 3, 3));
    }
    let outcome = run(scenario);
    assert_one_history(&outcome);
    let root = |nth: usize| outcome.report.windows[nth].state_root;
    assert!(root(0) == root(1) && root(1) != root(2));
    for node in nodes(&outcome) {
        assert_eq!(count(&outcome, &node, withheld), 1, "{node}");
        assert_eq!(count(&outcome, &node, |event| matches!(event, Event::Diverged { .. })), 0, "{node}");
    }
    for miner in ["miner-0", "miner-2"] {
        let ended: Vec<End> = ends(&outcome, miner).into_iter().map(|(_, end)| end).collect();
        assert_eq!(ended[..3], [End::Counted, End::Withheld, End::Counted], "{miner}");
    }
    for window in &outcome.report.windows {
        assert!(faults_of(window, 0).is_empty() && faults_of(window, 2).is_empty(), "{window:?}");
    }
    assert_eq!(certified(&outcome)[2..], [true; 4]);
    assert!(outcome.report.windows[2..].iter().all(|window| window.accepted.len() == 3));
}

#[test]
fn nodes_go_back_when_a_withheld_payload_comes_after_all() {
    let mut scenario = Scenario::new(4, 3, 6, 131);
    // miner-0 gets nothing of miner-1's in window 1, from anybody, until the fourth block of window 2.
    scenario.cloud_fault = Some(during(time(0, 1)..time(2, 4), Fault::NotFound, |op| {
        let is_its = op.key.contains("/held/00000001/") || op.bucket == "miner-1" && op.key.contains("/w/00000001/");
        op.kind == OpKind::Get && op.actor == "miner-0" && is_its
    }));
    let outcome = run(scenario);
    assert_eq!(certified(&outcome), [true; 6]);
    assert_one_history(&outcome);
    let applied = |event: &Event| matches!(event, Event::Settled { window: 1, verdict: Verdict::Certified { .. }, .. });
    assert_eq!((count(&outcome, "miner-0", withheld), count(&outcome, "miner-0", applied)), (1, 1));
    let lost = |event: &Event| matches!(event, Event::Diverged { .. } | Event::Adopted { .. });
    assert!(!any(&outcome, "miner-0", lost), "it had the right state before the votes told it");
    for node in nodes(&outcome).into_iter().filter(|node| node != "miner-0") {
        assert_eq!((count(&outcome, &node, withheld), count(&outcome, &node, applied)), (0, 1), "{node}");
    }
    for window in &outcome.report.windows {
        assert!(faults_of(window, 1).is_empty(), "{window:?}");
    }
    assert!(outcome.report.windows[3].accepted.contains(&Uid(0)), "it counts again");
}

/// Once votes stand on the withheld state, a payload that comes late changes nothing: not while they are cast, nor for
/// whoever has it when they have decided.
#[test]
fn a_payload_that_comes_when_votes_are_cast_comes_too_late_for_everybody() {
    for (seed, block) in [(132, 13), (133, 15), (134, 17)] {
        let mut scenario = Scenario::new(3, 3, 6, seed);
        scenario.cloud_fault = Some(during(time(0, 1)..time(2, block), Fault::NotFound, |op| {
            op.kind == OpKind::Get && op.bucket == "miner-1" && op.key.ends_with("/w/00000001/key")
        }));
        for validator in ["validator-0", "validator-1", "validator-2"] {
            scenario.wrap(validator, |setup| accept_all::wrap(setup, 1, 3, 3));
        }
        let outcome = run(scenario);
        assert_one_history(&outcome);
        for node in nodes(&outcome) {
            assert_eq!(count(&outcome, &node, withheld), 1, "{node}, block {block}");
            assert!(!any(&outcome, &node, |event| matches!(event, Event::Diverged { .. })), "{node}, block {block}");
        }
        assert_eq!(certified(&outcome)[2..], [true; 4], "block {block}");
        let roots: Vec<_> = outcome.report.windows.iter().map(|window| window.state_root.short()).collect();
        assert_eq!(roots[1], roots[0], "block {block}: {roots:?}");
    }
}

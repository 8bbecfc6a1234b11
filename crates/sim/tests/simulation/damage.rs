//! Damage to a node's own disk: told once, with what it costs, and the node goes on.

use std::path::Path;

use templar_protocol::keys::Hotkey;
use templar_protocol::roster::Uid;
use templar_protocol::run::RunSpec;
use templar_record::event::Event;
use templar_record::trouble::{LocalPart, Trouble};
use templar_sim::r#virtual::scenario::{Outcome, Scenario, What};
use templar_sim::zoo::failure::disk::spoil;

use crate::{MID_WINDOW, assert_one_history, at, kill, run, start};

type Change = fn(&Path, &RunSpec, &Hotkey);

/// A run in which something happens to `node`'s disk in mid-window.
fn with_damage(node: &str, window: u64, seed: u64, change: Change) -> Outcome {
    let mut scenario = Scenario::new(3, 2, window + 3, seed);
    scenario.incidents =
        vec![kill(node, window), at(window, MID_WINDOW, What::Disk(node.into(), change)), start(node, window)];
    let outcome = run(scenario);
    assert_one_history(&outcome);
    outcome
}

fn damages(outcome: &Outcome, node: &str) -> Vec<LocalPart> {
    let damage = |event: &Event| match event {
        Event::Trouble { trouble: Trouble::LocalDamage { what, .. } } => Some(*what),
        _ => None,
    };
    outcome.log.iter().filter(|logged| logged.node == node).filter_map(|logged| damage(&logged.event)).collect()
}

#[test]
fn what_was_learned_and_not_sent_is_said_to_be_lost() {
    let cases: [(Change, LocalPart); 2] = [
        (|folder, _, _| spoil(folder, "error-"), LocalPart::ErrorFeedback),
        (|folder, _, _| spoil(folder, "payload-"), LocalPart::Pending { window: 3 }),
    ];
    for (change, what) in cases {
        let outcome = with_damage("miner-1", 3, 110, change);
        assert_eq!(damages(&outcome, "miner-1"), [what]);
        assert!(outcome.report.windows[4].accepted.contains(&Uid(1)), "it counts again after losing {what}");
    }
}

#[test]
fn moments_that_are_lost_start_afresh() {
    let outcome = with_damage("miner-1", 3, 111, |folder, _, _| spoil(folder, "optimiser-"));
    assert_eq!(damages(&outcome, "miner-1"), [LocalPart::Optimiser]);
    assert!(outcome.report.windows[4].accepted.contains(&Uid(1)));
}

#[test]
fn a_theta_that_is_not_its_root_s_gives_way_to_what_can_be_had() {
    for node in ["miner-1", "validator-1"] {
        let outcome = with_damage(node, 6, 112, |folder, _, _| spoil(folder, "theta-"));
        let states: Vec<LocalPart> = (4..=6).rev().map(|settled| LocalPart::Theta { settled }).collect();
        assert_eq!(damages(&outcome, node), states);
    }
}

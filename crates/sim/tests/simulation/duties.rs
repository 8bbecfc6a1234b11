//! Duties in time: what a node owes to the newest window, and what it must not do for older ones, nor after its end.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use templar_protocol::keys::Keypair;
use templar_protocol::roster::Uid;
use templar_record::event::{Event, Role};
use templar_sim::r#virtual::scenario::{Outcome, Scenario, What};
use templar_sim::zoo::failure::outage::clock;
use templar_store::{Fault, OpKind};

use crate::{assert_one_history, at, certified, count, kill, run, start, trained};

/// The windows after which `node` set weights, and whose.
fn weighed(outcome: &Outcome, node: &str) -> Vec<(u64, Vec<Uid>)> {
    let weighed = |event: &Event| match event {
        Event::Weighed { window, weights, .. } => {
            // The owner's uid, which gets what nobody earned, follows those of the nodes.
            let miners = weights.iter().map(|(uid, _)| *uid).filter(|uid| uid.0 < 5);
            Some((*window, miners.collect()))
        }
        _ => None,
    };
    outcome.log.iter().filter(|logged| logged.node == node).filter_map(|logged| weighed(&logged.event)).collect()
}

#[test]
fn a_replay_pays_nobody_and_publishes_nothing() {
    let mut scenario = Scenario::new(3, 3, 8, 80);
    scenario.incidents = vec![kill("validator-1", 2), start("validator-1", 6)];
    let outcome = run(scenario);
    assert_one_history(&outcome);
    assert_eq!(certified(&outcome), [true; 8]);
    let windows: Vec<u64> = weighed(&outcome, "validator-1").into_iter().map(|(window, _)| window).collect();
    assert!(windows.iter().all(|window| ![2, 3, 4].contains(window)), "{windows:?}");
    assert!([1, 5, 6, 7].iter().all(|window| windows.contains(window)), "{windows:?}");
    // Checkpoints are due after four windows and after eight; validator-1 replayed the former.
    let checkpoints = |node: &str| outcome.cloud.keys(node).iter().filter(|key| key.ends_with("/state")).count();
    assert_eq!((checkpoints("validator-0"), checkpoints("validator-1")), (2, 1));
}

#[test]
fn a_uid_that_is_another_s_by_now_is_not_paid_for_its_predecessor() {
    let mut scenario = Scenario::new(3, 2, 5, 81);
    scenario.adjust_chain = |config| {
        (config.max_uids, config.max_validators, config.immunity_blocks) = (6, 2, 0);
    };
    // In mid-window a stranger takes the uid of the miner with the lowest incentive.
    let evict = What::Shared(|chain, _, _| {
        chain.register(Keypair::insecure_dev(0, "stranger").hotkey(), 0).unwrap();
    });
    scenario.incidents = vec![at(3, 13, evict)];
    let folder = tempfile::tempdir().unwrap();
    // The evicted miner goes on trying.
    let outcome = scenario.run(folder.path());
    for validator in ["validator-0", "validator-1"] {
        let weighed = weighed(&outcome, validator);
        let of = |window: u64| &weighed.iter().find(|(found, _)| *found == window).unwrap().1;
        assert_eq!((of(2).len(), of(3).len(), of(4).len()), (3, 2, 2), "{weighed:?}");
    }
}

#[test]
fn weights_carry_the_version_key_that_the_subnet_demands() {
    let mut scenario = Scenario::new(3, 2, 4, 82);
    scenario.adjust_chain = |config| config.weights_version_key = 7;
    let outcome = run(scenario);
    assert!(!weighed(&outcome, "validator-0").is_empty());
    assert!(outcome.report.nodes.iter().all(|node| node.weight > 0.0 && node.troubles == 0));
}

#[test]
fn a_deadline_that_passes_while_a_node_is_busy_is_seen() {
    let mut scenario = Scenario::new(3, 2, 4, 83);
    let mut now = clock();
    // miner-1 gets nothing of window 0 before window 1 begins, at block 40. Then it takes eleven blocks to get it, one
    // more than it may train.
    let begins = Duration::from_secs(12 * 39 - 1);
    scenario.cloud_fault = Some(Box::new(move |op| {
        let now = now();
        let hit = op.kind == OpKind::Get && op.actor == "miner-1" && op.key.contains("/00000000/");
        let delay_s = if op.key.ends_with("/payload") { 115 } else { 9 };
        let delay = if now < begins { Fault::NotFound } else { Fault::Delay(Duration::from_secs(delay_s)) };
        hit.then_some(delay)
    }));
    let outcome = run(scenario);
    assert_eq!(certified(&outcome), [true; 4]);
    assert!(trained(&outcome, "miner-1", 0) && trained(&outcome, "miner-1", 2));
    assert!(!trained(&outcome, "miner-1", 1), "there was no time left for it");
    assert_one_history(&outcome);
}

#[test]
fn a_node_that_is_stopped_in_a_replay_asks_for_nothing_more() {
    let mut scenario = Scenario::new(3, 2, 3, 84);
    let last: Arc<Mutex<Duration>> = Arc::default();
    let (seen, mut now) = (last.clone(), clock());
    scenario.cloud_fault = Some(Box::new(move |op| {
        let now = now();
        if op.actor != "miner-1" || op.kind != OpKind::Get {
            return None;
        }
        *seen.lock().unwrap() = now;
        // It never gets a contribution, and is always waiting for some object or other.
        Some(if op.key.ends_with("/payload") { Fault::NotFound } else { Fault::Delay(Duration::from_secs(8)) })
    }));
    run(scenario);
    let end = Duration::from_secs(12 * (20 * 4 + 12));
    let last = *last.lock().unwrap();
    assert!(last > end / 2 && last <= end, "{last:?} of {end:?}");
}

#[test]
fn a_quota_that_binds_costs_windows_and_nothing_else() {
    // Three windows in an epoch, of which the first begins with block 0, and room for two words of each node.
    let mut scenario = Scenario::new(3, 2, 7, 85);
    scenario.adjust_chain = |config| (config.tempo_blocks, config.commitment_quota_bytes) = (60, 299);
    let outcome = run(scenario);
    assert_one_history(&outcome);
    // The first two of each epoch; in the first epoch, nodes list their buckets, too.
    assert_eq!(certified(&outcome), [true, false, true, true, false, true, true]);
    for node in &outcome.report.nodes {
        let told = |part: &str| {
            count(
                &outcome,
                &node.name,
                |event| matches!(event, Event::Trouble { trouble } if trouble.to_string().contains(part)),
            )
        };
        assert_eq!(told("a run on this subnet needs longer windows"), 1, "{}", node.name);
        // Once an epoch, however often the node comes by. The third has seen headers of its third window, and no votes.
        let refusals = if node.role == Role::Miner { 3 } else { 2 };
        assert_eq!(told("exceeds the quota"), refusals, "{}", node.name);
        assert_eq!(node.troubles, 1 + refusals as u64, "{}", node.name);
    }
}

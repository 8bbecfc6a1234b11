//! Checkpoints: false ones cost their victims little, and no upload keeps a validator from its duties.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use templar_node::frame::origin::Origin;
use templar_node::frame::weights::Weights;
use templar_protocol::fault::CheckpointFault;
use templar_protocol::roster::Uid;
use templar_protocol::run::Theta0Source;
use templar_record::event::{Cause, Event, FaultCount, Source};
use templar_record::trouble::Trouble;
use templar_sim::r#virtual::scenario::{Incident, Outcome, Scenario, What};
use templar_sim::zoo::attack::false_checkpoint::{self, Falsehood};
use templar_sim::zoo::failure::disk;
use templar_store::{Fault, OpKind};

use crate::{MID_WINDOW, any, assert_one_history, at, certified, count, kill, run, start, voted};

/// The node loses its disk.
fn wipe(node: &str, window: u64) -> [Incident; 3] {
    [kill(node, window), at(window, MID_WINDOW, What::Disk(node.into(), disk::wipe)), start(node, window)]
}

/// Who was refused by `node`, and for what.
fn refused(outcome: &Outcome, node: &str) -> Vec<(Uid, CheckpointFault)> {
    let refused = |event: &Event| match event {
        Event::CheckpointRefused { uid, fault, .. } => Some((*uid, *fault)),
        _ => None,
    };
    outcome.log.iter().filter(|logged| logged.node == node).filter_map(|logged| refused(&logged.event)).collect()
}

#[test]
fn a_false_checkpoint_is_refused_by_name_and_an_honest_one_is_found() {
    for falsehood in Falsehood::ALL {
        let fault = falsehood.fault();
        let mut scenario = Scenario::new(3, 3, 9, 70);
        // All validators but validator-2 lie so.
        for validator in ["validator-0", "validator-1"] {
            scenario.wrap(validator, move |setup| false_checkpoint::wrap(setup, falsehood));
        }
        if falsehood == Falsehood::NoPrevious {
            scenario.adjust = |spec| {
                spec.windows.delay_windows = 1;
                spec.windows.vote_block = 26;
            };
        }
        scenario.incidents = ["miner-0", "miner-1"].iter().flat_map(|node| wipe(node, 7)).collect();
        let outcome = run(scenario);
        assert_eq!(certified(&outcome), [true; 9], "{fault:?}");
        assert_one_history(&outcome);
        let mut met = 0;
        for (nth, node) in ["miner-0", "miner-1"].into_iter().enumerate() {
            let adopted = |event: &Event| matches!(event, Event::Adopted { from: Source::Checkpoint, .. });
            assert!(any(&outcome, node, adopted), "{node}: {fault:?}");
            let refused = refused(&outcome, node);
            assert!(refused.iter().all(|(_, found)| *found == fault), "{node}: {refused:?}");
            assert!(refused.iter().filter(|(uid, _)| *uid == Uid(3)).count() <= 1, "{node}: {refused:?}");
            assert!(refused.iter().filter(|(uid, _)| *uid == Uid(4)).count() <= 1, "{node}: {refused:?}");
            let counted = FaultCount { cause: Cause::Checkpoint(fault), count: refused.len() as u64 };
            let faults = &outcome.report.nodes[nth].faults;
            assert!(refused.is_empty() || faults.contains(&counted), "{node}: {faults:?}");
            met += refused.len();
        }
        assert!(met > 0, "nobody asked a liar first: {fault:?}");
    }
}

/// θ₀ of a run that starts from weights may be a long download: here nobody serves it any more.
#[test]
fn who_joins_late_takes_a_checkpoint_and_never_asks_for_theta0() {
    let mut scenario = Scenario::new(3, 3, 9, 70);
    scenario.adjust = |spec| spec.theta0.source = Theta0Source::Weights;
    let nodes = ["miner-0", "miner-1", "miner-2", "validator-0", "validator-1", "validator-2"];
    for node in nodes {
        let is_first = AtomicBool::new(true);
        scenario.wrap(node, move |mut setup| {
            let origin = Origin { folder: setup.state_folder.join("weights"), bucket: setup.store.own().clone() };
            if is_first.swap(false, Ordering::Relaxed) {
                let (layout, spec) = (setup.spec.layout(), &setup.spec);
                Weights::write(&origin.folder, &layout, &layout.theta0(&spec.model, spec.theta0.seed)).unwrap();
            }
            setup.weights = Some(origin);
            setup
        });
    }
    scenario.incidents = wipe("miner-0", 7).to_vec();
    let outcome = run(scenario);
    assert_eq!(certified(&outcome), [true; 9]);
    assert_one_history(&outcome);
    assert!(any(&outcome, "miner-0", |event| matches!(event, Event::Adopted { from: Source::Checkpoint, .. })));
}

#[test]
fn nodes_do_not_all_ask_the_same_validator_first() {
    let mut scenario = Scenario::new(12, 3, 5, 171);
    // Nobody serves a checkpoint, so everybody asks everybody.
    for validator in ["validator-0", "validator-1", "validator-2"] {
        scenario.wrap(validator, |setup| false_checkpoint::wrap(setup, Falsehood::NoTheta));
    }
    scenario.incidents = (0..12).flat_map(|nth| wipe(&format!("miner-{nth}"), 4)).collect();
    scenario.adjust = |spec| spec.windows.checkpoint_every_windows = 1;
    let outcome = run(scenario);
    let first = |nth: usize| refused(&outcome, &format!("miner-{nth}")).first().map(|(uid, _)| *uid);
    let firsts: Vec<Option<Uid>> = (0..12).map(first).collect();
    assert!([12, 13, 14].iter().all(|uid| firsts.contains(&Some(Uid(*uid)))), "{firsts:?}");
}

#[test]
fn a_liar_is_asked_once_in_a_period_and_not_at_every_attempt() {
    let mut scenario = Scenario::new(3, 2, 15, 72);
    scenario.plan.adversaries = vec![false_checkpoint::KIND; 2];
    // The first contributions are served no more, so it can neither replay nor take a checkpoint: it tries at each block.
    scenario.incidents = wipe("miner-1", 13).to_vec();
    let outcome = run(scenario);
    assert_eq!(certified(&outcome), [true; 15]);
    let attempts = count(&outcome, "miner-1", |event| matches!(event, Event::Adopted { .. }));
    assert!(attempts > 10, "{attempts}");
    let mut uids: Vec<Uid> = refused(&outcome, "miner-1").into_iter().map(|(uid, _)| uid).collect();
    uids.sort();
    assert_eq!(uids, [Uid(3), Uid(4)]);
}

#[test]
fn a_checkpoint_that_is_long_under_way_keeps_nobody_from_voting() {
    let mut scenario = Scenario::new(3, 2, 7, 73);
    // More than a window and a half.
    scenario.cloud_fault = Some(Box::new(|op| {
        let hit = op.kind == OpKind::Put && op.actor == "validator-0" && op.key.contains("/theta/");
        hit.then_some(Fault::Delay(Duration::from_secs(400)))
    }));
    let outcome = run(scenario);
    assert_one_history(&outcome);
    assert!((0..7).all(|window| voted(&outcome, "validator-0", window)));
    let whole = outcome.cloud.keys("validator-0").iter().any(|key| key.ends_with("/state"));
    assert!(whole, "it is published in the end");
}

#[test]
fn a_checkpoint_that_was_given_up_is_removed_by_the_next_one() {
    let mut scenario = Scenario::new(3, 2, 8, 74);
    scenario.adjust = |spec| spec.windows.checkpoint_every_windows = 2;
    // The first checkpoint of validator-0 is never whole: it is given up after four windows.
    let mut first = None;
    scenario.cloud_fault = Some(Box::new(move |op| {
        let is_state = op.kind == OpKind::Put && op.actor == "validator-0" && op.key.ends_with("/state");
        let hit = is_state && first.get_or_insert_with(|| op.key.clone()) == &op.key;
        hit.then_some(Fault::Delay(Duration::from_hours(1000)))
    }));
    let outcome = run(scenario);
    assert_one_history(&outcome);
    let failed =
        |event: &Event| matches!(event, Event::Trouble { trouble: Trouble::CheckpointFailed { settled: 2, .. } });
    assert_eq!(count(&outcome, "validator-0", failed), 1);
    let left = outcome.cloud.keys("validator-0");
    let digests = |object: &str| {
        let keys = left.iter().filter(|key| key.contains("/checkpoint/") && key.contains(object));
        keys.map(|key| key.split('/').nth(3).unwrap()).collect::<std::collections::BTreeSet<_>>()
    };
    assert!(!digests("/state").is_empty(), "{left:?}");
    assert_eq!(digests("/theta/"), digests("/state"), "{left:?}");
}

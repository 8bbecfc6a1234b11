//! Attacks that today's rules stop, each with the figure that says so.

use std::sync::{Arc, Mutex};

use templar_protocol::fault::FaultKind;
use templar_protocol::roster::Uid;
use templar_record::event::{Event, NodeEvent, Role};
use templar_sim::r#virtual::scenario::{Outcome, Scenario};
use templar_sim::zoo::attack::{
    absence, censor, equivocator, flood, framer, lazy, partial_bucket, re_registrant, twin, unserver, withhold,
};
use templar_sim::zoo::kind::{Kind, Part};
use templar_sim::zoo::layers::rewrite_commitments;
use templar_store::OpKind;

use crate::{assert_one_history, certified, count, run};

fn with(miners: usize, validators: usize, windows: u64, kinds: &[Kind]) -> Scenario {
    let mut scenario = Scenario::new(miners, validators, windows, 150);
    scenario.plan.adversaries = kinds.to_vec();
    scenario
}

/// Mean pay of the miners of a kind, in units of an honest miner's.
fn pay(outcome: &Outcome, kind: Kind) -> f64 {
    let mean = |behaviour: &str| {
        let alike = outcome.report.nodes.iter().filter(|node| node.role == Role::Miner && node.behaviour == behaviour);
        let pay: Vec<f64> = alike.map(|node| node.emission).collect();
        pay.iter().sum::<f64>() / pay.len() as f64
    };
    mean(kind.name) / mean("honest")
}

fn accepted(outcome: &Outcome) -> Vec<Vec<u16>> {
    let sorted = |uids: &[Uid]| {
        let mut uids: Vec<u16> = uids.iter().map(|uid| uid.0).collect();
        uids.sort_unstable();
        uids
    };
    outcome.report.windows.iter().map(|window| sorted(&window.accepted)).collect()
}

fn ended(outcome: &Outcome, node: &str, how: &str) -> u64 {
    let node = outcome.report.nodes.iter().find(|found| found.name == node).unwrap();
    node.outcomes.get(how).copied().unwrap_or_default()
}

#[test]
fn rows_that_no_text_uses_find_nobody_guilty_and_earn_nothing() {
    let outcome = run(with(10, 3, 8, &[framer::KIND; 3]));
    let alone = run(with(7, 3, 8, &[]));
    assert_one_history(&outcome);
    for (window, accepted) in outcome.report.windows.iter().zip(accepted(&outcome)) {
        // They are each other's copies at most.
        let copies = window.faults.iter().all(|fault| fault.fault == FaultKind::Duplicate && fault.uid >= Uid(7));
        assert!(copies && accepted.starts_with(&[0, 1, 2, 3, 4, 5, 6]), "{window:?}");
    }
    assert!(pay(&outcome, framer::KIND) <= 0.05, "{}", pay(&outcome, framer::KIND));
    let loss = |outcome: &Outcome| outcome.report.windows[7].val_loss.unwrap();
    assert!(loss(&outcome) <= 1.02 * loss(&alone), "{} {}", loss(&outcome), loss(&alone));
}

#[test]
fn idle_registrants_lose_their_seats_and_are_not_paid() {
    let mut scenario = with(32, 2, 8, &[absence::IDLE; 24]);
    scenario.adjust = |spec| (spec.roster.gather, spec.roster.reserve) = (12, 0);
    let outcome = run(scenario);
    assert_one_history(&outcome);
    let counts: Vec<usize> = accepted(&outcome).iter().map(Vec::len).collect();
    assert!(counts[0] < 8, "{counts:?}: it would show nothing");
    assert_eq!(counts[4..], [8; 4], "{counts:?}");
    assert!(pay(&outcome, absence::IDLE) <= 1e-9);
}

#[test]
fn a_quitter_loses_its_seat_to_whoever_waits() {
    let mut scenario = with(6, 2, 14, &[absence::QUITTER; 3]);
    scenario.adjust = |spec| (spec.roster.gather, spec.roster.reserve) = (4, 0);
    let outcome = run(scenario);
    assert_one_history(&outcome);
    let accepted = accepted(&outcome);
    let by_quitters = |window: usize| accepted[window].iter().filter(|uid| **uid >= 3).count();
    assert!((0..6).any(|window| by_quitters(window) > 0), "{accepted:?}: it would show nothing");
    // Nine missed seats of three quitters, two or three in each window. The fourth seat is one for newcomers, as they are then.
    assert!((11..14).all(|window| accepted[window].len() == 3 && by_quitters(window) == 0), "{accepted:?}");
}

/// How many count in each window where a censor has this stake, and an honest validator that one.
fn censored(honest_rao: u64, censor_rao: u64) -> Vec<usize> {
    let mut scenario = with(3, 2, 5, &[censor::CENSOR]);
    scenario.stakes_rao = [("validator-0".into(), honest_rao), ("validator-1".into(), censor_rao)].into();
    let outcome = run(scenario);
    assert_one_history(&outcome);
    accepted(&outcome).iter().map(Vec::len).collect()
}

#[test]
fn a_censor_needs_half_of_the_stake() {
    let tao = 1_000_000_000_000;
    assert_eq!(censored(2 * tao, tao), [3; 5]);
    assert_eq!(censored(tao + 1, tao), [3; 5]);
    // Ties reject, and more than half decides.
    assert_eq!(censored(tao, tao), [0; 5]);
    assert_eq!(censored(tao, tao + 1), [0; 5]);
}

#[test]
fn weights_of_less_than_half_of_the_stake_pay_no_absent_friend() {
    let mut scenario = with(4, 2, 8, &[absence::IDLE, censor::FRIEND]);
    scenario.stakes_rao = [("validator-0".into(), 1_001_000_000_000), ("validator-1".into(), 999_000_000_000)].into();
    let outcome = run(scenario);
    assert_one_history(&outcome);
    let paid = |event: &Event| matches!(event, Event::Weighed { weights, .. } if !weights.is_empty());
    assert!(count(&outcome, "validator-1", paid) > 4, "it would show nothing");
    assert!(pay(&outcome, absence::IDLE) <= 1e-9);
}

#[test]
fn whoever_fetches_nothing_has_no_vote() {
    for kind in [lazy::LAZY, lazy::BLIND_VOTER] {
        let outcome = run(with(4, 3, 8, &[withhold::KIND, kind]));
        assert_one_history(&outcome);
        assert_eq!(certified(&outcome), [true; 8]);
        assert!(accepted(&outcome).iter().all(|accepted| *accepted == [0, 1, 2]), "{kind}");
        // Its first vote is found out in the second window, by all the others, and it is denied from the third on.
        assert_eq!(ended(&outcome, "validator-2", "denied"), 6, "{kind}: {:?}", outcome.report.nodes[6].outcomes);
        let honest = ["validator-0", "validator-1"].map(|node| ended(&outcome, node, "voted"));
        assert_eq!(honest, [8; 2], "{kind}");
    }
}

#[test]
fn what_one_validator_does_not_serve_another_does() {
    // Odd nodes cannot read miner-3's bucket, and of two validators that can, one serves nothing.
    let outcome = run(with(4, 3, 6, &[partial_bucket::KIND, unserver::KIND]));
    assert_one_history(&outcome);
    assert!(accepted(&outcome).iter().all(|accepted| *accepted == [0, 1, 2, 3]), "{:?}", accepted(&outcome));
    let held = |node: &str| outcome.cloud.keys(node).iter().filter(|key| key.contains("/held/")).count();
    assert!(held("validator-0") > 0 && held("validator-2") == 0);
    let withheld: u64 = outcome.report.nodes.iter().map(|node| ended(&outcome, &node.name, "withheld")).sum();
    assert_eq!(withheld, 0);
}

#[test]
fn of_two_votes_in_a_window_everybody_counts_the_last() {
    let votes: Arc<Mutex<Vec<Vec<u8>>>> = Arc::default();
    let all_honest = run(with(3, 3, 4, &[]));
    let mut scenario = with(3, 3, 4, &[]);
    let seen = votes.clone();
    scenario.wrap("validator-2", move |setup| {
        let seen = seen.clone();
        rewrite_commitments(setup, move |fields| seen.lock().unwrap().extend(fields.get(2).cloned()))
    });
    scenario.wrap("validator-2", |setup| (equivocator::KIND.wrap)(setup, Part { nth: 0, of: 1 }));
    let outcome = run(scenario);
    let votes = votes.lock().unwrap();
    let roots: Vec<&[u8]> = votes.iter().map(|vote| &vote[..37]).collect();
    assert_eq!(roots.len(), 8);
    assert!(roots.chunks(2).all(|pair| pair[0][..5] == pair[1][..5] && pair[0] != pair[1]));
    assert_eq!(outcome.log, all_honest.log);
}

#[test]
fn a_flood_of_requests_changes_nothing_for_anybody() {
    let all_honest = run(with(4, 2, 5, &[]));
    let requests: Arc<Mutex<usize>> = Arc::default();
    let mut scenario = with(4, 2, 5, &[flood::KIND]);
    let seen = requests.clone();
    scenario.cloud_fault = Some(Box::new(move |op| {
        let is_flood = op.kind == OpKind::Get && op.actor == "miner-3" && op.bucket == "miner-0";
        *seen.lock().unwrap() += usize::from(is_flood);
        None
    }));
    let outcome = run(scenario);
    assert!(*requests.lock().unwrap() >= 5 * flood::REQUESTS);
    let logged = |outcome: &Outcome| {
        outcome.log.iter().map(|NodeEvent { node, event }| format!("{node} {event:?}")).collect::<Vec<_>>()
    };
    assert_eq!(logged(&outcome), logged(&all_honest));
}

#[test]
fn an_exclusion_outlasts_a_registration() {
    let outcome = run(with(6, 2, 9, &[re_registrant::KIND; 3]));
    assert_one_history(&outcome);
    assert!(accepted(&outcome).iter().all(|accepted| *accepted == [0, 1, 2]), "{:?}", accepted(&outcome));
    assert_eq!(
        outcome.report.windows[0].faults.iter().filter(|fault| fault.fault == FaultKind::PayloadTooLarge).count(),
        1
    );
    // Those that did nothing wrong but share the bucket, too.
    assert_eq!(["miner-3", "miner-4", "miner-5"].map(|node| ended(&outcome, node, "excluded")), [8; 3]);
}

#[test]
fn copies_are_paid_once_at_most() {
    let outcome = run(with(6, 2, 8, &[twin::KIND; 3]));
    assert_one_history(&outcome);
    assert!(pay(&outcome, twin::KIND) <= 0.05);
    assert_eq!(accepted(&outcome)[0].iter().filter(|uid| **uid >= 3).count(), 1);
}

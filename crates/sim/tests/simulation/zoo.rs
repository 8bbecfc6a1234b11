//! Every attack that rehearsals offer by name, each in a small network: what must hold whatever it tries.

use templar_protocol::roster::Uid;
use templar_record::event::Role;
use templar_sim::r#virtual::scenario::{Outcome, Scenario};
use templar_sim::zoo::attack::{KINDS, equivocator, false_checkpoint, flood};
use templar_sim::zoo::kind::Kind;

use crate::{assert_one_history, certified, run};

/// Longer than the kinds that turn bad are honest.
const WINDOWS: u64 = 8;

/// All that can be seen of a run from outside: events, buckets, and pay.
fn seen(outcome: &Outcome) -> String {
    let nodes = &outcome.report.nodes;
    let buckets: Vec<_> = nodes.iter().map(|node| outcome.cloud.keys(&node.name)).collect();
    let pay: Vec<f64> = nodes.iter().map(|node| node.emission).collect();
    format!("{:?} {buckets:?} {pay:?}", outcome.log)
}

/// What must hold for everybody else in a network of which one is of `kind`: one history, progress in every window, and
/// nobody honest blamed, excluded or denied.
fn assert_harmless(scenario: Scenario, kind: Kind) -> Outcome {
    let members = scenario.plan.members();
    let outcome = run(scenario);
    assert_one_history(&outcome);
    assert!(certified(&outcome).iter().all(|certified| *certified), "{kind}");
    for (member, node) in members.iter().zip(&outcome.report.nodes) {
        if member.adversary.is_some() {
            assert_eq!(node.behaviour, kind.name);
            continue;
        }
        assert_eq!(node.behaviour, "honest");
        for bad in ["excluded", "denied", "outvoted"] {
            assert_eq!(node.outcomes.get(bad), None, "{kind}: {} {:?}", node.name, node.outcomes);
        }
    }
    let honest = |uid: Uid| members[usize::from(uid.0)].adversary.is_none();
    let miners = members.iter().filter(|member| member.role == Role::Miner && member.adversary.is_none()).count();
    for window in &outcome.report.windows {
        let blamed: Vec<_> = window.faults.iter().filter(|fault| honest(fault.uid)).collect();
        assert!(blamed.is_empty(), "{kind}: {blamed:?}");
        let counted = window.accepted.iter().filter(|uid| honest(**uid)).count();
        assert_eq!(counted, miners, "{kind}: {window:?}");
    }
    outcome
}

#[test]
fn no_attack_alone_stops_the_run_splits_it_or_gets_honest_nodes_blamed() {
    // Nobody fetches a checkpoint here, and a vote that another replaces, or who reads, changes nothing at all.
    let silent = [false_checkpoint::KIND, equivocator::KIND, flood::KIND];
    let network = || Scenario::new(4, 3, WINDOWS, 120);
    let all_honest = seen(&run(network()));
    for &kind in KINDS {
        let mut scenario = network();
        scenario.plan.adversaries = vec![kind];
        let outcome = assert_harmless(scenario, kind);
        assert_eq!(seen(&outcome) == all_honest, silent.contains(&kind), "{kind} does nothing");
    }
}

#[test]
fn with_just_less_than_half_of_the_stake_no_validator_stops_the_run() {
    for &kind in KINDS.iter().filter(|kind| kind.role == Role::Validator) {
        let mut scenario = Scenario::new(3, 2, 5, 121);
        scenario.plan.adversaries = vec![kind];
        scenario.stakes_rao =
            [("validator-0".into(), 1_001_000_000_000), ("validator-1".into(), 999_000_000_000)].into();
        assert_harmless(scenario, kind);
    }
}

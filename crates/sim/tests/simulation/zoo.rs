//! Every attack that rehearsals offer by name, each in a small network: what must hold whatever it tries.

use templar_protocol::roster::Uid;
use templar_sim::r#virtual::scenario::{Outcome, Scenario};
use templar_sim::zoo::attack::{KINDS, censor, false_checkpoint};

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

#[test]
fn no_attack_alone_stops_the_run_splits_it_or_gets_honest_miners_blamed() {
    let network = || Scenario::new(4, 3, WINDOWS, 120);
    let all_honest = seen(&run(network()));
    for &kind in KINDS {
        let mut scenario = network();
        scenario.plan.adversaries = vec![kind];
        let members = scenario.plan.members();
        let outcome = run(scenario);
        assert_one_history(&outcome);
        assert_eq!(certified(&outcome), [true; WINDOWS as usize], "{kind}");
        // Nobody fetches a checkpoint here, and one of three votes shows in no result.
        let is_silent = [false_checkpoint::KIND, censor::CENSOR].contains(&kind);
        if (seen(&outcome) == all_honest) != is_silent {
            println!("SILENT {kind}");
        }
        for (member, node) in members.iter().zip(&outcome.report.nodes) {
            let expected = if member.adversary.is_some() { kind.name } else { "honest" };
            assert_eq!(node.behaviour, expected);
        }
        let honest = |uid: Uid| members[usize::from(uid.0)].adversary.is_none();
        for window in &outcome.report.windows {
            let blamed: Vec<_> = window.faults.iter().filter(|fault| honest(fault.uid)).collect();
            assert!(blamed.is_empty(), "{kind}: {blamed:?}");
            let counted = window.accepted.iter().filter(|uid| honest(**uid)).count();
            assert!(counted >= 3, "{kind}: {window:?}");
        }
    }
}

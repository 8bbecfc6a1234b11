//! Every attack that rehearsals offer by name, each in a small network: what must hold whatever it tries.

use templar_protocol::roster::Uid;
use templar_sim::r#virtual::scenario::Scenario;
use templar_sim::zoo::attack::{KINDS, false_checkpoint};

use crate::{assert_one_history, certified, run};

#[test]
fn no_attack_alone_stops_the_run_splits_it_or_gets_honest_miners_blamed() {
    let network = || Scenario::new(4, 3, 5, 120);
    let all_honest = run(network());
    for &kind in KINDS {
        let mut scenario = network();
        scenario.plan.adversaries = vec![kind];
        let members = scenario.plan.members();
        let outcome = run(scenario);
        assert_one_history(&outcome);
        assert_eq!(certified(&outcome), [true; 5], "{kind}");
        // Nobody fetches a checkpoint here.
        let is_silent = kind == false_checkpoint::KIND;
        assert_eq!(outcome.log == all_honest.log, is_silent, "{kind} does nothing");
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

//! Words on chain that are malformed or stale: each is named, counted by everybody who reads it, and moves nothing.

use templar_protocol::fault::{BucketFault, FaultKind};
use templar_protocol::roster::Uid;
use templar_record::event::{Cause, FaultCount};
use templar_sim::r#virtual::scenario::Scenario;
use templar_sim::zoo::attack::malformed_vote::{self, Malformed};
use templar_sim::zoo::attack::{malformed_bucket, stale_header};

use crate::{assert_one_history, certified, faults_of, run};

#[test]
fn a_malformed_vote_is_no_vote() {
    // A vote of three validators on three candidates has a byte for each of its bitmaps, and room for padding in all.
    for malformed in Malformed::ALL {
        let fault = malformed.fault();
        let mut scenario = Scenario::new(3, 3, 3, 63);
        scenario.wrap("validator-1", move |setup| {
            malformed_vote::wrap(setup, move |window| (window == 1).then_some(malformed))
        });
        let outcome = run(scenario);
        assert_one_history(&outcome);
        assert_eq!(certified(&outcome), [true; 3], "{fault:?}");
        let misvoters = |window: usize| -> Vec<Uid> {
            outcome.report.windows[window].misvotes.iter().map(|misvote| misvote.uid).collect()
        };
        assert_eq!((misvoters(0), misvoters(1), misvoters(2)), (vec![], vec![Uid(4)], vec![]), "{fault:?}");
        assert_eq!(outcome.report.windows[1].accepted.len(), 3, "the others' votes decide");
        for node in &outcome.report.nodes {
            assert_eq!(node.faults, [FaultCount { cause: Cause::Vote(fault), count: 1 }], "{}", node.name);
        }
    }
}

#[test]
fn a_bucket_that_is_none_is_counted_and_takes_no_part() {
    let mut scenario = Scenario::new(3, 2, 3, 65);
    scenario.plan.adversaries = vec![malformed_bucket::KIND];
    let outcome = run(scenario);
    assert_one_history(&outcome);
    assert_eq!(certified(&outcome), [true; 3]);
    assert!(outcome.report.windows.iter().all(|window| window.accepted.len() == 2 && window.faults.is_empty()));
    for node in &outcome.report.nodes {
        let once_a_window = FaultCount { cause: Cause::Bucket(BucketFault::Malformed), count: 3 };
        assert_eq!(node.faults, [once_a_window], "{}", node.name);
    }
}

#[test]
fn a_header_of_an_older_window_that_is_committed_again_is_stale() {
    let mut scenario = Scenario::new(3, 2, 4, 64);
    scenario.wrap("miner-1", |setup| stale_header::wrap(setup, 1, |window| window == 2));
    let outcome = run(scenario);
    assert_one_history(&outcome);
    assert_eq!(certified(&outcome), [true; 4]);
    let windows = &outcome.report.windows;
    assert!(windows[1].accepted.contains(&Uid(1)), "its header was good once");
    // Hash and signature are in order: only what the header says gives it away.
    assert_eq!(faults_of(&windows[2], 1), [FaultKind::WrongWindow]);
    assert!(!windows[2].accepted.contains(&Uid(1)) && !windows[3].accepted.contains(&Uid(1)));
    for validator in &outcome.report.nodes[3..] {
        let stale = FaultCount { cause: Cause::Contribution(FaultKind::WrongWindow), count: 1 };
        assert!(validator.faults.contains(&stale), "{:?}", validator.faults);
    }
}

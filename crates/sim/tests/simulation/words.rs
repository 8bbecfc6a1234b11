//! Words on chain that are malformed or stale: each is named, counted by everybody who reads it, and moves nothing.

use std::sync::Arc;

use bytes::Bytes;
use templar_chain::Chain;
use templar_protocol::fault::FaultKind;
use templar_protocol::fault::{BucketFault, VoteFault};
use templar_protocol::roster::Uid;
use templar_record::event::{Cause, FaultCount};
use templar_sim::r#virtual::scenario::Scenario;

use crate::wrappers::{forging, rewriting};
use crate::{assert_one_history, certified, faults_of, run};

/// Whether a word, a header's or a vote, speaks of `window`.
fn is_of(word: &[u8], window: u8) -> bool {
    word.get(1..5) == Some(&[window, 0, 0, 0])
}

/// validator-1's vote on window 1 goes through this.
macro_rules! voting {
    ($change:expr) => {
        |node, chain| {
            let change: fn(&mut Vec<u8>) = $change;
            let rewrite = move |fields: &mut [Vec<u8>]| {
                if let Some(vote) = fields.get_mut(2).filter(|vote| is_of(vote, 1)) {
                    change(vote);
                }
            };
            if node == "validator-1" { rewriting(chain, rewrite) } else { chain }
        }
    };
}

#[test]
fn a_malformed_vote_is_no_vote() {
    type Seam = fn(&str, Arc<dyn Chain>) -> Arc<dyn Chain>;
    // A vote on three candidates: tag, window, root, and a byte for each of its two bitmaps.
    let cases: [(Seam, VoteFault); 4] = [
        (voting!(|vote| vote.push(0)), VoteFault::Length),
        (voting!(|vote| vote.truncate(37)), VoteFault::Length),
        (voting!(|vote| vote[37] |= 0x80), VoteFault::Padding),
        (voting!(|vote| vote[0] = 9), VoteFault::Tag),
    ];
    for (chain, fault) in cases {
        let mut scenario = Scenario::new(3, 2, 3, 63);
        scenario.seams.chain = chain;
        let outcome = run(scenario);
        assert_one_history(&outcome);
        assert_eq!(certified(&outcome), [true; 3], "{fault:?}");
        let misvoters = |window: usize| -> Vec<Uid> {
            outcome.report.windows[window].misvotes.iter().map(|misvote| misvote.uid).collect()
        };
        assert_eq!((misvoters(0), misvoters(1), misvoters(2)), (vec![], vec![Uid(4)], vec![]), "{fault:?}");
        assert_eq!(outcome.report.windows[1].accepted.len(), 3, "the other validator's vote decides");
        for node in &outcome.report.nodes {
            assert_eq!(node.faults, [FaultCount { cause: Cause::Vote(fault), count: 1 }], "{}", node.name);
        }
    }
}

#[test]
fn a_bucket_that_is_none_is_counted_and_takes_no_part() {
    let mut scenario = Scenario::new(3, 2, 3, 65);
    // Another version than there is.
    scenario.seams.chain =
        |node, chain| if node == "miner-1" { rewriting(chain, |fields| fields[0][0] = 9) } else { chain };
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
    scenario.seams.store = |node, honest| {
        let mut old = None;
        let put = move |key: &str, bytes: Bytes| {
            if key.ends_with("/00000001/header") {
                old = Some(bytes.clone());
            }
            let stale = old.clone().filter(|_| key.ends_with("/00000002/header"));
            vec![(key.to_owned(), stale.unwrap_or(bytes))]
        };
        if node == "miner-1" { forging(honest, put) } else { honest }
    };
    scenario.seams.chain = |node, chain| {
        let mut old = None;
        let again = move |fields: &mut [Vec<u8>]| match (fields.get_mut(1), &old) {
            (Some(word), _) if is_of(word, 1) => old = Some(word[5..].to_vec()),
            (Some(word), Some(old)) if is_of(word, 2) => word[5..].copy_from_slice(old),
            _ => {}
        };
        if node == "miner-1" { rewriting(chain, again) } else { chain }
    };
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

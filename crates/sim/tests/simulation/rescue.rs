//! Contributions that a bucket does not serve to everybody: whoever has them serves them to the others.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use templar_protocol::fault::FaultKind;
use templar_protocol::roster::Uid;
use templar_record::event::Event;
use templar_record::outcome::Outcome as End;
use templar_sim::r#virtual::scenario::{Outcome, Scenario};
use templar_sim::zoo::layers::{forge_uploads, published};
use templar_store::{Fault, Op, OpKind};

use crate::{assert_one_history, certified, ends, faults_of, run, voted};

const WINDOWS: u64 = 6;

/// Who reads what from the bucket of miner-1 as it should not.
fn hits(op: &Op, reader: &str, object: &str) -> bool {
    op.kind == OpKind::Get && op.actor == reader && op.bucket == "miner-1" && op.key.ends_with(object)
}

/// Uids that a validator accepted in its vote on a window.
fn accepted(outcome: &Outcome, node: &str, wanted: u64) -> Vec<Uid> {
    let vote = |event: &Event| match event {
        Event::Voted { window, accept, .. } if *window == wanted => Some(accept.clone()),
        _ => None,
    };
    let mut accepted =
        outcome.log.iter().filter(|logged| logged.node == node).find_map(|logged| vote(&logged.event)).unwrap();
    accepted.sort();
    accepted
}

#[test]
fn a_bucket_that_one_validator_cannot_read_costs_its_miner_nothing() {
    let hangs = Fault::Delay(Duration::from_hours(1000));
    let cases = [
        ("/header", Fault::Unavailable),
        ("/header", Fault::NotFound),
        ("/payload", Fault::Unavailable),
        ("/key", Fault::Unavailable),
        ("/key", Fault::NotFound),
        ("/header", hangs),
        ("/payload", hangs),
        ("/key", hangs),
    ];
    for (nth, (object, fault)) in cases.into_iter().enumerate() {
        let mut scenario = Scenario::new(3, 3, WINDOWS, 170 + nth as u64);
        scenario.cloud_fault = Some(Box::new(move |op| hits(op, "validator-0", object).then_some(fault)));
        let outcome = run(scenario);
        assert_one_history(&outcome);
        assert_eq!(certified(&outcome), [true; WINDOWS as usize], "{object} {fault:?}");
        for window in 0..WINDOWS {
            assert_eq!(accepted(&outcome, "validator-0", window), [Uid(0), Uid(1), Uid(2)], "{object} {fault:?}");
            assert!(faults_of(&outcome.report.windows[window as usize], 1).is_empty(), "{object} {fault:?}");
        }
        let ends = ends(&outcome, "miner-1");
        assert!(ends.iter().all(|(_, end)| *end == End::Counted), "{object} {fault:?}: {ends:?}");
        // Nothing of it shows in what it is paid.
        let share = |nth: usize| outcome.report.nodes[nth].weight;
        assert!(share(1) > 0.5 * share(0) && share(1) > 0.5 * share(2), "{object} {fault:?}");
    }
}

/// Who serves nobody is asked for at a few validators, twice, and is as unavailable as before.
#[test]
fn a_miner_that_serves_nobody_drives_a_bounded_number_of_requests() {
    let validators = 12;
    let mut scenario = Scenario::new(2, validators, 3, 180);
    scenario.wrap("miner-1", |setup| {
        forge_uploads(setup, |key, bytes| {
            if published(key).is_some_and(|(_, part)| part == "key") {
                Vec::new()
            } else {
                vec![(key.to_owned(), bytes)]
            }
        })
    });
    let asked: Arc<AtomicUsize> = Arc::default();
    let seen = asked.clone();
    scenario.cloud_fault = Some(Box::new(move |op| {
        let is_rescue = op.kind == OpKind::Get && op.actor == "validator-3" && op.key.contains("/held/00000001/");
        seen.fetch_add(usize::from(is_rescue), Ordering::Relaxed);
        None
    }));
    let outcome = run(scenario);
    assert_one_history(&outcome);
    assert!(voted(&outcome, "validator-3", 1));
    assert_eq!(faults_of(&outcome.report.windows[1], 1), [FaultKind::NotOpened]);
    // Header and payload are here, so that only the key is asked for.
    assert_eq!(asked.load(Ordering::Relaxed), 16);
}

#[test]
fn a_holder_that_serves_something_else_is_named_and_the_next_one_asked() {
    let mut scenario = Scenario::new(3, 4, WINDOWS, 181);
    scenario.wrap("validator-1", |setup| {
        forge_uploads(setup, |key, bytes| {
            let is_copy = key.contains("/held/") && key.ends_with("/key");
            vec![(key.to_owned(), if is_copy { vec![7; 32].into() } else { bytes })]
        })
    });
    scenario.cloud_fault = Some(Box::new(|op| hits(op, "validator-0", "/key").then_some(Fault::NotFound)));
    let outcome = run(scenario);
    assert_one_history(&outcome);
    for window in 0..WINDOWS {
        assert_eq!(accepted(&outcome, "validator-0", window), [Uid(0), Uid(1), Uid(2)]);
    }
    let named = |event: &Event| match event {
        Event::Misserved { uid, fault, .. } => Some((*uid, *fault)),
        _ => None,
    };
    let named: Vec<_> = outcome.log.iter().filter_map(|logged| named(&logged.event)).collect();
    assert!(!named.is_empty() && named.iter().all(|found| *found == (Uid(4), FaultKind::KeyMismatch)), "{named:?}");
}

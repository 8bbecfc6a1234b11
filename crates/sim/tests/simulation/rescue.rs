//! Contributions that a bucket does not serve to everybody: whoever has them serves them to the others.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use templar_protocol::fault::FaultKind;
use templar_protocol::roster::Uid;
use templar_record::event::Event;
use templar_record::outcome::Outcome as End;
use templar_sim::r#virtual::scenario::{Outcome, Scenario};
use templar_sim::zoo::failure::outage::clock;
use templar_sim::zoo::layers::{forge_uploads, published};
use templar_store::{Fault, Op, OpKind};

use crate::{assert_one_history, certified, ends, faults_of, run, time, voted};

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

/// Validators that answer nobody, at the head of the roster: who settles asks in an order of its own.
#[test]
fn silent_validators_at_the_head_of_the_roster_hold_nobody_up() {
    let mut scenario = Scenario::new(3, 9, 3, 181);
    let silent: Vec<String> = (0..6).map(|nth| format!("validator-{nth}")).collect();
    // Miners read miner-1's contribution to window 1 neither from its bucket nor from six of nine copies.
    scenario.cloud_fault = Some(Box::new(move |op| {
        let of_it = op.bucket == "miner-1" && op.key.contains("/w/00000001/");
        let copy = silent.contains(&op.bucket) && op.key.contains("/held/00000001/");
        let hit = op.kind == OpKind::Get && op.actor.starts_with("miner") && (of_it || copy);
        hit.then_some(Fault::Delay(Duration::from_mins(30)))
    }));
    let (late, mut now) = (Arc::<Mutex<Vec<Duration>>>::default(), clock());
    let times = late.clone();
    scenario.on_event = Some(Box::new(move |event, _| {
        let at = now();
        if event.node.starts_with("miner") && matches!(event.event, Event::Settled { window: 1, .. }) {
            times.lock().unwrap().push(at);
        }
    }));
    let outcome = run(scenario);
    assert_one_history(&outcome);
    let mut late = late.lock().unwrap().clone();
    late.sort();
    // One after the other, six of them would take twelve seconds, and the miner's own bucket two more.
    assert!(late.len() == 3 && late[2] < time(1, 18) + Duration::from_secs(10), "{late:?}");
}

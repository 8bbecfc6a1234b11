//! A miner whose own bucket hangs: its loop goes on, it says what did not get there, and it counts again.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use templar_protocol::fault::FaultKind;
use templar_record::event::Event;
use templar_record::outcome::{Miss, Outcome};
use templar_record::trouble::{Put, Trouble};
use templar_sim::r#virtual::scenario::{Outcome as Result, Scenario};
use templar_store::{Fault, Op, OpKind};

use crate::{assert_one_history, certified, count, ends, faults_of, run};

/// Longer than any run.
const FOR_EVER: Duration = Duration::from_hours(1000);

/// What comes of a network of three miners in which these operations of miner-1 hang.
fn hanging(seed: u64, hangs: fn(&Op) -> bool) -> Result {
    let mut scenario = Scenario::new(3, 2, 4, seed);
    scenario.cloud_fault =
        Some(Box::new(move |op| (op.actor == "miner-1" && hangs(op)).then_some(Fault::Delay(FOR_EVER))));
    let result = run(scenario);
    assert_one_history(&result);
    assert_eq!(certified(&result), [true; 4]);
    result
}

fn assert_missed_window_1(result: &Result, put: Put, why: Miss) {
    let expected = [Outcome::Counted, Outcome::Missed { why }, Outcome::Counted, Outcome::Counted];
    assert_eq!(ends(result, "miner-1"), (0..).zip(expected).collect::<Vec<_>>());
    let told = |event: &Event| match event {
        Event::Trouble { trouble: Trouble::UploadGivenUp { window: 1, put: found, .. } } => *found == put,
        _ => false,
    };
    assert_eq!(count(result, "miner-1", told), 1);
}

#[test]
fn a_contribution_that_does_not_get_there_costs_its_window() {
    for object in ["payload", "header"] {
        let result = match object {
            "payload" => hanging(100, |op| op.kind == OpKind::Put && op.key.ends_with("00000001/payload")),
            _ => hanging(101, |op| op.kind == OpKind::Put && op.key.ends_with("00000001/header")),
        };
        assert_missed_window_1(&result, Put::Contribution, Miss::UploadTooLate);
        // What is not in the bucket is not committed.
        assert_eq!(faults_of(&result.report.windows[1], 1), [FaultKind::NotCommitted], "{object}");
    }
}

/// Three miners, of which miner-1 is refused so many puts of its payload in window 1.
fn refused(seed: u64, refusals: usize) -> (Result, usize) {
    let mut scenario = Scenario::new(3, 2, 4, seed);
    let puts: Arc<AtomicUsize> = Arc::default();
    let seen = puts.clone();
    scenario.cloud_fault = Some(Box::new(move |op| {
        let hit = op.kind == OpKind::Put && op.actor == "miner-1" && op.key.ends_with("w/00000001/payload");
        (hit && seen.fetch_add(1, Ordering::Relaxed) < refusals).then_some(Fault::Unavailable)
    }));
    let result = run(scenario);
    assert_one_history(&result);
    (result, puts.load(Ordering::Relaxed))
}

#[test]
fn an_upload_that_is_refused_is_told_once_and_tried_again_with_pauses() {
    for (refusals, why) in [(7, None), (usize::MAX, Some(Miss::UploadTooLate))] {
        let (result, puts) = refused(105, refusals);
        let end = why.map_or(Outcome::Counted, |why| Outcome::Missed { why });
        assert_eq!(ends(&result, "miner-1")[1], (1, end));
        let troubles = count(&result, "miner-1", |event| matches!(event, Event::Trouble { .. }));
        let told = |event: &Event| {
            matches!(
                event,
                Event::Trouble { trouble: Trouble::UploadRefused { window: 1, put: Put::Contribution, .. } }
            )
        };
        assert_eq!((troubles, count(&result, "miner-1", told)), (1, 1));
        // In the 144 seconds up to the put deadline.
        assert!(puts <= 45, "{puts}");
    }
}

#[test]
fn a_bucket_that_refuses_for_windows_is_told_once_and_its_end_with_a_count() {
    let mut scenario = Scenario::new(3, 2, 6, 106);
    // With the put and the removal of each window, from 1 to 3.
    scenario.cloud_fault = Some(Box::new(|op| {
        let window = |number: &u8| op.key.contains(&format!("w/0000000{number}/payload"));
        let hit = op.kind == OpKind::Put && op.actor == "miner-1" && (1..=3).any(|number| window(&number));
        let removes = op.kind == OpKind::Delete && op.actor == "miner-1";
        (hit || removes).then_some(Fault::Unavailable)
    }));
    let result = run(scenario);
    let troubles = count(&result, "miner-1", |event| matches!(event, Event::Trouble { .. }));
    assert_eq!(troubles, 2, "one for the puts, one for the removals");
    assert_eq!(count(&result, "miner-1", |event| matches!(event, Event::BucketBack { refused: 3 })), 1);
    assert_eq!(count(&result, "miner-1", |event| matches!(event, Event::BucketBack { .. })), 1);
}

#[test]
fn a_key_that_does_not_get_there_costs_its_window() {
    let result = hanging(102, |op| op.kind == OpKind::Put && op.key.ends_with("00000001/key"));
    assert_missed_window_1(&result, Put::Key, Miss::KeyTooLate);
    assert_eq!(faults_of(&result.report.windows[1], 1), [FaultKind::NotOpened]);
}

#[test]
fn a_bucket_that_deletes_and_lists_nothing_costs_nothing() {
    let result = hanging(103, |op| matches!(op.kind, OpKind::Delete | OpKind::List));
    assert_eq!(ends(&result, "miner-1").iter().filter(|(_, outcome)| *outcome == Outcome::Counted).count(), 4);
    let swept = |event: &Event| matches!(event, Event::Trouble { trouble: Trouble::Sweep { .. } });
    assert!((1..=5).contains(&count(&result, "miner-1", swept)), "it is told, once a window at most");
}

#[test]
fn a_slow_bucket_that_is_in_time_costs_nothing() {
    let mut scenario = Scenario::new(3, 2, 4, 104);
    scenario.cloud_fault = Some(Box::new(|op| {
        (op.kind == OpKind::Put && op.actor == "miner-1").then_some(Fault::Delay(Duration::from_secs(20)))
    }));
    let result = run(scenario);
    assert_eq!(ends(&result, "miner-1"), (0..4).map(|window| (window, Outcome::Counted)).collect::<Vec<_>>());
}

//! Buckets that lose, damage, delay or refuse what was put into them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use templar_protocol::fault::{FaultKind, Party};
use templar_protocol::roster::Uid;
use templar_record::event::{Cause, Event, FaultCount};
use templar_sim::r#virtual::scenario::{Scenario, What};
use templar_sim::zoo::failure::damaged_dataset;
use templar_store::{Fault, OpKind};

use crate::{assert_one_history, at, certified, count, faults_of, kill, run, start, voted};

#[test]
fn validators_that_saw_different_objects_end_with_one_certificate() {
    let mut scenario = Scenario::new(3, 2, 4, 4);
    // The key of miner-1 reaches validator-0 too late in window 1, from whoever serves it; validator-1 has it in time.
    scenario.cloud_fault = Some(Box::new(|op| {
        let is_its = op.kind == OpKind::Get && op.actor == "validator-0";
        let is_late = op.bucket == "miner-1" && op.key.ends_with("00000001/key") || op.key.contains("/held/00000001/");
        (is_its && is_late).then_some(Fault::NotFound)
    }));
    let outcome = run(scenario);
    assert_one_history(&outcome);
    assert_eq!(certified(&outcome), [true; 4]);
    let window = &outcome.report.windows[1];
    // One of two equal stakes accepted it: ties reject.
    assert!(!window.accepted.contains(&Uid(1)) && window.accepted.len() == 2, "{window:?}");
    assert_eq!(faults_of(window, 1), [FaultKind::NotOpened]);
}

#[test]
fn a_payload_deleted_after_the_vote_is_served_by_those_who_voted() {
    let mut scenario = Scenario::new(3, 2, 4, 8);
    let voted = What::Shared(|_, cloud, _| {
        assert!(cloud.keys("validator-0").iter().any(|key| key.contains("/held/00000001/")), "it has voted");
        cloud.remove("miner-0", "/w/00000001/");
    });
    // Before the block at whose end votes are counted, and contributions are fetched.
    scenario.incidents = vec![at(1, 18, voted)];
    let outcome = run(scenario);
    assert_one_history(&outcome);
    for window in &outcome.report.windows {
        assert!(window.accepted.contains(&Uid(0)), "{window:?}");
    }
    assert!(outcome.report.nodes.iter().all(|node| node.troubles == 0));
}

#[test]
fn a_key_is_public_after_the_put_deadline_and_not_before() {
    let mut scenario = Scenario::new(3, 2, 3, 47);
    let sealed = What::Shared(|_, cloud, _| {
        for miner in ["miner-0", "miner-1", "miner-2"] {
            let keys = cloud.keys(miner);
            assert!(keys.iter().any(|key| key.ends_with("/w/00000001/payload")), "{keys:?}");
            assert!(!keys.iter().any(|key| key.ends_with("/w/00000001/key")), "{keys:?}");
        }
    });
    let open = What::Shared(|_, cloud, _| {
        assert!(cloud.keys("miner-2").iter().any(|key| key.ends_with("/w/00000001/key")));
    });
    scenario.incidents = vec![at(1, 12, sealed), at(1, 13, open)];
    run(scenario);
}

#[test]
fn broken_objects_are_faults_with_a_name_and_nothing_else() {
    let cases = [
        ("header", [FaultKind::HeaderMalformed, FaultKind::HeaderMismatch, FaultKind::BadSignature].as_slice()),
        ("payload", &[FaultKind::PayloadMismatch]),
        ("key", &[FaultKind::KeyMismatch]),
    ];
    for (object, expected) in cases {
        let mut scenario = Scenario::new(3, 2, 3, 12);
        scenario.cloud_fault = Some(Box::new(move |op| {
            let hit =
                op.kind == OpKind::Get && op.bucket == "miner-1" && op.key.ends_with(&format!("00000001/{object}"));
            hit.then_some(Fault::Corrupt)
        }));
        let outcome = run(scenario);
        assert_one_history(&outcome);
        assert_eq!(certified(&outcome), [true; 3], "{object}");
        let window = &outcome.report.windows[1];
        let found = faults_of(window, 1);
        assert!(found.len() == 1 && expected.contains(&found[0]), "{object}: {found:?}");
        assert!(window.faults.iter().all(|fault| fault.attributed_to == Party::Miner));
        assert_eq!(window.accepted.len(), 2);
        // Nobody signed what was read: it may have been damaged on its way, and excludes nobody.
        assert!(outcome.report.windows[2].accepted.contains(&Uid(1)), "{object}");
    }
}

#[test]
fn storage_that_is_down_is_no_fault_of_the_miner_s() {
    let mut scenario = Scenario::new(3, 2, 3, 13);
    scenario.cloud_fault = Some(Box::new(|op| {
        let hit = op.kind == OpKind::Get && op.bucket == "miner-1" && op.key.contains("w/00000001/");
        hit.then_some(Fault::Unavailable)
    }));
    let outcome = run(scenario);
    let window = &outcome.report.windows[1];
    assert_eq!(faults_of(window, 1), [FaultKind::HeaderUnavailable]);
    assert_eq!(window.faults[0].attributed_to, Party::Storage);
    assert!(outcome.report.windows[2].accepted.contains(&Uid(1)), "it may try again at once");
    assert_one_history(&outcome);
}

#[test]
fn a_bad_read_is_read_again_before_it_is_a_fault() {
    for object in ["header", "payload", "key"] {
        let mut scenario = Scenario::new(3, 2, 3, 40);
        let mut reads: BTreeMap<(String, String), u32> = BTreeMap::new();
        scenario.cloud_fault = Some(Box::new(move |op| {
            let hit =
                op.kind == OpKind::Get && op.bucket == "miner-1" && op.key.ends_with(&format!("00000001/{object}"));
            if !hit {
                return None;
            }
            let reads = reads.entry((op.actor.clone(), op.key.clone())).or_default();
            *reads += 1;
            (*reads == 1).then_some(Fault::Corrupt)
        }));
        let outcome = run(scenario);
        assert_eq!(faults_of(&outcome.report.windows[1], 1), [], "{object}");
        assert_eq!(outcome.report.windows[1].accepted.len(), 3, "{object}");
        assert_one_history(&outcome);
    }
}

#[test]
fn buckets_that_drip_hold_up_neither_votes_nor_others() {
    let mut scenario = Scenario::new(14, 2, 3, 41);
    // Ten of fourteen miners serve so slowly that no vote could wait for them.
    scenario.cloud_fault = Some(Box::new(|op| {
        let drips = op.bucket.strip_prefix("miner-").is_some_and(|nth| nth.parse::<u16>().is_ok_and(|nth| nth < 10));
        let hit = op.kind == OpKind::Get && op.actor.starts_with("validator") && drips;
        hit.then_some(Fault::Delay(Duration::from_secs(1000)))
    }));
    let outcome = run(scenario);
    assert_eq!(certified(&outcome), [true; 3]);
    for window in &outcome.report.windows {
        let mut accepted = window.accepted.clone();
        accepted.sort();
        assert_eq!(accepted, [Uid(10), Uid(11), Uid(12), Uid(13)], "{window:?}");
        assert_eq!(faults_of(window, 0), [FaultKind::HeaderUnavailable]);
    }
    assert_one_history(&outcome);
}

#[test]
fn what_drips_is_the_fault_of_what_did_not_come() {
    let cases = [
        ("header", FaultKind::HeaderUnavailable, Party::Storage),
        ("payload", FaultKind::PayloadUnavailable, Party::Storage),
        // To drip a key is no cheaper than to keep it.
        ("key", FaultKind::NotOpened, Party::Miner),
    ];
    for (object, fault, attributed_to) in cases {
        let mut scenario = Scenario::new(3, 2, 3, 48);
        scenario.cloud_fault = Some(Box::new(move |op| {
            let hit = op.kind == OpKind::Get && op.actor.starts_with("validator") && op.bucket == "miner-1";
            let hit = hit && op.key.ends_with(&format!("00000001/{object}"));
            hit.then_some(Fault::Delay(Duration::from_secs(1000)))
        }));
        let outcome = run(scenario);
        assert_eq!(certified(&outcome), [true; 3]);
        let window = &outcome.report.windows[1];
        assert_eq!(faults_of(window, 1), [fault]);
        assert_eq!((window.faults[0].attributed_to, window.accepted.len()), (attributed_to, 2), "{object}");
        assert_one_history(&outcome);
    }
}

#[test]
fn what_comes_slowly_comes_all_the_same() {
    let mut scenario = Scenario::new(3, 2, 3, 42);
    // Two blocks and more for a key: longer than any single look, shorter than the wait for the vote.
    scenario.cloud_fault = Some(Box::new(|op| {
        let hit = op.kind == OpKind::Get && op.actor.starts_with("validator") && op.key.ends_with("00000001/key");
        hit.then_some(Fault::Delay(Duration::from_secs(30)))
    }));
    let outcome = run(scenario);
    assert_eq!(outcome.report.windows[1].accepted.len(), 3, "{:?}", outcome.report.windows[1]);
    assert_one_history(&outcome);
}

#[test]
fn a_replay_is_not_held_up_by_the_buckets_of_miners() {
    let mut scenario = Scenario::new(3, 2, 6, 43);
    scenario.incidents = vec![kill("validator-1", 1), start("validator-1", 3)];
    scenario.cloud_fault = Some(Box::new(|op| {
        let hit = op.kind == OpKind::Get && op.actor == "validator-1" && op.bucket.starts_with("miner");
        // If none of them served window 4 or 5, it would blame itself and not vote.
        let is_served = op.bucket == "miner-2" && (op.key.contains("/00000004/") || op.key.contains("/00000005/"));
        (hit && !is_served).then_some(Fault::Delay(Duration::from_secs(1000)))
    }));
    let outcome = run(scenario);
    assert_one_history(&outcome);
    // It has the state from which window 5 starts, although it could open only one contribution to window 4 itself.
    assert!(voted(&outcome, "validator-1", 4) && voted(&outcome, "validator-1", 5));
}

#[test]
fn wrong_objects_in_a_replay_are_counted_and_another_place_is_asked() {
    let mut scenario = Scenario::new(3, 3, 6, 49);
    scenario.incidents = vec![kill("validator-1", 1), start("validator-1", 3)];
    scenario.cloud_fault = Some(Box::new(|op| {
        let hit = op.kind == OpKind::Get && op.actor == "validator-1" && op.bucket == "miner-0";
        (hit && op.key.ends_with("w/00000001/payload")).then_some(Fault::Corrupt)
    }));
    let outcome = run(scenario);
    assert_one_history(&outcome);
    let told = |event: &Event| matches!(event, Event::Misserved { window: 1, uid: Uid(0), .. });
    assert_eq!(count(&outcome, "validator-1", told), 1);
    let counted = FaultCount { cause: Cause::Served(FaultKind::PayloadMismatch), count: 1 };
    assert!(outcome.report.nodes[4].faults.contains(&counted), "{:?}", outcome.report.nodes[4].faults);
}

#[test]
fn a_bucket_that_refuses_once_is_not_sent_everything_again() {
    let mut scenario = Scenario::new(4, 2, 3, 44);
    let puts: Arc<Mutex<BTreeMap<String, u32>>> = Arc::default();
    let seen = puts.clone();
    scenario.cloud_fault = Some(Box::new(move |op| {
        if op.kind != OpKind::Put || op.actor != "validator-0" || !op.key.contains("/held/00000001/") {
            return None;
        }
        let mut seen = seen.lock().unwrap();
        let is_last = seen.len() == 3 * 4 - 1;
        let tries = seen.entry(op.key.clone()).or_default();
        *tries += 1;
        // The last object of the last contribution, ten times.
        (is_last && *tries <= 10).then_some(Fault::Unavailable)
    }));
    let outcome = run(scenario);
    assert_eq!(outcome.report.windows[1].accepted.len(), 4);
    let puts = puts.lock().unwrap();
    assert_eq!(puts.len(), 12);
    let tries: u32 = puts.values().sum();
    assert!(tries <= 12 + 3 * 11, "{puts:?}");
}

#[test]
fn half_a_checkpoint_is_swept_and_a_promise_is_kept() {
    let mut scenario = Scenario::new(3, 2, 7, 45);
    // The first checkpoint of validator-0 stays without its state.
    let mut refused = false;
    scenario.cloud_fault = Some(Box::new(move |op| {
        let hit = op.kind == OpKind::Put && op.actor == "validator-0" && op.key.ends_with("/state") && !refused;
        refused |= hit;
        hit.then_some(Fault::Unavailable)
    }));
    scenario.incidents = vec![kill("validator-0", 5), start("validator-0", 5)];
    let outcome = run(scenario);
    let left = outcome.cloud.keys("validator-0");
    assert!(!left.iter().any(|key| key.contains("/theta/")), "{left:?}");
    assert!(left.iter().any(|key| key.contains("/held/00000005/")), "{left:?}");
    assert!(outcome.cloud.keys("validator-1").iter().any(|key| key.contains("/theta/")));
}

#[test]
fn a_validator_with_damaged_data_blames_nobody_and_votes() {
    let mut scenario = Scenario::new(3, 3, 3, 46);
    scenario.wrap("validator-2", damaged_dataset::wrap);
    let outcome = run(scenario);
    assert_one_history(&outcome);
    for (nth, window) in outcome.report.windows.iter().enumerate() {
        assert!(voted(&outcome, "validator-2", nth as u64));
        assert_eq!(window.accepted.len(), 3, "{window:?}");
        assert!(!window.faults.is_empty());
        let blameless = window
            .faults
            .iter()
            .all(|fault| fault.fault == FaultKind::NotJudged && fault.attributed_to == Party::Validator);
        assert!(blameless, "{window:?}");
    }
    assert_eq!(count(&outcome, "validator-2", |event| matches!(event, Event::Evaluated { .. })), 0);
}

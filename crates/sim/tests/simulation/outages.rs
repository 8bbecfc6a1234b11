//! A node's own access to storage fails, or its own bucket alone: it knows whose fault that is, waits, and goes on.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use templar_incentive::charge::charge;
use templar_protocol::fault::Party;
use templar_protocol::roster::Uid;
use templar_record::event::Event;
use templar_record::judgement::Judgement;
use templar_record::outcome::{Abstention, Outcome as End};
use templar_record::trouble::Trouble;
use templar_sim::r#virtual::scenario::{Outcome, Scenario};
use templar_sim::zoo::failure::outage::{clock, during};
use templar_sim::zoo::failure::skewed_clock;
use templar_store::{Fault, Op, OpKind};

use crate::{any, assert_one_history, certified, count, ends, run, time, trained, voted};

/// When which node told something.
#[derive(Clone, Default)]
struct Times(Arc<Mutex<Vec<(String, Duration)>>>);

impl Times {
    /// To be called right before the scenario runs.
    fn of(scenario: &mut Scenario, wanted: fn(&Event) -> bool) -> Self {
        let times = Self::default();
        let (seen, mut now) = (times.clone(), clock());
        scenario.on_event = Some(Box::new(move |event, _| {
            let at = now();
            if wanted(&event.event) {
                seen.0.lock().unwrap().push((event.node.clone(), at));
            }
        }));
        times
    }

    fn seen(&self) -> Vec<(String, Duration)> {
        self.0.lock().unwrap().clone()
    }
}

#[test]
fn a_hanging_own_bucket_and_a_missing_contribution_hold_no_node_up_for_long() {
    let mut scenario = Scenario::new(3, 3, 5, 111);
    let mut now = clock();
    // validator-2 gets nothing of miner-1's in window 2, from anywhere, and its own bucket hangs in all reads.
    scenario.cloud_fault = Some(Box::new(move |op| {
        if op.actor != "validator-2" || !(time(2, 0)..time(3, 10)).contains(&now()) {
            return None;
        }
        let reads = matches!(op.kind, OpKind::Get | OpKind::List);
        if reads && op.bucket == "validator-2" {
            return Some(Fault::Delay(Duration::from_mins(50)));
        }
        let of_window_2 =
            op.key.contains("/held/00000002/") || op.key.contains("/w/00000002/") && op.bucket == "miner-1";
        (reads && of_window_2).then_some(Fault::NotFound)
    }));
    let times = Times::of(&mut scenario, |event| {
        matches!(event, Event::Trouble { trouble: Trouble::Withheld { .. } | Trouble::Resynchronising { .. } })
    });
    let outcome = run(scenario);
    assert_eq!(certified(&outcome), [true; 5]);
    assert_one_history(&outcome);
    let (node, at) = times.seen()[0].clone();
    // It waits for the contribution as long as it may come in time, and no longer.
    let late = at.checked_sub(time(3, 0)).expect("not before the next window");
    assert!(node == "validator-2" && late <= Duration::from_secs(6), "{node}: {late:?}");
    assert_eq!(count(&outcome, "validator-2", |event| matches!(event, Event::Diverged { .. })), 0, "it went back");
}

fn told(outcome: &Outcome, node: &str, test: impl Fn(&Trouble) -> bool) -> usize {
    count(outcome, node, |event| matches!(event, Event::Trouble { trouble } if test(trouble)))
}

fn outages(outcome: &Outcome, node: &str) -> (usize, usize) {
    let back = count(outcome, node, |event| matches!(event, Event::StorageBack { .. }));
    (told(outcome, node, |trouble| matches!(trouble, Trouble::OwnStorage { .. })), back)
}

fn adoptions(outcome: &Outcome, node: &str) -> usize {
    count(outcome, node, |event| matches!(event, Event::Adopted { .. } | Event::Diverged { .. }))
}

fn is_own_storage(end: &End) -> bool {
    matches!(end, End::Abstained { why: Abstention::OwnStorage { .. } })
}

/// validator-2 had no access from the middle of window 2 to the beginning of window 4.
fn assert_waited_and_went_on(outcome: &Outcome, case: &str) {
    let node = "validator-2";
    assert_eq!(certified(outcome), [true; 7], "{case}");
    assert_one_history(outcome);
    assert_eq!(outages(outcome, node), (1, 1), "{case}");
    assert_eq!(adoptions(outcome, node), 0, "{case}");
    let ends: Vec<End> = ends(outcome, node).into_iter().map(|(_, end)| end).collect();
    let away: Vec<bool> = ends.iter().map(is_own_storage).collect();
    assert_eq!(away, [false, false, true, true, false, false, false], "{case}: {ends:?}");
    assert!(voted(outcome, node, 4), "{case}: it goes on in the window in which it heals");
    // Nobody is blamed, in votes or in scores, and nobody blames it: an old vote is no malformed one.
    for node in &outcome.report.nodes {
        assert!(node.faults.is_empty(), "{case}: {node:?}");
    }
    let is_charged = |judgement: &Judgement| {
        judgement.miners.iter().any(|judged| charge(judged, judgement.decision).value().is_some())
    };
    let charged = |event: &Event| matches!(event, Event::Judged { judgement } if is_charged(judgement));
    assert!(!any(outcome, node, charged), "{case}");
    assert!(
        outcome.report.windows.iter().all(|window| window.faults.is_empty() && window.accepted.len() == 3),
        "{case}"
    );
}

#[test]
fn a_validator_that_is_cut_off_blames_nobody_and_goes_on_when_it_is_back() {
    for fault in [Fault::Unavailable, Fault::Delay(Duration::from_mins(50))] {
        let mut scenario = Scenario::new(3, 3, 7, 100);
        let operations: Arc<AtomicU64> = Arc::default();
        let counter = operations.clone();
        scenario.cloud_fault = Some(during(time(2, 5)..time(4, 5), fault, move |op| {
            let hit = op.actor == "validator-2";
            counter.fetch_add(hit.into(), Ordering::Relaxed);
            hit
        }));
        assert_waited_and_went_on(&run(scenario), &format!("{fault:?}"));
        // In eight minutes: a look after each of three contributions at a few blocks, then a probe of five buckets in
        // half a minute.
        let operations = operations.load(Ordering::Relaxed);
        assert!((20..=140).contains(&operations), "{fault:?}: {operations}");
    }
}

#[test]
fn a_validator_that_reaches_no_bucket_but_its_own_blames_nobody_and_goes_on_when_it_is_back() {
    for fault in [Fault::Unavailable, Fault::Delay(Duration::from_mins(50))] {
        let mut scenario = Scenario::new(3, 3, 7, 109);
        // Its own bucket is on its own machine, say.
        let hit = |op: &Op| op.actor == "validator-2" && op.bucket != "validator-2";
        scenario.cloud_fault = Some(during(time(2, 5)..time(4, 5), fault, hit));
        assert_waited_and_went_on(&run(scenario), &format!("{fault:?}"));
    }
}

#[test]
fn a_validator_whose_clock_is_wrong_blames_nobody_though_one_bucket_lets_it_in() {
    let mut scenario = Scenario::new(3, 3, 7, 101);
    // A hostile service.
    scenario.wrap("validator-2", |setup| skewed_clock::wrap(setup, time(2, 5)..time(4, 5), "miner-0"));
    assert_told_its_clock(&run(scenario), "wrong clock");
}

#[test]
fn a_validator_whose_clock_is_wrong_blames_nobody_though_its_own_bucket_lets_it_in() {
    let mut scenario = Scenario::new(3, 3, 7, 110);
    // A server on the same machine has the same clock.
    scenario.wrap("validator-2", |setup| skewed_clock::wrap(setup, time(2, 5)..time(4, 5), "validator-2"));
    assert_told_its_clock(&run(scenario), "wrong clock, and an own bucket nearby");
}

fn assert_told_its_clock(outcome: &Outcome, case: &str) {
    assert_waited_and_went_on(outcome, case);
    let says_why = |trouble: &Trouble| matches!(trouble, Trouble::OwnStorage { cause } if cause.contains("3600 s ahead of the server's"));
    assert_eq!(told(outcome, "validator-2", says_why), 1, "{case}");
}

#[test]
fn a_miner_that_is_cut_off_waits_and_goes_on_when_it_is_back() {
    let mut scenario = Scenario::new(3, 2, 7, 102);
    scenario.cloud_fault = Some(during(time(2, 5)..time(4, 2), Fault::Unavailable, |op| op.actor == "miner-1"));
    let outcome = run(scenario);
    assert_eq!(certified(&outcome), [true; 7]);
    assert_one_history(&outcome);
    assert_eq!((outages(&outcome, "miner-1"), adoptions(&outcome, "miner-1")), ((1, 1), 0));
    assert_eq!(told(&outcome, "miner-1", |trouble| matches!(trouble, Trouble::Resynchronising { .. })), 0);
    assert!(!trained(&outcome, "miner-1", 3), "it does not have the state from which window 3 starts");
    assert!(trained(&outcome, "miner-1", 4), "it goes on in the window in which it is back");
    let accepted = |window: usize| outcome.report.windows[window].accepted.contains(&Uid(1));
    assert_eq!([accepted(1), accepted(2), accepted(3), accepted(4)], [true, false, false, true]);
}

#[test]
fn an_outage_that_ends_before_the_vote_deadline_costs_no_vote() {
    let mut scenario = Scenario::new(3, 3, 4, 103);
    // It is seen at the last call, in block 16, and a vote has to be handed over in block 17.
    let span = time(2, 11)..time(2, 16) + Duration::from_secs(8);
    scenario.cloud_fault = Some(during(span, Fault::Unavailable, |op| op.actor == "validator-2"));
    let outcome = run(scenario);
    assert_one_history(&outcome);
    assert_eq!(outages(&outcome, "validator-2"), (1, 1));
    assert_eq!(ends(&outcome, "validator-2")[2], (2, End::Voted));
    assert!(outcome.report.windows.iter().all(|window| window.faults.is_empty() && window.accepted.len() == 3));
}

#[test]
fn a_validator_that_comes_back_too_late_to_judge_abstains_and_blames_nobody() {
    let mut scenario = Scenario::new(3, 3, 6, 112);
    let mut now = clock();
    // It is back in block 14 of window 4, when others vote, and its own bucket is slow up to the end of the window.
    scenario.cloud_fault = Some(Box::new(move |op| match now() {
        _ if op.actor != "validator-2" => None,
        at if (time(2, 5)..time(4, 14)).contains(&at) => Some(Fault::Unavailable),
        at if (time(4, 14)..time(5, 0)).contains(&at) && op.kind == OpKind::Put => {
            Some(Fault::Delay(Duration::from_mins(10)))
        }
        _ => None,
    }));
    let outcome = run(scenario);
    assert_one_history(&outcome);
    assert_eq!(ends(&outcome, "validator-2")[4], (4, End::Abstained { why: Abstention::NoTimeLeft }));
    assert!(voted(&outcome, "validator-2", 5));
    assert!(outcome.report.windows.iter().all(|window| window.faults.is_empty() && window.accepted.len() == 3));
}

#[test]
fn buckets_of_others_that_fail_in_everything_make_no_validator_doubt_itself() {
    for fault in [Fault::Unavailable, Fault::Delay(Duration::from_mins(50))] {
        let mut scenario = Scenario::new(3, 2, 4, 104);
        // From window 2 on, all of them but one. If that one failed too, they could not tell it from their own fault.
        let from_two = time(2, 0)..Duration::MAX;
        scenario.cloud_fault = Some(during(from_two, fault, |op| {
            op.actor.starts_with("validator") && matches!(op.bucket.as_str(), "miner-0" | "miner-1")
        }));
        let outcome = run(scenario);
        assert_eq!(certified(&outcome), [true; 4], "{fault:?}");
        assert_one_history(&outcome);
        for node in ["validator-0", "validator-1"] {
            assert_eq!(outages(&outcome, node), (0, 0), "{fault:?}");
            assert!(ends(&outcome, node).iter().all(|(_, end)| *end == End::Voted), "{fault:?}");
        }
        let blamed = &outcome.report.windows[2].faults;
        assert!(blamed.len() == 2 && blamed.iter().all(|fault| fault.attributed_to == Party::Storage), "{blamed:?}");
    }
}

#[test]
fn an_own_bucket_that_hangs_stops_nothing_but_the_vote() {
    let mut scenario = Scenario::new(3, 3, 7, 105);
    let hangs = Fault::Delay(Duration::from_secs(5000));
    scenario.cloud_fault =
        Some(during(time(2, 0)..time(4, 0), hangs, |op| op.actor == "validator-2" && op.bucket == "validator-2"));
    let outcome = run(scenario);
    assert_eq!(certified(&outcome), [true; 7]);
    assert_one_history(&outcome);
    let ends: Vec<End> = ends(&outcome, "validator-2").into_iter().map(|(_, end)| end).collect();
    let cannot: Vec<bool> =
        ends.iter().map(|end| matches!(end, End::Abstained { why: Abstention::CannotServe { .. } })).collect();
    assert_eq!(cannot, [false, false, true, true, false, false, false], "{ends:?}");
    assert_eq!(told(&outcome, "validator-2", |trouble| matches!(trouble, Trouble::CannotServe { .. })), 1, "once");
    assert_eq!(count(&outcome, "validator-2", |event| matches!(event, Event::BucketBack { refused: 2 })), 1);
    assert!((4..7).all(|window| voted(&outcome, "validator-2", window)));
    assert_eq!((outages(&outcome, "validator-2"), adoptions(&outcome, "validator-2")), ((0, 0), 0));
    // Head by head: each window is settled before anybody settles the next one.
    let position = |node: &str, wanted: u64| {
        let settled = |event: &Event| matches!(event, Event::Settled { window, .. } if *window == wanted);
        outcome.log.iter().position(|logged| logged.node == node && settled(&logged.event)).unwrap()
    };
    assert!((1..6).all(|window| position("validator-2", window) < position("validator-0", window + 1)));
    // It judged as well as the others, and measured what it judged.
    let observed = |event: &Event| matches!(event, Event::Evaluated { window: 2 | 3, .. });
    assert!(any(&outcome, "validator-2", observed));
}

#[test]
fn a_contribution_that_is_opened_at_the_last_moment_keeps_no_validator_from_voting() {
    let mut scenario = Scenario::new(3, 2, 3, 106);
    let mut now = clock();
    // miner-1's key comes just before the last call, and what is put into a validator's bucket takes two blocks.
    scenario.cloud_fault = Some(Box::new(move |op| {
        let is_early = now() < time(1, 15);
        let late = op.kind == OpKind::Get && op.bucket == "miner-1" && op.key.ends_with("w/00000001/key");
        if late && is_early {
            return Some(Fault::NotFound);
        }
        let put = op.kind == OpKind::Put && op.key.contains("/held/00000001/") && op.key.ends_with("/payload");
        put.then_some(Fault::Delay(Duration::from_secs(40)))
    }));
    let times = Times::of(&mut scenario, |event| matches!(event, Event::Voted { window: 1, .. }));
    let outcome = run(scenario);
    // The last block in which a vote can be cast is the next one.
    let votes = times.seen();
    assert!(votes.len() == 2 && votes.iter().all(|(_, vote)| *vote < time(1, 17)), "{votes:?}");
    assert_eq!(certified(&outcome), [true; 3]);
    assert_one_history(&outcome);
    let mut accepted = outcome.report.windows[1].accepted.clone();
    accepted.sort();
    assert_eq!(accepted, [Uid(0), Uid(2)]);
    let faults = &outcome.report.windows[1].faults;
    assert!(faults.iter().all(|fault| fault.attributed_to == Party::Validator), "{faults:?}");
    assert!(outcome.report.windows[2].accepted.contains(&Uid(1)), "it is not excluded for that");
}

#[test]
fn a_validator_begins_though_its_bucket_lists_nothing() {
    let mut scenario = Scenario::new(3, 2, 4, 107);
    let hangs = Fault::Delay(Duration::from_secs(100_000));
    scenario.cloud_fault =
        Some(Box::new(move |op| (op.kind == OpKind::List && op.actor == "validator-1").then_some(hangs)));
    let outcome = run(scenario);
    assert_eq!(certified(&outcome), [true; 4]);
    assert!((0..4).all(|window| voted(&outcome, "validator-1", window)));
    assert_eq!(told(&outcome, "validator-1", |trouble| matches!(trouble, Trouble::Sweep { .. })), 1);
}

/// A paced chain passes the blocks before the first window in a moment.
#[test]
fn a_bucket_that_lists_slowly_is_no_trouble_however_fast_the_blocks_come() {
    let mut scenario = Scenario::new(3, 2, 2, 108);
    let slow = Fault::Delay(Duration::from_secs(40));
    scenario.cloud_fault = Some(Box::new(move |op| (op.kind == OpKind::List).then_some(slow)));
    let outcome = run(scenario);
    assert_eq!(certified(&outcome), [true; 2]);
    for node in ["miner-0", "validator-0", "validator-1"] {
        assert_eq!(told(&outcome, node, |trouble| matches!(trouble, Trouble::Sweep { .. })), 0, "{node}");
    }
}

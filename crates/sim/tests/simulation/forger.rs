//! A miner whose contribution is in order as far as hashes and signatures go, and hostile behind them: what the chain names,
//! the header signs and the key opens. The attacks have the numbers of a list that another network left open; a part of θ
//! that is larger than it may be is among the checkpoints.

use std::sync::{Arc, Mutex};

use templar_protocol::roster::Uid;
use templar_protocol::run::RunSpec;
use templar_record::event::{Event, Verdict};
use templar_sim::r#virtual::scenario::{Outcome, Scenario};
use templar_sim::zoo::attack::accept_all;
use templar_sim::zoo::attack::forged_payload::{self, Lie};
use templar_store::{Op, OpKind};

use crate::{assert_one_history, certified, count, faults_of, run};

const SEED: u64 = 90;

/// The run, whose largest magnitude is one that a payload can exceed.
fn prepare(spec: &mut RunSpec) {
    spec.codec.max_abs = 1.0;
}

/// A network of which one miner lies in window 1.
fn scenario(miners: usize, forger: &str, lie: Lie) -> Scenario {
    let mut scenario = Scenario::new(miners, 2, 3, SEED);
    scenario.adjust = prepare;
    scenario.wrap(forger, move |setup| forged_payload::wrap(setup, move |window| (window == 1).then_some(lie)));
    scenario
}

/// The lie of `forger` has its name, moves nothing, and costs nobody else anything.
fn assert_found_out(outcome: &Outcome, forger: Uid, lie: Lie, accepted: &[Uid]) {
    assert_one_history(outcome);
    assert!(certified(outcome).iter().all(|&certified| certified), "{lie:?}");
    let window = &outcome.report.windows[1];
    assert_eq!(faults_of(window, forger.0), [lie.fault()], "{lie:?}");
    assert!(window.faults.iter().all(|fault| fault.uid == forger), "{lie:?}: {window:?}");
    let mut found = window.accepted.clone();
    found.sort();
    assert_eq!(found, accepted, "{lie:?}");
}

/// As a candidate, with a lower and a higher uid beside it.
fn assert_found_out_as_candidate(lies: &[Lie]) {
    for &lie in lies {
        let outcome = run(scenario(3, "miner-1", lie));
        assert_found_out(&outcome, Uid(1), lie, &[Uid(0), Uid(2)]);
        assert!(!outcome.report.windows[2].accepted.contains(&Uid(1)), "{lie:?} excludes");
    }
}

#[test]
fn attack_4_a_payload_of_another_kind() {
    assert_found_out_as_candidate(&[Lie::Kind]);
}

#[test]
fn attack_5_one_malformed_payload_drops_no_other() {
    assert_found_out_as_candidate(&[Lie::Cut, Lie::NoPositions, Lie::Magnitude, Lie::TrailingBits]);
}

#[test]
fn a_ciphertext_that_its_key_does_not_open() {
    assert_found_out_as_candidate(&[Lie::Tag]);
}

#[test]
fn attack_4_holds_in_reserve_and_does_nothing_without_a_seat() {
    let network = |forger: Option<Uid>| {
        let mut scenario = match forger {
            Some(uid) => scenario(4, &format!("miner-{uid}"), Lie::Kind),
            None => Scenario::new(4, 2, 3, SEED),
        };
        scenario.adjust = |spec| {
            (spec.roster.gather, spec.roster.reserve) = (2, 1);
            prepare(spec);
        };
        run(scenario)
    };
    let honest = network(None);
    let mut accepted = honest.report.windows[1].accepted.clone();
    accepted.sort();
    // Who stands where in window 1 is decided before anybody lies.
    let candidates = honest.log.iter().find_map(|logged| match &logged.event {
        Event::Voted { window: 1, accept, .. } => Some(accept.clone()),
        _ => None,
    });
    let candidates = candidates.unwrap();
    let uids = [0, 1, 2, 3].map(Uid);
    let in_reserve = uids.iter().find(|uid| candidates.contains(uid) && !accepted.contains(uid)).unwrap();
    let without_seat = uids.iter().find(|uid| !candidates.contains(uid)).unwrap();
    assert_found_out(&network(Some(*in_reserve)), *in_reserve, Lie::Kind, &accepted);
    // Whoever has no seat has no data: there is nothing that it could send, and nobody asks.
    assert_eq!(network(Some(*without_seat)).log, honest.log);
}

/// What is asked for of miner-1's contribution to window 1, as it happens.
fn watch_gets(scenario: &mut Scenario) -> Arc<Mutex<Vec<Op>>> {
    let gets: Arc<Mutex<Vec<Op>>> = Arc::default();
    let seen = gets.clone();
    scenario.cloud_fault = Some(Box::new(move |op| {
        if op.kind == OpKind::Get && op.bucket == "miner-1" && op.key.contains("/w/00000001/") {
            seen.lock().unwrap().push(op.clone());
        }
        None
    }));
    gets
}

fn count_gets(gets: &Mutex<Vec<Op>>, actor: &str, object: &str) -> usize {
    let gets = gets.lock().unwrap();
    gets.iter().filter(|op| op.actor.starts_with(actor) && op.key.ends_with(object)).count()
}

#[test]
fn attack_12_what_is_too_large_is_not_downloaded() {
    let mut scenario = scenario(3, "miner-1", Lie::Size);
    let gets = watch_gets(&mut scenario);
    let outcome = run(scenario);
    assert_found_out(&outcome, Uid(1), Lie::Size, &[Uid(0), Uid(2)]);
    assert!(count_gets(&gets, "validator-0", "/header") > 0 && count_gets(&gets, "validator-1", "/header") > 0);
    assert_eq!(count_gets(&gets, "", "/payload"), 0);
}

#[test]
fn attack_12_what_is_too_large_is_not_downloaded_even_if_certified() {
    let mut scenario = scenario(3, "miner-1", Lie::Size);
    // All validators lie too: the others must fetch it, and cannot.
    for validator in ["validator-0", "validator-1"] {
        scenario.wrap(validator, |setup| accept_all::wrap(setup, 1, 3, 2));
    }
    let gets = watch_gets(&mut scenario);
    let outcome = run(scenario);
    assert_one_history(&outcome);
    for node in ["miner-0", "miner-1", "miner-2", "validator-0", "validator-1"] {
        let withheld =
            |event: &Event| matches!(event, Event::Settled { window: 1, verdict: Verdict::Withheld { .. }, .. });
        assert_eq!(count(&outcome, node, withheld), 1, "{node}");
        // The validators look at it in their intake, too, and not as often.
        assert!(node == "miner-1" || count_gets(&gets, node, "/header") > 2, "{node} asks for it again");
    }
    assert!(certified(&outcome)[2], "the run goes on");
    assert_eq!(count_gets(&gets, "", "/payload"), 0);
}

//! Miners that publish what they should not, and validators that vote too late: each lie has its name, and moves nothing.

use std::time::Duration;

use templar_protocol::fault::{FaultKind, Party};
use templar_protocol::roster::Uid;
use templar_record::event::Event;
use templar_sim::r#virtual::scenario::Scenario;
use templar_sim::zoo::attack::garbled_object::{self, Garbled};
use templar_sim::zoo::attack::{late_vote, twin};
use templar_sim::zoo::failure::outage::clock;
use templar_store::{Fault, OpKind};

use crate::{End, any, assert_one_history, certified, ends, faults_of, run};

/// Runs networks in which miner-1 garbles one object of window 1; it must be found out, and must change nothing for the
/// others.
fn assert_found_out(ways: &[Garbled]) {
    for &garbled in ways {
        let mut scenario = Scenario::new(3, 2, 3, 60);
        scenario
            .wrap("miner-1", move |setup| garbled_object::wrap(setup, move |window| (window == 1).then_some(garbled)));
        let outcome = run(scenario);
        assert_one_history(&outcome);
        assert_eq!(certified(&outcome), [true; 3], "{garbled:?}");
        let window = &outcome.report.windows[1];
        assert_eq!(faults_of(window, 1), [garbled.fault()], "{garbled:?}");
        assert!(window.faults.iter().all(|found| found.attributed_to == Party::Miner && found.uid == Uid(1)));
        assert!(window.accepted.len() == 2 && !window.accepted.contains(&Uid(1)), "{window:?}");
        // Its hotkey signed none of it: it may have been damaged on its way, and costs one window.
        assert!(outcome.report.windows[2].accepted.contains(&Uid(1)), "{garbled:?} excludes nobody");
    }
}

#[test]
fn a_payload_of_another_size() {
    assert_found_out(&[Garbled::OversizedPayload, Garbled::TruncatedPayload]);
}

#[test]
fn a_header_too_large_to_be_one() {
    assert_found_out(&[Garbled::OversizedHeader]);
}

#[test]
fn a_foreign_signature() {
    assert_found_out(&[Garbled::ForeignSignature]);
}

#[test]
fn a_header_of_another_window() {
    assert_found_out(&[Garbled::WindowOfHeader]);
}

#[test]
fn a_key_that_is_not_the_committed_one() {
    assert_found_out(&[Garbled::WrongKey]);
}

#[test]
fn a_key_of_31_or_33_bytes() {
    assert_found_out(&[Garbled::ShortKey, Garbled::LongKey]);
}

#[test]
fn one_contribution_under_two_names_counts_once() {
    let mut scenario = Scenario::new(4, 2, 2, 61);
    scenario.plan.adversaries = vec![twin::KIND; 2];
    let outcome = run(scenario);
    assert_one_history(&outcome);
    let window = &outcome.report.windows[0];
    let duplicates: Vec<Uid> =
        window.faults.iter().filter(|fault| fault.fault == FaultKind::Duplicate).map(|fault| fault.uid).collect();
    assert!(duplicates == [Uid(2)] || duplicates == [Uid(3)], "{window:?}");
    assert!(window.accepted.len() == 3 && !window.accepted.contains(&duplicates[0]), "{window:?}");
}

#[test]
fn a_vote_that_comes_too_late_does_not_count() {
    let network = |late: bool| {
        let mut scenario = Scenario::new(3, 4, 3, 62);
        // validator-2 cannot open miner-1's contribution, and finds no copies until it has voted: the other three of four
        // accept it, and without validator-1 it is half of the stake, which rejects.
        let mut clock = clock();
        let vote_block = Duration::from_secs(12 * (20 + 20 + 17));
        scenario.cloud_fault = Some(Box::new(move |op| {
            let now = clock();
            let is_key = op.bucket == "miner-1" && op.key.ends_with("w/00000001/key");
            let is_copy = op.key.contains("/held/00000001/") && now < vote_block;
            let is_blind = op.kind == OpKind::Get && op.actor == "validator-2";
            (is_blind && (is_key || is_copy)).then_some(Fault::NotFound)
        }));
        if late {
            scenario.wrap("validator-1", |setup| late_vote::wrap(setup, |window| window == 1));
        }
        run(scenario)
    };
    let (in_time, late) = (network(false), network(true));
    assert!(in_time.report.windows[1].accepted.contains(&Uid(1)));
    assert!(any(&late, "validator-1", |event| matches!(event, Event::Voted { window: 1, .. })));
    // What it decided is not what counted.
    assert_eq!(ends(&late, "validator-1")[1], (1, End::VoteLate));
    assert_eq!(ends(&in_time, "validator-1")[1], (1, End::Voted));
    assert!(late.report.windows[1].certified && !late.report.windows[1].accepted.contains(&Uid(1)));
    assert_one_history(&late);
}

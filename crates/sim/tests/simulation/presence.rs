//! Who is there: seats that idle miners do not keep, validators that are away, and votes without payloads.

use templar_node::frame::files::Disk;
use templar_node::frame::local::Local;
use templar_protocol::keys::Keypair;
use templar_protocol::roster::Uid;
use templar_sim::r#virtual::scenario::Scenario;
use templar_sim::zoo::layers::rewrite_commitments;

use crate::{assert_one_history, certified, kill, run, start, voted};

#[test]
fn idle_miners_lose_their_seats_to_those_that_work() {
    let mut scenario = Scenario::new(32, 2, 7, 140);
    scenario.adjust = |spec| (spec.roster.gather, spec.roster.reserve) = (8, 4);
    for nth in 8..32 {
        // It is listed, and commits to nothing.
        scenario.wrap(&format!("miner-{nth}"), |setup| {
            rewrite_commitments(setup, |fields| fields.iter_mut().skip(1).for_each(Vec::clear))
        });
    }
    let outcome = run(scenario);
    assert_one_history(&outcome);
    let counts: Vec<usize> = outcome.report.windows.iter().map(|window| window.accepted.len()).collect();
    assert!(counts[0] < 8, "{counts:?}: it would show nothing");
    assert_eq!(counts[4..], [8; 3], "{counts:?}");
    assert!(outcome.report.windows.iter().flat_map(|window| &window.accepted).all(|uid| *uid < Uid(8)));
}

#[test]
fn with_one_of_three_validators_away_every_window_is_certified() {
    let mut scenario = Scenario::new(3, 3, 7, 141);
    scenario.adjust = |spec| spec.roster.silent_windows = 3;
    scenario.incidents = vec![kill("validator-1", 1)];
    let outcome = run(scenario);
    let certified = certified(&outcome);
    assert_eq!(certified, [true; 7]);
    assert!(outcome.report.windows.iter().all(|window| window.one_root && window.accepted.len() == 3));
}

#[test]
fn a_run_that_lost_most_validators_goes_on_without_them_and_takes_them_back() {
    let mut scenario = Scenario::new(3, 3, 12, 142);
    scenario.adjust = |spec| spec.roster.silent_windows = 3;
    scenario.incidents = vec![
        kill("validator-1", 2),
        kill("validator-2", 2),
        start("validator-1", 8),
        start("validator-2", 8),
        kill("validator-0", 10),
    ];
    let outcome = run(scenario);
    // Their last votes are on window 1: they are in the rosters of windows up to 4.
    let expected: Vec<bool> = (0..12).map(|window| !(2..=4).contains(&window)).collect();
    assert_eq!(certified(&outcome), expected);
    for validator in ["validator-1", "validator-2"] {
        assert!(voted(&outcome, validator, 9) && voted(&outcome, validator, 11), "{validator}");
    }
    assert!(outcome.report.windows.iter().all(|window| window.one_root));
}

/// Windows that are certified where validator-1 is away from window 4 on, and validator-2 votes as it should or without
/// the proof that it has the payloads. Gives also whom the newest state denies.
fn with_votes(seed: u64, is_copied: bool) -> (Vec<bool>, Vec<Uid>) {
    let mut scenario = Scenario::new(3, 3, 7, seed);
    if is_copied {
        // What a validator without payloads can say: a root and bits are on the chain for everybody to copy.
        scenario.wrap("validator-2", |setup| {
            rewrite_commitments(setup, |fields| {
                if let Some(proof) = fields.get_mut(2).and_then(|vote| vote.last_chunk_mut::<16>()) {
                    proof.fill(0);
                }
            })
        });
    }
    scenario.incidents = vec![kill("validator-1", 4)];
    let folder = tempfile::tempdir().unwrap();
    let outcome = scenario.run(folder.path());
    assert!(outcome.report.windows.iter().all(|window| window.one_root));
    let hotkey = Keypair::insecure_dev(seed, "miner-0").hotkey();
    let local = Local::open(&folder.path().join("nodes/miner-0"), outcome.spec.id(), &hotkey, Disk::Volatile).unwrap();
    let newest = local.states(outcome.spec.id()).unwrap().remove(0);
    (certified(&outcome), newest.standing.denials.iter().map(|denial| denial.entry.uid).collect())
}

#[test]
fn a_validator_that_copies_votes_without_payloads_loses_its_vote() {
    assert_eq!(with_votes(143, false), (vec![true; 7], vec![]));
    // Its vote would make two of three.
    let (certified, denied) = with_votes(143, true);
    assert_eq!(certified, [true, true, true, true, false, false, false]);
    assert_eq!(denied, [Uid(5)]);
}

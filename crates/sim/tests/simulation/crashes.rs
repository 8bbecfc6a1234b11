//! Nodes that die, lose their disks, or find that the network went another way.

use std::path::Path;
use std::sync::Arc;

use templar_node::frame::files::Disk;
use templar_node::frame::local::Local;
use templar_node::pretrain::pending::Pending;
use templar_protocol::fault::FaultKind;
use templar_protocol::hash::Hash32;
use templar_protocol::keys::{Hotkey, Keypair};
use templar_protocol::roster::Uid;
use templar_protocol::run::RunSpec;
use templar_protocol::standing::{Exclusion, Standing};
use templar_protocol::state::RunState;
use templar_record::event::{Event, Source};
use templar_record::outcome::{Miss, Outcome};
use templar_sim::r#virtual::scenario::{Scenario, What};
use templar_sim::zoo::failure::disk::{diverge, wipe};
use templar_sim::zoo::failure::not_a_number;
use templar_store::{Fault, OpKind};

use crate::{MID_WINDOW, any, assert_one_history, at, certified, count, faults_of, kill, run, start, trained, voted};

#[test]
fn one_of_three_validators_absent_does_not_stop_the_run() {
    let mut scenario = Scenario::new(3, 3, 7, 5);
    scenario.incidents = vec![kill("validator-1", 1), start("validator-1", 4)];
    let outcome = run(scenario);
    assert_eq!(certified(&outcome), [true; 7]);
    assert_one_history(&outcome);
    let voted = |window| voted(&outcome, "validator-1", window);
    assert!(voted(0) && !voted(2) && voted(6));
    // Its old word still stands on the chain: it counts for nothing, and is nobody's fault.
    assert!(outcome.report.windows.iter().all(|window| window.misvotes.is_empty()));
    assert!(outcome.report.nodes.iter().all(|node| node.faults.is_empty()), "{:?}", outcome.report.nodes);
}

#[test]
fn a_minority_goes_back_to_the_last_certified_state_and_replays() {
    for node in ["validator-2", "miner-0"] {
        let mut scenario = Scenario::new(3, 3, 8, 7);
        scenario.incidents = vec![kill(node, 3), at(3, MID_WINDOW, What::Disk(node.into(), diverge)), start(node, 3)];
        let outcome = run(scenario);
        assert!(any(&outcome, node, |event| matches!(event, Event::Diverged { .. })), "{node}");
        assert!(any(&outcome, node, |event| matches!(event, Event::Adopted { .. })), "{node}");
        assert_eq!(certified(&outcome), [true; 8], "{node}");
        let last = outcome.report.windows[7].state_root;
        assert!(outcome.report.windows[7].one_root);
        assert!(outcome.report.nodes.iter().all(|other| other.final_state_root == last), "{node}");
    }
}

#[test]
fn a_killed_miner_comes_back_and_counts_again() {
    let mut scenario = Scenario::new(3, 2, 6, 9);
    scenario.incidents = vec![kill("miner-2", 2), start("miner-2", 2), kill("miner-0", 3), start("miner-0", 4)];
    let outcome = run(scenario);
    assert_one_history(&outcome);
    assert_eq!(certified(&outcome), [true; 6]);
    // miner-2 had committed before it died, and opened after it was back: nothing was lost.
    assert!(outcome.report.windows[2].accepted.contains(&Uid(2)));
    assert!(!outcome.report.windows[3].accepted.contains(&Uid(0)));
    assert_eq!(outcome.report.windows[5].accepted.len(), 3);
    assert_eq!(outcome.report.nodes[0].restarts, 1);
}

#[test]
fn a_node_without_its_disk_starts_from_a_certified_checkpoint() {
    let mut scenario = Scenario::new(3, 2, 9, 10);
    let disk = |node: &str| at(6, MID_WINDOW, What::Disk(node.into(), wipe));
    scenario.incidents = vec![
        kill("validator-1", 6),
        disk("validator-1"),
        start("validator-1", 6),
        kill("miner-1", 6),
        disk("miner-1"),
        start("miner-1", 6),
    ];
    let outcome = run(scenario);
    for node in ["validator-1", "miner-1"] {
        let adopted =
            |event: &Event| matches!(event, Event::Adopted { from: Source::Checkpoint, settled, .. } if *settled >= 4);
        assert!(any(&outcome, node, adopted), "{node}");
    }
    assert_eq!(certified(&outcome), [true; 9]);
    let last = outcome.report.windows[8].state_root;
    assert!(outcome.report.nodes.iter().all(|node| node.final_state_root == last));
}

/// The newest state on disk with every miner excluded: no candidate is left, so no vote of the others' fits.
fn exclude_everybody(folder: &Path, spec: &RunSpec, hotkey: &Hotkey) {
    let mut local = Local::open(folder, spec.id(), hotkey, Disk::Volatile).unwrap();
    let state = local.states(spec.id()).unwrap().remove(0);
    let theta = local.theta(&state, &spec.layout()).unwrap();
    let exclusions = (0..3).map(|uid| {
        let hotkey = Keypair::insecure_dev(22, &format!("miner-{uid}")).hotkey();
        Exclusion { hotkey, bucket: Hash32::of(b"none"), until_window: 1000 }
    });
    let standing = Standing { exclusions: exclusions.collect(), ..state.standing };
    local.save(&RunState { standing, ..state }, &Arc::new(theta), &[]).unwrap();
}

#[test]
fn a_node_that_cannot_read_the_others_votes_still_sees_their_root() {
    for node in ["validator-2", "miner-0"] {
        let mut scenario = Scenario::new(3, 3, 6, 22);
        scenario.incidents =
            vec![kill(node, 3), at(3, MID_WINDOW, What::Disk(node.into(), exclude_everybody)), start(node, 3)];
        let outcome = run(scenario);
        assert!(any(&outcome, node, |event| matches!(event, Event::Diverged { window: 3, .. })), "{node}");
        assert!(outcome.report.windows[4].one_root && outcome.report.windows[5].one_root, "{node}");
        assert_eq!(certified(&outcome), [true; 6], "{node}");
    }
}

pub(crate) fn overlapping(spec: &mut RunSpec) {
    spec.windows.delay_windows = 1;
    spec.windows.vote_block = 26;
}

#[test]
fn what_was_opened_is_on_disk_before_its_window_is_settled() {
    let folder = tempfile::tempdir().unwrap();
    let mut scenario = Scenario::new(3, 2, 4, 23);
    scenario.adjust = overlapping;
    // Window 2 was opened at its block 12 and is settled at its block 26: in between, the node dies. Window 3 is sealed by
    // then, because that waits for the last header alone.
    scenario.incidents = vec![kill("miner-1", 3)];
    let outcome = scenario.run(folder.path());
    let hotkey = Keypair::insecure_dev(23, "miner-1").hotkey();
    let local = Local::open(&folder.path().join("nodes/miner-1"), outcome.spec.id(), &hotkey, Disk::Volatile).unwrap();
    let pending = Pending::load(&local).unwrap().whole;
    assert_eq!(
        pending.iter().map(|pending| (pending.window, pending.is_opened())).collect::<Vec<_>>(),
        [(2, true), (3, false)]
    );
}

#[test]
fn values_that_counted_in_a_window_jumped_over_are_not_sent_again() {
    let mut scenario = Scenario::new(3, 2, 10, 24);
    scenario.adjust = overlapping;
    scenario.incidents = vec![kill("miner-1", 2), start("miner-1", 7)];
    let outcome = run(scenario);
    let jumped =
        |event: &Event| matches!(event, Event::Adopted { from: Source::Checkpoint, settled, .. } if *settled >= 4);
    assert!(any(&outcome, "miner-1", jumped));
    assert!(outcome.report.windows[1].accepted.contains(&Uid(1)), "it had opened window 1");
    assert!(outcome.report.windows[9].accepted.contains(&Uid(1)), "it counts again");
    // What it left in its bucket is gone, too.
    let left = outcome.cloud.keys("miner-1");
    assert!(!left.iter().any(|key| key.contains("/w/00000001/") || key.contains("/w/00000000/")), "{left:?}");
    assert!(left.iter().any(|key| key.contains("/w/00000009/")), "{left:?}");
}

#[test]
fn a_miner_that_trained_from_a_wrong_state_lapses_and_counts_again() {
    let mut scenario = Scenario::new(3, 3, 7, 25);
    scenario.adjust = overlapping;
    // Window 3 starts from the state after two windows, which is its newest one here.
    let before_window_3 = |what: What| at(2, 18, what);
    scenario.incidents = vec![
        before_window_3(What::Kill("miner-0".into())),
        before_window_3(What::Disk("miner-0".into(), diverge)),
        before_window_3(What::Start("miner-0".into())),
    ];
    let outcome = run(scenario);
    assert!(any(&outcome, "miner-0", |event| matches!(event, Event::Adopted { .. })));
    // It had sealed window 3 before the votes of window 2 contradicted the state that it started from.
    let wrong = faults_of(&outcome.report.windows[3], 0);
    assert_eq!(wrong, [FaultKind::WrongBase]);
    assert!(!wrong[0].excludes());
    assert!(outcome.report.windows[5].accepted.contains(&Uid(0)), "it counts again");
    assert!(outcome.report.windows[6].accepted.contains(&Uid(0)));
    assert_eq!(certified(&outcome), [true; 7]);
}

#[test]
fn a_node_that_gets_no_contribution_looks_for_a_state_once_a_block() {
    let mut scenario = Scenario::new(3, 2, 4, 26);
    scenario.cloud_fault =
        Some(Box::new(|op| (op.kind == OpKind::Get && op.actor == "miner-0").then_some(Fault::NotFound)));
    let outcome = run(scenario);
    assert_eq!(certified(&outcome), [true; 4]);
    let looks = count(&outcome, "miner-0", |event| matches!(event, Event::Adopted { .. }));
    let blocks = 4 * 20;
    assert!((1..=blocks).contains(&looks), "{looks} in {blocks} blocks");
    let troubles = count(&outcome, "miner-0", |event| matches!(event, Event::Trouble { .. }));
    assert!(troubles <= 3 * blocks, "{troubles} in {blocks} blocks");
}

#[test]
fn a_miner_trains_on_while_its_bucket_takes_no_key() {
    let mut scenario = Scenario::new(3, 2, 5, 28);
    scenario.adjust = |spec| {
        spec.windows.delay_windows = 1;
        spec.windows.vote_block = 31;
    };
    scenario.cloud_fault = Some(Box::new(|op| {
        let down = op.kind == OpKind::Put && op.actor == "miner-1" && op.key.ends_with("00000001/key");
        down.then_some(Fault::Unavailable)
    }));
    let outcome = run(scenario);
    assert!(!outcome.report.windows[1].accepted.contains(&Uid(1)));
    assert!(trained(&outcome, "miner-1", 2) && outcome.report.windows[3].accepted.contains(&Uid(1)));
}

#[test]
fn a_hotkey_registered_again_goes_on_without_a_restart() {
    let mut scenario = Scenario::new(3, 2, 9, 29);
    scenario.adjust_chain = |config| {
        (config.max_uids, config.max_validators, config.immunity_blocks) = (6, 2, 0);
    };
    // A stranger takes the place of the miner with the lowest incentive, which takes it back.
    let evict = What::Shared(|chain, _, _| {
        chain.register(Keypair::insecure_dev(0, "stranger").hotkey(), 0).unwrap();
    });
    let comes_back = What::Shared(|chain, _, members| {
        let gone = |hotkey: &Hotkey| !chain.emissions().iter().any(|neuron| neuron.hotkey == *hotkey);
        let missing = members.iter().find(|member| gone(&member.keypair.hotkey())).unwrap();
        chain.register(missing.keypair.hotkey(), 0).unwrap();
    });
    scenario.incidents = vec![at(3, 13, evict), at(3, 15, comes_back)];
    let outcome = run(scenario);
    let renewed: Vec<Uid> = outcome
        .log
        .iter()
        .filter_map(|logged| match logged.event {
            Event::Registered { uid } => Some(uid),
            _ => None,
        })
        .collect();
    let [uid] = renewed[..] else { panic!("{renewed:?}") };
    // It has no incentive any more, and gets one of the seats of newcomers.
    assert!(outcome.report.windows[5].accepted.contains(&uid), "{uid:?}: {:?}", outcome.report.windows[5]);
    assert!(outcome.report.windows[8].accepted.contains(&uid), "{uid:?}: {:?}", outcome.report.windows[8]);
    assert_one_history(&outcome);
}

#[test]
fn a_miner_gets_over_what_is_not_a_number() {
    let mut scenario = Scenario::new(3, 2, 5, 30);
    scenario.wrap("miner-1", |setup| not_a_number::wrap(setup, 2));
    let outcome = run(scenario);
    let counted = |nth: usize| outcome.report.windows[nth].accepted.contains(&Uid(1));
    let lost = |event: &Event| {
        matches!(event, Event::Ended { window: 2, outcome: Outcome::Missed { why: Miss::ErrorFeedbackLost { .. } } })
    };
    assert!(any(&outcome, "miner-1", lost));
    assert_eq!([counted(1), counted(2), counted(3), counted(4)], [true, false, true, true]);
}

#[test]
fn a_vote_without_candidates_survives_a_restart() {
    let mut scenario = Scenario::new(0, 2, 3, 31);
    let restart = |what: fn(String) -> What| at(1, 14, what("validator-0".into()));
    scenario.incidents = vec![restart(What::Kill), restart(What::Start)];
    let outcome = run(scenario);
    assert_eq!(certified(&outcome), [true; 3]);
    assert_eq!(count(&outcome, "validator-0", |event| matches!(event, Event::Voted { window: 1, .. })), 1);
}

use templar_protocol::roster::EntryId;
use templar_record::event::Source;

use crate::plan::Plan;
use crate::r#virtual::engine::Engine;
use crate::zoo::attack::{late_vote, noise};

use super::*;

const ROOT: &[u8] = b"root";

/// Three miners, the last of which is hostile, and three validators, the last of which is too.
fn network(disturbances: Disturbances) -> (Invariants, Vec<Member>) {
    let adversaries = vec![noise::KIND, late_vote::KIND];
    let plan = Plan { miners: 3, validators: 3, windows: 9, seed: 7, preset: Engine::Surrogate.preset(), adversaries };
    let (members, zero) = (plan.members(), Hash32::default());
    (Invariants::new(7, &plan.spec_without_root(zero, zero), &members, disturbances), members)
}

fn told(node: &str, event: Event) -> NodeEvent {
    NodeEvent { node: node.to_owned(), event }
}

fn settled(window: u64, root: &[u8], verdict: Verdict) -> Event {
    Event::Settled { window, verdict, state_root: Hash32::of(root), payload_bytes: 0, values: 0, tokens: 0 }
}

fn certified(accepted: &[u16]) -> Verdict {
    Verdict::Certified { accepted: accepted.iter().copied().map(Uid).collect(), excluded: vec![] }
}

/// The invariants that these events violate.
fn violated(events: impl IntoIterator<Item = (&'static str, Event)>, disturbances: Disturbances) -> Vec<Invariant> {
    let (mut invariants, _) = network(disturbances);
    events.into_iter().for_each(|(node, event)| invariants.hear(&told(node, event)));
    invariants.into_violations().into_iter().map(|violation| violation.invariant).collect()
}

fn calm() -> Disturbances {
    Disturbances::default()
}

#[test]
fn two_states_are_seen_once_the_next_votes_have_confirmed_them() {
    let history =
        |node, root: &[u8]| [(node, settled(0, root, certified(&[0]))), (node, settled(1, root, certified(&[0])))];
    let both = |root: &[u8]| [history("miner-0", ROOT), history("validator-1", root)].concat();
    assert_eq!(violated(both(ROOT), calm()), []);
    assert_eq!(violated(both(b"other"), calm()), [Invariant::EqualRoots]);
    // What the votes contradict is not kept.
    let (own, hash) = (Hash32::of(b"other"), Hash32::of(ROOT));
    let mut goes_back = both(b"other");
    let diverged = ("validator-1", Event::Diverged { window: 1, own, certified: hash });
    goes_back.insert(3, diverged);
    let adopted = Event::Adopted { settled: 1, state_root: hash, from: Source::Checkpoint };
    goes_back.insert(4, ("validator-1", adopted));
    assert_eq!(violated(goes_back, calm()), []);
    // Nobody answers for what a hostile node says.
    assert_eq!(violated([history("miner-0", ROOT), history("miner-2", b"other")].concat(), calm()), []);
}

#[test]
fn two_readings_of_a_window_conflict() {
    let both = |other: Verdict| [("miner-0", settled(3, ROOT, certified(&[0]))), ("miner-1", settled(3, ROOT, other))];
    assert_eq!(violated(both(certified(&[0])), calm()), []);
    assert_eq!(violated(both(Verdict::Withheld { accepted: vec![Uid(0)] }), calm()), []);
    assert_eq!(violated(both(certified(&[0, 1])), calm()), [Invariant::OneCertificate]);
}

#[test]
fn a_null_window_is_explained_by_failures_alone() {
    let null = || [("validator-0", settled(4, ROOT, Verdict::NoMajority))];
    assert_eq!(violated(null(), calm()), [Invariant::Progress]);
    let mut disturbances = calm();
    disturbances.add("validator-1", 2, 2);
    assert_eq!(violated(null(), disturbances), []);
}

#[test]
fn nobody_honest_is_excluded_or_denied() {
    let excluded = |uid| Verdict::Certified { accepted: vec![], excluded: vec![Uid(uid)] };
    assert_eq!(violated([("miner-0", settled(1, ROOT, excluded(1)))], calm()), [Invariant::NobodyExcluded]);
    assert_eq!(violated([("miner-0", settled(1, ROOT, excluded(2)))], calm()), []);
    let denied = |node| [(node, Event::Ended { window: 1, outcome: Outcome::Denied })];
    assert_eq!(violated(denied("validator-0"), calm()), [Invariant::NobodyExcluded]);
    assert_eq!(violated(denied("validator-2"), calm()), []);
}

#[test]
fn only_a_lapse_is_explained_by_a_failure_of_its_own() {
    let (_, members) = network(calm());
    let voted = |uid: u16, kind: FaultKind| {
        let hotkey = members[usize::from(uid)].keypair.hotkey();
        let entry = EntryId { uid: Uid(uid), hotkey, registered_at_block: 1 };
        let faults = vec![Fault { entry, kind, attributed_to: kind.attributed_to() }];
        [("validator-0", Event::Voted { window: 5, accept: vec![], faults, comm_s: 0.0 })]
    };
    let away = || {
        let mut disturbances = calm();
        disturbances.add("miner-0", 4, 4);
        disturbances
    };
    assert_eq!(violated(voted(0, FaultKind::NotCommitted), calm()), [Invariant::NobodyBlamed]);
    assert_eq!(violated(voted(0, FaultKind::NotCommitted), away()), []);
    assert_eq!(violated(voted(0, FaultKind::SampleDigest), away()), [Invariant::NobodyBlamed]);
    assert_eq!(violated(voted(0, FaultKind::PayloadUnavailable), calm()), [], "that is its bucket's");
    assert_eq!(violated(voted(2, FaultKind::SampleDigest), calm()), [], "it is hostile");
    let mut poor = calm();
    poor.add_poor_link("validator-0", 5, 5);
    assert_eq!(violated(voted(0, FaultKind::NotOpened), poor.clone()), []);
    assert_eq!(violated(voted(0, FaultKind::NotCommitted), poor), [Invariant::NobodyBlamed]);
    let ended = [("miner-0", Event::Ended { window: 5, outcome: Outcome::NotAccepted })];
    assert_eq!(violated(ended.clone(), calm()), [Invariant::Heard]);
    assert_eq!(violated(ended, away()), []);
}

#[test]
fn a_violation_names_seed_window_and_node_and_is_told_once() {
    let (mut invariants, _) = network(calm());
    for _ in 0..3 {
        invariants.hear(&told("validator-0", Event::Ended { window: 6, outcome: Outcome::Denied }));
    }
    let found = invariants.into_violations();
    let text = found[0].to_string();
    assert!(
        found.len() == 1 && text.starts_with("seed 7, window 6, validator-0: nobody-excluded is violated"),
        "{text}"
    );
}

#[test]
fn a_node_that_stands_still_and_lost_emission_are_noticed() {
    let (mut invariants, members) = network(calm());
    let chain = DevChain::open(None, templar_chain::DevConfig { tempo_blocks: 20, ..Default::default() }).unwrap();
    for member in &members {
        chain.register(member.keypair.hotkey(), member.stake_rao).unwrap();
    }
    let cloud = MemoryCloud::new();
    for block in 1..=100 {
        invariants.at_block(block, &chain, &cloud);
        chain.produce_block().unwrap();
    }
    let found = invariants.into_violations();
    assert!(found.iter().all(|violation| violation.invariant == Invariant::Progress), "{found:?}");
    assert!(found.iter().any(|violation| violation.node == "miner-0" && violation.window == 2), "{found:?}");
}

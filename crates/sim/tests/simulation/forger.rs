//! A miner whose contribution is in order as far as hashes and signatures go, and hostile behind them: what the chain names,
//! the header signs and the key opens. The attacks have the numbers of a list that another network left open; a part of θ
//! that is larger than it may be is among the checkpoints.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use templar_codec::{ChunkError, Codec, DecodeError};
use templar_protocol::commitment::Commitment;
use templar_protocol::fault::FaultKind;
use templar_protocol::hash::Hash32;
use templar_protocol::header::{Header, SignedHeader};
use templar_protocol::keys::Keypair;
use templar_protocol::roster::Uid;
use templar_protocol::run::RunSpec;
use templar_protocol::seal::{SEAL_OVERHEAD_BYTES, SealKey};
use templar_protocol::word::{self, HeaderWord, Vote};
use templar_record::event::Event;
use templar_sim::r#virtual::scenario::{Outcome, Scenario};
use templar_store::{Op, OpKind};

use crate::wrappers::{forging, rewriting};
use crate::{any, assert_one_history, certified, faults_of, run};

/// What is wrong with the contribution.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lie {
    /// The payload is of another kind than the run's.
    Kind,
    /// The payload ends within its last segment.
    Cut,
    /// Its last segment has no positions.
    NoPositions,
    /// The magnitude of its last chunk is above `codec.max_abs`.
    Magnitude,
    /// A bit follows the last position.
    TrailingBits,
    /// The ciphertext's tag is not the key's.
    Tag,
    /// The payload is larger than any valid one, and the header says so.
    Size,
}

/// Who lies, how, and what came of it. Seams are plain functions, and a simulation runs on the thread of its test.
struct Plot {
    forger: String,
    keypair: Keypair,
    lie: Lie,
    spec: Option<RunSpec>,
    /// Hashes of forged headers, by those of the honest ones.
    forged: BTreeMap<Hash32, Hash32>,
}

thread_local! {
    static PLOT: RefCell<Option<Plot>> = const { RefCell::new(None) };
}

fn with_plot<T>(act: impl FnOnce(&mut Plot) -> T) -> T {
    PLOT.with_borrow_mut(|plot| act(plot.as_mut().unwrap()))
}

impl Lie {
    fn fault(self) -> FaultKind {
        match self {
            Self::Tag => FaultKind::SealBroken,
            Self::Size => FaultKind::PayloadTooLarge,
            _ => FaultKind::PayloadMalformed,
        }
    }

    /// A payload that is wrong in this way and in no other.
    fn payload(self, codec: &Codec) -> Vec<u8> {
        let delta: Vec<f32> = (0..codec.layout().len()).map(|nth| (nth * 7919 % 1009) as f32 * 1e-6).collect();
        let mut payload = codec.encode(&mut vec![0.0; delta.len()], &delta).unwrap();
        // The last tensor is a norm of 16 values: one is sent, in two bytes of which the first is its scale.
        let last = payload.len() - 1;
        match self {
            Self::Kind => payload[3] = 2,
            Self::Cut => drop(payload.pop()),
            Self::NoPositions => payload[last] = 0,
            Self::Magnitude => payload[last - 1] = 255,
            Self::TrailingBits => payload[last] |= 0x80,
            Self::Tag => {}
            Self::Size => payload.resize(codec.max_payload_bytes() as usize + 1, 0),
        }
        let found = codec.decode(payload.clone()).err();
        let is_expected = match (self, &found) {
            (Self::Kind, Some(DecodeError::WrongKind { found: 2, .. }))
            | (Self::Cut | Self::Size, Some(DecodeError::WrongLength { .. } | DecodeError::WrongTotal { .. }))
            | (Self::Tag, None) => true,
            (_, Some(DecodeError::Chunk { source, .. })) => match source {
                ChunkError::Truncated => self == Self::NoPositions,
                ChunkError::ScaleTooLarge { .. } => self == Self::Magnitude,
                ChunkError::TrailingBits => self == Self::TrailingBits,
                _ => false,
            },
            _ => false,
        };
        assert!(is_expected, "{self:?}: {found:?}");
        payload
    }
}

/// Key, ciphertext and header in the place of an honest header.
fn forge(plot: &mut Plot, place: &str, honest: &[u8]) -> Vec<(String, Bytes)> {
    let spec = plot.spec.as_ref().unwrap();
    let codec = Codec::new(Arc::new(spec.layout()), &spec.codec);
    let key = SealKey::from_bytes(&[7; 32]).unwrap();
    let mut ciphertext = key.seal(plot.lie.payload(&codec));
    if plot.lie == Lie::Tag {
        *ciphertext.last_mut().unwrap() ^= 1;
    }
    // The signature is the last 64 bytes.
    let honest_hash = Hash32::derive("templar v1 header", &honest[..honest.len() - 64]);
    let header = Header {
        ciphertext_hash: Hash32::of(&ciphertext),
        ciphertext_bytes: ciphertext.len() as u64,
        key_commitment: key.commitment(),
        ..SignedHeader::from_bytes(honest, &honest_hash).unwrap().header
    };
    let most = codec.max_payload_bytes() + SEAL_OVERHEAD_BYTES;
    assert_eq!(header.ciphertext_bytes > most, plot.lie == Lie::Size);
    plot.forged.insert(honest_hash, header.hash());
    let objects =
        [("payload", ciphertext), ("key", key.as_bytes().to_vec()), ("header", header.sign(&plot.keypair).to_bytes())];
    objects.map(|(object, bytes)| (place.replace("header", object), bytes.into())).into()
}

/// The commitment's fields, with the hash of the forged header where that of an honest one stands.
fn commit_forged(fields: &mut [Vec<u8>]) {
    let commitment = Commitment { block: 0, fields: fields.to_vec() };
    let Ok(honest) = HeaderWord::read(&commitment, 1) else { return };
    if let Some(header_hash) = with_plot(|plot| plot.forged.get(&honest.header_hash).copied()) {
        let forged = HeaderWord { header_hash, ..honest };
        fields.swap_with_slice(&mut word::fields(&commitment.fields[0], Some(&forged), None));
    }
}

/// The run, whose largest magnitude is one that a payload can exceed.
fn prepare(spec: &mut RunSpec) {
    spec.codec.max_abs = 1.0;
    with_plot(|plot| plot.spec = Some(spec.clone()));
}

fn is_forger(node: &str) -> bool {
    with_plot(|plot| plot.forger == node)
}

/// A network of which one miner lies in window 1.
fn scenario(miners: usize, forger: &str, lie: Lie) -> Scenario {
    let mut scenario = Scenario::new(miners, 2, 3, 90);
    let keypair = Keypair::insecure_dev(scenario.plan.seed, forger);
    PLOT.set(Some(Plot { forger: forger.to_owned(), keypair, lie, spec: None, forged: BTreeMap::new() }));
    scenario.adjust = prepare;
    scenario.seams.store = |node, honest| {
        let put = |key: &str, bytes: Bytes| {
            if key.ends_with("/w/00000001/header") {
                with_plot(|plot| forge(plot, key, &bytes))
            } else {
                vec![(key.to_owned(), bytes)]
            }
        };
        if is_forger(node) { forging(honest, put) } else { honest }
    };
    scenario.seams.chain = |node, chain| if is_forger(node) { rewriting(chain, commit_forged) } else { chain };
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
fn attack_4_holds_in_reserve_and_where_only_evaluation_looks() {
    let network = |forger: &str| {
        let mut scenario = scenario(4, forger, Lie::Kind);
        scenario.adjust = |spec| {
            (spec.roster.gather, spec.roster.reserve) = (2, 1);
            prepare(spec);
        };
        run(scenario)
    };
    let honest = network("nobody");
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
    let only_drawn = uids.iter().find(|uid| !candidates.contains(uid)).unwrap();
    for uid in [in_reserve, only_drawn] {
        let outcome = network(&format!("miner-{uid}"));
        assert_found_out(&outcome, *uid, Lie::Kind, &accepted);
    }
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

/// Accepts all three candidates of window 1.
fn accept_all(fields: &mut [Vec<u8>]) {
    let commitment = Commitment { block: 0, fields: fields.to_vec() };
    if let Ok(vote) = Vote::read(&commitment, 1, 3) {
        let vote = Vote { accept: vec![true; 3], exclude: vec![false; 3], ..vote };
        fields.swap_with_slice(&mut word::fields(&commitment.fields[0], None, Some(&vote)));
    }
}

#[test]
fn attack_12_what_is_too_large_is_not_downloaded_even_if_certified() {
    let mut scenario = scenario(3, "miner-1", Lie::Size);
    // All validators lie too: the others must fetch it, and nobody can settle the window.
    scenario.seams.chain = |node, chain| {
        if node.starts_with("validator") {
            rewriting(chain, accept_all)
        } else if is_forger(node) {
            rewriting(chain, commit_forged)
        } else {
            chain
        }
    };
    let gets = watch_gets(&mut scenario);
    let outcome = run(scenario);
    for node in ["miner-0", "miner-2", "validator-0"] {
        assert!(any(&outcome, node, |event| matches!(event, Event::Settled { window: 0, .. })), "{node}");
        assert!(!any(&outcome, node, |event| matches!(event, Event::Settled { window: 1, .. })), "{node}");
        // The validators look at it in their intake, too, and not as often.
        assert!(count_gets(&gets, node, "/header") > 2, "{node} tries to replay");
    }
    assert_eq!(count_gets(&gets, "", "/payload"), 0);
}

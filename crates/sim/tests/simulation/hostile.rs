//! Miners that publish what they should not, and validators that vote too late: each lie has its name, and moves nothing.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use templar_chain::{Chain, ChainError, Head, Hyperparams};
use templar_protocol::fault::{FaultKind, Party};
use templar_protocol::hash::Hash32;
use templar_protocol::keys::Keypair;
use templar_protocol::roster::{Snapshot, Uid};
use templar_record::event::Event;
use templar_sim::r#virtual::scenario::Scenario;
use templar_store::{Fault, OpKind, Store};
use templar_train::{TrainJob, TrainOutcome};

use crate::wrappers::{altering, forging};
use crate::{End, any, assert_one_history, certified, ends, faults_of, run};

/// Runs a network in which miner-1 forges; it must be found out, and must change nothing for the others.
fn assert_found_out(store: fn(&str, Arc<dyn Store>) -> Arc<dyn Store>, fault: FaultKind) {
    let mut scenario = Scenario::new(3, 2, 3, 60);
    scenario.seams.store = store;
    let outcome = run(scenario);
    assert_one_history(&outcome);
    assert_eq!(certified(&outcome), [true; 3], "{fault:?}");
    let window = &outcome.report.windows[1];
    assert_eq!(faults_of(window, 1), [fault]);
    assert!(window.faults.iter().all(|found| found.attributed_to == Party::Miner && found.uid == Uid(1)));
    assert!(window.accepted.len() == 2 && !window.accepted.contains(&Uid(1)), "{window:?}");
    assert!(!outcome.report.windows[2].accepted.contains(&Uid(1)), "{fault:?} excludes");
}

/// miner-1 changes one object of window 1.
macro_rules! forging {
    ($object:literal, $forge:expr) => {
        |node, honest| {
            let forge: fn(Vec<u8>) -> Vec<u8> = $forge;
            let put = move |key: &str, bytes: Bytes| {
                let hit = key.contains("/w/00000001/") && key.ends_with($object);
                vec![(key.to_owned(), if hit { forge(bytes.to_vec()).into() } else { bytes })]
            };
            if node == "miner-1" { forging(honest, put) } else { honest }
        }
    };
}

#[test]
fn an_oversized_payload() {
    assert_found_out(
        forging!("/payload", |mut payload| {
            payload.push(0);
            payload
        }),
        FaultKind::PayloadMismatch,
    );
}

#[test]
fn a_truncated_payload() {
    assert_found_out(
        forging!("/payload", |mut payload| {
            payload.pop();
            payload
        }),
        FaultKind::PayloadMismatch,
    );
}

#[test]
fn a_header_too_large_to_be_one() {
    assert_found_out(forging!("/header", |header| header.repeat(9)), FaultKind::HeaderMalformed);
}

#[test]
fn a_foreign_signature() {
    assert_found_out(
        forging!("/header", |mut header| {
            // The signature is the last 64 bytes; this one is somebody else's of the same bytes.
            let signed = header.len() - 64;
            let hash = Hash32::derive("templar v1 header", &header[..signed]);
            let signature = Keypair::insecure_dev(0, "somebody else").sign(hash.as_bytes());
            header[signed..].copy_from_slice(&signature.0);
            header
        }),
        FaultKind::BadSignature,
    );
}

#[test]
fn a_header_of_another_window() {
    assert_found_out(
        forging!("/header", |mut header| {
            // The window stands behind the run's 32 bytes.
            header[32] = 0;
            header
        }),
        FaultKind::HeaderMismatch,
    );
}

#[test]
fn a_key_that_is_not_the_committed_one() {
    assert_found_out(forging!("/key", |key| key.into_iter().rev().collect()), FaultKind::KeyMismatch);
}

#[test]
fn a_key_of_31_bytes() {
    assert_found_out(forging!("/key", |key| key[..31].to_vec()), FaultKind::KeyMismatch);
}

#[test]
fn a_key_of_33_bytes() {
    assert_found_out(forging!("/key", |key| [&key[..], &[0]].concat()), FaultKind::KeyMismatch);
}

/// Learns the same whatever it is given, as two miners of one owner might.
fn twin(_: &TrainJob<'_>, outcome: &mut TrainOutcome) {
    let value = |nth: usize| (nth * 7919 % 1009) as f32 * 1e-6;
    outcome.delta.iter_mut().enumerate().for_each(|(nth, delta)| *delta = value(nth));
}

#[test]
fn one_contribution_under_two_names_counts_once() {
    let mut scenario = Scenario::new(4, 2, 2, 61);
    scenario.seams.trainer =
        |node, honest| if ["miner-1", "miner-2"].contains(&node) { altering(honest, twin) } else { honest };
    let outcome = run(scenario);
    assert_one_history(&outcome);
    let window = &outcome.report.windows[0];
    let duplicates: Vec<Uid> =
        window.faults.iter().filter(|fault| fault.fault == FaultKind::Duplicate).map(|fault| fault.uid).collect();
    assert!(duplicates == [Uid(1)] || duplicates == [Uid(2)], "{window:?}");
    assert!(window.accepted.len() == 3 && !window.accepted.contains(&duplicates[0]), "{window:?}");
}

/// A chain that includes the vote on window 1 after the votes were counted.
struct SlowVotes(Arc<dyn Chain>);

#[async_trait]
impl Chain for SlowVotes {
    async fn genesis(&self) -> Result<Hash32, ChainError> {
        self.0.genesis().await
    }

    async fn head(&self) -> Result<Head, ChainError> {
        self.0.head().await
    }

    async fn heads(&self) -> Result<BoxStream<'static, Head>, ChainError> {
        self.0.heads().await
    }

    async fn block_hash(&self, block: u64) -> Result<Hash32, ChainError> {
        self.0.block_hash(block).await
    }

    async fn snapshot(&self, netuid: u16, block: u64) -> Result<Snapshot, ChainError> {
        self.0.snapshot(netuid, block).await
    }

    async fn hyperparams(&self, netuid: u16) -> Result<Hyperparams, ChainError> {
        self.0.hyperparams(netuid).await
    }

    async fn submit_commitment(&self, key: &Keypair, netuid: u16, fields: Vec<Vec<u8>>) -> Result<(), ChainError> {
        let window_1 = [2, 1, 0, 0, 0];
        if fields.get(2).is_some_and(|vote| vote.starts_with(&window_1)) {
            let (chain, key) = (self.0.clone(), key.clone());
            tokio::spawn(async move {
                tokio::time::sleep(Duration::from_secs(90)).await;
                chain.submit_commitment(&key, netuid, fields).await
            });
            return Ok(());
        }
        self.0.submit_commitment(key, netuid, fields).await
    }

    async fn submit_weights(
        &self,
        key: &Keypair,
        netuid: u16,
        weights: Vec<(Uid, u16)>,
        version_key: u64,
    ) -> Result<(), ChainError> {
        self.0.submit_weights(key, netuid, weights, version_key).await
    }
}

#[test]
fn a_vote_that_comes_too_late_does_not_count() {
    let network = |late: bool| {
        let mut scenario = Scenario::new(3, 2, 3, 62);
        // validator-1 cannot open miner-1's contribution: its vote would make a tie, and ties reject.
        scenario.cloud_fault = Some(Box::new(|op| {
            let hit = op.kind == OpKind::Get && op.actor == "validator-1" && op.bucket == "miner-1";
            (hit && op.key.ends_with("w/00000001/key")).then_some(Fault::NotFound)
        }));
        if late {
            scenario.seams.chain = |node, chain| if node == "validator-1" { Arc::new(SlowVotes(chain)) } else { chain };
        }
        run(scenario)
    };
    let (in_time, late) = (network(false), network(true));
    assert!(!in_time.report.windows[1].accepted.contains(&Uid(1)));
    assert!(any(&late, "validator-1", |event| matches!(event, Event::Voted { window: 1, .. })));
    // What it decided is not what counted.
    assert_eq!(ends(&late, "validator-1")[1], (1, End::VoteLate));
    assert_eq!(ends(&in_time, "validator-1")[1], (1, End::Voted));
    assert!(late.report.windows[1].certified && late.report.windows[1].accepted.contains(&Uid(1)));
    assert_one_history(&late);
}

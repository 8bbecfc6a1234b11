//! The history of a run from what validators archived: it is recomputed whole, and whatever bit is changed is named.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use templar_chain::{Chain, ChainError, ChainLayer, Retry};
use templar_data::Split;
use templar_node::pretrain::audit::{Audited, Auditor, Source, Spans, Verdict, sources};
use templar_node::pretrain::checkpoint::Retention;
use templar_protocol::hash::Hash32;
use templar_protocol::inputs::WindowInputs;
use templar_protocol::roster::Snapshot;
use templar_protocol::run::RunSpec;
use templar_protocol::state::RunState;
use templar_sim::r#virtual::scenario::Scenario;
use templar_sim::zoo::attack::accept_all;
use templar_sim::zoo::layers::{forge_uploads, published};
use templar_store::{MemoryCloud, MemoryStore, Store};

use crate::{assert_one_history, certified, in_coefficients, kill, run, start};

const VALIDATORS: [&str; 3] = ["validator-0", "validator-1", "validator-2"];
/// The votes on window 11 certify the state after this many.
const SETTLED: u64 = 11;

/// A run that has ended, and what is needed to audit it.
struct Ended {
    spec: RunSpec,
    cloud: Arc<MemoryCloud>,
    chain: Arc<dyn Chain>,
    samples: u64,
}

/// Twelve windows of three miners and three validators. The step of window 1 is withheld, and window 5 is null.
fn ended(seed: u64, retention: Retention, adjust: fn(&mut RunSpec)) -> Ended {
    let mut scenario = Scenario::new(3, 3, SETTLED + 1, seed);
    scenario.adjust = adjust;
    scenario.wrap("miner-1", |setup| {
        forge_uploads(setup, |key, bytes| {
            if published(key) == Some((1, "key")) { Vec::new() } else { vec![(key.to_owned(), bytes)] }
        })
    });
    let seen = Arc::new(Mutex::new(None));
    for validator in VALIDATORS {
        let seen = seen.clone();
        scenario.wrap(validator, move |mut setup| {
            setup.options.retention = retention;
            *seen.lock().unwrap() = Some((setup.chain.clone(), setup.dataset.samples(Split::Train)));
            accept_all::wrap(setup, 1, 3, 3)
        });
    }
    let down = ["validator-0", "validator-1"];
    scenario.incidents = down.iter().flat_map(|node| [kill(node, 5), start(node, 6)]).collect();
    let outcome = run(scenario);
    assert_one_history(&outcome);
    let expected: Vec<bool> = (0..=SETTLED).map(|window| window != 1 && window != 5).collect();
    assert_eq!(certified(&outcome), expected);
    let (chain, samples) = seen.lock().unwrap().take().unwrap();
    Ended { spec: outcome.spec, cloud: outcome.cloud, chain, samples }
}

fn wait<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(work)
}

impl Ended {
    fn store(&self, name: &str) -> MemoryStore {
        self.cloud.store(self.cloud.create_bucket(name))
    }

    /// Reads from these validators, in this order.
    fn audit(&self, validators: &[&str]) -> Audited {
        self.audit_with(self.chain.clone(), validators)
    }

    fn audit_with(&self, chain: Arc<dyn Chain>, validators: &[&str]) -> Audited {
        let source = |name: &&str| Source { owner: (*name).to_owned(), bucket: self.store(name).own().clone() };
        let auditor = Auditor {
            spec: self.spec.clone(),
            chain,
            store: Arc::new(self.store("auditor")),
            sources: validators.iter().map(source).collect(),
            weights: None,
            samples: Some(self.samples),
        };
        wait(auditor.run(&mut |_| {})).unwrap()
    }

    fn object(&self, validator: &str, key: &str) -> Vec<u8> {
        let store = self.store(validator);
        wait(store.get(store.own(), key, u64::MAX)).unwrap().to_vec()
    }

    /// Flips one bit of an object: that at this share of its bits.
    fn flip(&self, validator: &str, key: &str, share: f64) {
        let mut bytes = self.object(validator, key);
        let bit = ((8 * bytes.len() - 1) as f64 * share) as usize;
        bytes[bit / 8] ^= 1 << (bit % 8);
        wait(self.store(validator).put(key, bytes.into())).unwrap();
    }

    /// What an audit reads of a validator's objects: those of the windows that are certified, but no payloads that did not
    /// count in the end.
    fn read_of(&self, validator: &str) -> BTreeSet<String> {
        let is_read = |key: &String| {
            let segments: Vec<&str> = key.split('/').collect();
            match segments[2..] {
                ["archive", "state", _] => {
                    RunState::from_bytes(&self.object(validator, key), self.spec.id()).unwrap().settled <= SETTLED
                }
                ["archive", "inputs", digest] => {
                    let inputs = WindowInputs::from_bytes(&self.object(validator, key), &digest.parse().unwrap());
                    inputs.unwrap().window < SETTLED
                }
                ["held", window, ..] => {
                    window.parse::<u64>().is_ok_and(|window| window < SETTLED && ![1, 5].contains(&window))
                }
                _ => false,
            }
        };
        self.cloud.keys(validator).into_iter().filter(is_read).collect()
    }
}

fn named(audited: &Audited, owner: &str) -> BTreeSet<String> {
    assert_eq!(audited.tally.wrong_count, audited.tally.wrong.len() as u64);
    audited.tally.wrong.iter().filter(|wrong| wrong.owner == owner).map(|wrong| wrong.key.clone()).collect()
}

fn assert_verified(audited: &Audited) {
    assert_eq!((&audited.verdict, audited.settled), (&Verdict::Verified, SETTLED), "{audited:?}");
}

fn all() -> Spans {
    Spans(vec![(0, SETTLED - 1)])
}

#[test]
fn a_history_is_recomputed_from_any_one_archive() {
    let ended = ended(160, Retention::ForGood, |_| {});
    for validator in VALIDATORS {
        let audited = ended.audit(&[validator]);
        assert_verified(&audited);
        let windows = &audited.windows;
        assert_eq!((windows.certified, windows.null, windows.withheld), (9, 1, 1), "{validator}");
        assert_eq!((&windows.theta_recomputed, &windows.chain_all), (&all(), &all()), "{validator}");
        assert_eq!(audited.tally.objects, ended.read_of(validator).len() as u64, "{validator}");
        assert!(audited.tally.wrong.is_empty() && audited.tally.bytes > 0);
    }
    // The chain names the same buckets.
    let found = wait(sources(&*ended.chain, &ended.spec)).unwrap();
    assert_eq!(found.iter().map(|source| &*source.bucket.bucket).collect::<Vec<_>>(), VALIDATORS);
}

#[test]
fn contributions_as_coefficients_are_summed_again() {
    let ended = ended(162, Retention::ForGood, in_coefficients);
    let audited = ended.audit(&VALIDATORS);
    assert_verified(&audited);
    assert_eq!(audited.windows.theta_recomputed, all());
}

#[test]
fn with_a_delay_of_a_window_it_is_recomputed_as_well() {
    let ended = ended(161, Retention::ForGood, |spec| {
        spec.windows.delay_windows = 1;
        spec.windows.vote_block = 26;
    });
    let audited = ended.audit(&VALIDATORS);
    assert_eq!((&audited.verdict, audited.windows.null, audited.windows.withheld), (&Verdict::Verified, 1, 1));
    assert_eq!(audited.windows.theta_recomputed, Spans(vec![(0, audited.settled - 1)]));
}

#[test]
fn every_flipped_bit_is_named_and_an_honest_copy_serves_instead() {
    let ended = ended(162, Retention::ForGood, |_| {});
    let read = ended.read_of("validator-0");
    for kind in ["/archive/state/", "/archive/inputs/", "/header", "/key", "/payload"] {
        assert!(read.iter().filter(|key| key.contains(kind)).count() >= 10, "{kind}: {read:?}");
    }
    for share in [0.0, 0.11, 0.37, 0.5, 0.83, 1.0] {
        for key in &read {
            ended.flip("validator-0", key, share);
        }
        let audited = ended.audit(&VALIDATORS);
        assert_verified(&audited);
        assert_eq!(named(&audited, "validator-0"), read, "at {share}");
        assert_eq!(audited.tally.wrong.len(), read.len());
        assert_eq!(audited.windows.theta_recomputed, all());
        for key in &read {
            ended.flip("validator-0", key, share);
        }
    }
    assert!(ended.audit(&VALIDATORS).tally.wrong.is_empty(), "all bits are back");
    // An object that is cut short, one that is far too long, and one of another name.
    let keys: Vec<&String> = read.iter().filter(|key| key.contains("/archive/")).collect();
    for (key, bytes) in
        [(keys[0], vec![]), (keys[1], vec![0; 8 << 20]), (keys[2], ended.object("validator-0", keys[3]))]
    {
        wait(ended.store("validator-0").put(key, bytes.into())).unwrap();
    }
    let audited = ended.audit(&VALIDATORS);
    assert_verified(&audited);
    assert_eq!(named(&audited, "validator-0"), keys[..3].iter().map(|key| (*key).clone()).collect());
}

#[test]
fn without_a_true_copy_the_window_is_named() {
    let ended = ended(163, Retention::ForGood, |_| {});
    let flip_all = |key: &str| VALIDATORS.iter().for_each(|validator| ended.flip(validator, key, 0.5));
    let read = ended.read_of("validator-0");
    for key in read.iter().filter(|key| key.contains("/archive/")) {
        flip_all(key);
        let audited = ended.audit(&VALIDATORS);
        flip_all(key);
        let segments: Vec<&str> = key.split('/').collect();
        let object = ended.object("validator-0", key);
        let window = if segments[3] == "state" {
            RunState::from_bytes(&object, ended.spec.id()).unwrap().settled - 1
        } else {
            WindowInputs::from_bytes(&object, &segments[4].parse().unwrap()).unwrap().window
        };
        assert_eq!(audited.verdict, Verdict::Missing { window, key: key.clone() });
        for validator in VALIDATORS {
            assert_eq!(named(&audited, validator), BTreeSet::from([key.clone()]), "{validator}");
        }
    }
    // Without a payload everything but θ is proven, and θ again from the next checkpoint on.
    let payload = read.iter().find(|key| key.contains("/held/00000004/") && key.ends_with("/payload")).unwrap();
    flip_all(payload);
    let audited = ended.audit(&VALIDATORS);
    assert_verified(&audited);
    assert_eq!(named(&audited, "validator-2"), BTreeSet::from([payload.clone()]));
    assert_eq!(audited.windows.theta_recomputed, Spans(vec![(0, 3), (8, SETTLED - 1)]));
    assert_eq!(audited.windows.theta_certified, Spans(vec![(4, 7)]));
}

/// Validators that promise no more than they must still prove everything but old θ.
#[test]
fn payloads_of_old_windows_are_not_needed_for_the_certificates() {
    let ended = ended(164, Retention::Promised, |spec| spec.windows.checkpoint_every_windows = 2);
    let audited = ended.audit(&VALIDATORS);
    assert_verified(&audited);
    let windows = &audited.windows;
    assert_eq!(windows.chain_all, all());
    let [(0, last)] = windows.theta_certified.0[..] else { panic!("{windows:?}") };
    assert_eq!(windows.theta_recomputed, Spans(vec![(last + 1, SETTLED - 1)]));
    assert!((4..=7).contains(&last), "{last}");
}

/// A chain node that has forgotten the state of old blocks, or is on another fork in one.
struct Other {
    inner: Arc<dyn Chain>,
    snapshots_from: u64,
    forked_at: Option<u64>,
}

#[async_trait]
impl ChainLayer for Other {
    fn inner(&self) -> &dyn Chain {
        &*self.inner
    }

    async fn block_hash(&self, number: u64) -> Result<Hash32, ChainError> {
        if self.forked_at == Some(number) {
            return Ok(Hash32::of(b"another fork"));
        }
        self.inner.block_hash(number).await
    }

    async fn snapshot(&self, netuid: u16, block: u64) -> Result<Snapshot, ChainError> {
        if block < self.snapshots_from {
            return Err(ChainError::adapter(Retry::Useless, std::io::Error::other("the state was pruned")));
        }
        self.inner.snapshot(netuid, block).await
    }
}

#[test]
fn archived_inputs_are_compared_with_what_the_chain_still_serves() {
    let ended = ended(165, Retention::ForGood, |_| {});
    let first_block = |window: u64| ended.spec.chain.start_block + window * ended.spec.windows.blocks;
    let age = ended.spec.roster.stake_age_blocks;
    let pruned = |snapshots_from, forked_at| Other { inner: ended.chain.clone(), snapshots_from, forked_at };
    let snapshots_from = first_block(7) - ended.spec.windows.snapshot_lag_blocks - age;
    let audited = ended.audit_with(Arc::new(pruned(snapshots_from, None)), &VALIDATORS);
    assert_verified(&audited);
    assert_eq!(audited.windows.chain_hashes, Spans(vec![(0, 6)]));
    assert_eq!(audited.windows.chain_all, Spans(vec![(7, SETTLED - 1)]));
    for window in [2, 9] {
        for block in [ended.spec.windows.put_block, 0] {
            let at = first_block(window) + block - if block == 0 { ended.spec.windows.snapshot_lag_blocks } else { 0 };
            let audited = ended.audit_with(Arc::new(pruned(0, Some(at))), &VALIDATORS);
            assert!(matches!(audited.verdict, Verdict::Contradicted { window: found, .. } if found == window));
        }
    }
}

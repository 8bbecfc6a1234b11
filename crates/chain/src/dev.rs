//! The embedded development chain: one subnet, instant finality, deterministic block hashes, everything in SQLite.
//!
//! It follows the rules of Bittensor that nodes can feel (quota, rate limits, permits, consensus, emission, reused
//! uids), without its cost: no accounts, no fees, no peers. Whoever holds it can register anybody, and anybody who
//! reaches it can set any node's pace, so it belongs on machines of one owner.
//!
//! A call goes to the pool after a full check, and into the next block if the check still holds there. The pool lives
//! in memory and holds one commitment and one setting of weights per registered hotkey, the newest; that bounds it.
//!
//! SQLite runs inline, behind one lock, also when called from async code. A block or a snapshot is at most a few
//! hundred indexed rows: under a millisecond, and under ten for the epoch of a full subnet; and the lock is never held
//! across an await. In return the chain behaves the same on a paused clock with one thread, where a blocking thread
//! pool would not.

mod config;
mod epoch;
mod error;
mod storage;
mod subnet;

use std::{
    collections::{BTreeMap, VecDeque},
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use async_trait::async_trait;
use futures::stream::{BoxStream, StreamExt};
use serde::{Deserialize, Serialize};
use templar_protocol::{
    hash::Hash32,
    keys::{Hotkey, Keypair},
    roster::{Snapshot, Uid},
};
use tokio::sync::broadcast::{self, error::RecvError};
use tokio::sync::watch;

pub use self::config::{DevConfig, Timestamps};
pub use self::error::DevError;
use self::{
    storage::Storage,
    subnet::{Registration, STAKE_RAO_MAX, Subnet, block_hash},
};
use crate::{
    call::{Call, SignedCall, with_next_nonce},
    chain::{Chain, Head, Hyperparams},
    error::ChainError,
};

/// How many late hotkeys are remembered: the newest ones.
const LATE_MAX: usize = 1024;
/// How many hotkeys that are not registered may keep the chain's pace.
const UNREGISTERED_PACERS_MAX: usize = 256;

/// A neuron for tables: what it is, and what it was paid.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NeuronInfo {
    pub uid: Uid,
    pub hotkey: Hotkey,
    pub registered_at_block: u64,
    pub stake_rao: u64,
    pub permit: bool,
    /// Share of the miners' reward in the last epoch, 0 ..= 65535.
    pub incentive: u16,
    /// Share of the validators' reward in the last epoch, 0 ..= 65535.
    pub dividends: u16,
    /// Paid since its registration.
    pub emission_rao: u64,
    /// The mean of the weights that validators have set for it, each validator's best at 65535.
    pub rating: u16,
}

/// The development chain. Clones share one chain.
#[derive(Clone, Debug)]
pub struct DevChain {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    config: DevConfig,
    newest: watch::Sender<Head>,
    /// Wakes its readers in the order in which they wait, which a watch does not: a simulation needs one order.
    heads: broadcast::Sender<Head>,
    /// Signals every change of somebody's pace.
    paced: watch::Sender<()>,
    /// The block that must not be made yet.
    held: watch::Sender<Option<u64>>,
    ledger: Mutex<Ledger>,
}

#[derive(Debug)]
struct Ledger {
    storage: Storage,
    subnet: Subnet,
    registrations: Vec<Registration>,
    pool: BTreeMap<(Hotkey, CallKind), SignedCall>,
    pace: BTreeMap<Hotkey, u64>,
    late: VecDeque<(u64, Hotkey)>,
    /// How many there were in all.
    late_total: u64,
}

/// A hotkey has at most one call of each kind in the pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum CallKind {
    Commit,
    SetWeights,
}

impl DevChain {
    /// Opens the chain in the database at `path`, or a new one; `None` keeps it in memory. A chain resumes where it
    /// was, under the same settings only. The pool, waiting registrations and paces start empty.
    pub fn open(path: Option<&Path>, config: DevConfig) -> Result<Self, ChainError> {
        config.check()?;
        let (storage, stored) = Storage::open(path, &config)?;
        let hash = block_hash(config.seed, stored.number);
        let head = Head { number: stored.number, hash, timestamp_ms: stored.timestamp_ms };
        let ledger = Ledger {
            storage,
            subnet: stored.subnet,
            registrations: Vec::new(),
            pool: BTreeMap::new(),
            pace: BTreeMap::new(),
            late: VecDeque::new(),
            late_total: 0,
        };
        let (newest, heads, paced) = (watch::Sender::new(head), broadcast::Sender::new(1), watch::Sender::new(()));
        let held = watch::Sender::new(None);
        Ok(Self { inner: Arc::new(Inner { config, newest, heads, paced, held, ledger: Mutex::new(ledger) }) })
    }

    pub fn config(&self) -> &DevConfig {
        &self.inner.config
    }

    /// The hash of block 0.
    pub fn genesis_hash(&self) -> Hash32 {
        block_hash(self.inner.config.seed, 0)
    }

    /// The newest block.
    pub fn newest(&self) -> Head {
        *self.inner.newest.borrow()
    }

    /// Registers a hotkey with this stake in the next block, free of charge; one already registered keeps its uid and
    /// gets the stake. In a full subnet it replaces the neuron with the lowest incentive that has no permit and is
    /// beyond its immunity.
    pub fn register(&self, hotkey: Hotkey, stake_rao: u64) -> Result<Uid, ChainError> {
        if stake_rao > STAKE_RAO_MAX {
            return Err(DevError::StakeTooHigh { stake_rao, max_rao: STAKE_RAO_MAX }.into());
        }
        let mut ledger = self.ledger();
        let block = self.newest().number + 1;
        let uid = ledger.subnet.place(&hotkey, &ledger.registrations, block, &self.inner.config)?;
        ledger.registrations.retain(|waiting| waiting.hotkey != hotkey);
        ledger.registrations.push(Registration { uid, hotkey, stake_rao });
        // In the order of uids, so that new ones are appended without a gap.
        ledger.registrations.sort_by_key(|waiting| waiting.uid);
        Ok(uid)
    }

    /// Makes and finalises the next block: registrations, then the pool, then the epoch if one is due.
    pub fn produce_block(&self) -> Result<Head, ChainError> {
        let mut ledger = self.ledger();
        let config = &self.inner.config;
        let last = self.newest();
        let number = last.number + 1;
        let mut subnet = ledger.subnet.clone();
        for registration in &ledger.registrations {
            subnet.register(registration, number);
        }
        let nonces = include(&mut subnet, &ledger.pool, number, config);
        if subnet.epoch_is_due(number, config) {
            subnet.run_epoch(number, config);
        }
        let timestamp_ms = config.timestamps.of_block(number, last.timestamp_ms);
        let Ledger { storage, subnet: before, .. } = &mut *ledger;
        storage.write_block(number, timestamp_ms, before, &subnet, &nonces)?;

        ledger.subnet = subnet;
        ledger.registrations.clear();
        ledger.pool.clear();
        let head = Head { number, hash: block_hash(config.seed, number), timestamp_ms };
        // Still under the lock, so that heads are announced in order.
        self.inner.newest.send_replace(head);
        // There may be no listener.
        let _ = self.inner.heads.send(head);
        Ok(head)
    }

    /// Every neuron and what it was paid, in the order of uids.
    pub fn emissions(&self) -> Vec<NeuronInfo> {
        let ledger = self.ledger();
        let info = |(uid, neuron): (u16, &subnet::NeuronState)| NeuronInfo {
            uid: Uid(uid),
            hotkey: neuron.hotkey,
            registered_at_block: neuron.registered_at_block,
            stake_rao: neuron.stake_rao,
            permit: neuron.permit,
            incentive: neuron.incentive,
            dividends: neuron.dividends,
            emission_rao: neuron.emission_rao,
            rating: ledger.subnet.rating(uid),
        };
        (0u16..).zip(&ledger.subnet.neurons).map(info).collect()
    }

    /// What the subnet's owner was paid: its share of 18 %, and what nobody earned.
    pub fn owner_emission_rao(&self) -> u64 {
        self.ledger().subnet.owner_rao
    }

    /// The hotkeys for which blocks did not wait, as (block, hotkey): the newest 1024, oldest first. They are forgotten
    /// on restart.
    pub fn late(&self) -> Vec<(u64, Hotkey)> {
        self.ledger().late.iter().copied().collect()
    }

    /// How many there were since the chain was opened, including the forgotten ones.
    pub fn late_total(&self) -> u64 {
        self.ledger().late_total
    }

    /// Whether the chain has a commitment of this hotkey, or will have it with the next block.
    pub fn is_committed(&self, hotkey: &Hotkey) -> bool {
        let ledger = self.ledger();
        let on_chain = ledger.subnet.uid_of(hotkey).is_some_and(|uid| ledger.subnet.neurons[uid].commitment.is_some());
        on_chain || ledger.pool.contains_key(&(*hotkey, CallKind::Commit))
    }

    /// Whoever makes blocks by [`run_blocks`](crate::run_blocks) waits before this one, until `None` is set.
    pub fn hold(&self, before_block: Option<u64>) {
        self.inner.held.send_replace(before_block);
    }

    pub(crate) fn is_held(&self, number: u64) -> bool {
        self.inner.held.borrow().is_some_and(|held| number >= held)
    }

    /// Ends when block `number` may be made.
    pub(crate) async fn released(&self, number: u64) {
        let mut held = self.inner.held.subscribe();
        // The sender lives as long as this chain.
        let _ = held.wait_for(|held| held.is_none_or(|held| number < held)).await;
    }

    /// The lowest nonce that the next call of this hotkey may carry.
    pub fn next_nonce(&self, hotkey: &Hotkey) -> Result<u64, ChainError> {
        Ok(self.ledger().next_nonce(hotkey)?)
    }

    /// Takes a signed call into the pool if the next block could include it. A newer call of the same kind and hotkey
    /// takes the older one's place; the same call again is accepted again, so that a client may repeat itself.
    pub fn submit(&self, signed: SignedCall) -> Result<(), ChainError> {
        self.check_netuid(signed.netuid)?;
        // Cheap refusals first: a signature costs most, and only registered hotkeys are worth one.
        let block = self.newest().number + 1;
        self.ledger().subnet.check(&signed.hotkey, &signed.call, block, &self.inner.config)?;
        signed.verify(self.genesis_hash())?;

        let mut ledger = self.ledger();
        let block = self.newest().number + 1;
        ledger.subnet.check(&signed.hotkey, &signed.call, block, &self.inner.config)?;
        let place = (signed.hotkey, signed.call.kind());
        if ledger.pool.get(&place) == Some(&signed) {
            return Ok(());
        }
        let next = ledger.next_nonce(&signed.hotkey)?;
        if signed.nonce < next || signed.nonce == u64::MAX {
            return Err(ChainError::StaleNonce { hotkey: signed.hotkey, nonce: signed.nonce, next });
        }
        ledger.pool.insert(place, signed);
        Ok(())
    }

    /// A stream of the newest heads, the current one first.
    pub(crate) fn head_stream(&self) -> BoxStream<'static, Head> {
        // Subscribed before the current head is read, so that none is missed.
        let heads = self.inner.heads.subscribe();
        let state = (Some(self.newest()), None, heads);
        futures::stream::unfold(state, |(first, last, mut heads)| async move {
            let mut next = first;
            loop {
                if let Some(head) = next.filter(|head| last.is_none_or(|last| head.number > last)) {
                    return Some((head, (None, Some(head.number), heads)));
                }
                next = match heads.recv().await {
                    Ok(head) => Some(head),
                    Err(RecvError::Lagged(_)) => None,
                    Err(RecvError::Closed) => return None,
                };
            }
        })
        .boxed()
    }

    pub(crate) fn watch_pace(&self) -> watch::Receiver<()> {
        self.inner.paced.subscribe()
    }

    /// Which of these hotkeys may still have something to do before block `number` ends.
    pub(crate) fn awaited(&self, participants: &[Hotkey], number: u64) -> Vec<Hotkey> {
        let ledger = self.ledger();
        let ready = |hotkey: &Hotkey| ledger.pace.get(hotkey).is_some_and(|through_block| *through_block >= number);
        participants.iter().copied().filter(|hotkey| !ready(hotkey)).collect()
    }

    pub(crate) fn record_late(&self, number: u64, hotkeys: Vec<Hotkey>) {
        let ledger = &mut *self.ledger();
        ledger.late_total += hotkeys.len() as u64;
        let late = &mut ledger.late;
        late.extend(hotkeys.into_iter().map(|hotkey| (number, hotkey)));
        let excess = late.len().saturating_sub(LATE_MAX);
        late.drain(..excess);
    }

    /// This hotkey has nothing to do before block `through_block` ends ([`crate::Pacer`]).
    pub fn pace(&self, hotkey: Hotkey, through_block: u64) -> Result<(), ChainError> {
        let mut ledger = self.ledger();
        let registered = ledger.subnet.uid_of(&hotkey).is_some();
        let participants = ledger.pace.len();
        if !registered && !ledger.pace.contains_key(&hotkey) {
            let strangers = ledger.pace.keys().filter(|known| ledger.subnet.uid_of(known).is_none()).count();
            if strangers >= UNREGISTERED_PACERS_MAX {
                return Err(DevError::TooManyParticipants { participants: participants as u64 }.into());
            }
        }
        ledger.pace.insert(hotkey, through_block);
        drop(ledger);
        self.inner.paced.send_replace(());
        Ok(())
    }

    async fn submit_signed(&self, key: &Keypair, netuid: u16, call: &Call) -> Result<(), ChainError> {
        with_next_nonce(
            || async { self.next_nonce(&key.hotkey()) },
            |nonce| async move { self.submit(SignedCall::sign(key, self.genesis_hash(), netuid, nonce, call.clone())) },
        )
        .await
    }

    fn check_netuid(&self, netuid: u16) -> Result<(), ChainError> {
        let known = self.inner.config.netuid;
        if netuid == known { Ok(()) } else { Err(ChainError::UnknownSubnet { netuid, known }) }
    }

    fn check_finalised(&self, block: u64) -> Result<(), ChainError> {
        let head = self.newest().number;
        if block <= head { Ok(()) } else { Err(ChainError::NotFinalised { block, head }) }
    }

    /// A panic elsewhere cannot leave a half-made block behind: the subnet is replaced as a whole, after its commit.
    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.inner.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ledger {
    fn next_nonce(&self, hotkey: &Hotkey) -> Result<u64, DevError> {
        let included = self.storage.nonce(hotkey)?;
        let kinds = [CallKind::Commit, CallKind::SetWeights];
        let pooled = kinds.iter().filter_map(|kind| self.pool.get(&(*hotkey, *kind))).map(|call| call.nonce).max();
        Ok(included.max(pooled).map_or(0, |last| last.saturating_add(1)))
    }
}

impl Call {
    fn kind(&self) -> CallKind {
        match self {
            Self::Commit { .. } => CallKind::Commit,
            Self::SetWeights { .. } => CallKind::SetWeights,
        }
    }
}

/// Applies the pool, each hotkey's calls in the order of their nonces, and returns the nonces used. A call that was
/// valid at admission can have become invalid (its hotkey was replaced, the epoch changed); it is dropped.
fn include(
    subnet: &mut Subnet,
    pool: &BTreeMap<(Hotkey, CallKind), SignedCall>,
    block: u64,
    config: &DevConfig,
) -> Vec<(Hotkey, u64)> {
    let mut calls: Vec<&SignedCall> = pool.values().collect();
    calls.sort_by_key(|call| (call.hotkey, call.nonce));
    for signed in &calls {
        if let Err(error) = subnet.apply(&signed.hotkey, signed.call.clone(), block, config) {
            tracing::debug!(block, hotkey = %signed.hotkey.short(), %error, "a pooled call was dropped");
        }
    }
    calls.into_iter().map(|call| (call.hotkey, call.nonce)).collect()
}

#[async_trait]
impl Chain for DevChain {
    async fn genesis(&self) -> Result<Hash32, ChainError> {
        Ok(self.genesis_hash())
    }

    async fn head(&self) -> Result<Head, ChainError> {
        Ok(self.newest())
    }

    async fn heads(&self) -> Result<BoxStream<'static, Head>, ChainError> {
        Ok(self.head_stream())
    }

    async fn block_hash(&self, number: u64) -> Result<Hash32, ChainError> {
        self.check_finalised(number)?;
        Ok(block_hash(self.inner.config.seed, number))
    }

    async fn snapshot(&self, netuid: u16, block: u64) -> Result<Snapshot, ChainError> {
        self.check_netuid(netuid)?;
        self.check_finalised(block)?;
        let ledger = self.ledger();
        let neurons = ledger.storage.neurons_at(block, ledger.subnet.neurons.len())?;
        Ok(Snapshot { block, block_hash: block_hash(self.inner.config.seed, block), neurons })
    }

    async fn hyperparams(&self, netuid: u16) -> Result<Hyperparams, ChainError> {
        self.check_netuid(netuid)?;
        Ok(self.inner.config.hyperparams())
    }

    async fn submit_commitment(&self, key: &Keypair, netuid: u16, fields: Vec<Vec<u8>>) -> Result<(), ChainError> {
        self.submit_signed(key, netuid, &Call::Commit { fields }).await
    }

    async fn submit_weights(
        &self,
        key: &Keypair,
        netuid: u16,
        weights: Vec<(Uid, u16)>,
        version_key: u64,
    ) -> Result<(), ChainError> {
        let weights = weights.into_iter().map(|(uid, weight)| (uid.0, weight)).collect();
        self.submit_signed(key, netuid, &Call::SetWeights { weights, version_key }).await
    }
}

//! A validator's intake for one window: from records on chain to contributions that passed every check.
//!
//! Ciphertexts are fetched as soon as their headers are committed, keys after the put deadline, each contribution in a
//! task of its own (`fetching`): a slow bucket delays nobody else's contribution, and never the vote. A final
//! `slot` never changes again; an object that could not be fetched is tried again at every block until the
//! intake closes. Towards its end other validators are asked for what is missing (`rescue`).

mod fetching;
mod rescue;
mod slot;

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use templar_protocol::fault::FaultKind;
use templar_protocol::hash::Hash32;
use templar_protocol::roster::{EntryId, Snapshot};
use templar_record::trouble::Trouble;
use tokio::sync::Semaphore;
use tokio::task::{JoinError, JoinSet};
use tokio::time::Instant;

use crate::frame::context::Context;
use crate::frame::error::NodeError;
use crate::pretrain::fetch::{Location, Opened, PARALLEL_FETCHES};
use crate::pretrain::intake::fetching::Fetch;
use crate::pretrain::intake::rescue::{Rescue, Rescued};
use crate::pretrain::intake::slot::{Fetched, Slot};
use crate::pretrain::window::Window;

/// If more than one in so many buckets is silent at the end, this node's own link is to blame.
const OWN_SILENCE: usize = 4;

/// The slots of one window, one for each candidate, in their order.
#[derive(Debug)]
pub struct Intake {
    pub window: Window,
    slots: Vec<Slot>,
    phase: Phase,
    fetches: JoinSet<Arrival>,
    turns: Arc<Semaphore>,
}

/// What a task brought.
#[derive(Debug)]
enum Arrival {
    Fetched(Box<Fetched>),
    Rescued(Rescued),
}

/// The phase of the window.
#[derive(Debug)]
enum Phase {
    /// Headers are being committed. The block whose records were last read.
    Committing { read_at: Option<u64> },
    /// The chain at the put deadline: what was committed then is what counts.
    Opening { at_put: Snapshot, since: Instant },
    /// The intake waits for nothing more.
    Closed { at_put: Snapshot, since: Instant },
}

impl Intake {
    /// Slots for the candidates of `window`, whose base has the parameters `theta`.
    pub async fn new(ctx: &Arc<Context>, window: Window, theta: &Arc<Vec<f32>>) -> Self {
        let entries: Vec<EntryId> = window.candidates.iter().map(|candidate| candidate.entry).collect();
        let (shared, known, theta, of) = (ctx.clone(), window.clone(), theta.clone(), entries.clone());
        // Reads and hashes slices, and chunks of θ.
        let contexts = move || of.iter().map(|entry| known.context(&shared, entry, &theta)).collect::<Vec<_>>();
        let contexts = ctx.compute.run(contexts).await;
        let mut slots = Vec::new();
        for (entry, context) in entries.into_iter().zip(contexts) {
            let Some(miner) = window.roster.miner(&entry) else { continue };
            let location = Location::of_miner(ctx, miner, window.number);
            if let Err(error) = &context {
                ctx.trouble(Trouble::DataDamaged { uid: entry.uid.0, cause: error.to_string() }).await;
            }
            slots.push(Slot::new(entry, location, context.ok()));
        }
        Self {
            window,
            slots,
            phase: Phase::Committing { read_at: None },
            fetches: JoinSet::new(),
            turns: Arc::new(Semaphore::new(PARALLEL_FETCHES)),
        }
    }

    /// Reads the records on chain by `head`, as of the put deadline once that is past.
    pub async fn read(&mut self, ctx: &Context, head: u64) -> Result<(), NodeError> {
        let deadline = ctx.schedule.put_deadline(self.window.number);
        let Phase::Committing { read_at } = &mut self.phase else { return Ok(()) };
        if *read_at == Some(head) {
            return Ok(());
        }
        let is_final = head >= deadline;
        let snapshot = ctx.snapshot(head.min(deadline)).await?;
        for slot in &mut self.slots {
            slot.read_word(&snapshot, self.window.number, is_final);
        }
        *read_at = Some(head);
        if is_final {
            self.phase = Phase::Opening { at_put: snapshot, since: Instant::now() };
        }
        Ok(())
    }

    fn at_put(&self) -> Option<(&Snapshot, Instant)> {
        match &self.phase {
            Phase::Committing { .. } => None,
            Phase::Opening { at_put, since } | Phase::Closed { at_put, since } => Some((at_put, *since)),
        }
    }

    /// The hash of the block at the put deadline, once it is past.
    pub fn put_hash(&self) -> Option<Hash32> {
        self.at_put().map(|(at_put, _)| at_put.block_hash)
    }

    /// Time since the put deadline was seen.
    pub fn open_s(&self) -> f64 {
        self.at_put().map_or(0.0, |(_, since)| since.elapsed().as_secs_f64())
    }

    /// Starts to fetch whatever may have come by `head`: ciphertexts before the put deadline, keys too after it.
    pub fn fetch(&mut self, ctx: &Arc<Context>, head: u64) {
        let at_put = match &self.phase {
            Phase::Committing { .. } => None,
            Phase::Opening { at_put, .. } => Some(at_put),
            Phase::Closed { .. } => return,
        };
        for (nth, slot) in self.slots.iter_mut().enumerate() {
            if let Some(fetch) = Fetch::new(ctx, nth, slot, head, at_put.is_some()) {
                let fetch = fetch.run(self.turns.clone());
                slot.started(self.fetches.spawn(async move { Arrival::Fetched(Box::new(fetch.await)) }), head);
            }
        }
    }

    /// Asks other validators for contributions whose buckets do not serve them; from the block `last_chance` on also for
    /// those that are still being downloaded.
    pub fn rescue(&mut self, ctx: &Arc<Context>, head: u64, last_chance: u64) {
        if !matches!(self.phase, Phase::Opening { .. }) {
            return;
        }
        for (nth, slot) in self.slots.iter_mut().enumerate() {
            if let Some((round, wanted)) = slot.begin_rescue(head, last_chance) {
                let rescue = Rescue::new(ctx, &self.window, nth, round, wanted);
                self.fetches.spawn(async move { Arrival::Rescued(rescue.run().await) });
            }
        }
    }

    /// Waits for the next fetch to end, and takes in its result. Waits for ever if no fetch is under way.
    pub async fn arrival(&mut self) {
        match self.fetches.join_next().await {
            Some(done) => self.take(done),
            None => std::future::pending().await,
        }
    }

    /// Whether something is on its way.
    pub fn is_fetching(&self) -> bool {
        !self.fetches.is_empty()
    }

    fn take(&mut self, done: Result<Arrival, JoinError>) {
        match done {
            Ok(Arrival::Fetched(fetched)) => self.slots[fetched.nth].take(*fetched),
            Ok(Arrival::Rescued(Rescued { nth, opened })) => self.slots[nth].take_rescued(opened),
            Err(error) if error.is_cancelled() => {}
            // Its slot stays as it is, because no stranger's bytes may end this process.
            Err(error) => tracing::error!(window = self.window.number, %error, "a contribution broke its task"),
        }
    }

    pub fn is_resolved(&self) -> bool {
        self.slots.iter().all(Slot::is_decided)
    }

    /// Why a bucket that has not served its contribution yet is silent, if one is.
    pub fn silence(&self) -> Option<String> {
        self.slots.iter().find_map(Slot::silence)
    }

    /// Why this node is isolated, if it is: several candidates are committed, and no bucket of any of them answers.
    pub fn isolation(&self) -> Option<String> {
        let candidates = || self.slots.iter().take(self.window.candidates.len());
        if candidates().any(Slot::is_heard) {
            return None;
        }
        let mut silences = candidates().filter_map(Slot::silence);
        let cause = silences.next()?;
        silences.next().map(|_| cause)
    }

    /// Forgets the obstacles of contributions that have not arrived: this node was to blame for them.
    pub fn ask_afresh(&mut self) {
        self.slots.iter_mut().for_each(Slot::ask_afresh);
    }

    /// Asks once more for keys whose bucket is silent: a request from an outage of this node may hang for long after it.
    pub fn ask_again_for_keys(&mut self) {
        let is_due = |slot: &&mut Slot| slot.silence().is_some() && slot.verdict().err() == Some(FaultKind::NotOpened);
        self.slots.iter_mut().filter(is_due).for_each(Slot::ask_again);
    }

    /// Ends all waiting: what is not here by now is a fault, or was not judged if this node asked too late for an answer, or if
    /// it would blame a miner while so many buckets are silent that its own link is the likelier cause. Then rules out
    /// contributions that are an earlier one's copy.
    pub fn close(&mut self, asked_late: bool) {
        let Phase::Opening { at_put, since } = &self.phase else { return };
        self.phase = Phase::Closed { at_put: at_put.clone(), since: *since };
        self.fetches = JoinSet::new();
        let silent = self.slots.iter().filter(|slot| slot.silence().is_some()).count();
        let is_own_link = silent > 1 && silent * OWN_SILENCE > self.slots.len();
        for slot in &mut self.slots {
            if let Some(cause) = slot.silence() {
                let (window, uid) = (self.window.number, slot.entry.uid.0);
                tracing::info!(window, uid, cause, "a contribution could not be fetched");
                if asked_late || is_own_link && slot.verdict().err() == Some(FaultKind::NotOpened) {
                    slot.decide(Err(FaultKind::NotJudged));
                }
            }
            slot.close();
        }
        let passed = self.slots.iter().enumerate().filter_map(|(nth, slot)| {
            let (committed_at_block, opened) = slot.passed()?;
            // There is nothing to copy in a contribution that moves nothing, and equal ones come by themselves.
            let is_zero = opened.contribution.norms().iter().all(|&norm| norm == 0.0);
            (!is_zero).then(|| ((committed_at_block, nth), opened.contribution.payload().clone()))
        });
        for nth in copies(&passed.collect::<Vec<_>>()) {
            self.slots[nth].decide(Err(FaultKind::Duplicate));
        }
    }

    /// Verdicts in the order of candidates.
    pub fn verdicts(&self) -> impl Iterator<Item = (&EntryId, Result<&Arc<Opened>, FaultKind>)> {
        self.slots.iter().map(|slot| (&slot.entry, slot.verdict()))
    }

    pub fn opened(&self) -> impl Iterator<Item = &Arc<Opened>> {
        self.verdicts().filter_map(|(_, verdict)| verdict.ok())
    }
}

/// Which of `passed` (block of the commitment and slot, payload) are an earlier one's copy, byte for byte. Blocks of
/// commitments cannot be forged, so the earlier of two is the original; within one block the one that stands later in the
/// list yields.
fn copies(passed: &[((u64, usize), Bytes)]) -> Vec<usize> {
    let mut firsts: BTreeMap<Hash32, (u64, usize)> = BTreeMap::new();
    let hashes: Vec<Hash32> = passed.iter().map(|(_, payload)| Hash32::of(payload)).collect();
    for (hash, (at, _)) in hashes.iter().zip(passed) {
        let first = firsts.entry(*hash).or_insert(*at);
        *first = (*first).min(*at);
    }
    hashes.iter().zip(passed).filter(|(hash, (at, _))| firsts[hash] != *at).map(|(_, (at, _))| at.1).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_of_equal_payloads_is_the_original() {
        let passed = |at: &[(u64, &'static [u8])]| {
            at.iter().enumerate().map(|(nth, (block, bytes))| ((*block, nth), Bytes::from_static(bytes))).collect()
        };
        let found: Vec<_> = passed(&[(7, b"a"), (5, b"a"), (5, b"a"), (5, b"b"), (9, b"c")]);
        assert_eq!(copies(&found), [0, 2]);
    }
}

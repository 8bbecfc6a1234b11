//! A validator's intake for one window: from words on chain to contributions that passed every check.
//!
//! Ciphertexts are fetched as soon as their headers are committed, keys after the put deadline. Polling is idempotent;
//! what is final about a slot never changes again, and what only could not be fetched is tried until the intake closes.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use templar_protocol::fault::FaultKind;
use templar_protocol::hash::Hash32;
use templar_protocol::header::{HeaderContext, SignedHeader, possession_proof, sample_digest};
use templar_protocol::roster::{EntryId, Snapshot};
use templar_protocol::run::{CodecKind, RunSpec};
use templar_protocol::word::{HeaderWord, WordError};

use crate::core::Core;
use crate::error::NodeError;
use crate::fetch::{self, Opened, Place};
use crate::window::{Window, commitment_of};

/// Contributions fetched at a time.
const PARALLEL_FETCHES: usize = 8;
/// Most time that one look after a contribution may take, before the put deadline and after it. A bucket that drips
/// must not keep a validator from its vote; what did not come is asked for again at the next block.
const PATIENCE_EARLY: Duration = Duration::from_mins(1);
const PATIENCE_FINAL: Duration = Duration::from_secs(10);

/// One miner's contribution on its way in.
#[derive(Clone, Debug)]
pub struct Slot {
    pub entry: EntryId,
    place: Place,
    context: HeaderContext,
    committed: Option<Hash32>,
    committed_at_block: u64,
    header: Option<SignedHeader>,
    ciphertext: Option<Bytes>,
    /// What stands in the way at the moment.
    obstacle: FaultKind,
    verdict: Option<Result<Arc<Opened>, FaultKind>>,
}

/// All slots of one window: candidates first, in their order, then miners drawn for evaluation.
#[derive(Debug)]
pub struct Intake {
    pub window: Window,
    slots: Vec<Slot>,
    /// The chain at the put deadline: what was committed then is what counts.
    at_put: Option<Snapshot>,
}

impl Intake {
    pub fn new(core: &Core, window: Window, theta: &[f32]) -> Result<Self, NodeError> {
        let mut intake = Self { window, slots: Vec::new(), at_put: None };
        let candidates: Vec<EntryId> = intake.window.candidates.iter().map(|candidate| candidate.entry).collect();
        for entry in candidates {
            intake.add(core, entry, theta)?;
        }
        Ok(intake)
    }

    /// Adds a miner of the roster that is not a candidate.
    pub fn add(&mut self, core: &Core, entry: EntryId, theta: &[f32]) -> Result<(), NodeError> {
        let Some(miner) = self.window.roster.miner(&entry) else { return Ok(()) };
        if self.slots.iter().any(|slot| slot.entry == entry) {
            return Ok(());
        }
        let place = Place::of_miner(core, &miner.bucket, self.window.number);
        let samples = self.window.assignment.slice(&entry).len() as u64;
        // The last window of an epoch deals short slices, which miners go through again.
        let tokens_max = if samples == 0 { 0 } else { core.spec.slice_samples() * u64::from(core.spec.model.seq_len) };
        let context = HeaderContext {
            run: core.run,
            window: self.window.number,
            entry,
            base: self.window.base_digest,
            sample_digest: sample_digest(&self.window.sample_hashes(core, &entry)?),
            possession: possession_proof(theta, &entry.hotkey, &self.window.seed),
            ciphertext_bytes_max: Window::ciphertext_bytes_max(core),
            tokens_max,
        };
        self.slots.push(Slot {
            entry,
            place,
            context,
            committed: None,
            committed_at_block: 0,
            header: None,
            ciphertext: None,
            obstacle: FaultKind::NotCommitted,
            verdict: None,
        });
        Ok(())
    }

    /// Does what can be done by `head`: prefetches before the put deadline, opens after it.
    pub async fn poll(&mut self, core: &Core, head: u64) -> Result<(), NodeError> {
        let deadline = core.schedule.put_deadline(self.window.number);
        let is_final = head >= deadline;
        if is_final && self.at_put.is_none() {
            self.at_put = Some(core.snapshot(deadline).await?);
        }
        let early = if is_final { None } else { Some(core.snapshot(head).await?) };
        let Some(snapshot) = early.as_ref().or(self.at_put.as_ref()) else { return Ok(()) };
        for slot in &mut self.slots {
            slot.read_word(snapshot, self.window.number, is_final);
        }
        let open: Vec<Slot> = self.slots.iter().filter(|slot| slot.verdict.is_none()).cloned().collect();
        let patience = if is_final { PATIENCE_FINAL } else { PATIENCE_EARLY };
        let advance = |slot: Slot| tokio::time::timeout(patience, slot.advance(core, is_final));
        let mut advanced = futures::stream::iter(open.into_iter().map(advance)).buffered(PARALLEL_FETCHES);
        while let Some(done) = advanced.next().await {
            let Ok(done) = done else { continue };
            if let Some(slot) = self.slots.iter_mut().find(|slot| slot.entry == done.entry) {
                *slot = done;
            }
        }
        Ok(())
    }

    pub fn is_resolved(&self) -> bool {
        self.slots.iter().all(|slot| slot.verdict.is_some())
    }

    /// Ends all waiting: what is not here by now is a fault. Then rules out contributions that repeat a candidate's.
    pub fn close(&mut self, spec: &RunSpec) {
        for slot in &mut self.slots {
            slot.verdict.get_or_insert(Err(slot.obstacle));
        }
        if spec.codec.kind == CodecKind::DenseF32 {
            // Everybody sends every value: positions tell nothing.
            return;
        }
        let overlap_max = spec.roster.overlap_max;
        let duplicates: Vec<EntryId> = self
            .slots
            .iter()
            .filter(|slot| self.repeats_an_earlier(slot, overlap_max))
            .map(|slot| slot.entry)
            .collect();
        for slot in self.slots.iter_mut().filter(|slot| duplicates.contains(&slot.entry)) {
            slot.verdict = Some(Err(FaultKind::Duplicate));
        }
    }

    /// Commitment blocks cannot be forged, so the earlier of two is the original; within one block both are suspect,
    /// and the one that stands later in the list yields.
    fn repeats_an_earlier(&self, slot: &Slot, overlap_max: f64) -> bool {
        let Some(Ok(own)) = &slot.verdict else { return false };
        let place = |entry: &EntryId| self.slots.iter().position(|slot| slot.entry == *entry);
        let rank = |slot: &Slot| (slot.committed_at_block, place(&slot.entry));
        // Candidates only: who else is here depends on this validator's draws, and votes should not.
        let candidates = &self.slots[..self.window.candidates.len()];
        candidates.iter().filter(|other| rank(other) < rank(slot)).any(|other| match &other.verdict {
            Some(Ok(earlier)) => own.contribution.overlap(&earlier.contribution) >= overlap_max,
            _ => false,
        })
    }

    /// Verdicts, candidates first.
    pub fn verdicts(&self) -> impl Iterator<Item = (&EntryId, Result<&Arc<Opened>, FaultKind>)> {
        self.slots.iter().map(|slot| {
            let verdict = slot.verdict.as_ref().map_or(Err(slot.obstacle), |verdict| match verdict {
                Ok(opened) => Ok(opened),
                Err(fault) => Err(*fault),
            });
            (&slot.entry, verdict)
        })
    }

    pub fn opened(&self) -> Vec<Arc<Opened>> {
        self.verdicts().filter_map(|(_, verdict)| verdict.ok().cloned()).collect()
    }
}

impl Slot {
    fn read_word(&mut self, snapshot: &Snapshot, window: u64, is_final: bool) {
        if self.verdict.is_some() {
            return;
        }
        let commitment = commitment_of(snapshot, &self.entry);
        let word = commitment.ok_or(WordError::Absent).and_then(|c| HeaderWord::read(c, window as u32));
        let committed = word.as_ref().ok().map(|word| word.header_hash);
        if committed != self.committed {
            (self.committed, self.header, self.ciphertext) = (committed, None, None);
        }
        self.committed_at_block = commitment.map_or(0, |commitment| commitment.block);
        if is_final {
            match word {
                Ok(_) => {}
                Err(WordError::Absent | WordError::Window { .. }) => self.verdict = Some(Err(FaultKind::NotCommitted)),
                Err(_) => self.verdict = Some(Err(FaultKind::WordMalformed)),
            }
        }
    }

    /// As far as it gets now.
    async fn advance(mut self, core: &Core, is_final: bool) -> Self {
        let Err(fault) = self.try_advance(core, is_final).await else { return self };
        self.obstacle = fault;
        let may_still_come =
            matches!(fault, FaultKind::HeaderUnavailable | FaultKind::PayloadUnavailable | FaultKind::NotOpened);
        if is_final && !may_still_come {
            self.verdict = Some(Err(fault));
        }
        self
    }

    async fn try_advance(&mut self, core: &Core, is_final: bool) -> Result<(), FaultKind> {
        let Some(committed) = self.committed else { return Err(FaultKind::NotCommitted) };
        let header = match self.header.take() {
            Some(header) => header,
            None => fetch::header(core, &self.place, &committed, Some(&self.context)).await?,
        };
        let header = self.header.insert(header).clone();
        let ciphertext = match self.ciphertext.take() {
            Some(ciphertext) => ciphertext,
            None => fetch::ciphertext(core, &self.place, &header).await?,
        };
        let ciphertext = self.ciphertext.insert(ciphertext).clone();
        if is_final {
            let key = fetch::key(core, &self.place).await?;
            self.verdict = Some(Ok(fetch::open(core, header, ciphertext, key).await?));
        }
        Ok(())
    }
}

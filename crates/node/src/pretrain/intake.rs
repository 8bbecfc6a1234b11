//! A validator's intake for one window: from words on chain to contributions that passed every check.
//!
//! Ciphertexts are fetched as soon as their headers are committed, keys after the put deadline, each contribution in a
//! task of its own: a bucket that drips delays nobody else's contribution, and never the vote. What is final about a
//! slot never changes again; what only could not be fetched is tried again at every block until the intake closes.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use templar_protocol::fault::FaultKind;
use templar_protocol::hash::Hash32;
use templar_protocol::header::{HeaderContext, SignedHeader};
use templar_protocol::roster::{EntryId, Snapshot};
use templar_protocol::run::CodecKind;
use templar_protocol::word::{HeaderWord, WordError};
use tokio::sync::{Semaphore, watch};
use tokio::task::{AbortHandle, JoinError, JoinSet};
use tokio::time::Instant;

use crate::frame::context::Context;
use crate::frame::error::NodeError;
use crate::pretrain::fetch::{self, Opened, PARALLEL_FETCHES, Place};
use crate::pretrain::window::Window;
use templar_record::trouble::Trouble;

/// How long a fetch may keep others waiting for one of [`PARALLEL_FETCHES`] places: after that it goes on beside them,
/// so that slow buckets block no place. So all slots may be on their way at once, which takes no more memory than what
/// comes in anyway: every slot keeps its ciphertext to the end.
const TURN: Duration = Duration::from_secs(5);
/// So often bytes must not be what the chain names before that is final: the first time, a link may be to blame.
const MISREADS_MAX: u32 = 2;

/// One miner's contribution on its way in.
#[derive(Debug)]
pub struct Slot {
    pub entry: EntryId,
    place: Place,
    /// None if this validator cannot know what the header has to say.
    context: Option<HeaderContext>,
    committed: Option<Hash32>,
    committed_at_block: u64,
    header: Option<SignedHeader>,
    ciphertext: Option<Bytes>,
    fetching: Option<AbortHandle>,
    /// The block at which it was last looked for.
    looked_at: Option<u64>,
    /// Nothing more can be learned before the put deadline.
    rests: bool,
    /// So often, after the put deadline, what was read was not what the chain names.
    misreads: u32,
    /// What stands in the way at the moment: what a fetch that is under way waits for, else how the last one ended.
    obstacle: watch::Sender<FaultKind>,
    verdict: Option<Result<Arc<Opened>, FaultKind>>,
}

/// All slots of one window: candidates first, in their order, then miners drawn for evaluation.
#[derive(Debug)]
pub struct Intake {
    pub window: Window,
    slots: Vec<Slot>,
    /// The chain at the put deadline: what was committed then is what counts.
    at_put: Option<Snapshot>,
    /// The block whose words were read last.
    read_at: Option<u64>,
    opened_at: Option<Instant>,
    fetches: JoinSet<Fetched>,
    places: Arc<Semaphore>,
    is_closed: bool,
}

impl Intake {
    /// Slots for the candidates of `window`, whose base has the parameters `theta`.
    pub async fn new(ctx: &Arc<Context>, window: Window, theta: &Arc<Vec<f32>>) -> Self {
        let entries = window.candidates.iter().map(|candidate| candidate.entry).collect();
        let mut intake = Self {
            window,
            slots: Vec::new(),
            at_put: None,
            read_at: None,
            opened_at: None,
            fetches: JoinSet::new(),
            places: Arc::new(Semaphore::new(PARALLEL_FETCHES)),
            is_closed: false,
        };
        intake.add(ctx, entries, theta).await;
        intake
    }

    /// Adds those miners of the roster that have no slot yet.
    pub async fn add(&mut self, ctx: &Arc<Context>, entries: Vec<EntryId>, theta: &Arc<Vec<f32>>) {
        let is_new = |entry: &EntryId| !self.slots.iter().any(|slot| slot.entry == *entry);
        let entries: Vec<EntryId> = entries.into_iter().filter(is_new).collect();
        if entries.is_empty() {
            return;
        }
        let (shared, window, theta, of) = (ctx.clone(), self.window.clone(), theta.clone(), entries.clone());
        // Reads and hashes slices, and chunks of θ.
        let contexts = move || of.iter().map(|entry| window.context(&shared, entry, &theta)).collect::<Vec<_>>();
        let contexts = ctx.compute.run(contexts).await;
        for (entry, context) in entries.into_iter().zip(contexts) {
            let Some(miner) = self.window.roster.miner(&entry) else { continue };
            let place = Place::of_miner(ctx, miner, self.window.number);
            if let Err(error) = &context {
                ctx.trouble(Trouble::DataDamaged { uid: entry.uid.0, cause: error.to_string() }).await;
            }
            self.slots.push(Slot::new(entry, place, context.ok()));
        }
    }

    /// Reads what stands on the chain by `head`, as of the put deadline once that is past.
    pub async fn read(&mut self, ctx: &Context, head: u64) -> Result<(), NodeError> {
        let deadline = ctx.schedule.put_deadline(self.window.number);
        if self.at_put.is_some() || self.read_at == Some(head) {
            return Ok(());
        }
        let is_final = head >= deadline;
        let snapshot = ctx.snapshot(head.min(deadline)).await?;
        for slot in &mut self.slots {
            slot.read_word(&snapshot, self.window.number, is_final);
        }
        self.read_at = Some(head);
        if is_final {
            self.opened_at = Some(Instant::now());
            self.at_put = Some(snapshot);
        }
        Ok(())
    }

    /// The hash of the block at the put deadline, once it is past.
    pub fn put_hash(&self) -> Option<Hash32> {
        self.at_put.as_ref().map(|snapshot| snapshot.block_hash)
    }

    /// Time since the put deadline was seen.
    pub fn open_s(&self) -> f64 {
        self.opened_at.map_or(0.0, |at| at.elapsed().as_secs_f64())
    }

    /// Starts to fetch whatever may have come by `head`: ciphertexts before the put deadline, keys too after it.
    pub fn fetch(&mut self, ctx: &Arc<Context>, head: u64) {
        let is_final = self.at_put.is_some();
        for (nth, slot) in self.slots.iter_mut().enumerate() {
            // Slots added after the put deadline have not read their word.
            if let Some(at_put) = &self.at_put {
                slot.read_word(at_put, self.window.number, true);
            }
            let (Some(committed), Some(context)) = (slot.committed, &slot.context) else { continue };
            let has_come = !is_final && (slot.rests || slot.ciphertext.is_some());
            if slot.verdict.is_some() || slot.fetching.is_some() || has_come || slot.looked_at == Some(head) {
                continue;
            }
            slot.looked_at = Some(head);
            let (place, context) = (slot.place.clone(), context.clone());
            let (header, ciphertext) = (slot.header.clone(), slot.ciphertext.clone());
            let (ctx, obstacle) = (ctx.clone(), slot.obstacle.clone());
            let fetch = Fetch { ctx, nth, place, context, committed, header, ciphertext, is_final, obstacle };
            slot.fetching = Some(self.fetches.spawn(fetch.run(self.places.clone())));
        }
    }

    /// Waits for the next fetch that ends, and takes in what it brought. Waits for ever if there is none.
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

    fn take(&mut self, done: Result<Fetched, JoinError>) {
        let done = match done {
            Ok(done) => done,
            Err(error) if error.is_cancelled() => return,
            // Its slot stays as it is: no stranger's bytes may end this process.
            Err(error) => return tracing::error!(window = self.window.number, %error, "a contribution broke its task"),
        };
        let slot = &mut self.slots[done.nth];
        if slot.committed != Some(done.committed) || slot.verdict.is_some() {
            return;
        }
        (slot.fetching, slot.header, slot.ciphertext) = (None, done.header, done.ciphertext);
        match done.result {
            Ok(Some(opened)) => slot.verdict = Some(Ok(opened)),
            // All that there is before the put deadline is here, and nobody has asked for the key.
            Ok(None) => _ = slot.obstacle.send_replace(FaultKind::NotJudged),
            Err(fault) => slot.stumble(fault, done.is_final),
        }
    }

    pub fn is_resolved(&self) -> bool {
        self.slots.iter().all(|slot| slot.verdict.is_some())
    }

    /// Ends all waiting: what is not here by now is a fault. Then rules out contributions that repeat a candidate's.
    pub async fn close(&mut self, ctx: &Context) {
        if std::mem::replace(&mut self.is_closed, true) {
            return;
        }
        self.fetches = JoinSet::new();
        for slot in &mut self.slots {
            slot.verdict.get_or_insert(Err(*slot.obstacle.borrow()));
        }
        if ctx.spec.codec.kind == CodecKind::DenseF32 {
            // Everybody sends every value: positions tell nothing.
            return;
        }
        let passed = self.slots.iter().enumerate().filter_map(|(nth, slot)| {
            let opened = slot.verdict.as_ref()?.as_ref().ok()?;
            Some((slot.committed_at_block, nth, opened.clone()))
        });
        let (passed, candidates) = (passed.collect::<Vec<_>>(), self.window.candidates.len());
        let overlap_max = ctx.spec.roster.overlap_max;
        for nth in ctx.compute.run(move || duplicates(&passed, candidates, overlap_max)).await {
            self.slots[nth].verdict = Some(Err(FaultKind::Duplicate));
        }
    }

    /// Verdicts, candidates first.
    pub fn verdicts(&self) -> impl Iterator<Item = (&EntryId, Result<&Arc<Opened>, FaultKind>)> {
        self.slots.iter().map(|slot| {
            let verdict = slot.verdict.as_ref().map_or(Err(*slot.obstacle.borrow()), |verdict| match verdict {
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

/// Which of `passed` (block of the commitment, slot, contribution) repeat an earlier candidate's. Commitment blocks
/// cannot be forged, so the earlier of two is the original; within one block both are suspect, and the one that stands
/// later in the list yields.
fn duplicates(passed: &[(u64, usize, Arc<Opened>)], candidates: usize, overlap_max: f64) -> Vec<usize> {
    let repeats = |(block, nth, own): &(u64, usize, Arc<Opened>)| {
        // Candidates only: who else is here depends on this validator's draws, and votes should not.
        passed.iter().any(|(other_block, other, earlier)| {
            *other < candidates
                && (other_block, other) < (block, nth)
                && own.contribution.overlap(&earlier.contribution) >= overlap_max
        })
    };
    passed.iter().filter(|slot| repeats(slot)).map(|(_, nth, _)| *nth).collect()
}

impl Slot {
    fn new(entry: EntryId, place: Place, context: Option<HeaderContext>) -> Self {
        let verdict = context.is_none().then_some(Err(FaultKind::NotJudged));
        Self {
            entry,
            place,
            context,
            committed: None,
            committed_at_block: 0,
            header: None,
            ciphertext: None,
            fetching: None,
            looked_at: None,
            rests: false,
            misreads: 0,
            obstacle: watch::Sender::new(FaultKind::NotCommitted),
            verdict,
        }
    }

    fn read_word(&mut self, snapshot: &Snapshot, window: u64, is_final: bool) {
        if self.verdict.is_some() {
            return;
        }
        let commitment = snapshot.commitment_of(&self.entry);
        let word = commitment.ok_or(WordError::Absent).and_then(|c| HeaderWord::read(c, window as u32));
        let committed = word.as_ref().ok().map(|word| word.header_hash);
        if committed != self.committed {
            (self.committed, self.header, self.ciphertext) = (committed, None, None);
            (self.rests, self.looked_at) = (false, None);
            // Until its turn comes nobody has asked for it, which is no fault of its miner's.
            let unasked = committed.map_or(FaultKind::NotCommitted, |_| FaultKind::NotJudged);
            self.obstacle = watch::Sender::new(unasked);
            if let Some(fetching) = self.fetching.take() {
                fetching.abort();
            }
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

    /// Something was in the way of a fetch.
    fn stumble(&mut self, fault: FaultKind, is_final: bool) {
        self.obstacle.send_replace(fault);
        if fault.is_absence() {
            return;
        }
        if !is_final {
            self.rests = true;
            return;
        }
        // Bytes that are not the committed ones may have been damaged on their way; all other faults are in bytes that
        // the chain names.
        let may_be_misread = matches!(
            fault,
            FaultKind::HeaderMalformed
                | FaultKind::HeaderMismatch
                | FaultKind::BadSignature
                | FaultKind::PayloadMismatch
                | FaultKind::KeyMismatch
        );
        self.misreads += 1;
        if !may_be_misread || self.misreads >= MISREADS_MAX {
            self.verdict = Some(Err(fault));
        }
    }
}

/// A look after one contribution, from what is known of it.
struct Fetch {
    ctx: Arc<Context>,
    nth: usize,
    place: Place,
    context: HeaderContext,
    committed: Hash32,
    header: Option<SignedHeader>,
    ciphertext: Option<Bytes>,
    is_final: bool,
    /// The slot's: says what this waits for.
    obstacle: watch::Sender<FaultKind>,
}

/// What it brought.
struct Fetched {
    nth: usize,
    committed: Hash32,
    header: Option<SignedHeader>,
    ciphertext: Option<Bytes>,
    is_final: bool,
    /// The whole contribution, if it is final; why not, if something is in the way.
    result: Result<Option<Arc<Opened>>, FaultKind>,
}

impl Fetch {
    async fn run(mut self, places: Arc<Semaphore>) -> Fetched {
        let place = places.acquire_owned().await.ok();
        let result = {
            let mut advance = pin!(self.advance());
            if let Ok(result) = tokio::time::timeout(TURN, &mut advance).await {
                result
            } else {
                drop(place);
                advance.await
            }
        };
        let Self { nth, committed, header, ciphertext, is_final, .. } = self;
        Fetched { nth, committed, header, ciphertext, is_final, result }
    }

    /// As far as it gets now.
    async fn advance(&mut self) -> Result<Option<Arc<Opened>>, FaultKind> {
        let header = if let Some(header) = self.header.take() {
            header
        } else {
            self.obstacle.send_replace(FaultKind::HeaderUnavailable);
            fetch::header(&self.ctx, &self.place, &self.committed, Some(&self.context)).await?
        };
        let header = self.header.insert(header).clone();
        let ciphertext = if let Some(ciphertext) = self.ciphertext.take() {
            ciphertext
        } else {
            self.obstacle.send_replace(FaultKind::PayloadUnavailable);
            fetch::ciphertext(&self.ctx, &self.place, &header).await?
        };
        let ciphertext = self.ciphertext.insert(ciphertext).clone();
        if !self.is_final {
            return Ok(None);
        }
        // Up to the end: a key that comes too late to be used is as good as none.
        self.obstacle.send_replace(FaultKind::NotOpened);
        let key = fetch::key(&self.ctx, &self.place).await?;
        fetch::open(&self.ctx, header, ciphertext, key).await.map(Some)
    }
}

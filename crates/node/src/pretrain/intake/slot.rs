//! One miner's contribution on its way in: a state machine.

use std::sync::Arc;

use bytes::Bytes;
use templar_protocol::fault::FaultKind;
use templar_protocol::hash::Hash32;
use templar_protocol::header::{HeaderContext, SignedHeader};
use templar_protocol::roster::{EntryId, Snapshot};
use templar_protocol::word::{HeaderWord, WordError};
use tokio::sync::watch;
use tokio::task::AbortHandle;

use crate::pretrain::fetch::{Location, Obstacle, Opened, Wanted};
use crate::pretrain::intake::rescue::ROUNDS_MAX;

/// How often bytes must differ from what the chain names before its bucket is given up: the first time, a link may be to
/// blame.
const MISREADS_MAX: u32 = 2;

/// One miner's contribution on its way in.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) entry: EntryId,
    pub(super) location: Location,
    stage: Stage,
    /// Counts what was begun anew: what an earlier fetch brings is not taken for an answer to a later one.
    generation: u64,
}

/// How far it is. Steps lead downwards only, except that a new header may be committed up to the put deadline.
#[derive(Debug)]
enum Stage {
    /// The chain has no header of it so far.
    Uncommitted {
        context: Arc<HeaderContext>,
    },
    Coming(Box<Coming>),
    /// Final.
    Decided {
        verdict: Result<Arc<Opened>, FaultKind>,
        committed_at_block: u64,
    },
}

/// A contribution whose header the chain names.
#[derive(Debug)]
pub(super) struct Coming {
    pub(super) context: Arc<HeaderContext>,
    pub(super) committed: Hash32,
    committed_at_block: u64,
    pub(super) parts: Parts,
    activity: Activity,
    /// How often, after the put deadline, the bytes read differed from what the chain names.
    misreads: u32,
    rescue: Rescue,
    /// The present obstacle: what the fetch under way waits for, or how the last one ended.
    pub(super) obstacle: watch::Sender<Obstacle>,
}

/// The parts of it that are here.
#[derive(Clone, Debug, Default)]
pub(super) struct Parts {
    pub(super) header: Option<SignedHeader>,
    pub(super) ciphertext: Option<Bytes>,
}

/// The result of an attempt to fetch it.
#[derive(Debug)]
pub(super) struct Fetched {
    pub(super) nth: usize,
    pub(super) generation: u64,
    pub(super) parts: Parts,
    pub(super) is_final: bool,
    /// The whole contribution, if it is final; why not, if something is in the way.
    pub(super) result: Result<Option<Arc<Opened>>, Obstacle>,
}

/// How copies of it were asked for at other validators.
#[derive(Debug, Default)]
struct Rescue {
    rounds: usize,
    is_under_way: bool,
    /// The block of the last round.
    asked_at: Option<u64>,
}

#[derive(Debug)]
enum Activity {
    /// The block of the last attempt to fetch it.
    Idle {
        looked_at: Option<u64>,
    },
    Fetching {
        task: AbortHandle,
        looked_at: u64,
    },
    /// Nothing more can be learned before the put deadline.
    Resting,
    /// Its bucket serves this validator something else. It may serve others what the chain names, and they serve it on.
    GivenUp,
}

impl Slot {
    /// `context` is `None` if this validator cannot know what the header must say.
    pub(super) fn new(entry: EntryId, location: Location, context: Option<HeaderContext>) -> Self {
        let stage = match context {
            Some(context) => Stage::Uncommitted { context: Arc::new(context) },
            None => Stage::Decided { verdict: Err(FaultKind::NotJudged), committed_at_block: 0 },
        };
        Self { entry, location, stage, generation: 0 }
    }

    /// Reads its record on chain; `is_final` as of the put deadline.
    pub(super) fn read_word(&mut self, snapshot: &Snapshot, window: u64, is_final: bool) {
        let context = match &self.stage {
            Stage::Decided { .. } => return,
            Stage::Uncommitted { context } => context.clone(),
            Stage::Coming(coming) => coming.context.clone(),
        };
        let commitment = snapshot.commitment_of(&self.entry);
        let word = commitment.ok_or(WordError::Absent).and_then(|c| HeaderWord::read(c, window as u32));
        let at_block = commitment.map_or(0, |commitment| commitment.block);
        match (word, &mut self.stage) {
            (Ok(word), Stage::Coming(coming)) if coming.committed == word.header_hash => {
                coming.committed_at_block = at_block;
            }
            (Ok(word), _) => {
                self.abort();
                self.stage = Stage::Coming(Box::new(Coming::new(context, word.header_hash, at_block)));
            }
            (Err(_), _) if !is_final => {
                self.abort();
                self.stage = Stage::Uncommitted { context };
            }
            (Err(WordError::Absent | WordError::Window { .. }), _) => self.decide(Err(FaultKind::NotCommitted)),
            (Err(_), _) => self.decide(Err(FaultKind::WordMalformed)),
        }
    }

    pub(super) fn generation(&self) -> u64 {
        self.generation
    }

    /// What to fetch of it at `head`: before the put deadline what is committed, after it (`is_final`) the key too.
    pub(super) fn due(&self, head: u64, is_final: bool) -> Option<&Coming> {
        let Stage::Coming(coming) = &self.stage else { return None };
        let is_due = match coming.activity {
            Activity::Fetching { .. } | Activity::GivenUp => false,
            Activity::Resting => is_final,
            Activity::Idle { looked_at } => looked_at != Some(head) && (is_final || coming.parts.ciphertext.is_none()),
        };
        is_due.then_some(coming)
    }

    /// A fetch of it is under way.
    pub(super) fn started(&mut self, task: AbortHandle, head: u64) {
        if let Stage::Coming(coming) = &mut self.stage {
            coming.activity = Activity::Fetching { task, looked_at: head };
        }
    }

    /// Takes in what a fetch brought, unless another header stands on the chain by now, or it was asked afresh.
    pub(super) fn take(&mut self, fetched: Fetched) {
        if self.generation != fetched.generation {
            return;
        }
        let Stage::Coming(coming) = &mut self.stage else { return };
        let Activity::Fetching { looked_at, .. } = coming.activity else { return };
        coming.activity = Activity::Idle { looked_at: Some(looked_at) };
        coming.parts = fetched.parts;
        match fetched.result {
            Ok(Some(opened)) => self.decide(Ok(opened)),
            // Everything available before the put deadline is here, and nobody has asked for the key.
            Ok(None) => _ = coming.obstacle.send_replace(FaultKind::NotJudged.into()),
            Err(obstacle) => {
                let fault = obstacle.fault();
                coming.obstacle.send_replace(obstacle);
                if coming.is_hopeless(fault, fetched.is_final) {
                    self.decide(Err(fault));
                }
            }
        }
    }

    /// Begins a round of asking others for it at block `head`, if its bucket does not serve it and a round is left. What is
    /// being downloaded is left alone unless there is no other `last_chance`. Returns the number of the round, and what is
    /// wanted.
    pub(super) fn begin_rescue(&mut self, head: u64, last_chance: u64) -> Option<(usize, Wanted)> {
        let Stage::Coming(coming) = &mut self.stage else { return None };
        let fault = coming.obstacle.borrow().fault();
        let is_loading = matches!(coming.activity, Activity::Fetching { .. }) && fault == FaultKind::PayloadUnavailable;
        let is_absent = fault.is_absence() && (head >= last_chance || !is_loading);
        let is_given_up = matches!(coming.activity, Activity::GivenUp);
        let Rescue { rounds, is_under_way, asked_at } = &mut coming.rescue;
        if !(is_absent || is_given_up) || *is_under_way || *rounds >= ROUNDS_MAX || *asked_at == Some(head) {
            return None;
        }
        (*rounds, *is_under_way, *asked_at) = (*rounds + 1, true, Some(head));
        let Parts { header, ciphertext } = coming.parts.clone();
        let wanted = Wanted { committed: coming.committed, context: Some(coming.context.clone()), header, ciphertext };
        Some((coming.rescue.rounds - 1, wanted))
    }

    /// Takes in what others served of it. Its hash says that it is what was committed, whoever serves it.
    pub(super) fn take_rescued(&mut self, opened: Option<Arc<Opened>>) {
        let Stage::Coming(coming) = &mut self.stage else { return };
        coming.rescue.is_under_way = false;
        if let Some(opened) = opened.filter(|opened| opened.header.header.hash() == coming.committed) {
            self.decide(Ok(opened));
        }
    }

    /// Ends all waiting: what has not arrived by now is a fault.
    pub(super) fn close(&mut self) {
        if let Err(fault) = self.verdict() {
            self.decide(Err(fault));
        }
    }

    /// Overrules what was decided.
    pub(super) fn decide(&mut self, verdict: Result<Arc<Opened>, FaultKind>) {
        self.abort();
        let committed_at_block = match &self.stage {
            Stage::Uncommitted { .. } => 0,
            Stage::Coming(coming) => coming.committed_at_block,
            Stage::Decided { committed_at_block, .. } => *committed_at_block,
        };
        self.stage = Stage::Decided { verdict, committed_at_block };
    }

    /// Forgets its obstacle, and asks as if for the first time.
    pub(super) fn ask_afresh(&mut self) {
        self.abort();
        if let Stage::Coming(coming) = &mut self.stage {
            coming.activity = Activity::Idle { looked_at: None };
            coming.obstacle = watch::Sender::new(FaultKind::NotJudged.into());
        }
    }

    /// Asks once more, and takes its bucket for silent until it answers.
    pub(super) fn ask_again(&mut self) {
        self.abort();
        if let Stage::Coming(coming) = &mut self.stage {
            coming.activity = Activity::Idle { looked_at: None };
        }
    }

    /// Ends the fetch that is under way. It may have ended already, and wait to be taken in.
    fn abort(&mut self) {
        self.generation += 1;
        if let Stage::Coming(coming) = &self.stage
            && let Activity::Fetching { task, .. } = &coming.activity
        {
            task.abort();
        }
    }

    pub(super) fn is_decided(&self) -> bool {
        matches!(self.stage, Stage::Decided { .. })
    }

    /// Why its bucket did not answer the last request, if it did not.
    pub(super) fn silence(&self) -> Option<String> {
        match &self.stage {
            Stage::Coming(coming) => coming.obstacle.borrow().silence().map(str::to_owned),
            _ => None,
        }
    }

    /// Whether its bucket has answered the last question about it. What nobody has asked for yet says nothing.
    pub(super) fn is_heard(&self) -> bool {
        let fault = match &self.stage {
            Stage::Uncommitted { .. } => return false,
            Stage::Coming(coming) => {
                let obstacle = coming.obstacle.borrow();
                if obstacle.silence().is_some() {
                    return false;
                }
                obstacle.fault()
            }
            Stage::Decided { verdict: Ok(_), .. } => return true,
            Stage::Decided { verdict: Err(fault), .. } => *fault,
        };
        !matches!(fault, FaultKind::NotJudged | FaultKind::NotCommitted | FaultKind::WordMalformed)
    }

    /// The block of its commitment, and the contribution, if it passed.
    pub(super) fn passed(&self) -> Option<(u64, &Arc<Opened>)> {
        match &self.stage {
            Stage::Decided { verdict: Ok(opened), committed_at_block } => Some((*committed_at_block, opened)),
            _ => None,
        }
    }

    /// The present verdict on it.
    pub(super) fn verdict(&self) -> Result<&Arc<Opened>, FaultKind> {
        match &self.stage {
            Stage::Uncommitted { .. } => Err(FaultKind::NotCommitted),
            Stage::Coming(coming) => Err(coming.obstacle.borrow().fault()),
            Stage::Decided { verdict, .. } => verdict.as_ref().map_err(|fault| *fault),
        }
    }
}

impl Coming {
    fn new(context: Arc<HeaderContext>, committed: Hash32, committed_at_block: u64) -> Self {
        Self {
            context,
            committed,
            committed_at_block,
            parts: Parts::default(),
            activity: Activity::Idle { looked_at: None },
            misreads: 0,
            rescue: Rescue::default(),
            // Until its turn comes nobody has asked for it, which is not its miner's fault.
            obstacle: watch::Sender::new(FaultKind::NotJudged.into()),
        }
    }

    /// Whether another attempt cannot help after `fault`, which is counted.
    fn is_hopeless(&mut self, fault: FaultKind, is_final: bool) -> bool {
        if fault.is_absence() {
            return false;
        }
        if !is_final {
            self.activity = Activity::Resting;
            return false;
        }
        // All other faults are in bytes that the chain names.
        self.misreads += 1;
        if fault.is_in_transit() && self.misreads >= MISREADS_MAX {
            self.activity = Activity::GivenUp;
        }
        !fault.is_in_transit()
    }
}

#[cfg(test)]
mod tests {
    use templar_protocol::run::RunId;
    use templar_protocol::testing;

    use super::*;

    fn coming() -> Slot {
        let entry = testing::entry(0);
        let hash = Hash32::of(b"hash");
        let context = HeaderContext {
            run: RunId(hash),
            window: 0,
            entry,
            base: hash,
            sample_digest: hash,
            possession: hash,
            ciphertext_bytes_max: 1,
            steps_max: 4,
            tokens_max: 1,
        };
        let text = String::new;
        let bucket = testing::bucket();
        let location = Location { owner: entry.uid, window: 0, bucket, header: text(), payload: text(), key: text() };
        let mut slot = Slot::new(entry, location, None);
        slot.stage = Stage::Coming(Box::new(Coming::new(Arc::new(context), hash, 7)));
        slot
    }

    /// A bucket may serve the key to most validators and rubbish to one: that one asks the others.
    #[tokio::test]
    async fn what_its_bucket_misserves_is_asked_of_others() {
        let mut slot = coming();
        for head in [10, 11] {
            assert!(slot.begin_rescue(head, 20).is_none(), "a link may have been to blame");
            slot.started(tokio::spawn(std::future::pending::<()>()).abort_handle(), head);
            slot.take(Fetched {
                nth: 0,
                generation: slot.generation(),
                parts: Parts::default(),
                is_final: true,
                result: Err(FaultKind::KeyMismatch.into()),
            });
        }
        assert!(slot.due(12, true).is_none() && !slot.is_decided());
        assert!(slot.begin_rescue(12, 20).is_some());
        slot.take_rescued(None);
        slot.close();
        assert_eq!(slot.verdict().err(), Some(FaultKind::KeyMismatch));
    }

    #[tokio::test]
    async fn what_a_fetch_from_before_brings_is_no_answer_to_what_was_asked_afresh() {
        let mut slot = coming();
        let task = || tokio::spawn(std::future::pending::<()>()).abort_handle();
        let silence = |slot: &Slot| Fetched {
            nth: 0,
            generation: slot.generation(),
            parts: Parts::default(),
            is_final: true,
            result: Err(Obstacle::Silence { fault: FaultKind::NotOpened, cause: "the clock is wrong".to_owned() }),
        };
        slot.started(task(), 10);
        let before = silence(&slot);
        slot.ask_afresh();
        assert!(slot.due(10, true).is_some(), "it is asked at once");
        slot.started(task(), 10);
        slot.take(before);
        assert_eq!(slot.silence(), None);
        assert!(slot.due(11, true).is_none(), "the new one is still under way");
        slot.take(silence(&slot));
        assert!(slot.silence().is_some() && slot.due(11, true).is_some());
    }
}

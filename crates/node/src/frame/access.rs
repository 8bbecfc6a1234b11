//! Whether this node's own access to storage works, which distinguishes its own fault from everybody else's.
//!
//! A node with a wrong clock or a broken connection sees the same as a node in a network of dead buckets. So code that
//! is about to act on the silence of a bucket asks here first, and one answer settles it: from this node's own bucket,
//! or from another one that has served this node before.
//!
//! An own bucket on the same machine proves little: it answers whatever the clock says and wherever the line is cut. So
//! a node that gets no answer from anybody else, though it asked more than one, blames itself as well. It is *isolated*
//! until the first answer of somebody else. Buckets that stay silent cannot make a node doubt itself as long as one of
//! the others serves it.

use std::collections::VecDeque;
use std::fmt;
use std::future::Future;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use futures::future::{Either, select};
use futures::stream::FuturesUnordered;
use templar_protocol::bucket::BucketLocator;
use templar_record::event::Event;
use templar_record::trouble::Trouble;
use templar_store::{Store, StoreError};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::frame::events::Events;

/// Longest time that a bucket may take to answer a probe.
const PROBE_PATIENCE: Duration = Duration::from_secs(10);
/// Most time that the own bucket may still take once another one has answered: what it would say is whether the node
/// itself is wrong.
const OWN_GRACE: Duration = Duration::from_secs(2);
/// Most time that the node's loop waits for a probe: a fraction of a block. The probe goes on, and wakes the node.
const LOOP_PATIENCE: Duration = Duration::from_secs(3);
/// Pause before broken access is probed again: doubled each time, from the first value to the second.
const PAUSE_MIN: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(30);
/// Other nodes' buckets that are asked besides this node's own.
const WITNESSES_MAX: usize = 4;

/// What is known of this node's own access.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finding {
    Works,
    /// A probe is under way. It wakes the node when it ends.
    Unknown,
    /// No bucket answers this node. It is woken when one does.
    Broken {
        cause: String,
    },
}

#[derive(Clone, Debug)]
enum State {
    /// As far as is known, and by a probe that was asked for at this block.
    Works {
        examined_at: Option<u64>,
    },
    Probing,
    Broken {
        cause: String,
    },
}

/// This node's own access to storage, and its probe, of which there is one at a time.
pub struct Access {
    shared: Arc<Shared>,
    /// Ends with this.
    probe: Mutex<JoinSet<()>>,
}

struct Shared {
    store: Arc<dyn Store>,
    events: Events,
    /// A folder of this node's own bucket to list.
    folder: String,
    state: watch::Sender<State>,
    /// Objects that this node has read from other nodes, each in a different bucket, newest last.
    witnesses: Mutex<VecDeque<(BucketLocator, String)>>,
    /// Operations that no bucket answered.
    unanswered: AtomicU64,
    /// Operations that a bucket of somebody else answered.
    answered: AtomicU64,
    isolated: Mutex<Option<Isolation>>,
    /// How often the access has come back.
    heals: AtomicU64,
}

/// Nobody but the own bucket answers.
struct Isolation {
    since: Instant,
    cause: String,
}

/// How many operations were answered up to some moment, and how many were not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tally {
    pub unanswered: u64,
    /// By somebody else than the own bucket.
    pub answered: u64,
}

impl fmt::Debug for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Access").field("state", &*self.shared.state.borrow()).finish_non_exhaustive()
    }
}

impl Access {
    pub fn new(store: Arc<dyn Store>, events: Events, folder: String) -> Self {
        let shared = Shared {
            store,
            events,
            folder,
            state: watch::Sender::new(State::Works { examined_at: None }),
            witnesses: Mutex::default(),
            unanswered: AtomicU64::new(0),
            answered: AtomicU64::new(0),
            isolated: Mutex::default(),
            heals: AtomicU64::new(0),
        };
        Self { shared: Arc::new(shared), probe: Mutex::default() }
    }

    /// What is known at block `head`, after something could not be read. If nothing is known, starts a probe, once per
    /// block.
    pub fn examine(&self, head: u64) -> Finding {
        self.examine_since(head, head)
    }

    /// The same, where a probe that was asked for at block `oldest` is good enough.
    fn examine_since(&self, oldest: u64, head: u64) -> Finding {
        let state = self.shared.state.borrow().clone();
        match state {
            State::Broken { cause } => Finding::Broken { cause },
            State::Probing => Finding::Unknown,
            State::Works { examined_at: Some(at) } if at >= oldest => Finding::Works,
            State::Works { .. } => {
                // This wakes nobody: there is no result yet.
                self.shared.state.send_if_modified(|state| {
                    *state = State::Probing;
                    false
                });
                let mut probe = lock(&self.probe);
                *probe = JoinSet::new();
                probe.spawn(probe_until_it_works(self.shared.clone(), head));
                Finding::Unknown
            }
        }
    }

    /// The same, after waiting for the probe for a fraction of a block. What a slower probe says counts in the next
    /// block, too: else a slow bucket could keep a node from ever finding out.
    pub async fn find_out(&self, head: u64) -> Finding {
        let mut news = self.news();
        let found = async {
            loop {
                match self.examine_since(head.saturating_sub(1), head) {
                    Finding::Unknown => news.next().await,
                    finding => return finding,
                }
            }
        };
        tokio::time::timeout(LOOP_PATIENCE, found).await.unwrap_or(Finding::Unknown)
    }

    /// Why this node cannot judge others at the moment, if so: its access is broken, or it is isolated.
    pub fn doubt(&self) -> Option<String> {
        self.broken().or_else(|| lock(&self.shared.isolated).as_ref().map(|isolation| isolation.cause.clone()))
    }

    /// Notes, and tells once, that nobody but the own bucket answers. It ends with the first answer of somebody else.
    pub async fn isolate(&self, cause: String) {
        let cause = format!("of the buckets that it needs, none but its own answers: {cause}");
        {
            let mut isolated = lock(&self.shared.isolated);
            if isolated.is_some() {
                return;
            }
            *isolated = Some(Isolation { since: Instant::now(), cause: cause.clone() });
        }
        self.shared.events.emit(Event::Trouble { trouble: Trouble::OwnStorage { cause } }).await;
    }

    /// Why this node waits for its own access, if it does. Until then operations say nothing about other nodes.
    pub fn broken(&self) -> Option<String> {
        match &*self.shared.state.borrow() {
            State::Broken { cause } => Some(cause.clone()),
            _ => None,
        }
    }

    /// What became of operations up to now.
    pub fn tally(&self) -> Tally {
        let Shared { unanswered, answered, .. } = &*self.shared;
        Tally { unanswered: unanswered.load(Ordering::Relaxed), answered: answered.load(Ordering::Relaxed) }
    }

    /// How often the access has come back.
    pub fn heals(&self) -> u64 {
        self.shared.heals.load(Ordering::Relaxed)
    }

    /// Learns from the result of a read.
    pub async fn note<T: Sync>(&self, from: &BucketLocator, key: &str, result: &Result<T, StoreError>) {
        let is_other = from != self.shared.store.own();
        match result {
            Ok(_) if is_other => {
                self.remember(from, key);
                self.shared.note_answer().await;
            }
            Err(error) if !is_answer(error) => self.note_silence(),
            Err(_) if is_other => self.shared.note_answer().await,
            _ => {}
        }
    }

    /// Whom to ask later whether anybody answers.
    fn remember(&self, from: &BucketLocator, key: &str) {
        let mut witnesses = lock(&self.shared.witnesses);
        witnesses.retain(|(bucket, _)| bucket != from);
        witnesses.push_back((from.clone(), key.to_owned()));
        if witnesses.len() > WITNESSES_MAX {
            witnesses.pop_front();
        }
    }

    /// Learns that an operation was given up before there was an answer.
    pub fn note_silence(&self) {
        self.shared.unanswered.fetch_add(1, Ordering::Relaxed);
    }

    /// Notifies the node of changes.
    pub fn news(&self) -> News {
        News(self.shared.state.subscribe())
    }
}

/// Changes in what is known of this node's own access.
#[derive(Debug)]
pub struct News(watch::Receiver<State>);

impl News {
    /// Ends at the next change; waits for ever if its sender is gone. Dropping it loses nothing.
    pub async fn next(&mut self) {
        if self.0.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

/// Whether a bucket's own service has answered. A refusal does not count: this node's own wrong clock or wrong
/// credential is refused as well.
pub fn is_answer(error: &StoreError) -> bool {
    matches!(error, StoreError::NotFound { .. } | StoreError::TooLarge { .. })
}

async fn probe_until_it_works(shared: Arc<Shared>, head: u64) {
    let Err(cause) = shared.reach().await else {
        shared.state.send_replace(State::Works { examined_at: Some(head) });
        return;
    };
    let since = Instant::now();
    shared.events.emit(Event::Trouble { trouble: Trouble::OwnStorage { cause: cause.clone() } }).await;
    shared.state.send_replace(State::Broken { cause });
    let mut pause = PAUSE_MIN;
    loop {
        tokio::time::sleep(pause).await;
        if shared.reach().await.is_ok() {
            break;
        }
        pause = (2 * pause).min(PAUSE_MAX);
    }
    shared.events.emit(Event::StorageBack { after_s: since.elapsed().as_secs_f64() }).await;
    shared.heals.fetch_add(1, Ordering::Relaxed);
    // Whether other buckets serve this node has to be seen again.
    shared.state.send_replace(State::Works { examined_at: None });
}

impl Shared {
    async fn note_answer(&self) {
        self.answered.fetch_add(1, Ordering::Relaxed);
        let isolation = lock(&self.isolated).take();
        if let Some(Isolation { since, .. }) = isolation {
            self.events.emit(Event::StorageBack { after_s: since.elapsed().as_secs_f64() }).await;
        }
    }

    /// Asks this node's own bucket, and at the same time whether any other answers. Returns what is wrong with its own.
    async fn reach(&self) -> Result<(), String> {
        let own = pin!(in_time(self.store.list(&self.folder, 1)));
        let others = pin!(self.is_any_witness_there());
        let (own, others) = match select(own, others).await {
            Either::Left((own, others)) => (own, Either::Left(others)),
            Either::Right((true, own)) => {
                let own = tokio::time::timeout(OWN_GRACE, own).await;
                (own.ok().flatten(), Either::Right(true))
            }
            Either::Right((false, own)) => (own.await, Either::Right(false)),
        };
        let cause = match own {
            Some(Ok(_)) => return Ok(()),
            // This node itself is at fault, such as its clock, whatever others answer. Only their answers distinguish a
            // credential without the right to list from an invalid one.
            Some(Err(error)) if !error.is_transient() && !matches!(error, StoreError::Denied { .. }) => {
                return Err(error.to_string());
            }
            // No other bucket has served this node so far, so none can show that the credential lacks only the right to
            // list.
            Some(Err(StoreError::Denied { .. })) if lock(&self.witnesses).is_empty() => return Ok(()),
            Some(Err(error)) => error.to_string(),
            None => format!("its own bucket does not answer within {} s", PROBE_PATIENCE.as_secs()),
        };
        let is_any_there = match others {
            Either::Left(asked) => asked.await,
            Either::Right(found) => found,
        };
        if is_any_there { Ok(()) } else { Err(cause) }
    }

    async fn is_any_witness_there(&self) -> bool {
        let witnesses = lock(&self.witnesses).clone();
        // One byte at most: larger objects are not downloaded, and only their existence matters.
        let mut answers: FuturesUnordered<_> =
            witnesses.iter().map(|(bucket, key)| in_time(self.store.get(bucket, key, 1))).collect();
        // The first one settles it: another that hangs is not waited for.
        while let Some(answer) = answers.next().await {
            if answer.is_some_and(|answer| answer.map_or_else(|error| is_answer(&error), |_| true)) {
                return true;
            }
        }
        false
    }
}

async fn in_time<T>(answer: impl Future<Output = T>) -> Option<T> {
    tokio::time::timeout(PROBE_PATIENCE, answer).await.ok()
}

/// No state is left half-changed under these locks.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

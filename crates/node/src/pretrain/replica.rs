//! A node's copy of the replicated state: θ and the [`RunState`] that names it, advanced by certificates alone.

mod settle;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use templar_protocol::assignment::Cursor;
use templar_protocol::certificate::{Ballots, Certificate, certified_root};
use templar_protocol::hash::Hash32;
use templar_protocol::inputs::WindowInputs;
use templar_protocol::standing::Standing;
use templar_protocol::state::RunState;

use crate::frame::context::Context;
use crate::frame::error::NodeError;
use crate::frame::local::Local;
use crate::pretrain::checkpoint::{self, Backoff};
use crate::pretrain::fetch::Opened;
use crate::pretrain::state::State;
use crate::pretrain::window::{Window, participants};
use templar_record::event::{Event, Source};
use templar_record::trouble::{LocalPart, Trouble};

/// How far back to look for a certified state, in periods of checkpoints. Validators keep three checkpoints, and each
/// window costs a few reads of the chain.
const SEARCH_PERIODS: u64 = 8;

/// A window that was just settled.
#[derive(Debug)]
pub struct Settled {
    pub window: Window,
    pub certificate: Certificate,
    /// Whether the outer step was taken, or withheld because an accepted payload could not be had.
    pub is_applied: bool,
    /// What the validators of the roster said, as of the vote deadline.
    pub ballots: Ballots,
    /// What all of it follows from.
    pub inputs: WindowInputs,
    /// θ that the window's contributions were trained from, if this node still has it.
    pub base_theta: Option<Arc<Vec<f32>>>,
}

/// What [`Replica::advance`] did.
#[derive(Debug)]
pub enum Advance {
    /// Nothing is due, or what it takes is not here yet.
    Nothing,
    Settled(Box<Settled>),
    /// A payload that could not be had has come after all: the states since are void, and its window is settled anew.
    WentBack,
}

/// A window that was settled without its accepted contributions, and the states before it: if what it lacks comes before the
/// votes decide, the node stands there again.
#[derive(Debug)]
struct Withheld {
    window: u64,
    recent: VecDeque<State>,
    older: Option<RunState>,
    /// The block at which what it lacks was last asked for.
    asked_at: u64,
}

/// The recent states of one node, newest last.
#[derive(Debug)]
pub struct Replica {
    recent: VecDeque<State>,
    /// The state before the first of `recent`, without its θ: with a delay of one window, the state from
    /// which the next window to settle starts.
    older: Option<RunState>,
    /// Contributions fetched for a window that could not be settled yet, by the hash of their headers.
    fetched: BTreeMap<Hash32, Arc<Opened>>,
    /// The window whose outer step was withheld last, until the votes decide which state it is.
    withheld: Option<Withheld>,
    /// What the outer steps to recent states applied, by the number of windows settled, as far as it is known: a vote
    /// proves that its voter holds it.
    applied: BTreeMap<u64, Vec<Arc<Opened>>>,
    /// Who served false checkpoints, and until when it is left alone.
    backoff: Backoff,
    /// The window whose malformed votes and buckets were last reported: a window that cannot be settled is tried
    /// repeatedly.
    told: Option<u64>,
}

impl Replica {
    /// The newest complete state on the local disk, or a newer checkpoint if the network is far ahead of it. θ₀, which
    /// may be a long download, is made only where neither is to be had.
    pub async fn open(ctx: &Context, local: &mut Local) -> Result<Self, NodeError> {
        let stored = Self::from_disk(ctx, local).await?;
        let head = ctx.chain.head().await?.number;
        let settled = stored.as_ref().map_or(0, |replica| replica.newest().run.settled);
        let behind = newest_voted_window(ctx, head).saturating_sub(settled);
        if behind > ctx.spec.windows.checkpoint_every_windows {
            let mut backoff = Backoff::new();
            match find(ctx, local, &mut backoff, head).await {
                Ok(found) => {
                    found.tell(ctx).await;
                    return Ok(Self { backoff, ..Self::from_state(found.state, found.previous) });
                }
                Err(error) if error.is_fatal() => return Err(error),
                Err(error) => tracing::info!(%error, "no checkpoint: every window since is replayed"),
            }
        }
        match stored {
            Some(replica) => Ok(replica),
            None => Ok(Self::from_state(State::genesis(ctx).await?, None)),
        }
    }

    async fn from_disk(ctx: &Context, local: &mut Local) -> Result<Option<Self>, NodeError> {
        let stored = local.states(ctx.run)?;
        for run in &stored {
            match local.theta(run, ctx.codec.layout()) {
                Ok(theta) => {
                    let state = State { run: run.clone(), theta: Arc::new(theta) };
                    return Ok(Some(Self::from_state(state, before(ctx, run, &stored))));
                }
                Err(damage) => {
                    let what = LocalPart::Theta { settled: run.settled };
                    ctx.trouble(Trouble::LocalDamage { what, cause: damage.cause }).await;
                }
            }
        }
        Ok(None)
    }

    fn from_state(state: State, older: Option<RunState>) -> Self {
        let recent = VecDeque::from([state]);
        Self {
            recent,
            older,
            fetched: BTreeMap::new(),
            withheld: None,
            applied: BTreeMap::new(),
            backoff: Backoff::new(),
            told: None,
        }
    }

    pub fn newest(&self) -> &State {
        self.recent.back().expect("a replica always has a state")
    }

    /// The state that `window` starts from, if this node has it already and still.
    pub fn base(&self, ctx: &Context, window: u64) -> Option<&State> {
        let settled = ctx.schedule.settled_before(window);
        self.recent.iter().find(|state| state.run.settled == settled)
    }

    /// The state before the newest.
    pub fn previous(&self) -> Option<&RunState> {
        let nth = self.recent.len().checked_sub(2);
        nth.map_or(self.older.as_ref(), |nth| Some(&self.recent[nth].run))
    }

    /// A window as this node's states give it. Fails if the state that it starts from is not at hand.
    pub async fn window(&self, ctx: &Context, number: u64) -> Result<Window, NodeError> {
        let base = self.run_of(ctx.schedule.settled_before(number)).ok_or(NodeError::NoBase { window: number })?;
        let cursor = self.cursor(ctx, number).await?;
        Window::load(ctx, number, base, cursor).await
    }

    /// Where all windows before `number` end in the samples. With a delay of one window the one before it may not be
    /// settled yet; its candidates are known all the same.
    async fn cursor(&self, ctx: &Context, number: u64) -> Result<Cursor, NodeError> {
        if let Some(run) = self.run_of(number) {
            return Ok(run.cursor);
        }
        let newest = &self.newest().run;
        let base = self.run_of(ctx.schedule.settled_before(newest.settled));
        let base = base.filter(|_| number == newest.settled + 1).ok_or(NodeError::NoBase { window: number })?;
        let before = Window::load(ctx, newest.settled, base, newest.cursor).await?;
        Ok(before.assignment.next_cursor())
    }

    /// The state after `settled` windows, if this node has it.
    fn run_of(&self, settled: u64) -> Option<&RunState> {
        self.recent.iter().map(|state| &state.run).chain(&self.older).find(|run| run.settled == settled)
    }

    /// The contributions that the outer step to the state after `settled` windows applied, as far as they are known.
    pub fn applied(&self, settled: u64) -> &[Arc<Opened>] {
        self.applied.get(&settled).map_or(&[], Vec::as_slice)
    }

    /// Lets go of the payloads that recent states applied: a miner proves nothing with them.
    pub fn forget_applied(&mut self) {
        self.applied.clear();
    }

    /// Keeps the present state, the one before it, from which late contributions were trained, and with a delay of one
    /// window the one from which windows start.
    fn push(&mut self, ctx: &Context, state: State) {
        self.recent.push_back(state);
        while self.recent.len() > 2 + ctx.spec.windows.delay_windows as usize {
            self.older = self.recent.pop_front().map(|state| state.run);
        }
    }

    /// Takes over the newest available certified state. Replaying from there to the head is [`Replica::advance`]'s work.
    pub async fn resynchronise(&mut self, ctx: &Context, local: &mut Local, head: u64) -> Result<(), NodeError> {
        let found = find(ctx, local, &mut self.backoff, head).await?;
        found.tell(ctx).await;
        (self.recent, self.older) = (VecDeque::from([found.state]), found.previous);
        self.withheld = None;
        self.applied.clear();
        self.fetched.clear();
        Ok(())
    }
}

/// A state to go on from, and the one before it.
struct Found {
    state: State,
    previous: Option<RunState>,
    from: Source,
}

impl Found {
    async fn tell(&self, ctx: &Context) {
        let (settled, state_root) = (self.state.run.settled, self.state.run.theta_root);
        ctx.emit(Event::Adopted { settled, state_root, from: self.from }).await;
    }
}

/// The newest available certified state: from the local disk if one of its states is certified, else from a validator's
/// checkpoint, else θ₀ if the run is young.
async fn find(ctx: &Context, local: &mut Local, backoff: &mut Backoff, head: u64) -> Result<Found, NodeError> {
    if ctx.access.broken().is_some() {
        // No other state would be closer to the network's.
        return Err(NodeError::OwnStorage);
    }
    let asked = ctx.access.tally();
    let stored = local.states(ctx.run)?;
    let newest_window = newest_voted_window(ctx, head);
    let oldest = newest_window.saturating_sub(SEARCH_PERIODS * ctx.spec.windows.checkpoint_every_windows);
    for window in (oldest..newest_window).rev() {
        let (roster, ..) = participants(ctx, window).await?;
        let at_vote = ctx.snapshot(ctx.schedule.vote_deadline(window)).await?;
        let Some(root) = certified_root(window, &roster, &Standing::default(), &at_vote) else { continue };
        if let Some(run) = stored.iter().find(|run| run.digest() == root)
            && (run.settled == ctx.schedule.settled_before(run.settled) || before(ctx, run, &stored).is_some())
            && let Ok(theta) = local.theta(run, ctx.codec.layout())
        {
            let state = State { run: run.clone(), theta: Arc::new(theta) };
            return Ok(Found { state, previous: before(ctx, run, &stored), from: Source::Local });
        }
        let fetched = checkpoint::fetch(ctx, &roster, &root, newest_window, backoff, head).await?;
        if let Some((state, previous)) = fetched {
            return Ok(Found { state, previous, from: Source::Checkpoint });
        }
    }
    if ctx.is_isolated(asked).await {
        return Err(NodeError::OwnStorage);
    }
    if oldest > 0 {
        return Err(NodeError::NoCheckpoint { window: newest_window });
    }
    Ok(Found { state: State::genesis(ctx).await?, previous: None, from: Source::Genesis })
}

/// Windows before this one have had their vote.
fn newest_voted_window(ctx: &Context, head: u64) -> u64 {
    let at = ctx.schedule.window_at(head).map_or(0, |window| window + 1);
    (0..at).rev().find(|&window| ctx.schedule.vote_deadline(window) <= head).map_or(0, |window| window + 1)
}

/// The state before `run` among those stored.
fn before(ctx: &Context, run: &RunState, stored: &[RunState]) -> Option<RunState> {
    let genesis = [RunState::genesis(&ctx.spec)];
    stored.iter().chain(&genesis).find(|older| older.digest() == run.previous).cloned()
}

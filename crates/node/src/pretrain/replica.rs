//! A node's copy of the replicated state: θ and the [`RunState`] that names it, advanced by certificates alone.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use futures::StreamExt;
use templar_codec::outer_step;
use templar_protocol::certificate::{Certificate, Outcome, certified_root, certify, read_ballots};
use templar_protocol::hash::Hash32;
use templar_protocol::roster::{EntryId, Roster, Uid};
use templar_protocol::state::RunState;
use templar_protocol::word::{Ballots, WordError};

use crate::frame::context::Context;
use crate::frame::error::NodeError;
use crate::frame::local::Local;
use crate::pretrain::checkpoint::{self, Backoff};
use crate::pretrain::fetch::{self, Location, Opened, PARALLEL_FETCHES};
use crate::pretrain::state::State;
use crate::pretrain::window::{Window, committed_header, participants};
use templar_protocol::fault::BucketFault;
use templar_record::event::{Event, Source, Verdict};
use templar_record::trouble::{LocalPart, Trouble};

/// How far back to look for a certified state, in periods of checkpoints. Validators keep three checkpoints, and each
/// window costs a few reads of the chain.
const SEARCH_PERIODS: u64 = 8;

/// A window that was just settled.
#[derive(Debug)]
pub struct Settled {
    pub window: Window,
    pub certificate: Certificate,
    /// The votes of the validators of the roster, as of the vote deadline.
    pub ballots: Ballots,
    /// θ that the window's contributions were trained from, if this node still has it.
    pub base_theta: Option<Arc<Vec<f32>>>,
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
    /// Validators that served false checkpoints, and until when they are left alone.
    backoff: Backoff,
    /// The window whose malformed votes and buckets were last reported: a window that cannot be settled is tried
    /// repeatedly.
    told: Option<u64>,
}

impl Replica {
    /// The newest complete state on the local disk, else θ₀; a newer checkpoint if the network is far ahead of it.
    pub async fn open(ctx: &Context, local: &mut Local) -> Result<Self, NodeError> {
        let mut replica = Self::from_disk(ctx, local).await?;
        let head = ctx.chain.head().await?.number;
        let behind = newest_voted_window(ctx, head).saturating_sub(replica.newest().run.settled);
        if behind > ctx.spec.windows.checkpoint_every_windows
            && let Err(error) = replica.resynchronise(ctx, local, head).await
        {
            tracing::info!(%error, "no checkpoint: every window since is replayed");
        }
        Ok(replica)
    }

    async fn from_disk(ctx: &Context, local: &mut Local) -> Result<Self, NodeError> {
        let stored = local.states(ctx.run)?;
        for run in &stored {
            match local.theta(run, ctx.codec.layout()) {
                Ok(theta) => {
                    let state = State { run: run.clone(), theta: Arc::new(theta) };
                    return Ok(Self::from_state(state, before(ctx, run, &stored)));
                }
                Err(damage) => {
                    let what = LocalPart::Theta { settled: run.settled };
                    ctx.trouble(Trouble::LocalDamage { what, cause: damage.cause }).await;
                }
            }
        }
        Ok(Self::from_state(State::genesis(ctx).await?, None))
    }

    fn from_state(state: State, older: Option<RunState>) -> Self {
        let recent = VecDeque::from([state]);
        Self { recent, older, fetched: BTreeMap::new(), backoff: Backoff::new(), told: None }
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

    /// Settles the next window if its vote deadline is at or before `head`. `opened` is what this node has opened
    /// itself; the rest is fetched from nodes that serve it.
    pub async fn advance(
        &mut self,
        ctx: &Context,
        head: u64,
        opened: &[Arc<Opened>],
    ) -> Result<Option<Settled>, NodeError> {
        let number = self.newest().run.settled;
        if ctx.schedule.vote_deadline(number) > head {
            return Ok(None);
        }
        let base = self.base(ctx, number).cloned();
        let base_run = base.as_ref().map(|state| &state.run).or(self.older.as_ref());
        let base_run = base_run.filter(|run| run.settled == ctx.schedule.settled_before(number));
        let window = Window::load(ctx, number, base_run.ok_or(NodeError::NoBase { window: number })?).await?;
        let at_vote = ctx.snapshot(ctx.schedule.vote_deadline(number)).await?;
        let ballots = read_ballots(number, &window.roster, window.candidates.len(), &at_vote);
        if self.told.replace(number) != Some(number) {
            emit_misvotes(ctx, number, &ballots).await;
            emit_unlisted(ctx, &window).await;
        }
        let certificate = certify(number, &window.roster, &window.candidates, ctx.spec.roster.gather, &ballots);
        // A node whose exclusions differ has other candidates and finds the others' bitmaps malformed, so that its own
        // vote may even seem to be the only one; but it can still compare the others' roots.
        let roots = [certified_root(number, &window.roster, &at_vote), certificate.root()];
        if let Some(certified) = roots.into_iter().flatten().find(|root| *root != window.base_digest) {
            ctx.emit(Event::Diverged { window: number, own: window.base_digest, certified }).await;
            return Err(NodeError::Diverged { window: number });
        }
        let contributions = self.collect(ctx, head, &window, &certificate, opened).await?;
        let stepped = self.step(ctx, &window, &certificate, &contributions).await;
        self.push(ctx, stepped);
        self.fetched.clear();
        emit_settled(ctx, &certificate, &contributions, self.newest()).await;
        Ok(Some(Settled { window, certificate, ballots, base_theta: base.map(|state| state.theta) }))
    }

    async fn step(
        &self,
        ctx: &Context,
        window: &Window,
        certificate: &Certificate,
        contributions: &[Arc<Opened>],
    ) -> State {
        let newest = self.newest();
        let cursor = window.assignment.next_cursor();
        if contributions.is_empty() {
            let run = newest.run.settle(&ctx.spec, certificate, cursor, newest.run.theta_root);
            return State { run, theta: newest.theta.clone() };
        }
        let (mut theta, contributions) = (newest.theta.to_vec(), contributions.to_vec());
        let (codec, outer) = (ctx.codec.clone(), ctx.spec.outer.clone());
        let work = move || {
            let parts: Vec<_> = contributions.iter().map(|opened| &opened.contribution).collect();
            outer_step(codec.layout(), &mut theta, &parts, &outer);
            let root = codec.layout().state_root(&theta);
            (theta, root)
        };
        let (theta, root) = ctx.compute.run(work).await;
        State { run: newest.run.settle(&ctx.spec, certificate, cursor, root), theta: Arc::new(theta) }
    }

    /// Keeps the present state, the one before it, from which late contributions were trained, and with a delay of one
    /// window the one from which windows start.
    fn push(&mut self, ctx: &Context, state: State) {
        self.recent.push_back(state);
        while self.recent.len() > 2 + ctx.spec.windows.delay_windows as usize {
            self.recent.pop_front();
        }
    }

    /// Takes over the newest available certified state: from the local disk if one of its states is certified,
    /// else from a validator's checkpoint, else θ₀ if the run is young. Replaying from there to the head is
    /// [`Replica::advance`]'s work.
    pub async fn resynchronise(&mut self, ctx: &Context, local: &mut Local, head: u64) -> Result<(), NodeError> {
        if ctx.access.broken().is_some() {
            // No other state would be closer to the network's.
            return Err(NodeError::OwnStorage);
        }
        let asked = ctx.access.tally();
        let stored = local.states(ctx.run)?;
        let newest_window = newest_voted_window(ctx, head);
        let oldest = newest_window.saturating_sub(SEARCH_PERIODS * ctx.spec.windows.checkpoint_every_windows);
        for window in (oldest..newest_window).rev() {
            let (roster, _) = participants(ctx, window).await?;
            let at_vote = ctx.snapshot(ctx.schedule.vote_deadline(window)).await?;
            let Some(root) = certified_root(window, &roster, &at_vote) else { continue };
            if let Some(run) = stored.iter().find(|run| run.digest() == root)
                && (run.settled == ctx.schedule.settled_before(run.settled) || before(ctx, run, &stored).is_some())
                && let Ok(theta) = local.theta(run, ctx.codec.layout())
            {
                let state = State { run: run.clone(), theta: Arc::new(theta) };
                self.adopt(ctx, state, before(ctx, run, &stored), Source::Local).await;
                return Ok(());
            }
            if let Some((state, previous)) =
                checkpoint::fetch(ctx, &roster, &root, newest_window, &mut self.backoff, head).await?
            {
                self.adopt(ctx, state, previous, Source::Checkpoint).await;
                return Ok(());
            }
        }
        if ctx.is_isolated(asked).await {
            return Err(NodeError::OwnStorage);
        }
        if oldest > 0 {
            return Err(NodeError::NoCheckpoint { window: newest_window });
        }
        let genesis = State::genesis(ctx).await?;
        self.adopt(ctx, genesis, None, Source::Genesis).await;
        Ok(())
    }

    /// The certified contributions, in the order of the certificate: opened by this node itself, or fetched from
    /// nodes that serve them. Those that arrive while others fail are kept for the next attempt.
    async fn collect(
        &mut self,
        ctx: &Context,
        head: u64,
        window: &Window,
        certificate: &Certificate,
        opened: &[Arc<Opened>],
    ) -> Result<Vec<Arc<Opened>>, NodeError> {
        if certificate.accepted().is_empty() {
            return Ok(Vec::new());
        }
        let at_put = ctx.snapshot(ctx.schedule.put_deadline(window.number)).await?;
        let gone = |entry: &EntryId| NodeError::ContributionGone { window: window.number, uid: entry.uid.0 };
        let committed = certificate.accepted().iter().map(|entry| {
            committed_header(window.number, entry, &at_put).map(|header| (*entry, header)).ok_or_else(|| gone(entry))
        });
        let committed: Vec<(EntryId, Hash32)> = committed.collect::<Result<_, _>>()?;
        let own = opened.iter().map(|opened| (opened.header.header.hash(), opened.clone()));
        self.fetched.extend(own.filter(|(header, _)| committed.iter().any(|(_, wanted)| wanted == header)));
        let missing: Vec<_> = committed.iter().filter(|(_, header)| !self.fetched.contains_key(header)).collect();
        if !missing.is_empty() && ctx.access.broken().is_some() {
            return Err(NodeError::OwnStorage);
        }
        let before = ctx.access.tally();
        let fetch = |(entry, header): &(EntryId, Hash32)| {
            let (locations, header) = (locations(ctx, window, entry, header), *header);
            async move { (header, fetch::certified(ctx, &locations, &header).await) }
        };
        let fetches: Vec<_> = missing.into_iter().map(fetch).collect();
        let mut fetches = futures::stream::iter(fetches).buffer_unordered(PARALLEL_FETCHES);
        while let Some((header, found)) = fetches.next().await {
            self.fetched.extend(found.map(|opened| (header, opened)));
        }
        let is_whole = committed.iter().all(|(_, header)| self.fetched.contains_key(header));
        // An object is gone if a bucket says so. If nobody answers, it may be there, and this node may be cut off.
        if !is_whole && ctx.is_cut_off(head, before).await {
            return Err(NodeError::OwnStorage);
        }
        // Once there must be a later checkpoint, that is looked for: whoever served this window may be gone for good.
        let behind = newest_voted_window(ctx, head).saturating_sub(window.number);
        let is_recent = behind <= ctx.spec.windows.checkpoint_every_windows;
        if !is_whole && is_recent && ctx.is_isolated(before).await {
            return Err(NodeError::OwnStorage);
        }
        let found =
            committed.iter().map(|(entry, header)| self.fetched.get(header).cloned().ok_or_else(|| gone(entry)));
        found.collect()
    }

    async fn adopt(&mut self, ctx: &Context, state: State, previous: Option<RunState>, from: Source) {
        let (settled, state_root) = (state.run.settled, state.run.theta_root);
        (self.recent, self.older) = (VecDeque::from([state]), previous);
        self.fetched.clear();
        ctx.emit(Event::Adopted { settled, state_root, from }).await;
    }
}

/// The vote deadlines of windows before this one are past.
fn newest_voted_window(ctx: &Context, head: u64) -> u64 {
    let at = ctx.schedule.window_at(head).map_or(0, |window| window + 1);
    (0..at).rev().find(|&window| ctx.schedule.vote_deadline(window) <= head).map_or(0, |window| window + 1)
}

/// The state before `run` among those stored.
fn before(ctx: &Context, run: &RunState, stored: &[RunState]) -> Option<RunState> {
    let genesis = [RunState::genesis(&ctx.spec)];
    stored.iter().chain(&genesis).find(|older| older.digest() == run.previous).cloned()
}

/// The miner's bucket first, then those of the validators, who promised to serve what they voted for; the own one last.
fn locations(ctx: &Context, window: &Window, entry: &EntryId, committed: &Hash32) -> Vec<Location> {
    let miner = window.roster.miner(entry).map(|miner| Location::of_miner(ctx, miner, window.number));
    let holder = |roster: &Roster| -> Vec<Location> {
        let validators = roster.validators.iter();
        validators.map(|holder| Location::of_holder(ctx, holder, window.number, committed)).collect()
    };
    let mut locations: Vec<Location> = miner.into_iter().chain(holder(&window.roster)).collect();
    locations.sort_by_key(|location| location.bucket == *ctx.store.own());
    locations
}

/// Validators whose votes do not count, and why. Those that have not voted on this window are left out: their newest vote
/// stays on the chain until they replace it.
async fn emit_misvotes(ctx: &Context, window: u64, ballots: &Ballots) {
    for (entry, ballot) in ballots {
        let has_not_voted = |error: &WordError| match error {
            WordError::Absent => true,
            WordError::Window { found, expected } => found < expected,
            _ => false,
        };
        if let Err(error) = ballot
            && !has_not_voted(error)
        {
            let (uid, fault, cause) = (entry.uid, (*error).into(), error.to_string());
            ctx.emit(Event::Misvoted { window, uid, fault, cause }).await;
        }
    }
}

async fn emit_unlisted(ctx: &Context, window: &Window) {
    for (entry, error) in &window.roster.malformed {
        let (window, uid, cause) = (window.number, entry.uid, error.to_string());
        ctx.emit(Event::Unlisted { window, uid, fault: BucketFault::Malformed, cause }).await;
    }
}

async fn emit_settled(ctx: &Context, certificate: &Certificate, contributions: &[Arc<Opened>], newest: &State) {
    let uids = |entries: &[EntryId]| entries.iter().map(|entry| entry.uid).collect::<Vec<Uid>>();
    let verdict = match &certificate.outcome {
        Outcome::Certified { accepted, excluded, .. } => {
            Verdict::Certified { accepted: uids(accepted), excluded: uids(excluded) }
        }
        Outcome::Null(reason) => (*reason).into(),
    };
    let payload_bytes = contributions.iter().map(|opened| opened.ciphertext.len() as u64).sum();
    let values = contributions.iter().map(|opened| opened.contribution.values_sent()).sum();
    let tokens = contributions.iter().fold(0u64, |sum, opened| sum.saturating_add(opened.header.header.tokens));
    let state_root = newest.run.theta_root;
    ctx.emit(Event::Settled { window: certificate.window, verdict, state_root, payload_bytes, values, tokens }).await;
}

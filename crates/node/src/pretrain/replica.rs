//! A node's copy of the replicated state: θ and the [`RunState`] that names it, advanced by certificates alone.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use futures::StreamExt;
use templar_codec::outer_step;
use templar_protocol::assignment::Cursor;
use templar_protocol::certificate::{Certificate, Outcome, certified_root, certify, read_ballots};
use templar_protocol::hash::Hash32;
use templar_protocol::inputs::WindowInputs;
use templar_protocol::roster::{EntryId, Roster, Snapshot, Uid};
use templar_protocol::state::{OuterStep, RunState, Settlement};
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
    /// Whether the outer step was taken, or withheld because an accepted payload could not be had.
    pub is_applied: bool,
    /// What the validators of the roster said, as of the vote deadline.
    pub ballots: Ballots,
    /// θ that the window's contributions were trained from, if this node still has it.
    pub base_theta: Option<Arc<Vec<f32>>>,
}

/// A window as the chain decides it.
struct Decided {
    window: Window,
    certificate: Certificate,
    ballots: Ballots,
    at_put: Snapshot,
    at_vote: Snapshot,
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

/// The recent states of one node, newest last.
#[derive(Debug)]
pub struct Replica {
    recent: VecDeque<State>,
    /// The state before the first of `recent`, without its θ: with a delay of one window, the state from
    /// which the next window to settle starts.
    older: Option<RunState>,
    /// Contributions fetched for a window that could not be settled yet, by the hash of their headers.
    fetched: BTreeMap<Hash32, Arc<Opened>>,
    /// The window whose outer step was withheld last, as long as the network may decide otherwise, and the block at which
    /// what it lacks was last asked for.
    withheld: Option<(u64, u64)>,
    /// What the outer step to the newest state applied, as far as it is known: a vote proves that its voter holds it.
    applied: Option<Vec<Arc<Opened>>>,
    /// Who served false checkpoints, and until when it is left alone.
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
        Self {
            recent,
            older,
            fetched: BTreeMap::new(),
            withheld: None,
            applied: None,
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

    /// Settles the next window if its vote deadline is at or before `head`. `opened` is what this node has opened
    /// itself; the rest is fetched from nodes that serve it.
    pub async fn advance(&mut self, ctx: &Context, head: u64, opened: &[Arc<Opened>]) -> Result<Advance, NodeError> {
        if self.go_back(ctx, head).await? {
            return Ok(Advance::WentBack);
        }
        let number = self.newest().run.settled;
        if ctx.schedule.vote_deadline(number) > head {
            return Ok(Advance::Nothing);
        }
        let base_theta = self.base(ctx, number).map(|state| state.theta.clone());
        let Decided { window, certificate, ballots, at_put, at_vote } = self.decided(ctx, number).await?;
        if self.told.replace(number) != Some(number) {
            emit_misvotes(ctx, number, &ballots).await;
            emit_unlisted(ctx, &window).await;
        }
        // A node whose standing differs has other candidates and finds the others' bitmaps malformed, so that a vote of
        // its own may even seem to be all there is; the others' roots speak to it all the same.
        let roots = [certified_root(number, &window.roster, &at_vote), certificate.root()];
        if let Some(certified) = roots.into_iter().flatten().find(|root| *root != window.base_digest) {
            ctx.emit(Event::Diverged { window: number, own: window.base_digest, certified }).await;
            return Err(NodeError::Diverged { window: number });
        }
        let inputs = WindowInputs::new(number, window.snapshot_hash, &window.roster, &at_put, &at_vote).digest();
        let cursor = window.assignment.next_cursor();
        let (roster, candidates) = (&window.roster, &window.candidates);
        let settlement = Settlement { roster, candidates, certificate: &certificate, cursor, inputs };
        let stepped = match self.collect(ctx, head, number, roster, &certificate, &at_put, opened).await {
            Ok(contributions) => Some((self.step(ctx, &settlement, &contributions).await, contributions)),
            Err(NodeError::ContributionGone { window, uid }) => {
                let run = self.newest().run.settle(&ctx.spec, &settlement, OuterStep::Withheld);
                match self.withholding(ctx, head, &run).await? {
                    Withholding::Wait => return Ok(Advance::Nothing),
                    Withholding::Refused => return Err(NodeError::ContributionGone { window, uid }),
                    Withholding::Allowed => {}
                }
                ctx.trouble(Trouble::Withheld { window, uid }).await;
                self.push(ctx, State { run, theta: self.newest().theta.clone() });
                self.withheld = Some((number, head));
                None
            }
            Err(error) => return Err(error),
        };
        let is_applied = stepped.is_some();
        let (stepped, contributions) = stepped.unzip();
        stepped.into_iter().for_each(|state| self.push(ctx, state));
        let contributions = contributions.unwrap_or_default();
        emit_settled(ctx, &certificate, is_applied, &contributions, self.newest()).await;
        self.applied = Some(contributions);
        self.fetched.clear();
        Ok(Advance::Settled(Box::new(Settled { window, certificate, is_applied, ballots, base_theta })))
    }

    /// Whether the state `withheld`, in which the newest window's contributions do not count because one of them cannot be
    /// had, may take the place of the one in which they do.
    ///
    /// Until the first window that starts from it begins, the payload may come. After that window's votes, they say which
    /// of the two states it is. In between nobody knows, and the run goes on without the payload.
    async fn withholding(&self, ctx: &Context, head: u64, withheld: &RunState) -> Result<Withholding, NodeError> {
        let next = withheld.settled + u64::from(ctx.spec.windows.delay_windows);
        if head < ctx.schedule.first_block(next) {
            return Ok(Withholding::Wait);
        }
        let decided_at = ctx.schedule.vote_deadline(next);
        if head < decided_at {
            return Ok(Withholding::Allowed);
        }
        let (roster, ..) = participants(ctx, next).await?;
        let root = certified_root(next, &roster, &ctx.snapshot(decided_at).await?);
        let is_refused = root.is_some_and(|root| root != withheld.digest());
        Ok(if is_refused { Withholding::Refused } else { Withholding::Allowed })
    }

    /// Asks again for what made this node withhold an outer step, until the votes have decided. If it has come, the node
    /// stands again before that window.
    async fn go_back(&mut self, ctx: &Context, head: u64) -> Result<bool, NodeError> {
        let Some((number, asked_at)) = self.withheld else { return Ok(false) };
        if asked_at == head {
            return Ok(false);
        }
        self.withheld = Some((number, head));
        let next = number + 1 + u64::from(ctx.spec.windows.delay_windows);
        let nth = self.recent.iter().position(|state| state.run.settled == number);
        let Some(nth) = nth.filter(|_| head < ctx.schedule.vote_deadline(next)) else {
            self.withheld = None;
            return Ok(false);
        };
        let all = self.recent.clone();
        self.recent.truncate(nth + 1);
        let found = self.find_again(ctx, head, number).await;
        if !matches!(found, Ok(true)) {
            self.recent = all;
            return Ok(false);
        }
        // What led to the newest state is not what led to the one after the withheld window.
        (self.withheld, self.applied) = (None, None);
        Ok(true)
    }

    /// Whether everything that `number`'s certificate accepts can be had by now. What comes is kept.
    async fn find_again(&mut self, ctx: &Context, head: u64, number: u64) -> Result<bool, NodeError> {
        let Decided { window, certificate, at_put, .. } = self.decided(ctx, number).await?;
        Ok(self.collect(ctx, head, number, &window.roster, &certificate, &at_put, &[]).await.is_ok())
    }

    /// What the chain says of a window whose vote deadline is past.
    async fn decided(&self, ctx: &Context, number: u64) -> Result<Decided, NodeError> {
        let window = self.window(ctx, number).await?;
        let at_put = ctx.snapshot(ctx.schedule.put_deadline(number)).await?;
        let at_vote = ctx.snapshot(ctx.schedule.vote_deadline(number)).await?;
        let ballots = read_ballots(number, &window.roster, window.candidates.len(), &at_vote);
        let (candidates, gather) = (&window.candidates, ctx.spec.roster.gather);
        let certificate = certify(number, &window.roster, candidates, &window.base.standing, gather, &ballots);
        Ok(Decided { window, certificate, ballots, at_put, at_vote })
    }

    /// What the outer step to the newest state applied, in the order of candidates. After a start or a state that was
    /// taken over it is fetched first.
    pub async fn applied(&mut self, ctx: &Context, head: u64) -> Result<&[Arc<Opened>], NodeError> {
        let newest = &self.newest().run;
        if self.applied.is_none() {
            let number = match (newest.settled.checked_sub(1), self.previous()) {
                (None, _) => None,
                // To guess that nothing was applied would be to prove nothing.
                (Some(window), None) => return Err(NodeError::NoBase { window }),
                (Some(window), Some(before)) => (newest.outer_steps > before.outer_steps).then_some(window),
            };
            let applied = match number {
                None => Vec::new(),
                Some(number) => {
                    let Decided { window, certificate, at_put, .. } = self.decided(ctx, number).await?;
                    self.collect(ctx, head, number, &window.roster, &certificate, &at_put, &[]).await?
                }
            };
            self.applied = Some(applied);
        }
        Ok(self.applied.as_deref().unwrap_or_default())
    }

    async fn step(&self, ctx: &Context, settlement: &Settlement<'_>, contributions: &[Arc<Opened>]) -> State {
        let newest = self.newest();
        if contributions.is_empty() {
            let taken = OuterStep::Taken { theta_root: newest.run.theta_root };
            return State { run: newest.run.settle(&ctx.spec, settlement, taken), theta: newest.theta.clone() };
        }
        let (mut theta, contributions) = (newest.theta.to_vec(), contributions.to_vec());
        let (codec, outer) = (ctx.codec.clone(), ctx.spec.outer.clone());
        let work = move || {
            let parts: Vec<_> = contributions.iter().map(|opened| &opened.contribution).collect();
            outer_step(codec.layout(), &mut theta, &parts, &outer);
            let root = codec.layout().state_root(&theta);
            (theta, root)
        };
        let (theta, theta_root) = ctx.compute.run(work).await;
        let run = newest.run.settle(&ctx.spec, settlement, OuterStep::Taken { theta_root });
        State { run, theta: Arc::new(theta) }
    }

    /// Keeps the present state, the one before it, from which late contributions were trained, and with a delay of one
    /// window the one from which windows start.
    fn push(&mut self, ctx: &Context, state: State) {
        self.recent.push_back(state);
        while self.recent.len() > 2 + ctx.spec.windows.delay_windows as usize {
            self.older = self.recent.pop_front().map(|state| state.run);
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
            let (roster, ..) = participants(ctx, window).await?;
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
        number: u64,
        roster: &Roster,
        certificate: &Certificate,
        at_put: &Snapshot,
        opened: &[Arc<Opened>],
    ) -> Result<Vec<Arc<Opened>>, NodeError> {
        if certificate.accepted().is_empty() {
            return Ok(Vec::new());
        }
        let gone = |entry: &EntryId| NodeError::ContributionGone { window: number, uid: entry.uid.0 };
        let committed = certificate.accepted().iter().map(|entry| {
            committed_header(number, entry, at_put).map(|header| (*entry, header)).ok_or_else(|| gone(entry))
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
            let (locations, header) = (locations(ctx, number, roster, entry, header), *header);
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
        let behind = newest_voted_window(ctx, head).saturating_sub(number);
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
        (self.withheld, self.applied) = (None, None);
        self.fetched.clear();
        ctx.emit(Event::Adopted { settled, state_root, from }).await;
    }
}

/// What to do about a window of which an accepted payload cannot be had.
enum Withholding {
    Wait,
    Allowed,
    /// The network has the payload, and this node needs a checkpoint.
    Refused,
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

/// The miner's bucket first, then those of the validators, who promised to serve what they voted for; the own one last.
fn locations(ctx: &Context, window: u64, roster: &Roster, entry: &EntryId, committed: &Hash32) -> Vec<Location> {
    let miner = roster.miner(entry).map(|miner| Location::of_miner(ctx, miner, window));
    let holders = roster.validators.iter().map(|holder| Location::of_holder(ctx, holder, window, committed));
    let mut locations: Vec<Location> = miner.into_iter().chain(holders).collect();
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

async fn emit_settled(
    ctx: &Context,
    certificate: &Certificate,
    is_applied: bool,
    contributions: &[Arc<Opened>],
    newest: &State,
) {
    let uids = |entries: &[EntryId]| entries.iter().map(|entry| entry.uid).collect::<Vec<Uid>>();
    let verdict = match &certificate.outcome {
        Outcome::Certified { accepted, .. } if !is_applied => Verdict::Withheld { accepted: uids(accepted) },
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

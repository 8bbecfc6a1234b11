//! From the chain's word on a window to the next state: who counts, where their payloads are, and what to do without them.

use std::sync::Arc;

use futures::StreamExt;
use templar_codec::outer_step;
use templar_protocol::certificate::{Ballots, Certificate, Outcome, certified_root, certify, read_ballots};
use templar_protocol::fault::BucketFault;
use templar_protocol::hash::Hash32;
use templar_protocol::inputs::WindowInputs;
use templar_protocol::roster::{EntryId, Roster, Snapshot, Uid};
use templar_protocol::standing::Standing;
use templar_protocol::state::{OuterStep, Settlement};
use templar_protocol::word::WordError;
use templar_record::event::{Event, Verdict};
use templar_record::trouble::Trouble;

use crate::frame::context::Context;
use crate::frame::error::NodeError;
use crate::pretrain::fetch::{self, Location, Opened, PARALLEL_FETCHES};
use crate::pretrain::replica::{Advance, Replica, Settled, Withheld, newest_voted_window};
use crate::pretrain::state::State;
use crate::pretrain::window::{Window, committed_header, participants};

/// A window as the chain decides it.
struct Decided {
    window: Window,
    certificate: Certificate,
    ballots: Ballots,
    at_put: Snapshot,
    at_vote: Snapshot,
    inputs: WindowInputs,
}

impl Replica {
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
        let decided = self.decided(ctx, number).await?;
        let Decided { window, certificate, ballots, at_vote, .. } = &decided;
        if self.told.replace(number) != Some(number) {
            emit_misvotes(ctx, number, ballots).await;
            emit_unlisted(ctx, window).await;
        }
        // A node whose standing differs has other candidates and finds the others' bitmaps malformed, so that its own vote
        // may even seem to be the only one; but it can still compare the others' roots.
        let roots = [certified_root(number, &window.roster, &window.base.standing, at_vote), certificate.root()];
        if let Some(certified) = roots.into_iter().flatten().find(|root| *root != window.base_digest) {
            ctx.emit(Event::Diverged { window: number, own: window.base_digest, certified }).await;
            return Err(NodeError::Diverged { window: number });
        }
        let Some((state, applied)) = self.next(ctx, head, &decided, opened).await? else {
            return Ok(Advance::Nothing);
        };
        let is_applied = applied.is_some();
        if is_applied {
            self.fetched.clear();
        } else {
            let (recent, older) = (self.recent.clone(), self.older.clone());
            self.withheld = Some(Withheld { window: number, recent, older, asked_at: head });
        }
        let delay = u64::from(ctx.spec.windows.delay_windows);
        if certificate.root().is_some() {
            self.withheld.take_if(|withheld| withheld.window + delay < number);
        }
        self.push(ctx, state);
        let contributions = applied.unwrap_or_default();
        emit_settled(ctx, certificate, is_applied, &contributions, self.newest()).await;
        self.applied.insert(number + 1, contributions);
        while self.applied.len() > 2 {
            self.applied.pop_first();
        }
        let Decided { window, certificate, ballots, inputs, .. } = decided;
        Ok(Advance::Settled(Box::new(Settled { window, certificate, is_applied, ballots, inputs, base_theta })))
    }

    /// The state after a window that is decided, and the contributions that it applies; without them if the outer step is
    /// withheld. None while a payload that nobody serves may still come.
    async fn next(
        &mut self,
        ctx: &Context,
        head: u64,
        decided: &Decided,
        opened: &[Arc<Opened>],
    ) -> Result<Option<(State, Option<Vec<Arc<Opened>>>)>, NodeError> {
        let Decided { window, certificate, inputs, .. } = decided;
        let (number, roster, candidates) = (window.number, &window.roster, &window.candidates);
        let inputs = inputs.digest();
        let cursor = window.assignment.next_cursor();
        let settlement = Settlement { roster, candidates, certificate, cursor, inputs };
        let withheld = self.newest().run.settle(&ctx.spec, &settlement, OuterStep::Withheld);
        let next = withheld.settled + u64::from(ctx.spec.windows.delay_windows);
        let root = self.root_of_votes(ctx, head, next, &withheld.standing).await?;
        // The votes have decided, whoever may have the payload by now.
        let is_decided = !certificate.accepted().is_empty() && root == Some(withheld.digest());
        let collected = if is_decided {
            Err(NodeError::ContributionGone { window: number, uid: certificate.accepted()[0].uid.0 })
        } else {
            self.collect(ctx, head, decided, opened).await
        };
        match collected {
            Ok(contributions) => {
                let state = self.step(ctx, &settlement, &contributions).await;
                Ok(Some((state, Some(contributions))))
            }
            // The network has the payload, and this node needs a checkpoint.
            Err(error @ NodeError::ContributionGone { .. }) if root.is_some() && !is_decided => Err(error),
            // Until the first window that starts from it begins, the payload may come.
            Err(NodeError::ContributionGone { .. }) if head < ctx.schedule.first_block(next) => Ok(None),
            Err(NodeError::ContributionGone { window, uid }) => {
                ctx.trouble(Trouble::Withheld { window, uid }).await;
                Ok(Some((State { run: withheld, theta: self.newest().theta.clone() }, None)))
            }
            Err(error) => Err(error),
        }
    }

    /// The root that the votes on `window` certify, if their deadline is past and they certify one.
    async fn root_of_votes(
        &self,
        ctx: &Context,
        head: u64,
        window: u64,
        standing: &Standing,
    ) -> Result<Option<Hash32>, NodeError> {
        let deadline = ctx.schedule.vote_deadline(window);
        if head < deadline {
            return Ok(None);
        }
        let (roster, ..) = participants(ctx, window).await?;
        Ok(certified_root(window, &roster, standing, &ctx.snapshot(deadline).await?))
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

    /// Asks again, once per block, for what made this node withhold an outer step, until the votes have decided. If it has
    /// come, the node stands again before that window. Not while votes are cast: they stand on one state.
    async fn go_back(&mut self, ctx: &Context, head: u64) -> Result<bool, NodeError> {
        let is_voting = ctx.schedule.window_at(head).is_some_and(|window| head >= ctx.schedule.put_deadline(window));
        let Some(withheld) = self.withheld.as_mut().filter(|withheld| withheld.asked_at != head && !is_voting) else {
            return Ok(false);
        };
        withheld.asked_at = head;
        let window = withheld.window;
        let states = (withheld.recent.clone(), withheld.older.clone());
        let present = (std::mem::replace(&mut self.recent, states.0), std::mem::replace(&mut self.older, states.1));
        let found = match self.decided(ctx, window).await {
            Ok(decided) => self.collect(ctx, head, &decided, &[]).await.is_ok(),
            Err(_) => false,
        };
        if !found {
            (self.recent, self.older) = present;
            return Ok(false);
        }
        // What led to the newest state is not what led to the one after the withheld window.
        self.withheld = None;
        self.applied.clear();
        Ok(true)
    }

    /// What the chain says of a window whose vote deadline is past.
    async fn decided(&self, ctx: &Context, number: u64) -> Result<Decided, NodeError> {
        let window = self.window(ctx, number).await?;
        let at_put = ctx.snapshot(ctx.schedule.put_deadline(number)).await?;
        let at_vote = ctx.snapshot(ctx.schedule.vote_deadline(number)).await?;
        let ballots = read_ballots(number, &window.roster, window.candidates.len(), &at_vote);
        let (candidates, gather) = (&window.candidates, ctx.spec.roster.gather);
        let certificate = certify(number, &window.roster, candidates, &window.base.standing, gather, &ballots);
        let inputs = WindowInputs::new(number, window.snapshot_hash, &window.roster, &at_put, &at_vote);
        Ok(Decided { window, certificate, ballots, at_put, at_vote, inputs })
    }

    /// What the outer step to the state after `settled` windows applied, in the order of candidates. After a start or a
    /// state that was taken over it is fetched first.
    pub async fn take_applied(
        &mut self,
        ctx: &Context,
        head: u64,
        settled: u64,
    ) -> Result<Vec<Arc<Opened>>, NodeError> {
        if let Some(applied) = self.applied.remove(&settled) {
            return Ok(applied);
        }
        let Some(number) = settled.checked_sub(1) else { return Ok(Vec::new()) };
        // To guess that nothing was applied would be to prove nothing.
        let state = self.run_of(settled).ok_or(NodeError::NoBase { window: settled })?;
        let before = self.run_of(number).ok_or(NodeError::NoBase { window: number })?;
        if state.outer_steps == before.outer_steps {
            return Ok(Vec::new());
        }
        let decided = self.decided(ctx, number).await?;
        self.collect(ctx, head, &decided, &[]).await
    }

    /// The certified contributions, in the order of the certificate: opened by this node itself, or fetched from
    /// nodes that serve them. Those that arrive while others fail are kept for the next attempt.
    async fn collect(
        &mut self,
        ctx: &Context,
        head: u64,
        decided: &Decided,
        opened: &[Arc<Opened>],
    ) -> Result<Vec<Arc<Opened>>, NodeError> {
        let Decided { window, certificate, at_put, .. } = decided;
        let (number, roster) = (window.number, &window.roster);
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
}

/// The miner's bucket first, then those of the validators, who promised to serve what they voted for; the own one last.
fn locations(ctx: &Context, window: u64, roster: &Roster, entry: &EntryId, committed: &Hash32) -> Vec<Location> {
    let miner = roster.miner(entry).map(|miner| Location::of_miner(ctx, miner, window));
    let holders = fetch::holders(ctx, &roster.validators, committed).into_iter();
    let holders = holders.map(|holder| Location::of_holder(ctx, holder, window, committed));
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

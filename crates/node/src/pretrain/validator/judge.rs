//! The window that a validator is judging: contributions arrive, copies are made, and a vote is cast.

use std::collections::VecDeque;
use std::sync::Arc;

use templar_protocol::fault::{Fault, FaultKind};
use templar_protocol::roster::Uid;
use templar_protocol::word::Vote;
use templar_record::event::Event;
use templar_record::outcome::Abstention;
use templar_record::trouble::Trouble;
use tokio::time::{Duration, Instant};

use crate::frame::access::Finding;
use crate::frame::context::Context;
use crate::frame::error::NodeError;
use crate::frame::records::VoteRecord;
use crate::pretrain::fetch::Opened;
use crate::pretrain::intake::Intake;
use crate::pretrain::refusals::Refusals;
use crate::pretrain::seat::Seat;
use crate::pretrain::validator::endings::{Endings, Part};
use crate::pretrain::validator::held::Held;
use crate::pretrain::validator::proofs::Proofs;

/// Windows whose contributions are kept until they are settled.
const JUDGED_MAX: usize = 2;
/// How long copies may still take in the block in which they are waited for no longer.
const GRACE: Duration = Duration::from_secs(2);

/// What a validator is judging, and what it still has to do for windows that it has judged.
#[derive(Debug)]
pub(super) struct Judge {
    ctx: Arc<Context>,
    round: Round,
    /// The vote that must get onto the chain.
    vote: Option<Vote>,
    /// Judged and not settled yet, oldest first.
    judged: VecDeque<Intake>,
    proofs: Proofs,
    pub(super) held: Held,
    /// Windows without a vote because the own bucket takes no copies.
    refusals: Refusals,
    pub(super) endings: Endings,
}

/// The phase of a window at this validator.
#[derive(Debug)]
enum Round {
    /// It has not begun, or this node lacks the state that it starts from.
    Ahead { window: u64, lack: Abstention },
    /// Contributions arrive. `began_at` is the block from which on this node could ask for them.
    Open { intake: Intake, doubt: Doubt, began_at: u64 },
    /// What counts is known. To vote for a payload is to promise to serve it, so it is in this node's bucket before the
    /// vote is cast: what is not there yet is waited for, in the last block of the wait up to this instant.
    Promising { intake: Intake, until: Option<Instant>, began_at: u64 },
}

/// What an open window has to do with this node's own access to storage.
#[derive(Debug)]
struct Doubt {
    /// How often the access had come back when contributions were last asked for as if for the first time, and when.
    heals: u64,
    asked_afresh_at: Option<u64>,
    /// The block in which keys of silent buckets were asked for once more.
    keys_asked_again_at: Option<u64>,
    /// The block of the last look at the window.
    looked_at: u64,
    /// Why this node does not vote, if it does not.
    lack: Abstention,
}

impl Round {
    fn ahead(window: u64) -> Self {
        Self::Ahead { window, lack: Abstention::NoTimeLeft }
    }

    fn window(&self) -> u64 {
        match self {
            Self::Ahead { window, .. } => *window,
            Self::Open { intake, .. } | Self::Promising { intake, .. } => intake.window.number,
        }
    }

    /// Waits until the next contribution has arrived or failed, or until a last wait has ended.
    pub(super) async fn arrival(&mut self) {
        match self {
            Self::Open { intake, .. } => intake.arrival().await,
            Self::Promising { until: Some(until), .. } if *until > Instant::now() => {
                tokio::time::sleep_until(*until).await;
            }
            _ => std::future::pending().await,
        }
    }
}

impl Judge {
    /// Begins with the window after that of `vote`, which is this node's newest; without one, with `window`.
    pub(super) fn new(ctx: Arc<Context>, window: u64, vote: Option<Vote>, held: Held, mut endings: Endings) -> Self {
        let mut next = window;
        if let Some(vote) = &vote {
            next = u64::from(vote.window) + 1;
            endings.note(u64::from(vote.window), Part::Voted);
        }
        Self {
            ctx,
            round: Round::ahead(next),
            vote,
            judged: VecDeque::new(),
            proofs: Proofs::default(),
            held,
            refusals: Refusals::default(),
            endings,
        }
    }

    /// The window being judged.
    pub(super) fn window(&self) -> u64 {
        self.round.window()
    }

    /// Another state replaced the one on which all this was based.
    pub(super) fn start_over(&mut self) {
        (self.round, self.vote) = (Round::ahead(self.round.window()), None);
        self.judged.clear();
    }

    /// Contributions that this node has opened itself, to windows that are not settled.
    pub(super) fn opened(&self) -> Vec<Arc<Opened>> {
        self.judged.iter().flat_map(Intake::opened).cloned().collect()
    }

    /// The intake of `window`, which is settled.
    pub(super) fn take_judged(&mut self, window: u64) -> Option<Intake> {
        let nth = self.judged.iter().position(|intake| intake.window.number == window)?;
        self.judged.remove(nth)
    }

    /// The newest block up to `head` for which something may still arrive.
    pub(super) fn busy_at(&self, head: u64) -> Option<u64> {
        let is_on_its_way = match &self.round {
            Round::Open { intake, .. } if intake.is_fetching() => true,
            _ => self.held.is_copying(),
        };
        if is_on_its_way {
            return Some(head);
        }
        match &self.round {
            // Once keys may be there, it looks for the missing ones at every block.
            Round::Open { intake, .. } if intake.put_hash().is_some() && !intake.is_resolved() => Some(head + 1),
            _ => None,
        }
    }

    /// Waits until a copy is complete, or a contribution has arrived or failed; then [`Judge::judge`] is due.
    pub(super) async fn arrival(&mut self) {
        let Self { round, held, .. } = self;
        tokio::select! {
            biased;
            () = held.arrival() => {}
            () = round.arrival() => {}
        }
    }

    /// Does everything that is due by `head` for the window being judged.
    pub(super) async fn judge(&mut self, seat: &mut Seat, head: u64) -> Result<(), NodeError> {
        while head >= self.ctx.schedule.vote_deadline(self.round.window()) {
            self.lapse().await;
        }
        self.begin(seat, head).await?;
        self.gather(head).await?;
        self.promise(seat, head).await
    }

    /// The middle of the time for contributions, which ends with the last call.
    fn half(&self, window: u64) -> u64 {
        let put = self.ctx.schedule.put_deadline(window);
        put + (self.last_call(window) - put) / 2
    }

    /// When waiting for contributions ends, to leave time for the vote to get onto the chain.
    fn last_call(&self, window: u64) -> u64 {
        let (put, vote) = (self.ctx.schedule.put_deadline(window), self.ctx.schedule.vote_deadline(window));
        vote - ((vote - put) / 3).max(1)
    }

    /// The vote deadline has come without a vote.
    async fn lapse(&mut self) {
        let next = Round::ahead(self.round.window() + 1);
        match std::mem::replace(&mut self.round, next) {
            Round::Ahead { window, lack } => self.endings.note(window, Part::Abstained(lack)),
            Round::Open { intake, doubt, .. } => {
                self.held.give_up(intake.window.number);
                self.endings.note(intake.window.number, Part::Abstained(doubt.lack));
            }
            Round::Promising { intake, .. } => self.cannot_serve(intake).await,
        }
    }

    /// The copies are missing, and without them this node does not vote.
    async fn cannot_serve(&mut self, intake: Intake) {
        let window = intake.window.number;
        let lack = intake.opened().find_map(|opened| self.held.lack(window, opened));
        let cause = lack.map_or_else(|| "the vote came too late".to_owned(), |lack| lack.cause);
        self.held.give_up(window);
        self.endings.note(window, Part::Abstained(Abstention::CannotServe { cause: cause.clone() }));
        if self.refusals.note() {
            self.ctx.trouble(Trouble::CannotServe { window, cause }).await;
        }
        self.keep_judged(intake);
    }

    fn keep_judged(&mut self, intake: Intake) {
        self.judged.push_back(intake);
        while self.judged.len() > JUDGED_MAX {
            self.judged.pop_front();
        }
    }

    /// Opens the intake once the window has begun.
    async fn begin(&mut self, seat: &mut Seat, head: u64) -> Result<(), NodeError> {
        let Round::Ahead { window, lack } = &mut self.round else { return Ok(()) };
        let window = *window;
        if head < self.ctx.schedule.first_block(window) {
            return Ok(());
        }
        let Some(base) = seat.replica.base(&self.ctx, window).cloned() else {
            *lack = match self.ctx.access.doubt() {
                Some(cause) => Abstention::OwnStorage { cause },
                // Once the damage is repaired, the window is too old.
                None if matches!(lack, Abstention::OwnStorage { .. }) => return Ok(()),
                None => Abstention::NoBase,
            };
            return Ok(());
        };
        let loaded = seat.replica.window(&self.ctx, window).await?;
        match self.proofs.prepare(&self.ctx, &mut seat.replica, &loaded, head).await {
            Ok(()) => {}
            Err(NodeError::OwnStorage | NodeError::ContributionGone { .. } | NodeError::NoBase { .. }) => {
                *lack = Abstention::NoPayloads;
                return Ok(());
            }
            Err(error) => return Err(error),
        }
        let intake = Intake::new(&self.ctx, loaded, &base.theta).await;
        let heals = self.ctx.access.heals();
        let doubt = Doubt {
            heals,
            asked_afresh_at: None,
            keys_asked_again_at: None,
            looked_at: head,
            lack: Abstention::NoTimeLeft,
        };
        self.round = Round::Open { intake, doubt, began_at: head };
        Ok(())
    }

    /// Takes contributions in, and closes the intake when nothing more is to come or to be waited for.
    async fn gather(&mut self, head: u64) -> Result<(), NodeError> {
        let (last_call, half) = (self.last_call(self.round.window()), self.half(self.round.window()));
        let Round::Open { intake, doubt, began_at } = &mut self.round else { return Ok(()) };
        let (ctx, window) = (&self.ctx, intake.window.number);
        if doubt.heals != ctx.access.heals() {
            (doubt.heals, doubt.asked_afresh_at) = (ctx.access.heals(), Some(head));
            *began_at = head;
            intake.ask_afresh();
        }
        // Away from the chain, it has asked for no key since they are published: as after an outage of its storage.
        if head >= last_call && doubt.looked_at <= ctx.schedule.put_deadline(window) + 1 {
            (doubt.asked_afresh_at, *began_at) = (Some(head), head);
        }
        doubt.looked_at = head;
        intake.read(ctx, head).await?;
        let put_hash = intake.put_hash();
        if let Some(cause) = ctx.access.broken() {
            doubt.lack = Abstention::OwnStorage { cause };
        } else {
            intake.fetch(ctx, head);
            if head >= half {
                intake.rescue(ctx, head, half + (last_call - half) / 2);
            }
        }
        for opened in intake.opened() {
            self.held.copy(ctx, window, opened, head);
        }
        let is_called = head >= last_call && doubt.asked_afresh_at != Some(head);
        if put_hash.is_none() || !(intake.is_resolved() || is_called) {
            return Ok(());
        }
        // It must be known whose fault the silence is before anybody is blamed for it.
        if intake.silence().is_some() && ctx.access.examine(head) != Finding::Works {
            return Ok(());
        }
        // This node's access may have come back in this very block: what a bucket left unanswered is asked once more.
        if head == last_call && head + 1 < ctx.schedule.vote_deadline(window) && intake.silence().is_some() {
            if doubt.keys_asked_again_at.replace(head) != Some(head) {
                intake.ask_again_for_keys();
                intake.fetch(ctx, head);
            }
            return Ok(());
        }
        // An own bucket nearby answers whatever the clock says: see `frame::access`.
        if let Some(cause) = intake.isolation() {
            doubt.lack = Abstention::OwnStorage { cause: cause.clone() };
            ctx.access.isolate(cause).await;
            return Ok(());
        }
        intake.close(*began_at >= ctx.schedule.put_deadline(window));
        let Round::Open { intake, began_at, .. } = std::mem::replace(&mut self.round, Round::ahead(window)) else {
            return Ok(());
        };
        self.round = Round::Promising { intake, until: None, began_at };
        Ok(())
    }

    /// Casts the vote once all that it accepts is in this node's own bucket.
    async fn promise(&mut self, seat: &mut Seat, head: u64) -> Result<(), NodeError> {
        let window = self.round.window();
        let vote = self.ctx.schedule.vote_deadline(window);
        let (last_call, half) = (self.last_call(window), self.half(window));
        let Round::Promising { intake, until, .. } = &mut self.round else { return Ok(()) };
        let lacks: Vec<_> = intake.opened().filter_map(|opened| self.held.lack(window, opened)).collect();
        if !lacks.is_empty() {
            // Whoever opens in the second half of the time costs no more of it than whoever does not open at all: the
            // last call is not put off, and what is not in the bucket by then is left out. What was here before that,
            // and is not in the bucket, is the bucket's fault, which has until the last block.
            let is_bucket_slow = lacks.iter().any(|lack| lack.since.is_some_and(|since| since < half));
            if head < (if is_bucket_slow { vote - 1 } else { last_call }) {
                return Ok(());
            }
            if *until.get_or_insert_with(|| Instant::now() + GRACE) > Instant::now() {
                return Ok(());
            }
            if is_bucket_slow {
                let next = Round::ahead(window + 1);
                if let Round::Promising { intake, .. } = std::mem::replace(&mut self.round, next) {
                    self.cannot_serve(intake).await;
                }
                return Ok(());
            }
        }
        self.cast_vote(seat, head).await
    }

    async fn cast_vote(&mut self, seat: &mut Seat, head: u64) -> Result<(), NodeError> {
        let Round::Promising { intake, began_at, .. } = &self.round else { return Ok(()) };
        let window = intake.window.number;
        let is_late = *began_at >= self.ctx.schedule.put_deadline(window);
        let root = intake.window.base_digest;
        let comm_s = intake.open_s();
        let Some(proof) = self.proofs.proof(window, root, &seat.entry) else {
            self.endings.note(window, Part::Abstained(Abstention::NoPayloads));
            self.held.give_up(window);
            if let Round::Promising { intake, .. } = std::mem::replace(&mut self.round, Round::ahead(window + 1)) {
                self.keep_judged(intake);
            }
            return Ok(());
        };
        let deny = self.proofs.denied(&self.ctx, &intake.window).await?;
        let (mut accept, mut exclude, mut faults, mut uids) = (vec![], vec![], vec![], vec![]);
        for (entry, verdict) in intake.verdicts() {
            let verdict = match verdict {
                // Not the miner's fault, and not served by this node.
                Ok(opened) if self.held.lack(window, opened).is_some() => Err(FaultKind::NotJudged),
                verdict => verdict,
            };
            if let Err(kind) = verdict {
                faults.push(Fault { entry: *entry, kind, attributed_to: kind.attributed_to() });
            }
            accept.push(verdict.is_ok());
            exclude.push(verdict.is_err_and(FaultKind::excludes));
            uids.extend(verdict.is_ok().then_some(entry.uid));
        }
        seat.local.set(&self.held.record())?;
        // Whoever came to the window when others were voting blames nobody for what it had no time to judge.
        let is_unjudged =
            |fault: &Fault| fault.kind == FaultKind::NotJudged && intake.window.is_candidate(&fault.entry);
        if is_late && faults.iter().any(is_unjudged) {
            self.held.give_up(window);
            self.endings.note(window, Part::Abstained(Abstention::NoTimeLeft));
            if let Round::Promising { intake, .. } = std::mem::replace(&mut self.round, Round::ahead(window + 1)) {
                self.keep_judged(intake);
            }
            return Ok(());
        }
        // On disk before it is on chain, so that a restarted validator repeats its vote.
        let vote = Vote { window: window as u32, root, accept, exclude, deny, proof };
        seat.local.set(&VoteRecord::from(&vote))?;
        self.vote = Some(vote);
        self.endings.note(window, Part::Voted);
        self.held.give_up(window);
        if let Round::Promising { intake, .. } = std::mem::replace(&mut self.round, Round::ahead(window + 1)) {
            self.keep_judged(intake);
        }
        let accept: Vec<Uid> = uids;
        if !accept.is_empty() {
            self.refusals.end(&self.ctx).await;
        }
        self.ctx.emit(Event::Voted { window, accept, faults, comm_s }).await;
        self.confirm_vote(seat, head).await
    }

    /// Makes sure that the vote gets onto the chain while it can count.
    pub(super) async fn confirm_vote(&mut self, seat: &mut Seat, head: u64) -> Result<(), NodeError> {
        let Some(vote) = &self.vote else { return Ok(()) };
        if head >= self.ctx.schedule.vote_deadline(u64::from(vote.window)) {
            self.vote = None;
            return Ok(());
        }
        seat.publisher.ensure_vote(&self.ctx, &seat.entry, vote, head).await
    }
}

//! How each window ended for a validator, reported once, when the window is settled or jumped over.

use std::collections::BTreeMap;

use templar_protocol::roster::EntryId;
use templar_record::event::Event;
use templar_record::outcome::{Abstention, Outcome};

use crate::frame::context::Context;
use crate::frame::error::NodeError;
use crate::frame::local::Local;
use crate::frame::records::OutcomesRecord;
use crate::pretrain::replica::Settled;

/// Most windows for which a validator remembers what it did until they are settled. For older ones only the chain
/// knows.
const PARTS_MAX: usize = 64;

/// What a validator did in a window that is not settled yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Part {
    Voted,
    Abstained(Abstention),
}

/// Keeps track of which windows have ended and been reported.
#[derive(Debug)]
pub(super) struct Endings {
    /// The ends of all windows before this one have been reported, or were before this node started.
    next: u64,
    parts: BTreeMap<u64, Part>,
}

impl Endings {
    /// A node without a record on disk begins with the window that is not decided yet at `head`.
    pub(super) fn load(ctx: &Context, local: &Local, head: u64) -> Result<Self, NodeError> {
        let undecided = || {
            let newest = ctx.schedule.window_at(head).unwrap_or(0);
            // With a delay, the window before is decided in the newest one.
            let is_undecided = |window: &u64| ctx.schedule.vote_deadline(*window) > head;
            (newest.saturating_sub(1)..=newest).find(is_undecided).unwrap_or(newest + 1)
        };
        let next = local.get::<OutcomesRecord>()?.map_or_else(undecided, |record| record.next_window);
        Ok(Self { next, parts: BTreeMap::new() })
    }

    /// The record for the disk once `settled` windows are settled.
    pub(super) fn record(&self, settled: u64) -> OutcomesRecord {
        OutcomesRecord { next_window: self.next.max(settled), misses: Vec::new() }
    }

    pub(super) fn note(&mut self, window: u64, part: Part) {
        self.parts.insert(window, part);
        while self.parts.len() > PARTS_MAX {
            self.parts.pop_first();
        }
    }

    /// Reports how a settled window ended for `own`. The vote that counts is the one that the chain had at its
    /// deadline.
    pub(super) async fn tell(&mut self, ctx: &Context, own: &EntryId, settled: &Settled) {
        let window = settled.certificate.window;
        let part = self.parts.remove(&window);
        self.parts.retain(|other, _| *other > window);
        // A node that went back settles the same windows again.
        if window < self.next {
            return;
        }
        let ballot = settled.ballots.iter().find(|(entry, _)| entry == own).map(|(_, ballot)| ballot);
        let outcome = match (ballot, part) {
            (None, _) => Outcome::NotListed,
            (Some(Ok(_)), _) if settled.window.base.standing.denies(own, window) => Outcome::Denied,
            (Some(Ok(vote)), _) => match settled.certificate.root() {
                Some(root) if root != vote.root => Outcome::Outvoted,
                _ => Outcome::Voted,
            },
            (Some(Err(_)), Some(Part::Voted)) => Outcome::VoteLate,
            (Some(Err(_)), Some(Part::Abstained(why))) => Outcome::Abstained { why },
            (Some(Err(_)), None) => Outcome::Abstained { why: Abstention::NoTimeLeft },
        };
        self.next = window + 1;
        ctx.emit(Event::Ended { window, outcome }).await;
    }

    /// Reports the windows that are jumped over by a certified state, taken over after `settled` windows.
    pub(super) async fn jump(&mut self, ctx: &Context, settled: u64) {
        while self.next < settled {
            let window = self.next;
            self.next += 1;
            ctx.emit(Event::Ended { window, outcome: Outcome::Skipped }).await;
        }
        self.parts = self.parts.split_off(&settled);
    }
}

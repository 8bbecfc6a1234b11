//! How each window ended for this miner, reported once, whatever happens in between.

use std::collections::BTreeMap;

use templar_protocol::certificate::{Certificate, Outcome as Verdict};
use templar_protocol::roster::EntryId;
use templar_protocol::run::RosterSpec;
use templar_record::outcome::{Miss, Outcome};

use crate::frame::error::NodeError;
use crate::frame::local::Local;
use crate::frame::records::OutcomesRecord;
use crate::pretrain::window::Window;

/// What a miner knows of its part in windows that are not settled yet, and which windows it has reported.
#[derive(Debug)]
pub(super) struct Outcomes {
    /// All windows before this one have been reported.
    next: u64,
    /// Why it contributed nothing, by window.
    misses: BTreeMap<u64, Miss>,
    /// Decided windows, to be reported as soon as the disk records that they are.
    untold: Vec<(u64, Outcome)>,
}

impl Outcomes {
    /// Resumes from the record on disk. Without one, it begins with the windows after the `settled` ones.
    pub(super) fn load(local: &Local, settled: u64) -> Result<Self, NodeError> {
        let record = local.get::<OutcomesRecord>()?;
        let OutcomesRecord { next_window, misses } =
            record.unwrap_or(OutcomesRecord { next_window: settled, misses: Vec::new() });
        Ok(Self { next: next_window, misses: misses.into_iter().collect(), untold: Vec::new() })
    }

    pub(super) fn record(&self) -> OutcomesRecord {
        OutcomesRecord { next_window: self.next, misses: self.misses.clone().into_iter().collect() }
    }

    /// Notes that the miner contributes nothing to a window. The last note on a window counts.
    pub(super) fn miss(&mut self, window: u64, miss: Miss) {
        if window >= self.next {
            self.misses.insert(window, miss);
        }
    }

    /// Notes that the miner contributes to the window after all.
    pub(super) fn retract(&mut self, window: u64) {
        self.misses.remove(&window);
    }

    pub(super) fn missed(&self, window: u64) -> Option<&Miss> {
        self.misses.get(&window)
    }

    /// Notes that a window is settled. One that was reported before a return to an older state is not reported again.
    pub(super) fn settle(&mut self, window: u64, outcome: Outcome) {
        if window >= self.next {
            self.skip_to(window);
            self.untold.push((window, outcome));
            self.next = window + 1;
            self.forget();
        }
    }

    /// Notes that a state with this many settled windows was taken over.
    pub(super) fn skip_to(&mut self, settled: u64) {
        self.untold.extend((self.next..settled).map(|window| (window, Outcome::Skipped)));
        self.next = self.next.max(settled);
        self.forget();
    }

    fn forget(&mut self) {
        self.misses = self.misses.split_off(&self.next);
    }

    pub(super) fn has_news(&self) -> bool {
        !self.untold.is_empty()
    }

    /// Windows to report now: the disk records them as reported.
    pub(super) fn take(&mut self) -> Vec<(u64, Outcome)> {
        std::mem::take(&mut self.untold)
    }
}

/// How `window` ended for the miner `entry`, which missed it or not.
pub(super) fn outcome(
    window: &Window,
    certificate: &Certificate,
    is_applied: bool,
    entry: &EntryId,
    miss: Option<Miss>,
    seats: &RosterSpec,
) -> Outcome {
    let accepted = certificate.accepted();
    if accepted.contains(entry) {
        return if is_applied { Outcome::Counted } else { Outcome::Withheld };
    }
    let Some(miner) = window.roster.miner(entry) else { return Outcome::NotListed };
    let place = |entry: &EntryId| window.candidates.iter().position(|candidate| candidate.entry == *entry);
    let Some(own) = place(entry) else {
        return if window.base.standing.excludes(miner, window.number) {
            Outcome::Excluded
        } else {
            Outcome::NoSeat { seats: window.candidates.len() as u64 }
        };
    };
    if let Some(why) = miss {
        return Outcome::Missed { why };
    }
    let Verdict::Certified { excluded, .. } = &certificate.outcome else { return Outcome::Null };
    // Seats are given in the order of candidates: once all seats are taken, later candidates are not considered.
    let gather = u64::from(seats.gather);
    let is_full = accepted.len() as u64 >= gather;
    let last = accepted.last().and_then(place).unwrap_or_default();
    if is_full && own > last && !excluded.contains(entry) {
        return Outcome::NoSeat { seats: gather };
    }
    Outcome::NotAccepted
}

//! What an audit found.

use std::fmt;

use templar_protocol::audit::{Replayed, Step};
use templar_protocol::certificate::Outcome;
use templar_protocol::hash::Hash32;

use crate::pretrain::audit::chain::Compared;
use crate::pretrain::audit::sources::Tally;

/// The result of an audit.
#[derive(Debug)]
pub struct Audited {
    pub verdict: Verdict,
    /// Windows from the beginning to the newest certified state.
    pub settled: u64,
    /// Digest of that state.
    pub tip: Hash32,
    pub windows: Windows,
    pub tally: Tally,
    pub wall_s: f64,
}

/// What is to be thought of the run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Every certificate and every state follows from the beginning by the rules.
    Verified,
    /// Nobody serves what it takes, or only in a wrong form: nothing is proven from this window on.
    Missing { window: u64, key: String },
    /// What is certified breaks the rules.
    Contradicted { window: u64, why: String },
}

/// Windows by what was found of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Windows {
    /// Certified, and the step was taken.
    pub certified: u64,
    pub null: u64,
    pub withheld: u64,
    /// θ was computed again from the payloads.
    pub theta_recomputed: Spans,
    /// θ has the root that later votes certify, and its payloads are not served any more.
    pub theta_certified: Spans,
    /// Everything that the inputs say is what the chain says.
    pub chain_all: Spans,
    /// Only the hashes of their blocks were compared: the chain's state of then is not served.
    pub chain_hashes: Spans,
    /// The chain serves nothing of them.
    pub chain_nothing: Spans,
}

impl Windows {
    pub(super) fn replayed(&mut self, replayed: &Replayed, is_theta_known: bool) {
        let count = match (&replayed.certificate.outcome, &replayed.step) {
            (Outcome::Null(_), _) => &mut self.null,
            (_, Step::Withheld) => &mut self.withheld,
            _ => &mut self.certified,
        };
        *count += 1;
        let spans = if is_theta_known { &mut self.theta_recomputed } else { &mut self.theta_certified };
        spans.push(replayed.window);
    }

    pub(super) fn compared(&mut self, window: u64, compared: Compared) {
        let spans = match compared {
            Compared::All => &mut self.chain_all,
            Compared::Hashes => &mut self.chain_hashes,
            Compared::Nothing => &mut self.chain_nothing,
        };
        spans.push(window);
    }
}

/// Windows as stretches from a first to a last one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Spans(pub Vec<(u64, u64)>);

impl Spans {
    /// Adds a window after all that are in it.
    fn push(&mut self, window: u64) {
        match self.0.last_mut() {
            Some((_, last)) if *last + 1 == window => *last = window,
            _ => self.0.push((window, window)),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Display for Spans {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (nth, (first, last)) in self.0.iter().enumerate() {
            let comma = if nth > 0 { ", " } else { "" };
            if first == last { write!(f, "{comma}{first}")? } else { write!(f, "{comma}{first} to {last}")? }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_are_told_in_stretches() {
        let mut spans = Spans::default();
        for window in [0, 1, 2, 5, 7, 8] {
            spans.push(window);
        }
        assert_eq!(spans.to_string(), "0 to 2, 5, 7 to 8");
    }
}

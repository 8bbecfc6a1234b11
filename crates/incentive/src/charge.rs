//! What a fault costs, and whom: nothing is charged before it is known who is to blame.
//!
//! One validator may be cut off, so what it could not fetch says nothing by itself. Only what most of the stake did not
//! accept either is charged, and what most of the stake could judge is the validator's own failure.

use serde::Serialize;
use templar_protocol::fault::{FaultKind, Party};
use templar_record::judgement::{Decision, Judged, Judgement, StakeVote};

/// What a judged contribution costs its miner, besides the tokens that do not count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Charge {
    /// Nothing: it passed, it was absent, or it fell behind.
    Nothing,
    /// This validator failed, or did not look, where most of the stake did not fail.
    OwnFailure,
    /// It is bad, and the miner made it: as much as a contribution that undoes what a median one does.
    Bad,
    /// It was committed, and could not be read or opened. Once, that is an outage; again and again, it is a miner that
    /// waits for the draws and shows what is not measured.
    Unread,
}

impl Charge {
    /// The charge for a fault that most of the stake saw.
    pub fn of(fault: FaultKind) -> Self {
        match fault {
            FaultKind::NotOpened | FaultKind::PayloadUnavailable | FaultKind::HeaderUnavailable => Self::Unread,
            // Away, or fallen behind, which honest miners can be; it costs the window's tokens.
            FaultKind::NotCommitted | FaultKind::WrongBase | FaultKind::Possession => Self::Nothing,
            _ => match fault.attributed_to() {
                Party::Miner => Self::Bad,
                // What most of the stake could not judge either is not this validator's failure alone.
                Party::Validator | Party::Storage | Party::Chain => Self::Nothing,
            },
        }
    }

    /// In contributions of the window's median value.
    pub fn value(self) -> Option<f64> {
        match self {
            Self::Nothing | Self::OwnFailure => None,
            Self::Bad => Some(-1.0),
            Self::Unread => Some(0.0),
        }
    }
}

/// A window with more than this share of own failures is void: the validator measures nothing in it.
const OWN_FAILURES_MAX: f64 = 0.25;

/// The charge on one candidate of a window.
pub fn charge(judged: &Judged, decision: Decision) -> Charge {
    let Some(fault) = judged.fault else { return Charge::Nothing };
    if judged.vote == StakeVote::Passed {
        return Charge::OwnFailure;
    }
    match (decision, judged.vote) {
        (Decision::Certified | Decision::Withheld, StakeVote::Refused) => Charge::of(fault),
        // Nobody knows what most of the stake saw.
        _ => Charge::Nothing,
    }
}

/// Whether this validator failed in so much of the window that it measures nothing in it.
pub fn is_void(judgement: &Judgement) -> bool {
    let is_own = |judged: &&Judged| charge(judged, judgement.decision) == Charge::OwnFailure;
    let failures = judgement.miners.iter().filter(is_own).count();
    failures as f64 > OWN_FAILURES_MAX * judgement.miners.len() as f64
}

#[cfg(test)]
mod tests {
    use templar_protocol::testing::entry;

    use super::*;

    fn judged(passed: bool, fault: Option<FaultKind>) -> Judged {
        let vote = if passed { StakeVote::Passed } else { StakeVote::Refused };
        Judged { entry: entry(0), vote, tokens: 1, fault }
    }

    #[test]
    fn only_what_most_of_the_stake_saw_is_charged() {
        let of = |passed, fault| charge(&judged(passed, Some(fault)), Decision::Certified);
        assert_eq!(charge(&judged(true, None), Decision::Certified), Charge::Nothing);
        assert_eq!(of(false, FaultKind::NotOpened), Charge::Unread);
        assert_eq!(of(false, FaultKind::PayloadUnavailable), Charge::Unread);
        assert_eq!(of(true, FaultKind::NotOpened), Charge::OwnFailure, "everybody else opened it");
        assert_eq!(of(false, FaultKind::PayloadMalformed), Charge::Bad);
        assert_eq!(of(true, FaultKind::PayloadMalformed), Charge::OwnFailure);
        for nobodys in [FaultKind::NotCommitted, FaultKind::WrongBase, FaultKind::Possession] {
            assert_eq!(of(false, nobodys), Charge::Nothing, "{nobodys:?}");
        }
        assert_eq!(of(true, FaultKind::NotJudged), Charge::OwnFailure);
        assert_eq!(
            of(false, FaultKind::NotJudged),
            Charge::Nothing,
            "nobody could judge it: no miner voids a window by that"
        );
        assert_eq!(charge(&judged(false, Some(FaultKind::NotOpened)), Decision::Null), Charge::Nothing);
        let split = Judged { vote: StakeVote::Split, ..judged(false, Some(FaultKind::NotOpened)) };
        assert_eq!(charge(&split, Decision::Certified), Charge::Nothing, "half of the stake saw it open");
        assert!(Charge::Bad.value() < Charge::Unread.value());
    }

    #[test]
    fn a_validator_that_failed_in_more_than_a_quarter_measures_nothing() {
        let window = |failures: usize| {
            let miners = (0..8).map(|nth| judged(true, (nth < failures).then_some(FaultKind::PayloadUnavailable)));
            Judgement { window: 0, decision: Decision::Certified, miners: miners.collect() }
        };
        assert_eq!([0, 1, 2, 3, 8].map(|failures| is_void(&window(failures))), [false, false, false, true, true]);
    }
}

//! How a window ended for one node.

use borsh::{BorshDeserialize, BorshSerialize};
use serde::{Deserialize, Serialize};

/// How a window ended for one node. Every window that a running node goes through ends in exactly one of these: when it
/// is settled, or when the node takes over a later certified state.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Outcome {
    /// A miner's contribution is in the certificate.
    #[error("counted")]
    Counted,
    /// A candidate's contribution was opened, but the certificate leaves it out: validators found a fault in it or
    /// could not fetch it in time.
    #[error("not accepted, though it had a seat: look at this miner's faults in a validator's report")]
    NotAccepted,
    /// Every seat went to others: the miner was no candidate and got no data, or as many as count passed before it, and its
    /// payload goes back into the error feedback.
    #[error("no seat: all {seats} seats went to other miners")]
    NoSeat { seats: u64 },
    /// The contribution was accepted, but nobody's counts, because the payload of another that was accepted cannot be had.
    #[error("withheld: accepted, but an accepted payload could not be had, so nobody's contribution counts")]
    Withheld,
    /// A certified exclusion keeps the miner from being a candidate, so it got no data.
    #[error("excluded: validators found a fault in what it signed, so that it has no seat for a while")]
    Excluded,
    /// The window is null: nobody's contribution counts.
    #[error("null: the validators reached no certificate")]
    Null,
    /// The node is not in the window's roster: its bucket is not on the chain, it was registered after the snapshot, or it
    /// is a validator without stake or permit, or whose last vote is too old.
    #[error(
        "not in the roster: at the window's snapshot the chain had no recent bucket of this node or, for a validator, no \
         permit, too little stake, or no recent vote"
    )]
    NotListed,
    /// The miner submitted nothing that could count.
    #[error("missed: {why}")]
    Missed { why: Miss },
    /// The validator voted for the certified root, or the window was null and the vote valid.
    #[error("voted")]
    Voted,
    /// The validator voted, and its votes do not count for a while, because a vote of its did not prove that it holds what
    /// counted.
    #[error("denied: its votes do not count for a while, because one did not prove that it holds what counted")]
    Denied,
    /// The validator voted for a different root from the certified one.
    #[error("outvoted: it voted for a different state from the certified one")]
    Outvoted,
    /// The vote was not on the chain by the vote deadline, or not as cast, so it does not count.
    #[error("its vote came too late to count")]
    VoteLate,
    /// The validator did not vote.
    #[error("abstained: {why}")]
    Abstained { why: Abstention },
    /// The node took over a certified state from after this window, so it does not know its own part in it.
    #[error("skipped: the node took over a certified state from after it")]
    Skipped,
}

impl Outcome {
    /// Name of the outcome in reports and metrics: the `kind` of its JSON.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Counted => "counted",
            Self::NotAccepted => "not-accepted",
            Self::NoSeat { .. } => "no-seat",
            Self::Withheld => "withheld",
            Self::Excluded => "excluded",
            Self::Null => "null",
            Self::NotListed => "not-listed",
            Self::Missed { .. } => "missed",
            Self::Voted => "voted",
            Self::Denied => "denied",
            Self::Outvoted => "outvoted",
            Self::VoteLate => "vote-late",
            Self::Abstained { .. } => "abstained",
            Self::Skipped => "skipped",
        }
    }
}

/// Why a miner submitted nothing that could count. Its disk stores these by number, so new ones go to the end.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize, BorshSerialize, BorshDeserialize)]
#[serde(tag = "miss", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Miss {
    /// The window was seen too late to train in, for example after a restart.
    #[error("too little of the window was left to train in")]
    NoTimeLeft,
    /// The state that the window starts from was not at hand.
    #[error("the state that it starts from was not at hand in time")]
    NoBase,
    #[error("no inner step ended in time")]
    NoStep,
    #[error("training failed: {cause}")]
    TrainingFailed { cause: String },
    #[error("the state that it trained from was replaced")]
    BaseReplaced,
    /// Δ is dropped: error feedback follows from what was committed alone.
    #[error("trained past the put deadline; what it learned in this window is lost")]
    TrainedTooLate,
    #[error("the error feedback starts afresh: {cause}")]
    ErrorFeedbackLost { cause: String },
    #[error("its own data is damaged: {cause}; run `templar data verify`")]
    DataDamaged { cause: String },
    /// The upload, or the chain, took too long.
    #[error("the chain did not include its header by the put deadline")]
    CommittedTooLate,
    /// The miner's own bucket did not take the contribution in time.
    #[error("its bucket did not take the contribution by the put deadline")]
    UploadTooLate,
    /// The contribution was committed but nobody could open it, which ranks below a bad contribution.
    #[error("its key was not in its bucket by the vote deadline")]
    KeyTooLate,
    /// The anneal of the run is over.
    #[error("the run has ended: its anneal is over, and nothing is left to train")]
    RunEnded,
}

/// Why a validator did not vote.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[serde(tag = "abstention", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Abstention {
    /// Its own access to storage failed, so it can judge nobody.
    #[error("its own access to storage failed: {cause}")]
    OwnStorage { cause: String },
    /// The state that the window starts from was not at hand.
    #[error("the state that the window starts from was not at hand")]
    NoBase,
    /// A vote proves that its voter holds the payloads that counted last, and they were not at hand.
    #[error("the payloads that counted last were not at hand, so that it could not prove to hold them")]
    NoPayloads,
    /// The window was seen too late, for example after a restart.
    #[error("too little of the window was left to judge it")]
    NoTimeLeft,
    /// The validator could not put what it voted for into its own bucket.
    #[error("its own bucket did not take what it would have voted for: {cause}")]
    CannotServe { cause: String },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_an_outcome_is_its_kind_in_json() {
        let missed = Outcome::Missed { why: Miss::KeyTooLate };
        let abstained = Outcome::Abstained { why: Abstention::NoBase };
        let plain = [Outcome::Counted, Outcome::NotAccepted, Outcome::Null, Outcome::NotListed, Outcome::Skipped];
        let votes = [Outcome::Voted, Outcome::Outvoted, Outcome::Denied, Outcome::VoteLate];
        let seats = [Outcome::NoSeat { seats: 2 }, Outcome::Excluded];
        for outcome in plain.into_iter().chain(votes).chain(seats).chain([missed, abstained]) {
            let json = serde_json::to_value(&outcome).unwrap();
            assert_eq!(json["kind"], outcome.kind());
            assert_eq!(serde_json::from_value::<Outcome>(json).unwrap(), outcome);
        }
    }
}

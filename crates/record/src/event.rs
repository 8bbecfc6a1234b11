//! What a node reports about itself: one stream of typed events for progress, reports, logs and simulations.

use serde::{Deserialize, Serialize};
use templar_protocol::certificate::NullReason;
use templar_protocol::fault::{BucketFault, CheckpointFault, Fault, FaultKind, VoteFault};
use templar_protocol::hash::Hash32;
pub use templar_protocol::locator::Role;
use templar_protocol::roster::{EntryId, Uid};
use templar_protocol::run::ScoringSpec;

use crate::engine::EngineStats;
use crate::judgement::{Evaluation, Judgement};
use crate::outcome::Outcome;
use crate::trouble::Trouble;

/// One thing that happened to a node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Event {
    Started {
        uid: Uid,
        role: Role,
        settled: u64,
        state_root: Hash32,
    },
    /// The hotkey was registered again, as another entry, and the node goes on as that entry.
    Registered {
        uid: Uid,
    },
    /// A miner took inner steps.
    Trained {
        window: u64,
        steps: u64,
        tokens: u64,
        train_loss: f64,
        compute_s: f64,
        /// How much of its device the engine used, if it reports that.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        engine: Option<EngineStats>,
    },
    /// A miner uploaded its sealed payload and its header. Only then does it hand the header's hash to the chain.
    Sealed {
        window: u64,
        payload_bytes: u64,
        /// How long the upload took.
        comm_s: f64,
    },
    /// A miner published the key of its payload.
    Opened {
        window: u64,
    },
    /// A validator finished judging, and its vote is on its disk. Only then does it hand the vote to the chain; whether
    /// the vote counted is known when the window has [`Event::Ended`].
    Voted {
        window: u64,
        accept: Vec<Uid>,
        faults: Vec<Fault>,
        /// Time from the put deadline to the vote, in which the validator fetched what it judged.
        comm_s: f64,
    },
    /// A validator's vote on a window does not count: it is malformed, or names another window.
    Misvoted {
        window: u64,
        uid: Uid,
        fault: VoteFault,
        /// The fault in words, with its figures.
        cause: String,
    },
    /// A validator's bucket holds something else under the name of a certified checkpoint.
    CheckpointRefused {
        uid: Uid,
        digest: Hash32,
        fault: CheckpointFault,
    },
    /// A neuron takes no part in a window, because its bucket location on chain is not valid.
    Unlisted {
        window: u64,
        uid: Uid,
        fault: BucketFault,
        cause: String,
    },
    /// The bucket of `uid` does not serve the certified contribution that it should.
    Misserved {
        window: u64,
        uid: Uid,
        fault: FaultKind,
    },
    /// How often this process has met each fault of others since it started. It follows every event that names one.
    Faults {
        totals: Vec<FaultCount>,
    },
    /// A window is decided, and this node's state includes it.
    Settled {
        window: u64,
        verdict: Verdict,
        state_root: Hash32,
        payload_bytes: u64,
        values: u64,
        tokens: u64,
    },
    /// How a window ended for this node. There is exactly one for each window that it goes through.
    Ended {
        window: u64,
        outcome: Outcome,
    },
    /// A validator measured θ after `window` on held-out text.
    Validated {
        window: u64,
        loss: f64,
        bits_per_byte: f64,
    },
    /// A validator's book of miners as it is at a start: whatever follows can be computed from it.
    BookOpened {
        scoring: ScoringSpec,
        /// In Borsh; as text, in hexadecimal.
        #[serde(with = "hex")]
        book: Vec<u8>,
    },
    /// What a validator has on record of a window that is settled.
    Judged {
        #[serde(flatten)]
        judgement: Judgement,
    },
    /// A validator measured what contributions did to the loss.
    Evaluated {
        window: u64,
        evaluations: Vec<Evaluation>,
        /// By miner: the mean value of its contributions by now, in the value of a median one.
        scores: Vec<(Uid, f64)>,
    },
    /// A validator handed weights to the chain.
    Weighed {
        window: u64,
        /// Who lost its registration, and so its record.
        forgotten: Vec<EntryId>,
        weights: Vec<(Uid, u16)>,
    },
    /// The network certified a different state from this node's, which goes back to one that the network shares.
    Diverged {
        window: u64,
        own: Hash32,
        certified: Hash32,
    },
    /// The node took over a certified state.
    Adopted {
        settled: u64,
        state_root: Hash32,
        from: Source,
    },
    /// The node's own access to storage works again, after [`Trouble::OwnStorage`].
    StorageBack {
        after_s: f64,
    },
    /// The node's own bucket takes again what it puts, after [`Trouble::UploadRefused`] or [`Trouble::CannotServe`].
    BucketBack {
        /// Uploads of a miner that were refused in between, or windows of a validator.
        refused: u64,
    },
    /// Something failed, and the node goes on.
    Trouble {
        trouble: Trouble,
    },
}

/// How a window ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    Certified {
        accepted: Vec<Uid>,
        excluded: Vec<Uid>,
    },
    /// What most of the votes accept does not count for anybody, because a payload of it could not be had.
    Withheld {
        accepted: Vec<Uid>,
    },
    TooFewVotes,
    NoMajority,
}

impl From<NullReason> for Verdict {
    fn from(reason: NullReason) -> Self {
        match reason {
            NullReason::TooFewVotes => Self::TooFewVotes,
            NullReason::NoMajority => Self::NoMajority,
        }
    }
}

/// Where a state came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Source {
    Local,
    Checkpoint,
    Genesis,
}

/// What is wrong with something that another node published.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "of", content = "fault", rename_all = "kebab-case")]
pub enum Cause {
    Contribution(FaultKind),
    Vote(VoteFault),
    Checkpoint(CheckpointFault),
    Bucket(BucketFault),
    /// A certified contribution, as served by a node that should have it.
    Served(FaultKind),
}

/// How often one cause occurred.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FaultCount {
    #[serde(flatten)]
    pub cause: Cause,
    pub count: u64,
}

impl Event {
    /// The faults of others that this event reports, one by one.
    pub fn causes(&self) -> Vec<Cause> {
        match self {
            Self::Voted { faults, .. } => faults.iter().map(|fault| Cause::Contribution(fault.kind)).collect(),
            Self::Misvoted { fault, .. } => vec![Cause::Vote(*fault)],
            Self::CheckpointRefused { fault, .. } => vec![Cause::Checkpoint(*fault)],
            Self::Unlisted { fault, .. } => vec![Cause::Bucket(*fault)],
            Self::Misserved { fault, .. } => vec![Cause::Served(*fault)],
            _ => Vec::new(),
        }
    }

    /// Adds this event's faults to `totals`, which are in the order of their first occurrence.
    pub fn count_faults(&self, totals: &mut Vec<FaultCount>) {
        for cause in self.causes() {
            match totals.iter_mut().find(|total| total.cause == cause) {
                Some(total) => total.count += 1,
                None => totals.push(FaultCount { cause, count: 1 }),
            }
        }
    }
}

/// An event with the name of its node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NodeEvent {
    pub node: String,
    #[serde(flatten)]
    pub event: Event,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_are_counted_by_cause_and_survive_json() {
        let misvoted = |fault| Event::Misvoted { window: 0, uid: Uid(1), fault, cause: String::new() };
        let mut totals = Vec::new();
        for fault in [VoteFault::Length, VoteFault::Padding, VoteFault::Length] {
            misvoted(fault).count_faults(&mut totals);
        }
        let length = FaultCount { cause: Cause::Vote(VoteFault::Length), count: 2 };
        assert_eq!(totals, [length, FaultCount { cause: Cause::Vote(VoteFault::Padding), count: 1 }]);
        let json = r#"{"node":"a","event":"faults","totals":[{"of":"vote","fault":"length","count":2}]}"#;
        let event = NodeEvent { node: "a".to_owned(), event: Event::Faults { totals: vec![length] } };
        assert_eq!(serde_json::to_string(&event).unwrap(), json);
        assert_eq!(serde_json::from_str::<NodeEvent>(json).unwrap(), event);
    }
}

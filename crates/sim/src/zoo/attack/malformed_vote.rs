//! Votes that are not what the protocol writes.

use templar_node::pretrain::setup::Setup;
use templar_protocol::fault::VoteFault;
use templar_record::event::Role;

use crate::zoo::kind::Kind;
use crate::zoo::layers::{rewrite_commitments, window_of};

pub const KIND: Kind = Kind {
    name: "malformed-vote",
    role: Role::Validator,
    tries: "It votes with bytes that are malformed, each window in another way, so that nodes may read them differently.",
    stopped_by: "Reading is total: a malformed vote is named, and counts for nothing at every node.",
    wrap: |setup, _| wrap(setup, |window| Some(Malformed::ALL[window as usize % Malformed::ALL.len()])),
};

/// What is wrong with a vote.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Malformed {
    /// A byte more than the candidates need.
    Long,
    /// No bitmaps.
    Short,
    /// A bit beyond the last validator, where the last byte has room for one.
    Padding,
    Tag,
}

impl Malformed {
    pub const ALL: [Self; 4] = [Self::Long, Self::Short, Self::Padding, Self::Tag];

    /// What everybody calls it.
    pub fn fault(self) -> VoteFault {
        match self {
            Self::Long | Self::Short => VoteFault::Length,
            Self::Padding => VoteFault::Padding,
            Self::Tag => VoteFault::Tag,
        }
    }

    fn spoil(self, vote: &mut Vec<u8>) {
        match self {
            Self::Long => vote.push(0),
            // Tag, window and root are left.
            Self::Short => vote.truncate(37),
            // The last byte of bits stands before 16 bytes of proof.
            Self::Padding => vote.iter_mut().nth_back(16).into_iter().for_each(|bits| *bits |= 0x80),
            Self::Tag => vote[0] = 9,
        }
    }
}

/// A validator whose votes are malformed in the windows for which `choose` says how.
pub fn wrap(setup: Setup, choose: impl Fn(u64) -> Option<Malformed> + Send + 'static) -> Setup {
    rewrite_commitments(setup, move |fields| {
        if let Some(vote) = fields.get_mut(2)
            && let Some(malformed) = window_of(vote).and_then(&choose)
        {
            malformed.spoil(vote);
        }
    })
}

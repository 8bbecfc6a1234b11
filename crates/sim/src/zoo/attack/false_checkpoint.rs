//! Checkpoints that are not what was certified.

use templar_node::pretrain::setup::Setup;
use templar_protocol::fault::CheckpointFault;
use templar_record::event::Role;

use crate::zoo::kind::Kind;
use crate::zoo::layers::forge_uploads;

pub const KIND: Kind = Kind {
    name: "false-checkpoint",
    role: Role::Validator,
    tries: "It serves checkpoints with another θ than was certified, or with a part missing; each node of this kind in its way.",
    stopped_by: "Roots: whoever fetches one refuses it by name, and asks another validator.",
    wrap: |setup, part| wrap(setup, Falsehood::ALL[part.nth % Falsehood::ALL.len()]),
};

/// What is wrong with a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Falsehood {
    /// A bit of each part of θ is another.
    FlippedTheta,
    LongTheta,
    ShortTheta,
    NoTheta,
    /// The state before it is missing.
    NoPrevious,
}

impl Falsehood {
    pub const ALL: [Self; 5] = [Self::FlippedTheta, Self::LongTheta, Self::ShortTheta, Self::NoTheta, Self::NoPrevious];

    /// What its victims call it.
    pub fn fault(self) -> CheckpointFault {
        match self {
            Self::FlippedTheta => CheckpointFault::ThetaMismatch,
            Self::LongTheta | Self::ShortTheta => CheckpointFault::ThetaLength,
            Self::NoTheta => CheckpointFault::ThetaMissing,
            Self::NoPrevious => CheckpointFault::PreviousMissing,
        }
    }

    fn object(self) -> &'static str {
        if self == Self::NoPrevious { "/previous" } else { "/theta/" }
    }

    fn forge(self, mut bytes: Vec<u8>) -> Option<Vec<u8>> {
        match self {
            Self::FlippedTheta => bytes[9] ^= 1,
            Self::LongTheta => bytes.extend([0; 4]),
            Self::ShortTheta => drop(bytes.drain(..4)),
            Self::NoTheta | Self::NoPrevious => return None,
        }
        Some(bytes)
    }
}

/// A validator all of whose checkpoints are false.
pub fn wrap(setup: Setup, falsehood: Falsehood) -> Setup {
    forge_uploads(setup, move |key, bytes| {
        let hit = key.contains("/checkpoint/") && key.contains(falsehood.object());
        let bytes = if hit { falsehood.forge(bytes.to_vec()).map(Into::into) } else { Some(bytes) };
        bytes.map(|bytes| (key.to_owned(), bytes)).into_iter().collect()
    })
}

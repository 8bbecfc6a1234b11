//! What all nodes of a run agree on between two windows, and the step from one to the next.

use borsh::{BorshDeserialize, BorshSerialize};

use crate::assignment::Cursor;
use crate::candidates::Candidate;
use crate::certificate::Certificate;
use crate::hash::Hash32;
use crate::roster::Roster;
use crate::run::{RunId, RunSpec};
use crate::standing::Standing;

/// The replicated state of a run. θ itself is named by its root.
///
/// Its digest is what validators vote on, so the chain of certificates is the history of the model *and* of
/// everything else that later windows depend on. A node that has a state with a certified digest need trust nothing
/// else.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct RunState {
    pub run: RunId,
    /// Windows settled so far: windows `0 .. settled` are in this state.
    pub settled: u64,
    /// Digest of the state before the last settled window; zeros at the start.
    pub previous: Hash32,
    /// [`crate::inputs::WindowInputs::digest`] of the last settled window; zeros at the start.
    pub inputs: Hash32,
    /// `state_root` of θ.
    pub theta_root: Hash32,
    /// Where the next window starts to take samples.
    pub cursor: Cursor,
    /// Windows that changed θ: the clock of schedules, which null windows do not advance.
    pub outer_steps: u64,
    /// Who may take part.
    pub standing: Standing,
}

/// A window that is decided: what its state follows from.
#[derive(Clone, Copy, Debug)]
pub struct Settlement<'a> {
    pub roster: &'a Roster,
    pub candidates: &'a [Candidate],
    pub certificate: &'a Certificate,
    /// Where the next window starts to take samples.
    pub cursor: Cursor,
    /// Digest of the window's inputs.
    pub inputs: Hash32,
}

/// What a window does to θ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OuterStep {
    /// The accepted contributions are applied, and θ has this root afterwards.
    Taken { theta_root: Hash32 },
    /// Nobody's contribution counts, because the payload of one that was accepted cannot be had. Everybody can compute
    /// this state without a single payload, so the next window's votes can choose it, and the run goes on.
    Withheld,
}

/// Why bytes are not a state of this run.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StateError {
    #[error("the bytes are not the canonical encoding of a run state: {0}")]
    Malformed(String),
    #[error("the state belongs to run {found}, not to {expected}")]
    WrongRun { found: RunId, expected: RunId },
}

/// Upper bound of an encoded state, standing and all: 512 exclusions of 72 bytes, a roster's misses of 43 and denials of
/// 50.
pub const STATE_BYTES_MAX: u64 = 128 * 1024;

impl RunState {
    /// The state before window 0.
    pub fn genesis(spec: &RunSpec) -> Self {
        Self {
            run: spec.id(),
            settled: 0,
            previous: Hash32::default(),
            inputs: Hash32::default(),
            theta_root: spec.theta0.root,
            cursor: 0,
            outer_steps: 0,
            standing: Standing::default(),
        }
    }

    /// The root that votes name.
    pub fn digest(&self) -> Hash32 {
        Hash32::of_value("templar v2 run state", self)
    }

    pub fn to_bytes(&self) -> Vec<u8> {
        borsh::to_vec(self).expect("a state has no value that Borsh lacks")
    }

    /// Reads a state of `run` from a stranger's bytes. The caller must still compare its digest with a certified one.
    pub fn from_bytes(bytes: &[u8], run: RunId) -> Result<Self, StateError> {
        if bytes.len() as u64 > STATE_BYTES_MAX {
            let reason = format!("there are {} bytes, but at most {STATE_BYTES_MAX} are allowed", bytes.len());
            return Err(StateError::Malformed(reason));
        }
        let state: Self = borsh::from_slice(bytes).map_err(|error| StateError::Malformed(error.to_string()))?;
        if state.run != run {
            return Err(StateError::WrongRun { found: state.run, expected: run });
        }
        Ok(state)
    }

    /// The state after a window, which must be the next one. A window without an accepted contribution leaves θ as it
    /// is.
    #[must_use]
    pub fn settle(&self, spec: &RunSpec, settlement: &Settlement<'_>, step: OuterStep) -> Self {
        let Settlement { roster, candidates, certificate, cursor, inputs } = *settlement;
        assert_eq!(certificate.window, self.settled, "windows settle in order");
        let (theta_root, moved) = match step {
            OuterStep::Taken { theta_root } => (theta_root, !certificate.accepted().is_empty()),
            OuterStep::Withheld => (self.theta_root, false),
        };
        Self {
            run: self.run,
            settled: certificate.window + 1,
            previous: self.digest(),
            inputs,
            theta_root,
            cursor,
            outer_steps: self.outer_steps + u64::from(moved),
            standing: self.standing.after(spec, roster, candidates, certificate),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::certificate::{NullReason, Outcome};
    use crate::keys::Hotkey;
    use crate::roster::EntryId;
    use crate::standing::{Denial, Exclusion, Misses};
    use crate::testing::{bucket, entry, roster, spec};

    fn settle(state: &RunState, outcome: Outcome, step: OuterStep) -> RunState {
        let candidates = vec![Candidate { entry: entry(1), bucket: bucket().identity() }];
        let certificate = Certificate { window: state.settled, outcome, voted_stake_rao: 1, total_stake_rao: 1 };
        let inputs = Hash32::of(b"inputs");
        let roster = roster(2, 1);
        let settlement =
            Settlement { roster: &roster, candidates: &candidates, certificate: &certificate, cursor: 96, inputs };
        state.settle(&spec(), &settlement, step)
    }

    fn accepting(state: &RunState) -> Outcome {
        let (root, accepted) = (state.digest(), vec![entry(1)]);
        Outcome::Certified { root, accepted, spare: vec![], excluded: vec![], denied: vec![] }
    }

    #[test]
    fn a_null_window_keeps_theta_and_the_schedule() {
        let genesis = RunState::genesis(&spec());
        let taken = OuterStep::Taken { theta_root: genesis.theta_root };
        let next = settle(&genesis, Outcome::Null(NullReason::TooFewVotes), taken);
        assert_eq!((next.settled, next.outer_steps, next.theta_root), (1, 0, genesis.theta_root));
        assert_eq!((next.previous, next.inputs), (genesis.digest(), Hash32::of(b"inputs")));
        assert_ne!(next.digest(), genesis.digest());
    }

    #[test]
    fn a_withheld_step_leaves_theta_to_all_and_is_another_state() {
        let genesis = RunState::genesis(&spec());
        let taken = settle(&genesis, accepting(&genesis), OuterStep::Taken { theta_root: Hash32::of(b"stepped") });
        let withheld = settle(&genesis, accepting(&genesis), OuterStep::Withheld);
        assert_eq!((taken.outer_steps, withheld.outer_steps), (1, 0));
        assert_eq!(withheld.theta_root, genesis.theta_root);
        assert_eq!((withheld.cursor, &withheld.standing), (taken.cursor, &taken.standing));
        assert_ne!(withheld.digest(), taken.digest());
    }

    /// Computed by another implementation, from the specification alone.
    #[test]
    fn golden() {
        let hash = Hash32::of(b"x");
        let hotkey = Hotkey(Hash32([7; 32]));
        let entry = EntryId { hotkey, ..entry(1) };
        let state = RunState {
            run: RunId(Hash32::of(b"run")),
            settled: 5,
            previous: hash,
            inputs: Hash32::of(b"inputs"),
            theta_root: hash,
            cursor: 96,
            outer_steps: 4,
            standing: Standing {
                exclusions: vec![Exclusion { hotkey, bucket: hash, until_window: 9 }],
                misses: vec![Misses { entry, windows: 2 }],
                denials: vec![Denial { entry, until_window: 8 }],
            },
        };
        assert_eq!(state.digest().to_string(), "f3cdf886e0a66826b266fe6d0404552863ecb99c60032ffe1d912425d21cbec9");
    }

    #[test]
    fn a_strangers_bytes_are_checked() {
        let state = RunState::genesis(&spec());
        let bytes = state.to_bytes();
        assert_eq!(RunState::from_bytes(&bytes, state.run).unwrap(), state);
        assert!(matches!(RunState::from_bytes(&bytes[1..], state.run), Err(StateError::Malformed(_))));
        assert!(matches!(
            RunState::from_bytes(&[bytes.clone(), vec![0]].concat(), state.run),
            Err(StateError::Malformed(_))
        ));
        let other = RunId(Hash32::of(b"other"));
        assert!(matches!(RunState::from_bytes(&bytes, other), Err(StateError::WrongRun { .. })));
    }
}

//! What all nodes of a run agree on between two windows, and the step from one to the next.

use borsh::{BorshDeserialize, BorshSerialize};

use crate::assignment::Cursor;
use crate::candidates::{self, Exclusion};
use crate::certificate::{Certificate, Outcome};
use crate::hash::Hash32;
use crate::roster::EntryId;
use crate::run::{RunId, RunSpec};

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
    /// `state_root` of θ.
    pub theta_root: Hash32,
    /// Where the next window starts to take samples.
    pub cursor: Cursor,
    /// Windows that changed θ: the clock of schedules, which null windows do not advance.
    pub outer_steps: u64,
    /// Who is excluded until which window, in the order of entries.
    pub exclusions: Vec<Exclusion>,
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

/// Most exclusions that a state keeps: a full subnet four times over.
const EXCLUSIONS_MAX: usize = 1024;
/// Upper bound of an encoded state, exclusions and all.
pub const STATE_BYTES_MAX: u64 = 64 * 1024;

impl RunState {
    /// The state before window 0.
    pub fn genesis(spec: &RunSpec) -> Self {
        Self {
            run: spec.id(),
            settled: 0,
            previous: Hash32::default(),
            theta_root: spec.theta0.root,
            cursor: 0,
            outer_steps: 0,
            exclusions: Vec::new(),
        }
    }

    /// The root that votes name.
    pub fn digest(&self) -> Hash32 {
        Hash32::of_value("templar v1 run state", self)
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

    pub fn is_excluded(&self, entry: &EntryId, window: u64) -> bool {
        candidates::is_excluded(&self.exclusions, entry, window)
    }

    /// The state after the window of `certificate`, which must be the next one. `theta_root` is the root after its
    /// outer step and must be the present root if the window changes nothing.
    #[must_use]
    pub fn settle(&self, spec: &RunSpec, certificate: &Certificate, cursor: Cursor, theta_root: Hash32) -> Self {
        assert_eq!(certificate.window, self.settled, "windows settle in order");
        let window = certificate.window;
        let mut exclusions: Vec<Exclusion> =
            self.exclusions.iter().filter(|exclusion| exclusion.until_window > window + 1).copied().collect();
        let mut outer_steps = self.outer_steps;
        if let Outcome::Certified { accepted, excluded, .. } = &certificate.outcome {
            outer_steps += u64::from(!accepted.is_empty());
            // The first window that can know of the exclusion starts from this state.
            let first = window + 1 + u64::from(spec.windows.delay_windows);
            let until_window = first + spec.roster.exclusion_windows;
            exclusions.retain(|exclusion| !excluded.contains(&exclusion.entry));
            exclusions.extend(excluded.iter().map(|&entry| Exclusion { entry, until_window }));
            // If there are too many, those that last longest stay.
            exclusions.sort_unstable_by_key(|exclusion| (std::cmp::Reverse(exclusion.until_window), exclusion.entry));
            exclusions.truncate(EXCLUSIONS_MAX);
            exclusions.sort_unstable_by_key(|exclusion| exclusion.entry);
        }
        let previous = self.digest();
        Self { run: self.run, settled: window + 1, previous, theta_root, cursor, outer_steps, exclusions }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::certificate::NullReason;
    use crate::testing::{entry, spec};

    fn certificate(window: u64, outcome: Outcome) -> Certificate {
        Certificate { window, outcome, voted_stake_rao: 1, total_stake_rao: 1 }
    }

    #[test]
    fn a_null_window_keeps_theta_and_the_schedule() {
        let genesis = RunState::genesis(&spec());
        let null = certificate(0, Outcome::Null(NullReason::NoQuorum));
        let next = genesis.settle(&spec(), &null, 96, genesis.theta_root);
        assert_eq!((next.settled, next.outer_steps, next.theta_root), (1, 0, genesis.theta_root));
        assert_ne!(next.digest(), genesis.digest());
    }

    #[test]
    fn an_exclusion_lasts_until_its_window() {
        let (run, genesis) = (spec(), RunState::genesis(&spec()));
        let excluded = vec![entry(2)];
        let outcome = Outcome::Certified { root: genesis.digest(), accepted: vec![entry(1)], excluded };
        let mut state = genesis.settle(&run, &certificate(0, outcome), 1, genesis.theta_root);
        let until = 1 + run.roster.exclusion_windows;
        for window in 1..until {
            assert!(state.is_excluded(&entry(2), window) && !state.is_excluded(&entry(1), window));
            let null = certificate(window, Outcome::Null(NullReason::NoMajority));
            state = state.settle(&run, &null, 1, state.theta_root);
        }
        assert!(!state.is_excluded(&entry(2), until) && state.exclusions.is_empty());
    }

    /// Computed by another implementation, from the specification alone.
    #[test]
    fn golden() {
        let hash = Hash32::of(b"x");
        let entry = EntryId { hotkey: crate::keys::Hotkey(Hash32([7; 32])), ..entry(1) };
        let state = RunState {
            run: RunId(Hash32::of(b"run")),
            settled: 5,
            previous: hash,
            theta_root: hash,
            cursor: 96,
            outer_steps: 4,
            exclusions: vec![Exclusion { entry, until_window: 9 }],
        };
        assert_eq!(state.digest().to_string(), "f7e0036ca73f44f66e44c90e64c3bc391c50b33cf47d51ddac81f3119be0c8f9");
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

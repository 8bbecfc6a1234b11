//! Certified windows without a leader: what the votes on chain say, as a pure function of finalised state.

use borsh::{BorshDeserialize, BorshSerialize};

use crate::candidates::Candidate;
use crate::hash::Hash32;
use crate::roster::{EntryId, Roster, Snapshot};
use crate::word::{Ballots, Vote, WordError};

/// What became of a window.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Certificate {
    pub window: u64,
    pub outcome: Outcome,
    /// Stake of the validators with a valid vote.
    pub voted_stake_rao: u128,
    /// Stake of all validators of the window's roster.
    pub total_stake_rao: u128,
}

#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub enum Outcome {
    Certified {
        /// Digest of the state that the window starts from, by more than half of the stake that voted.
        root: Hash32,
        /// Whose contributions count, in the order of candidates.
        accepted: Vec<EntryId>,
        /// Who cannot be a candidate for a while.
        excluded: Vec<EntryId>,
    },
    /// θ stays as it is.
    Null(NullReason),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub enum NullReason {
    /// Less than a third of the stake voted.
    NoQuorum,
    /// No root has more than half of the stake that voted.
    NoMajority,
}

/// Reads the validators' votes on `window` from the snapshot at its vote deadline.
pub fn read_ballots(window: u64, roster: &Roster, candidates: usize, at_deadline: &Snapshot) -> Ballots {
    let read = |entry: &EntryId| {
        let commitment = at_deadline.find(entry).and_then(|neuron| neuron.commitment.as_ref());
        Vote::read(commitment.ok_or(WordError::Absent)?, window as u32, candidates)
    };
    roster.validators.iter().map(|validator| (validator.entry, read(&validator.entry))).collect()
}

/// The root that [`certify`] finds, without knowing the candidates: how a newcomer learns which state to take over.
///
/// Votes whose bitmaps do not fit the candidates count here but not in [`certify`]. If they tip the balance, the
/// newcomer is misled only until it replays its first window, where [`certify`] contradicts it.
pub fn certified_root(window: u64, roster: &Roster, at_deadline: &Snapshot) -> Option<Hash32> {
    let root_of = |entry: &EntryId| {
        let commitment = at_deadline.find(entry)?.commitment.as_ref()?;
        Vote::read_root(commitment, window as u32).ok()
    };
    let votes: Vec<(u128, Hash32)> = roster
        .validators
        .iter()
        .filter_map(|validator| Some((u128::from(validator.stake_rao), root_of(&validator.entry)?)))
        .collect();
    majority_root(&votes, roster.validator_stake_rao()).ok()
}

/// The root that more than half of the voting stake backs, if at least a third of the total stake voted. Each vote is
/// its stake and its root.
fn majority_root(votes: &[(u128, Hash32)], total_stake_rao: u128) -> Result<Hash32, NullReason> {
    let voted: u128 = votes.iter().map(|(stake, _)| stake).sum();
    if voted == 0 || voted * 3 < total_stake_rao {
        return Err(NullReason::NoQuorum);
    }
    let backing = |root: &Hash32| votes.iter().filter(|(_, other)| other == root).map(|(stake, _)| stake).sum::<u128>();
    votes.iter().map(|(_, root)| *root).find(|root| 2 * backing(root) > voted).ok_or(NullReason::NoMajority)
}

/// The certificate of `window`.
///
/// The window is certified if at least a third of the roster's validator stake voted and one root has more than half of
/// the stake that voted. A contribution counts if more than half of the stake voting for that root accepted it and it
/// is among the first `gather` such candidates; ties reject. An exclusion needs the same majority.
pub fn certify(window: u64, roster: &Roster, candidates: &[Candidate], gather: u32, ballots: &Ballots) -> Certificate {
    let stake_of = |entry: &EntryId| {
        let found = roster.validators.iter().find(|validator| validator.entry == *entry);
        found.map_or(0, |validator| u128::from(validator.stake_rao))
    };
    let votes: Vec<(u128, &Vote)> =
        ballots.iter().filter_map(|(entry, vote)| Some((stake_of(entry), vote.as_ref().ok()?))).collect();
    let sum = |filter: &dyn Fn(&Vote) -> bool| -> u128 {
        votes.iter().filter(|(_, vote)| filter(vote)).map(|(stake, _)| stake).sum()
    };
    let voted_stake_rao = sum(&|_| true);
    let total_stake_rao = roster.validator_stake_rao();
    let finish = |outcome| Certificate { window, outcome, voted_stake_rao, total_stake_rao };
    let roots: Vec<(u128, Hash32)> = votes.iter().map(|(stake, vote)| (*stake, vote.root)).collect();
    let root = match majority_root(&roots, total_stake_rao) {
        Ok(root) => root,
        Err(reason) => return finish(Outcome::Null(reason)),
    };
    let backing = sum(&|vote| vote.root == root);
    let passed = |says: &dyn Fn(&Vote) -> bool| 2 * sum(&|vote| vote.root == root && says(vote)) > backing;
    let numbered = || candidates.iter().enumerate();
    let accepted = numbered().filter(|(nth, _)| passed(&|vote| vote.accept[*nth]));
    let excluded = numbered().filter(|(nth, _)| passed(&|vote| vote.exclude[*nth]));
    finish(Outcome::Certified {
        root,
        accepted: accepted.map(|(_, candidate)| candidate.entry).take(gather as usize).collect(),
        excluded: excluded.map(|(_, candidate)| candidate.entry).collect(),
    })
}

impl Certificate {
    /// Whose contributions count; nobody's in a null window.
    pub fn accepted(&self) -> &[EntryId] {
        match &self.outcome {
            Outcome::Certified { accepted, .. } => accepted,
            Outcome::Null(_) => &[],
        }
    }

    /// The certified digest of the window's base state.
    pub fn root(&self) -> Option<Hash32> {
        match &self.outcome {
            Outcome::Certified { root, .. } => Some(*root),
            Outcome::Null(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing::{bucket, entry, roster};

    const VALIDATORS: usize = 4;

    fn candidates(count: u16) -> Vec<Candidate> {
        (0..count).map(|uid| Candidate { entry: entry(uid), bucket: bucket() }).collect()
    }

    #[expect(clippy::unnecessary_wraps, reason = "a ballot is a vote or the reason why there is no vote")]
    fn vote(root: &[u8], accept: [bool; 2]) -> Result<Vote, WordError> {
        Ok(Vote { window: 0, root: Hash32::of(root), accept: accept.to_vec(), exclude: vec![false, accept[0]] })
    }

    /// Validators have uids 2, 3, … and a stake of 100 each.
    fn ballots(votes: &[Result<Vote, WordError>]) -> Ballots {
        votes.iter().enumerate().map(|(nth, vote)| (entry(nth as u16 + 2), vote.clone())).collect()
    }

    fn outcome(votes: &[Result<Vote, WordError>]) -> Outcome {
        certify(0, &roster(2, VALIDATORS), &candidates(2), 20, &ballots(votes)).outcome
    }

    #[test]
    fn a_third_is_a_quorum_and_less_is_not() {
        let absent = Err(WordError::Absent);
        let one = [vote(b"a", [true; 2]), absent.clone(), absent.clone(), absent.clone()];
        assert_eq!(outcome(&one), Outcome::Null(NullReason::NoQuorum));
        let two = [vote(b"a", [true; 2]), vote(b"a", [true; 2]), absent.clone(), absent];
        assert!(matches!(outcome(&two), Outcome::Certified { .. }));
        assert_eq!(outcome(&[]), Outcome::Null(NullReason::NoQuorum));
    }

    #[test]
    fn ties_reject() {
        let split = [vote(b"a", [true; 2]), vote(b"b", [true; 2])];
        assert_eq!(outcome(&split), Outcome::Null(NullReason::NoMajority));
        let tie = [vote(b"a", [true, true]), vote(b"a", [false, true])];
        let expected = Outcome::Certified { root: Hash32::of(b"a"), accepted: vec![entry(1)], excluded: vec![] };
        assert_eq!(outcome(&tie), expected);
    }

    #[test]
    fn only_votes_for_the_root_and_the_first_g_candidates_count() {
        let votes = [vote(b"a", [true; 2]), vote(b"a", [true; 2]), vote(b"a", [true; 2]), vote(b"b", [false; 2])];
        let gather_one = certify(0, &roster(2, VALIDATORS), &candidates(2), 1, &ballots(&votes));
        assert_eq!(gather_one.accepted(), [entry(0)]);
        assert!(matches!(gather_one.outcome, Outcome::Certified { excluded, .. } if excluded == [entry(1)]));
    }

    proptest! {
        #[test]
        fn ballot_order_is_irrelevant(roots in proptest::collection::vec(0u8..3, VALIDATORS), bits in any::<[bool; 8]>()) {
            let votes: Vec<_> = roots.iter().zip(bits.chunks(2)).map(|(root, b)| vote(&[*root], [b[0], b[1]])).collect();
            let mut reversed = ballots(&votes);
            reversed.reverse();
            let forward = certify(0, &roster(2, VALIDATORS), &candidates(2), 20, &ballots(&votes));
            prop_assert_eq!(forward, certify(0, &roster(2, VALIDATORS), &candidates(2), 20, &reversed));
        }
    }
}

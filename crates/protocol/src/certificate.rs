//! Certified windows without a leader: what the votes on chain say, as a pure function of finalised state.

use borsh::{BorshDeserialize, BorshSerialize};

use crate::candidates::Candidate;
use crate::hash::Hash32;
use crate::roster::{EntryId, Roster, Snapshot};
use crate::standing::Standing;
use crate::word::{Vote, WordError};

/// Each validator's vote on a window, or why it has no valid one.
pub type Ballots = Vec<(EntryId, Result<Vote, WordError>)>;

/// What became of a window.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Certificate {
    pub window: u64,
    pub outcome: Outcome,
    /// Stake of the validators with a valid vote.
    pub voted_stake_rao: u128,
    /// Stake of the validators of the window's roster that are not denied.
    pub total_stake_rao: u128,
}

#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub enum Outcome {
    Certified {
        /// Digest of the state that the window starts from, by more than half of that stake.
        root: Hash32,
        /// Whose contributions count, in the order of candidates.
        accepted: Vec<EntryId>,
        /// Who passed as well, beyond the number that counts.
        spare: Vec<EntryId>,
        /// Who cannot be a candidate for a while.
        excluded: Vec<EntryId>,
        /// Whose votes do not count for a while.
        denied: Vec<EntryId>,
    },
    /// θ stays as it is.
    Null(NullReason),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub enum NullReason {
    /// At most half of the stake voted.
    TooFewVotes,
    /// Enough voted, but no root has more than half of the stake.
    NoMajority,
}

/// Reads the validators' votes on `window` from the snapshot at its vote deadline.
pub fn read_ballots(window: u64, roster: &Roster, candidates: usize, at_deadline: &Snapshot) -> Ballots {
    let read = |entry: &EntryId| {
        let commitment = at_deadline.find(entry).and_then(|neuron| neuron.commitment.as_ref());
        Vote::read(commitment.ok_or(WordError::Absent)?, window as u32, candidates, roster.validators.len())
    };
    roster.validators.iter().map(|validator| (validator.entry, read(&validator.entry))).collect()
}

/// The root that [`certify`] finds, without knowing the candidates: how a node learns which state the others have. Whom
/// the state denies counts for nothing; a newcomer that has no state yet takes nobody to be denied.
///
/// Votes whose bitmaps do not fit the candidates count here but not in [`certify`]. If they tip the balance, the
/// newcomer is misled only until it replays its first window, where [`certify`] contradicts it.
pub fn certified_root(window: u64, roster: &Roster, standing: &Standing, at_deadline: &Snapshot) -> Option<Hash32> {
    let root_of = |entry: &EntryId| {
        let commitment = at_deadline.find(entry)?.commitment.as_ref()?;
        Vote::read_root(commitment, window as u32).ok()
    };
    let voters = || roster.validators.iter().filter(|validator| !standing.denies(&validator.entry, window));
    let votes: Vec<(u128, Hash32)> =
        voters().filter_map(|validator| Some((u128::from(validator.stake_rao), root_of(&validator.entry)?))).collect();
    majority_root(&votes, voters().map(|validator| u128::from(validator.stake_rao)).sum()).ok()
}

/// The root that more than half of the total stake backs. Each vote is its stake and its root.
fn majority_root(votes: &[(u128, Hash32)], total_stake_rao: u128) -> Result<Hash32, NullReason> {
    let voted: u128 = votes.iter().map(|(stake, _)| stake).sum();
    if 2 * voted <= total_stake_rao {
        return Err(NullReason::TooFewVotes);
    }
    let backing = |root: &Hash32| votes.iter().filter(|(_, other)| other == root).map(|(stake, _)| stake).sum::<u128>();
    let majority = |root: &Hash32| 2 * backing(root) > total_stake_rao;
    votes.iter().map(|(_, root)| *root).find(majority).ok_or(NullReason::NoMajority)
}

/// The certificate of `window`.
///
/// A root is certified if more than half of the stake of the roster's validators votes for it: a third may be away, or
/// hostile, and two different roots can never both be certified. A contribution passes if more than half of all stake
/// votes for that root and accepts it, so that whoever holds less can neither pass what nobody else can fetch nor exclude
/// or deny anybody while others are away; the first `gather` that pass count. Exclusions and denials need the same
/// majority, and ties reject. Validators that `standing`, that of the state that the window starts from, denies have no vote and are
/// no part of the total.
pub fn certify(
    window: u64,
    roster: &Roster,
    candidates: &[Candidate],
    standing: &Standing,
    gather: u32,
    ballots: &Ballots,
) -> Certificate {
    let voters = || roster.validators.iter().filter(|validator| !standing.denies(&validator.entry, window));
    let stake_of = |entry: &EntryId| {
        voters().find(|validator| validator.entry == *entry).map(|validator| u128::from(validator.stake_rao))
    };
    let votes: Vec<(u128, &Vote)> =
        ballots.iter().filter_map(|(entry, vote)| Some((stake_of(entry)?, vote.as_ref().ok()?))).collect();
    let sum = |filter: &dyn Fn(&Vote) -> bool| -> u128 {
        votes.iter().filter(|(_, vote)| filter(vote)).map(|(stake, _)| stake).sum()
    };
    let voted_stake_rao = sum(&|_| true);
    let total_stake_rao = voters().map(|validator| u128::from(validator.stake_rao)).sum();
    let finish = |outcome| Certificate { window, outcome, voted_stake_rao, total_stake_rao };
    let roots: Vec<(u128, Hash32)> = votes.iter().map(|(stake, vote)| (*stake, vote.root)).collect();
    let root = match majority_root(&roots, total_stake_rao) {
        Ok(root) => root,
        Err(reason) => return finish(Outcome::Null(reason)),
    };
    let passes = |says: &dyn Fn(&Vote) -> bool| 2 * sum(&|vote| vote.root == root && says(vote)) > total_stake_rao;
    let entries = || candidates.iter().map(|candidate| candidate.entry).enumerate();
    let mut accepted: Vec<EntryId> =
        entries().filter(|(nth, _)| passes(&|vote| vote.accept[*nth])).map(|(_, entry)| entry).collect();
    let spare = accepted.split_off(accepted.len().min(gather as usize));
    let excluded = entries().filter(|(nth, _)| passes(&|vote| vote.exclude[*nth])).map(|(_, entry)| entry).collect();
    let validators = roster.validators.iter().map(|validator| validator.entry).enumerate();
    let denied = validators.filter(|(nth, _)| passes(&|vote| vote.deny[*nth])).map(|(_, entry)| entry).collect();
    finish(Outcome::Certified { root, accepted, spare, excluded, denied })
}

/// The candidates whose contributions more than half of all stake voted on and did not accept. What one validator sees may be
/// its own link's doing; this is what most of the stake saw.
pub fn refused(
    certificate: &Certificate,
    roster: &Roster,
    candidates: &[Candidate],
    standing: &Standing,
    ballots: &Ballots,
) -> Vec<EntryId> {
    let Some(root) = certificate.root() else { return Vec::new() };
    let counts = |entry: &EntryId| !standing.denies(entry, certificate.window);
    let stake_rao = |entry: &EntryId| {
        let validator = roster.validators.iter().find(|validator| validator.entry == *entry && counts(entry));
        validator.map_or(0, |validator| u128::from(validator.stake_rao))
    };
    let is_against = |vote: &Vote, nth: usize| vote.root == root && !vote.accept[nth];
    let against_rao = |nth: usize| -> u128 {
        let against = ballots.iter().filter(|(_, vote)| vote.as_ref().is_ok_and(|vote| is_against(vote, nth)));
        against.map(|(entry, _)| stake_rao(entry)).sum()
    };
    let entries = candidates.iter().map(|candidate| candidate.entry).enumerate();
    entries.filter(|(nth, _)| 2 * against_rao(*nth) > certificate.total_stake_rao).map(|(_, entry)| entry).collect()
}

impl Certificate {
    /// Whose contributions count; nobody's in a null window.
    pub fn accepted(&self) -> &[EntryId] {
        match &self.outcome {
            Outcome::Certified { accepted, .. } => accepted,
            Outcome::Null(_) => &[],
        }
    }

    /// Whether most of the stake accepted the contribution of `entry`, whether it counts or is spare.
    pub fn passed(&self, entry: &EntryId) -> bool {
        match &self.outcome {
            Outcome::Certified { accepted, spare, .. } => accepted.contains(entry) || spare.contains(entry),
            Outcome::Null(_) => false,
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
    use crate::standing::Denial;
    use crate::testing::{bucket, entry, roster};

    const VALIDATORS: usize = 4;

    fn candidates(count: u16) -> Vec<Candidate> {
        (0..count).map(|uid| Candidate { entry: entry(uid), bucket: bucket().identity() }).collect()
    }

    #[expect(clippy::unnecessary_wraps, reason = "a ballot is a vote or the reason why there is no vote")]
    fn vote(root: &[u8], accept: [bool; 2]) -> Result<Vote, WordError> {
        let (root, exclude, deny) = (Hash32::of(root), vec![false, accept[0]], vec![false; VALIDATORS]);
        Ok(Vote { window: 0, root, accept: accept.to_vec(), exclude, deny, proof: [0; 16] })
    }

    /// Validators have uids 2, 3, … and a stake of 100 each.
    fn ballots(votes: &[Result<Vote, WordError>]) -> Ballots {
        votes.iter().enumerate().map(|(nth, vote)| (entry(nth as u16 + 2), vote.clone())).collect()
    }

    fn certify(gather: u32, ballots: &Ballots) -> Certificate {
        super::certify(0, &roster(2, VALIDATORS), &candidates(2), &Standing::default(), gather, ballots)
    }

    fn outcome(votes: &[Result<Vote, WordError>]) -> Outcome {
        certify(20, &ballots(votes)).outcome
    }

    #[test]
    fn most_of_all_stake_must_refuse_what_counts_as_refused() {
        let (no, yes, absent) = (vote(b"a", [true, false]), vote(b"a", [true; 2]), Err(WordError::Absent));
        let refused = |votes: &[Result<Vote, WordError>]| {
            let ballots = ballots(votes);
            let (roster, candidates) = (roster(2, VALIDATORS), candidates(2));
            super::refused(&certify(20, &ballots), &roster, &candidates, &Standing::default(), &ballots)
        };
        assert_eq!(refused(&[no.clone(), no.clone(), no.clone(), absent.clone()]), [entry(1)]);
        assert_eq!(refused(&[no.clone(), no.clone(), yes, absent.clone()]), []);
        assert_eq!(refused(&[no.clone(), no, absent.clone(), absent]), [], "nothing is certified");
    }

    #[test]
    fn more_than_half_of_the_stake_must_stand_behind_a_root() {
        let (absent, yes, other) = (Err(WordError::Absent), vote(b"a", [true; 2]), vote(b"b", [true; 2]));
        let half = [yes.clone(), yes.clone(), absent.clone(), absent.clone()];
        assert_eq!(outcome(&half), Outcome::Null(NullReason::TooFewVotes));
        let split = [yes.clone(), yes.clone(), other.clone(), absent.clone()];
        assert_eq!(outcome(&split), Outcome::Null(NullReason::NoMajority));
        for fourth in [absent, other] {
            assert!(matches!(outcome(&[yes.clone(), yes.clone(), yes.clone(), fourth]), Outcome::Certified { .. }));
        }
        assert_eq!(outcome(&[]), Outcome::Null(NullReason::TooFewVotes));
    }

    #[test]
    fn ties_reject() {
        let split = [vote(b"a", [true; 2]), vote(b"a", [true; 2]), vote(b"b", [true; 2]), vote(b"b", [true; 2])];
        assert_eq!(outcome(&split), Outcome::Null(NullReason::NoMajority));
        let (both, second) = (vote(b"a", [true, true]), vote(b"a", [false, true]));
        let Outcome::Certified { accepted, excluded, .. } = outcome(&[both.clone(), both, second.clone(), second])
        else {
            panic!("all four agree on the root")
        };
        assert_eq!((accepted, excluded), (vec![entry(1)], vec![]));
    }

    #[test]
    fn only_votes_for_the_root_and_the_first_g_candidates_count() {
        let votes = [vote(b"a", [true; 2]), vote(b"a", [true; 2]), vote(b"a", [true; 2]), vote(b"b", [false; 2])];
        let gather_one = certify(1, &ballots(&votes));
        assert_eq!(gather_one.accepted(), [entry(0)]);
        assert!(gather_one.passed(&entry(1)), "beyond the number that counts");
        assert!(matches!(gather_one.outcome, Outcome::Certified { excluded, .. } if excluded == [entry(1)]));
    }

    /// Two of four are away: what one of the other two says alone, however large its share of what voted, does nothing.
    #[test]
    fn less_than_half_of_all_stake_can_neither_accept_nor_exclude_nor_deny() {
        let mut hostile = vote(b"a", [true; 2]).unwrap();
        hostile.deny = vec![true; VALIDATORS];
        let (hostile, honest, absent) = (Ok(hostile), vote(b"a", [false; 2]), Err(WordError::Absent));
        let three = [hostile.clone(), hostile, honest, absent];
        let expected = Outcome::Certified {
            root: Hash32::of(b"a"),
            accepted: vec![],
            spare: vec![],
            excluded: vec![],
            denied: vec![],
        };
        assert_eq!(outcome(&three), expected);
    }

    #[test]
    fn a_denied_validator_has_no_vote_and_no_part_of_the_total() {
        let yes = vote(b"a", [true; 2]);
        let mut denying = yes.clone().unwrap();
        denying.deny[3] = true;
        let denying = Ok(denying);
        let Outcome::Certified { denied, .. } = outcome(&[denying.clone(), denying.clone(), denying, yes.clone()])
        else {
            panic!("all four agree on the root")
        };
        assert_eq!(denied, [entry(5)]);
        let standing = Standing {
            denials: [4, 5].map(|uid| Denial { entry: entry(uid), until_window: 9 }).to_vec(),
            ..Standing::default()
        };
        let other = vote(b"b", [true; 2]);
        let votes = ballots(&[yes.clone(), yes, other.clone(), other]);
        let found = super::certify(0, &roster(2, VALIDATORS), &candidates(2), &standing, 20, &votes);
        assert_eq!((found.voted_stake_rao, found.total_stake_rao, found.root()), (200, 200, Some(Hash32::of(b"a"))));
    }

    proptest! {
        #[test]
        fn ballot_order_is_irrelevant(roots in proptest::collection::vec(0u8..3, VALIDATORS), bits in any::<[bool; 8]>()) {
            let votes: Vec<_> = roots.iter().zip(bits.chunks(2)).map(|(root, b)| vote(&[*root], [b[0], b[1]])).collect();
            let mut reversed = ballots(&votes);
            reversed.reverse();
            prop_assert_eq!(certify(20, &ballots(&votes)), certify(20, &reversed));
        }
    }
}

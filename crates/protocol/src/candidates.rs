//! Candidates, chosen before anything is downloaded: whose contributions may count in a window, and who gets data.
//!
//! Nobody can fetch 256 contributions of a gigabyte each. Most seats go to the miners that the chain pays most. A quarter
//! of those that count are for miners that it does not pay yet, by turns and by lot, so that everybody gets a chance
//! within a bounded time and no flood of newcomers displaces those that work.

use crate::hash::{Hash32, Hasher};
use crate::roster::{EntryId, Miner, Roster, Uid};
use crate::run::RosterSpec;
use crate::standing::Standing;

/// A miner whose contribution may count. Its place in the list is its bit in every vote.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    pub entry: EntryId,
    /// [`crate::bucket::BucketLocator::identity`] of its bucket.
    pub bucket: Hash32,
}

/// What decides whether a miner becomes a candidate: all of it is in the window's inputs, too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Contender {
    pub entry: EntryId,
    pub incentive: u16,
    /// [`crate::bucket::BucketLocator::identity`] of its bucket.
    pub bucket: Hash32,
}

impl From<&Miner> for Contender {
    fn from(miner: &Miner) -> Self {
        Self { entry: miner.entry, incentive: miner.incentive, bucket: miner.bucket.identity() }
    }
}

/// Uids whose turns follow each other: a full subnet.
const TURNS: u64 = 256;
/// Seats in a row without a contribution that passed from which a miner's incentive counts for nothing.
const MISSES_MAX: u8 = 3;

/// Seats of a window for miners without incentive: a quarter of those that count, and never all of them.
pub fn newcomer_seats(spec: &RosterSpec) -> u64 {
    u64::from(spec.gather.div_ceil(4).min(spec.gather - 1))
}

/// Whether `uid` has its turn in `window`: a seat that is its own, as long as it is active and has no incentive. Turns
/// go round by uid, [`newcomer_seats`] in a window, so nobody waits more than ⌈256 / seats⌉ windows.
pub fn has_turn(uid: Uid, window: u64, spec: &RosterSpec) -> bool {
    let seats = newcomer_seats(spec);
    let first = (u128::from(window) * u128::from(seats) % u128::from(TURNS)) as u64;
    (u64::from(uid.0) % TURNS + TURNS - first) % TURNS < seats
}

/// At most `gather + reserve` candidates of `window`, in the order in which they count if they pass.
///
/// First come miners without incentive: those that have their turn, then those that missed the fewest seats; the seed's
/// lot orders equal ones. Then come the others by falling incentive. Seats that these leave empty go to the first kind
/// again, so that a run of few paid miners wastes none. `standing` is that of the state that the window starts from.
pub fn select(window: u64, roster: &Roster, standing: &Standing, spec: &RosterSpec, seed: &Hash32) -> Vec<Candidate> {
    choose(window, roster.miners.iter().map(Contender::from), standing, spec, seed)
}

/// [`select`] among `contenders`, which stand in the order of the roster.
pub fn choose(
    window: u64,
    contenders: impl Iterator<Item = Contender>,
    standing: &Standing,
    spec: &RosterSpec,
    seed: &Hash32,
) -> Vec<Candidate> {
    let may_stand = |contender: &Contender| !standing.keeps_out(&contender.entry.hotkey, &contender.bucket, window);
    let mut eligible: Vec<Contender> = contenders.filter(may_stand).collect();
    let mut hasher = Hasher::new("templar v2 candidate lot");
    hasher.update(seed.as_bytes()).clone().into_stream().shuffle(&mut eligible);
    let misses = |miner: &Contender| standing.misses(&miner.entry);
    let (mut proven, mut others): (Vec<Contender>, Vec<Contender>) =
        eligible.into_iter().partition(|miner| miner.incentive > 0 && misses(miner) < MISSES_MAX);
    proven.sort_by_key(|miner| std::cmp::Reverse(miner.incentive));
    others.sort_by_key(|miner| (!has_turn(miner.entry.uid, window, spec), misses(miner)));
    let first = if proven.is_empty() { others.len() } else { others.len().min(newcomer_seats(spec) as usize) };
    let rest = others.split_off(first);
    let candidate = |miner: Contender| Candidate { entry: miner.entry, bucket: miner.bucket };
    let seats = (spec.gather + spec.reserve) as usize;
    others.into_iter().chain(proven).chain(rest).take(seats).map(candidate).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::standing::Misses;
    use crate::testing::{entry, roster, spec};

    fn uids(candidates: &[Candidate]) -> Vec<u16> {
        candidates.iter().map(|candidate| candidate.entry.uid.0).collect()
    }

    fn select(window: u64, roster: &Roster, standing: &Standing, spec: &RosterSpec, seed: &[u8]) -> Vec<u16> {
        uids(&super::select(window, roster, standing, spec, &Hash32::of(seed)))
    }

    #[test]
    fn seats_go_by_lot_at_bootstrap() {
        let (run, roster) = (spec(), roster(6, 1));
        // The lot as another implementation computes it from the specification alone; uid 0 has its turn.
        let everybody = RosterSpec { gather: 2, reserve: 4, ..run.roster };
        assert_eq!(select(0, &roster, &Standing::default(), &everybody, b"a"), [0, 4, 1, 2, 5, 3]);
        let seats = RosterSpec { gather: 2, reserve: 1, ..run.roster };
        let lot = |seed: u8| select(0, &roster, &Standing::default(), &seats, &[seed]);
        assert!((0..20).all(|seed| lot(seed).len() == 3 && lot(seed)[0] == 0), "uid 0 has its turn");
        assert!((0..20).any(|seed| lot(seed) != lot(20)));
    }

    #[test]
    fn incentive_takes_most_seats_and_turns_the_rest() {
        let (run, mut roster) = (spec(), roster(40, 1));
        for (uid, incentive) in [(30, 5), (31, 50), (32, 500), (33, 50), (34, 6)] {
            roster.miners[uid].incentive = incentive;
        }
        let seats = RosterSpec { gather: 8, reserve: 0, ..run.roster };
        assert_eq!(newcomer_seats(&seats), 2);
        let found = select(5, &roster, &Standing::default(), &seats, b"a");
        let mut newcomers = found[..2].to_vec();
        newcomers.sort_unstable();
        assert_eq!(newcomers, [10, 11]);
        assert_eq!((found[2], found.len()), (32, 8));
        assert!(found[5..7] == [34, 30] && found[3..5].contains(&31), "{found:?}");
        assert!(!found[..7].contains(&found[7]), "the last seat is no proven one's");
    }

    #[test]
    fn nobody_waits_longer_than_a_round() {
        let seats = RosterSpec { gather: 20, reserve: 10, ..spec().roster };
        let bound = TURNS.div_ceil(newcomer_seats(&seats));
        for uid in 0..256 {
            for from in [0, 1, 51, 1000, u64::MAX / 8] {
                assert!((from..from + bound).any(|window| has_turn(Uid(uid), window, &seats)), "uid {uid} from {from}");
            }
        }
    }

    #[test]
    fn who_misses_seats_comes_last() {
        let (run, mut roster) = (spec(), roster(6, 1));
        let seats = RosterSpec { gather: 3, reserve: 0, ..run.roster };
        let missed = |uid, windows| Misses { entry: entry(uid), windows };
        let standing = Standing { misses: vec![missed(1, 1), missed(2, 2), missed(3, 3)], ..Standing::default() };
        // In window 100 uids 100 and 101 have their turn.
        for seed in 0..20 {
            let mut found = select(100, &roster, &standing, &seats, &[seed]);
            found.sort_unstable();
            assert_eq!(found, [0, 4, 5]);
        }
        (roster.miners[3].incentive, roster.miners[2].incentive) = (9, 1);
        let found = select(100, &roster, &standing, &RosterSpec { gather: 5, ..seats }, b"a");
        // Two newcomers, the proven one, and who is left by the fewest misses.
        assert_eq!(found[2..].iter().filter(|uid| [1, 2].contains(*uid)).collect::<Vec<_>>(), [&2, &1]);
        assert_eq!((found[2], found.len()), (2, 5), "uid 3 lost what its incentive was worth");
        assert!(!found.contains(&3));
    }
}

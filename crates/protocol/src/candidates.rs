//! Candidates, chosen before anything is downloaded: whose contributions may count in a window.
//!
//! Nobody can fetch 256 contributions of a gigabyte each. Miners that the chain already pays come first; at bootstrap,
//! while it pays nobody, seats are drawn by lot. A newcomer has no incentive, so it is evaluated (validators draw from
//! the whole roster) before it is aggregated.

use borsh::{BorshDeserialize, BorshSerialize};

use crate::bucket::BucketLocator;
use crate::hash::{Hash32, Hasher};
use crate::roster::{EntryId, Miner, Roster};
use crate::run::RosterSpec;

/// A miner whose contribution may count. Its place in the list is its bit in every vote.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    pub entry: EntryId,
    pub bucket: BucketLocator,
}

/// A certified exclusion: `entry` cannot be a candidate in windows before `until_window`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Exclusion {
    pub entry: EntryId,
    pub until_window: u64,
}

/// Whether one of `exclusions` keeps `entry` out of `window`.
pub fn is_excluded(exclusions: &[Exclusion], entry: &EntryId, window: u64) -> bool {
    exclusions.iter().any(|exclusion| exclusion.entry == *entry && window < exclusion.until_window)
}

/// At most `gather + reserve` candidates of `window`, best first; the seed's lot orders equal incentives. `exclusions`
/// are those of the state that the window starts from.
pub fn select(
    window: u64,
    roster: &Roster,
    exclusions: &[Exclusion],
    spec: &RosterSpec,
    seed: &Hash32,
) -> Vec<Candidate> {
    let mut eligible: Vec<&Miner> =
        roster.miners.iter().filter(|miner| !is_excluded(exclusions, &miner.entry, window)).collect();
    let mut hasher = Hasher::new("templar v1 candidate lot");
    hasher.update(seed.as_bytes()).clone().into_stream().shuffle(&mut eligible);
    if eligible.iter().any(|miner| miner.incentive > 0) {
        eligible.retain(|miner| miner.incentive > 0);
        eligible.sort_by_key(|miner| std::cmp::Reverse(miner.incentive));
    }
    let seats = (spec.gather + spec.reserve) as usize;
    let candidate = |miner: &Miner| Candidate { entry: miner.entry, bucket: miner.bucket.clone() };
    eligible.into_iter().take(seats).map(candidate).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{entry, roster, spec};

    fn uids(candidates: &[Candidate]) -> Vec<u16> {
        candidates.iter().map(|candidate| candidate.entry.uid.0).collect()
    }

    #[test]
    fn seats_go_by_lot_at_bootstrap_and_by_incentive_afterwards() {
        let (run, mut roster) = (spec(), roster(6, 1));
        // Computed by another implementation, from the specification alone.
        let everybody = RosterSpec { gather: 6, reserve: 0, ..run.roster };
        assert_eq!(uids(&select(0, &roster, &[], &everybody, &Hash32::of(b"a"))), [3, 0, 2, 5, 1, 4]);
        let seats = RosterSpec { gather: 2, reserve: 1, ..run.roster };
        let lot = |seed: &[u8]| uids(&select(0, &roster, &[], &seats, &Hash32::of(seed)));
        assert_eq!(lot(b"a").len(), 3);
        assert!((0..20u8).any(|seed| lot(&[seed]) != lot(b"a")));

        roster.miners[4].incentive = 9;
        roster.miners[1].incentive = 30;
        assert_eq!(uids(&select(0, &roster, &[], &seats, &Hash32::of(b"a"))), [1, 4]);

        let excluded = [Exclusion { entry: entry(1), until_window: 3 }];
        assert_eq!(uids(&select(2, &roster, &excluded, &seats, &Hash32::of(b"a"))), [4]);
        assert_eq!(uids(&select(3, &roster, &excluded, &seats, &Hash32::of(b"a"))), [1, 4]);
    }
}

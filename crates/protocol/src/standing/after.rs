//! What a settled window does to everybody's standing.

use crate::candidates::Candidate;
use crate::certificate::{Certificate, Outcome};
use crate::roster::{EntryId, Roster};
use crate::run::RunSpec;
use crate::standing::{Denial, Exclusion, Misses, Standing};

/// Most entries of each list that a state keeps: a full subnet twice over.
const LIST_MAX: usize = 512;

impl Standing {
    /// The standing after the window of `certificate`, which had this `roster` and these `candidates`.
    #[must_use]
    pub fn after(&self, spec: &RunSpec, roster: &Roster, candidates: &[Candidate], certificate: &Certificate) -> Self {
        let window = certificate.window;
        let mut next = self.clone();
        next.exclusions.retain(|exclusion| exclusion.until_window > window + 1);
        next.denials.retain(|denial| denial.until_window > window + 1);
        // To be away for a window sheds nothing; only the next owner of a uid begins anew.
        let owners = || {
            let miners = roster.miners.iter().map(|miner| miner.entry);
            miners.chain(roster.validators.iter().map(|validator| validator.entry))
        };
        let is_reused = |entry: &EntryId| owners().any(|owner| owner.uid == entry.uid && owner != *entry);
        next.misses.retain(|misses| !is_reused(&misses.entry));
        let Outcome::Certified { excluded, denied, .. } = &certificate.outcome else { return next };
        // The first window that can know of it starts from the next state.
        let first = window + 1 + u64::from(spec.windows.delay_windows);
        let until_window = first + spec.roster.exclusion_windows;
        for candidate in candidates {
            let entry = candidate.entry;
            let windows = if certificate.passed(&entry) { 0 } else { next.misses(&entry).saturating_add(1) };
            next.misses.retain(|misses| misses.entry != entry);
            if windows > 0 {
                next.misses.push(Misses { entry, windows });
            }
            if excluded.contains(&entry) {
                let exclusion = Exclusion { hotkey: entry.hotkey, bucket: candidate.bucket, until_window };
                next.exclusions.retain(|old| (old.hotkey, old.bucket) != (exclusion.hotkey, exclusion.bucket));
                next.exclusions.push(exclusion);
            }
        }
        for &entry in denied {
            next.denials.retain(|denial| denial.entry != entry);
            next.denials.push(Denial { entry, until_window });
        }
        // If there are too many, those that last longest stay.
        next.exclusions.sort_unstable_by_key(|exclusion| (std::cmp::Reverse(exclusion.until_window), *exclusion));
        next.exclusions.truncate(LIST_MAX);
        next.exclusions.sort_unstable();
        next.misses.sort_unstable_by_key(|misses| (std::cmp::Reverse(misses.windows), *misses));
        next.misses.truncate(LIST_MAX);
        next.misses.sort_unstable();
        next.denials.sort_unstable_by_key(|denial| (std::cmp::Reverse(denial.until_window), *denial));
        next.denials.truncate(LIST_MAX);
        next.denials.sort_unstable();
        next
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bucket::BucketLocator;
    use crate::certificate::NullReason;
    use crate::hash::Hash32;
    use crate::roster::Miner;
    use crate::roster::Uid;
    use crate::testing::{bucket, entry, roster, spec};

    fn bucket_of(uid: u16) -> BucketLocator {
        BucketLocator { bucket: format!("b{uid}"), ..bucket() }
    }

    fn candidates(count: u16) -> Vec<Candidate> {
        (0..count).map(|uid| Candidate { entry: entry(uid), bucket: bucket_of(uid).identity() }).collect()
    }

    fn certified(window: u64, accepted: &[u16], excluded: &[u16], denied: &[u16]) -> Certificate {
        let entries = |uids: &[u16]| uids.iter().map(|&uid| entry(uid)).collect();
        let outcome = Outcome::Certified {
            root: Hash32::default(),
            accepted: entries(accepted),
            spare: Vec::new(),
            excluded: entries(excluded),
            denied: entries(denied),
        };
        Certificate { window, outcome, voted_stake_rao: 1, total_stake_rao: 1 }
    }

    fn null(window: u64) -> Certificate {
        let outcome = Outcome::Null(NullReason::TooFewVotes);
        Certificate { window, outcome, voted_stake_rao: 0, total_stake_rao: 1 }
    }

    #[test]
    fn an_exclusion_follows_hotkey_and_bucket_until_its_window() {
        let (run, roster) = (spec(), roster(3, 1));
        let standing = Standing::default().after(&run, &roster, &candidates(3), &certified(0, &[0, 1], &[2], &[]));
        let miner = |hotkey: u16, bucket: u16| Miner {
            entry: EntryId { uid: Uid(9), registered_at_block: 77, ..entry(hotkey) },
            incentive: 0,
            work_class: 0,
            bucket: bucket_of(bucket),
        };
        let until = 1 + run.roster.exclusion_windows;
        for window in [1, until - 1] {
            assert!(standing.excludes(&miner(2, 5), window), "a new registration");
            assert!(standing.excludes(&miner(5, 2), window), "another hotkey with the bucket");
            assert!(!standing.excludes(&miner(5, 5), window));
        }
        assert!(!standing.excludes(&miner(2, 2), until));
        let mut later = standing;
        for window in 1..until {
            later = later.after(&run, &roster, &candidates(3), &null(window));
        }
        assert_eq!(later.exclusions, []);
    }

    #[test]
    fn misses_are_counted_in_certified_windows_and_end_with_one_that_passes() {
        let (run, all) = (spec(), roster(3, 1));
        let mut standing = Standing::default();
        for (window, accepted) in [&[0u16][..], &[0], &[0, 1]].into_iter().enumerate() {
            standing = standing.after(&run, &all, &candidates(3), &certified(window as u64, accepted, &[], &[]));
        }
        assert_eq!([0, 1, 2].map(|uid| standing.misses(&entry(uid))), [0, 0, 3]);
        standing = standing.after(&run, &all, &candidates(3), &null(3));
        assert_eq!(standing.misses(&entry(2)), 3, "in a null window nobody misses anything");
        // Whoever stays away for a window has missed as many seats when it comes back.
        standing = standing.after(&run, &roster(2, 1), &candidates(2), &null(4));
        assert_eq!(standing.misses(&entry(2)), 3);
        let mut reused = roster(3, 1);
        reused.miners[2].entry.registered_at_block = 99;
        standing = standing.after(&run, &reused, &candidates(2), &null(5));
        assert_eq!(standing.misses, []);
    }

    #[test]
    fn a_denial_lasts_as_long_as_an_exclusion() {
        let (run, roster) = (spec(), roster(3, 1));
        let standing = Standing::default().after(&run, &roster, &candidates(3), &certified(4, &[], &[], &[3]));
        let until = 5 + run.roster.exclusion_windows;
        assert!(standing.denies(&entry(3), until - 1) && !standing.denies(&entry(3), until));
        assert!(!standing.denies(&entry(2), 5));
    }
}

//! What earlier windows say of who may take part: exclusions, missed seats, and denied votes. Part of the run state.

mod after;

use borsh::{BorshDeserialize, BorshSerialize};

use crate::hash::Hash32;
use crate::keys::Hotkey;
use crate::roster::{EntryId, Miner};

/// A miner that signed what no honest node signs: nobody with its hotkey or its bucket is a candidate of windows before
/// `until_window`. A new registration sheds neither.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, BorshSerialize, BorshDeserialize)]
pub struct Exclusion {
    pub hotkey: Hotkey,
    /// [`crate::bucket::BucketLocator::identity`] of the bucket that its entry named.
    pub bucket: Hash32,
    pub until_window: u64,
}

/// Certified windows in a row in which a miner had a seat and nothing of it passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, BorshSerialize, BorshDeserialize)]
pub struct Misses {
    pub entry: EntryId,
    pub windows: u8,
}

/// A validator whose vote proved nothing: its votes do not count in windows before `until_window`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, BorshSerialize, BorshDeserialize)]
pub struct Denial {
    pub entry: EntryId,
    pub until_window: u64,
}

/// Each list in the order of its entries.
#[derive(Clone, Debug, Default, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Standing {
    pub exclusions: Vec<Exclusion>,
    pub misses: Vec<Misses>,
    pub denials: Vec<Denial>,
}

impl Standing {
    /// Whether an exclusion keeps `miner` out of `window`.
    pub fn excludes(&self, miner: &Miner, window: u64) -> bool {
        self.keeps_out(&miner.entry.hotkey, &miner.bucket.identity(), window)
    }

    /// Whether an exclusion keeps whoever has this hotkey, or the bucket of this identity, out of `window`.
    pub fn keeps_out(&self, hotkey: &Hotkey, bucket: &Hash32, window: u64) -> bool {
        let is_its = |exclusion: &&Exclusion| exclusion.hotkey == *hotkey || exclusion.bucket == *bucket;
        self.exclusions.iter().filter(is_its).any(|exclusion| window < exclusion.until_window)
    }

    /// Seats in a row that `entry` left without a contribution that passed.
    pub fn misses(&self, entry: &EntryId) -> u8 {
        self.misses.iter().find(|misses| misses.entry == *entry).map_or(0, |misses| misses.windows)
    }

    /// Whether the vote of `entry` on `window` does not count.
    pub fn denies(&self, entry: &EntryId, window: u64) -> bool {
        self.denials.iter().any(|denial| denial.entry == *entry && window < denial.until_window)
    }
}

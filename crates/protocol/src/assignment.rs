//! Which samples a miner trains on in a window.
//!
//! Each epoch has one keyed permutation of the sample indices. A cursor runs along it and advances by candidates × slice
//! per window, so that an epoch uses every sample once, whatever the windows' steps. Only candidates get a slice: data are
//! for those that have a seat. The window's seed only deals the slots of that stretch to the miners: nobody can tell early
//! which data it will get, and no two miners share a sample.

use crate::candidates::Candidate;
use crate::hash::{Hash32, Hasher, Stream};
use crate::permutation::Permutation;
use crate::roster::EntryId;
use crate::run::{RunId, RunSpec};

/// The seed of a window: nobody knows it before the block at `S_w`.
pub fn window_seed(run: RunId, window: u64, snapshot_hash: &Hash32) -> Hash32 {
    Hash32::of_value("templar v1 window seed", &(run, window, snapshot_hash))
}

/// Position in the endless sequence of epochs: `epoch · samples + place in the epoch's permutation`.
pub type Cursor = u64;

/// The samples of one window, dealt to its candidates.
#[derive(Clone, Debug)]
pub struct Assignment {
    permutation: Permutation,
    samples: u64,
    cursor: Cursor,
    /// Samples of the epoch that this window uses.
    taken: u64,
    /// Which candidate has which slot.
    slots: Vec<EntryId>,
}

impl Assignment {
    /// `samples` is the number of training samples in the dataset.
    ///
    /// The last window of an epoch deals what is left, in slots as even as possible, and does not reach into the next
    /// epoch, so the slots of a window never overlap. If too little would remain to give each candidate one sample in
    /// another window, this window deals that remainder too.
    pub fn new(
        spec: &RunSpec,
        window: u64,
        cursor: Cursor,
        candidates: &[Candidate],
        seed: &Hash32,
        samples: u64,
    ) -> Self {
        let mut slots: Vec<EntryId> = candidates.iter().map(|candidate| candidate.entry).collect();
        let mut hasher = Hasher::new("templar v1 slots");
        hasher.update(seed.as_bytes()).clone().into_stream().shuffle(&mut slots);
        let epoch = cursor / samples;
        let left = samples - cursor % samples;
        let want = slots.len() as u64 * spec.inner.samples_of(window);
        // After the end of a run nobody trains.
        let is_last = want > 0 && left < want + slots.len() as u64;
        let taken = if is_last { left } else { want };
        let key = Hash32::of_value("templar v1 epoch permutation", &(spec.data.manifest, spec.data.seed, epoch));
        Self { permutation: Permutation::new(key, samples), samples, cursor, taken: taken.min(left), slots }
    }

    /// Where the next window starts. A window without candidates leaves it where it is.
    pub fn next_cursor(&self) -> Cursor {
        if self.slots.is_empty() { self.cursor } else { self.cursor + self.taken }
    }

    /// The samples of `entry`, in the order in which it trains on them. Empty if it is not a candidate of this window.
    pub fn slice(&self, entry: &EntryId) -> Vec<u64> {
        let Some(slot) = self.slots.iter().position(|other| other == entry) else { return Vec::new() };
        let (from, to) = (self.boundary(slot), self.boundary(slot + 1));
        (from..to).map(|place| self.permutation.forward(place)).collect()
    }

    /// Who trains on `sample` in this window: O(1) in the size of the dataset.
    pub fn owner(&self, sample: u64) -> Option<EntryId> {
        let place = self.permutation.backward(sample);
        let first = self.cursor % self.samples;
        if place < first || place >= first + self.taken {
            return None;
        }
        let slot = (0..self.slots.len()).find(|&slot| place < self.boundary(slot + 1))?;
        Some(self.slots[slot])
    }

    /// Draws `count` distinct training samples that nobody trains on in this window; fewer if not that many exist.
    pub fn draw_unassigned(&self, stream: &mut Stream, count: usize) -> Vec<u64> {
        let free = self.samples - self.taken;
        let first = self.cursor % self.samples;
        let mut drawn: Vec<u64> = Vec::new();
        while (drawn.len() as u64) < free.min(count as u64) {
            let nth = stream.below(free);
            let place = if nth < first { nth } else { nth + self.taken };
            let sample = self.permutation.forward(place);
            if !drawn.contains(&sample) {
                drawn.push(sample);
            }
        }
        drawn
    }

    /// First place of a slot in the epoch's permutation.
    fn boundary(&self, slot: usize) -> u64 {
        let part = u128::from(self.taken) * slot as u128 / self.slots.len().max(1) as u128;
        self.cursor % self.samples + part as u64
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;
    use crate::testing::{candidates, spec};

    /// Runs windows until the first epoch ends; every sample must have been used exactly once.
    fn one_epoch(miners: usize, steps: u32, batch: u32, samples: u64) {
        let mut run = spec();
        (run.inner.steps, run.inner.batch_sequences) = (steps, batch);
        // The windows after the second one are shorter, so the change lies in most epochs.
        (run.inner.anneal_from_window, run.inner.anneal_windows, run.inner.anneal_steps) =
            (2, 1 << 20, steps.div_ceil(2));
        let candidates = candidates(miners);
        let (mut cursor, mut used, mut window) = (0, HashSet::new(), 0);
        while cursor < samples {
            let seed = window_seed(run.id(), window, &Hash32::default());
            let assignment = Assignment::new(&run, window, cursor, &candidates, &seed, samples);
            for miner in &candidates {
                let slice = assignment.slice(&miner.entry);
                assert!(samples < miners as u64 || !slice.is_empty());
                for sample in slice {
                    assert!(used.insert(sample), "sample {sample} twice");
                    assert_eq!(assignment.owner(sample), Some(miner.entry));
                }
            }
            let mut stream = Hasher::new("templar test").into_stream();
            for sample in assignment.draw_unassigned(&mut stream, 5) {
                assert_eq!(assignment.owner(sample), None);
            }
            assert!(assignment.next_cursor() > cursor);
            (cursor, window) = (assignment.next_cursor(), window + 1);
        }
        assert_eq!((cursor, used.len() as u64), (samples, samples));
    }

    #[test]
    fn nobody_gets_samples_once_the_run_has_ended() {
        let mut run = spec();
        (run.inner.anneal_from_window, run.inner.anneal_windows) = (2, 2);
        let candidates = candidates(3);
        let at = |window| Assignment::new(&run, window, 7, &candidates, &Hash32::default(), 8);
        assert_eq!([3, 4].map(|window| at(window).next_cursor()), [8, 7]);
        assert!(at(4).slice(&candidates[0].entry).is_empty());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn slices_partition_an_epoch(miners in 1usize..9, steps in 1u32..5, batch in 1u32..5, samples in 1u64..400) {
            one_epoch(miners, steps, batch, samples);
        }
    }

    #[test]
    fn the_seed_deals_the_slots_and_nothing_else() {
        let (run, candidates) = (spec(), candidates(4));
        let all = |hash: &[u8]| {
            let seed = window_seed(run.id(), 3, &Hash32::of(hash));
            let assignment = Assignment::new(&run, 3, 0, &candidates, &seed, 10_000);
            candidates.iter().map(|one| assignment.slice(&one.entry)).collect::<Vec<_>>()
        };
        let (a, b) = (all(b"one block"), all(b"another block"));
        assert_ne!(a, b);
        let set = |slices: &[Vec<u64>]| slices.concat().into_iter().collect::<HashSet<_>>();
        assert_eq!(set(&a), set(&b));
    }

    #[test]
    fn golden() {
        let (run, candidates) = (spec(), candidates(3));
        let seed = window_seed(run.id(), 0, &Hash32::default());
        let assignment = Assignment::new(&run, 0, 0, &candidates, &seed, 1000);
        let firsts: Vec<u64> = candidates.iter().map(|one| assignment.slice(&one.entry)[0]).collect();
        assert_eq!(firsts, [69, 397, 546]);
    }
}

//! The k largest magnitudes of a chunk, in linear time.

/// Values whose maxima are found together: as many as the widest registers hold.
const LANES: usize = 16;
/// Values of a cell.
const CELL: usize = 4;
const GROUP: usize = LANES * CELL;

/// What [`Selection::select_largest`] found, and its working memory: reuse it from chunk to chunk.
#[derive(Debug, Default)]
pub(crate) struct Selection {
    /// Positions of the selected values, strictly increasing.
    pub(crate) positions: Vec<u16>,
    /// The largest magnitude of each cell. Cell l of a group has the group's values l, l + 16, l + 32 and l + 48.
    cells: Vec<[u32; LANES]>,
    ranked: Vec<u32>,
    candidates: Vec<u64>,
    /// One bit for each position that is selected; all 0 between chunks.
    chosen: Vec<u64>,
}

/// Magnitude of a value as an integer that orders as the magnitude does; above every finite one for ∞ and NaN.
#[inline(always)]
pub(crate) fn magnitude_bits(value: f32) -> u32 {
    value.to_bits() & 0x7fff_ffff
}

/// One integer a value, larger for a larger magnitude, then for a lower position, so that no two are equal.
#[inline(always)]
fn candidate(magnitude: u32, position: usize) -> u64 {
    u64::from(magnitude) << 16 | (0xffff - position as u64)
}

impl Selection {
    /// Selects the `k` values of the largest magnitude, of equal ones those at lower positions, and returns the bits
    /// of the largest magnitude of all. `1 ≤ k ≤ chunk.len() ≤ 65536`.
    ///
    /// At least `k` values are as large as the k-th largest maximum of disjoint sets of values, so only cells that reach
    /// that bound are looked at: little more than `k` of them.
    #[inline(always)]
    pub(crate) fn select_largest(&mut self, chunk: &[f32], k: usize) -> u32 {
        let largest = match chunk.as_chunks::<GROUP>() {
            (groups, []) if CELL * k <= chunk.len() => self.gather(groups, k),
            _ => self.gather_all(chunk),
        };
        if self.candidates.len() > k {
            self.candidates.select_nth_unstable_by(k - 1, |a, b| b.cmp(a));
        }
        self.chosen.resize(chunk.len().div_ceil(64), 0);
        for candidate in &self.candidates[..k] {
            let position = 0xffff - (candidate & 0xffff) as usize;
            self.chosen[position / 64] |= 1 << (position % 64);
        }
        self.positions.clear();
        for (word, chosen) in self.chosen.iter_mut().enumerate() {
            let mut left = std::mem::take(chosen);
            while left != 0 {
                self.positions.push((64 * word as u32 + left.trailing_zeros()) as u16);
                left &= left - 1;
            }
        }
        largest
    }

    /// Makes all values candidates.
    fn gather_all(&mut self, chunk: &[f32]) -> u32 {
        self.candidates.clear();
        let values = chunk.iter().enumerate();
        self.candidates.extend(values.map(|(position, &value)| candidate(magnitude_bits(value), position)));
        chunk.iter().map(|&value| magnitude_bits(value)).fold(0, u32::max)
    }

    /// Makes the values candidates that may be among the `k` largest.
    #[inline(always)]
    fn gather(&mut self, groups: &[[f32; GROUP]], k: usize) -> u32 {
        self.cells.clear();
        for group in groups {
            let mut cells = [0; LANES];
            for row in group.as_chunks::<LANES>().0 {
                for (cell, &value) in cells.iter_mut().zip(row) {
                    *cell = magnitude_bits(value).max(*cell);
                }
            }
            self.cells.push(cells);
        }
        // Cells are joined to about four sets for each value sought: fewer to rank, and the bound is nearly as high.
        let joined = (groups.len() * LANES / (4 * k)).max(1);
        self.ranked.clear();
        for cells in self.cells.chunks(joined) {
            let mut set = [0; LANES];
            for cells in cells {
                for (set, &cell) in set.iter_mut().zip(cells) {
                    *set = cell.max(*set);
                }
            }
            self.ranked.extend(set);
        }
        let largest = self.ranked.iter().copied().fold(0, u32::max);
        let (_, &mut bound, _) = self.ranked.select_nth_unstable_by(k - 1, |a, b| b.cmp(a));

        self.candidates.clear();
        for (number, (cells, group)) in self.cells.iter().zip(groups).enumerate() {
            let mut reached = 0u32;
            for (lane, &cell) in cells.iter().enumerate() {
                reached |= u32::from(cell >= bound) << lane;
            }
            while reached != 0 {
                let lane = reached.trailing_zeros() as usize;
                reached &= reached - 1;
                for at in (lane..GROUP).step_by(LANES) {
                    let magnitude = magnitude_bits(group[at]);
                    if magnitude >= bound {
                        self.candidates.push(candidate(magnitude, GROUP * number + at));
                    }
                }
            }
        }
        largest
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The rule, said as plainly as possible.
    fn sorted(chunk: &[f32], k: usize) -> Vec<u16> {
        let mut positions: Vec<u16> = (0..=(chunk.len() - 1) as u16).collect();
        positions.sort_by(|&a, &b| chunk[b as usize].abs().total_cmp(&chunk[a as usize].abs()).then(a.cmp(&b)));
        positions.truncate(k);
        positions.sort_unstable();
        positions
    }

    proptest! {
        #[test]
        fn agrees_with_a_full_sort(
            chunk in prop::collection::vec(prop_oneof![-3i8..=3, any::<i8>()], 1..600),
            scale in prop_oneof![Just(1.0f32), Just(1e-40), Just(1e36)],
            share in 0.0..1.0f64,
            whole: bool,
        ) {
            let chunk: Vec<f32> = chunk.into_iter().map(|value| f32::from(value) * scale).collect();
            let mut chunk = chunk;
            if whole && chunk.len() >= GROUP {
                chunk.truncate(chunk.len() / GROUP * GROUP);
            }
            let k = 1 + (share * (chunk.len() - 1) as f64) as usize;
            let mut selection = Selection::default();
            let largest = selection.select_largest(&chunk, k);
            prop_assert_eq!(&selection.positions, &sorted(&chunk, k));
            prop_assert_eq!(largest, chunk.iter().map(|&value| magnitude_bits(value)).max().unwrap());
        }
    }

    #[test]
    fn the_longest_chunk_has_positions() {
        let mut chunk = vec![0.0f32; 65_536];
        (chunk[65_535], chunk[0]) = (-1.0, 1.0);
        let mut selection = Selection::default();
        selection.select_largest(&chunk, 3);
        assert_eq!(selection.positions, [0, 1, 65_535]);
    }
}

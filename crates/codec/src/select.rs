//! The k largest magnitudes of a chunk, in linear time.

/// What [`Selection::select_largest`] found, and its working memory: reuse it from chunk to chunk.
#[derive(Debug, Default)]
pub(crate) struct Selection {
    /// Positions of the selected values, strictly increasing.
    pub(crate) positions: Vec<u16>,
    maxima: Vec<u32>,
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

impl Selection {
    /// Selects the `k` values of the largest magnitude, of equal ones those at lower positions, and returns the bits
    /// of the largest magnitude of all. `1 ≤ k ≤ chunk.len() ≤ 65536`.
    ///
    /// The chunk is dealt into a few times `k` columns. At least `k` values are as large as the k-th largest of the
    /// columns' maxima, so only columns whose maximum reaches that bound are looked at: little more than `k` of them.
    #[inline(always)]
    pub(crate) fn select_largest(&mut self, chunk: &[f32], k: usize) -> u32 {
        let columns = (4 * k).min(chunk.len());
        let (first, rest) = chunk.split_at(columns);
        self.maxima.clear();
        self.maxima.extend(first.iter().map(|&value| magnitude_bits(value)));
        for row in rest.chunks(columns) {
            for (max, &value) in self.maxima.iter_mut().zip(row) {
                *max = magnitude_bits(value).max(*max);
            }
        }
        let largest = self.maxima.iter().copied().fold(0, u32::max);
        self.ranked.clone_from(&self.maxima);
        let (_, &mut bound, _) = self.ranked.select_nth_unstable_by(k - 1, |a, b| b.cmp(a));
        self.gather(chunk, columns, bound);

        self.candidates.select_nth_unstable_by(k - 1, |a, b| b.cmp(a));
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

    /// Collects what reaches `bound`: one integer a candidate, larger for a larger magnitude, then for a lower position,
    /// so that no two are equal.
    #[inline(always)]
    fn gather(&mut self, chunk: &[f32], columns: usize, bound: u32) {
        self.candidates.clear();
        for (column, _) in self.maxima.iter().enumerate().filter(|&(_, &max)| max >= bound) {
            for position in (column..chunk.len()).step_by(columns) {
                let magnitude = magnitude_bits(chunk[position]);
                if magnitude >= bound {
                    self.candidates.push(u64::from(magnitude) << 16 | (0xffff - position as u64));
                }
            }
        }
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
        ) {
            let chunk: Vec<f32> = chunk.into_iter().map(|value| f32::from(value) * scale).collect();
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

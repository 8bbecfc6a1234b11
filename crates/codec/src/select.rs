//! The k largest magnitudes of a chunk, in linear time.

/// What [`select_largest`] found, and its working memory: reuse it from chunk to chunk.
#[derive(Debug, Default)]
pub(crate) struct Selection {
    /// Positions of the selected values, strictly increasing.
    pub(crate) positions: Vec<u16>,
    maxima: Vec<u32>,
    candidates: Vec<u64>,
    order: Vec<u64>,
}

/// Magnitude of a value as an integer that orders as the magnitude does; above every finite one for ∞ and NaN.
pub(crate) fn magnitude_bits(value: f32) -> u32 {
    value.to_bits() & 0x7fff_ffff
}

impl Selection {
    /// Selects the `k` values of the largest magnitude, of equal ones those at lower positions, and returns the bits
    /// of the largest magnitude of all. `1 ≤ k ≤ chunk.len() ≤ 65536`.
    ///
    /// The chunk is dealt into a few times `k` columns. At least `k` values are as large as the k-th largest of the
    /// columns' maxima, so only what reaches that bound, hardly more than `k` values, is looked at closely. Both passes
    /// over the chunk are plain loops without unpredictable branches.
    pub(crate) fn select_largest(&mut self, chunk: &[f32], k: usize) -> u32 {
        let columns = (4 * k).min(chunk.len());
        self.maxima.clear();
        self.maxima.resize(columns, 0);
        for row in chunk.chunks(columns) {
            for (max, &value) in self.maxima.iter_mut().zip(row) {
                *max = magnitude_bits(value).max(*max);
            }
        }
        let largest = self.maxima.iter().copied().max().unwrap_or(0);
        let (_, &mut bound, _) = self.maxima.select_nth_unstable_by(k - 1, |a, b| b.cmp(a));

        // One integer a candidate, larger for a larger magnitude, then for a lower position: no two are equal.
        self.candidates.clear();
        for (position, &value) in chunk.iter().enumerate() {
            let magnitude = magnitude_bits(value);
            if magnitude >= bound {
                self.candidates.push(u64::from(magnitude) << 16 | (0xffff - position as u64));
            }
        }
        self.order.clone_from(&self.candidates);
        let (_, &mut last, _) = self.order.select_nth_unstable_by(k - 1, |a, b| b.cmp(a));
        self.positions.clear();
        let selected = self.candidates.iter().filter(|&&candidate| candidate >= last);
        self.positions.extend(selected.map(|candidate| 0xffff - (candidate & 0xffff) as u16));
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

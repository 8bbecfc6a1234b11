//! The k largest magnitudes of a chunk, in linear time.

use pulp::{Simd, bytemuck};

/// Maxima that are found side by side: as many as the widest registers hold.
const LANES: usize = 16;

/// What [`Selection::select_largest`] found, and its working memory: reuse it from chunk to chunk.
#[derive(Debug, Default)]
pub(crate) struct Selection {
    /// Positions of the selected values, strictly increasing.
    pub(crate) positions: Vec<u16>,
    /// [`magnitude_bits`] of all values that reached the bound.
    magnitudes: Vec<u32>,
    /// A bit for each value of the chunk: whether its magnitude reaches the bound.
    reached: Vec<u64>,
    ranked: Vec<u32>,
    /// A guess: at least `k` values of the next chunk will reach it, and not many more.
    bound: u32,
}

/// Magnitude of a value as an integer that orders as the magnitude does; above every finite one for ∞ and NaN.
#[inline(always)]
pub(crate) fn magnitude_bits(value: f32) -> u32 {
    value.to_bits() & 0x7fff_ffff
}

/// A bit for each of 64 values: whether its magnitude reaches `bound`.
#[inline(always)]
fn reached<S: Simd>(simd: S, group: &[f32; 64], bound: u32) -> u64 {
    // AVX-512 compares into a register of bits; plain code would not be compiled to that.
    if const { size_of::<S::m32s>() == size_of::<u16>() } {
        let bound = simd.splat_u32s(bound);
        let mut word = 0;
        for (index, &row) in S::as_simd_f32s(group).0.iter().enumerate() {
            let magnitudes = bytemuck::cast(simd.abs_f32s(row));
            let hits: u16 = bytemuck::cast(simd.greater_than_or_equal_u32s(magnitudes, bound));
            word |= u64::from(hits) << (16 * index);
        }
        return word;
    }
    let mut hits = [[0u8; 8]; 8];
    for (hit, &value) in hits.as_flattened_mut().iter_mut().zip(group) {
        *hit = u8::from(magnitude_bits(value) >= bound);
    }
    let mut word = 0;
    for (index, hits) in hits.iter().enumerate() {
        // The product brings the lowest bit of byte i to bit i of the highest byte.
        word |= u64::from_le_bytes(*hits).wrapping_mul(0x0102_0408_1020_4080) >> 56 << (8 * index);
    }
    word
}

impl Selection {
    /// Selects the `k` values of the largest magnitude, of equal ones those at lower positions, and returns the bits
    /// of the largest magnitude of all. `1 ≤ k ≤ chunk.len() ≤ 65536`.
    ///
    /// Only values that reach a bound are looked at one by one. Chunks are alike, so the bound follows them: a little up
    /// where it let through many, down where it was close. Where it fails, one is worked out that is surely low enough.
    #[inline(always)]
    pub(crate) fn select_largest<S: Simd>(&mut self, simd: S, chunk: &[f32], k: usize) -> u32 {
        let mut count = self.mark(simd, chunk);
        if !(k..=4 * k).contains(&count) {
            self.bound = self.safe_bound(chunk, k);
            count = self.mark(simd, chunk);
        }
        let factor = match count {
            _ if count < k + k / 4 => 31.0 / 32.0,
            _ if count > 2 * k => 65.0 / 64.0,
            _ => 1.0,
        };
        self.bound = (factor * f32::from_bits(self.bound)).to_bits();
        self.gather(chunk, count);
        self.keep_largest(k)
    }

    /// Marks the values that reach the bound and counts them.
    #[inline(always)]
    fn mark<S: Simd>(&mut self, simd: S, chunk: &[f32]) -> usize {
        self.reached.clear();
        let (groups, rest) = chunk.as_chunks();
        for group in groups {
            self.reached.push(reached(simd, group, self.bound));
        }
        if !rest.is_empty() {
            let hits = rest.iter().map(|&value| u64::from(magnitude_bits(value) >= self.bound));
            self.reached.push(hits.enumerate().fold(0, |word, (index, hit)| word | hit << index));
        }
        self.reached.iter().map(|word| word.count_ones() as usize).sum()
    }

    /// A bound that `k` values reach for sure: the k-th largest maximum of disjoint sets of values, of which there are about
    /// four for each value sought; 0 where that is more sets than can be had.
    #[inline(always)]
    fn safe_bound(&mut self, chunk: &[f32], k: usize) -> u32 {
        let rows = chunk.as_chunks::<LANES>().0;
        self.ranked.clear();
        for rows in rows.chunks((rows.len() * LANES / (4 * k)).max(1)) {
            let mut largest = [0; LANES];
            for row in rows {
                for (largest, &value) in largest.iter_mut().zip(row) {
                    *largest = magnitude_bits(value).max(*largest);
                }
            }
            self.ranked.extend(largest);
        }
        if self.ranked.len() < k {
            return 0;
        }
        *self.ranked.select_nth_unstable_by(k - 1, |a, b| b.cmp(a)).1
    }

    /// Collects the `count` values that were marked, in the order of positions.
    #[inline(always)]
    fn gather(&mut self, chunk: &[f32], count: usize) {
        self.positions.resize(count, 0);
        self.magnitudes.resize(count, 0);
        let mut found = self.positions.iter_mut().zip(&mut self.magnitudes);
        for (number, &word) in self.reached.iter().enumerate() {
            let mut left = word;
            while left != 0 {
                let position = 64 * number + left.trailing_zeros() as usize;
                left &= left - 1;
                let Some((found, magnitude)) = found.next() else { return };
                (*found, *magnitude) = (position as u16, magnitude_bits(chunk[position]));
            }
        }
    }

    /// Drops all but the `k` largest, and returns the magnitude of the largest of all.
    #[inline(always)]
    fn keep_largest(&mut self, k: usize) -> u32 {
        self.ranked.clone_from(&self.magnitudes);
        let (above, &mut smallest, _) = self.ranked.select_nth_unstable_by(k - 1, |a, b| b.cmp(a));
        let largest = above.iter().copied().fold(smallest, u32::max);
        let mut equal_ones = k - above.iter().filter(|&&magnitude| magnitude > smallest).count();
        let mut kept = 0;
        for index in 0..self.positions.len() {
            let magnitude = self.magnitudes[index];
            let is_equal = magnitude == smallest && equal_ones > 0;
            equal_ones -= usize::from(is_equal);
            self.positions[kept] = self.positions[index];
            kept += usize::from(magnitude > smallest || is_equal);
        }
        self.positions.truncate(k);
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
            if whole && chunk.len() >= 64 {
                chunk.truncate(chunk.len() / 64 * 64);
            }
            let k = 1 + (share * (chunk.len() - 1) as f64) as usize;
            let mut selection = Selection::default();
            let largest = selection.select_largest(pulp::Scalar, &chunk, k);
            prop_assert_eq!(&selection.positions, &sorted(&chunk, k));
            prop_assert_eq!(largest, chunk.iter().map(|&value| magnitude_bits(value)).max().unwrap());
        }
    }

    #[test]
    fn the_longest_chunk_has_positions() {
        let mut chunk = vec![0.0f32; 65_536];
        (chunk[65_535], chunk[0]) = (-1.0, 1.0);
        let mut selection = Selection::default();
        selection.select_largest(pulp::Scalar, &chunk, 3);
        assert_eq!(selection.positions, [0, 1, 65_535]);
    }
}

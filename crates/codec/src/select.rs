//! The k largest magnitudes of a chunk, in linear time.

use pulp::{Simd, bytemuck};

/// What [`Selection::select_largest`] found, and its working memory, to be reused from chunk to chunk.
#[derive(Debug, Default)]
pub(crate) struct Selection {
    /// Positions of the selected values, strictly increasing.
    pub(crate) positions: Vec<u16>,
    /// A bit for each value of the chunk: whether its magnitude reaches the bound.
    reached: Vec<u64>,
    /// Positions of the values that reach it, followed by leftovers of other chunks.
    candidates: Vec<u16>,
    /// [`magnitude_bits`] of the candidates.
    magnitudes: Vec<u32>,
    /// Magnitudes that may be reordered.
    ranked: Vec<u32>,
}

/// Magnitude of a value as an integer with the same order; ∞ and NaN are above every finite one.
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
    /// Selects the `k` values of the largest magnitude (of equal ones, those at lower positions) and returns the bits
    /// of the largest magnitude of all. `1 ≤ k ≤ chunk.len() ≤ 65536`.
    #[inline(always)]
    pub(crate) fn select_largest<S: Simd>(&mut self, simd: S, chunk: &[f32], k: usize) -> u32 {
        let bound = self.bound(simd, chunk, k);
        self.mark(simd, chunk, bound);
        let count = self.gather(chunk);
        self.keep_largest(k, count)
    }

    /// A bound that at least `k` values reach, and not many more: about the k-th largest maximum of disjoint sets of
    /// values, four sets per value sought; 0 if the chunk does not have that many sets.
    #[inline(always)]
    fn bound<S: Simd>(&mut self, simd: S, chunk: &[f32], k: usize) -> u32 {
        let rows = S::as_simd_f32s(chunk).0;
        self.ranked.clear();
        for rows in rows.chunks((chunk.len() / (4 * k)).max(1)) {
            let mut largest = simd.splat_u32s(0);
            for &row in rows {
                largest = simd.max_u32s(largest, bytemuck::cast(simd.abs_f32s(row)));
            }
            self.ranked.extend_from_slice(bytemuck::cast_slice(&[largest]));
        }
        if self.ranked.len() < k {
            return 0;
        }
        // k maxima reach `low`, fewer reach `high`.
        let (mut low, mut high) = (0, 1 << 31);
        while high - low > 1 {
            let middle = u32::midpoint(low, high);
            // Checked additions would not be vectorised.
            let count =
                self.ranked.iter().fold(0u32, |n, &maximum| n.wrapping_add(u32::from(maximum >= middle))) as usize;
            if count < k {
                high = middle;
                continue;
            }
            low = middle;
            if count <= k + k / 8 {
                break;
            }
        }
        low
    }

    /// Marks the values that reach the bound.
    #[inline(always)]
    fn mark<S: Simd>(&mut self, simd: S, chunk: &[f32], bound: u32) {
        self.reached.clear();
        let (groups, rest) = chunk.as_chunks();
        for group in groups {
            self.reached.push(reached(simd, group, bound));
        }
        if !rest.is_empty() {
            let hits = rest.iter().map(|&value| u64::from(magnitude_bits(value) >= bound));
            self.reached.push(hits.enumerate().fold(0, |word, (index, hit)| word | hit << index));
        }
    }

    /// Collects the values that were marked, in the order of positions, and counts them.
    #[inline(always)]
    fn gather(&mut self, chunk: &[f32]) -> usize {
        /// Positions written at once, whether there are that many or not: cheaper than a mispredicted branch.
        const AT_ONCE: usize = 4;
        if self.candidates.len() < chunk.len() + AT_ONCE {
            self.candidates.resize(chunk.len() + AT_ONCE, 0);
        }
        let mut count = 0;
        for (number, &word) in self.reached.iter().enumerate() {
            let (mut left, mut at) = (word, count);
            loop {
                for candidate in &mut self.candidates[at..at + AT_ONCE] {
                    *candidate = (64 * number + left.trailing_zeros() as usize) as u16;
                    left &= left.wrapping_sub(1);
                }
                if left == 0 {
                    break;
                }
                at += AT_ONCE;
            }
            count += word.count_ones() as usize;
        }
        self.magnitudes.clear();
        self.magnitudes
            .extend(self.candidates[..count].iter().map(|&position| magnitude_bits(chunk[usize::from(position)])));
        count
    }

    /// Selects the `k` largest candidates, and returns the magnitude of the largest of all.
    #[inline(always)]
    fn keep_largest(&mut self, k: usize, count: usize) -> u32 {
        self.ranked.clone_from(&self.magnitudes);
        let (above, &mut smallest, _) = self.ranked.select_nth_unstable_by(k - 1, |a, b| b.cmp(a));
        let largest = above.iter().copied().fold(smallest, u32::max);
        let mut equal_ones = k - above.iter().filter(|&&magnitude| magnitude > smallest).count();
        self.positions.resize(k + 1, 0);
        let mut kept = 0;
        for (&position, &magnitude) in self.candidates[..count].iter().zip(&self.magnitudes) {
            let is_equal = magnitude == smallest && equal_ones > 0;
            equal_ones -= usize::from(is_equal);
            self.positions[kept] = position;
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

    /// The rule, as plainly as possible.
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
    fn positions_of_the_longest_chunk_fit() {
        let mut chunk = vec![0.0f32; 65_536];
        (chunk[65_535], chunk[0]) = (-1.0, 1.0);
        let mut selection = Selection::default();
        selection.select_largest(pulp::Scalar, &chunk, 3);
        assert_eq!(selection.positions, [0, 1, 65_535]);
    }
}

//! A keyed permutation of `0..n`: the order of the samples, without a table.
//!
//! A balanced Feistel network over the least even number of bits that covers `n`, with BLAKE3 as round function;
//! values outside `0..n` walk on along their cycle (Black and Rogaway, "Ciphers with arbitrary finite domains", 2002).
//! Either direction costs at most a few dozen hashes, so membership in a range is O(1).

use crate::hash::Hash32;

const ROUNDS: u64 = 8;

/// A permutation of `0..len` that `key` picks.
#[derive(Clone, Debug)]
pub struct Permutation {
    key: [u8; 32],
    len: u64,
    half_bits: u32,
}

impl Permutation {
    /// # Panics
    /// If `len` is 0 or above 2^62.
    pub fn new(key: Hash32, len: u64) -> Self {
        assert!((1..=1 << 62).contains(&len), "a permutation needs 1 to 2^62 elements, not {len}");
        let bits = (u64::BITS - (len - 1).leading_zeros()).max(2);
        Self { key: key.0, len, half_bits: bits.div_ceil(2) }
    }

    /// Where `index` is mapped to. `index` must be below `len`.
    pub fn forward(&self, index: u64) -> u64 {
        self.walk(index, |block| (0..ROUNDS).fold(block, |block, round| self.round(block, round)))
    }

    /// Which index is mapped to `image`: the inverse of [`Permutation::forward`].
    pub fn backward(&self, image: u64) -> u64 {
        self.walk(image, |block| {
            (0..ROUNDS).rev().fold(block, |block, round| self.swap(self.round(self.swap(block), round)))
        })
    }

    fn walk(&self, start: u64, step: impl Fn(u64) -> u64) -> u64 {
        assert!(start < self.len, "{start} is not below {}", self.len);
        let mut block = step(start);
        while block >= self.len {
            block = step(block);
        }
        block
    }

    /// (left, right) → (right, left ⊕ F(right)).
    fn round(&self, block: u64, round: u64) -> u64 {
        let mask = (1u64 << self.half_bits) - 1;
        let (left, right) = (block >> self.half_bits, block & mask);
        let mut input = [0u8; 16];
        input[..8].copy_from_slice(&round.to_le_bytes());
        input[8..].copy_from_slice(&right.to_le_bytes());
        let digest = blake3::keyed_hash(&self.key, &input);
        let f = u64::from_le_bytes(digest.as_bytes()[..8].try_into().expect("eight bytes")) & mask;
        right << self.half_bits | (left ^ f)
    }

    fn swap(&self, block: u64) -> u64 {
        let mask = (1u64 << self.half_bits) - 1;
        (block & mask) << self.half_bits | block >> self.half_bits
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn golden() {
        let permutation = Permutation::new(Hash32::of(b"key"), 10);
        let images: Vec<u64> = (0..10).map(|i| permutation.forward(i)).collect();
        assert_eq!(images, [9, 6, 8, 5, 0, 4, 7, 3, 1, 2]);
        let large = Permutation::new(Hash32::of(b"key"), 52_428_800);
        assert_eq!(
            [large.forward(0), large.forward(1), large.forward(52_428_799)],
            [38_385_693, 15_418_441, 24_217_743]
        );
    }

    proptest! {
        #[test]
        fn is_a_bijection(key in any::<[u8; 32]>(), len in 1u64..600) {
            let permutation = Permutation::new(Hash32(key), len);
            let mut seen = vec![false; len as usize];
            for index in 0..len {
                let image = permutation.forward(index);
                prop_assert!(!std::mem::replace(&mut seen[image as usize], true));
                prop_assert_eq!(permutation.backward(image), index);
            }
        }

        #[test]
        fn large_domains_invert(key in any::<[u8; 32]>(), len in 1u64..1 << 40, at in any::<u64>()) {
            let permutation = Permutation::new(Hash32(key), len);
            prop_assert_eq!(permutation.backward(permutation.forward(at % len)), at % len);
        }
    }
}

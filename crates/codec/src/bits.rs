//! Integers of a few bits, one after the other, least significant bit first.

/// Fills a slice of bytes with integers of a few bits.
pub(crate) struct BitWriter<'a> {
    out: &'a mut [u8],
    at: usize,
    pending: u64,
    pending_bits: usize,
}

impl<'a> BitWriter<'a> {
    pub(crate) fn new(out: &'a mut [u8]) -> Self {
        Self { out, at: 0, pending: 0, pending_bits: 0 }
    }

    /// Appends the lowest `bits` (at most 64) of `value`; its other bits must be 0.
    #[inline(always)]
    pub(crate) fn put(&mut self, value: u64, bits: usize) {
        debug_assert!(bits == 64 || value < 1 << bits, "{value} does not fit into {bits} bits");
        self.pending |= value << self.pending_bits;
        let free = 64 - self.pending_bits;
        if bits < free {
            self.pending_bits += bits;
            return;
        }
        self.out[self.at..self.at + 8].copy_from_slice(&self.pending.to_le_bytes());
        self.at += 8;
        self.pending = value.unbounded_shr(free as u32);
        self.pending_bits = bits - free;
    }

    /// Appends the first `bits` of `words`; all their other bits must be 0.
    #[inline(always)]
    pub(crate) fn put_words(&mut self, words: &[u64], bits: usize) {
        for (index, &word) in words[..bits.div_ceil(64)].iter().enumerate() {
            self.put(word, (bits - 64 * index).min(64));
        }
    }

    /// Writes what is pending, padded with zero bits to a whole byte, and returns the total number of bytes.
    pub(crate) fn finish(self) -> usize {
        let bytes = self.pending_bits.div_ceil(8);
        self.out[self.at..self.at + bytes].copy_from_slice(&self.pending.to_le_bytes()[..bytes]);
        self.at + bytes
    }
}

/// Bytes as bits that can be read anywhere. Beyond the end there are zeros.
#[derive(Clone, Copy)]
pub(crate) struct Bits<'a>(pub(crate) &'a [u8]);

impl Bits<'_> {
    /// The `count` (at most 64) bits from bit `at` on.
    #[inline(always)]
    pub(crate) fn get(self, at: usize, count: usize) -> u64 {
        let (byte, shift) = (at / 8, at % 8);
        let low = self.word(byte) >> shift;
        let above = u64::from(self.0.get(byte + 8).copied().unwrap_or(0));
        let bits = if shift == 0 { low } else { low | above << (64 - shift) };
        if count == 64 { bits } else { bits & ((1 << count) - 1) }
    }

    #[inline(always)]
    fn word(self, byte: usize) -> u64 {
        match self.0.get(byte..).and_then(<[u8]>::first_chunk) {
            Some(bytes) => u64::from_le_bytes(*bytes),
            None => self.last_word(byte),
        }
    }

    #[cold]
    fn last_word(self, byte: usize) -> u64 {
        self.0.iter().skip(byte).rev().fold(0, |word, &byte| word << 8 | u64::from(byte))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn least_significant_bit_comes_first() {
        let mut bytes = [0; 3];
        let mut writer = BitWriter::new(&mut bytes);
        for (value, bits) in [(0xabc, 12), (1, 1), (0b101, 3), (1, 1)] {
            writer.put(value, bits);
        }
        assert_eq!(writer.finish(), 3);
        assert_eq!(bytes, [0xbc, 0b1011_1010, 1]);
    }

    proptest! {
        #[test]
        fn written_integers_are_read_back(items in prop::collection::vec((any::<u64>(), 0usize..=64), 0..100)) {
            let items: Vec<(u64, usize)> =
                items.into_iter().map(|(value, bits)| (value & (!0u64).unbounded_shr(64 - bits as u32), bits)).collect();
            let total: usize = items.iter().map(|item| item.1).sum();
            let mut bytes = vec![0xff; total.div_ceil(8)];
            let mut writer = BitWriter::new(&mut bytes);
            for &(value, bits) in &items {
                writer.put(value, bits);
            }
            prop_assert_eq!(writer.finish(), bytes.len());
            let mut at = 0;
            for (value, bits) in items {
                prop_assert_eq!(Bits(&bytes).get(at, bits), value);
                at += bits;
            }
            prop_assert_eq!(Bits(&bytes).get(at, 64), 0);
        }
    }
}

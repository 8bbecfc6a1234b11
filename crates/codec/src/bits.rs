//! Integers of a few bits, one after the other, least significant bit first.

/// Fills a slice of bytes with integers of a few bits.
pub(crate) struct BitWriter<'a> {
    out: &'a mut [u8],
    at: usize,
    pending: u64,
    pending_bits: u32,
}

impl<'a> BitWriter<'a> {
    pub(crate) fn new(out: &'a mut [u8]) -> Self {
        Self { out, at: 0, pending: 0, pending_bits: 0 }
    }

    /// Appends the lowest `bits` (at most 32) of `value`; its other bits must be 0.
    pub(crate) fn put(&mut self, value: u32, bits: u32) {
        debug_assert!(bits <= 32 && u64::from(value) < 1 << bits, "{value} does not fit into {bits} bits");
        self.pending |= u64::from(value) << self.pending_bits;
        self.pending_bits += bits;
        if self.pending_bits >= 32 {
            self.out[self.at..self.at + 4].copy_from_slice(&(self.pending as u32).to_le_bytes());
            self.at += 4;
            self.pending >>= 32;
            self.pending_bits -= 32;
        }
    }

    /// Writes what is pending, padded with zero bits to a whole byte.
    pub(crate) fn finish(self) {
        let bytes = self.pending_bits.div_ceil(8) as usize;
        self.out[self.at..self.at + bytes].copy_from_slice(&self.pending.to_le_bytes()[..bytes]);
    }
}

/// Reads back what a [`BitWriter`] wrote. Beyond the end it reads zeros.
pub(crate) struct BitReader<'a> {
    bytes: &'a [u8],
    pending: u64,
    pending_bits: u32,
}

impl<'a> BitReader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, pending: 0, pending_bits: 0 }
    }

    /// The next `bits` (at most 32) bits.
    pub(crate) fn take(&mut self, bits: u32) -> u32 {
        debug_assert!(bits <= 32, "{bits} bits in one go");
        if self.pending_bits < bits {
            self.refill();
        }
        let value = self.pending & ((1 << bits) - 1);
        self.pending >>= bits;
        self.pending_bits = self.pending_bits.saturating_sub(bits);
        value as u32
    }

    /// Whether everything not yet read is 0.
    pub(crate) fn rest_is_zero(&self) -> bool {
        self.pending == 0 && self.bytes.iter().all(|&byte| byte == 0)
    }

    /// Called with fewer than 32 bits pending, so that four more bytes always fit.
    fn refill(&mut self) {
        if let Some((word, rest)) = self.bytes.split_first_chunk::<4>() {
            self.pending |= u64::from(u32::from_le_bytes(*word)) << self.pending_bits;
            self.pending_bits += 32;
            self.bytes = rest;
            return;
        }
        for &byte in self.bytes {
            self.pending |= u64::from(byte) << self.pending_bits;
            self.pending_bits += 8;
        }
        self.bytes = &[];
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
        writer.put(0xabc, 12);
        writer.put(1, 1);
        writer.put(0b101, 3);
        writer.put(1, 1);
        writer.finish();
        assert_eq!(bytes, [0xbc, 0b1011_1010, 1]);
    }

    proptest! {
        #[test]
        fn what_was_put_is_taken(items in prop::collection::vec((any::<u32>(), 0u32..=32), 0..100)) {
            let items: Vec<(u32, u32)> =
                items.into_iter().map(|(value, bits)| ((u64::from(value) & ((1 << bits) - 1)) as u32, bits)).collect();
            let total: u32 = items.iter().map(|item| item.1).sum();
            let mut bytes = vec![0xff; total.div_ceil(8) as usize];
            let mut writer = BitWriter::new(&mut bytes);
            for &(value, bits) in &items {
                writer.put(value, bits);
            }
            writer.finish();
            let mut reader = BitReader::new(&bytes);
            for (value, bits) in items {
                prop_assert_eq!(reader.take(bits), value);
            }
            prop_assert!(reader.rest_is_zero());
            prop_assert_eq!(reader.take(7), 0);
        }
    }
}

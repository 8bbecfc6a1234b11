//! Segments of top-k chunks to bytes and back: the kernels, which run on one thread and return their own errors only.
//!
//! They are plain Rust, compiled for several instruction sets (see [`crate::codec`]). No floating-point operation in
//! them may be fused or reordered, so that every path gives the same bits.

use pulp::Simd;

use crate::bits::{BitWriter, Bits};
use crate::dct;
use crate::feedback::Feedback;
use crate::format::{ChunkError, Limits, low_level, round_ratio, scale_value};
use crate::plan::{RATIO_BITS, SCALE_BITS, Segment};
use crate::select::{Selection, magnitude_bits};

/// A value in the segment is not finite.
#[derive(Debug, PartialEq)]
pub(crate) struct NotFinite;

/// One thread's working memory for encoding: a few chunks.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    selection: Selection,
    /// Which values have the high level: a bit each.
    levels: Vec<u64>,
    magnitudes: Vec<f64>,
    gaps: Vec<u16>,
    signs: Vec<u16>,
    unary: Vec<u64>,
    pub(crate) dct: dct::Scratch,
}

/// Accumulates Δ into e, writes what is sent into `out`, which has room for the longest segment, and subtracts it from
/// e. Returns the length of the segment in bytes.
#[inline(always)]
pub(crate) fn encode<S: Simd>(
    simd: S,
    segment: &Segment,
    limits: Limits,
    feedback: Feedback<'_>,
    out: &mut [u8],
    scratch: &mut Scratch,
) -> Result<usize, NotFinite> {
    let mut writer = BitWriter::new(out);
    scratch.unary.clear();
    scratch.unary.resize((segment.chunks * segment.unary_bits_max()).div_ceil(64), 0);
    let mut unary_bits = 0;
    for mut chunk in feedback.chunks(segment.chunk_len) {
        chunk.accumulate(segment.transform, &mut scratch.dct);
        encode_chunk(simd, segment, limits, chunk.e, &mut writer, scratch, &mut unary_bits)?;
    }
    writer.put_words(&scratch.unary, unary_bits);
    Ok(writer.finish())
}

#[inline(always)]
fn encode_chunk<S: Simd>(
    simd: S,
    segment: &Segment,
    limits: Limits,
    chunk: &mut [f32],
    writer: &mut BitWriter<'_>,
    scratch: &mut Scratch,
    unary_bits: &mut usize,
) -> Result<(), NotFinite> {
    let Scratch { selection, levels, magnitudes, gaps, signs, unary, dct: _ } = scratch;
    let (k, low_bits) = (segment.k, segment.low_bits);
    if selection.select_largest(simd, chunk, k) > magnitude_bits(f32::MAX) {
        return Err(NotFinite);
    }
    levels.clear();
    levels.resize(k.div_ceil(64), 0);
    magnitudes.clear();
    signs.clear();
    for &position in &selection.positions {
        let value = chunk[usize::from(position)];
        magnitudes.push(limits.capped(value));
        signs.push(u16::from(value < 0.0));
    }
    let (scale, ratio) = if segment.has_two_levels() {
        two_levels(magnitudes, levels, limits)
    } else {
        (one_level(magnitudes, limits), 0)
    };
    gaps.clear();
    if scale == 0 {
        // Filler of a chunk that sends nothing.
        gaps.resize(k, 0);
        signs.fill(0);
    } else {
        let values = ChunkHead { scale, ratio }.values(segment.has_two_levels());
        let mut next = 0;
        for (index, (&position, &sign)) in selection.positions.iter().zip(&*signs).enumerate() {
            gaps.push(position - next);
            // This wraps only after the last position of the longest chunk, where it is not used again.
            next = position.wrapping_add(1);
            let level = (levels[index / 64] >> (index % 64) & 1) as usize;
            let e = &mut chunk[usize::from(position)];
            *e = (f64::from(*e) - f64::from(values[2 * level + usize::from(sign)])) as f32;
        }
    }
    writer.put(u64::from(scale), SCALE_BITS);
    if segment.has_two_levels() {
        writer.put(u64::from(ratio), RATIO_BITS);
    }
    put_plane(writer, signs, 0);
    if segment.has_two_levels() {
        writer.put_words(levels, k);
    }
    for plane in 0..low_bits {
        put_plane(writer, gaps, plane);
    }
    for &gap in gaps.iter() {
        *unary_bits += usize::from(gap) >> low_bits;
        unary[*unary_bits / 64] |= 1 << (*unary_bits % 64);
        *unary_bits += 1;
    }
    Ok(())
}

/// Writes one bit of each value.
#[inline(always)]
fn put_plane(writer: &mut BitWriter<'_>, values: &[u16], plane: usize) {
    for values in values.chunks(64) {
        let mut word = 0;
        for (bit, &value) in values.iter().enumerate() {
            word |= u64::from(value >> plane & 1) << bit;
        }
        writer.put(word, values.len());
    }
}

/// The scale with the least squared error if all values are sent with one magnitude: their mean.
#[inline(always)]
fn one_level(magnitudes: &[f64], limits: Limits) -> u8 {
    limits.round_scale(above(magnitudes, 0.0).0 / magnitudes.len() as f64)
}

/// Sum and number of the magnitudes that are not below a threshold, in eight lanes, so that no addition waits for the
/// last.
#[inline(always)]
fn above(magnitudes: &[f64], threshold: f64) -> (f64, f64) {
    let (mut sums, mut counts) = ([0.0; 8], [0.0; 8]);
    let (lines, rest) = magnitudes.as_chunks::<8>();
    for line in lines {
        for ((sum, count), &magnitude) in sums.iter_mut().zip(&mut counts).zip(line) {
            let one = if magnitude >= threshold { 1.0 } else { 0.0 };
            *sum += one * magnitude;
            *count += one;
        }
    }
    for ((sum, count), &magnitude) in sums.iter_mut().zip(&mut counts).zip(rest) {
        let one = if magnitude >= threshold { 1.0 } else { 0.0 };
        *sum += one * magnitude;
        *count += one;
    }
    (sums.iter().sum(), counts.iter().sum())
}

/// Scale and ratio of two levels, and which values have the high one: Lloyd's algorithm from the mean, a few steps of
/// it, after which hardly anything moves.
#[inline(always)]
fn two_levels(magnitudes: &[f64], levels: &mut [u64], limits: Limits) -> (u8, u8) {
    let (total, _) = above(magnitudes, 0.0);
    let mut threshold = total / magnitudes.len() as f64;
    let (mut high, mut low) = (threshold, threshold);
    for _ in 0..4 {
        let (sum, count) = above(magnitudes, threshold);
        // The mean may round to above all of several equal values.
        if count == 0.0 || count == magnitudes.len() as f64 {
            threshold = 0.0;
            break;
        }
        (high, low) = (sum / count, (total - sum) / (magnitudes.len() as f64 - count));
        threshold = f64::midpoint(high, low);
    }
    let scale = limits.round_scale(high);
    if scale == 0 {
        return (0, 0);
    }
    let mut highs = 0;
    for (index, &magnitude) in magnitudes.iter().enumerate() {
        let high = magnitude >= threshold;
        levels[index / 64] |= u64::from(high) << (index % 64);
        highs += usize::from(high);
    }
    let ratio = if highs == magnitudes.len() { 0 } else { round_ratio(low, f64::from(scale_value(scale))) };
    (scale, ratio)
}

/// What one chunk sends.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct ChunkHead {
    scale: u8,
    ratio: u8,
}

impl ChunkHead {
    pub(crate) fn is_empty(self) -> bool {
        self.scale == 0
    }

    /// The value of each code: bit 0 is the sign, bit 1 the level (always 0 if there is only one).
    #[inline(always)]
    pub(crate) fn values(self, two_levels: bool) -> [f32; 4] {
        let high = scale_value(self.scale);
        let low = if two_levels { low_level(high, self.ratio) } else { high };
        [low, -low, high, -high]
    }
}

/// Reads a segment chunk by chunk.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reader<'a> {
    segment: &'a Segment,
    bytes: &'a [u8],
    /// Where the next chunk's fixed part starts.
    fixed_at: usize,
    /// Where the next chunk's unary part starts.
    unary_at: usize,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(segment: &'a Segment, bytes: &'a [u8]) -> Self {
        Self { segment, bytes, fixed_at: 0, unary_at: segment.chunks * segment.fixed_bits }
    }

    #[inline(always)]
    fn head(&self) -> (ChunkHead, usize) {
        let bits = Bits(self.bytes);
        let scale = bits.get(self.fixed_at, SCALE_BITS) as u8;
        if !self.segment.has_two_levels() {
            return (ChunkHead { scale, ratio: 0 }, self.fixed_at + SCALE_BITS);
        }
        let ratio = bits.get(self.fixed_at + SCALE_BITS, RATIO_BITS) as u8;
        (ChunkHead { scale, ratio }, self.fixed_at + SCALE_BITS + RATIO_BITS)
    }

    /// Number of ones among `count` bits from `at` on.
    #[inline(always)]
    fn ones(&self, at: usize, count: usize) -> usize {
        let pieces = (0..count).step_by(64);
        pieces.map(|first| Bits(self.bytes).get(at + first, (count - first).min(64)).count_ones() as usize).sum()
    }

    /// Checks the next chunk and returns the sum of the squares of what it sends. Nothing is unpacked: positions
    /// increase by construction, so the last one, which is the sum of all gaps, decides whether all are in range.
    #[inline(always)]
    pub(crate) fn check_chunk(&mut self, limits: Limits) -> Result<f64, ChunkError> {
        let (segment, (head, signs_at)) = (self.segment, self.head());
        let (k, low_bits) = (segment.k, segment.low_bits);
        limits.check_scale(head.scale)?;
        let lows_at = self.fixed_at + segment.fixed_bits - k * low_bits;
        let lows: usize = (0..low_bits).map(|plane| self.ones(lows_at + plane * k, k) << plane).sum();
        let unary_at = self.unary_at;
        let end = self.after_ones(k).ok_or(ChunkError::Truncated)?;
        let last = ((end - unary_at - k) << low_bits) + lows + k - 1;
        if last >= segment.chunk_len {
            return Err(ChunkError::PositionOutOfRange { found: last as u64, len: segment.chunk_len as u64 });
        }
        let highs = if segment.has_two_levels() { self.ones(signs_at + k, k) } else { k };
        if head.is_empty() {
            let filled = head.ratio != 0 || self.ones(signs_at, lows_at - signs_at) != 0 || last != k - 1;
            if filled {
                return Err(ChunkError::EmptyNotCanonical);
            }
        } else if highs == 0 || (highs == k && head.ratio != 0) {
            return Err(ChunkError::LevelsNotCanonical);
        }
        self.fixed_at += segment.fixed_bits;
        self.unary_at = end;
        // At most 2^16 squares of 18 bits whose magnitudes are within a factor 2^10: exact, so their order does not
        // matter.
        let [low, _, high, _] = head.values(segment.has_two_levels());
        let square = |value: f32, count: usize| f64::from(value) * f64::from(value) * count as f64;
        Ok(square(high, highs) + square(low, k - highs))
    }

    /// Where the next chunk's unary part ends: after its k-th one.
    #[inline(always)]
    fn after_ones(&self, k: usize) -> Option<usize> {
        let (mut at, mut missing) = (self.unary_at, k);
        while at < 8 * self.bytes.len() {
            let mut word = Bits(self.bytes).get(at, 64);
            let ones = word.count_ones() as usize;
            if ones >= missing {
                for _ in 1..missing {
                    word &= word - 1;
                }
                return Some(at + word.trailing_zeros() as usize + 1);
            }
            missing -= ones;
            at += 64;
        }
        None
    }

    /// Checks that nothing but padding follows the last chunk.
    pub(crate) fn check_end(&self) -> Result<(), ChunkError> {
        let exact = self.unary_at.div_ceil(8) == self.bytes.len();
        if exact && Bits(self.bytes).get(self.unary_at, 8) == 0 { Ok(()) } else { Err(ChunkError::TrailingBits) }
    }

    /// Unpacks the next chunk of a segment that has been checked: k entries.
    #[inline(always)]
    pub(crate) fn unpack_chunk(&mut self, entries: &mut [Entry]) -> ChunkHead {
        let (segment, bits, (head, signs_at)) = (self.segment, Bits(self.bytes), self.head());
        let (k, low_bits) = (segment.k, segment.low_bits);
        let lows_at = self.fixed_at + segment.fixed_bits - k * low_bits;
        let mut ones = [0; 128];
        // The sums of the low bits and of the unary parts of all earlier gaps.
        let (mut lows_sum, mut zeros_sum) = (0u32, 0u32);
        for (group, entries) in entries.chunks_mut(64).enumerate() {
            let (count, at) = (entries.len(), 64 * group);
            let (mut lows, mut codes) = ([0u32; 64], [0u32; 64]);
            for plane in 0..low_bits {
                spread(bits.get(lows_at + plane * k + at, count), plane, &mut lows);
            }
            spread(bits.get(signs_at + at, count), 16, &mut codes);
            if segment.has_two_levels() {
                spread(bits.get(signs_at + k + at, count), 17, &mut codes);
            }
            self.take_ones(count, &mut ones);
            // Checked additions would take longer than everything else.
            for low in &mut lows {
                lows_sum = lows_sum.wrapping_add(*low);
                *low = lows_sum;
            }
            let first = (zeros_sum << low_bits).wrapping_add(at as u32);
            for (index, (((entry, &code), &low), &one)) in
                (0u32..).zip(entries.iter_mut().zip(&codes).zip(&lows).zip(&ones))
            {
                let zeros = one.wrapping_sub(index) << low_bits;
                *entry = Entry(code | first.wrapping_add(zeros).wrapping_add(low).wrapping_add(index));
            }
            zeros_sum = zeros_sum.wrapping_add(ones[count - 1]).wrapping_sub(count as u32 - 1);
        }
        self.fixed_at += segment.fixed_bits;
        head
    }

    /// Finds the next `count` (1 to 64) ones of the unary part, counted from its first remaining bit, and consumes
    /// these bits. The segment has been checked, so that many exist.
    #[inline(always)]
    fn take_ones(&mut self, count: usize, ones: &mut [u32; 128]) {
        /// Written at once, whether a word has that many or not: cheaper than a mispredicted branch.
        const AT_ONCE: usize = 8;
        let (mut found, mut from) = (0, 0);
        while found < count && self.unary_at + from < 8 * self.bytes.len() {
            let mut word = Bits(self.bytes).get(self.unary_at + from, 64);
            let next = found + word.count_ones() as usize;
            while found < next {
                for one in &mut ones[found..][..AT_ONCE] {
                    *one = from as u32 + word.trailing_zeros();
                    word &= word.wrapping_sub(1);
                }
                found += AT_ONCE;
            }
            (found, from) = (next, from + 64);
        }
        self.unary_at += ones[count - 1] as usize + 1;
    }
}

/// One value that is sent: its position within the chunk in the low 16 bits, its code for [`ChunkHead::values`] above.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Entry(u32);

impl Entry {
    #[inline(always)]
    pub(crate) fn position(self) -> usize {
        usize::from(self.0 as u16)
    }

    #[inline(always)]
    pub(crate) fn code(self) -> usize {
        (self.0 >> 16 & 3) as usize
    }
}

/// Adds bit i of `plane`, shifted left by `shift`, to word i.
#[inline(always)]
fn spread(plane: u64, shift: usize, words: &mut [u32; 64]) {
    let (low, high) = words.split_at_mut(32);
    for (words, plane) in [(low, plane as u32), (high, (plane >> 32) as u32)] {
        for (bit, word) in words.iter_mut().enumerate() {
            *word |= (plane >> bit & 1) << shift;
        }
    }
}

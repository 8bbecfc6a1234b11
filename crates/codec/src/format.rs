//! The bytes of a contribution, version 1. `docs/spec/contribution.md` says the same to authors of another
//! implementation; `testdata/contributions` has examples.
//!
//! All integers and floats are little-endian; bits are numbered from the least significant bit of the first byte on,
//! and an integer's least significant bit comes first. A tensor is cut into *chunks* of C = `codec.chunk` values in
//! row-major order, of which the last may be shorter; neighbouring full chunks of one tensor form *segments* of
//! max(1, ⌊65536 / max(C, 8)⌋) chunks (the last of them may have fewer), and a shorter last chunk is a segment of its own.
//!
//! | bytes | content |
//! |---|---|
//! | 2 | `"TC"` |
//! | 1 | format version: 1 |
//! | 1 | codec kind, as in the run: 1 = topk-sign, 2 = dense-f32, 3 = topk-2bit |
//! | 2 each | length in bytes of each segment that can have more than one (see below) |
//! | … | the segments in canonical order, and nothing else |
//!
//! A segment of n chunks has n · (fixed bits + k) to n · (fixed bits + k + ⌊(L − k) / 2^b⌋) bits (see below), rounded up to
//! bytes. Where both ends give one number of bytes, as in small tensors and in dense-f32, that is its length.
//!
//! # topk-sign and topk-2bit
//! A chunk of L values sends k = ⌈`codec.k` · L / C⌉ of them. A segment is first a fixed part for each of its chunks:
//!
//! | bits | content |
//! |---|---|
//! | 8 | scale s: the high level H is 2^(⌊s/8⌋ − 28) · (1 + (s mod 8) / 8), or, for s = 0, nothing |
//! | 4 | topk-2bit only: ratio r; the low level is H · (2r + 1) / 32 |
//! | k | signs, in the order of positions; 1 is negative |
//! | k | topk-2bit only: 1 where the magnitude is H, 0 where it is the low level |
//! | b · k | the lowest b bits of each gap, as b planes: first bit 0 of all gaps, then bit 1 … |
//!
//! then, for each of its chunks, k times ⌊gap / 2^b⌋ zeros and a one; then zeros up to a whole byte. A *gap* is the
//! number of positions passed over since the last one sent, or since the start of the chunk; b is the largest integer
//! with 13 · k · 2^b ≤ 9 · L, or 0. (These are Rice codes with their two halves kept apart; at 64 of 4096, b is 5 and a
//! value takes 7.5 bits of position, where 7.36 is the bound.)
//!
//! *One form.* H is at most `codec.max_abs`. A chunk with s = 0 sends nothing: then r, signs, levels and gaps are 0. In
//! topk-2bit at least one value has the high level; if all have it, r is 0.
//!
//! # dense-f32
//! A segment is its values as f32, each +0 or a normal number of magnitude at most `codec.max_abs`.
//!
//! # Why
//! *Total*: a length that the bytes state is checked against bounds that follow from the run before it is used to read
//! anything. *Canonical*: positions cannot repeat or run backwards, and where two byte strings could mean the same
//! (filler of an empty chunk, unused levels, padding, −0), one is chosen and the others are errors. Subnormal numbers
//! are excluded because some processors flush them to zero.

use crate::select::magnitude_bits;

/// Bytes before the lengths of the segments.
pub const HEAD_BYTES: usize = 4;
/// The version of the format that this module specifies.
pub const VERSION: u8 = 1;
/// Bytes of a segment's length.
pub(crate) const LENGTH_BYTES: usize = 2;
pub(crate) const MAGIC: [u8; 2] = *b"TC";
/// Bits of the smallest normal f32.
const NORMAL_BITS_MIN: u32 = 0x0080_0000;
/// A scale is bits 20 … 27 of an f32, counted from here: 2^-28.
const SCALE_ORIGIN: u32 = (127 - 28) << 3;

/// Why a payload is not a contribution. Each of these is its miner's fault.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    #[error("the payload has {found} bytes, but contributions to this run have {least} to {most}; reject it")]
    WrongLength { found: u64, least: u64, most: u64 },
    #[error("the payload starts with {found:02x?} instead of \"TC\", so it is not a contribution; reject it")]
    WrongMagic { found: [u8; 2] },
    #[error(
        "the payload has format version {found}, but this run's is {VERSION}; its miner must use the run's release"
    )]
    UnknownVersion { found: u8 },
    #[error("the payload has codec kind {found}, but this run's is {expected}; its miner must use the run's codec")]
    WrongKind { found: u8, expected: u8 },
    #[error("segment {segment} claims {found} bytes, but it has {least} to {most}; reject the payload")]
    SegmentLength { segment: u64, found: u64, least: u64, most: u64 },
    #[error("the payload has {found} bytes, but its segments add up to {declared}; reject it")]
    WrongTotal { found: u64, declared: u64 },
    #[error("chunk {chunk} of `{tensor}` is invalid, reject the payload: {source}")]
    Chunk { tensor: String, chunk: u64, source: ChunkError },
}

/// What is wrong with a single chunk, or, for the last two, with its segment.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ChunkError {
    #[error("its scale {code} is above the run's codec.max_abs")]
    ScaleTooLarge { code: u8 },
    #[error("its last position is {found}, outside its {len} values")]
    PositionOutOfRange { found: u64, len: u64 },
    #[error("its scale is 0, but its other bits are not")]
    EmptyNotCanonical,
    #[error("no value has the high level, or all have it and the ratio is not 0")]
    LevelsNotCanonical,
    #[error("value {position} has the bits {bits:#010x}: not finite, subnormal or −0")]
    ValueInvalid { position: u64, bits: u32 },
    #[error("value {position} has the bits {bits:#010x}: above the run's codec.max_abs")]
    ValueTooLarge { position: u64, bits: u32 },
    #[error("the segment ends before its last position")]
    Truncated,
    #[error("its last position is followed by bits that are not padding")]
    TrailingBits,
}

/// The largest magnitudes that `codec.max_abs` allows.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    f32_bits: u32,
    scale: u8,
}

impl Limits {
    pub(crate) fn new(max_abs: f64) -> Self {
        let nearest = max_abs as f32;
        let below = if f64::from(nearest) > max_abs { nearest.next_down() } else { nearest };
        // Cutting off the lower bits rounds towards zero.
        let scale = (below.to_bits() >> 20).saturating_sub(SCALE_ORIGIN).min(255) as u8;
        Self { f32_bits: below.to_bits(), scale }
    }

    /// Magnitude of `value` in f64, capped.
    #[inline(always)]
    pub(crate) fn capped(self, value: f32) -> f64 {
        f64::from(f32::from_bits(magnitude_bits(value).min(self.f32_bits)))
    }

    /// Rounds a magnitude to a scale: to the nearest f32, then to the nearest scale, ties to even both times; to the
    /// run's largest scale above that, and to 0 below the smallest.
    #[inline(always)]
    pub(crate) fn round_scale(self, magnitude: f64) -> u8 {
        let bits = (magnitude as f32).to_bits();
        let to_even = (bits + 0x7_ffff + (bits >> 20 & 1)) >> 20;
        to_even.saturating_sub(SCALE_ORIGIN).min(u32::from(self.scale)) as u8
    }

    pub(crate) fn check_scale(self, code: u8) -> Result<(), ChunkError> {
        if code > self.scale { Err(ChunkError::ScaleTooLarge { code }) } else { Ok(()) }
    }
}

/// The magnitude that a scale stands for.
#[inline(always)]
pub(crate) fn scale_value(code: u8) -> f32 {
    if code == 0 { 0.0 } else { f32::from_bits((u32::from(code) + SCALE_ORIGIN) << 20) }
}

/// The low level of a chunk; exact, as it has nine significant bits.
#[inline(always)]
pub(crate) fn low_level(high: f32, ratio: u8) -> f32 {
    high * (f32::from(2 * ratio + 1) / 32.0)
}

/// The ratio whose low level is nearest to `low`.
#[inline(always)]
pub(crate) fn round_ratio(low: f64, high: f64) -> u8 {
    ((low / high * 16.0) as u8).min(15)
}

/// A value of error feedback as dense-f32 sends it: capped, and +0 where it is ±0 or subnormal.
pub(crate) fn canonical_value(value: f32, limits: Limits) -> f32 {
    let magnitude = magnitude_bits(value).min(limits.f32_bits);
    if magnitude < NORMAL_BITS_MIN { 0.0 } else { f32::from_bits(magnitude).copysign(value) }
}

/// Writes finite values as dense f32, and leaves in `values` what that cannot express.
#[inline(always)]
pub(crate) fn write_dense(out: &mut [u8], values: &mut [f32], limits: Limits) {
    for (bytes, value) in out.as_chunks_mut::<4>().0.iter_mut().zip(values) {
        let sent = canonical_value(*value, limits);
        *bytes = sent.to_le_bytes();
        *value = (f64::from(*value) - f64::from(sent)) as f32;
    }
}

/// Checks a dense-f32 chunk.
pub(crate) fn check_dense(bytes: &[u8], limits: Limits) -> Result<(), ChunkError> {
    for (position, bytes) in bytes.as_chunks::<4>().0.iter().enumerate() {
        let bits = u32::from_le_bytes(*bytes);
        let magnitude = bits & 0x7fff_ffff;
        let position = position as u64;
        if bits != 0 && !(NORMAL_BITS_MIN..0x7f80_0000).contains(&magnitude) {
            return Err(ChunkError::ValueInvalid { position, bits });
        }
        if magnitude > limits.f32_bits {
            return Err(ChunkError::ValueTooLarge { position, bits });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scales_round_to_nearest_even_and_stay_within_the_limit() {
        let wide = Limits::new(1024.0);
        let round = |magnitude: f64| f64::from(scale_value(wide.round_scale(magnitude)));
        // Three bits after the leading one: an eighth apart above 1.
        assert_eq!((round(1.0), round(1.0625), round(1.1875), round(1.07), round(1.95)), (1.0, 1.0, 1.25, 1.125, 2.0));
        assert_eq!((round(15.0), round(1e9), round(0.0)), (15.0, 15.0, 0.0));
        let least = 2f64.powi(-28) * 1.125;
        assert_eq!((round(least), round(least * 0.9)), (least, 0.0));
        // 0.1 lies between two scales; the nearer one is above it, which the limit forbids.
        let tenth = Limits::new(0.1);
        assert_eq!(scale_value(tenth.round_scale(0.1)), 0.09375);
        for code in 0..=255u8 {
            let value = scale_value(code);
            assert_eq!(wide.round_scale(f64::from(value)), code);
            assert_eq!(tenth.check_scale(code).is_ok(), f64::from(value) <= 0.1, "{code}");
            for ratio in 0..16 {
                let low = low_level(value, ratio);
                assert!(code == 0 || (low < value && low.is_normal()), "{code} {ratio}");
                assert!(code == 0 || round_ratio(f64::from(low), f64::from(value)) == ratio);
            }
        }
    }
}

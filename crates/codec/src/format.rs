//! The bytes of a contribution, version 1: enough for another implementation.
//!
//! All integers and floats are little-endian. A payload is a head of [`HEAD_BYTES`] bytes, then every chunk of every
//! tensor in canonical order, and nothing else:
//!
//! | byte | content |
//! |---|---|
//! | 0, 1 | `"TC"` |
//! | 2 | format version: 1 |
//! | 3 | codec kind, as in the run: 1 = topk-sign, 2 = dense-f32 |
//!
//! Each tensor is cut into chunks of C = `codec.chunk` values in row-major order; its last chunk may be shorter. A
//! tensor's first chunk starts at its first value. The length of every chunk's bytes follows from the run alone, hence
//! the payload's too.
//!
//! # topk-sign
//! A chunk of L values sends k = ⌈`codec.k` · L / C⌉ of them, with one magnitude for all:
//!
//! | bits | content |
//! |---|---|
//! | 16 | scale: a bfloat16 (the upper half of an f32) |
//! | k · b | positions within the chunk, strictly increasing; b = ⌈log2 L⌉, the least bits that can name each |
//! | k | signs, in the order of the positions; 1 is negative |
//! | 0 … 7 | zeros up to a whole byte |
//!
//! Bits are numbered from the least significant bit of the first byte on, and an integer's least significant bit
//! comes first. The value sent for a position is +scale or −scale. A scale is 0 or a normal number, positive and at
//! most `codec.max_abs`. A chunk with scale 0 sends nothing; its positions are then 0, 1, …, k − 1 and its signs 0.
//!
//! # dense-f32
//! A chunk is its L values as f32, each +0 or a normal number of magnitude at most `codec.max_abs`.
//!
//! # Why so
//! Every rule serves one of two ends. *Total*: nothing in the bytes is a length, so the reader knows all sizes before it
//! starts. *Canonical*: where two byte strings could mean the same (−0, filler of an empty chunk, order, padding), one
//! is chosen and the others are errors. Subnormal numbers are excluded because some processors flush them to zero.

use templar_protocol::run::CodecKind;

use crate::{
    bits::{BitReader, BitWriter},
    plan::Segment,
    select::magnitude_bits,
};

/// Bytes before the first chunk.
pub const HEAD_BYTES: usize = 4;
/// The version of the format that this module specifies.
pub const VERSION: u8 = 1;
const MAGIC: [u8; 2] = *b"TC";
/// Bits of the smallest normal f32.
const MIN_NORMAL: u32 = 0x0080_0000;

/// Why a payload is not a contribution. All of them are its miner's fault.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    #[error("the payload has {found} bytes, but every contribution to this run has {expected}; reject it")]
    WrongLength { found: u64, expected: u64 },
    #[error("the payload starts with {found:02x?} instead of \"TC\", so it is no contribution; reject it")]
    WrongMagic { found: [u8; 2] },
    #[error(
        "the payload has format version {found}, but this run's is {VERSION}; its miner must use the run's release"
    )]
    UnknownVersion { found: u8 },
    #[error("the payload has codec kind {found}, but this run's is {expected}; its miner must use the run's codec")]
    WrongKind { found: u8, expected: u8 },
    #[error("chunk {chunk} of `{tensor}` is invalid, reject the payload: {source}")]
    Chunk { tensor: String, chunk: u64, source: ChunkError },
}

/// What is wrong with a single chunk.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ChunkError {
    #[error("its scale {bits:#06x} is negative, not finite or subnormal")]
    ScaleInvalid { bits: u16 },
    #[error("its scale {bits:#06x} is above the run's codec.max_abs")]
    ScaleTooLarge { bits: u16 },
    #[error("position {found} is outside of its {len} values")]
    PositionOutOfRange { found: u32, len: u64 },
    #[error("position {found} follows {previous}, but positions must increase")]
    PositionsNotIncreasing { previous: u32, found: u32 },
    #[error("its scale is 0, but its positions are not the first ones or its signs are not 0")]
    EmptyNotCanonical,
    #[error("its padding is not 0")]
    PaddingNotZero,
    #[error("value {position} has the bits {bits:#010x}: not finite, subnormal or −0")]
    ValueInvalid { position: u64, bits: u32 },
    #[error("value {position} has the bits {bits:#010x}: above the run's codec.max_abs")]
    ValueTooLarge { position: u64, bits: u32 },
}

/// The largest magnitudes that `codec.max_abs` allows, as bits: magnitudes order as their bits do.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    f32_bits: u32,
    scale_bits: u16,
}

impl Limits {
    pub(crate) fn new(max_abs: f64) -> Self {
        let nearest = max_abs as f32;
        let below = if f64::from(nearest) > max_abs { nearest.next_down() } else { nearest };
        // Cutting off the lower half rounds towards zero.
        Self { f32_bits: below.to_bits(), scale_bits: (below.to_bits() >> 16) as u16 }
    }

    /// Magnitude of `value` in f64, capped.
    pub(crate) fn capped(self, value: f32) -> f64 {
        f64::from(f32::from_bits(magnitude_bits(value).min(self.f32_bits)))
    }
}

/// A mean magnitude, already capped, as the scale of a chunk: to the nearest f32, then to the nearest bfloat16, ties to
/// even both times; down where that would pass the limit; 0 where it would be subnormal.
pub(crate) fn round_scale(mean: f64, limits: Limits) -> u16 {
    let bits = (mean as f32).to_bits();
    if bits < MIN_NORMAL {
        return 0;
    }
    let to_even = 0x7fff + ((bits >> 16) & 1);
    (((bits + to_even) >> 16) as u16).min(limits.scale_bits)
}

/// The magnitude that a valid scale stands for.
pub(crate) fn scale_value(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

/// A value of error feedback as dense-f32 sends it: capped, and +0 where it is ±0 or subnormal.
pub(crate) fn canonical_value(value: f32, limits: Limits) -> f32 {
    let magnitude = magnitude_bits(value).min(limits.f32_bits);
    if magnitude < MIN_NORMAL { 0.0 } else { f32::from_bits(magnitude).copysign(value) }
}

pub(crate) fn write_head(payload: &mut [u8], kind: CodecKind) {
    payload[..2].copy_from_slice(&MAGIC);
    payload[2] = VERSION;
    payload[3] = kind as u8;
}

/// Checks length and head.
pub(crate) fn read_head(payload: &[u8], expected_bytes: usize, kind: CodecKind) -> Result<(), DecodeError> {
    if payload.len() != expected_bytes {
        return Err(DecodeError::WrongLength { found: payload.len() as u64, expected: expected_bytes as u64 });
    }
    if payload[..2] != MAGIC {
        return Err(DecodeError::WrongMagic { found: [payload[0], payload[1]] });
    }
    if payload[2] != VERSION {
        return Err(DecodeError::UnknownVersion { found: payload[2] });
    }
    if payload[3] != kind as u8 {
        return Err(DecodeError::WrongKind { found: payload[3], expected: kind as u8 });
    }
    Ok(())
}

/// Writes a topk-sign chunk. `signs` has one bit a position, least significant first, the unused ones 0.
pub(crate) fn write_signs(out: &mut [u8], position_bits: u32, scale_bits: u16, positions: &[u16], signs: &[u64]) {
    let (scale, packed) = out.split_at_mut(2);
    scale.copy_from_slice(&scale_bits.to_le_bytes());
    let mut writer = BitWriter::new(packed);
    for &position in positions {
        writer.put(u32::from(position), position_bits);
    }
    for (bits, shift, word) in sign_halves(positions.len()) {
        writer.put((signs[word] >> shift) as u32, bits);
    }
    writer.finish();
}

/// Reads and checks a topk-sign chunk into `positions` and `signs`, and returns the bits of its scale.
pub(crate) fn read_signs(
    bytes: &[u8],
    segment: &Segment,
    limits: Limits,
    positions: &mut [u16],
    signs: &mut [u64],
) -> Result<u16, ChunkError> {
    let (scale, packed) = bytes.split_at(2);
    let scale_bits = u16::from_le_bytes([scale[0], scale[1]]);
    // Sign bit, ∞ and NaN are all at or above the bits of ∞; what lies between 0 and 0x0080 is subnormal.
    if scale_bits >= 0x7f80 || (1..0x0080).contains(&scale_bits) {
        return Err(ChunkError::ScaleInvalid { bits: scale_bits });
    }
    if scale_bits > limits.scale_bits {
        return Err(ChunkError::ScaleTooLarge { bits: scale_bits });
    }
    let mut reader = BitReader::new(packed);
    let (len, position_bits) = (segment.chunk_len as u32, segment.position_bits());
    let mut least = 0;
    for position in positions.iter_mut() {
        let found = reader.take(position_bits);
        if found >= len {
            return Err(ChunkError::PositionOutOfRange { found, len: u64::from(len) });
        }
        if found < least {
            return Err(ChunkError::PositionsNotIncreasing { previous: least - 1, found });
        }
        *position = found as u16;
        least = found + 1;
    }
    signs.fill(0);
    for (bits, shift, word) in sign_halves(positions.len()) {
        signs[word] |= u64::from(reader.take(bits)) << shift;
    }
    // Strictly increasing positions are the first ones exactly if their last is k − 1.
    if scale_bits == 0 && (least as usize != positions.len() || signs.iter().any(|&word| word != 0)) {
        return Err(ChunkError::EmptyNotCanonical);
    }
    if !reader.rest_is_zero() {
        return Err(ChunkError::PaddingNotZero);
    }
    Ok(scale_bits)
}

/// `count` sign bits in pieces of up to 32: (bits, shift within the word, word).
fn sign_halves(count: usize) -> impl Iterator<Item = (u32, usize, usize)> {
    (0..count).step_by(32).map(move |first| ((count - first).min(32) as u32, first % 64, first / 64))
}

/// Writes a dense-f32 chunk. The values must be canonical.
pub(crate) fn write_dense(out: &mut [u8], values: impl Iterator<Item = f32>) {
    for (bytes, value) in out.as_chunks_mut::<4>().0.iter_mut().zip(values) {
        *bytes = value.to_le_bytes();
    }
}

/// Reads and checks a dense-f32 chunk.
pub(crate) fn read_dense(bytes: &[u8], limits: Limits, values: &mut [f32]) -> Result<(), ChunkError> {
    for (position, (value, bytes)) in values.iter_mut().zip(bytes.as_chunks::<4>().0).enumerate() {
        let bits = u32::from_le_bytes(*bytes);
        let magnitude = bits & 0x7fff_ffff;
        let position = position as u64;
        if bits != 0 && !(MIN_NORMAL..0x7f80_0000).contains(&magnitude) {
            return Err(ChunkError::ValueInvalid { position, bits });
        }
        if magnitude > limits.f32_bits {
            return Err(ChunkError::ValueTooLarge { position, bits });
        }
        *value = f32::from_bits(bits);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scales_round_to_nearest_even_and_stay_within_the_limit() {
        let wide = Limits::new(1024.0);
        let round = |mean: f64| f64::from(scale_value(round_scale(mean, wide)));
        assert_eq!(round(1.0), 1.0);
        // bfloat16 has eight significant bits: 2^-7 apart above 1.
        assert_eq!(round(1.0 + 1.0 / 256.0), 1.0);
        assert_eq!(round(1.0 + 3.0 / 256.0), 1.0 + 4.0 / 256.0);
        assert_eq!(round(1.0 + 1.01 / 256.0), 1.0 + 2.0 / 256.0);
        assert_eq!(round(2.0 - 1.0 / 1024.0), 2.0);
        assert_eq!(round(f64::from(f32::MIN_POSITIVE)), f64::from(f32::MIN_POSITIVE));
        assert_eq!(round(f64::from(f32::MIN_POSITIVE) * 0.999), 0.0);
        assert_eq!(round(0.0), 0.0);
        // 0.1 lies between two bfloat16; the nearer one is above it, which the limit forbids.
        let tenth = Limits::new(0.1);
        assert!(round(0.1) > 0.1);
        let capped = f64::from(scale_value(round_scale(0.1, tenth)));
        assert!(capped <= 0.1 && capped > 0.099, "{capped}");
        assert!(tenth.capped(7.0) <= 0.1);
        assert_eq!(wide.capped(-2000.0), 1024.0);
    }

    #[test]
    fn dense_values_have_one_form() {
        let limits = Limits::new(2.0);
        for (value, sent) in [(-0.0f32, 0.0f32), (1e-40, 0.0), (-1e-40, 0.0), (-3.0, -2.0), (1.5, 1.5)] {
            assert_eq!(canonical_value(value, limits).to_bits(), sent.to_bits(), "{value}");
        }
    }
}

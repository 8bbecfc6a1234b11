//! Where everything lies: chunks, sent values and the bounds of all lengths follow from the layout and the codec's
//! specification alone, so a stranger's bytes can never choose the size of an allocation.

use std::ops::{Range, RangeInclusive};
use std::sync::Arc;

use templar_protocol::layout::Layout;
use templar_protocol::run::{CodecKind, CodecSpec, Transform};

use crate::format::{HEAD_BYTES, LENGTH_BYTES};

/// Parameters in one unit of parallel work, at least one chunk: 256 KiB, which a core's own cache holds.
const SEGMENT_PARAMS: usize = 1 << 16;
/// Shorter chunks do not give a segment more chunks, so that its length in bytes fits 16 bits.
const SEGMENT_CHUNK_MIN: usize = 8;
/// Bits of a chunk's scale.
pub(crate) const SCALE_BITS: usize = 8;
/// Bits of the ratio of a chunk's two levels.
pub(crate) const RATIO_BITS: usize = 4;

/// A few neighbouring chunks of one tensor that all have the same length.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Segment {
    /// Index of the tensor in the layout.
    pub(crate) tensor: usize,
    /// Number of its first chunk within the tensor.
    pub(crate) chunk_in_tensor: usize,
    pub(crate) chunks: usize,
    /// Parameters in each chunk.
    pub(crate) chunk_len: usize,
    /// Values that each chunk sends.
    pub(crate) k: usize,
    pub(crate) kind: CodecKind,
    /// What its chunks are sent as: parameters, or, if they are full ones, coefficients.
    pub(crate) transform: Transform,
    /// b: how many low bits of a gap are stored as they are; what is above them is unary.
    pub(crate) low_bits: usize,
    /// Bits of a chunk that do not depend on what it sends.
    pub(crate) fixed_bits: usize,
    first_param: usize,
}

impl Segment {
    /// Its place in the flat parameters.
    pub(crate) fn params(&self) -> Range<usize> {
        self.first_param..self.first_param + self.param_count()
    }

    pub(crate) fn param_count(&self) -> usize {
        self.chunks * self.chunk_len
    }

    pub(crate) fn has_two_levels(&self) -> bool {
        self.kind == CodecKind::TopkTwoBit
    }

    /// The largest number of unary bits of a chunk: a 1 for each value, and a 0 for each 2^b positions passed over.
    pub(crate) fn unary_bits_max(&self) -> usize {
        match self.kind {
            CodecKind::TopkSign | CodecKind::TopkTwoBit => self.k + ((self.chunk_len - self.k) >> self.low_bits),
            CodecKind::DenseF32 => 0,
        }
    }

    /// The lengths that it can have, in bytes.
    pub(crate) fn byte_range(&self) -> RangeInclusive<usize> {
        let least = self.chunks * (self.fixed_bits + self.unary_bits_max().min(self.k));
        let most = self.chunks * (self.fixed_bits + self.unary_bits_max());
        least.div_ceil(8)..=most.div_ceil(8)
    }

    /// Whether the payload states its length; it does not if only one is possible.
    pub(crate) fn states_length(&self) -> bool {
        let range = self.byte_range();
        range.start() < range.end()
    }
}

/// All segments of a model under one codec.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Plan {
    pub(crate) layout: Arc<Layout>,
    pub(crate) kind: CodecKind,
    /// Parameters in a full chunk.
    pub(crate) chunk: usize,
    pub(crate) segments: Vec<Segment>,
    /// Lengths that a valid payload can have.
    pub(crate) payload_bytes: RangeInclusive<usize>,
}

impl Plan {
    pub(crate) fn new(layout: Arc<Layout>, spec: &CodecSpec) -> Self {
        let (chunk, k) = (spec.chunk as usize, spec.k as usize);
        let per_segment = (SEGMENT_PARAMS / chunk.max(SEGMENT_CHUNK_MIN)).max(1);
        let mut segments = Vec::new();
        let mut first_param = 0;
        for (tensor, spec_of) in layout.tensors().iter().enumerate() {
            let (full, tail) = (spec_of.range().len() / chunk, spec_of.range().len() % chunk);
            let mut add = |chunk_in_tensor: usize, chunks: usize, chunk_len: usize| {
                let k = match spec.kind {
                    // Rounded up, so that every tensor sends something; not more, so that no tensor becomes dense.
                    CodecKind::TopkSign | CodecKind::TopkTwoBit => (k * chunk_len).div_ceil(chunk),
                    CodecKind::DenseF32 => chunk_len,
                };
                let (kind, low_bits) = (spec.kind, low_bits(chunk_len, k));
                let transform = if chunk_len == chunk { spec.transform } else { Transform::None };
                let fixed_bits = match kind {
                    CodecKind::TopkSign => SCALE_BITS + k * (1 + low_bits),
                    CodecKind::TopkTwoBit => SCALE_BITS + RATIO_BITS + k * (2 + low_bits),
                    CodecKind::DenseF32 => 32 * chunk_len,
                };
                segments.push(Segment {
                    tensor,
                    chunk_in_tensor,
                    chunks,
                    chunk_len,
                    k,
                    kind,
                    transform,
                    low_bits,
                    fixed_bits,
                    first_param,
                });
                first_param += chunks * chunk_len;
            };
            for chunk_in_tensor in (0..full).step_by(per_segment) {
                add(chunk_in_tensor, per_segment.min(full - chunk_in_tensor), chunk);
            }
            if tail > 0 {
                add(full, 1, tail);
            }
        }
        let mut plan = Self { layout, kind: spec.kind, chunk, segments, payload_bytes: 0..=0 };
        let total = |end: fn(&RangeInclusive<usize>) -> usize| {
            plan.bodies_at() + plan.segments.iter().map(|segment| end(&segment.byte_range())).sum::<usize>()
        };
        plan.payload_bytes = total(|range| *range.start())..=total(|range| *range.end());
        plan
    }

    /// Bytes before the first segment: the head, and the lengths of the segments that state theirs.
    pub(crate) fn bodies_at(&self) -> usize {
        HEAD_BYTES + self.directory_bytes()
    }

    pub(crate) fn directory_bytes(&self) -> usize {
        LENGTH_BYTES * self.segments.iter().filter(|segment| segment.states_length()).count()
    }

    /// Cuts the flat parameters into the segments' shares.
    pub(crate) fn split_params<'a, T>(&self, params: &'a mut [T]) -> Vec<&'a mut [T]> {
        assert_eq!(params.len(), self.layout.len(), "parameters do not fit the layout");
        self.split(params, Segment::param_count)
    }

    /// Cuts `slice` into one part for each segment, as long as `count` says.
    pub(crate) fn split<'a, T>(&self, mut slice: &'a mut [T], count: impl Fn(&Segment) -> usize) -> Vec<&'a mut [T]> {
        self.segments
            .iter()
            .map(|segment| slice.split_off_mut(..count(segment)).expect("the slice was made for this plan"))
            .collect()
    }

    pub(crate) fn tensor_name(&self, segment: &Segment) -> &str {
        &self.layout.tensors()[segment.tensor].name
    }
}

/// The largest b with 13 · k · 2^b ≤ 9 · L, or 0: 2^b is near ln 2 · L / k, the best for random gaps (Golomb 1966).
fn low_bits(chunk_len: usize, k: usize) -> usize {
    (9 * chunk_len / (13 * k)).checked_ilog2().unwrap_or(0) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(kind: CodecKind, lengths: &[u64], chunk: u32, k: u32) -> Plan {
        let layout = Layout::new(lengths.iter().map(|&len| ("t".to_owned(), vec![len])));
        Plan::new(
            Arc::new(layout),
            &CodecSpec { kind, chunk, k, error_decay: 0.95, max_abs: 1.0, transform: Transform::None },
        )
    }

    #[test]
    fn segments_tile_the_parameters() {
        for kind in [CodecKind::TopkSign, CodecKind::TopkTwoBit, CodecKind::DenseF32] {
            let plan = plan(kind, &[4096 * 37 + 1, 0, 64, 4096, 1], 4096, 64);
            let mut param = 0;
            for segment in &plan.segments {
                assert!((1..=16).contains(&segment.chunks));
                assert_eq!(segment.params().start, param);
                param = segment.params().end;
            }
            assert_eq!(param, plan.layout.len());
        }
    }

    #[test]
    fn small_tensors_are_never_dense() {
        let plan = plan(CodecKind::TopkSign, &[4096, 1024, 65, 64, 1, 65_536], 4096, 64);
        let sent: Vec<_> = plan.segments.iter().map(|s| (s.k, s.low_bits, s.fixed_bits, s.unary_bits_max())).collect();
        let full = (64, 5, 8 + 64 * 6, 64 + 126);
        assert_eq!(sent, [full, (16, 5, 8 + 16 * 6, 16 + 31), (2, 4, 18, 5), (1, 5, 14, 2), (1, 0, 9, 1), full]);
    }

    #[test]
    fn every_length_fits_its_field() {
        for chunk in [1u32, 2, 3, 63, 64, 1000, 4096, 65_536] {
            for k in [1, 2, 3, chunk / 100, chunk / 3, chunk / 2, chunk - 1, chunk] {
                for kind in [CodecKind::TopkSign, CodecKind::TopkTwoBit] {
                    let plan = plan(kind, &[u64::from(chunk) * 70_000], chunk, k.clamp(1, chunk));
                    let most = plan.segments.iter().map(|segment| *segment.byte_range().end()).max();
                    assert!(most <= Some(usize::from(u16::MAX)), "{chunk} {k}: {most:?}");
                }
            }
        }
    }
}

//! Where everything lies: chunks, sent values and bytes follow from the layout and the codec's specification alone.
//!
//! Nothing in a payload says how long anything is, so a stranger's bytes can never choose the size of an allocation.

use std::{ops::Range, sync::Arc};

use templar_protocol::{
    layout::Layout,
    run::{CodecKind, CodecSpec},
};

/// Chunks in one unit of parallel work: 256 KiB of parameters at 4096 a chunk, which a core's own cache holds.
const SEGMENT_CHUNKS: usize = 16;

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
    pub(crate) chunk_bytes: usize,
    first_param: usize,
    first_byte: usize,
}

impl Segment {
    /// Its place in the flat parameters.
    pub(crate) fn params(&self) -> Range<usize> {
        self.first_param..self.first_param + self.param_count()
    }

    /// Its place in the payload.
    pub(crate) fn bytes(&self) -> Range<usize> {
        self.first_byte..self.first_byte + self.chunks * self.chunk_bytes
    }

    pub(crate) fn param_count(&self) -> usize {
        self.chunks * self.chunk_len
    }

    pub(crate) fn value_count(&self) -> usize {
        self.chunks * self.k
    }

    /// Words of 64 signs, each chunk starting a new one.
    pub(crate) fn word_count(&self) -> usize {
        self.chunks * self.words_per_chunk()
    }

    pub(crate) fn words_per_chunk(&self) -> usize {
        self.k.div_ceil(64)
    }

    /// Bits of a position: the least that can name every parameter of the chunk (12 for 4096, 0 for 1).
    pub(crate) fn position_bits(&self) -> u32 {
        position_bits(self.chunk_len)
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
    /// Length of every valid payload.
    pub(crate) payload_bytes: usize,
}

impl Plan {
    /// `first_byte` is the length of the payload's head.
    pub(crate) fn new(layout: Arc<Layout>, spec: &CodecSpec, first_byte: usize) -> Self {
        let (chunk, k) = (spec.chunk as usize, spec.k as usize);
        let mut plan = Self { layout, kind: spec.kind, chunk, segments: Vec::new(), payload_bytes: first_byte };
        let lengths: Vec<usize> = plan.layout.tensors().iter().map(|tensor| tensor.range().len()).collect();
        let mut first_param = 0;
        for (tensor, len) in lengths.into_iter().enumerate() {
            let (full, tail) = (len / chunk, len % chunk);
            let mut add = |chunk_in_tensor: usize, chunks: usize, chunk_len: usize| {
                let k = match spec.kind {
                    // Rounded up, so that every tensor is heard; never more than its share, so that none is dense.
                    CodecKind::TopkSign => (k * chunk_len).div_ceil(chunk),
                    CodecKind::DenseF32 => chunk_len,
                };
                let chunk_bytes = chunk_bytes(spec.kind, chunk_len, k);
                let first_byte = plan.payload_bytes;
                plan.segments.push(Segment {
                    tensor,
                    chunk_in_tensor,
                    chunks,
                    chunk_len,
                    k,
                    chunk_bytes,
                    first_param,
                    first_byte,
                });
                first_param += chunks * chunk_len;
                plan.payload_bytes += chunks * chunk_bytes;
            };
            for chunk_in_tensor in (0..full).step_by(SEGMENT_CHUNKS) {
                add(chunk_in_tensor, SEGMENT_CHUNKS.min(full - chunk_in_tensor), chunk);
            }
            if tail > 0 {
                add(full, 1, tail);
            }
        }
        plan
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

fn position_bits(chunk_len: usize) -> u32 {
    usize::BITS - (chunk_len - 1).leading_zeros()
}

fn chunk_bytes(kind: CodecKind, chunk_len: usize, k: usize) -> usize {
    match kind {
        CodecKind::TopkSign => 2 + (k * (position_bits(chunk_len) as usize + 1)).div_ceil(8),
        CodecKind::DenseF32 => 4 * chunk_len,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(kind: CodecKind, lengths: &[u64], chunk: u32, k: u32) -> Plan {
        let layout = Layout::new(lengths.iter().map(|&len| ("t".to_owned(), vec![len])));
        Plan::new(Arc::new(layout), &CodecSpec { kind, chunk, k, error_decay: 0.95, max_abs: 1.0 }, 4)
    }

    #[test]
    fn segments_tile_parameters_and_bytes() {
        for kind in [CodecKind::TopkSign, CodecKind::DenseF32] {
            let plan = plan(kind, &[4096 * 37 + 1, 0, 64, 4096, 1], 4096, 64);
            let (mut param, mut byte) = (0, 4);
            for segment in &plan.segments {
                assert!((1..=SEGMENT_CHUNKS).contains(&segment.chunks));
                assert_eq!((segment.params().start, segment.bytes().start), (param, byte));
                (param, byte) = (segment.params().end, segment.bytes().end);
            }
            assert_eq!((param, byte), (plan.layout.len(), plan.payload_bytes));
        }
    }

    #[test]
    fn small_tensors_are_never_dense() {
        let plan = plan(CodecKind::TopkSign, &[4096, 1024, 65, 64, 1, 65_536], 4096, 64);
        let sent: Vec<_> = plan.segments.iter().map(|s| (s.k, s.position_bits(), s.chunk_bytes)).collect();
        // 64 values of 13 bits and a scale; 16 of 11; 2 of 8; 1 of 7; 1 of 1; and sixteen full chunks again.
        assert_eq!(sent, [(64, 12, 106), (16, 10, 24), (2, 7, 4), (1, 6, 3), (1, 0, 3), (64, 12, 106)]);
    }
}

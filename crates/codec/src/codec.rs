//! Error feedback to payload and payload to contribution, for one run.

use std::sync::Arc;

use rayon::prelude::*;
use templar_protocol::{
    layout::Layout,
    run::{CodecKind, CodecSpec},
};

use crate::{
    contribution::{Contribution, Part},
    format::{self, ChunkError, DecodeError, HEAD_BYTES, Limits},
    plan::{Plan, Segment},
    select::{Selection, magnitude_bits},
};

/// The codec of one run: chunked top-k with signs (SparseLoCo), or dense f32 (DiLoCo) for comparison.
///
/// ```
/// # use std::sync::Arc;
/// # use templar_codec::{Codec, DecodeError};
/// # use templar_protocol::{layout::Layout, run::{CodecKind, CodecSpec}};
/// let layout = Arc::new(Layout::new([("w".to_owned(), vec![4096])]));
/// let spec = CodecSpec { kind: CodecKind::TopkSign, chunk: 4096, k: 64, error_decay: 0.95, max_abs: 1.0 };
/// let codec = Codec::new(layout, &spec);
/// // A head of 4 bytes; then a scale of 16 bits and 64 values of 12 + 1 bits.
/// assert_eq!(codec.max_payload_bytes(), 4 + (16 + 64 * 13) / 8);
/// assert!(matches!(codec.decode(b"hello"), Err(DecodeError::WrongLength { .. })));
/// ```
#[derive(Clone, Debug)]
pub struct Codec {
    plan: Arc<Plan>,
    limits: Limits,
}

/// Why error feedback has no payload.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EncodeError {
    #[error("the error feedback has {found} values, but the model has {expected}; start it from zeros for this run")]
    WrongLength { found: usize, expected: usize },
    #[error("value {index} of `{tensor}` in the error feedback is not finite; drop this window's Δ and retrain")]
    NotFinite { tensor: String, index: usize },
}

impl Codec {
    /// The codec of a run with this layout; it also works out where every chunk lies.
    ///
    /// # Panics
    /// If `spec` is not one that [`RunSpec::validate`](templar_protocol::run::RunSpec::validate) accepts.
    pub fn new(layout: Arc<Layout>, spec: &CodecSpec) -> Self {
        assert!((1..=65_536).contains(&spec.chunk), "codec.chunk is {}; validate the run first", spec.chunk);
        assert!((1..=spec.chunk).contains(&spec.k), "codec.k is {}; validate the run first", spec.k);
        assert!((1e-6..=1024.0).contains(&spec.max_abs), "codec.max_abs is {}; validate the run first", spec.max_abs);
        Self { plan: Arc::new(Plan::new(layout, spec, HEAD_BYTES)), limits: Limits::new(spec.max_abs) }
    }

    /// The canonical order of the parameters that it encodes.
    pub fn layout(&self) -> &Layout {
        &self.plan.layout
    }

    /// Length of the largest payload that is valid for this run, in bytes: nothing larger is ever downloaded. In format
    /// version 1 every valid payload has exactly this length.
    pub fn max_payload_bytes(&self) -> u64 {
        self.plan.payload_bytes as u64
    }

    /// The payload of the error feedback `e`: a pure function of `e`, whatever the number of threads.
    ///
    /// Per chunk it sends the `k` values of the largest magnitude, of equal ones those at lower positions, as signs
    /// and one scale: the mean of their magnitudes, each capped at `max_abs`, added up in f64 in the order of
    /// positions and rounded as [`mod@format`] says (SparseLoCo's one-bit form). `e` itself stays as it is: it
    /// is reduced by [`Contribution::subtract_from`] when the contribution is certified.
    pub fn encode(&self, e: &[f32]) -> Result<Vec<u8>, EncodeError> {
        let plan = &*self.plan;
        if e.len() != plan.layout.len() {
            return Err(EncodeError::WrongLength { found: e.len(), expected: plan.layout.len() });
        }
        let mut payload = vec![0; plan.payload_bytes];
        format::write_head(&mut payload, plan.kind);
        let outs = plan.split(&mut payload[HEAD_BYTES..], |segment| segment.chunks * segment.chunk_bytes);
        let failed = (plan.segments.par_iter().zip(outs))
            .map_init(Scratch::default, |scratch, (segment, out)| {
                self.encode_segment(segment, &e[segment.params()], out, scratch).is_err().then_some(segment)
            })
            .find_map_first(|failed| failed);
        match failed {
            None => Ok(payload),
            Some(segment) => Err(self.not_finite(segment, e)),
        }
    }

    fn encode_segment(
        &self,
        segment: &Segment,
        e: &[f32],
        out: &mut [u8],
        scratch: &mut Scratch,
    ) -> Result<(), NotFinite> {
        for (chunk, out) in e.chunks(segment.chunk_len).zip(out.chunks_mut(segment.chunk_bytes)) {
            match self.plan.kind {
                CodecKind::TopkSign => self.encode_signs(segment, chunk, out, scratch)?,
                CodecKind::DenseF32 => {
                    if !chunk.iter().all(|value| value.is_finite()) {
                        return Err(NotFinite);
                    }
                    format::write_dense(out, chunk.iter().map(|&value| format::canonical_value(value, self.limits)));
                }
            }
        }
        Ok(())
    }

    fn encode_signs(
        &self,
        segment: &Segment,
        chunk: &[f32],
        out: &mut [u8],
        scratch: &mut Scratch,
    ) -> Result<(), NotFinite> {
        let Scratch { selection, signs } = scratch;
        let largest = selection.select_largest(chunk, segment.k);
        if largest > magnitude_bits(f32::MAX) {
            return Err(NotFinite);
        }
        let mut sum = 0.0;
        signs.clear();
        signs.resize(segment.words_per_chunk(), 0);
        for (index, &position) in selection.positions.iter().enumerate() {
            let value = chunk[usize::from(position)];
            sum += self.limits.capped(value);
            signs[index / 64] |= u64::from(value < 0.0) << (index % 64);
        }
        let scale = format::round_scale(sum / segment.k as f64, self.limits);
        if scale == 0 {
            selection.positions.clear();
            selection.positions.extend((0..segment.k).map(|position| position as u16));
            signs.fill(0);
        }
        format::write_signs(out, segment.position_bits(), scale, &selection.positions, signs);
        Ok(())
    }

    /// Names the first value of `segment` that is not finite.
    fn not_finite(&self, segment: &Segment, e: &[f32]) -> EncodeError {
        let params = segment.params();
        let within = e[params.clone()].iter().position(|value| !value.is_finite()).expect("the segment has one");
        let tensor = &self.plan.layout.tensors()[segment.tensor];
        EncodeError::NotFinite { tensor: tensor.name.clone(), index: params.start + within - tensor.range().start }
    }

    /// The contribution that `payload` stands for. Total and canonical: any bytes give a contribution or a typed error
    /// (always the first in the order of the bytes), and no two payloads give equal contributions.
    ///
    /// Memory and time are bounded by the run alone; a payload of a wrong length costs nothing.
    pub fn decode(&self, payload: &[u8]) -> Result<Contribution, DecodeError> {
        let plan = &*self.plan;
        format::read_head(payload, plan.payload_bytes, plan.kind)?;
        // Errors are collected apart, because collecting into a Result would return whichever thread came first.
        let decoded: Vec<Result<Part, (usize, ChunkError)>> =
            plan.segments.par_iter().map(|segment| self.decode_segment(segment, &payload[segment.bytes()])).collect();
        let parts = (decoded.into_iter().zip(&plan.segments))
            .map(|(part, segment)| {
                part.map_err(|(chunk, source)| DecodeError::Chunk {
                    tensor: plan.tensor_name(segment).to_owned(),
                    chunk: (segment.chunk_in_tensor + chunk) as u64,
                    source,
                })
            })
            .collect::<Result<_, _>>()?;
        Ok(Contribution { plan: Arc::clone(&self.plan), parts })
    }

    /// On an error, the number of the chunk within the segment comes with it.
    fn decode_segment(&self, segment: &Segment, bytes: &[u8]) -> Result<Part, (usize, ChunkError)> {
        let chunks = bytes.chunks(segment.chunk_bytes).enumerate();
        match self.plan.kind {
            CodecKind::TopkSign => {
                let mut scales = vec![0; segment.chunks];
                let mut positions = vec![0; segment.value_count()];
                let mut signs = vec![0; segment.word_count()];
                let parts = positions.chunks_mut(segment.k).zip(signs.chunks_mut(segment.words_per_chunk()));
                for (((chunk, bytes), scale), (positions, signs)) in chunks.zip(&mut scales).zip(parts) {
                    *scale = format::read_signs(bytes, segment, self.limits, positions, signs)
                        .map_err(|error| (chunk, error))?;
                }
                Ok(Part::Signs { scales, positions, signs })
            }
            CodecKind::DenseF32 => {
                let mut values = vec![0.0; segment.param_count()];
                for ((chunk, bytes), values) in chunks.zip(values.chunks_mut(segment.chunk_len)) {
                    format::read_dense(bytes, self.limits, values).map_err(|error| (chunk, error))?;
                }
                Ok(Part::Dense(values))
            }
        }
    }
}

/// A value in the segment is not finite.
struct NotFinite;

/// One thread's working memory: a few chunks.
#[derive(Default)]
struct Scratch {
    selection: Selection,
    signs: Vec<u64>,
}

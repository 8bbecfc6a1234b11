//! Error feedback to payload and payload to contribution, for one run.
//!
//! Work is cut into segments, one after the other on each thread. [`pulp`] compiles each `with_simd` for several sets of
//! instructions and picks the widest that the processor has; what must profit is marked to be inlined into it.

use std::sync::Arc;

use bytes::Bytes;
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;
use templar_protocol::hash::Hash32;
use templar_protocol::layout::Layout;
use templar_protocol::run::{CHUNK_MAX, CodecKind, CodecSpec, SENT_MAX, SENT_MIN, TRANSFORM_CHUNK, Transform};
use templar_protocol::tree;

use crate::contribution::Contribution;
use crate::dct;
use crate::feedback::Feedback;
use crate::format::{self, ChunkError, DecodeError, HEAD_BYTES, LENGTH_BYTES, Limits};
use crate::frame;
use crate::plan::{Plan, Segment};
use crate::segment::{self, NotFinite, Reader, Scratch};

/// The codec of one run: chunked top-k with one or two magnitudes per chunk (SparseLoCo), or dense f32 (DiLoCo) for
/// comparison.
///
/// ```
/// # use std::sync::Arc;
/// # use templar_codec::{Codec, DecodeError};
/// # use templar_protocol::layout::Layout;
/// # use templar_protocol::run::{CodecKind, CodecSpec, Transform};
/// let layout = Arc::new(Layout::new([("w".to_owned(), vec![4096])]));
/// let spec = CodecSpec { kind: CodecKind::TopkSign, chunk: 4096, k: 64, error_decay: 0.95, max_abs: 1.0, transform: Transform::None };
/// let codec = Codec::new(layout, &spec);
/// // A head of 4 bytes and a length of 2; a scale, 64 values of a sign and 5 bits, and at most 64 ones and 126 zeros.
/// assert_eq!(codec.max_payload_bytes(), 4 + 2 + (8 + 64 * 6 + 64 + 126u64).div_ceil(8));
/// assert!(matches!(codec.decode(b"hello".as_slice()), Err(DecodeError::WrongLength { .. })));
/// ```
#[derive(Clone, Debug)]
pub struct Codec {
    plan: Arc<Plan>,
    limits: Limits,
    error_decay: f64,
    /// The vector instructions that this processor has; only tests choose others.
    pub(crate) arch: Arch,
}

/// Why error feedback cannot be encoded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EncodeError {
    #[error("value {index} of `{tensor}` in the error feedback is not finite; drop this window's Δ and retrain")]
    NotFinite { tensor: String, index: usize },
}

impl Codec {
    /// The codec of a run with this layout; it also works out where every chunk lies.
    ///
    /// # Panics
    /// If `spec` is not one that [`RunSpec::validate`](templar_protocol::run::RunSpec::validate) accepts.
    pub fn new(layout: Arc<Layout>, spec: &CodecSpec) -> Self {
        assert!((1..=CHUNK_MAX).contains(&spec.chunk), "codec.chunk is {}; validate the run first", spec.chunk);
        assert!((1..=spec.chunk).contains(&spec.k), "codec.k is {}; validate the run first", spec.k);
        assert!(
            (SENT_MIN..=SENT_MAX).contains(&spec.max_abs),
            "codec.max_abs is {}; validate the run first",
            spec.max_abs
        );
        assert!(
            spec.transform == Transform::None || (spec.chunk == TRANSFORM_CHUNK && spec.kind != CodecKind::DenseF32),
            "codec.transform is {:?}; validate the run first",
            spec.transform
        );
        Self {
            plan: Arc::new(Plan::new(layout, spec)),
            limits: Limits::new(spec.max_abs),
            error_decay: spec.error_decay,
            arch: Arch::new(),
        }
    }

    /// The canonical order of the parameters that it encodes.
    pub fn layout(&self) -> &Layout {
        &self.plan.layout
    }

    /// The digest of every segment of error feedback `e`, in canonical order, and the root over them: what a miner's header
    /// says of what it still owes.
    ///
    /// # Panics
    /// If `e` does not have the length of the run's parameters.
    pub fn feedback_root(&self, e: &[f32]) -> Hash32 {
        tree::root(&self.feedback_segments(e))
    }

    /// The leaves under [`Codec::feedback_root`].
    ///
    /// # Panics
    /// If `e` does not have the length of the run's parameters.
    pub fn feedback_segments(&self, e: &[f32]) -> Vec<Hash32> {
        assert_eq!(e.len(), self.plan.layout.len(), "e does not fit the layout");
        let digest = |segment: &Segment| {
            let bytes: Vec<[u8; 4]> = e[segment.params()].iter().map(|value| value.to_le_bytes()).collect();
            Hash32::derive("templar v2 feedback segment", bytes.as_flattened())
        };
        self.plan.segments.par_iter().map(digest).collect()
    }

    /// Length of the largest valid payload of this run, in bytes: nothing larger is ever downloaded.
    pub fn max_payload_bytes(&self) -> u64 {
        *self.plan.payload_bytes.end() as u64
    }

    /// e ← β·e + Δ, in place: what [`Codec::encode`] begins with.
    ///
    /// Each value is f32(f64(β·f64(e)) + f64(Δ)): the product and the sum in f64, rounded to f32 once, at the end. Under a
    /// transform, e holds coefficients, and Δ is transformed first.
    ///
    /// # Panics
    /// If `e` and `delta` do not have the length of the run's parameters.
    pub fn accumulate(&self, e: &mut [f32], delta: &[f32]) {
        assert_eq!(delta.len(), self.plan.layout.len(), "Δ does not fit the layout");
        let shares = self.plan.split_params(e);
        shares.into_par_iter().zip(&self.plan.segments).for_each_init(
            dct::Scratch::default,
            |scratch, (e, segment)| {
                let feedback = Feedback { e, delta: &delta[segment.params()], decay: self.error_decay };
                self.arch.dispatch(Accumulate { segment, feedback, scratch });
            },
        );
    }

    /// e ← β·e + Δ, the payload of this e, and e ← e − what the payload sends (SparseLoCo, eq. 2): the same bytes for any
    /// number of threads and any processor.
    ///
    /// From each chunk it sends the `k` values of the largest magnitude (of equal ones, those at lower positions) as
    /// signs and one or two magnitudes: the means of the magnitudes that they stand for, each capped at `max_abs`,
    /// rounded as [`mod@format`] says. The difference is taken in f64 and rounded to f32 once.
    /// [`Contribution::give_back`] puts what was sent back if it turns out not to count.
    ///
    /// Under a transform, e and what is sent are coefficients. Makes one pass over `e` and `delta`; memory beyond the payload is a few chunks per thread. After an error, `e`
    /// is not usable.
    ///
    /// # Panics
    /// If `e` and `delta` do not have the length of the run's parameters.
    pub fn encode(&self, e: &mut [f32], delta: &[f32]) -> Result<Vec<u8>, EncodeError> {
        let plan = &*self.plan;
        assert_eq!(delta.len(), plan.layout.len(), "Δ does not fit the layout");
        // Each segment has room for its longest form; afterwards the gaps between segments are closed.
        let mut payload = vec![0; *plan.payload_bytes.end()];
        frame::write_head(&mut payload, plan.kind);
        let outs = plan.split(&mut payload[plan.bodies_at()..], |segment| *segment.byte_range().end());
        let shares = plan.split_params(e);
        let lengths: Vec<Result<usize, NotFinite>> = (plan.segments.par_iter().zip(shares).zip(outs))
            .map_init(Scratch::default, |scratch, ((segment, e), out)| {
                let feedback = Feedback { e, delta: &delta[segment.params()], decay: self.error_decay };
                self.arch.dispatch(EncodeSegment { limits: self.limits, segment, feedback, out, scratch })
            })
            .collect();
        if let Some(failed) = lengths.iter().position(Result::is_err) {
            return Err(self.not_finite(&plan.segments[failed], e));
        }
        let lengths: Vec<usize> = lengths.into_iter().flatten().collect();
        let (mut from, mut to) = (plan.bodies_at(), plan.bodies_at());
        for (segment, &length) in plan.segments.iter().zip(&lengths) {
            payload.copy_within(from..from + length, to);
            from += segment.byte_range().end();
            to += length;
        }
        payload.truncate(to);
        let directory = &mut payload[HEAD_BYTES..plan.bodies_at()];
        let stated = plan.segments.iter().zip(lengths).filter(|(segment, _)| segment.states_length());
        for (field, (_, length)) in directory.as_chunks_mut::<LENGTH_BYTES>().0.iter_mut().zip(stated) {
            *field = (length as u16).to_le_bytes();
        }
        Ok(payload)
    }

    /// Names the first value of `segment` that is not finite.
    fn not_finite(&self, segment: &Segment, e: &[f32]) -> EncodeError {
        let params = segment.params();
        let within = e[params.clone()].iter().position(|value| !value.is_finite()).expect("the segment has one");
        let tensor = &self.plan.layout.tensors()[segment.tensor];
        EncodeError::NotFinite { tensor: tensor.name.clone(), index: params.start + within - tensor.range().start }
    }

    /// The contribution that `payload` stands for. Decoding is total and canonical: any bytes give a contribution or a
    /// typed error (always the first in the order of the bytes), and no two payloads give equal contributions.
    ///
    /// The payload is checked, not unpacked: [`outer_step`](crate::outer_step) unpacks it chunk by chunk.
    pub fn decode(&self, payload: impl Into<Bytes>) -> Result<Contribution, DecodeError> {
        let (plan, payload) = (&*self.plan, payload.into());
        let starts = frame::read_frame(&payload, plan)?;
        // Results are collected one by one: collecting into one Result would return the error of the fastest thread.
        let checked: Vec<Result<f64, (usize, ChunkError)>> = (plan.segments.par_iter().zip(starts.par_windows(2)))
            .map(|(segment, ends)| {
                let bytes = &payload[ends[0]..ends[1]];
                self.arch.dispatch(CheckSegment { limits: self.limits, segment, bytes })
            })
            .collect();
        let mut square_sums = vec![0.0; plan.layout.tensors().len()];
        for (checked, segment) in checked.into_iter().zip(&plan.segments) {
            let sum = checked.map_err(|(chunk, source)| DecodeError::Chunk {
                tensor: plan.tensor_name(segment).to_owned(),
                chunk: (segment.chunk_in_tensor + chunk) as u64,
                source,
            })?;
            square_sums[segment.tensor] += sum;
        }
        let norms = square_sums.into_iter().map(f64::sqrt).collect();
        Ok(Contribution { plan: Arc::clone(&self.plan), payload, starts, norms, arch: self.arch })
    }
}

/// See [`Codec::accumulate`].
struct Accumulate<'a> {
    segment: &'a Segment,
    feedback: Feedback<'a>,
    scratch: &'a mut dct::Scratch,
}

impl WithSimd for Accumulate<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        for mut chunk in self.feedback.chunks(self.segment.chunk_len) {
            chunk.accumulate(self.segment.transform, self.scratch);
        }
    }
}

/// See [`Codec::encode`]; returns the length of the segment.
struct EncodeSegment<'a> {
    limits: Limits,
    segment: &'a Segment,
    feedback: Feedback<'a>,
    out: &'a mut [u8],
    scratch: &'a mut Scratch,
}

impl WithSimd for EncodeSegment<'_> {
    type Output = Result<usize, NotFinite>;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> Self::Output {
        let Self { limits, segment, mut feedback, out, scratch } = self;
        match segment.kind {
            CodecKind::TopkSign | CodecKind::TopkTwoBit => {
                segment::encode(simd, segment, limits, feedback, out, scratch)
            }
            CodecKind::DenseF32 => {
                feedback.accumulate(Transform::None, &mut scratch.dct);
                if !feedback.e.iter().all(|value| value.is_finite()) {
                    return Err(NotFinite);
                }
                format::write_dense(out, feedback.e, limits);
                Ok(out.len())
            }
        }
    }
}

/// Gives the sum of the squares of what the segment sends, chunk by chunk in order, or the number of the first bad
/// chunk.
struct CheckSegment<'a> {
    limits: Limits,
    segment: &'a Segment,
    bytes: &'a [u8],
}

impl WithSimd for CheckSegment<'_> {
    type Output = Result<f64, (usize, ChunkError)>;

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> Self::Output {
        let Self { limits, segment, bytes } = self;
        let mut sum = 0.0;
        match segment.kind {
            CodecKind::TopkSign | CodecKind::TopkTwoBit => {
                let mut reader = Reader::new(segment, bytes);
                for chunk in 0..segment.chunks {
                    match reader.check_chunk(limits) {
                        Ok(squares) => sum += squares,
                        Err(error) => return Err((chunk, error)),
                    }
                }
                reader.check_end().map_err(|error| (segment.chunks - 1, error))?;
            }
            CodecKind::DenseF32 => {
                for (chunk, bytes) in bytes.chunks(4 * segment.chunk_len).enumerate() {
                    format::check_dense(bytes, limits).map_err(|error| (chunk, error))?;
                    let values = bytes.as_chunks().0.iter().map(|&value| f64::from(f32::from_le_bytes(value)));
                    sum += values.fold(0.0, |sum, value| sum + value * value);
                }
            }
        }
        Ok(sum)
    }
}

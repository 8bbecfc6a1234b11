//! A decoded contribution: which parameters a miner wants moved, and by how much.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;
use templar_protocol::run::{CodecKind, Transform};

use crate::dct;
use crate::fixed::{ONE, quantise};
use crate::plan::{Plan, Segment};
use crate::segment::{Entry, Reader};

/// A valid contribution to one run: a payload that has been checked. Only [`Codec::decode`](crate::Codec::decode)
/// produces it. It takes the memory of the payload, which it shares, and 8 bytes per 65,536 parameters.
#[derive(Clone)]
pub struct Contribution {
    pub(crate) plan: Arc<Plan>,
    pub(crate) payload: Bytes,
    /// Where each segment starts in the payload, and where the last one ends.
    pub(crate) starts: Vec<usize>,
    pub(crate) norms: Vec<f64>,
    pub(crate) arch: Arch,
}

/// One payload stands for one contribution.
impl PartialEq for Contribution {
    fn eq(&self, other: &Self) -> bool {
        self.payload == other.payload && self.plan == other.plan
    }
}

/// What one chunk sends, unpacked.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Sent<'a> {
    /// Entries in the order of positions, and the value of each code.
    Sparse(&'a [Entry], [f32; 4]),
    /// Little-endian f32.
    Dense(&'a [[u8; 4]]),
}

impl Sent<'_> {
    /// Calls `visit` with every position within the chunk and its value, in the order of positions.
    #[inline(always)]
    fn for_each(self, mut visit: impl FnMut(usize, f32)) {
        match self {
            Self::Sparse(entries, values) => {
                for entry in entries {
                    visit(entry.position(), values[entry.code()]);
                }
            }
            Self::Dense(values) => {
                values.iter().enumerate().for_each(|(position, value)| visit(position, f32::from_le_bytes(*value)));
            }
        }
    }

    fn len(self) -> usize {
        match self {
            Self::Sparse(entries, _) => entries.len(),
            Self::Dense(values) => values.len(),
        }
    }
}

/// Unpacks the chunks of one segment one after the other, into memory of its own.
#[derive(Debug)]
pub(crate) struct Chunks<'a> {
    segment: &'a Segment,
    source: Source<'a>,
}

#[derive(Debug)]
enum Source<'a> {
    Sparse(Reader<'a>, Vec<Entry>),
    Dense(&'a [[u8; 4]]),
}

impl Chunks<'_> {
    /// What the next chunk sends: nothing if its scale is 0.
    #[inline(always)]
    pub(crate) fn next(&mut self) -> Sent<'_> {
        match &mut self.source {
            Source::Sparse(reader, entries) => {
                let head = reader.unpack_chunk(entries);
                let sent = if head.is_empty() { 0 } else { entries.len() };
                Sent::Sparse(&entries[..sent], head.values(self.segment.has_two_levels()))
            }
            Source::Dense(values) => {
                Sent::Dense(values.split_off(..self.segment.chunk_len).expect("as many chunks as the segment has"))
            }
        }
    }
}

impl Contribution {
    /// Number of values that it sends: those of chunks with a scale above 0, or all if dense.
    pub fn values_sent(&self) -> u64 {
        let of_segment = |index: usize| {
            let mut chunks = self.chunks(index);
            (0..self.plan.segments[index].chunks).map(|_| chunks.next().len() as u64).sum::<u64>()
        };
        (0..self.plan.segments.len()).into_par_iter().map(of_segment).sum()
    }

    /// L2 norm of every tensor, in canonical order.
    ///
    /// All in f64: squares are added serially within a chunk, the chunks' sums in their order within a segment, then
    /// the segments' sums. So the bits are the same on every node, for any number of threads.
    pub fn norms(&self) -> &[f64] {
        &self.norms
    }

    /// x ← x + factor · contribution, in parameters: product and sum in f64, rounded to f32 once. It serves to evaluate θ;
    /// what nodes must agree on is [`outer_step`](crate::outer_step).
    ///
    /// Under a transform, the products are rounded to multiples of 2^-40, and the transform is the outer step's.
    ///
    /// # Panics
    /// If `params` does not have the length of the run's parameters, or if |factor| is above [`FACTOR_MAX`].
    pub fn add_scaled(&self, params: &mut [f32], factor: f64) {
        assert!(factor.abs() <= FACTOR_MAX, "the factor is {factor}; no run has one above {FACTOR_MAX}");
        self.add(params, Coordinates::Parameters { factor });
    }

    /// e ← e + contribution, in the coordinates of error feedback: what [`Codec::encode`](crate::Codec::encode) took
    /// from e comes back if it did not count. The sum is in f64, rounded to f32 once.
    ///
    /// # Panics
    /// If `e` does not have the length of the run's parameters.
    pub fn give_back(&self, e: &mut [f32]) {
        self.add(e, Coordinates::Feedback);
    }

    fn add(&self, values: &mut [f32], to: Coordinates) {
        let shares = self.plan.split_params(values);
        shares.into_par_iter().zip(&self.plan.segments).enumerate().for_each_init(
            Scratch::default,
            |scratch, (index, (values, segment))| {
                self.arch.dispatch(Add { chunks: self.chunks(index), values, segment, to, scratch });
            },
        );
    }

    /// The one payload that decodes to this contribution.
    pub fn payload(&self) -> &Bytes {
        &self.payload
    }

    /// Chunks of the segment with this index, from its first.
    #[inline(always)]
    pub(crate) fn chunks(&self, index: usize) -> Chunks<'_> {
        let segment = &self.plan.segments[index];
        let bytes = &self.payload[self.starts[index]..self.starts[index + 1]];
        let source = match segment.kind {
            CodecKind::TopkSign | CodecKind::TopkTwoBit => {
                Source::Sparse(Reader::new(segment, bytes), vec![Entry::default(); segment.k])
            }
            CodecKind::DenseF32 => Source::Dense(bytes.as_chunks().0),
        };
        Chunks { segment, source }
    }

    pub(crate) fn assert_same_run(&self, other: &Self) {
        assert!(
            Arc::ptr_eq(&self.plan, &other.plan) || self.plan == other.plan,
            "contributions must come from one run's codec"
        );
    }
}

/// The largest factor of [`Contribution::add_scaled`]: the largest `outer.rate`, so that nothing overflows.
pub const FACTOR_MAX: f64 = 16.0;

/// What a contribution is added to.
#[derive(Clone, Copy, Debug)]
enum Coordinates {
    Parameters { factor: f64 },
    Feedback,
}

/// One thread's working memory to add transformed chunks.
#[derive(Debug, Default)]
struct Scratch {
    sums: Vec<i64>,
    dct: dct::Scratch,
}

/// See [`Contribution::add`].
struct Add<'a> {
    chunks: Chunks<'a>,
    values: &'a mut [f32],
    segment: &'a Segment,
    to: Coordinates,
    scratch: &'a mut Scratch,
}

impl WithSimd for Add<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let Self { mut chunks, values, segment, to, scratch } = self;
        for values in values.chunks_mut(segment.chunk_len) {
            let sent = chunks.next();
            let factor = match (to, segment.transform) {
                (Coordinates::Parameters { factor }, Transform::Dct) => {
                    add_transformed(sent, values, factor, scratch);
                    continue;
                }
                (Coordinates::Parameters { factor }, Transform::None) => factor,
                (Coordinates::Feedback, _) => 1.0,
            };
            sent.for_each(|position, value| {
                values[position] = (f64::from(values[position]) + factor * f64::from(value)) as f32;
            });
        }
    }
}

/// Adds what a chunk sends as coefficients to its parameters.
#[inline(always)]
fn add_transformed(sent: Sent<'_>, params: &mut [f32], factor: f64, scratch: &mut Scratch) {
    if sent.len() == 0 {
        return;
    }
    let Scratch { sums, dct } = scratch;
    sums.clear();
    sums.resize(params.len(), 0);
    sent.for_each(|position, value| sums[position] = quantise(f64::from(value) * factor, 1.0, 1.0, 1.0));
    dct::inverse(sums, dct);
    for (param, &sum) in params.iter_mut().zip(&*sums) {
        *param = (f64::from(*param) + sum as f64 / ONE) as f32;
    }
}

/// Leaves out the values, because a contribution may hold gigabytes.
impl fmt::Debug for Contribution {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Contribution")
            .field("kind", &self.plan.kind)
            .field("payload_bytes", &self.payload.len())
            .finish_non_exhaustive()
    }
}
